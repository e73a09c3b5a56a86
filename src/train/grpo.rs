//! Group-relative policy optimisation (arXiv 2402.03300, algorithm 1; 2501.12948): the loop, top to bottom.
//!
//! A rollout samples G completions for each of its prompts, rewards them, and turns rewards into advantages within each
//! group. Its completions are split at random into minibatches, one update of the weights each. Checkpoints come between
//! rollouts; what was sampled since stays on the disk, so a killed run does only updates again, and these give the same
//! weights to the bit on the CPU in f32.
//!
//! A log-probability that is known is not computed again: with one update a rollout the policy before the update is the
//! policy, and a reference that is the policy needs no pass of its own.

use super::checkpoint::{Checkpoints, Progress};
use super::grpo_record::GrpoRecord;
use super::grpo_reference::ReferencePolicy;
use super::grpo_update::{self, Learnt};
use super::hacking::{self, Point, share_error};
use super::rollout::{Group, GrpoPrompt, Rollout, Rollouts};
use super::{non_finite, order};
use crate::generate::{Engine, FinishReason, Sampling};
use crate::model::{CausalLm, Recompute};
use crate::ops;
use crate::optim::{AdamW, AdamWConfig, Schedule, clip_scale};
use crate::progress::Stop;
use crate::recipe::Optimizer;
use crate::recipe::grpo::Grpo;
use crate::reward::Rewards;
use crate::tokenize::TextTokenizer;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Instant;

/// What [`train_grpo`] works with.
pub struct GrpoJob<'a> {
    /// Samples from the policy.
    pub engine: &'a mut dyn Engine,
    pub prompts: &'a [GrpoPrompt],
    pub rewards: &'a Rewards,
    /// Of the policy.
    pub tokenizer: &'a TextTokenizer,
    pub settings: &'a Grpo,
    /// Tokens that end a completion.
    pub stop_ids: &'a [u32],
    /// Of the order of prompts, sampling and minibatches.
    pub seed: u64,
    /// What stands for model, prompts and rewards: a checkpoint of another key is refused.
    pub inputs_key: &'a str,
}

/// Held-out problems after an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    pub accuracy: f64,
    pub num_problems: usize,
}

/// What a run tells while it goes.
pub trait GrpoObserver {
    /// An update is done.
    fn step(&mut self, record: &GrpoRecord) -> Result<()>;

    /// Some groups that were learnt from in the rollout that ends with `step`.
    fn samples(&mut self, step: usize, groups: &[Group], prompts: &[GrpoPrompt]) -> Result<()>;

    /// Held-out problems are to be asked; none where there are none.
    fn evaluate(&mut self, step: usize) -> Result<Option<HeldOut>>;

    /// The checkpoint of `step` is written and about to count: what must not lag behind it has to be on the disk when this
    /// returns.
    fn checkpoint(&mut self, step: usize, path: &Path) -> Result<()>;

    /// Called once before the first step: `step` updates are done already. What was recorded of later ones does not count.
    fn resumed(&mut self, step: usize) -> Result<()>;

    /// The record of `step` does not count either: it comes again.
    fn reopened(&mut self, _step: usize) -> Result<()> {
        Ok(())
    }

    /// Something the user should know that is no error.
    fn warn(&mut self, _text: &str) {}
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GrpoOutcome {
    pub num_steps: usize,
    /// Updates that an earlier process had done.
    pub num_resumed_steps: usize,
    pub num_rollouts: usize,
    pub num_prompts: usize,
    pub num_completions: u64,
    pub num_tokens: u64,
    /// Groups that were replaced as all right or all wrong.
    pub num_dropped_groups: u64,
    /// Completions that were learnt from and no reward applied to, counted with each update.
    pub num_unrewarded: u64,
    /// Evaluations that found the reward up and the accuracy down.
    pub num_alarms: usize,
    /// Of the last update.
    pub reward: Option<f64>,
}

/// How far a run has come; always between rollouts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cursor {
    step: usize,
    num_rollouts: usize,
    /// Prompts drawn so far.
    num_prompts: usize,
    num_completions: u64,
    num_tokens: u64,
    num_dropped_groups: u64,
    /// The update whose weights are the reference's.
    reference_step: usize,
    reward: Option<f64>,
    /// Evaluations so far.
    points: Vec<Point>,
    #[serde(default)]
    num_alarms: usize,
    /// Sum and number of rewards since the last of them.
    rewards_since: (f64, usize),
    #[serde(default)]
    num_unrewarded: u64,
    /// The record of the last update, whose evaluation was stopped. TOML, which keeps every bit of a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open_record: Option<String>,
}

