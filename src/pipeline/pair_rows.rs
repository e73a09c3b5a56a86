//! What `reward-model` and `preference` stages learn from: pairs of files and earlier stages, or pairs made of samples.
//!
//! | file | holds |
//! |---|---|
//! | `pairs.jsonl` | the pairs that were made of samples; other stages may learn from them too |
//! | `pairs.json` | what became of the prompts, by reason |
//! | `rows.json` | what became of the rows, by reason |

use super::folder::{read_json, write_atomic, write_json};
use super::graph::{Opening, StageContext};
use super::run::interrupted;
use super::sample_rows::{SampleRow, judge, read_rows};
use super::stage_generate::{BUILTIN, GENERATIONS, open_rewards};
use super::student::Student;
use crate::data::{self, JudgedOptions, JudgedRow, builtin, hash_file};
use crate::recipe::graph::{PairSources, StagePlan};
use crate::recipe::pairs::{PairRule, PairRules};
use crate::recipe::reward::RewardTable;
use crate::recipe::select::Select;
use crate::reward::Judge;
use crate::reward::pairs::{PairReport, build};
use crate::train::judged_loop::split;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What a stage that makes pairs leaves.
pub const PAIRS: &str = "pairs.jsonl";
const REPORT: &str = "pairs.json";
const ROWS: &str = "rows.json";
/// Rows of samples that are judged together.
const CHUNK: usize = 256;

/// What the pairs depend on.
pub fn inputs(
    opening: &Opening,
    stage: &StagePlan,
    student: &Student,
    sources: &PairSources,
    rules: &PairRules,
) -> Result<Value> {
    let of = |source: &String| -> Result<Value> {
        match opening.key_of(source)? {
            Some(key) => Ok(json!({ "key": key })),
            None if source.starts_with(BUILTIN) => {
                Ok(json!({ "builtin": [source, builtin::VERSION] }))
            }
            None => {
                let paths = opening.files(stage, source, None, "train", None)?;
                let hashes = paths.iter().map(|path| hash_file(path, opening.stop));
                Ok(json!({ "files": hashes.collect::<Result<Vec<_>>>()? }))
            }
        }
    };
    let pairs = sources.pairs.iter().map(of).collect::<Result<Vec<_>>>()?;
    let samples: Vec<Value> = sources
        .samples
        .iter()
        .map(|source| match opening.key_of(source)? {
            Some(key) => Ok(json!({ "key": key })),
            None => Ok(json!({ "file": hash_file(Path::new(source), opening.stop)? })),
        })
        .collect::<Result<_>>()?;
    let mut rules = rules.clone();
    rules.judge = rules.judge.map(|judge| judge.learned());
    Ok(json!({
        "pairs": pairs,
        "samples": samples,
        "build": (!samples.is_empty()).then_some(rules),
        "rewards": sources.rewards.as_ref().map(RewardTable::learned),
        "template": student.chat().template()?.source(),
        "tokenizer": student.tokenizer_hash(),
    }))
}

/// The rows to train on, and those that are only measured.
///
/// # Errors
/// A source that cannot be read, a row that the recipe refuses, no row left.
pub fn read(
    context: &StageContext,
    sources: &PairSources,
    rules: &PairRules,
    options: &JudgedOptions,
    held_out: f64,
) -> Result<(Vec<JudgedRow>, Vec<JudgedRow>)> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for source in &sources.pairs {
        match (context.left(source, PAIRS), source.strip_prefix(BUILTIN)) {
            (Some(path), _) => paths.push(path),
            (None, Some(family)) => {
                let path = context.dir.join(format!("{family}.jsonl"));
                write_rows(&path, &builtin::pairs(family, context.stage.seed)?)?;
                paths.push(path);
            }
            (None, None) => paths.extend(context.files(source, None, "train", None)?),
        }
    }
    if !sources.samples.is_empty() {
        make(context, sources, rules)?;
        paths.push(context.dir.join(PAIRS));
    }
    let chat = context.student()?.chat();
    let (rows, report) = data::judged_rows(&paths, chat, options, context.stop)?;
    write_json(&context.dir.join(ROWS), &report)?;
    let dropped = match report.dropped.is_empty() {
        true => String::new(),
        false => format!("; dropped: {}", report.reasons()),
    };
    context.reporter.note(&format!(
        "{} rows, {} tokens{dropped}",
        report.kept, report.tokens
    ));
    Ok(split(rows, held_out, context.stage.seed))
}

/// Pairs of samples, unless they were made already.
fn make(context: &StageContext, sources: &PairSources, rules: &PairRules) -> Result<()> {
    let (path, counts) = (context.dir.join(PAIRS), context.dir.join(REPORT));
    if path.exists() && counts.exists() {
        read_json::<PairReport>(&counts)?;
        return Ok(());
    }
    let rewards = match &sources.rewards {
        Some(table) => Some(open_rewards(table, context.root, None, context.stop)?),
        None => None,
    };
    // only verdicts and rewards are asked for; what is fit is the rules' matter
    let select = Select {
        verifier: rules.verifier,
        ..Select::default()
    };
    let mut prompts = Vec::new();
    for source in &sources.samples {
        let samples = context
            .left(source, GENERATIONS)
            .unwrap_or_else(|| PathBuf::from(source));
        let mut rows = read_rows(&samples)?;
        loop {
            if context.stop.requested() {
                return Err(interrupted(context.root));
            }
            let chunk: Vec<SampleRow> = rows.by_ref().take(CHUNK).collect::<Result<_>>()?;
            if chunk.is_empty() {
                break;
            }
            let judged = judge(&chunk, &select, rewards.as_ref())?;
            let chunk = chunk.iter().zip(&judged);
            prompts.extend(chunk.map(|(row, candidates)| row.for_pairs(candidates)));
        }
    }
    let judge = match (&rules.judge, rules.by) {
        (Some(settings), PairRule::Judge) => Some(Judge::open(settings, context.stop.clone())?),
        _ => None,
    };
    let (pairs, report) = build(&prompts, rules, judge.as_ref(), context.stage.seed)?;
    context.reporter.note(&line(&report));
    if pairs.is_empty() {
        return Err(
            Error::input(format!("the samples make no pair: {}", report.reasons()))
                .with_hint("sample more, or loosen the rules in `build`"),
        );
    }
    write_rows(&path, &pairs)?;
    write_json(&counts, &report)
}

fn write_rows(path: &Path, rows: &[Value]) -> Result<()> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    write_atomic(path, lines.as_bytes())
}

fn line(report: &PairReport) -> String {
    let mut line = format!(
        "{} pairs of {} samples of {} prompts",
        report.num_pairs, report.num_samples, report.num_prompts
    );
    if let (Some(c), Some(r)) = (report.chosen_length_mean, report.rejected_length_mean) {
        line += &format!(
            ", mean length {c:.0} chosen and {r:.0} rejected {}",
            report.length_unit
        );
    }
    if !report.dropped.is_empty() {
        line += &format!("; left out: {}", report.reasons());
    }
    line
}
