//! The CPU kernels of decoding, f32: one token a sequence, up to a few dozen sequences.
//!
//! Such a step reads every weight once and does little with it, so the kernels are laid out to read weights in order and
//! only once. A row's sums are made in the same order whatever the other rows are: the result is the same, bit for bit, in
//! every batch.
//!
//! Letters: B rows (sequences), I inputs, O outputs, H query heads, K key/value heads, D head dim, P cache positions.

use rayon::prelude::*;

use super::vector::{LANES, dot, exp, max_of, vectorised};

/// Rows of weights that are worked on together: as many independent sums as hide the latency of one.
const TILE: usize = 8;

/// A pointer that tasks write disjoint parts through.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: every task writes its own columns
unsafe impl Send for Shared {}
// SAFETY: as above
unsafe impl Sync for Shared {}

/// `y = x w^T + b`. x: `[B, I]`, w: `[O, I]` -> `[B, O]`.
///
/// LANES rows of x are turned on their side, `[I, LANES]`: each weight is then multiplied into all of them at once, and
/// no sum has to be gathered from the lanes of a register.
pub(super) fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, num_in: usize) -> Vec<f32> {
    let (num_rows, num_out) = (x.len() / num_in, w.len() / num_in);
    let num_groups = num_rows.div_ceil(LANES);
    let mut sides = vec![0.0; num_groups * num_in * LANES];
    for (row, x) in x.chunks_exact(num_in).enumerate() {
        let side = &mut sides[row / LANES * num_in * LANES..];
        for (i, &value) in x.iter().enumerate() {
            side[i * LANES + row % LANES] = value;
        }
    }
    let mut y = vec![0.0; num_rows * num_out];
    let out = Shared(y.as_mut_ptr());
    // a few tasks a thread, of whole tiles
    let per_task = num_out
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(TILE)
        .max(4 * TILE);
    let work = |task: usize| {
        let mut o = task * per_task;
        let end = num_out.min(o + per_task);
        while o < end {
            let height = if o + TILE <= end { TILE } else { 1 };
            let tile = &w[o * num_in..(o + height) * num_in];
            for (group, sides) in sides.chunks_exact(num_in * LANES).enumerate() {
                let mut sums = [[0.0; LANES]; TILE];
                if height == TILE {
                    tile_sums(sides, tile, &mut sums);
                } else {
                    row_sums(sides, tile, &mut sums[0]);
                }
                for lane in 0..LANES.min(num_rows - group * LANES) {
                    for (r, sums) in sums[..height].iter().enumerate() {
                        let value = sums[lane] + bias.map_or(0.0, |bias| bias[o + r]);
                        // SAFETY: row < B and o + r < O; outputs o.. belong to this task only
                        unsafe { *{ out }.0.add((group * LANES + lane) * num_out + o + r) = value };
                    }
                }
            }
            o += height;
        }
    };
    let num_tasks = num_out.div_ceil(per_task);
    if num_tasks == 1 {
        work(0);
    } else {
        (0..num_tasks).into_par_iter().for_each(work);
    }
    y
}

/// `sums[r][lane] = sum_i side[i][lane] * w[r][i]`, each sum in order of i.
fn tile_sums(side: &[f32], w: &[f32], sums: &mut [[f32; LANES]; TILE]) {
    #[cfg(target_arch = "x86_64")]
    if super::vector::has_avx512() {
        // SAFETY: the features were found a line above
        return unsafe { tile_sums_avx512(side, w, sums) };
    }
    for (w, sums) in w.chunks_exact(w.len() / TILE).zip(sums) {
        row_sums(side, w, sums);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn tile_sums_avx512(side: &[f32], w: &[f32], sums: &mut [[f32; LANES]; TILE]) {
    use std::arch::x86_64::*;
    let num_in = w.len() / TILE;
    assert!(side.len() == num_in * LANES && w.len() == num_in * TILE);
    let (side, w) = (side.as_ptr(), w.as_ptr());
    let mut acc = [_mm512_setzero_ps(); TILE];
    for start in (0..num_in).step_by(LANES) {
        for r in 0..TILE {
            // one cache line of each row of the next tile; past the end nothing happens
            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add((TILE + r) * num_in + start).cast());
        }
        for i in start..num_in.min(start + LANES) {
            // SAFETY: i < I, r < TILE, and the lengths were asserted
            unsafe {
                let x = _mm512_loadu_ps(side.add(i * LANES));
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_fmadd_ps(x, _mm512_set1_ps(*w.add(r * num_in + i)), *acc);
                }
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        // SAFETY: LANES values
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
    }
}

vectorised! {
    /// The same for one row of weights.
    fn row_sums(side: &[f32], w: &[f32], sums: &mut [f32; LANES]) {
        let mut acc = [0.0f32; LANES];
        for (x, &w) in side.as_chunks::<LANES>().0.iter().zip(w) {
            for l in 0..LANES {
                acc[l] += x[l] * w;
            }
        }
        *sums = acc;
    }
}

/// Attention of one query a sequence over the first `lens[b]` positions of its slot. q: `[B, H, D]`, caches
/// `[S, K, P, D]` -> `[B, H, D]`.
pub(super) fn attention(
    q: &[f32],
    k_cache: &[f32],
    v_cache: &[f32],
    shape: CacheShape,
    slots: &[u32],
    lens: &[u32],
    scale: f32,
) -> Vec<f32> {
    let CacheShape {
        num_heads,
        num_kv_heads,
        num_positions,
        head_dim,
    } = shape;
    let per_kv = num_heads / num_kv_heads * head_dim;
    let mut o = vec![0.0; q.len()];
    let tasks = o
        .par_chunks_mut(per_kv)
        .zip(q.par_chunks(per_kv))
        .enumerate();
    tasks.for_each_init(Vec::new, |scores, (task, (o, q))| {
        let (b, kv) = (task / num_kv_heads, task % num_kv_heads);
        let start = (slots[b] as usize * num_kv_heads + kv) * num_positions * head_dim;
        let held = start..start + lens[b] as usize * head_dim;
        attend(
            q,
            &k_cache[held.clone()],
            &v_cache[held],
            head_dim,
            scale,
            scores,
            o,
        );
    });
    o
}

/// How the caches of [`attention`] lie in memory.
#[derive(Clone, Copy)]
pub(super) struct CacheShape {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub num_positions: usize,
    pub head_dim: usize,
}

vectorised! {
    /// The queries of one key/value head. q, o: `[G, D]`, k, v: `[L, D]`.
    fn attend(q: &[f32], k: &[f32], v: &[f32], head_dim: usize, scale: f32, scores: &mut Vec<f32>, o: &mut [f32]) {
        let len = k.len() / head_dim;
        scores.clear();
        scores.resize(q.len() / head_dim * len, 0.0);
        for (t, k) in k.chunks_exact(head_dim).enumerate() {
            for (g, q) in q.chunks_exact(head_dim).enumerate() {
                scores[g * len + t] = dot(q, k) * scale;
            }
        }
        for scores in scores.chunks_exact_mut(len) {
            let max = max_of(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - max);
            }
            let mut sum = 0.0;
            for &score in scores.iter() {
                sum += score;
            }
            let scale = 1.0 / sum;
            for score in scores.iter_mut() {
                *score *= scale;
            }
        }
        o.fill(0.0);
        for (t, v) in v.chunks_exact(head_dim).enumerate() {
            for (g, o) in o.chunks_exact_mut(head_dim).enumerate() {
                let p = scores[g * len + t];
                for (o, v) in o.iter_mut().zip(v) {
                    *o += p * v;
                }
            }
        }
    }
}
