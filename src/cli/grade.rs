//! `distill grade`: a verdict for every row of a file.

use super::cases::{at_row, golds, options, prompt, whole_prediction};
use super::rows::Row;
use super::stream::{self, Added, json_text};
use super::{Session, stdout};
use crate::progress::{Reporter, Stop};
use crate::recipe::reward::JudgeSettings;
use crate::reward::{Judge, JudgeCase};
use crate::verify::code::{self, CodeCase, TestOutcome};
use crate::verify::format::Format;
use crate::verify::language::{self, Language};
use crate::verify::readability::{Readability, ReadabilityLimits, readability};
use crate::verify::sandbox::Sandbox;
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
  distill grade --kind judge --judge-url http://localhost:8000/v1 --judge-model qwen3-32b \\
    --input cases.jsonl --output verdicts.jsonl

Input rows are {\"gold\", \"prediction\", \"kind\"?, \"opening\"?}; opening is what the prompt wrote of the answer already,
such as \"<think>\\n\", as `distill generate` adds it; gold is a text, a number or a list of accepted ones. Output rows are the
input rows with \"verdict\" (\"correct\", \"wrong\" or \"unparsable\"), \"correct\", \"extracted\" and \"reason\", in the same order.
Kinds:
  math         mathematical equality of the final answer
  choice       the letter of a multiple choice question; \"options\" may hold their texts
  exact        the same text
  number       the same number, exactly
  boxed        the same content of the last \\boxed{}
  format       <think>...</think><answer>...</answer>; gold may name a format; adds \"score\"
  language     the reasoning is in the language of gold (\"en\"), or of \"prompt\"; adds \"score\", the share of words
  readability  no flag is raised; adds \"readability\"; needs no gold
  code         programs against \"tests\", in a sandbox: [{\"input\", \"output\"}], or with \"fn_name\" [{\"args\", \"expected\"}];
               or [\"assert f(1) == 2\"]; the row may give \"language\", \"timeout_s\", \"memory_mb\", \"entry_point\"
               and \"checker\", a Python program that gets the paths of input, expected and actual output and
               says ok; adds \"passed\", \"total\" and \"outcomes\"
  judge        a model's verdict against gold; answers that it gave before cost nothing")]
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
    /// Seconds of processor time for each test of rows of kind `code` that do not say it
    #[arg(long, value_name = "SECONDS", value_parser = timeout)]
    timeout_s: Option<f64>,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Rows that are graded at the same time [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// The model that judges.
#[derive(clap::Args)]
#[command(next_help_heading = "Judge")]
struct JudgeArgs {
    /// OpenAI-compatible endpoint, up to and with `/v1`
    #[arg(long, value_name = "URL")]
    judge_url: Option<String>,
    /// Name of the model there
    #[arg(long, value_name = "MODEL")]
    judge_model: Option<String>,
    /// Environment variable that holds the key
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    judge_key_variable: String,
    /// Folder of the answers that were given already
    #[arg(long, value_name = "DIR", default_value = "runs/judge-cache")]
    judge_cache: String,
    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    judge_concurrency: u32,
    /// Stop after so many requests
    #[arg(long, value_name = "N")]
    judge_max_requests: Option<u64>,
    /// Stop after so many tokens
    #[arg(long, value_name = "N")]
    judge_max_tokens: Option<u64>,
    /// Attempts after the first one
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(..=100))]
    judge_retries: u32,
    /// Seconds that one request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = timeout)]
    judge_timeout_s: f64,
}

impl JudgeArgs {
    fn open(&self, stop: Stop) -> Result<Judge> {
        let (Some(url), Some(model)) = (&self.judge_url, &self.judge_model) else {
            return Err(Error::input("rows of kind `judge` need a judge")
                .with_hint("give `--judge-url` and `--judge-model`"));
        };
        let settings = JudgeSettings {
            key_variable: self.judge_key_variable.clone(),
            concurrency: self.judge_concurrency as usize,
            timeout_s: self.judge_timeout_s,
            max_retries: self.judge_retries as usize,
            max_requests: self.judge_max_requests,
            max_total_tokens: self.judge_max_tokens,
            cache: self.judge_cache.clone(),
            ..JudgeSettings::new(url, model)
        };
        Judge::open(&settings, stop)
    }
}

fn timeout(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 600.0 => Ok(seconds),
        _ => Err("a number of seconds in (0, 600]".into()),
    }
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    stream::check_standard_output(&args.output, args.json)?;
    let mut grader = Grader {
        args,
        kind: RowKind::parse(&args.kind)?,
        format: Format::parse(&args.format)?,
        stop: session.stop.clone(),
        sandbox: None,
        judge: None,
    };
    // what is missing is said before anything is done
    grader.open_for(grader.kind)?;
    session.stop_on_signals()?;
    let mut summary = Summary::default();
    stream::in_pool(args.threads, || {
        stream::map_rows(
            &args.input,
            &args.output,
            "grade",
            session,
            |rows, place| {
                let graded = grader.grade_all(rows, place)?;
                for graded in &graded {
                    summary.add(&graded.verdict);
                }
                graded.iter().map(Graded::fields).collect()
            },
        )
    })?;
    if let Some(judge) = &grader.judge {
        let usage = judge.usage();
        session.terminal.note(&format!(
            "the judge was asked {} times, {} tokens",
            usage.num_requests, usage.num_tokens
        ));
    }
    if args.json {
        return stdout::json(&summary.finished());
    }
    session.terminal.note(&summary.finished().line());
    Ok(())
}

/// What the flags say about rows that do not say it themselves.
struct Grader<'a> {
    args: &'a Args,
    kind: RowKind,
    format: Format,
    stop: Stop,
    /// Opened with the first row that needs it, as is the judge.
    sandbox: Option<Sandbox>,
    judge: Option<Judge>,
}

