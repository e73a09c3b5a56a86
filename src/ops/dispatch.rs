//! Each operation by the fast kernel where the tensors are f32 or bf16, contiguous and on the CPU, by a CUDA kernel where
//! they are so and on such a device, and by the plain form of [`plain`] everywhere else. Formulas stand there.

use super::cpu::{Dst, Matrix, gemm, tensor, unwritten, values};
use super::element::{Element, with_element};
use super::gpu::Gpu;
use super::{
    CoefsFn, Gradients, ParamId, RopeTable, SeqLens, TokenStats, attention_cpu, attention_gpu,
    head_cpu, head_gpu, plain, rows_cpu, rows_gpu,
};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// See [`plain::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    if let Some(gpu) = Gpu::of(x)
        && x.dims().last() == Some(&w.elem_count())
    {
        return rows_gpu::rms_norm(&gpu, x, w, eps);
    }
    with_element!(x, E => if let (Some(xs), Some(ws)) = (values::<E>(x), values::<E>(w))
        && x.dims().last() == Some(&ws.len())
    {
        return tensor(rows_cpu::rms_norm(&xs, &ws, eps as f32), x.shape());
    });
    plain::rms_norm(x, w, eps)
}

/// See [`plain::rms_norm_backward`].
pub fn rms_norm_backward(
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    dy: &Tensor,
) -> Result<(Tensor, Tensor)> {
    if let Some(gpu) = Gpu::of(x)
        && x.dims() == dy.dims()
        && x.dims().last() == Some(&w.elem_count())
    {
        return rows_gpu::rms_norm_backward(&gpu, x, w, eps, dy);
    }
    with_element!(x, E => if let (Some(xs), Some(ws), Some(dys)) = (values::<E>(x), values::<E>(w), values::<E>(dy))
        && x.dims() == dy.dims()
        && x.dims().last() == Some(&ws.len())
    {
        let (dx, dw) = rows_cpu::rms_norm_backward(&xs, &ws, eps as f32, &dys);
        return Ok((tensor(dx, x.shape())?, tensor(dw, w.shape())?));
    });
    plain::rms_norm_backward(x, w, eps, dy)
}

/// See [`plain::rope`].
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    match rotate(x, table, positions, 1.0)? {
        Some(y) => Ok(y),
        None => plain::rope(x, table, positions),
    }
}

/// See [`plain::rope_backward`].
pub fn rope_backward(dy: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    match rotate(dy, table, positions, -1.0)? {
        Some(dx) => Ok(dx),
        None => plain::rope_backward(dy, table, positions),
    }
}

fn rotate(x: &Tensor, table: &RopeTable, positions: &[u32], sign: f32) -> Result<Option<Tensor>> {
    let (t, h, d) = x.dims3()?;
    let (num_positions, half) = table.cos.dims2()?;
    let fits = 2 * half == d
        && positions.len() == t
        && positions.iter().all(|&p| (p as usize) < num_positions);
    if !fits {
        return Err(Error::input(format!(
            "rotating {:?} by a table of {num_positions} positions of {half}: positions or sizes do not fit",
            x.dims()
        )));
    }
    if let Some(gpu) = Gpu::of(x) {
        return rows_gpu::rotate(&gpu, x, table, positions, sign).map(Some);
    }
    if let (Some(cos), Some(sin)) = (values::<f32>(&table.cos), values::<f32>(&table.sin)) {
        with_element!(x, E => if let Some(xs) = values::<E>(x) {
            let y = rows_cpu::rotate(&xs, h * d, half, &cos, &sin, positions, sign);
            return Ok(Some(tensor(y, x.shape())?));
        });
    }
    Ok(None)
}

/// See [`plain::swiglu`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if let Some(gpu) = Gpu::of(gate)
        && gate.dims() == up.dims()
        && gate.dtype() == up.dtype()
    {
        return rows_gpu::swiglu(&gpu, gate, up);
    }
    with_element!(gate, E => if let (Some(g), Some(u)) = (values::<E>(gate), values::<E>(up))
        && gate.dims() == up.dims()
    {
        return tensor(rows_cpu::swiglu(&g, &u), gate.shape());
    });
    plain::swiglu(gate, up)
}

/// See [`plain::swiglu_backward`].
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let same = |t: &Tensor| gate.dims() == t.dims() && gate.dtype() == t.dtype();
    if let Some(gpu) = Gpu::of(gate)
        && same(up)
        && same(dy)
    {
        return rows_gpu::swiglu_backward(&gpu, gate, up, dy);
    }
    with_element!(gate, E => if let (Some(g), Some(u), Some(d)) = (values::<E>(gate), values::<E>(up), values::<E>(dy))
        && gate.dims() == up.dims()
        && gate.dims() == dy.dims()
    {
        let (dgate, dup) = rows_cpu::swiglu_backward(&g, &u, &d);
        return Ok((tensor(dgate, gate.shape())?, tensor(dup, up.shape())?));
    });
    plain::swiglu_backward(gate, up, dy)
}

