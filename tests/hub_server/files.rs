//! The stand-in's files: what `resolve` answers, and uploads of large files over LFS.

use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use xet_client::cas_types::HexMerkleHash;

use super::answer::{self, Source, error};
use super::fault::Fault;
use super::store::{Entry, Large};
use super::{Asked, Shared};

/// Parts of this size where a file is uploaded in several.
const PART: u64 = 5 << 20;

#[derive(Clone)]
struct OnDisk(PathBuf);

impl Source for OnDisk {
    async fn read(&self, start: u64, end: u64) -> io::Result<Bytes> {
        let mut file = tokio::fs::File::open(&self.0).await?;
        file.seek(SeekFrom::Start(start)).await?;
        let mut buffer = vec![0; (end - start) as usize];
        file.read_exact(&mut buffer).await?;
        Ok(buffer.into())
    }
}

#[derive(Clone)]
struct InXet(Arc<Shared>, HexMerkleHash);

impl Source for InXet {
    async fn read(&self, start: u64, end: u64) -> io::Result<Bytes> {
        let found = self.0.xet.read(self.1, start, end).await;
        found.ok_or_else(|| io::Error::other("not in the Xet store"))
    }
}

/// HEAD or GET of `/{id}/resolve/{revision}/{path}`.
pub fn resolve(
    shared: &Arc<Shared>,
    asked: &Asked,
    key: &str,
    revision: &str,
    path: &str,
) -> Response {
    let found = {
        let store = shared.store.lock().unwrap();
        let repo = &store.repos[key];
        let Some(commit) = repo.resolve(revision) else {
            return error(
                404,
                "RevisionNotFound",
                &format!("Invalid rev id: {revision}"),
            );
        };
        let Some(entry) = repo.commits[&commit].tree.get(path).cloned() else {
            let mut response = error(404, "EntryNotFound", "Entry not found");
            let commit = commit.parse().unwrap();
            response.headers_mut().insert("X-Repo-Commit", commit);
            return response;
        };
        let large = match &entry {
            Entry::Large { sha256, .. } => store.large.get(sha256).cloned(),
            Entry::Small(_) => None,
        };
        (commit, entry, large)
    };
    let (commit, entry, large) = found;
    let mut response = match &entry {
        Entry::Small(bytes) => {
            let fault = shared.body_fault(asked);
            let size = bytes.len() as u64;
            let mut response =
                answer::body(bytes.clone(), size, &asked.headers, asked.is("HEAD"), fault);
            let etag = format!("\"{}\"", entry.oid()).parse().unwrap();
            response.headers_mut().insert(header::ETAG, etag);
            response
        }
        Entry::Large { sha256, size } => {
            let port = shared.port;
            let headers = [
                ("X-Linked-Etag", format!("\"{sha256}\"")),
                ("X-Linked-Size", size.to_string()),
                // another host name, so that a client which takes its token along is found out
                (
                    "Location",
                    format!("http://localhost:{port}/-/large/{sha256}/{key}/{path}"),
                ),
            ];
            let mut response = Response::builder().status(302);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            if let Some(hash) = shared.listed_xet_hash(large.as_ref()) {
                let token = format!("{}/api/{key}/xet-read-token/{commit}", shared.url());
                response = response
                    .header("X-Xet-Hash", hash.to_string())
                    .header("Link", format!("<{token}>; rel=\"xet-auth\""));
            }
            response.body(Body::empty()).unwrap()
        }
    };
    let commit = commit.parse().unwrap();
    response.headers_mut().insert("X-Repo-Commit", commit);
    response
}

/// GET of a large file's content, where `resolve` sends a client.
pub fn content(shared: &Arc<Shared>, asked: &Asked, sha256: &str) -> Response {
    if asked.headers.contains_key(header::AUTHORIZATION) {
        return error(400, "", "Only one auth mechanism allowed");
    }
    let large = shared.store.lock().unwrap().large.get(sha256).cloned();
    let fault = shared.body_fault(asked);
    let is_head = asked.is("HEAD");
    match large {
        Some(Large {
            lfs: Some(path),
            size,
            ..
        }) => answer::body(OnDisk(path), size, &asked.headers, is_head, fault),
        Some(Large {
            xet: Some(hash),
            size,
            ..
        }) => answer::body(
            InXet(shared.clone(), hash),
            size,
            &asked.headers,
            is_head,
            fault,
        ),
        _ => error(404, "", "no such object"),
    }
}

