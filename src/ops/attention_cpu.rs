//! Variable-length causal attention over f32 or bf16 slices in blocks: scores exist for a block of queries and a block of keys at
//! a time, blocks above the diagonal are never touched (FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2).
//!
//! Forward tasks are (sequence, head, block of queries); backward tasks are (sequence, key/value head), which own all
//! gradients they write, so that sums, which are f32, are always taken in the same order.

use super::SeqLens;
use super::cpu::{Dst, Matrix, Shared, gemm, unwritten};
use super::element::Element;
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
    fn head<'a, E>(&self, x: &'a [E], heads: usize, t: usize, head: usize) -> Matrix<'a, E> {
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

vectorised! {
    /// `to = row * factor`, rounded.
    fn scaled_row<E: Element>(row: &[f32], factor: f32, to: &mut [E]) {
        for (to, x) in to.iter_mut().zip(row) {
            *to = E::of(x * factor);
        }
    }
}

/// o `[T, H, D]` and the log-sum-exp of each query's scores, `[T, H]`.
pub(super) fn forward<E: Element>(
    q: &[E],
    k: &[E],
    v: &[E],
    seqs: &SeqLens,
    s: Shape,
) -> (Vec<E>, Vec<f32>) {
    let t = seqs.total();
    let mut o: Vec<E> = unwritten(t * s.q_row());
    let mut lse: Vec<f32> = unwritten(t * s.num_heads);
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
                unwritten::<f32>(BLOCK_Q * BLOCK_K),
                unwritten::<f32>(BLOCK_Q * s.head_dim),
            )
        },
        |(scores, acc), (seq, head, first)| {
            let num_q = BLOCK_Q.min(seq.len() - first);
            let (maxima, sums) = block_forward(q, k, v, &seq, head, first, num_q, s, scores, acc);
            for i in 0..num_q {
                let token = seq.start + first + i;
                let row = &acc[i * s.head_dim..(i + 1) * s.head_dim];
                // SAFETY: only this task writes this head of this token
                let place = unsafe {
                    *lse_shared.get().add(token * s.num_heads + head) = maxima[i] + sums[i].ln();
                    let place = o_shared
                        .get()
                        .add((token * s.num_heads + head) * s.head_dim);
                    std::slice::from_raw_parts_mut(place, s.head_dim)
                };
                scaled_row(row, 1.0 / sums[i], place);
            }
        },
    );
    (o, lse)
}

/// Unnormalised outputs of a block of queries into `acc`; returns running maxima and sums.
#[allow(clippy::too_many_arguments)] // the inner part of one function
fn block_forward<E: Element>(
    q: &[E],
    k: &[E],
    v: &[E],
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
pub(super) fn backward<E: Element>(
    q: &[E],
    k: &[E],
    v: &[E],
    o: &[E],
    lse: &[f32],
    d_o: &[E],
    seqs: &SeqLens,
    s: Shape,
) -> (Vec<E>, Vec<E>, Vec<E>) {
    let (t, d) = (seqs.total(), s.head_dim);
    let mut delta: Vec<f32> = unwritten(t * s.num_heads);
    delta
        .par_chunks_mut(s.num_heads)
        .zip(o.par_chunks(s.q_row()).zip(d_o.par_chunks(s.q_row())))
        .for_each(|(delta, (o, d_o))| deltas(o, d_o, d, delta));
    let mut dq: Vec<E> = unwritten(t * s.q_row());
    let (mut dk, mut dv): (Vec<E>, Vec<E>) = (unwritten(t * s.kv_row()), unwritten(t * s.kv_row()));
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
        || Scratch::new(d),
        |scratch, (seq, kv)| {
            scratch.dk.clear();
            scratch.dk.resize(seq.len() * d, 0.0);
            scratch.dv.clear();
            scratch.dv.resize(seq.len() * d, 0.0);
            for head in kv * group..(kv + 1) * group {
                for first in (0..seq.len()).step_by(BLOCK_Q) {
                    let num_q = BLOCK_Q.min(seq.len() - first);
                    let at = seq.start + first;
                    let queries = Queries {
                        q: s.head(q, s.num_heads, at, head),
                        d_o: s.head(d_o, s.num_heads, at, head),
                        lse: &lse[at * s.num_heads + head..],
                        delta: &delta[at * s.num_heads + head..],
                    };
                    for start in (0..first + num_q).step_by(BLOCK_K) {
                        let k_at = seq.start + start;
                        let k_block = s.head(k, s.num_kv, k_at, kv);
                        let v_block = s.head(v, s.num_kv, k_at, kv);
                        block_backward(&queries, k_block, v_block, first, num_q, start, s, scratch);
                    }
                    let place = (at * s.num_heads + head) * d;
                    // SAFETY: only this task writes this query head of this sequence
                    unsafe {
                        write_rows(&scratch.dq, d, num_q, out[0].get().add(place), s.q_row())
                    };
                }
            }
            for (sums, out) in [(&scratch.dk, out[1]), (&scratch.dv, out[2])] {
                let place = (seq.start * s.num_kv + kv) * d;
                // SAFETY: only this task writes this key/value head of this sequence
                unsafe { write_rows(sums, d, seq.len(), out.get().add(place), s.kv_row()) };
            }
        },
    );
    (dq, dk, dv)
}

