//! Log-probabilities of the reference: computed once, kept in a file by the content of the sequence, so that a resumed run
//! reads the same numbers and a second copy of the model is never needed.

use super::SftSettings;
use super::judged_loop;
use super::preference::{PairBatch, sums};
use crate::data::JudgedRow;
use crate::model::CausalLm;
use crate::progress::Stop;
use crate::tokenize::Tokenized;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "reference.jsonl";

/// Sums over the tokens of answers, by sequence.
pub struct Reference(HashMap<String, f64>);

/// The first line: whose log-probabilities they are.
#[derive(Serialize, Deserialize)]
struct Owner {
    reference: String,
}

/// The other lines.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Hash of tokens and mask.
    sequence: String,
    logprob: f64,
    /// The same to the bit, which decimal digits are not sure to give back.
    bits: u64,
}

impl Reference {
    /// Those of `rows` under `model`, which is the reference; known ones are read from `dir`. `owner` names the reference:
    /// what another one has left there is thrown away.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after `stop`, with what is known so far saved. A log-probability that is not finite.
    pub fn of(
        model: &CausalLm,
        rows: &[&JudgedRow],
        settings: &SftSettings,
        owner: &str,
        dir: &Path,
        stop: &Stop,
    ) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
        let path = dir.join(FILE);
        let mut known = read(&path, owner)?;
        let open: Vec<&JudgedRow> = rows
            .iter()
            .copied()
            .filter(|row| row.sequences().any(|s| !known.contains_key(&key(s))))
            .collect();
        if open.is_empty() {
            return Ok(Self(known));
        }
        let mut file = Output::create(&path, owner, &known)?;
        for pack in judged_loop::group(&open, settings)? {
            if stop.requested() {
                file.publish()?;
                return Err(Error::Interrupted {
                    message: format!(
                        "while the reference was computed, saved in `{}`; run the same command again to go on",
                        path.display()
                    ),
                });
            }
            let batch = PairBatch::new(&pack);
            let stats = model.token_stats(&batch.batch, 1.0)?;
            let found = sums(&batch, &stats.logprobs);
            let sequences = pack.iter().flat_map(|row| row.sequences());
            for (sequence, logprob) in sequences.zip(found) {
                if !logprob.is_finite() {
                    return Err(Error::NonFinite {
                        message: format!(
                            "the reference gives a log-probability that is not finite in one of {} rows from `{}`",
                            pack.len(),
                            pack[0].name
                        ),
                        hint: Some("the weights it starts from are broken".into()),
                    });
                }
                let sequence = key(sequence);
                file.write(&sequence, logprob)?;
                known.insert(sequence, logprob);
            }
        }
        file.publish()?;
        Ok(Self(known))
    }

    /// Of one sequence; NaN where it was not asked for.
    pub fn get(&self, sequence: &Tokenized) -> f64 {
        self.0.get(&key(sequence)).copied().unwrap_or(f64::NAN)
    }
}

fn key(sequence: &Tokenized) -> String {
    let mut hasher = Sha256::new();
    for (token, trained) in sequence.tokens.iter().zip(&sequence.trained) {
        hasher.update(token.to_le_bytes());
        hasher.update([u8::from(*trained)]);
    }
    let digest = hasher.finalize();
    hex::encode(&digest[..16])
}

/// What is there of this reference; a line that is not whole ends it.
fn read(path: &Path, owner: &str) -> Result<HashMap<String, f64>> {
    let mut known = HashMap::new();
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(known),
        Err(e) => return Err(Error::io("opening", path, e)),
        Ok(file) => file,
    };
    let mut lines = BufReader::new(file).lines();
    let first = lines.next().and_then(std::result::Result::ok);
    let said = first.and_then(|line| serde_json::from_str::<Owner>(&line).ok());
    if said.is_none_or(|said| said.reference != owner) {
        return Ok(known);
    }
    for line in lines {
        let line = line.map_err(|e| Error::io("reading", path, e))?;
        let Ok(line) = serde_json::from_str::<Line>(&line) else {
            break;
        };
        known.insert(line.sequence, f64::from_bits(line.bits));
    }
    Ok(known)
}

/// The file while it is written beside its place.
struct Output {
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
}

impl Output {
    fn create(path: &Path, owner: &str, known: &HashMap<String, f64>) -> Result<Self> {
        let beside = path.with_extension("partial");
        let file = File::create(&beside).map_err(|e| Error::io("creating", &beside, e))?;
        let mut output = Self {
            path: path.to_path_buf(),
            beside,
            file: BufWriter::new(file),
        };
        output.line(&Owner {
            reference: owner.to_string(),
        })?;
        let mut sorted: Vec<_> = known.iter().collect();
        sorted.sort_by_key(|(sequence, _)| *sequence);
        for (sequence, logprob) in sorted {
            output.write(sequence, *logprob)?;
        }
        Ok(output)
    }

    fn write(&mut self, sequence: &str, logprob: f64) -> Result<()> {
        self.line(&Line {
            sequence: sequence.to_string(),
            logprob,
            bits: logprob.to_bits(),
        })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line)
            .map_err(|e| Error::input(format!("`{}`: {e}", self.beside.display())))?;
        writeln!(self.file, "{text}").map_err(|e| Error::io("writing", &self.beside, e))
    }

    fn publish(mut self) -> Result<()> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.beside, &self.path))
            .map_err(|e| Error::io("writing", &self.path, e))
    }
}
