//! `distill grade`: a verdict for every row of a file.

use super::cases::{at_row, golds, options, prediction, prompt};
use super::rows::Row;
use super::stream::{self, Added, json_text};
use super::{Session, stdout};
use crate::progress::Reporter;
use crate::verify::format::Format;
use crate::verify::language::{self, Language};
use crate::verify::readability::{Readability, ReadabilityLimits, readability};
use crate::verify::{Kind, Outcome, Verdict, choice};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Grade answers: a verdict for every row of a JSON lines file
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill grade --input cases.jsonl --output verdicts.jsonl
  distill grade --input - --output - --kind choice < cases.jsonl

Input rows are {\"gold\", \"prediction\", \"kind\"?}; gold is a text, a number or a list of accepted ones. Output rows are the
input rows with \"verdict\" (\"correct\", \"wrong\" or \"unparsable\"), \"correct\", \"extracted\" and \"reason\", in the same order.
Kinds:
  math         mathematical equality of the final answer
  choice       the letter of a multiple choice question; \"options\" may hold their texts
  exact        the same text
  number       the same number, exactly
  boxed        the same content of the last \\boxed{}
  format       <think>...</think><answer>...</answer>; gold may name a format; adds \"score\"
  language     the reasoning is in the language of gold (\"en\"), or of \"prompt\"; adds \"score\", the share of words
  readability  no flag is raised; adds \"readability\"; needs no gold")]
pub struct Args {
    /// What is graded, JSON lines; `-` is stdin
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the rows with their verdicts go; `-` is stdout
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Kind of rows that name none
    #[arg(long, default_value = "math")]
    kind: String,
    /// Format that rows of kind `format` are held to
    #[arg(long, default_value = "r1")]
    format: String,
    /// Rows that are graded at the same time [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    stream::check_standard_output(&args.output, args.json)?;
    let grader = Grader {
        kind: RowKind::parse(&args.kind)?,
        format: Format::parse(&args.format)?,
    };
    session.stop_on_signals()?;
    let mut summary = Summary::default();
    stream::in_pool(args.threads, || {
        stream::map_rows(
            &args.input,
            &args.output,
            "grade",
            session,
            |rows, place| {
                let graded: Vec<Result<Graded>> = rows
                    .par_iter()
                    .map(|row| grader.grade(row, place))
                    .collect();
                let mut added = Vec::with_capacity(rows.len());
                for graded in graded {
                    let graded = graded?;
                    summary.add(&graded.verdict);
                    added.push(graded.fields()?);
                }
                Ok(added)
            },
        )
    })?;
    if args.json {
        return stdout::json(&summary.finished());
    }
    session.terminal.note(&summary.finished().line());
    Ok(())
}

/// What the flags say about rows that do not say it themselves.
struct Grader {
    kind: RowKind,
    format: Format,
}

/// How a row is graded.
#[derive(Clone, Copy)]
enum RowKind {
    Text(Kind),
    Readability,
}

impl RowKind {
    fn parse(name: &str) -> Result<Self> {
        if name == "readability" {
            return Ok(Self::Readability);
        }
        Kind::parse(name).map(Self::Text).map_err(|_| {
            let names: Vec<_> = Kind::NAMES.iter().map(|(name, _)| *name).collect();
            Error::input(format!("unknown kind `{name}`"))
                .with_hint(format!("the kinds are {}, readability", names.join(", ")))
        })
    }
}

/// The verdict on a row, and what else its kind measures.
struct Graded {
    verdict: Verdict,
    score: Option<f64>,
    readability: Option<Readability>,
}

impl From<Verdict> for Graded {
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict,
            score: None,
            readability: None,
        }
    }
}

impl Graded {
    fn fields(&self) -> Result<Added> {
        let verdict = &self.verdict;
        let mut added = vec![
            ("verdict", json_text(&verdict.outcome)?),
            ("correct", verdict.is_correct().to_string()),
            ("extracted", json_text(&verdict.extracted)?),
            ("reason", json_text(&verdict.reason)?),
        ];
        if let Some(score) = self.score {
            added.push(("score", json_text(&score)?));
        }
        if let Some(measures) = &self.readability {
            added.push(("readability", json_text(measures)?));
        }
        Ok(added)
    }
}

