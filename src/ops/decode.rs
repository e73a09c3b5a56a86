//! Operations of decoding, one token a sequence: a row's result depends on that row only, bit for bit.

use super::plain;
use crate::Result;
use candle_core::{D, DType, Tensor};

/// `y = x w^T + b`, row by row. x: `[B, I]`, w: `[O, I]` -> `[B, O]`.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let rows: Vec<Tensor> = (0..x.dim(0)?)
        .map(|i| plain::linear(&x.narrow(0, i, 1)?, w, b))
        .collect::<Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// `cache[slots[t], :, positions[t], :] = x[t]`. cache: `[S, K, P, D]`, x: `[T, K, D]`.
pub fn append(cache: &Tensor, x: &Tensor, slots: &[u32], positions: &[u32]) -> Result<()> {
    let (s, k, p, d) = cache.dims4()?;
    let flat = cache.reshape((s * k * p, d))?;
    for (t, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
        for head in 0..k {
            let row = x
                .narrow(0, t, 1)?
                .narrow(1, head, 1)?
                .reshape((1, d))?
                .contiguous()?;
            flat.slice_set(&row, 0, (slot as usize * k + head) * p + position as usize)?;
        }
    }
    Ok(())
}

/// Attention of one query a sequence over the first `lens[b]` cached positions of `slots[b]`. q: `[B, H, D]`, caches
/// `[S, K, P, D]` -> `[B, H, D]`.
pub fn attention(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slots: &[u32],
    lens: &[u32],
    scale: f64,
) -> Result<Tensor> {
    let (b, h, d) = q.dims3()?;
    let (_, k, _, _) = k_cache.dims4()?;
    let mut rows = Vec::with_capacity(b);
    for i in 0..b {
        let part = |cache: &Tensor| -> Result<Tensor> {
            Ok(cache
                .narrow(0, slots[i] as usize, 1)?
                .squeeze(0)?
                .narrow(1, 0, lens[i] as usize)?
                .to_dtype(DType::F32)?
                .contiguous()?) // [K, L, D]
        };
        let (keys, values) = (part(k_cache)?, part(v_cache)?);
        let q = q
            .narrow(0, i, 1)?
            .reshape((k, h / k, d))?
            .to_dtype(DType::F32)?
            .contiguous()?;
        let scores = (q.matmul(&keys.transpose(1, 2)?.contiguous()?)? * scale)?; // [K, H/K, L]
        let exp = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
            .exp()?;
        let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        rows.push(
            p.matmul(&values)?
                .reshape((1, h, d))?
                .to_dtype(k_cache.dtype())?,
        );
    }
    Ok(Tensor::cat(&rows, 0)?)
}
