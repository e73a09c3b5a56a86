//! The loop of training on pairs and labelled answers, top to bottom; what a row's loss is, is [`Learner`]'s matter.
//!
//! The loss of a step is the mean over its rows. Gradients of the sum are gathered over as many micro-batches as memory
//! asks for, and divided once, by the number of rows, with the update.

use super::checkpoint::{Checkpoints, Cursor};
use super::sft::{Observer, StepRecord};
use super::{SftSettings, non_finite, order};
use crate::data::JudgedRow;
use crate::model::{CausalLm, Recompute};
use crate::ops::{self, Gradients};
use crate::optim::{AdamW, clip_scale};
use crate::progress::Stop;
use crate::tokenize::pack;
use crate::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Instant;

/// One optimiser step: a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgedRecord {
    /// `loss` is the mean over the rows; `num_sequences` counts rows.
    #[serde(flatten)]
    pub base: StepRecord,
    /// Means over the step's rows before the update: `accuracy`, `margin`, ...; those that begin with `held_out_` over rows
    /// that are not trained on, after it.
    #[serde(flatten)]
    pub means: BTreeMap<String, f64>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgedOutcome {
    pub num_steps: usize,
    /// Steps that an earlier process had done.
    pub num_resumed_steps: usize,
    pub num_rows: usize,
    pub num_held_out: usize,
    pub num_tokens: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// On rows that are not trained on, after the last step.
    #[serde(flatten)]
    pub held_out: BTreeMap<String, f64>,
}

/// What a run is made of besides its model.
pub struct JudgedJob<'a> {
    pub rows: &'a [JudgedRow],
    /// Not trained on, but measured.
    pub held_out: &'a [JudgedRow],
    /// A row is one of `rows`; a pack holds whole rows.
    pub settings: &'a SftSettings,
    pub eval_every_steps: usize,
    /// Checkpoints, and what else a run keeps.
    pub dir: &'a Path,
    pub stop: &'a Stop,
}

/// Sums over rows.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub loss: f64,
    pub num_rows: usize,
    pub num_tokens: usize,
    /// Tokens whose probability is part of the loss; for a score, one a sequence.
    pub num_trained: usize,
    pub sums: BTreeMap<&'static str, f64>,
}

impl Tally {
    /// `sums[name] += value`
    pub fn add(&mut self, name: &'static str, value: f64) {
        *self.sums.entry(name).or_default() += value;
    }

    fn join(&mut self, other: Self) {
        self.loss += other.loss;
        self.num_rows += other.num_rows;
        self.num_tokens += other.num_tokens;
        self.num_trained += other.num_trained;
        for (name, value) in other.sums {
            self.add(name, value);
        }
    }

    fn means(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let n = self.num_rows.max(1) as f64;
        self.sums.iter().map(move |(name, sum)| (*name, sum / n))
    }
}

/// A loss over rows.
pub trait Learner {
    /// What the optimiser updates.
    fn weights(&self) -> &CausalLm;

    /// Called with all rows of a step before its first pack.
    fn begin(&mut self, rows: &[&JudgedRow]);

    /// Adds the gradient of the summed losses of `rows`, which go through the model together.
    fn gradient(
        &mut self,
        rows: &[&JudgedRow],
        recompute: Recompute,
        gradients: &mut Gradients,
    ) -> Result<Tally>;

    /// The same without a gradient.
    fn measure(&mut self, rows: &[&JudgedRow]) -> Result<Tally>;
}

