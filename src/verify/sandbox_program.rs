//! What goes into the sandbox and what comes out of it: programs, limits, how a run ended. The sandbox itself is
//! [`super::sandbox`].

use serde::Deserialize;

/// Of standard output, and of any one file.
pub const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// How a program gets its input and gives its answer.
#[derive(Debug, Clone)]
pub enum Mode<'a> {
    /// Input on standard input, answer on standard output.
    Stdio { input: &'a str },
    /// A function called with arguments (JSON: a list, or an object of names); the answer is what it returns.
    Call {
        fn_name: &'a str,
        arguments: &'a str,
    },
    /// The names of the functions and classes that the program defines.
    Names,
    /// A function of the program, or a method, with arguments in the runner's encoding.
    Invoke { call: &'a str },
}

/// How much a program may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of processor time; waiting is cut at one second more, and a busy machine gives four times as much.
    pub timeout_s: f64,
    pub memory_bytes: u64,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    Python(String),
    /// An executable, as [`super::sandbox::Sandbox::compile`] makes it.
    Native(Vec<u8>),
}

/// How one run ended.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Finished {
    /// Exit status; negative where a signal ended it.
    pub code: i32,
    /// Whether a time limit ended it.
    pub late: bool,
    pub cpu_s: f64,
    pub wall_s: f64,
    pub peak_bytes: u64,
    /// The end of what it wrote to standard error.
    pub stderr: String,
    /// Whether it left its scratch directory empty.
    pub clean: bool,
    /// What it wrote to standard output, or the value of the call in the runner's encoding.
    #[serde(skip)]
    pub output: Vec<u8>,
    /// Whether the box itself ended under it.
    #[serde(skip)]
    pub box_died: bool,
}

/// Exit codes of the runner's children.
pub const EXIT_SETUP: i32 = 76;
pub const EXIT_SYNTAX: i32 = 78;
pub const EXIT_MEMORY: i32 = 79;

impl Finished {
    /// The last thing said on standard error: for an exception its name and message.
    pub fn last_line(&self) -> String {
        let lines = self.stderr.lines().rev();
        let line = lines.map(str::trim).find(|line| !line.is_empty());
        line.unwrap_or("no message").chars().take(200).collect()
    }
}
