//! `[stage.grpo]`: how group-relative policy optimisation learns. The settings of the papers are in `grpo_presets.rs`.
//!
//! Where the papers differ: DeepSeekMath (arXiv 2402.03300, eq. 3) and TRL take the ratio of probabilities a token and the
//! mean over a completion's tokens; DeepSeek-R1 (arXiv 2501.12948, eq. 1) prints the ratio of whole completions
//! (`ratio = "sequence"`), under which its clipping at 10 is less odd than it looks a token. R1 prints the KL term for whole
//! completions too; ours is always a token's, as DeepSeekMath's: `exp` of a sum over thousands of tokens has no use.

pub use super::grpo_presets::Preset;
use super::load::closest;
use super::remote::Remote;
use super::reward::RewardTable;
use super::{Optimizer, Recompute, ScheduleKind};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[stage.grpo]`
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Grpo {
    /// Whose numbers stand for what is not said: `deepseekmath` (the default), `r1`, `dapo`, `dr_grpo`, `gspo`, `cispo`.
    pub preset: Preset,
    /// Updates of the weights in all; default: as many as `epochs` give.
    pub num_steps: Option<usize>,
    /// Passes over the prompts; a last rollout that is not full is left out.
    pub epochs: usize,
    /// Prompts of one update.
    pub num_prompts_per_step: usize,
    /// Completions a prompt, G.
    pub group_size: usize,
    /// Updates from one rollout, which has `num_prompts_per_step` prompts for each; its completions are split at random.
    pub num_minibatches: usize,
    /// Times that a rollout is learnt from.
    pub inner_epochs: usize,
    /// Of sampling, and of the log-probabilities that are learnt from.
    pub temperature: f64,
    /// Longest completion in tokens; that of `dr_grpo`'s denominator.
    pub max_new_tokens: usize,
    /// Texts that end a completion, besides the template's own tokens.
    pub stop: Vec<String>,
    /// Completions that are sampled side by side.
    pub batch_size: usize,
    /// Completions come from an engine that runs elsewhere; our own where this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    pub loss: Loss,
    /// Whose probabilities are compared with those before the update.
    pub ratio: Ratio,
    /// The ratio counts down to `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio counts up to `1 + clip_high`; of `cispo`, up to `clip_high` itself.
    pub clip_high: f64,
    /// Where the advantage is negative the ratio counts up to this at most (dual clip).
    pub clip_max: Option<f64>,
    /// How the distance to the reference is estimated.
    pub kl: Kl,
    /// Weight of that distance, beta; 0 needs no reference.
    pub kl_coef: f64,
    /// The reference becomes the policy after every so many updates; 0 never.
    pub reference_every_steps: usize,
    /// What the differences from the mean of the group are divided by.
    pub advantage: Scale,
    /// Whether completions are rewarded or their steps.
    pub supervision: Supervision,
    /// Text that ends a step.
    pub step_separator: String,
    /// How a sampler that is not quite the policy is corrected for: one with other kernels, or with older weights.
    pub correction: Correction,
    /// Largest ratio of the correction.
    pub correction_max: f64,
    /// Smallest ratio that `token_mask` and `sequence_mask` keep.
    pub correction_min: f64,
    /// Completions of negative advantage whose mean `ln(p_sampler / p)` is above this are left out (DeepSeek-V3.2).
    pub off_policy_max: Option<f64>,
    /// Completions that were cut off are not learnt from (DAPO's overlong filtering).
    pub overlong_filter: bool,
    /// Groups that are all right or all wrong are replaced by those of further prompts, in at most so many further rounds
    /// of sampling (DAPO's dynamic sampling); 0 keeps them.
    pub dynamic_sampling_rounds: usize,
    pub learning_rate: f64,
    pub schedule: ScheduleKind,
    /// Floor of the schedule as a share of the peak.
    pub min_learning_rate_ratio: f64,
    /// Share of all steps that warm up linearly.
    pub warmup_ratio: f64,
    /// `adamw`, or `adamw_8bit` with states of a quarter of the size.
    #[serde(skip_serializing_if = "Optimizer::is_default")]
    pub optimizer: Optimizer,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 turns it off.
    pub max_grad_norm: f64,
    /// Tokens that go through the model together at most; longer completions go alone.
    pub pack_length: usize,
    /// Which activations are computed again in the backward pass.
    pub recompute: Recompute,
    /// Updates between checkpoints, which come between rollouts; rollouts are kept as they are sampled in any case.
    pub checkpoint_every_steps: usize,
    /// Checkpoints that are kept; the newest ones.
    pub keep_checkpoints: usize,
    /// Updates between samples in `rollouts.jsonl`; 0 writes none.
    pub samples_every_steps: usize,
    /// Groups in `rollouts.jsonl` each time.
    pub num_sample_groups: usize,
    /// Updates between evaluations on `[stage.eval]`; 0 evaluates never.
    pub eval_every_steps: usize,
}

