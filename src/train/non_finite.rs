//! What to say when a loss or a gradient is no number: the step, the rows and the parameters.

use super::Examples;
use super::micro_batch::MicroBatch;
use crate::Error;
use crate::model::{CausalLm, Recompute};
use crate::ops::{Gradients, gradients};

/// Names listed in a message; the rest is counted.
const NUM_NAMED: usize = 5;

/// Rows of `micro` with a log-probability that is NaN or infinite.
pub fn rows_without_loss(micro: &MicroBatch, logprobs: &[f32]) -> Vec<usize> {
    micro
        .spans()
        .filter(|(_, span)| logprobs[span.clone()].iter().any(|l| !l.is_finite()))
        .map(|(row, _)| row)
        .collect()
}

/// Refuses to save weights that are not finite: the update of `step` may have overflowed.
pub fn check_weights(step: usize, model: &CausalLm) -> crate::Result<()> {
    match broken_weights(model)? {
        weights if weights.is_empty() => Ok(()),
        weights => Err(weights_error(step, &weights)),
    }
}

/// The loss of `rows` is not finite in `step`.
pub fn loss_error(step: usize, rows: &[usize], examples: &dyn Examples, model: &CausalLm) -> Error {
    // where they cannot be looked at, what is known is still told
    let weights = broken_weights(model).unwrap_or_default();
    if !weights.is_empty() {
        return weights_error(step, &weights);
    }
    Error::NonFinite {
        message: format!(
            "step {step}: the loss is not finite in {}; the weights are as they were before the step",
            row_names(rows, examples)
        ),
        hint: Some("look at these rows with `distill preview`; where they are fine, lower `sft.learning_rate` and go on from an earlier checkpoint".into()),
    }
}

/// A gradient is not finite in `step`. The rows are run again one by one to find those that cause it.
pub fn gradient_error(
    step: usize,
    rows: &[usize],
    examples: &dyn Examples,
    model: &CausalLm,
    recompute: Recompute,
    gradients: &mut Gradients,
) -> Error {
    let mut alone = |row: usize, gradients: &mut Gradients| -> crate::Result<()> {
        let micro = MicroBatch::new(vec![row], examples, model.config().vocab_size)?;
        model.forward_backward(&micro.batch, recompute, gradients)?;
        Ok(())
    };
    let what = Update {
        step,
        name: &|row| format!("`{}`", examples.name(row)),
        noun: "rows",
        hint: "look at these rows with `distill preview`; where they are fine, lower `sft.learning_rate` and go on from an earlier checkpoint",
    };
    update_error(&what, rows, model, &mut alone, gradients)
}

/// A gradient that was to be applied as it came is not finite in `step`.
pub fn at_once(step: usize, rows: &[usize], examples: &dyn Examples, error: Error) -> Error {
    match error {
        Error::NonFinite { message, .. } => Error::NonFinite {
            message: format!(
                "step {step}: {message} in {}; the last checkpoint is as it was",
                row_names(rows, examples)
            ),
            hint: Some("look at these rows with `distill preview`; where they are fine, lower `sft.learning_rate`, or set `sft.max_grad_norm = 1.0`, and go on from the checkpoint".into()),
        },
        other => other,
    }
}

/// An update that came to no number, for messages.
pub struct Update<'a> {
    pub step: usize,
    pub name: &'a dyn Fn(usize) -> String,
    /// What names are of.
    pub noun: &'a str,
    pub hint: &'a str,
}

/// The gradient of `rows` in `gradients` is not finite; `alone` adds that of one of them.
pub fn update_error(
    update: &Update,
    rows: &[usize],
    model: &CausalLm,
    alone: &mut dyn FnMut(usize, &mut Gradients) -> crate::Result<()>,
    gradients: &mut Gradients,
) -> Error {
    // where they cannot be looked at, what is known is still told
    let weights = broken_weights(model).unwrap_or_default();
    if !weights.is_empty() {
        return weights_error(update.step, &weights);
    }
    let parameters: Vec<String> = gradients
        .non_finite()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|id| model.parameters().get(id.0))
        .map(|p| format!("`{}`", p.name))
        .collect();
    let mut is_finite = |row: usize| -> crate::Result<bool> {
        gradients.zero();
        alone(row, gradients)?;
        Ok(gradients.sum_squares()?.is_finite())
    };
    let culprits: Vec<usize> = rows
        .iter()
        .copied()
        .filter(|&row| !is_finite(row).unwrap_or(false))
        .collect();
    let rows = match culprits.is_empty() {
        // only their sum overflows
        true => rows,
        false => &culprits,
    };
    let what = match parameters.is_empty() {
        // every value is finite, the sum of their squares is not
        true => "the norm of the gradient".to_string(),
        false => format!("the gradient of {}", listed(&parameters, "parameters")),
    };
    let names: Vec<String> = rows.iter().map(|&row| (update.name)(row)).collect();
    Error::NonFinite {
        message: format!(
            "step {}: {what} is not finite because of {}; the weights are as they were before the step",
            update.step,
            listed(&names, update.noun)
        ),
        hint: Some(update.hint.into()),
    }
}

fn weights_error(step: usize, weights: &[String]) -> Error {
    Error::NonFinite {
        message: format!(
            "step {step}: the weights of {} are not finite",
            listed(weights, "parameters")
        ),
        hint: Some(
            "the checkpoint it started from is broken, or the learning rate far too high".into(),
        ),
    }
}

fn broken_weights(model: &CausalLm) -> crate::Result<Vec<String>> {
    let mut broken = Vec::new();
    for p in model.trained().1 {
        if !gradients::is_finite(&p.value)? {
            broken.push(format!("`{}`", p.name));
        }
    }
    Ok(broken)
}

fn row_names(rows: &[usize], examples: &dyn Examples) -> String {
    let names: Vec<String> = rows
        .iter()
        .map(|&row| format!("`{}`", examples.name(row)))
        .collect();
    listed(&names, "rows")
}

/// The first names, and how many more there are.
pub fn listed(names: &[String], what: &str) -> String {
    match names.len() {
        0..=NUM_NAMED => names.join(", "),
        n => format!(
            "{} and {} more {what}",
            names[..NUM_NAMED].join(", "),
            n - NUM_NAMED
        ),
    }
}