impl Progress for Cursor {
    fn step(&self) -> usize {
        self.step
    }
}

/// Trains `policy` in place, with checkpoints in `dir`; goes on from the newest one there. `policy` must be the model that
/// the run began with: its weights are the first reference.
///
/// # Errors
/// [`Error::Interrupted`] after `stop`, with everything saved. [`Error::NonFinite`] where a loss or gradient is no number,
/// before the weights are touched. What the engine or a reward returns, a full disk, a damaged or foreign checkpoint; after
/// any of them the same call goes on.
pub fn train_grpo(
    policy: &CausalLm,
    job: GrpoJob,
    dir: &Path,
    observer: &mut dyn GrpoObserver,
    stop: &Stop,
) -> Result<GrpoOutcome> {
    let GrpoJob {
        settings, prompts, ..
    } = job;
    settings.check()?;
    check_prompts(prompts, policy)?;
    let total_steps = settings.total_steps(prompts.len());
    if total_steps == 0 {
        return Err(Error::input(format!(
            "{} prompts make no rollout of {}",
            prompts.len(),
            settings.num_prompts_per_rollout()
        ))
        .with_hint("lower `grpo.num_prompts_per_step` or `num_minibatches`, or set `num_steps`"));
    }
    let schedule = Schedule {
        kind: settings.schedule,
        warmup_steps: Schedule::warmup_steps(total_steps, settings.warmup_ratio),
        total_steps,
        peak: settings.learning_rate,
        floor_ratio: settings.min_learning_rate_ratio,
    };
    let adamw = AdamWConfig {
        betas: settings.betas,
        eps: settings.adam_epsilon,
        weight_decay: settings.weight_decay,
        eight_bit: settings.optimizer == Optimizer::AdamW8bit,
    };
    let mut optimizer = super::optimizer(policy, adamw)?;
    let mut gradients = policy.new_gradients();
    let reference = match settings.needs_reference() {
        true => Some(ReferencePolicy::of(policy, settings, dir)?),
        false => None,
    };
    let key = key(settings, job.seed, job.inputs_key, prompts.len())?;
    let checkpoints = Checkpoints::new(dir, key.clone(), settings.keep_checkpoints)?;
    let mut cursor: Cursor = checkpoints
        .restore_with(policy, reference.as_ref(), &mut optimizer, &mut |text| {
            observer.warn(text)
        })?
        .unwrap_or_default();
    let num_resumed_steps = cursor.step;
    let mut saved_step = cursor.step;
    observer.resumed(cursor.step)?;
    if let Some(text) = cursor.open_record.take() {
        let mut record: GrpoRecord = toml::from_str(&text)
            .map_err(|e| Error::input(format!("the record of update {}: {e}", cursor.step)))?;
        observer.reopened(cursor.step)?;
        held_out(&mut cursor, &mut record, observer).map_err(|e| match e {
            Error::Interrupted { .. } => interrupted(cursor.step, total_steps, dir),
            e => e,
        })?;
        observer.step(&record)?;
    }
    let mut rollouts = Rollouts {
        engine: job.engine,
        prompts,
        rewards: job.rewards,
        tokenizer: job.tokenizer,
        settings,
        sampling: Sampling {
            temperature: settings.temperature,
            max_new_tokens: settings.max_new_tokens,
            stop: settings.stop.clone(),
            stop_ids: job.stop_ids.to_vec(),
            seed: job.seed,
            ..Sampling::default()
        },
        dir: dir.join("rollouts"),
        key,
        stop,
    };
    rollouts.forget_before(cursor.num_rollouts)?;
    let save = |cursor: &Cursor, optimizer: &AdamW, observer: &mut dyn GrpoObserver| {
        non_finite::check_weights(cursor.step, policy)?;
        let changed = reference.as_ref().filter(|_| cursor.reference_step > 0);
        let pending = checkpoints.write_with(cursor.clone(), policy, changed, optimizer)?;
        observer.checkpoint(cursor.step, pending.path())?;
        pending.publish()?;
        checkpoints.prune(cursor.step)
    };

    while cursor.step < total_steps {
        // samples and rewards
        let rollout = match stop.requested() {
            true => Err(Error::Interrupted {
                message: String::new(),
            }),
            false => rollouts.take(cursor.num_rollouts, cursor.num_prompts, cursor.step),
        };
        let rollout = match rollout {
            Ok(rollout) => rollout,
            Err(e) => {
                // what samples no number is no place to go on from
                let is_sound = !matches!(e, Error::NonFinite { .. });
                if cursor.step > saved_step && is_sound {
                    save(&cursor, &optimizer, observer)?;
                    rollouts.forget_before(cursor.num_rollouts)?;
                }
                return Err(match e {
                    Error::Interrupted { .. } => interrupted(cursor.step, total_steps, dir),
                    e => e.at(format!("step {}", cursor.step + 1)),
                });
            }
        };
        if cursor.num_rollouts == 0 {
            for (name, why) in rollout.never_applied() {
                observer.warn(&format!(
                    "reward `{name}` applies to no completion of the first rollout: {why}"
                ));
            }
        }
        let (mut learnt, places) = learnt(&rollout, prompts, settings);

        // log-probabilities before the first update
        let started = Instant::now();
        let several = settings.num_updates_per_rollout() > 1;
        if several {
            let old = grpo_update::logprobs(policy, &learnt, settings)?;
            for (one, old) in learnt.iter_mut().zip(old) {
                one.old = Some(old);
            }
        }
        if let Some(reference) = &reference {
            if cursor.reference_step != cursor.step {
                let found = reference.logprobs(policy, &learnt, settings)?;
                for (one, reference) in learnt.iter_mut().zip(found) {
                    one.reference = Some(reference);
                }
            } else if several {
                learnt
                    .iter_mut()
                    .for_each(|one| one.reference = one.old.clone());
            }
        }
        let reference_s = started.elapsed().as_secs_f64();

        // updates
        let (all_right, all_wrong) = rollout.shares();
        let minibatches = minibatches(learnt.len(), settings, job.seed, cursor.num_rollouts);
        let num_minibatches = minibatches.len().min(total_steps - cursor.step);
        cursor.num_prompts += rollout.num_drawn;
        cursor.num_completions += (rollout.num_drawn * settings.group_size) as u64;
        cursor.num_dropped_groups += rollout.num_dropped as u64;
        cursor.num_tokens += rollout.num_tokens as u64;
        let step_before = cursor.step;
        for (i, which) in minibatches.into_iter().take(num_minibatches).enumerate() {
            let started = Instant::now();
            let at = |e: Error| e.at(format!("step {}", cursor.step + 1));
            let recompute = recompute(settings);
            let stats =
                grpo_update::backward(policy, &learnt, &which, settings, recompute, &mut gradients)
                    .map_err(at)?;
            let grad_norm = ops::in_pool(|| gradients.sum_squares())?.sqrt();
            if !(grad_norm.is_finite() && stats.tally.loss.is_finite()) {
                let step = cursor.step + 1;
                return Err(grpo_update::not_finite(
                    step,
                    policy,
                    &learnt,
                    &which,
                    settings,
                    &mut gradients,
                ));
            }
            let learning_rate = schedule.at(cursor.step);
            let scale = clip_scale(grad_norm, settings.max_grad_norm);
            ops::in_pool(|| optimizer.step(&gradients, learning_rate, scale))?;
            policy.refresh()?;
            // their memory is needed elsewhere until the next update
            gradients.zero();
            cursor.step += 1;
            cursor.num_tokens += stats.num_input_tokens as u64;
            let first = |seconds: f64| if i == 0 { seconds } else { 0.0 };
            let mut record = GrpoRecord {
                step: cursor.step,
                epoch: cursor.num_prompts as f64 / prompts.len() as f64,
                grad_norm,
                learning_rate,
                all_right,
                all_wrong,
                num_dropped_groups: rollout.num_dropped,
                num_tokens: cursor.num_tokens,
                rollout_s: first(rollout.rollout_s),
                reward_s: first(rollout.reward_s),
                reference_s: first(reference_s),
                update_s: started.elapsed().as_secs_f64(),
                ..GrpoRecord::default()
            };
            record.step_time_s =
                record.rollout_s + record.reward_s + record.reference_s + record.update_s;
            record.add_update(&stats, reference.is_some());
            let of_update: Vec<(usize, usize)> = which.iter().map(|&i| places[i]).collect();
            record.add_completions(&rollout.groups, prompts, &of_update);
            cursor.num_unrewarded += record.num_unrewarded as u64;
            if record.num_unrewarded < record.num_completions {
                cursor.reward = Some(record.reward);
                let (sum, num) = cursor.rewards_since;
                cursor.rewards_since = (sum + record.reward, num + 1);
            }
            let last = i + 1 == num_minibatches;
            if last && passed(step_before, cursor.step, settings.eval_every_steps) {
                match held_out(&mut cursor, &mut record, observer) {
                    Err(Error::Interrupted { .. }) => cursor.open_record = Some(text(&record)?),
                    other => other?,
                }
            }
            if cursor.open_record.is_none() {
                observer.step(&record)?;
            }
        }
        if passed(step_before, cursor.step, settings.samples_every_steps) {
            let n = rollout.groups.len().min(settings.num_sample_groups);
            observer.samples(cursor.step, &rollout.groups[..n], prompts)?;
        }

        // the reference follows, and everything is saved
        cursor.num_rollouts += 1;
        if let Some(reference) = &reference
            && passed(step_before, cursor.step, settings.reference_every_steps)
        {
            reference.follow(policy)?;
            cursor.reference_step = cursor.step;
        }
        let due = passed(saved_step, cursor.step, settings.checkpoint_every_steps);
        let is_stopped = cursor.open_record.is_some();
        if due || is_stopped || cursor.step == total_steps {
            save(&cursor, &optimizer, observer)?;
            saved_step = cursor.step;
            rollouts.forget_before(cursor.num_rollouts)?;
        }
        if is_stopped {
            return Err(interrupted(cursor.step, total_steps, dir));
        }
    }
    if let Some(reference) = reference {
        reference.close()?;
    }
    Ok(GrpoOutcome {
        num_steps: cursor.step,
        num_resumed_steps,
        num_rollouts: cursor.num_rollouts,
        num_prompts: cursor.num_prompts,
        num_completions: cursor.num_completions,
        num_tokens: cursor.num_tokens,
        num_dropped_groups: cursor.num_dropped_groups,
        num_unrewarded: cursor.num_unrewarded,
        num_alarms: cursor.num_alarms,
        reward: cursor.reward,
    })
}

