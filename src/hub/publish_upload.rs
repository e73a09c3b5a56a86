//! Bytes to the server, before they are in any commit: how each file goes up is the server's to say, large ones through Xet
//! or, where the server has none, by the LFS protocol in one piece or in parts. Sending what is there already costs nothing.

use super::publish_api::{Api, ApiError, Place};
use super::publish_files::{MAX_INLINE, Prepared, Source};
use super::publish_xet;
use super::wire::waiting_until;
use super::xet::Xet;
use crate::progress::{Reporter, Task};
use crate::{Error, Result};
use reqwest::blocking::{Body, RequestBuilder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Files that are asked about at once.
const BATCH: usize = 100;
/// Bytes that go up to Xet together, where it is more than one file.
const BATCH_BYTES: u64 = 4 << 30;
/// Files that go up over LFS at the same time.
const NUM_AT_ONCE: usize = 4;
/// How much longer than between two bytes a server is waited for that has all of them.
const LONGER: u32 = 5;

/// How files go up: by path, whether outside of git.
pub type Modes = BTreeMap<String, bool>;

/// Asks the server how each file goes up.
///
/// # Errors
/// It does not say, or it would ignore a file.
pub fn modes(api: &Api, place: &Place, files: &[&Prepared], create_pr: bool) -> Result<Modes> {
    let what = format!("{} does not say how files go up", place.subject());
    let pr = if create_pr { "?create_pr=1" } else { "" };
    let url = place.api(
        &api.account.endpoint,
        &format!("/preupload/{}{pr}", place.branch()),
    );
    let mut modes = Modes::new();
    for batch in files.chunks(BATCH) {
        let asked: Vec<Value> = batch
            .iter()
            .map(|file| json!({"path": file.path, "size": file.bytes, "sample": base64(&file.sample)}))
            .collect();
        let said = api
            .post(&url, &json!({ "files": asked }))
            .map_err(|e| api.explain(e, &what))?;
        let entries = said["files"].as_array().into_iter().flatten();
        let by_path: BTreeMap<&str, &Value> = entries
            .filter_map(|entry| Some((entry["path"].as_str()?, entry)))
            .collect();
        for file in batch {
            let Some(entry) = by_path.get(file.path.as_str()) else {
                return Err(Error::input(format!(
                    "{what}: `{}` is not in its answer",
                    file.path
                )));
            };
            if entry["shouldIgnore"] == true {
                return Err(Error::input(format!(
                    "the `.gitignore` of {} excludes `{}`",
                    place.subject(),
                    file.path
                ))
                .with_hint("take that line out of the `.gitignore` on the server"));
            }
            // nothing in git is empty or so large, whatever the server says
            let is_large = entry["uploadMode"] == "lfs" || file.bytes > MAX_INLINE;
            modes.insert(file.path.clone(), is_large && file.bytes > 0);
        }
    }
    Ok(modes)
}

/// Sends the large files. `sent` are the hashes of those that have arrived; they are not sent again.
///
/// # Errors
/// The server takes no large files, an upload fails for good, a file changes meanwhile.
pub fn large_files(
    api: &Api,
    place: &Place,
    files: &[&Prepared],
    create_pr: bool,
    sent: &mut HashSet<String>,
    reporter: &dyn Reporter,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    let wanted: Vec<&Prepared> = files
        .iter()
        .copied()
        .filter(|file| !sent.contains(&file.sha256) && seen.insert(file.sha256.as_str()))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let total = wanted.iter().map(|file| file.bytes).sum();
    let task: Arc<dyn Task> = reporter.task("upload", Some(total), "bytes").into();
    let mut before = 0;
    for group in wanted.chunks(BATCH) {
        let (transfer, actions) = ask(api, place, group, Xet::is_wanted())?;
        let is_xet = transfer.as_deref() == Some("xet");
        let mut rest = group;
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(if is_xet { batch_len(rest) } else { rest.len() });
            rest = next;
            match is_xet {
                true => publish_xet::upload(api, place, batch, create_pr, &*task, before)?,
                false => Sending::new(api, place, &actions, &task, before, batch).all()?,
            }
            before += batch.iter().map(|file| file.bytes).sum::<u64>();
            task.set_position(before);
            sent.extend(batch.iter().map(|file| file.sha256.clone()));
        }
    }
    Ok(())
}

