//! The product of [`super::product`] with the instructions of AVX-512-BF16, which multiply pairs of bf16 and add both products
//! to a sum in f32. They take numbers below the smallest normal one as 0.
//!
//! Both sides are packed: panels of [`MR`] rows of a and [`NR`] columns of b, `[panel][pair of k][row or column]`, a pair in 32
//! bits, zeros outside. A tile of the result is then a sum over pairs of k, one pair of each row of a in all lanes against two
//! registers of pairs of b.

use super::cpu::{Dst, Matrix, Shared, unwritten};
use super::element::Element;
use super::product::{blocks, even_part, for_each_start};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Rows of a tile of the result.
const MR: usize = 12;
/// Columns of a tile of the result: two registers.
const NR: usize = 32;
/// Values of k of which panels stay in the second cache.
const BLOCK_K: usize = 512;
/// Rows of k that are packed together where k is not the order in memory: few enough for the first cache.
const STRIP: usize = 8;
/// What a register holds.
const LANES: usize = 16;

/// Whether [`product`] can be called.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// Rows of x on their side, `[row / 16, pair of inputs, row % 16]`, two bf16 in the bits of each value; zeros where there is
/// nothing. [`is_available`] must hold, and x be bf16.
pub(super) fn turned_pairs<E: Element>(x: &[E], num_in: usize) -> Vec<f32> {
    assert!(is_available() && !E::IS_F32);
    let num_rows = x.len() / num_in;
    let len = num_rows.next_multiple_of(LANES) * num_in.div_ceil(2);
    let mut sides = unwritten::<f32>(len);
    // SAFETY: the features were found above, and rows and room for panels of LANES rows are there
    unsafe {
        let to = sides.as_mut_ptr().cast();
        pack::<LANES, E>(x.as_ptr(), (num_in, 1), (num_rows, num_in), to);
    }
    sides
}

/// `dst (+)= factor * a b`; see [`super::product::product`].
///
/// # Safety
/// As there; [`is_available`], and rows or columns of a and b must be next to each other.
#[allow(clippy::too_many_arguments)] // a matrix product has that many
pub(super) unsafe fn product<A: Element, B: Element, D: Element>(
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
    let (rows, columns) = blocks((m, n, k), (MR, NR), parallel);
    let depth = even_part(k, BLOCK_K, 2);
    // one part of nothing where k is 0: the result is still written
    let parts = || {
        (0..k.max(1))
            .step_by(depth)
            .map(move |p| (p, depth.min(k - p)))
    };
    let num_pairs: usize = parts().map(|(_, depth)| depth.div_ceil(2)).sum();
    let mut panels: Vec<u32> = Vec::with_capacity(num_pairs * columns);
    let panels = Shared(panels.as_mut_ptr());
    for column in (0..n).step_by(columns) {
        let columns = columns.min(n - column);
        let num_panels = columns.div_ceil(NR);
        // several panels a task, [part of k][panel]
        for_each_start(
            num_panels,
            4,
            parallel,
            || (),
            |(), first| {
                let last = num_panels.min(first + 4);
                let width = columns.min(last * NR) - first * NR;
                let mut place = 0;
                for (p, depth) in parts() {
                    let pairs = depth.div_ceil(2);
                    let from = b
                        .data
                        .as_ptr()
                        .wrapping_add((column + first * NR) * b.column + p * b.row);
                    // SAFETY: these columns are inside b, and these panels are this task's alone
                    unsafe {
                        let to = panels.get().add(place + first * NR * pairs);
                        pack::<NR, B>(from, (b.column, b.row), (width, depth), to);
                    }
                    place += pairs * num_panels * NR;
                }
            },
        );
        // values of a, and sums where they are not kept in the result
        let scratch = || (Vec::<u32>::new(), Vec::<f32>::new());
        for_each_start(m, rows, parallel, scratch, |(packed, sums), row| {
            let rows = rows.min(m - row);
            packed.reserve(rows.next_multiple_of(MR) * depth.div_ceil(2) + LANES);
            let in_parts = !D::IS_F32 && k > depth;
            if in_parts {
                sums.reserve(rows * columns);
            }
            let mut place = 0;
            for (p, depth) in parts() {
                let pairs = depth.div_ceil(2);
                let from = a.data.as_ptr().wrapping_add(row * a.row + p * a.column);
                // SAFETY: room was reserved, these rows and columns are inside a and dst, and those of dst are this task's
                // alone
                unsafe {
                    pack::<MR, A>(from, (a.row, a.column), (rows, depth), packed.as_mut_ptr());
                    for j in (0..columns).step_by(NR) {
                        let b = panels.get().add(place + j * pairs).cast_const();
                        let to = dst.get().add(row * dst_row + column + j);
                        let part = (packed.as_ptr(), b, pairs);
                        let size = (rows, columns - j);
                        if in_parts {
                            let sums = sums.as_mut_ptr().add(j);
                            column_of_tiles(part, size, factor, p > 0, sums, columns);
                        } else {
                            let add = p > 0 || into == Dst::Add;
                            column_of_tiles(part, size, factor, add, to, dst_row);
                        }
                    }
                }
                place += pairs * num_panels * NR;
            }
            if in_parts {
                // SAFETY: as above, and all sums were written
                unsafe {
                    let to = dst.get().add(row * dst_row + column);
                    store_sums(
                        sums.as_ptr(),
                        (rows, columns),
                        to,
                        dst_row,
                        into == Dst::Add,
                    );
                }
            }
        });
    }
}

