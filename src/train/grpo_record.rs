//! What is watched while a policy learns: one record an update.

use super::grpo_update::UpdateStats;
use super::hacking::Alarm;
use super::rollout::{Group, GrpoPrompt};
use crate::generate::FinishReason;
use crate::reward::shape;
use crate::verify::format;
use crate::verify::language::{self, Language};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Words that DeepSeek-R1 counts as signs of reflection (arXiv 2501.12948, supplement).
pub const REFLECTIVE_WORDS: [&str; 10] = [
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
];

/// One update: a line of `metrics.jsonl`. Rewards and lengths are those of the completions it learnt from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct GrpoRecord {
    /// From 1.
    pub step: usize,
    /// Passes over the prompts after this step.
    pub epoch: f64,
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Mean over the completions that a reward applies to; 0 where there are none.
    pub reward: f64,
    pub reward_std: f64,
    /// Mean of each reward over the completions that it applies to, not weighted.
    pub rewards: BTreeMap<String, f64>,
    /// Completions that no reward applies to.
    pub num_unrewarded: usize,
    /// Completions by the rewards that do not apply to them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewards_missing: BTreeMap<String, usize>,
    /// Share of the completions that a verifier finds right, or a judge, where one is asked.
    pub pass_rate: Option<f64>,
    /// Share of all groups that the rollout drew, those that were replaced too.
    pub all_right: f64,
    pub all_wrong: f64,
    /// Groups that were replaced.
    pub num_dropped_groups: usize,
    pub num_completions: usize,
    /// Tokens of the completions.
    pub length: f64,
    pub length_max: usize,
    /// Share of the completions that were cut off.
    pub truncated: f64,
    /// Mean over the tokens that were learnt from, as all down to `ratio_max`.
    pub entropy: f64,
    pub kl: Option<f64>,
    /// Shares of tokens whose ratio was clipped.
    pub clipped_low: f64,
    pub clipped_high: f64,
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    /// Share of tokens whose correction for the sampler was truncated or masked.
    pub corrected: f64,
    /// Share of tokens left out as too far off the policy.
    pub off_policy: f64,
    /// Mean and largest difference of the sampler's and the trainer's log-probability of a token.
    pub gap: f64,
    pub gap_max: f64,
    /// Completions of weights that were older than those before the rollout's first update, and by how many updates the
    /// completions were behind these in the mean; both 0 where our own engine samples.
    pub num_stale_completions: usize,
    pub staleness: f64,
    /// Share of the words that are in the language of the question, of the completions' reasoning.
    pub language_consistency: Option<f64>,
    /// [`REFLECTIVE_WORDS`] in a completion.
    pub reflective_words: f64,
    /// Share of three-word runs that have been there before.
    pub repetition: f64,
    /// Steps of a completion, where they are rewarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_reward_steps: Option<f64>,
    /// Right held-out problems, where they were asked after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_accuracy: Option<f64>,
    /// Raised by that evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Alarm>,
    /// Tokens through the model since the start of the run, sampled and learnt from.
    pub num_tokens: u64,
    pub num_packs: usize,
    /// Seconds of the rollout and its rewards, counted with its first update.
    pub rollout_s: f64,
    pub reward_s: f64,
    /// Log-probabilities before the first update, under the policy and the reference.
    pub reference_s: f64,
    pub update_s: f64,
    pub step_time_s: f64,
}

impl GrpoRecord {
    /// Fills in what the model's pass told.
    pub fn add_update(&mut self, stats: &UpdateStats, has_reference: bool) {
        let (t, n) = (&stats.tally, stats.tally.num_tokens.max(1) as f64);
        self.loss = t.loss;
        self.entropy = stats.entropy / n;
        self.kl = has_reference.then_some(t.kl / n);
        self.clipped_low = t.num_clipped_low as f64 / n;
        self.clipped_high = t.num_clipped_high as f64 / n;
        if t.num_tokens > 0 {
            (self.ratio, self.ratio_min, self.ratio_max) = (t.ratio / n, t.ratio_min, t.ratio_max);
        }
        self.corrected = t.num_corrected as f64 / n;
        self.off_policy = t.num_off_policy as f64 / n;
        self.gap = t.gap / t.num_gaps.max(1) as f64;
        self.gap_max = t.gap_max;
        self.num_packs = stats.num_packs;
    }

