//! Frozen weights that are not kept as numbers where the model computes: which they are, and how they come back for a product.
//! Quantised, or in the file they were loaded from, read again whenever they are used.

use super::weights::InFile;
use super::window::Window;
use super::{CausalLm, Head, LoadOptions, ModelConfig, weights};
use crate::ops::staging::Part;
use crate::ops::{GgmlBlocks, Packed, PackedAs, ParamId, packed};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How the projections of the blocks are kept beside adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrozenAs {
    /// Quantised: <https://arxiv.org/abs/2305.14314>.
    pub quant: Option<PackedAs>,
    /// Not on the device: in the memory of the host, of which the files are a part, and copied over for each use. A model
    /// larger than the device can be trained so.
    pub stream: bool,
}

/// One weight.
pub(super) enum Frozen {
    Packed(Packed),
    InFile(Arc<InFile>),
}

/// One weight where the model computes.
#[derive(Clone)]
pub(super) enum OnDevice {
    Packed(Packed),
    Whole(Tensor),
}

impl Frozen {
    /// What of it is copied to a device.
    pub(super) fn parts(&self) -> Vec<Part> {
        match self {
            Self::Packed(packed) => packed
                .parts()
                .into_iter()
                .map(|part| Part {
                    dtype: part.dtype(),
                    shape: part.dims().to_vec(),
                    bytes: Arc::new(part),
                })
                .collect(),
            Self::InFile(w) => {
                w.expect();
                vec![Part {
                    dtype: w.stored(),
                    shape: w.shape().to_vec(),
                    bytes: w.clone(),
                }]
            }
        }
    }

    /// The same of copies of the parts.
    pub(super) fn landed(&self, mut parts: Vec<Tensor>, dtype: DType) -> Result<OnDevice> {
        Ok(match self {
            Self::Packed(packed) => OnDevice::Packed(packed.of_parts(parts)?),
            Self::InFile(_) => OnDevice::Whole(
                parts
                    .pop()
                    .ok_or_else(|| Error::input("a weight did not arrive"))?
                    .to_dtype(dtype)?,
            ),
        })
    }
}

impl OnDevice {
    fn dense(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Packed(packed) => packed.dequantise(dtype),
            Self::Whole(w) => Ok(w.to_dtype(dtype)?),
        }
    }
}

/// The window of a streamed model, opened when it is first needed.
#[derive(Default)]
enum Opened {
    #[default]
    NotYet,
    Nothing,
    Window(Window),
}

/// The weights of a model that are not kept as numbers; their places among its parameters are empty.
#[derive(Clone, Default)]
pub(super) struct FrozenWeights {
    of: BTreeMap<ParamId, Arc<Frozen>>,
    /// What was asked for of those that are quantised.
    quant: Option<PackedAs>,
    /// The place among them of the one used last, and in the lowest bit whether the pass goes down, as a backward does.
    last: Arc<AtomicUsize>,
    /// They are on the host and go to the device for each use.
    stream: bool,
    window: Arc<Mutex<Opened>>,
}

/// Weights of a block: so many are asked for from the disk before they are used.
const AHEAD: usize = 7;

impl FrozenWeights {
    /// The direction of the pass: within a block its weights come in any order, from block to block they do not.
    fn goes_up(&self, id: ParamId) -> bool {
        let place = self.of.range(..id).count();
        let last = self.last.load(Ordering::Relaxed);
        let (last, was_down) = (last / 2, last % 2);
        let down = match (place / AHEAD).cmp(&(last / AHEAD)) {
            std::cmp::Ordering::Greater => 0,
            std::cmp::Ordering::Equal => was_down,
            std::cmp::Ordering::Less => 1,
        };
        self.last.store(2 * place + down, Ordering::Relaxed);
        down == 0
    }

    pub(super) fn remove(&mut self, id: ParamId) {
        self.of.remove(&id);
        // blocks are not whole any more
        self.stream = false;
        self.window = Arc::default();
        if self.of.is_empty() {
            self.quant = None;
        }
    }

    /// Whether its numbers are made anew for each use.
    pub(super) fn holds(&self, id: ParamId) -> bool {
        self.of.contains_key(&id)
    }

    /// What its weights were quantised to, where they were.
    pub(super) fn quant(&self) -> Option<PackedAs> {
        self.quant
    }