fn first_lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// `count` values from `from` on as bf16, 32 at most; zeros after them.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn load<E: Element>(from: *const E, count: usize) -> __m512i {
    // SAFETY: no more than `count` values are read
    unsafe {
        if E::IS_F32 {
            let from = from.cast::<f32>();
            let low = _mm512_maskz_loadu_ps(first_lanes(count), from);
            let more = first_lanes(count.saturating_sub(LANES));
            let high = _mm512_maskz_loadu_ps(more, from.wrapping_add(LANES));
            transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        } else if count >= 2 * LANES {
            _mm512_loadu_si512(from.cast())
        } else {
            _mm512_maskz_loadu_epi16((1 << count) - 1, from.cast())
        }
    }
}

/// `count` values from `from` on as bf16 in the low half of each lane, 16 at most; zeros after them.
///
/// # Safety
/// As above.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn load_apart<E: Element>(from: *const E, count: usize) -> __m512i {
    // SAFETY: no more than `count` values are read
    let bits = unsafe {
        if E::IS_F32 {
            let values = _mm512_maskz_loadu_ps(first_lanes(count), from.cast());
            transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values))
        } else {
            _mm256_maskz_loadu_epi16(first_lanes(count), from.cast())
        }
    };
    _mm512_cvtepu16_epi32(bits)
}

/// Writes the first `count` lanes, 16 at most, or adds them to what is there.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn store<E: Element>(to: *mut E, count: usize, values: __m512, add: bool) {
    let lanes = first_lanes(count);
    // SAFETY: no more than `count` values are touched
    unsafe {
        if E::IS_F32 {
            let to = to.cast::<f32>();
            let sum = match add {
                true => _mm512_add_ps(values, _mm512_maskz_loadu_ps(lanes, to)),
                false => values,
            };
            _mm512_mask_storeu_ps(to, lanes, sum);
        } else {
            let sum = match add {
                true => {
                    let old = _mm512_slli_epi32::<16>(load_apart(to.cast_const(), count));
                    _mm512_add_ps(values, _mm512_castsi512_ps(old))
                }
                false => values,
            };
            let bits = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sum));
            _mm256_mask_storeu_epi16(to.cast(), lanes, bits);
        }
    }
}

/// Sixteen registers of sixteen 32-bit values, turned.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let mut pairs = [zero; 16];
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut quads = [zero; 16];
    for i in (0..16).step_by(4) {
        for half in 0..2 {
            let (a, b) = (pairs[i + half], pairs[i + half + 2]);
            quads[i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            quads[i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    let mut columns = [zero; 16];
    for j in 0..4 {
        let even_top = _mm512_shuffle_i32x4::<0x88>(quads[j], quads[4 + j]);
        let even_low = _mm512_shuffle_i32x4::<0x88>(quads[8 + j], quads[12 + j]);
        let odd_top = _mm512_shuffle_i32x4::<0xdd>(quads[j], quads[4 + j]);
        let odd_low = _mm512_shuffle_i32x4::<0xdd>(quads[8 + j], quads[12 + j]);
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even_top, even_low);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_top, odd_low);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_top, even_low);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_top, odd_low);
    }
    columns
}

/// Panels of W rows of `num_rows` rows of k values, `stride` apart: `[panel][pair of k][W]`, zeros outside.
///
/// # Safety
/// The values must be there, and `to` have room for whole panels and LANES more. One of the strides must be 1.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack<const W: usize, E: Element>(
    from: *const E,
    (row, column): (usize, usize),
    (num_rows, k): (usize, usize),
    to: *mut u32,
) {
    let num_pairs = k.div_ceil(2);
    let strip = if column == 1 { k } else { STRIP };
    for start in (0..k).step_by(strip.max(1)) {
        let k = strip.min(k - start);
        for first in (0..num_rows).step_by(W) {
            for part in (0..W).step_by(LANES) {
                let height = num_rows
                    .saturating_sub(first + part)
                    .min(W - part)
                    .min(LANES);
                let from = from.wrapping_add((first + part) * row + start * column);
                // SAFETY: inside what the caller has
                unsafe {
                    let to = to.add(first * num_pairs + start / 2 * W + part);
                    if column == 1 {
                        pack_along::<W, E>(from, row, height, k, to);
                    } else {
                        pack_across::<W, E>(from, column, height, k, to);
                    }
                }
            }
        }
    }
}

