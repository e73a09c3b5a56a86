//! Low-rank adapters beside frozen weights: LoRA, rsLoRA and DoRA, forward, backward and merged. Their files, in PEFT's
//! layout, are in `adapter_files`.
//!
//! Letters: T tokens, I inputs, O outputs, r rank. With a frozen W `[O, I]`, A `[r, I]`, B `[O, r]` and
//! `s = alpha / r` (rsLoRA, arXiv 2312.03732: `alpha / sqrt(r)`):
//!
//! ```text
//! LoRA (arXiv 2106.09685)   y = x W^T + b + s (x A^T) B^T
//! DoRA (arXiv 2402.09353)   y = g (x W^T + s (x A^T) B^T) + b,   g = m / ||W + s B A||  for each output
//! ```
//!
//! DoRA's norm is taken as a constant in the backward pass (section 4.3 there). It changes with A and B, so whoever has
//! changed these calls [`CausalLm::refresh`].

use super::linear::{LinearsFn, product};
use super::{CausalLm, ModelConfig, Parameter, uniform};
use crate::ops::{self, Gradients, ParamId};
use crate::{Error, Result};
use candle_core::{D, DType, Tensor};
use std::collections::BTreeMap;

/// What adapters are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Divide by the square root of the rank, not by the rank.
    pub rslora: bool,
    /// Magnitude and direction apart.
    pub dora: bool,
    /// Projections that have one: `q_proj`, `down_proj`, ...
    pub targets: Vec<String>,
}

impl AdapterConfig {
    /// Factor of what the adapter adds.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// That no rank is asked for that a model has no room for.
    ///
    /// # Errors
    /// More than the rows and columns of every target.
    pub fn check_rank(&self, model: &ModelConfig) -> Result<()> {
        let sides = |(name, shape): (String, Vec<usize>)| {
            let (_, layer) = module_of(&name)?;
            let is_target = self.targets.iter().any(|target| target == layer);
            shape.into_iter().max().filter(|_| is_target)
        };
        let most = model.weight_shapes().into_iter().filter_map(sides).max();
        match most.filter(|most| self.rank > *most) {
            None => Ok(()),
            Some(most) => Err(Error::input(format!(
                "adapters of rank {}, where no projection has more than {most} rows or columns",
                self.rank
            ))
            .with_hint("an adapter of that rank holds more than the weight it stands beside: the rank is usually 4 to 128")),
        }
    }

    /// Number of weights in the adapters of a model.
    pub fn num_parameters(&self, model: &ModelConfig) -> usize {
        let shapes = model.weight_shapes();
        let of = |(name, shape): &(String, Vec<usize>)| {
            let (_, layer) = module_of(name)?;
            let is_target = self.targets.iter().any(|target| target == layer);
            let (o, i) = (shape[0], *shape.get(1)?);
            is_target.then_some(self.rank * (i + o) + if self.dora { o } else { 0 })
        };
        shapes.iter().filter_map(of).sum()
    }
}

/// The adapter of one weight.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    a: ParamId,
    b: ParamId,
    dora: Option<Magnitude>,
    scale: f64,
}

#[derive(Clone, Debug)]
struct Magnitude {
    m: ParamId,
    /// Norm of each row of `W + s B A`, f32.
    norm: Tensor,
}

/// The adapters of a model.
#[derive(Clone, Debug)]
pub(super) struct Adapters {
    pub config: AdapterConfig,
    /// Where the frozen weights are, a folder or `org/name`, and their revision.
    pub base: (String, Option<String>),
    of_weight: BTreeMap<ParamId, Adapter>,
}

impl Adapters {
    pub fn of(&self, w: ParamId) -> Option<&Adapter> {
        self.of_weight.get(&w)
    }

    /// With norms of its own.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = self.clone();
        for adapter in copy.of_weight.values_mut() {
            if let Some(dora) = &mut adapter.dora {
                dora.norm = dora.norm.copy()?;
            }
        }
        Ok(copy)
    }
}

