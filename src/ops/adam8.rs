//! AdamW whose moments are kept in 8 bits, block by block (arXiv 2110.02861, as bitsandbytes' AdamW8bit): 256 values of the
//! flattened tensor share an f32 scale, and each has the code of the nearest value of a map (`dynamic_map`), signed for m
//! and unsigned for v.
//!
//! ```text
//! m = map[code] * absmax of its block      code = nearest of the map to m / absmax
//! ```
//!
//! The step itself is that of [`super::adamw_inplace`], in f32: a block is brought to f32, updated and written back; no state
//! is ever in f32 whole. Which parameters have such states is decided in `optim/adamw.rs`.

use super::cpu;
use super::dynamic_map::{self, DynamicMap};
use super::gpu::Gpu;
use super::master::{Master, Weights, modify_integers, modify_weights};
use super::optim_gpu;
use super::rows_cpu::{adamw_constants, adamw_piece};
use super::vector::{LANES, larger, reduce, vectorised};
use super::{AdamWStep, update};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// Below it a scale is as good as 0.
const LEAST_SCALE: f32 = 1e-38;
/// Values a task takes.
const PIECE: usize = 64 * BLOCK;
/// Values that the portable form brings to f32 at a time.
const PORTABLE_PIECE: usize = 4096 * BLOCK;

/// Both moments of a tensor.
#[derive(Clone, Debug)]
pub struct Adam8State {
    /// u8, `[N]`
    pub m: Tensor,
    /// f32, one a block
    pub m_absmax: Tensor,
    /// u8, `[N]`
    pub v: Tensor,
    /// f32, one a block
    pub v_absmax: Tensor,
}

impl Adam8State {
    /// Moments of zero of `n` values.
    pub fn zeros(n: usize, device: &Device) -> Result<Self> {
        let codes = || Tensor::zeros(n, DType::U8, device);
        let absmax = || Tensor::zeros(n.div_ceil(BLOCK), DType::F32, device);
        Ok(Self {
            m: codes()?,
            m_absmax: absmax()?,
            v: codes()?,
            v_absmax: absmax()?,
        })
    }

    /// m and v in f32, on the CPU. -> `[N]` each
    pub fn dequantise(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let of = |codes: &Tensor, absmax: &Tensor, map: &DynamicMap| -> Result<Vec<f32>> {
            let (codes, absmax) = (codes.to_vec1::<u8>()?, absmax.to_vec1::<f32>()?);
            let mut all = vec![0.0; codes.len()];
            let blocks = all.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(&absmax);
            blocks.for_each(|((values, codes), absmax)| read_block(map, codes, *absmax, values));
            Ok(all)
        };
        Ok((
            of(&self.m, &self.m_absmax, dynamic_map::signed())?,
            of(&self.v, &self.v_absmax, dynamic_map::unsigned())?,
        ))
    }
}

