//! The run folder: one process at a time, one recipe for ever, stages finished once.
//!
//! A stage is finished when `RUN/<stage>/done.json` holds its key. Every file is written beside, synced and renamed, so
//! that a half-written one is never read.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// An open run folder; the lock is held until it is dropped.
pub struct RunFolder {
    root: PathBuf,
    _lock: File,
    /// It was not there before.
    is_new: bool,
}

/// What says that a stage is finished.
#[derive(Debug, Deserialize, Serialize)]
struct Done {
    key: String,
    /// How long the process that finished it worked on it; earlier ones that were stopped are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    result: Value,
}

impl RunFolder {
    /// Opens or creates the run folder `root`.
    ///
    /// # Errors
    /// It holds files and is no run folder, so that they would be overwritten; another process runs in it; it cannot be
    /// created or written.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(".lock");
        let is_new = !path.exists();
        if is_new && !root.join("plan.json").exists() && holds_anything(root)? {
            return Err(Error::input(format!(
                "`{}` holds files and is not the folder of a run",
                root.display()
            ))
            .with_hint("give the run a folder of its own with `--run-dir`"));
        }
        fs::create_dir_all(root).map_err(|e| Error::io("creating", root, e))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("opening", &path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::input(format!(
                    "another `distill` is running in `{}`",
                    root.display()
                ))
                .with_hint("wait for it, or give this run a folder of its own with `--run-dir`"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", &path, e)),
        }
        Ok(Self {
            root: root.to_path_buf(),
            _lock: lock,
            is_new,
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a stage, created.
    pub fn stage(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(|e| Error::io("creating", &path, e))?;
        Ok(path)
    }

    /// The key of the run this folder belongs to, where one has been started.
    pub fn owner(&self) -> Result<Option<String>> {
        let path = self.root.join("plan.json");
        if !path.exists() {
            return Ok(None);
        }
        let plan: Value = read_json(&path)?;
        Ok(plan.get("key").and_then(Value::as_str).map(String::from))
    }

    /// Deletes what a run left here, the lock aside. Only names that a run writes are touched.
    pub fn clear(&self, stages: &[String]) -> Result<()> {
        for name in stages.iter().map(String::as_str).chain([
            "recipe.toml",
            "plan.json",
            "run.json",
            "report.html",
        ]) {
            let path = self.root.join(name);
            let gone = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match gone {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("deleting", &path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Deletes the folder of a stage; half a deletion is never taken for a stage.
    pub fn remove_stage(&self, name: &str) -> Result<()> {
        let (path, aside) = (self.root.join(name), self.root.join(format!(".{name}.old")));
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("deleting", path, e))
            }
            _ => Ok(()),
        };
        remove(&aside)?;
        match fs::rename(&path, &aside) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("renaming", &path, e)),
            Ok(()) => {}
        }
        remove(&aside)
    }

    /// The stages of the plan that this folder holds; none where it cannot be read.
    pub fn earlier_stages(&self) -> Result<Vec<String>> {
        let plan: Value = read_json(&self.root.join("plan.json")).unwrap_or_default();
        let stages = plan["stages"].as_array().into_iter().flatten();
        let names = stages.filter_map(|stage| stage["name"].as_str());
        // a name is one folder of this one, whatever the file says
        let is_name = |name: &&str| !name.starts_with('.') && !name.contains(['/', '\\']);
        Ok(names.filter(is_name).map(String::from).collect())
    }

    /// The result of `stage` where it finished with this key and the files it leaves are there.
    pub fn finished(&self, stage: &str, key: &str, leaves: &[&str]) -> Result<Option<Value>> {
        let dir = self.root.join(stage);
        let path = dir.join("done.json");
        if !path.exists() || !leaves.iter().all(|file| dir.join(file).exists()) {
            return Ok(None);
        }
        let done: Done = read_json(&path)?;
        Ok((done.key == key).then_some(done.result))
    }

    /// Marks `stage` as finished; the process has worked on it since `started`.
    pub fn finish(&self, stage: &str, key: &str, result: &Value, started: Instant) -> Result<()> {
        let done = Done {
            key: key.to_string(),
            seconds: Some(started.elapsed().as_secs_f64()),
            result: result.clone(),
        };
        write_json(&self.stage(stage)?.join("done.json"), &done)
    }
}

impl Drop for RunFolder {
    /// A run that was refused leaves no empty folder behind.
    fn drop(&mut self) {
        let only_lock = || {
            let mut entries = fs::read_dir(&self.root).ok()?;
            let first = entries.next()?.ok()?.file_name();
            (entries.next().is_none() && first == ".lock").then_some(())
        };
        if self.is_new && only_lock().is_some() {
            let _ = fs::remove_file(self.root.join(".lock"));
            let _ = fs::remove_dir(&self.root);
        }
    }
}

fn holds_anything(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("reading", folder, e)),
    }
}

