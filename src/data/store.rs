//! The token store: rows of tokens with their mask and name, in files that are mapped into memory.
//!
//! | file | holds |
//! |---|---|
//! | `tokens.bin` | u32, all rows end to end |
//! | `trained.bin` | one byte a token: 1 where it is learnt |
//! | `rows.bin` | for each row where it ends in `tokens.bin` (in tokens) and in `names.bin` (in bytes), u64 each |
//! | `names.bin` | the rows' names end to end |
//! | `store.json` | version, key, size and CRC of each file, report; written last |
//!
//! All are written beside, synced and renamed. A store without a `store.json` that fits its files does not exist. Filling
//! one from traces is in [`super::build`].

use super::report::BuildReport;
use crate::{Error, Result};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const FILES: [&str; 4] = ["tokens.bin", "trained.bin", "rows.bin", "names.bin"];
const INDEX: &str = "store.json";

/// A finished store, read-only.
pub struct Store {
    dir: PathBuf,
    key: String,
    report: BuildReport,
    tokens: Mmap,
    trained: Mmap,
    rows: Mmap,
    names: Mmap,
}

#[derive(Debug, Deserialize, Serialize)]
struct Index {
    version: u32,
    key: String,
    files: Vec<Part>,
    report: BuildReport,
}

/// What a file has to be.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Part {
    name: String,
    size: u64,
    crc32c: u32,
}

impl Store {
    /// Opens the store in `dir`, after checking every byte of it.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        let bytes = fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&path, &e.to_string()))?;
        if index.version != VERSION {
            let what = format!("version {}, expected {VERSION}", index.version);
            return Err(damaged(&path, &what));
        }
        let map = |name: &str| -> Result<Mmap> {
            let path = dir.join(name);
            let file = File::open(&path).map_err(|e| Error::io("opening", &path, e))?;
            // SAFETY: a store's files are never changed once they have their name, only replaced
            let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("mapping", &path, e))?;
            let part = index.files.iter().find(|part| part.name == name);
            let fits = part.is_some_and(|part| {
                part.size == map.len() as u64 && part.crc32c == crc32c::crc32c(&map)
            });
            match fits {
                true => Ok(map),
                false => Err(damaged(&path, "its bytes are not those that were written")),
            }
        };
        let [tokens, trained, rows, names] = FILES;
        let store = Self {
            tokens: map(tokens)?,
            trained: map(trained)?,
            rows: map(rows)?,
            names: map(names)?,
            key: index.key,
            report: index.report,
            dir: dir.to_path_buf(),
        };
        store.check_ends()?;
        Ok(store)
    }

    /// That the parts fit together, so that no row reaches beyond its file.
    fn check_ends(&self) -> Result<()> {
        let whole = self.rows.len().is_multiple_of(size_of::<[u64; 2]>())
            && self.tokens.len() == self.trained.len() * size_of::<u32>();
        if whole && !self.is_empty() {
            let ends = self.ends();
            let rising = ends
                .windows(2)
                .all(|w| w[0][0] < w[1][0] && w[0][1] <= w[1][1]);
            if rising
                && ends[ends.len() - 1] == [self.trained.len() as u64, self.names.len() as u64]
            {
                return Ok(());
            }
        }
        Err(damaged(&self.dir, "its files do not fit together"))
    }

    fn ends(&self) -> &[[u64; 2]] {
        // a mapping begins on a page, so it is aligned
        bytemuck::cast_slice(&self.rows)
    }

    /// Where row `i` begins and ends in one of the files.
    fn range(&self, i: usize, which: usize) -> std::ops::Range<usize> {
        let ends = self.ends();
        let start = if i == 0 { 0 } else { ends[i - 1][which] };
        start as usize..ends[i][which] as usize
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len() / size_of::<[u64; 2]>()
    }

    /// Whether there is no row; a finished store has at least one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of row `i`.
    pub fn tokens(&self, i: usize) -> &[u32] {
        &bytemuck::cast_slice(&self.tokens)[self.range(i, 0)]
    }

    /// For each token of row `i`, 1 where it is learnt.
    pub fn trained(&self, i: usize) -> &[u8] {
        &self.trained[self.range(i, 0)]
    }

    /// Where row `i` came from.
    pub fn name(&self, i: usize) -> String {
        String::from_utf8_lossy(&self.names[self.range(i, 1)]).into_owned()
    }

    /// Hash of all that the store was made of, hexadecimal.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What became of the rows when it was made.
    pub fn report(&self) -> &BuildReport {
        &self.report
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::input(format!(
        "token store `{}` is damaged: {what}",
        path.display()
    ))
    .with_hint("run the recipe again: the store is then made anew")
}

/// Fills a store; nothing of it can be opened before [`Writer::finish`].
pub(super) struct Writer {
    dir: PathBuf,
    files: [Beside; 4],
    num_tokens: u64,
}

