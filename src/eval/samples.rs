//! `samples.jsonl`: one line a sample, appended as samples end and put in order when all are there.
//!
//! A run may be killed at any moment: the half-written line it leaves is passed over, and the file is never replaced
//! before its successor is complete.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::generate::{Completion, FinishReason};
use crate::verify::{Outcome, Verdict};
use crate::{Error, Result};

/// One sample of one problem, and what was made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The problem's id in its data set.
    pub problem: String,
    /// What was asked, before the suite's prompt around it.
    #[serde(default)]
    pub question: String,
    /// The problem's place in the benchmark, from 0.
    pub index: usize,
    /// Which of the k samples, from 0.
    pub sample: usize,
    pub gold: String,
    pub correct: bool,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Share of the words of the reasoning that are in the language of the question, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_consistency: Option<f64>,
    pub num_tokens: usize,
    pub finish_reason: FinishReason,
    pub text: String,
    /// What the text depends on: weights, sampling, prompt.
    pub key: String,
}

impl Sample {
    /// A sample that nobody has judged yet.
    pub(super) fn new(
        problem: &str,
        index: usize,
        sample: usize,
        key: &str,
        completion: Completion,
    ) -> Self {
        Self {
            problem: problem.into(),
            question: String::new(),
            index,
            sample,
            gold: String::new(),
            correct: false,
            verdict: Verdict {
                outcome: Outcome::Unparsable,
                extracted: None,
                reason: String::new(),
                gold_unreadable: false,
            },
            language_consistency: None,
            num_tokens: completion.tokens.len(),
            finish_reason: completion.finish_reason,
            text: completion.text,
            key: key.into(),
        }
    }
}

/// The samples in a finished file.
///
/// # Errors
/// A file that cannot be read, or a line that is no sample.
pub fn read(path: &Path) -> Result<Vec<Sample>> {
    let file = File::open(path).map_err(|e| Error::io("reading", path, e))?;
    let mut samples = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| Error::io("reading", path, e))?;
        let sample = serde_json::from_str(&line)
            .map_err(|e| Error::input(format!("`{}`, line {}: {e}", path.display(), number + 1)))?;
        samples.push(sample);
    }
    Ok(samples)
}

/// What an earlier run left.
#[derive(Default)]
pub(super) struct Earlier {
    pub samples: Vec<Sample>,
    /// Some line was no sample, as the last one of a killed run.
    pub damaged: bool,
}

/// The samples of a file that a killed run may have left half-written; none where there is no file.
pub(super) fn read_lenient(path: &Path) -> Result<Earlier> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Earlier::default()),
        Err(e) => return Err(Error::io("reading", path, e)),
    };
    let mut earlier = Earlier::default();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match serde_json::from_slice(line) {
            // without its line end it may be cut short and still be JSON: better once more than wrong
            Ok(sample) if line.ends_with(b"\n") => earlier.samples.push(sample),
            _ => earlier.damaged = true,
        }
    }
    Ok(earlier)
}

/// The file while samples are being made.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Starts the file anew with the samples taken over.
    pub fn begin<'a>(path: &Path, kept: impl Iterator<Item = &'a Sample>) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
        }
        replace(path, kept)?;
        let file = File::options()
            .append(true)
            .open(path)
            .map_err(|e| Error::io("opening", path, e))?;
        Ok(Self {
            path: path.into(),
            file,
        })
    }

    /// One more line, in one write.
    pub fn append(&mut self, sample: &Sample) -> Result<()> {
        let line = line_of(sample, &self.path)?;
        self.file
            .write_all(&line)
            .map_err(|e| Error::io("writing", &self.path, e))
    }

    /// All samples in order, in place of what was appended.
    pub fn finish(self, samples: &[Sample]) -> Result<()> {
        replace(&self.path, samples.iter())
    }
}

/// Writes beside, syncs, renames.
fn replace<'a>(path: &Path, samples: impl Iterator<Item = &'a Sample>) -> Result<()> {
    let beside = path.with_extension("jsonl.tmp");
    let write = |e| Error::io("writing", &beside, e);
    let mut file = BufWriter::new(File::create(&beside).map_err(write)?);
    for sample in samples {
        file.write_all(&line_of(sample, path)?).map_err(write)?;
    }
    let file = file.into_inner().map_err(|e| write(e.into_error()))?;
    file.sync_all().map_err(write)?;
    fs::rename(&beside, path).map_err(|e| Error::io("writing", path, e))
}

fn line_of(sample: &Sample, path: &Path) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(sample)
        .map_err(|e| Error::input(format!("`{}`: {e}", path.display())))?;
    line.push(b'\n');
    Ok(line)
}
