//! Keys and values of sequences that are continued, in pages of a fixed number of positions (<https://arxiv.org/abs/2309.06180>):
//! their memory, what is written into it, and attention of one query a sequence over it. Which page holds what is the
//! caller's to know (`model::pages`).
//!
//! Memory grows by chunks of pages, which stay where they are. A page holds its positions of all layers, so that all of them
//! share one numbering, and a page is copied at once.
//!
//! f32 and bf16 in the memory of the CPU go through `decode_attention_cpu`, on a CUDA device through the kernels of
//! `decode_gpu`; everything else through the portable forms here, composed of candle's operations.
//!
//! Letters: B sequences, T tokens, N pages of a chunk, L layers, H query heads, K key/value heads, D head dim, P positions
//! held by a sequence, W pages of the longest sequence.

use super::decode_attention_cpu::{self, Cached};
use super::element::{Element, with_element};
use super::gpu::Gpu;
use super::{cpu, decode_gpu};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use std::sync::OnceLock;

/// Positions of a page (`PAGE` in decode.cu). A sequence leaves half of them unused on average, which speaks for few; a page of
/// one head is read in one piece (16 KiB in f32 with 64 dims) and costs the CPU a jump, a block of a CUDA device takes 128
/// positions at a time, which speaks for many.
pub const PAGE: usize = 64;

/// Pages of a chunk (`PAGES_A_CHUNK` in decode.cu).
pub const PAGES_A_CHUNK: usize = 16;

/// The memory of pages.
pub struct KvPool {
    /// `[N, L, 2, K, PAGE, D]` each: keys, then values.
    chunks: Vec<Tensor>,
    shape: PoolShape,
    dtype: DType,
    device: Device,
    /// Where each chunk begins, for kernels; made anew when there is one more.
    addresses: OnceLock<Tensor>,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    pub num_layers: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl PoolShape {
    /// Values of a head's keys in a page.
    pub(super) fn head_size(&self) -> usize {
        PAGE * self.head_dim
    }

    /// Values of a page.
    pub(super) fn page_size(&self) -> usize {
        self.num_layers * 2 * self.num_kv_heads * self.head_size()
    }

    /// Where in a page the keys of a layer begin; its values follow them.
    pub(super) fn layer_start(&self, layer: usize) -> usize {
        layer * 2 * self.num_kv_heads * self.head_size()
    }
}

/// The pages of sequences that are continued side by side, for all layers.
pub struct PageTable {
    /// `[B, W]`, each row filled up with zeros.
    pages: Vec<u32>,
    width: usize,
    lens: Vec<u32>,
    on_device: OnceLock<(Tensor, Tensor)>,
}

impl PageTable {
    /// Sequences of `lens` positions, each with the pages that hold them in order.
    ///
    /// # Errors
    /// A sequence without positions, or with fewer pages than they take.
    pub fn new(sequences: &[&[u32]], lens: &[u32]) -> Result<Self> {
        let num_pages = |len: u32| (len as usize).div_ceil(PAGE);
        let fits = sequences.len() == lens.len()
            && sequences
                .iter()
                .zip(lens)
                .all(|(pages, &len)| len > 0 && pages.len() >= num_pages(len));
        if !fits {
            return Err(Error::input(format!(
                "a table of {} sequences of {lens:?} positions: too few pages, or nothing to hold",
                sequences.len()
            )));
        }
        let width = lens.iter().copied().map(num_pages).max().unwrap_or(0);
        let mut pages = vec![0; sequences.len() * width];
        for (row, (sequence, &len)) in sequences.iter().zip(lens).enumerate() {
            let num = num_pages(len);
            pages[row * width..][..num].copy_from_slice(&sequence[..num]);
        }
        Ok(Self {
            pages,
            width,
            lens: lens.to_vec(),
            on_device: OnceLock::new(),
        })
    }

    /// Positions of each sequence.
    pub fn lens(&self) -> &[u32] {
        &self.lens
    }

    /// Room for positions in a row.
    pub(super) fn num_positions(&self) -> usize {
        self.width * PAGE
    }

    /// The pages of a sequence, each with the number of positions that it holds of it.
    pub(super) fn pages_of(&self, sequence: usize) -> impl Iterator<Item = (usize, usize)> {
        let len = self.lens[sequence] as usize;
        let row = &self.pages[sequence * self.width..][..len.div_ceil(PAGE)];
        row.iter()
            .enumerate()
            .map(move |(i, &page)| (page as usize, (len - i * PAGE).min(PAGE)))
    }

