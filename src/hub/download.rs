//! One file from the Hub into the cache: claimed, gone on with where an earlier attempt stopped, hashed as it arrives, and
//! put in its place only when it is whole. A kill at any moment leaves the beginning of the file, which the next call
//! hashes and goes on from.
//!
//! hf-hub's download starts anew after every cut, keeps error pages for files and checks neither size nor hash.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::blocking::Response;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use xet::xet_session::XetDownloadStream;

use super::cache::RepoCache;
use super::check::{self, Hasher};
use super::failure::{Failure, root_cause};
use super::wire::{Wire, backoff, encoded};
use super::xet::{self as store, Xet};
use crate::Error;
use crate::progress::{Reporter, Task};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// One file of a listing.
#[derive(Debug)]
pub struct Listed {
    pub path: String,
    pub size: u64,
    /// sha256 of large files, git's sha1 of small ones; the name of its content in the cache.
    pub hash: String,
    pub xet_hash: Option<String>,
}

/// Where files of one repository at one commit come from and go to.
pub struct Download<'a> {
    pub wire: &'a Wire,
    pub cache: &'a RepoCache,
    pub commit: &'a str,
    /// The repository's path at the Hub: `org/name`, `datasets/org/name`.
    pub address: String,
    /// The same below `/api`.
    pub api: String,
    xet: OnceLock<Option<Xet>>,
}

/// What all files of a call have in common: how much has arrived, and whether there is still a point.
pub struct Meter<'a> {
    task: Box<dyn Task>,
    num_bytes: AtomicU64,
    stopped: AtomicBool,
    reporter: &'a dyn Reporter,
}

impl<'a> Meter<'a> {
    pub fn new(task: Box<dyn Task>, reporter: &'a dyn Reporter) -> Self {
        Self {
            task,
            num_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            reporter,
        }
    }

    pub fn add(&self, num_bytes: u64) {
        let before = self.num_bytes.fetch_add(num_bytes, Ordering::Relaxed);
        self.task.set_position(before + num_bytes);
    }

    fn take_back(&self, num_bytes: u64) {
        let before = self.num_bytes.fetch_sub(num_bytes, Ordering::Relaxed);
        self.task.set_position(before.saturating_sub(num_bytes));
    }

    /// Other files need not go on: one has failed.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// Bytes of a file in their order.
enum Source {
    Plain(Response),
    Xet(Box<XetDownloadStream>),
}

/// How an attempt ended that did not bring the whole file.
enum Cut {
    Remote(Failure),
    Local(Error),
    Stopped,
}

impl<'a> Download<'a> {
    /// `kind` is `models` or `datasets`.
    pub fn new(
        wire: &'a Wire,
        cache: &'a RepoCache,
        kind: &str,
        id: &str,
        commit: &'a str,
    ) -> Self {
        Self {
            wire,
            cache,
            commit,
            address: match kind {
                "models" => id.to_string(),
                _ => format!("{kind}/{id}"),
            },
            api: format!("/api/{kind}/{id}"),
            xet: OnceLock::new(),
        }
    }

    /// Sees to it that the file is in the cache, whole.
    pub fn fetch(&self, file: &Listed, meter: &Meter) -> Result<(), Failure> {
        self.cache.create().map_err(Failure::Local)?;
        let blob = self.cache.blob(&file.hash);
        let waiting = || {
            meter.reporter.note(&format!(
                "waiting for the content of `{}`, which is being fetched already",
                file.path
            ));
        };
        let _lock = self
            .cache
            .lock(&file.hash, waiting)
            .map_err(Failure::Local)?;
        // another process, or another commit with the same content, may have brought it
        let is_there = blob.exists()
            && check::fault(&blob, Some(file.size), Some(&file.hash))
                .map_err(Failure::Local)?
                .is_none();
        if is_there {
            meter.add(file.size);
        } else {
            let partial = self.cache.incomplete(&file.hash);
            if !self.fill(&partial, file, meter)? {
                return Ok(());
            }
            std::fs::rename(&partial, &blob)
                .map_err(|e| Failure::Local(Error::io("moving", &partial, e)))?;
            check::trust(&blob, &file.hash);
        }
        (self.cache.link(self.commit, &file.path, &file.hash)).map_err(Failure::Local)
    }

    /// Brings the partial file to its end; `false` where it was told to stop. What does not have its hash in the end is
    /// fetched once more from the beginning, the plain way.
    fn fill(&self, partial: &Path, file: &Listed, meter: &Meter) -> Result<bool, Failure> {
        let local = |e| Failure::Local(Error::io("writing", partial, e));
        let mut out = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(partial)
            .map_err(local)?;
        let mut may_xet = true;
        let mut is_last = false;
        loop {
            let Some(mut hasher) = Hasher::new(&file.hash, file.size) else {
                return Err(Failure::Other(format!("`{}` is no hash", file.hash)));
            };
            let start = begin(&mut out, &mut hasher, file.size).map_err(local)?;
            meter.add(start);
            let damage = match self.receive(&mut out, start, &mut hasher, file, may_xet, meter) {
                Ok(()) => None,
                Err(Cut::Stopped) => return Ok(false),
                Err(Cut::Local(error)) => return Err(Failure::Local(error)),
                Err(Cut::Remote(Failure::Damaged(why))) => Some(why),
                Err(Cut::Remote(failure)) => return Err(failure),
            };
            let digest = hasher.finish();
            if damage.is_none() && digest.eq_ignore_ascii_case(&file.hash) {
                return Ok(true);
            }
            // it must not stay where others go on with it
            meter.take_back(out.stream_position().map_err(local)?);
            out.set_len(0).map_err(local)?;
            if is_last {
                let _ = std::fs::remove_file(partial);
                let differs = || format!("hash {} expected, {digest} arrived", file.hash);
                return Err(Failure::Damaged(damage.unwrap_or_else(differs)));
            }
            (is_last, may_xet) = (true, false);
        }
    }

