//! Verdicts that stand in a file of their own, joined to the rows by a key (`[traces.labels]`).

use super::columns::{self, Judged, Values, get, missing};
use super::rows;
use super::trace::Verdict;
use crate::recipe;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

/// Verdicts by key.
#[derive(Debug)]
pub struct Labels {
    by: String,
    key: String,
    verdicts: HashMap<String, Judged>,
}

impl Labels {
    /// Reads the file; one verdict a key, or a list of them.
    ///
    /// # Errors
    /// A row that cannot be read or lacks a column, a key with two different verdicts.
    pub fn load(spec: &recipe::Labels) -> Result<Self> {
        let path = Path::new(&spec.file);
        let mut verdicts = HashMap::new();
        for row in rows::open(path)? {
            let row = row.map_err(|bad| *bad.error)?;
            let place = |e: Error| e.at(format!("`{}`", row.place));
            let key = key(&row.values, &spec.key).map_err(place)?;
            if !columns::has(&row.values, &spec.column) {
                return Err(place(missing(&row.values, &spec.column)));
            }
            let verdict = get(&row.values, &spec.column).map_or(Judged::One(None), Judged::of);
            match verdicts.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(verdict);
                }
                Entry::Occupied(entry) if *entry.get() != verdict => {
                    return Err(place(Error::input(format!(
                        "`{}` stands here a second time, with another verdict",
                        entry.key()
                    ))));
                }
                Entry::Occupied(_) => {}
            }
        }
        Ok(Self {
            by: rows::short_name(path),
            key: spec.key.clone(),
            verdicts,
        })
    }

    /// What the file says about each of a row's traces; a row that it does not name is unknown.
    ///
    /// # Errors
    /// The row has no key, or the file does not have one verdict a trace.
    pub fn verdicts(&self, row: &Values, num_traces: usize) -> Result<Vec<Verdict>> {
        let key = key(row, &self.key)?;
        let verdicts = match self.verdicts.get(&key) {
            Some(judged) => judged.each(num_traces, &format!("the label of `{key}`"))?,
            None => vec![None; num_traces],
        };
        let by = |correct| Verdict {
            by: self.by.clone(),
            correct,
        };
        Ok(verdicts.into_iter().map(by).collect())
    }
}

fn key(row: &Values, column: &str) -> Result<String> {
    match get(row, column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => Err(columns::wrong_type(column, other, "text or a number")),
        None => Err(missing(row, column)),
    }
}
