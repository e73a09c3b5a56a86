//! Whether a fetched file is what the server has: its size as listed, its content by the hash that names it.
//!
//! A file is hashed once a process: while nothing has touched it since, it is not read again.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::failure::interrupted;
use crate::{Error, Result};

/// A digest of either kind: sha256 of large files, sha1 of a git blob for small ones.
pub enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// For content of `size` bytes that `hash` names; `None` where it is the name of no hash.
    pub fn new(hash: &str, size: u64) -> Option<Self> {
        if !is_hex(hash) {
            return None;
        }
        match hash.len() {
            64 => Some(Self::Sha256(Sha256::new())),
            40 => Some(Self::Git(
                Sha1::new().chain_update(format!("blob {size}\0")),
            )),
            _ => None,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(digest) => digest.update(bytes),
            Self::Git(digest) => digest.update(bytes),
        }
    }

    pub fn finish(self) -> String {
        match self {
            Self::Sha256(digest) => hex::encode(digest.finalize()),
            Self::Git(digest) => hex::encode(digest.finalize()),
        }
    }
}

pub fn is_hex(hash: &str) -> bool {
    hash.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What is wrong with the file, `None` when it is right. `hash` is a sha256 (large files) or a git blob's sha1 (small
/// ones); any other name says nothing about the content.
///
/// # Errors
/// A file that cannot be read; the user stops meanwhile.
pub fn fault(
    path: &Path,
    size: Option<u64>,
    hash: Option<&str>,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<String>> {
    let io = |e| Error::io("reading", path, e);
    let mut file = File::open(path).map_err(io)?;
    let data = file.metadata().map_err(io)?;
    let found = data.len();
    if let Some(size) = size.filter(|size| *size != found) {
        return Ok(Some(format!("{size} bytes expected, {found} arrived")));
    }
    let Some((hash, mut hasher)) = hash.and_then(|hash| Some((hash, Hasher::new(hash, found)?)))
    else {
        return Ok(None);
    };
    if is_known(&data, hash) {
        return Ok(None);
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(io)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        if stopped() {
            return Err(interrupted());
        }
    }
    let digest = hasher.finish();
    if digest.eq_ignore_ascii_case(hash) {
        know(&data, hash);
        return Ok(None);
    }
    Ok(Some(format!("hash {hash} expected, {digest} arrived")))
}

/// The file at `path` has just been written with content that has this hash.
pub fn trust(path: &Path, hash: &str) {
    if let Ok(data) = std::fs::metadata(path) {
        know(&data, hash);
    }
}

/// What a file was when its hash was found right: any change to it changes one of these.
type State = [i64; 6];

static KNOWN: Mutex<Option<HashMap<State, String>>> = Mutex::new(None);

#[cfg(unix)]
fn state(data: &Metadata) -> Option<State> {
    use std::os::unix::fs::MetadataExt;
    Some([
        data.dev() as i64,
        data.ino() as i64,
        data.size() as i64,
        data.mtime() * 1_000_000_000 + data.mtime_nsec(),
        data.ctime(),
        data.ctime_nsec(),
    ])
}

#[cfg(not(unix))]
fn state(_: &Metadata) -> Option<State> {
    None
}

fn is_known(data: &Metadata, hash: &str) -> bool {
    let known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    let found = state(data).and_then(|state| known.as_ref()?.get(&state));
    found.is_some_and(|known| known.eq_ignore_ascii_case(hash))
}

fn know(data: &Metadata, hash: &str) {
    if let Some(state) = state(data) {
        let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
        known
            .get_or_insert_default()
            .insert(state, hash.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(path: &Path, size: Option<u64>, hash: Option<&str>) -> Result<Option<String>> {
        super::fault(path, size, hash, &|| false)
    }

    #[test]
    fn sizes_and_both_kinds_of_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for hash in [git, sha, "W/\"etag\""] {
            assert_eq!(fault(&path, Some(6), Some(hash)).unwrap(), None);
        }
        assert_eq!(
            fault(&path, Some(7), Some(git)).unwrap().unwrap(),
            "7 bytes expected, 6 arrived"
        );
        let wrong = fault(&path, Some(6), Some(&git.replace('c', "d")))
            .unwrap()
            .unwrap();
        assert!(wrong.ends_with(&format!("{git} arrived")), "{wrong}");
        let other = "0".repeat(64);
        let stopped = super::fault(&path, None, Some(&other), &|| true);
        assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    }

    #[test]
    fn a_file_that_was_right_is_looked_at_again_once_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "hello\n").unwrap();
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(fault(&path, None, Some(git)).unwrap(), None);
        // the clock of a file system may be coarse
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "hallo\n").unwrap();
        assert!(fault(&path, None, Some(git)).unwrap().is_some());
    }
}
