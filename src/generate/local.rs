//! The engine on our own weights: [`CausalLm`] and its KV cache under the scheduling loop.

use candle_core::{Device, Storage, Tensor};

use super::sampler::{Choice, MIN_TEMPERATURE};
use super::schedule::{self, Lm};
use super::stopping::Detokenize;
use super::{Completion, Engine, Request, Sampling};
use crate::model::{CausalLm, KvCache};
use crate::ops;
use crate::progress::Stop;
use crate::tokenize::TextTokenizer;
use crate::{Error, Result};

/// Samples from a model in this process.
pub struct LocalEngine<'a> {
    model: &'a CausalLm,
    tokenizer: &'a TextTokenizer,
    max_batch: usize,
}

impl<'a> LocalEngine<'a> {
    /// At most `max_batch` sequences are continued at once; memory for their keys and values grows with their lengths.
    pub fn new(model: &'a CausalLm, tokenizer: &'a TextTokenizer, max_batch: usize) -> Self {
        Self {
            model,
            tokenizer,
            max_batch,
        }
    }
}

/// Stop texts that are special tokens as stop tokens: they never appear in a completion's text.
pub(super) fn with_special_stops(sampling: &Sampling, tokenizer: &TextTokenizer) -> Sampling {
    let mut sampling = sampling.clone();
    let Sampling { stop, stop_ids, .. } = &mut sampling;
    stop.retain(|text| {
        let token = tokenizer.token_to_id(text);
        let special = token.filter(|&id| tokenizer.is_special(id));
        stop_ids.extend(special);
        special.is_none()
    });
    sampling
}

impl Engine for LocalEngine<'_> {
    fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        on_done: &mut dyn FnMut(Completion) -> Result<()>,
        stop: &Stop,
    ) -> Result<()> {
        let sampling = &with_special_stops(sampling, self.tokenizer);
        let mut lm = Cached {
            model: self.model,
            cache: self
                .model
                .new_cache(self.max_batch.clamp(1, requests.len().max(1)))?,
        };
        schedule::run(
            &mut lm,
            self.tokenizer,
            self.max_batch,
            requests,
            sampling,
            on_done,
            stop,
        )
    }
}

impl Detokenize for TextTokenizer {
    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        self.decode(tokens, true)
    }
}

/// A model with the cache of one call.
struct Cached<'a> {
    model: &'a CausalLm,
    cache: KvCache,
}

impl Lm for Cached<'_> {
    /// [V] or [B, V], f32, where the model is
    type Logits = Tensor;

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn max_positions(&self) -> usize {
        self.model.config().max_position_embeddings
    }

    fn prefill(&mut self, slot: u32, prompt: &[u32]) -> Result<Tensor> {
        let (model, cache) = (self.model, &mut self.cache);
        ops::in_pool(|| model.prefill(cache, slot, prompt))
    }

    fn decode(&mut self, slots: &[u32], tokens: &[u32]) -> Result<Tensor> {
        let (model, cache) = (self.model, &mut self.cache);
        ops::in_pool(|| model.decode(cache, slots, tokens))
    }

    fn share(&mut self, from: u32, to: u32, len: usize) -> Result<()> {
        self.cache.copy_prefix(from, to, len)
    }

    fn clear(&mut self, slot: u32) -> Result<()> {
        self.cache.clear(slot)
    }

    fn draw(
        &self,
        logits: &Tensor,
        sampling: &Sampling,
        us: &[f64],
    ) -> Result<Option<Vec<Option<Choice>>>> {
        let filters = ops::Filters {
            temperature: match sampling.temperature < MIN_TEMPERATURE {
                true => 0.0,
                false => sampling.temperature,
            },
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
        };
        let logits = logits.reshape((us.len(), ()))?;
        let drawn = ops::sample(&logits, &filters, us)?;
        Ok(drawn.map(|rows| rows.into_iter().map(|row| row.map(Choice::from)).collect()))
    }

    fn with_rows<R>(&self, logits: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let logits = to_cpu(logits)?;
        let (storage, layout) = logits.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            return Err(Error::input(
                "the logits are not contiguous in the memory of the CPU",
            ));
        };
        Ok(read(&storage.as_slice::<f32>()?[start..end]))
    }
}

/// Free where the model is on the CPU already.
fn to_cpu(logits: &Tensor) -> Result<Tensor> {
    Ok(logits
        .to_device(&Device::Cpu)?
        .to_dtype(candle_core::DType::F32)?
        .contiguous()?)
}
