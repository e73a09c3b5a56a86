//! The fields that graded rows have in common: the accepted answers, the options of a question, the prompt.

use super::rows::Row;
use crate::verify::format::opened_thinking;
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
        None | Some(Value::Null) => Err(row
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

/// What the prompt's template wrote of the answer already: the field `opening`, as `distill generate` adds it.
///
/// # Errors
/// It is no text.
pub fn opening(row: &Row, place: &Path) -> Result<String> {
    Ok(row.get("opening", place)?.unwrap_or_default())
}

/// The field `prediction` behind the `<think>` that its prompt ends with, where it does.
///
/// # Errors
/// As [`prediction`] and [`opening`].
pub fn whole_prediction(row: &Row, place: &Path) -> Result<String> {
    let text = prediction(row, place)?;
    let opening = opening(row, place)?;
    let prompt = row.fields.get("prompt").and_then(Value::as_str);
    let opened = [Some(opening.as_str()), prompt]
        .into_iter()
        .flatten()
        .find_map(opened_thinking);
    Ok(match opened {
        Some(tail) if !text.contains("<think>") => format!("{tail}{text}"),
        _ => text,
    })
}

/// The texts of the options of a multiple choice question, from `options` or `choices`: a list, or an object from A on;
/// none where there are none.
///
/// # Errors
/// They are no texts, or letters are left out.
pub fn options(row: &Row, place: &Path) -> Result<Vec<String>> {
    let name = match row.has("options") {
        true => "options",
        false => "choices",
    };
    let Some(Value::Object(by_letter)) = row.fields.get(name) else {
        return Ok(row.get(name, place)?.unwrap_or_default());
    };
    ('A'..='Z')
        .take(by_letter.len())
        .map(|letter| match by_letter.get(&letter.to_string()) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(row.error(place, &format!("`{name}` has no text for {letter}"))),
        })
        .collect()
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
    error.at(place_of(row, place))
}

/// File and line of a row.
pub fn place_of(row: &Row, place: &Path) -> String {
    format!("`{}` line {}", place.display(), row.line)
}
