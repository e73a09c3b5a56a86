//! Numbers to the blocks of [`super::ggml`], as llama.cpp's reference makes them without an importance matrix: for QLoRA and
//! for files of llama.cpp.
//!
//! q8_0: the largest magnitude becomes 127. q4_k: each 32 values x get a scale s and a min m that make
//!
//! ```text
//! sum_i w_i (s c_i - m - x_i)^2      with c_i in 0..15, m >= 0 and w_i = sqrt(mean x^2) + |x_i|
//! ```
//!
//! small. For given codes c the best s and m are a weighted linear regression; codes come from 21 guesses of the range. The
//! eight scales and mins of a block are then rounded to 6 bits, and the codes chosen anew for these.

use super::ggml::{GgmlType, scale_and_min};
use super::vector::vectorised;
use half::f16;

/// Whole blocks of finite values, none of a magnitude above that of f16.
pub fn encode(values: &[f32], of: GgmlType, blocks: &mut [u8]) {
    match of {
        GgmlType::Q8_0 => encode_q8_0(values, blocks),
        GgmlType::Q4_K => encode_q4_k(values, blocks),
    }
}

/// Values that share a scale.
const GROUP: usize = 32;
/// Groups of a block of q4_k.
const NUM_GROUPS: usize = 8;
/// The largest code of q4_k, and the largest scale and min of a group.
const MOST: f32 = 15.0;
const MOST_OF_GROUP: f32 = 63.0;
/// The guesses of a group's range take it for `MOST - 1` to `MOST + 1` steps.
const NUM_GUESSES: usize = 21;

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The nearest whole number, of two the even one; magnitudes below 2^22.
#[inline(always)]
fn nearest(v: f32) -> f32 {
    /// 1.5 * 2^23, where steps are whole numbers
    const ROUND: f32 = 12_582_912.0;
    (v + ROUND) - ROUND
}

vectorised! {
    fn encode_q8_0(values: &[f32], blocks: &mut [u8]) {
        let (values, blocks) = (values.as_chunks::<GROUP>().0, blocks.as_chunks_mut::<34>().0);
        for (values, block) in values.iter().zip(blocks) {
            let mut largest = [0.0f32; 8];
            for values in values.as_chunks::<8>().0 {
                for (most, v) in largest.iter_mut().zip(values) {
                    *most = larger(v.abs(), *most);
                }
            }
            let d = largest.into_iter().fold(0.0, larger) / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            let (head, codes) = block.split_at_mut(2);
            head.copy_from_slice(&f16::from_f32(d).to_le_bytes());
            for (code, value) in codes.iter_mut().zip(values) {
                // halves away from zero
                *code = (value * inverse).round() as i32 as u8;
            }
        }
    }
}

vectorised! {
    fn encode_q4_k(values: &[f32], blocks: &mut [u8]) {
        let (values, blocks) = (values.as_chunks::<256>().0, blocks.as_chunks_mut::<144>().0);
        for (values, block) in values.iter().zip(blocks) {
            let groups = values.as_chunks::<GROUP>().0;
            let (scales, mins) = fitted(groups);
            let largest = |of: &Lanes| of.iter().fold(0.0f32, |most, v| larger(*v, most));
            let largest = (largest(&scales), largest(&mins));
            let (d, dmin) = (largest.0 / MOST_OF_GROUP, largest.1 / MOST_OF_GROUP);
            block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            block[2..4].copy_from_slice(&f16::from_f32(dmin).to_le_bytes());
            let six_bits = |v: f32, most: f32| match most > 0.0 {
                true => smaller(nearest(MOST_OF_GROUP / most * v), MOST_OF_GROUP) as u8,
                false => 0,
            };
            block[4..16].fill(0);
            for j in 0..NUM_GROUPS {
                let (s, m) = (six_bits(scales[j], largest.0), six_bits(mins[j], largest.1));
                if j < 4 {
                    block[4 + j] |= s;
                    block[8 + j] |= m;
                } else {
                    block[8 + j] = s & 15 | (m & 15) << 4;
                    block[j] |= s >> 4 << 6;
                    block[4 + j] |= m >> 4 << 6;
                }
            }
            let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
            let dmin = f16::from_le_bytes([block[2], block[3]]).to_f32();
            for pair in 0..NUM_GROUPS / 2 {
                let mut codes = [[0u8; GROUP]; 2];
                for (which, codes) in codes.iter_mut().enumerate() {
                    let j = 2 * pair + which;
                    let (s, m) = scale_and_min(block, j);
                    let (scale, min) = (d * s, dmin * m);
                    if scale == 0.0 {
                        continue;
                    }
                    for (code, value) in codes.iter_mut().zip(&groups[j]) {
                        let steps = smaller(larger((value + min) / scale, 0.0), MOST);
                        *code = nearest(steps) as u8;
                    }
                }
                let bytes = &mut block[16 + GROUP * pair..][..GROUP];
                for (byte, (low, high)) in bytes.iter_mut().zip(codes[0].iter().zip(&codes[1])) {
                    *byte = low | high << 4;
                }
            }
        }
    }
}

