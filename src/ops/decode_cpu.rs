//! The CPU kernels of decoding, f32 or bf16 with sums in f32: one token a sequence, up to a few dozen sequences.
//!
//! Such a step reads every weight once and does little with it, so the kernels are laid out to read weights in order and
//! only once. A row's sums are made in the same order whatever the other rows are: the result is the same, bit for bit, in
//! every batch. Attention over the cache is in `decode_attention_cpu`.
//!
//! Pairs: processors with AVX-512-BF16 take two inputs at a time in bf16, in the same order for every row.
//!
//! Letters: B rows (sequences, or tokens of a prompt), I inputs, O outputs.

use rayon::prelude::*;

use super::cpu::{Shared, unwritten};
use super::element::Element;
use super::vector::{LANES, vectorised};

/// Rows of weights that are worked on together: as many independent sums as hide the latency of one.
const TILE: usize = 8;
/// Groups of LANES rows of x whose values stay in the second cache while the weights pass by.
const BLOCK_GROUPS: usize = 8;

/// A weight `[O, I]` and its bias `[O]`.
#[derive(Clone, Copy)]
pub(super) struct Projection<'a, E> {
    pub w: &'a [E],
    pub bias: Option<&'a [E]>,
}

/// Outputs `from..to` of one of the weights.
struct Task {
    weight: usize,
    from: usize,
    to: usize,
}

/// `y = x w^T + b` for each of `weights`, in one parallel region. x: `[B, I]` -> `[B, O]` each.
///
/// LANES rows of x are turned on their side, `[I, LANES]`: each weight is then multiplied into all of them at once, and
/// no sum has to be gathered from the lanes of a register. Each sum is made in order of I, whatever B is.
pub(super) fn linears<E: Element, Y: Element>(
    x: &[E],
    weights: &[Projection<E>],
    num_in: usize,
) -> Vec<Vec<Y>> {
    let num_rows = x.len() / num_in;
    let Sides { sides, depth } = Sides::of(x, num_in);
    let num_outs: Vec<usize> = weights.iter().map(|p| p.w.len() / num_in).collect();
    let mut ys: Vec<Vec<Y>> = num_outs.iter().map(|o| unwritten(num_rows * o)).collect();
    let outs: Vec<Shared<Y>> = ys.iter_mut().map(|y| Shared(y.as_mut_ptr())).collect();
    // a few tasks a thread, of whole tiles
    let per_task = num_outs
        .iter()
        .sum::<usize>()
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(TILE)
        .max(4 * TILE);
    let mut tasks = Vec::new();
    for (weight, &num_out) in num_outs.iter().enumerate() {
        for from in (0..num_out).step_by(per_task) {
            let to = num_out.min(from + per_task);
            tasks.push(Task { weight, from, to });
        }
    }
    let work = |task: &Task| {
        let Projection { w, bias } = weights[task.weight];
        let num_out = num_outs[task.weight];
        let y = outs[task.weight].get();
        let write = |sums: &[[f32; LANES]], group: usize, o: usize| {
            for lane in 0..LANES.min(num_rows - group * LANES) {
                for (r, sums) in sums.iter().enumerate() {
                    let value = sums[lane] + bias.map_or(0.0, |bias| bias[o + r].wide());
                    // SAFETY: row < B and o + r < O; these outputs belong to this task only
                    unsafe { *y.add((group * LANES + lane) * num_out + o + r) = Y::of(value) };
                }
            }
        };
        for (block, sides) in sides.chunks(BLOCK_GROUPS * depth * LANES).enumerate() {
            let mut o = task.from;
            while o < task.to {
                let height = if o + TILE <= task.to { TILE } else { 1 };
                let tile = &w[o * num_in..(o + height) * num_in];
                for (pair, sides) in sides.chunks(2 * depth * LANES).enumerate() {
                    let group = block * BLOCK_GROUPS + 2 * pair;
                    let mut sums = [[[0.0; LANES]; TILE]; 2];
                    tile_sums(sides, depth, tile, num_in, &mut sums);
                    for (i, sums) in sums.iter().take(sides.len() / (depth * LANES)).enumerate() {
                        write(&sums[..height], group + i, o);
                    }
                }
                o += height;
            }
        }
    };
    match tasks.as_slice() {
        [task] => work(task),
        tasks => tasks.par_iter().for_each(work),
    }
    ys
}

/// Rows of x on their side: a lane holds one input of a row in f32, or the bits of two in bf16.
struct Sides {
    /// `[B / LANES, depth, LANES]`
    sides: Vec<f32>,
    /// I, or the number of pairs.
    depth: usize,
}

/// Whether inputs are taken in pairs.
fn in_pairs<E: Element>() -> bool {
    #[cfg(target_arch = "x86_64")]
    if !E::IS_F32 && super::dpbf16::is_available() {
        return true;
    }
    false
}