/// How a row is graded.
#[derive(Clone, Copy, PartialEq)]
enum RowKind {
    Text(Kind),
    Readability,
    Code,
    Judge,
}

impl RowKind {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "readability" => return Ok(Self::Readability),
            "code" => return Ok(Self::Code),
            "judge" => return Ok(Self::Judge),
            _ => {}
        }
        Kind::parse(name).map(Self::Text).map_err(|_| {
            let names: Vec<_> = Kind::NAMES.iter().map(|(name, _)| *name).collect();
            Error::input(format!("unknown kind `{name}`")).with_hint(format!(
                "the kinds are {}, readability, code, judge",
                names.join(", ")
            ))
        })
    }
}

/// The verdict on a row, and what else its kind measures.
struct Graded {
    verdict: Verdict,
    score: Option<f64>,
    readability: Option<Readability>,
    tests: Option<Tests>,
}

/// How the tests of a program ended.
struct Tests {
    passed: usize,
    total: usize,
    outcomes: Vec<TestOutcome>,
}

impl From<Verdict> for Graded {
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict,
            score: None,
            readability: None,
            tests: None,
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
        if let Some(tests) = &self.tests {
            added.push(("passed", tests.passed.to_string()));
            added.push(("total", tests.total.to_string()));
            added.push(("outcomes", json_text(&tests.outcomes)?));
        }
        Ok(added)
    }
}

