//! The layout of the Hub's cache on disk, shared with Python: `blobs/`, `snapshots/COMMIT/`, `refs/`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::failure::interrupted;
use super::wire::TICK;
use crate::{Error, Result};

/// One repository's folder in the cache.
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// `kind` is `models` or `datasets`.
    pub fn new(cache: &Path, kind: &str, id: &str) -> Self {
        let name = format!("{kind}--{}", id.replace('/', "--"));
        Self {
            locks: cache.join(".locks").join(&name),
            folder: cache.join(name),
        }
    }

    /// The folder of everything, made where it is missing.
    pub fn create(&self) -> Result<&Path> {
        let blobs = self.folder.join("blobs");
        std::fs::create_dir_all(&blobs).map_err(|e| Error::io("creating", &blobs, e))?;
        Ok(&self.folder)
    }

    /// Where the content with this hash lies.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(hash)
    }

    /// Where the content with this hash lies while it is incomplete; only who holds its lock may write there.
    pub fn incomplete(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{hash}.incomplete"))
    }

    /// Waits until no other process writes the content with this hash; dropping the file ends the claim. `waiting` is
    /// called when it takes longer. It is the lock that Python takes.
    ///
    /// # Errors
    /// The lock cannot be made; the user stops while it is waited for.
    pub fn lock(
        &self,
        hash: &str,
        waiting: impl FnOnce(),
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<File>> {
        let path = self.locks.join(format!("{hash}.lock"));
        let io = |e| Error::io("locking", &path, e);
        std::fs::create_dir_all(&self.locks).map_err(io)?;
        let file = File::create(&path).map_err(io)?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if stopped() => return Err(interrupted()),
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    std::thread::sleep(TICK);
                }
                // some network file systems know no locks; what is fetched is checked all the same
                Err(TryLockError::Error(_)) => return Ok(None),
            }
        }
    }

    /// Gives whole content, all of it on the disk, the name of its hash, and sees to it that the name is on the disk too: a
    /// power cut leaves either the beginning or the whole.
    pub fn keep(&self, partial: &File, hash: &str) -> Result<()> {
        let (from, to) = (self.incomplete(hash), self.blob(hash));
        let synced = partial.sync_all();
        synced.map_err(|e| Error::io("writing", &from, e))?;
        std::fs::rename(&from, &to).map_err(|e| Error::io("moving", &from, e))?;
        sync_folder(&self.folder.join("blobs"));
        Ok(())
    }

    /// Makes the content with this hash the file of a commit, in one step.
    pub fn link(&self, commit: &str, file: &str, hash: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let parent = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(parent).map_err(|e| Error::io("creating", parent, e))?;
        let up = "../".repeat(2 + file.matches('/').count());
        // beside the locks, where a kill leaves it out of everybody's way
        let beside = self.locks.join(format!("{hash}.{}", std::process::id()));
        let _ = std::fs::remove_file(&beside);
        std::fs::create_dir_all(&self.locks)
            .and_then(|()| place(&format!("{up}blobs/{hash}"), &self.blob(hash), &beside))
            .and_then(|()| std::fs::rename(&beside, &path))
            .map_err(|e| Error::io("linking", &path, e))
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
        // a name of its own for every thread of every process
        static NUM: AtomicUsize = AtomicUsize::new(0);
        let num = NUM.fetch_add(1, Ordering::Relaxed);
        let beside = path.with_file_name(format!(".{commit}.{}.{num}", std::process::id()));
        std::fs::write(&beside, commit)
            .and_then(|()| std::fs::rename(&beside, &path))
            .map_err(|e| Error::io("writing", &path, e))
    }

    /// The name of a cached file's content, which is its hash; `None` where links are not used.
    pub fn blob_name(&self, commit: &str, file: &str) -> Option<String> {
        let target = std::fs::read_link(self.snapshot(commit).join(file)).ok()?;
        Some(target.file_name()?.to_str()?.to_string())
    }

    /// Removes a file from a cached commit, so that it is fetched anew. Its content stays where it is until then: another
    /// commit may have it, and whoever fetches looks at it again.
    pub fn forget(&self, commit: &str, file: &str) {
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

/// Some file systems do not sync folders; the rename is as good as theirs then.
#[cfg(unix)]
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) {}

#[cfg(unix)]
fn place(relative: &str, _: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

#[cfg(not(unix))]
fn place(_: &str, blob: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::copy(blob, path).map(|_| ())
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

/// Whether this is the folder of a commit in a cache: `models--org--name/snapshots/COMMIT`.
pub fn is_snapshot(folder: &Path) -> bool {
    let mut names = folder.components().rev().map(|part| part.as_os_str());
    let mut next = || names.next().and_then(|name| name.to_str());
    next().is_some_and(is_commit)
        && next() == Some("snapshots")
        && next().is_some_and(|name| name.starts_with("models--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_cache_are_known() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let is = |path: String| is_snapshot(Path::new(&path));
        assert!(is(format!("/hub/models--a--b/snapshots/{commit}")));
        assert!(is(format!("models--a--b/snapshots/{commit}/")));
        assert!(!is(format!("/hub/models--a--b/refs/{commit}")));
        assert!(!is(format!("/hub/mine/snapshots/{commit}")));
        assert!(!is("/hub/models--a--b/snapshots/main".into()));
        assert!(!is(String::new()));
    }
}
