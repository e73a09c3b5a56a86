//! The reference form of every operation: candle's own operations, composed, on every device and dtype.
//!
//! Formulas and gradients stand above each function; the fast kernels are tested against these. Reductions run in f32 (in
//! f64 for f64 input), whatever the dtype of the tensors.

use super::{CoefsFn, Gradients, ParamId, RopeTable, SeqLens, TokenStats};
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

/// Queries whose scores exist at a time: memory grows with the length, not with its square.
pub const ATTENTION_BLOCK: usize = 512;

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
    for (start, end, first) in blocks(seqs) {
        let part = Heads::of(q, k, v, start, first, end)?;
        let (p, lse) = part.probabilities(first - start, scale)?;
        let o = p.matmul(&part.v)?; // [H, B, D]
        outs.push(o.transpose(0, 1)?.to_dtype(q.dtype())?); // [B, H, D]
        lses.push(lse.squeeze(2)?.t()?); // [B, H]
    }
    Ok((
        Tensor::cat(&outs, 0)?.contiguous()?,
        Tensor::cat(&lses, 0)?.contiguous()?,
    ))
}

/// Blocks of queries in order: where their sequence begins, where they end, where they begin.
fn blocks(seqs: &SeqLens) -> Vec<(usize, usize, usize)> {
    seqs.iter()
        .flat_map(|range| {
            range
                .clone()
                .step_by(ATTENTION_BLOCK)
                .map(move |first| (range.start, (first + ATTENTION_BLOCK).min(range.end), first))
        })
        .collect()
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
    let mut dqs = Vec::new();
    // of each sequence, the sums over its blocks so far, which see ever more keys
    let (mut dks, mut dvs): (Vec<Tensor>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for (start, end, first) in blocks(seqs) {
        let part = Heads::of(q, k, v, start, first, end)?;
        let (p, _) = part.probabilities(first - start, scale)?;
        let dtype = p.dtype();
        let d_o = heads_first(d_o, first, end - first, dtype)?; // [H, B, D]
        let o = heads_first(o, first, end - first, dtype)?;
        let dp = d_o.matmul(&part.v.transpose(1, 2)?.contiguous()?)?; // [H, B, L]
        let delta = (&d_o * o)?.sum_keepdim(2)?; // [H, B, 1]
        let ds = (&p * dp.broadcast_sub(&delta)?)?;
        dqs.push((ds.matmul(&part.k)? * scale)?.transpose(0, 1)?);
        let dk = (ds.transpose(1, 2)?.contiguous()?.matmul(&part.q)? * scale)?; // [H, L, D]
        let dv = p.transpose(1, 2)?.contiguous()?.matmul(&d_o)?;
        let (dk, dv) = (sum_groups(&dk, num_kv)?, sum_groups(&dv, num_kv)?); // [K, L, D]
        if first == start {
            dks.push(dk);
            dvs.push(dv);
        } else {
            grow(&mut dks, dk)?;
            grow(&mut dvs, dv)?;
        }
    }
    let join = |parts: &[Tensor]| -> Result<Tensor> {
        Ok(Tensor::cat(parts, 0)?.contiguous()?.to_dtype(q.dtype())?)
    };
    let rows = |parts: Vec<Tensor>| -> Result<Vec<Tensor>> {
        parts.iter().map(|x| Ok(x.transpose(0, 1)?)).collect()
    };
    Ok((join(&dqs)?, join(&rows(dks)?)?, join(&rows(dvs)?)?))
}

/// Adds `more`, `[K, L, D]`, to the last of `sums`, which is shorter in L.
fn grow(sums: &mut [Tensor], more: Tensor) -> Result<()> {
    if let Some(sum) = sums.last_mut() {
        let missing = more.dim(1)? - sum.dim(1)?;
        *sum = (sum.pad_with_zeros(1, 0, missing)? + more)?;
    }
    Ok(())
}

/// A block of queries and all keys it may see, heads first, key/value heads repeated for their groups: q `[H, B, D]`, k
/// and v `[H, L, D]`.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Heads {
    /// Queries `first..end` of the sequence that begins at `start`.
    fn of(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        start: usize,
        first: usize,
        end: usize,
    ) -> Result<Self> {
        let dtype = wide(q.dtype());
        let group = q.dim(1)? / k.dim(1)?;
        let repeat = |x: &Tensor| -> Result<Tensor> {
            let x = heads_first(x, start, end - start, dtype)?;
            let (num_kv, t, d) = x.dims3()?;
            Ok(x.unsqueeze(1)?
                .broadcast_as((num_kv, group, t, d))?
                .reshape((num_kv * group, t, d))?
                .contiguous()?)
        };
        Ok(Self {
            q: heads_first(q, first, end - first, dtype)?,
            k: repeat(k)?,
            v: repeat(v)?,
        })
    }

    /// Probabilities `[H, B, L]` and log-sum-exp of the scores `[H, B, 1]`; `before` keys precede the first query.
    fn probabilities(&self, before: usize, scale: f64) -> Result<(Tensor, Tensor)> {
        let (num_q, num_k) = (self.q.dim(1)?, self.k.dim(1)?);
        let scores = (self.q.matmul(&self.k.transpose(1, 2)?.contiguous()?)? * scale)?;
        let mask: Vec<f32> = (0..num_q * num_k)
            .map(|i| {
                if i % num_k > before + i / num_k {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let mask =
            Tensor::from_vec(mask, (1, num_q, num_k), self.q.device())?.to_dtype(scores.dtype())?;
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
pub const HEAD_CHUNK: usize = 256;

/// `log softmax(h w^T)[target]` of each row, a chunk of rows at a time. h: `[T, C]`, w: `[V, C]`.
pub fn linear_logprobs(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(targets.len());
    for start in (0..targets.len()).step_by(HEAD_CHUNK) {
        let len = HEAD_CHUNK.min(targets.len() - start);
        let (_, logprobs) =
            chunk_log_softmax(&h.narrow(0, start, len)?, w, &targets[start..start + len])?;
        all.extend(logprobs);
    }
    Ok(all)
}

/// [`linear_logprobs`] with the entropy of each row, `H = -sum_j p_j ln p_j`.
pub fn linear_token_stats(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<TokenStats> {
    let mut all = TokenStats::default();
    for start in (0..targets.len()).step_by(HEAD_CHUNK) {
        let len = HEAD_CHUNK.min(targets.len() - start);
        let (log_softmax, logprobs) =
            chunk_log_softmax(&h.narrow(0, start, len)?, w, &targets[start..start + len])?;
        all.logprobs.extend(logprobs);
        all.entropies.extend(entropies(&log_softmax)?);
    }
    Ok(all)
}

fn entropies(log_softmax: &Tensor) -> Result<Vec<f32>> {
    let sum = (log_softmax.exp()? * log_softmax)?.sum(1)?.neg()?; // [t]
    Ok(sum.to_dtype(DType::F32)?.to_vec1::<f32>()?)
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
    let coefs: CoefsFn = &mut |rows, _| Ok(coef[rows].to_vec());
    let (stats, dh) = linear_policy_backward(h, w, targets, coefs, grads, w_id)?;
    Ok((stats.logprobs, dh))
}

/// [`linear_logprobs_backward`] with coefficients that `coefs` makes of each chunk's log-probabilities, and entropies. What
/// `coefs` returns is taken as a constant: a loss `f(logp)` has `coef = f'(logp)`.
pub fn linear_policy_backward(
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
    coefs: CoefsFn,
    grads: &mut Gradients,
    w_id: ParamId,
) -> Result<(TokenStats, Tensor)> {
    let (mut all, mut dhs) = (TokenStats::default(), Vec::new());
    for start in (0..targets.len()).step_by(HEAD_CHUNK) {
        let len = HEAD_CHUNK.min(targets.len() - start);
        let h_chunk = h.narrow(0, start, len)?.contiguous()?;
        let ids = &targets[start..start + len];
        let (log_softmax, logprobs) = chunk_log_softmax(&h_chunk, w, ids)?;
        let coef = coefs(start..start + len, &logprobs)?;
        all.logprobs.extend(logprobs);
        all.entropies.extend(entropies(&log_softmax)?);
        let vocab = w.dim(0)?;
        let device = h.device();
        let columns = Tensor::arange(0u32, vocab as u32, device)?.unsqueeze(0)?; // [1, V]
        let onehot = columns
            .broadcast_eq(&Tensor::new(ids, device)?.unsqueeze(1)?)?
            .to_dtype(log_softmax.dtype())?; // [t, V]
        let coef = Tensor::new(coef.as_slice(), device)?
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
