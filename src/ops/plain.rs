//! The reference form of every operation: candle's own operations, composed, on every device and dtype.
//!
//! Formulas and gradients stand above each function; the fast kernels are tested against these. Reductions run in f32 (in
//! f64 for f64 input), whatever the dtype of the tensors.

use super::{Gradients, ParamId, RopeTable, SeqLens};
use crate::Result;
use candle_core::{D, DType, Tensor};

/// The dtype sums are taken in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

/// Matrix product of the last two dims; 16-bit tensors go through f32 on the CPU, which has no bf16 product.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = a.dtype();
    if a.device().is_cpu() && matches!(dtype, DType::BF16 | DType::F16) {
        let wide = a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?;
        return Ok(wide.to_dtype(dtype)?);
    }
    Ok(a.matmul(b)?)
}

/// `y = x / sqrt(mean(x^2) + eps) * w` (arXiv 1910.07467), over the last dim. x: `[.., C]`, w: `[C]`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = wide(x.dtype());
    let x_wide = x.to_dtype(dtype)?;
    let rstd = (x_wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?
        .sqrt()?
        .recip()?;
    let normed = x_wide.broadcast_mul(&rstd)?;
    Ok(normed
        .broadcast_mul(&w.to_dtype(dtype)?)?
        .to_dtype(x.dtype())?)
}

/// With `n = x * rstd` and `g = dy * w`: `dx = rstd * (g - n * mean(g * n))`, `dw = sum over rows of dy * n` (f32).
pub fn rms_norm_backward(
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let dtype = wide(x.dtype());
    let (x_wide, dy_wide) = (x.to_dtype(dtype)?, dy.to_dtype(dtype)?);
    let rstd = (x_wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?
        .sqrt()?
        .recip()?;
    let n = x_wide.broadcast_mul(&rstd)?;
    let g = dy_wide.broadcast_mul(&w.to_dtype(dtype)?)?;
    let inner = (&g * &n)?.mean_keepdim(D::Minus1)?;
    let dx = (g - n.broadcast_mul(&inner)?)?
        .broadcast_mul(&rstd)?
        .to_dtype(x.dtype())?;
    let c = w.dim(0)?;
    let dw = (dy_wide * n)?.reshape(((), c))?.sum(0)?; // [C]
    Ok((dx, dw))
}

/// Rotates the two halves of each head: `y1 = x1 cos - x2 sin`, `y2 = x2 cos + x1 sin` (RoFormer, arXiv 2104.09864, in the
/// half-split layout of Hugging Face). x: `[T, H, D]`.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    rotate(x, table, positions, 1.0)
}

/// The rotation is orthogonal: the gradient is rotated back.
pub fn rope_backward(dy: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    rotate(dy, table, positions, -1.0)
}

fn rotate(x: &Tensor, table: &RopeTable, positions: &[u32], sign: f64) -> Result<Tensor> {
    let (t, _h, d) = x.dims3()?;
    let dtype = wide(x.dtype());
    let index = Tensor::new(positions, x.device())?;
    let row = |table: &Tensor| -> Result<Tensor> {
        Ok(table
            .index_select(&index, 0)?
            .to_dtype(dtype)?
            .reshape((t, 1, d / 2))?) // [T, 1, D/2]
    };
    let (cos, sin) = (row(&table.cos)?, (row(&table.sin)? * sign)?);
    let x_wide = x.to_dtype(dtype)?;
    let (x1, x2) = (x_wide.narrow(2, 0, d / 2)?, x_wide.narrow(2, d / 2, d / 2)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[y1, y2], 2)?.to_dtype(x.dtype())?)
}

/// `y = silu(gate) * up` (arXiv 2002.05202).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let dtype = wide(gate.dtype());
    let g = gate.to_dtype(dtype)?;
    let silu = (&g * sigmoid(&g)?)?;
    Ok((silu * up.to_dtype(dtype)?)?.to_dtype(gate.dtype())?)
}

