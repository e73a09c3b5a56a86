//! The matrix product where a side or the result is bf16: both sides are rounded to bf16, products are summed in f32, and each
//! value of the result is rounded once.
//!
//! A block of columns of b is brought into the form that the kernel reads, once for all rows; tasks then take blocks of rows of
//! a. Blocks depend on sizes only, and each value is summed in order of k by one task: the result does not depend on the
//! number of threads. No whole copy of a weight ever exists in another form.
//!
//! Processors with AVX-512-BF16 have a kernel in [`super::dpbf16`]; elsewhere blocks are widened to f32 and go through `gemm`.

use super::cpu::{Dst, Matrix, Shared, gemm_raw, unwritten};
use super::element::Element;
use rayon::prelude::*;

/// Values of b that are in the form of the kernel at a time.
const BLOCK_B: usize = 1 << 22;
/// Rows of a task.
const BLOCK_M: usize = 384;

/// The size of equal parts of `n`, at most `most` each and in whole units.
pub(super) fn even_part(n: usize, most: usize, unit: usize) -> usize {
    let num_parts = n.div_ceil(most).max(1);
    n.div_ceil(num_parts).next_multiple_of(unit).max(unit)
}

/// Rows of a task and columns of a block of b.
pub(super) fn blocks(
    (m, n, k): (usize, usize, usize),
    unit: (usize, usize),
    parallel: bool,
) -> (usize, usize) {
    let columns = even_part(n, (BLOCK_B / k.max(1)).max(unit.1), unit.1);
    let rows = match parallel {
        // a few tasks a thread
        true => BLOCK_M.min(m.div_ceil(2 * rayon::current_num_threads())),
        false => BLOCK_M,
    };
    (even_part(m, rows.max(unit.0), unit.0), columns)
}

/// Runs `task` for each of the starts, all cores or one; each thread has a scratch of its own.
pub(super) fn for_each_start<S: Send>(
    len: usize,
    step: usize,
    parallel: bool,
    scratch: impl Fn() -> S + Sync + Send,
    task: impl Fn(&mut S, usize) + Sync + Send,
) {
    let num = len.div_ceil(step);
    match parallel && num > 1 {
        true => (0..num)
            .into_par_iter()
            .for_each_init(scratch, |scratch, i| task(scratch, i * step)),
        false => {
            let mut scratch = scratch();
            (0..num).for_each(|i| task(&mut scratch, i * step));
        }
    }
}

/// `dst (+)= factor * a b`; see [`super::cpu::gemm_raw`].
///
/// # Safety
/// As there.
#[allow(clippy::too_many_arguments)] // a matrix product has that many
pub(super) unsafe fn product<A: Element, B: Element, D: Element>(
    size: (usize, usize, usize),
    dst: *mut D,
    dst_row: usize,
    into: Dst,
    a: Matrix<A>,
    b: Matrix<B>,
    factor: f32,
    parallel: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if super::dpbf16::is_available()
        && [a.row, a.column].contains(&1)
        && [b.row, b.column].contains(&1)
    {
        // SAFETY: the features were found a line above; the rest is passed on from the caller
        return unsafe { super::dpbf16::product(size, dst, dst_row, into, a, b, factor, parallel) };
    }
    // SAFETY: passed on from the caller
    unsafe { widened(size, dst, dst_row, into, a, b, factor, parallel) }
}

/// [`product`] by blocks in f32.
///
/// # Safety
/// As there.
#[allow(clippy::too_many_arguments)] // as above
unsafe fn widened<A: Element, B: Element, D: Element>(
    (m, n, k): (usize, usize, usize),
    dst: *mut D,
    dst_row: usize,
    into: Dst,
    a: Matrix<A>,
    b: Matrix<B>,
    factor: f32,
    parallel: bool,
) {
    let dst = Shared(dst);
    let (rows, columns) = blocks((m, n, k), (1, 1), parallel);
    let rows = rows.min((BLOCK_B / 4 / k.max(1)).max(16));
    let mut wide_b: Vec<f32> = unwritten(k * columns.min(n));
    for column in (0..n).step_by(columns) {
        let columns = columns.min(n - column);
        let wide = &mut wide_b[..k * columns];
        if parallel {
            wide.par_chunks_mut(64 * columns)
                .enumerate()
                .for_each(|(i, wide)| widen(b, (64 * i, column), columns, wide));
        } else {
            widen(b, (0, column), columns, wide);
        }
        let wide = Matrix::rows(wide, columns);
        let scratch = || (unwritten::<f32>(rows * k), unwritten::<f32>(rows * columns));
        for_each_start(m, rows, parallel, scratch, |(wide_a, sums), row| {
            let rows = rows.min(m - row);
            widen(a, (row, 0), k, &mut wide_a[..rows * k]);
            // SAFETY: the three blocks are there, and rows and columns of the result are this task's alone
            unsafe {
                gemm_raw(
                    (rows, columns, k),
                    sums.as_mut_ptr(),
                    columns,
                    Dst::Overwrite,
                    Matrix::rows(&wide_a[..], k),
                    wide,
                    factor,
                    false,
                );
                for (i, sums) in sums.chunks_exact(columns).take(rows).enumerate() {
                    let to = dst.get().add((row + i) * dst_row + column);
                    narrow(sums, std::slice::from_raw_parts_mut(to, columns), into);
                }
            }
        });
    }
}