/// One file under its temporary name.
struct Beside {
    name: &'static str,
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    crc: u32,
}

impl Writer {
    /// Starts anew in `dir`, which is created; a store that was there is gone.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
        remove(&dir.join(INDEX))?;
        let [a, b, c, d] = FILES;
        Ok(Self {
            dir: dir.to_path_buf(),
            files: [
                Beside::create(dir, a)?,
                Beside::create(dir, b)?,
                Beside::create(dir, c)?,
                Beside::create(dir, d)?,
            ],
            num_tokens: 0,
        })
    }

    /// Adds a row, which is not empty.
    pub fn push(&mut self, tokens: &[u32], trained: &[bool], name: &str) -> Result<()> {
        self.num_tokens += tokens.len() as u64;
        let [token_file, trained_file, rows, names] = &mut self.files;
        token_file.write(bytemuck::cast_slice(tokens))?;
        let bytes: Vec<u8> = trained.iter().map(|&t| u8::from(t)).collect();
        trained_file.write(&bytes)?;
        names.write(name.as_bytes())?;
        rows.write(bytemuck::cast_slice(&[self.num_tokens, names.size]))
    }

    /// Syncs and renames everything, the index last, and opens the store.
    pub fn finish(self, key: &str, report: &BuildReport) -> Result<Store> {
        let mut files = Vec::with_capacity(FILES.len());
        for beside in self.files {
            files.push(beside.finish(&self.dir)?);
        }
        let index = Index {
            version: VERSION,
            key: key.to_string(),
            files,
            report: report.clone(),
        };
        let path = self.dir.join(INDEX);
        let text = serde_json::to_vec_pretty(&index)
            .map_err(|e| Error::input(format!("`{}`: {e}", path.display())))?;
        let mut beside = Beside::create(&self.dir, INDEX)?;
        beside.write(&text)?;
        beside.finish(&self.dir)?;
        // the names themselves are on disk only when the folder is
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| Error::io("syncing", &self.dir, e))?;
        Store::open(&self.dir)
    }

    /// Takes away what was written.
    pub fn discard(self) {
        for beside in self.files {
            drop(beside.file);
            // what cannot be removed is in nobody's way: the next build begins these files anew
            let _ = fs::remove_file(beside.path);
        }
    }
}

impl Beside {
    fn create(dir: &Path, name: &'static str) -> Result<Self> {
        let path = dir.join(format!("{name}.tmp"));
        let file = File::create(&path).map_err(|e| Error::io("creating", &path, e))?;
        Ok(Self {
            name,
            path,
            file: BufWriter::with_capacity(1 << 20, file),
            size: 0,
            crc: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.size += bytes.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.file
            .write_all(bytes)
            .map_err(|e| Error::io("writing", &self.path, e))
    }

    fn finish(self, dir: &Path) -> Result<Part> {
        let failed = |e| Error::io("writing", &self.path, e);
        let file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        let path = dir.join(self.name);
        fs::rename(&self.path, &path).map_err(|e| Error::io("renaming to", &path, e))?;
        Ok(Part {
            name: self.name.to_string(),
            size: self.size,
            crc32c: self.crc,
        })
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("deleting", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> Store {
        let mut writer = Writer::create(dir).unwrap();
        writer
            .push(&[1, 2, 3], &[false, true, true], "a:1")
            .unwrap();
        writer.push(&[7], &[true], "über:2").unwrap();
        let report = BuildReport {
            kept: 2,
            ..BuildReport::default()
        };
        writer.finish("k", &report).unwrap()
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let store = Store::open(folder.path()).unwrap();
        assert_eq!((store.len(), store.key(), store.report().kept), (2, "k", 2));
        assert_eq!(
            (store.tokens(0), store.tokens(1)),
            (&[1, 2, 3][..], &[7][..])
        );
        assert_eq!(
            (store.trained(0), store.trained(1)),
            (&[0, 1, 1][..], &[1][..])
        );
        assert_eq!(
            (store.name(0), store.name(1)),
            ("a:1".into(), "über:2".into())
        );
        assert!(!folder.path().join("tokens.bin.tmp").exists());
    }

    #[test]
    fn one_wrong_byte_anywhere_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        for name in FILES {
            written(folder.path());
            let path = folder.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            bytes[0] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = Store::open(folder.path()).err().unwrap().to_string();
            assert!(
                error.contains(name) && error.contains("is damaged"),
                "{error}"
            );
            fs::write(&path, &bytes[1..]).unwrap();
            assert!(Store::open(folder.path()).is_err());
        }
        written(folder.path());
        fs::write(folder.path().join(INDEX), "{").unwrap();
        assert!(Store::open(folder.path()).is_err());
    }

    #[test]
    fn a_store_that_was_not_finished_is_none() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let mut writer = Writer::create(folder.path()).unwrap();
        writer.push(&[1], &[true], "x").unwrap();
        drop(writer);
        assert!(Store::open(folder.path()).is_err());
    }
}
