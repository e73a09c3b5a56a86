//! Tests of a code row in the shapes that data sets have them, read into one form. Nothing is run or compared here.
//!
//! | shape | from |
//! |---|---|
//! | `[{input, output}]` | standard input and output: Codeforces, this program's own rows |
//! | `[{input, output, testtype: "functional"}]` with `fn_name` | LiveCodeBench: one JSON value a line for each argument |
//! | `[{args, expected}]` with `fn_name` | calls: this program's own rows |
//! | `{inputs: [..], outputs: [..], fn_name?}` | APPS, TACO, CodeContests, LiveCodeBench |
//! | `["assert f(1) == 2", ..]`, `{assertions}`, `{functional}` | MBPP, HumanEval, LeetCode sets: Python that asserts |
//!
//! Each may also be a string that holds the JSON.

use serde_json::{Map, Value};

use crate::{Error, Result};

const MAX_INPUT_BYTES: usize = 64 << 20;
/// Where tests are.
const KEYS: [&str; 2] = ["tests", "input_output"];

/// The tests of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Tests {
    Stdio(Vec<StdioTest>),
    Call {
        fn_name: String,
        tests: Vec<CallTest>,
    },
    /// Python sources that assert things about the program's functions, each one test.
    Assertions(Vec<String>),
}

/// What goes in, and what must come out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StdioTest {
    pub input: String,
    pub output: String,
}

/// What a function gets, and what it must return.
#[derive(Debug, Clone, PartialEq)]
pub struct CallTest {
    /// JSON: a list of the arguments, or an object with their names.
    pub arguments: String,
    pub expected: Value,
    /// APPS wraps what is returned in a list of one: that one is right as well.
    pub expected_inside: bool,
}