/// What a thread works in.
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
    /// Of a block of queries, `[BLOCK_Q, D]`.
    dq: Vec<f32>,
    /// Of a whole sequence, `[L, D]`.
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Scratch {
    fn new(head_dim: usize) -> Self {
        Self {
            p: unwritten(BLOCK_Q * BLOCK_K),
            ds: unwritten(BLOCK_Q * BLOCK_K),
            dq: unwritten(BLOCK_Q * head_dim),
            dk: Vec::new(),
            dv: Vec::new(),
        }
    }
}

/// A block of queries of one head and what is known of each.
struct Queries<'a, E> {
    q: Matrix<'a, E>,
    d_o: Matrix<'a, E>,
    /// Every H-th value.
    lse: &'a [f32],
    delta: &'a [f32],
}

/// Adds what queries `first..` of a sequence and keys `start..` give to the sums of `scratch`.
#[allow(clippy::too_many_arguments)] // the inner part of one function
fn block_backward<E: Element>(
    queries: &Queries<E>,
    k_block: Matrix<E>,
    v_block: Matrix<E>,
    first: usize,
    num_q: usize,
    start: usize,
    s: Shape,
    scratch: &mut Scratch,
) {
    let d = s.head_dim;
    let num_k = BLOCK_K.min(first + num_q - start);
    let Scratch { p, ds, dq, dk, dv } = scratch;
    let size = (num_q, num_k, d);
    gemm(
        size,
        p,
        BLOCK_K,
        Dst::Overwrite,
        queries.q,
        k_block.t(),
        s.scale,
        false,
    );
    gemm(
        size,
        ds,
        BLOCK_K,
        Dst::Overwrite,
        queries.d_o,
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
        let (lse, delta) = (queries.lse[i * s.num_heads], queries.delta[i * s.num_heads]);
        backward_row(&mut p[..seen], &mut ds[..seen], lse, delta);
    }
    let (p, ds) = (
        Matrix::rows(&p[..], BLOCK_K),
        Matrix::rows(&ds[..], BLOCK_K),
    );
    let into = if start == 0 { Dst::Overwrite } else { Dst::Add };
    let size = (num_k, d, num_q);
    gemm(
        size,
        &mut dv[start * d..],
        d,
        Dst::Add,
        p.t(),
        queries.d_o,
        1.0,
        false,
    );
    gemm(
        size,
        &mut dk[start * d..],
        d,
        Dst::Add,
        ds.t(),
        queries.q,
        s.scale,
        false,
    );
    gemm((num_q, d, num_k), dq, d, into, ds, k_block, s.scale, false);
}

/// Rows of `d` sums into rows that are `row` apart, rounded.
///
/// # Safety
/// These rows must be there, and nobody else may touch them.
unsafe fn write_rows<E: Element>(sums: &[f32], d: usize, num_rows: usize, to: *mut E, row: usize) {
    for (i, sums) in sums.chunks_exact(d).take(num_rows).enumerate() {
        // SAFETY: the caller's
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(i * row), d) };
        scaled_row(sums, 1.0, to);
    }
}

vectorised! {
    /// `sum(do * o)` of each head of one token.
    fn deltas<E: Element>(o: &[E], d_o: &[E], d: usize, delta: &mut [f32]) {
        for ((delta, o), d_o) in delta.iter_mut().zip(o.chunks_exact(d)).zip(d_o.chunks_exact(d)) {
            *delta = dot(o, d_o);
        }
    }
}
