//! The kernels of `decode.cu`: the parts of each sequence, and their joining. The contract stands in [`super::decode`].

use super::gpu::{Arg, Gpu, Kernel, Launch, Module, suffix};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Positions of a part (`PART` in decode.cu).
const PART: usize = 128;
/// Values that a thread takes at a time (`WIDE` in kernel.cuh).
const WIDE: usize = 8;
/// Head dims of the kernels.
const LARGEST_HEAD_DIM: usize = 256;

fn knows(head_dim: usize) -> bool {
    head_dim.is_multiple_of(WIDE) && (WIDE..=LARGEST_HEAD_DIM).contains(&head_dim)
}

/// Whether [`append`] can do it.
pub(super) fn appends(
    gpu: &Gpu,
    cache: &Tensor,
    x: &Tensor,
    slots: &[u32],
    positions: &[u32],
) -> Result<bool> {
    let ((s, k, p, d), (t, x_k, x_d)) = (cache.dims4()?, x.dims3()?);
    let fits = slots.iter().all(|&slot| (slot as usize) < s)
        && positions.iter().all(|&position| (position as usize) < p)
        && (slots.len(), positions.len(), x_k, x_d) == (t, t, k, d);
    if !fits {
        return Err(Error::input(format!(
            "appending {:?} to a cache of {:?}: slots, positions or sizes do not fit",
            x.dims(),
            cache.dims()
        )));
    }
    Ok(knows(d) && x.dtype() == cache.dtype() && gpu.is_readable(cache))
}

/// See [`super::decode::append`].
pub(super) fn append(
    gpu: &Gpu,
    cache: &Tensor,
    x: &Tensor,
    slots: &[u32],
    positions: &[u32],
) -> Result<()> {
    let (_, num_kv, p, d) = cache.dims4()?;
    if slots.is_empty() {
        return Ok(());
    }
    let x = gpu.readable(x)?;
    let (slots, positions) = (gpu.upload_indices(slots)?, gpu.upload_indices(positions)?);
    gpu.launch(
        Kernel(
            Module::Decode,
            &format!("decode_append_{}", suffix(cache.dtype())),
        ),
        Launch::over(x.elem_count() / WIDE, 256),
        &[
            Arg::Tensor(cache),
            Arg::Tensor(&x),
            Arg::Tensor(&slots),
            Arg::Tensor(&positions),
            Arg::U32(x.dim(0)? as u32),
            Arg::U32(num_kv as u32),
            Arg::U32(p as u32),
            Arg::U32(d as u32),
        ],
    )
}

/// Whether [`attention`] can do it, of what fits together.
pub(super) fn attends(gpu: &Gpu, q: &Tensor, k_cache: &Tensor, v_cache: &Tensor) -> bool {
    let head_dim = q.dims().last().copied().unwrap_or_default();
    knows(head_dim)
        && [k_cache, v_cache]
            .iter()
            .all(|cache| cache.dtype() == q.dtype() && gpu.is_readable(cache))
}

/// See [`super::decode::attention`].
pub(super) fn attention(
    gpu: &Gpu,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slots: &[u32],
    lens: &[u32],
    scale: f64,
) -> Result<Tensor> {
    let (b, num_heads, d) = q.dims3()?;
    let (_, num_kv, p, _) = k_cache.dims4()?;
    let q = gpu.readable(q)?;
    let dtype = q.dtype();
    let o = gpu.empty((b, num_heads, d), dtype)?;
    let longest = lens.iter().copied().max().unwrap_or_default() as usize;
    let num_parts = longest.div_ceil(PART);
    if num_parts == 0 {
        return Ok(o);
    }
    // nothing is left to join of one part
    let num_left = if num_parts == 1 { 0 } else { num_parts };
    let sums = gpu.empty((b * num_heads * num_left).max(1) * d, DType::F32)?;
    let stats = gpu.empty((b * num_heads * num_left).max(1) * 2, DType::F32)?;
    let (slots, lens) = (gpu.upload_indices(slots)?, gpu.upload_indices(lens)?);
    let block = Block::of(dtype, num_heads / num_kv, d);
    gpu.launch(
        Kernel(Module::Decode, &block.name),
        Launch {
            grid: (
                num_kv * (num_heads / num_kv).div_ceil(block.num_heads),
                b,
                num_parts,
            ),
            threads: 128,
            shared_bytes: block.shared_bytes,
        },
        &[
            Arg::Tensor(&q),
            Arg::Tensor(k_cache),
            Arg::Tensor(v_cache),
            Arg::Tensor(&slots),
            Arg::Tensor(&lens),
            Arg::Tensor(&sums),
            Arg::Tensor(&stats),
            Arg::Tensor(&o),
            Arg::U32(num_heads as u32),
            Arg::U32(num_kv as u32),
            Arg::U32(p as u32),
            Arg::U32(d as u32),
            Arg::F32(scale as f32),
        ],
    )?;
    if num_parts > 1 {
        gpu.launch(
            Kernel(Module::Decode, &format!("decode_join_{}", suffix(dtype))),
            Launch {
                grid: (num_heads, b, 1),
                threads: d / WIDE,
                shared_bytes: 0,
            },
            &[
                Arg::Tensor(&sums),
                Arg::Tensor(&stats),
                Arg::Tensor(&lens),
                Arg::Tensor(&o),
                Arg::U32(num_heads as u32),
                Arg::U32(p as u32),
                Arg::U32(num_parts as u32),
                Arg::U32(d as u32),
            ],
        )?;
    }
    Ok(o)
}

/// How the heads that share a key/value head become blocks.
struct Block {
    name: String,
    num_heads: usize,
    shared_bytes: usize,
}

impl Block {
    fn of(dtype: DType, group: usize, head_dim: usize) -> Self {
        if dtype == DType::BF16 && matches!(head_dim, 64 | 128) {
            // rows of a product in tensor cores; queries, keys, values, two numbers of each head from each of 4 warps
            let num_heads = 16;
            return Self {
                name: format!("decode_attention_bf16_d{head_dim}"),
                num_heads,
                shared_bytes: (num_heads + 2 * PART) * head_dim * 2 + 4 * num_heads * 2 * 4,
            };
        }
        let num_heads = match group {
            1 => 1,
            2 => 2,
            3 | 4 => 4,
            _ => 8,
        };
        // queries, probabilities and their sums, and later in the same place the sums of 128 threads
        let floats = (head_dim + PART + 2).max(128 * WIDE);
        Self {
            name: format!("decode_attention_{}", suffix(dtype)),
            num_heads,
            shared_bytes: num_heads * floats * 4,
        }
    }
}
