//! One repository at one commit: its files as the server lists them, brought into the cache, several at a time, the cached
//! ones looked at first. hf-hub's listing loses the sha256 of large files.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::check;
use super::download::{Download, Listed, Meter};
use super::failure::interrupted;
use super::fetch::Repo;
use super::select::{ADAPTER, INDEX, Part, SINGLE};
use super::wire::{Pages, encoded};
use crate::progress::{Reporter, Silent};
use crate::{Error, Result};

/// Files fetched or hashed at the same time.
const NUM_WORKERS: usize = 8;
/// From so many bytes on, looking at what is cached shows its progress.
const SHOWN: u64 = 256 << 20;

/// One repository at one commit, files listed.
pub struct Listing<'a> {
    pub repo: &'a Repo<'a>,
    pub commit: String,
    pub files: Vec<Listed>,
    /// Paths of entries that cannot be fetched as they are listed. Nothing is wrong until one of them is wanted.
    odd: Vec<String>,
}

impl<'a> Listing<'a> {
    /// Asks for every page of the listing.
    ///
    /// # Errors
    /// The server does not say, or its pages have no end.
    pub fn read(repo: &'a Repo<'a>, commit: String, reporter: &dyn Reporter) -> Result<Self> {
        let (what, id, wire) = (repo.what, repo.id, &repo.hub.wire);
        let strange = |why: String| {
            Error::input(format!(
                "the listing of {what} `{id}` cannot be used: {why}"
            ))
            .with_hint("check `HF_ENDPOINT`: this is no answer of a Hugging Face Hub")
        };
        let rest = format!("tree/{}?recursive=true", encoded(&commit, false));
        let first = format!("{}/api/{}/{id}/{rest}", wire.endpoint(), repo.kind);
        let mut pages =
            Pages::new(&first).ok_or_else(|| strange("the Hub has no address".into()))?;
        let (mut files, mut odd) = (Vec::new(), Vec::new());
        let mut page = Some(first);
        while let Some(address) = page {
            let (entries, next) = wire
                .get_json(&address, &|| reporter.stop_requested())
                .map_err(|failure| repo.explain(failure, None))?;
            let Some(entries) = entries.as_array() else {
                return Err(strange("it is no list".into()));
            };
            for entry in entries.iter().filter(|entry| entry["type"] != "directory") {
                match listed(entry) {
                    Some(file) => files.push(file),
                    None => odd.push(entry["path"].as_str().unwrap_or_default().to_string()),
                }
            }
            page = pages.follow(next, entries.len()).map_err(strange)?;
        }
        if let Some(first) = odd.first() {
            reporter.warn(&format!(
                "{what} `{id}`: {} of the {} entries listed are left out, `{first}` among them: without size and hash, or \
                 outside the repository",
                odd.len(),
                odd.len() + files.len()
            ));
        }
        Ok(Self {
            repo,
            commit,
            files,
            odd,
        })
    }

    pub fn find(&self, path: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Every path, also of what cannot be fetched: whether it is wanted shows later.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let files = self.files.iter().map(|file| &file.path);
        files.chain(&self.odd).map(String::as_str)
    }

    fn has(&self, path: &str) -> bool {
        self.paths().any(|listed| listed == path)
    }

    /// Whether this is an adapter without the model it is for.
    pub fn is_adapter(&self) -> bool {
        let has = |path: &str| self.has(path);
        has(ADAPTER[0]) && !has(SINGLE) && !has(INDEX)
    }

    /// The files of an adapter.
    pub fn adapter(&self, part: Part) -> Result<Vec<String>> {
        let all = ADAPTER.map(String::from);
        match part {
            Part::WithoutWeights => Ok(all[..1].to_vec()),
            Part::Everything if !self.has(ADAPTER[1]) => Err(Error::input(format!(
                "{} `{}` holds an adapter without `{}`",
                self.repo.what, self.repo.id, ADAPTER[1]
            ))
            .with_hint("only safetensors weights are read; choose a repository that has them")),
            Part::Everything => Ok(all.to_vec()),
        }
    }

    /// The weight files of a model: the shards of its index, else the one file.
    pub fn weights(&self, reporter: &dyn Reporter) -> Result<Vec<String>> {
        let (what, id) = (self.repo.what, self.repo.id);
        if !self.has(INDEX) {
            return match self.has(SINGLE) {
                true => Ok(vec![SINGLE.into()]),
                false => Err(Error::input(format!(
                    "{what} `{id}` has no `{SINGLE}` and no `{INDEX}`"
                ))
                .with_hint("only safetensors weights are read; choose a repository that has them")),
            };
        }
        self.fetch(&[INDEX.to_string()], reporter)?;
        let path = self.repo.cache.snapshot(&self.commit).join(INDEX);
        let index = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let mut files = self.repo.shards(&index)?;
        if let Some(missing) = files.iter().find(|file| !self.has(file)) {
            return Err(Error::input(format!(
                "`{INDEX}` of {what} `{id}` names `{missing}`, which the repository does not have"
            )));
        }
        files.push(INDEX.into());
        Ok(files)
    }