/// How many of the files go up together: what has arrived together is known to the store when the next ones begin, and stays
/// known to it where a push is killed.
fn batch_len(files: &[&Prepared]) -> usize {
    let mut bytes = 0;
    let fits = |file: &&&Prepared| {
        let is_first = bytes == 0;
        bytes += file.bytes;
        is_first || bytes <= BATCH_BYTES
    };
    files.iter().take(BATCH).take_while(fits).count()
}

/// The LFS batch: by which protocol, and what to do for each hash.
fn ask(
    api: &Api,
    place: &Place,
    files: &[&Prepared],
    with_xet: bool,
) -> Result<(Option<String>, BTreeMap<String, Value>)> {
    let what = format!("{} takes no large files", place.subject());
    let objects: Vec<Value> = files
        .iter()
        .map(|file| json!({"oid": file.sha256, "size": file.bytes}))
        .collect();
    let transfers: &[&str] = match with_xet {
        true => &["basic", "multipart", "xet"],
        false => &["basic", "multipart"],
    };
    let body = json!({
        "operation": "upload",
        "transfers": transfers,
        "objects": objects,
        "hash_algo": "sha256",
        "ref": { "name": place.revision },
    });
    let endpoint = &api.account.endpoint;
    let url = format!("{}.git/info/lfs/objects/batch", place.page(endpoint));
    let said = api
        .persist(|| {
            let request = api
                .client()
                .post(&url)
                .headers(api.account.headers(&url))
                .header("accept", "application/vnd.git-lfs+json")
                .header("content-type", "application/vnd.git-lfs+json")
                .body(body.to_string());
            api.json(api.send(request, api.answer())?)
        })
        .map_err(|e| api.explain(e, &what))?;
    let mut actions = BTreeMap::new();
    for object in said["objects"].as_array().into_iter().flatten() {
        let oid = object["oid"].as_str().unwrap_or_default();
        if let Some(message) = object["error"]["message"].as_str() {
            let path = files.iter().find(|file| file.sha256 == oid);
            let path = path.map_or(oid, |file| file.path.as_str());
            return Err(Error::input(format!("{what}: `{path}`: {message}")));
        }
        actions.insert(oid.to_string(), object["actions"].clone());
    }
    Ok((said["transfer"].as_str().map(String::from), actions))
}

/// Why a file was not sent.
enum Failed {
    Api(ApiError),
    Local(Error),
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// Files on their way over LFS, several at once.
struct Sending<'a> {
    api: &'a Api,
    place: &'a Place,
    actions: &'a BTreeMap<String, Value>,
    files: &'a [&'a Prepared],
    meter: Arc<Meter>,
}

/// How much of each file has been read.
struct Meter {
    task: Arc<dyn Task>,
    before: u64,
    done: Vec<AtomicU64>,
    /// One of them has failed: the others need not go on.
    is_over: AtomicBool,
}