/// With `s = sigmoid(gate)`: `dgate = dy * up * s * (1 + gate * (1 - s))`, `dup = dy * gate * s`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype = wide(gate.dtype());
    let (g, u, dy) = (
        gate.to_dtype(dtype)?,
        up.to_dtype(dtype)?,
        dy.to_dtype(dtype)?,
    );
    let s = sigmoid(&g)?;
    let slope = (&s * ((&g * s.affine(-1.0, 1.0)?)? + 1.0)?)?;
    let dgate = ((&dy * u)? * slope)?.to_dtype(gate.dtype())?;
    let dup = ((dy * g)? * s)?.to_dtype(gate.dtype())?;
    Ok((dgate, dup))
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// Rows `ids` of w. w: `[V, C]` -> `[T, C]`.
pub fn embedding(w: &Tensor, ids: &[u32]) -> Result<Tensor> {
    Ok(w.index_select(&Tensor::new(ids, w.device())?, 0)?)
}

/// `y = x w^T + b`. x: `[T, I]`, w: `[O, I]`, b: `[O]` -> `[T, O]`.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = matmul(x, &w.t()?)?;
    Ok(match b {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    })
}

/// `dx = dy w`.
pub fn linear_backward_input(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    matmul(dy, w)
}

/// Causal attention within each sequence: `softmax(q k^T * scale) v`, the mask hiding what comes later; query head `h`
/// reads key/value head `h / (H / K)`. q: `[T, H, D]`, k, v: `[T, K, D]` -> o `[T, H, D]`, lse `[T, H]`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let (mut outs, mut lses) = (Vec::new(), Vec::new());
    for range in seqs.iter() {
        let part = Heads::of(q, k, v, range.start, range.len())?;
        let (p, lse) = part.probabilities(scale)?;
        let o = p.matmul(&part.v)?; // [H, T, D]
        outs.push(o.transpose(0, 1)?.to_dtype(q.dtype())?); // [T, H, D]
        lses.push(lse.squeeze(2)?.t()?); // [T, H]
    }
    Ok((
        Tensor::cat(&outs, 0)?.contiguous()?,
        Tensor::cat(&lses, 0)?.contiguous()?,
    ))
}

/// With `P` the probabilities and `dP = do v^T`: `dS = P * (dP - sum(do * o))`, `dv = P^T do`, `dq = dS k * scale`,
/// `dk = dS^T q * scale`; heads that share a key/value head sum (FlashAttention-2, arXiv 2307.08691, section 3.1.2).
#[allow(clippy::too_many_arguments)] // the operation has that many arguments
pub fn attention_backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    _lse: &Tensor,
    d_o: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (_, num_kv, _) = k.dims3()?;
    let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
    for range in seqs.iter() {
        let (start, len) = (range.start, range.len());
        let part = Heads::of(q, k, v, start, len)?;
        let (p, _) = part.probabilities(scale)?;
        let dtype = p.dtype();
        let d_o = heads_first(d_o, start, len, dtype)?; // [H, T, D]
        let o = heads_first(o, start, len, dtype)?;
        let dp = d_o.matmul(&part.v.transpose(1, 2)?.contiguous()?)?; // [H, T, T]
        let delta = (&d_o * o)?.sum_keepdim(2)?; // [H, T, 1]
        let ds = (&p * dp.broadcast_sub(&delta)?)?;
        let dq = (ds.matmul(&part.k)? * scale)?;
        let dk = (ds.transpose(1, 2)?.contiguous()?.matmul(&part.q)? * scale)?;
        let dv = p.transpose(1, 2)?.contiguous()?.matmul(&d_o)?;
        dqs.push(dq.transpose(0, 1)?);
        dks.push(sum_groups(&dk, num_kv)?.transpose(0, 1)?);
        dvs.push(sum_groups(&dv, num_kv)?.transpose(0, 1)?);
    }
    let join = |parts: Vec<Tensor>| -> Result<Tensor> {
        Ok(Tensor::cat(&parts, 0)?.contiguous()?.to_dtype(q.dtype())?)
    };
    Ok((join(dqs)?, join(dks)?, join(dvs)?))
}

