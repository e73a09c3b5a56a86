//! The fields that graded rows have in common: the accepted answers, the options of a question, the prompt.

use super::rows::Row;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Integers from here on are not exact as JSON numbers.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The field `gold`: a string, a number, a truth value or a list of such, any of which is accepted.
///
/// # Errors
/// There is none, or it is something else.
pub fn golds(row: &Row, place: &Path) -> Result<Vec<String>> {
    match row.fields.get("gold") {
        None => Err(row
            .no_field_of("`gold`", place)
            .with_hint("rows are {\"gold\": \"...\", \"prediction\": \"...\"}")),
        Some(Value::Array(accepted)) if !accepted.is_empty() => accepted
            .iter()
            .map(|gold| gold_text(gold, row, place))
            .collect(),
        Some(gold) => Ok(vec![gold_text(gold, row, place)?]),
    }
}

fn gold_text(gold: &Value, row: &Row, place: &Path) -> Result<String> {
    match gold {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Number(number) => {
            let rounded = number.is_f64() && number.as_f64().is_none_or(|n| n.abs() >= MAX_EXACT);
            if rounded {
                let what = format!("`gold`: {number} is too large to be read exactly");
                return Err(row.error(place, &what).with_hint("write it as a string"));
            }
            Ok(number.to_string())
        }
        other => {
            let what = format!(
                "`gold`: {}, expected a string, a number or a list of accepted ones",
                kind_of(other)
            );
            Err(row.error(place, &what))
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Array(list) if list.is_empty() => "an empty list",
        Value::Array(_) => "a list in a list",
        Value::Object(_) => "an object",
        _ => "another value",
    }
}

/// The field `prediction`.
///
/// # Errors
/// There is none, or it is no text.
pub fn prediction(row: &Row, place: &Path) -> Result<String> {
    row.get("prediction", place)?
        .ok_or_else(|| row.no_field_of("`prediction`", place))
}

/// The texts of the options of a multiple choice question, from `options` or `choices`; none where there are none.
///
/// # Errors
/// They are no list of texts.
pub fn options(row: &Row, place: &Path) -> Result<Vec<String>> {
    let options = match row.get::<Vec<String>>("options", place)? {
        Some(options) => Some(options),
        None => row.get("choices", place)?,
    };
    Ok(options.unwrap_or_default())
}

/// The question: `prompt`, `problem` or `question`, or the last user turn of `messages`.
///
/// # Errors
/// One of them is no text.
pub fn prompt(row: &Row, place: &Path) -> Result<Option<String>> {
    for name in ["prompt", "problem", "question"] {
        match row.fields.get(name) {
            None | Some(Value::Null) => {}
            Some(_) => return row.get(name, place),
        }
    }
    let messages = row.messages(place)?.unwrap_or_default();
    let user = messages.into_iter().rev().find(|m| m.role == "user");
    Ok(user.map(|message| message.content))
}

/// Puts file and line in front of what is wrong with a row.
pub fn at_row(error: Error, row: &Row, place: &Path) -> Error {
    error.at(format!("`{}` line {}", place.display(), row.line))
}
