//! Weights in GGML's blocks, bit for bit what a GGUF file holds: q8_0 and q4_k, back to numbers. How numbers become blocks is
//! in `ggml_encode`; the layouts are those of
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.
//!
//! ```text
//! q8_0: 32 values in 34 bytes      w = d code                      d in f16, codes in i8
//! q4_k: 256 values in 144 bytes    w = d s code - dmin m           d and dmin in f16; s and m in 6 bits, a pair of them for
//!                                                                  32 values; codes in 4 bits
//! ```
//!
//! In f32 every product here is exact and the difference rounded once: all machines compute the same bits.
//!
//! Nothing is computed in blocks: a product makes numbers of its weight first, and so does its backward.

use super::cpu::{self, unwritten};
use super::element::Element;
use super::ggml_encode;
use super::gpu::Gpu;
use super::quant_gpu;
use super::vector::vectorised;
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::OnceLock;

/// A type of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum GgmlType {
    Q8_0,
    Q4_K,
}

/// Values that a task takes, a multiple of every block.
const CHUNK: usize = 1 << 14;

impl GgmlType {
    /// llama.cpp's name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_K => "q4_k",
        }
    }

    /// Values of a block.
    pub const fn block_size(self) -> usize {
        match self {
            Self::Q8_0 => 32,
            Self::Q4_K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
        }
    }

    /// Bytes of so many values, whole blocks.
    pub const fn num_bytes(self, num_values: usize) -> usize {
        num_values / self.block_size() * self.block_bytes()
    }

    fn decode<E: Element>(self, blocks: &[u8], values: &mut [E]) {
        match self {
            Self::Q8_0 => decode_q8_0(blocks, values),
            Self::Q4_K => decode_q4_k(blocks, values),
        }
    }
}

/// A matrix in blocks, none of which reaches over the end of a row.
#[derive(Clone, Debug)]
pub struct GgmlBlocks {
    of: GgmlType,
    /// Rows and columns.
    shape: (usize, usize),
    /// As in the file.
    bytes: Tensor,
}

impl GgmlBlocks {
    /// Quantises a matrix; the result is on `device`.
    ///
    /// # Errors
    /// No matrix, rows that do not divide into blocks, values above those of f16; the device refuses.
    pub fn quantise(w: &Tensor, of: GgmlType, device: &Device) -> Result<Self> {
        let shape = w.dims2()?;
        if !shape.1.is_multiple_of(of.block_size()) {
            return Err(Error::input(format!(
                "rows of {} values do not divide into the blocks of {} of {}",
                shape.1,
                of.block_size(),
                of.name()
            )));
        }
        let w = w.to_device(&Device::Cpu)?.contiguous()?;
        let w = match w.dtype() {
            DType::F32 | DType::BF16 => w,
            _ => w.to_dtype(DType::F32)?,
        };
        let bytes = match w.dtype() {
            DType::BF16 => encoded::<bf16>(&w, of)?,
            _ => encoded::<f32>(&w, of)?,
        };
        let num_bytes = bytes.len();
        Ok(Self {
            of,
            shape,
            bytes: Tensor::from_vec(bytes, num_bytes, device)?,
        })
    }

    /// Blocks as they lie in a file, row by row.
    ///
    /// # Errors
    /// Bytes of another length.
    pub fn of_bytes(bytes: &[u8], of: GgmlType, shape: (usize, usize)) -> Result<Self> {
        let num_bytes = of.num_bytes(shape.1) * shape.0;
        if bytes.len() != num_bytes || !shape.1.is_multiple_of(of.block_size()) {
            return Err(Error::input(format!(
                "{} bytes are no {} x {} values in {}",
                bytes.len(),
                shape.0,
                shape.1,
                of.name()
            )));
        }
        let bytes = Tensor::from_slice(bytes, num_bytes, &Device::Cpu)?;
        Ok(Self { of, shape, bytes })
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        self.bytes.device()
    }

