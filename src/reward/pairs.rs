//! Samples of a prompt to pairs of a chosen and a rejected answer: by verdicts, lengths, rewards, or a judge as R1 has it.
//! The settings are in [`crate::recipe::pairs`]; nothing is read or written here.
//!
//! R1's helpful pairs (arXiv 2501.12948 v2, section 3.2.2): a judge is asked four times with the answers in random order, the
//! scores are averaged, pairs with a difference above 1 are kept, and chosen and rejected answers are of comparable length.
//! Here half of the questions go in each order, so that a judge that prefers a place comes to 0 exactly. Lengths are balanced
//! by dropping: while the mean lengths of chosen and rejected answers are further apart than the limit, the pair whose
//! absence brings them nearest to each other goes.

use super::judge::{Judge, JudgePair};
use crate::recipe::pairs::{PairRule, PairRules};
use crate::tokenize::Message;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Names kept of what was dropped for one reason.
const NUM_EXAMPLES: usize = 5;

/// A prompt with its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairPrompt {
    pub id: String,
    /// Without template and system prompt: what a judge reads.
    pub question: String,
    /// The conversation before the answer.
    pub messages: Vec<Message>,
    pub samples: Vec<PairSample>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairSample {
    /// With what the template wrote before it.
    pub text: String,
    pub num_tokens: Option<usize>,
    /// It ended because it was too long.
    pub truncated: bool,
    pub correct: Option<bool>,
    pub reward: Option<f64>,
}

/// What became of prompts and pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    pub num_prompts: usize,
    pub num_samples: usize,
    pub num_pairs: usize,
    /// Prompts without a pair, and pairs that were left out, by reason, the most frequent one first.
    pub dropped: Vec<PairsDropped>,
    /// `tokens`, or `characters` where a sample has no number of tokens.
    pub length_unit: String,
    pub chosen_length_mean: Option<f64>,
    pub rejected_length_mean: Option<f64>,
}

/// What was left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairsDropped {
    pub reason: String,
    pub count: usize,
    /// Ids of the first of them.
    pub examples: Vec<String>,
}

impl PairReport {
    /// What was left out, in words.
    pub fn reasons(&self) -> String {
        let all: Vec<String> = self
            .dropped
            .iter()
            .map(|d| format!("{} {}", d.count, d.reason))
            .collect();
        all.join(", ")
    }
}

/// Two samples of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    prompt: usize,
    chosen: usize,
    rejected: usize,
    /// By how much the chosen one is better, where that is a number.
    delta: Option<f64>,
}