/// Trains in place, with checkpoints in the job's folder; goes on from the newest one there.
///
/// # Errors
/// [`Error::Interrupted`] after the wish to stop, with everything saved. [`Error::NonFinite`] where a loss or gradient is no
/// number, before the weights are touched. A row that does not fit, a full disk, a damaged or foreign checkpoint.
pub fn run(
    learner: &mut dyn Learner,
    job: &JudgedJob,
    key: &str,
    observer: &mut dyn Observer<JudgedRecord>,
) -> Result<JudgedOutcome> {
    let (rows, settings) = (job.rows, job.settings);
    check_rows(job, learner.weights())?;
    let steps_per_epoch = settings.steps_per_epoch(rows.len());
    let total_steps = settings.total_steps(rows.len());
    let schedule = settings.schedule(total_steps);
    let recompute = settings.recompute.into();

    let mut optimizer = super::optimizer(learner.weights(), settings.adamw())?;
    let mut gradients = learner.weights().new_gradients();
    let checkpoints = Checkpoints::new(job.dir, key.to_string(), settings.keep_checkpoints)?;
    let mut cursor: Cursor = checkpoints
        .restore(learner.weights(), &mut optimizer, &mut |text| {
            observer.warn(text)
        })?
        .unwrap_or_default();
    let num_resumed_steps = cursor.step;
    let mut saved_step = cursor.step;
    observer.resumed(cursor.step)?;

    let mut order_of_epoch = (usize::MAX, Vec::new());
    let mut held_out = BTreeMap::new();
    while cursor.step < total_steps {
        if job.stop.requested() {
            if cursor.step > saved_step {
                save(
                    &checkpoints,
                    cursor,
                    learner.weights(),
                    &optimizer,
                    observer,
                )?;
            }
            return Err(Error::Interrupted {
                message: format!(
                    "after step {} of {total_steps}, saved in `{}`; run the same command again to go on",
                    cursor.step,
                    job.dir.display()
                ),
            });
        }
        let started = Instant::now();

        // the rows of this step; the last step of an epoch takes what is left
        let epoch = cursor.step / steps_per_epoch;
        if order_of_epoch.0 != epoch {
            let order = order::epoch_order(rows.len(), settings.shuffle, settings.seed, epoch);
            order_of_epoch = (epoch, order);
        }
        let first = cursor.step % steps_per_epoch * settings.batch_size;
        let last = rows.len().min(first + settings.batch_size);
        let of_step: Vec<&JudgedRow> = order_of_epoch.1[first..last]
            .iter()
            .map(|&row| &rows[row])
            .collect();

        // gradients of the summed loss
        gradients.zero();
        learner.begin(&of_step);
        let mut tally = Tally::default();
        let packs = group(&of_step, settings)?;
        let num_micro_batches = packs.len();
        for pack in packs {
            let some = learner.gradient(&pack, recompute, &mut gradients)?;
            if !some.loss.is_finite() {
                non_finite::check_weights(cursor.step, learner.weights())?;
                return Err(not_finite(cursor.step + 1, "the loss", &pack));
            }
            tally.join(some);
        }

        // divided once, clipped, applied
        let n = of_step.len() as f64;
        let grad_norm = ops::in_pool(|| gradients.sum_squares())?.sqrt() / n;
        if !grad_norm.is_finite() {
            return Err(not_finite(cursor.step + 1, "the gradient", &of_step));
        }
        let learning_rate = schedule.at(cursor.step);
        let grad_scale = clip_scale(grad_norm, settings.max_grad_norm) / n;
        ops::in_pool(|| optimizer.step(&gradients, learning_rate, grad_scale))?;
        learner.weights().refresh()?;

        let loss = tally.loss / n;
        cursor = Cursor {
            step: cursor.step + 1,
            num_tokens: cursor.num_tokens + tally.num_tokens as u64,
            num_trained_tokens: cursor.num_trained_tokens + tally.num_trained as u64,
            loss: Some(loss),
        };
        let step_time_s = started.elapsed().as_secs_f64();
        let mut means: BTreeMap<String, f64> = tally
            .means()
            .map(|(name, mean)| (name.to_string(), mean))
            .collect();
        if cursor.step.is_multiple_of(job.eval_every_steps.max(1)) || cursor.step == total_steps {
            held_out = measure(learner, job)?;
            means.extend(held_out.clone());
        }
        observer.step(&JudgedRecord {
            base: StepRecord {
                step: cursor.step,
                epoch: cursor.step as f64 / steps_per_epoch as f64,
                loss,
                grad_norm,
                learning_rate,
                num_tokens: cursor.num_tokens,
                num_trained_tokens: cursor.num_trained_tokens,
                num_sequences: of_step.len(),
                num_micro_batches,
                tokens_per_s: tally.num_tokens as f64 / step_time_s,
                step_time_s,
            },
            means,
        })?;

        let due = cursor
            .step
            .is_multiple_of(settings.checkpoint_every_steps.max(1))
            || cursor.step == total_steps;
        if due {
            save(
                &checkpoints,
                cursor,
                learner.weights(),
                &optimizer,
                observer,
            )?;
            saved_step = cursor.step;
        }
    }
    if held_out.is_empty() {
        // all steps were done by an earlier process
        held_out = measure(learner, job)?;
    }
    Ok(JudgedOutcome {
        num_steps: cursor.step,
        num_resumed_steps,
        num_rows: rows.len(),
        num_held_out: job.held_out.len(),
        num_tokens: cursor.num_tokens,
        loss: cursor.loss,
        held_out,
    })
}

/// Means over the rows that are not trained on, by `held_out_` and their name.
fn measure(learner: &mut dyn Learner, job: &JudgedJob) -> Result<BTreeMap<String, f64>> {
    let rows: Vec<&JudgedRow> = job.held_out.iter().collect();
    if rows.is_empty() {
        return Ok(BTreeMap::new());
    }
    learner.begin(&rows);
    let mut tally = Tally::default();
    for pack in group(&rows, job.settings)? {
        tally.join(learner.measure(&pack)?);
    }
    let loss = ("loss", tally.loss / tally.num_rows.max(1) as f64);
    Ok(tally
        .means()
        .chain([loss])
        .map(|(name, mean)| (format!("held_out_{name}"), mean))
        .collect())
}

