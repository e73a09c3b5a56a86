//! `[stage.reward_model]`: a model that scores, learnt from preferences or verdicts. The formulas are in
//! `train/reward_loss.rs`; how pairs are made of samples is in [`super::pairs`].

use super::pairs::PairRules;
use super::plan::{SftPlan, at_least, in_range};
use super::preference::check_training;
use super::{OnBad, Optimizer, OverLength, Recompute, ScheduleKind, TrainOn};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[stage.reward_model]`. The defaults are those of R1's helpful reward model (arXiv 2501.12948 v2, section 3.2.2): pairwise,
/// batches of 256 pairs, learning rate 6e-6, one epoch, 8192 tokens, the summary only.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModelTable {
    /// What the rows are.
    pub loss: RewardLoss,
    /// What of an answer it sees.
    pub scope: Scope,
    /// Weight of `(r_chosen + r_rejected)^2`, which keeps the scores around 0; 0 turns it off.
    pub center_coefficient: f64,
    /// Passes over the rows.
    pub epochs: usize,
    /// Stop after so many optimiser steps even when epochs are left.
    pub max_steps: Option<usize>,
    pub learning_rate: f64,
    /// Shape of the decay after the warmup.
    pub schedule: ScheduleKind,
    /// Floor of the schedule as a share of the peak.
    pub min_learning_rate_ratio: f64,
    /// Share of all steps that warm up linearly.
    pub warmup_ratio: f64,
    /// `adamw`, or `adamw_8bit` with states of a quarter of the size.
    #[serde(skip_serializing_if = "Optimizer::is_default")]
    pub optimizer: Optimizer,
    /// Pairs, or single answers, per optimiser step.
    pub batch_size: usize,
    /// Longest sequence in tokens, prompt included.
    pub max_length: usize,
    /// What happens to a row with a longer one: `drop` or `error`.
    pub over_length: OverLength,
    /// What happens to a row that cannot be used, such as a pair of equal answers.
    pub on_bad: OnBad,
    /// Rows share a pack and never see each other; `false` runs them one by one.
    pub packing: bool,
    /// Tokens a pack holds at most; default twice `max_length`, which one pair may need.
    pub pack_length: Option<usize>,
    /// Shuffle each epoch by the seed; `false` trains in file order.
    pub shuffle: bool,
    /// Share of the rows that is not trained on but measured.
    pub held_out: f64,
    /// Steps between measurements on them; there is one at the end too.
    pub eval_every_steps: usize,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 turns it off.
    pub max_grad_norm: f64,
    /// Which activations are computed again in the backward pass.
    pub recompute: Recompute,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: usize,
    /// Checkpoints that are kept; the newest ones.
    pub keep_checkpoints: usize,
    /// How pairs are made where the stage has `samples` and no `pairs`.
    pub build: PairRules,
}

impl Default for RewardModelTable {
    fn default() -> Self {
        Self {
            loss: RewardLoss::Pairwise,
            scope: Scope::Summary,
            center_coefficient: 0.0,
            epochs: 1,
            max_steps: None,
            learning_rate: 6e-6,
            schedule: ScheduleKind::Cosine,
            min_learning_rate_ratio: 0.1,
            warmup_ratio: 0.0,
            optimizer: Optimizer::AdamW,
            batch_size: 256,
            max_length: 8192,
            over_length: OverLength::Drop,
            on_bad: OnBad::Drop,
            packing: true,
            pack_length: None,
            shuffle: true,
            held_out: 0.05,
            eval_every_steps: 50,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            recompute: Recompute::Auto,
            checkpoint_every_steps: 50,
            keep_checkpoints: 2,
            build: PairRules::default(),
        }
    }
}

/// What a reward model learns from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RewardLoss {
    /// Rows of `chosen` and `rejected`: R1's helpfulness.
    #[default]
    Pairwise,
    /// Rows of `completion` and `label`: R1's safety.
    Pointwise,
}

/// What of an answer a reward model sees.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// What stands after `</think>`: R1's helpfulness, which must not tell the model how to think.
    #[default]
    Summary,
    /// The reasoning too: R1's safety.
    All,
}

impl RewardModelTable {
    /// The numbers of the loop, where a row is a pair or a single answer.
    pub fn training(&self) -> SftPlan {
        SftPlan {
            epochs: self.epochs,
            max_steps: self.max_steps,
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            min_learning_rate_ratio: self.min_learning_rate_ratio,
            warmup_ratio: self.warmup_ratio,
            optimizer: self.optimizer,
            batch_size: self.batch_size,
            max_length: self.max_length,
            over_length: self.over_length,
            on_untrainable: self.on_bad,
            packing: self.packing,
            pack_length: self.pack_length.unwrap_or(2 * self.max_length),
            train_on: TrainOn::Last,
            shuffle: self.shuffle,
            weight_decay: self.weight_decay,
            betas: self.betas,
            adam_epsilon: self.adam_epsilon,
            max_grad_norm: self.max_grad_norm,
            recompute: self.recompute,
            checkpoint_every_steps: self.checkpoint_every_steps,
            keep_checkpoints: self.keep_checkpoints,
        }
    }

    /// Refuses what means nothing.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<()> {
        let table = "reward_model";
        in_range(
            "reward_model.center_coefficient",
            self.center_coefficient,
            0.0,
            f64::MAX,
        )?;
        if self.loss == RewardLoss::Pointwise && self.center_coefficient != 0.0 {
            return Err(Error::input(
                "`reward_model.center_coefficient` means nothing to `loss = \"pointwise\"`",
            )
            .with_hint("labels already say where 0 is: leave it out"));
        }
        check_training(table, &self.training(), self.held_out)?;
        at_least("reward_model.eval_every_steps", self.eval_every_steps, 1)?;
        self.build.check("reward_model.build")
    }
}

/// `name = "reward_model"` among rewards.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RewardModelReward {
    /// A folder, or in a recipe of stages `@stage`.
    pub model: String,
    /// What its part is called where several are listed: `helpful`, `safe`. Default: `reward_model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What of a sample it sees; default: what it was trained on.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// The score as a probability, between 0 and 1, which weighs as much as the rule-based rewards do; a sample without an
    /// answer then has 0. `false` is the score itself, as R1 has it.
    #[serde(default = "yes")]
    pub sigmoid: bool,
    /// Scores every step of a completion, at the last token of each (`grpo.supervision = "process"`), and sees all of it.
    #[serde(default, skip_serializing_if = "super::reward::is_no")]
    pub steps: bool,
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_papers() {
        let table: RewardModelTable = toml::from_str("").unwrap();
        table.check().unwrap();
        assert_eq!(
            (
                table.batch_size,
                table.learning_rate,
                table.epochs,
                table.max_length
            ),
            (256, 6e-6, 1, 8192)
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            (
                "learning_rate = 0.0",
                "`reward_model.learning_rate = 0.0` must be above 0",
            ),
            (
                "center_coefficient = -1.0",
                "`reward_model.center_coefficient = -1.0` must",
            ),
            (
                "loss = \"pointwise\"\ncenter_coefficient = 0.01",
                "`reward_model.center_coefficient` means nothing",
            ),
            (
                "[build]\nnum_judgements = 3",
                "`reward_model.build.num_judgements = 3` must be an even",
            ),
            (
                "[build]\nby = \"shortest\"\nlength_gap = 0.1",
                "`reward_model.build.length_gap` and `reward_model.build.by = \"shortest\"` contradict",
            ),
        ] {
            let table: RewardModelTable = toml::from_str(text).unwrap();
            let e = table.check().unwrap_err().to_string();
            assert!(e.starts_with(message), "{text}: {e}");
        }
    }
}
