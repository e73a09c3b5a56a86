//! Rows of samples, as a `generate` stage or `distill generate` writes them, and which samples of a row are fit to learn
//! from: whole, right, rewarded enough, readable.

use crate::data::{self, Prompt};
use crate::recipe::select::{Accept, Select};
use crate::recipe::stage::{FromSource, Prompts};
use crate::reward::pairs::{PairPrompt, PairSample};
use crate::reward::{Group, Rewards, Sample, Scored};
use crate::tokenize::Message;
use crate::verify::code::CodeCase;
use crate::verify::readability::readability;
use crate::verify::{Kind, Verdict, choice};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// One prompt with its samples.
pub struct SampleRow {
    pub id: String,
    pub question: String,
    /// The conversation before the answer.
    pub messages: Vec<Message>,
    golds: Vec<String>,
    options: Vec<String>,
    /// What the template wrote before the answer.
    opening: String,
    domain: Option<String>,
    row: Map<String, Value>,
    pub samples: Vec<Answer>,
}

/// One sample as the file has it.
#[derive(Deserialize)]
pub struct Answer {
    pub text: String,
    #[serde(default)]
    tokens: Option<Tokens>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    reward: Option<f64>,
    #[serde(default)]
    correct: Option<bool>,
}

/// Token ids, or their number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tokens {
    Number(usize),
    Ids(Vec<u32>),
}

impl Answer {
    fn num_tokens(&self) -> Option<usize> {
        self.tokens.as_ref().map(|tokens| match tokens {
            Tokens::Number(n) => *n,
            Tokens::Ids(ids) => ids.len(),
        })
    }

    fn is_truncated(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }
}

/// What was found out about a sample.
pub struct Candidate {
    /// Its place in the row.
    pub sample: usize,
    pub correct: Option<bool>,
    pub reward: Option<f64>,
    /// Characters where nobody counted the tokens.
    pub num_tokens: usize,
    /// Why it is not kept.
    pub reason: Option<&'static str>,
}

impl SampleRow {
    fn parse(line: &str, number: usize) -> Result<Self> {
        let row: Value = serde_json::from_str(line).map_err(|e| Error::input(e.to_string()))?;
        let Value::Object(mut asked) = row else {
            return Err(Error::input("no JSON object"));
        };
        let generations = asked.remove("generations").ok_or_else(|| {
            Error::input("no `generations`").with_hint(
                "rows of samples are what a `generate` stage or `distill generate` writes",
            )
        })?;
        let Prompt {
            id,
            question,
            messages,
            golds,
            options,
            domain,
            row,
        } = data::prompts::of_row(asked, &Prompts::from_source(String::new()), number)?;
        let mut samples = Vec::<Answer>::deserialize(generations)
            .map_err(|e| Error::input(format!("`generations`: {e}")))?;
        // `distill reward` puts a list beside
        if let Some(rewards) = row.get("reward").and_then(Value::as_array) {
            for (sample, reward) in samples.iter_mut().zip(rewards) {
                sample.reward = sample.reward.or(reward.as_f64());
            }
        }
        Ok(Self {
            question,
            opening: match row.get("opening") {
                Some(Value::String(opening)) => opening.clone(),
                _ => String::new(),
            },
            id,
            messages,
            golds,
            options,
            domain,
            row,
            samples,
        })
    }

    /// The text of a sample with what the template wrote before it.
    fn whole(&self, sample: usize) -> String {
        format!("{}{}", self.opening, self.samples[sample].text)
    }

    /// A kept sample as a row of traces, which holds what a prompt of the same problem needs.
    pub fn trace(&self, candidate: &Candidate) -> Value {
        let mut messages = self.messages.clone();
        messages.push(Message::new("assistant", self.whole(candidate.sample)));
        let mut row = Map::new();
        row.insert("id".into(), json!(self.id));
        row.insert("question".into(), json!(self.question));
        row.insert("messages".into(), json!(messages));
        if let Some(source) = self.row.get("source") {
            row.insert("source".into(), source.clone());
        }
        if let Some(domain) = &self.domain {
            row.insert("domain".into(), json!(domain));
        }
        match &self.golds[..] {
            [] => {}
            [only] => _ = row.insert("gold".into(), json!(only)),
            all => _ = row.insert("gold".into(), json!(all)),
        }
        if !self.options.is_empty() {
            row.insert("options".into(), json!(self.options));
        }
        for name in CodeCase::FIELDS {
            if let Some(value) = self.row.get(name) {
                row.insert(name.into(), value.clone());
            }
        }
        if let Some(correct) = candidate.correct {
            row.insert("correct".into(), json!(correct));
        }
        if let Some(reward) = candidate.reward {
            row.insert("reward".into(), json!(reward));
        }
        row.insert("num_tokens".into(), json!(candidate.num_tokens));
        Value::Object(row)
    }

