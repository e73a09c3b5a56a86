//! From one row of logits to one token: which tokens stay in play, which one is drawn, and how probable it was.
//!
//! The order of the steps is that of transformers: repetition penalty, temperature, top-k, top-p (over what top-k left),
//! min-p (relative to the most probable token). The log-probability reported is the model's own, before all of them.
//! vLLM filters by min-p before top-k and top-p, which differs only where several filters are used at once.
//!
//! A draw needs one uniform number, made from (seed, request id, position) alone, so that a text does not depend on the
//! batch it was sampled in. V is the vocabulary; a row is read in a few passes and never sorted whole.

use super::Sampling;
use super::softmax::{self, CHUNK, Weights};
use crate::ops;
use crate::random::{GOLDEN, mix};

/// The token drawn and its natural log-probability under the unfiltered distribution at temperature 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    pub token: u32,
    pub logprob: f32,
    /// The same at the temperature of the draw; 0 for a greedy one.
    pub sampled_logprob: f32,
}

impl From<ops::Drawn> for Choice {
    fn from(drawn: ops::Drawn) -> Self {
        Self {
            token: drawn.token,
            logprob: drawn.logprob,
            sampled_logprob: drawn.sampled_logprob,
        }
    }
}

/// Buffers of one thread, used again for each row.
#[derive(Default)]
pub struct Scratch {
    /// the row after the repetition penalty
    penalised: Vec<f32>,
    weights: Weights,
    /// by bucket of weight: how many tokens and how much of the mass
    counts: Vec<u32>,
    masses: Vec<f64>,
    keys: Vec<u64>,
}

/// Below it a draw is greedy: the reciprocal of a smaller one leaves f32's range of use.
pub(super) const MIN_TEMPERATURE: f64 = 1e-6;