/// Rows of `width` values of `x` from row and column `first` on, rounded to bf16 and widened.
fn widen<E: Element>(x: Matrix<E>, first: (usize, usize), width: usize, to: &mut [f32]) {
    for (i, to) in to.chunks_exact_mut(width.max(1)).enumerate() {
        let at = (first.0 + i) * x.row + first.1 * x.column;
        for (j, to) in to.iter_mut().enumerate() {
            *to = half::bf16::of(x.data[at + j * x.column].wide()).wide();
        }
    }
}

fn narrow<D: Element>(sums: &[f32], to: &mut [D], into: Dst) {
    for (to, &sum) in to.iter_mut().zip(sums) {
        *to = D::of(match into {
            Dst::Overwrite => sum,
            Dst::Add => to.wide() + sum,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    type Product<A, B, D> =
        unsafe fn((usize, usize, usize), *mut D, usize, Dst, Matrix<A>, Matrix<B>, f32, bool);

    fn random<E: Element>(n: usize, seed: u32) -> Vec<E> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // bf16 holds it, whichever type it has
            E::of(bf16::of((state >> 8) as f32 / (1 << 23) as f32 - 1.0).wide())
        };
        (0..n).map(next).collect()
    }

    /// All transpositions, added and overwritten, one core and all, against sums in f64.
    fn check<A: Element, B: Element, D: Element>(what: &str, f: Product<A, B, D>) {
        // tiles are 12 x 32, k is taken in parts of 512, tasks are 384 rows at most
        let sizes = [
            (1, 1, 1),
            (12, 32, 2),
            (13, 33, 17),
            (11, 95, 3),
            (5, 7, 0),
            (30, 20, 1031),
            (900, 3, 5),
            (2, 700, 3001),
        ];
        for (m, n, k) in sizes {
            let (a, b) = (random::<A>(m * k, 1), random::<B>(k * n, 2));
            for case in 0..16 {
                let a = match case & 1 == 0 {
                    true => Matrix::rows(&a[..], k),
                    false => Matrix::rows(&a[..], m).t(),
                };
                let b = match case & 2 == 0 {
                    true => Matrix::rows(&b[..], n),
                    false => Matrix::rows(&b[..], k).t(),
                };
                let into = [Dst::Overwrite, Dst::Add][(case >> 2) & 1];
                // rows of the result are apart: what lies between stays
                let row = n + 5;
                let before = random::<D>(m * row, 3);
                let mut dst = before.clone();
                // SAFETY: all three operands hold these sizes
                unsafe {
                    f(
                        (m, n, k),
                        dst.as_mut_ptr(),
                        row,
                        into,
                        a,
                        b,
                        0.5,
                        case & 8 == 0,
                    )
                };
                let largest = 1.0 + (k as f64).sqrt();
                for (i, (got, before)) in dst.iter().zip(&before).enumerate() {
                    let (i, j) = (i / row, i % row);
                    let before = f64::from(before.wide());
                    let expected = if j >= n {
                        before
                    } else {
                        let at = |p: usize| {
                            let x = a.data[i * a.row + p * a.column].wide();
                            f64::from(x) * f64::from(b.data[p * b.row + j * b.column].wide())
                        };
                        let old = if into == Dst::Add { before } else { 0.0 };
                        old + 0.5 * (0..k).map(at).sum::<f64>()
                    };
                    let error = (f64::from(got.wide()) - expected).abs();
                    let fine = match D::IS_F32 {
                        true => 1e-6 * largest,
                        false => 4e-3 * expected.abs() + 1e-6 * largest,
                    };
                    assert!(
                        error <= fine,
                        "{what} {m} {n} {k} case {case} at {i} {j}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_in_all_orders() {
        check::<bf16, bf16, bf16>("bf16", product);
        check::<bf16, bf16, f32>("to f32", product);
        check::<f32, bf16, bf16>("from f32", product);
        check::<f32, bf16, f32>("from f32 to f32", product);
        check::<bf16, bf16, bf16>("widened", widened);
        check::<f32, bf16, f32>("widened from f32", widened);
    }

    #[test]
    fn infinities_and_nans_stay() {
        let (a, b) = ([bf16::INFINITY, bf16::ONE], [bf16::ONE, bf16::ZERO]);
        for f in [product::<bf16, bf16, bf16>, widened::<bf16, bf16, bf16>] {
            let mut y = [bf16::ZERO; 4];
            // SAFETY: 2 x 1, 1 x 2 and 2 x 2
            unsafe {
                f(
                    (2, 2, 1),
                    y.as_mut_ptr(),
                    2,
                    Dst::Overwrite,
                    Matrix::rows(&a[..], 1),
                    Matrix::rows(&b[..], 2),
                    1.0,
                    false,
                );
            }
            assert_eq!((y[0], y[2], y[3]), (bf16::INFINITY, bf16::ONE, bf16::ZERO));
            assert!(y[1].is_nan());
        }
    }
}
