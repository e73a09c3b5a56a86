//! Frozen weights in fewer bits: which they are, and how they come back for a product.

use super::{CausalLm, LoadOptions, ModelConfig, weights};
use crate::ops::{Nf4, ParamId};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The weights of a model that are not kept as numbers.
pub(super) type Quantised = BTreeMap<ParamId, Arc<Nf4>>;

/// Whether a weight is quantised: the projections of the blocks, as bitsandbytes leaves out the head and everything that is
/// no matrix product.
pub fn is_quantised(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

impl CausalLm {
    /// Loads the weights of a folder under a changed configuration, the projections of its blocks in 4 bits; never more than
    /// one of these is in memory whole. They can only be trained by adapters.
    ///
    /// # Errors
    /// As [`CausalLm::load_as`].
    pub fn load_nf4(folder: &Path, config: ModelConfig, options: &LoadOptions) -> Result<Self> {
        let mut quantised = Quantised::new();
        let names: Vec<String> = config.weight_shapes().into_iter().map(|(n, _)| n).collect();
        let mut keep = |i: usize, w: Tensor| -> Result<Tensor> {
            if !is_quantised(&names[i]) {
                return Ok(w.to_device(&options.device)?);
            }
            let packed = Nf4::quantise(&w, &options.device)?;
            quantised.insert(ParamId(i), Arc::new(packed));
            Ok(Tensor::zeros(0, options.dtype, &options.device)?)
        };
        let weights = weights::load_each(folder, &config, options.dtype, &mut keep)?;
        let mut model = Self::from_weights(config, weights, &options.device, options.dtype)?;
        model.quantised = quantised;
        Ok(model)
    }

    /// The same of weights that are in memory.
    ///
    /// # Errors
    /// A model that has adapters.
    pub fn into_nf4(mut self) -> Result<Self> {
        if self.adapter_config().is_some() {
            return Err(Error::input("weights beside adapters stay as they are"));
        }
        for (i, parameter) in self.parameters.iter_mut().enumerate() {
            if is_quantised(&parameter.name) && !self.quantised.contains_key(&ParamId(i)) {
                let packed = Nf4::quantise(&parameter.value, &self.device)?;
                self.quantised.insert(ParamId(i), Arc::new(packed));
                parameter.value = Tensor::zeros(0, self.dtype, &self.device)?;
            }
        }
        Ok(self)
    }

    /// A weight, dequantised where it is quantised.
    pub(super) fn weight(&self, id: ParamId) -> Result<Tensor> {
        match self.quantised.get(&id) {
            Some(packed) => packed.dequantise(self.dtype),
            None => Ok(self.w(id).clone()),
        }
    }

    /// Whether frozen weights are quantised.
    pub fn is_nf4(&self) -> bool {
        !self.quantised.is_empty()
    }
}