/// See [`plain::linear`].
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    if let (Some(gpu), Some(b)) = (Gpu::of(x), b)
        && b.dims() == [w.dim(0)?]
    {
        let y = plain::linear(x, w, None)?;
        rows_gpu::add_bias(&gpu, &y, b)?;
        return Ok(y);
    }
    with_element!(x, E => if let Some(y) = linear_on_cpu::<E>(x, w, b)? {
        return Ok(y);
    });
    plain::linear(x, w, b)
}

fn linear_on_cpu<E: Element>(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Option<Tensor>> {
    let ((t, i), (o, w_i)) = (x.dims2()?, w.dims2()?);
    let bias = b.map(values::<E>);
    match (values::<E>(x), values::<E>(w), bias) {
        (Some(xs), Some(ws), bias @ (None | Some(Some(_))))
            if i == w_i && b.is_none_or(|b| b.dims() == [o]) =>
        {
            let mut y = unwritten::<E>(t * o);
            let mut into = Dst::Overwrite;
            if let Some(Some(bias)) = bias {
                y.chunks_exact_mut(o)
                    .for_each(|row| row.copy_from_slice(&bias));
                into = Dst::Add;
            }
            gemm(
                (t, o, i),
                &mut y,
                o,
                into,
                Matrix::rows(&xs, i),
                Matrix::rows(&ws, i).t(),
                1.0,
                true,
            );
            Ok(Some(tensor(y, (t, o))?))
        }
        _ => Ok(None),
    }
}

/// See [`plain::linear_backward_input`].
pub fn linear_backward_input(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((t, o), (w_o, i)) = (dy.dims2()?, w.dims2()?);
    with_element!(dy, E => if let (Some(ds), Some(ws)) = (values::<E>(dy), values::<E>(w))
        && o == w_o
    {
        let mut dx = unwritten::<E>(t * i);
        gemm(
            (t, i, o),
            &mut dx,
            i,
            Dst::Overwrite,
            Matrix::rows(&ds, o),
            Matrix::rows(&ws, i),
            1.0,
            true,
        );
        return tensor(dx, (t, i));
    });
    plain::linear_backward_input(dy, w)
}

/// See [`plain::attention`].
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let shape = attention_shape(q, k, v, seqs, scale)?;
    if let Some(gpu) = Gpu::of(q)
        && attention_gpu::fits(q, &[k, v], scale)
    {
        return attention_gpu::forward(&gpu, q, k, v, seqs, scale);
    }
    with_element!(q, E => if let (Some(qs), Some(ks), Some(vs)) = (values::<E>(q), values::<E>(k), values::<E>(v)) {
        let (o, lse) = attention_cpu::forward(&qs, &ks, &vs, seqs, shape);
        return Ok((
            tensor(o, q.shape())?,
            tensor(lse, (seqs.total(), shape.num_heads))?,
        ));
    });
    plain::attention(q, k, v, seqs, scale)
}

/// See [`plain::attention_backward`].
#[allow(clippy::too_many_arguments)] // the operation has that many arguments
pub fn attention_backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    d_o: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let shape = attention_shape(q, k, v, seqs, scale)?;
    let saved_fits = o.dims() == q.dims()
        && d_o.dims() == q.dims()
        && lse.dims() == [seqs.total(), shape.num_heads];
    if let Some(gpu) = Gpu::of(q)
        && saved_fits
        && lse.dtype() == DType::F32
        && attention_gpu::fits(q, &[k, v, o, d_o], scale)
    {
        return attention_gpu::backward(&gpu, q, k, v, o, lse, d_o, seqs, scale);
    }
    with_element!(q, E => {
        let saved = (values::<E>(o), values::<f32>(lse), values::<E>(d_o));
        if let (Some(qs), Some(ks), Some(vs), (Some(os), Some(lses), Some(dos))) =
            (values::<E>(q), values::<E>(k), values::<E>(v), saved)
            && saved_fits
        {
            let (dq, dk, dv) =
                attention_cpu::backward(&qs, &ks, &vs, &os, &lses, &dos, seqs, shape);
            return Ok((
                tensor(dq, q.shape())?,
                tensor(dk, k.shape())?,
                tensor(dv, v.shape())?,
            ));
        }
    });
    plain::attention_backward(q, k, v, o, lse, d_o, seqs, scale)
}

