//! Launches the kernels of the `.cu` files beside this one: on a CUDA device, or, where the feature `cuda-emulator` is on, in
//! the emulator of `tests/cuda` over tensors in the memory of the CPU, so that the code around the kernels is tested too.
//!
//! All work of a device is on one stream, in the order of the calls. Kernels write into tensors that were just made by
//! [`Gpu::empty`], or into those that an operation changes in place.

use crate::{Error, Result};
use candle_core::{DType, Device, Layout, Shape, Storage, Tensor, WithDType};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Where kernels run.
pub(super) struct Gpu(Device);

/// One argument of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Arg<'a> {
    /// The address of the first value.
    Tensor(&'a Tensor),
    /// Address 0: an argument that is left out.
    Nothing,
    U32(u32),
    /// C's `size_t`.
    Size(usize),
    F32(f32),
    F64(f64),
}

/// A kernel: the `.cu` file it stands in and its name.
pub(super) struct Kernel<'a>(pub Module, pub &'a str);

/// The `.cu` files.
#[derive(Clone, Copy, Debug)]
pub(super) enum Module {
    Rows,
    Head,
    Optim,
    Nf4,
    Ggml,
    Sample,
    Attention,
    Decode,
}

/// Blocks, threads a block, and bytes of shared memory beside the static ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub grid: (usize, usize, usize),
    pub threads: usize,
    pub shared_bytes: usize,
}

impl Launch {
    /// As many blocks of `threads` as cover `num`.
    pub(super) fn over(num: usize, threads: usize) -> Self {
        Self {
            grid: (num.div_ceil(threads), 1, 1),
            threads,
            shared_bytes: 0,
        }
    }
}

/// An operand of [`Gpu::gemm`]: rows `stride` values apart; `transposed` where its rows are the other's columns.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub tensor: &'a Tensor,
    pub stride: usize,
    pub transposed: bool,
    /// What the memory holds where that is not what the tensor says.
    pub dtype: Option<DType>,
}

impl<'a> Operand<'a> {
    pub(super) fn rows(tensor: &'a Tensor, stride: usize) -> Self {
        Self {
            tensor,
            stride,
            transposed: false,
            dtype: None,
        }
    }

    fn dtype(&self) -> DType {
        self.dtype.unwrap_or_else(|| self.tensor.dtype())
    }

    pub(super) fn t(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }
}

/// What kernels end their names with.
pub(super) fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

impl Gpu {
    /// The device of `t` where kernels run on it and know its dtype.
    pub(super) fn of(t: &Tensor) -> Option<Self> {
        let known = matches!(t.dtype(), DType::F32 | DType::BF16);
        (known && runs_kernels(t.device())).then(|| Self(t.device().clone()))
    }

    /// A device where kernels run.
    pub(super) fn on(device: &Device) -> Option<Self> {
        runs_kernels(device).then(|| Self(device.clone()))
    }

