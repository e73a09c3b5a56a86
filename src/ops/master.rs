//! The f32 copy of 16-bit weights that takes their updates. Of bf16 only what it leaves is kept: the 16 bits that rounding
//! took away, as a signed distance, so that weight and rest together are the f32 number and two bytes are enough.
//!
//! ```text
//! bits of w = bits of value * 2^16 + rest      value = bf16 nearest to w, halfway the even one      rest in [-2^15, 2^15)
//! ```
//!
//! A w halfway below an even value has a rest of 2^15, which is one too much: it is taken to be the next number towards the
//! value.

use super::cpu;
use super::gpu::Gpu;
use super::vector::vectorised;
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor};
use half::bf16;
use std::cell::RefCell;

/// What is kept besides 16-bit weights.
#[derive(Clone, Debug)]
pub enum Master {
    /// All of it, in f32.
    Whole(Tensor),
    /// What bf16 leaves, i16.
    Rest(Tensor),
}

impl Master {
    /// The copy of `value`: none of f32, the rest of bf16 where kernels join the two, else all of it.
    ///
    /// # Errors
    /// The device refuses.
    pub fn of(value: &Tensor) -> Result<Option<Self>> {
        let joins = value.device().is_cpu() || Gpu::of(value).is_some();
        Ok(match value.dtype() {
            DType::F32 | DType::F64 => None,
            DType::BF16 if joins && value.is_contiguous() => {
                let rest = Tensor::zeros(value.shape(), DType::I16, value.device())?;
                Some(Self::Rest(rest))
            }
            _ => Some(Self::Whole(value.to_dtype(DType::F32)?)),
        })
    }

    /// The tensor that is kept, and what checkpoints call it.
    pub fn stored(&self) -> (&'static str, &Tensor) {
        match self {
            Self::Whole(t) => ("master", t),
            Self::Rest(t) => ("master_rest", t),
        }
    }

    /// The same, to be replaced.
    pub fn stored_mut(&mut self) -> (&'static str, &mut Tensor) {
        match self {
            Self::Whole(t) => ("master", t),
            Self::Rest(t) => ("master_rest", t),
        }
    }

    /// The weights in f32, on the CPU.
    ///
    /// # Errors
    /// The device refuses.
    pub fn weights(&self, value: &Tensor) -> Result<Vec<f32>> {
        match self {
            Self::Whole(w) => Ok(w.flatten_all()?.to_vec1()?),
            Self::Rest(rest) => {
                let value: Vec<bf16> = value.flatten_all()?.to_vec1()?;
                let mut w = vec![0.0; value.len()];
                join(&value, &rest.flatten_all()?.to_vec1::<i16>()?, &mut w);
                Ok(w)
            }
        }
    }
}

vectorised! {
    fn join(value: &[bf16], rest: &[i16], w: &mut [f32]) {
        let n = w.len();
        let (value, rest) = (&value[..n], &rest[..n]);
        for i in 0..n {
            let high = u32::from(value[i].to_bits()) << 16;
            w[i] = f32::from_bits(high.wrapping_add_signed(i32::from(rest[i])));
        }
    }
}

vectorised! {
    fn split(w: &[f32], value: &mut [bf16], rest: &mut [i16]) {
        let n = w.len();
        let (value, rest) = (&mut value[..n], &mut rest[..n]);
        for i in 0..n {
            let bits = w[i].to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            // infinity and what is no number lose their lower bits; rounding could make one the other
            let high = if bits & 0x7f80_0000 == 0x7f80_0000 {
                (bits >> 16) | (u32::from(bits & 0xffff != 0) << 6)
            } else {
                rounded >> 16
            };
            value[i] = bf16::from_bits(high as u16);
            let left = bits.wrapping_sub(high << 16) as i32;
            rest[i] = left.clamp(-0x8000, 0x7fff) as i16;
        }
    }
}

/// Values that are joined at a time.
const JOINED: usize = 1024;

/// Weights that a step changes, in the memory of the CPU.
pub(super) enum Weights<'a> {
    Whole(&'a mut [f32]),
    Parts(&'a mut [bf16], &'a mut [i16]),
}

impl<'a> Weights<'a> {
    /// Cut into pieces of `len`.
    pub(super) fn pieces(self, len: usize) -> Vec<Weights<'a>> {
        match self {
            Self::Whole(w) => w.chunks_mut(len).map(Weights::Whole).collect(),
            Self::Parts(value, rest) => value
                .chunks_mut(len)
                .zip(rest.chunks_mut(len))
                .map(|(value, rest)| Weights::Parts(value, rest))
                .collect(),
        }
    }

    /// Hands all of them to `step` in f32, run by run of `len`, with the place of each run's first one.
    pub(super) fn change(self, len: usize, mut step: impl FnMut(usize, &mut [f32])) {
        let len = len.min(JOINED);
        match self {
            Self::Whole(w) => {
                for (i, w) in w.chunks_mut(len).enumerate() {
                    step(i * len, w);
                }
            }
            Self::Parts(value, rest) => {
                let mut joined = [0.0; JOINED];
                let runs = value.chunks_mut(len).zip(rest.chunks_mut(len));
                for (i, (value, rest)) in runs.enumerate() {
                    let w = &mut joined[..value.len()];
                    join(value, rest, w);
                    step(i * len, w);
                    split(w, value, rest);
                }
            }
        }
    }
}

