//! The supervised fine-tuning loop, top to bottom.
//!
//! The loss of a step is the mean over the trained tokens of all its rows: `L = -1/N sum_t log p(x_t | x_<t)`. Gradients
//! of the sum are gathered over as many micro-batches as memory asks for, and divided once, by the global count N, with
//! the update; so packing, accumulation and recomputation do not change it. Where one micro-batch makes a step and nothing is
//! clipped, gradients are applied as they come, which does not change it either.

use super::checkpoint::{Checkpoints, Cursor};
use super::micro_batch::{self, MicroBatch};
use super::{Examples, SftSettings, non_finite, order};
use crate::model::{CausalLm, Recompute};
use crate::ops::{self, Gradients};
use crate::optim::{AdamW, clip_scale};
use crate::progress::Stop;
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// One optimiser step: a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// From 1.
    pub step: usize,
    /// Passes over the rows after this step.
    pub epoch: f64,
    /// Mean over the step's trained tokens, before the update.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens seen since the start of the run, as TRL counts them.
    pub num_tokens: u64,
    /// Trained tokens since the start of the run.
    pub num_trained_tokens: u64,
    /// Rows of this step.
    pub num_sequences: usize,
    /// Packs they made.
    pub num_micro_batches: usize,
    pub tokens_per_s: f64,
    /// Without checkpoints.
    pub step_time_s: f64,
}

/// What a run tells while it goes, a record of type `R` a step.
pub trait Observer<R = StepRecord> {
    /// A step is done.
    fn step(&mut self, record: &R) -> Result<()>;

    /// The checkpoint of `step` is written and about to count under `path`: what must not lag behind it has to be on the
    /// disk when this returns.
    fn checkpoint(&mut self, step: usize, path: &Path) -> Result<()>;

    /// Called once before the first step: `step` updates are done already, 0 where nothing was there to go on from.
    /// Whatever was recorded of later steps does not count any more.
    fn resumed(&mut self, step: usize) -> Result<()>;

