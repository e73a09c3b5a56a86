//! Variable-length causal attention over f32 slices in blocks: scores exist for a block of queries and a block of keys at
//! a time, blocks above the diagonal are never touched (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).
//!
//! Forward tasks are (sequence, head, block of queries); backward tasks are (sequence, key/value head), which own all
//! gradients they write, so that sums are always taken in the same order.

use super::SeqLens;
use super::cpu::{Dst, Matrix, Shared, gemm, gemm_raw, unwritten};
use super::vector::{LANES, dot, exp, max_of, reduce, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a block.
const BLOCK_Q: usize = 128;
/// Keys of a block.
const BLOCK_K: usize = 256;

/// Sizes of the tensors: q `[T, H, D]`, k and v `[T, K, D]`.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub num_heads: usize,
    pub num_kv: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl Shape {
    fn q_row(&self) -> usize {
        self.num_heads * self.head_dim
    }

    fn kv_row(&self) -> usize {
        self.num_kv * self.head_dim
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.num_heads / self.num_kv)
    }

    /// Rows from token `t` of head `head` in a tensor with `heads` heads.
    fn head<'a>(&self, x: &'a [f32], heads: usize, t: usize, head: usize) -> Matrix<'a> {
        Matrix::rows(
            &x[(t * heads + head) * self.head_dim..],
            heads * self.head_dim,
        )
    }
}

vectorised! {
    /// Scores of one query to weights: `row = exp(row - m)` with the new running maximum m. Returns m and the sum of the row.
    fn softmax_row(row: &mut [f32], max_before: f32) -> (f32, f32) {
        let m = max_of(row).max(max_before);
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                chunk[l] = exp(chunk[l] - m);
                lanes[l] += chunk[l];
            }
        }
        for (l, v) in rest.iter_mut().enumerate() {
            *v = exp(*v - m);
            lanes[l] += *v;
        }
        (m, reduce(lanes, |a, b| a + b))
    }
}

vectorised! {
    fn scale_row(row: &mut [f32], factor: f32) {
        for v in row {
            *v *= factor;
        }
    }
}

/// o `[T, H, D]` and the log-sum-exp of each query's scores, `[T, H]`.
pub(super) fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    seqs: &SeqLens,
    s: Shape,
) -> (Vec<f32>, Vec<f32>) {
    let t = seqs.total();
    let (mut o, mut lse) = (unwritten(t * s.q_row()), unwritten(t * s.num_heads));
    let (o_shared, lse_shared) = (Shared(o.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    let tasks: Vec<(Range<usize>, usize, usize)> = seqs
        .iter()
        .flat_map(|seq| {
            let blocks = seq.len().div_ceil(BLOCK_Q);
            (0..s.num_heads).flat_map(move |h| {
                let seq = seq.clone();
                (0..blocks).map(move |b| (seq.clone(), h, b * BLOCK_Q))
            })
        })
        .collect();
    tasks.into_par_iter().for_each_init(
        || {
            (
                unwritten(BLOCK_Q * BLOCK_K),
                unwritten(BLOCK_Q * s.head_dim),
            )
        },
        |(scores, acc), (seq, head, first)| {
            let num_q = BLOCK_Q.min(seq.len() - first);
            let (maxima, sums) = block_forward(q, k, v, &seq, head, first, num_q, s, scores, acc);
            for i in 0..num_q {
                let token = seq.start + first + i;
                let row = &mut acc[i * s.head_dim..(i + 1) * s.head_dim];
                scale_row(row, 1.0 / sums[i]);
                // SAFETY: only this task writes this head of this token
                unsafe {
                    let place = o_shared
                        .get()
                        .add((token * s.num_heads + head) * s.head_dim);
                    std::ptr::copy_nonoverlapping(row.as_ptr(), place, s.head_dim);
                    *lse_shared.get().add(token * s.num_heads + head) = maxima[i] + sums[i].ln();
                }
            }
        },
    );
    (o, lse)
}

/// Unnormalised outputs of a block of queries into `acc`; returns running maxima and sums.
#[allow(clippy::too_many_arguments)] // the inner part of one function
fn block_forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    seq: &Range<usize>,
    head: usize,
    first: usize,
    num_q: usize,
    s: Shape,
    scores: &mut [f32],
    acc: &mut [f32],
) -> ([f32; BLOCK_Q], [f32; BLOCK_Q]) {
    let d = s.head_dim;
    let kv = s.kv_head(head);
    let (mut maxima, mut sums) = ([f32::NEG_INFINITY; BLOCK_Q], [0.0f32; BLOCK_Q]);
    let q_block = s.head(q, s.num_heads, seq.start + first, head);
    let end = first + num_q;
    for start in (0..end).step_by(BLOCK_K) {
        let num_k = BLOCK_K.min(end - start);
        let k_block = s.head(k, s.num_kv, seq.start + start, kv);
        gemm(
            (num_q, num_k, d),
            scores,
            BLOCK_K,
            Dst::Overwrite,
            q_block,
            k_block.t(),
            s.scale,
            false,
        );
        for i in 0..num_q {
            let row = &mut scores[i * BLOCK_K..i * BLOCK_K + num_k];
            // query first + i sees keys up to itself
            let seen = (first + i + 1).saturating_sub(start).min(num_k);
            row[seen..].fill(0.0);
            if seen == 0 {
                continue;
            }
            let (m, sum) = softmax_row(&mut row[..seen], maxima[i]);
            if start > 0 && m > maxima[i] {
                let shrink = (maxima[i] - m).exp();
                scale_row(&mut acc[i * d..(i + 1) * d], shrink);
                sums[i] *= shrink;
            }
            maxima[i] = m;
            sums[i] += sum;
        }
        let v_block = s.head(v, s.num_kv, seq.start + start, kv);
        let into = if start == 0 { Dst::Overwrite } else { Dst::Add };
        gemm(
            (num_q, d, num_k),
            acc,
            d,
            into,
            Matrix::rows(scores, BLOCK_K),
            v_block,
            1.0,
            false,
        );
    }
    (maxima, sums)
}

vectorised! {
    /// Weights of one query: `p = exp(s - lse)`; and the scores' gradient: `ds = p * (dp - delta)`.
    fn backward_row(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - delta);
        }
    }
}

