//! A projection of a block, with its adapter where it has one: several at once forward, one backward.

use super::CausalLm;
use crate::ops::{self, Gradients, ParamId};
use crate::{Error, Result};
use candle_core::Tensor;

/// A weight `[O, I]` and its bias `[O]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub w: ParamId,
    pub b: Option<ParamId>,
}

/// The product that fits the occasion: training, a prompt, or one token a sequence.
pub(super) type LinearsFn = fn(&Tensor, &[ops::Projection]) -> Result<Vec<Tensor>>;

/// As many products as weights.
fn several<const N: usize>(
    linears: LinearsFn,
    x: &Tensor,
    weights: &[ops::Projection],
) -> Result<[Tensor; N]> {
    exactly(linears(x, weights)?)
}

fn exactly<const N: usize>(ys: Vec<Tensor>) -> Result<[Tensor; N]> {
    ys.try_into()
        .map_err(|ys: Vec<Tensor>| Error::input(format!("{} products of {N} weights", ys.len())))
}

/// One product without a bias.
pub(super) fn product(linears: LinearsFn, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let [y] = several(linears, x, &[(w, None)])?;
    Ok(y)
}

impl CausalLm {
    /// x `[T, I]` through each of `layers`, adapters included. -> `[T, O]` each
    pub(super) fn through<const N: usize>(
        &self,
        linears: LinearsFn,
        x: &Tensor,
        layers: [Linear; N],
    ) -> Result<[Tensor; N]> {
        let bias = |layer: &Linear| layer.b.map(|b| self.w(b));
        let mut ys = match layers.iter().any(|layer| self.frozen.holds(layer.w)) {
            // never more than one of them as numbers
            true => {
                let one = |layer: &Linear| -> Result<Tensor> {
                    let w = self.weight(layer.w)?;
                    let [y] = several(linears, x, &[(&w, bias(layer))])?;
                    Ok(y)
                };
                let ys = layers.iter().map(one).collect::<Result<Vec<_>>>()?;
                exactly(ys)?
            }
            false => {
                let weights = layers.iter().map(|layer| (self.w(layer.w), bias(layer)));
                let projections: Vec<ops::Projection> = weights.collect();
                several(linears, x, &projections)?
            }
        };
        if let Some(adapters) = &self.adapters {
            for (layer, y) in layers.iter().zip(&mut ys) {
                if let Some(adapter) = adapters.of(layer.w) {
                    *y = adapter.add_to(self, linears, x, y, layer.b)?;
                }
            }
        }
        Ok(ys)
    }

    /// dy `[T, O]` of `y = x W^T + b` to dx `[T, I]`; gradients of what is trained are added to `grads`.
    pub(super) fn linear_backward(
        &self,
        layer: Linear,
        x: &Tensor,
        dy: &Tensor,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        if let Some(adapter) = self.adapters.as_ref().and_then(|all| all.of(layer.w)) {
            return adapter.backward(self, layer.w, x, dy, grads);
        }
        grads.add_matmul(layer.w, dy, x)?;
        if let Some(b) = layer.b
            && grads.is_trained(b)
        {
            grads.add(b, &ops::sum_rows(dy)?)?;
        }
        ops::linear_backward_input(dy, &self.weight(layer.w)?)
    }
}