    /// Something the user should know that is no error.
    fn warn(&mut self, _text: &str) {}
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SftOutcome {
    pub num_steps: usize,
    /// Steps that an earlier process had done.
    pub num_resumed_steps: usize,
    pub num_tokens: u64,
    pub num_trained_tokens: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
}

/// Trains `model` in place on `examples`, with checkpoints in `dir`; goes on from the newest one there.
///
/// # Errors
/// [`Error::Interrupted`] after `stop`, with everything saved. [`Error::NonFinite`] where a loss or gradient is no number,
/// before the weights are touched, or where gradients are applied as they come, before any of that number is. A row that cannot be trained on, a full disk, a damaged or foreign checkpoint.
pub fn train_sft(
    model: &CausalLm,
    examples: &dyn Examples,
    settings: &SftSettings,
    dir: &Path,
    observer: &mut dyn Observer,
    stop: &Stop,
) -> Result<SftOutcome> {
    check_rows(examples, settings, model)?;
    let num_rows = examples.len();
    let steps_per_epoch = settings.steps_per_epoch(num_rows);
    let total_steps = settings.total_steps(num_rows);
    let schedule = settings.schedule(total_steps);
    let recompute = settings.recompute.into();

    let mut optimizer = super::optimizer(model, settings.adamw())?;
    let mut gradients = model.new_gradients();
    let checkpoints = Checkpoints::new(dir, settings.key(num_rows)?, settings.keep_checkpoints)?;
    let mut cursor: Cursor = checkpoints
        .restore(model, &mut optimizer, &mut |text| observer.warn(text))?
        .unwrap_or_default();
    let num_resumed_steps = cursor.step;
    let mut saved_step = cursor.step;
    observer.resumed(cursor.step)?;

    let mut rows_of_epoch = (usize::MAX, Vec::new());
    while cursor.step < total_steps {
        if stop.requested() {
            if cursor.step > saved_step {
                save(&checkpoints, cursor, model, &optimizer, observer)?;
            }
            return Err(interrupted(cursor.step, total_steps, dir));
        }
        let started = Instant::now();

        // the rows of this step; the last step of an epoch takes what is left
        let epoch = cursor.step / steps_per_epoch;
        if rows_of_epoch.0 != epoch {
            let order = order::epoch_order(num_rows, settings.shuffle, settings.seed, epoch);
            rows_of_epoch = (epoch, order);
        }
        let first = cursor.step % steps_per_epoch * settings.batch_size;
        let rows = &rows_of_epoch.1[first..num_rows.min(first + settings.batch_size)];
        let num_trained = count_trained(rows, examples, cursor.step + 1)?;

        let learning_rate = schedule.at(cursor.step);
        let packs = micro_batch::group(rows, examples, settings.packing, settings.pack_length)?;
        let num_micro_batches = packs.len();
        let step = Step {
            number: cursor.step + 1,
            rows,
            num_trained,
            learning_rate,
            recompute,
        };
        let done = match settings.max_grad_norm == 0.0 && num_micro_batches == 1 {
            true => update_at_once(
                packs,
                &step,
                model,
                examples,
                &mut gradients,
                &mut optimizer,
            )?,
            false => {
                let most = settings.max_grad_norm;
                update(
                    packs,
                    &step,
                    most,
                    model,
                    examples,
                    &mut gradients,
                    &mut optimizer,
                )?
            }
        };
        let Done {
            loss_sum,
            grad_norm,
            num_tokens,
        } = done;
        model.refresh()?;

        let loss = loss_sum / num_trained as f64;
        cursor = Cursor {
            step: cursor.step + 1,
            num_tokens: cursor.num_tokens + num_tokens as u64,
            num_trained_tokens: cursor.num_trained_tokens + num_trained as u64,
            loss: Some(loss),
        };
        let step_time_s = started.elapsed().as_secs_f64();
        observer.step(&StepRecord {
            step: cursor.step,
            epoch: cursor.step as f64 / steps_per_epoch as f64,
            loss,
            grad_norm,
            learning_rate,
            num_tokens: cursor.num_tokens,
            num_trained_tokens: cursor.num_trained_tokens,
            num_sequences: rows.len(),
            num_micro_batches,
            tokens_per_s: num_tokens as f64 / step_time_s,
            step_time_s,
        })?;

        let due = cursor
            .step
            .is_multiple_of(settings.checkpoint_every_steps.max(1))
            || cursor.step.is_multiple_of(steps_per_epoch)
            || cursor.step == total_steps;
        if due {
            save(&checkpoints, cursor, model, &optimizer, observer)?;
            saved_step = cursor.step;
        }
    }
    Ok(SftOutcome {
        num_steps: cursor.step,
        num_resumed_steps,
        num_tokens: cursor.num_tokens,
        num_trained_tokens: cursor.num_trained_tokens,
        loss: cursor.loss,
    })
}

/// What an update is made of.
struct Step<'a> {
    /// From 1.
    number: usize,
    rows: &'a [usize],
    num_trained: usize,
    learning_rate: f64,
    recompute: Recompute,
}

/// What an update tells.
struct Done {
    loss_sum: f64,
    grad_norm: f64,
    num_tokens: usize,
}

/// Gradients of the summed loss over all packs; divided once, clipped to the norm `most`, applied.
fn update(
    packs: Vec<Vec<usize>>,
    step: &Step,
    most: f64,
    model: &CausalLm,
    examples: &dyn Examples,
    gradients: &mut Gradients,
    optimizer: &mut AdamW,
) -> Result<Done> {
    gradients.zero();
    let (mut loss_sum, mut num_tokens) = (0.0, 0);
    for pack in packs {
        let micro = MicroBatch::new(pack, examples, model.config().vocab_size)?;
        let logprobs = model.forward_backward(&micro.batch, step.recompute, gradients)?;
        loss_sum += loss_of(&micro, &logprobs, step, examples, model)?;
        num_tokens += micro.batch.tokens.len();
    }
    let count = step.num_trained as f64;
    let grad_norm = ops::in_pool(|| gradients.sum_squares())?.sqrt() / count;
    if !grad_norm.is_finite() {
        return Err(non_finite::gradient_error(
            step.number,
            step.rows,
            examples,
            model,
            step.recompute,
            gradients,
        ));
    }
    let grad_scale = clip_scale(grad_norm, most) / count;
    ops::in_pool(|| optimizer.step(gradients, step.learning_rate, grad_scale))?;
    Ok(Done {
        loss_sum,
        grad_norm,
        num_tokens,
    })
}

