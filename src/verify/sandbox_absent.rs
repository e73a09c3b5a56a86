//! In place of the sandbox on systems other than Linux: code grading refuses there. The real one is `sandbox.rs`.

use super::sandbox_program::{Code, Finished, Limits, Mode};
use crate::{Error, Result};

/// Cannot be made here.
#[derive(Debug)]
pub struct Sandbox {
    never: std::convert::Infallible,
}

/// Cannot be made here either.
#[derive(Debug)]
pub struct Session<'a> {
    never: &'a std::convert::Infallible,
}

impl Sandbox {
    /// Always refuses.
    pub fn open() -> Result<Self> {
        Err(
            Error::input("code is graded on Linux only: this system has no sandbox for it")
                .with_hint("grade code rows on a Linux machine, or in a Linux container"),
        )
    }

    pub fn has_compiler(&self) -> bool {
        match self.never {}
    }

    pub fn compile(&self, _source: &str) -> Result<std::result::Result<Code, String>> {
        match self.never {}
    }

    pub fn session<'a>(&'a self, _code: &'a Code) -> Result<Session<'a>> {
        match self.never {}
    }
}

impl Session<'_> {
    pub fn run(&mut self, _mode: &Mode, _limits: Limits) -> Result<Finished> {
        match *self.never {}
    }
}