/// The rows of all pairs, in TRL's preference format, and what became of the rest. `judge` is asked where the rule is that.
///
/// # Errors
/// A judge that is needed and not there, or gives no verdict.
pub fn build(
    prompts: &[PairPrompt],
    rules: &PairRules,
    judge: Option<&Judge>,
    seed: u64,
) -> Result<(Vec<Value>, PairReport)> {
    let mut dropped = Reasons::default();
    let mut pairs = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        match candidates(prompt, rules, seed) {
            Err(reason) => dropped.add(reason, &prompt.id),
            Ok(found) => {
                pairs.extend(
                    found
                        .into_iter()
                        .map(|(chosen, rejected, delta)| Candidate {
                            prompt: i,
                            chosen,
                            rejected,
                            delta,
                        }),
                )
            }
        }
    }
    let text = |pair: &Candidate, sample: usize| prompts[pair.prompt].samples[sample].text.as_str();
    let id = |pair: &Candidate| prompts[pair.prompt].id.as_str();
    pairs.retain(|pair| {
        let differ = text(pair, pair.chosen).trim() != text(pair, pair.rejected).trim();
        if !differ {
            dropped.add("pair of equal texts", id(pair));
        }
        differ
    });
    if rules.by == PairRule::Judge {
        let judge = judge.ok_or_else(|| Error::input("pairs by a judge need a judge"))?;
        ask(&mut pairs, prompts, judge, rules.num_judgements / 2)?;
    }
    if matches!(rules.by, PairRule::Judge | PairRule::Reward) {
        pairs.retain(|pair| {
            let is_kept = pair.delta.is_some_and(|delta| delta > rules.min_delta());
            if !is_kept {
                dropped.add("pair with too small a difference", id(pair));
            }
            is_kept
        });
    }
    let (lengths, unit) = lengths(prompts);
    let of = |pair: &Candidate| {
        let lengths = &lengths[pair.prompt];
        (lengths[pair.chosen] as f64, lengths[pair.rejected] as f64)
    };
    if let Some(gap) = rules.length_gap() {
        let all: Vec<(f64, f64)> = pairs.iter().map(of).collect();
        let is_kept = balance(&all, gap);
        let mut kept = is_kept.iter();
        pairs.retain(|pair| {
            let is_kept = kept.next().copied().unwrap_or(true);
            if !is_kept {
                dropped.add("pair in the way of balanced lengths", id(pair));
            }
            is_kept
        });
    }
    let mean = |length: &dyn Fn(&Candidate) -> f64| {
        let sum: f64 = pairs.iter().map(length).sum();
        (!pairs.is_empty()).then(|| sum / pairs.len() as f64)
    };
    let report = PairReport {
        num_prompts: prompts.len(),
        num_samples: prompts.iter().map(|p| p.samples.len()).sum(),
        num_pairs: pairs.len(),
        dropped: dropped.sorted(),
        length_unit: unit.into(),
        chosen_length_mean: mean(&|pair| of(pair).0),
        rejected_length_mean: mean(&|pair| of(pair).1),
    };
    let rows = pairs.iter().map(|pair| row(&prompts[pair.prompt], pair));
    Ok((rows.collect(), report))
}

/// Pairs of a prompt by the rule, or why there is none. A judge's are not directed yet.
#[expect(
    clippy::type_complexity,
    reason = "chosen, rejected and difference, used once"
)]
fn candidates(
    prompt: &PairPrompt,
    rules: &PairRules,
    seed: u64,
) -> std::result::Result<Vec<(usize, usize, Option<f64>)>, &'static str> {
    let samples = &prompt.samples;
    let mut usable: Vec<usize> = (0..samples.len())
        .filter(|&i| !(rules.drop_truncated && samples[i].truncated))
        .collect();
    if usable.len() < 2 {
        return Err("prompt with fewer than two whole samples");
    }
    let verdict = |wanted: bool| -> Vec<usize> {
        let mut some = usable.clone();
        some.retain(|&i| samples[i].correct == Some(wanted));
        some
    };
    let most = rules.max_per_prompt;
    match rules.by {
        PairRule::Correct => {
            let (right, wrong) = (verdict(true), verdict(false));
            match (right.is_empty(), wrong.is_empty()) {
                (true, true) => return Err("prompt without a verdict"),
                (false, true) => return Err("prompt with right samples only"),
                (true, false) => return Err("prompt with wrong samples only"),
                (false, false) => {}
            }
            let pairs = right.into_iter().zip(wrong).take(most);
            Ok(pairs.map(|(c, r)| (c, r, None)).collect())
        }
        PairRule::Shortest => {
            let mut right = verdict(true);
            if right.len() < 2 {
                return Err("prompt with fewer than two right samples");
            }
            let counted = right.iter().all(|&i| samples[i].num_tokens.is_some());
            let length = |i: usize| match samples[i].num_tokens {
                Some(n) if counted => n,
                _ => samples[i].text.chars().count(),
            };
            right.sort_by_key(|&i| length(i)); // stable
            let pairs: Vec<_> = right
                .iter()
                .zip(right.iter().rev())
                .take((right.len() / 2).min(most))
                .filter(|(c, r)| length(**c) < length(**r))
                .map(|(c, r)| (*c, *r, None))
                .collect();
            match pairs.is_empty() {
                true => Err("prompt whose right samples are of one length"),
                false => Ok(pairs),
            }
        }
        PairRule::Reward => {
            usable.retain(|&i| samples[i].reward.is_some_and(f64::is_finite));
            if usable.len() < 2 {
                return Err("prompt with fewer than two rewards");
            }
            let reward = |i: usize| samples[i].reward.unwrap_or_default();
            usable.sort_by(|&a, &b| reward(b).total_cmp(&reward(a)));
            let pairs = usable.iter().zip(usable.iter().rev());
            Ok(pairs
                .take((usable.len() / 2).min(most))
                .map(|(&c, &r)| (c, r, Some(reward(c) - reward(r))))
                .collect())
        }
        PairRule::Judge => {
            // which two are compared is a matter of chance
            usable.sort_by_key(|i| hash(&[&seed.to_string(), &prompt.id, &i.to_string()]));
            let pairs = usable.chunks_exact(2).take(most);
            Ok(pairs.map(|pair| (pair[0], pair[1], None)).collect())
        }
    }
}

