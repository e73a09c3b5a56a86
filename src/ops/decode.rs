//! Operations of decoding, one token a sequence: a row's result depends on that row only, bit for bit.
//!
//! f32 and bf16 tensors in the memory of the CPU go through the kernels of `decode_cpu` and `decode_attention_cpu`, on a CUDA
//! device through those of `decode_gpu`; everything else through the portable forms here, composed of candle's operations.

use super::decode_attention_cpu::{self, CacheShape};
use super::decode_gpu;
use super::element::{Element, with_element};
use super::gpu::Gpu;
use super::{Projection, cpu, decode_cpu, plain};
use crate::Result;
use candle_core::{CpuStorage, D, DType, InplaceOp2, Layout, Tensor};
use std::marker::PhantomData;

/// `y = x w^T + b` for each weight and bias, row by row. x: `[B, I]`, w: `[O, I]` -> `[B, O]` each.
pub fn linears(x: &Tensor, weights: &[Projection]) -> Result<Vec<Tensor>> {
    match fast_linears(x, weights)? {
        Some(ys) => Ok(ys),
        // a row's last bits may depend on the others there, in exchange for one product instead of many
        None if Gpu::of(x).is_some() => super::linears(x, weights),
        None => weights
            .iter()
            .map(|&(w, b)| linear_portable(x, w, b))
            .collect(),
    }
}

/// [`linears`] of many rows, the tokens of a prompt. On the CPU in f32 or bf16 a row's result is the same as in [`linears`];
/// elsewhere it may differ in the last bits.
pub fn linears_of_prompt(x: &Tensor, weights: &[Projection]) -> Result<Vec<Tensor>> {
    match fast_linears(x, weights)? {
        Some(ys) => Ok(ys),
        None => super::linears(x, weights),
    }
}

fn fast_linears(x: &Tensor, weights: &[Projection]) -> Result<Option<Vec<Tensor>>> {
    with_element!(x, E => return linears_on_cpu::<E, E>(x, weights));
    Ok(None)
}

fn linears_on_cpu<E: Element, Y: Element>(
    x: &Tensor,
    weights: &[Projection],
) -> Result<Option<Vec<Tensor>>> {
    let (num_rows, num_in) = x.dims2()?;
    let Some(xs) = cpu::values::<E>(x) else {
        return Ok(None);
    };
    let mut held = Vec::with_capacity(weights.len());
    for (w, b) in weights {
        let (num_out, w_in) = w.dims2()?;
        let bias = b.map(cpu::values::<E>);
        let fits = num_in > 0 && w_in == num_in && b.is_none_or(|b| b.dims() == [num_out]);
        match (cpu::values::<E>(w), bias) {
            (Some(w), None) if fits => held.push((w, None)),
            (Some(w), Some(Some(bias))) if fits => held.push((w, Some(bias))),
            _ => return Ok(None),
        }
    }
    let projections: Vec<decode_cpu::Projection<E>> = held
        .iter()
        .map(|(w, bias)| decode_cpu::Projection {
            w,
            bias: bias.as_deref(),
        })
        .collect();
    let ys = decode_cpu::linears::<E, Y>(&xs, &projections, num_in);
    ys.into_iter()
        .zip(weights)
        .map(|(y, (w, _))| cpu::tensor(y, (num_rows, w.dim(0)?)))
        .collect::<Result<_>>()
        .map(Some)
}

/// `y = x w^T` in f32, not rounded to the type of the weights. x: `[B, C]`, w: `[V, C]` -> `[B, V]`
pub fn logits(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    with_element!(x, E => if let Some(ys) = linears_on_cpu::<E, f32>(x, &[(w, None)])? {
        return Ok(Tensor::cat(&ys, 0)?);
    });
    let ys = linears(x, &[(w, None)])?;
    Ok(Tensor::cat(&ys, 0)?.to_dtype(DType::F32)?)
}

fn linear_portable(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let rows: Vec<Tensor> = (0..x.dim(0)?)
        .map(|i| plain::linear(&x.narrow(0, i, 1)?, w, b))
        .collect::<Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// `cache[slots[t], :, positions[t], :] = x[t]`. cache: `[S, K, P, D]`, x: `[T, K, D]`.
pub fn append(cache: &Tensor, x: &Tensor, slots: &[u32], positions: &[u32]) -> Result<()> {
    if let Some(gpu) = Gpu::of(cache)
        && decode_gpu::appends(&gpu, cache, x, slots, positions)?
    {
        return decode_gpu::append(&gpu, cache, x, slots, positions);
    }
    with_element!(cache, E => if cpu::values::<E>(cache).is_some() && cpu::values::<E>(x).is_some() {
        let append = Append { slots, positions, element: PhantomData::<E> };
        return Ok(cache.inplace_op2(x, &append)?);
    });
    append_portable(cache, x, slots, positions)
}

/// [`append`] in the cache's own memory.
struct Append<'a, E> {
    slots: &'a [u32],
    positions: &'a [u32],
    element: PhantomData<E>,
}