fn attention_shape(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqs: &SeqLens,
    scale: f64,
) -> Result<attention_cpu::Shape> {
    let ((t, num_heads, head_dim), (k_t, num_kv, k_d)) = (q.dims3()?, k.dims3()?);
    if k.dims() != v.dims()
        || (k_t, k_d) != (t, head_dim)
        || seqs.total() != t
        || num_kv == 0
        || num_heads % num_kv != 0
    {
        return Err(Error::input(format!(
            "attention over q {:?}, k {:?}, v {:?} and {} tokens: shapes do not fit",
            q.dims(),
            k.dims(),
            v.dims(),
            seqs.total()
        )));
    }
    Ok(attention_cpu::Shape {
        num_heads,
        num_kv,
        head_dim,
        scale: scale as f32,
    })
}

/// See [`plain::linear_logprobs`].
pub fn linear_logprobs(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let c = check_head(h, w, targets)?;
    if let Some(gpu) = Gpu::of(h) {
        return Ok(head_gpu::token_stats(&gpu, h, w, targets)?.logprobs);
    }
    with_element!(h, E => if let (Some(hs), Some(ws)) = (values::<E>(h), values::<E>(w)) {
        return Ok(head_cpu::logprobs(&hs, &ws, c, targets));
    });
    plain::linear_logprobs(h, w, targets)
}

/// See [`plain::linear_logprobs_backward`].
pub fn linear_logprobs_backward(
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
    coef: &[f32],
    grads: &mut Gradients,
    w_id: ParamId,
) -> Result<(Vec<f32>, Tensor)> {
    let c = check_head(h, w, targets)?;
    if coef.len() != targets.len() {
        return Err(Error::input(format!(
            "{} targets have {} coefficients",
            targets.len(),
            coef.len()
        )));
    }
    if let Some(gpu) = Gpu::of(h) {
        let coefs: CoefsFn = &mut |rows, _| Ok(coef[rows].to_vec());
        let (stats, dh) = head_gpu::policy_backward(&gpu, h, w, targets, coefs, grads, w_id)?;
        return Ok((stats.logprobs, dh));
    }
    with_element!(h, E => if let (Some(hs), Some(ws)) = (values::<E>(h), values::<E>(w)) {
        let (logprobs, dh) = grads.with_slot(w_id, |dw| {
            head_cpu::backward(&hs, &ws, c, targets, coef, dw)
        })?;
        return Ok((logprobs, tensor(dh, h.shape())?));
    });
    plain::linear_logprobs_backward(h, w, targets, coef, grads, w_id)
}

/// See [`plain::linear_token_stats`].
pub fn linear_token_stats(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<TokenStats> {
    let c = check_head(h, w, targets)?;
    if let Some(gpu) = Gpu::of(h) {
        return head_gpu::token_stats(&gpu, h, w, targets);
    }
    with_element!(h, E => if let (Some(hs), Some(ws)) = (values::<E>(h), values::<E>(w)) {
        return Ok(head_cpu::stats(&hs, &ws, c, targets));
    });
    plain::linear_token_stats(h, w, targets)
}

/// See [`plain::linear_policy_backward`].
pub fn linear_policy_backward(
    h: &Tensor,
    w: &Tensor,
    targets: &[u32],
    coefs: CoefsFn,
    grads: &mut Gradients,
    w_id: ParamId,
) -> Result<(TokenStats, Tensor)> {
    let c = check_head(h, w, targets)?;
    let coefs: CoefsFn = &mut |rows, logprobs| {
        let num_rows = rows.len();
        let coefs = coefs(rows, logprobs)?;
        match coefs.len() == num_rows {
            true => Ok(coefs),
            false => Err(Error::input(format!(
                "{num_rows} targets have {} coefficients",
                coefs.len()
            ))),
        }
    };
    if let Some(gpu) = Gpu::of(h) {
        return head_gpu::policy_backward(&gpu, h, w, targets, coefs, grads, w_id);
    }
    with_element!(h, E => if let (Some(hs), Some(ws)) = (values::<E>(h), values::<E>(w)) {
        let (stats, dh) = grads.with_slot(w_id, |dw| {
            head_cpu::policy_backward(&hs, &ws, c, targets, coefs, dw)
        })??;
        return Ok((stats, tensor(dh, h.shape())?));
    });
    plain::linear_policy_backward(h, w, targets, coefs, grads, w_id)
}

fn check_head(h: &Tensor, w: &Tensor, targets: &[u32]) -> Result<usize> {
    let ((t, c), (vocab, w_c)) = (h.dims2()?, w.dims2()?);
    if c != w_c || t != targets.len() || targets.iter().any(|&id| id as usize >= vocab) {
        return Err(Error::input(format!(
            "a head of {:?} over {:?} and {} targets: shapes or targets do not fit",
            w.dims(),
            h.dims(),
            targets.len()
        )));
    }
    Ok(c)
}