/// Hands the weights to `step` where they are, contiguous and on the CPU; `false` where they are not.
pub(super) fn modify_weights(
    value: &Tensor,
    master: Option<&Master>,
    step: impl FnOnce(Weights) -> Result<()>,
) -> Result<bool> {
    let mut step = Some(step);
    let mut result = Ok(());
    let mut once = |w: Weights| {
        if let Some(step) = step.take() {
            result = step(w);
        }
    };
    let done = match master {
        None => cpu::modify::<f32>(value, |w| once(Weights::Whole(w)))?,
        Some(Master::Whole(w)) => cpu::modify::<f32>(w, |w| once(Weights::Whole(w)))?,
        Some(Master::Rest(rest)) => {
            if value.dims() != rest.dims() || !rest.is_contiguous() {
                return Err(Error::input(format!(
                    "weights of {:?} with a rest of {:?}",
                    value.dims(),
                    rest.dims()
                )));
            }
            let mut inner = Ok(());
            let done = cpu::modify::<bf16>(value, |value| {
                inner = modify_integers(rest, |rest: &mut [i16]| {
                    once(Weights::Parts(value, rest));
                });
            })?;
            inner?;
            done
        }
    };
    result?;
    Ok(done)
}

/// Integers in the memory of the CPU.
pub(super) trait Integer: Copy {
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Integer for u8 {
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::U8(values) => Some(values),
            _ => None,
        }
    }
}

impl Integer for i16 {
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::I16(values) => Some(values),
            _ => None,
        }
    }
}

/// Hands integers that are contiguous and on the CPU to `change`.
///
/// # Errors
/// They are not.
pub(super) fn modify_integers<I: Integer>(t: &Tensor, change: impl FnMut(&mut [I])) -> Result<()> {
    Ok(t.inplace_op1(&ModifyIntegers(
        RefCell::new(change),
        std::marker::PhantomData,
    ))?)
}

struct ModifyIntegers<F, I>(RefCell<F>, std::marker::PhantomData<I>);

impl<I: Integer, F: FnMut(&mut [I])> InplaceOp1 for ModifyIntegers<F, I> {
    fn name(&self) -> &'static str {
        "modify-integers"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (I::of(storage), layout.contiguous_offsets()) {
            (Some(values), Some((start, end))) => {
                (self.0.borrow_mut())(&mut values[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("modify-integers: another type or not contiguous"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_number_and_its_rounding() {
        let halfway = f32::from_bits(0x3f80_8000);
        let halfway_of_odd = f32::from_bits(0x3f81_8000);
        let cases = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.1,
            -0.3,
            1e-40,
            f32::MAX,
            f32::MIN,
            3.389e38,
            halfway_of_odd,
            -halfway_of_odd,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let n = cases.len();
        let (mut value, mut rest) = (vec![bf16::ZERO; n], vec![0i16; n]);
        split(&cases, &mut value, &mut rest);
        let mut again = vec![0.0; n];
        join(&value, &rest, &mut again);
        for i in 0..n {
            assert_eq!(value[i].to_bits(), bf16::from_f32(cases[i]).to_bits());
            assert_eq!(again[i].to_bits(), cases[i].to_bits(), "{}", cases[i]);
        }
        // one bit less
        let (mut value, mut rest) = ([bf16::ZERO; 2], [0i16; 2]);
        split(&[halfway, f32::NAN], &mut value, &mut rest);
        let mut again = [0.0; 2];
        join(&value, &rest, &mut again);
        assert_eq!(value[0], bf16::from_f32(halfway));
        assert_eq!(again[0].to_bits(), halfway.to_bits() - 1);
        assert!(value[1].is_nan() && again[1].is_nan());
    }

    #[test]
    fn every_upper_half() {
        // all values with some rests around the borders
        for rest_of in [0u32, 1, 0x7fff, 0x8001, 0xffff] {
            let all: Vec<f32> = (0..=0xffffu32)
                .map(|high| f32::from_bits((high << 16) | rest_of))
                .collect();
            let (mut value, mut rest) = (vec![bf16::ZERO; all.len()], vec![0i16; all.len()]);
            split(&all, &mut value, &mut rest);
            let mut again = vec![0.0; all.len()];
            join(&value, &rest, &mut again);
            for (i, w) in all.iter().enumerate() {
                if w.is_nan() {
                    assert!(value[i].is_nan() && again[i].is_nan(), "{i:x}");
                } else {
                    assert_eq!(value[i].to_bits(), bf16::from_f32(*w).to_bits(), "{w:e}");
                    assert_eq!(again[i].to_bits(), w.to_bits(), "{w:e}");
                }
            }
        }
    }
}
