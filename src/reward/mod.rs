//! Samples to numbers: the weighted sum of rewards, with the part of each.
//!
//! This file holds what is scored and the sum; the formulas are in [`shape`], the tags in [`crate::verify::format`], the
//! model that judges in [`judge`], the one that was trained to score in [`model_score`], pairs of
//! samples to learn preferences from in [`pairs`]. Which rewards a run has is
//! [`crate::recipe::reward`].
//!
//! A reward that does not apply to a sample (a gold answer nobody can read, a row without tests, a prompt without a
//! language) has no value: it adds nothing to the sum, says why, and is counted. It is never a 0 or a 1 that looks earned.

mod check;
mod endpoint;
pub mod judge;
mod judged;
pub mod model_score;
pub mod pairs;
mod scored;
pub mod shape;
pub mod steps;

pub use endpoint::Usage;
pub use judge::{Judge, JudgeCase};
use model_score::ModelScorer;
pub use scored::{Part, Scored};

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::data::Prompt;
use crate::generate::FinishReason;
use crate::generate::row_log::Generation;
use crate::progress::Stop;
use crate::recipe::reward::{LengthUnit, RewardKind, RewardSettings, RewardTable};
use crate::verify::code::{self, CodeCase, CodeVerdict, Sandbox};
use crate::verify::language::{self, Language};
use crate::verify::{Kind, Outcome, Verdict, choice, format};
use crate::{Error, Result};

/// One text a model wrote for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    pub text: &'a str,
    /// Its length, where that is known.
    pub num_tokens: Option<usize>,
    /// It ended because it was too long.
    pub truncated: bool,
}

/// The samples of one prompt, and what they are held to.
#[derive(Debug, Clone, Default)]
pub struct Group<'a> {
    /// The question. A judge reads it, and its language is the one to think in; a chat template's own words would mislead
    /// both.
    pub prompt: Option<&'a str>,
    /// What the chat template wrote behind the question and belongs to the answer, such as `<think>\n`; empty where the
    /// prompt itself ends so, or nothing does.
    pub opening: &'a str,
    /// Accepted answers; none where no reward needs them.
    pub golds: &'a [String],
    /// Texts of the options of a multiple choice question.
    pub options: &'a [String],
    /// Where the tests of programs are.
    pub row: Option<&'a Map<String, Value>>,
    /// Field of knowledge of the prompt, where it has one: rewards may be for some only.
    pub domain: Option<&'a str>,
    pub samples: Vec<Sample<'a>>,
}

impl<'a> Group<'a> {
    /// The answers to a prompt; `opening` is what its template wrote behind the question.
    pub fn of(prompt: &'a Prompt, opening: &'a str, answers: &'a [Generation]) -> Self {
        Self {
            prompt: Some(&prompt.question),
            opening,
            golds: &prompt.golds,
            options: &prompt.options,
            row: Some(&prompt.row),
            domain: prompt.domain.as_deref(),
            samples: answers
                .iter()
                .map(|answer| Sample {
                    text: &answer.text,
                    num_tokens: Some(answer.tokens.len()),
                    truncated: answer.finish_reason == FinishReason::Length,
                })
                .collect(),
        }
    }
}

/// What rewards may need beside their settings.
#[derive(Default)]
pub struct Tools {
    /// Programs are run in it; needed where [`RewardTable::needs_sandbox`] says so.
    pub sandbox: Option<Sandbox>,
    /// Asked between the judge's questions.
    pub stop: Stop,
    /// Ends the steps of a text, where steps can be rewarded.
    pub step_separator: Option<String>,
}

/// The rewards of a run.
pub struct Rewards {
    settings: Vec<RewardSettings>,
    /// Targets of language consistency, by reward; None is the prompt's language.
    targets: Vec<Option<Language>>,
    sandbox: Option<Sandbox>,
    judge: Option<Judge>,
    /// By reward.
    scorers: Vec<Option<ModelScorer>>,
    /// By reward.
    labels: Vec<Arc<str>>,
    step_separator: Option<String>,
}

