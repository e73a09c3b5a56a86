//! One source of a recipe to traces: its files one after the other, each row read by its schema or the recipe's mapping,
//! verdicts joined, and rows that cannot be used named with the reason. How many of them are used is decided in
//! [`super::build`].

use super::columns::Values;
use super::labels::Labels;
use super::mapping::Mapping;
use super::rows::{self, BadRow, Row, Rows};
use super::schema;
use super::trace::Trace;
use super::{builtin, columns, thinking};
use crate::recipe::{Keep, OnBad, Traces};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::PathBuf;

/// Rows of a file that are looked at before the first one is read: whether its texts close a `<think>` they do not open.
const NUM_PEEKED: usize = 64;

/// What became of a trace.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Trace(Box<Trace>),
    Dropped {
        /// Where it stands.
        name: String,
        /// In words that are the same for all rows dropped for it.
        reason: String,
        /// Its verdict, for the count.
        correct: Option<bool>,
    },
}

/// The traces of a source in the order of its files, which are read as they come. `seed` is for built-in sources.
///
/// # Errors
/// The first file or the label file cannot be opened; the mapping makes no sense. The iterator ends with the first error.
pub fn open(
    spec: &Traces,
    files: &[PathBuf],
    seed: u64,
) -> Result<Box<dyn Iterator<Item = Result<Item>> + Send>> {
    if let Some(family) = spec.source.strip_prefix("builtin:") {
        let num = spec.num_problems.unwrap_or(builtin::DEFAULT_NUM_PROBLEMS);
        let traces = builtin::traces(family, seed, num)?;
        return Ok(Box::new(
            traces.map(|trace| Ok(Item::Trace(Box::new(trace)))),
        ));
    }
    if files.is_empty() {
        return Err(
            Error::input(format!("`{}` has no files of rows", spec.source)).with_hint(
                "a folder of traces holds files that end in .parquet, .jsonl or .json, also with .gz or .zst",
            ),
        );
    }
    let mapping = match spec.columns.is_empty() {
        true => None,
        false => Some(Mapping::new(&spec.columns)?),
    };
    Ok(Box::new(Source {
        mapping,
        labels: spec.labels.as_ref().map(Labels::load).transpose()?,
        keep: spec.keep,
        on_bad_row: spec.on_bad_row,
        files: files.iter().cloned().zip(rows::names(files)).collect(),
        rows: None,
        opened: false,
        ready: VecDeque::new(),
        failed: false,
    }))
}

struct Source {
    mapping: Option<Mapping>,
    labels: Option<Labels>,
    keep: Keep,
    on_bad_row: OnBad,
    /// With the names that begin the places of their rows.
    files: VecDeque<(PathBuf, String)>,
    /// Rows of the file being read.
    rows: Option<Rows>,
    /// Whether the prompts of this file's teacher ended with `<think>`.
    opened: bool,
    ready: VecDeque<Item>,
    failed: bool,
}

impl Source {
    /// The next file; its first rows are looked at and put back.
    fn next_file(&mut self) -> Result<bool> {
        let Some((path, name)) = self.files.pop_front() else {
            return Ok(false);
        };
        let mut rows = rows::open_as(&path, name)?;
        let mut first = Vec::with_capacity(NUM_PEEKED);
        while first.len() < NUM_PEEKED
            && let Some(row) = rows.next()
        {
            let fatal = matches!(&row, Err(bad) if bad.fatal);
            first.push(row);
            if fatal {
                break;
            }
        }
        if first.is_empty() {
            return Err(Error::input(format!("`{}` has no rows", path.display())));
        }
        let good = || first.iter().flatten();
        self.opened = good().any(|row| self.closes_unopened(row));
        if let (Some(mapping), Some(row)) = (&self.mapping, good().next()) {
            mapping
                .check(&row.values)
                .map_err(|e| e.at(format!("`{}`", path.display())))?;
        }
        self.rows = Some(Box::new(first.into_iter().chain(rows)));
        Ok(true)
    }

    fn closes_unopened(&self, row: &Row) -> bool {
        let column = match &self.mapping {
            Some(mapping) => mapping.marked(),
            None => schema::detect(&row.values).and_then(|s| schema::marked(s, &row.values)),
        };
        column.is_some_and(|column| any_closes_unopened(&row.values, column))
    }

