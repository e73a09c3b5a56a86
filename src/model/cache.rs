//! Keys and values of sequences being sampled, and the two forwards that use them: a prompt at once, then one token a
//! sequence. A sequence's logits never depend, to the bit, on which others are sampled beside it.

use super::CausalLm;
use super::block::Places;
use crate::ops::{self, SeqLens, decode};
use crate::{Error, Result};
use candle_core::Tensor;

/// Positions a new cache has room for.
const FIRST_CAPACITY: usize = 64;

/// One place (slot) a sequence; grows by doubling.
pub struct KvCache {
    /// Keys and values of each layer, `[S, K, P, D]`.
    layers: Vec<(Tensor, Tensor)>,
    lens: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// Positions filled in `slot`.
    pub fn len(&self, slot: u32) -> usize {
        self.lens.get(slot as usize).copied().unwrap_or(0)
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.lens.iter().all(|&n| n == 0)
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.lens.len()
    }

    /// Empties `slot`.
    pub fn clear(&mut self, slot: u32) -> Result<()> {
        self.check(slot)?;
        self.lens[slot as usize] = 0;
        Ok(())
    }

    /// Copies the first `len` positions of slot `from` to slot `to`, which then holds just these.
    pub fn copy_prefix(&mut self, from: u32, to: u32, len: usize) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        if len > self.len(from) {
            return Err(Error::input(format!(
                "slot {from} holds {} positions, not {len}",
                self.len(from)
            )));
        }
        if from != to {
            for (k, v) in &self.layers {
                for cache in [k, v] {
                    let (_, heads, _, d) = cache.dims4()?;
                    let rows = cache.narrow(0, from as usize, 1)?.narrow(2, 0, len)?; // [1, K, len, D]
                    let rows = rows
                        .permute((2, 0, 1, 3))?
                        .reshape((len, heads, d))?
                        // with one head all this is a view of the cache itself
                        .force_contiguous()?; // [len, K, D]
                    let positions: Vec<u32> = (0..len as u32).collect();
                    decode::append(cache, &rows, &vec![to; len], &positions)?;
                }
            }
        }
        self.lens[to as usize] = len;
        Ok(())
    }

    fn check(&self, slot: u32) -> Result<()> {
        if (slot as usize) < self.lens.len() {
            return Ok(());
        }
        Err(Error::input(format!(
            "cache slot {slot} of {}",
            self.lens.len()
        )))
    }

    /// Makes room for `positions` in every slot.
    fn reserve(&mut self, positions: usize) -> Result<()> {
        if positions <= self.capacity {
            return Ok(());
        }
        let capacity = positions.next_power_of_two();
        for (k, v) in &mut self.layers {
            for cache in [k, v] {
                let (s, heads, p, d) = cache.dims4()?;
                let room =
                    Tensor::zeros((s, heads, capacity - p, d), cache.dtype(), cache.device())?;
                *cache = Tensor::cat(&[&*cache, &room], 2)?.contiguous()?;
            }
        }
        self.capacity = capacity;
        Ok(())
    }
}

impl CausalLm {
    /// An empty cache for `slots` sequences.
    pub fn new_cache(&self, slots: usize) -> Result<KvCache> {
        let c = self.config();
        let shape = (slots, c.num_key_value_heads, FIRST_CAPACITY, c.head_dim);
        let new = || Tensor::zeros(shape, self.dtype(), self.device());
        let layers = (0..c.num_hidden_layers)
            .map(|_| Ok((new()?, new()?)))
            .collect::<Result<_>>()?;
        Ok(KvCache {
            layers,
            lens: vec![0; slots],
            capacity: FIRST_CAPACITY,
        })
    }

    /// Fills `slot` with a prompt and returns the logits of its last token. -> `[V]`, f32
    ///
    /// # Errors
    /// An empty prompt, one longer than the model has positions, a token it does not know.
    pub fn prefill(&self, cache: &mut KvCache, slot: u32, tokens: &[u32]) -> Result<Tensor> {
        cache.check(slot)?;
        let t = tokens.len();
        self.check_tokens(tokens, &[t])?;
        cache.reserve(t)?;
        let seqs = SeqLens::new(&[t]);
        let positions = seqs.positions();
        let places = Places {
            rope: &self.rope,
            positions: &positions,
        };
        let slots = vec![slot; t];
        let mut x = ops::embedding(self.w(self.embed), tokens)?; // [T, C]
        for (block, (k_cache, v_cache)) in self.blocks.iter().zip(&cache.layers) {
            let h = block.norm1(self, &x)?;
            let qkv = block.qkv(self, &h, &places, decode::linears_of_prompt)?;
            decode::append(k_cache, &qkv.k, &slots, &positions)?;
            decode::append(v_cache, &qkv.v, &slots, &positions)?;
            let (o, _) = ops::attention(&qkv.q, &qkv.k, &qkv.v, &seqs, self.scale())?;
            x = block.finish(self, &x, &o, decode::linears_of_prompt)?;
        }
        cache.lens[slot as usize] = t;
        let logits = self.decode_head(&x.narrow(0, t - 1, 1)?.contiguous()?)?;
        Ok(logits.squeeze(0)?)
    }

    /// One more token for each of `slots`, which must differ. -> logits `[B, V]`, f32
    ///
    /// # Errors
    /// A full or unknown slot, a token the model does not know.
    pub fn decode(&self, cache: &mut KvCache, slots: &[u32], tokens: &[u32]) -> Result<Tensor> {
        self.check_tokens(tokens, &vec![1; tokens.len()])?;
        if slots.len() != tokens.len() {
            return Err(Error::input(format!(
                "{} slots are given {} tokens",
                slots.len(),
                tokens.len()
            )));
        }
        let mut positions = Vec::with_capacity(slots.len());
        for (i, &slot) in slots.iter().enumerate() {
            if slots[..i].contains(&slot) {
                return Err(Error::input(format!(
                    "slot {slot} is decoded twice at once"
                )));
            }
            cache.check(slot)?;
            positions.push(cache.len(slot) as u32);
        }
        let longest = positions.iter().max().map_or(0, |&p| p as usize + 1);
        if longest > self.config().max_position_embeddings {
            return Err(Error::input(format!(
                "a sequence of {longest} tokens is longer than the model's {} positions",
                self.config().max_position_embeddings
            )));
        }
        cache.reserve(longest)?;
        let lens: Vec<u32> = positions.iter().map(|p| p + 1).collect();
        let places = Places {
            rope: &self.rope,
            positions: &positions,
        };
        let mut x = ops::embedding(self.w(self.embed), tokens)?; // [B, C]
        for (block, (k_cache, v_cache)) in self.blocks.iter().zip(&cache.layers) {
            let h = block.norm1(self, &x)?;
            let qkv = block.qkv(self, &h, &places, decode::linears)?;
            decode::append(k_cache, &qkv.k, slots, &positions)?;
            decode::append(v_cache, &qkv.v, slots, &positions)?;
            let o = decode::attention(&qkv.q, k_cache, v_cache, slots, &lens, self.scale())?;
            x = block.finish(self, &x, &o, decode::linears)?;
        }
        for &slot in slots {
            cache.lens[slot as usize] += 1;
        }
        self.decode_head(&x)
    }

    fn decode_head(&self, x: &Tensor) -> Result<Tensor> {
        let h = ops::rms_norm(x, self.w(self.norm), self.config().rms_norm_eps)?;
        decode::logits(&h, self.w(self.head))
    }
}
