//! The kernels of `nf4.cu` and `ggml.cu`, quantised weights back to values: shapes to grids. The formats stand in
//! [`super::nf4`] and [`super::ggml`].

use super::ggml::GgmlType;
use super::gpu::{Arg, Gpu, Kernel, Launch, Module, suffix};
use crate::Result;
use candle_core::{DType, Tensor};

/// Threads of a block.
const THREADS: usize = 256;
/// Values that a thread writes at a time (`WIDE` in kernel.cuh).
const WIDE: usize = 8;

/// The values of a matrix in 4-bit NormalFloat: `codes`, codes of scales, scales of scales and their mean, with the two maps.
/// -> `[num]`
pub(super) fn dequantise_nf4(
    gpu: &Gpu,
    (codes, scale_codes, scales, offset): (&Tensor, &Tensor, &Tensor, f32),
    (values, scale_map): (&'static [f32; 16], &'static [f32; 256]),
    num: usize,
    dtype: DType,
) -> Result<Tensor> {
    let w = gpu.empty(num, dtype)?;
    let (values, scale_map) = (gpu.upload_once(values)?, gpu.upload_once(scale_map)?);
    gpu.launch(
        Kernel(Module::Nf4, &format!("dequantise_nf4_{}", suffix(dtype))),
        Launch::over(num.div_ceil(WIDE), THREADS),
        &[
            Arg::Tensor(codes),
            Arg::Tensor(scale_codes),
            Arg::Tensor(scales),
            Arg::Tensor(&values),
            Arg::Tensor(&scale_map),
            Arg::F32(offset),
            Arg::Tensor(&w),
            Arg::Size(num),
        ],
    )?;
    Ok(w)
}

/// The values of GGML's blocks. -> `[num]`
pub(super) fn dequantise_blocks(
    gpu: &Gpu,
    of: GgmlType,
    blocks: &Tensor,
    num: usize,
    dtype: DType,
) -> Result<Tensor> {
    let w = gpu.empty(num, dtype)?;
    // a byte of codes of q4_k is two values
    let of_a_thread = match of {
        GgmlType::Q8_0 => WIDE,
        GgmlType::Q4_K => 2 * WIDE,
    };
    gpu.launch(
        Kernel(
            Module::Ggml,
            &format!("dequantise_{}_{}", of.name(), suffix(dtype)),
        ),
        Launch::over(num / of_a_thread, THREADS),
        &[Arg::Tensor(blocks), Arg::Tensor(&w), Arg::Size(num)],
    )?;
    Ok(w)
}
