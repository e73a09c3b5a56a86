//! Problems with a gold answer, for evaluations: from a built-in family, or from a file by the suite's fields.

use super::columns::{self, Values, missing};
use super::{builtin, rows};
use crate::recipe::suite::{Dataset, Fields};
use crate::{Error, Result};
use serde_json::Value;
use std::path::PathBuf;

/// One problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// By the suite's `id` column, else its number, from 1.
    pub id: String,
    pub problem: String,
    pub gold: String,
    /// The other columns.
    pub extra: Values,
}

/// The problems of a suite in the order of its files.
///
/// # Errors
/// A built-in family that does not exist, no files. The iterator's errors name the row; it ends with the first one.
pub fn problems(
    dataset: &Dataset,
    fields: &Fields,
    files: &[PathBuf],
) -> Result<Box<dyn Iterator<Item = Result<Problem>>>> {
    if let Some(family) = dataset.source.strip_prefix("builtin:") {
        let num = dataset
            .num_problems
            .unwrap_or(builtin::DEFAULT_NUM_HELD_OUT);
        return Ok(Box::new(builtin::problems(family, num)?.map(Ok)));
    }
    if files.is_empty() {
        return Err(Error::input(format!(
            "`{}` has no files of rows",
            dataset.source
        )));
    }
    let fields = fields.clone();
    let mut number = 0;
    let mut failed = false;
    let files = files.to_vec();
    let rows = files.into_iter().flat_map(|path| {
        let (rows, error) = match rows::open(&path) {
            Ok(rows) => (Some(rows.map(|row| row.map_err(|bad| *bad.error))), None),
            Err(error) => (None, Some(Err(error))),
        };
        rows.into_iter().flatten().chain(error)
    });
    let problems = rows.map(move |row| {
        number += 1;
        let row = row?;
        problem(row.values, &fields, number).map_err(|e| e.at(format!("`{}`", row.place)))
    });
    Ok(Box::new(problems.take_while(move |problem| {
        !std::mem::replace(&mut failed, problem.is_err())
    })))
}

fn problem(mut row: Values, fields: &Fields, number: usize) -> Result<Problem> {
    let id = match &fields.id {
        None => number.to_string(),
        Some(path) => columns::required(&row, path)?,
    };
    let problem = columns::required(&row, &fields.problem)?;
    let gold = gold(&row, &fields.answer)?;
    for path in [&fields.problem, &fields.answer] {
        row.remove(path.as_str());
    }
    Ok(Problem {
        id,
        problem,
        gold,
        extra: row,
    })
}

/// The answer: text, a number, or a list of one of them.
fn gold(row: &Values, path: &str) -> Result<String> {
    match columns::get(row, path) {
        Some(Value::Array(list)) if list.len() == 1 => columns::required(row, &format!("{path}.0")),
        Some(_) => columns::required(row, path),
        None if columns::has(row, path) => {
            Err(Error::input(format!("column `{path}` is empty (null)")))
        }
        None => Err(missing(row, path)),
    }
}
