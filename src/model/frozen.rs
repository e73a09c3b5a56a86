//! Frozen weights that are not kept as numbers where the model computes: which they are, and how they come back for a product.
//! In 4 bits, or in the file they were loaded from, read again whenever they are used.

use super::weights::InFile;
use super::{CausalLm, LoadOptions, ModelConfig, weights};
use crate::ops::{Nf4, ParamId};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How the projections of the blocks are kept beside adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrozenAs {
    /// In 4 bits: <https://arxiv.org/abs/2305.14314>.
    pub nf4: bool,
    /// Not on the device: in the memory of the host, of which the files are a part, and copied over for each use. A model
    /// larger than the device can be trained so.
    pub stream: bool,
}

/// One weight.
enum Frozen {
    Nf4(Nf4),
    InFile(InFile),
}

/// The weights of a model that are not kept as numbers; their places among its parameters are empty.
#[derive(Clone, Default)]
pub(super) struct FrozenWeights {
    of: BTreeMap<ParamId, Arc<Frozen>>,
    /// The one used last: a forward goes up, a backward down.
    last: Arc<AtomicUsize>,
}

/// Weights of a block: so many are asked for from the disk before they are used.
const AHEAD: usize = 7;

impl FrozenWeights {
    pub(super) fn remove(&mut self, id: ParamId) {
        self.of.remove(&id);
    }

    /// The weight that is used now; those after it are read from the disk meanwhile.
    fn take(&self, id: ParamId) -> Option<&Frozen> {
        let frozen = self.of.get(&id)?;
        if let Frozen::InFile(_) = **frozen {
            let upwards = self.last.swap(id.0, Ordering::Relaxed) <= id.0;
            let next: Vec<&Arc<Frozen>> = match upwards {
                true => {
                    let after = self.of.range((Excluded(id), Unbounded));
                    after.take(AHEAD).map(|(_, w)| w).collect()
                }
                false => {
                    let before = self.of.range(..id).rev();
                    before.take(AHEAD).map(|(_, w)| w).collect()
                }
            };
            for frozen in next {
                if let Frozen::InFile(w) = &**frozen {
                    w.expect();
                }
            }
        }
        Some(frozen)
    }
}

/// Whether a weight is kept so: the projections of the blocks, as bitsandbytes leaves out the head and everything that is no
/// matrix product.
pub fn is_projection(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

impl CausalLm {
    /// Loads the weights of a folder under a changed configuration, the projections of its blocks as `how` says; never more
    /// than one of these is in memory whole. They can only be trained by adapters. What is streamed from its files must stay
    /// there.
    ///
    /// # Errors
    /// As [`CausalLm::load_as`].
    pub fn load_frozen(
        folder: &Path,
        config: ModelConfig,
        options: &LoadOptions,
        how: FrozenAs,
    ) -> Result<Self> {
        let mut frozen = FrozenWeights::default();
        let names: Vec<String> = config.weight_shapes().into_iter().map(|(n, _)| n).collect();
        let host = match how.stream {
            true => &Device::Cpu,
            false => &options.device,
        };
        let mut keep = |i: usize, w: Tensor, stored: &weights::Stored| -> Result<Tensor> {
            if how == FrozenAs::default() || !is_projection(&names[i]) {
                return Ok(w.to_device(&options.device)?);
            }
            let kept = match how.nf4 {
                true => Frozen::Nf4(Nf4::quantise(&w, host)?),
                false => Frozen::InFile(stored.in_file()?),
            };
            frozen.of.insert(ParamId(i), Arc::new(kept));
            Ok(Tensor::zeros(0, options.dtype, &options.device)?)
        };
        let weights = weights::load_each(folder, &config, options.dtype, &mut keep)?;
        let mut model = Self::from_weights(config, weights, &options.device, options.dtype)?;
        model.frozen = frozen;
        Ok(model)
    }

    /// The same in 4 bits of weights that are in memory.
    ///
    /// # Errors
    /// A model that has adapters.
    pub fn into_nf4(mut self) -> Result<Self> {
        if self.adapter_config().is_some() {
            return Err(Error::input("weights beside adapters stay as they are"));
        }
        for (i, parameter) in self.parameters.iter_mut().enumerate() {
            if is_projection(&parameter.name) && !self.frozen.of.contains_key(&ParamId(i)) {
                let packed = Frozen::Nf4(Nf4::quantise(&parameter.value, &self.device)?);
                self.frozen.of.insert(ParamId(i), Arc::new(packed));
                parameter.value = Tensor::zeros(0, self.dtype, &self.device)?;
            }
        }
        Ok(self)
    }

    /// A weight as numbers on the model's device.
    pub(super) fn weight(&self, id: ParamId) -> Result<Tensor> {
        match self.frozen.take(id) {
            None => Ok(self.w(id).clone()),
            Some(Frozen::Nf4(packed)) => packed.to_device(&self.device)?.dequantise(self.dtype),
            Some(Frozen::InFile(w)) => w.read(&self.device, self.dtype),
        }
    }

    /// Bytes of the weights that stay on the model's device.
    pub fn resident_bytes(&self) -> u64 {
        let numbers = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let kept: usize = self.parameters.iter().map(|p| numbers(&p.value)).sum();
        let packed = self.frozen.of.values().map(|frozen| match &**frozen {
            Frozen::Nf4(packed) if packed.device().same_device(&self.device) => packed.num_bytes(),
            _ => 0,
        });
        (kept + packed.sum::<usize>()) as u64
    }
}