    /// Its samples as pairs are made of them, with what was found out about each.
    pub fn for_pairs(&self, candidates: &[Candidate]) -> PairPrompt {
        let sample = |candidate: &Candidate| {
            let answer = &self.samples[candidate.sample];
            PairSample {
                text: self.whole(candidate.sample),
                num_tokens: answer.num_tokens(),
                truncated: answer.is_truncated(),
                correct: candidate.correct,
                reward: candidate.reward,
            }
        };
        PairPrompt {
            id: self.id.clone(),
            question: self.question.clone(),
            messages: self.messages.clone(),
            samples: candidates.iter().map(sample).collect(),
        }
    }

    fn group(&self) -> Group<'_> {
        Group {
            prompt: Some(&self.question),
            opening: &self.opening,
            golds: &self.golds,
            options: &self.options,
            row: Some(&self.row),
            domain: self.domain.as_deref(),
            samples: self
                .samples
                .iter()
                .map(|sample| Sample {
                    text: &sample.text,
                    num_tokens: sample.num_tokens(),
                    truncated: sample.is_truncated(),
                })
                .collect(),
        }
    }

    fn verdict(&self, text: &str, kind: Kind) -> Option<bool> {
        if self.golds.is_empty() {
            return None;
        }
        let verdict = Verdict::among(self.golds.iter().map(|gold| match kind {
            Kind::Choice => choice::check_among(text, gold, &self.options),
            kind => kind.check(text, gold),
        }));
        (!verdict.gold_unreadable).then(|| verdict.is_correct())
    }

    /// Why each sample is not fit, by what can be told from this row alone.
    fn candidates(
        &self,
        select: &Select,
        scored: Option<&[crate::reward::Scored]>,
    ) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = (0..self.samples.len())
            .map(|i| {
                let sample = &self.samples[i];
                let text = self.whole(i);
                let scored = scored.and_then(|scored| scored.get(i));
                let correct = scored
                    .and_then(Scored::is_correct)
                    .or(sample.correct)
                    .or_else(|| self.verdict(&text, select.verifier));
                let reward = scored.map_or(sample.reward, Scored::reward);
                Candidate {
                    sample: i,
                    correct,
                    reward,
                    num_tokens: sample.num_tokens().unwrap_or_else(|| text.chars().count()),
                    reason: self.reason(i, &text, select, correct, reward),
                }
            })
            .collect();
        if let Some(reason) = pass_rate_reason(&all, select) {
            for candidate in &mut all {
                candidate.reason = Some(reason);
            }
        }
        all
    }

    fn reason(
        &self,
        sample: usize,
        text: &str,
        select: &Select,
        correct: Option<bool>,
        reward: Option<f64>,
    ) -> Option<&'static str> {
        if select.drop_truncated && self.samples[sample].is_truncated() {
            return Some("truncated");
        }
        match (select.accept, correct) {
            (Accept::Any, _) | (Accept::Correct, Some(true)) => {}
            (Accept::Correct, Some(false)) => return Some("wrong"),
            (Accept::Correct, None) => return Some("no_verdict"),
        }
        match (select.min_reward, reward) {
            (None, _) => {}
            (Some(_), None) => return Some("no_reward"),
            (Some(least), Some(reward)) if reward >= least => {}
            (Some(_), Some(_)) => return Some("low_reward"),
        }
        if text.trim().is_empty() {
            return Some("empty");
        }
        let found = readability(text, &select.limits).flags;
        let flag = found
            .into_iter()
            .find(|flag| select.drop_flags.contains(flag));
        flag.map(|flag| flag.name())
    }
}

/// Why the whole problem is passed over.
fn pass_rate_reason(all: &[Candidate], select: &Select) -> Option<&'static str> {
    if select.min_pass_rate.is_none() && select.max_pass_rate.is_none() {
        return None;
    }
    let judged: Vec<bool> = all.iter().filter_map(|c| c.correct).collect();
    if judged.is_empty() {
        return Some("no_verdict");
    }
    let rate = judged.iter().filter(|correct| **correct).count() as f64 / judged.len() as f64;
    if select.min_pass_rate.is_some_and(|least| rate < least) {
        return Some("pass_rate_below_min");
    }
    select
        .max_pass_rate
        .is_some_and(|most| rate > most)
        .then_some("pass_rate_above_max")
}

