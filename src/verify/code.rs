//! Verdicts on programs: the code of an answer is run against the tests of its row in the sandbox, and what it wrote or
//! returned is compared out here.
//!
//! The parts: `code_extract.rs` finds the program, [`super::code_cases`] reads the tests, [`super::sandbox`] runs,
//! `code_compare.rs` compares. An error here is the machine's failure; whatever a model wrote gets a verdict.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::code_assertions::{self, Ending};
pub use super::code_cases::{CallTest, StdioTest, Tests};
use super::code_cases::{ill_typed, missing, text};
use super::code_checker::{self, Failure};
use super::code_compare::{output_difference, value_difference};
use super::code_extract::{Found, Language, find};
pub use super::sandbox::Sandbox;
use super::sandbox::Session;
use super::sandbox_program::{Code, EXIT_MEMORY, EXIT_SYNTAX, Finished, Limits, Mode};
use super::{Outcome, Verdict};
use crate::{Error, Result};

/// LiveCodeBench's limit.
const DEFAULT_TIMEOUT_S: f64 = 6.0;
const MAX_TIMEOUT_S: f64 = 600.0;
const DEFAULT_MEMORY_MB: u64 = 1024;
const MAX_MEMORY_MB: u64 = 1 << 16;
/// After as many tests over the time limit the rest count as such without being run.
const MAX_TIMEOUTS: usize = 3;
/// Signals that no header of the crate names on every system.
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;
const SIGSYS: i32 = 31;

/// A program to be graded, and with what.
#[derive(Debug, Clone, PartialEq)]
pub struct CodeCase {
    /// The whole text a model wrote, thinking included.
    pub prediction: String,
    /// What the program must be written in; else what its fence says, else Python.
    pub language: Option<String>,
    /// Of processor time, for each test.
    pub timeout_s: Option<f64>,
    pub memory_mb: Option<u64>,
    pub tests: Tests,
    /// The function that assertions are about; else they may call whatever the program defines.
    pub entry: Option<String>,
    /// A Python program that decides in place of the comparison, see [`super::code_checker`].
    pub checker: Option<String>,
}

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestOutcome {
    Pass,
    /// Another output than expected.
    Fail,
    Timeout,
    Memory,
    /// The program crashed, or could not be compiled.
    Error,
    /// It asked for something that only an attack needs, and was killed.
    Forbidden,
}

/// The verdict on a program, and on each test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodeVerdict {
    #[serde(flatten)]
    pub verdict: Verdict,
    pub passed: usize,
    pub total: usize,
    pub outcomes: Vec<TestOutcome>,
    /// Nothing was run because this machine cannot run what the row asks for: no verdict on the program.
    #[serde(skip)]
    pub not_gradable: bool,
}

impl CodeCase {
    /// The columns of a row that programs are held to.
    pub const FIELDS: [&str; 8] = [
        "tests",
        "input_output",
        "fn_name",
        "entry_point",
        "checker",
        "language",
        "timeout_s",
        "memory_mb",
    ];

    /// From a row of kind `code`; the error names the key that is missing or ill-typed.
    pub fn from_row(row: &Map<String, Value>) -> Result<Self> {
        let mut case = Self::of_tests(row)?;
        let prediction = text(row, "prediction")?.ok_or_else(|| missing("prediction"))?;
        case.prediction = prediction.to_string();
        Ok(case)
    }

    /// What a row holds programs to, with no program in it; see [`grade_text`].
    pub fn of_tests(row: &Map<String, Value>) -> Result<Self> {
        let timeout_s = match row.get("timeout_s") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_f64() {
                Some(seconds) if seconds > 0.0 && seconds <= MAX_TIMEOUT_S => Some(seconds),
                _ => return Err(ill_typed("timeout_s", "a number of seconds in (0, 600]")),
            },
        };
        let memory_mb = match row.get("memory_mb") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_f64() {
                Some(size) if size >= 1.0 && size <= MAX_MEMORY_MB as f64 => Some(size as u64),
                _ => return Err(ill_typed("memory_mb", "a number from 1 to 65536")),
            },
        };
        Ok(Self {
            prediction: String::new(),
            language: text(row, "language")?.map(String::from),
            timeout_s,
            memory_mb,
            tests: Tests::from_row(row)?,
            entry: match text(row, "entry_point")? {
                None => text(row, "fn_name")?.map(String::from),
                name => name.map(String::from),
            },
            checker: match text(row, "checker")? {
                Some(source) if source.trim().is_empty() => {
                    return Err(ill_typed("checker", "a Python program"));
                }
                source => source.map(String::from),
            },
        })
    }

    fn limits(&self) -> Limits {
        let in_bounds = |seconds: &f64| *seconds > 0.0 && *seconds <= MAX_TIMEOUT_S;
        let megabytes = self.memory_mb.unwrap_or(DEFAULT_MEMORY_MB);
        Limits {
            timeout_s: self
                .timeout_s
                .filter(in_bounds)
                .unwrap_or(DEFAULT_TIMEOUT_S),
            memory_bytes: megabytes.min(MAX_MEMORY_MB) << 20,
        }
    }
}

