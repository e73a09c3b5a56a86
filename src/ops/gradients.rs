//! One f32 gradient a trained parameter, accumulated over the micro-batches of a step.

use super::cpu::{self, Dst, Matrix, gemm, unwritten};
use super::element::{Element, with_element};
use super::gpu::{Gpu, Operand};
use super::{optim_gpu, plain, rows_cpu, rows_gpu};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Place of a parameter in the model's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// Gradients of all trained parameters; a slot without a tensor is zero. What is added to a frozen one is dropped.
#[derive(Debug)]
pub struct Gradients {
    /// The first parameters of the list, which are not trained.
    num_frozen: usize,
    shapes: Vec<Vec<usize>>,
    slots: Vec<Option<Tensor>>,
    device: Device,
}

impl Gradients {
    /// Zero gradients for parameters of these shapes.
    pub fn new(shapes: Vec<Vec<usize>>, device: &Device) -> Self {
        Self::after(0, shapes, device)
    }

    /// The same where the first `num_frozen` parameters are not trained.
    pub fn after(num_frozen: usize, shapes: Vec<Vec<usize>>, device: &Device) -> Self {
        Self {
            num_frozen,
            slots: vec![None; shapes.len()],
            shapes,
            device: device.clone(),
        }
    }

    /// Number of parameters, frozen ones included.
    pub fn num(&self) -> usize {
        self.slots.len()
    }

    /// Whether a gradient of `id` is wanted.
    pub fn is_trained(&self, id: ParamId) -> bool {
        id.0 >= self.num_frozen
    }

