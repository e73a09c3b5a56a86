//! The metrics log: one JSON object a step, appended to `metrics.jsonl`.
//!
//! A run killed at any moment leaves at most a half-written last line and rows of steps that its last checkpoint does not
//! know. [`MetricsLog::open`] cuts both off, so that a resumed run has every step exactly once.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An append-only file of JSON lines, each with an ascending `step`.
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    len: u64,
    last_step: Option<u64>,
}

/// The one field every row has.
#[derive(Deserialize)]
struct Row {
    step: u64,
}

impl MetricsLog {
    /// Opens or creates the log and keeps the rows of steps up to and including `keep_through_step`; 0 starts anew,
    /// since steps count from 1.
    pub fn open(path: &Path, keep_through_step: u64) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io("opening", path, e))?;
        let (len, last_step) = kept_prefix(&file, path, keep_through_step)?;
        file.set_len(len)
            .and_then(|()| file.seek(SeekFrom::Start(len)))
            .and_then(|_| file.sync_all())
            .map_err(|e| Error::io("truncating", path, e))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            len,
            last_step,
        })
    }

    /// Step of the last row, `None` while there is no row.
    pub fn last_step(&self) -> Option<u64> {
        self.last_step
    }

    /// Appends one row, which must have an integer `step` greater than the last one's. It is handed to the operating
    /// system at once; a half-written row is taken back.
    pub fn append(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(row).map_err(|e| {
            Error::input(format!(
                "a row of `{}` cannot be written as JSON: {e}",
                self.path.display()
            ))
        })?;
        let step = serde_json::from_str::<Row>(&line)
            .map_err(|e| {
                Error::input(format!(
                    "a row of `{}` has no step: {e}",
                    self.path.display()
                ))
            })?
            .step;
        if self.last_step.is_some_and(|last| step <= last) {
            return Err(Error::input(format!(
                "step {step} does not follow step {} in `{}`",
                self.last_step.unwrap_or_default(),
                self.path.display()
            )));
        }
        line.push('\n');
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // what could not be written whole must not be read back as a row
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::Start(self.len));
            return Err(Error::io("writing", &self.path, source));
        }
        self.len += line.len() as u64;
        self.last_step = Some(step);
        Ok(())
    }

    /// Makes everything appended so far survive a power cut; called before a checkpoint that counts on these rows.
    pub fn sync(&mut self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| Error::io("syncing", &self.path, e))
    }
}

/// Length in bytes of the rows to keep, and the last kept step. Stops at the first row beyond `keep_through_step` and at
/// the first that is no whole row: nothing after it can be trusted.
fn kept_prefix(file: &File, path: &Path, keep_through_step: u64) -> Result<(u64, Option<u64>)> {
    let mut reader = BufReader::new(file);
    let (mut len, mut last_step) = (0, None);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = reader
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::io("reading", path, e))?;
        if n == 0 || line.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice::<Row>(&line) {
            Ok(row) if row.step <= keep_through_step => {
                len += n as u64;
                last_step = Some(row.step);
            }
            _ => break,
        }
    }
    Ok((len, last_step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn resumed_log_has_every_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sft/metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=5 {
            log.append(&json!({"step": step, "loss": 1.5})).unwrap();
        }
        log.sync().unwrap();
        drop(log);
        // killed in the middle of row 6, checkpoint at 3
        std::fs::write(&path, text(&path) + r#"{"step":6,"lo"#).unwrap();
        let mut log = MetricsLog::open(&path, 3).unwrap();
        assert_eq!(log.last_step(), Some(3));
        log.append(&json!({"step": 4, "loss": 0.25})).unwrap();
        let row = |step: u64, loss: f64| format!("{{\"step\":{step},\"loss\":{loss}}}\n");
        assert_eq!(
            text(&path),
            row(1, 1.5) + &row(2, 1.5) + &row(3, 1.5) + &row(4, 0.25)
        );
    }

    #[test]
    fn half_line_is_cut_even_where_its_step_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        // whole JSON, but the line end did not get to the disk
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}").unwrap();
        let log = MetricsLog::open(&path, 10).unwrap();
        assert_eq!(log.last_step(), Some(1));
        assert_eq!(text(&path), "{\"step\":1}\n");
    }

    #[test]
    fn starting_anew_empties_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n").unwrap();
        assert_eq!(MetricsLog::open(&path, 0).unwrap().last_step(), None);
        assert_eq!(text(&path), "");
    }

    #[test]
    fn steps_must_ascend() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.append(&json!({"step": 2})).unwrap();
        let error = log.append(&json!({"step": 2})).unwrap_err().to_string();
        assert!(
            error.starts_with("step 2 does not follow step 2 in"),
            "{error}"
        );
        let error = log.append(&json!({"loss": 2})).unwrap_err().to_string();
        assert!(
            error.contains("has no step: missing field `step`"),
            "{error}"
        );
        assert_eq!(text(&path), "{\"step\":2}\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_a_clear_error() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = MetricsLog {
            file,
            path: "RUN/sft/metrics.jsonl".into(),
            len: 0,
            last_step: None,
        };
        let error = log.append(&json!({"step": 1})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "writing `RUN/sft/metrics.jsonl`: No space left on device (os error 28)"
        );
        assert!(error.hint().unwrap().starts_with("free some space"));
        assert_eq!(log.last_step(), None);
    }
}
