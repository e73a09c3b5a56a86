//! The CPU kernels of decoding, f32: one token a sequence, up to a few dozen sequences.
//!
//! Such a step reads every weight once and does little with it, so the kernels are laid out to read weights in order and
//! only once. A row's sums are made in the same order whatever the other rows are: the result is the same, bit for bit, in
//! every batch. Attention over the cache is in `decode_attention_cpu`.
//!
//! Letters: B rows (sequences, or tokens of a prompt), I inputs, O outputs.

use rayon::prelude::*;

use super::cpu::{Shared, unwritten};
use super::vector::{LANES, vectorised};

/// Rows of weights that are worked on together: as many independent sums as hide the latency of one.
const TILE: usize = 8;
/// Groups of LANES rows of x whose values stay in the second cache while the weights pass by.
const BLOCK_GROUPS: usize = 8;

/// A weight `[O, I]` and its bias `[O]`.
#[derive(Clone, Copy)]
pub(super) struct Projection<'a> {
    pub w: &'a [f32],
    pub bias: Option<&'a [f32]>,
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
pub(super) fn linears(x: &[f32], weights: &[Projection], num_in: usize) -> Vec<Vec<f32>> {
    let num_rows = x.len() / num_in;
    let sides = on_their_side(x, num_in);
    let num_outs: Vec<usize> = weights.iter().map(|p| p.w.len() / num_in).collect();
    let mut ys: Vec<Vec<f32>> = num_outs.iter().map(|o| unwritten(num_rows * o)).collect();
    let outs: Vec<Shared> = ys.iter_mut().map(|y| Shared(y.as_mut_ptr())).collect();
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
                    let value = sums[lane] + bias.map_or(0.0, |bias| bias[o + r]);
                    // SAFETY: row < B and o + r < O; these outputs belong to this task only
                    unsafe { *y.add((group * LANES + lane) * num_out + o + r) = value };
                }
            }
        };
        for (block, sides) in sides.chunks(BLOCK_GROUPS * num_in * LANES).enumerate() {
            let mut o = task.from;
            while o < task.to {
                let height = if o + TILE <= task.to { TILE } else { 1 };
                let tile = &w[o * num_in..(o + height) * num_in];
                for (pair, sides) in sides.chunks(2 * num_in * LANES).enumerate() {
                    let group = block * BLOCK_GROUPS + 2 * pair;
                    let mut sums = [[[0.0; LANES]; TILE]; 2];
                    if height == TILE {
                        tile_sums(sides, tile, &mut sums);
                    } else {
                        for (side, sums) in sides.chunks(num_in * LANES).zip(&mut sums) {
                            row_sums(side, tile, &mut sums[0]);
                        }
                    }
                    for (i, sums) in sums.iter().take(sides.len() / (num_in * LANES)).enumerate() {
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

/// `sums[g][r][lane] = sum_i side[g][i][lane] * w[r][i]` of one or two groups, each sum in order of i.
fn tile_sums(sides: &[f32], w: &[f32], sums: &mut [[[f32; LANES]; TILE]; 2]) {
    let num_in = w.len() / TILE;
    #[cfg(target_arch = "x86_64")]
    if super::vector::has_avx512() {
        let [first, second] = sums;
        // SAFETY: the features were found a line above
        return unsafe {
            if sides.len() == 2 * num_in * LANES {
                tile_sums_avx512(sides, w, [first, second]);
            } else {
                tile_sums_avx512(sides, w, [first]);
            }
        };
    }
    for (side, sums) in sides.chunks_exact(num_in * LANES).zip(sums) {
        for (w, sums) in w.chunks_exact(num_in).zip(sums) {
            row_sums(side, w, sums);
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
    fn row_sums(side: &[f32], w: &[f32], sums: &mut [f32; LANES]) {
        let mut acc = [0.0f32; LANES];
        for (x, &w) in side.as_chunks::<LANES>().0.iter().zip(w) {
            for l in 0..LANES {
                acc[l] = x[l].mul_add(w, acc[l]);
            }
        }
        *sums = acc;
    }
}