/// One step of AdamW: as [`super::adamw_inplace`], with both moments in 8 bits.
pub fn adamw8_inplace(
    value: &Tensor,
    master: Option<&Master>,
    state: &Adam8State,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<()> {
    let n = value.elem_count();
    if state.m.dims() != [n] || grad.elem_count() != n {
        return Err(Error::input(format!(
            "{n} weights, {} gradients and 8-bit states of {:?}",
            grad.elem_count(),
            state.m.dims()
        )));
    }
    if let Some(gpu) = Gpu::of(value)
        && optim_gpu::adamw8(&gpu, value, master, state, grad, c)?
    {
        return Ok(());
    }
    if !on_cpu((value, master), state, grad, c)? {
        portable(update::whole(value, master)?, state, grad, c)?;
    }
    update::round_into(value, master)
}

/// The fused step; `false` where a tensor is not on the CPU, or weight or gradient are not f32.
fn on_cpu(
    (value, master): (&Tensor, Option<&Master>),
    s: &Adam8State,
    grad: &Tensor,
    c: &AdamWStep,
) -> Result<bool> {
    let Some(g) = cpu::values::<f32>(grad) else {
        return Ok(false);
    };
    if !s.m.device().is_cpu() {
        return Ok(false);
    }
    modify_weights(value, master, |w| {
        modify_codes(&s.m, |m| {
            modify_f32(&s.m_absmax, |m_absmax| {
                modify_codes(&s.v, |v| {
                    modify_f32(&s.v_absmax, |v_absmax| {
                        step((w, &g[..]), (m, m_absmax), (v, v_absmax), c);
                        Ok(())
                    })
                })
            })
        })
    })
}

/// All blocks; codes with their scales.
fn step(
    (w, g): (Weights, &[f32]),
    m: (&mut [u8], &mut [f32]),
    v: (&mut [u8], &mut [f32]),
    c: &AdamWStep,
) {
    const SCALES: usize = PIECE / BLOCK;
    let constants = adamw_constants(c);
    w.pieces(PIECE)
        .into_par_iter()
        .zip(g.par_chunks(PIECE))
        .zip(m.0.par_chunks_mut(PIECE).zip(m.1.par_chunks_mut(SCALES)))
        .zip(v.0.par_chunks_mut(PIECE).zip(v.1.par_chunks_mut(SCALES)))
        .for_each(|(((w, g), (m, m_absmax)), (v, v_absmax))| {
            let (m_map, v_map) = (dynamic_map::signed(), dynamic_map::unsigned());
            let (mut m_values, mut v_values) = ([0.0; BLOCK], [0.0; BLOCK]);
            w.change(BLOCK, |at, w| {
                let (block, n) = (at / BLOCK, w.len());
                let (m, v) = (&mut m[at..at + n], &mut v[at..at + n]);
                let (m_values, v_values) = (&mut m_values[..n], &mut v_values[..n]);
                read_block(m_map, m, m_absmax[block], m_values);
                read_block(v_map, v, v_absmax[block], v_values);
                adamw_piece(w, m_values, v_values, &g[at..at + n], constants);
                m_absmax[block] = write_block(m_map, m_values, m);
                v_absmax[block] = write_block(v_map, v_values, v);
            });
        });
}

/// Codes to values.
fn read_block(map: &DynamicMap, codes: &[u8], absmax: f32, values: &mut [f32]) {
    let map = map.values();
    for (value, code) in values.iter_mut().zip(codes) {
        *value = map[usize::from(*code)] * absmax;
    }
}

/// Values to codes; returns the largest magnitude.
fn write_block(map: &DynamicMap, values: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = largest_magnitude(values);
    let factor = 1.0 / absmax.max(LEAST_SCALE);
    for (value, code) in values.iter().zip(codes) {
        *code = map.nearest(value * factor);
    }
    absmax
}

vectorised! {
    fn largest_magnitude(values: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                lanes[l] = larger(lanes[l], chunk[l].abs());
            }
        }
        rest.iter().fold(reduce(lanes, larger), |most, x| larger(most, x.abs()))
    }
}