impl<E: Element> InplaceOp2 for Append<'_, E> {
    fn name(&self) -> &'static str {
        "append-to-cache"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (num_slots, k, p, d) = cache_layout.shape().dims4()?;
        let (t, x_k, x_d) = x_layout.shape().dims3()?;
        let fits = self.slots.iter().all(|&slot| (slot as usize) < num_slots)
            && self
                .positions
                .iter()
                .all(|&position| (position as usize) < p)
            && (self.slots.len(), self.positions.len(), x_k, x_d) == (t, t, k, d);
        let (Some((start, _)), Some((x_start, _))) = (
            cache_layout.contiguous_offsets(),
            x_layout.contiguous_offsets(),
        ) else {
            candle_core::bail!("append-to-cache: not contiguous")
        };
        if !fits {
            candle_core::bail!(
                "append-to-cache: {:?} does not fit into {:?}",
                x_layout.shape(),
                cache_layout.shape()
            )
        }
        let (Some(cache), Some(x)) = (E::slice_mut(cache), E::slice(x)) else {
            candle_core::bail!("append-to-cache: another type")
        };
        let rows = x[x_start..].chunks_exact(d);
        for (row, x) in rows.take(t * k).enumerate() {
            let (slot, position) = (
                self.slots[row / k] as usize,
                self.positions[row / k] as usize,
            );
            let at = start + ((slot * k + row % k) * p + position) * d;
            cache[at..at + d].copy_from_slice(x);
        }
        Ok(())
    }
}

fn append_portable(cache: &Tensor, x: &Tensor, slots: &[u32], positions: &[u32]) -> Result<()> {
    let (s, k, p, d) = cache.dims4()?;
    let flat = cache.reshape((s * k * p, d))?;
    for (t, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
        for head in 0..k {
            let row = x
                .narrow(0, t, 1)?
                .narrow(1, head, 1)?
                .reshape((1, d))?
                .contiguous()?;
            flat.slice_set(&row, 0, (slot as usize * k + head) * p + position as usize)?;
        }
    }
    Ok(())
}

/// Attention of one query a sequence over the first `lens[b]` cached positions of `slots[b]`. q: `[B, H, D]`, caches
/// `[S, K, P, D]` -> `[B, H, D]`.
pub fn attention(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slots: &[u32],
    lens: &[u32],
    scale: f64,
) -> Result<Tensor> {
    let (b, h, d) = q.dims3()?;
    let (s, k, p, cache_d) = k_cache.dims4()?;
    let fits = k_cache.dims() == v_cache.dims()
        && cache_d == d
        && k > 0
        && h % k == 0
        && (slots.len(), lens.len()) == (b, b)
        && slots.iter().all(|&slot| (slot as usize) < s)
        && lens.iter().all(|&len| (1..=p).contains(&(len as usize)));
    if let Some(gpu) = Gpu::of(q)
        && fits
        && decode_gpu::attends(&gpu, q, k_cache, v_cache)
    {
        return decode_gpu::attention(&gpu, q, k_cache, v_cache, slots, lens, scale);
    }
    let shape = CacheShape {
        num_heads: h,
        num_kv_heads: k,
        num_positions: p,
        head_dim: d,
    };
    with_element!(q, E => if let (true, Some(qs), Some(keys), Some(values)) = (
        fits,
        cpu::values::<E>(q),
        cpu::values::<E>(k_cache),
        cpu::values::<E>(v_cache),
    ) {
        let scale = scale as f32;
        let o = decode_attention_cpu::attention(&qs, &keys, &values, shape, slots, lens, scale);
        return cpu::tensor(o, (b, h, d));
    });
    attention_portable(q, k_cache, v_cache, slots, lens, scale)
}

