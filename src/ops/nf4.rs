//! Weights in 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314, section 3), as bitsandbytes stores them:
//! blocks of 64 values share a scale, 256 of these scales share one of their own. The codes are the same bits; the mean of the
//! scales is summed in f64 here, and there in f32 in an order that depends on the machine.
//!
//! ```text
//! code = nearest of the 16 values to w / absmax      absmax = map[scale code] * scale of 256 + mean of all
//! ```
//!
//! Nothing is computed in 4 bits: a product dequantises its weight first, and so does its backward.

use super::cpu::{self, unwritten};
use super::dynamic_map;
use super::element::Element;
use super::gpu::Gpu;
use super::quant_gpu;
use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Values that share a scale.
const BLOCK: usize = 64;
/// Scales that share one.
const SCALE_BLOCK: usize = 256;

/// Quantiles of the normal distribution, scaled to +-1, with a 0 (appendix E there).
static VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A matrix in 4 bits.
#[derive(Clone, Debug)]
pub struct Nf4 {
    /// Rows and columns.
    shape: (usize, usize),
    /// Two codes a byte, the first in the high half; whole blocks, `[blocks * 32]`.
    codes: Tensor,
    /// `[blocks]`
    scale_codes: Tensor,
    /// `[blocks / 256]`, rounded up
    scales: Tensor,
    /// The mean of the scales.
    offset: f32,
}

impl Nf4 {
    /// Quantises a matrix; the result is on `device`.
    ///
    /// # Errors
    /// No matrix; the device refuses.
    pub fn quantise(w: &Tensor, device: &Device) -> Result<Self> {
        let shape = w.dims2()?;
        let w = w.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let w = w.flatten_all()?.to_vec1::<f32>()?;
        let num_blocks = w.len().div_ceil(BLOCK);
        let mut codes = vec![0u8; num_blocks * BLOCK / 2];
        let absmax: Vec<f32> = w
            .par_chunks(BLOCK)
            .zip(codes.par_chunks_mut(BLOCK / 2))
            .map(|(block, codes)| quantise_block(block, codes))
            .collect();
        let sum: f64 = absmax.iter().map(|&a| f64::from(a)).sum();
        let offset = (sum / absmax.len().max(1) as f64) as f32;
        let mut scale_codes = vec![0u8; num_blocks];
        let scales: Vec<f32> = absmax
            .chunks(SCALE_BLOCK)
            .zip(scale_codes.chunks_mut(SCALE_BLOCK))
            .map(|(block, codes)| quantise_scales(block, offset, codes))
            .collect();
        let tensor = |bytes: Vec<u8>| {
            let num_bytes = bytes.len();
            Tensor::from_vec(bytes, num_bytes, device)
        };
        let num_scales = scales.len();
        Ok(Self {
            shape,
            codes: tensor(codes)?,
            scale_codes: tensor(scale_codes)?,
            scales: Tensor::from_vec(scales, num_scales, device)?,
            offset,
        })
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        self.codes.device()
    }

    /// The same on another device; as cheap as a clone where it is there already.
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            shape: self.shape,
            codes: self.codes.to_device(device)?,
            scale_codes: self.scale_codes.to_device(device)?,
            scales: self.scales.to_device(device)?,
            offset: self.offset,
        })
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes of a matrix of so many values.
    pub const fn num_bytes_of(num_values: usize) -> usize {
        let num_blocks = num_values.div_ceil(BLOCK);
        num_blocks * BLOCK / 2 + num_blocks + 4 * num_blocks.div_ceil(SCALE_BLOCK)
    }

    /// Bytes that it takes.
    pub fn num_bytes(&self) -> usize {
        self.codes.elem_count() + self.scale_codes.elem_count() + 4 * self.scales.elem_count()
    }

    /// The parts as they are stored: codes, codes of scales, scales of scales, their mean.
    pub fn parts(&self) -> (&Tensor, &Tensor, &Tensor, f32) {
        (&self.codes, &self.scale_codes, &self.scales, self.offset)
    }

    /// The matrix again. -> `[O, I]`
    ///
    /// # Errors
    /// The device refuses.
    pub fn dequantise(&self, dtype: DType) -> Result<Tensor> {
        let (rows, columns) = self.shape;
        if let Some(gpu) = Gpu::on(self.device())
            && matches!(dtype, DType::F32 | DType::BF16)
        {
            let maps = (&VALUES, dynamic_map::signed().values());
            let w = quant_gpu::dequantise_nf4(&gpu, self.parts(), maps, rows * columns, dtype)?;
            return Ok(w.reshape(self.shape)?);
        }
        let on_cpu = match dtype {
            DType::BF16 => self.on_cpu::<bf16>(rows * columns)?,
            _ => self.on_cpu::<f32>(rows * columns)?,
        };
        if let Some(matrix) = on_cpu {
            return Ok(matrix.to_dtype(dtype)?);
        }
        self.plain()?
            .narrow(0, 0, rows * columns)?
            .reshape(self.shape)?
            .to_dtype(dtype)
            .map_err(Error::from)
    }

    fn on_cpu<E: Element>(&self, n: usize) -> Result<Option<Tensor>> {
        if !self.codes.device().is_cpu() {
            return Ok(None);
        }
        let scales = self.scales.to_vec1::<f32>()?;
        let (codes, scale_codes) = (
            self.codes.storage_and_layout().0,
            self.scale_codes.storage_and_layout().0,
        );
        let (Storage::Cpu(CpuStorage::U8(codes)), Storage::Cpu(CpuStorage::U8(scale_codes))) =
            (&*codes, &*scale_codes)
        else {
            return Ok(None);
        };
        let scale_map = dynamic_map::signed().values();
        let mut values: Vec<E> = unwritten(codes.len() * 2);
        values
            .par_chunks_mut(BLOCK)
            .zip(codes.par_chunks(BLOCK / 2))
            .enumerate()
            .for_each(|(i, (values, codes))| {
                let scale = scale_map[usize::from(scale_codes[i])] * scales[i / SCALE_BLOCK];
                let absmax = scale + self.offset;
                for (pair, code) in values.chunks_exact_mut(2).zip(codes) {
                    pair[0] = E::of(VALUES[usize::from(code >> 4)] * absmax);
                    pair[1] = E::of(VALUES[usize::from(code & 15)] * absmax);
                }
            });
        values.truncate(n);
        cpu::tensor(values, self.shape).map(Some)
    }

    /// The same of candle's operations, for every device; whole blocks.
    fn plain(&self) -> Result<Tensor> {
        let device = self.codes.device();
        let num_blocks = self.scale_codes.elem_count();
        let look_up = |map: &[f32], codes: &Tensor| -> Result<Tensor> {
            Ok(Tensor::new(map, device)?.index_select(&codes.to_dtype(DType::U32)?, 0)?)
        };
        let packed = self.codes.to_dtype(DType::F32)?;
        let high = (&packed / 16.0)?.floor()?;
        let low = (packed - (&high * 16.0)?)?;
        let codes = Tensor::stack(&[high, low], 1)?.flatten_all()?;
        let values = look_up(&VALUES, &codes)?.reshape((num_blocks, BLOCK))?;
        let num_scales = self.scales.elem_count();
        let of_blocks = self
            .scales
            .unsqueeze(1)?
            .broadcast_as((num_scales, SCALE_BLOCK))?
            .flatten_all()?
            .narrow(0, 0, num_blocks)?;
        let absmax = (look_up(dynamic_map::signed().values(), &self.scale_codes)? * of_blocks)?;
        let absmax = (absmax + f64::from(self.offset))?.unsqueeze(1)?;
        Ok(values.broadcast_mul(&absmax)?.flatten_all()?)
    }
}