/// The same of candle's operations, for every device, some blocks at a time.
fn portable(w: &Tensor, s: &Adam8State, grad: &Tensor, c: &AdamWStep) -> Result<()> {
    let (w, grad) = (w.flatten_all()?, grad.flatten_all()?);
    let maps = [dynamic_map::signed(), dynamic_map::unsigned()];
    let [m_map, v_map] = maps.map(|map| OnDevice::new(map, w.device()));
    let (m_map, v_map) = (m_map?, v_map?);
    let n = w.elem_count();
    let whole = n / BLOCK * BLOCK;
    // the last block, where it is not whole, goes alone
    let pieces = (0..whole)
        .step_by(PORTABLE_PIECE)
        .map(|start| (start, PORTABLE_PIECE.min(whole - start)))
        .chain((whole < n).then_some((whole, n - whole)));
    for (start, len) in pieces {
        let (first, num_blocks) = (start / BLOCK, len.div_ceil(BLOCK));
        let read = |codes: &Tensor, absmax: &Tensor, map: &OnDevice| -> Result<Tensor> {
            let codes = codes.narrow(0, start, len)?;
            let absmax = absmax.narrow(0, first, num_blocks)?;
            map.read(&codes, &absmax)
        };
        let write = |values: &Tensor, codes: &Tensor, absmax: &Tensor, map: &OnDevice| {
            let (new_codes, new_absmax) = map.write(values, num_blocks)?;
            codes.slice_set(&new_codes, 0, start)?;
            Result::Ok(absmax.slice_set(&new_absmax, 0, first)?)
        };
        let m = read(&s.m, &s.m_absmax, &m_map)?;
        let v = read(&s.v, &s.v_absmax, &v_map)?;
        let piece = w.narrow(0, start, len)?;
        let next = update::adamw_plain(&piece, &m, &v, &grad.narrow(0, start, len)?, c)?;
        w.slice_set(&next.w, 0, start)?;
        write(&next.m, &s.m, &s.m_absmax, &m_map)?;
        write(&next.v, &s.v, &s.v_absmax, &v_map)?;
    }
    Ok(())
}

/// A map as tensors.
struct OnDevice {
    values: Tensor,
    bounds: Tensor,
}

impl OnDevice {
    fn new(map: &DynamicMap, device: &Device) -> Result<Self> {
        Ok(Self {
            values: Tensor::new(map.values(), device)?,
            bounds: Tensor::new(map.bounds(), device)?,
        })
    }

    /// `[n]` codes of blocks that are alike to values.
    fn read(&self, codes: &Tensor, absmax: &Tensor) -> Result<Tensor> {
        let num_blocks = absmax.elem_count();
        let values = self.values.index_select(&codes.to_dtype(DType::U32)?, 0)?;
        let values = values.reshape((num_blocks, ()))?;
        Ok(values.broadcast_mul(&absmax.unsqueeze(1)?)?.flatten_all()?)
    }

    /// `[n]` values in `num_blocks` that are alike to codes and scales: of the boundaries those below are counted by
    /// halves.
    fn write(&self, values: &Tensor, num_blocks: usize) -> Result<(Tensor, Tensor)> {
        let blocks = values.reshape((num_blocks, ()))?;
        let absmax = blocks.abs()?.max(1)?;
        let factor = absmax.maximum(LEAST_SCALE)?.recip()?;
        let scaled = blocks.broadcast_mul(&factor.unsqueeze(1)?)?;
        let scaled = scaled.flatten_all()?;
        let mut count = scaled.zeros_like()?;
        for bit in (0..8).rev() {
            let half = f64::from(1u32 << bit);
            let place = (&count + (half - 1.0))?.to_dtype(DType::U32)?;
            let above = scaled.gt(&self.bounds.index_select(&place, 0)?)?;
            count = (count + (above.to_dtype(DType::F32)? * half)?)?;
        }
        Ok((count.to_dtype(DType::U8)?, absmax))
    }
}

/// Hands values that are known to be f32 on the CPU to `change`.
fn modify_f32(t: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let (mut change, mut result) = (Some(change), Ok(()));
    let done = cpu::modify::<f32>(t, |values| {
        if let Some(change) = change.take() {
            result = change(values);
        }
    })?;
    match done {
        true => result,
        false => Err(Error::input("8-bit states are not where their weight is")),
    }
}

/// The same of codes.
fn modify_codes(t: &Tensor, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    let (mut change, mut result) = (Some(change), Ok(()));
    modify_integers(t, |codes: &mut [u8]| {
        if let Some(change) = change.take() {
            result = change(codes);
        }
    })?;
    result
}

#[cfg(test)]
#[path = "adam8_tests.rs"]
mod tests;
