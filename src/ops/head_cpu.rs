//! The language-model head and its loss over f32 or bf16 slices: logits, always f32, exist for a chunk of rows at a
//! time, in one buffer.

use super::cpu::{Dst, Matrix, gemm, unwritten};
use super::element::Element;
use super::vector::{LANES, exp, max_of, reduce, vectorised};
use super::{CoefsFn, TokenStats};
use crate::Result;
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
    /// Maximum, sum of `exp(x - maximum)`, and sum of `exp(x - maximum) * (x - maximum)`.
    fn max_and_sums(row: &[f32]) -> (f32, f64, f64) {
        /// `exp` is 0 from here on: an infinity times 0 would be NaN
        const LOWEST: f32 = -100.0;
        let m = max_of(row);
        let (mut sum, mut weighted) = (0.0f64, 0.0f64);
        for run in row.chunks(64 * LANES) {
            let (mut sums, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
            let (chunks, rest) = run.as_chunks::<LANES>();
            for chunk in chunks {
                for l in 0..LANES {
                    let e = exp(chunk[l] - m);
                    sums[l] += e;
                    products[l] += e * if chunk[l] - m > LOWEST { chunk[l] - m } else { LOWEST };
                }
            }
            for &v in rest {
                let e = exp(v - m);
                sums[0] += e;
                products[0] += e * if v - m > LOWEST { v - m } else { LOWEST };
            }
            sum += f64::from(reduce(sums, |a, b| a + b));
            weighted += f64::from(reduce(products, |a, b| a + b));
        }
        (m, sum, weighted)
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

/// What [`stats_of_row`] found.
struct RowStats {
    logprob: f32,
    entropy: f32,
    max: f32,
    sum: f64,
}

/// log softmax of the target; `H = ln S - sum_j e_j (x_j - m) / S` with `e_j = exp(x_j - m)`, `S = sum_j e_j`.
fn stats_of_row(row: &[f32], target: usize) -> RowStats {
    let (max, sum, weighted) = max_and_sums(row);
    RowStats {
        logprob: (f64::from(row[target]) - f64::from(max) - sum.ln()) as f32,
        entropy: (sum.ln() - weighted / sum) as f32,
        max,
        sum,
    }
}

/// Log-probabilities of targets and entropies. h: rows of c, w: V rows of c.
pub(super) fn stats<E: Element>(h: &[E], w: &[E], c: usize, targets: &[u32]) -> TokenStats {
    let vocab = w.len() / c;
    let rows = rows_of_chunk(vocab);
    let mut logits = unwritten(rows.min(targets.len()) * vocab);
    let mut all = TokenStats::default();
    for (h, targets) in h.chunks(rows * c).zip(targets.chunks(rows)) {
        logits_of(h, w, c, &mut logits);
        for row in rows_stats(&logits, vocab, targets) {
            all.logprobs.push(row.logprob);
            all.entropies.push(row.entropy);
        }
    }
    all
}

fn logits_of<E: Element>(h: &[E], w: &[E], c: usize, logits: &mut [f32]) {
    let vocab = w.len() / c;
    gemm(
        (h.len() / c, vocab, c),
        logits,
        vocab,
        Dst::Overwrite,
        Matrix::rows(h, c),
        Matrix::rows(w, c).t(),
        1.0,
        true,
    );
}

fn rows_stats(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<RowStats> {
    logits
        .par_chunks(vocab)
        .zip(targets)
        .map(|(row, &target)| stats_of_row(row, target as usize))
        .collect()
}

/// [`stats`] and dh of `sum_t coef[t] * logp[t]`, where `coefs` makes a chunk's coefficients of its log-probabilities; dw,
/// where the weight is trained, is added to.
pub(super) fn policy_backward<E: Element>(
    h: &[E],
    w: &[E],
    c: usize,
    targets: &[u32],
    coefs: CoefsFn,
    mut dw: Option<&mut [f32]>,
) -> Result<(TokenStats, Vec<E>)> {
    let vocab = w.len() / c;
    let rows = rows_of_chunk(vocab);
    let mut logits = unwritten(rows.min(targets.len()) * vocab);
    let mut all = TokenStats::default();
    let mut dh = unwritten(h.len());
    let chunks = h
        .chunks(rows * c)
        .zip(dh.chunks_mut(rows * c))
        .zip(targets.chunks(rows));
    for ((h, dh), targets) in chunks {
        logits_of(h, w, c, &mut logits);
        let stats = rows_stats(&logits, vocab, targets);
        let start = all.logprobs.len();
        all.logprobs.extend(stats.iter().map(|row| row.logprob));
        all.entropies.extend(stats.iter().map(|row| row.entropy));
        let coefs = coefs(start..start + targets.len(), &all.logprobs[start..])?;
        logits
            .par_chunks_mut(vocab)
            .zip(stats.par_iter().zip(targets).zip(&coefs))
            .for_each(|(row, ((stats, &target), &coef))| {
                // coef * (onehot - softmax)
                scaled_exp(row, stats.max, (-f64::from(coef) / stats.sum) as f32);
                row[target as usize] += coef;
            });
        products_of_gradient(&logits, h, w, c, dh, dw.as_deref_mut());
    }
    Ok((all, dh))
}

/// `dh = dlogits w`, `dw += dlogits^T h`.
fn products_of_gradient<E: Element>(
    dlogits: &[f32],
    h: &[E],
    w: &[E],
    c: usize,
    dh: &mut [E],
    dw: Option<&mut [f32]>,
) {
    let (n, vocab) = (h.len() / c, w.len() / c);
    let dlogits = Matrix::rows(dlogits, vocab);
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
    let Some(dw) = dw else { return };
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

/// Log-probabilities of targets. h: rows of c, w: V rows of c.
pub(super) fn logprobs<E: Element>(h: &[E], w: &[E], c: usize, targets: &[u32]) -> Vec<f32> {
    let vocab = w.len() / c;
    let rows = rows_of_chunk(vocab);
    let mut logits = unwritten(rows.min(targets.len()) * vocab);
    let mut all = Vec::with_capacity(targets.len());
    for (h, targets) in h.chunks(rows * c).zip(targets.chunks(rows)) {
        logits_of(h, w, c, &mut logits);
        let some: Vec<f32> = logits
            .par_chunks(vocab)
            .zip(targets)
            .map(|(row, &target)| log_softmax(row, target as usize).0)
            .collect();
        all.extend(some);
    }
    all
}

/// Log-probabilities of targets and dh of `sum_t coef[t] * logp[t]`; dw, where the weight is trained, is added to.
pub(super) fn backward<E: Element>(
    h: &[E],
    w: &[E],
    c: usize,
    targets: &[u32],
    coef: &[f32],
    mut dw: Option<&mut [f32]>,
) -> (Vec<f32>, Vec<E>) {
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
        logits_of(h, w, c, &mut logits);
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
        products_of_gradient(&logits, h, w, c, dh, dw.as_deref_mut());
    }
    (all, dh)
}
