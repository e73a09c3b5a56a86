//! One f32 gradient a parameter, accumulated over the micro-batches of a step.

use super::plain;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Place of a parameter in the model's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// Gradients of all parameters; a slot without a tensor is zero.
#[derive(Debug)]
pub struct Gradients {
    shapes: Vec<Vec<usize>>,
    slots: Vec<Option<Tensor>>,
    device: Device,
}

impl Gradients {
    /// Zero gradients for parameters of these shapes.
    pub fn new(shapes: Vec<Vec<usize>>, device: &Device) -> Self {
        Self {
            slots: vec![None; shapes.len()],
            shapes,
            device: device.clone(),
        }
    }

    /// Number of parameters.
    pub fn num(&self) -> usize {
        self.slots.len()
    }

    /// The gradient of `id`; `None` stands for zero.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.slots[id.0].as_ref()
    }

    /// Sets all to zero.
    pub fn zero(&mut self) {
        self.slots.iter_mut().for_each(|s| *s = None);
    }

    /// `slot += t`.
    pub fn add(&mut self, id: ParamId, t: &Tensor) -> Result<()> {
        let t = t.to_dtype(if t.dtype() == DType::F64 {
            DType::F64
        } else {
            DType::F32
        })?;
        if t.dims() != self.shapes[id.0] {
            return Err(Error::input(format!(
                "gradient of parameter {} has shape {:?}, expected {:?}",
                id.0,
                t.dims(),
                self.shapes[id.0]
            )));
        }
        self.slots[id.0] = Some(match self.slots[id.0].take() {
            Some(sum) => (sum + t)?,
            None => t.contiguous()?,
        });
        Ok(())
    }

    /// `slot += dy^T x`. dy: `[T, O]`, x: `[T, I]`, slot: `[O, I]`.
    pub fn add_matmul(&mut self, id: ParamId, dy: &Tensor, x: &Tensor) -> Result<()> {
        let wide = |t: &Tensor| -> Result<Tensor> {
            Ok(match t.dtype() {
                DType::BF16 | DType::F16 => t.to_dtype(DType::F32)?,
                _ => t.clone(),
            })
        };
        self.add(id, &plain::matmul(&wide(dy)?.t()?, &wide(x)?)?)
    }

    /// `slot[ids[t]] += dy[t]`. dy: `[T, C]`, slot: `[V, C]`.
    pub fn add_rows(&mut self, id: ParamId, ids: &[u32], dy: &Tensor) -> Result<()> {
        let dtype = if dy.dtype() == DType::F64 {
            DType::F64
        } else {
            DType::F32
        };
        let zero = Tensor::zeros(self.shapes[id.0].as_slice(), dtype, &self.device)?;
        let index = Tensor::new(ids, &self.device)?;
        self.add(
            id,
            &zero.index_add(&index, &dy.to_dtype(dtype)?.contiguous()?, 0)?,
        )
    }

    /// Sum of the squares of all gradients.
    pub fn sum_squares(&self) -> Result<f64> {
        let mut sum = 0.0;
        for slot in self.slots.iter().flatten() {
            sum += slot
                .to_dtype(DType::F64)?
                .sqr()?
                .sum_all()?
                .to_scalar::<f64>()?;
        }
        Ok(sum)
    }

    /// Parameters whose gradient holds a NaN or an infinity.
    pub fn non_finite(&self) -> Result<Vec<ParamId>> {
        let mut bad = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot
                && !slot
                    .to_dtype(DType::F64)?
                    .abs()?
                    .sum_all()?
                    .to_scalar::<f64>()?
                    .is_finite()
            {
                bad.push(ParamId(i));
            }
        }
        Ok(bad)
    }
}
