//! Which call of the stand-in a request means, and who may make it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde_json::Value;

use super::answer::{broken, error};
use super::fault::Fault;
use super::store::User;
use super::{Shared, api, commit, files};

/// One request as the calls see it.
pub struct Asked {
    pub method: String,
    /// As it was sent, percent encoding and all.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub user: Option<User>,
}

impl Asked {
    pub fn is(&self, method: &str) -> bool {
        self.method == method
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What faults are matched with.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, decoded(&self.path))
    }
}

/// An upload over LFS, from its first byte to its answer.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared) -> Self {
        let (now, most) = &shared.uploads;
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self(now)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub async fn answer(shared: Arc<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let token = parts.headers.get(header::AUTHORIZATION);
    let token = token.and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let user = token.map(|token| shared.store.lock().unwrap().tokens.get(token).cloned());
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_string(),
        query: pairs(parts.uri.query().unwrap_or_default()),
        headers: parts.headers,
        user: user.clone().flatten(),
    };
    shared.asked.lock().unwrap().push(asked.line());
    let _counted = asked
        .path
        .starts_with("/-/upload/")
        .then(|| Counted::new(&shared));
    let late = shared.faults.take(|fault| match fault {
        Fault::Silent { on } if asked.line().contains(on) => Some(3_600_000),
        Fault::Late { on, millis } if asked.line().contains(on) => Some(*millis),
        _ => None,
    });
    if let Some(millis) = late {
        tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
    }
    let refusal = shared.faults.take(|fault| match fault {
        Fault::Refuse { on, .. } if asked.line().contains(on) => Some(fault.clone()),
        _ => None,
    });
    if let Some(Fault::Refuse {
        status,
        code,
        retry_after_s,
        ..
    }) = refusal
    {
        let mut response = error(status, code, "refused");
        if let Some(s) = retry_after_s {
            let value = s.to_string().parse().unwrap();
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        return response;
    }
    if matches!(user, Some(None)) {
        return error(401, "", "Invalid credentials in Authorization header");
    }
    let segments: Vec<String> = asked.path.split('/').skip(1).map(decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["-", "upload", oid, part] => {
            let part = part.parse().unwrap_or(0);
            files::upload(&shared, &asked, body, oid, part).await
        }
        ["-", "large", sha256, ..] => files::content(&shared, &asked, sha256),
        segments => {
            let Ok(body) = to_bytes(body, usize::MAX).await else {
                return broken();
            };
            call(&shared, &asked, segments, &body).await
        }
    }
}

async fn call(shared: &Arc<Shared>, asked: &Asked, segments: &[&str], body: &[u8]) -> Response {
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    match segments {
        ["api", "whoami-v2"] => return api::whoami(asked),
        ["api", "validate-yaml"] => return api::validate_yaml(&request),
        ["api", "repos", call] => return api::repos(shared, asked, call, &request),
        ["-", "complete", oid] => return files::complete(shared, oid, &request).await,
        ["-", "verify", ..] => return files::verify(shared, &request),
        _ => {}
    }
    let (key, rest) = match segments {
        [
            "api",
            kind @ ("models" | "datasets"),
            owner,
            name,
            rest @ ..,
        ] => (format!("{kind}/{owner}/{name}"), rest),
        ["datasets", owner, name, rest @ ..] => (format!("datasets/{owner}/{name}"), rest),
        [owner, name, rest @ ..] => (format!("models/{owner}/{name}"), rest),
        _ => return error(404, "", "Not found"),
    };
    let key = key.trim_end_matches(".git");
    let is_read = matches!(asked.method.as_str(), "GET" | "HEAD")
        || matches!(rest, ["paths-info", _])
        || rest.last() == Some(&"batch") && request["operation"] == "download";
    let is_content = rest.first() == Some(&"resolve");
    if let Some(refusal) = access(
        shared,
        asked,
        key,
        is_read && !is_write_token(rest),
        is_content,
    ) {
        return refusal;
    }
    match (asked.method.as_str(), rest) {
        ("GET" | "HEAD", ["resolve", revision, path @ ..]) => {
            files::resolve(shared, asked, key, revision, &path.join("/"))
        }
        ("GET", []) => api::info(shared, asked, key, "main"),
        ("GET", ["revision", revision]) => api::info(shared, asked, key, revision),
        ("GET", ["tree", revision, path @ ..]) => {
            api::tree(shared, asked, key, revision, &path.join("/"))
        }
        ("POST", ["paths-info", revision]) => {
            let is_json = request.is_object();
            let paths = if is_json {
                let all = request["paths"].as_array().into_iter().flatten();
                all.filter_map(|p| p.as_str().map(str::to_string)).collect()
            } else {
                let form = pairs(&String::from_utf8_lossy(body));
                form.into_iter()
                    .filter(|(k, _)| k == "paths")
                    .map(|(_, v)| v)
                    .collect::<Vec<_>>()
            };
            api::paths_info(shared, key, revision, &paths)
        }
        ("GET", ["discussions"]) => api::discussions(shared, asked, key),
        ("GET", ["refs"]) => api::refs(shared, asked, key),
        ("GET", ["commits", revision]) => api::commits(shared, key, revision),
        ("POST" | "DELETE", [kind @ ("branch" | "tag"), name]) => {
            api::reference(shared, asked, key, kind, name, &request)
        }
        ("POST", ["preupload", revision]) => api::preupload(shared, key, revision, &request),
        ("POST", ["commit", revision]) => commit::commit(shared, asked, key, revision, body).await,
        ("POST", ["info", "lfs", "objects", "batch"]) => files::batch(shared, key, &request),
        ("GET", ["xet-read-token" | "xet-write-token", _]) => {
            if shared.faults.has(|f| matches!(f, Fault::NoXet)) {
                return error(404, "", "Not found");
            }
            files::xet_token(shared, key)
        }
        ("PUT", ["settings"]) => {
            let mut store = shared.store.lock().unwrap();
            if let Some(repo) = store.repos.get_mut(key) {
                repo.private = request["private"] == true || request["visibility"] == "private";
            }
            super::answer::json(request)
        }
        ("GET", ["auth-check"]) => super::answer::json(Value::Null),
        _ => error(404, "", "Not found"),
    }
}

fn is_write_token(rest: &[&str]) -> bool {
    rest.first() == Some(&"xet-write-token")
}

/// Why this request is refused, as the Hub words it: it does not tell strangers which private repositories there are.
fn access(
    shared: &Shared,
    asked: &Asked,
    key: &str,
    is_read: bool,
    is_content: bool,
) -> Option<Response> {
    let store = shared.store.lock().unwrap();
    let owner = key.split('/').nth(1).unwrap_or_default();
    let is_owner = asked.user.as_ref().is_some_and(|user| user.owns(owner));
    let Some(repo) = store
        .repos
        .get(key)
        .filter(|repo| !repo.private || is_owner)
    else {
        return Some(match &asked.user {
            None => error(401, "", "Invalid username or password."),
            Some(_) => error(404, "RepoNotFound", "Repository not found"),
        });
    };
    if is_content && repo.gated && !is_owner {
        let status = if asked.user.is_some() { 403 } else { 401 };
        return Some(error(
            status,
            "GatedRepo",
            &format!("Access to {key} is restricted"),
        ));
    }
    let may_write = is_owner && asked.user.as_ref().is_some_and(|user| user.may_write);
    if !is_read && !may_write {
        let status = if asked.user.is_some() { 403 } else { 401 };
        return Some(error(status, "", "you must use a token with write access"));
    }
    None
}

fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(&value.replace('+', " "))))
        .collect()
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let code = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
