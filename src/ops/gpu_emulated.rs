//! The kernels on a core of the CPU, in the emulator of `tests/cuda`, for machines without a GPU.

use super::{Kernel, Launch, Operand};
use crate::ops::cpu::{self, Dst, Matrix};
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

/// Runs a kernel by its name; not 0 where it knows none.
type Run = unsafe extern "C" fn(
    name: *const c_char,
    grid: *const u32,
    block: *const u32,
    shared_bytes: u32,
    args: *const *const c_void,
) -> c_int;

static RUN: OnceLock<Mutex<Run>> = OnceLock::new();

thread_local! {
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// From now on tensors on the CPU in f32 and bf16 go through the kernels of this library, which `tests/cuda` builds.
pub fn use_emulator(library: &Path) -> Result<()> {
    let wrong = |what: &str| Error::input(format!("{}: {what}", library.display()));
    let path =
        CString::new(library.as_os_str().as_encoded_bytes()).map_err(|_| wrong("no path"))?;
    // SAFETY: the library is the one that was just built, its initialisation does nothing, and the symbol has this type
    let run = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        if handle.is_null() {
            return Err(wrong("cannot be loaded"));
        }
        let symbol = libc::dlsym(handle, c"emulator_run".as_ptr());
        if symbol.is_null() {
            return Err(wrong("has no emulator_run"));
        }
        std::mem::transmute::<*mut c_void, Run>(symbol)
    };
    RUN.get_or_init(|| Mutex::new(run));
    Ok(())
}

/// What this thread computes inside goes the ways of the CPU.
pub fn pause<R>(work: impl FnOnce() -> R) -> R {
    let before = PAUSED.replace(true);
    let result = work();
    PAUSED.set(before);
    result
}

pub(super) fn is_on() -> bool {
    RUN.get().is_some() && !PAUSED.get()
}

pub(super) fn launch(kernel: Kernel, launch: Launch, words: &[u64]) -> Result<()> {
    let Kernel(module, name) = kernel;
    let Some(run) = RUN.get() else {
        return Err(Error::input("the emulator was not loaded"));
    };
    let (x, y, z) = launch.grid;
    let name_c = CString::new(name).map_err(|_| Error::input("a kernel's name holds a zero"))?;
    let args: Vec<*const c_void> = words
        .iter()
        .map(|word| std::ptr::from_ref(word).cast())
        .collect();
    let run = run
        .lock()
        .map_err(|_| Error::input("the emulator has failed"))?;
    // SAFETY: the arguments are those that the kernel's wrapper names, with memory that outlives the call
    let code = unsafe {
        run(
            name_c.as_ptr(),
            [x as u32, y as u32, z as u32].as_ptr(),
            [launch.threads as u32, 1, 1].as_ptr(),
            launch.shared_bytes as u32,
            args.as_ptr(),
        )
    };
    match code {
        0 => Ok(()),
        _ => Err(Error::input(format!(
            "the emulator has no kernel `{name}` of {module:?}"
        ))),
    }
}

/// As many as EMULATOR_SHARED_KIB says: 99 has a desktop card, without it 227 as a data centre's.
pub(super) fn shared_bytes_a_block() -> usize {
    let given = std::env::var("EMULATOR_SHARED_KIB").ok();
    1024 * given.and_then(|kib| kib.parse().ok()).unwrap_or(227)
}

pub(super) fn address(storage: &CpuStorage, start: usize) -> Result<u64> {
    Ok(match storage {
        CpuStorage::F32(v) => v[start..].as_ptr() as u64,
        CpuStorage::BF16(v) => v[start..].as_ptr() as u64,
        CpuStorage::F64(v) => v[start..].as_ptr() as u64,
        CpuStorage::U32(v) => v[start..].as_ptr() as u64,
        CpuStorage::I64(v) => v[start..].as_ptr() as u64,
        CpuStorage::U8(v) => v[start..].as_ptr() as u64,
        CpuStorage::I16(v) => v[start..].as_ptr() as u64,
        _ => return Err(Error::input("kernels do not read this dtype")),
    })
}

/// cuBLAS's part. The rows of an operand may lie further apart than they are long.
pub(super) fn gemm(
    (m, n, k): (usize, usize, usize),
    a: Operand,
    b: Operand,
    (c, c_stride): (&Tensor, usize),
    add: bool,
) -> Result<()> {
    let (a_values, b_values) = (values(&a)?, values(&b)?);
    let matrix = |values, operand: Operand| {
        let rows = Matrix::rows(values, operand.stride);
        match operand.transposed {
            true => rows.t(),
            false => rows,
        }
    };
    let into = if add { Dst::Add } else { Dst::Overwrite };
    let product = |dst: &mut [f32]| {
        cpu::gemm(
            (m, n, k),
            dst,
            c_stride,
            into,
            matrix(&a_values, a),
            matrix(&b_values, b),
            1.0,
            false,
        );
    };
    match c.dtype() {
        DType::F32 => {
            let (storage, layout) = c.storage_and_layout();
            let len = (m - 1) * c_stride + n;
            let Storage::Cpu(storage) = &*storage else {
                return Err(Error::input("a product outside the CPU"));
            };
            let at = address(storage, layout.start_offset())? as *mut f32;
            // SAFETY: c holds so many values, and nobody else looks at them during the call
            product(unsafe { std::slice::from_raw_parts_mut(at, len) });
            Ok(())
        }
        dtype => Err(Error::input(format!("a product into {dtype:?}"))),
    }
}

/// All values behind an operand from its first on, as f32.
fn values(operand: &Operand) -> Result<Vec<f32>> {
    let (storage, layout) = operand.tensor.storage_and_layout();
    let start = layout.start_offset();
    match (&*storage, operand.dtype()) {
        (Storage::Cpu(CpuStorage::F32(v)), DType::F32) => Ok(v[start..].to_vec()),
        (Storage::Cpu(CpuStorage::BF16(v)), DType::BF16) => {
            Ok(v[start..].iter().map(|v| v.to_f32()).collect())
        }
        (Storage::Cpu(CpuStorage::F32(v)), DType::BF16) => {
            let halves: &[half::bf16] = bytemuck::cast_slice(&v[start..]);
            Ok(halves.iter().map(|v| v.to_f32()).collect())
        }
        _ => Err(Error::input("a product of another dtype")),
    }
}
