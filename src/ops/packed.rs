//! Weights in 4 or 8 bits that nobody trains, whatever their format: [`super::nf4`] or blocks of [`super::ggml`].

use super::ggml::{GgmlBlocks, GgmlType};
use super::nf4::Nf4;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

/// The format of a quantised weight.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub enum PackedAs {
    /// 4-bit NormalFloat with double quantisation, as bitsandbytes makes it: 4.13 bits a weight.
    #[serde(rename = "nf4")]
    Nf4,
    /// GGML's blocks of 32 values with a scale: 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGML's blocks of 256 values with eight scales and mins: 4.5 bits a weight.
    #[serde(rename = "q4_k")]
    Q4K,
}

impl PackedAs {
    /// All.
    pub const ALL: [Self; 3] = [Self::Nf4, Self::Q8_0, Self::Q4K];

    /// As recipes call it.
    pub fn name(self) -> &'static str {
        match self.blocks() {
            None => "nf4",
            Some(of) => of.name(),
        }
    }

    fn blocks(self) -> Option<GgmlType> {
        match self {
            Self::Nf4 => None,
            Self::Q8_0 => Some(GgmlType::Q8_0),
            Self::Q4K => Some(GgmlType::Q4_K),
        }
    }

    /// Values that rows have to be a multiple of.
    pub fn block_size(self) -> usize {
        self.blocks().map_or(1, GgmlType::block_size)
    }

    /// The format that a weight with rows of `width` values gets where this one is asked for: q8_0 in place of q4_k where
    /// its blocks do not fit, as llama.cpp too takes a larger type then; none where those do not fit either.
    pub fn for_width(self, width: usize) -> Option<Self> {
        let fits = |a: &Self| width.is_multiple_of(a.block_size());
        match self {
            Self::Q4K => [Self::Q4K, Self::Q8_0].into_iter().find(fits),
            other => Some(other).filter(fits),
        }
    }

    /// Bytes of a matrix of so many values.
    pub fn num_bytes(self, num_values: usize) -> usize {
        match self.blocks() {
            Some(of) => of.num_bytes(num_values),
            None => Nf4::num_bytes_of(num_values),
        }
    }
}

/// A quantised matrix.
#[derive(Clone, Debug)]
pub enum Packed {
    Nf4(Nf4),
    Blocks(GgmlBlocks),
}

impl Packed {
    /// Quantises a matrix; the result is on `device`. See [`PackedAs::for_width`].
    ///
    /// # Errors
    /// Rows that do not divide into blocks, values too large for these; the device refuses.
    pub fn quantise(w: &Tensor, packed_as: PackedAs, device: &Device) -> Result<Self> {
        let width = w.dims2()?.1;
        let Some(taken) = packed_as.for_width(width) else {
            return Err(no_blocks(packed_as, width));
        };
        match taken.blocks() {
            None => Ok(Self::Nf4(Nf4::quantise(w, device)?)),
            Some(of) => {
                let blocks = GgmlBlocks::quantise(w, of, device);
                Ok(Self::Blocks(blocks.map_err(with_hint)?))
            }
        }
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        match self {
            Self::Nf4(w) => w.device(),
            Self::Blocks(w) => w.device(),
        }
    }

    /// The same on another device; as cheap as a clone where it is there already.
    ///
    /// # Errors
    /// The device refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        match self {
            Self::Nf4(w) => w.to_device(device).map(Self::Nf4),
            Self::Blocks(w) => w.to_device(device).map(Self::Blocks),
        }
    }

    /// Bytes that it takes.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Nf4(w) => w.num_bytes(),
            Self::Blocks(w) => w.num_bytes(),
        }
    }

    /// The matrix again. -> `[O, I]`
    ///
    /// # Errors
    /// The device refuses.
    pub fn dequantise(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Nf4(w) => w.dequantise(dtype),
            Self::Blocks(w) => w.dequantise(dtype),
        }
    }
}

fn with_hint(error: Error) -> Error {
    error
        .with_hint("`student.lora.quant = \"nf4\"` takes rows of any length and values of any size")
}

/// A width that no format takes which stands in for this one.
pub fn no_blocks(packed_as: PackedAs, width: usize) -> Error {
    with_hint(Error::input(match packed_as {
        PackedAs::Q4K => format!(
            "rows of {width} values divide neither into q4_k's blocks of 256 nor into q8_0's of 32"
        ),
        other => format!(
            "rows of {width} values do not divide into {}'s blocks of {}",
            other.name(),
            other.block_size()
        ),
    }))
}