/// The samples of each row with the reasons why they are not fit. Works on several threads.
///
/// # Errors
/// As [`Rewards::score_groups`].
pub fn judge(
    rows: &[SampleRow],
    select: &Select,
    rewards: Option<&Rewards>,
) -> Result<Vec<Vec<Candidate>>> {
    let scored = match rewards {
        None => None,
        Some(rewards) => {
            let groups: Vec<Group<'_>> = rows.iter().map(SampleRow::group).collect();
            Some(rewards.score_groups(&groups)?)
        }
    };
    Ok(rows
        .par_iter()
        .enumerate()
        .map(|(i, row)| {
            let scored = scored.as_ref().and_then(|all| all.get(i));
            row.candidates(select, scored.map(Vec::as_slice))
        })
        .collect())
}

/// The rows of a file of samples, one after the other.
///
/// # Errors
/// The file cannot be opened. The iterator's errors name the line.
pub fn read_rows(path: &Path) -> Result<impl Iterator<Item = Result<SampleRow>>> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    let path = path.to_path_buf();
    let lines = BufReader::with_capacity(1 << 20, file).lines().enumerate();
    let rows = lines.filter_map(move |(i, line)| {
        let line = match line {
            Ok(line) if line.trim().is_empty() => return None,
            Ok(line) => line,
            Err(e) => return Some(Err(Error::io("reading", &path, e))),
        };
        let at = |e: Error| e.at(format!("`{}` line {}", path.display(), i + 1));
        Some(SampleRow::parse(&line, i + 1).map_err(at))
    });
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::readability::Flag;

    fn row(generations: Value, more: Value) -> SampleRow {
        let mut row = json!({"id": "p", "question": "6*7?", "messages": [{"role": "user", "content": "6*7?"}], "gold": "42"});
        for (key, value) in more.as_object().unwrap() {
            row[key] = value.clone();
        }
        row["generations"] = generations;
        SampleRow::parse(&row.to_string(), 1).unwrap()
    }

    fn reasons(row: &SampleRow, select: &Select) -> Vec<&'static str> {
        let all = row.candidates(select, None);
        all.iter().map(|c| c.reason.unwrap_or("kept")).collect()
    }

    #[test]
    fn every_sample_has_the_first_reason_that_applies() {
        let right = "<think>\nSix sevens.\n</think>\n\nThe answer is \\boxed{42}.";
        let generations = json!([
            {"text": right, "tokens": [1, 2], "finish_reason": "stop"},
            {"text": right, "tokens": [1, 2], "finish_reason": "length"},
            {"text": right.replace("42", "41"), "finish_reason": "stop"},
            {"text": right.replace("Six sevens.", "We multiply 六乘以七等于四十二 and get it."), "finish_reason": "stop"},
            {"text": right.replace("Six sevens.", "Run it:\n```python\n6*7\n```\nDone."), "finish_reason": "stop"},
            {"text": right.replace("Six", &"x".repeat(2600)), "finish_reason": "stop"},
            {"text": right.replace("Six sevens.", &"Six sevens are what? ".repeat(20)), "finish_reason": "stop"},
        ]);
        let row = row(generations, json!({}));
        let select = Select::default();
        let want = [
            "kept",
            "truncated",
            "wrong",
            "mixed_language",
            "code_block",
            "overlong_paragraph",
            "repetition",
        ];
        assert_eq!(reasons(&row, &select), want);
        let loose = Select {
            drop_truncated: false,
            drop_flags: vec![Flag::CodeBlock],
            ..Select::default()
        };
        assert_eq!(
            reasons(&row, &loose),
            [
                "kept",
                "kept",
                "wrong",
                "kept",
                "code_block",
                "kept",
                "kept"
            ]
        );
        // 6 of 7 are right
        for (least, most, reason) in [
            (Some(0.9), None, "pass_rate_below_min"),
            (None, Some(0.8), "pass_rate_above_max"),
        ] {
            let hard = Select {
                min_pass_rate: least,
                max_pass_rate: most,
                ..Select::default()
            };
            assert_eq!(reasons(&row, &hard), [reason; 7]);
        }
    }

    #[test]
    fn verdicts_and_rewards_of_the_file_count() {
        let generations = json!([
            {"text": "a", "correct": true, "reward": 1.0},
            {"text": "b", "correct": false, "reward": 1.0},
            {"text": "c", "correct": true, "reward": 0.4},
            {"text": "d", "correct": true},
        ]);
        let row = row(generations.clone(), json!({"gold": "not asked"}));
        let select = Select {
            min_reward: Some(0.5),
            ..Select::default()
        };
        assert_eq!(
            reasons(&row, &select),
            ["kept", "wrong", "low_reward", "no_reward"]
        );
        // `distill reward` writes a list beside; a prompt without an answer has no verdict
        let texts = json!([{"text": "a"}, {"text": "b"}]);
        let bare = json!({"messages": [{"role": "user", "content": "hi"}], "reward": [0.9, 0.1], "generations": texts});
        let row = SampleRow::parse(&bare.to_string(), 7).unwrap();
        assert_eq!(row.id, "7");
        assert_eq!(reasons(&row, &select), ["no_verdict", "no_verdict"]);
        let any = Select {
            accept: Accept::Any,
            ..select
        };
        assert_eq!(reasons(&row, &any), ["kept", "low_reward"]);
    }

    #[test]
    fn a_sample_to_which_no_reward_applies_has_none() {
        let row = row(json!([{"text": "a", "reward": 1.0}]), json!({}));
        let scored = Scored {
            total: 0.0,
            parts: Vec::new(),
            verdict: None,
            step_ends: Vec::new(),
        };
        let select = Select {
            accept: Accept::Any,
            min_reward: Some(-1.0),
            ..Select::default()
        };
        // what another table gave it is no reward of this one
        let all = row.candidates(&select, Some(&[scored]));
        assert_eq!((all[0].reward, all[0].reason), (None, Some("no_reward")));
    }

    #[test]
    fn a_trace_begins_with_what_the_template_wrote() {
        let texts =
            json!([{"text": "Six sevens.\n</think>\n\n42", "tokens": 9, "finish_reason": "stop"}]);
        let row = row(texts, json!({"opening": "<think>\n", "domain": "math"}));
        let all = row.candidates(&Select::default(), None);
        assert_eq!(all[0].reason, None);
        let trace = row.trace(&all[0]);
        assert_eq!(
            trace["messages"][1]["content"],
            "<think>\nSix sevens.\n</think>\n\n42"
        );
        assert_eq!(
            (&trace["gold"], &trace["num_tokens"], &trace["correct"]),
            (&json!("42"), &json!(9), &json!(true))
        );
    }

    #[test]
    fn a_trace_is_a_prompt_of_the_same_problem() {
        let more = json!({"messages": [{"role": "user", "content": "Solve: 6*7?"}], "gold": ["42", "42.0"], "options": ["a", "b"], "tests": ["assert f() == 42"], "fn_name": "f", "other": 1});
        let row = row(json!([{"text": "42", "correct": true}]), more);
        let all = row.candidates(&Select::default(), None);
        let Value::Object(trace) = row.trace(&all[0]) else {
            panic!()
        };
        assert!(!trace.contains_key("other"));
        let spec = Prompts::from_source(String::new());
        let prompt = data::prompts::of_row(trace.clone(), &spec, 1).unwrap();
        assert_eq!(prompt.question, "6*7?");
        assert_eq!(prompt.messages[0].content, "Solve: 6*7?");
        assert_eq!((prompt.messages.len(), prompt.golds.len()), (1, 2));
        assert_eq!(prompt.options, ["a", "b"]);
        assert_eq!(CodeCase::of_tests(&prompt.row).unwrap().tests.len(), 1);
        let schema = data::schema::detect(&trace).unwrap();
        let traces = data::schema::traces(schema, &trace, "t", false).unwrap();
        assert_eq!(traces[0].gold.as_deref(), Some("42"));
        assert_eq!(traces[0].problem, "Solve: 6*7?");
    }

    #[test]
    fn rows_that_are_none_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.jsonl");
        std::fs::write(&path, "\n{\"prompt\": \"a\"}\n").unwrap();
        let e = read_rows(&path).unwrap().next().unwrap().err().unwrap();
        assert!(
            e.to_string().ends_with("g.jsonl` line 2: no `generations`"),
            "{e}"
        );
        std::fs::write(&path, "{\"prompt\": \"a\", \"generations\": [{}]}\n").unwrap();
        let e = read_rows(&path).unwrap().next().unwrap().err().unwrap();
        assert!(
            e.to_string()
                .ends_with("`generations`: missing field `text`"),
            "{e}"
        );
    }
}