impl Grader {
    fn grade(&self, row: &Row, place: &Path) -> Result<Graded> {
        let kind = match row.get::<String>("kind", place)? {
            Some(name) => RowKind::parse(&name).map_err(|e| at_row(e, row, place))?,
            None => self.kind,
        };
        let prediction = prediction(row, place)?;
        match kind {
            RowKind::Readability => Ok(by_readability(&prediction)),
            RowKind::Text(Kind::Format) => {
                let format = match row.fields.get("gold") {
                    None => self.format,
                    Some(_) => {
                        Format::parse(&one_gold(row, place)?).map_err(|e| at_row(e, row, place))?
                    }
                };
                let verdict = format.check(&prediction);
                let score = Some(f64::from(u8::from(verdict.is_correct())));
                Ok(Graded {
                    score,
                    ..verdict.into()
                })
            }
            RowKind::Text(Kind::Language) => {
                let (verdict, share) = language::check(&prediction, target(row, place)?);
                Ok(Graded {
                    score: Some(share),
                    ..verdict.into()
                })
            }
            RowKind::Text(Kind::Choice) => {
                let options = options(row, place)?;
                let golds = golds(row, place)?;
                Ok(best(
                    golds
                        .iter()
                        .map(|gold| choice::check_among(&prediction, gold, &options)),
                )
                .into())
            }
            RowKind::Text(kind) => {
                let golds = golds(row, place)?;
                Ok(best(golds.iter().map(|gold| kind.check(&prediction, gold))).into())
            }
        }
    }
}

/// The verdict where several answers are accepted: the first correct one, or else the first about a gold that can be read.
fn best(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let mut kept: Option<Verdict> = None;
    for verdict in verdicts {
        if verdict.is_correct() {
            return verdict;
        }
        if kept
            .as_ref()
            .is_none_or(|k| k.gold_unreadable && !verdict.gold_unreadable)
        {
            kept = Some(verdict);
        }
    }
    // there is at least one gold
    kept.unwrap_or_else(|| Kind::Exact.check("", ""))
}

fn one_gold(row: &Row, place: &Path) -> Result<String> {
    let mut golds = golds(row, place)?;
    if golds.len() > 1 {
        return Err(row.error(place, "`gold` must be one text for this kind"));
    }
    Ok(golds.swap_remove(0))
}

/// The language that a row asks for: that of `gold`, or that of its prompt.
fn target(row: &Row, place: &Path) -> Result<Language> {
    if row.fields.contains_key("gold") {
        return Language::parse(&one_gold(row, place)?).map_err(|e| at_row(e, row, place));
    }
    let Some(prompt) = prompt(row, place)? else {
        return Err(row
            .no_field_of("`gold` or `prompt`", place)
            .with_hint("for kind `language` gold is the language, such as \"en\""));
    };
    Language::of(&prompt).ok_or_else(|| {
        row.error(place, "the language of the prompt cannot be told")
            .with_hint("give it as `gold`, such as \"en\"")
    })
}

fn by_readability(prediction: &str) -> Graded {
    let measures = readability(prediction, &ReadabilityLimits::default());
    let (outcome, reason) = match measures.is_readable() {
        true => (Outcome::Correct, "nothing stands out".to_string()),
        false => {
            let names: Vec<_> = measures.flags.iter().map(|flag| flag.name()).collect();
            (Outcome::Wrong, names.join(", "))
        }
    };
    Graded {
        verdict: Verdict {
            outcome,
            extracted: None,
            reason,
            gold_unreadable: false,
        },
        score: None,
        readability: Some(measures),
    }
}

/// How many rows got which verdict.
#[derive(Default, Serialize)]
struct Summary {
    num_rows: usize,
    correct: usize,
    wrong: usize,
    unparsable: usize,
    /// Those of the unparsable ones where the gold answer is at fault.
    gold_unreadable: usize,
    /// Correct ones among all rows; null without rows.
    rate: Option<f64>,
}

impl Summary {
    fn add(&mut self, verdict: &Verdict) {
        self.num_rows += 1;
        match verdict.outcome {
            Outcome::Correct => self.correct += 1,
            Outcome::Wrong => self.wrong += 1,
            Outcome::Unparsable => self.unparsable += 1,
        }
        self.gold_unreadable += usize::from(verdict.gold_unreadable);
    }

    fn finished(&self) -> Self {
        let rate = (self.num_rows > 0).then(|| self.correct as f64 / self.num_rows as f64);
        Self { rate, ..*self }
    }

    fn line(&self) -> String {
        let rate = self
            .rate
            .map_or(String::new(), |rate| format!(" ({:.1}%)", 100.0 * rate));
        let gold = match self.gold_unreadable {
            0 => String::new(),
            n => format!(", {n} of them because the gold answer cannot be read"),
        };
        format!(
            "{} rows: {} correct{rate}, {} wrong, {} unparsable{gold}",
            self.num_rows, self.correct, self.wrong, self.unparsable
        )
    }
}
