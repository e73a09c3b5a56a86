//! The kernels of `optim.cu`.

use super::adam8::{Adam8State, BLOCK};
use super::gpu::{Arg, Gpu, Kernel, Launch, Module};
use super::{AdamWStep, dynamic_map};
use crate::Result;
use candle_core::{DType, Tensor};

/// Blocks that sum one tensor's squares.
const BLOCKS: usize = 128;
const THREADS: usize = 256;

/// Sum of the squares of all values of f32 tensors, with one round trip to the host for all.
pub(super) fn sum_squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<f64> {
    let mut parts = Vec::with_capacity(tensors.len());
    for t in tensors {
        let num = t.elem_count();
        let part = gpu.zeros(BLOCKS, DType::F64)?;
        let t = gpu.readable(t)?;
        gpu.launch(
            Kernel(Module::Optim, "sum_squares_f32"),
            Launch {
                grid: (num.div_ceil(THREADS).min(BLOCKS), 1, 1),
                threads: THREADS,
                shared_bytes: 0,
            },
            &[Arg::Tensor(&t), Arg::Tensor(&part), Arg::Size(num)],
        )?;
        parts.push(part);
    }
    if parts.is_empty() {
        return Ok(0.0);
    }
    let parts = Tensor::cat(&parts, 0)?.to_vec1::<f64>()?;
    Ok(parts.iter().sum())
}

/// The constants as the kernels take them.
fn constants(c: &AdamWStep) -> [Arg<'static>; 7] {
    let t = c.step as i32;
    [
        c.beta1,
        c.beta2,
        c.eps,
        1.0 - c.lr * c.weight_decay,
        c.lr / (1.0 - c.beta1.powi(t)),
        1.0 / (1.0 - c.beta2.powi(t)),
        c.grad_scale,
    ]
    .map(|v| Arg::F32(v as f32))
}

/// See [`super::adamw_inplace`]; `false` where a tensor is not as the kernel takes it.
pub(super) fn adamw(
    gpu: &Gpu,
    value: &Tensor,
    master: Option<&Tensor>,
    (m, v): (&Tensor, &Tensor),
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<bool> {
    let w = master.unwrap_or(value);
    let fits = [w, m, v, grad]
        .iter()
        .all(|t| t.dtype() == DType::F32 && t.dims() == w.dims() && gpu.is_readable(t));
    let rounded = match master {
        Some(_) if value.dtype() == DType::BF16 && gpu.is_readable(value) => Arg::Tensor(value),
        Some(_) => return Ok(false),
        None => Arg::Nothing,
    };
    if !fits {
        return Ok(false);
    }
    let num = w.elem_count();
    let [b1, b2, eps, decay, rate, correction, scale] = constants(c);
    gpu.launch(
        Kernel(Module::Optim, "adamw_f32"),
        Launch::over(num, THREADS),
        &[
            Arg::Tensor(w),
            rounded,
            Arg::Tensor(m),
            Arg::Tensor(v),
            Arg::Tensor(grad),
            Arg::Size(num),
            b1,
            b2,
            eps,
            decay,
            rate,
            correction,
            scale,
        ],
    )?;
    Ok(true)
}

/// See [`super::adam8::adamw8_inplace`]; `false` where a tensor is not as the kernel takes it.
pub(super) fn adamw8(
    gpu: &Gpu,
    value: &Tensor,
    master: Option<&Tensor>,
    s: &Adam8State,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<bool> {
    let w = master.unwrap_or(value);
    let states = [&s.m, &s.m_absmax, &s.v, &s.v_absmax];
    let fits = w.dtype() == DType::F32
        && grad.dtype() == DType::F32
        && w.is_contiguous()
        && grad.is_contiguous()
        && states.iter().all(|t| t.is_contiguous());
    let rounded = match master {
        Some(_) if value.dtype() == DType::BF16 && value.is_contiguous() => Arg::Tensor(value),
        Some(_) => return Ok(false),
        None => Arg::Nothing,
    };
    if !fits {
        return Ok(false);
    }
    let m_map = gpu.upload(dynamic_map::signed().values().as_slice())?;
    let v_map = gpu.upload(dynamic_map::unsigned().values().as_slice())?;
    let num = w.elem_count();
    let [b1, b2, eps, decay, rate, correction, scale] = constants(c);
    gpu.launch(
        Kernel(Module::Optim, "adamw_8bit"),
        Launch::over(num, BLOCK),
        &[
            Arg::Tensor(w),
            rounded,
            Arg::Tensor(&s.m),
            Arg::Tensor(&s.m_absmax),
            Arg::Tensor(&s.v),
            Arg::Tensor(&s.v_absmax),
            Arg::Tensor(&m_map),
            Arg::Tensor(&v_map),
            Arg::Tensor(grad),
            Arg::Size(num),
            b1,
            b2,
            eps,
            decay,
            rate,
            correction,
            scale,
        ],
    )?;
    Ok(true)
}
