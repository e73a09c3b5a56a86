//! Operations that change a tensor in place.

use super::element::with_element;
use super::gpu::Gpu;
use super::master::{Master, Weights, modify_weights};
use super::{cpu, optim_gpu, rows_cpu, rows_gpu};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Constants of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Counts from 1.
    pub step: usize,
    /// Gradients are multiplied by this first.
    pub grad_scale: f64,
}

/// `dst += x`; they may share their memory.
pub fn add_inplace(dst: &Tensor, x: &Tensor) -> Result<()> {
    if let Some(gpu) = Gpu::of(dst)
        && rows_gpu::add(&gpu, dst, x)?
    {
        return Ok(());
    }
    if !cpu::share_memory(dst, x) && dst.dims() == x.dims() {
        with_element!(x, E => if let Some(values) = cpu::values::<E>(x)
            && cpu::modify(dst, |dst| rows_cpu::add(dst, &values))?
        {
            return Ok(());
        });
    }
    let sum = (dst + x.to_dtype(dst.dtype())?)?;
    Ok(dst.slice_set(&sum, 0, 0)?)
}

/// AdamW with decoupled decay (arXiv 1711.05101, algorithm 2, as torch.optim.AdamW): `w -= lr * wd * w`,
/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `w -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)`. The
/// master copy is updated where there is one, and `value` rounded from it.
pub fn adamw_inplace(
    value: &Tensor,
    master: Option<&Master>,
    m: &Tensor,
    v: &Tensor,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<()> {
    if let Some(gpu) = Gpu::of(value)
        && optim_gpu::adamw(&gpu, value, master, (m, v), grad, c)?
    {
        return Ok(());
    }
    if !adamw_cpu(value, master, (m, v), grad, c)? {
        let w = whole(value, master)?;
        let next = adamw_plain(w, m, v, grad, c)?;
        m.slice_set(&next.m, 0, 0)?;
        v.slice_set(&next.v, 0, 0)?;
        w.slice_set(&next.w, 0, 0)?;
    }
    round_into(value, master)
}

/// The weights in f32, where they are in one piece.
///
/// # Errors
/// They are in two, which only kernels join.
pub(super) fn whole<'a>(value: &'a Tensor, master: Option<&'a Master>) -> Result<&'a Tensor> {
    match master {
        None => Ok(value),
        Some(Master::Whole(w)) => Ok(w),
        Some(Master::Rest(_)) => Err(Error::input(
            "weights in two parts, with gradients or states that are not f32 beside them",
        )),
    }
}

/// What a step makes of weights and moments.
pub(super) struct Stepped {
    pub w: Tensor,
    pub m: Tensor,
    pub v: Tensor,
}

/// The step of candle's operations.
pub(super) fn adamw_plain(
    w: &Tensor,
    m: &Tensor,
    v: &Tensor,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<Stepped> {
    let g = (grad.to_dtype(DType::F32)? * c.grad_scale)?;
    let m = ((m * c.beta1)? + (&g * (1.0 - c.beta1))?)?;
    let v = ((v * c.beta2)? + (g.sqr()? * (1.0 - c.beta2))?)?;
    let t = c.step as i32;
    let denominator = ((&v / (1.0 - c.beta2.powi(t)))?.sqrt()? + c.eps)?;
    let update = ((&m / denominator)? * (c.lr / (1.0 - c.beta1.powi(t))))?;
    let w = ((w * (1.0 - c.lr * c.weight_decay))? - update)?;
    Ok(Stepped { w, m, v })
}

/// `value` is the master copy, rounded to its type; where there is none, or it is in two parts, it is so already.
pub(super) fn round_into(value: &Tensor, master: Option<&Master>) -> Result<()> {
    let Some(Master::Whole(w)) = master else {
        return Ok(());
    };
    if let Some(ws) = cpu::values::<f32>(w)
        && value.dims() == w.dims()
        && cpu::modify::<half::bf16>(value, |value| rows_cpu::round(&ws, value))?
    {
        return Ok(());
    }
    Ok(value.slice_set(&w.to_dtype(value.dtype())?, 0, 0)?)
}

/// The fused step; `false` where a tensor is not on the CPU, or states or gradient are not f32.
fn adamw_cpu(
    value: &Tensor,
    master: Option<&Master>,
    (m, v): (&Tensor, &Tensor),
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<bool> {
    let same = [m, v, grad].iter().all(|t| t.dims() == value.dims());
    let fast = [m, v].iter().all(|t| cpu::values::<f32>(t).is_some());
    let Some(g) = cpu::values::<f32>(grad) else {
        return Ok(false);
    };
    if !same || !fast {
        return Ok(false);
    }
    modify_weights(value, master, |mut w| {
        let mut failed = None;
        cpu::modify(m, |m| {
            let w = std::mem::replace(&mut w, Weights::Whole(&mut []));
            let mut w = Some(w);
            let inner = cpu::modify(v, |v| {
                if let Some(w) = w.take() {
                    rows_cpu::adamw(w, m, v, &g, c);
                }
            });
            failed = inner.err();
        })?;
        failed.map_or(Ok(()), Err)
    })
}

/// Sum over the rows of x `[T, C]`, in f32 (f64 for f64). -> `[C]`
pub fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let (_, c) = x.dims2()?;
    if let Some(gpu) = Gpu::of(x) {
        return rows_gpu::sum_rows(&gpu, x);
    }
    with_element!(x, E => if let Some(values) = cpu::values::<E>(x) {
        return cpu::tensor(rows_cpu::sum_rows(&values, c), c);
    });
    let wide = if x.dtype() == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    Ok(x.to_dtype(wide)?.sum(0)?)
}