/// Whether a multiple of `every` lies after `before`, up to `now`; 0 has none.
fn passed(before: usize, now: usize, every: usize) -> bool {
    every > 0 && now / every > before / every
}

fn recompute(settings: &Grpo) -> Recompute {
    settings.recompute.into()
}

/// Completions to learn from, and which answer of which group each is.
fn learnt(
    rollout: &Rollout,
    prompts: &[GrpoPrompt],
    settings: &Grpo,
) -> (Vec<Learnt>, Vec<(usize, usize)>) {
    let mut all = Vec::new();
    let mut places = Vec::new();
    for (g, group) in rollout.groups.iter().enumerate() {
        let prompt = &prompts[group.prompt];
        for (a, answer) in group.answers.iter().enumerate() {
            let sampled = answer.sampled_logprobs.iter().map(|&l| f64::from(l));
            let is_cut = answer.finish_reason == FinishReason::Length;
            all.push(Learnt {
                tokens: [&prompt.tokens[..], &answer.tokens[..]].concat(),
                num_prompt_tokens: prompt.tokens.len(),
                sampled: (answer.sampled_logprobs.len() == answer.tokens.len())
                    .then(|| sampled.collect()),
                advantages: group.advantages_of(a),
                is_trained: !(settings.overlong_filter && is_cut),
                name: format!("completion {} of prompt `{}`", a + 1, prompt.prompt.id),
                ..Learnt::default()
            });
            places.push((g, a));
        }
    }
    (all, places)
}

