//! The layout of the Hub's cache on disk, shared with Python: `blobs/`, `snapshots/COMMIT/`, `refs/`.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One repository's folder in the cache.
pub struct RepoCache {
    folder: PathBuf,
}

impl RepoCache {
    /// `kind` is `models` or `datasets`.
    pub fn new(cache: &Path, kind: &str, id: &str) -> Self {
        Self {
            folder: cache.join(format!("{kind}--{}", id.replace('/', "--"))),
        }
    }

    /// Where the files of a commit lie.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a branch or tag pointed to when it was last fetched.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Remembers what a branch or tag points to, for a later run without network.
    pub fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
        let beside = path.with_file_name(format!(".{}.{}", commit, std::process::id()));
        std::fs::write(&beside, commit)
            .and_then(|()| std::fs::rename(&beside, &path))
            .map_err(|e| Error::io("writing", &path, e))
    }

    /// The name of a cached file's content, which is its hash; `None` where links are not used.
    pub fn blob_name(&self, commit: &str, file: &str) -> Option<String> {
        let target = std::fs::read_link(self.snapshot(commit).join(file)).ok()?;
        Some(target.file_name()?.to_str()?.to_string())
    }

    /// Removes a cached file and its content, so that it is fetched anew.
    pub fn forget(&self, commit: &str, file: &str) {
        if let Some(blob) = self.blob_name(commit, file) {
            let _ = std::fs::remove_file(self.folder.join("blobs").join(blob));
        }
        let _ = std::fs::remove_file(self.snapshot(commit).join(file));
    }

    /// Every file of a cached commit, as paths with `/`, with its size.
    pub fn files(&self, commit: &str) -> Vec<(String, u64)> {
        let mut files = Vec::new();
        walk(&self.snapshot(commit), "", &mut files);
        files.sort();
        files
    }
}

/// Files below `folder`, links followed, broken links left out.
pub fn walk(folder: &Path, prefix: &str, files: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = format!("{prefix}{name}");
        match std::fs::metadata(entry.path()) {
            Ok(data) if data.is_dir() => walk(&entry.path(), &format!("{path}/"), files),
            Ok(data) => files.push((path, data.len())),
            Err(_) => {}
        }
    }
}

/// Whether this is a full commit hash.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}