impl Tests {
    pub fn len(&self) -> usize {
        match self {
            Self::Stdio(tests) => tests.len(),
            Self::Call { tests, .. } => tests.len(),
            Self::Assertions(tests) => tests.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a row has tests.
    pub fn are_in(row: &Map<String, Value>) -> bool {
        KEYS.iter().any(|key| given(row, key).is_some())
    }

    /// From the row's `tests` and `fn_name`.
    pub fn from_row(row: &Map<String, Value>) -> Result<Self> {
        let (key, value) = KEYS
            .iter()
            .find_map(|key| Some((*key, given(row, key)?)))
            .ok_or_else(|| missing("tests"))?;
        let fn_name = text(row, "fn_name")?;
        let tests = Self::from_value(key, value, fn_name)?;
        if tests.is_empty() {
            return Err(Error::input(format!("`{key}` holds no test")));
        }
        if let Self::Stdio(all) = &tests
            && row.get("checker").is_none_or(Value::is_null)
            && all.iter().all(|test| test.output.trim().is_empty())
        {
            let message = format!("every expected output in `{key}` is empty");
            return Err(Error::input(message)
                .with_hint("a program that does nothing would pass; give outputs or a `checker`"));
        }
        Ok(tests)
    }

    fn from_value(key: &str, value: &Value, fn_name: Option<&str>) -> Result<Self> {
        match value {
            Value::String(json) => match serde_json::from_str::<Value>(json) {
                Ok(value @ (Value::Array(_) | Value::Object(_))) => {
                    Self::from_value(key, &value, fn_name)
                }
                Ok(_) => Err(ill_typed(key, "a list or an object in JSON")),
                Err(error) => Err(Error::input(format!("`{key}` is no JSON: {error}"))),
            },
            Value::Array(items) if items.iter().all(Value::is_string) => {
                let all = items.iter().filter_map(Value::as_str).map(String::from);
                Ok(Self::Assertions(all.collect()))
            }
            Value::Array(items) => Self::from_items(key, items, fn_name),
            Value::Object(object) => Self::from_object(key, object, fn_name),
            _ => Err(ill_typed(key, "a list or an object")),
        }
    }

    fn from_items(key: &str, items: &[Value], fn_name: Option<&str>) -> Result<Self> {
        let mut stdio = Vec::new();
        let mut calls = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let place = format!("`{key}[{index}]`");
            let Value::Object(item) = item else {
                return Err(Error::input(format!("{place} is no object")));
            };
            let call = item.contains_key("args") || item.contains_key("expected");
            let functional = ["testtype", "type"]
                .iter()
                .any(|key| item.get(*key).and_then(Value::as_str) == Some("functional"));
            if call {
                let need = |key: &str| {
                    item.get(key)
                        .ok_or_else(|| Error::input(format!("{place} lacks `{key}`")))
                };
                let arguments = need("args")?;
                if !arguments.is_array() && !arguments.is_object() {
                    return Err(Error::input(format!(
                        "{place}: `args` is no list and no object"
                    )));
                }
                calls.push(CallTest {
                    arguments: arguments.to_string(),
                    expected: need("expected")?.clone(),
                    expected_inside: false,
                });
            } else if functional || fn_name.is_some() {
                let input = string(item, "input", &place)?;
                let output = string(item, "output", &place)?;
                calls.push(CallTest {
                    arguments: lines_to_list(&input, &place)?,
                    expected: json(&output, &place)?,
                    expected_inside: false,
                });
            } else {
                stdio.push(StdioTest {
                    input: bounded(string(item, "input", &place)?, &place)?,
                    output: string(item, "output", &place)?,
                });
            }
        }
        match (calls.is_empty(), stdio.is_empty()) {
            (true, _) => Ok(Self::Stdio(stdio)),
            (false, true) => Self::calls(fn_name, calls),
            (false, false) => Err(Error::input(format!(
                "`{key}` mixes calls with standard input"
            ))),
        }
    }

    fn from_object(key: &str, object: &Map<String, Value>, fn_name: Option<&str>) -> Result<Self> {
        for name in ["assertions", "functional", "test_list"] {
            match object.get(name) {
                Some(Value::String(code)) => return Ok(Self::Assertions(vec![code.clone()])),
                Some(list @ Value::Array(items)) if items.iter().all(Value::is_string) => {
                    return Self::from_value(key, list, fn_name);
                }
                Some(_) => return Err(ill_typed(&format!("{key}.{name}"), "a string")),
                None => {}
            }
        }
        let list = |name: &str| -> Result<&Vec<Value>> {
            let value = object.get(name);
            let value = value.ok_or_else(|| missing(&format!("{key}.{name}")))?;
            value
                .as_array()
                .ok_or_else(|| ill_typed(&format!("{key}.{name}"), "a list"))
        };
        let (inputs, outputs) = (list("inputs")?, list("outputs")?);
        if inputs.len() != outputs.len() {
            return Err(Error::input(format!(
                "`{key}` has {} inputs and {} outputs",
                inputs.len(),
                outputs.len()
            )));
        }
        let pairs = inputs.iter().zip(outputs).enumerate();
        let fn_name = text(object, "fn_name")?.or(fn_name);
        if fn_name.is_none() {
            let tests = pairs.map(|(index, (input, output))| {
                let place = format!("`{key}`, test {index}");
                Ok(StdioTest {
                    input: bounded(joined(input, &place)?, &place)?,
                    output: joined(output, &place)?,
                })
            });
            return Ok(Self::Stdio(tests.collect::<Result<_>>()?));
        }
        let tests = pairs.map(|(index, (input, output))| {
            let place = format!("`{key}`, test {index}");
            Ok(match (input, output) {
                (Value::String(lines), Value::String(output)) => CallTest {
                    arguments: lines_to_list(lines, &place)?,
                    expected: json(output, &place)?,
                    expected_inside: false,
                },
                (Value::Array(_) | Value::Object(_), _) => CallTest {
                    arguments: input.to_string(),
                    expected: output.clone(),
                    expected_inside: true,
                },
                _ => return Err(Error::input(format!("{place}: the input is no list"))),
            })
        });
        Self::calls(fn_name, tests.collect::<Result<_>>()?)
    }

    fn calls(fn_name: Option<&str>, tests: Vec<CallTest>) -> Result<Self> {
        let fn_name = fn_name.ok_or_else(|| missing("fn_name"))?;
        let head = fn_name.chars().next();
        let named = head.is_some_and(|c| c.is_alphabetic() || c == '_')
            && fn_name.chars().all(|c| c.is_alphanumeric() || c == '_');
        if !named {
            return Err(Error::input(format!("`fn_name` is no name: `{fn_name}`")));
        }
        Ok(Self::Call {
            fn_name: fn_name.to_string(),
            tests,
        })
    }
}

/// What stands under `key`; null is absent.
fn given<'a>(row: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    row.get(key).filter(|value| !value.is_null())
}

/// The string under `key`; null is absent.
pub(super) fn text<'a>(row: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ill_typed(key, "a string")),
    }
}

pub(super) fn missing(key: &str) -> Error {
    Error::input(format!("a code row needs `{key}`"))
}

pub(super) fn ill_typed(key: &str, wanted: &str) -> Error {
    Error::input(format!("`{key}` must be {wanted}"))
}

fn string(item: &Map<String, Value>, key: &str, place: &str) -> Result<String> {
    match item.get(key) {
        None => Err(Error::input(format!("{place} lacks `{key}`"))),
        Some(value) => joined(value, &format!("{place}: `{key}`")),
    }
}

/// A text, or TACO's list of lines.
fn joined(value: &Value, place: &str) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(lines) => {
            let lines: Option<Vec<&str>> = lines.iter().map(Value::as_str).collect();
            let lines = lines.ok_or_else(|| Error::input(format!("{place} is no text")))?;
            Ok(lines.join("\n"))
        }
        _ => Err(Error::input(format!("{place} is no text"))),
    }
}