    /// Pages and lengths where kernels read them: they go there once.
    pub(super) fn on_device(&self, gpu: &Gpu) -> Result<(Tensor, Tensor)> {
        if let Some(held) = self.on_device.get() {
            return Ok(held.clone());
        }
        let made = (
            gpu.upload_indices(&self.pages)?,
            gpu.upload_indices(&self.lens)?,
        );
        Ok(self.on_device.get_or_init(|| made).clone())
    }
}

impl KvPool {
    /// No pages yet.
    pub fn new(shape: PoolShape, dtype: DType, device: &Device) -> Self {
        Self {
            chunks: Vec::new(),
            shape,
            dtype,
            device: device.clone(),
            addresses: OnceLock::new(),
        }
    }

    /// Pages there is memory for.
    pub fn num_pages(&self) -> usize {
        self.chunks.len() * PAGES_A_CHUNK
    }

    /// Bytes of a page.
    pub fn bytes_a_page(&self) -> usize {
        self.shape.page_size() * self.dtype.size_in_bytes()
    }

    /// Makes room for pages 0 to `num_pages`; what is there stays where it is.
    ///
    /// # Errors
    /// The device has no memory for one more chunk.
    pub fn reserve(&mut self, num_pages: usize) -> Result<()> {
        while self.num_pages() < num_pages {
            let PoolShape {
                num_layers,
                num_kv_heads,
                head_dim,
            } = self.shape;
            let dims = [PAGES_A_CHUNK, num_layers, 2, num_kv_heads, PAGE, head_dim];
            let chunk = Tensor::zeros(&dims, self.dtype, &self.device).map_err(|e| {
                let bytes = PAGES_A_CHUNK * self.bytes_a_page();
                Error::from(e)
                    .at(format!(
                        "{bytes} more bytes for keys and values, beside {} pages of {} each",
                        self.num_pages(),
                        self.bytes_a_page()
                    ))
                    .with_hint("lower the `batch_size` of sampling, or `max_new_tokens`")
            })?;
            self.chunks.push(chunk);
            self.addresses = OnceLock::new();
        }
        Ok(())
    }

    pub(super) fn shape(&self) -> PoolShape {
        self.shape
    }

    /// The first chunk: all are alike. None before there is a page.
    pub(super) fn first_chunk(&self) -> Option<&Tensor> {
        self.chunks.first()
    }

    /// Where each chunk begins, where kernels read it.
    pub(super) fn addresses(&self, gpu: &Gpu) -> Result<Tensor> {
        if let Some(held) = self.addresses.get() {
            return Ok(held.clone());
        }
        let made = gpu.addresses(&self.chunks)?;
        Ok(self.addresses.get_or_init(|| made).clone())
    }

    fn holds(&self, page: usize) -> Result<()> {
        if page < self.num_pages() {
            return Ok(());
        }
        Err(Error::input(format!(
            "page {page} of the {} of keys and values",
            self.num_pages()
        )))
    }

    /// Keys and values of one layer to their places: place `p` is position `p % PAGE` of page `p / PAGE`. k, v: `[T, K, D]`.
    ///
    /// # Errors
    /// Places outside the pool, or sizes that are not its.
    pub fn append(&self, layer: usize, k: &Tensor, v: &Tensor, places: &[u32]) -> Result<()> {
        let PoolShape {
            num_layers,
            num_kv_heads,
            head_dim,
        } = self.shape;
        let dims = [places.len(), num_kv_heads, head_dim];
        if layer >= num_layers || k.dims() != dims || v.dims() != dims {
            return Err(Error::input(format!(
                "{:?} keys and {:?} values of {} tokens for layer {layer} of {:?}",
                k.dims(),
                v.dims(),
                places.len(),
                self.shape
            )));
        }
        let Some(&last) = places.iter().max() else {
            return Ok(());
        };
        self.holds(last as usize / PAGE)?;
        if let Some(gpu) = Gpu::of(k)
            && decode_gpu::appends(&gpu, self, k, v)
        {
            return decode_gpu::append(&gpu, self, layer, k, v, places);
        }
        with_element!(k, E => if self.append_on_cpu::<E>(layer, k, v, places)? {
            return Ok(());
        });
        self.append_portable(layer, k, v, places)
    }