/// Asks the judge about every pair, and puts the better answer first.
fn ask(
    pairs: &mut [Candidate],
    prompts: &[PairPrompt],
    judge: &Judge,
    num_rounds: usize,
) -> Result<()> {
    let questions: Vec<JudgePair<'_>> = pairs
        .iter()
        .map(|pair| {
            let prompt = &prompts[pair.prompt];
            JudgePair {
                question: &prompt.question,
                first: &prompt.samples[pair.chosen].text,
                second: &prompt.samples[pair.rejected].text,
            }
        })
        .collect();
    let preferences = judge.preferences_in_rounds(&questions, num_rounds)?;
    for (pair, preference) in pairs.iter_mut().zip(preferences) {
        if preference.score < 0.0 {
            std::mem::swap(&mut pair.chosen, &mut pair.rejected);
        }
        pair.delta = Some(preference.score.abs());
    }
    Ok(())
}

/// The length of every sample, and what it counts: one unit for all.
fn lengths(prompts: &[PairPrompt]) -> (Vec<Vec<usize>>, &'static str) {
    let mut samples = prompts.iter().flat_map(|p| &p.samples);
    let counted = samples.all(|s| s.num_tokens.is_some());
    let length = |sample: &PairSample| match sample.num_tokens {
        Some(n) if counted => n,
        _ => sample.text.chars().count(),
    };
    let all = prompts
        .iter()
        .map(|p| p.samples.iter().map(length).collect());
    (all.collect(), if counted { "tokens" } else { "characters" })
}

/// Which pairs, given by the lengths of chosen and rejected, are kept so that the mean lengths differ by at most `gap` of the
/// longer one. One pair at least stays.
fn balance(pairs: &[(f64, f64)], gap: f64) -> Vec<bool> {
    let mut kept = vec![true; pairs.len()];
    let mut chosen: f64 = pairs.iter().map(|p| p.0).sum();
    let mut rejected: f64 = pairs.iter().map(|p| p.1).sum();
    // by their difference: what brings the sums nearest stands next to the sums' own difference
    let difference = |i: usize| pairs[i].0 - pairs[i].1;
    let mut left: Vec<usize> = (0..pairs.len()).collect();
    left.sort_by(|&a, &b| difference(a).total_cmp(&difference(b)));
    while left.len() > 1 && (chosen - rejected).abs() > gap * chosen.max(rejected) {
        let excess = chosen - rejected;
        let at = left.partition_point(|&i| difference(i) < excess);
        let near = [at.checked_sub(1), (at < left.len()).then_some(at)]
            .into_iter()
            .flatten()
            .min_by(|&a, &b| {
                let rest = |at: usize| (excess - difference(left[at])).abs();
                rest(a).total_cmp(&rest(b))
            });
        let Some(at) = near else { break };
        let pair = left[at];
        if (excess - difference(pair)).abs() >= excess.abs() {
            break; // none would bring them nearer
        }
        left.remove(at);
        kept[pair] = false;
        chosen -= pairs[pair].0;
        rejected -= pairs[pair].1;
    }
    kept
}

