//! Gradients of functions of the log-probabilities: what policy-gradient and preference losses are made of. The losses
//! themselves are in `train/`.
//!
//! With logits z of a token and temperature T, `log pi_T(x) = log softmax(z / T)[x]`. The head is linear, so dividing its
//! input h by T does that, and the gradient with respect to h is divided by T once more.

use super::{Batch, CausalLm, Recompute, in_place, weights};
use crate::ops::{self, Gradients, tensor_file};
use crate::{Error, Result};
use candle_core::Tensor;
use std::path::Path;

/// Of each token of a batch, 0 where its weight is 0.
pub use crate::ops::TokenStats;

/// A loss as a function of log-probabilities, by its derivative: turns them into the coefficients of
/// `L = sum_t coef[t] * logp[t]`, whose gradient is wanted (descent on L).
pub trait TokenObjective: Send {
    /// Whether a token's coefficient needs its own log-probability only: the head then makes one pass, chunk by chunk, and
    /// `coefs` is called for each chunk.
    fn is_per_token(&self) -> bool;

    /// One coefficient for each of `places`, indices into the batch's tokens, ascending.
    fn coefs(&mut self, places: &[u32], logprobs: &[f32]) -> Result<Vec<f32>>;
}

impl CausalLm {
    /// Takes over what is trained of a model of the same shape.
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        for (own, other) in self.trained().1.iter().zip(other.trained().1) {
            own.value.slice_set(&other.value, 0, 0)?;
        }
        self.refresh()
    }

    /// The same model with what is trained taken from a file of [`CausalLm::save_file`]; what is frozen is shared.
    ///
    /// # Errors
    /// A damaged file, or one of another model.
    pub fn with_weights_of(&self, path: &Path) -> Result<Self> {
        let mut other = self.share()?;
        let trained = &mut other.parameters[self.num_frozen..];
        let saved = weights::read_like(path, trained, &self.device)?;
        for (parameter, value) in trained.iter_mut().zip(saved) {
            parameter.value = value;
        }
        other.refresh()?;
        Ok(other)
    }

    /// Writes what is trained alone, in one file.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_file(&self, path: &Path) -> Result<()> {
        let named = self.trained().1.iter();
        let named: Vec<_> = named.map(|p| (p.name.clone(), p.value.clone())).collect();
        tensor_file::write(path, &named, &[])
    }

    /// `log pi_T` and entropy of each target whose weight is not 0, without a gradient.
    ///
    /// # Errors
    /// A batch whose parts do not fit each other or the model, a temperature that is not positive.
    pub fn token_stats(&self, batch: &Batch, temperature: f64) -> Result<TokenStats> {
        check_temperature(temperature)?;
        let rows = self.check(batch)?;
        if rows.is_empty() {
            return Ok(spread(&rows, TokenStats::default(), batch));
        }
        let (h, targets) = self.normed(batch, &rows)?;
        let h = divided(&h, temperature)?;
        let some = ops::in_pool(|| ops::linear_token_stats(&h, self.w(self.head), &targets))?;
        Ok(spread(&rows, some, batch))
    }

    /// Adds the gradient of `L` to `grads`. Of the weights of the batch only counts which are not 0. An objective per token
    /// costs one pass through the head, any other one more.
    ///
    /// # Errors
    /// As [`CausalLm::token_stats`], and those of the objective.
    pub fn policy_backward(
        &self,
        batch: &Batch,
        temperature: f64,
        recompute: Recompute,
        objective: &mut dyn TokenObjective,
        grads: &mut Gradients,
    ) -> Result<TokenStats> {
        check_temperature(temperature)?;
        let rows = self.check(batch)?;
        if rows.is_empty() {
            return Ok(spread(&rows, TokenStats::default(), batch));
        }
        let targets: Vec<u32> = rows.iter().map(|&r| batch.targets[r as usize]).collect();
        let head = |h: &Tensor, grads: &mut Gradients| {
            let (h, w) = (divided(h, temperature)?, self.w(self.head));
            let (stats, dh) = if objective.is_per_token() {
                let coefs: ops::CoefsFn =
                    &mut |some, logprobs| objective.coefs(&rows[some], logprobs);
                ops::linear_policy_backward(&h, w, &targets, coefs, grads, self.head)?
            } else {
                let stats = ops::linear_token_stats(&h, w, &targets)?;
                let coefs = objective.coefs(&rows, &stats.logprobs)?;
                let (_, dh) =
                    ops::linear_logprobs_backward(&h, w, &targets, &coefs, grads, self.head)?;
                (stats, dh)
            };
            Ok((stats, divided(&dh, temperature)?))
        };
        let each: super::EachFn = &mut |_, _| Ok(());
        let some = ops::in_pool(|| self.pass_and_back(batch, &rows, recompute, grads, head, each))?;
        Ok(spread(&rows, some, batch))
    }
}

fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(());
    }
    Err(Error::input(format!(
        "log-probabilities at a temperature of {temperature}: it must be above 0"
    )))
}

fn divided(h: &Tensor, temperature: f64) -> Result<Tensor> {
    match temperature == 1.0 {
        true => Ok(h.clone()),
        false => Ok((h / temperature)?),
    }
}

fn spread(rows: &[u32], some: TokenStats, batch: &Batch) -> TokenStats {
    let num_tokens = batch.tokens.len();
    TokenStats {
        logprobs: in_place(rows, some.logprobs, num_tokens),
        entropies: in_place(rows, some.entropies, num_tokens),
    }
}
