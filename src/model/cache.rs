//! Keys and values of sequences being sampled (which page of them holds what stands in `pages`), and the two forwards that use
//! them: a prompt at once, then one token a sequence. A sequence's logits never depend, to the bit, on which others are sampled
//! beside it (on a GPU: but for the last bits).

use super::CausalLm;
use super::block::Places;
use super::pages::Pages;
use crate::ops::paged::{KvPool, PAGE, PAGES_A_CHUNK, PageTable, PoolShape};
use crate::ops::{self, SeqLens, decode};
use crate::{Error, Result};
use candle_core::Tensor;

/// One place (slot) a sequence, whose keys and values are in pages: memory is held for the positions that there are, and those
/// that several sequences begin with are held once.
pub struct KvCache {
    pages: Pages,
    pool: KvPool,
}

impl KvCache {
    /// Positions filled in `slot`.
    pub fn len(&self, slot: u32) -> usize {
        self.pages.len(slot)
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        (0..self.num_slots() as u32).all(|slot| self.len(slot) == 0)
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.pages.num_slots()
    }

    /// Bytes of the pages that hold something, and of all that there is memory for: at most a chunk more than were ever held
    /// at once.
    pub fn bytes(&self) -> (usize, usize) {
        let bytes = self.pool.bytes_a_page();
        (self.pages.num_held() * bytes, self.pool.num_pages() * bytes)
    }

    /// Empties `slot`; its pages are the next to be used.
    pub fn clear(&mut self, slot: u32) -> Result<()> {
        self.pages.clear(slot)
    }

    /// Makes slot `to` hold the first `len` positions of slot `from`, and nothing else. Nothing is copied before one of them
    /// goes on, and then the one page that both are in the middle of.
    pub fn copy_prefix(&mut self, from: u32, to: u32, len: usize) -> Result<()> {
        self.pages.share(from, to, len)
    }

    /// Makes room for `len` positions in a slot.
    fn reserve(&mut self, slot: u32, len: usize) -> Result<()> {
        self.pool.reserve(self.pages.num_pages_with(slot, len)?)?;
        if let Some(copy) = self.pages.reserve(slot, len)? {
            let copied = self.pool.copy_page(copy.from, copy.to, copy.num_positions);
            if let Err(error) = copied {
                // it holds a page without a meaning
                self.pages.clear(slot)?;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Bytes of the cache of `num_slots` sequences of `len` positions, `num_shared` of which, in whole pages, are those of one of
/// `num_prompts` prompts.
pub fn planned_bytes(
    bytes_a_position: u64,
    (num_slots, len): (u64, u64),
    (num_prompts, num_shared): (u64, u64),
) -> u64 {
    let page = PAGE as u64;
    let shared = num_shared.min(len) / page;
    let pages = num_prompts * shared + num_slots * (len.div_ceil(page) - shared);
    pages.next_multiple_of(PAGES_A_CHUNK as u64) * page * bytes_a_position
}

impl CausalLm {
    /// An empty cache for `slots` sequences.
    pub fn new_cache(&self, slots: usize) -> Result<KvCache> {
        let c = self.config();
        let shape = PoolShape {
            num_layers: c.num_hidden_layers,
            num_kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
        };
        let most = slots.saturating_mul(c.max_position_embeddings.div_ceil(PAGE));
        Ok(KvCache {
            pages: Pages::new(slots, most),
            pool: KvPool::new(shape, self.dtype(), self.device()),
        })
    }

    /// Fills `slot` with a prompt and returns the logits of its last token. -> `[V]`, f32
    ///
    /// # Errors
    /// An empty prompt, one longer than the model has positions, a token it does not know.
    pub fn prefill(&self, cache: &mut KvCache, slot: u32, tokens: &[u32]) -> Result<Tensor> {
        let t = tokens.len();
        self.check_tokens(tokens, &[t])?;
        // what it held may be others' too
        cache.clear(slot)?;
        cache.reserve(slot, t)?;
        let seqs = SeqLens::new(&[t]);
        let positions = seqs.positions();
        let places = Places {
            rope: &self.rope,
            positions: &positions,
        };
        let held: Vec<u32> = (0..t)
            .map(|position| cache.pages.place(slot, position))
            .collect::<Result<_>>()?;
        let mut x = ops::embedding(self.w(self.embed), tokens)?; // [T, C]
        for (layer, block) in self.blocks.iter().enumerate() {
            let h = block.norm1(self, &x)?;
            let qkv = block.qkv(self, &h, &places, decode::linears_of_prompt)?;
            cache.pool.append(layer, &qkv.k, &qkv.v, &held)?;
            let (o, _) = ops::attention(&qkv.q, &qkv.k, &qkv.v, &seqs, self.scale())?;
            x = block.finish(self, &x, &o, decode::linears_of_prompt)?;
        }
        cache.pages.set_len(slot, t);
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
            cache.pages.check(slot)?;
            positions.push(cache.len(slot) as u32);
        }
        let longest = positions.iter().max().map_or(0, |&p| p as usize + 1);
        if longest > self.config().max_position_embeddings {
            return Err(Error::input(format!(
                "a sequence of {longest} tokens is longer than the model's {} positions",
                self.config().max_position_embeddings
            )));
        }
        let mut held = Vec::with_capacity(slots.len());
        for (&slot, &position) in slots.iter().zip(&positions) {
            cache.reserve(slot, position as usize + 1)?;
            held.push(cache.pages.place(slot, position as usize)?);
        }
        let lens: Vec<u32> = positions.iter().map(|p| p + 1).collect();
        let sequences: Vec<&[u32]> = slots.iter().map(|&slot| cache.pages.pages(slot)).collect();
        let table = PageTable::new(&sequences, &lens)?;
        let places = Places {
            rope: &self.rope,
            positions: &positions,
        };
        let mut x = ops::embedding(self.w(self.embed), tokens)?; // [B, C]
        for (layer, block) in self.blocks.iter().enumerate() {
            let h = block.norm1(self, &x)?;
            let qkv = block.qkv(self, &h, &places, decode::linears)?;
            cache.pool.append(layer, &qkv.k, &qkv.v, &held)?;
            let o = cache.pool.attention(layer, &qkv.q, &table, self.scale())?;
            x = block.finish(self, &x, &o, decode::linears)?;
        }
        for (&slot, &len) in slots.iter().zip(&lens) {
            cache.pages.set_len(slot, len as usize);
        }
        self.decode_head(&x)
    }

    fn decode_head(&self, x: &Tensor) -> Result<Tensor> {
        let h = ops::rms_norm(x, self.w(self.norm), self.config().rms_norm_eps)?;
        decode::logits(&h, self.w(self.head))
    }
}