fn bounded(input: String, place: &str) -> Result<String> {
    if input.len() > MAX_INPUT_BYTES {
        return Err(Error::input(format!("{place}: an input above 64 MiB")));
    }
    Ok(input)
}

/// LiveCodeBench's arguments, one JSON value a line, as one JSON list.
fn lines_to_list(lines: &str, place: &str) -> Result<String> {
    let lines: Vec<&str> = lines.lines().filter(|l| !l.trim().is_empty()).collect();
    for line in &lines {
        serde_json::from_str::<serde::de::IgnoredAny>(line)
            .map_err(|error| Error::input(format!("{place}: an argument is no JSON: {error}")))?;
    }
    Ok(format!("[{}]", lines.join(",")))
}

fn json(text: &str, place: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| Error::input(format!("{place}: the output is no JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(row: Value) -> Result<Tests> {
        Tests::from_row(row.as_object().unwrap())
    }

    #[test]
    fn shapes_of_data_sets() {
        let stdio = Tests::Stdio(vec![StdioTest {
            input: "1\n2".into(),
            output: "3".into(),
        }]);
        let call = |expected_inside| Tests::Call {
            fn_name: "f".into(),
            tests: vec![CallTest {
                arguments: "[1,[2]]".into(),
                expected: json!(3),
                expected_inside,
            }],
        };
        for (row, tests) in [
            (json!({"tests": [{"input": "1\n2", "output": "3"}]}), &stdio),
            (
                json!({"tests": {"inputs": ["1\n2"], "outputs": ["3"]}}),
                &stdio,
            ),
            (
                json!({"tests": r#"{"inputs": ["1\n2"], "outputs": ["3"]}"#}),
                &stdio,
            ),
            (
                json!({"input_output": r#"{"inputs": [["1", "2"]], "outputs": [["3"]]}"#}),
                &stdio,
            ),
            (
                json!({"tests": [{"input": "1\n2", "output": "3", "testtype": "stdin"}]}),
                &stdio,
            ),
            (
                json!({"fn_name": "f", "tests": [{"args": [1, [2]], "expected": 3}]}),
                &call(false),
            ),
            (
                json!({"fn_name": "f", "tests": [{"input": "1\n[2]", "output": "3", "testtype": "functional"}]}),
                &call(false),
            ),
            (
                json!({"tests": {"fn_name": "f", "inputs": ["1\n[2]"], "outputs": ["3"]}}),
                &call(false),
            ),
            (
                json!({"tests": {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [3]}}),
                &call(true),
            ),
            (
                json!({"tests": ["assert f(1)"]}),
                &Tests::Assertions(vec!["assert f(1)".into()]),
            ),
            (
                json!({"tests": {"functional": "check(f)"}}),
                &Tests::Assertions(vec!["check(f)".into()]),
            ),
        ] {
            assert_eq!(&read(row.clone()).unwrap(), tests, "{row}");
        }
    }

    #[test]
    fn bad_data_is_named() {
        for (row, part) in [
            (json!({}), "`tests`"),
            (json!({"tests": []}), "no test"),
            (json!({"tests": 5}), "`tests` must be"),
            (json!({"tests": "{"}), "no JSON"),
            (json!({"tests": [5]}), "`tests[0]`"),
            (json!({"tests": [{"input": "1"}]}), "lacks `output`"),
            (
                json!({"tests": [{"input": 1, "output": "1"}]}),
                "is no text",
            ),
            (json!({"tests": [{"input": "1", "output": " "}]}), "empty"),
            (
                json!({"tests": [{"args": [1], "expected": 1}]}),
                "`fn_name`",
            ),
            (
                json!({"fn_name": "f", "tests": [{"args": 1, "expected": 1}]}),
                "`args`",
            ),
            (
                json!({"fn_name": "f", "tests": [{"args": [1]}]}),
                "lacks `expected`",
            ),
            (
                json!({"fn_name": "f.g", "tests": [{"args": [1], "expected": 1}]}),
                "no name",
            ),
            (
                json!({"fn_name": 5, "tests": [{"args": [1], "expected": 1}]}),
                "`fn_name` must be",
            ),
            (
                json!({"fn_name": "f", "tests": [{"input": "x", "output": "1"}]}),
                "no JSON",
            ),
            (
                json!({"tests": {"inputs": ["1"], "outputs": []}}),
                "1 inputs and 0 outputs",
            ),
            (json!({"tests": {"inputs": ["1"]}}), "`tests.outputs`"),
            (json!({"tests": {"assertions": 5}}), "`tests.assertions`"),
        ] {
            let message = read(row.clone()).unwrap_err().to_string();
            assert!(message.contains(part), "{row}: {message}");
        }
    }
}