impl Adapter {
    /// y `[T, O]` of the frozen projection with bias to that of the adapted one.
    pub fn add_to(
        &self,
        m: &CausalLm,
        linears: LinearsFn,
        x: &Tensor,
        y: &Tensor,
        bias: Option<ParamId>,
    ) -> Result<Tensor> {
        let low = product(linears, x, m.w(self.a))?; // [T, r]
        let added = product(linears, &(low * self.scale)?, m.w(self.b))?; // [T, O]
        let Some(dora) = &self.dora else {
            ops::add_inplace(y, &added)?;
            return Ok(y.clone());
        };
        let Some(bias) = bias.map(|b| m.w(b)) else {
            return dora.scaled(m, &(y + added)?);
        };
        let direction = (y.broadcast_sub(bias)? + added)?;
        Ok(dora.scaled(m, &direction)?.broadcast_add(bias)?)
    }

    /// dy `[T, O]` to dx `[T, I]`; the gradients of A, B and m are added to `grads`. With z the product before g:
    ///
    /// ```text
    /// dz = g dy      dB = s dz^T (x A^T)      dA = s (dz B)^T x      dx = dz W + s (dz B) A      dm = sum_t dy z / norm
    /// ```
    pub fn backward(
        &self,
        model: &CausalLm,
        w: ParamId,
        x: &Tensor,
        dy: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let (a, b) = (model.w(self.a), model.w(self.b));
        let low = (ops::linear(x, a, None)? * self.scale)?; // [T, r]
        let dz = match &self.dora {
            None => dy.clone(),
            Some(dora) => {
                let z = (ops::linear(x, &model.weight(w)?, None)? + ops::linear(&low, b, None)?)?;
                let dg = ops::sum_rows(&(dy * z)?.to_dtype(DType::F32)?)?; // [O]
                grads.add(dora.m, &(dg / &dora.norm)?)?;
                dora.scaled(model, dy)?
            }
        };
        grads.add_matmul(self.b, &dz, &low)?;
        let d_low = (ops::linear_backward_input(&dz, b)? * self.scale)?; // [T, r]
        grads.add_matmul(self.a, &d_low, x)?;
        let dx = ops::linear_backward_input(&dz, &model.weight(w)?)?;
        ops::add_inplace(&dx, &ops::linear_backward_input(&d_low, a)?)?;
        Ok(dx)
    }

    /// `W + s B A` in f32. -> `[O, I]`
    fn direction(&self, model: &CausalLm, w: ParamId) -> Result<Tensor> {
        let wide = |id: ParamId| model.weight(id)?.to_dtype(DType::F32).map_err(Error::from);
        let a = wide(self.a)?.t()?.contiguous()?; // [I, r]
        let added = ops::linear(&wide(self.b)?, &a, None)?; // [O, I]
        Ok((wide(w)? + (added * self.scale)?)?)
    }

    /// The weight with the adapter in it, in f32.
    fn merged(&self, model: &CausalLm, w: ParamId) -> Result<Tensor> {
        let direction = self.direction(model, w)?;
        let Some(dora) = &self.dora else {
            return Ok(direction);
        };
        let g = (model.w(dora.m) / &dora.norm)?;
        Ok(direction.broadcast_mul(&g.unsqueeze(1)?)?)
    }
}

impl Magnitude {
    /// `g y`. The factors are near 1, where 16 bits have steps as large as what is learnt: f32 until they are applied.
    fn scaled(&self, model: &CausalLm, y: &Tensor) -> Result<Tensor> {
        let g = (model.w(self.m) / &self.norm)?; // [O]
        let scaled = y.to_dtype(DType::F32)?.broadcast_mul(&g)?;
        Ok(scaled.to_dtype(y.dtype())?)
    }
}

fn row_norms(w: &Tensor) -> Result<Tensor> {
    Ok(w.sqr()?.sum(D::Minus1)?.sqrt()?)
}

/// Where an adapter stands: the name that PEFT gives the module of a weight.
fn module_of(weight: &str) -> Option<(String, &str)> {
    let path = weight.strip_suffix(".weight")?;
    Some((format!("base_model.model.{path}"), path.rsplit('.').next()?))
}