fn attention_portable(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slots: &[u32],
    lens: &[u32],
    scale: f64,
) -> Result<Tensor> {
    let (b, h, d) = q.dims3()?;
    let (_, k, _, _) = k_cache.dims4()?;
    let mut rows = Vec::with_capacity(b);
    for i in 0..b {
        let part = |cache: &Tensor| -> Result<Tensor> {
            Ok(cache
                .narrow(0, slots[i] as usize, 1)?
                .squeeze(0)?
                .narrow(1, 0, lens[i] as usize)?
                .to_dtype(DType::F32)?
                .contiguous()?) // [K, L, D]
        };
        let (keys, values) = (part(k_cache)?, part(v_cache)?);
        let q = q
            .narrow(0, i, 1)?
            .reshape((k, h / k, d))?
            .to_dtype(DType::F32)?
            .contiguous()?;
        let scores = (q.matmul(&keys.transpose(1, 2)?.contiguous()?)? * scale)?; // [K, H/K, L]
        let exp = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
            .exp()?;
        let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        rows.push(
            p.matmul(&values)?
                .reshape((1, h, d))?
                .to_dtype(k_cache.dtype())?,
        );
    }
    Ok(Tensor::cat(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn largest_gap(a: &Tensor, b: &Tensor) -> f32 {
        let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        gap.max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn linear_by_hand() {
        let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let w = Tensor::new(&[[1f32, 0.0], [0.5, -1.0], [2.0, 2.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[0f32, 10.0, -1.0], &Device::Cpu).unwrap();
        let ys = linears(&x, &[(&w, Some(&b)), (&w, None)]).unwrap();
        let [with, without] = [0, 1].map(|i: usize| ys[i].to_vec2::<f32>().unwrap());
        assert_eq!(with, [[1.0, 8.5, 5.0], [3.0, 7.5, 13.0]]);
        assert_eq!(without, [[1.0, -1.5, 6.0], [3.0, -2.5, 14.0]]);
    }

    #[test]
    fn linear_is_the_portable_one_and_rows_are_alone() {
        for (b, i, o) in [
            (1, 16, 8),
            (3, 33, 41),
            (16, 64, 300),
            (17, 5, 7),
            (40, 48, 129),
            (150, 20, 70),
        ] {
            let x = random(&[b, i]);
            let (w, bias) = (random(&[o, i]), random(&[o]));
            let (other, other_bias) = (random(&[o / 2, i]), random(&[o / 2]));
            for biases in [[None, Some(&other_bias)], [Some(&bias), None]] {
                let weights = [(&w, biases[0]), (&other, biases[1])];
                let ys = linears(&x, &weights).unwrap();
                for (y, (w, bias)) in ys.iter().zip(weights) {
                    let expected = linear_portable(&x, w, bias).unwrap();
                    assert!(largest_gap(y, &expected) < 2e-5);
                    for row in 0..b {
                        let x = x.narrow(0, row, 1).unwrap();
                        let alone = &linears(&x, &[(w, bias)]).unwrap()[0];
                        assert_eq!(largest_gap(alone, &y.narrow(0, row, 1).unwrap()), 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn attention_is_the_portable_one_and_rows_are_alone() {
        // head dims of one to eight registers, heads that share keys in odd numbers, and what fits no register
        let shapes = [
            (4, 2, 8),
            (3, 3, 5),
            (8, 1, 64),
            (10, 2, 16),
            (7, 1, 32),
            (6, 2, 128),
            (2, 1, 48),
        ];
        for (h, k, d) in shapes {
            let (s, p) = (5, 40);
            let cache = || Tensor::zeros((s, k, p, d), DType::F32, &Device::Cpu).unwrap();
            let caches = [(cache(), cache()), (cache(), cache())];
            for position in 0..p as u32 {
                let slots: Vec<u32> = (0..s as u32).collect();
                let (keys, values) = (random(&[s, k, d]), random(&[s, k, d]));
                let positions = vec![position; s];
                append(&caches[0].0, &keys, &slots, &positions).unwrap();
                append(&caches[0].1, &values, &slots, &positions).unwrap();
                append_portable(&caches[1].0, &keys, &slots, &positions).unwrap();
                append_portable(&caches[1].1, &values, &slots, &positions).unwrap();
            }
            let [(keys, values), (other_keys, other_values)] = &caches;
            assert_eq!(largest_gap(keys, other_keys), 0.0);
            assert_eq!(largest_gap(values, other_values), 0.0);
            let (slots, lens) = ([3, 0, 4], [40, 1, 17]);
            let q = random(&[3, h, d]);
            let o = attention(&q, keys, values, &slots, &lens, 0.3).unwrap();
            let expected = attention_portable(&q, keys, values, &slots, &lens, 0.3).unwrap();
            assert!(largest_gap(&o, &expected) < 1e-5);
            for row in 0..3 {
                let q = q.narrow(0, row, 1).unwrap();
                let alone =
                    attention(&q, keys, values, &slots[row..=row], &lens[row..=row], 0.3).unwrap();
                assert_eq!(largest_gap(&alone, &o.narrow(0, row, 1).unwrap()), 0.0);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let cache = random(&[2, 1, 4, 8]);
        for (slot, position) in [(2, 0), (0, 4)] {
            assert!(append(&cache, &random(&[1, 1, 8]), &[slot], &[position]).is_err());
        }
        assert!(linears(&random(&[2, 3]), &[(&random(&[4, 5]), None)]).is_err());
    }
}
