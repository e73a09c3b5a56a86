//! RMSNorm, RoPE and SwiGLU over rows of f32 or bf16, and sums over all values, in f32. Work is cut by shape alone, so that results do not
//! depend on the number of threads.

use super::cpu::unwritten;
use super::element::Element;
use super::master::Weights;
use super::vector::{LANES, exp, reduce, vectorised};
use rayon::prelude::*;

/// Rows a task takes.
const ROWS: usize = 32;
/// Values a task takes where rows do not matter.
const PIECE: usize = 1 << 14;

vectorised! {
    fn norm_rows<E: Element>(x: &[E], w: &[E], eps: f32, y: &mut [E]) {
        let c = w.len();
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let r = rstd(x, eps);
            for i in 0..c {
                y[i] = E::of(x[i].wide() * r * w[i].wide());
            }
        }
    }
}

vectorised! {
    fn norm_rows_backward<E: Element>(x: &[E], w: &[E], eps: f32, dy: &[E], dx: &mut [E], dw: &mut [f32]) {
        let c = w.len();
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            let r = rstd(x, eps);
            let mut lanes = [0.0f32; LANES];
            let mut i = 0;
            while i + LANES <= c {
                for l in 0..LANES {
                    lanes[l] += dy[i + l].wide() * w[i + l].wide() * x[i + l].wide();
                }
                i += LANES;
            }
            let mut inner = reduce(lanes, |a, b| a + b);
            while i < c {
                inner += dy[i].wide() * w[i].wide() * x[i].wide();
                i += 1;
            }
            // mean(g n) * r, with n = x r
            let shrink = inner * r * r * r / c as f32;
            for i in 0..c {
                let (x, dy) = (x[i].wide(), dy[i].wide());
                dx[i] = E::of(dy * w[i].wide() * r - x * shrink);
                dw[i] += dy * x * r;
            }
        }
    }
}

#[inline(always)]
fn rstd<E: Element>(x: &[E], eps: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] += chunk[l].wide() * chunk[l].wide();
        }
    }
    let sum = rest
        .iter()
        .fold(reduce(lanes, |a, b| a + b), |s, v| s + v.wide() * v.wide());
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// `y = x * rstd * w`; rows of `w.len()` values.
pub(super) fn rms_norm<E: Element>(x: &[E], w: &[E], eps: f32) -> Vec<E> {
    let mut y = unwritten(x.len());
    let piece = ROWS * w.len();
    y.par_chunks_mut(piece)
        .zip(x.par_chunks(piece))
        .for_each(|(y, x)| norm_rows(x, w, eps, y));
    y
}

/// dx, and dw summed over rows.
pub(super) fn rms_norm_backward<E: Element>(
    x: &[E],
    w: &[E],
    eps: f32,
    dy: &[E],
) -> (Vec<E>, Vec<f32>) {
    let mut dx = unwritten(x.len());
    let piece = ROWS * w.len();
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(piece)
        .zip(x.par_chunks(piece).zip(dy.par_chunks(piece)))
        .map(|(dx, (x, dy))| {
            let mut dw = vec![0.0; w.len()];
            norm_rows_backward(x, w, eps, dy, dx, &mut dw);
            dw
        })
        .collect();
    (dx, sum_in_order(parts, w.len()))
}

/// Sums partial results in the order of the pieces.
fn sum_in_order(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; len];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    sum
}

vectorised! {
    fn rotate_token<E: Element>(x: &[E], cos: &[f32], sin: &[f32], sign: f32, y: &mut [E]) {
        let half = cos.len();
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let (x1, x2) = x.split_at(half);
            let (y1, y2) = y.split_at_mut(half);
            for i in 0..half {
                let s = sin[i] * sign;
                let (x1, x2) = (x1[i].wide(), x2[i].wide());
                y1[i] = E::of(x1 * cos[i] - x2 * s);
                y2[i] = E::of(x2 * cos[i] + x1 * s);
            }
        }
    }
}

/// Rotates the heads of each token, `width` values a token; `sign` -1 rotates back.
pub(super) fn rotate<E: Element>(
    x: &[E],
    width: usize,
    half: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
    sign: f32,
) -> Vec<E> {
    let mut y = unwritten(x.len());
    y.par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width).zip(positions.par_chunks(ROWS)))
        .for_each(|(y, (x, positions))| {
            for ((y, x), &p) in y
                .chunks_exact_mut(width)
                .zip(x.chunks_exact(width))
                .zip(positions)
            {
                let at = p as usize * half..(p as usize + 1) * half;
                rotate_token(x, &cos[at.clone()], &sin[at], sign, y);
            }
        });
    y
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let r = 1.0 / (1.0 + e);
    if x >= 0.0 { r } else { e * r }
}

vectorised! {
    fn swiglu_piece<E: Element>(gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.wide();
            *y = E::of(g * sigmoid(g) * u.wide());
        }
    }
}

vectorised! {
    fn swiglu_backward_piece<E: Element>(gate: &[E], up: &[E], dy: &[E], dgate: &mut [E], dup: &mut [E]) {
        let n = gate.len();
        let (up, dy) = (&up[..n], &dy[..n]);
        let (dgate, dup) = (&mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let (g, dy) = (gate[i].wide(), dy[i].wide());
            let s = sigmoid(g);
            dgate[i] = E::of(dy * up[i].wide() * s * (1.0 + g * (1.0 - s)));
            dup[i] = E::of(dy * g * s);
        }
    }
}