impl Meter {
    fn set(&self, file: usize, position: u64) {
        self.done[file].store(position, Ordering::Relaxed);
        let done: u64 = (self.done.iter())
            .map(|done| done.load(Ordering::Relaxed))
            .sum();
        self.task.set_position(self.before + done);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

impl<'a> Sending<'a> {
    fn new(
        api: &'a Api,
        place: &'a Place,
        actions: &'a BTreeMap<String, Value>,
        task: &Arc<dyn Task>,
        before: u64,
        files: &'a [&'a Prepared],
    ) -> Self {
        Self {
            api,
            place,
            actions,
            files,
            meter: Arc::new(Meter {
                task: task.clone(),
                before,
                done: files.iter().map(|_| AtomicU64::new(0)).collect(),
                is_over: AtomicBool::new(false),
            }),
        }
    }

    /// Sends them; the first error is the result, and ends the others.
    fn all(&self) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.files.len().min(NUM_AT_ONCE) {
                scope.spawn(|| {
                    while !self.meter.is_over() {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.files.len() {
                            return;
                        }
                        if let Err(error) = self.one(number) {
                            // in this order: what the others say when they are ended comes second
                            let mut failed = failed.lock().unwrap_or_else(|e| e.into_inner());
                            failed.get_or_insert(error);
                            self.meter.is_over.store(true, Ordering::Relaxed);
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

    /// One file. Addresses expire: after a refusal there is one more attempt with new ones.
    fn one(&self, number: usize) -> Result<()> {
        let (api, place, file) = (self.api, self.place, self.files[number]);
        self.meter.task.message(&file.path);
        let what = format!("`{}` cannot be sent to {}", file.path, place.subject());
        let none = Value::Null;
        let first = self.actions.get(&file.sha256).unwrap_or(&none);
        let outcome = match self.transfer(number, first) {
            Err(Failed::Api(ApiError::Status {
                status: 400 | 401 | 403 | 404,
                ..
            })) => {
                let (_, again) = ask(api, place, &[file], false)?;
                let renewed = again.get(&file.sha256).unwrap_or(&none);
                self.transfer(number, renewed)
            }
            outcome => outcome,
        };
        outcome.map_err(|failed| match failed {
            Failed::Api(error) => api.explain(error, &what),
            Failed::Local(error) => error,
        })?;
        self.meter.set(number, file.bytes);
        Ok(())
    }

    fn transfer(&self, number: usize, actions: &Value) -> std::result::Result<(), Failed> {
        let (api, file) = (self.api, self.files[number]);
        // no upload action: the server has it
        if let Some(href) = actions["upload"]["href"].as_str() {
            let header = &actions["upload"]["header"];
            let chunk = match &header["chunk_size"] {
                Value::String(text) => text.parse().ok(),
                other => other.as_u64(),
            };
            match chunk {
                Some(chunk) if chunk > 0 => self.in_parts(number, href, header, chunk)?,
                _ => {
                    self.put(number, href, Some(header), 0..file.bytes)?;
                }
            }
        }
        if let Some(href) = actions["verify"]["href"].as_str() {
            let body = json!({"oid": file.sha256, "size": file.bytes});
            api.persist(|| {
                let request = api.client().post(href).headers(api.account.headers(href));
                let request = with_headers(request, &actions["verify"]["header"])
                    .header("content-type", "application/vnd.git-lfs+json")
                    .body(body.to_string());
                api.send(request, api.answer())
            })?;
        }
        Ok(())
    }

    fn in_parts(
        &self,
        number: usize,
        href: &str,
        header: &Value,
        chunk: u64,
    ) -> std::result::Result<(), Failed> {
        let (api, file) = (self.api, self.files[number]);
        let mut addresses: Vec<(u64, &str)> = header
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.parse::<u64>().ok()?, value.as_str()?)))
            .collect();
        addresses.sort_unstable();
        if addresses.len() as u64 != file.bytes.div_ceil(chunk) {
            return Err(Failed::Local(Error::input(format!(
                "the server names {} addresses for the {} parts of `{}`",
                addresses.len(),
                file.bytes.div_ceil(chunk),
                file.path
            ))));
        }
        let mut parts = Vec::new();
        for (i, (_, address)) in addresses.iter().enumerate() {
            let from = i as u64 * chunk;
            let range = from..(from + chunk).min(file.bytes);
            let etag = self.put(number, address, None, range)?;
            let Some(etag) = etag.filter(|etag| !etag.is_empty()) else {
                return Err(Failed::Local(Error::input(format!(
                    "the server gives no mark for part {} of `{}`",
                    i + 1,
                    file.path
                ))));
            };
            parts.push(json!({"partNumber": i + 1, "etag": etag}));
        }
        let body = json!({"oid": file.sha256, "parts": parts});
        api.persist(|| {
            let request = api
                .client()
                .post(href)
                .header("accept", "application/vnd.git-lfs+json")
                .header("content-type", "application/vnd.git-lfs+json")
                .body(body.to_string());
            api.send(request, LONGER * api.patience.transfer)
        })?;
        Ok(())
    }

    /// Some bytes of a file to an address, with as many attempts as it takes; returns the mark that the server gives them.
    fn put(
        &self,
        number: usize,
        href: &str,
        header: Option<&Value>,
        range: std::ops::Range<u64>,
    ) -> std::result::Result<Option<String>, Failed> {
        let (api, file) = (self.api, self.files[number]);
        let length = range.end - range.start;
        let mut local = None;
        let sent = api.persist(|| {
            let reader = match open(file, range.start) {
                Ok(reader) => reader.take(length),
                Err(error) => {
                    local = Some(error);
                    // not worth another attempt
                    return Err(ApiError::Stopped);
                }
            };
            let num_read = Arc::new(AtomicU64::new(0));
            let is_left = Arc::new(AtomicBool::new(false));
            let counted = Counted {
                reader,
                meter: self.meter.clone(),
                file: number,
                from: range.start,
                num_read: num_read.clone(),
                is_left: is_left.clone(),
            };
            let request = api.client().put(href);
            let request = match header {
                Some(header) => with_headers(request, header),
                None => request,
            };
            let request = request.body(Body::sized(counted, length));
            let stopped = || api.stopped() || self.meter.is_over();
            let patience = api.patience.transfer;
            let mut progress = (0, Instant::now());
            // slow is not dead; dead is who takes nothing for so long
            let mut is_late = || {
                let now = num_read.load(Ordering::Relaxed);
                if now != progress.0 {
                    progress = (now, Instant::now());
                }
                let longer = if now == length { LONGER } else { 1 };
                progress.1.elapsed() >= longer * patience
            };
            let answer = waiting_until(&mut is_late, &stopped, move || request.send());
            let response = match answer {
                Ok(answer) => api.answered(answer, patience)?,
                Err(unfinished) => {
                    is_left.store(true, Ordering::Relaxed);
                    return Err(ApiError::of(unfinished, patience));
                }
            };
            let etag = response.headers().get("etag");
            Ok(etag.and_then(|etag| etag.to_str().ok()).map(String::from))
        });
        match local {
            Some(error) => Err(Failed::Local(error)),
            None => Ok(sent?),
        }
    }
}

fn open(file: &Prepared, from: u64) -> Result<Box<dyn Read + Send>> {
    match &file.source {
        Source::File(path) => {
            let mut opened = File::open(path).map_err(|e| Error::io("opening", path, e))?;
            opened
                .seek(SeekFrom::Start(from))
                .map_err(|e| Error::io("reading", path, e))?;
            Ok(Box::new(opened))
        }
        Source::Text(text) => {
            let mut cursor = Cursor::new(text.clone().into_bytes());
            cursor.set_position(from);
            Ok(Box::new(cursor))
        }
    }
}

/// The headers that an action comes with; parts and their size are none.
fn with_headers(mut request: RequestBuilder, header: &Value) -> RequestBuilder {
    for (name, value) in header.as_object().into_iter().flatten() {
        let is_part = name == "chunk_size" || name.bytes().all(|b| b.is_ascii_digit());
        if let (false, Some(value)) = (is_part, value.as_str()) {
            request = request.header(name, value);
        }
    }
    request
}

/// Tells the meter what is read, and ends where nobody waits for it any more.
struct Counted<R> {
    reader: R,
    meter: Arc<Meter>,
    file: usize,
    /// Where in the file the reader began.
    from: u64,
    num_read: Arc<AtomicU64>,
    is_left: Arc<AtomicBool>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.is_left.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("nobody waits for it any more"));
        }
        let n = self.reader.read(buffer)?;
        let num_read = self.num_read.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
        self.meter.set(self.file, self.from + num_read);
        Ok(n)
    }
}

/// Bytes as text, with padding.
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let three = [0, 1, 2].map(|i| u32::from(group.get(i).copied().unwrap_or(0)));
        let bits = three[0] << 16 | three[1] << 8 | three[2];
        for i in 0..4 {
            match i <= group.len() {
                true => text.push(char::from(LETTERS[(bits >> (18 - 6 * i) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
