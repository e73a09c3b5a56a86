//! AdamW with decoupled weight decay: states, master copies, and what is decayed. The numbers of one update are in
//! [`ops::adamw_inplace`], those of one with states in 8 bits in [`ops::adamw8_inplace`].

use crate::ops::{self, Adam8State, AdamWStep, Gradients, Master, ParamId, tensor_file};
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
    /// States in 8 bits where [`has_8bit_states`] says so.
    pub eight_bit: bool,
}

/// Tensors of fewer values keep states in f32, as bitsandbytes has it.
const LEAST_8BIT_SIZE: usize = 4096;

/// Whether 8-bit AdamW keeps the states of a parameter in 8 bits: where it has at least 4,096 values and is no embedding.
///
/// A row of an embedding that a step does not meet has a gradient of 0; where its v was rounded to 0 in 8 bits and its m was
/// not, it would move by `m / eps`. So bitsandbytes has its embeddings, and transformers' trainer those of every model, in
/// 32 bits; that is the head too where the two are tied.
pub fn has_8bit_states(name: &str, shape: &[usize]) -> bool {
    shape.iter().product::<usize>() >= LEAST_8BIT_SIZE && !name.ends_with("embed_tokens.weight")
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
/// norms and biases, are not. 16-bit weights have a master copy in f32 that takes the update and is rounded into them, see
/// [`Master`].
/// Decoupled weight decay: <https://arxiv.org/abs/1711.05101>.
pub struct AdamW {
    config: AdamWConfig,
    /// Place of the first slot's gradient; those before it are of frozen parameters.
    first: ParamId,
    slots: Vec<Slot>,
    step: usize,
}

struct Slot {
    name: String,
    value: Tensor,
    master: Option<Master>,
    states: States,
    decays: bool,
}

enum States {
    F32 { m: Tensor, v: Tensor },
    Bits8(Adam8State),
}

impl AdamW {
    /// States of zeros for `parameters`, whose order is that of the gradients' [`ParamId`]s.
    pub fn new(parameters: &[(String, Tensor)], config: AdamWConfig) -> Result<Self> {
        Self::from(ParamId(0), parameters, config)
    }

    /// The same where the gradients are those from `first` on.
    pub fn from(
        first: ParamId,
        parameters: &[(String, Tensor)],
        config: AdamWConfig,
    ) -> Result<Self> {
        let slots = parameters
            .iter()
            .map(|(name, value)| {
                let zeros = || Tensor::zeros(value.shape(), DType::F32, value.device());
                let states = match config.eight_bit && has_8bit_states(name, value.dims()) {
                    true => {
                        Adam8State::zeros(value.elem_count(), value.device()).map(States::Bits8)?
                    }
                    false => States::F32 {
                        m: zeros()?,
                        v: zeros()?,
                    },
                };
                Ok(Slot {
                    name: name.clone(),
                    value: value.clone(),
                    master: Master::of(value)?,
                    states,
                    decays: value.rank() > 1,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            first,
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
        let first = self.first.0;
        if gradients.num() != first + self.slots.len() {
            return Err(Error::input(format!(
                "{} gradients for {} parameters",
                gradients.num(),
                first + self.slots.len()
            )));
        }
        let gradient = |i: usize| gradients.get(ParamId(first + i));
        if let Some(i) = (0..self.slots.len()).find(|&i| gradient(i).is_none()) {
            return Err(Error::input(format!(
                "parameter `{}` has no gradient",
                self.slots[i].name
            )));
        }
        self.step += 1;
        for i in 0..self.slots.len() {
            if let Some(gradient) = gradient(i) {
                self.update(i, gradient, lr, grad_scale)?;
            }
        }
        Ok(())
    }

    /// One update whose gradients are applied as they come; as [`AdamW::step`] with all of them, to the bit.
    pub fn begin(&mut self, lr: f64, grad_scale: f64) -> Piecewise<'_> {
        self.step += 1;
        Piecewise {
            squares: vec![None; self.slots.len()],
            optimizer: self,
            lr,
            grad_scale,
        }
    }

    /// The update of one parameter.
    fn update(&self, i: usize, gradient: &Tensor, lr: f64, grad_scale: f64) -> Result<()> {
        let slot = &self.slots[i];
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
        let (value, master) = (&slot.value, slot.master.as_ref());
        match &slot.states {
            States::F32 { m, v } => ops::adamw_inplace(value, master, m, v, gradient, &step),
            States::Bits8(state) => ops::adamw8_inplace(value, master, state, gradient, &step),
        }
        .map_err(|e| e.at(format!("updating `{}`", slot.name)))
    }

    /// Writes the states as safetensors: `m.NAME`, `v.NAME`, `master.NAME` (of bf16 `master_rest.NAME`) and `step`; of states in 8 bits the codes, and
    /// the scales as `m_absmax.NAME` and `v_absmax.NAME`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::with_capacity(5 * self.slots.len() + 1);
        for slot in &self.slots {
            for (part, tensor) in slot.states() {
                tensors.push((format!("{part}.{}", slot.name), tensor.clone()));
            }
        }
        let step = Tensor::new(&[self.step as i64], &Device::Cpu)?;
        tensors.push(("step".to_string(), step));
        tensor_file::write(path, &tensors, &[])
    }

    /// Takes the states back from a file of [`AdamW::save`].
    ///
    /// # Errors
    /// A file of other parameters, shapes or dtypes.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let damaged = |e: candle_core::Error| {
            Error::input(format!("optimiser states `{}`: {e}", path.display()))
        };
        // SAFETY: the file is mapped for the duration of this call; a checkpoint is never written in place
        let file = unsafe { MmapedSafetensors::new(path) }.map_err(damaged)?;
        for slot in &mut self.slots {
            let of = slot.name.clone();
            for (part, tensor) in slot.states_mut() {
                let name = format!("{part}.{of}");
                let saved = file.load(&name, tensor.device()).map_err(|e| {
                    damaged(e).with_hint(
                        "a checkpoint of another version, or of another kind of device: `--fresh` starts anew",
                    )
                })?;
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
                // not copied into the old one: candle has no copy of 16-bit integers on a CUDA device
                *tensor = saved;
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

/// An update under way, see [`AdamW::begin`].
pub struct Piecewise<'a> {
    optimizer: &'a mut AdamW,
    lr: f64,
    grad_scale: f64,
    /// Of each gradient that was applied.
    squares: Vec<Option<f64>>,
}

impl Piecewise<'_> {
    /// Applies all gradients that are there, but that of `held`, and lets them go.
    ///
    /// # Errors
    /// [`Error::NonFinite`] before a gradient that is no number is applied; those before it have been.
    pub fn apply(&mut self, gradients: &mut Gradients, held: Option<ParamId>) -> Result<()> {
        let first = self.optimizer.first.0;
        for i in 0..self.optimizer.slots.len() {
            let id = ParamId(first + i);
            if held == Some(id) {
                continue;
            }
            let Some(gradient) = gradients.take(id) else {
                continue;
            };
            let name = &self.optimizer.slots[i].name;
            if self.squares[i].is_some() {
                return Err(Error::input(format!(
                    "parameter `{name}` has two gradients"
                )));
            }
            let squares = ops::gradients::sum_squares(&gradient)?;
            if !squares.is_finite() {
                return Err(Error::NonFinite {
                    message: format!("the gradient of `{name}` is not finite"),
                    hint: None,
                });
            }
            self.squares[i] = Some(squares);
            self.optimizer
                .update(i, &gradient, self.lr, self.grad_scale)?;
        }
        Ok(())
    }

    /// The sum of the squares of all gradients, once each parameter has had one.
    ///
    /// # Errors
    /// One that had none would silently not be trained.
    pub fn finish(self) -> Result<f64> {
        let mut sum = 0.0;
        for (squares, slot) in self.squares.iter().zip(&self.optimizer.slots) {
            sum += squares.ok_or_else(|| {
                Error::input(format!("parameter `{}` has no gradient", slot.name))
            })?;
        }
        Ok(sum)
    }
}

impl Slot {
    fn states(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let of = match &self.states {
            States::F32 { m, v } => vec![("m", m), ("v", v)],
            States::Bits8(s) => vec![
                ("m", &s.m),
                ("m_absmax", &s.m_absmax),
                ("v", &s.v),
                ("v_absmax", &s.v_absmax),
            ],
        };
        of.into_iter().chain(self.master.iter().map(Master::stored))
    }

    /// The same, to be replaced.
    fn states_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let of = match &mut self.states {
            States::F32 { m, v } => vec![("m", m), ("v", v)],
            States::Bits8(s) => vec![
                ("m", &mut s.m),
                ("m_absmax", &mut s.m_absmax),
                ("v", &mut s.v),
                ("v_absmax", &mut s.v_absmax),
            ],
        };
        let master = self.master.iter_mut().map(Master::stored_mut);
        of.into_iter().chain(master)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig {
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.5,
        eight_bit: false,
    };

    /// A 1x1 matrix and a bias, both 1.
    fn parameters(dtype: DType) -> Vec<(String, Tensor)> {
        let ones = |shape: &[usize]| Tensor::ones(shape, dtype, &Device::Cpu).unwrap();
        vec![
            ("matrix".into(), ones(&[1, 1])),
            ("bias".into(), ones(&[1])),
        ]
    }

    fn gradients(g: f32) -> Gradients {
        let mut gradients = Gradients::new(vec![vec![1, 1], vec![1]], &Device::Cpu);
        let t = Tensor::new(&[g], &Device::Cpu).unwrap();
        gradients
            .add(ParamId(0), &t.reshape((1, 1)).unwrap())
            .unwrap();
        gradients.add(ParamId(1), &t).unwrap();
        gradients
    }

    fn values(parameters: &[(String, Tensor)]) -> Vec<f32> {
        parameters
            .iter()
            .map(|(_, t)| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap())
            .map(|t| t.to_vec1::<f32>().unwrap()[0])
            .collect()
    }

    #[test]
    fn two_updates_by_hand() {
        let parameters = parameters(DType::F32);
        let mut adamw = AdamW::new(&parameters, CONFIG).unwrap();
        // m = 0.2, v = 0.04, both corrected: 2 / sqrt(4) = 1; the matrix alone decays by 0.1 * 0.5
        adamw.step(&gradients(2.0), 0.1, 1.0).unwrap();
        let near = |expected: [f32; 2]| {
            for (got, e) in values(&parameters).iter().zip(expected) {
                assert!((got - e).abs() < 1e-6, "{got} is not {e}");
            }
        };
        near([0.85, 0.9]);
        // the gradient counts half: m = 0.28 / 0.19, v = 0.0496 / 0.0199, m / sqrt(v) = 0.933448
        adamw.step(&gradients(2.0), 0.1, 0.5).unwrap();
        near([0.85 * 0.95 - 0.093_344_8, 0.9 - 0.093_344_8]);
    }

    #[test]
    fn sixteen_bit_weights_move_by_less_than_they_can_show() {
        // a step of 1e-4 is lost in bf16 next to 1 (spacing 2^-8); 30 of them are not
        let parameters = parameters(DType::BF16);
        let config = AdamWConfig {
            weight_decay: 0.0,
            ..CONFIG
        };
        let mut adamw = AdamW::new(&parameters, config).unwrap();
        adamw.step(&gradients(1.0), 1e-4, 1.0).unwrap();
        assert_eq!(values(&parameters), [1.0, 1.0]);
        for _ in 1..30 {
            adamw.step(&gradients(1.0), 1e-4, 1.0).unwrap();
        }
        // 1 - 0.003, rounded
        assert_eq!(values(&parameters), [0.996_093_75, 0.996_093_75]);
    }

    #[test]
    fn saved_states_go_on_bit_for_bit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let straight = parameters(dtype);
            let mut adamw = AdamW::new(&straight, CONFIG).unwrap();
            adamw.step(&gradients(0.3), 0.01, 1.0).unwrap();
            adamw.save(file.path()).unwrap();
            let resumed: Vec<_> = straight
                .iter()
                .map(|(name, t)| (name.clone(), t.copy().unwrap()))
                .collect();
            let mut again = AdamW::new(&resumed, CONFIG).unwrap();
            again.load(file.path()).unwrap();
            assert_eq!(again.num_steps(), 1);
            for optimizer in [&mut adamw, &mut again] {
                optimizer.step(&gradients(-0.7), 0.02, 0.5).unwrap();
            }
            assert_eq!(values(&straight), values(&resumed));
            let bits = |a: &AdamW| {
                let states = a.slots.iter().flat_map(Slot::states);
                states
                    .map(|(_, t)| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap())
                    .map(|t| t.to_vec1::<f32>().unwrap())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bits(&adamw), bits(&again));
        }
    }

    #[test]
    fn states_in_8_bits_go_on_bit_for_bit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = AdamWConfig {
            eight_bit: true,
            ..CONFIG
        };
        let gradients = |seed: u32| {
            let mut gradients =
                Gradients::new(vec![vec![64, 70], vec![64, 64], vec![63, 65]], &Device::Cpu);
            for (i, shape) in [(64, 70), (64, 64), (63, 65)].into_iter().enumerate() {
                let n = (shape.0 * shape.1) as u32;
                let values: Vec<f32> = (0..n)
                    .map(|j| ((j * 31 + seed) % 97) as f32 - 48.0)
                    .collect();
                let g = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
                gradients.add(ParamId(i), &g).unwrap();
            }
            gradients
        };
        for dtype in [DType::F32, DType::BF16] {
            let ones = |shape: (usize, usize)| Tensor::ones(shape, dtype, &Device::Cpu).unwrap();
            let straight = vec![
                ("large".to_string(), ones((64, 70))),
                ("model.embed_tokens.weight".to_string(), ones((64, 64))),
                ("small".to_string(), ones((63, 65))),
            ];
            let mut adamw = AdamW::new(&straight, config).unwrap();
            let names = |slot: &Slot| slot.states().map(|(name, _)| name).collect::<Vec<_>>();
            let num_f32 = 2 + usize::from(dtype != DType::F32);
            assert_eq!(
                names(&adamw.slots[0])[..4],
                ["m", "m_absmax", "v", "v_absmax"]
            );
            assert_eq!(names(&adamw.slots[1]).len(), num_f32);
            assert_eq!(names(&adamw.slots[2]).len(), num_f32);
            adamw.step(&gradients(3), 0.01, 1.0).unwrap();
            adamw.save(file.path()).unwrap();
            let resumed: Vec<_> = straight
                .iter()
                .map(|(name, t)| (name.clone(), t.copy().unwrap()))
                .collect();
            let mut again = AdamW::new(&resumed, config).unwrap();
            again.load(file.path()).unwrap();
            for optimizer in [&mut adamw, &mut again] {
                optimizer.step(&gradients(5), 0.02, 0.5).unwrap();
            }
            let bits = |a: &AdamW| {
                let states = a
                    .slots
                    .iter()
                    .flat_map(Slot::states)
                    .map(|(_, t)| t.clone());
                let all = states.chain(a.slots.iter().map(|slot| slot.value.clone()));
                all.map(|t| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap())
                    .map(|t| t.to_vec1::<f32>().unwrap())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bits(&adamw), bits(&again));
            // those in f32 are other states
            let mut full = AdamW::new(&straight, CONFIG).unwrap();
            let error = full.load(file.path()).unwrap_err().to_string();
            assert!(
                error.ends_with("`m.large` is U8 [4480], expected F32 [64, 70]"),
                "{error}"
            );
        }
    }

    #[test]
    fn states_of_other_parameters_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut parameters = parameters(DType::F32);
        AdamW::new(&parameters, CONFIG)
            .unwrap()
            .save(file.path())
            .unwrap();
        parameters[1].1 = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let mut other = AdamW::new(&parameters, CONFIG).unwrap();
        let error = other.load(file.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("`m.bias` is F32 [1], expected F32 [2]"),
            "{error}"
        );
    }

    #[test]
    fn parameter_without_gradient_is_an_error() {
        let mut adamw = AdamW::new(&parameters(DType::F32), CONFIG).unwrap();
        let none = Gradients::new(vec![vec![1, 1], vec![1]], &Device::Cpu);
        let error = adamw.step(&none, 0.1, 1.0).unwrap_err().to_string();
        assert_eq!(error, "parameter `matrix` has no gradient");
    }
}