impl Rewards {
    /// Checks the settings and opens what they need.
    ///
    /// # Errors
    /// Settings that mean nothing, a reward that is listed twice, programs without a sandbox, a judge that cannot be opened.
    pub fn build(table: &RewardTable, tools: Tools) -> Result<Self> {
        let settings = table.rewards();
        if settings.is_empty() {
            return Err(Error::input("no rewards are listed")
                .with_hint(format!("the rewards are {}", RewardKind::NAMES.join(", "))));
        }
        let mut targets = Vec::new();
        let mut judge = None;
        let mut scorers = Vec::new();
        for (i, reward) in settings.iter().enumerate() {
            let name = reward.kind.label();
            let at = |e: Error| e.at(format!("reward `{name}`"));
            check::check(reward).map_err(at)?;
            if settings[..i].iter().any(|other| other.kind.label() == name) {
                let twice = Error::input(format!("reward `{name}` is listed twice"));
                return Err(match &reward.kind {
                    RewardKind::RewardModel(_) => twice.with_hint("give each of them a `label`"),
                    _ => twice,
                });
            }
            if reward.kind.is_of_steps() && tools.step_separator.is_none() {
                return Err(at(Error::input("`steps = true` means nothing here")).with_hint(
                    "steps are rewarded by a stage of kind `grpo` with `supervision = \"process\"`",
                ));
            }
            targets.push(match &reward.kind {
                RewardKind::LanguageConsistency(language) => match &language.target {
                    Some(target) => Some(Language::parse(target).map_err(at)?),
                    None => None,
                },
                _ => None,
            });
            if let RewardKind::Judge(settings) = &reward.kind {
                judge = Some(Judge::open(settings, tools.stop.clone()).map_err(at)?);
            }
            scorers.push(match &reward.kind {
                RewardKind::RewardModel(settings) => Some(ModelScorer::open(settings).map_err(at)?),
                _ => None,
            });
        }
        if table.needs_sandbox() && tools.sandbox.is_none() {
            return Err(Error::input(
                "programs cannot be rewarded without a sandbox to run them in",
            ));
        }
        let labels = settings.iter().map(|r| r.kind.label().into()).collect();
        Ok(Self {
            settings,
            targets,
            sandbox: tools.sandbox,
            judge,
            scorers,
            labels,
            step_separator: tools.step_separator,
        })
    }

    /// Names of the rewards, in the order of the parts.
    pub fn names(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.labels.iter().cloned()
    }

    /// What the judge was asked, where there is one.
    pub fn judge_usage(&self) -> Option<Usage> {
        self.judge.as_ref().map(Judge::usage)
    }

