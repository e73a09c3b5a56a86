//! Operations that change a tensor in place.

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

/// `dst += x`.
pub fn add_inplace(dst: &Tensor, x: &Tensor) -> Result<()> {
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
    let g = (grad.to_dtype(DType::F32)? * c.grad_scale)?;
    let m_new = ((m * c.beta1)? + (&g * (1.0 - c.beta1))?)?;
    let v_new = ((v * c.beta2)? + (g.sqr()? * (1.0 - c.beta2))?)?;
    let t = c.step as i32;
    let denominator = ((&v_new / (1.0 - c.beta2.powi(t)))?.sqrt()? + c.eps)?;
    let update = ((&m_new / denominator)? * (c.lr / (1.0 - c.beta1.powi(t))))?;
    let w_new = ((w * (1.0 - c.lr * c.weight_decay))? - update)?;
    m.slice_set(&m_new, 0, 0)?;
    v.slice_set(&v_new, 0, 0)?;
    w.slice_set(&w_new, 0, 0)?;
    if master.is_some() {
        value.slice_set(&w_new.to_dtype(value.dtype())?, 0, 0)?;
    }
    Ok(())
}
