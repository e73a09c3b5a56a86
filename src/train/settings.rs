//! The numbers of a training run, resolved.

use crate::optim::{AdamWConfig, Schedule};
use crate::recipe::plan::SftPlan;
use crate::recipe::{Optimizer, Recompute, ScheduleKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What [`crate::train::train_sft`] does with a model and rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftSettings {
    /// Seed of the order of rows.
    pub seed: u64,
    /// What stands for the model and the rows: a checkpoint of another key is refused.
    pub inputs_key: String,
    pub epochs: usize,
    /// Stop after so many steps even when epochs are left; the schedule ends there too.
    pub max_steps: Option<usize>,
    pub learning_rate: f64,
    pub schedule: ScheduleKind,
    pub min_learning_rate_ratio: f64,
    pub warmup_ratio: f64,
    #[serde(default, skip_serializing_if = "Optimizer::is_default")]
    pub optimizer: Optimizer,
    /// Sequences per optimiser step.
    pub batch_size: usize,
    /// Sequences share a micro-batch; `false` runs them one by one.
    pub packing: bool,
    /// Tokens a micro-batch holds at most.
    pub pack_length: usize,
    /// Shuffle each epoch; `false` trains in file order.
    pub shuffle: bool,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_epsilon: f64,
    /// 0 turns clipping off.
    pub max_grad_norm: f64,
    pub recompute: Recompute,
    pub checkpoint_every_steps: usize,
    pub keep_checkpoints: usize,
}

impl SftSettings {
    /// The settings of a resolved plan.
    pub fn from_plan(plan: &SftPlan, seed: u64, inputs_key: impl Into<String>) -> Self {
        Self {
            seed,
            inputs_key: inputs_key.into(),
            epochs: plan.epochs,
            max_steps: plan.max_steps,
            learning_rate: plan.learning_rate,
            schedule: plan.schedule,
            min_learning_rate_ratio: plan.min_learning_rate_ratio,
            warmup_ratio: plan.warmup_ratio,
            optimizer: plan.optimizer,
            batch_size: plan.batch_size,
            packing: plan.packing,
            pack_length: plan.pack_length,
            shuffle: plan.shuffle,
            weight_decay: plan.weight_decay,
            betas: plan.betas,
            adam_epsilon: plan.adam_epsilon,
            max_grad_norm: plan.max_grad_norm,
            recompute: plan.recompute,
            checkpoint_every_steps: plan.checkpoint_every_steps,
            keep_checkpoints: plan.keep_checkpoints,
        }
    }

    /// Steps of one pass over `num_rows` rows; the last one may have fewer rows.
    pub fn steps_per_epoch(&self, num_rows: usize) -> usize {
        num_rows.div_ceil(self.batch_size.max(1))
    }

    /// Steps of the whole run.
    pub fn total_steps(&self, num_rows: usize) -> usize {
        let all = self.epochs * self.steps_per_epoch(num_rows);
        self.max_steps.map_or(all, |most| all.min(most))
    }

    /// The learning rate of each step of a run of `total_steps`.
    pub fn schedule(&self, total_steps: usize) -> Schedule {
        Schedule {
            kind: self.schedule,
            warmup_steps: Schedule::warmup_steps(total_steps, self.warmup_ratio),
            total_steps,
            peak: self.learning_rate,
            floor_ratio: self.min_learning_rate_ratio,
        }
    }

    /// AdamW's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            betas: self.betas,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            eight_bit: self.optimizer == Optimizer::AdamW8bit,
        }
    }

    /// Hash of everything that changes what is learned from `num_rows` rows; how often it is saved and what is computed
    /// again do not.
    pub fn key(&self, num_rows: usize) -> Result<String> {
        let same = Self {
            recompute: Recompute::None,
            checkpoint_every_steps: 0,
            keep_checkpoints: 0,
            ..self.clone()
        };
        // to be raised whenever the same settings teach something else
        const VERSION: u32 = 2;
        let bytes = serde_json::to_vec(&(VERSION, same, num_rows))
            .map_err(|e| Error::input(format!("hashing the training settings: {e}")))?;
        Ok(hex::encode(Sha256::digest(&bytes)))
    }
}