/// Runs the program in `case` against its tests, one after the other. Called from several threads at once.
pub fn grade(case: &CodeCase, sandbox: &Sandbox) -> Result<CodeVerdict> {
    grade_text(case, &case.prediction, sandbox)
}

/// The same for the program in `prediction`, the whole text a model wrote.
pub fn grade_text(case: &CodeCase, prediction: &str, sandbox: &Sandbox) -> Result<CodeVerdict> {
    let total = case.tests.len();
    let unparsable = |extracted: Option<&str>, reason: String| CodeVerdict {
        verdict: Verdict::new(Outcome::Unparsable, extracted, reason),
        passed: 0,
        total,
        outcomes: vec![TestOutcome::Error; total],
        not_gradable: false,
    };
    let not_here = |extracted: Option<&str>, reason: String| CodeVerdict {
        not_gradable: true,
        ..unparsable(extracted, reason)
    };
    let wanted = match case.language.as_deref() {
        None => None,
        Some(name) => match Language::parse(name) {
            Some(language) => Some(language),
            None => {
                return Ok(not_here(
                    None,
                    format!("programs in `{name}` are not run here"),
                ));
            }
        },
    };
    let (source, language, fenced) = match find(prediction, wanted) {
        Found::Program {
            source,
            language,
            fenced,
        } => (source, language, fenced),
        Found::Nothing(reason) => return Ok(unparsable(None, reason)),
    };
    let code = match language {
        Language::Python => Code::Python(source.clone()),
        Language::Cpp if !matches!(case.tests, Tests::Stdio(_)) => {
            let reason = "only Python programs are called by function";
            return Ok(unparsable(Some(&source), reason.into()));
        }
        Language::Cpp if !sandbox.has_compiler() => {
            let reason = "C++ is not run here: no compiler on this machine";
            return Ok(not_here(Some(&source), reason.into()));
        }
        Language::Cpp => match sandbox.compile(&source)? {
            Ok(code) => code,
            Err(complaint) => {
                let outcomes = vec![TestOutcome::Error; total];
                return Ok(verdict(&source, outcomes, Some(complaint)));
            }
        },
    };
    let judge = match (&case.tests, &case.checker) {
        (Tests::Assertions(_), _) => Some(code_assertions::code()),
        (Tests::Stdio(_), Some(_)) => Some(code_checker::code()),
        _ => None,
    };
    let mut boxes = Boxes {
        program: sandbox.session(&code)?,
        judge: judge
            .as_ref()
            .map(|code| sandbox.session(code))
            .transpose()?,
        defined: None,
    };
    let (mut outcomes, mut first_reason) = (Vec::with_capacity(total), None);
    for index in 0..total {
        let (outcome, reason) = run_test(case, index, &mut boxes)?;
        if reason.is_ours {
            return Ok(not_here(Some(&source), reason.text));
        }
        outcomes.push(outcome);
        if outcome != TestOutcome::Pass && first_reason.is_none() {
            first_reason = Some(format!("test {}: {}", index + 1, reason.text));
        }
        let late = outcomes.iter().filter(|o| **o == TestOutcome::Timeout);
        let rest = if reason.everywhere {
            if !fenced {
                let reason = "no code block in the answer, and the answer is no program";
                return Ok(unparsable(None, reason.into()));
            }
            Some(outcome)
        } else if late.count() >= MAX_TIMEOUTS {
            Some(TestOutcome::Timeout)
        } else {
            None
        };
        if let Some(outcome) = rest {
            outcomes.resize(total, outcome);
            break;
        }
    }
    Ok(verdict(&source, outcomes, first_reason))
}

fn verdict(source: &str, outcomes: Vec<TestOutcome>, reason: Option<String>) -> CodeVerdict {
    let passed = outcomes.iter().filter(|o| **o == TestOutcome::Pass);
    let (passed, total) = (passed.count(), outcomes.len());
    let all = total > 0 && passed == total;
    let outcome = if all {
        Outcome::Correct
    } else {
        Outcome::Wrong
    };
    let counted = format!("{passed} of {total} tests passed");
    let reason = match reason {
        Some(reason) if !all => format!("{counted}; {reason}"),
        _ => counted,
    };
    CodeVerdict {
        verdict: Verdict::new(outcome, Some(source.trim()), reason),
        passed,
        total,
        outcomes,
        not_gradable: false,
    }
}

