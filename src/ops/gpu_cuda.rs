//! The kernels on a CUDA device, and cuBLAS's products with results in f32.

use super::{Kernel, Launch, Module, Operand};
use crate::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice};
use candle_core::{CudaStorage, DType, Tensor};
use std::ffi::c_void;

mod ptx {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

impl Module {
    /// Its name and its code.
    fn code(self) -> (&'static str, &'static str) {
        match self {
            Self::Rows => ("distill-rows", ptx::ROWS),
            Self::Head => ("distill-head", ptx::HEAD),
            Self::Optim => ("distill-optim", ptx::OPTIM),
            Self::Nf4 => ("distill-nf4", ptx::NF4),
            Self::Ggml => ("distill-ggml", ptx::GGML),
            Self::Sample => ("distill-sample", ptx::SAMPLE),
            Self::Attention => ("distill-attention", ptx::ATTENTION),
            Self::Decode => ("distill-decode", ptx::DECODE),
        }
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::input(format!("{what} on the CUDA device: {error}"))
}

/// Makes the device that of the calling thread, which may be any of a pool.
fn bind(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let bound = stream.context().bind_to_thread();
    bound.map_err(|e| failed("work", e))
}

pub(super) fn address(device: &CudaDevice, storage: &CudaStorage, start: usize) -> Result<u64> {
    let stream = device.cuda_stream();
    let base = match &storage.slice {
        CudaStorageSlice::F32(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::BF16(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::F16(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::F64(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::U32(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::I64(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::U8(s) => s.device_ptr(&stream).0,
        CudaStorageSlice::I16(s) => s.device_ptr(&stream).0,
        _ => {
            return Err(Error::input(format!(
                "kernels do not read {:?}",
                storage.dtype()
            )));
        }
    };
    Ok(base + (start * storage.dtype().size_in_bytes()) as u64)
}

pub(super) fn shared_bytes_a_block(device: &CudaDevice) -> Result<usize> {
    let limit = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let bytes = device.cuda_stream().context().attribute(limit);
    Ok(bytes.map_err(|e| failed("reading the size of shared memory", e))? as usize)
}

pub(super) fn launch(
    device: &CudaDevice,
    kernel: Kernel,
    launch: Launch,
    words: &[u64],
) -> Result<()> {
    let Kernel(module, name) = kernel;
    let (module, code) = module.code();
    bind(device)?;
    let function = device.get_or_load_custom_func(name, module, code)?;
    // what a kernel gets without asking
    if launch.shared_bytes > 48 * 1024 {
        function
            .set_attribute(
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                launch.shared_bytes as i32,
            )
            .map_err(|e| failed(name, e))?;
    }
    let mut builder = function.builder();
    for word in words {
        builder.arg(word);
    }
    let (x, y, z) = launch.grid;
    let config = LaunchConfig {
        grid_dim: (x as u32, y as u32, z as u32),
        block_dim: (launch.threads as u32, 1, 1),
        shared_mem_bytes: launch.shared_bytes as u32,
    };
    // SAFETY: the arguments are those that the kernel's wrapper names, with memory that outlives the launch on its stream
    unsafe { builder.launch(config) }.map_err(|e| failed(name, e))?;
    Ok(())
}

/// Row by row here, column by column there: the transposed product of the transposed operands, in exchanged order.
pub(super) fn gemm(
    device: &CudaDevice,
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
    (c, c_stride): (&Tensor, usize),
    at: [u64; 3],
    add: bool,
) -> Result<()> {
    let operation = |transposed| match transposed {
        true => blas::cublasOperation_t::CUBLAS_OP_T,
        false => blas::cublasOperation_t::CUBLAS_OP_N,
    };
    let dtype = |dtype: DType| match dtype {
        DType::BF16 => blas::cudaDataType_t::CUDA_R_16BF,
        _ => blas::cudaDataType_t::CUDA_R_32F,
    };
    let (alpha, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
    let handle = device.cublas_handle();
    bind(device)?;
    // SAFETY: the wrappers hand over operands of these sizes, all on this device and alive
    unsafe {
        cublas::gemm_ex(
            *handle.handle(),
            operation(b.transposed),
            operation(a.transposed),
            n as i32,
            m as i32,
            k as i32,
            (&raw const alpha).cast::<c_void>(),
            at[1] as *const c_void,
            dtype(b.dtype()),
            b.stride as i32,
            at[0] as *const c_void,
            dtype(a.dtype()),
            a.stride as i32,
            (&raw const beta).cast::<c_void>(),
            at[2] as *mut c_void,
            dtype(c.dtype()),
            c_stride as i32,
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| failed("a matrix product", format!("{e:?}")))
}
