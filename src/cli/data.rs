//! `distill data ...`: what trace files hold.

use super::options::show_count;
use super::{Session, stdout};
use crate::data::{Item, Trace, rows, schema};
use crate::progress::Reporter;
use crate::recipe::{Traces, load};
use crate::{Result, data};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Look at trace files
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill data stats traces.jsonl.zst more.parquet")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Stats(Stats),
}

/// Count what is in trace files: schema, rows, traces, verdicts, lengths
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill data stats traces.jsonl.zst more.parquet

Reads parquet, JSON and JSON lines, also with .gz or .zst. Lengths are characters of reasoning and answer together.")]
struct Stats {
    /// Files of traces
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let Command::Stats(args) = &args.command;
    let mut all = Vec::new();
    for file in &args.files {
        all.push(FileStats::read(file, session)?);
    }
    if args.json {
        return stdout::json(&all);
    }
    let text: Vec<String> = all.iter().map(FileStats::show).collect();
    stdout::text(&text.join("\n"))
}

/// What is in one file.
#[derive(Debug, Default, PartialEq, Serialize)]
struct FileStats {
    file: String,
    schema: String,
    columns: Vec<String>,
    num_rows: u64,
    num_traces: u64,
    num_with_reasoning: u64,
    num_correct: u64,
    num_wrong: u64,
    num_unjudged: u64,
    dropped: Vec<Reason>,
    /// Characters of reasoning and answer: shortest, median, 90th percentile, longest.
    num_chars: Option<[u64; 4]>,
}

/// Rows or traces that cannot be used.
#[derive(Debug, PartialEq, Serialize)]
struct Reason {
    reason: String,
    count: u64,
    first: String,
}

impl FileStats {
    fn read(path: &Path, session: &Session) -> Result<Self> {
        let mut stats = Self {
            file: path.display().to_string(),
            ..Self::default()
        };
        let task = session.terminal.task(&stats.file, None, "traces");
        // the first good row tells the schema
        for row in rows::open(path)? {
            let values = match row {
                Ok(row) => row.values,
                Err(bad) if bad.fatal => return Err(*bad.error),
                Err(_) => continue,
            };
            stats.columns = values.keys().cloned().collect();
            let schema = schema::detect(&values).ok_or_else(|| schema::unknown(&values));
            stats.schema = format!(
                "{:?}",
                schema.map_err(|e| e.at(format!("`{}`", path.display())))?
            );
            break;
        }
        let source = toml::Value::String(stats.file.clone());
        let spec: Traces = load::parse(
            &format!("source = {source}\non_bad_row = \"drop\""),
            &stats.file,
            &[],
        )?;
        let mut lengths = Vec::new();
        let mut last_row = String::new();
        for item in data::open(&spec, &[path.to_path_buf()], 0)? {
            let item = item?;
            let name = match &item {
                Item::Trace(trace) => &trace.name,
                Item::Dropped { name, .. } => name,
            };
            // several traces of a row follow each other: `file.parquet row 17 trace 2`
            let row = name.split(" trace ").next().unwrap_or_default();
            if row != last_row {
                stats.num_rows += 1;
                last_row = row.to_string();
            }
            stats.count(&item, &mut lengths);
            task.advance(1);
        }
        lengths.sort_unstable();
        if let Some(last) = lengths.len().checked_sub(1) {
            let at = |share: f64| lengths[(share * last as f64).round() as usize];
            stats.num_chars = Some([at(0.0), at(0.5), at(0.9), at(1.0)]);
        }
        stats.dropped.sort_by_key(|d| std::cmp::Reverse(d.count));
        Ok(stats)
    }

    fn count(&mut self, item: &Item, lengths: &mut Vec<u64>) {
        match item {
            Item::Trace(trace) => {
                self.num_traces += 1;
                self.num_with_reasoning += u64::from(trace.reasoning.is_some());
                *match trace.correct() {
                    Some(true) => &mut self.num_correct,
                    Some(false) => &mut self.num_wrong,
                    None => &mut self.num_unjudged,
                } += 1;
                lengths.push(num_chars(trace));
            }
            Item::Dropped { name, reason, .. } => {
                match self.dropped.iter_mut().find(|d| d.reason == *reason) {
                    Some(known) => known.count += 1,
                    None => self.dropped.push(Reason {
                        reason: reason.clone(),
                        count: 1,
                        first: name.clone(),
                    }),
                }
            }
        }
    }

    /// The file as people read it.
    fn show(&self) -> String {
        let mut text = format!("{}\n", self.file);
        let mut line = |label: &str, value: String| {
            // a String never refuses
            let _ = writeln!(text, "  {label:<11}{value}");
        };
        line(
            "schema",
            format!("{} ({})", self.schema, self.columns.join(", ")),
        );
        line("rows", show_count(self.num_rows));
        line(
            "traces",
            format!(
                "{}, {} with reasoning",
                show_count(self.num_traces),
                show_count(self.num_with_reasoning)
            ),
        );
        line(
            "verdicts",
            format!(
                "{} correct, {} wrong, {} without",
                show_count(self.num_correct),
                show_count(self.num_wrong),
                show_count(self.num_unjudged)
            ),
        );
        if let Some([least, median, p90, most]) = self.num_chars.map(|all| all.map(show_count)) {
            line(
                "characters",
                format!("{least} to {most}, median {median}, 90% below {p90}"),
            );
        }
        for d in &self.dropped {
            line(
                "unusable",
                format!(
                    "{} x {} (first: `{}`)",
                    show_count(d.count),
                    d.reason,
                    d.first
                ),
            );
        }
        text
    }
}

fn num_chars(trace: &Trace) -> u64 {
    match &trace.messages {
        Some(messages) => messages
            .iter()
            .filter(|m| m.role == "assistant")
            .map(|m| m.content.chars().count() as u64)
            .sum(),
        None => [&trace.reasoning, &trace.answer]
            .into_iter()
            .flatten()
            .map(|text| text.chars().count() as u64)
            .sum(),
    }
}
