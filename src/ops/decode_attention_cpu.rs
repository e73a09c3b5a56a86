//! Attention of one new token a sequence over its cached keys and values, f32 or bf16 on the CPU; sums are f32. The contract
//! stands in [`super::paged`].
//!
//! Sums are made in the same order whatever else is decoded beside a sequence, and wherever its pages lie.
//!
//! Letters: B sequences, H query heads, K key/value heads, G = H / K, D head dim, P positions held.

use rayon::prelude::*;

use super::cpu::unwritten;
use super::element::Element;
use super::paged::{PAGE, PAGES_A_CHUNK, PageTable, PoolShape};
use super::vector::{LANES, dot, exp, max_of, reduce, vectorised};

/// The keys and values of one layer.
pub(super) struct Cached<'a, E> {
    pub chunks: Vec<&'a [E]>,
    pub shape: PoolShape,
    pub layer: usize,
}

impl<'a, E> Cached<'a, E> {
    /// The first `len` keys and values that a page holds of a head. -> `[len, D]` each
    fn rows(&self, page: usize, len: usize, kv_head: usize) -> [&'a [E]; 2] {
        let shape = self.shape;
        let chunk = self.chunks[page / PAGES_A_CHUNK];
        let keys = page % PAGES_A_CHUNK * shape.page_size()
            + shape.layer_start(self.layer)
            + kv_head * shape.head_size();
        let values = keys + shape.num_kv_heads * shape.head_size();
        [keys, values].map(|start| &chunk[start..start + len * shape.head_dim])
    }
}

/// Attention of one query a sequence over what `table` names. q: `[B, H, D]` -> `[B, H, D]`.
pub(super) fn attention<E: Element>(
    q: &[E],
    cached: &Cached<E>,
    num_heads: usize,
    table: &PageTable,
    scale: f32,
) -> Vec<E> {
    let (num_kv, head_dim) = (cached.shape.num_kv_heads, cached.shape.head_dim);
    let per_kv = num_heads / num_kv * head_dim;
    let mut o: Vec<E> = unwritten(q.len());
    let tasks = o
        .par_chunks_mut(per_kv)
        .zip(q.par_chunks(per_kv))
        .enumerate();
    struct Room<'a, E> {
        held: Held<'a, E>,
        scores: Vec<f32>,
        q: Vec<f32>,
        o: Vec<f32>,
    }
    let room = || Room {
        held: Held {
            k: Vec::new(),
            v: Vec::new(),
            next: Vec::new(),
        },
        scores: Vec::new(),
        q: vec![0.0; per_kv],
        o: vec![0.0; per_kv],
    };
    let num_tasks = q.len() / per_kv;
    tasks.for_each_init(room, |room, (task, (o, q))| {
        let Held { k, v, next } = &mut room.held;
        k.clear();
        v.clear();
        next.clear();
        for (page, len) in table.pages_of(task / num_kv) {
            let [keys, values] = cached.rows(page, len, task % num_kv);
            k.push(keys);
            v.push(values);
        }
        if task + 1 < num_tasks {
            let (sequence, kv_head) = ((task + 1) / num_kv, (task + 1) % num_kv);
            let pages = table.pages_of(sequence).take(MOST_PAGES_AHEAD);
            next.extend(pages.map(|(page, len)| cached.rows(page, len, kv_head)[0]));
        }
        room.q.iter_mut().zip(q).for_each(|(to, q)| *to = q.wide());
        let Room { held, scores, .. } = room;
        attend(&room.q, held, head_dim, scale, scores, &mut room.o);
        o.iter_mut()
            .zip(&room.o)
            .for_each(|(to, o)| *to = E::of(*o));
    });
    o
}

/// The pages of a head: `[P, D]` of keys and of values, all but the last page full, and the first pages of keys that are read
/// after them.
struct Held<'a, E> {
    k: Vec<&'a [E]>,
    v: Vec<&'a [E]>,
    next: Vec<&'a [E]>,
}

/// The queries of one key/value head. q, o: `[G, D]`.
fn attend<E: Element>(
    q: &[f32],
    held: &Held<E>,
    head_dim: usize,
    scale: f32,
    scores: &mut Vec<f32>,
    o: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if super::vector::has_avx512() {
        // SAFETY: the features were found a line above
        unsafe {
            match head_dim / LANES {
                _ if !head_dim.is_multiple_of(LANES) => {}
                1 => return attend_avx512::<E, 1, 4>(q, held, scale, scores, o),
                2 => return attend_avx512::<E, 2, 4>(q, held, scale, scores, o),
                4 => return attend_avx512::<E, 4, 4>(q, held, scale, scores, o),
                8 => return attend_avx512::<E, 8, 2>(q, held, scale, scores, o),
                _ => {}
            }
        }
    }
    attend_any(q, held, head_dim, scale, scores, o);
}