/// LANES rows at most of k values in a row each.
///
/// Where W is less than LANES each store runs over into the next pair or panel, which is written after it.
///
/// # Safety
/// As [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_along<const W: usize, E: Element>(
    from: *const E,
    row: usize,
    height: usize,
    k: usize,
    to: *mut u32,
) {
    for start in (0..k).step_by(2 * LANES) {
        let count = (k - start).min(2 * LANES);
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (r, values) in rows.iter_mut().enumerate().take(height) {
            // SAFETY: r < height, and count values are left
            *values = unsafe { load(from.add(r * row + start), count) };
        }
        let pairs = transpose(rows).into_iter().take(count.div_ceil(2));
        for (i, pair) in pairs.enumerate() {
            // SAFETY: a pair of this panel, and room after the last one
            unsafe { _mm512_storeu_si512(to.add((start / 2 + i) * W).cast(), pair) };
        }
    }
}

/// The same where the values of one k are in a row.
///
/// # Safety
/// As [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_across<const W: usize, E: Element>(
    from: *const E,
    column: usize,
    height: usize,
    k: usize,
    to: *mut u32,
) {
    for pair in 0..k.div_ceil(2) {
        // SAFETY: both rows are checked to be there, and so is the pair
        unsafe {
            let at = from.wrapping_add(2 * pair * column);
            let mut values = load_apart(at, height);
            if 2 * pair + 1 < k {
                let second = load_apart(at.wrapping_add(column), height);
                values = _mm512_or_si512(values, _mm512_slli_epi32::<16>(second));
            }
            _mm512_mask_storeu_epi32(to.add(pair * W).cast(), first_lanes(W), values);
        }
    }
}

/// The tiles of all rows of a packed block of a and one panel of b. `size`: rows, and columns from here on.
///
/// # Safety
/// Both must hold that many pairs, and `to` these rows of `to_row` values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn column_of_tiles<D: Element>(
    (a, b, pairs): (*const u32, *const u32, usize),
    (num_rows, num_columns): (usize, usize),
    factor: f32,
    add: bool,
    to: *mut D,
    to_row: usize,
) {
    let factor = _mm512_set1_ps(factor);
    for row in (0..num_rows).step_by(MR) {
        // SAFETY: a whole panel, padded where rows end
        let sums = unsafe { tile(a.add(row * pairs), b, pairs) };
        for (r, sums) in sums.iter().enumerate().take(num_rows - row) {
            for (half, &sums) in sums.iter().enumerate() {
                let count = num_columns.saturating_sub(half * LANES).min(LANES);
                if count > 0 {
                    // SAFETY: inside the rows and columns
                    unsafe {
                        let to = to.add((row + r) * to_row + half * LANES);
                        store(to, count, _mm512_mul_ps(sums, factor), add);
                    }
                }
            }
        }
    }
}

/// The sums of one tile.
///
/// # Safety
/// Both panels must hold that many pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn tile(mut a: *const u32, mut b: *const u32, pairs: usize) -> [[__m512; 2]; MR] {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    for _ in 0..pairs {
        // SAFETY: a pair of each row and column is left; prefetching past the end does nothing
        unsafe {
            let columns = [b, b.add(LANES)]
                .map(|b| transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast())));
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(8 * NR).cast());
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(8 * NR + LANES).cast());
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(r) as i32));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, row, column);
                }
            }
            a = a.add(MR);
            b = b.add(NR);
        }
    }
    sums
}

/// Rounds sums into the result.
///
/// # Safety
/// Rows of as many sums as columns, and rows of `to_row` values, must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn store_sums<D: Element>(
    sums: *const f32,
    (rows, columns): (usize, usize),
    to: *mut D,
    to_row: usize,
    add: bool,
) {
    for row in 0..rows {
        for column in (0..columns).step_by(LANES) {
            let count = LANES.min(columns - column);
            // SAFETY: inside both
            unsafe {
                let sums = sums.add(row * columns + column);
                let sums = _mm512_maskz_loadu_ps(first_lanes(count), sums);
                store(to.add(row * to_row + column), count, sums, add);
            }
        }
    }
}