/// Rows that go through the model together: best-fit packs of at most `pack_length` tokens, or one row each.
pub(super) fn group<'a>(
    rows: &[&'a JudgedRow],
    settings: &SftSettings,
) -> Result<Vec<Vec<&'a JudgedRow>>> {
    if !settings.packing {
        return Ok(rows.iter().map(|&row| vec![row]).collect());
    }
    let lengths: Vec<usize> = rows.iter().map(|row| row.num_tokens()).collect();
    let packs = pack::best_fit(&lengths, settings.pack_length)?;
    Ok(packs
        .into_iter()
        .map(|pack| pack.into_iter().map(|i| rows[i]).collect())
        .collect())
}

/// Cuts off the rows that are measured: those of a share of the prompts by the seed, of at least one prompt and never of
/// all. No prompt is on both sides. Order is kept.
pub fn split(rows: Vec<JudgedRow>, held_out: f64, seed: u64) -> (Vec<JudgedRow>, Vec<JudgedRow>) {
    let mut numbers: HashMap<Vec<u32>, usize> = HashMap::new();
    let prompts: Vec<usize> = rows
        .iter()
        .map(|row| {
            let next = numbers.len();
            *numbers.entry(row.prompt().to_vec()).or_insert(next)
        })
        .collect();
    let n = numbers.len();
    let wanted = (held_out * n as f64).round() as usize;
    let num_held_out = match held_out > 0.0 {
        true => wanted.max(1).min(n.saturating_sub(1)),
        false => 0,
    };
    // not the order of the first epoch
    let order = order::epoch_order(n, true, seed, usize::MAX / 2);
    let mut is_held_out = vec![false; n];
    for &prompt in &order[..num_held_out] {
        is_held_out[prompt] = true;
    }
    let (mut trained, mut measured) = (Vec::new(), Vec::new());
    for (row, prompt) in rows.into_iter().zip(prompts) {
        match is_held_out[prompt] {
            true => measured.push(row),
            false => trained.push(row),
        }
    }
    (trained, measured)
}

/// Hash of the loop's settings and of what else changes the result.
pub(super) fn key(job: &JudgedJob, of_loss: &impl Serialize) -> Result<String> {
    let loop_key = job.settings.key(job.rows.len())?;
    let bytes = serde_json::to_vec(&(loop_key, of_loss))
        .map_err(|e| Error::input(format!("hashing the training settings: {e}")))?;
    Ok(hex::encode(Sha256::digest(&bytes)))
}

/// Writes a checkpoint; older ones go only once it counts.
fn save(
    checkpoints: &Checkpoints,
    cursor: Cursor,
    model: &CausalLm,
    optimizer: &AdamW,
    observer: &mut dyn Observer<JudgedRecord>,
) -> Result<()> {
    non_finite::check_weights(cursor.step, model)?;
    let pending = checkpoints.write(cursor, model, optimizer)?;
    observer.checkpoint(cursor.step, pending.path())?;
    pending.publish()?;
    checkpoints.prune(cursor.step)
}

/// Refuses rows before the first step that could not be trained on in the last one.
pub(super) fn check_rows(job: &JudgedJob, model: &CausalLm) -> Result<()> {
    if job.settings.batch_size == 0 {
        return Err(Error::input("`batch_size` must be at least 1, found 0"));
    }
    if job.rows.is_empty() {
        return Err(Error::input("there is no row to train on"));
    }
    let config = model.config();
    for row in job.rows.iter().chain(job.held_out) {
        if job.settings.packing && row.num_tokens() > job.settings.pack_length {
            return Err(Error::input(format!(
                "`{}` has {} tokens; a pack holds {}",
                row.name,
                row.num_tokens(),
                job.settings.pack_length
            ))
            .with_hint("raise `pack_length`: both answers of a pair have to fit"));
        }
        for sequence in row.sequences() {
            let length = sequence.tokens.len();
            if length == 0 || length > config.max_position_embeddings {
                return Err(Error::input(format!(
                    "`{}` has a sequence of {length} tokens; the model has {} positions",
                    row.name, config.max_position_embeddings
                ))
                .with_hint("lower `max_length`"));
            }
            if let Some(token) = sequence
                .tokens
                .iter()
                .find(|&&t| t as usize >= config.vocab_size)
            {
                return Err(Error::input(format!(
                    "`{}`: token {token} is outside the model's vocabulary of {}",
                    row.name, config.vocab_size
                ))
                .with_hint("the rows were tokenised for another model"));
            }
        }
    }
    Ok(())
}

fn not_finite(step: usize, what: &str, rows: &[&JudgedRow]) -> Error {
    const NUM_NAMED: usize = 5;
    let mut names: Vec<String> = rows
        .iter()
        .take(NUM_NAMED)
        .map(|row| format!("`{}`", row.name))
        .collect();
    if rows.len() > NUM_NAMED {
        names.push(format!("{} more rows", rows.len() - NUM_NAMED));
    }
    Error::NonFinite {
        message: format!(
            "step {step}: {what} is not finite in {}; the weights are as they were before the step",
            names.join(", ")
        ),
        hint: Some("lower `learning_rate` and go on from an earlier checkpoint".into()),
    }
}