    /// The traces of a row.
    fn traces(&self, row: &Row) -> Result<Vec<Trace>> {
        match &self.mapping {
            Some(mapping) => mapping.traces(&row.values, &row.place, self.opened),
            None => match schema::detect(&row.values) {
                Some(schema) => schema::traces(schema, &row.values, &row.place, self.opened),
                None => Err(schema::unknown(&row.values)),
            },
        }
        .map_err(|e| e.at(format!("`{}`", row.place)))
    }

    /// Joins the verdicts of the label file.
    fn label(&self, row: &Row, traces: &mut [Trace]) -> Result<()> {
        let Some(labels) = self.labels.as_ref().filter(|_| !traces.is_empty()) else {
            return Ok(());
        };
        let verdicts = labels
            .verdicts(&row.values, traces.len())
            .map_err(|e| e.at(format!("`{}`", row.place)))?;
        for (trace, verdict) in traces.iter_mut().zip(verdicts) {
            // who joins a label file means it to overrule what the rows say
            if verdict.correct.is_some() {
                trace.verdicts.clear();
            }
            trace.verdicts.push(verdict);
        }
        Ok(())
    }

    fn read(&mut self, row: std::result::Result<Row, BadRow>) -> Result<()> {
        let (place, error, reason) = match row {
            Err(bad) if bad.fatal => return Err(*bad.error),
            Err(bad) => (bad.place, *bad.error, "the row cannot be read"),
            Ok(row) => match self.traces(&row) {
                Ok(traces) if traces.is_empty() => {
                    self.ready.push_back(Item::Dropped {
                        name: row.place,
                        reason: "no generations".into(),
                        correct: None,
                    });
                    return Ok(());
                }
                Ok(mut traces) => match self.label(&row, &mut traces) {
                    Ok(()) => {
                        self.ready
                            .extend(traces.into_iter().map(|trace| sift(trace, self.keep)));
                        return Ok(());
                    }
                    Err(error) => (row.place, error, "its label cannot be joined"),
                },
                Err(error) => (
                    row.place,
                    error,
                    "the row does not hold what its schema says",
                ),
            },
        };
        if self.on_bad_row == OnBad::Error {
            return Err(match error.hint() {
                Some(_) => error,
                None => {
                    error.with_hint("`on_bad_row = \"drop\"` in `[[traces]]` leaves such rows out")
                }
            });
        }
        self.ready.push_back(Item::Dropped {
            name: place,
            reason: reason.into(),
            correct: None,
        });
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Item>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            match self.rows.as_mut().and_then(Iterator::next) {
                Some(row) => self.read(row)?,
                None if self.next_file()? => {}
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for Source {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

/// Whether a text, one of a list of texts, or the last answer of a conversation closes a `<think>` that it does not open.
fn any_closes_unopened(row: &Values, column: &str) -> bool {
    match columns::get(row, column) {
        Some(Value::String(text)) => thinking::closes_unopened(text),
        Some(Value::Array(list)) if list.iter().any(Value::is_string) => list
            .iter()
            .filter_map(Value::as_str)
            .any(thinking::closes_unopened),
        Some(Value::Array(_)) => columns::messages(row, column).is_ok_and(|turns| {
            let last = turns.iter().rfind(|m| m.role == "assistant");
            last.is_some_and(|m| thinking::closes_unopened(&m.content))
        }),
        _ => false,
    }
}

/// Whether a part of what is trained still holds a mark that the trained form does not have there.
fn holds_marks(trace: &Trace) -> bool {
    match &trace.messages {
        Some(turns) => turns
            .iter()
            .any(|m| m.role == "assistant" && thinking::has_stray_mark(&m.content)),
        None => [&trace.reasoning, &trace.answer]
            .into_iter()
            .flatten()
            .any(|text| thinking::has_mark(text)),
    }
}

/// Whether a trace can be used as it stands.
fn sift(trace: Trace, keep: Keep) -> Item {
    let correct = trace.correct();
    let reason = if trace.finish_reason.as_deref() == Some("length") {
        "incomplete: cut off at the teacher's length limit"
    } else if trace.complete == Some(false) {
        "incomplete: the reasoning does not end"
    } else if trace.answer.is_none() {
        "no answer"
    } else if trace.problem.trim().is_empty() {
        "no problem"
    } else if holds_marks(&trace) {
        "marks such as `<think>` within the reasoning or the answer"
    } else {
        match (keep, correct) {
            (Keep::Correct, Some(false)) => "wrong by its verdict",
            (Keep::Correct, None) => "no verdict",
            _ => return Item::Trace(Box::new(trace)),
        }
    };
    Item::Dropped {
        name: trace.name,
        reason: reason.into(),
        correct,
    }
}