/// A number of each group of a block.
type Lanes = [f32; NUM_GROUPS];

#[inline(always)]
fn lanes(of: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; NUM_GROUPS];
    for (g, lane) in lanes.iter_mut().enumerate() {
        *lane = of(g);
    }
    lanes
}

/// The scales and the mins of a block's groups, all of them side by side.
#[inline(always)]
fn fitted(groups: &[[f32; GROUP]]) -> (Lanes, Lanes) {
    let mut x = [[0.0; NUM_GROUPS]; GROUP];
    for (i, x) in x.iter_mut().enumerate() {
        *x = lanes(|g| groups[g][i]);
    }
    let (mut squares, mut high, mut low) = ([0.0; NUM_GROUPS], x[0], [0.0; NUM_GROUPS]);
    for x in &x {
        squares = lanes(|g| squares[g] + x[g] * x[g]);
        high = lanes(|g| larger(high[g], x[g]));
        // what all values are above is not taken off
        low = lanes(|g| smaller(low[g], x[g]));
    }
    let spread = lanes(|g| (squares[g] / GROUP as f32).sqrt());
    let mut w = [[0.0; NUM_GROUPS]; GROUP];
    let (mut sum_w, mut sum_x) = ([0.0; NUM_GROUPS], [0.0; NUM_GROUPS]);
    for (w, x) in w.iter_mut().zip(&x) {
        *w = lanes(|g| spread[g] + x[g].abs());
        sum_w = lanes(|g| sum_w[g] + w[g]);
        sum_x = lanes(|g| sum_x[g] + w[g] * x[g]);
    }
    let lowest = low;
    let error = |codes: &[Lanes; GROUP], scale: &Lanes, low: &Lanes| {
        let mut sum = [0.0; NUM_GROUPS];
        for ((c, x), w) in codes.iter().zip(&x).zip(&w) {
            let off = lanes(|g| scale[g] * c[g] + low[g] - x[g]);
            sum = lanes(|g| sum[g] + w[g] * (off[g] * off[g]));
        }
        sum
    };
    let mut codes = [[0.0; NUM_GROUPS]; GROUP];
    let code = |steps: f32, v: f32| nearest(smaller(larger(steps * v, 0.0), MOST));
    let mut scale = lanes(|g| (high[g] - low[g]) / MOST);
    let steps = lanes(|g| MOST / (high[g] - low[g]));
    for (c, x) in codes.iter_mut().zip(&x) {
        *c = lanes(|g| code(steps[g], x[g] - low[g]));
    }
    let mut least = error(&codes, &scale, &low);
    for i in 0..NUM_GUESSES {
        let range = MOST - 1.0 + 0.1 * i as f32;
        let steps = lanes(|g| range / (high[g] - low[g]));
        let [mut sum_c, mut sum_cc, mut sum_cx] = [[0.0; NUM_GROUPS]; 3];
        for ((c, x), w) in codes.iter_mut().zip(&x).zip(&w) {
            *c = lanes(|g| code(steps[g], x[g] - low[g]));
            let wc = lanes(|g| w[g] * c[g]);
            sum_c = lanes(|g| sum_c[g] + wc[g]);
            sum_cc = lanes(|g| sum_cc[g] + wc[g] * c[g]);
            sum_cx = lanes(|g| sum_cx[g] + wc[g] * x[g]);
        }
        let determinant = lanes(|g| sum_w[g] * sum_cc[g] - sum_c[g] * sum_c[g]);
        let free_low = lanes(|g| (sum_cc[g] * sum_x[g] - sum_c[g] * sum_cx[g]) / determinant[g]);
        let free_scale = lanes(|g| (sum_w[g] * sum_cx[g] - sum_x[g] * sum_c[g]) / determinant[g]);
        let its_low = lanes(|g| smaller(free_low[g], 0.0));
        let its_scale = lanes(|g| match free_low[g] > 0.0 {
            true => sum_cx[g] / sum_cc[g],
            false => free_scale[g],
        });
        let its_error = error(&codes, &its_scale, &its_low);
        for g in 0..NUM_GROUPS {
            // not where all of it is too small for numbers
            if determinant[g] > 0.0 && its_error[g] < least[g] {
                (least[g], scale[g], low[g]) = (its_error[g], its_scale[g], its_low[g]);
            }
        }
    }
    // all one number that is not above 0
    let is_flat = |g: usize| high[g] <= lowest[g];
    (
        lanes(|g| if is_flat(g) { 0.0 } else { scale[g] }),
        lanes(|g| if is_flat(g) { -lowest[g] } else { -low[g] }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(values: &[f32], of: GgmlType) -> Vec<f32> {
        use super::super::ggml::GgmlBlocks;
        let mut bytes = vec![0xff; of.num_bytes(values.len())];
        encode(values, of, &mut bytes);
        let blocks = GgmlBlocks::of_bytes(&bytes, of, (1, values.len())).unwrap();
        let back = blocks.dequantise(candle_core::DType::F32).unwrap();
        back.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn what_the_codes_can_say_comes_back() {
        // steps of 1/4 from -2 on, in every group all of 0 to 15
        let x: Vec<f32> = (0..256).map(|i| (i * 7 % 16) as f32 / 4.0 - 2.0).collect();
        for (x, back) in x.iter().zip(there_and_back(&x, GgmlType::Q4_K)) {
            assert!((x - back).abs() < 2e-3, "{x}: {back}");
        }
        // steps of 1/64, of which each group has -127
        let x: Vec<f32> = (0..64).map(|i| (i % 32 * 8 - 127) as f32 / 64.0).collect();
        assert_eq!(there_and_back(&x, GgmlType::Q8_0), x);
    }

    #[test]
    fn groups_of_one_number() {
        let mut x = vec![0.0f32; 256];
        for (j, v) in [0.0, 1.0, -1.0, 0.25, -0.25, 1e-20, -60_000.0, 60_000.0]
            .into_iter()
            .enumerate()
        {
            x.fill(0.0);
            x[32 * j..32 * (j + 1)].fill(v);
            for of in [GgmlType::Q4_K, GgmlType::Q8_0] {
                for (x, back) in x.iter().zip(there_and_back(&x, of)) {
                    assert!((x - back).abs() <= 1e-3 * x.abs() + 1e-19, "{x}: {back}");
                }
            }
        }
    }

    #[test]
    fn halves_go_away_from_zero() {
        // the largest is 127: values are codes
        let mut x = [0.0f32; 32];
        x[..5].copy_from_slice(&[127.0, 0.5, -0.5, 2.5, -126.5]);
        let mut block = [0u8; 34];
        encode(&x, GgmlType::Q8_0, &mut block);
        assert_eq!(block[..7], [0x00, 0x3c, 127, 1, 0xff, 3, 0x81]);
    }
}