/// What is summed, and what it is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean over completions of the mean over their tokens.
    #[default]
    Grpo,
    /// Sum over tokens, by the number of completions times the longest length there may be.
    DrGrpo,
    /// Mean over the tokens of the update.
    Dapo,
    /// The same; TRL's differs where its batch is made of several.
    Bnpo,
    /// Mean over tokens of `-min(ratio, clip_high) A log p`, with the weight held constant.
    Cispo,
}

/// Of what a ratio is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// Each token.
    #[default]
    Token,
    /// The completion, to the power of one by its length (GSPO).
    SequenceMean,
    /// The completion, as R1 prints it.
    Sequence,
}

/// Estimators of KL(policy, reference) from sampled tokens, with `d = ln(p_reference / p)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kl {
    /// No such term.
    None,
    /// `-d`
    K1,
    /// `d^2 / 2`
    K2,
    /// `exp(d) - d - 1`
    #[default]
    K3,
    /// k3 times the ratio to the policy that sampled, whose gradient has no bias (DeepSeek-V3.2).
    Unbiased,
}

/// What is rewarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervision {
    /// Completions: every token has the advantage of its completion.
    #[default]
    Outcome,
    /// Steps (DeepSeekMath, section 4.1.3): rewards with `steps = true` reward each step, and a token has the sum of the
    /// advantages of the steps that end at it or after it. DeepSeekMath has no other reward beside them. Where there is
    /// one, completions have an advantage by it as under `outcome`, which each token adds to its own: both are normalised
    /// apart, so with `advantage = "group"` or `"batch"` the weights of rewards count among steps and among the others only.
    Process,
}

/// What makes advantages of different groups alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The standard deviation of the group.
    #[default]
    Group,
    /// The standard deviation over all rewards of the rollout.
    Batch,
    /// Nothing.
    None,
}

/// Weights `p_policy / p_sampler` of the loss, held constant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// 1: the sampler is the policy.
    #[default]
    None,
    /// Each token's, at most `correction_max`.
    TokenTruncate,
    /// Each token's; 0 outside `correction_min` to `correction_max`.
    TokenMask,
    /// The completion's, at most `correction_max`.
    SequenceTruncate,
    /// The completion's; 0 outside `correction_min` to `correction_max`.
    SequenceMask,
}

impl Default for Grpo {
    fn default() -> Self {
        Self {
            preset: Preset::Deepseekmath,
            num_steps: None,
            epochs: 1,
            num_prompts_per_step: 16,
            group_size: 64,
            num_minibatches: 1,
            inner_epochs: 1,
            temperature: 1.0,
            max_new_tokens: 1024,
            stop: Vec::new(),
            batch_size: 128,
            remote: None,
            loss: Loss::Grpo,
            ratio: Ratio::Token,
            clip_low: 0.2,
            clip_high: 0.2,
            clip_max: None,
            kl: Kl::K3,
            kl_coef: 0.04,
            reference_every_steps: 0,
            advantage: Scale::Group,
            supervision: Supervision::Outcome,
            step_separator: "\n".into(),
            correction: Correction::None,
            correction_max: 2.0,
            correction_min: 0.5,
            off_policy_max: None,
            overlong_filter: false,
            dynamic_sampling_rounds: 0,
            learning_rate: 1e-6,
            schedule: ScheduleKind::Constant,
            min_learning_rate_ratio: 0.0,
            warmup_ratio: 0.0,
            optimizer: Optimizer::AdamW,
            weight_decay: 0.0,
            betas: [0.9, 0.95],
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            pack_length: 4096,
            recompute: Recompute::Auto,
            checkpoint_every_steps: 50,
            keep_checkpoints: 2,
            samples_every_steps: 10,
            num_sample_groups: 2,
            eval_every_steps: 0,
        }
    }
}

