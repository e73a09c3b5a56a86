//! JSON lines that grow row by row, in order: a killed process leaves whole rows and at most a half-written one, which the
//! next one cuts off. And answers of an engine, which come in any order, brought into that order.

use super::{Completion, Engine, FinishReason, Request, Sampling};
use crate::progress::Stop;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The file, to which only whole lines are appended.
pub struct RowLog {
    path: PathBuf,
    file: File,
}

impl RowLog {
    /// Opens or creates the file; nobody else writes it until it is dropped.
    ///
    /// # Errors
    /// It cannot be opened, or another process writes it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io("opening", path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::input(format!(
                    "another `distill` is writing `{}`",
                    path.display()
                ))
                .with_hint("wait for it to end"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", path, e)),
        }
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a file that stays: a device or a pipe holds nothing.
    pub fn is_file(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.is_file())
    }

    /// How many rows it holds already. `parse` reads a line, given with its number from 1; `accept` refuses a row that does
    /// not belong here, given with its number from 0. A half-written last line is cut off.
    ///
    /// # Errors
    /// A line before the last one that cannot be read, a row that is refused; the file is then left as it is.
    pub fn keep<T>(
        &mut self,
        parse: impl Fn(&[u8], usize) -> Result<T>,
        mut accept: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<usize> {
        if !self.is_file() {
            return Ok(0);
        }
        let mut bytes = Vec::new();
        self.file
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("reading", &self.path, e))?;
        let (mut good, mut num_kept) = (0, 0);
        for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            let is_last = good + line.len() == bytes.len();
            let row = match parse(line, i + 1) {
                Err(_) if is_last => break,
                Ok(_) if !line.ends_with(b"\n") => break,
                parsed => parsed?,
            };
            accept(num_kept, row)?;
            good += line.len();
            num_kept += 1;
        }
        let io = |e| Error::io("writing", &self.path, e);
        if good < bytes.len() {
            self.file.set_len(good as u64).map_err(io)?;
        }
        self.file.seek(SeekFrom::Start(good as u64)).map_err(io)?;
        Ok(num_kept)
    }

    /// One more line, in one write.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn append(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| Error::io("writing", &self.path, e))
    }

    /// Everything is on the disk when this returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn finish(&self) -> Result<()> {
        if !self.is_file() {
            return Ok(());
        }
        let io = |e| Error::io("writing", &self.path, e);
        self.file.sync_all().map_err(io)
    }
}

/// One answer, as rows hold it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Generation {
    pub text: String,
    pub tokens: Vec<u32>,
    #[serde(default)]
    pub logprobs: Vec<f32>,
    /// [`Completion::sampled_logprobs`]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sampled_logprobs: Vec<f32>,
    pub finish_reason: FinishReason,
}

/// Prompts and how often each is answered.
pub struct Asked<'a> {
    pub prompts: Vec<Vec<u32>>,
    /// Number of the first among all.
    pub first: usize,
    /// Answers to each.
    pub n: usize,
    pub sampling: &'a Sampling,
    /// Whether [`Generation::sampled_logprobs`] are kept.
    pub keep_sampled: bool,
}

/// Samples answers and hands each prompt's to `on_row` in the order of the prompts, with the prompt's place in
/// [`Asked::prompts`]. `on_answer` is called for every answer.
///
/// Random numbers are keyed by the number among all, so that a resumed call draws what an uninterrupted one would have
/// drawn.
///
/// # Errors
/// As [`Engine::generate`], and what `on_row` returns.
pub fn sample_in_order(
    engine: &mut dyn Engine,
    asked: Asked<'_>,
    on_answer: &mut dyn FnMut(),
    on_row: &mut dyn FnMut(usize, Vec<Generation>) -> Result<()>,
    stop: &Stop,
) -> Result<()> {
    let Asked {
        prompts,
        first,
        n,
        sampling,
        keep_sampled,
    } = asked;
    let mut requests = Vec::with_capacity(prompts.len() * n);
    for (i, prompt) in prompts.into_iter().enumerate() {
        let base = ((first + i) * n) as u64;
        requests.extend((0..n as u64).map(|k| Request {
            id: base + k,
            prompt: prompt.clone(),
        }));
    }
    let mut finished: BTreeMap<usize, Vec<Option<Generation>>> = BTreeMap::new();
    let mut next = 0;
    let mut on_done = |done: Completion| -> Result<()> {
        let number = done.id as usize - first * n;
        let answers = finished
            .entry(number / n)
            .or_insert_with(|| (0..n).map(|_| None).collect());
        answers[number % n] = Some(Generation {
            text: done.text,
            tokens: done.tokens,
            logprobs: done.logprobs,
            sampled_logprobs: match keep_sampled {
                true => done.sampled_logprobs,
                false => Vec::new(),
            },
            finish_reason: done.finish_reason,
        });
        on_answer();
        // rows leave in order; one that is not complete holds back those after it
        while let Some(entry) = finished.first_entry()
            && *entry.key() == next
            && entry.get().iter().all(Option::is_some)
        {
            let answers = entry.remove().into_iter().flatten().collect();
            on_row(next, answers)?;
            next += 1;
        }
        Ok(())
    };
    engine.generate(&requests, sampling, &mut on_done, stop)
}

/// That a prompt leaves the model something to write.
///
/// # Errors
/// In words for a row's place.
pub fn check_length(num_tokens: usize, num_positions: usize) -> std::result::Result<(), String> {
    match num_tokens {
        0 => Err("the prompt has no tokens".into()),
        n if n >= num_positions => Err(format!(
            "the prompt has {n} tokens, and the model {num_positions} positions"
        )),
        _ => Ok(()),
    }
}
