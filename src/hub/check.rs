//! Whether a fetched file is what the server has: its size as listed, its content by the hash that names it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// What is wrong with the file, `None` when it is right. `hash` is a sha256 (large files) or a git blob's sha1 (small
/// ones); any other name says nothing about the content.
pub fn fault(path: &Path, size: Option<u64>, hash: Option<&str>) -> Result<Option<String>> {
    let io = |e| Error::io("reading", path, e);
    let mut file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if let Some(size) = size.filter(|size| *size != found) {
        return Ok(Some(format!("{size} bytes expected, {found} arrived")));
    }
    let Some(hash) =
        hash.filter(|h| matches!(h.len(), 40 | 64) && h.bytes().all(|b| b.is_ascii_hexdigit()))
    else {
        return Ok(None);
    };
    let digest = if hash.len() == 64 {
        feed(&mut file, Sha256::new()).map_err(io)?
    } else {
        feed(
            &mut file,
            Sha1::new().chain_update(format!("blob {found}\0")),
        )
        .map_err(io)?
    };
    Ok((!digest.eq_ignore_ascii_case(hash))
        .then(|| format!("hash {hash} expected, {digest} arrived")))
}

fn feed<D: Digest>(file: &mut File, mut digest: D) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
    }
    Ok(hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