vectorised! {
    /// [`attend`] for any head dim and processor.
    fn attend_any<E: Element>(q: &[f32], held: &Held<E>, head_dim: usize, scale: f32, scores: &mut Vec<f32>, o: &mut [f32]) {
        let Held { k, v, next } = held;
        let len = num_positions(k, head_dim);
        scores.clear();
        scores.resize(q.len() / head_dim * len, 0.0);
        for (page, (k, ahead)) in ahead_of(k, v).enumerate() {
            for (t, k) in k.chunks_exact(head_dim).enumerate() {
                fetch(ahead, t * head_dim, head_dim);
                for (g, q) in q.chunks_exact(head_dim).enumerate() {
                    scores[g * len + page * PAGE + t] = dot(q, k) * scale;
                }
            }
        }
        for scores in scores.chunks_exact_mut(len) {
            let scale = 1.0 / exp_and_sum(scores);
            for score in scores.iter_mut() {
                *score *= scale;
            }
        }
        o.fill(0.0);
        for (page, (v, ahead)) in ahead_of(v, next).enumerate() {
            for (t, v) in v.chunks_exact(head_dim).enumerate() {
                fetch(ahead, t * head_dim, head_dim);
                for (g, o) in o.chunks_exact_mut(head_dim).enumerate() {
                    let p = scores[g * len + page * PAGE + t];
                    for (o, v) in o.iter_mut().zip(v) {
                        *o += p * v.wide();
                    }
                }
            }
        }
    }
}

/// See [`ahead_of`].
const MOST_PAGES_AHEAD: usize = 2;

/// Each page with one to ask for meanwhile, 16 KiB ahead: the processor foresees what follows in memory, not
/// where the next page lies. `after` is read next.
fn ahead_of<'a, E>(
    pages: &'a [&'a [E]],
    after: &'a [&'a [E]],
) -> impl Iterator<Item = (&'a [E], &'a [E])> {
    const BYTES: usize = 16 << 10;
    // all but the last page are of one size
    let is_large = pages
        .first()
        .is_some_and(|page| size_of_val(*page) >= BYTES);
    let num = if is_large { 1 } else { MOST_PAGES_AHEAD };
    let ahead = pages.iter().chain(after).copied().skip(num);
    let ahead = ahead.chain(std::iter::repeat(&[][..]));
    pages.iter().copied().zip(ahead)
}

/// Asks for a part of a page.
#[inline(always)]
fn fetch<E>(page: &[E], start: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        let part = &page[start.min(page.len())..(start + len).min(page.len())];
        for line in part.chunks(64 / size_of::<E>()) {
            // SAFETY: it may name any address
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (page, start, len);
}

/// Positions that the pages of a head hold.
#[inline(always)]
fn num_positions<E>(pages: &[&[E]], head_dim: usize) -> usize {
    pages.iter().map(|page| page.len() / head_dim).sum()
}

/// Scores to `exp(score - max)`; returns their sum.
#[inline(always)]
fn exp_and_sum(scores: &mut [f32]) -> f32 {
    let max = max_of(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    reduce(lanes, |a, b| a + b)
}

/// [`attend`] where D is CHUNKS registers; the values are weighted for HEADS heads at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn attend_avx512<E: Element, const CHUNKS: usize, const HEADS: usize>(
    q: &[f32],
    held: &Held<E>,
    scale: f32,
    scores: &mut Vec<f32>,
    o: &mut [f32],
) {
    use std::arch::x86_64::*;
    let head_dim = CHUNKS * LANES;
    let Held { k, v, .. } = held;
    let (len, num_heads) = (num_positions(k, head_dim), q.len() / head_dim);
    let full = |pages: &[&[E]]| {
        pages
            .iter()
            .rev()
            .skip(1)
            .all(|page| page.len() == PAGE * head_dim)
    };
    assert!(len > 0 && len == num_positions(v, head_dim) && full(k) && q.len() == o.len());
    let row = len.next_multiple_of(LANES);
    scores.clear();
    scores.resize(num_heads * row, 0.0);
    for (page, (k, ahead)) in ahead_of(k, v).enumerate() {
        let rows = k.len() / head_dim;
        for start in (0..rows).step_by(LANES) {
            fetch(ahead, start * head_dim, LANES * head_dim);
            for (g, q) in q.chunks_exact(head_dim).enumerate() {
                // SAFETY: rows start..rows of k are there; so are LANES scores, as the pages before this one are full of them
                unsafe {
                    let k = k.as_ptr().add(start * head_dim);
                    let dots = dots::<E, CHUNKS>(q.as_ptr(), k, rows - start);
                    let dots = _mm512_mul_ps(dots, _mm512_set1_ps(scale));
                    let at = g * row + page * PAGE + start;
                    _mm512_storeu_ps(scores.as_mut_ptr().add(at), dots);
                }
            }
        }
    }
    let mut g = 0;
    while g < num_heads {
        let heads = if g + HEADS <= num_heads { HEADS } else { 1 };
        let o = &mut o[g * head_dim..(g + heads) * head_dim];
        let mut scale = [0.0; HEADS];
        for (i, scale) in scale.iter_mut().take(heads).enumerate() {
            let at = (g + i) * row;
            *scale = 1.0 / exp_and_sum(&mut scores[at..at + len]);
        }
        if heads == HEADS {
            weighted_values::<E, CHUNKS, HEADS>(&scores[g * row..], row, held, scale, o);
        } else {
            weighted_values::<E, CHUNKS, 1>(&scores[g * row..], row, held, [scale[0]], o);
        }
        g += heads;
    }
}

/// LANES values in f32.
///
/// # Safety
/// They must be there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load<E: Element>(from: *const E) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    // SAFETY: the caller's
    unsafe {
        if E::IS_F32 {
            return _mm512_loadu_ps(from.cast());
        }
        let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
    }
}