    /// `false` where it is not in the memory of the CPU.
    fn append_on_cpu<E: Element>(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        places: &[u32],
    ) -> Result<bool> {
        let (Some(k), Some(v)) = (cpu::values::<E>(k), cpu::values::<E>(v)) else {
            return Ok(false);
        };
        let (heads, d) = (self.shape.num_kv_heads, self.shape.head_dim);
        let chunk_of = |place: u32| place as usize / PAGE / PAGES_A_CHUNK;
        let mut rows: Vec<(u32, usize)> = places.iter().copied().zip(0..).collect();
        rows.sort_unstable();
        for rows in rows.chunk_by(|a, b| chunk_of(a.0) == chunk_of(b.0)) {
            let written = cpu::modify::<E>(&self.chunks[chunk_of(rows[0].0)], |held| {
                for &(place, row) in rows {
                    let (page, position) = (place as usize / PAGE, place as usize % PAGE);
                    let start = page % PAGES_A_CHUNK * self.shape.page_size()
                        + self.shape.layer_start(layer);
                    for head in 0..heads {
                        let from = (row * heads + head) * d;
                        let to = start + head * self.shape.head_size() + position * d;
                        held[to..to + d].copy_from_slice(&k[from..from + d]);
                        let to = to + heads * self.shape.head_size();
                        held[to..to + d].copy_from_slice(&v[from..from + d]);
                    }
                }
            })?;
            if !written {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A page of a layer's keys and values as rows of D, and the first of them. `[N L 2 K PAGE, D]`
    fn rows_of(&self, page: usize, layer: usize) -> Result<(Tensor, usize)> {
        let d = self.shape.head_dim;
        let start = page % PAGES_A_CHUNK * self.shape.page_size() + self.shape.layer_start(layer);
        Ok((
            self.chunks[page / PAGES_A_CHUNK].reshape(((), d))?,
            start / d,
        ))
    }

    fn append_portable(&self, layer: usize, k: &Tensor, v: &Tensor, places: &[u32]) -> Result<()> {
        let heads = self.shape.num_kv_heads;
        let mut t = 0;
        // positions that follow each other in a page are written at once
        let follow = |a: &u32, b: &u32| *b == a + 1 && !(*b as usize).is_multiple_of(PAGE);
        for run in places.chunk_by(follow) {
            let (page, position) = (run[0] as usize / PAGE, run[0] as usize % PAGE);
            let (rows, start) = self.rows_of(page, layer)?;
            for head in 0..2 * heads {
                let x = if head < heads { k } else { v };
                let x = x
                    .narrow(0, t, run.len())?
                    .narrow(1, head % heads, 1)?
                    .squeeze(1)?
                    .contiguous()?; // [run, D]
                rows.slice_set(&x, 0, start + head * PAGE + position)?;
            }
            t += run.len();
        }
        Ok(())
    }

    /// Copies the first `num_positions` of page `from` to page `to`, of all layers; the rest of `to` has no meaning.
    ///
    /// # Errors
    /// Pages outside the pool.
    pub fn copy_page(&self, from: u32, to: u32, num_positions: usize) -> Result<()> {
        let (from, to) = (from as usize, to as usize);
        self.holds(from.max(to))?;
        if from == to {
            return Ok(());
        }
        let num_positions = num_positions.min(PAGE);
        let place = |page: usize| (&self.chunks[page / PAGES_A_CHUNK], page % PAGES_A_CHUNK);
        let ((source, from_at), (target, to_at)) = (place(from), place(to));
        let shape = self.shape;
        let pieces = move |at: usize| {
            (0..shape.page_size() / shape.head_size()).map(move |i| {
                let start = at * shape.page_size() + i * shape.head_size();
                start..start + num_positions * shape.head_dim
            })
        };
        with_element!(source, E => {
            let written = match cpu::share_memory(source, target) {
                true => cpu::modify::<E>(target, |held| {
                    for (from, to) in pieces(from_at).zip(pieces(to_at)) {
                        held.copy_within(from, to.start);
                    }
                })?,
                false => match cpu::values::<E>(source) {
                    Some(source) => cpu::modify::<E>(target, |held| {
                        for (from, to) in pieces(from_at).zip(pieces(to_at)) {
                            held[to].copy_from_slice(&source[from]);
                        }
                    })?,
                    None => false,
                },
            };
            if written {
                return Ok(());
            }
        });
        // a copy of its own: candle does not read what it writes
        let page = source.narrow(0, from_at, 1)?.force_contiguous()?;
        Ok(target.slice_set(&page, 0, to_at)?)
    }

    /// Attention of one query a sequence over the keys and values of one layer that `table` names. q: `[B, H, D]` ->
    /// `[B, H, D]`.
    ///
    /// # Errors
    /// Pages outside the pool, or sizes that are not its.
    pub fn attention(
        &self,
        layer: usize,
        q: &Tensor,
        table: &PageTable,
        scale: f64,
    ) -> Result<Tensor> {
        let (b, h, d) = q.dims3()?;
        let PoolShape {
            num_layers,
            num_kv_heads: k,
            head_dim,
        } = self.shape;
        if layer >= num_layers || d != head_dim || k == 0 || h % k != 0 || b != table.lens.len() {
            return Err(Error::input(format!(
                "queries {:?} of {} sequences for layer {layer} of {:?}",
                q.dims(),
                table.lens.len(),
                self.shape
            )));
        }
        let Some(&last) = table.pages.iter().max() else {
            return Ok(q.clone());
        };
        self.holds(last as usize)?;
        if let Some(gpu) = Gpu::of(q)
            && decode_gpu::attends(&gpu, self, q)
        {
            return decode_gpu::attention(&gpu, self, layer, q, table, scale);
        }
        with_element!(q, E => if let Some(o) = self.attention_on_cpu::<E>(layer, q, table, scale)? {
            return Ok(o);
        });
        self.attention_portable(layer, q, table, scale)
    }

    fn attention_on_cpu<E: Element>(
        &self,
        layer: usize,
        q: &Tensor,
        table: &PageTable,
        scale: f64,
    ) -> Result<Option<Tensor>> {
        let chunks: Option<Vec<_>> = self.chunks.iter().map(cpu::values::<E>).collect();
        let (Some(qs), Some(chunks)) = (cpu::values::<E>(q), chunks) else {
            return Ok(None);
        };
        let cached = Cached {
            chunks: chunks.iter().map(|chunk| &**chunk).collect(),
            shape: self.shape,
            layer,
        };
        let num_heads = q.dim(1)?;
        let o = decode_attention_cpu::attention(&qs, &cached, num_heads, table, scale as f32);
        cpu::tensor(o, q.dims()).map(Some)
    }

    /// Keys and values that a sequence of `table` holds of one layer, in one piece. -> `[2, K, P, D]`
    pub fn held(&self, layer: usize, table: &PageTable, sequence: usize) -> Result<Tensor> {
        let (k, d) = (self.shape.num_kv_heads, self.shape.head_dim);
        let mut parts = Vec::new();
        for (page, len) in table.pages_of(sequence) {
            self.holds(page)?;
            let (rows, start) = self.rows_of(page, layer)?;
            let page = rows.narrow(0, start, 2 * k * PAGE)?;
            parts.push(page.reshape((2, k, PAGE, d))?.narrow(2, 0, len)?);
        }
        Ok(Tensor::cat(&parts, 2)?)
    }

    fn attention_portable(
        &self,
        layer: usize,
        q: &Tensor,
        table: &PageTable,
        scale: f64,
    ) -> Result<Tensor> {
        let (b, h, d) = q.dims3()?;
        let k = self.shape.num_kv_heads;
        let mut rows = Vec::with_capacity(b);
        for i in 0..b {
            let held = self.held(layer, table, i)?.to_dtype(DType::F32)?; // [2, K, P, D]
            let (keys, values) = (held.get(0)?, held.get(1)?); // [K, P, D] each
            let q = q
                .narrow(0, i, 1)?
                .reshape((k, h / k, d))?
                .to_dtype(DType::F32)?
                .contiguous()?;
            let scores = (q.matmul(&keys.transpose(1, 2)?.contiguous()?)? * scale)?; // [K, H/K, P]
            let exp = scores
                .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
                .exp()?;
            let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
            let o = p.matmul(&values.contiguous()?)?; // [K, H/K, D]
            rows.push(o.reshape((1, h, d))?.to_dtype(self.dtype)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }
}

#[cfg(test)]
#[path = "paged_tests.rs"]
mod tests;
