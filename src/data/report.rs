//! What became of the rows: counts by reason with some names, tokens, lengths. Saved with the store, so that a store that
//! is used again reports too.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The file beside the store that names every row left out.
pub const DROPPED: &str = "dropped.jsonl";
/// Names kept of the rows dropped for one reason.
const NUM_EXAMPLES: usize = 5;
/// Bars of the histogram of lengths, at most.
const MAX_BINS: u64 = 24;

/// What became of the rows of all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct BuildReport {
    /// Rows in the store.
    pub kept: u64,
    /// Rows left out, by reason, the most frequent one first.
    pub dropped: Vec<Dropped>,
    /// Kept rows that were cut at `max_length`.
    pub truncated: u64,
    /// Tokens of all kept rows.
    pub tokens: u64,
    /// Those of them that are trained on.
    pub trained_tokens: u64,
    /// The longest kept row.
    pub longest: u64,
    /// Lengths of the kept rows in tokens.
    pub lengths: Vec<LengthBin>,
    pub sources: Vec<SourceReport>,
    /// What verdicts say of all rows read.
    pub verdicts: Verdicts,
    /// Kept rows whose tokens would differ if prompt and completion were tokenised in one go.
    pub joint_differs: u64,
}

/// Rows left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Dropped {
    pub reason: String,
    pub count: u64,
    /// Names of the first of them.
    pub examples: Vec<String>,
}

/// Rows with `from <= length < to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LengthBin {
    pub from: u64,
    pub to: u64,
    pub count: u64,
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SourceReport {
    pub name: String,
    /// Commit of a Hub data set.
    pub revision: Option<String>,
    pub kept: u64,
    pub dropped: u64,
    pub tokens: u64,
    /// Whether so many rows were kept as its `limit` allows: what stands behind the last of them is in no count.
    #[serde(default)]
    pub limit_reached: bool,
}

/// Rows by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Verdicts {
    pub correct: u64,
    pub wrong: u64,
    pub unknown: u64,
}

impl BuildReport {
    /// Rows left out, for whatever reason.
    pub fn num_dropped(&self) -> u64 {
        self.dropped.iter().map(|d| d.count).sum()
    }

    /// Counts a row of the last source that was left out.
    pub(super) fn drop_row(&mut self, reason: &str, name: String) {
        if let Some(source) = self.sources.last_mut() {
            source.dropped += 1;
        }
        let entry = match self.dropped.iter_mut().position(|d| d.reason == reason) {
            Some(at) => &mut self.dropped[at],
            None => {
                self.dropped.push(Dropped {
                    reason: reason.to_string(),
                    ..Dropped::default()
                });
                let last = self.dropped.len() - 1;
                &mut self.dropped[last]
            }
        };
        entry.count += 1;
        if entry.examples.len() < NUM_EXAMPLES {
            entry.examples.push(name);
        }
    }

    /// Counts a row of the last source that is in the store.
    pub(super) fn keep_row(&mut self, tokens: u64, trained: u64) {
        self.kept += 1;
        self.tokens += tokens;
        self.trained_tokens += trained;
        self.longest = self.longest.max(tokens);
        if let Some(source) = self.sources.last_mut() {
            source.kept += 1;
            source.tokens += tokens;
        }
    }

    pub(super) fn count_verdict(&mut self, correct: Option<bool>) {
        *match correct {
            Some(true) => &mut self.verdicts.correct,
            Some(false) => &mut self.verdicts.wrong,
            None => &mut self.verdicts.unknown,
        } += 1;
    }

    /// Sorts the reasons and bins the lengths; `lengths[n]` is the number of kept rows of `n` tokens.
    pub(super) fn finish(&mut self, lengths: &[u64]) {
        self.dropped.sort_by_key(|d| std::cmp::Reverse(d.count));
        self.lengths = bins(lengths);
    }

    /// One line a reason, for messages.
    pub fn reasons(&self) -> String {
        let lines: Vec<String> = self
            .dropped
            .iter()
            .map(|d| {
                let example = d.examples.first().map_or("", String::as_str);
                format!("{} x {} (first: `{example}`)", d.count, d.reason)
            })
            .collect();
        lines.join("; ")
    }
}

