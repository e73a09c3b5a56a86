//! Checkpoints: everything needed to go on bit for bit, never half-written, never trusted unread.
//!
//! `checkpoint-N/` holds the weights in the Hugging Face layout, or the adapters in PEFT's, `optimizer.safetensors`, and `checkpoint.json` with the
//! cursor, the key of the run, and size and CRC-32C of every file. It is written as `checkpoint-N.partial`, synced, and
//! renamed. The order of rows is a function of seed and step, so a cursor of few numbers is enough.

use super::grpo_reference::{REFERENCE, ReferencePolicy};
use crate::model::CausalLm;
use crate::optim::AdamW;
use crate::{Error, Result};
use candle_core::safetensors::MmapedSafetensors;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

const OPTIMIZER: &str = "optimizer.safetensors";
const MARKER: &str = "checkpoint.json";
const MAX_SHARD_BYTES: u64 = super::footprint::SHARD;

/// How far a run has come.
pub trait Progress: Serialize + DeserializeOwned {
    /// Updates done.
    fn step(&self) -> usize;
}

impl Progress for Cursor {
    fn step(&self) -> usize {
        self.step
    }
}

/// How far supervised fine-tuning has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Updates done.
    pub step: usize,
    /// Tokens seen.
    pub num_tokens: u64,
    /// Those of them that were trained.
    pub num_trained_tokens: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    dir: PathBuf,
    key: String,
    keep: usize,
}

/// `checkpoint.json`
#[derive(Serialize, Deserialize)]
struct Marker<C> {
    version: u32,
    key: String,
    cursor: C,
    files: Vec<Content>,
}

/// What a file has to be.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Content {
    name: String,
    bytes: u64,
    crc32c: u32,
}

