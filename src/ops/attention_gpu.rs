//! The kernels of `attention.cu`: which blocks there are, and in what order. Formulas stand in [`super::plain`].

use super::SeqLens;
use super::gpu::{Arg, Gpu, Kernel, Launch, Module};
use crate::Result;
use candle_core::{DType, Tensor};

/// Tokens of a block (`BLOCK` in attention.cu).
const BLOCK: usize = 128;
/// Blocks of tokens that a launch takes.
const MOST_ITEMS: usize = 65_535;

/// Whether the kernels know such tensors: bf16, head dims 64 and 128.
pub(super) fn fits(q: &Tensor, others: &[&Tensor], scale: f64) -> bool {
    let head_dim = q.dims().last().copied().unwrap_or_default();
    let scale = scale as f32;
    matches!(head_dim, 64 | 128)
        && scale.is_normal()
        && scale > 0.0
        && q.dtype() == DType::BF16
        && others.iter().all(|t| t.dtype() == DType::BF16)
}

/// See [`super::plain::attention`].
pub(super) fn forward(
    gpu: &Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let (t, num_heads, d) = q.dims3()?;
    let (q, k, v) = (gpu.readable(q)?, gpu.readable(k)?, gpu.readable(v)?);
    let o = gpu.empty(q.shape(), DType::BF16)?;
    let lse = gpu.empty((t, num_heads), DType::F32)?;
    let shape = Shape::of(&k, num_heads, scale)?;
    // queries of a block and two stages of 64 keys and values
    let shared_bytes = (BLOCK + 4 * 64) * d * 2;
    for items in items(gpu, seqs, Rows::Queries)? {
        let tensors = [&q, &k, &v, &items, &o, &lse];
        shape.launch(
            gpu,
            ("forward", num_heads, 128, shared_bytes),
            &items,
            &tensors,
        )?;
    }
    Ok((o, lse))
}

/// See [`super::plain::attention_backward`].
#[allow(clippy::too_many_arguments)] // the operation has that many arguments
pub(super) fn backward(
    gpu: &Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    d_o: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (t, num_heads, d) = q.dims3()?;
    let num_kv = k.dim(1)?;
    let (q, k, v) = (gpu.readable(q)?, gpu.readable(k)?, gpu.readable(v)?);
    let (o, d_o, lse) = (gpu.readable(o)?, gpu.readable(d_o)?, gpu.readable(lse)?);
    let shape = Shape::of(&k, num_heads, scale)?;

    let delta = gpu.empty((t, num_heads), DType::F32)?;
    gpu.launch(
        Kernel(Module::Attention, &format!("attention_delta_bf16_d{d}")),
        Launch::over(t * num_heads * d / 8, 256),
        &[
            Arg::Tensor(&o),
            Arg::Tensor(&d_o),
            Arg::Tensor(&delta),
            Arg::U32((t * num_heads) as u32),
        ],
    )?;

    let dq = gpu.empty(q.shape(), DType::BF16)?;
    // queries of a block and their gradients, two stages of keys and values
    let num_keys = if d == 64 { 64 } else { 32 };
    let shared_bytes = (2 * BLOCK + 4 * num_keys) * d * 2;
    for items in items(gpu, seqs, Rows::Queries)? {
        let tensors = [&q, &k, &v, &d_o, &lse, &delta, &items, &dq];
        shape.launch(
            gpu,
            ("backward_q", num_heads, 128, shared_bytes),
            &items,
            &tensors,
        )?;
    }

    let (dk, dv) = (
        gpu.empty(k.shape(), DType::BF16)?,
        gpu.empty(k.shape(), DType::BF16)?,
    );
    // keys and values of a block, two stages of queries, their gradients, and two numbers of each
    let shared_bytes =
        |num_queries: usize| (2 * BLOCK + 4 * num_queries) * d * 2 + 16 * num_queries;
    let (name, shared_bytes) = match shared_bytes(64) {
        bytes if d == 64 || bytes <= gpu.shared_bytes_a_block()? => ("backward_kv", bytes),
        _ => ("backward_kv_small", shared_bytes(32)),
    };
    let threads = if d == 64 { 128 } else { 256 };
    for items in items(gpu, seqs, Rows::Keys)? {
        let tensors = [&q, &k, &v, &d_o, &lse, &delta, &items, &dk, &dv];
        shape.launch(gpu, (name, num_kv, threads, shared_bytes), &items, &tensors)?;
    }
    Ok((dq, dk, dv))
}

