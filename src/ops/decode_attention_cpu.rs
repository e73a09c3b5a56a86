//! Attention of one new token a sequence over its cached keys and values, f32 or bf16 on the CPU; sums are f32.
//!
//! Sums are made in the same order whatever else is decoded beside a sequence.
//!
//! Letters: B sequences, S slots, H query heads, K key/value heads, G = H / K, D head dim, P cache positions, L positions held.

use rayon::prelude::*;

use super::cpu::unwritten;
use super::element::Element;
use super::vector::{LANES, dot, exp, max_of, reduce, vectorised};

/// How the caches of [`attention`] lie in memory.
#[derive(Clone, Copy)]
pub(super) struct CacheShape {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub num_positions: usize,
    pub head_dim: usize,
}

/// Attention of one query a sequence over the first `lens[b]` positions of its slot. q: `[B, H, D]`, caches
/// `[S, K, P, D]` -> `[B, H, D]`.
pub(super) fn attention<E: Element>(
    q: &[E],
    k_cache: &[E],
    v_cache: &[E],
    shape: CacheShape,
    slots: &[u32],
    lens: &[u32],
    scale: f32,
) -> Vec<E> {
    let CacheShape {
        num_heads,
        num_kv_heads,
        num_positions,
        head_dim,
    } = shape;
    let per_kv = num_heads / num_kv_heads * head_dim;
    let mut o: Vec<E> = unwritten(q.len());
    let tasks = o
        .par_chunks_mut(per_kv)
        .zip(q.par_chunks(per_kv))
        .enumerate();
    let scratch = || (Vec::new(), vec![0.0; per_kv], vec![0.0; per_kv]);
    tasks.for_each_init(scratch, |(scores, wide_q, wide_o), (task, (o, q))| {
        let (b, kv) = (task / num_kv_heads, task % num_kv_heads);
        let start = (slots[b] as usize * num_kv_heads + kv) * num_positions * head_dim;
        let held = start..start + lens[b] as usize * head_dim;
        let (k, v) = (&k_cache[held.clone()], &v_cache[held]);
        wide_q.iter_mut().zip(q).for_each(|(to, q)| *to = q.wide());
        attend(wide_q, k, v, head_dim, scale, scores, wide_o);
        o.iter_mut().zip(wide_o).for_each(|(to, o)| *to = E::of(*o));
    });
    o
}

/// The queries of one key/value head. q, o: `[G, D]`, k, v: `[L, D]`.
fn attend<E: Element>(
    q: &[f32],
    k: &[E],
    v: &[E],
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
                1 => return attend_avx512::<E, 1, 4>(q, k, v, scale, scores, o),
                2 => return attend_avx512::<E, 2, 4>(q, k, v, scale, scores, o),
                4 => return attend_avx512::<E, 4, 4>(q, k, v, scale, scores, o),
                8 => return attend_avx512::<E, 8, 2>(q, k, v, scale, scores, o),
                _ => {}
            }
        }
    }
    attend_any(q, k, v, head_dim, scale, scores, o);
}

vectorised! {
    /// [`attend`] for any head dim and processor.
    fn attend_any<E: Element>(q: &[f32], k: &[E], v: &[E], head_dim: usize, scale: f32, scores: &mut Vec<f32>, o: &mut [f32]) {
        let len = k.len() / head_dim;
        scores.clear();
        scores.resize(q.len() / head_dim * len, 0.0);
        for (t, k) in k.chunks_exact(head_dim).enumerate() {
            for (g, q) in q.chunks_exact(head_dim).enumerate() {
                scores[g * len + t] = dot(q, k) * scale;
            }
        }
        for scores in scores.chunks_exact_mut(len) {
            let scale = 1.0 / exp_and_sum(scores);
            for score in scores.iter_mut() {
                *score *= scale;
            }
        }
        o.fill(0.0);
        for (t, v) in v.chunks_exact(head_dim).enumerate() {
            for (g, o) in o.chunks_exact_mut(head_dim).enumerate() {
                let p = scores[g * len + t];
                for (o, v) in o.iter_mut().zip(v) {
                    *o += p * v.wide();
                }
            }
        }
    }
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
    k: &[E],
    v: &[E],
    scale: f32,
    scores: &mut Vec<f32>,
    o: &mut [f32],
) {
    use std::arch::x86_64::*;
    let head_dim = CHUNKS * LANES;
    let (len, num_heads) = (k.len() / head_dim, q.len() / head_dim);
    assert!(len > 0 && k.len() == v.len() && q.len() == o.len());
    let row = len.next_multiple_of(LANES);
    scores.clear();
    scores.resize(num_heads * row, 0.0);
    for start in (0..len).step_by(LANES) {
        for (g, q) in q.chunks_exact(head_dim).enumerate() {
            // SAFETY: rows start..len of k, and LANES scores from start on, are there
            unsafe {
                let dots =
                    dots::<E, CHUNKS>(q.as_ptr(), k.as_ptr().add(start * head_dim), len - start);
                let dots = _mm512_mul_ps(dots, _mm512_set1_ps(scale));
                _mm512_storeu_ps(scores.as_mut_ptr().add(g * row + start), dots);
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
            weighted_values::<E, CHUNKS, HEADS>(&scores[g * row..], row, v, scale, o);
        } else {
            weighted_values::<E, CHUNKS, 1>(&scores[g * row..], row, v, [scale[0]], o);
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
    v: &[E],
    scale: [f32; HEADS],
    o: &mut [f32],
) {
    use std::arch::x86_64::*;
    let head_dim = CHUNKS * LANES;
    let len = v.len() / head_dim;
    assert!(len <= row && p.len() >= (HEADS - 1) * row + len && o.len() == HEADS * head_dim);
    let mut acc = [[_mm512_setzero_ps(); CHUNKS]; HEADS];
    for t in 0..len {
        let mut value = [_mm512_setzero_ps(); CHUNKS];
        for (c, value) in value.iter_mut().enumerate() {
            // SAFETY: t < L and c < CHUNKS
            *value = unsafe { load(v.as_ptr().add(t * head_dim + c * LANES)) };
        }
        for (g, acc) in acc.iter_mut().enumerate() {
            // SAFETY: g < HEADS and t < L, as asserted
            let p = unsafe { _mm512_set1_ps(*p.as_ptr().add(g * row + t)) };
            for (acc, value) in acc.iter_mut().zip(value) {
                *acc = _mm512_fmadd_ps(p, value, *acc);
            }
        }
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
