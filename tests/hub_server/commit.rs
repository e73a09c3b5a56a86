//! The stand-in's `POST .../commit/{rev}`: lines of JSON in, one commit out.

use axum::response::Response;
use base64::Engine;
use serde_json::{Value, json};

use super::answer::{self, error};
use super::fault::Fault;
use super::store::{Change, Entry, Request};
use super::{Asked, Shared};

pub async fn commit(
    shared: &Shared,
    asked: &Asked,
    key: &str,
    revision: &str,
    body: &[u8],
) -> Response {
    let mut changes = Vec::new();
    let mut header = Value::Null;
    for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else {
            return error(400, "", "a line is not JSON");
        };
        if line["key"] == "header" {
            header = line["value"].clone();
            continue;
        }
        match change(shared, &line).await {
            Ok(change) => changes.push(change),
            Err(message) => return error(400, "", &message),
        }
    }
    let Some(title) = header["summary"].as_str().filter(|title| !title.is_empty()) else {
        return error(400, "", "the header needs a summary");
    };
    let message = header["description"].as_str().unwrap_or_default();
    let is_overtaken = |f: &Fault| matches!(f, Fault::Overtaken).then_some(());
    if shared.faults.take(is_overtaken).is_some() {
        shared.overtake(key, revision);
    }
    let mut store = shared.store.lock().unwrap();
    let Some(parent) = store.repos[key].resolve(revision) else {
        return super::api::no_revision(revision);
    };
    let wants_pull_request = asked.query("create_pr").is_some_and(|v| v == "1");
    let is_head = store.repos[key].branches.contains_key(revision)
        || revision.starts_with("refs/pr/")
        || wants_pull_request;
    if !is_head {
        return error(400, "", "commits go to branches");
    }
    match header["parentCommit"].as_str() {
        Some(wanted) if wanted != parent && !wants_pull_request => {
            return error(
                412,
                "",
                "A commit has happened since. Please refresh and try again.",
            );
        }
        _ => {}
    }
    let oid = match store.follow(key, &parent, title, message, changes) {
        Ok(oid) => oid,
        Err(message) => {
            let code = if message.contains("doesn't exist") {
                404
            } else {
                400
            };
            return error(
                code,
                if code == 404 { "EntryNotFound" } else { "" },
                &message,
            );
        }
    };
    let repo = store.repos.get_mut(key).unwrap();
    let path = key.trim_start_matches("models/");
    let mut result = json!({
        "success": true, "commitOid": oid, "commitUrl": format!("{}/{path}/commit/{oid}", shared.url()),
        "hookOutput": "",
    });
    let number: Option<usize> = revision
        .strip_prefix("refs/pr/")
        .and_then(|n| n.parse().ok());
    if wants_pull_request {
        repo.pull_requests.push(oid);
        repo.requests.push(Request {
            title: title.into(),
            author: asked.user.as_ref().map_or("", |user| &user.name).into(),
            status: "open".into(),
        });
        let number = repo.pull_requests.len();
        result["pullRequestUrl"] = format!("{}/{path}/discussions/{number}", shared.url()).into();
    } else if let Some(number) = number {
        repo.pull_requests[number - 1] = oid;
    } else {
        repo.branches.insert(revision.into(), oid);
    }
    drop(store);
    let fault = shared.faults.take(|f| match f {
        Fault::ErrorAfterCommit | Fault::SilenceAfterCommit => Some(f.clone()),
        _ => None,
    });
    match fault {
        Some(Fault::ErrorAfterCommit) => error(
            500,
            "",
            "Internal Error - we're working hard to fix this as soon as possible!",
        ),
        Some(_) => answer::broken(),
        None => answer::json(result),
    }
}

/// One line of a commit.
async fn change(shared: &Shared, line: &Value) -> Result<Change, String> {
    let value = &line["value"];
    let text = |name: &str| value[name].as_str().map(str::to_string);
    let path = text("path").ok_or("a path is missing")?;
    match line["key"].as_str().unwrap_or_default() {
        "file" => {
            let content = text("content").ok_or("`content` is missing")?;
            let bytes = match value["encoding"].as_str() {
                Some("base64") => base64::engine::general_purpose::STANDARD
                    .decode(content)
                    .map_err(|e| e.to_string())?,
                _ => content.into_bytes(),
            };
            if super::store::is_large(&path, bytes.len() as u64) {
                return Err(format!(
                    "Your push was rejected because `{path}` must go through LFS or Xet"
                ));
            }
            Ok(Change::Put(path, Entry::Small(bytes.into())))
        }
        "lfsFile" => {
            let sha256 = text("oid").ok_or("`oid` is missing")?;
            let size = value["size"].as_u64();
            let known = |shared: &Shared| {
                let store = shared.store.lock().unwrap();
                store.large.get(&sha256).map(|large| large.size)
            };
            if known(shared).is_none() {
                shared.xet.register(shared).await;
            }
            match known(shared) {
                None => Err(format!(
                    "LFS pointer pointed to a file that does not exist: {path}"
                )),
                Some(found) if size.is_some_and(|size| size != found) => {
                    Err(format!("`{path}` has {found} bytes, not as many as said"))
                }
                Some(size) => Ok(Change::Put(path, Entry::Large { sha256, size })),
            }
        }
        "deletedFile" => Ok(Change::DeleteFile(path)),
        "deletedFolder" => Ok(Change::DeleteFolder(path)),
        other => Err(format!("unknown key `{other}`")),
    }
}
