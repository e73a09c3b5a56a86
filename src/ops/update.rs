//! Operations that change a tensor in place.

use super::element::with_element;
use super::gpu::Gpu;
use super::{cpu, optim_gpu, rows_cpu, rows_gpu};
use crate::Result;
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
    master: Option<&Tensor>,
    m: &Tensor,
    v: &Tensor,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<()> {
    let w = master.unwrap_or(value);
    if let Some(gpu) = Gpu::of(w)
        && optim_gpu::adamw(&gpu, value, master, (m, v), grad, c)?
    {
        return Ok(());
    }
    if adamw_cpu(w, m, v, grad, c)? {
        return match master {
            Some(master) => round_into(value, master),
            None => Ok(()),
        };
    }
    let next = adamw_plain(w, m, v, grad, c)?;
    m.slice_set(&next.m, 0, 0)?;
    v.slice_set(&next.v, 0, 0)?;
    w.slice_set(&next.w, 0, 0)?;
    if master.is_some() {
        value.slice_set(&next.w.to_dtype(value.dtype())?, 0, 0)?;
    }
    Ok(())
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

/// `value = w`, rounded to its type.
pub(super) fn round_into(value: &Tensor, w: &Tensor) -> Result<()> {
    if let Some(ws) = cpu::values::<f32>(w)
        && value.dims() == w.dims()
        && cpu::modify::<half::bf16>(value, |value| rows_cpu::round(&ws, value))?
    {
        return Ok(());
    }
    Ok(value.slice_set(&w.to_dtype(value.dtype())?, 0, 0)?)
}

/// The fused step; `false` where a tensor is not f32 on the CPU.
fn adamw_cpu(w: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor, c: &AdamWStep) -> Result<bool> {
    let same = [m, v, grad].iter().all(|t| t.dims() == w.dims());
    let fast = [w, m, v].iter().all(|t| cpu::values::<f32>(t).is_some());
    let Some(g) = cpu::values::<f32>(grad) else {
        return Ok(false);
    };
    if !same || !fast {
        return Ok(false);
    }
    let mut failed = None;
    cpu::modify(w, |w| {
        let outer = cpu::modify(m, |m| {
            let inner = cpu::modify(v, |v| rows_cpu::adamw(w, m, v, &g, c));
            if let Err(error) = inner {
                failed = Some(error);
            }
        });
        if let Err(error) = outer {
            failed = Some(error);
        }
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(true),
    }
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