/// One sequence, heads first, key/value heads repeated for their groups: all `[H, T, D]`.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Heads {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor, start: usize, len: usize) -> Result<Self> {
        let dtype = wide(q.dtype());
        let group = q.dim(1)? / k.dim(1)?;
        let repeat = |x: &Tensor| -> Result<Tensor> {
            let x = heads_first(x, start, len, dtype)?;
            let (num_kv, t, d) = x.dims3()?;
            Ok(x.unsqueeze(1)?
                .broadcast_as((num_kv, group, t, d))?
                .reshape((num_kv * group, t, d))?
                .contiguous()?)
        };
        Ok(Self {
            q: heads_first(q, start, len, dtype)?,
            k: repeat(k)?,
            v: repeat(v)?,
        })
    }

    /// Probabilities `[H, T, T]` and log-sum-exp of the scores `[H, T, 1]`.
    fn probabilities(&self, scale: f64) -> Result<(Tensor, Tensor)> {
        let (_, t, _) = self.q.dims3()?;
        let scores = (self.q.matmul(&self.k.transpose(1, 2)?.contiguous()?)? * scale)?;
        let mask: Vec<f32> = (0..t * t)
            .map(|i| {
                if i % t > i / t {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let mask = Tensor::from_vec(mask, (1, t, t), self.q.device())?.to_dtype(scores.dtype())?;
        let scores = scores.broadcast_add(&mask)?;
        let max = scores.max_keepdim(2)?;
        let exp = scores.broadcast_sub(&max)?.exp()?;
        let sum = exp.sum_keepdim(2)?;
        Ok((exp.broadcast_div(&sum)?, (max + sum.log()?)?))
    }
}

fn heads_first(x: &Tensor, start: usize, len: usize, dtype: DType) -> Result<Tensor> {
    Ok(x.narrow(0, start, len)?
        .transpose(0, 1)?
        .to_dtype(dtype)?
        .contiguous()?)
}

fn sum_groups(x: &Tensor, num_kv: usize) -> Result<Tensor> {
    let (h, t, d) = x.dims3()?;
    Ok(x.reshape((num_kv, h / num_kv, t, d))?.sum(1)?)
}

/// Rows of logits that exist at a time.
const CHUNK: usize = 256;

/// `log softmax(h w^T)[target]` of each row, a chunk of rows at a time. h: `[T, C]`, w: `[V, C]`.
pub fn linear_logprobs(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(targets.len());
    for start in (0..targets.len()).step_by(CHUNK) {
        let len = CHUNK.min(targets.len() - start);
        let (_, logprobs) =
            chunk_log_softmax(&h.narrow(0, start, len)?, w, &targets[start..start + len])?;
        all.extend(logprobs);
    }
    Ok(all)
}

/// Log-probabilities of targets, and the gradient of `L = sum_t coef[t] * logp[t]`: `dlogits = coef * (onehot - softmax)`,
/// `dh = dlogits w`, `dw += dlogits^T h`, a chunk of rows at a time.
pub fn linear_logprobs_backward(
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
    coef: &[f32],
    grads: &mut Gradients,
    w_id: ParamId,
) -> Result<(Vec<f32>, Tensor)> {
    let (mut all, mut dhs) = (Vec::with_capacity(targets.len()), Vec::new());
    for start in (0..targets.len()).step_by(CHUNK) {
        let len = CHUNK.min(targets.len() - start);
        let h_chunk = h.narrow(0, start, len)?.contiguous()?;
        let ids = &targets[start..start + len];
        let (log_softmax, logprobs) = chunk_log_softmax(&h_chunk, w, ids)?;
        all.extend(logprobs);
        let vocab = w.dim(0)?;
        let device = h.device();
        let columns = Tensor::arange(0u32, vocab as u32, device)?.unsqueeze(0)?; // [1, V]
        let onehot = columns
            .broadcast_eq(&Tensor::new(ids, device)?.unsqueeze(1)?)?
            .to_dtype(log_softmax.dtype())?; // [t, V]
        let coef = Tensor::new(&coef[start..start + len], device)?
            .unsqueeze(1)?
            .to_dtype(log_softmax.dtype())?;
        let dlogits = (onehot - log_softmax.exp()?)?
            .broadcast_mul(&coef)?
            .to_dtype(h.dtype())?;
        grads.add_matmul(w_id, &dlogits, &h_chunk)?;
        dhs.push(matmul(&dlogits, w)?);
    }
    Ok((all, Tensor::cat(&dhs, 0)?))
}

fn chunk_log_softmax(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<(Tensor, Vec<f32>)> {
    let logits = matmul(h, &w.t()?)?.to_dtype(wide(h.dtype()))?; // [t, V]
    let max = logits.max_keepdim(1)?;
    let shifted = logits.broadcast_sub(&max)?;
    let log_softmax = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let ids = Tensor::new(targets, h.device())?.unsqueeze(1)?;
    let picked = log_softmax
        .gather(&ids, 1)?
        .squeeze(1)?
        .to_dtype(DType::F32)?;
    Ok((log_softmax, picked.to_vec1::<f32>()?))
}
