//! One repository at one commit: its files brought into the cache, several at a time, the cached ones looked at first.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::check;
use super::download::{Download, Listed, Meter};
use super::fetch::Repo;
use super::select::{ADAPTER, INDEX, Part, SINGLE};
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
}

impl Listing<'_> {
    pub fn find(&self, path: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Whether this is an adapter without the model it is for.
    pub fn is_adapter(&self) -> bool {
        let has = |path: &str| self.find(path).is_some();
        has(ADAPTER[0]) && !has(SINGLE) && !has(INDEX)
    }

    /// The files of an adapter.
    pub fn adapter(&self, part: Part) -> Result<Vec<String>> {
        let all = ADAPTER.map(String::from);
        match part {
            Part::WithoutWeights => Ok(all[..1].to_vec()),
            Part::Everything if self.find(ADAPTER[1]).is_none() => Err(Error::input(format!(
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
        if self.find(INDEX).is_none() {
            return match self.find(SINGLE) {
                Some(_) => Ok(vec![SINGLE.into()]),
                None => Err(Error::input(format!(
                    "{what} `{id}` has no `{SINGLE}` and no `{INDEX}`"
                ))
                .with_hint("only safetensors weights are read; choose a repository that has them")),
            };
        }
        self.fetch(&[INDEX.to_string()], reporter)?;
        let path = self.repo.cache.snapshot(&self.commit).join(INDEX);
        let index = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let mut files = self.repo.shards(&index)?;
        if let Some(missing) = files.iter().find(|file| self.find(file).is_none()) {
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
            if let Some(fault) = check::fault(&path, Some(file.size), Some(&file.hash))? {
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
                        meter.stop();
                        failed
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .get_or_insert(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