impl CausalLm {
    /// Freezes the weights and puts new adapters beside them: A uniform in +-1/sqrt(I), as PEFT draws it, and B zero, so that
    /// nothing is changed yet; DoRA's magnitudes are the norms of the weights' rows.
    ///
    /// # Errors
    /// A target that the model does not have; a model that has adapters already.
    pub fn with_adapters(self, config: AdapterConfig, seed: u64) -> Result<Self> {
        config.check_rank(&self.config)?;
        let mut stream = 0;
        self.with_adapters_from(config, |name, shape| {
            stream += 1;
            let n = shape.iter().product();
            let values = match name.rsplit_once('.') {
                Some((_, "lora_magnitude_vector")) => return Ok(None),
                _ if name.ends_with("lora_A.weight") => {
                    uniform(seed, stream, n, (shape[1] as f64).sqrt().recip())
                }
                _ => vec![0.0; n],
            };
            Ok(Some(Tensor::from_vec(
                values,
                shape,
                &candle_core::Device::Cpu,
            )?))
        })
    }

    /// The same with the tensors that `find` gives for their names and shapes; none stands for what follows from the
    /// weights, which a magnitude may be.
    pub(super) fn with_adapters_from(
        mut self,
        config: AdapterConfig,
        mut find: impl FnMut(&str, &[usize]) -> Result<Option<Tensor>>,
    ) -> Result<Self> {
        if self.adapters.is_some() {
            return Err(Error::input("the model has adapters already").with_hint(
                "merge them first: `model/` of a finished stage holds the merged weights",
            ));
        }
        if config.rank == 0 {
            return Err(Error::input("adapters of rank 0 learn nothing")
                .with_hint("the rank is `r` of PEFT, usually 4 to 128"));
        }
        self.check_targets(&config)?;
        self.num_frozen = self.parameters.len();
        let shapes = self.config.weight_shapes();
        let mut of_weight = BTreeMap::new();
        for id in (0..self.num_frozen).map(ParamId) {
            let name = self.parameters[id.0].name.clone();
            let Some((module, layer)) = module_of(&name) else {
                continue;
            };
            if !config.targets.iter().any(|target| target == layer) {
                continue;
            }
            let &[o, i] = shapes[id.0].1.as_slice() else {
                return Err(Error::input(format!("`{name}` is no matrix")));
            };
            let mut add = |part: &str, shape: &[usize]| -> Result<ParamId> {
                let name = format!("{module}.{part}");
                let value = match find(&name, shape)? {
                    Some(value) => value,
                    None => row_norms(&self.weight(id)?.to_dtype(DType::F32)?)?,
                };
                let dtype = match part {
                    "lora_magnitude_vector" => DType::F32,
                    _ => self.dtype,
                };
                let value = value.to_dtype(dtype)?.to_device(&self.device)?;
                self.parameters.push(Parameter { name, value });
                Ok(ParamId(self.parameters.len() - 1))
            };
            let a = add("lora_A.weight", &[config.rank, i])?;
            let b = add("lora_B.weight", &[o, config.rank])?;
            let dora = match config.dora {
                false => None,
                true => Some(Magnitude {
                    m: add("lora_magnitude_vector", &[o])?,
                    norm: row_norms(&self.weight(id)?.to_dtype(DType::F32)?)?,
                }),
            };
            let scale = config.scale();
            of_weight.insert(id, Adapter { a, b, dora, scale });
        }
        let base = (String::new(), None);
        self.adapters = Some(Adapters {
            config,
            base,
            of_weight,
        });
        self.refresh()?;
        Ok(self)
    }

