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
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

use reqwest::blocking::Response;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use xet::xet_session::XetDownloadStream;

use super::cache::RepoCache;
use super::check::{self, Hasher};
use super::failure::{Failure, root_cause};
use super::wire::{MAX_SILENT, TICK, Wire, backoff, encoded, pause, waiting};
use super::xet::{self as store, Xet};
use crate::Error;
use crate::progress::{Reporter, Task};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Pieces that are read ahead.
const NUM_AHEAD: usize = 4;
/// After so many bytes the disk begins to write, so that little is left to wait for in the end.
const FLUSHED: u64 = 32 << 20;

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

    /// Whether there is no point in going on: another file has failed, or the user stops.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.reporter.stop_requested()
    }

    /// Whether it is the user who stops.
    pub fn is_interrupted(&self) -> bool {
        self.reporter.stop_requested()
    }
}

/// Bytes of a file in their order.
enum Source {
    /// After so many bytes that are there already.
    Plain(Response, u64),
    Xet(Box<XetDownloadStream>),
}

/// A part of a file.
type Piece = Box<dyn AsRef<[u8]> + Send>;

impl Source {
    /// Passes on what arrives until it ends, breaks off, or nobody takes it any more.
    fn feed(mut self, out: &SyncSender<Result<Piece, Failure>>) {
        let mut buffer = match &self {
            Self::Plain(..) => vec![0; PIECE],
            Self::Xet(_) => Vec::new(),
        };
        loop {
            let next: Result<Option<Piece>, Failure> = match &mut self {
                Self::Plain(response, skipped) => match response.read(&mut buffer) {
                    Ok(0) => Ok(None),
                    Ok(n) => {
                        let old = (n as u64).min(*skipped);
                        *skipped -= old;
                        Ok(Some(Box::new(buffer[old as usize..n].to_vec())))
                    }
                    Err(e) => Err(Failure::Broken(root_cause(&e))),
                },
                Self::Xet(stream) => match stream.blocking_next() {
                    Ok(Some(bytes)) => Ok(Some(Box::new(bytes))),
                    Ok(None) => Ok(None),
                    Err(_) => Err(store::failed("it breaks off")),
                },
            };
            let Some(next) = next.transpose() else { return };
            let is_last = next.is_err();
            if out.send(next).is_err() || is_last {
                return;
            }
        }
    }