/// Why a test ended as it did.
struct Reason {
    text: String,
    /// Whether every other test would end the same way.
    everywhere: bool,
    /// Whether it says something of the row, and nothing of the program.
    is_ours: bool,
}

impl Reason {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            everywhere: false,
            is_ours: false,
        }
    }
}

/// The boxes of one case: the program's, and that of what judges it where anything but this process does.
struct Boxes<'a> {
    program: Session<'a>,
    judge: Option<Session<'a>>,
    defined: Option<Value>,
}

fn run_test(case: &CodeCase, index: usize, boxes: &mut Boxes) -> Result<(TestOutcome, Reason)> {
    let limits = case.limits();
    let Boxes {
        program,
        judge,
        defined,
    } = boxes;
    let (finished, difference) = match (&case.tests, judge) {
        (Tests::Stdio(tests), judge) => {
            let StdioTest { input, output } = &tests[index];
            let finished = program.run(&Mode::Stdio { input }, limits)?;
            let difference = match (&case.checker, judge) {
                (Some(checker), Some(judge)) if broken_off(&finished, limits).is_none() => {
                    let Ok(actual) = str::from_utf8(&finished.output) else {
                        return Ok((TestOutcome::Fail, Reason::new("the output is not UTF-8")));
                    };
                    match code_checker::decide(checker, [input, output, actual], judge)? {
                        Ok(true) => None,
                        Ok(false) => Some("the checker rejects it".into()),
                        Err(Failure::Program(text)) => {
                            return Ok((TestOutcome::Error, Reason::new(text)));
                        }
                        Err(Failure::Checker(text)) => {
                            let is_ours = true;
                            return Ok((
                                TestOutcome::Error,
                                Reason {
                                    is_ours,
                                    ..Reason::new(text)
                                },
                            ));
                        }
                    }
                }
                _ => output_difference(&finished.output, output),
            };
            (finished, difference)
        }
        (Tests::Call { fn_name, tests }, _) => {
            let test = &tests[index];
            let arguments = &test.arguments;
            let finished = program.run(&Mode::Call { fn_name, arguments }, limits)?;
            let mut difference = value_difference(&finished.output, &test.expected);
            if let (true, Value::Array(inside)) = (test.expected_inside, &test.expected)
                && let [inside] = inside.as_slice()
                && difference.is_some()
            {
                difference = value_difference(&finished.output, inside);
            }
            (finished, difference)
        }
        (Tests::Assertions(sources), Some(driver)) => {
            let entry = case.entry.as_deref();
            match code_assertions::check(&sources[index], entry, program, driver, limits, defined)?
            {
                Ending::Passed => return Ok((TestOutcome::Pass, Reason::new(""))),
                Ending::Failed(text) => return Ok((TestOutcome::Fail, Reason::new(text))),
                Ending::Broken(text) => return Ok((TestOutcome::Error, Reason::new(text))),
                Ending::Stopped(finished) => (finished, Some("it ends before the test".into())),
            }
        }
        (Tests::Assertions(_), None) => {
            return Err(Error::input("assertions need a box of their own"));
        }
    };
    if let Some((outcome, text)) = broken_off(&finished, limits) {
        let everywhere = finished.code == EXIT_SYNTAX;
        return Ok((
            outcome,
            Reason {
                everywhere,
                ..Reason::new(text)
            },
        ));
    }
    Ok(match difference {
        None => (TestOutcome::Pass, Reason::new("")),
        Some(difference) => (TestOutcome::Fail, Reason::new(difference)),
    })
}

/// The outcome of a run that did not come to its end within its limits.
fn broken_off(finished: &Finished, limits: Limits) -> Option<(TestOutcome, String)> {
    let memory = || Some((TestOutcome::Memory, "memory limit".to_string()));
    if finished.box_died {
        let reason = "the program ended its sandbox".to_string();
        return Some((TestOutcome::Error, reason));
    }
    if finished.peak_bytes > limits.memory_bytes {
        return memory();
    }
    if finished.late || finished.code == -SIGXCPU {
        return Some((TestOutcome::Timeout, "time limit".into()));
    }
    match finished.code {
        0 => None,
        EXIT_MEMORY => memory(),
        code if code == -SIGSYS => {
            let reason = "a forbidden system call".to_string();
            Some((TestOutcome::Forbidden, reason))
        }
        // nobody in the box can send it: the kernel had no memory left
        code if code == -SIGKILL => memory(),
        _ if finished.stderr.contains("std::bad_alloc") => memory(),
        EXIT_SYNTAX => Some((TestOutcome::Error, finished.last_line())),
        code if code < 0 => Some((TestOutcome::Error, format!("ended by signal {}", -code))),
        _ => Some((TestOutcome::Error, finished.last_line())),
    }
}
