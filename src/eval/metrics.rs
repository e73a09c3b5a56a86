//! Samples to numbers: pass@1 with its interval, the majority vote, lengths.
//!
//! pass@1 is the mean over problems of the mean over the k samples of each (DeepSeek-R1, section 3); a sample without a
//! readable answer counts as wrong.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Sample;
use crate::generate::{FinishReason, Sampling};
use crate::recipe::suite::Suite;
use crate::verify::{Kind, Outcome};
use crate::{Error, Result};

/// 97.5% quantile of the normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// The outcome of a benchmark run, as `eval --json` and `eval.json` give it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalResult {
    pub suite: String,
    pub version: String,
    pub num_problems: usize,
    pub k: usize,
    #[serde(rename = "pass@1")]
    pub pass_at_1: f64,
    #[serde(rename = "pass@1_ci95")]
    pub pass_at_1_ci95: [f64; 2],
    #[serde(rename = "cons@k")]
    pub cons_at_k: f64,
    /// Mean share of the words of the reasoning that are in the language of the question, over the samples of questions
    /// whose language can be told.
    #[serde(default)]
    pub language_consistency: Option<f64>,
    pub num_tokens_mean: f64,
    pub truncated_share: f64,
    pub sampling: ResultSampling,
    pub seed: u64,
    pub verifier: Kind,
}

/// How the samples were drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultSampling {
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub max_new_tokens: usize,
}

impl EvalResult {
    /// Writes `eval.json`: beside, synced, then renamed.
    pub fn write(&self, path: &Path) -> Result<()> {
        let beside = path.with_extension("json.tmp");
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::input(format!("`{}`: {e}", path.display())))?;
        text.push(b'\n');
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::File::open(&beside)?.sync_all())
            .map_err(|e| Error::io("writing", &beside, e))?;
        std::fs::rename(&beside, path).map_err(|e| Error::io("writing", path, e))
    }
}

