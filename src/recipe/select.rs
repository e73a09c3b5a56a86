//! `[stage.select]`: which samples become traces.
//!
//! The paper keeps what is right, drops mixed languages, overlong paragraphs and code blocks in the reasoning, and gives no
//! numbers (arXiv 2501.12948, section 2.3.3); the limits are ours.

use crate::verify::Kind;
use crate::verify::readability::{Flag, ReadabilityLimits};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[stage.select]`
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// Which verdict a sample needs.
    pub accept: Accept,
    /// Who judges a sample without a verdict: `math`, `choice`, `exact`, `number` or `boxed`.
    pub verifier: Kind,
    /// Smallest reward; samples without a reward are then dropped.
    pub min_reward: Option<f64>,
    /// Samples that ended because they were too long are dropped.
    pub drop_truncated: bool,
    /// What in the reasoning drops a sample.
    pub drop_flags: Vec<Flag>,
    /// From where on something counts.
    pub limits: ReadabilityLimits,
    /// Of samples with the same text, one is kept.
    pub drop_duplicates: bool,
    /// Samples of a problem that are kept at most.
    pub max_per_problem: usize,
    /// Which come first where there are more.
    pub order: Order,
    /// Only problems of which at least this share of the samples is right.
    pub min_pass_rate: Option<f64>,
    /// Only problems of which at most this share of the samples is right: the hard ones.
    pub max_pass_rate: Option<f64>,
}

impl Default for Select {
    fn default() -> Self {
        Self {
            accept: Accept::Correct,
            verifier: Kind::Math,
            min_reward: None,
            drop_truncated: true,
            drop_flags: vec![
                Flag::MixedLanguage,
                Flag::OverlongParagraph,
                Flag::CodeBlock,
                Flag::Repetition,
            ],
            limits: ReadabilityLimits::default(),
            drop_duplicates: true,
            max_per_problem: 1,
            order: Order::Shortest,
            min_pass_rate: None,
            max_pass_rate: None,
        }
    }
}

/// Which verdict a sample needs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Accept {
    /// Right.
    #[default]
    Correct,
    /// Any, or none: for prompts without a right answer, with `min_reward`.
    Any,
}

/// Which samples of a problem come first.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// By their number of tokens.
    #[default]
    Shortest,
    /// As they were sampled.
    First,
    /// By their reward, the largest first.
    Reward,
    /// By the seed.
    Random,
}

impl Select {
    /// Refuses what means nothing.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::input(what));
        if self.max_per_problem == 0 {
            return wrong("`select.max_per_problem = 0` must be at least 1".into());
        }
        for (key, rate) in [
            ("min_pass_rate", self.min_pass_rate),
            ("max_pass_rate", self.max_pass_rate),
        ] {
            if rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
                let rate = rate.unwrap_or_default();
                return wrong(format!("`select.{key} = {rate}` must be between 0 and 1"));
            }
        }
        if let (Some(least), Some(most)) = (self.min_pass_rate, self.max_pass_rate)
            && least > most
        {
            return wrong(format!(
                "`select.min_pass_rate = {least}` is above `select.max_pass_rate = {most}`"
            ));
        }
        if self.min_reward.is_some_and(f64::is_nan) {
            return wrong("`select.min_reward` is no number".into());
        }
        Ok(())
    }
}