    /// The same on another device; as cheap as a clone where it is there already.
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            bytes: self.bytes.to_device(device)?,
            ..self.clone()
        })
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes that it takes.
    pub fn num_bytes(&self) -> usize {
        self.bytes.elem_count()
    }

    /// The blocks, `[num_bytes]`.
    pub fn bytes(&self) -> &Tensor {
        &self.bytes
    }

    /// The matrix again. -> `[O, I]`
    ///
    /// # Errors
    /// The device refuses.
    pub fn dequantise(&self, dtype: DType) -> Result<Tensor> {
        let num = self.shape.0 * self.shape.1;
        if let Some(gpu) = Gpu::on(self.device())
            && matches!(dtype, DType::F32 | DType::BF16)
        {
            let w = quant_gpu::dequantise_blocks(&gpu, self.of, &self.bytes, num, dtype)?;
            return Ok(w.reshape(self.shape)?);
        }
        let on_cpu = match dtype {
            DType::BF16 => self.on_cpu::<bf16>(num)?,
            _ => self.on_cpu::<f32>(num)?,
        };
        match on_cpu {
            Some(matrix) => Ok(matrix.to_dtype(dtype)?),
            None => Ok(self.plain()?.reshape(self.shape)?.to_dtype(dtype)?),
        }
    }

    fn on_cpu<E: Element>(&self, num: usize) -> Result<Option<Tensor>> {
        let storage = self.bytes.storage_and_layout().0;
        let Storage::Cpu(CpuStorage::U8(bytes)) = &*storage else {
            return Ok(None);
        };
        let mut values: Vec<E> = unwritten(num);
        values
            .par_chunks_mut(CHUNK)
            .zip(bytes.par_chunks(self.of.num_bytes(CHUNK)))
            .for_each(|(values, bytes)| self.of.decode(bytes, values));
        cpu::tensor(values, self.shape).map(Some)
    }

    /// The same of candle's operations, for every device.
    fn plain(&self) -> Result<Tensor> {
        let num_blocks = self.num_bytes() / self.of.block_bytes();
        let bytes = self.bytes.reshape((num_blocks, self.of.block_bytes()))?;
        let bytes = bytes.to_dtype(DType::F32)?;
        match self.of {
            GgmlType::Q8_0 => {
                let codes = bytes.narrow(1, 2, 32)?;
                // from 128 on they stand for what is 256 less
                let codes = (&codes - (codes.ge(128.0)?.to_dtype(DType::F32)? * 256.0)?)?;
                Ok(codes.broadcast_mul(&f16_of(&bytes.narrow(1, 0, 2)?)?)?)
            }
            GgmlType::Q4_K => {
                let (d, dmin) = (
                    f16_of(&bytes.narrow(1, 0, 2)?)?,
                    f16_of(&bytes.narrow(1, 2, 2)?)?,
                );
                let (a, a_high) = split(&bytes.narrow(1, 4, 4)?, 64.0)?;
                let (b, b_high) = split(&bytes.narrow(1, 8, 4)?, 64.0)?;
                let (c_low, c_high) = split(&bytes.narrow(1, 12, 4)?, 16.0)?;
                let scales = Tensor::cat(&[a, (c_low + (a_high * 16.0)?)?], 1)?;
                let mins = Tensor::cat(&[b, (c_high + (b_high * 16.0)?)?], 1)?;
                let (low, high) = split(&bytes.narrow(1, 16, 128)?, 16.0)?;
                let [low, high] = [low, high].map(|codes| codes.reshape((num_blocks, 4, 32)));
                let codes = Tensor::stack(&[low?, high?], 2)?.reshape((num_blocks, 8, 32))?;
                let scales = scales.broadcast_mul(&d)?.unsqueeze(2)?;
                let mins = mins.broadcast_mul(&dmin)?.unsqueeze(2)?;
                Ok(codes.broadcast_mul(&scales)?.broadcast_sub(&mins)?)
            }
        }
    }
}

/// The remainder and the quotient of whole numbers.
fn split(t: &Tensor, by: f64) -> Result<(Tensor, Tensor)> {
    let quotient = (t / by)?.floor()?;
    Ok(((t - (&quotient * by)?)?, quotient))
}

/// Pairs of bytes, the lower first, as the f16 that they are; none of them infinite. `[n, 2]` -> `[n, 1]`
fn f16_of(pairs: &Tensor) -> Result<Tensor> {
    let (low, high) = (pairs.narrow(1, 0, 1)?, pairs.narrow(1, 1, 1)?);
    let (high, sign) = split(&high.contiguous()?, 128.0)?;
    let (mantissa, exponent) = split(&high, 4.0)?;
    let mantissa = (mantissa * 256.0)?.add(&low)?;
    // a one before the mantissa but in the smallest numbers, which share the exponent of the next
    let is_normal = exponent.ge(1.0)?.to_dtype(DType::F32)?;
    let powers: Vec<f32> = (0..32).map(|e: i32| 2f32.powi(e.max(1) - 25)).collect();
    let power = Tensor::new(powers, pairs.device())?
        .index_select(&exponent.flatten_all()?.to_dtype(DType::U32)?, 0)?
        .unsqueeze(1)?;
    let signs = (sign * -2.0)? + 1.0;
    Ok((((mantissa + (is_normal * 1024.0)?)? * power)? * signs?)?)
}