/// A number in [0, 1) that is a pure function of its three arguments: [`mix`] over each in turn.
pub fn uniform(seed: u64, request: u64, position: u64) -> f64 {
    let next = |value: u64| mix(value.wrapping_add(GOLDEN));
    let bits = next(next(next(seed) ^ request) ^ position);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Chooses from `logits` [V] with the uniform number `u`; `seen` are the distinct tokens the repetition penalty is for.
/// None where the row holds a NaN or an infinity that leaves no distribution.
pub fn choose(
    logits: &[f32],
    sampling: &Sampling,
    seen: impl Iterator<Item = u32>,
    u: f64,
    scratch: &mut Scratch,
) -> Option<Choice> {
    let (max, sum) = softmax::max_and_sum(logits);
    // a NaN anywhere, an infinite maximum and a row of nothing but -inf all end here
    if !(max.is_finite() && sum.is_finite()) {
        return None;
    }
    let log_sum = sum.ln() as f32;
    let Scratch {
        penalised,
        weights,
        counts,
        masses,
        keys,
    } = scratch;
    let adjusted = if sampling.repetition_penalty == 1.0 {
        logits
    } else {
        penalised.clear();
        penalised.extend_from_slice(logits);
        let penalty = sampling.repetition_penalty as f32;
        for token in seen {
            if let Some(logit) = penalised.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        penalised
    };
    let (token, sampled_logprob) = if sampling.temperature < MIN_TEMPERATURE {
        (softmax::argmax(adjusted), 0.0)
    } else {
        softmax::weigh(adjusted, sampling.temperature as f32, weights);
        let total: f64 = weights.chunk_sum.iter().sum();
        if !(total.is_finite() && total > 0.0) {
            return None;
        }
        let cut = lowest_kept(weights, sampling, counts, masses, keys);
        let token = draw(weights, cut, u);
        let best = softmax::largest(adjusted);
        let distance = f64::from(adjusted[token as usize] - best) / sampling.temperature;
        (token, (distance - total.ln()) as f32)
    };
    Some(Choice {
        token,
        logprob: logits[token as usize] - max - log_sum,
        sampled_logprob,
    })
}

/// Tokens in falling order of weight, the lower id first among equals, have falling keys. Weights are in [0, 1], where the
/// bits of a float grow with its value.
fn key(weight: f32, token: usize) -> u64 {
    u64::from(weight.to_bits()) << 32 | u64::from(!(token as u32))
}

/// A bucket holds the weights that agree in exponent and four bits of mantissa.
const BUCKET_SHIFT: u32 = 19;
const NUM_BUCKETS: usize = (1.0f32.to_bits() >> BUCKET_SHIFT) as usize + 1;

/// The key of the last token that top-k, top-p and min-p leave in play; 0 where nothing is filtered.
fn lowest_kept(
    weights: &Weights,
    sampling: &Sampling,
    counts: &mut Vec<u32>,
    masses: &mut Vec<f64>,
    keys: &mut Vec<u64>,
) -> u64 {
    let by_min_p = match sampling.min_p > 0.0 {
        true => u64::from((sampling.min_p as f32).to_bits()) << 32,
        false => 0,
    };
    let num_tokens = weights.each.len();
    let limits_count = sampling.top_k > 0 && sampling.top_k < num_tokens;
    let limits_mass = sampling.top_p < 1.0;
    if !limits_count && !limits_mass {
        return by_min_p;
    }
    // Chunks wholly below `floor` have together less than 1 - top_p of the mass, which is at least 1: none of their
    // tokens is in the nucleus, and all of them weigh less than any other chunk's best.
    let floor = match limits_count {
        true => 0.0,
        false => ((1.0 - sampling.top_p) / num_tokens as f64) as f32 * 0.5,
    };
    let above = |floor: f32| {
        let chunks = weights
            .each
            .chunks(CHUNK)
            .zip(&weights.chunk_max)
            .enumerate();
        chunks
            .filter(move |&(_, (_, &max))| max >= floor)
            .map(|(i, (chunk, _))| (i * CHUNK, chunk))
    };
    let bucket_of =
        |weight: f32| ((weight.to_bits() >> BUCKET_SHIFT) as usize).min(NUM_BUCKETS - 1);
    counts.clear();
    counts.resize(NUM_BUCKETS, 0);
    masses.clear();
    masses.resize(NUM_BUCKETS, 0.0);
    for (_, chunk) in above(floor) {
        for &weight in chunk {
            let bucket = bucket_of(weight);
            counts[bucket] += 1;
            masses[bucket] += f64::from(weight);
        }
    }
    // the tokens of a bucket in falling order
    let members = |bucket: usize, keys: &mut Vec<u64>| {
        keys.clear();
        for (at, chunk) in above(f32::from_bits((bucket as u32) << BUCKET_SHIFT).max(floor)) {
            let of_bucket = chunk
                .iter()
                .enumerate()
                .filter(|&(_, &weight)| bucket_of(weight) == bucket);
            keys.extend(of_bucket.map(|(i, &weight)| key(weight, at + i)));
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
    };
    let weight_of = |key: u64| f64::from(f32::from_bits((key >> 32) as u32));

    let mut lowest = 0;
    let mut total: f64 = weights.chunk_sum.iter().sum();
    if limits_count {
        let mut wanted = sampling.top_k;
        total = 0.0;
        for bucket in (0..NUM_BUCKETS).rev() {
            if counts[bucket] as usize >= wanted {
                members(bucket, keys);
                keys.truncate(wanted);
                lowest = keys.last().copied().unwrap_or(0);
                // the rest of this bucket and all below are out
                masses[bucket] = keys.iter().map(|&key| weight_of(key)).sum();
                masses[..bucket].fill(0.0);
                total += masses[bucket];
                break;
            }
            wanted -= counts[bucket] as usize;
            total += masses[bucket];
        }
    }
    if limits_mass {
        let target = sampling.top_p * total;
        let mut sum = 0.0;
        'buckets: for bucket in (0..NUM_BUCKETS).rev() {
            if masses[bucket] > 0.0 && sum + masses[bucket] >= target {
                members(bucket, keys);
                for &key in keys.iter() {
                    sum += weight_of(key);
                    if sum >= target {
                        lowest = lowest.max(key);
                        break 'buckets;
                    }
                }
                // rounding: the whole bucket is needed after all
                continue;
            }
            sum += masses[bucket];
        }
    }
    lowest.max(by_min_p)
}

/// The token where the running sum of the weights kept, in order of ids, passes `u` times their total.
fn draw(weights: &Weights, lowest: u64, u: f64) -> u32 {
    // a token above the cut in weight stays; of those equal to it the ids up to the one in the key
    let (cut, last_equal) = (
        f32::from_bits((lowest >> 32) as u32),
        !(lowest as u32) as usize,
    );
    let kept = |token: usize| {
        let weight = weights.each[token];
        weight > 0.0 && (weight > cut || (weight == cut && token <= last_equal))
    };
    let tokens_of = |chunk: usize| chunk * CHUNK..weights.each.len().min((chunk + 1) * CHUNK);
    let sum_of = |chunk: usize| -> f64 {
        if lowest == 0 {
            weights.chunk_sum[chunk]
        } else if weights.chunk_max[chunk] < cut {
            0.0
        } else {
            tokens_of(chunk)
                .filter(|&token| kept(token))
                .map(|token| f64::from(weights.each[token]))
                .sum()
        }
    };
    let num_chunks = weights.chunk_sum.len();
    let target = u * (0..num_chunks).map(sum_of).sum::<f64>();
    let mut before = 0.0;
    for chunk in 0..num_chunks {
        let sum = sum_of(chunk);
        if before + sum > target {
            let mut running = before;
            let mut last = None;
            for token in tokens_of(chunk).filter(|&token| kept(token)) {
                running += f64::from(weights.each[token]);
                last = Some(token);
                if running > target {
                    break;
                }
            }
            // a chunk's sum and the running one may differ in the last bits: then it is the chunk's last
            if let Some(token) = last {
                return token as u32;
            }
        }
        before += sum;
    }
    // only by rounding at the very end: the last token in play
    (0..weights.each.len())
        .rev()
        .find(|&token| kept(token))
        .unwrap_or(0) as u32
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