    /// The weight that is used now; those after it are read from the disk meanwhile.
    fn take(&self, id: ParamId) -> Option<&Frozen> {
        let frozen = self.of.get(&id)?;
        if let Frozen::InFile(_) = **frozen {
            let upwards = self.goes_up(id);
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

impl FrozenWeights {
    /// A weight on `device`, where it is brought there beside the device's work.
    fn through_window(
        &self,
        id: ParamId,
        device: &Device,
        dtype: DType,
    ) -> Result<Option<OnDevice>> {
        let Some(frozen) = self.of.get(&id).filter(|_| self.stream) else {
            return Ok(None);
        };
        let mut opened = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Opened::NotYet = *opened {
            *opened = match Window::of(device)? {
                Some(window) => Opened::Window(window),
                None => Opened::Nothing,
            };
        }
        match &mut *opened {
            Opened::Window(window) => window.weight(&self.of, id, frozen, dtype).map(Some),
            _ => Ok(None),
        }
    }
}

/// How many projections get each format where `quant` is asked for.
///
/// # Errors
/// One whose rows do not divide into blocks.
pub fn formats(config: &ModelConfig, quant: PackedAs) -> Result<BTreeMap<PackedAs, usize>> {
    let mut formats = BTreeMap::new();
    for (name, shape) in config.weight_shapes() {
        if let (true, &[_, width]) = (is_projection(&name), shape.as_slice()) {
            let taken = quant
                .for_width(width)
                .ok_or_else(|| packed::no_blocks(quant, width).at(format!("tensor `{name}`")))?;
            *formats.entry(taken).or_default() += 1;
        }
    }
    Ok(formats)
}

/// Bytes of the projections where `quant` is asked for; one that no block fits counts nothing: it is refused.
pub fn packed_bytes(config: &ModelConfig, quant: PackedAs) -> u64 {
    let bytes = |(name, shape): (String, Vec<usize>)| match shape.as_slice() {
        &[rows, width] if is_projection(&name) => quant
            .for_width(width)
            .map_or(0, |taken| taken.num_bytes(rows * width) as u64),
        _ => 0,
    };
    config.weight_shapes().into_iter().map(bytes).sum()
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
        if config.head == Head::Score {
            return Self::load_as(folder, config, options);
        }
        let mut frozen = FrozenWeights {
            quant: how.quant,
            stream: how.stream,
            ..FrozenWeights::default()
        };
        let names: Vec<String> = config.weight_shapes().into_iter().map(|(n, _)| n).collect();
        let host = match how.stream {
            true => &Device::Cpu,
            false => &options.device,
        };
        let mut keep = |i: usize, w: Tensor, stored: &weights::Stored| -> Result<Tensor> {
            if how == FrozenAs::default() || !is_projection(&names[i]) {
                return Ok(w.to_device(&options.device)?);
            }
            let kept = match how.quant {
                Some(quant) => Frozen::Packed(Packed::quantise(&w, quant, host)?),
                None => Frozen::InFile(Arc::new(stored.in_file()?)),
            };
            frozen.of.insert(ParamId(i), Arc::new(kept));
            Ok(Tensor::zeros(0, options.dtype, &options.device)?)
        };
        let weights = weights::load_each(folder, &config, options.dtype, &mut keep)?;
        let mut model = Self::from_weights(config, weights, &options.device, options.dtype)?;
        model.frozen = frozen;
        Ok(model)
    }

    /// The same quantised of weights that are in memory.
    ///
    /// # Errors
    /// A model that has adapters; rows that do not divide into blocks.
    pub fn into_packed(mut self, quant: PackedAs) -> Result<Self> {
        if self.adapter_config().is_some() {
            return Err(Error::input("weights beside adapters stay as they are"));
        }
        for (i, parameter) in self.parameters.iter_mut().enumerate() {
            if is_projection(&parameter.name) && !self.frozen.of.contains_key(&ParamId(i)) {
                let packed = Packed::quantise(&parameter.value, quant, &self.device)
                    .map_err(|e| e.at(format!("tensor `{}`", parameter.name)))?;
                let packed = Arc::new(Frozen::Packed(packed));
                self.frozen.of.insert(ParamId(i), packed);
                parameter.value = Tensor::zeros(0, self.dtype, &self.device)?;
            }
        }
        self.frozen.quant = Some(quant);
        Ok(self)
    }

    /// A weight as numbers on the model's device.
    pub(super) fn weight(&self, id: ParamId) -> Result<Tensor> {
        if let Some(weight) = self.frozen.through_window(id, &self.device, self.dtype)? {
            return weight.dense(self.dtype);
        }
        match self.frozen.take(id) {
            None => Ok(self.w(id).clone()),
            Some(Frozen::Packed(packed)) => packed.to_device(&self.device)?.dequantise(self.dtype),
            Some(Frozen::InFile(w)) => w.read(&self.device, self.dtype),
        }
    }

    /// Weights in the blocks of GGUF files, and their names.
    pub fn blocks(&self) -> impl Iterator<Item = (&str, &GgmlBlocks)> {
        let all = self.frozen.of.iter();
        all.filter_map(|(id, frozen)| match &**frozen {
            Frozen::Packed(Packed::Blocks(blocks)) => {
                Some((self.parameters[id.0].name.as_str(), blocks))
            }
            _ => None,
        })
    }

    /// Bytes of the weights that stay on the model's device.
    pub fn resident_bytes(&self) -> u64 {
        let numbers = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let kept: usize = self.parameters.iter().map(|p| numbers(&p.value)).sum();
        let packed = self.frozen.of.values().map(|frozen| match &**frozen {
            Frozen::Packed(packed) if packed.device().same_device(&self.device) => {
                packed.num_bytes()
            }
            _ => 0,
        });
        (kept + packed.sum::<usize>()) as u64
    }
}