    /// Fills in what the completions `(group, answer)` and their rewards tell.
    pub fn add_completions(
        &mut self,
        groups: &[Group],
        prompts: &[GrpoPrompt],
        which: &[(usize, usize)],
    ) {
        let all = || which.iter().map(|&(g, a)| (&groups[g], a));
        let n = which.len().max(1) as f64;
        let rewards = all().filter_map(|(g, a)| g.scored[a].reward());
        self.num_unrewarded = which.len() - rewards.clone().count();
        (self.reward, self.reward_std) = super::advantage::mean_and_std(rewards);
        let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
        for part in all().flat_map(|(g, a)| &g.scored[a].parts) {
            let (sum, num) = sums.entry(&part.name).or_default();
            match part.value {
                Some(value) => {
                    *sum += value;
                    *num += 1;
                }
                None => {
                    let missing = &mut self.rewards_missing;
                    *missing.entry(part.name.to_string()).or_default() += 1;
                }
            }
        }
        let means = sums.into_iter().filter(|(_, (_, num))| *num > 0);
        self.rewards = means
            .map(|(k, (sum, num))| (k.to_string(), sum / num as f64))
            .collect();
        let verdicts: Vec<bool> = all()
            .filter_map(|(g, a)| g.scored[a].is_correct())
            .collect();
        self.pass_rate = share(verdicts.into_iter());
        self.num_completions = which.len();
        let staleness = all().map(|(g, _)| g.staleness);
        self.num_stale_completions = staleness.clone().filter(|s| *s > 0).count();
        self.staleness = staleness.sum::<usize>() as f64 / n;
        let lengths = all().map(|(g, a)| g.answers[a].tokens.len());
        self.length = lengths.clone().sum::<usize>() as f64 / n;
        self.length_max = lengths.max().unwrap_or(0);
        let truncated = all().map(|(g, a)| g.answers[a].finish_reason == FinishReason::Length);
        self.truncated = share(truncated).unwrap_or(0.0);
        let num_steps = all().map(|(g, a)| g.scored[a].step_ends.len());
        self.num_reward_steps = groups
            .iter()
            .any(Group::is_of_steps)
            .then(|| num_steps.sum::<usize>() as f64 / n);
        let texts = || all().map(|(g, a)| g.answers[a].text.as_str());
        self.reflective_words = texts().map(|t| num_reflective_words(t) as f64).sum::<f64>() / n;
        self.repetition = texts().map(|t| shape::repetition(t, 3, 1.0)).sum::<f64>() / n;
        let consistent: Vec<f64> = all()
            .filter_map(|(g, a)| {
                let target = Language::of(&prompts[g.prompt].prompt.question)?;
                let whole = format!("{}{}", prompts[g.prompt].opening, g.answers[a].text);
                Some(language::consistency(format::reasoning(&whole), target).share())
            })
            .collect();
        self.language_consistency = match consistent.len() {
            0 => None,
            n => Some(consistent.iter().sum::<f64>() / n as f64),
        };
    }
}

fn share(values: impl Iterator<Item = bool>) -> Option<f64> {
    let (mut num, mut yes) = (0usize, 0usize);
    for value in values {
        num += 1;
        yes += usize::from(value);
    }
    (num > 0).then(|| yes as f64 / num as f64)
}

/// How often one of [`REFLECTIVE_WORDS`] stands in a text, whole and in any case.
pub fn num_reflective_words(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| {
            REFLECTIVE_WORDS
                .iter()
                .any(|w| word.eq_ignore_ascii_case(w))
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_reflection() {
        assert_eq!(
            num_reflective_words("Wait, wait! But (however) I re-check: butter, checked"),
            5
        );
        assert_eq!(num_reflective_words(""), 0);
    }

    #[test]
    fn shares_by_hand() {
        assert_eq!(share([true, false, false, true].into_iter()), Some(0.5));
        assert_eq!(share(std::iter::empty()), None);
    }
}