    /// The same from a thread of its own: what arrives is read while the last piece is hashed, and whoever waits for the
    /// next one can look up.
    fn read_ahead(self) -> std::io::Result<Receiver<Result<Piece, Failure>>> {
        let (sender, receiver) = sync_channel(NUM_AHEAD);
        std::thread::Builder::new()
            .name("download".into())
            .spawn(move || self.feed(&sender))?;
        Ok(receiver)
    }
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
            .lock(&file.hash, waiting, &|| meter.is_stopped())
            .map_err(Failure::Local)?;
        // another process, or another commit with the same content, may have brought it
        let is_there = blob.exists()
            && check::fault(&blob, Some(file.size), Some(&file.hash), &|| {
                meter.is_stopped()
            })
            .map_err(Failure::Local)?
            .is_none();
        if is_there {
            meter.add(file.size);
        } else {
            let partial = self.cache.incomplete(&file.hash);
            if !self.fill(&partial, file, meter)? {
                return Ok(());
            }
            check::trust(&blob, &file.hash);
        }
        (self.cache.link(self.commit, &file.path, &file.hash)).map_err(Failure::Local)
    }

    /// Brings the partial file to its end and keeps it; `false` where it was told to stop. What does not have its hash in the end is
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
            let Some(start) = begin(&mut out, &mut hasher, file.size, meter).map_err(local)? else {
                return Ok(false);
            };
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
                self.cache.keep(&out, &file.hash).map_err(Failure::Local)?;
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
            let from_xet = may_xet.then(|| self.open_xet(file, at, meter)).flatten();
            let is_xet = from_xet.is_some();
            let before = at;
            let end = match from_xet {
                Some(stream) => self.copy(stream, out, &mut at, hasher, file, meter),
                None => match self.open_plain(file, at, meter) {
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
                    let most = match failure {
                        Failure::Silent(_) => self.wire.num_retries().min(MAX_SILENT),
                        _ => self.wire.num_retries(),
                    };
                    if attempt >= most {
                        return Err(Cut::Remote(failure));
                    }
                    pause(backoff(attempt), &|| meter.is_stopped()).map_err(|_| Cut::Stopped)?;
                    attempt += 1;
                }
                Err(cut) => return Err(cut),
            }
        }
        Ok(())
    }

    /// Nothing where the store cannot be had, or not soon enough.
    fn open_xet(&self, file: &Listed, at: u64, meter: &Meter) -> Option<Source> {
        let hash = file.xet_hash.clone()?;
        let (patience, stopped) = (self.wire.patience.answer, || meter.is_stopped());
        let xet = (self.xet).get_or_init(|| {
            let path = format!("{}/xet-read-token/{}", self.api, self.commit);
            let url = format!("{}{path}", self.wire.endpoint());
            let token = self.wire.token().map(String::from);
            let open = move || Xet::open(url, token.as_deref()).ok();
            Xet::is_wanted()
                .then(|| waiting(patience, &stopped, open).ok().flatten())
                .flatten()
        });
        let (xet, size) = (xet.clone()?, file.size);
        let stream = waiting(patience, &stopped, move || xet.stream(&hash, at, size).ok());
        Some(Source::Xet(Box::new(stream.ok().flatten()?)))
    }

    fn open_plain(&self, file: &Listed, at: u64, meter: &Meter) -> Result<Source, Failure> {
        let path = format!(
            "/{}/resolve/{}/{}",
            self.address,
            self.commit,
            encoded(&file.path, true)
        );
        let request = || {
            let request = self.wire.request(Method::GET, &path);
            match at {
                0 => request,
                _ => request.header(RANGE, format!("bytes={at}-")),
            }
        };
        let response = self.wire.send(request, &|| meter.is_stopped())?;
        let begins_at = match response.status() {
            StatusCode::PARTIAL_CONTENT => content_start(&response),
            _ => Some(0),
        };
        match begins_at {
            Some(start) if start == at => Ok(Source::Plain(response, 0)),
            // a server that knows no ranges sends everything
            Some(0) => Ok(Source::Plain(response, at)),
            _ => Err(Failure::Damaged("another part than asked for".into())),
        }
    }

    /// Writes what a source gives until it ends.
    fn copy(
        &self,
        source: Source,
        out: &mut File,
        at: &mut u64,
        hasher: &mut Hasher,
        file: &Listed,
        meter: &Meter,
    ) -> Result<(), Cut> {
        let local = |e| Cut::Local(Error::io("writing", self.cache.incomplete(&file.hash), e));
        let pieces = source.read_ahead().map_err(local)?;
        let patience = self.wire.patience.transfer;
        let (mut last, mut flushed) = (Instant::now(), *at);
        loop {
            let piece = match pieces.recv_timeout(TICK) {
                Ok(piece) => piece.map_err(Cut::Remote)?,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if meter.is_stopped() => return Err(Cut::Stopped),
                Err(RecvTimeoutError::Timeout) if last.elapsed() >= patience => {
                    return Err(Cut::Remote(Failure::Silent(patience)));
                }
                Err(RecvTimeoutError::Timeout) => continue,
            };
            let bytes = (*piece).as_ref();
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
            last = Instant::now();
            if *at - flushed >= FLUSHED {
                begin_writing(out);
                flushed = *at;
            }
        }
        if *at < file.size {
            let why = format!("{} bytes expected, {at} arrived", file.size);
            return Err(Cut::Remote(Failure::Broken(why)));
        }
        Ok(())
    }
}

/// Asks the system to begin to write what it holds of the file; nothing is waited for.
#[cfg(target_os = "linux")]
fn begin_writing(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: an open file, and no memory is passed; it is advice, so that a refusal does not matter
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(not(target_os = "linux"))]
fn begin_writing(_: &File) {}

/// Hashes what is there of a partial file and stands at its end; a file longer than it may be begins anew. `None` where it
/// was told to stop.
fn begin(
    file: &mut File,
    hasher: &mut Hasher,
    size: u64,
    meter: &Meter,
) -> std::io::Result<Option<u64>> {
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(Some(at));
        }
        if meter.is_stopped() {
            return Ok(None);
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