    /// Writes from `at` to the end of the file. A connection that breaks is made anew from where it broke; attempts count
    /// only while nothing arrives.
    fn receive(
        &self,
        out: &mut File,
        mut at: u64,
        hasher: &mut Hasher,
        file: &Listed,
        may_xet: bool,
        meter: &Meter,
    ) -> Result<(), Cut> {
        let mut may_xet = may_xet && file.xet_hash.is_some();
        let mut attempt = 0;
        while at < file.size {
            let from_xet = may_xet.then(|| self.open_xet(file, at)).flatten();
            let is_xet = from_xet.is_some();
            let before = at;
            let end = match from_xet {
                Some(stream) => self.copy(stream, out, &mut at, hasher, file, meter),
                None => match self.open_plain(file, at) {
                    Ok(source) => self.copy(source, out, &mut at, hasher, file, meter),
                    Err(failure) => return Err(Cut::Remote(failure)),
                },
            };
            match end {
                Ok(()) => {}
                // the plain way may still be open, and goes on where this one stopped
                Err(Cut::Remote(_)) if is_xet => may_xet = false,
                Err(Cut::Remote(failure)) if failure.may_pass() => {
                    attempt = if at > before { 0 } else { attempt };
                    if attempt >= self.wire.num_retries() {
                        return Err(Cut::Remote(failure));
                    }
                    std::thread::sleep(backoff(attempt));
                    attempt += 1;
                }
                Err(cut) => return Err(cut),
            }
        }
        Ok(())
    }

    fn open_xet(&self, file: &Listed, at: u64) -> Option<Source> {
        let hash = file.xet_hash.as_deref()?;
        let path = format!("{}/xet-read-token/{}", self.api, self.commit);
        let xet = (self.xet).get_or_init(|| {
            Xet::is_wanted()
                .then(|| Xet::open(self.wire, &path).ok())
                .flatten()
        });
        let stream = xet.as_ref()?.stream(hash, at, file.size).ok()?;
        Some(Source::Xet(Box::new(stream)))
    }

    fn open_plain(&self, file: &Listed, at: u64) -> Result<Source, Failure> {
        let path = format!(
            "/{}/resolve/{}/{}",
            self.address,
            self.commit,
            encoded(&file.path, true)
        );
        let mut response = self.wire.send(|| {
            let request = self.wire.request(Method::GET, &path);
            match at {
                0 => request,
                _ => request.header(RANGE, format!("bytes={at}-")),
            }
        })?;
        let begins_at = match response.status() {
            StatusCode::PARTIAL_CONTENT => content_start(&response),
            _ => Some(0),
        };
        match begins_at {
            Some(start) if start == at => {}
            // a server that knows no ranges sends everything
            Some(0) => {
                let skipped = std::io::copy(&mut (&mut response).take(at), &mut std::io::sink());
                skipped.map_err(|e| Failure::Broken(root_cause(&e)))?;
            }
            _ => return Err(Failure::Damaged("another part than asked for".into())),
        }
        Ok(Source::Plain(response))
    }

    /// Passes on what a source gives until it ends.
    fn copy(
        &self,
        mut source: Source,
        out: &mut File,
        at: &mut u64,
        hasher: &mut Hasher,
        file: &Listed,
        meter: &Meter,
    ) -> Result<(), Cut> {
        let mut buffer = vec![
            0;
            if matches!(source, Source::Plain(_)) {
                PIECE
            } else {
                0
            }
        ];
        let local = |e| Cut::Local(Error::io("writing", self.cache.incomplete(&file.hash), e));
        let mut take = |bytes: &[u8]| {
            if bytes.len() as u64 > file.size - *at {
                let size = file.size;
                return Err(Cut::Remote(Failure::Damaged(format!(
                    "{size} bytes expected, more arrived"
                ))));
            }
            if meter.is_stopped() {
                return Err(Cut::Stopped);
            }
            out.write_all(bytes).map_err(local)?;
            hasher.update(bytes);
            *at += bytes.len() as u64;
            meter.add(bytes.len() as u64);
            Ok(())
        };
        match &mut source {
            Source::Plain(response) => loop {
                match response.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => take(&buffer[..n])?,
                    Err(e) => return Err(Cut::Remote(Failure::Broken(root_cause(&e)))),
                }
            },
            Source::Xet(stream) => loop {
                match stream.blocking_next() {
                    Ok(Some(bytes)) => take(&bytes)?,
                    Ok(None) => break,
                    Err(_) => return Err(Cut::Remote(store::failed("it breaks off"))),
                }
            },
        }
        if *at < file.size {
            let why = format!("{} bytes expected, {at} arrived", file.size);
            return Err(Cut::Remote(Failure::Broken(why)));
        }
        Ok(())
    }
}

/// Hashes what is there of a partial file and stands at its end; a file longer than it may be begins anew.
fn begin(file: &mut File, hasher: &mut Hasher, size: u64) -> std::io::Result<u64> {
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(at);
        }
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
}

/// Where a part of a file begins: `Content-Range: bytes START-END/SIZE`.
fn content_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}
