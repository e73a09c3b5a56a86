//! Gradients of functions of the log-probabilities: against the weighted sum, against differences, at temperatures.

mod train_common;

use distill::Result;
use distill::model::{Batch, CausalLm, Recompute, TokenObjective};
use distill::ops::{Gradients, ParamId};
use train_common::{VOCAB, tiny};

/// `sum_t a[t] logp[t]`
struct Linear(Vec<f32>);

impl TokenObjective for Linear {
    fn is_per_token(&self) -> bool {
        true
    }
    fn coefs(&mut self, places: &[u32], _: &[f32]) -> Result<Vec<f32>> {
        Ok(places.iter().map(|&p| self.0[p as usize]).collect())
    }
}

/// `(sum_t logp[t])^2 / 2`, or `sum_t logp[t]^2 / 2`.
struct Square {
    of_sum: bool,
}

impl TokenObjective for Square {
    fn is_per_token(&self) -> bool {
        !self.of_sum
    }
    fn coefs(&mut self, places: &[u32], logprobs: &[f32]) -> Result<Vec<f32>> {
        assert_eq!(places.len(), logprobs.len());
        if self.of_sum {
            return Ok(vec![logprobs.iter().sum(); places.len()]);
        }
        Ok(logprobs.to_vec())
    }
}

fn batch() -> Batch {
    let seq_lens = vec![7, 1, 12];
    let tokens: Vec<u32> = (0..20).map(|t| (t * t * 5 + 3) % VOCAB as u32).collect();
    let targets = (0..20)
        .map(|t| (t * t * 5 + 10 * t + 8) % VOCAB as u32)
        .collect();
    let weights = (0..20)
        .map(|t| {
            if t % 3 == 0 {
                0.0
            } else {
                0.1 * t as f32 - 0.7
            }
        })
        .collect();
    Batch {
        tokens,
        seq_lens,
        targets,
        weights,
    }
}

fn of(grads: &Gradients, id: ParamId) -> Vec<f32> {
    let t = grads.get(id).unwrap().flatten_all().unwrap();
    t.to_vec1().unwrap()
}

/// The value of the objective at a temperature.
fn loss(model: &CausalLm, temperature: f64, of_sum: bool) -> f64 {
    let stats = model.token_stats(&batch(), temperature).unwrap();
    let logprobs = stats.logprobs.iter().map(|&l| f64::from(l));
    match of_sum {
        true => logprobs.sum::<f64>().powi(2) / 2.0,
        false => logprobs.map(|l| l * l).sum::<f64>() / 2.0,
    }
}

#[test]
fn a_linear_objective_is_the_weighted_sum() {
    let (model, batch) = (tiny(3), batch());
    let mut expected = model.new_gradients();
    let logprobs = model
        .forward_backward(&batch, Recompute::None, &mut expected)
        .unwrap();
    for recompute in [Recompute::None, Recompute::KeepAttention, Recompute::Block] {
        let mut grads = model.new_gradients();
        let mut objective = Linear(batch.weights.iter().map(|w| -w).collect());
        let stats = model
            .policy_backward(&batch, 1.0, recompute, &mut objective, &mut grads)
            .unwrap();
        assert_eq!(stats, model.token_stats(&batch, 1.0).unwrap());
        for (t, (a, b)) in stats.logprobs.iter().zip(&logprobs).enumerate() {
            assert!((a - b).abs() < 1e-6);
            let trained = batch.weights[t] != 0.0;
            assert_eq!(stats.entropies[t] > 0.0, trained);
        }
        for i in 0..grads.num() {
            let pairs = of(&grads, ParamId(i)).into_iter();
            for (a, b) in pairs.zip(of(&expected, ParamId(i))) {
                assert!((a - b).abs() < 1e-5, "{}", model.parameters()[i].name);
            }
        }
    }
}

#[test]
fn gradients_are_the_derivatives_at_any_temperature() {
    for (temperature, of_sum) in [(1.0, false), (0.7, false), (1.0, true), (1.6, true)] {
        let model = tiny(5);
        let mut grads = model.new_gradients();
        let mut objective = Square { of_sum };
        model
            .policy_backward(
                &batch(),
                temperature,
                Recompute::None,
                &mut objective,
                &mut grads,
            )
            .unwrap();
        for (i, parameter) in model.parameters().iter().enumerate() {
            // a step along the gradient changes the loss by the gradient's square
            let gradient = grads.get(ParamId(i)).unwrap();
            let squares: f64 = of(&grads, ParamId(i))
                .iter()
                .map(|&g| f64::from(g) * f64::from(g))
                .sum();
            let start = parameter.value.copy().unwrap();
            let h = 2e-3 / squares.sqrt();
            let at = |step: f64| {
                let moved = (&start + (gradient * step).unwrap()).unwrap();
                parameter.value.slice_set(&moved, 0, 0).unwrap();
                loss(&model, temperature, of_sum)
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            parameter.value.slice_set(&start, 0, 0).unwrap();
            assert!(
                (slope / squares - 1.0).abs() < 2e-2,
                "T {temperature}, {}: {slope} is not {squares}",
                parameter.name
            );
        }
    }
}

#[test]
fn what_means_nothing_is_refused() {
    let model = tiny(1);
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = model.token_stats(&batch(), temperature).unwrap_err();
        assert!(error.to_string().contains("must be above 0"), "{error}");
    }
    // nothing to train: nothing happens
    let mut batch = batch();
    batch.weights.fill(0.0);
    let mut grads = model.new_gradients();
    let objective = &mut Square { of_sum: true };
    let stats = model
        .policy_backward(&batch, 1.0, Recompute::None, objective, &mut grads)
        .unwrap();
    assert_eq!(stats.logprobs, vec![0.0; 20]);
    assert!(grads.get(ParamId(0)).is_none());
}
