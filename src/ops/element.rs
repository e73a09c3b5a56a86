//! The element types that the kernels of the CPU know: f32, and bf16, which is held in 16 bits and computed with in f32.

use candle_core::{CpuStorage, WithDType};
use half::bf16;

/// A number as it lies in memory.
pub(super) trait Element: WithDType + bytemuck::Pod {
    /// Whether it is f32 itself.
    const IS_F32: bool;

    /// The number in f32, exactly.
    fn wide(self) -> f32;

    /// The nearest number to `x`; of two equally near the even one.
    fn of(x: f32) -> Self;

    /// What a storage of this type holds.
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;

    /// The same, to be written.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn of(x: f32) -> Self {
        x
    }

    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

// in integers, without a branch: compilers make vector instructions of it
impl Element for bf16 {
    const IS_F32: bool = false;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn of(x: f32) -> Self {
        /// Makes a NaN of a NaN whose upper half alone would be an infinity
        const QUIET: u32 = 1 << 22;
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let bits = if x.is_nan() { bits | QUIET } else { rounded };
        bf16::from_bits((bits >> 16) as u16)
    }

    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }

    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }
}

/// Runs `$body` with `$e` as the type of the elements of `$t` where the kernels know it.
macro_rules! with_element {
    ($t:expr, $e:ident => $body:expr) => {
        match $t.dtype() {
            candle_core::DType::F32 => {
                type $e = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $e = half::bf16;
                $body
            }
            _ => {}
        }
    };
}
pub(super) use with_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        let edges = [
            0x7f80_0000,
            0xff80_0001,
            0x7f80_0001,
            0x7f7f_ffff,
            1,
            0x8000_8000,
        ];
        let sweep = (0..1u32 << 16).map(|i| i.wrapping_mul(0x9e37_79b9));
        let halves = (0..1u32 << 10).map(|i| (i << 21) | 0x8000);
        for bits in edges.into_iter().chain(sweep).chain(halves) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (bf16::of(x), bf16::from_f32(x));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{bits:#x}");
            assert_eq!(ours.wide().to_bits(), theirs.to_f32().to_bits());
        }
    }
}