/// The blocks of a contiguous tensor on the CPU.
fn encoded<E: Element>(w: &Tensor, of: GgmlType) -> Result<Vec<u8>> {
    let values = cpu::values::<E>(w)
        .ok_or_else(|| Error::input(format!("{} of {:?} values", of.name(), w.dtype())))?;
    let mut bytes = vec![0u8; of.num_bytes(values.len())];
    let too_large = OnceLock::new();
    values
        .par_chunks(CHUNK)
        .zip(bytes.par_chunks_mut(of.num_bytes(CHUNK)))
        .for_each_init(Vec::new, |wide: &mut Vec<f32>, (values, bytes)| {
            wide.clear();
            wide.extend(values.iter().map(|v| v.wide()));
            // scales are f16; none is larger than the largest value
            let largest = f16::MAX.to_f32();
            if let Some(v) = wide.iter().find(|v| v.is_nan() || v.abs() > largest) {
                let _ = too_large.set(*v);
                return;
            }
            ggml_encode::encode(wide, of, bytes);
        });
    match too_large.into_inner() {
        None => Ok(bytes),
        Some(v) => Err(Error::input(format!(
            "value {v} is too large for {}",
            of.name()
        ))),
    }
}

/// The f16 at the head of `bytes`.
#[inline(always)]
fn f16_at(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

vectorised! {
    fn decode_q8_0<E: Element>(blocks: &[u8], values: &mut [E]) {
        let (blocks, values) = (blocks.as_chunks::<34>().0, values.as_chunks_mut::<32>().0);
        for (block, values) in blocks.iter().zip(values) {
            let d = f16_at(block);
            for (value, code) in values.iter_mut().zip(&block[2..]) {
                *value = E::of(d * f32::from(*code as i8));
            }
        }
    }
}

vectorised! {
    fn decode_q4_k<E: Element>(blocks: &[u8], values: &mut [E]) {
        let (blocks, values) = (blocks.as_chunks::<144>().0, values.as_chunks_mut::<256>().0);
        for (block, values) in blocks.iter().zip(values) {
            let (d, dmin) = (f16_at(block), f16_at(&block[2..]));
            let (codes, values) = (block[16..].as_chunks::<32>().0, values.as_chunks_mut::<64>().0);
            for (pair, (codes, values)) in codes.iter().zip(values).enumerate() {
                let (low, high) = values.split_at_mut(32);
                let (s, m) = scale_and_min(block, 2 * pair);
                let (scale, min) = (d * s, dmin * m);
                for (value, code) in low.iter_mut().zip(codes) {
                    *value = E::of(scale * f32::from(code & 15) - min);
                }
                let (s, m) = scale_and_min(block, 2 * pair + 1);
                let (scale, min) = (d * s, dmin * m);
                for (value, code) in high.iter_mut().zip(codes) {
                    *value = E::of(scale * f32::from(code >> 4) - min);
                }
            }
        }
    }
}

/// The 6 bits of scale and min of 32 values, the `j`-th of 8, of a block of q4_k: the first four in the low bits of 8 bytes; of
/// the others the low 4 bits in 4 bytes more, and the upper 2 where the first ones have none.
#[inline(always)]
pub(super) fn scale_and_min(block: &[u8; 144], j: usize) -> (f32, f32) {
    let byte = |i: usize| block[4 + i];
    let (s, m) = match j < 4 {
        true => (byte(j) & 63, byte(j + 4) & 63),
        false => (
            byte(j + 4) & 15 | byte(j - 4) >> 6 << 4,
            byte(j + 4) >> 4 | byte(j) >> 6 << 4,
        ),
    };
    (f32::from(s), f32::from(m))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * i * 7 + i) % 1009) as f32 / 504.0 - 1.0)
            .map(|v| v * v * v)
            .collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn blocks_by_hand() {
        // d = 0.5, which is 0x3800: codes 1, -1, -128 and 127
        let mut block = [0u8; 34];
        block[..6].copy_from_slice(&[0x00, 0x38, 1, 0xff, 0x80, 0x7f]);
        let w = GgmlBlocks::of_bytes(&block, GgmlType::Q8_0, (1, 32)).unwrap();
        let found = values(&w.dequantise(DType::F32).unwrap());
        assert_eq!(found[..5], [0.5, -0.5, -64.0, 63.5, 0.0]);

        // d = 2, dmin = 1; the first 32 values have scale 3 and min 5, the last ones 0b11_0001 = 49 and 0b01_0010 = 18
        let mut block = [0u8; 144];
        block[..4].copy_from_slice(&[0x00, 0x40, 0x00, 0x3c]);
        (block[4], block[8]) = (3, 5);
        (block[4 + 3], block[4 + 7], block[4 + 11]) = (0b1100_0000, 0b0100_0000, 0x21);
        (block[16], block[16 + 127]) = (0x07, 0xf0);
        let w = GgmlBlocks::of_bytes(&block, GgmlType::Q4_K, (1, 256)).unwrap();
        let found = values(&w.dequantise(DType::F32).unwrap());
        assert_eq!((found[0], found[1]), (2.0 * 3.0 * 7.0 - 5.0, -5.0));
        assert_eq!((found[255], found[224]), (2.0 * 49.0 * 15.0 - 18.0, -18.0));
        assert!(GgmlBlocks::of_bytes(&block, GgmlType::Q4_K, (1, 255)).is_err());
        assert!(GgmlBlocks::of_bytes(&block[1..], GgmlType::Q4_K, (1, 256)).is_err());
    }

    #[test]
    fn fast_equals_plain_and_stays_near_what_it_was() {
        // the widest step of blocks of +-1: 1 / 127 by half; 2 / 15 by half, and the error of scale and min
        for (of, bits, most) in [(GgmlType::Q8_0, 8.5, 0.004), (GgmlType::Q4_K, 4.5, 0.1)] {
            for (rows, columns) in [(64, 256), (3, 512), (1, 256), (130, 768)] {
                let w = matrix(rows, columns);
                let q = GgmlBlocks::quantise(&w, of, &Device::Cpu).unwrap();
                assert_eq!(q.shape(), (rows, columns));
                assert_eq!(
                    8.0 * q.num_bytes() as f64,
                    bits * (rows * columns) as f64,
                    "{of:?}"
                );
                let fast = q.dequantise(DType::F32).unwrap();
                assert_eq!(values(&fast), values(&q.plain().unwrap()));
                let off = (&fast - &w).unwrap().abs().unwrap().max_all().unwrap();
                assert!(off.to_scalar::<f32>().unwrap() < most, "{of:?}");
                let half = q.dequantise(DType::BF16).unwrap();
                let rounded = fast.to_dtype(DType::BF16).unwrap();
                let wide = |t: &Tensor| values(&t.to_dtype(DType::F32).unwrap());
                assert_eq!(wide(&half), wide(&rounded));
                // from 16 bits the same as from these in 32
                let narrow = w.to_dtype(DType::BF16).unwrap();
                let wide = narrow.to_dtype(DType::F32).unwrap();
                let of_both = [narrow, wide].map(|w| {
                    let q = GgmlBlocks::quantise(&w, of, &Device::Cpu).unwrap();
                    q.bytes().to_vec1::<u8>().unwrap()
                });
                assert_eq!(of_both[0], of_both[1]);
            }
        }
    }

    #[test]
    fn the_smallest_numbers_and_what_does_not_fit() {
        // subnormal f16 scales on the plain way too
        for scale in [1e-30, 1e-7, 6e-5, 1.0, 500.0] {
            let w = (matrix(2, 256) * scale).unwrap();
            for of in [GgmlType::Q8_0, GgmlType::Q4_K] {
                let q = GgmlBlocks::quantise(&w, of, &Device::Cpu).unwrap();
                let fast = values(&q.dequantise(DType::F32).unwrap());
                assert_eq!(fast, values(&q.plain().unwrap()), "{scale}");
                assert!(fast.iter().all(|v| v.is_finite()));
            }
        }
        for bad in [7e4f32, f32::NAN, f32::NEG_INFINITY] {
            let mut v = vec![0.0; 256];
            v[200] = bad;
            let w = Tensor::from_vec(v, (1, 256), &Device::Cpu).unwrap();
            let error = GgmlBlocks::quantise(&w, GgmlType::Q8_0, &Device::Cpu);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("too large for q8_0"), "{error}");
        }
        let error = GgmlBlocks::quantise(&matrix(2, 32), GgmlType::Q4_K, &Device::Cpu);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("rows of 32 values"), "{error}");
    }
}