fn row(prompt: &PairPrompt, pair: &Candidate) -> Value {
    let answer = |sample: usize| {
        let text = prompt.samples[sample].text.as_str();
        json!([{"role": "assistant", "content": text}])
    };
    let mut row = json!({
        "id": prompt.id,
        "question": prompt.question,
        "prompt": prompt.messages,
        "chosen": answer(pair.chosen),
        "rejected": answer(pair.rejected),
    });
    if let Some(delta) = pair.delta {
        row["delta"] = json!(delta);
    }
    row
}

/// Counts with examples.
#[derive(Default)]
struct Reasons(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Reasons {
    fn add(&mut self, reason: &'static str, id: &str) {
        let (count, examples) = self.0.entry(reason).or_default();
        *count += 1;
        if examples.len() < NUM_EXAMPLES {
            examples.push(id.to_string());
        }
    }

    fn sorted(self) -> Vec<PairsDropped> {
        let mut all: Vec<PairsDropped> = self
            .0
            .into_iter()
            .map(|(reason, (count, examples))| PairsDropped {
                reason: reason.into(),
                count,
                examples,
            })
            .collect();
        all.sort_by_key(|d| std::cmp::Reverse(d.count));
        all
    }
}

fn hash(parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    std::array::from_fn(|i| digest[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples as `(text, tokens, correct, reward)`.
    fn prompt(id: &str, samples: &[(&str, usize, Option<bool>, f64)]) -> PairPrompt {
        PairPrompt {
            id: id.into(),
            question: "?".into(),
            messages: vec![Message::new("user", "?")],
            samples: samples
                .iter()
                .map(|(text, n, correct, reward)| PairSample {
                    text: (*text).into(),
                    num_tokens: Some(*n),
                    truncated: text.contains("cut"),
                    correct: *correct,
                    reward: Some(*reward),
                })
                .collect(),
        }
    }

    fn texts(prompts: &[PairPrompt], rules: &PairRules) -> (Vec<(String, String)>, PairReport) {
        let (rows, report) = build(prompts, rules, None, 1).unwrap();
        let text = |row: &Value, key: &str| row[key][0]["content"].as_str().unwrap().to_string();
        let pairs = rows
            .iter()
            .map(|r| (text(r, "chosen"), text(r, "rejected")));
        (pairs.collect(), report)
    }

    fn pair(a: &str, b: &str) -> (String, String) {
        (a.into(), b.into())
    }

    const RIGHT: Option<bool> = Some(true);
    const WRONG: Option<bool> = Some(false);

    #[test]
    fn right_against_wrong() {
        let prompts = [
            prompt(
                "1",
                &[
                    ("a", 1, WRONG, 0.0),
                    ("b", 1, RIGHT, 0.0),
                    ("c", 1, RIGHT, 0.0),
                ],
            ),
            prompt("2", &[("a", 1, RIGHT, 0.0), ("b", 1, RIGHT, 0.0)]),
            prompt("3", &[("a", 1, WRONG, 0.0), ("b", 1, WRONG, 0.0)]),
            prompt("4", &[("a", 1, None, 0.0), ("b", 1, None, 0.0)]),
            prompt("5", &[("a", 1, RIGHT, 0.0), ("cut", 1, WRONG, 0.0)]),
            prompt("6", &[("a", 1, RIGHT, 0.0), (" a", 1, WRONG, 0.0)]),
            prompt("7", &[]),
        ];
        let (pairs, report) = texts(&prompts, &PairRules::default());
        assert_eq!(pairs, [pair("b", "a")]);
        let counts: Vec<(&str, usize)> = report
            .dropped
            .iter()
            .map(|d| (d.reason.as_str(), d.count))
            .collect();
        assert_eq!(
            counts,
            [
                ("prompt with fewer than two whole samples", 2),
                ("pair of equal texts", 1),
                ("prompt with right samples only", 1),
                ("prompt with wrong samples only", 1),
                ("prompt without a verdict", 1),
            ]
        );
        assert_eq!(report.dropped[0].examples, ["5", "7"]);
        assert_eq!(
            (report.num_prompts, report.num_samples, report.num_pairs),
            (7, 13, 1)
        );
    }

    #[test]
    fn shortest_against_longest_and_rewards_from_both_ends() {
        let samples = [
            ("a", 5, RIGHT, 0.1),
            ("b", 2, RIGHT, 0.9),
            ("c", 9, RIGHT, 0.5),
            ("d", 1, WRONG, 0.2),
            ("e", 7, RIGHT, 0.4),
        ];
        let rules = |by, max_per_prompt| PairRules {
            by,
            max_per_prompt,
            ..PairRules::default()
        };
        let prompts = [
            prompt("1", &samples),
            prompt("2", &[("x", 3, RIGHT, 1.0), ("y", 3, RIGHT, 1.0)]),
        ];
        let (pairs, report) = texts(&prompts, &rules(PairRule::Shortest, 1));
        assert_eq!(pairs, [pair("b", "c")]);
        assert_eq!(
            report.dropped[0].reason,
            "prompt whose right samples are of one length"
        );
        assert_eq!(
            (report.chosen_length_mean, report.rejected_length_mean),
            (Some(2.0), Some(9.0))
        );
        let (pairs, _) = texts(&prompts, &rules(PairRule::Shortest, 9));
        assert_eq!(pairs, [pair("b", "c"), pair("a", "e")]);
        let (pairs, report) = texts(&prompts, &rules(PairRule::Reward, 2));
        assert_eq!(pairs, [pair("b", "a"), pair("c", "d")]);
        assert_eq!(report.dropped[0].reason, "pair with too small a difference");
        let narrow = PairRules {
            min_delta: Some(0.5),
            ..rules(PairRule::Reward, 2)
        };
        assert_eq!(texts(&prompts, &narrow).0, [pair("b", "a")]);
    }

    #[test]
    fn lengths_are_balanced_by_as_few_pairs_as_it_takes() {
        // 40 and 40: nothing to do
        assert_eq!(balance(&[(10.0, 30.0), (30.0, 10.0)], 0.0), [true, true]);
        // sums 190 and 100: without the third pair 90 and 90
        let pairs = [(50.0, 40.0), (40.0, 50.0), (100.0, 10.0)];
        assert_eq!(balance(&pairs, 0.1), [true, true, false]);
        assert_eq!(balance(&pairs, 0.5), [true, true, true]);
        // rejected ones longer
        let pairs: Vec<(f64, f64)> = (1..=20).map(|i| (100.0, 100.0 + f64::from(i))).collect();
        let kept = balance(&pairs, 0.05);
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| -> f64 {
            pairs
                .iter()
                .zip(&kept)
                .filter(|(_, k)| **k)
                .map(|(p, _)| of(p))
                .sum()
        };
        let (c, r) = (mean(&|p| p.0), mean(&|p| p.1));
        assert!((r - c) / r <= 0.05);
        assert!(kept.iter().filter(|k| **k).count() >= 9);
        // one pair is never dropped
        assert_eq!(balance(&[(1.0, 100.0)], 0.0), [true]);
        assert_eq!(balance(&[], 0.0), [] as [bool; 0]);
    }

    #[test]
    fn a_judge_that_is_missing_is_an_error() {
        let rules = PairRules {
            by: PairRule::Judge,
            ..PairRules::default()
        };
        let prompts = [prompt("1", &[("a", 1, None, 0.0), ("b", 1, None, 0.0)])];
        assert!(build(&prompts, &rules, None, 1).is_err());
    }
}
