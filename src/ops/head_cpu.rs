//! The language-model head and its loss over f32 slices: logits exist for a chunk of rows at a time, in one buffer.

use super::cpu::{Dst, Matrix, gemm, unwritten};
use super::vector::{LANES, exp, max_of, reduce, vectorised};
use rayon::prelude::*;

/// Logits that exist at a time: enough rows for a product at full speed, few enough not to be noticed in memory.
const MAX_LOGITS: usize = 1 << 25;

fn rows_of_chunk(vocab: usize) -> usize {
    (MAX_LOGITS / vocab.max(1)).clamp(64, 512)
}

vectorised! {
    /// Maximum and sum of `exp(x - maximum)`.
    fn max_and_sum(row: &[f32]) -> (f32, f64) {
        let m = max_of(row);
        let mut sum = 0.0f64;
        for run in row.chunks(64 * LANES) {
            let mut lanes = [0.0f32; LANES];
            let (chunks, rest) = run.as_chunks::<LANES>();
            for chunk in chunks {
                for l in 0..LANES {
                    lanes[l] += exp(chunk[l] - m);
                }
            }
            for &v in rest {
                lanes[0] += exp(v - m);
            }
            sum += f64::from(reduce(lanes, |a, b| a + b));
        }
        (m, sum)
    }
}

vectorised! {
    /// `row = factor * exp(row - m)`.
    fn scaled_exp(row: &mut [f32], m: f32, factor: f32) {
        for v in row {
            *v = factor * exp(*v - m);
        }
    }
}

/// log softmax of the target, with what the gradient needs: maximum and sum.
fn log_softmax(row: &[f32], target: usize) -> (f32, f32, f64) {
    let (m, sum) = max_and_sum(row);
    (
        (f64::from(row[target]) - f64::from(m) - sum.ln()) as f32,
        m,
        sum,
    )
}

/// Log-probabilities of targets. h: rows of c, w: V rows of c.
pub(super) fn logprobs(h: &[f32], w: &[f32], c: usize, targets: &[u32]) -> Vec<f32> {
    let vocab = w.len() / c;
    let rows = rows_of_chunk(vocab);
    let mut logits = unwritten(rows.min(targets.len()) * vocab);
    let mut all = Vec::with_capacity(targets.len());
    for (h, targets) in h.chunks(rows * c).zip(targets.chunks(rows)) {
        let n = targets.len();
        gemm(
            (n, vocab, c),
            &mut logits,
            vocab,
            Dst::Overwrite,
            Matrix::rows(h, c),
            Matrix::rows(w, c).t(),
            1.0,
            true,
        );
        let some: Vec<f32> = logits
            .par_chunks(vocab)
            .zip(targets)
            .map(|(row, &target)| log_softmax(row, target as usize).0)
            .collect();
        all.extend(some);
    }
    all
}

/// Log-probabilities of targets and dh of `sum_t coef[t] * logp[t]`; dw is added to.
pub(super) fn backward(
    h: &[f32],
    w: &[f32],
    c: usize,
    targets: &[u32],
    coef: &[f32],
    dw: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let vocab = w.len() / c;
    let rows = rows_of_chunk(vocab);
    let mut logits = unwritten(rows.min(targets.len()) * vocab);
    let mut all = Vec::with_capacity(targets.len());
    let mut dh = unwritten(h.len());
    let chunks = h
        .chunks(rows * c)
        .zip(dh.chunks_mut(rows * c))
        .zip(targets.chunks(rows).zip(coef.chunks(rows)));
    for ((h, dh), (targets, coef)) in chunks {
        let n = targets.len();
        gemm(
            (n, vocab, c),
            &mut logits,
            vocab,
            Dst::Overwrite,
            Matrix::rows(h, c),
            Matrix::rows(w, c).t(),
            1.0,
            true,
        );
        let some: Vec<f32> = logits
            .par_chunks_mut(vocab)
            .zip(targets.par_iter().zip(coef))
            .map(|(row, (&target, &coef))| {
                let (logprob, m, sum) = log_softmax(row, target as usize);
                // coef * (onehot - softmax)
                scaled_exp(row, m, (-f64::from(coef) / sum) as f32);
                row[target as usize] += coef;
                logprob
            })
            .collect();
        all.extend(some);
        let dlogits = Matrix::rows(&logits, vocab);
        gemm(
            (n, c, vocab),
            dh,
            c,
            Dst::Overwrite,
            dlogits,
            Matrix::rows(w, c),
            1.0,
            true,
        );
        gemm(
            (vocab, c, n),
            dw,
            c,
            Dst::Add,
            dlogits.t(),
            Matrix::rows(h, c),
            1.0,
            true,
        );
    }
    (all, dh)
}