/// The inner products of q with up to LANES rows of k; what stands in the lanes after the last row has no meaning.
///
/// # Safety
/// q must hold D values, k `num_rows` rows of them, at least one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn dots<E: Element, const CHUNKS: usize>(
    q: *const f32,
    k: *const E,
    num_rows: usize,
) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    let last = num_rows - 1;
    let mut acc = [_mm512_setzero_ps(); LANES];
    for (t, acc) in acc.iter_mut().enumerate() {
        let k = k.wrapping_add(t.min(last) * CHUNKS * LANES);
        for c in 0..CHUNKS {
            // SAFETY: a row that is there, and D = CHUNKS * LANES
            unsafe {
                let q = _mm512_loadu_ps(q.add(c * LANES));
                *acc = _mm512_fmadd_ps(q, load(k.add(c * LANES)), *acc);
            }
        }
    }
    // sixteen registers of sixteen parts to one of sixteen sums, by halves
    let mut pairs = [_mm512_setzero_ps(); 8];
    for (i, pair) in pairs.iter_mut().enumerate() {
        let (a, b) = (acc[2 * i], acc[2 * i + 1]);
        *pair = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    let mut quads = [_mm512_setzero_ps(); 4];
    for (i, quad) in quads.iter_mut().enumerate() {
        let a = _mm512_castps_pd(pairs[2 * i]);
        let b = _mm512_castps_pd(pairs[2 * i + 1]);
        *quad = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)),
        );
    }
    let halves = |a, b| {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(a, b),
        )
    };
    halves(halves(quads[0], quads[1]), halves(quads[2], quads[3]))
}

/// `o[g] = scale[g] * sum_t p[g][t] v[t]`; p: rows of `row` values.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn weighted_values<E: Element, const CHUNKS: usize, const HEADS: usize>(
    p: &[f32],
    row: usize,
    held: &Held<E>,
    scale: [f32; HEADS],
    o: &mut [f32],
) {
    use std::arch::x86_64::*;
    let head_dim = CHUNKS * LANES;
    let Held { v, next, .. } = held;
    let len = num_positions(v, head_dim);
    assert!(len <= row && p.len() >= (HEADS - 1) * row + len && o.len() == HEADS * head_dim);
    let mut acc = [[_mm512_setzero_ps(); CHUNKS]; HEADS];
    let mut first = 0;
    for (v, ahead) in ahead_of(v, next) {
        let rows = v.len() / head_dim;
        for t in 0..rows {
            fetch(ahead, t * head_dim, head_dim);
            let mut value = [_mm512_setzero_ps(); CHUNKS];
            for (c, value) in value.iter_mut().enumerate() {
                // SAFETY: a row of the page, and c < CHUNKS
                *value = unsafe { load(v.as_ptr().add(t * head_dim + c * LANES)) };
            }
            for (g, acc) in acc.iter_mut().enumerate() {
                // SAFETY: g < HEADS and first + t < P, as asserted
                let p = unsafe { _mm512_set1_ps(*p.as_ptr().add(g * row + first + t)) };
                for (acc, value) in acc.iter_mut().zip(value) {
                    *acc = _mm512_fmadd_ps(p, value, *acc);
                }
            }
        }
        first += rows;
    }
    for (g, acc) in acc.iter().enumerate() {
        for (c, acc) in acc.iter().enumerate() {
            // SAFETY: as asserted
            unsafe {
                let to = o.as_mut_ptr().add(g * head_dim + c * LANES);
                _mm512_storeu_ps(to, _mm512_mul_ps(*acc, _mm512_set1_ps(scale[g])));
            }
        }
    }
}