    /// A tensor whose values are for a kernel to write.
    pub(super) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        if self.0.is_cpu() {
            // what no kernel writes is seen
            return Ok(Tensor::full(f32::NAN, shape, &self.0)?.to_dtype(dtype)?);
        }
        // SAFETY: numbers without meaning, which a kernel overwrites before anybody reads them
        Ok(unsafe { Tensor::empty(shape, dtype, &self.0) }?)
    }

    /// Zeros.
    pub(super) fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, dtype, &self.0)?)
    }

    /// Values of the host on the device.
    pub(super) fn upload<T: WithDType>(&self, values: &[T]) -> Result<Tensor> {
        Ok(Tensor::new(values, &self.0)?)
    }

    /// The same of indices, which come again and again (the positions of a batch go to every layer): what was uploaded lately
    /// is not uploaded again. Nobody writes into it.
    pub(super) fn upload_indices(&self, values: &[u32]) -> Result<Tensor> {
        thread_local! {
            static LATELY: RefCell<VecDeque<(Vec<u32>, Tensor)>> = const { RefCell::new(VecDeque::new()) };
        }
        const NUM_KEPT: usize = 8;
        LATELY.with_borrow_mut(|lately| {
            let known = lately
                .iter()
                .find(|(v, t)| v == values && t.device().same_device(&self.0));
            if let Some((_, t)) = known {
                return Ok(t.clone());
            }
            let t = self.upload(values)?;
            if lately.len() == NUM_KEPT {
                lately.pop_front();
            }
            lately.push_back((values.to_vec(), t.clone()));
            Ok(t)
        })
    }

    /// The same of a table that never changes: it goes to each device once and stays there.
    pub(super) fn upload_once(&self, table: &'static [f32]) -> Result<Tensor> {
        static TABLES: Mutex<Vec<(&[f32], Tensor)>> = Mutex::new(Vec::new());
        // what a thread that failed left is whole: it is changed in one step
        let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tables
            .iter()
            .find(|(v, t)| std::ptr::eq(*v, table) && t.device().same_device(&self.0));
        if let Some((_, t)) = known {
            return Ok(t.clone());
        }
        let t = self.upload(table)?;
        tables.push((table, t.clone()));
        Ok(t)
    }

    /// Where the values of tensors begin, for a kernel that reads many of them; they have to outlive its work.
    pub(super) fn addresses(&self, tensors: &[Tensor]) -> Result<Tensor> {
        let address = |t: &Tensor| {
            let (storage, layout) = t.storage_and_layout();
            Ok(self.address(&storage, layout)? as i64)
        };
        let addresses: Vec<i64> = tensors.iter().map(address).collect::<Result<_>>()?;
        self.upload(&addresses)
    }

    /// Whether `t` lies as kernels take it: row by row, beginning at a multiple of 16 bytes.
    pub(super) fn is_readable(&self, t: &Tensor) -> bool {
        let start = t.layout().start_offset() * t.dtype().size_in_bytes();
        t.is_contiguous() && start.is_multiple_of(16)
    }

    /// `t` as kernels take it.
    pub(super) fn readable(&self, t: &Tensor) -> Result<Tensor> {
        Ok(match self.is_readable(t) {
            true => t.clone(),
            false => t.force_contiguous()?,
        })
    }

    /// Shared memory that a block may ask for.
    pub(super) fn shared_bytes_a_block(&self) -> Result<usize> {
        match &self.0 {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::shared_bytes_a_block(device),
            #[cfg(feature = "cuda-emulator")]
            Device::Cpu => Ok(emulated::shared_bytes_a_block()),
            _ => Ok(usize::MAX),
        }
    }

    /// Runs `kernel`.
    pub(super) fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<()> {
        let (x, y, z) = launch.grid;
        if x * y * z == 0 {
            return Ok(());
        }
        // 227 KiB are the most that a block gets on today's devices
        let fits = launch.threads <= 1024 && launch.shared_bytes <= 227 * 1024;
        if !fits || x > i32::MAX as usize || y > 65_535 || z > 65_535 {
            return Err(Error::input(format!(
                "`{}` of {:?} as {launch:?}: more than a device takes",
                kernel.1, kernel.0
            )));
        }
        let held: Vec<_> = args
            .iter()
            .map(|arg| match arg {
                Arg::Tensor(t) => Some(t.storage_and_layout()),
                _ => None,
            })
            .collect();
        // each as the 8 bytes that the kernel's parameter begins with
        let words: Vec<u64> = args
            .iter()
            .zip(&held)
            .map(|(arg, held)| {
                Ok(match (arg, held) {
                    (_, Some((storage, layout))) => self.address(storage, layout)?,
                    (Arg::U32(v), _) => u64::from(*v),
                    (Arg::Size(v), _) => *v as u64,
                    (Arg::F32(v), _) => u64::from(v.to_bits()),
                    (Arg::F64(v), _) => v.to_bits(),
                    (Arg::Tensor(_) | Arg::Nothing, _) => 0,
                })
            })
            .collect::<Result<_>>()?;
        match &self.0 {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::launch(device, kernel, launch, &words),
            #[cfg(feature = "cuda-emulator")]
            _ => emulated::launch(kernel, launch, &words),
            #[cfg(not(feature = "cuda-emulator"))]
            _ => Err(Error::input(format!(
                "`{}` runs on CUDA only, not with {words:?}",
                kernel.1
            ))),
        }
    }

    /// The address of the first value of a contiguous tensor.
    #[cfg(feature = "cuda")]
    pub(super) fn address_of(&self, t: &Tensor) -> Result<u64> {
        let (storage, layout) = t.storage_and_layout();
        self.address(&storage, layout)
    }

    /// The same of what it is made of.
    fn address(&self, storage: &Storage, layout: &Layout) -> Result<u64> {
        let (start, _) = layout
            .contiguous_offsets()
            .ok_or_else(|| Error::input("a tensor for a kernel is not contiguous"))?;
        match (&self.0, storage) {
            #[cfg(feature = "cuda")]
            (Device::Cuda(device), Storage::Cuda(storage)) => cuda::address(device, storage, start),
            #[cfg(feature = "cuda-emulator")]
            (_, Storage::Cpu(storage)) => emulated::address(storage, start),
            _ => Err(Error::input(format!(
                "a tensor for a kernel, from {start} on, is on another device"
            ))),
        }
    }

    /// `c = a b`, or `c += a b` with `add`; c `[m, n]`, rows of c `c_stride` apart. a and b are of one dtype, sums in f32.
    pub(super) fn gemm(
        &self,
        (m, n, k): (usize, usize, usize),
        a: Operand,
        b: Operand,
        c: (&Tensor, usize),
        add: bool,
    ) -> Result<()> {
        if k == 0 {
            return Err(Error::input("a product over no tokens"));
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        match &self.0 {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let at = [a.tensor, b.tensor, c.0].map(|t| self.address_of(t));
                let [a_at, b_at, c_at] = at;
                let at = [a_at?, b_at?, c_at?];
                cuda::gemm(device, (m, n, k), a, b, c, at, add)
            }
            #[cfg(feature = "cuda-emulator")]
            _ => emulated::gemm((m, n, k), a, b, c, add),
            #[cfg(not(feature = "cuda-emulator"))]
            _ => {
                let _ = (a.stride, a.transposed, a.dtype(), b.tensor, c, add);
                Err(Error::input("a product of kernels runs on CUDA only"))
            }
        }
    }
}

pub(super) fn runs_kernels(device: &Device) -> bool {
    #[cfg(feature = "cuda-emulator")]
    if device.is_cpu() {
        return emulated::is_on();
    }
    cfg!(feature = "cuda") && device.is_cuda()
}

#[cfg(feature = "cuda")]
#[path = "gpu_cuda.rs"]
mod cuda;
#[cfg(feature = "cuda-emulator")]
#[path = "gpu_emulated.rs"]
mod emulated;
#[cfg(feature = "cuda-emulator")]
pub use emulated::{pause as pause_emulator, use_emulator};