/// What the kernels are told after the tensors.
struct Shape {
    num_heads: usize,
    num_kv: usize,
    head_dim: usize,
    scale: f32,
}

impl Shape {
    fn of(k: &Tensor, num_heads: usize, scale: f64) -> Result<Self> {
        let (_, num_kv, head_dim) = k.dims3()?;
        Ok(Self {
            num_heads,
            num_kv,
            head_dim,
            scale: scale as f32,
        })
    }

    /// One block for each of `blocks` heads and each item.
    fn launch(
        &self,
        gpu: &Gpu,
        (name, blocks, threads, shared_bytes): (&str, usize, usize, usize),
        items: &Tensor,
        tensors: &[&Tensor],
    ) -> Result<()> {
        let mut args: Vec<Arg> = tensors.iter().map(|t| Arg::Tensor(t)).collect();
        args.extend([
            Arg::U32(self.num_heads as u32),
            Arg::U32(self.num_kv as u32),
            Arg::F32(self.scale),
        ]);
        let launch = Launch {
            grid: (blocks, items.elem_count() / 3, 1),
            threads,
            shared_bytes,
        };
        let name = format!("attention_{name}_bf16_d{}", self.head_dim);
        gpu.launch(Kernel(Module::Attention, &name), launch, &args)
    }
}

/// What the tokens of a block are to a kernel.
#[derive(Clone, Copy)]
enum Rows {
    Queries,
    Keys,
}

/// Blocks of tokens, three numbers each: where their sequence begins, where it ends, where they begin. As many tensors as
/// launches.
fn items(gpu: &Gpu, seqs: &SeqLens, rows: Rows) -> Result<Vec<Tensor>> {
    let items = in_order(seqs, rows);
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let on_device = gpu.upload_indices(items.as_flattened())?;
    (0..items.len())
        .step_by(MOST_ITEMS)
        .map(|start| {
            let num = MOST_ITEMS.min(items.len() - start);
            Ok(on_device.narrow(0, 3 * start, 3 * num)?)
        })
        .collect()
}

/// Those with the most work first, so that no long one begins when the others are done: a query sees what comes before it,
/// a key what comes after it.
fn in_order(seqs: &SeqLens, rows: Rows) -> Vec<[u32; 3]> {
    let mut items: Vec<[u32; 3]> = seqs
        .iter()
        .flat_map(|range| {
            let (start, end) = (range.start as u32, range.end as u32);
            range.step_by(BLOCK).map(move |at| [start, end, at as u32])
        })
        .collect();
    items.sort_by_key(|&[start, end, first]| {
        std::cmp::Reverse(match rows {
            Rows::Queries => first.saturating_add(BLOCK as u32).min(end) - start,
            Rows::Keys => end - first,
        })
    });
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_come_first() {
        let seqs = SeqLens::new(&[130, 1, 300]);
        let queries = [
            [131, 431, 387],
            [131, 431, 259],
            [0, 130, 128],
            [0, 130, 0],
            [131, 431, 131],
            [130, 131, 130],
        ];
        assert_eq!(in_order(&seqs, Rows::Queries), queries);
        let keys = [
            [131, 431, 131],
            [131, 431, 259],
            [0, 130, 0],
            [131, 431, 387],
            [0, 130, 128],
            [130, 131, 130],
        ];
        assert_eq!(in_order(&seqs, Rows::Keys), keys);
        assert_eq!(
            in_order(&SeqLens::new(&[]), Rows::Keys),
            Vec::<[u32; 3]>::new()
        );
    }
}