impl Grader<'_> {
    /// Opens what rows of `kind` need, once.
    fn open_for(&mut self, kind: RowKind) -> Result<()> {
        match kind {
            RowKind::Code if self.sandbox.is_none() => self.sandbox = Some(Sandbox::open()?),
            RowKind::Judge if self.judge.is_none() => {
                self.judge = Some(self.args.judge.open(self.stop.clone())?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The verdicts on a chunk of rows, in order; the judge is asked about all of its rows together.
    fn grade_all(&mut self, rows: &[Row], place: &Path) -> Result<Vec<Graded>> {
        let kinds = rows
            .iter()
            .map(|row| match row.get::<String>("kind", place)? {
                Some(name) => RowKind::parse(&name).map_err(|e| at_row(e, row, place)),
                None => Ok(self.kind),
            })
            .collect::<Result<Vec<_>>>()?;
        for kind in &kinds {
            self.open_for(*kind)?;
        }
        let graded: Vec<Result<Option<Graded>>> = rows
            .par_iter()
            .zip(&kinds)
            .map(|(row, kind)| match kind {
                RowKind::Judge => Ok(None),
                kind => self.grade(row, *kind, place).map(Some),
            })
            .collect();
        // the first bad row is told before the judge is paid
        let graded = graded.into_iter().collect::<Result<Vec<_>>>()?;
        let asked = rows
            .iter()
            .zip(&kinds)
            .filter(|(_, kind)| **kind == RowKind::Judge);
        let mut judged = self
            .ask_judge(asked.map(|(row, _)| row), place)?
            .into_iter();
        let missing = || Error::input("a row was not graded");
        graded
            .into_iter()
            .map(|graded| graded.or_else(|| judged.next()).ok_or_else(missing))
            .collect()
    }

    fn ask_judge<'r>(
        &self,
        rows: impl Iterator<Item = &'r Row>,
        place: &Path,
    ) -> Result<Vec<Graded>> {
        let Some(judge) = &self.judge else {
            return Ok(Vec::new());
        };
        let mut texts = Vec::new();
        for row in rows {
            texts.push((
                prompt(row, place)?,
                golds(row, place)?.join("\nor: "),
                whole_prediction(row, place)?,
            ));
        }
        let cases: Vec<JudgeCase<'_>> = texts
            .iter()
            .map(|(question, reference, prediction)| JudgeCase {
                question: question.as_deref(),
                reference,
                prediction,
            })
            .collect();
        let verdicts = judge.verdicts(&cases)?;
        Ok(verdicts
            .into_iter()
            .map(|verdict| {
                let (outcome, reason) = match verdict {
                    None => (Outcome::Unparsable, "the thinking never ends".into()),
                    Some(verdict) if verdict.correct => (Outcome::Correct, verdict.analysis),
                    Some(verdict) => (Outcome::Wrong, verdict.analysis),
                };
                plain(outcome, reason).into()
            })
            .collect())
    }

    fn run_program(&self, row: &Row, place: &Path) -> Result<Graded> {
        let Some(sandbox) = &self.sandbox else {
            return Err(Error::input("there is no sandbox"));
        };
        let prediction = whole_prediction(row, place)?;
        let graded = CodeCase::of_tests(&row.fields).and_then(|mut case| {
            case.timeout_s = case.timeout_s.or(self.args.timeout_s);
            code::grade_text(&case, &prediction, sandbox)
        });
        let graded = graded.map_err(|e| at_row(e, row, place))?;
        Ok(Graded {
            tests: Some(Tests {
                passed: graded.passed,
                total: graded.total,
                outcomes: graded.outcomes,
            }),
            ..graded.verdict.into()
        })
    }

    /// The verdict on a row of a kind that needs no judge.
    fn grade(&self, row: &Row, kind: RowKind, place: &Path) -> Result<Graded> {
        if kind == RowKind::Code {
            return self.run_program(row, place);
        }
        let prediction = whole_prediction(row, place)?;
        match kind {
            // handled elsewhere: one runs programs, the other asks about many rows at once
            RowKind::Code | RowKind::Judge => {
                Err(row.error(place, "this kind is graded elsewhere"))
            }
            RowKind::Readability => Ok(by_readability(&prediction)),
            RowKind::Text(Kind::Format) => {
                let format = match row.has("gold") {
                    false => self.format,
                    true => {
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
                Ok(Verdict::among(
                    golds
                        .iter()
                        .map(|gold| choice::check_among(&prediction, gold, &options)),
                )
                .into())
            }
            RowKind::Text(kind) => {
                let golds = golds(row, place)?;
                Ok(Verdict::among(golds.iter().map(|gold| kind.check(&prediction, gold))).into())
            }
        }
    }
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
    if row.has("gold") {
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
        readability: Some(measures),
        ..plain(outcome, reason).into()
    }
}

/// A verdict about no answer in particular.
fn plain(outcome: Outcome, reason: String) -> Verdict {
    Verdict {
        outcome,
        extracted: None,
        reason,
        gold_unreadable: false,
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
