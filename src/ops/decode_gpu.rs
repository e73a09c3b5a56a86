//! The kernels of `decode.cu`: the parts of each sequence, and their joining. The contract stands in [`super::paged`].

use super::gpu::{Arg, Gpu, Kernel, Launch, Module, suffix};
use super::paged::{KvPool, PageTable};
use crate::Result;
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

/// Whether the kernels know what the pool holds, and it is on their device.
fn reads(gpu: &Gpu, pool: &KvPool, dtype: DType) -> bool {
    let chunk = pool.first_chunk();
    knows(pool.shape().head_dim)
        && chunk.is_some_and(|chunk| chunk.dtype() == dtype && gpu.is_readable(chunk))
}

/// Whether [`append`] can do it.
pub(super) fn appends(gpu: &Gpu, pool: &KvPool, k: &Tensor, v: &Tensor) -> bool {
    v.dtype() == k.dtype() && reads(gpu, pool, k.dtype())
}

/// See [`KvPool::append`].
pub(super) fn append(
    gpu: &Gpu,
    pool: &KvPool,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    places: &[u32],
) -> Result<()> {
    let shape = pool.shape();
    let (k, v) = (gpu.readable(k)?, gpu.readable(v)?);
    gpu.launch(
        Kernel(
            Module::Decode,
            &format!("decode_append_{}", suffix(k.dtype())),
        ),
        Launch::over(k.elem_count() / WIDE, 256),
        &[
            Arg::Tensor(&pool.addresses(gpu)?),
            Arg::Tensor(&k),
            Arg::Tensor(&v),
            Arg::Tensor(&gpu.upload_indices(places)?),
            Arg::Size(shape.page_size()),
            Arg::Size(shape.layer_start(layer)),
            Arg::U32(places.len() as u32),
            Arg::U32(shape.num_kv_heads as u32),
            Arg::U32(shape.head_dim as u32),
        ],
    )
}

/// Whether [`attention`] can do it.
pub(super) fn attends(gpu: &Gpu, pool: &KvPool, q: &Tensor) -> bool {
    reads(gpu, pool, q.dtype())
}

/// See [`KvPool::attention`].
pub(super) fn attention(
    gpu: &Gpu,
    pool: &KvPool,
    layer: usize,
    q: &Tensor,
    table: &PageTable,
    scale: f64,
) -> Result<Tensor> {
    let (b, num_heads, d) = q.dims3()?;
    let shape = pool.shape();
    let (num_kv, p) = (shape.num_kv_heads, table.num_positions());
    let q = gpu.readable(q)?;
    let dtype = q.dtype();
    let o = gpu.empty((b, num_heads, d), dtype)?;
    let longest = table.lens().iter().copied().max().unwrap_or_default() as usize;
    let num_parts = longest.div_ceil(PART);
    if num_parts == 0 {
        return Ok(o);
    }
    // nothing is left to join of one part
    let num_left = if num_parts == 1 { 0 } else { num_parts };
    let sums = gpu.empty((b * num_heads * num_left).max(1) * d, DType::F32)?;
    let stats = gpu.empty((b * num_heads * num_left).max(1) * 2, DType::F32)?;
    let (pages, lens) = table.on_device(gpu)?;
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
            Arg::Tensor(&pool.addresses(gpu)?),
            Arg::Tensor(&pages),
            Arg::Tensor(&lens),
            Arg::Tensor(&sums),
            Arg::Tensor(&stats),
            Arg::Tensor(&o),
            Arg::Size(shape.page_size()),
            Arg::Size(shape.layer_start(layer)),
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
