//! What the judge has said before, on disk, by the hash of what it was asked: a run that is repeated costs nothing.
//!
//! One small file an answer, written beside and renamed: several processes may share a folder, and a crash leaves no half
//! answer. A file that cannot be read as an answer is asked for again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The name of a question: the hash of everything that makes it this one.
pub(super) fn key_of(question: &Value) -> String {
    hex::encode(Sha256::digest(question.to_string().as_bytes()))
}

pub(super) struct Judged {
    folder: PathBuf,
    /// Makes names of files that are being written.
    num_written: AtomicU64,
}

impl Judged {
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            num_written: AtomicU64::new(0),
        })
    }

    /// The answer to `key`, if there is one.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let path = self.path(key);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("reading", path, e)),
        }
    }

    /// Keeps the answer to `key`.
    pub fn put(&self, key: &str, answer: &impl Serialize) -> Result<()> {
        let path = self.path(key);
        let number = self.num_written.fetch_add(1, Ordering::Relaxed);
        let beside = path.with_extension(format!("{}-{number}.partial", std::process::id()));
        let json = serde_json::to_vec(answer).map_err(|e| {
            Error::input(format!(
                "an answer of the judge cannot be written as JSON: {e}"
            ))
        })?;
        let write = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&beside, &json)?;
            std::fs::rename(&beside, &path)
        };
        write().map_err(|e| Error::io("writing", &path, e))
    }

    /// Spread over folders by the first two digits: there may be a million of them.
    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(&key[..2]).join(format!("{key}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_kept_by_what_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let judged = Judged::open(&dir.path().join("a/b")).unwrap();
        let (one, two) = (key_of(&json!({"q": 1})), key_of(&json!({"q": 2})));
        assert_eq!(judged.get::<Value>(&one).unwrap(), None);
        judged.put(&one, &json!([1])).unwrap();
        judged.put(&one, &json!([3])).unwrap();
        judged.put(&two, &json!([2])).unwrap();
        assert_eq!(judged.get::<Value>(&one).unwrap(), Some(json!([3])));
        assert_eq!(judged.get::<Value>(&two).unwrap(), Some(json!([2])));
        // half an answer is none
        std::fs::write(judged.path(&one), "[1").unwrap();
        assert_eq!(judged.get::<Value>(&one).unwrap(), None);
    }
}