/// Codes of a block; returns the largest magnitude.
fn quantise_block(block: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let factor = 1.0 / absmax.max(1e-38);
    let code = |i: usize| match block.get(i) {
        Some(v) => nearest(&VALUES, (v * factor).clamp(-1.0, 1.0)),
        // bitsandbytes fills up with zeros
        None => 7,
    };
    for (i, byte) in codes.iter_mut().enumerate() {
        *byte = code(2 * i) << 4 | code(2 * i + 1);
    }
    absmax
}

/// Codes of scales less their mean; returns the largest magnitude.
fn quantise_scales(block: &[f32], offset: f32, codes: &mut [u8]) -> f32 {
    let absmax = block.iter().fold(0.0f32, |m, v| m.max((v - offset).abs()));
    let factor = 1.0 / absmax.max(1e-38);
    for (v, code) in block.iter().zip(codes) {
        *code = dynamic_map::signed().nearest(((v - offset) * factor).clamp(-1.0, 1.0));
    }
    absmax
}

/// Place of the value of an ascending map that is nearest; halfway, the lower.
fn nearest(map: &[f32], v: f32) -> u8 {
    let (mut low, mut high) = (0, map.len() - 1);
    while low < high {
        let mid = (low + high) / 2;
        match v > (map[mid] + map[mid + 1]) / 2.0 {
            true => low = mid + 1,
            false => high = mid,
        }
    }
    low as u8
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

    #[test]
    fn a_block_by_hand() {
        // absmax 2: 2 -> 1, -2 -> -1, 0 -> 0, 0.9 / 2 = 0.45 is nearest to 0.4407
        let mut codes = [0; 32];
        let absmax = quantise_block(&[2.0, -2.0, 0.0, 0.9], &mut codes);
        assert_eq!((absmax, &codes[..3]), (2.0, &[0xf0, 0x7c, 0x77][..]));
    }

    #[test]
    fn fast_equals_plain_and_stays_near_what_it_was() {
        for (rows, columns) in [(64, 64), (3, 50), (1, 1), (130, 257)] {
            let w = matrix(rows, columns);
            let q = Nf4::quantise(&w, &Device::Cpu).unwrap();
            assert_eq!(q.shape(), (rows, columns));
            assert_eq!(q.num_bytes(), Nf4::num_bytes_of(rows * columns));
            let fast = q.dequantise(DType::F32).unwrap();
            let plain = q.plain().unwrap().narrow(0, 0, rows * columns).unwrap();
            assert_eq!(
                fast.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                plain.to_vec1::<f32>().unwrap()
            );
            let off = (fast - &w).unwrap().abs().unwrap().max_all().unwrap();
            // half of the widest gap between values, of a largest magnitude of 1, and the scale's own error
            assert!(off.to_scalar::<f32>().unwrap() < 0.16);
            let bits = 8.0 * q.num_bytes() as f64 / (rows * columns) as f64;
            assert!(rows * columns < 4096 || bits < 4.2, "{bits}");
        }
    }
}