/// A written checkpoint that does not count yet.
pub struct Pending {
    partial: PathBuf,
    path: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in `dir` of the run with this key; the newest `keep` stay.
    pub fn new(dir: &Path, key: String, keep: usize) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            key,
            keep: keep.max(1),
        })
    }

    /// Takes weights and states from the newest complete checkpoint. A damaged one is passed over for the one before it,
    /// with a word to `warn`; where all are damaged that is an error.
    pub fn restore<C: Progress>(
        &self,
        model: &CausalLm,
        optimizer: &mut AdamW,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Option<C>> {
        self.restore_with(model, None, optimizer, warn)
    }

    /// [`Checkpoints::restore`], also of a reference model where the checkpoint holds one.
    pub fn restore_with<C: Progress>(
        &self,
        model: &CausalLm,
        reference: Option<&ReferencePolicy>,
        optimizer: &mut AdamW,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Option<C>> {
        let mut damage = None;
        for (step, path) in self.list()?.into_iter().rev() {
            match verify::<C>(&path) {
                Ok(marker) if marker.key != self.key => {
                    return Err(Error::input(format!(
                        "checkpoint `{}` is of a run with other settings, model or data",
                        path.display()
                    ))
                    .with_hint(
                        "go back to the settings it was made with, or start over with `--fresh`",
                    ));
                }
                Ok(marker) => {
                    restore_weights(model, &path, &marker)?;
                    if let Some(reference) = reference
                        && marker.files.iter().any(|file| file.name == REFERENCE)
                    {
                        reference.restore(&path.join(REFERENCE))?;
                    }
                    optimizer.load(&path.join(OPTIMIZER))?;
                    if marker.cursor.step() != step || optimizer.num_steps() != step {
                        return Err(Error::input(format!(
                            "checkpoint `{}` holds step {} and optimiser states of step {}",
                            path.display(),
                            marker.cursor.step(),
                            optimizer.num_steps()
                        ))
                        .with_hint("delete that folder to go on from the checkpoint before it"));
                    }
                    return Ok(Some(marker.cursor));
                }
                Err(e) => {
                    warn(&format!(
                        "{e}; going back to the checkpoint before it, if there is one"
                    ));
                    damage = Some(e);
                }
            }
        }
        match damage {
            None => Ok(None),
            Some(e) => Err(e.with_hint(
                "no checkpoint before it is whole: start over with `--fresh`, or bring the files back",
            )),
        }
    }

    /// Writes a checkpoint beside its final place.
    pub fn write<C: Progress>(
        &self,
        cursor: C,
        model: &CausalLm,
        optimizer: &AdamW,
    ) -> Result<Pending> {
        self.write_with(cursor, model, None, optimizer)
    }

    /// [`Checkpoints::write`], also of a reference model.
    pub fn write_with<C: Progress>(
        &self,
        cursor: C,
        model: &CausalLm,
        reference: Option<&ReferencePolicy>,
        optimizer: &AdamW,
    ) -> Result<Pending> {
        let path = self.dir.join(format!("checkpoint-{}", cursor.step()));
        let partial = path.with_extension("partial");
        remove(&partial)?;
        fs::create_dir(&partial).map_err(|e| Error::io("creating", &partial, e))?;
        match model.adapter_config() {
            None => model.save(&partial, MAX_SHARD_BYTES)?,
            Some(_) => model.save_adapters(&partial)?,
        }
        optimizer.save(&partial.join(OPTIMIZER))?;
        if let Some(reference) = reference {
            reference.save(&partial.join(REFERENCE))?;
        }
        let mut files = Vec::new();
        for name in file_names(&partial)? {
            let file = partial.join(&name);
            sync(&file)?;
            files.push(content(&file, name)?);
        }
        let marker = Marker {
            version: 1,
            key: self.key.clone(),
            cursor,
            files,
        };
        let file = partial.join(MARKER);
        let json = serde_json::to_vec_pretty(&marker)
            .map_err(|e| Error::input(format!("writing `{}`: {e}", file.display())))?;
        File::create(&file)
            .and_then(|mut f| f.write_all(&json).and_then(|()| f.sync_all()))
            .map_err(|e| Error::io("writing", &file, e))?;
        sync(&partial)?;
        Ok(Pending { partial, path })
    }

    /// Deletes all but the newest ones up to `written`, the step just saved, and what a killed process left half-written.
    /// Those of later steps were damaged: the run went back to before them.
    pub fn prune(&self, written: usize) -> Result<()> {
        let all = self.list()?;
        let num_whole = all.partition_point(|(step, _)| *step <= written);
        let (whole, damaged) = all.split_at(num_whole);
        for (_, path) in whole[..num_whole.saturating_sub(self.keep)]
            .iter()
            .chain(damaged)
        {
            remove(path)?;
        }
        for name in entry_names(&self.dir)? {
            if name.starts_with("checkpoint-") && name.ends_with(".partial") {
                remove(&self.dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Step and folder of every checkpoint, ascending.
    fn list(&self) -> Result<Vec<(usize, PathBuf)>> {
        let mut all: Vec<(usize, PathBuf)> = entry_names(&self.dir)?
            .into_iter()
            .filter_map(|name| {
                let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
                Some((step, self.dir.join(name)))
            })
            .collect();
        all.sort_unstable();
        Ok(all)
    }
}

impl Pending {
    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it count. What was at its place is a damaged checkpoint that was passed over.
    pub fn publish(self) -> Result<()> {
        remove(&self.path)?;
        fs::rename(&self.partial, &self.path).map_err(|e| Error::io("renaming", &self.path, e))?;
        match self.path.parent() {
            Some(dir) => sync(dir),
            None => Ok(()),
        }
    }
}

/// The marker of a checkpoint whose files are all there and unchanged.
fn verify<C: Progress>(path: &Path) -> Result<Marker<C>> {
    let damaged = |what: String| {
        Error::input(format!(
            "checkpoint `{}` is damaged: {what}",
            path.display()
        ))
    };
    let json = fs::read(path.join(MARKER)).map_err(|e| damaged(format!("`{MARKER}`: {e}")))?;
    let marker: Marker<C> =
        serde_json::from_slice(&json).map_err(|e| damaged(format!("`{MARKER}`: {e}")))?;
    for expected in &marker.files {
        let file = path.join(&expected.name);
        let bytes = fs::metadata(&file)
            .map_err(|e| damaged(format!("`{}`: {e}", expected.name)))?
            .len();
        if bytes != expected.bytes {
            return Err(damaged(format!(
                "`{}` has {bytes} bytes, not {}",
                expected.name, expected.bytes
            )));
        }
        if content(&file, expected.name.clone())? != *expected {
            return Err(damaged(format!(
                "the content of `{}` has changed",
                expected.name
            )));
        }
    }
    Ok(marker)
}

/// Copies the saved weights into the model's tensors.
fn restore_weights<C>(model: &CausalLm, path: &Path, marker: &Marker<C>) -> Result<()> {
    let files: Vec<PathBuf> = marker
        .files
        .iter()
        .filter(|f| f.name.ends_with(".safetensors") && ![OPTIMIZER, REFERENCE].contains(&&*f.name))
        .map(|f| path.join(&f.name))
        .collect();
    let place =
        |e: candle_core::Error| Error::input(format!("checkpoint `{}`: {e}", path.display()));
    // SAFETY: mapped for the duration of this call; a checkpoint is never written in place
    let saved = unsafe { MmapedSafetensors::multi(&files) }.map_err(place)?;
    for parameter in model.trained().1 {
        let tensor = saved
            .load(&parameter.name, model.device())
            .and_then(|t| t.to_dtype(parameter.value.dtype()))
            .map_err(place)?;
        parameter.value.slice_set(&tensor, 0, 0).map_err(|e| {
            Error::input(format!(
                "checkpoint `{}`: `{}`: {e}",
                path.display(),
                parameter.name
            ))
        })?;
    }
    model.refresh()
}

fn content(path: &Path, name: String) -> Result<Content> {
    let file = File::open(path).map_err(|e| Error::io("reading", path, e))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut crc32c) = (0, 0);
    loop {
        let n = reader
            .read(&mut buffer)
            .map_err(|e| Error::io("reading", path, e))?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        crc32c = crc32c::crc32c_append(crc32c, &buffer[..n]);
    }
    Ok(Content {
        name,
        bytes,
        crc32c,
    })
}

/// Names of the files in `dir`, sorted.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = entry_names(dir)?;
    names.retain(|name| dir.join(name).is_file());
    names.sort_unstable();
    Ok(names)
}

fn entry_names(dir: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    list().map_err(|e| Error::io("listing", dir, e))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io("syncing", path, e))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("deleting", dir, e)),
        _ => Ok(()),
    }
}