    /// What every sample of every group earned, in order. Works on several threads.
    ///
    /// # Errors
    /// A row whose tests cannot be read, a sandbox that fails, a judge that gives no verdict, lengths in tokens where there
    /// are none. Nothing that a model wrote. What is wrong with a group is found before the judge is asked.
    pub fn score_groups(&self, groups: &[Group<'_>]) -> Result<Vec<Vec<Scored>>> {
        self.score_groups_at(groups, |number| format!("prompt {}", number + 1))
    }

    /// The same with errors that say where a group comes from.
    ///
    /// # Errors
    /// As [`Rewards::score_groups`].
    pub fn score_groups_at(
        &self,
        groups: &[Group<'_>],
        place: impl Fn(usize) -> String + Sync,
    ) -> Result<Vec<Vec<Scored>>> {
        let scored: Vec<Result<Vec<Scored>>> = groups
            .par_iter()
            .enumerate()
            .map(|(number, group)| self.score_group(group).map_err(|e| e.at(place(number))))
            .collect();
        // the first bad one, whichever thread came first
        let mut scored = scored.into_iter().collect::<Result<Vec<_>>>()?;
        let at = |reward: &RewardSettings| matches!(reward.kind, RewardKind::Judge(_));
        if let Some(at) = self.settings.iter().position(at) {
            let samples = scored.iter_mut().flatten();
            for (sample, found) in samples.zip(self.judge_groups(groups)?) {
                sample.parts[at].put(found);
                sample.sum_up();
            }
        }
        for (at, (reward, target)) in self.settings.iter().zip(&self.targets).enumerate() {
            if let RewardKind::LanguageConsistency(language) = &reward.kind
                && language.steps
            {
                let is_for = |group: &Group<'_>| reward.is_for(group.domain);
                steps::put_consistency(groups, &mut scored, at, *target, is_for);
            }
        }
        for (at, scorer) in self.scorers.iter().enumerate() {
            if let Some(scorer) = scorer {
                let is_for = |group: &Group<'_>| self.settings[at].is_for(group.domain);
                scorer.put(groups, &mut scored, at, is_for)?;
            }
        }
        Ok(scored)
    }

    fn score_group(&self, group: &Group<'_>) -> Result<Vec<Scored>> {
        let mut seen: Vec<Seen<'_>> = group
            .samples
            .par_iter()
            .map(|sample| Seen::new(sample, group))
            .collect();
        let mut columns: Vec<Vec<Part>> = Vec::new();
        let settings = self.settings.iter().zip(&self.targets).zip(&self.labels);
        for ((reward, target), label) in settings {
            let part = |found: std::result::Result<f64, String>| {
                let mut part = Part {
                    name: label.clone(),
                    value: None,
                    steps: None,
                    is_of_steps: reward.kind.is_of_steps(),
                    weight: reward.weight,
                    missing: None,
                };
                part.put(found);
                part
            };
            let column = match (reward.is_for(group.domain), reward.kind.is_of_steps()) {
                (false, _) => none(group, OTHER_DOMAIN),
                (true, true) => none(group, NOT_ASKED),
                (true, false) => self.column(&reward.kind, *target, group, &mut seen)?,
            };
            columns.push(column.into_iter().map(part).collect());
        }
        let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
        let has_steps = self.settings.iter().any(|r| r.kind.is_of_steps());
        let separator = self.step_separator.as_deref().filter(|_| has_steps);
        Ok(seen
            .into_iter()
            .map(|seen| {
                let mut scored = Scored {
                    total: 0.0,
                    parts: columns.iter_mut().filter_map(Iterator::next).collect(),
                    step_ends: separator
                        .map(|separator| steps::ends(seen.sample.text, separator))
                        .unwrap_or_default(),
                    verdict: seen.verdict(),
                };
                scored.sum_up();
                scored
            })
            .collect())
    }

    /// One reward for every sample of a group: its value, or why it has none.
    fn column(
        &self,
        kind: &RewardKind,
        target: Option<Language>,
        group: &Group<'_>,
        seen: &mut [Seen<'_>],
    ) -> Result<Vec<std::result::Result<f64, String>>> {
        let of_each = |value: &(dyn Fn(&Seen<'_>) -> f64 + Sync)| -> Vec<_> {
            seen.par_iter().map(|seen| Ok(value(seen))).collect()
        };
        Ok(match kind {
            RewardKind::Format(settings) => {
                of_each(&|seen| yes(settings.format.split(&seen.text).is_ok()))
            }
            RewardKind::TagCount {} => of_each(&|seen| format::tag_count(&seen.text)),
            RewardKind::ReasoningSteps(settings) => of_each(&|seen| {
                shape::reasoning_steps(format::reasoning(&seen.text), settings.num_steps)
            }),
            RewardKind::RepetitionPenalty(settings) => of_each(&|seen| {
                shape::repetition(seen.sample.text, settings.ngram_size, settings.max_penalty)
            }),
            RewardKind::CodeFormat(settings) => {
                let said = group
                    .row
                    .and_then(|row| row.get("language"))
                    .and_then(Value::as_str);
                let language = settings.language.as_deref().or(said).unwrap_or("python");
                of_each(&|seen| {
                    let parts = settings.format.split(&seen.text);
                    yes(parts.is_ok_and(|parts| shape::has_code_block(parts.answer, language)))
                })
            }
            RewardKind::LanguageConsistency(_) => {
                match target.or_else(|| Language::of(group.prompt.unwrap_or_default())) {
                    Some(target) => of_each(&|seen| {
                        language::consistency(format::reasoning(&seen.text), target).share()
                    }),
                    None => none(group, "the language of the prompt cannot be told"),
                }
            }
            RewardKind::SoftOverlong(settings) => {
                let lengths = lengths(group, settings.unit, kind.name())?;
                let samples = group.samples.iter().zip(lengths);
                samples
                    .map(|(sample, n)| Ok(shape::soft_overlong(n, sample.truncated, settings)))
                    .collect()
            }
            RewardKind::Accuracy(settings) => {
                of_verdicts(settings.verifier, group, seen, |verdict, _| {
                    match verdict.outcome {
                        Outcome::Correct => settings.correct,
                        Outcome::Wrong => settings.wrong,
                        Outcome::Unparsable => settings.no_answer,
                    }
                })
            }
            RewardKind::Cosine(settings) => {
                let lengths = lengths(group, settings.unit, kind.name())?;
                of_verdicts(settings.verifier, group, seen, |verdict, at| {
                    shape::cosine(lengths[at], verdict.is_correct(), settings)
                })
            }
            RewardKind::Length(settings) => {
                let lengths = lengths(group, settings.unit, kind.name())?;
                let verdicts = verdicts(settings.verifier, group, seen);
                let correct: Vec<bool> = verdicts.iter().map(Verdict::is_correct).collect();
                // all samples of a prompt have the same gold answers
                match verdicts.iter().find(|verdict| verdict.gold_unreadable) {
                    Some(verdict) => none(group, &verdict.reason),
                    None => shape::length(&lengths, &correct)
                        .into_iter()
                        .map(Ok)
                        .collect(),
                }
            }
            RewardKind::Code {} => self.run_programs(group, seen, |verdict| {
                verdict.passed as f64 / verdict.total.max(1) as f64
            })?,
            RewardKind::BinaryCode {} => {
                self.run_programs(group, seen, |verdict| yes(verdict.verdict.is_correct()))?
            }
            RewardKind::Judge(_) | RewardKind::RewardModel(_) => none(group, NOT_ASKED),
        })
    }

    /// Runs the programs of a group, unless another reward has.
    fn run_programs(
        &self,
        group: &Group<'_>,
        seen: &mut [Seen<'_>],
        value: impl Fn(&CodeVerdict) -> f64,
    ) -> Result<Vec<std::result::Result<f64, String>>> {
        let Some(row) = group.row.filter(|row| code::Tests::are_in(row)) else {
            return Ok(none(group, "the row has no tests"));
        };
        let Some(sandbox) = &self.sandbox else {
            return Ok(none(group, "there is no sandbox"));
        };
        if seen.iter().any(|seen| seen.program.is_none()) {
            let case = CodeCase::of_tests(row)?;
            seen.par_iter_mut().try_for_each(|seen| {
                seen.program = Some(code::grade_text(&case, &seen.text, sandbox)?);
                Ok::<(), Error>(())
            })?;
        }
        let verdicts = seen.iter().map(|seen| seen.program.as_ref());
        Ok(verdicts
            .map(|verdict| match verdict {
                Some(verdict) if verdict.not_gradable => Err(verdict.verdict.reason.clone()),
                Some(verdict) => Ok(value(verdict)),
                None => Err("the program was not run".into()),
            })
            .collect())
    }

    /// The judge's word on every sample of every group, all asked together; empty without a judge.
    fn judge_groups(&self, groups: &[Group<'_>]) -> Result<Vec<std::result::Result<f64, String>>> {
        let is_judge = |r: &&RewardSettings| matches!(r.kind, RewardKind::Judge(_));
        let reward = self.settings.iter().find(is_judge);
        let (Some(judge), Some(reward)) = (&self.judge, reward) else {
            return Ok(Vec::new());
        };
        let why_not = |group: &Group<'_>| match reward.is_for(group.domain) {
            false => Some(OTHER_DOMAIN),
            true => group.golds.is_empty().then_some(NO_GOLD),
        };
        let references: Vec<String> = groups
            .iter()
            .map(|group| group.golds.join("\nor: "))
            .collect();
        let texts: Vec<(usize, Cow<'_, str>)> = groups
            .iter()
            .enumerate()
            .filter(|(_, group)| why_not(group).is_none())
            .flat_map(|(at, group)| {
                group
                    .samples
                    .iter()
                    .map(move |s| (at, with_opening(s, group)))
            })
            .collect();
        let cases: Vec<JudgeCase<'_>> = texts
            .iter()
            .map(|(at, text)| JudgeCase {
                question: groups[*at].prompt,
                reference: &references[*at],
                prediction: text,
            })
            .collect();
        let mut verdicts = judge.verdicts(&cases)?.into_iter();
        Ok(groups
            .iter()
            .flat_map(|group| group.samples.iter().map(move |_| group))
            .map(|group| match why_not(group) {
                Some(why) => Err(why.to_string()),
                None => Ok(yes(verdicts.next().flatten().is_some_and(|v| v.correct))),
            })
            .collect())
    }
}

/// Stands where a later pass puts what it finds.
const NOT_ASKED: &str = "it was not asked";
const NO_GOLD: &str = "there is no gold answer";
const OTHER_DOMAIN: &str = "the reward is for prompts of another domain";

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn none(group: &Group<'_>, why: &str) -> Vec<std::result::Result<f64, String>> {
    vec![Err(why.to_string()); group.samples.len()]
}

/// The text of a sample behind the `<think>` that its prompt has opened.
fn with_opening<'a>(sample: &Sample<'a>, group: &Group<'_>) -> Cow<'a, str> {
    let opened = [group.opening, group.prompt.unwrap_or_default()]
        .into_iter()
        .find_map(format::opened_thinking)
        .filter(|_| !sample.text.contains("<think>"));
    match opened {
        Some(tail) => Cow::Owned(format!("{tail}{}", sample.text)),
        None => Cow::Borrowed(sample.text),
    }
}

/// A sample with what is known of it.
struct Seen<'a> {
    sample: &'a Sample<'a>,
    /// Its text, with the tag that the prompt has opened.
    text: Cow<'a, str>,
    verdicts: Vec<(Kind, Verdict)>,
    program: Option<CodeVerdict>,
}

impl<'a> Seen<'a> {
    fn new(sample: &'a Sample<'a>, group: &Group<'_>) -> Self {
        Self {
            sample,
            text: with_opening(sample, group),
            verdicts: Vec::new(),
            program: None,
        }
    }

    fn verdict(self) -> Option<Verdict> {
        let program = self.program.map(|program| program.verdict);
        self.verdicts
            .into_iter()
            .next()
            .map(|(_, verdict)| verdict)
            .or(program)
    }
}

/// The verdict on each sample by `kind`; each is found once.
fn verdicts(kind: Kind, group: &Group<'_>, seen: &mut [Seen<'_>]) -> Vec<Verdict> {
    seen.par_iter_mut()
        .map(|seen| {
            if let Some((_, verdict)) = seen.verdicts.iter().find(|(other, _)| *other == kind) {
                return verdict.clone();
            }
            let verdict = Verdict::among(group.golds.iter().map(|gold| match kind {
                Kind::Choice => choice::check_among(&seen.text, gold, group.options),
                kind => kind.check(&seen.text, gold),
            }));
            seen.verdicts.push((kind, verdict.clone()));
            verdict
        })
        .collect()
}

/// A reward that is a function of the verdict and of the number of the sample; none where the gold answer is at fault.
fn of_verdicts(
    kind: Kind,
    group: &Group<'_>,
    seen: &mut [Seen<'_>],
    value: impl Fn(&Verdict, usize) -> f64,
) -> Vec<std::result::Result<f64, String>> {
    verdicts(kind, group, seen)
        .iter()
        .enumerate()
        .map(|(at, verdict)| match verdict.gold_unreadable {
            true => Err(verdict.reason.clone()),
            false => Ok(value(verdict, at)),
        })
        .collect()
}

/// The lengths of a group's samples.
fn lengths(group: &Group<'_>, unit: LengthUnit, name: &str) -> Result<Vec<usize>> {
    let tokens: Option<Vec<usize>> = group
        .samples
        .iter()
        .map(|sample| sample.num_tokens)
        .collect();
    match (unit, tokens) {
        (LengthUnit::Auto | LengthUnit::Tokens, Some(tokens)) => Ok(tokens),
        (LengthUnit::Tokens, None) => Err(Error::input(format!(
            "reward `{name}` counts tokens, and a sample has no `tokens`"
        ))
        .with_hint("give them, or set `unit = \"characters\"`")),
        (LengthUnit::Auto | LengthUnit::Characters, _) => Ok(group
            .samples
            .iter()
            .map(|sample| sample.text.chars().count())
            .collect()),
    }
}

/// What `lengths` counts for this group: `"tokens"` or `"characters"`.
pub fn length_unit(group: &Group<'_>, unit: LengthUnit) -> &'static str {
    let has_tokens = group
        .samples
        .iter()
        .all(|sample| sample.num_tokens.is_some());
    match unit {
        LengthUnit::Characters => "characters",
        LengthUnit::Auto if !has_tokens => "characters",
        _ => "tokens",
    }
}