/// The numbers of `samples`, which are k a problem, in order of problems.
pub(super) fn result(
    suite: &Suite,
    sampling: &Sampling,
    kind: Kind,
    k: usize,
    samples: &[Sample],
) -> EvalResult {
    let groups: Vec<&[Sample]> = samples.chunks(k).collect();
    let means: Vec<f64> = groups
        .iter()
        .map(|group| share(group, |sample| sample.correct))
        .collect();
    let pass_at_1 = mean(&means);
    EvalResult {
        suite: suite.name.clone(),
        version: suite.version.clone(),
        num_problems: groups.len(),
        k,
        pass_at_1,
        pass_at_1_ci95: interval(&means, k),
        cons_at_k: mean(
            &groups
                .iter()
                .map(|group| f64::from(u8::from(consensus(group, kind))))
                .collect::<Vec<_>>(),
        ),
        language_consistency: {
            let known = samples.iter().filter_map(|s| s.language_consistency);
            let known: Vec<f64> = known.collect();
            (!known.is_empty()).then(|| mean(&known))
        },
        num_tokens_mean: mean(
            &samples
                .iter()
                .map(|sample| sample.num_tokens as f64)
                .collect::<Vec<_>>(),
        ),
        truncated_share: share(samples, |sample| {
            sample.finish_reason == FinishReason::Length
        }),
        sampling: ResultSampling {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            max_new_tokens: sampling.max_new_tokens,
        },
        seed: sampling.seed,
        verifier: kind,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn share(samples: &[Sample], holds: impl Fn(&Sample) -> bool) -> f64 {
    samples.iter().filter(|sample| holds(sample)).count() as f64 / samples.len() as f64
}

/// The 95% interval of pass@1 over problems like these, from each problem's mean.
///
/// One sample a problem is a proportion: Wilson's interval. With several, the samples of a problem belong together, and
/// only problems are independent: mean +- z sqrt(sum (m_i - mean)^2 / (n (n - 1))), clustered by problem (Miller 2024,
/// https://arxiv.org/abs/2411.00640), cut to [0, 1]. Where the problems do not differ at all that has no width, and
/// Wilson's interval over the problems is given in its place.
fn interval(means: &[f64], k: usize) -> [f64; 2] {
    let n = means.len() as f64;
    let p = mean(means);
    let squares: f64 = means.iter().map(|m| (m - p).powi(2)).sum();
    if k > 1 && squares > 0.0 {
        let half = Z95 * (squares / (n * (n - 1.0))).sqrt();
        return [(p - half).max(0.0), (p + half).min(1.0)];
    }
    let z2 = Z95 * Z95;
    let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // the bound at an end is that end, whatever the rounding
    let low = if p == 0.0 {
        0.0
    } else {
        (center - half).max(0.0)
    };
    let high = if p == 1.0 {
        1.0
    } else {
        (center + half).min(1.0)
    };
    [low, high]
}

/// Whether the majority's answer is right. Equal answers vote together however they are written; samples without an answer
/// do not vote; of two answers with as many votes the one given first wins.
fn consensus(group: &[Sample], kind: Kind) -> bool {
    struct Candidate<'a> {
        answer: &'a str,
        correct: bool,
        num_votes: usize,
    }
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for sample in group {
        let (Some(answer), Outcome::Correct | Outcome::Wrong) =
            (&sample.verdict.extracted, sample.verdict.outcome)
        else {
            continue;
        };
        match candidates
            .iter_mut()
            .find(|candidate| kind.same(candidate.answer, answer))
        {
            Some(candidate) => candidate.num_votes += 1,
            None => candidates.push(Candidate {
                answer,
                correct: sample.correct,
                num_votes: 1,
            }),
        }
    }
    // max_by_key takes the last of equals
    let winner = candidates
        .iter()
        .rev()
        .max_by_key(|candidate| candidate.num_votes);
    winner.is_some_and(|candidate| candidate.correct)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Verdict;

    fn sample(index: usize, answer: Option<&str>, gold: &str, num_tokens: usize) -> Sample {
        let verdict = match answer {
            Some(answer) => Kind::Number.check(&format!("\\boxed{{{answer}}}"), gold),
            None => Verdict {
                outcome: Outcome::Unparsable,
                extracted: None,
                reason: String::new(),
                gold_unreadable: false,
            },
        };
        Sample {
            problem: index.to_string(),
            index,
            sample: 0,
            gold: gold.into(),
            language_consistency: None,
            question: String::new(),
            correct: verdict.is_correct(),
            finish_reason: if answer.is_some() {
                FinishReason::Stop
            } else {
                FinishReason::Length
            },
            verdict,
            num_tokens,
            text: String::new(),
            key: String::new(),
        }
    }

    fn close(a: [f64; 2], b: [f64; 2]) {
        assert!(
            (a[0] - b[0]).abs() < 1e-4 && (a[1] - b[1]).abs() < 1e-4,
            "{a:?} {b:?}"
        );
    }

    #[test]
    fn intervals_worked_by_hand() {
        let nine_of_ten: Vec<f64> = (0..10).map(|i| f64::from(u8::from(i < 9))).collect();
        close(interval(&nine_of_ten, 1), [0.5958, 0.9821]);
        // p 0.625, standard error sqrt(0.1875 / 12) = 0.125
        close(interval(&[1.0, 0.5, 0.5, 0.5], 2), [0.3800, 0.8700]);
        close(interval(&[1.0, 0.0], 4), [0.0, 1.0]);
        // nothing differs: 5 of 5 problems by Wilson, not a width of zero
        close(interval(&[1.0; 5], 8), [0.5655, 1.0]);
        close(interval(&[0.0; 5], 1), [0.0, 0.4345]);
    }

    #[test]
    fn the_majority_counts_values_not_spellings() {
        let group = |answers: &[Option<&str>]| -> Vec<Sample> {
            answers
                .iter()
                .map(|answer| sample(0, *answer, "0.5", 1))
                .collect()
        };
        let cases = [
            (vec![Some("0.5"), Some("2"), Some(r"\frac12")], true),
            (vec![Some("2"), Some("0.5"), Some("2.0")], false),
            (vec![Some("0.5"), Some("2")], true), // a tie: the first
            (vec![Some("2"), Some("0.5")], false),
            (vec![None, None, Some("1/2")], true), // who has no answer has no vote
            (vec![None, None], false),
        ];
        for (answers, expected) in cases {
            assert_eq!(
                consensus(&group(&answers), Kind::Number),
                expected,
                "{answers:?}"
            );
        }
    }

    #[test]
    fn a_result_by_hand() {
        let suite = Suite::load("gsm8k").unwrap();
        let spoken = |share, sample| Sample {
            language_consistency: Some(share),
            ..sample
        };
        let samples = [
            spoken(1.0, sample(0, Some("7"), "7", 10)),
            spoken(0.5, sample(0, Some("7"), "7", 20)),
            sample(0, Some("8"), "7", 30),
            sample(0, None, "7", 100),
            sample(1, Some("1"), "2", 40),
            sample(1, Some("1"), "2", 40),
            sample(1, Some("1"), "2", 40),
            sample(1, Some("2"), "2", 40),
        ];
        let sampling = Sampling {
            temperature: 0.6,
            top_p: 0.95,
            seed: 3,
            max_new_tokens: 100,
            ..Sampling::default()
        };
        let result = result(&suite, &sampling, Kind::Number, 4, &samples);
        assert_eq!(result.pass_at_1, 0.375); // (2/4 + 1/4) / 2
        assert_eq!(result.cons_at_k, 0.5);
        // of the two whose language is known
        assert_eq!(result.language_consistency, Some(0.75));
        assert_eq!(result.num_tokens_mean, 40.0);
        assert_eq!(result.truncated_share, 0.125);
        let json = serde_json::to_value(&result).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        let expected = "suite version num_problems k pass@1 pass@1_ci95 cons@k language_consistency num_tokens_mean truncated_share \
                        sampling seed verifier";
        assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(json["verifier"], "number");
        assert_eq!(
            (json["num_problems"].as_u64(), json["k"].as_u64()),
            (Some(2), Some(4))
        );
    }
}