    /// The gradient of `id`; `None` stands for zero.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.slots[id.0].as_ref()
    }

    /// Takes the gradient of `id` away, which is zero afterwards.
    pub fn take(&mut self, id: ParamId) -> Option<Tensor> {
        self.slots[id.0].take()
    }

    /// Sets all to zero.
    pub fn zero(&mut self) {
        self.slots.iter_mut().for_each(|s| *s = None);
    }

    /// `slot += t`; a first `t` becomes the slot and must not be written by anybody else afterwards.
    pub fn add(&mut self, id: ParamId, t: &Tensor) -> Result<()> {
        if !self.is_trained(id) {
            return Ok(());
        }
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
        if let (Some(gpu), Some(slot)) = (Gpu::of(&t), &self.slots[id.0])
            && rows_gpu::add(&gpu, slot, &t)?
        {
            return Ok(());
        }
        if let (Some(slot), Some(values)) = (&self.slots[id.0], cpu::values::<f32>(&t))
            && cpu::modify(slot, |sum| rows_cpu::add(sum, &values))?
        {
            return Ok(());
        }
        self.slots[id.0] = Some(match self.slots[id.0].take() {
            Some(sum) => (sum + t)?,
            None => t.contiguous()?,
        });
        Ok(())
    }

    /// `slot += dy^T x`. dy: `[T, O]`, x: `[T, I]`, slot: `[O, I]`.
    pub fn add_matmul(&mut self, id: ParamId, dy: &Tensor, x: &Tensor) -> Result<()> {
        if !self.is_trained(id) {
            return Ok(());
        }
        let ((t, o), (x_t, i)) = (dy.dims2()?, x.dims2()?);
        if let Some(gpu) = Gpu::of(dy)
            && t == x_t
            && dy.dtype() == x.dtype()
            && self.shapes[id.0] == [o, i]
        {
            let (dy, x) = (gpu.readable(dy)?, gpu.readable(x)?);
            return self.add_gemm(&gpu, id, t, Operand::rows(&dy, o).t(), Operand::rows(&x, i));
        }
        if t == x_t && self.shapes[id.0] == [o, i] {
            with_element!(dy, E => if self.add_matmul_on_cpu::<E>(id, dy, x, (o, i, t))? {
                return Ok(());
            });
        }
        let wide = |t: &Tensor| -> Result<Tensor> {
            Ok(match t.dtype() {
                DType::BF16 | DType::F16 => t.to_dtype(DType::F32)?,
                _ => t.clone(),
            })
        };
        self.add(id, &plain::matmul(&wide(dy)?.t()?, &wide(x)?)?)
    }

    /// [`Self::add_matmul`] where all is on the CPU and of this type; `false` elsewhere.
    fn add_matmul_on_cpu<E: Element>(
        &mut self,
        id: ParamId,
        dy: &Tensor,
        x: &Tensor,
        (o, i, t): (usize, usize, usize),
    ) -> Result<bool> {
        let (Some(ds), Some(xs)) = (cpu::values::<E>(dy), cpu::values::<E>(x)) else {
            return Ok(false);
        };
        let product = |dst: &mut [f32], into| {
            gemm(
                (o, i, t),
                dst,
                i,
                into,
                Matrix::rows(&ds, o).t(),
                Matrix::rows(&xs, i),
                1.0,
                true,
            );
        };
        if let Some(slot) = &self.slots[id.0] {
            return cpu::modify(slot, |sum| product(sum, Dst::Add));
        }
        let mut first = unwritten(o * i);
        product(&mut first, Dst::Overwrite);
        self.slots[id.0] = Some(cpu::tensor(first, (o, i))?);
        Ok(true)
    }

    /// `slot += a b` for operands of `[O, k]` and `[k, I]` on a GPU, whatever their dtype.
    pub(super) fn add_gemm(
        &mut self,
        gpu: &Gpu,
        id: ParamId,
        k: usize,
        a: Operand,
        b: Operand,
    ) -> Result<()> {
        if !self.is_trained(id) {
            return Ok(());
        }
        let &[o, i] = self.shapes[id.0].as_slice() else {
            return Err(Error::input(format!("parameter {} is no matrix", id.0)));
        };
        let add = self.slots[id.0].is_some();
        let slot = match &self.slots[id.0] {
            Some(slot) => slot.clone(),
            None => gpu.empty((o, i), DType::F32)?,
        };
        gpu.gemm((o, i, k), a, b, (&slot, i), add)?;
        self.slots[id.0] = Some(slot);
        Ok(())
    }

    /// `slot[ids[t]] += dy[t]`. dy: `[T, C]`, slot: `[V, C]`.
    pub fn add_rows(&mut self, id: ParamId, ids: &[u32], dy: &Tensor) -> Result<()> {
        if !self.is_trained(id) {
            return Ok(());
        }
        let (t, c) = dy.dims2()?;
        let vocab = self.shapes[id.0].first().copied().unwrap_or(0);
        if t != ids.len() || ids.iter().any(|&row| row as usize >= vocab) {
            return Err(Error::input(format!(
                "{} rows of {:?} into parameter {}",
                ids.len(),
                dy.dims(),
                id.0
            )));
        }
        if let Some(gpu) = Gpu::of(dy) {
            let slot = match &self.slots[id.0] {
                Some(slot) => slot.clone(),
                None => gpu.zeros(self.shapes[id.0].as_slice(), DType::F32)?,
            };
            rows_gpu::add_rows(&gpu, &slot, ids, dy)?;
            self.slots[id.0] = Some(slot);
            return Ok(());
        }
        with_element!(dy, E => if let Some(ds) = cpu::values::<E>(dy) {
            let done = self.modify(id, |sum| {
                for (&row, d) in ids.iter().zip(ds.chunks_exact(c)) {
                    let at = row as usize * c;
                    sum[at..at + c].iter_mut().zip(d).for_each(|(s, d)| *s += d.wide());
                }
            })?;
            if done {
                return Ok(());
            }
        });
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

    /// Hands the values of a slot, zeros where there was none and nothing where it is frozen, to `change`; an error where
    /// they are not f32 on the CPU.
    pub(super) fn with_slot<R>(
        &mut self,
        id: ParamId,
        change: impl FnOnce(Option<&mut [f32]>) -> R,
    ) -> Result<R> {
        if !self.is_trained(id) {
            return Ok(change(None));
        }
        let (mut change, mut result) = (Some(change), None);
        self.modify(id, |slot| {
            result = change.take().map(|change| change(Some(slot)));
        })?;
        result.ok_or_else(|| Error::input("a gradient is not where its weight is"))
    }

    /// Hands the values of a slot, zeros where there was none, to `change`; `false` where they are not f32 on the CPU.
    fn modify(&mut self, id: ParamId, change: impl FnMut(&mut [f32])) -> Result<bool> {
        if !self.device.is_cpu() {
            return Ok(false);
        }
        if self.slots[id.0].is_none() {
            self.slots[id.0] = Some(Tensor::zeros(
                self.shapes[id.0].as_slice(),
                DType::F32,
                &self.device,
            )?);
        }
        match &self.slots[id.0] {
            Some(slot) => cpu::modify(slot, change),
            None => Ok(false),
        }
    }

    /// Sum of the squares of all gradients.
    pub fn sum_squares(&self) -> Result<f64> {
        let slots: Vec<&Tensor> = self.slots.iter().flatten().collect();
        if let Some(gpu) = slots.first().and_then(|slot| Gpu::of(slot))
            && slots.iter().all(|slot| slot.dtype() == DType::F32)
        {
            return optim_gpu::sum_squares(&gpu, &slots);
        }
        let mut sum = 0.0;
        for slot in slots {
            sum += sum_squares(slot)?;
        }
        Ok(sum)
    }

    /// Parameters whose gradient holds a NaN or an infinity.
    pub fn non_finite(&self) -> Result<Vec<ParamId>> {
        let mut bad = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot
                && !is_finite(slot)?
            {
                bad.push(ParamId(i));
            }
        }
        Ok(bad)
    }
}

/// Whether all values are finite, looked at piece by piece: what is made of them on the way takes no memory to speak of.
pub fn is_finite(t: &Tensor) -> Result<bool> {
    const PIECE: usize = 1 << 20;
    let flat = t.flatten_all()?;
    let len = flat.elem_count();
    for start in (0..len).step_by(PIECE) {
        let piece = flat.narrow(0, start, PIECE.min(len - start))?;
        // x - x is 0 for finite values, NaN for the others
        let differences = piece.sub(&piece)?.to_dtype(DType::F32)?;
        if differences.sum_all()?.to_scalar::<f32>()?.is_nan() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sum of the squares of a gradient.
pub fn sum_squares(gradient: &Tensor) -> Result<f64> {
    if let Some(gpu) = Gpu::of(gradient)
        && gradient.dtype() == DType::F32
    {
        return optim_gpu::sum_squares(&gpu, &[gradient]);
    }
    if let Some(values) = cpu::values::<f32>(gradient) {
        return Ok(rows_cpu::sum_squares(&values));
    }
    let wide = gradient.to_dtype(DType::F64)?;
    Ok(wide.sqr()?.sum_all()?.to_scalar::<f64>()?)
}
