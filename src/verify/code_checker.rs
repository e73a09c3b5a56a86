//! Checker programs: where a problem has many right outputs, a Python program of the row decides in place of the
//! comparison. It runs in a box of its own, which the graded program never enters.
//!
//! It is started as Codeforces' checkers are, with the paths of three files as arguments: the input, the expected output
//! and the program's output. It accepts by ending without an error, and rejects by an exit status other than 0; where it
//! prints something, that counts: a number of at least 1 and nothing else, or words of which the first is `ok`, `accepted`
//! or the like, accept; anything else rejects. A number among words says nothing: the program may have had it printed. A source that prints nothing and ends of itself without having looked
//! at its arguments has not checked anything. One that prints nothing, and defines `check(input, expected, actual)`, is asked through that function.

use serde_json::json;

use super::sandbox::Session;
use super::sandbox_program::{Code, Limits, Mode};
use crate::Result;

const LIMITS: Limits = Limits {
    timeout_s: 10.0,
    memory_bytes: 1 << 30,
};

/// The program that runs a checker.
pub fn code() -> Code {
    Code::Python(include_str!("checker.py").into())
}

/// Why there is no verdict.
#[derive(Debug)]
pub enum Failure {
    /// The checker does not get through this output.
    Program(String),
    /// It would get through none.
    Checker(String),
}

/// What a checker says: whether it accepts.
pub fn decide(
    checker: &str,
    [input, expected, actual]: [&str; 3],
    session: &mut Session,
) -> Result<std::result::Result<bool, Failure>> {
    let input = json!({
        "checker": checker,
        "input": input,
        "expected": expected,
        "actual": actual,
    })
    .to_string();
    let finished = session.run(&Mode::Stdio { input: &input }, LIMITS)?;
    if finished.late {
        return Ok(Err(Failure::Program("the checker takes too long".into())));
    }
    Ok(match (finished.code, finished.output.trim_ascii()) {
        (0, b"accepted") => Ok(true),
        (0, b"rejected") => Ok(false),
        (0, b"no program") => Err(Failure::Checker("the checker is no Python program".into())),
        (0, b"silent") => Err(Failure::Checker(
            "the checker neither says anything nor reads the output".into(),
        )),
        _ => Err(Failure::Program(format!(
            "the checker failed: {}",
            finished.last_line()
        ))),
    })
}
