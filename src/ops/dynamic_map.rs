//! The 8-bit data type with a dynamic exponent: a sign, an exponent of base 10 in unary, and the rest linear
//! (arXiv 1511.04561). Signed it holds scales of 4-bit weights and the first moments of 8-bit AdamW, unsigned the second
//! moments; the values are those of bitsandbytes.

use std::sync::LazyLock;

const EXPONENTS: i32 = 7;

/// For values of either sign.
static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(values(true)));
/// For values that are never negative, in twice as many steps.
static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(values(false)));

/// The map for values of either sign.
pub(super) fn signed() -> &'static DynamicMap {
    &SIGNED
}

/// The map for values that are never negative.
pub(super) fn unsigned() -> &'static DynamicMap {
    &UNSIGNED
}

/// 256 ascending values in `[-1, 1]`, and what finds the nearest of them.
pub(super) struct DynamicMap {
    values: [f32; 256],
    /// Halfway between a value and the next; nothing is above the last one.
    bounds: [f32; 256],
    /// The code of the least number of each bin, see [`bin`].
    first: Vec<u8>,
}

/// Magnitudes below 2^-23, which is below the first boundary, share a bin; above there are 128 bins between powers of 2, so
/// that none of them holds two boundaries. Those of negative numbers come after.
const LOWEST: u32 = (127 - 23) << 7;
const NUM_BINS: usize = (127 << 7) - LOWEST as usize + 1;

/// The bin of a number in `[-1, 1]`; what is outside has that of the end.
#[inline(always)]
fn bin(x: f32) -> usize {
    let bits = x.to_bits();
    let magnitude = ((bits & 0x7fff_ffff) >> 16).saturating_sub(LOWEST) as usize;
    magnitude.min(NUM_BINS - 1) + (bits >> 31) as usize * NUM_BINS
}

impl DynamicMap {
    fn new(values: [f32; 256]) -> Self {
        let mut bounds = [f32::INFINITY; 256];
        for (bound, pair) in bounds.iter_mut().zip(values.windows(2)) {
            *bound = (pair[0] + pair[1]) / 2.0;
        }
        let code = |x: f32| bounds.partition_point(|&bound| bound < x) as u8;
        let least = |i: usize| f32::from_bits((LOWEST + i as u32) << 16);
        let positive = (0..NUM_BINS).map(|i| code(if i == 0 { 0.0 } else { least(i) }));
        // the least negative number of a bin is the one before the next bin's magnitude
        let negative =
            (0..NUM_BINS).map(|i| code(-f32::from_bits(least(i + 1).to_bits() - 1).min(1.0)));
        Self {
            values,
            bounds,
            first: positive.chain(negative).collect(),
        }
    }

    /// What the codes stand for.
    pub(super) fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// Boundaries between codes: a number has the code of how many of them are below it.
    pub(super) fn bounds(&self) -> &[f32] {
        &self.bounds[..255]
    }

    /// Code of the value nearest to a number in `[-1, 1]`; halfway, the lower.
    #[inline(always)]
    pub(super) fn nearest(&self, x: f32) -> u8 {
        let code = self.first[bin(x)];
        code + u8::from(x > self.bounds[usize::from(code)])
    }
}

/// All values, ascending.
fn values(signed: bool) -> [f32; 256] {
    let mut map = vec![0.0f32, 1.0];
    for i in 0..EXPONENTS {
        let n = 1usize << if signed { i } else { i + 1 };
        // PyTorch's linspace in f32: from both ends to the middle
        let step = (1.0f32 - 0.1) / n as f32;
        let boundary = |j: usize| match j <= n / 2 {
            true => 0.1 + step * j as f32,
            false => 1.0 - step * (n - j) as f32,
        };
        let power = 10f64.powi(i - EXPONENTS + 1);
        for j in 0..n {
            let mean = (boundary(j) + boundary(j + 1)) / 2.0;
            let value = power as f32 * mean;
            map.push(value);
            if signed {
                map.push(-value);
            }
        }
    }
    map.sort_by(f32::total_cmp);
    let mut all = [0.0; 256];
    all.iter_mut().zip(map).for_each(|(a, b)| *a = b);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let map = signed().values();
        assert!(map.is_sorted());
        assert_eq!((map[255], map[127]), (1.0, 0.0));
        assert!((map[254] - 0.992_968_8).abs() < 1e-6, "{}", map[254]);
        assert!((map[0] + 0.992_968_8).abs() < 1e-6, "{}", map[0]);
        assert!((map[128] - 5.5e-7).abs() < 1e-12, "{}", map[128]);
        let map = unsigned().values();
        assert!(map.is_sorted());
        assert_eq!((map[255], map[0]), (1.0, 0.0));
        // of the first decade the halves [0.1, 0.55] and [0.55, 1]
        assert!((map[1] - 3.25e-7).abs() < 1e-12, "{}", map[1]);
        assert!((map[2] - 7.75e-7).abs() < 1e-12, "{}", map[2]);
        assert!((map[254] - 0.996_484_4).abs() < 1e-6, "{}", map[254]);
    }

    #[test]
    fn a_bin_leads_to_the_nearest_value() {
        for map in [signed(), unsigned()] {
            let near = |x: f32| {
                [x.to_bits() - 1, x.to_bits(), x.to_bits() + 1]
                    .map(f32::from_bits)
                    .into_iter()
                    .flat_map(|x| [x, -x])
            };
            let edges = (1..NUM_BINS).map(|i| f32::from_bits((LOWEST + i as u32) << 16));
            let bounds = map.bounds().iter().map(|b| b.abs());
            let some = (0..10_000).map(|i| 1e-8 * 1.002f32.powi(i));
            let all = edges.chain(bounds).chain(some).filter(|x| *x > 0.0);
            for x in all.flat_map(near).chain([0.0, -0.0, 1.0, -1.0]) {
                let x = x.clamp(-1.0, 1.0);
                let expected = map.bounds().iter().filter(|bound| **bound < x).count();
                assert_eq!(usize::from(map.nearest(x)), expected, "{x:e}");
            }
        }
        assert_eq!(signed().nearest(f32::NAN), 255);
    }
}
