//! Passes over one row of logits: maximum, sum of exponentials, weights. Written so that the compiler turns them into
//! vector code for the processor at hand; the result is a function of the row alone.

use crate::ops::vector::{LANES, exp, max_of, reduce, vectorised};

/// Tokens whose weights are summed up together, so that whole chunks can be passed over.
pub const CHUNK: usize = 64;

/// What each token weighs in a draw: 1 for the most probable one.
#[derive(Default)]
pub struct Weights {
    pub each: Vec<f32>,
    /// the largest weight of each chunk of [`CHUNK`] tokens
    pub chunk_max: Vec<f32>,
    /// the sum of the weights of each chunk
    pub chunk_sum: Vec<f64>,
}

vectorised! {
    /// The largest logit and the sum over the row of exp(logit - largest). The sum is NaN where the row holds a NaN or has
    /// no finite maximum.
    pub fn max_and_sum(row: &[f32]) -> (f32, f64) {
        let max = max_of(row);
        let mut sum = 0.0;
        // f32 lanes within a piece, f64 between pieces
        for piece in row.chunks(64 * LANES) {
            let mut lanes = [0.0f32; LANES];
            let (chunks, rest) = piece.as_chunks::<LANES>();
            for chunk in chunks {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane += exp(x - max);
                }
            }
            for &x in rest {
                lanes[0] += exp(x - max);
            }
            sum += f64::from(reduce(lanes, |a, b| a + b));
        }
        (max, sum)
    }
}

vectorised! {
    /// Fills in exp((logit - largest) / temperature) of each token, and the largest and the sum of each chunk.
    pub fn weigh(row: &[f32], temperature: f32, weights: &mut Weights) {
        let max = max_of(row);
        let scale = 1.0 / temperature;
        let Weights { each, chunk_max, chunk_sum } = weights;
        let num_chunks = row.len().div_ceil(CHUNK);
        each.resize(row.len(), 0.0);
        chunk_max.resize(num_chunks, 0.0);
        chunk_sum.resize(num_chunks, 0.0);
        let chunks = each.chunks_mut(CHUNK).zip(row.chunks(CHUNK));
        for ((weights, logits), (max_out, sum_out)) in chunks.zip(chunk_max.iter_mut().zip(chunk_sum)) {
            for (weight, &x) in weights.iter_mut().zip(logits) {
                *weight = exp((x - max) * scale);
            }
            *max_out = max_of(weights);
            let mut lanes = [0.0; LANES];
            let (pieces, rest) = weights.as_chunks::<LANES>();
            for piece in pieces {
                for (lane, &weight) in lanes.iter_mut().zip(piece) {
                    *lane += weight;
                }
            }
            for &weight in rest {
                lanes[0] += weight;
            }
            *sum_out = f64::from(reduce(lanes, |a, b| a + b));
        }
    }
}

vectorised! {
    /// The largest logit.
    pub fn largest(row: &[f32]) -> f32 {
        max_of(row)
    }
}

vectorised! {
    /// The first token with the largest logit.
    pub fn argmax(row: &[f32]) -> u32 {
        let max = max_of(row);
        row.iter().position(|&x| x == max).unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_hand() {
        // 1 + e^-1 + e^-2 over rows that fill lanes unevenly
        for pad in [0, 13, 16, 1500] {
            let mut row = vec![-1.0, 1.0, 0.0];
            row.extend(std::iter::repeat_n(f32::NEG_INFINITY, pad));
            let (max, sum) = max_and_sum(&row);
            assert_eq!(max, 1.0);
            assert!((sum - 1.503_214_7).abs() < 1e-6, "{sum}");
            assert_eq!(argmax(&row), 1);
        }
    }

    #[test]
    fn weights_by_hand() {
        let mut row = vec![f32::NEG_INFINITY; CHUNK + 3];
        (row[1], row[2], row[CHUNK]) = (2.0, 1.0, 0.0);
        let mut weights = Weights::default();
        weigh(&row, 0.5, &mut weights);
        // e^-2 and e^-4
        let (second, third) = (0.135_335_28, 0.018_315_64);
        assert_eq!(weights.each.len(), CHUNK + 3);
        assert!(
            (weights.each[2] - second).abs() < 1e-7 && (weights.each[CHUNK] - third).abs() < 1e-8
        );
        assert_eq!(weights.chunk_max, [1.0, weights.each[CHUNK]]);
        assert!((weights.chunk_sum[0] - f64::from(1.0 + second)).abs() < 1e-6);
        assert_eq!(weights.chunk_sum[1], f64::from(weights.each[CHUNK]));
    }
}