/// dq, dk, dv.
#[allow(clippy::too_many_arguments)] // the operation has that many
pub(super) fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &[f32],
    lse: &[f32],
    d_o: &[f32],
    seqs: &SeqLens,
    s: Shape,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (t, d) = (seqs.total(), s.head_dim);
    let mut delta = unwritten(t * s.num_heads);
    delta
        .par_chunks_mut(s.num_heads)
        .zip(o.par_chunks(s.q_row()).zip(d_o.par_chunks(s.q_row())))
        .for_each(|(delta, (o, d_o))| deltas(o, d_o, d, delta));
    let (mut dq, mut dk, mut dv) = (
        unwritten(t * s.q_row()),
        vec![0.0; t * s.kv_row()],
        vec![0.0; t * s.kv_row()],
    );
    let out = [
        Shared(dq.as_mut_ptr()),
        Shared(dk.as_mut_ptr()),
        Shared(dv.as_mut_ptr()),
    ];
    let tasks: Vec<(Range<usize>, usize)> = seqs
        .iter()
        .flat_map(|seq| (0..s.num_kv).map(move |kv| (seq.clone(), kv)))
        .collect();
    let group = s.num_heads / s.num_kv;
    tasks.into_par_iter().for_each_init(
        || (unwritten(BLOCK_Q * BLOCK_K), unwritten(BLOCK_Q * BLOCK_K)),
        |(p, ds), (seq, kv)| {
            for head in kv * group..(kv + 1) * group {
                for first in (0..seq.len()).step_by(BLOCK_Q) {
                    let num_q = BLOCK_Q.min(seq.len() - first);
                    let at = seq.start + first;
                    let q_block = s.head(q, s.num_heads, at, head);
                    let do_block = s.head(d_o, s.num_heads, at, head);
                    for start in (0..first + num_q).step_by(BLOCK_K) {
                        let num_k = BLOCK_K.min(first + num_q - start);
                        let k_at = seq.start + start;
                        let k_block = s.head(k, s.num_kv, k_at, kv);
                        let v_block = s.head(v, s.num_kv, k_at, kv);
                        let size = (num_q, num_k, d);
                        gemm(
                            size,
                            p,
                            BLOCK_K,
                            Dst::Overwrite,
                            q_block,
                            k_block.t(),
                            s.scale,
                            false,
                        );
                        gemm(
                            size,
                            ds,
                            BLOCK_K,
                            Dst::Overwrite,
                            do_block,
                            v_block.t(),
                            1.0,
                            false,
                        );
                        for i in 0..num_q {
                            let row = i * BLOCK_K..i * BLOCK_K + num_k;
                            let seen = (first + i + 1).saturating_sub(start).min(num_k);
                            let (p, ds) = (&mut p[row.clone()], &mut ds[row]);
                            p[seen..].fill(0.0);
                            ds[seen..].fill(0.0);
                            let place = (at + i) * s.num_heads + head;
                            backward_row(&mut p[..seen], &mut ds[..seen], lse[place], delta[place]);
                        }
                        let (p, ds) = (Matrix::rows(p, BLOCK_K), Matrix::rows(ds, BLOCK_K));
                        let kv_offset = (k_at * s.num_kv + kv) * d;
                        let q_offset = (at * s.num_heads + head) * d;
                        let into = if start == 0 { Dst::Overwrite } else { Dst::Add };
                        // SAFETY: only this task writes this key/value head of this sequence, and the query heads that
                        // share it; all rows lie inside the sequence
                        unsafe {
                            let [dq, dk, dv] = out.map(Shared::get);
                            let (kr, qr) = (s.kv_row(), s.q_row());
                            gemm_raw(
                                (num_k, d, num_q),
                                dv.add(kv_offset),
                                kr,
                                Dst::Add,
                                p.t(),
                                do_block,
                                1.0,
                                false,
                            );
                            gemm_raw(
                                (num_k, d, num_q),
                                dk.add(kv_offset),
                                kr,
                                Dst::Add,
                                ds.t(),
                                q_block,
                                s.scale,
                                false,
                            );
                            gemm_raw(
                                (num_q, d, num_k),
                                dq.add(q_offset),
                                qr,
                                into,
                                ds,
                                k_block,
                                s.scale,
                                false,
                            );
                        }
                    }
                }
            }
        },
    );
    (dq, dk, dv)
}

vectorised! {
    /// `sum(do * o)` of each head of one token.
    fn deltas(o: &[f32], d_o: &[f32], d: usize, delta: &mut [f32]) {
        for ((delta, o), d_o) in delta.iter_mut().zip(o.chunks_exact(d)).zip(d_o.chunks_exact(d)) {
            *delta = dot(o, d_o);
        }
    }
}