/// SHA-256 of a serialisable value, hexadecimal.
pub fn key_of(value: &impl Serialize) -> Result<String> {
    let bytes =
        serde_json::to_vec(value).map_err(|e| Error::input(format!("hashing settings: {e}")))?;
    Ok(hex::encode(Sha256::digest(&bytes)))
}

/// Reads a JSON file.
///
/// # Errors
/// The file cannot be read or does not hold what is expected.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| Error::io("reading", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::input(format!("`{}` is damaged: {e}", path.display()))
            .with_hint("delete the file, or start over with `--fresh`")
    })
}

/// Writes a JSON file beside, syncs and renames it.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::input(format!("`{}`: {e}", path.display())))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Writes a file beside, syncs and renames it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| Error::io("writing", path, e))
}

/// A folder of the system's place for such things; deleted when dropped.
pub struct ScratchDir(PathBuf);

impl ScratchDir {
    /// A new folder for `purpose`.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn new(purpose: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("distill-{purpose}-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| Error::io("creating", &path, e))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // what cannot be deleted is left to the system's own cleaning
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path()).unwrap();
        let second = RunFolder::open(dir.path()).err().unwrap();
        assert!(second.to_string().contains("another `distill` is running"));
        drop(first);
        RunFolder::open(dir.path()).unwrap();
    }

    #[test]
    fn a_folder_with_other_files_is_no_run_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (other, new) = (dir.path().join("other"), dir.path().join("new"));
        fs::create_dir(&other).unwrap();
        fs::write(other.join("mine.txt"), "x").unwrap();
        let refused = RunFolder::open(&other).err().unwrap().to_string();
        assert!(refused.ends_with("holds files and is not the folder of a run"));
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
        // refused later on: nothing stays
        drop(RunFolder::open(&new).unwrap());
        assert!(!new.exists());
        let run = RunFolder::open(&new).unwrap();
        fs::write(new.join("plan.json"), "{").unwrap();
        assert!(run.earlier_stages().unwrap().is_empty());
        drop(run);
        RunFolder::open(&new).unwrap();
        assert!(new.exists());
    }

    #[test]
    fn a_stage_is_finished_for_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::open(dir.path()).unwrap();
        assert!(run.finished("sft", "a", &[]).unwrap().is_none());
        run.finish("sft", "a", &serde_json::json!({"steps": 3}), Instant::now())
            .unwrap();
        assert_eq!(run.finished("sft", "a", &[]).unwrap().unwrap()["steps"], 3);
        assert!(run.finished("sft", "b", &[]).unwrap().is_none());
        // what it left has been deleted since
        assert!(run.finished("sft", "a", &["model"]).unwrap().is_none());
        fs::write(dir.path().join("sft/done.json"), b"{").unwrap();
        assert!(
            run.finished("sft", "a", &[])
                .unwrap_err()
                .to_string()
                .contains("damaged")
        );
    }

    #[test]
    fn clearing_touches_only_what_a_run_writes() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::open(dir.path()).unwrap();
        run.finish("sft", "a", &Value::Null, Instant::now())
            .unwrap();
        fs::write(dir.path().join("mine.txt"), b"x").unwrap();
        run.clear(&["sft".into()]).unwrap();
        assert!(!dir.path().join("sft").exists() && dir.path().join("mine.txt").exists());
    }

    #[test]
    fn keys_depend_on_content() {
        assert_eq!(key_of(&"a").unwrap(), key_of(&"a").unwrap());
        assert_ne!(key_of(&"a").unwrap(), key_of(&"b").unwrap());
        assert_eq!(key_of(&"a").unwrap().len(), 64);
    }
}
