//! AdamW with decoupled weight decay: states, master copies, and what is decayed. The numbers of one update are in
//! [`ops::adamw_inplace`].

use crate::ops::{self, AdamWStep, Gradients, ParamId};
use crate::{Error, Result};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What of AdamW does not change during a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
}

/// `torch.optim.AdamW` over a fixed list of tensors that it updates in place.
///
/// With `g` the gradient, `t` the number of this update, all in f32:
///
/// ```text
/// w <- w (1 - lr decay)
/// m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2
/// w <- w - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
/// ```
///
/// As in transformers' trainer, matrices are decayed (embeddings among them) and one-dimensional parameters, which are
/// norms and biases, are not. 16-bit weights have a master copy in f32 that takes the update and is rounded into them.
/// Decoupled weight decay: <https://arxiv.org/abs/1711.05101>.
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    step: usize,
}

struct Slot {
    name: String,
    value: Tensor,
    master: Option<Tensor>,
    m: Tensor,
    v: Tensor,
    decays: bool,
}

impl AdamW {
    /// States of zeros for `parameters`, whose order is that of the gradients' [`ParamId`]s.
    pub fn new(parameters: &[(String, Tensor)], config: AdamWConfig) -> Result<Self> {
        let slots = parameters
            .iter()
            .map(|(name, value)| {
                let zeros = || Tensor::zeros(value.shape(), DType::F32, value.device());
                Ok(Slot {
                    name: name.clone(),
                    value: value.clone(),
                    master: match value.dtype() {
                        DType::F32 => None,
                        _ => Some(value.to_dtype(DType::F32)?),
                    },
                    m: zeros()?,
                    v: zeros()?,
                    decays: value.rank() > 1,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            slots,
            step: 0,
        })
    }

    /// Updates done so far.
    pub fn num_steps(&self) -> usize {
        self.step
    }

    /// One update at learning rate `lr` with the gradients times `grad_scale`. A parameter without gradient is an error:
    /// it would silently not be trained.
    pub fn step(&mut self, gradients: &Gradients, lr: f64, grad_scale: f64) -> Result<()> {
        if gradients.num() != self.slots.len() {
            return Err(Error::input(format!(
                "{} gradients for {} parameters",
                gradients.num(),
                self.slots.len()
            )));
        }
        if let Some(i) = (0..self.slots.len()).find(|&i| gradients.get(ParamId(i)).is_none()) {
            return Err(Error::input(format!(
                "parameter `{}` has no gradient",
                self.slots[i].name
            )));
        }
        self.step += 1;
        for (i, slot) in self.slots.iter().enumerate() {
            let Some(gradient) = gradients.get(ParamId(i)) else {
                continue;
            };
            let step = AdamWStep {
                lr,
                beta1: self.config.betas[0],
                beta2: self.config.betas[1],
                eps: self.config.eps,
                weight_decay: if slot.decays {
                    self.config.weight_decay
                } else {
                    0.0
                },
                step: self.step,
                grad_scale,
            };
            ops::adamw_inplace(
                &slot.value,
                slot.master.as_ref(),
                &slot.m,
                &slot.v,
                gradient,
                &step,
            )
            .map_err(|e| e.at(format!("updating `{}`", slot.name)))?;
        }
        Ok(())
    }

    /// Writes the states as safetensors: `m.NAME`, `v.NAME`, `master.NAME` and `step`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::with_capacity(3 * self.slots.len() + 1);
        for slot in &self.slots {
            for (part, tensor) in slot.states() {
                tensors.push((format!("{part}.{}", slot.name), tensor.clone()));
            }
        }
        let step = Tensor::new(&[self.step as i64], &Device::Cpu)?;
        tensors.push(("step".to_string(), step));
        safetensors::serialize_to_file(tensors, None, path).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(source) => Error::io("writing", path, source),
            other => Error::input(format!("writing `{}`: {other}", path.display())),
        })
    }

    /// Takes the states back from a file of [`AdamW::save`], in place.
    ///
    /// # Errors
    /// A file of other parameters, shapes or dtypes.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let damaged = |e: candle_core::Error| {
            Error::input(format!("optimiser states `{}`: {e}", path.display()))
        };
        // SAFETY: the file is mapped for the duration of this call; a checkpoint is never written in place
        let file = unsafe { MmapedSafetensors::new(path) }.map_err(damaged)?;
        for slot in &self.slots {
            for (part, tensor) in slot.states() {
                let name = format!("{part}.{}", slot.name);
                let saved = file.load(&name, tensor.device()).map_err(damaged)?;
                if saved.dims() != tensor.dims() || saved.dtype() != tensor.dtype() {
                    return Err(Error::input(format!(
                        "optimiser states `{}`: `{name}` is {:?} {:?}, expected {:?} {:?}",
                        path.display(),
                        saved.dtype(),
                        saved.dims(),
                        tensor.dtype(),
                        tensor.dims()
                    )));
                }
                tensor.slice_set(&saved, 0, 0).map_err(damaged)?;
            }
        }
        let step = file
            .load("step", &Device::Cpu)
            .and_then(|t| t.to_vec1::<i64>())
            .map_err(damaged)?;
        self.step = match step[..] {
            [step] if step >= 0 => step as usize,
            _ => {
                return Err(Error::input(format!(
                    "optimiser states `{}`: `step` is {step:?}",
                    path.display()
                )));
            }
        };
        Ok(())
    }
}

impl Slot {
    fn states(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [("m", &self.m), ("v", &self.v)]
            .into_iter()
            .chain(self.master.iter().map(|t| ("master", t)))
    }
}
