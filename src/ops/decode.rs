//! Products of decoding, one token a sequence: a row's result depends on that row only, bit for bit. Keys, values and attention
//! over them are in [`super::paged`].
//!
//! f32 and bf16 tensors in the memory of the CPU go through the kernels of `decode_cpu`; everything else through the portable
//! forms here, composed of candle's operations.

use super::element::{Element, with_element};
use super::gpu::Gpu;
use super::{Projection, cpu, decode_cpu, plain};
use crate::Result;
use candle_core::{DType, Tensor};

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
    if let Some(logits) = super::logits_on_gpu(x, w)? {
        return Ok(logits);
    }
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
    fn what_does_not_fit_is_an_error() {
        assert!(linears(&random(&[2, 3]), &[(&random(&[4, 5]), None)]).is_err());
    }
}
