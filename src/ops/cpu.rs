//! f32 and bf16 tensors in the memory of the CPU as slices, and the matrix product over them.
//!
//! The fast kernels start here: a tensor of another type, not contiguous or elsewhere gives `None`, and the caller takes the
//! plain form.

use super::element::Element;
use super::product;
use crate::Result;
use candle_core::{CpuStorage, InplaceOp1, Layout, Shape, Storage, Tensor};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Deref;

/// The values of a tensor, borrowed.
pub(super) struct Values<G, E> {
    storage: G,
    start: usize,
    end: usize,
    element: PhantomData<E>,
}

/// The values of `t` where it is of this type, contiguous and on the CPU.
pub(super) fn values<E: Element>(t: &Tensor) -> Option<impl Deref<Target = [E]>> {
    let (storage, layout) = t.storage_and_layout();
    let (start, end) = layout.contiguous_offsets()?;
    matches!(&*storage, Storage::Cpu(values) if E::slice(values).is_some()).then_some(Values {
        storage,
        start,
        end,
        element: PhantomData,
    })
}

impl<G: Deref<Target = Storage>, E: Element> Deref for Values<G, E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        let values = match &*self.storage {
            Storage::Cpu(values) => E::slice(values),
            _ => None,
        };
        // excluded where it is made: never empty
        values.map_or(&[], |values| &values[self.start..self.end])
    }
}

/// Whether two tensors are views of one storage: reading the one while writing the other would wait for itself.
pub(super) fn share_memory(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.storage_and_layout().0, b.storage_and_layout().0);
    std::ptr::eq(&*a, &*b)
}

/// Hands the values of `t` to `change`, which may write them; `false` where `t` is of another type, not contiguous or not on
/// the CPU.
///
/// No other tensor that shares the memory of `t` may be read inside.
pub(super) fn modify<E: Element>(t: &Tensor, change: impl FnMut(&mut [E])) -> Result<bool> {
    if !t.device().is_cpu() || t.dtype() != E::DTYPE || !t.is_contiguous() {
        return Ok(false);
    }
    t.inplace_op1(&Modify(RefCell::new(change), PhantomData))?;
    Ok(true)
}

struct Modify<F, E>(RefCell<F>, PhantomData<E>);

impl<E: Element, F: FnMut(&mut [E])> InplaceOp1 for Modify<F, E> {
    fn name(&self) -> &'static str {
        "modify"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (E::slice_mut(storage), layout.contiguous_offsets()) {
            (Some(values), Some((start, end))) => {
                (self.0.borrow_mut())(&mut values[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("modify: another type or not contiguous"),
        }
    }
}

/// A new tensor on the CPU.
pub(super) fn tensor<E: Element>(values: Vec<E>, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?)
}

/// A vector whose content nobody has written yet; large results are not cleared before they are written.
#[allow(clippy::uninit_vec)] // every user writes all of it before it is read
pub(super) fn unwritten<E: Element>(len: usize) -> Vec<E> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is there, no bits are invalid, and the kernels write every element before reading any
    unsafe { values.set_len(len) };
    values
}

/// One operand of a product: where it begins and how far rows and columns are apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, E> {
    pub data: &'a [E],
    pub row: usize,
    pub column: usize,
}

impl<'a, E> Matrix<'a, E> {
    /// Rows of `stride` values.
    pub(super) fn rows(data: &'a [E], stride: usize) -> Self {
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
/// depends on the sizes only. Unless all three are f32, both sides are rounded to bf16 and summed in f32.
#[allow(clippy::too_many_arguments)] // a matrix product has that many
pub(super) fn gemm<A: Element, B: Element, D: Element>(
    (m, n, k): (usize, usize, usize),
    dst: &mut [D],
    dst_row: usize,
    into: Dst,
    a: Matrix<A>,
    b: Matrix<B>,
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
pub(super) unsafe fn gemm_raw<A: Element, B: Element, D: Element>(
    (m, n, k): (usize, usize, usize),
    dst: *mut D,
    dst_row: usize,
    into: Dst,
    a: Matrix<A>,
    b: Matrix<B>,
    factor: f32,
    parallel: bool,
) {
    if !(A::IS_F32 && B::IS_F32 && D::IS_F32) {
        // SAFETY: passed on from the caller
        return unsafe { product::product((m, n, k), dst, dst_row, into, a, b, factor, parallel) };
    }
    let parallelism = match parallel {
        true => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        false => gemm::Parallelism::None,
    };
    // SAFETY: passed on from the caller; all three types are f32
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.cast::<f32>(),
            1,
            dst_row as isize,
            into == Dst::Add,
            a.data.as_ptr().cast::<f32>(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr().cast::<f32>(),
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
pub(super) struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: only used where the parts that threads write do not overlap
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer; a method, so that closures capture the whole of it.
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}