/// `silu(gate) * up`.
pub(super) fn swiglu<E: Element>(gate: &[E], up: &[E]) -> Vec<E> {
    let mut y = unwritten(gate.len());
    y.par_chunks_mut(PIECE)
        .zip(gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)))
        .for_each(|(y, (gate, up))| swiglu_piece(gate, up, y));
    y
}

/// dgate and dup.
pub(super) fn swiglu_backward<E: Element>(gate: &[E], up: &[E], dy: &[E]) -> (Vec<E>, Vec<E>) {
    let (mut dgate, mut dup) = (unwritten(gate.len()), unwritten(gate.len()));
    dgate
        .par_chunks_mut(PIECE)
        .zip(dup.par_chunks_mut(PIECE))
        .zip(
            gate.par_chunks(PIECE)
                .zip(up.par_chunks(PIECE))
                .zip(dy.par_chunks(PIECE)),
        )
        .for_each(|((dgate, dup), ((gate, up), dy))| {
            swiglu_backward_piece(gate, up, dy, dgate, dup)
        });
    (dgate, dup)
}

vectorised! {
    fn add_piece<E: Element>(dst: &mut [E], x: &[E]) {
        for (d, x) in dst.iter_mut().zip(x) {
            *d = E::of(d.wide() + x.wide());
        }
    }
}

/// `dst += x`.
pub(super) fn add<E: Element>(dst: &mut [E], x: &[E]) {
    dst.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(d, x)| add_piece(d, x));
}

vectorised! {
    fn round_piece<E: Element>(x: &[f32], to: &mut [E]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = E::of(*x);
        }
    }
}

/// Each value of x, rounded.
pub(super) fn round<E: Element>(x: &[f32], to: &mut [E]) {
    to.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .for_each(|(to, x)| round_piece(x, to));
}

vectorised! {
    fn sum_squares_piece(x: &[f32]) -> f64 {
        let mut sum = 0.0f64;
        // f32 lanes within a short run, f64 between runs
        for run in x.chunks(64 * LANES) {
            let mut lanes = [0.0f32; LANES];
            let (chunks, rest) = run.as_chunks::<LANES>();
            for chunk in chunks {
                for l in 0..LANES {
                    lanes[l] += chunk[l] * chunk[l];
                }
            }
            for (l, v) in rest.iter().enumerate() {
                lanes[l] += v * v;
            }
            for lane in lanes {
                sum += f64::from(lane);
            }
        }
        sum
    }
}

/// Sum of squares.
pub(super) fn sum_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(PIECE).map(sum_squares_piece).collect();
    parts.iter().sum()
}

vectorised! {
    fn sum_rows_piece<E: Element>(x: &[E], sum: &mut [f32]) {
        let c = sum.len();
        for row in x.chunks_exact(c) {
            for i in 0..c {
                sum[i] += row[i].wide();
            }
        }
    }
}

/// Sum over rows of `c` values.
pub(super) fn sum_rows<E: Element>(x: &[E], c: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = x
        .par_chunks(ROWS * c)
        .map(|x| {
            let mut sum = vec![0.0; c];
            sum_rows_piece(x, &mut sum);
            sum
        })
        .collect();
    sum_in_order(parts, c)
}

vectorised! {
    /// Some values of a step; constants as [`adamw_constants`] has them.
    pub(super) fn adamw_piece(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], c: [f32; 9]) {
        let [scale, b1, b2, rest1, rest2, decay, rate, correction, eps] = c;
        let n = w.len();
        let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
        for i in 0..n {
            let g = g[i] * scale;
            m[i] = b1 * m[i] + rest1 * g;
            v[i] = b2 * v[i] + rest2 * g * g;
            let denominator = (v[i] * correction).sqrt() + eps;
            w[i] = w[i] * decay - rate * m[i] / denominator;
        }
    }
}

/// What of a step is the same for all values, in f32.
pub(super) fn adamw_constants(s: &super::AdamWStep) -> [f32; 9] {
    let t = s.step as i32;
    [
        s.grad_scale as f32,
        s.beta1 as f32,
        s.beta2 as f32,
        // not from the rounded betas: 1 - 0.999 in f32 is off by 1e-5
        (1.0 - s.beta1) as f32,
        (1.0 - s.beta2) as f32,
        (1.0 - s.lr * s.weight_decay) as f32,
        (s.lr / (1.0 - s.beta1.powi(t))) as f32,
        (1.0 / (1.0 - s.beta2.powi(t))) as f32,
        s.eps as f32,
    ]
}

/// One AdamW step in one pass; see [`super::update::adamw_inplace`].
pub(super) fn adamw(w: Weights, m: &mut [f32], v: &mut [f32], g: &[f32], s: &super::AdamWStep) {
    let constants = adamw_constants(s);
    w.pieces(PIECE)
        .into_par_iter()
        .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
        .zip(g.par_chunks(PIECE))
        .for_each(|((w, (m, v)), g)| {
            w.change(PIECE, |at, w| {
                let n = at + w.len();
                adamw_piece(w, &mut m[at..n], &mut v[at..n], &g[at..n], constants);
            });
        });
}