    /// Sees to it that these files are in the cache and whole.
    pub fn fetch(&self, paths: &[String], reporter: &dyn Reporter) -> Result<()> {
        let repo = self.repo;
        if let Some(path) = paths.iter().find(|path| self.odd.contains(path)) {
            return Err(Error::input(format!(
                "the server lists `{path}` of {} `{}` without size and hash, or outside the repository",
                repo.what, repo.id
            ))
            .with_hint("check `HF_ENDPOINT`: this is no answer of a Hugging Face Hub"));
        }
        let wanted: Vec<&Listed> = paths.iter().filter_map(|path| self.find(path)).collect();
        let mut absent = self.absent(&wanted, reporter)?;
        if absent.is_empty() {
            return Ok(());
        }
        let total = absent.iter().map(|file| file.size).sum();
        self.check_space(&absent, total)?;
        // the largest first: it is what the others wait for in the end
        absent.sort_by_key(|file| std::cmp::Reverse(file.size));
        let wire = &repo.hub.wire;
        let download = Download::new(wire, &repo.cache, repo.kind, repo.id, &self.commit);
        let meter = Meter::new(reporter.task(repo.id, Some(total), "bytes"), reporter);
        in_parallel(&absent, &meter, |file| {
            let fetched = download.fetch(file, &meter);
            fetched.map_err(|failure| repo.explain(failure, Some(&file.path)))
        })
    }

    /// The files of these that are not in the cache, or not as the server has them.
    fn absent<'f>(
        &self,
        wanted: &[&'f Listed],
        reporter: &dyn Reporter,
    ) -> Result<Vec<&'f Listed>> {
        let repo = self.repo;
        let snapshot = repo.cache.snapshot(&self.commit);
        let (there, absent): (Vec<_>, Vec<_>) = wanted
            .iter()
            .copied()
            .partition(|file| snapshot.join(&file.path).exists());
        let absent = Mutex::new(absent);
        let meter = checking(repo.id, there.iter().map(|file| file.size).sum(), reporter);
        in_parallel(&there, &meter, |file| {
            let path = snapshot.join(&file.path);
            let stopped = || meter.is_stopped();
            let hash = Some(file.hash.as_str());
            if let Some(fault) = check::fault(&path, Some(file.size), hash, &stopped)? {
                reporter.warn(&format!(
                    "cached `{}` of `{}` is damaged ({fault}) and is fetched again",
                    file.path, repo.id
                ));
                repo.cache.forget(&self.commit, &file.path);
                absent.lock().unwrap_or_else(|e| e.into_inner()).push(file);
            }
            meter.add(file.size);
            Ok(())
        })?;
        Ok(absent.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    /// Says that the disk is too small before it is full.
    fn check_space(&self, absent: &[&Listed], total: u64) -> Result<()> {
        let cache = &self.repo.cache;
        let folder = cache.create()?;
        let there = |file: &&Listed| {
            let partial = cache
                .incomplete(&file.hash)
                .metadata()
                .map_or(0, |data| data.len());
            let whole = cache
                .blob(&file.hash)
                .metadata()
                .map_or(0, |data| data.len());
            partial.max(whole).min(file.size)
        };
        let needed = total.saturating_sub(absent.iter().map(there).sum());
        match free_space(folder) {
            Some(free) if free < needed => Err(Error::input(format!(
                "{} `{}` needs {} more, and `{}` has {} free",
                self.repo.what,
                self.repo.id,
                in_words(needed),
                folder.display(),
                in_words(free)
            ))
            .with_hint("free some space, or set `HF_HOME` to a folder on a larger disk")),
            _ => Ok(()),
        }
    }
}

/// An entry that can be fetched: with size and hash, and within the repository.
fn listed(entry: &Value) -> Option<Listed> {
    let text = |value: &Value| value.as_str().map(str::to_string);
    if entry["type"] != "file" {
        return None;
    }
    let path = text(&entry["path"])?;
    // such a path would leave the cache
    if path.contains('\\') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    let large = &entry["lfs"];
    let hash = text(&large["oid"]).or_else(|| text(&entry["oid"]).filter(|_| large.is_null()));
    let hash = hash.filter(|h| matches!(h.len(), 40 | 64) && check::is_hex(h))?;
    Some(Listed {
        path,
        size: large["size"].as_u64().or(entry["size"].as_u64())?,
        hash: hash.to_ascii_lowercase(),
        xet_hash: text(&entry["xetHash"]),
    })
}

fn in_words(num_bytes: u64) -> String {
    match num_bytes {
        1_000_000_000.. => format!("{:.1} GB", num_bytes as f64 / 1e9),
        _ => format!("{:.1} MB", num_bytes as f64 / 1e6),
    }
}

/// Bytes that a program may still write at `folder`.
#[cfg(unix)]
#[allow(clippy::unnecessary_cast)] // the fields are narrower on other systems
fn free_space(folder: &std::path::Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut data = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a path that ends in zero and room for the answer
    let is_known = unsafe { libc::statvfs(path.as_ptr(), data.as_mut_ptr()) } == 0;
    // SAFETY: filled by the call, and all zeros are a value too
    let data = unsafe { data.assume_init() };
    is_known.then_some((data.f_bavail as u64).saturating_mul(data.f_frsize as u64))
}

#[cfg(not(unix))]
fn free_space(_: &std::path::Path) -> Option<u64> {
    None
}

/// A meter for hashing what is cached; shown only where it takes a while.
pub fn checking<'a>(id: &str, total: u64, reporter: &'a dyn Reporter) -> Meter<'a> {
    let label = format!("checking {id}");
    let task = match total {
        SHOWN.. => reporter.task(&label, Some(total), "bytes"),
        _ => Silent.task(&label, None, "bytes"),
    };
    Meter::new(task, reporter)
}

/// Does `work` for each item, several at a time, until one fails; that one's error is the result.
pub fn in_parallel<I: Sync>(
    items: &[I],
    meter: &Meter,
    work: impl Fn(&I) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..items.len().min(NUM_WORKERS) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if meter.is_stopped() {
                        return;
                    }
                    if let Err(error) = work(item) {
                        // in this order: what the others say when they are told to stop comes second
                        failed
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .get_or_insert(error);
                        meter.stop();
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None if meter.is_interrupted() => Err(interrupted()),
        None => Ok(()),
    }
}