/// Writes [`DROPPED`]: one line `{"source": ..., "row": ..., "reason": ...}` for every row left out, in their order. It takes its name when
/// the store is done.
pub(super) struct DropLog {
    file: BufWriter<File>,
    beside: PathBuf,
    path: PathBuf,
}

impl DropLog {
    pub fn create(dir: &Path) -> Result<Self> {
        let beside = dir.join(format!("{DROPPED}.tmp"));
        let file = File::create(&beside).map_err(|e| Error::io("creating", &beside, e))?;
        Ok(Self {
            file: BufWriter::new(file),
            beside,
            path: dir.join(DROPPED),
        })
    }

    pub fn write(&mut self, source: &str, name: &str, reason: &str) -> Result<()> {
        let line = json!({"source": source, "row": name, "reason": reason});
        writeln!(self.file, "{line}").map_err(|e| Error::io("writing", &self.beside, e))
    }

    pub fn finish(self) -> Result<()> {
        let written = self.file.into_inner().map_err(|e| e.into_error());
        written
            .and_then(|file| file.sync_all())
            .map_err(|e| Error::io("writing", &self.beside, e))?;
        fs::rename(&self.beside, &self.path).map_err(|e| Error::io("renaming to", &self.path, e))
    }

    /// Takes away what was written.
    pub fn discard(self) {
        drop(self.file);
        // the next build begins it anew
        let _ = fs::remove_file(self.beside);
    }
}

/// Bins of one width, 1, 2 or 5 times a power of ten, from the shortest row to the longest.
fn bins(lengths: &[u64]) -> Vec<LengthBin> {
    let used = |n: &&u64| **n > 0;
    let Some(low) = lengths.iter().position(|n| used(&n)) else {
        return Vec::new();
    };
    let low = low as u64;
    let high = lengths.iter().rposition(|n| used(&n)).unwrap_or(0) as u64;
    let mut widths = (0..).flat_map(|power| [1, 2, 5].map(|step| step * 10u64.pow(power)));
    let width = widths
        .find(|width| high / width - low / width < MAX_BINS)
        .unwrap_or(high);
    (low / width..=high / width)
        .map(|bin| {
            let (from, to) = (bin * width, (bin + 1) * width);
            let end = (to as usize).min(lengths.len());
            LengthBin {
                from,
                to,
                count: lengths[from as usize..end].iter().sum(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_fall_into_round_bins() {
        let mut lengths = vec![0; 231];
        lengths[7] = 2;
        lengths[19] = 1;
        lengths[230] = 4;
        let bins = bins(&lengths);
        assert_eq!(bins.len(), 24);
        assert_eq!((bins[0].from, bins[0].to, bins[0].count), (0, 10, 2));
        assert_eq!((bins[23].from, bins[23].to, bins[23].count), (230, 240, 4));
        assert_eq!(bins.iter().map(|b| b.count).sum::<u64>(), 7);
        assert!(super::bins(&[0, 0]).is_empty());
    }

    #[test]
    fn every_dropped_row_is_on_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = DropLog::create(dir.path()).unwrap();
        for n in 0..7 {
            log.write("a", &format!("f:{n}"), "no answer").unwrap();
        }
        assert!(!dir.path().join(DROPPED).exists());
        log.finish().unwrap();
        let text = fs::read_to_string(dir.path().join(DROPPED)).unwrap();
        assert_eq!(text.lines().count(), 7);
        let row: serde_json::Value = serde_json::from_str(text.lines().nth(6).unwrap()).unwrap();
        assert_eq!(
            row,
            json!({"source": "a", "row": "f:6", "reason": "no answer"})
        );
    }

    #[test]
    fn reasons_are_counted_with_the_first_names() {
        let mut report = BuildReport::default();
        report.sources.push(SourceReport::default());
        for n in 0..7 {
            report.drop_row("no answer", format!("f:{n}"));
        }
        report.drop_row("rare", "f:9".into());
        report.keep_row(10, 4);
        report.finish(&[]);
        assert_eq!(report.dropped[0].count, 7);
        assert_eq!(report.dropped[0].examples.len(), NUM_EXAMPLES);
        assert_eq!(report.num_dropped(), 8);
        assert_eq!((report.sources[0].kept, report.sources[0].dropped), (1, 8));
        assert_eq!(
            report.reasons(),
            "7 x no answer (first: `f:0`); 1 x rare (first: `f:9`)"
        );
    }
}
