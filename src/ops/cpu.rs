//! f32 tensors in the memory of the CPU as slices, and the matrix product over them.
//!
//! The fast kernels start here: a tensor that is not f32, contiguous and on the CPU gives `None`, and the caller takes the
//! plain form.

use crate::Result;
use candle_core::{CpuStorage, InplaceOp1, Layout, Shape, Storage, Tensor};
use std::cell::RefCell;
use std::ops::Deref;

/// The values of a tensor, borrowed.
pub(super) struct Values<G> {
    storage: G,
    start: usize,
    end: usize,
}

/// The values of `t` where it is f32, contiguous and on the CPU.
pub(super) fn values(t: &Tensor) -> Option<impl Deref<Target = [f32]>> {
    let (storage, layout) = t.storage_and_layout();
    let (start, end) = layout.contiguous_offsets()?;
    matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))).then_some(Values {
        storage,
        start,
        end,
    })
}

impl<G: Deref<Target = Storage>> Deref for Values<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            // excluded where it is made
            _ => &[],
        }
    }
}

/// Whether two tensors are views of one storage: reading the one while writing the other would wait for itself.
pub(super) fn share_memory(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.storage_and_layout().0, b.storage_and_layout().0);
    std::ptr::eq(&*a, &*b)
}

/// Hands the values of `t` to `change`, which may write them; `false` where `t` is not f32, contiguous and on the CPU.
///
/// No other tensor that shares the memory of `t` may be read inside.
pub(super) fn modify(t: &Tensor, change: impl FnMut(&mut [f32])) -> Result<bool> {
    if !t.device().is_cpu() || t.dtype() != candle_core::DType::F32 || !t.is_contiguous() {
        return Ok(false);
    }
    t.inplace_op1(&Modify(RefCell::new(change)))?;
    Ok(true)
}

struct Modify<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Modify<F> {
    fn name(&self) -> &'static str {
        "modify"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(values), Some((start, end))) => {
                (self.0.borrow_mut())(&mut values[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("modify: not f32 or not contiguous"),
        }
    }
}

/// A new tensor on the CPU.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?)
}

/// A vector whose content nobody has written yet; large results are not cleared before they are written.
#[allow(clippy::uninit_vec)] // every user writes all of it before it is read
pub(super) fn unwritten(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is there, f32 has no invalid bits, and the kernels write every element before reading any
    unsafe { values.set_len(len) };
    values
}

/// One operand of a product: where it begins and how far rows and columns are apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `stride` values.
    pub(super) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            row: stride,
            column: 1,
        }
    }

    /// Rows and columns exchanged.
    pub(super) fn t(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn fits(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// What becomes of the old content of the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dst {
    /// It is never read.
    Overwrite,
    /// The product is added to it.
    Add,
}

/// `dst (+)= factor * a b`, all cores or one. a: `m x k`, b: `k x n`, dst: rows of `dst_row` values. The order of sums
/// depends on the sizes only.
#[allow(clippy::too_many_arguments)] // a matrix product has that many
pub(super) fn gemm(
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    dst_row: usize,
    into: Dst,
    a: Matrix,
    b: Matrix,
    factor: f32,
    parallel: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        (m - 1) * dst_row + n <= dst.len() && a.fits(m, k) && b.fits(k, n),
        "a product outside its operands"
    );
    // SAFETY: all three operands were checked to lie inside their slices
    unsafe {
        gemm_raw(
            (m, n, k),
            dst.as_mut_ptr(),
            dst_row,
            into,
            a,
            b,
            factor,
            parallel,
        )
    }
}

/// [`gemm`] into memory that other threads write other parts of.
///
/// # Safety
/// `dst` must be valid for rows `0..m` of `dst_row` values, columns `0..n`, and nobody else may touch these; `a` and `b`
/// must hold `m x k` and `k x n`.
#[allow(clippy::too_many_arguments)] // as above
pub(super) unsafe fn gemm_raw(
    (m, n, k): (usize, usize, usize),
    dst: *mut f32,
    dst_row: usize,
    into: Dst,
    a: Matrix,
    b: Matrix,
    factor: f32,
    parallel: bool,
) {
    let parallelism = match parallel {
        true => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        false => gemm::Parallelism::None,
    };
    // SAFETY: passed on from the caller
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            dst_row as isize,
            into == Dst::Add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0f32,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A pointer that threads share because each writes a part of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub *mut f32);
// SAFETY: only used where the parts that threads write do not overlap
unsafe impl Send for Shared {}
// SAFETY: as above
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer; a method, so that closures capture the whole of it.
    pub(super) fn get(self) -> *mut f32 {
        self.0
    }
}
