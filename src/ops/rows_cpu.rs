//! The CPU kernels of what is done element by element or row by row, f32, forward. One pass over memory each, where the
//! portable forms take several; small inputs stay on the calling thread.
//!
//! Letters: R rows, C row length, T tokens, H heads, D head dim.

use rayon::prelude::*;

use super::vector::{LANES, exp, reduce, vectorised};

/// Fewer elements than this are not worth waking another thread for.
const MIN_PARALLEL: usize = 1 << 16;

/// Runs `work` on pieces of `y` of whole rows, with the index of each piece's first row.
fn by_rows(y: &mut [f32], row_len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if y.len() < MIN_PARALLEL {
        return work(0, y);
    }
    let num_rows = y.len() / row_len;
    let rows_per_task = num_rows.div_ceil(8 * rayon::current_num_threads()).max(1);
    y.par_chunks_mut(rows_per_task * row_len)
        .enumerate()
        .for_each(|(task, y)| work(task * rows_per_task, y));
}

/// `y = x / sqrt(mean(x^2) + eps) * w` of each row. x: `[R, C]`, w: `[C]`.
pub(super) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let c = w.len();
    let mut y = vec![0.0; x.len()];
    by_rows(&mut y, c, |first, y| {
        norm_rows(&x[first * c..first * c + y.len()], w, eps, y)
    });
    y
}

vectorised! {
    fn norm_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
            let mut lanes = [0.0f32; LANES];
            let (chunks, rest) = x.as_chunks::<LANES>();
            for chunk in chunks {
                for l in 0..LANES {
                    lanes[l] += chunk[l] * chunk[l];
                }
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *lane += x * x;
            }
            let mean = reduce(lanes, |a, b| a + b) / w.len() as f32;
            let rstd = 1.0 / (mean + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * rstd * w;
            }
        }
    }
}

/// Rotates the two halves of each head by the angle of its token's position, backwards where `sign` is -1. x: `[T, H, D]`,
/// cos, sin: `[P, D/2]`; positions are within P.
pub(super) fn rotate(
    x: &[f32],
    (cos, sin): (&[f32], &[f32]),
    positions: &[u32],
    head_dim: usize,
    sign: f32,
) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let row_len = x.len() / positions.len();
    by_rows(&mut y, row_len, |first, y| {
        let tokens = y
            .chunks_exact_mut(row_len)
            .zip(x[first * row_len..].chunks_exact(row_len));
        for ((y, x), &position) in tokens.zip(&positions[first..]) {
            let angles = position as usize * head_dim / 2..(position as usize + 1) * head_dim / 2;
            rotate_token(x, &cos[angles.clone()], &sin[angles], sign, y);
        }
    });
    y
}

vectorised! {
    fn rotate_token(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, y: &mut [f32]) {
        let half = cos.len();
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                let (c, s) = (cos[i], sin[i] * sign);
                y1[i] = x1[i] * c - x2[i] * s;
                y2[i] = x2[i] * c + x1[i] * s;
            }
        }
    }
}

/// `y = silu(gate) * up`.
pub(super) fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    by_rows(&mut y, 1, |first, y| {
        let range = first..first + y.len();
        swiglu_into(&gate[range.clone()], &up[range], y);
    });
    y
}

vectorised! {
    fn swiglu_into(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            // e^-|g| cannot overflow
            let e = exp(-g.abs());
            let sigmoid = if g < 0.0 { e } else { 1.0 } / (1.0 + e);
            *y = g * sigmoid * u;
        }
    }
}

/// `a + b`.
pub(super) fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; a.len()];
    by_rows(&mut y, 1, |first, y| {
        for ((y, a), b) in y.iter_mut().zip(&a[first..]).zip(&b[first..]) {
            *y = a + b;
        }
    });
    y
}
