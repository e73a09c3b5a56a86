//! Tests that are Python source with assertions, as MBPP, HumanEval and LeetCode sets have them. The assertions run in one
//! box, the program's functions in another, so that the program cannot touch the comparison (`driver.py` says how the two
//! meet). Functions are called in a fresh process each: what they keep from call to call is lost, as is a change to their
//! arguments.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::sandbox::Session;
use super::sandbox_program::{Code, Finished, Limits, Mode};
use crate::Result;

/// Calls of one test; each is a run of both boxes.
const MAX_CALLS: usize = 1000;
/// Of all returned values of one test together.
const MAX_RESULT_BYTES: usize = 32 << 20;

/// The program that runs assertions.
pub fn code() -> Code {
    Code::Python(concat!(include_str!("values.py"), include_str!("driver.py")).into())
}

/// How a test came out.
#[derive(Debug)]
pub enum Ending {
    Passed,
    Failed(String),
    /// The graded program did not come to its end in one of the calls, or before.
    Stopped(Finished),
    /// The test itself cannot be run.
    Broken(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Call(String),
    Passed(bool),
    Failed(String),
    Broken(String),
}

/// Runs the assertions in `source` in the box `driver`, on the program loaded in `program`. `defined` keeps the names that
/// the program defines from one test to the next; where the row names an `entry`, no other function is taken from it.
pub fn check(
    source: &str,
    entry: Option<&str>,
    program: &mut Session,
    driver: &mut Session,
    limits: Limits,
    defined: &mut Option<Value>,
) -> Result<Ending> {
    if !["assert", "raise", "exit"]
        .iter()
        .any(|word| source.contains(word))
    {
        return Ok(Ending::Broken("the test asserts nothing".into()));
    }
    let defined = match defined {
        Some(defined) => defined,
        None => {
            let names = program.run(&Mode::Names, limits)?;
            match serde_json::from_slice::<Value>(&names.output) {
                Ok(Value::Object(mut names_of)) if names.code == 0 => {
                    // the value says whether it is a class
                    names_of.retain(|name, is_class| {
                        entry.is_none_or(|entry| name == entry) || *is_class == true
                    });
                    defined.insert(Value::Object(names_of))
                }
                _ => return Ok(Ending::Stopped(names)),
            }
        }
    };
    let (mut results, mut num_bytes) = (Map::new(), 0);
    for _ in 0..MAX_CALLS {
        let input = json!({"source": source, "defined": defined, "results": results}).to_string();
        let finished = driver.run(&Mode::Stdio { input: &input }, limits)?;
        let call = match serde_json::from_slice(&finished.output) {
            Ok(Said::Call(call)) => call,
            // as HumanEval's column `test` without its call: every program would pass
            Ok(Said::Passed(true)) if results.is_empty() => {
                return Ok(Ending::Broken("the test never calls the program".into()));
            }
            Ok(Said::Passed(true)) => return Ok(Ending::Passed),
            Ok(Said::Failed(reason)) => return Ok(Ending::Failed(reason)),
            Ok(Said::Broken(reason)) => return Ok(Ending::Broken(reason)),
            Ok(Said::Passed(false)) | Err(_) => {
                let reason = format!("the test does not end: {}", finished.last_line());
                return Ok(Ending::Broken(reason));
            }
        };
        let made = program.run(&Mode::Invoke { call: &call }, limits)?;
        if made.code != 0 || made.late || made.box_died {
            return Ok(Ending::Stopped(made));
        }
        num_bytes += made.output.len();
        if num_bytes > MAX_RESULT_BYTES {
            return Ok(Ending::Failed("the functions return too much".into()));
        }
        match serde_json::from_slice::<Value>(&made.output) {
            Ok(value) => results.insert(call, value),
            Err(_) => return Ok(Ending::Failed("a function ended without returning".into())),
        };
    }
    Ok(Ending::Broken(format!(
        "the test makes more than {MAX_CALLS} calls"
    )))
}