/// POST of `objects/batch`: how each file is to be uploaded.
pub fn batch(shared: &Shared, key: &str, request: &Value) -> Response {
    let offers = |name: &str| {
        let transfers = request["transfers"].as_array();
        transfers.is_some_and(|all| all.iter().any(|t| t == name))
    };
    let url = shared.url();
    if offers("xet") && !shared.faults.has(|f| matches!(f, Fault::NoXet)) {
        let objects = request["objects"].as_array().cloned().unwrap_or_default();
        return answer::json(json!({"transfer": "xet", "objects": objects}));
    }
    let mut transfer = "basic";
    let store = shared.store.lock().unwrap();
    let mut objects = Vec::new();
    for object in request["objects"].as_array().into_iter().flatten() {
        let (Some(oid), Some(size)) = (object["oid"].as_str(), object["size"].as_u64()) else {
            return error(422, "", "objects need an oid and a size");
        };
        let mut object = json!({"oid": oid, "size": size, "authenticated": true});
        if !store.large.contains_key(oid) {
            let mut upload = json!({"href": format!("{url}/-/upload/{oid}/1"), "header": {}});
            if offers("multipart") && size > PART {
                transfer = "multipart";
                upload["href"] = format!("{url}/-/complete/{oid}").into();
                upload["header"]["chunk_size"] = PART.to_string().into();
                for part in 1..=size.div_ceil(PART) {
                    upload["header"][format!("{part:05}")] =
                        format!("{url}/-/upload/{oid}/{part}").into();
                }
            }
            object["actions"] = json!({
                "upload": upload,
                "verify": {"href": format!("{url}/-/verify/{key}"), "header": {}},
            });
        }
        objects.push(object);
    }
    answer::json(json!({"transfer": transfer, "objects": objects}))
}

/// PUT of a part of a large file. A file in one part is complete with it.
pub async fn upload(shared: &Shared, asked: &Asked, body: Body, oid: &str, part: u64) -> Response {
    if asked.headers.contains_key(header::AUTHORIZATION) {
        return error(400, "", "Only one auth mechanism allowed");
    }
    let slow = shared.faults.take(|f| match f {
        Fault::Slow { on, bytes_per_s } if on == "PUT" => Some(*bytes_per_s),
        _ => None,
    });
    let path = shared.folder.join(format!("{oid}.{part}"));
    let mut file = tokio::fs::File::create(&path).await.unwrap();
    let mut digest = Sha256::new();
    let mut stream = body.into_data_stream();
    while let Some(bytes) = stream.next().await {
        let Ok(bytes) = bytes else {
            return error(400, "", "the body broke off");
        };
        digest.update(&bytes);
        file.write_all(&bytes).await.unwrap();
        if let Some(rate) = slow {
            let time = std::time::Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
            tokio::time::sleep(time).await;
        }
    }
    file.flush().await.unwrap();
    let digest = hex::encode(digest.finalize());
    if part == 1 && digest == oid {
        keep(shared, oid, path);
    }
    Response::builder()
        .header(header::ETAG, format!("\"{digest}\""))
        .body(Body::empty())
        .unwrap()
}

/// POST that closes an upload in parts.
pub async fn complete(shared: &Shared, oid: &str, request: &Value) -> Response {
    let whole = shared.folder.join(format!("{oid}.whole"));
    let mut out = tokio::fs::File::create(&whole).await.unwrap();
    let mut digest = Sha256::new();
    for (i, part) in request["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = shared.folder.join(format!("{oid}.{}", i + 1));
        let Ok(bytes) = tokio::fs::read(&path).await else {
            return error(400, "", "a part is missing");
        };
        let etag = format!("\"{}\"", super::store::sha256(&bytes));
        if part["partNumber"] != i + 1 || part["etag"] != etag.as_str() {
            return error(400, "", "a part is not what was sent");
        }
        digest.update(&bytes);
        out.write_all(&bytes).await.unwrap();
    }
    out.flush().await.unwrap();
    if hex::encode(digest.finalize()) != oid {
        return error(400, "", "the parts do not make the object");
    }
    keep(shared, oid, whole);
    answer::json(json!({}))
}

fn keep(shared: &Shared, oid: &str, path: PathBuf) {
    let lost = |f: &Fault| matches!(f, Fault::LostUpload).then_some(());
    if shared.faults.take(lost).is_some() {
        return;
    }
    let size = std::fs::metadata(&path).unwrap().len();
    let mut store = shared.store.lock().unwrap();
    let large = (store.large.entry(oid.into())).or_insert(Large {
        size,
        lfs: None,
        xet: None,
    });
    large.lfs = Some(path);
}

/// POST of `verify`: whether an upload has arrived.
pub fn verify(shared: &Shared, request: &Value) -> Response {
    let store = shared.store.lock().unwrap();
    let large = request["oid"].as_str().and_then(|oid| store.large.get(oid));
    match large {
        Some(large) if request["size"] == large.size => answer::json(json!({})),
        _ => error(404, "", "the object has not arrived"),
    }
}

/// GET of a Xet token: where the store is and how long the token lasts.
pub fn xet_token(shared: &Shared, key: &str) -> Response {
    let (url, token) = (shared.xet.url(&shared.faults), format!("xet-{key}"));
    let exp = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs() + 3600);
    let mut response = answer::json(json!({"accessToken": token, "exp": exp, "casUrl": url}));
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert("X-Xet-Cas-Url", url.parse().unwrap());
    headers.insert("X-Xet-Access-Token", token.parse().unwrap());
    headers.insert("X-Xet-Token-Expiration", exp.to_string().parse().unwrap());
    response
}