/// The completions of each update of a rollout: all in order where there is one, else split at random, anew each time.
fn minibatches(num: usize, settings: &Grpo, seed: u64, rollout: usize) -> Vec<Vec<usize>> {
    let m = settings.num_minibatches;
    let seed = seed ^ (rollout as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let mut all = Vec::new();
    for epoch in 0..settings.inner_epochs {
        let order = order::epoch_order(num, m > 1, seed, epoch);
        let parts = (0..m).map(|i| order[num * i / m..num * (i + 1) / m].to_vec());
        all.extend(parts.filter(|part| !part.is_empty()));
    }
    all
}

/// Asks the held-out problems, and raises the alarm where the reward is earned without being deserved.
fn held_out(
    cursor: &mut Cursor,
    record: &mut GrpoRecord,
    observer: &mut dyn GrpoObserver,
) -> Result<()> {
    let Some(found) = observer.evaluate(cursor.step)? else {
        return Ok(());
    };
    let (sum, num) = std::mem::take(&mut cursor.rewards_since);
    cursor.points.push(Point {
        step: cursor.step,
        reward: sum / num.max(1) as f64,
        accuracy: found.accuracy,
        accuracy_error: share_error(found.accuracy, found.num_problems),
    });
    record.held_out_accuracy = Some(found.accuracy);
    record.alarm = hacking::alarm(&cursor.points);
    if let Some(alarm) = &record.alarm {
        cursor.num_alarms += 1;
        observer.warn(&alarm.to_string());
    }
    Ok(())
}

/// A record as a checkpoint holds it.
fn text(record: &GrpoRecord) -> Result<String> {
    toml::to_string(record).map_err(|e| Error::input(format!("update {}: {e}", record.step)))
}

/// Refuses prompts that could not be continued.
fn check_prompts(prompts: &[GrpoPrompt], model: &CausalLm) -> Result<()> {
    if prompts.is_empty() {
        return Err(Error::input("there is no prompt to learn from"));
    }
    let most = model.config().max_position_embeddings;
    for prompt in prompts {
        let n = prompt.tokens.len();
        if n == 0 || n >= most {
            return Err(Error::input(format!(
                "prompt `{}` has {n} tokens; the model has {most} positions for prompt and completion",
                prompt.prompt.id
            )));
        }
    }
    Ok(())
}

/// Hash of everything that changes what is learnt.
fn key(settings: &Grpo, seed: u64, inputs_key: &str, num_prompts: usize) -> Result<String> {
    let bytes = serde_json::to_vec(&(settings.learned(), seed, inputs_key, num_prompts))
        .map_err(|e| Error::input(format!("hashing the settings of `grpo`: {e}")))?;
    Ok(hex::encode(Sha256::digest(&bytes)))
}

fn interrupted(step: usize, total_steps: usize, dir: &Path) -> Error {
    Error::Interrupted {
        message: format!(
            "after step {step} of {total_steps}, saved in `{}`; run the same command again to go on",
            dir.display()
        ),
    }
}