    fn check_targets(&self, config: &AdapterConfig) -> Result<()> {
        let projections = |name: &str| name.ends_with("_proj");
        let known: std::collections::BTreeSet<&str> = self
            .parameters
            .iter()
            .filter_map(|p| module_of(&p.name).map(|(_, layer)| layer))
            .filter(|layer| projections(layer))
            .collect();
        let unknown = config.targets.iter().find(|t| !known.contains(t.as_str()));
        let names: Vec<&str> = known.iter().copied().collect();
        let hint = format!("the model has {}", names.join(", "));
        match unknown {
            Some(target) => Err(Error::input(format!(
                "there is no projection `{target}` for an adapter"
            ))
            .with_hint(hint)),
            None if config.targets.is_empty() => {
                Err(Error::input("adapters without a target").with_hint(hint))
            }
            None => Ok(()),
        }
    }

    /// The same with the place of the frozen weights, a folder or `org/name`, for the files of the adapters.
    pub fn beside(mut self, base: &str, revision: Option<&str>) -> Self {
        if let Some(adapters) = &mut self.adapters {
            adapters.base = (base.to_string(), revision.map(str::to_string));
        }
        self
    }

    /// What its adapters are made of, where it has some: then they are trained and everything else is frozen.
    pub fn adapter_config(&self) -> Option<&AdapterConfig> {
        self.adapters.as_ref().map(|adapters| &adapters.config)
    }

    /// Brings what follows from the adapters up to date after they have been changed.
    ///
    /// # Errors
    /// The device refuses.
    pub fn refresh(&self) -> Result<()> {
        let adapters = self.adapters.iter().flat_map(|all| &all.of_weight);
        for (&w, adapter) in adapters {
            if let Some(dora) = &adapter.dora {
                let norm = row_norms(&adapter.direction(self, w)?)?;
                dora.norm.slice_set(&norm, 0, 0)?;
            }
        }
        Ok(())
    }

    /// The same weights without the adapters.
    ///
    /// # Errors
    /// The device refuses.
    pub fn without_adapters(&self) -> Result<Self> {
        let mut base = self.share()?;
        if base.adapters.take().is_some() {
            base.parameters.truncate(base.num_frozen);
            base.num_frozen = 0;
        }
        Ok(base)
    }

    /// Whether the adapters change nothing: every B is zero, and every magnitude that of its weight.
    ///
    /// # Errors
    /// The device refuses.
    pub fn adapters_are_neutral(&self) -> Result<bool> {
        let Some(adapters) = &self.adapters else {
            return Ok(true);
        };
        for adapter in adapters.of_weight.values() {
            if largest(self.w(adapter.b))? > 0.0 {
                return Ok(false);
            }
            if let Some(dora) = &adapter.dora
                && largest(&(self.w(dora.m) - &dora.norm)?)? > 0.0
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A model of its own to train: frozen weights are shared, the others copied.
    ///
    /// # Errors
    /// The device has no room for them.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = self.share()?;
        for parameter in &mut copy.parameters[self.num_frozen..] {
            parameter.value = parameter.value.copy()?;
        }
        Ok(copy)
    }

    /// The model with its adapters in its weights, all of which are trained again. One is replaced after the other.
    ///
    /// # Errors
    /// The device has no room for a weight.
    pub fn merge(mut self) -> Result<Self> {
        for i in 0..self.num_base() {
            self.parameters[i].value = self.merged_weight(ParamId(i))?;
            self.frozen.remove(ParamId(i));
        }
        self.parameters.truncate(self.num_base());
        (self.adapters, self.num_frozen) = (None, 0);
        Ok(self)
    }

    /// Weights without those of adapters.
    pub(super) fn num_base(&self) -> usize {
        match self.adapters {
            Some(_) => self.num_frozen,
            None => self.parameters.len(),
        }
    }

    /// A weight with its adapter in it, where it has one.
    pub(super) fn merged_weight(&self, id: ParamId) -> Result<Tensor> {
        let adapters = self.adapters.as_ref();
        match adapters.and_then(|all| all.of(id)) {
            None => self.weight(id),
            Some(adapter) => Ok(adapter.merged(self, id)?.to_dtype(self.dtype)?),
        }
    }
}

fn largest(t: &Tensor) -> Result<f32> {
    let t = t.to_dtype(DType::F32)?.abs()?.flatten_all()?;
    Ok(t.max(0)?.to_scalar()?)
}
