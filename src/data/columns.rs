//! Getting values out of a row: paths with dots, and errors that name the column, what it holds and what was expected.

use super::thinking;
use crate::recipe::load::closest;
use crate::tokenize::Message;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// What stands for bytes that are no text: an object with this one key and their number. An error only where a column of
/// such bytes is used.
pub const NO_TEXT: &str = "bytes that are no UTF-8 text";

/// A row as the file has it.
pub type Values = Map<String, Value>;

/// The value at `path`: a column of that very name, else the way through objects and lists (`info.think_content`,
/// `messages.1.content`). None where it is absent or null.
pub fn get<'a>(row: &'a Values, path: &str) -> Option<&'a Value> {
    let found = match row.get(path) {
        Some(value) => Some(value),
        None => {
            let (first, rest) = path.split_once('.')?;
            let mut value = row.get(first)?;
            for step in rest.split('.') {
                value = match value {
                    Value::Object(map) => map.get(step)?,
                    Value::Array(list) => list.get(step.parse::<usize>().ok()?)?,
                    _ => return None,
                };
            }
            Some(value)
        }
    };
    found.filter(|value| !value.is_null())
}

/// Whether the row has the first step of the path at all, null or not.
pub fn has(row: &Values, path: &str) -> bool {
    row.contains_key(path)
        || path
            .split_once('.')
            .is_some_and(|(first, _)| row.contains_key(first))
}

/// That the row has no such column: which it has, and the nearest one.
pub fn missing(row: &Values, path: &str) -> Error {
    let names: Vec<&str> = row.keys().map(String::as_str).collect();
    let error = Error::input(format!(
        "no column `{path}`; the columns are {}",
        names.join(", ")
    ));
    let first = path.split('.').next().unwrap_or(path);
    match closest(first, names.iter().copied()) {
        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
        None => error,
    }
}

/// The text of a column; a number is written out. None where it is absent or null.
pub fn text(row: &Values, path: &str) -> Result<Option<String>> {
    match get(row, path) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(wrong_type(path, other, "text")),
    }
}

/// The text of a column that must be there.
pub fn required(row: &Values, path: &str) -> Result<String> {
    match text(row, path)? {
        Some(text) => Ok(text),
        None if has(row, path) => Err(Error::input(format!("column `{path}` is empty (null)"))),
        None => Err(missing(row, path)),
    }
}

/// A list, or None where the column is absent or null.
pub fn list<'a>(row: &'a Values, path: &str) -> Result<Option<&'a [Value]>> {
    match get(row, path) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(wrong_type(path, other, "a list")),
    }
}

/// What a value says about an answer: a bool, 0 or 1, or a word. None where it says nothing.
pub fn verdict(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(correct) => Some(*correct),
        Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
        Value::String(word) => match word.trim().to_ascii_lowercase().as_str() {
            "correct" | "right" | "true" | "yes" | "1" => Some(true),
            "wrong" | "incorrect" | "false" | "no" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// What a value says about the answers of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    One(Option<bool>),
    /// A list: one a trace.
    Each(Vec<Option<bool>>),
}

impl Judged {
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Array(list) => Self::Each(list.iter().map(verdict).collect()),
            value => Self::One(verdict(value)),
        }
    }

    /// A verdict for each of `num_traces`, as `by` gives them.
    ///
    /// # Errors
    /// One verdict for several traces, of which it does not say which one it means; a list of another length.
    pub fn each(&self, num_traces: usize, by: &str) -> Result<Vec<Option<bool>>> {
        match self {
            Self::One(Some(_)) if num_traces > 1 => Err(Error::input(format!(
                "{by} has one verdict for {num_traces} traces"
            ))
            .with_hint(
                "a row of several traces takes a list of verdicts, one a trace in their order",
            )),
            Self::One(verdict) => Ok(vec![*verdict; num_traces]),
            Self::Each(list) if list.len() != num_traces => Err(Error::input(format!(
                "{by} has {} verdicts for {num_traces} traces",
                list.len()
            ))
            .with_hint("a list of verdicts has one a trace, in their order")),
            Self::Each(list) => Ok(list.clone()),
        }
    }
}

/// A conversation: a list of `{role, content}` or `{from, value}`, with the roles of ShareGPT translated.
pub fn messages(row: &Values, path: &str) -> Result<Vec<Message>> {
    let Some(list) = list(row, path)? else {
        return Err(match has(row, path) {
            true => Error::input(format!("column `{path}` is empty (null)")),
            false => missing(row, path),
        });
    };
    list.iter()
        .enumerate()
        .map(|(index, value)| message(value, &format!("{path}.{index}")))
        .collect()
}

fn message(value: &Value, path: &str) -> Result<Message> {
    let Value::Object(map) = value else {
        return Err(wrong_type(
            path,
            value,
            "an object with `role` and `content`",
        ));
    };
    let (role_key, content_key) = match map.contains_key("from") && !map.contains_key("role") {
        true => ("from", "value"),
        false => ("role", "content"),
    };
    let part = |key: &str| match map.get(key) {
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(Value::Null) | None => Ok(None),
        Some(other) => Err(wrong_type(&format!("{path}.{key}"), other, "text")),
    };
    let role = match part(role_key)? {
        Some("human") => "user",
        Some("gpt" | "model" | "bot") => "assistant",
        Some(role) => role,
        None => return Err(Error::input(format!("`{path}` has no `{role_key}`"))),
    };
    let mut message = Message::new(role, part(content_key)?.unwrap_or_default());
    for (key, value) in map {
        if key != role_key && key != content_key && !value.is_null() {
            message.extra.insert(key.clone(), value.clone());
        }
    }
    Ok(message)
}

/// A prompt that is a text or a conversation: system prompt and last user turn where it is no more than that, else also
/// the whole conversation.
#[derive(Clone)]
pub struct Prompt {
    pub system: Option<String>,
    pub problem: String,
    pub turns: Option<Vec<Message>>,
}

/// Reads a column that holds a prompt.
pub fn prompt(row: &Values, path: &str) -> Result<Prompt> {
    if let Some(Value::Array(_)) = get(row, path) {
        return Ok(prompt_of(messages(row, path)?));
    }
    Ok(Prompt {
        system: None,
        problem: required(row, path)?,
        turns: None,
    })
}

/// The same of a conversation that ends before the assistant's turn. System prompts that ask for other marks go.
pub fn prompt_of(mut turns: Vec<Message>) -> Prompt {
    turns.retain(|m| m.role != "system" || !thinking::asks_for_other_marks(&m.content));
    let of = |role: &str| turns.iter().rfind(|m| m.role == role);
    let system = of("system")
        .map(|m| m.content.clone())
        .filter(|s| !s.trim().is_empty());
    let problem = of("user").map(|m| m.content.clone()).unwrap_or_default();
    let mut roles = turns
        .iter()
        .filter(|m| m.role != "system" || !m.content.trim().is_empty())
        .map(|m| m.role.as_str())
        .peekable();
    roles.next_if_eq(&"system");
    roles.next_if_eq(&"user");
    let simple = roles.next().is_none();
    Prompt {
        system,
        problem,
        turns: (!simple).then_some(turns),
    }
}

/// That a column holds something else than was expected.
pub fn wrong_type(path: &str, value: &Value, expected: &str) -> Error {
    Error::input(format!(
        "column `{path}` holds {}, expected {expected}",
        kind(value)
    ))
}

/// What a value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(map) if map.contains_key(NO_TEXT) => NO_TEXT,
        Value::Object(_) => "an object",
    }
}
