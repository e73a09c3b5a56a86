//! The kernels of `optim.cu`.

use super::adam8::{Adam8State, BLOCK};
use super::gpu::{Arg, Gpu, Kernel, Launch, Module};
use super::master::Master;
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

/// The weights as the kernels take them: f32, bf16, rest; none where they are not so.
fn weights<'a>(gpu: &Gpu, value: &'a Tensor, master: Option<&'a Master>) -> Option<[Arg<'a>; 3]> {
    let is =
        |t: &Tensor, dtype| t.dtype() == dtype && t.dims() == value.dims() && t.is_contiguous();
    let rounded = |t| is(value, DType::BF16).then_some(t);
    match master {
        None => is(value, DType::F32).then_some([Arg::Tensor(value), Arg::Nothing, Arg::Nothing]),
        Some(Master::Whole(w)) if is(w, DType::F32) && gpu.is_readable(w) => {
            rounded([Arg::Tensor(w), Arg::Tensor(value), Arg::Nothing])
        }
        Some(Master::Rest(rest)) if is(rest, DType::I16) => {
            rounded([Arg::Nothing, Arg::Tensor(value), Arg::Tensor(rest)])
        }
        Some(_) => None,
    }
}

/// See [`super::adamw_inplace`]; `false` where a tensor is not as the kernel takes it.
pub(super) fn adamw(
    gpu: &Gpu,
    value: &Tensor,
    master: Option<&Master>,
    (m, v): (&Tensor, &Tensor),
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<bool> {
    let fits = [m, v, grad]
        .iter()
        .all(|t| t.dtype() == DType::F32 && t.dims() == value.dims() && gpu.is_readable(t));
    let Some([w, rounded, rest]) = weights(gpu, value, master).filter(|_| fits) else {
        return Ok(false);
    };
    let num = value.elem_count();
    let [b1, b2, eps, decay, rate, correction, scale] = constants(c);
    gpu.launch(
        Kernel(Module::Optim, "adamw_f32"),
        Launch::over(num, THREADS),
        &[
            w,
            rounded,
            rest,
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
    master: Option<&Master>,
    s: &Adam8State,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<bool> {
    let states = [&s.m, &s.m_absmax, &s.v, &s.v_absmax];
    let fits = grad.dtype() == DType::F32
        && grad.is_contiguous()
        && states.iter().all(|t| t.is_contiguous());
    let Some([w, rounded, rest]) = weights(gpu, value, master).filter(|_| fits) else {
        return Ok(false);
    };
    let m_map = gpu.upload(dynamic_map::signed().values().as_slice())?;
    let v_map = gpu.upload(dynamic_map::unsigned().values().as_slice())?;
    let num = value.elem_count();
    let [b1, b2, eps, decay, rate, correction, scale] = constants(c);
    gpu.launch(
        Kernel(Module::Optim, "adamw_8bit"),
        Launch::over(num, BLOCK),
        &[
            w,
            rounded,
            rest,
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
