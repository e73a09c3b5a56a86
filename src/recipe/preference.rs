//! `[stage.preference]`: learning from chosen and rejected answers by DPO, RPO or SimPO. The formulas are in
//! `train/preference_loss.rs`; how pairs are made of samples is in [`super::pairs`].

use super::pairs::PairRules;
use super::plan::{SftPlan, at_least, in_range};
use super::{OnBad, Optimizer, OverLength, Recompute, ScheduleKind, TrainOn};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[stage.preference]`
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Preference {
    pub loss: PreferenceLoss,
    /// How far the policy may go from the reference, the smaller the farther; default 0.1, for SimPO 2.5.
    pub beta: Option<f64>,
    /// By how much SimPO wants the chosen answer to be ahead.
    pub gamma: f64,
    /// Weight of the negative log-likelihood of the chosen answer in RPO.
    pub alpha: f64,
    /// What that likelihood is a mean over.
    pub nll_mean: NllMean,
    /// Probability that a pair is the wrong way round.
    pub label_smoothing: f64,
    /// Passes over the pairs.
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
    /// Pairs per optimiser step.
    pub batch_size: usize,
    /// Longest sequence in tokens, prompt included.
    pub max_length: usize,
    /// What happens to a pair with a longer one: `drop` or `error`.
    pub over_length: OverLength,
    /// What happens to a row that is no pair, such as one whose answers are the same.
    pub on_bad: OnBad,
    /// Pairs share a pack and never see each other; `false` runs them one by one.
    pub packing: bool,
    /// Tokens a pack holds at most; default twice `max_length`, which one pair may need.
    pub pack_length: Option<usize>,
    /// Shuffle each epoch by the seed; `false` trains in file order.
    pub shuffle: bool,
    /// Share of the pairs that is not trained on but measured.
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

impl Default for Preference {
    fn default() -> Self {
        Self {
            loss: PreferenceLoss::Dpo,
            beta: None,
            gamma: 1.375,
            alpha: 1.0,
            nll_mean: NllMean::Tokens,
            label_smoothing: 0.0,
            epochs: 1,
            max_steps: None,
            learning_rate: 5e-7,
            schedule: ScheduleKind::Linear,
            min_learning_rate_ratio: 0.0,
            warmup_ratio: 0.1,
            optimizer: Optimizer::AdamW,
            batch_size: 64,
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

/// Which loss.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// Direct preference optimisation (arXiv 2305.18290).
    #[default]
    Dpo,
    /// DPO and the likelihood of the chosen answer (arXiv 2404.19733).
    Rpo,
    /// Without a reference, lengths divided out (arXiv 2405.14734).
    Simpo,
}

/// What RPO's likelihood is a mean over.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum NllMean {
    /// All tokens of the step's chosen answers, as TRL has it.
    #[default]
    Tokens,
    /// The answers, each the mean over its own tokens, as the paper has it.
    Sequences,
}

/// A loss with its numbers.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct PreferenceObjective {
    pub loss: PreferenceLoss,
    pub beta: f64,
    pub gamma: f64,
    pub alpha: f64,
    pub nll_mean: NllMean,
    pub label_smoothing: f64,
}

impl PreferenceObjective {
    /// Whether log-probabilities of a reference are needed.
    pub fn needs_reference(&self) -> bool {
        self.loss != PreferenceLoss::Simpo
    }
}

impl Preference {
    /// The loss, with the default of its kind for what is not set.
    pub fn objective(&self) -> PreferenceObjective {
        PreferenceObjective {
            loss: self.loss,
            beta: self.beta.unwrap_or(match self.loss {
                PreferenceLoss::Simpo => 2.5,
                PreferenceLoss::Dpo | PreferenceLoss::Rpo => 0.1,
            }),
            gamma: self.gamma,
            alpha: self.alpha,
            nll_mean: self.nll_mean,
            label_smoothing: self.label_smoothing,
        }
    }

    /// The numbers of the loop, where a row is a pair.
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
        in_range(
            "preference.beta",
            self.objective().beta,
            f64::MIN_POSITIVE,
            f64::MAX,
        )?;
        in_range("preference.gamma", self.gamma, 0.0, f64::MAX)?;
        in_range("preference.alpha", self.alpha, 0.0, f64::MAX)?;
        in_range("preference.label_smoothing", self.label_smoothing, 0.0, 0.5)?;
        check_training("preference", &self.training(), self.held_out)?;
        at_least("preference.eval_every_steps", self.eval_every_steps, 1)?;
        self.build.check("preference.build")
    }
}

/// That a loop over pairs can run so.
pub(super) fn check_training(table: &str, plan: &SftPlan, held_out: f64) -> Result<()> {
    let key = |name: &str| format!("{table}.{name}");
    let positive = f64::MIN_POSITIVE;
    in_range(&key("learning_rate"), plan.learning_rate, positive, 1.0)?;
    in_range(
        &key("min_learning_rate_ratio"),
        plan.min_learning_rate_ratio,
        0.0,
        1.0,
    )?;
    in_range(&key("warmup_ratio"), plan.warmup_ratio, 0.0, 1.0)?;
    in_range(&key("held_out"), held_out, 0.0, 0.9)?;
    in_range(&key("weight_decay"), plan.weight_decay, 0.0, f64::MAX)?;
    in_range(&key("adam_epsilon"), plan.adam_epsilon, 0.0, f64::MAX)?;
    in_range(&key("max_grad_norm"), plan.max_grad_norm, 0.0, f64::MAX)?;
    for beta in plan.betas {
        in_range(&key("betas"), beta, 0.0, 0.999_999_9)?;
    }
    for (name, value) in [
        ("epochs", plan.epochs),
        ("batch_size", plan.batch_size),
        ("max_length", plan.max_length),
        ("checkpoint_every_steps", plan.checkpoint_every_steps),
        ("keep_checkpoints", plan.keep_checkpoints),
    ] {
        at_least(&key(name), value, 1)?;
    }
    at_least(&key("max_steps"), plan.max_steps.unwrap_or(1), 1)?;
    at_least(&key("pack_length"), plan.pack_length, plan.max_length)?;
    if plan.over_length == OverLength::Truncate {
        return Err(Error::input(format!(
            "`{table}.over_length = \"truncate\"`: the end of an answer is what decides between two"
        ))
        .with_hint("use `drop` or `error`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::result::Result<Preference, String> {
        toml::from_str(text).map_err(|e| e.message().to_string())
    }

    #[test]
    fn defaults_depend_on_the_loss() {
        let beta = |text: &str| read(text).unwrap().objective().beta;
        assert_eq!(beta(""), 0.1);
        assert_eq!(beta("loss = \"rpo\""), 0.1);
        assert_eq!(beta("loss = \"simpo\""), 2.5);
        assert_eq!(beta("loss = \"simpo\"\nbeta = 2.0"), 2.0);
        assert_eq!(Preference::default().training().pack_length, 16_384);
        assert!(Preference::default().check().is_ok());
        assert!(read("loss = \"simpo\"").unwrap().check().is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("beta = 0.0", "`preference.beta = 0.0` must be above 0"),
            (
                "label_smoothing = 0.6",
                "`preference.label_smoothing = 0.6` must",
            ),
            (
                "batch_size = 0",
                "`preference.batch_size = 0` must be at least 1",
            ),
            ("held_out = 1.0", "`preference.held_out = 1.0` must"),
            (
                "max_length = 10\npack_length = 9",
                "`preference.pack_length = 9` must be at least 10",
            ),
            (
                "over_length = \"truncate\"",
                "`preference.over_length = \"truncate\"`: the end",
            ),
            (
                "[build]\nmin_delta = -1.0",
                "`preference.build.min_delta = -1.0` must",
            ),
            (
                "[build]\nby = \"judge\"",
                "`preference.build.by = \"judge\"` needs `preference.build.judge`",
            ),
        ] {
            let e = read(text).unwrap().check().unwrap_err().to_string();
            assert!(e.starts_with(message), "{text}: {e}");
        }
        let e = read("bta = 1").unwrap_err();
        assert!(e.starts_with("unknown field `bta`"), "{e}");
    }
}
