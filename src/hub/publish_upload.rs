//! Bytes to the server, before they are in any commit: how each file goes up is the server's to say, large ones through Xet
//! or, where the server has none, by the LFS protocol in one piece or in parts. Sending what is there already costs nothing.

use super::publish_api::{Api, ApiError, Place};
use super::publish_files::{MAX_INLINE, Prepared, Source};
use super::publish_xet;
use crate::progress::{Reporter, Task};
use crate::{Error, Result};
use reqwest::blocking::{Body, RequestBuilder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

/// Files that are asked about at once.
const BATCH: usize = 100;
/// Bytes that go up together, where it is more than one file.
const BATCH_BYTES: u64 = 4 << 30;
/// An upload that is slower is taken for dead.
const MIN_BYTES_PER_S: u64 = 20_000;

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
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let (batch, next) = rest.split_at(batch_len(rest));
        rest = next;
        let (transfer, actions) = ask(api, place, batch, true)?;
        if transfer.as_deref() == Some("xet") {
            publish_xet::upload(api, place, batch, create_pr, &*task, before)?;
        } else {
            let mut done = before;
            for file in batch {
                task.message(&file.path);
                send(api, place, file, &actions, &task, done)?;
                done += file.bytes;
                task.set_position(done);
            }
        }
        before += batch.iter().map(|file| file.bytes).sum::<u64>();
        task.set_position(before);
        sent.extend(batch.iter().map(|file| file.sha256.clone()));
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
                .timeout(Duration::from_secs(120))
                .body(body.to_string());
            api.json(api.send(request)?)
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

/// One file by the LFS protocol. Addresses expire: after a refusal there is one more attempt with new ones.
fn send(
    api: &Api,
    place: &Place,
    file: &Prepared,
    actions: &BTreeMap<String, Value>,
    task: &Arc<dyn Task>,
    before: u64,
) -> Result<()> {
    let what = format!("`{}` cannot be sent to {}", file.path, place.subject());
    let none = Value::Null;
    let first = actions.get(&file.sha256).unwrap_or(&none);
    let outcome = match transfer(api, file, first, task, before) {
        Err(Failed::Api(ApiError::Status {
            status: 400 | 401 | 403 | 404,
            ..
        })) => {
            let (_, again) = ask(api, place, &[file], false)?;
            let renewed = again.get(&file.sha256).unwrap_or(&none);
            transfer(api, file, renewed, task, before)
        }
        outcome => outcome,
    };
    outcome.map_err(|failed| match failed {
        Failed::Api(error) => api.explain(error, &what),
        Failed::Local(error) => error,
    })
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

fn transfer(
    api: &Api,
    file: &Prepared,
    actions: &Value,
    task: &Arc<dyn Task>,
    before: u64,
) -> std::result::Result<(), Failed> {
    // no upload action: the server has it
    if let Some(href) = actions["upload"]["href"].as_str() {
        let header = &actions["upload"]["header"];
        let chunk = match &header["chunk_size"] {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        match chunk {
            Some(chunk) if chunk > 0 => in_parts(api, file, href, header, chunk, task, before)?,
            _ => {
                put(api, file, href, Some(header), 0..file.bytes, task, before)?;
            }
        }
    }
    if let Some(href) = actions["verify"]["href"].as_str() {
        let body = json!({"oid": file.sha256, "size": file.bytes});
        api.persist(|| {
            let request = api.client().post(href).headers(api.account.headers(href));
            let request = with_headers(request, &actions["verify"]["header"])
                .header("content-type", "application/vnd.git-lfs+json")
                .timeout(Duration::from_secs(120))
                .body(body.to_string());
            api.send(request)
        })?;
    }
    Ok(())
}

fn in_parts(
    api: &Api,
    file: &Prepared,
    href: &str,
    header: &Value,
    chunk: u64,
    task: &Arc<dyn Task>,
    before: u64,
) -> std::result::Result<(), Failed> {
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
        let etag = put(api, file, address, None, range, task, before)?;
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
            .timeout(Duration::from_secs(120))
            .body(body.to_string());
        api.send(request)
    })?;
    Ok(())
}

/// Some bytes of a file to an address, with as many attempts as it takes; returns the mark that the server gives them.
fn put(
    api: &Api,
    file: &Prepared,
    href: &str,
    header: Option<&Value>,
    range: std::ops::Range<u64>,
    task: &Arc<dyn Task>,
    before: u64,
) -> std::result::Result<Option<String>, Failed> {
    let length = range.end - range.start;
    let timeout = Duration::from_secs(60 + length / MIN_BYTES_PER_S);
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
        let counted = Counted {
            reader,
            task: task.clone(),
            done: before + range.start,
        };
        let request = api.client().put(href).timeout(timeout);
        let request = match header {
            Some(header) => with_headers(request, header),
            None => request,
        };
        let response = api.send(request.body(Body::sized(counted, length)))?;
        let etag = response.headers().get("etag");
        Ok(etag.and_then(|etag| etag.to_str().ok()).map(String::from))
    });
    match local {
        Some(error) => Err(Failed::Local(error)),
        None => Ok(sent?),
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

/// Tells a task what is read.
struct Counted<R> {
    reader: R,
    task: Arc<dyn Task>,
    done: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.done += n as u64;
        self.task.set_position(self.done);
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
