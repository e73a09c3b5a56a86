//! Runs the real binary, without network and with a home of its own.

// every test crate uses a part of it
#![allow(dead_code)]

pub mod model;

/// The lines of a recipe that give it a student of two small blocks with random weights, for `concat!`.
#[macro_export]
macro_rules! small_student {
    () => {
        "device = \"cpu\"

[student.init]
architecture = \"qwen2\"
tokenizer = \"builtin:arithmetic\"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
"
    };
}

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a call left.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A folder to work in, removed at the end.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// `distill` with these arguments in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
        command
            .args(args)
            .current_dir(self.path())
            .env_remove("HF_TOKEN")
            .env_remove("HF_ENDPOINT")
            .env_remove("RUST_BACKTRACE")
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path().join("hf"))
            .env("RAYON_NUM_THREADS", "2")
            .env("COLUMNS", "120")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        finished(self.command(args))
    }

    /// The result of a call that works.
    pub fn works(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
        run
    }

    /// The text after `error: ` and after `hint: ` of a call that fails as it should.
    pub fn fails(&self, args: &[&str]) -> (String, String) {
        failure(self.run(args))
    }
}

/// Runs a command to its end.
pub fn finished(mut command: Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Exit code 1, nothing on stdout, one `error:` line and at most one `hint:` line at the end of stderr.
pub fn failure(run: Run) -> (String, String) {
    let Run {
        code,
        stdout,
        stderr,
    } = run;
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stdout, "", "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let mut lines: Vec<&str> = stderr.lines().collect();
    let hint = match lines.last().and_then(|l| l.strip_prefix("hint: ")) {
        Some(hint) => {
            lines.pop();
            hint
        }
        None => "",
    };
    let error = lines.pop().and_then(|l| l.strip_prefix("error: "));
    let error = error.unwrap_or_else(|| panic!("no error line: {stderr}"));
    let more = lines
        .iter()
        .filter(|l| l.starts_with("error:") || l.starts_with("hint:"));
    assert_eq!(more.count(), 0, "{stderr}");
    (error.to_string(), hint.to_string())
}