/// The same of one pack without clipping, to the bit: each gradient is applied and let go as soon as it is complete, so that
/// they are never all in memory.
fn update_at_once(
    packs: Vec<Vec<usize>>,
    step: &Step,
    model: &CausalLm,
    examples: &dyn Examples,
    gradients: &mut Gradients,
    optimizer: &mut AdamW,
) -> Result<Done> {
    gradients.zero();
    let pack = packs.into_iter().flatten().collect();
    let micro = MicroBatch::new(pack, examples, model.config().vocab_size)?;
    let count = step.num_trained as f64;
    let mut pieces = optimizer.begin(step.learning_rate, 1.0 / count);
    let logprobs = model
        .forward_backward_each(
            &micro.batch,
            step.recompute,
            gradients,
            &mut |some, held| pieces.apply(some, held),
        )
        .map_err(|e| non_finite::at_once(step.number, step.rows, examples, e))?;
    Ok(Done {
        loss_sum: loss_of(&micro, &logprobs, step, examples, model)?,
        grad_norm: pieces.finish()?.sqrt() / count,
        num_tokens: micro.batch.tokens.len(),
    })
}

/// The summed loss of a pack.
fn loss_of(
    micro: &MicroBatch,
    logprobs: &[f32],
    step: &Step,
    examples: &dyn Examples,
    model: &CausalLm,
) -> Result<f64> {
    let broken = non_finite::rows_without_loss(micro, logprobs);
    if !broken.is_empty() {
        return Err(non_finite::loss_error(
            step.number,
            &broken,
            examples,
            model,
        ));
    }
    Ok(-logprobs.iter().map(|&l| f64::from(l)).sum::<f64>())
}

/// Writes a checkpoint; older ones go only once it counts.
fn save(
    checkpoints: &Checkpoints,
    cursor: Cursor,
    model: &CausalLm,
    optimizer: &AdamW,
    observer: &mut dyn Observer,
) -> Result<()> {
    non_finite::check_weights(cursor.step, model)?;
    let pending = checkpoints.write(cursor, model, optimizer)?;
    observer.checkpoint(cursor.step, pending.path())?;
    pending.publish()?;
    checkpoints.prune(cursor.step)
}

/// Refuses rows before the first step that could not be trained on in the last one.
fn check_rows(examples: &dyn Examples, settings: &SftSettings, model: &CausalLm) -> Result<()> {
    if settings.batch_size == 0 {
        return Err(Error::input("`sft.batch_size` must be at least 1, found 0"));
    }
    let (pack_length, config) = (settings.pack_length, model.config());
    if examples.is_empty() {
        return Err(Error::input("there is no row to train on")
            .with_hint("the data report says which rows were dropped and why"));
    }
    for row in 0..examples.len() {
        let length = examples.length(row);
        if length == 0 || length > pack_length {
            return Err(Error::input(format!(
                "{} has {length} tokens; a pack holds 1 to {pack_length}",
                examples.name(row)
            ))
            .with_hint("raise `sft.pack_length`, or lower `sft.max_length`"));
        }
        if length > config.max_position_embeddings {
            return Err(Error::input(format!(
                "{} has {length} tokens; the model's `max_position_embeddings` is {}",
                examples.name(row),
                config.max_position_embeddings
            ))
            .with_hint("lower `sft.max_length`"));
        }
        micro_batch::check_row(examples, row, config.vocab_size)?;
    }
    let num_trained = |row: usize| micro_batch::num_trained(examples, row);
    if (0..examples.len()).all(|row| num_trained(row) > 0) {
        return Ok(());
    }
    let steps_per_epoch = settings.steps_per_epoch(examples.len());
    let total_steps = settings.total_steps(examples.len());
    for epoch in 0..total_steps.div_ceil(steps_per_epoch) {
        let rows = order::epoch_order(examples.len(), settings.shuffle, settings.seed, epoch);
        let steps = epoch * steps_per_epoch..total_steps;
        for (step, rows) in steps.zip(rows.chunks(settings.batch_size)) {
            count_trained(rows, examples, step + 1)?;
        }
    }
    Ok(())
}

/// The trained tokens of a step, which its loss is divided by.
fn count_trained(rows: &[usize], examples: &dyn Examples, step: usize) -> Result<usize> {
    let count: usize = rows
        .iter()
        .map(|&row| micro_batch::num_trained(examples, row))
        .sum();
    if count == 0 {
        return Err(Error::input(format!(
            "step {step}: no token of `{}` and the other {} rows is trained",
            examples.name(rows[0]),
            rows.len() - 1
        ))
        .with_hint("rows without a trained token must be dropped before training"));
    }
    Ok(count)
}

fn interrupted(step: usize, total_steps: usize, dir: &Path) -> Error {
    Error::Interrupted {
        message: format!(
            "after step {step} of {total_steps}, saved in `{}`; run the same command again to go on",
            dir.display()
        ),
    }
}