impl Sides {
    fn of<E: Element>(x: &[E], num_in: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if in_pairs::<E>() {
            let sides = super::dpbf16::turned_pairs(x, num_in);
            let depth = num_in.div_ceil(2);
            return Self { sides, depth };
        }
        let wide: Vec<f32>;
        let x = match E::IS_F32 {
            true => bytemuck::cast_slice(x),
            false => {
                wide = x.iter().map(|x| x.wide()).collect();
                &wide
            }
        };
        Self {
            sides: on_their_side(x, num_in),
            depth: num_in,
        }
    }
}

/// x `[B, I]` -> `[B / LANES, I, LANES]`, zeros where there are no rows.
fn on_their_side(x: &[f32], num_in: usize) -> Vec<f32> {
    let num_groups = (x.len() / num_in).div_ceil(LANES);
    let mut sides = unwritten(num_groups * num_in * LANES);
    let none = vec![0.0; num_in];
    let groups = x.chunks(num_in * LANES);
    for (side, x) in sides.chunks_exact_mut(num_in * LANES).zip(groups) {
        let mut rows = [none.as_slice(); LANES];
        for (row, x) in rows.iter_mut().zip(x.chunks_exact(num_in)) {
            *row = x;
        }
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if super::vector::has_avx512() {
            done = num_in / LANES * LANES;
            for start in (0..done).step_by(LANES) {
                let square = rows.map(|row| row[start..].as_ptr());
                let to = side[start * LANES..][..LANES * LANES].as_mut_ptr();
                // SAFETY: the features were found, and LANES values of each row and a square of the side are there
                unsafe { transpose_avx512(square, to) };
            }
        }
        for i in done..num_in {
            for (lane, row) in rows.iter().enumerate() {
                side[i * LANES + lane] = row[i];
            }
        }
    }
    sides
}

/// LANES values of each row, turned: `to[i][lane] = rows[lane][i]`.
///
/// # Safety
/// Every row must hold LANES values, `to` LANES times as many.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(rows: [*const f32; LANES], to: *mut f32) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's
    let rows = rows.map(|row| unsafe { _mm512_loadu_ps(row) });
    let zero = _mm512_setzero_ps();
    // each quarter of a register: four columns of a pair of rows, then one column of four rows
    let mut pairs = [zero; LANES];
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let mut quads = [zero; LANES];
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let a = _mm512_castps_pd(pairs[i + half]);
            let b = _mm512_castps_pd(pairs[i + half + 2]);
            quads[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            quads[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // quarter b of quads[4 i + j] is column 4 b + j of rows 4 i to 4 i + 3
    for j in 0..4 {
        let even_top = _mm512_shuffle_f32x4::<0x88>(quads[j], quads[4 + j]);
        let even_low = _mm512_shuffle_f32x4::<0x88>(quads[8 + j], quads[12 + j]);
        let odd_top = _mm512_shuffle_f32x4::<0xdd>(quads[j], quads[4 + j]);
        let odd_low = _mm512_shuffle_f32x4::<0xdd>(quads[8 + j], quads[12 + j]);
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(even_top, even_low),
            _mm512_shuffle_f32x4::<0x88>(odd_top, odd_low),
            _mm512_shuffle_f32x4::<0xdd>(even_top, even_low),
            _mm512_shuffle_f32x4::<0xdd>(odd_top, odd_low),
        ];
        for (b, column) in columns.into_iter().enumerate() {
            // SAFETY: 4 b + j < LANES
            unsafe { _mm512_storeu_ps(to.add((4 * b + j) * LANES), column) };
        }
    }
}