impl Grpo {
    /// The settings of a table: what it says, and the preset's numbers for the rest.
    ///
    /// # Errors
    /// An unknown key, a wrong type, a value out of range.
    pub fn from_table(table: Option<&toml::Value>) -> Result<Self> {
        let place = |e: toml::de::Error| Error::input(format!("`grpo`: {}", e.message()));
        let Some(table) = table else {
            return Ok(Self::default());
        };
        let Some(table) = table.as_table() else {
            return Err(Error::input("`grpo` is no table").with_hint("write `[stage.grpo]`"));
        };
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Named {
            preset: Preset,
        }
        let Named { preset } = table.clone().try_into().map_err(place)?;
        let mut all = toml::Table::try_from(preset.settings())
            .map_err(|e| Error::input(format!("`grpo`: {e}")))?;
        // an absent option, or a default that is not written, is no key of the preset's table
        let options = [
            "num_steps",
            "clip_max",
            "off_policy_max",
            "remote",
            "optimizer",
        ];
        for (key, value) in table {
            let known = all.contains_key(key) || options.contains(&key.as_str());
            if !known {
                let names = all.keys().map(String::as_str).chain(options);
                let hint = match closest(key, names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "`[stage.grpo]` has no such key".into(),
                };
                return Err(Error::input(format!("`grpo`: unknown key `{key}`")).with_hint(hint));
            }
            all.insert(key.clone(), value.clone());
        }
        let settings: Self = all.try_into().map_err(place)?;
        settings.check()?;
        Ok(settings)
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// The first such setting, by its key.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("epochs", self.epochs),
            ("num_prompts_per_step", self.num_prompts_per_step),
            ("group_size", self.group_size),
            ("num_minibatches", self.num_minibatches),
            ("inner_epochs", self.inner_epochs),
            ("max_new_tokens", self.max_new_tokens),
            ("batch_size", self.batch_size),
            ("pack_length", self.pack_length),
            ("checkpoint_every_steps", self.checkpoint_every_steps),
            ("keep_checkpoints", self.keep_checkpoints),
            ("num_steps", self.num_steps.unwrap_or(1)),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(Error::input(format!(
                "`grpo.{key}` must be at least 1, found 0"
            )));
        }
        let least = |key: &'static str, value: f64, least: f64| (key, value, least, f64::MAX);
        let ranges = [
            ("temperature", self.temperature, 1e-3, 1e3),
            ("clip_low", self.clip_low, 0.0, f64::MAX),
            ("betas", self.betas[0], 0.0, 1.0 - f64::EPSILON),
            ("betas", self.betas[1], 0.0, 1.0 - f64::EPSILON),
            ("warmup_ratio", self.warmup_ratio, 0.0, 1.0),
            (
                "min_learning_rate_ratio",
                self.min_learning_rate_ratio,
                0.0,
                1.0,
            ),
            least("clip_high", self.clip_high, 0.0),
            least("clip_max", self.clip_max.unwrap_or(1.0), 0.0),
            least("kl_coef", self.kl_coef, 0.0),
            least("correction_max", self.correction_max, 0.0),
            (
                "correction_min",
                self.correction_min,
                0.0,
                self.correction_max,
            ),
            least("off_policy_max", self.off_policy_max.unwrap_or(0.0), 0.0),
            least("learning_rate", self.learning_rate, 0.0),
            least("weight_decay", self.weight_decay, 0.0),
            least("adam_epsilon", self.adam_epsilon, 0.0),
            least("max_grad_norm", self.max_grad_norm, 0.0),
        ];
        for (key, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                let most = match high == f64::MAX {
                    true => String::new(),
                    false => format!(" and at most {high}"),
                };
                return Err(Error::input(format!(
                    "`grpo.{key}` is {value}, and must be at least {low}{most}"
                )));
            }
        }
        if self.loss == Loss::Cispo && self.ratio != Ratio::Token {
            return Err(Error::input(
                "`grpo.loss = \"cispo\"` weighs tokens: `ratio` must be `token`",
            ));
        }
        if self.step_separator.is_empty() {
            return Err(Error::input("`grpo.step_separator` is empty")
                .with_hint("say what ends a step: `\"\\n\"` or `\"\\n\\n\"`"));
        }
        if self.supervision == Supervision::Process && self.ratio != Ratio::Token {
            return Err(Error::input(
                "`grpo.supervision = \"process\"` tells tokens apart, `ratio` of whole completions does not",
            )
            .with_hint("set `ratio = \"token\"`, or `supervision = \"outcome\"`"));
        }
        match &self.remote {
            Some(remote) => remote.check(self),
            None => Ok(()),
        }
    }

    /// The settings that change what is learnt: how often something is saved or looked at, and what is computed side by
    /// side, are at their defaults.
    pub fn learned(&self) -> Self {
        let same = Self::default();
        Self {
            batch_size: same.batch_size,
            remote: self.remote.as_ref().map(Remote::learned),
            checkpoint_every_steps: same.checkpoint_every_steps,
            keep_checkpoints: same.keep_checkpoints,
            samples_every_steps: same.samples_every_steps,
            num_sample_groups: same.num_sample_groups,
            eval_every_steps: same.eval_every_steps,
            recompute: Recompute::None,
            ..self.clone()
        }
    }

    /// What ends a step, where steps are rewarded.
    pub fn separator(&self) -> Option<&str> {
        match self.supervision {
            Supervision::Outcome => None,
            Supervision::Process => Some(&self.step_separator),
        }
    }

    /// Refuses rewards of steps under `outcome`, and `process` without them.
    ///
    /// # Errors
    /// Which of both it is.
    pub fn check_rewards(&self, rewards: &RewardTable) -> Result<()> {
        match (self.supervision, rewards.is_of_steps()) {
            (Supervision::Process, false) => Err(Error::input(
                "`grpo.supervision = \"process\"` needs a reward of steps",
            )
            .with_hint(
                "set `steps = true` on a reward `reward_model` or `language_consistency`, or `supervision = \"outcome\"`",
            )),
            (Supervision::Outcome, true) => Err(Error::input(
                "`steps = true` among the rewards means nothing under `grpo.supervision = \"outcome\"`",
            )
            .with_hint("set `supervision = \"process\"`, or leave `steps` out")),
            _ => Ok(()),
        }
    }

    /// Whether a reference is compared with.
    pub fn needs_reference(&self) -> bool {
        self.kl != Kl::None && self.kl_coef > 0.0
    }

    /// Updates from one rollout.
    pub fn num_updates_per_rollout(&self) -> usize {
        self.num_minibatches * self.inner_epochs
    }

    /// Prompts of one rollout.
    pub fn num_prompts_per_rollout(&self) -> usize {
        self.num_prompts_per_step * self.num_minibatches
    }

    /// Updates of a run on `num_prompts` prompts: as `num_steps` says, else those of whole rollouts.
    pub fn total_steps(&self, num_prompts: usize) -> usize {
        let num_rollouts = self.epochs * num_prompts / self.num_prompts_per_rollout().max(1);
        self.num_steps
            .unwrap_or(num_rollouts * self.num_updates_per_rollout())
    }
}

#[cfg(test)]
#[path = "grpo_tests.rs"]
mod tests;
