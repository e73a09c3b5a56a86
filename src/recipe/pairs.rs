//! `[stage.reward_model.build]` and `[stage.preference.build]`: how pairs of a chosen and a rejected answer are made of the
//! samples of a prompt. What the rules do is in `reward/pairs.rs`.

use super::plan::{at_least, in_range};
use super::reward::JudgeSettings;
use crate::verify::Kind;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How pairs are made of samples.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct PairRules {
    /// What makes one answer better than another.
    pub by: PairRule,
    /// Pairs of a prompt at most.
    pub max_per_prompt: usize,
    /// The difference must be larger: of the judge's mean score, from 2 to -2, or of the rewards. Default 1 for `judge`, as
    /// R1 has it, and 0 for `reward`.
    pub min_delta: Option<f64>,
    /// How often the judge is asked about a pair, half of them in each order; R1 asks four times.
    pub num_judgements: usize,
    /// Largest difference between the mean lengths of chosen and rejected answers, as a share of the longer mean: pairs are
    /// dropped until it holds. Default 0.1 for `judge`; without a limit for the others.
    pub length_gap: Option<f64>,
    /// Samples that ended because they were too long are not looked at.
    pub drop_truncated: bool,
    /// Who says whether a sample without a verdict is right: `math`, `choice`, `exact`, `number` or `boxed`.
    pub verifier: Kind,
    /// Who is asked; needed for `judge`.
    pub judge: Option<JudgeSettings>,
}

impl Default for PairRules {
    fn default() -> Self {
        Self {
            by: PairRule::Correct,
            max_per_prompt: 1,
            min_delta: None,
            num_judgements: 4,
            length_gap: None,
            drop_truncated: true,
            verifier: Kind::Math,
            judge: None,
        }
    }
}

/// What makes one answer better than another.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PairRule {
    /// A right one against a wrong one.
    #[default]
    Correct,
    /// The shortest right one against the longest right one: against overthinking (arXiv 2412.21187).
    Shortest,
    /// The larger reward.
    Reward,
    /// What a model says that sees both.
    Judge,
}

impl PairRules {
    /// The limit of the difference.
    pub fn min_delta(&self) -> f64 {
        self.min_delta.unwrap_or(match self.by {
            PairRule::Judge => 1.0,
            _ => 0.0,
        })
    }

    /// The limit of the difference in length, where there is one.
    pub fn length_gap(&self) -> Option<f64> {
        self.length_gap.or(match self.by {
            PairRule::Judge => Some(0.1),
            _ => None,
        })
    }

    /// Refuses what means nothing.
    ///
    /// # Errors
    /// Names the key in `table`.
    pub fn check(&self, table: &str) -> Result<()> {
        let key = |name: &str| format!("{table}.{name}");
        at_least(&key("max_per_prompt"), self.max_per_prompt, 1)?;
        in_range(&key("min_delta"), self.min_delta(), 0.0, f64::MAX)?;
        if let Some(gap) = self.length_gap {
            in_range(&key("length_gap"), gap, 0.0, 1.0)?;
            if self.by == PairRule::Shortest {
                return Err(Error::input(format!(
                    "`{}` and `{} = \"shortest\"` contradict each other",
                    key("length_gap"),
                    key("by")
                ))
                .with_hint("with this rule the length is what is learnt: leave `length_gap` out"));
            }
        }
        if self.num_judgements < 2 || !self.num_judgements.is_multiple_of(2) {
            return Err(Error::input(format!(
                "`{} = {}` must be an even number, as half of them are asked in each order",
                key("num_judgements"),
                self.num_judgements
            )));
        }
        if self.by == PairRule::Judge && self.judge.is_none() {
            return Err(Error::input(format!(
                "`{} = \"judge\"` needs `{}`",
                key("by"),
                key("judge")
            ))
            .with_hint("give it an endpoint: `judge = { url = \"...\", model = \"...\" }`"));
        }
        Ok(())
    }
}