/// `sums[g][r][lane] = sum_i side[g][i][lane] * w[r][i]` of one or two groups and one or TILE rows, each sum in order of i.
fn tile_sums<E: Element>(
    sides: &[f32],
    depth: usize,
    w: &[E],
    num_in: usize,
    sums: &mut [[[f32; LANES]; TILE]; 2],
) {
    let [first, second] = &mut *sums;
    let (two, whole) = (sides.len() == 2 * depth * LANES, w.len() == TILE * num_in);
    #[cfg(target_arch = "x86_64")]
    if in_pairs::<E>() {
        // SAFETY: the features were found a line above
        return unsafe {
            match (two, whole) {
                (true, true) => tile_sums_pairs::<E, 2, TILE>(sides, w, [first, second]),
                (true, false) => tile_sums_pairs::<E, 2, 1>(sides, w, [first, second]),
                (false, true) => tile_sums_pairs::<E, 1, TILE>(sides, w, [first]),
                (false, false) => tile_sums_pairs::<E, 1, 1>(sides, w, [first]),
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    if E::IS_F32 && whole && super::vector::has_avx512() {
        let w = bytemuck::cast_slice(w);
        // SAFETY: the features were found a line above
        return unsafe {
            match two {
                true => tile_sums_avx512(sides, w, [first, second]),
                false => tile_sums_avx512(sides, w, [first]),
            }
        };
    }
    for (side, sums) in sides.chunks_exact(num_in * LANES).zip(sums) {
        for (w, sums) in w.chunks_exact(num_in).zip(sums) {
            row_sums(side, w, sums);
        }
    }
}

/// [`tile_sums`] of HEIGHT rows of bf16 in pairs.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn tile_sums_pairs<E: Element, const GROUPS: usize, const HEIGHT: usize>(
    sides: &[f32],
    w: &[E],
    sums: [&mut [[f32; LANES]; TILE]; GROUPS],
) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    let num_in = w.len() / HEIGHT;
    let depth = num_in.div_ceil(2);
    let fits = sides.len() == GROUPS * depth * LANES && w.len() == num_in * HEIGHT;
    assert!(fits && !E::IS_F32);
    let (sides, w) = (sides.as_ptr(), w.as_ptr().cast::<u16>());
    let mut acc = [[_mm512_setzero_ps(); HEIGHT]; GROUPS];
    let mut add = |i: usize, pairs: [i32; HEIGHT]| {
        for (g, acc) in acc.iter_mut().enumerate() {
            // SAFETY: i < depth, and the length was asserted
            let x = unsafe { _mm512_loadu_si512(sides.add((g * depth + i) * LANES).cast()) };
            for (acc, pair) in acc.iter_mut().zip(pairs) {
                // SAFETY: the same bits as pairs of bf16
                *acc = unsafe {
                    let pair = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair));
                    _mm512_dpbf16_ps(*acc, transmute::<__m512i, __m512bh>(x), pair)
                };
            }
        }
    };
    let whole = num_in / 2;
    for start in (0..whole).step_by(LANES) {
        for r in 0..HEIGHT {
            // one cache line of each row of the next tile; past the end nothing happens
            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add((HEIGHT + r) * num_in + 2 * start).cast());
        }
        for i in start..whole.min(start + LANES) {
            // SAFETY: r < HEIGHT and 2 i + 1 < I
            let pair = |r| unsafe { w.add(r * num_in + 2 * i).cast::<i32>().read_unaligned() };
            add(i, std::array::from_fn(pair));
        }
    }
    if whole < depth {
        // SAFETY: r < HEIGHT, and the last value of a row
        let last = |r| unsafe { i32::from(*w.add(r * num_in + num_in - 1)) };
        add(whole, std::array::from_fn(last));
    }
    for (sums, acc) in sums.into_iter().zip(acc) {
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: LANES values
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn tile_sums_avx512<const GROUPS: usize>(
    sides: &[f32],
    w: &[f32],
    sums: [&mut [[f32; LANES]; TILE]; GROUPS],
) {
    use std::arch::x86_64::*;
    let num_in = w.len() / TILE;
    assert!(sides.len() == GROUPS * num_in * LANES && w.len() == num_in * TILE);
    let (sides, w) = (sides.as_ptr(), w.as_ptr());
    let mut acc = [[_mm512_setzero_ps(); TILE]; GROUPS];
    for start in (0..num_in).step_by(LANES) {
        for r in 0..TILE {
            // one cache line of each row of the next tile; past the end nothing happens
            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add((TILE + r) * num_in + start).cast());
        }
        for i in start..num_in.min(start + LANES) {
            let mut x = [_mm512_setzero_ps(); GROUPS];
            for (g, x) in x.iter_mut().enumerate() {
                // SAFETY: i < I, and the length was asserted
                *x = unsafe { _mm512_loadu_ps(sides.add((g * num_in + i) * LANES)) };
            }
            for r in 0..TILE {
                // SAFETY: r < TILE and i < I
                let w = unsafe { _mm512_set1_ps(*w.add(r * num_in + i)) };
                for (acc, x) in acc.iter_mut().zip(x) {
                    acc[r] = _mm512_fmadd_ps(x, w, acc[r]);
                }
            }
        }
    }
    for (sums, acc) in sums.into_iter().zip(acc) {
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: LANES values
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        }
    }
}

vectorised! {
    /// The same for one row of weights and one group.
    fn row_sums<E: Element>(side: &[f32], w: &[E], sums: &mut [f32; LANES]) {
        let mut acc = [0.0f32; LANES];
        for (x, &w) in side.as_chunks::<LANES>().0.iter().zip(w) {
            for l in 0..LANES {
                acc[l] = x[l].mul_add(w.wide(), acc[l]);
            }
        }
        *sums = acc;
    }
}
