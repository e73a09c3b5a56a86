//! The stand-in's API: repositories, listings, references and commits.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{self, error};
use super::fault::Fault;
use super::store::{Entry, Large, Repo, Store};
use super::{Asked, Shared};

/// `POST /api/repos/create`, `DELETE /api/repos/delete` and `PUT /api/{T}/{id}/settings`.
pub fn repos(shared: &Shared, asked: &Asked, call: &str, request: &Value) -> Response {
    let Some(user) = asked.user.as_ref().filter(|user| user.may_write) else {
        return error(403, "", "This token may not write");
    };
    let text = |name: &str| request[name].as_str().unwrap_or_default();
    let (owner, name) = match text("name").split_once('/') {
        Some((owner, name)) => (owner, name),
        None if !text("organization").is_empty() => (text("organization"), text("name")),
        None => (user.name.as_str(), text("name")),
    };
    let kind = if text("type") == "dataset" {
        "datasets"
    } else {
        "models"
    };
    let key = format!("{kind}/{owner}/{name}");
    if !user.owns(owner) {
        return error(
            403,
            "",
            &format!("You don't have the rights to write to {owner}"),
        );
    }
    let mut store = shared.store.lock().unwrap();
    if call == "delete" {
        return match store.repos.remove(&key) {
            Some(_) => answer::json(json!({})),
            None => error(404, "RepoNotFound", "Repository not found"),
        };
    }
    let private = request["private"] == true || text("visibility") == "private";
    let path = key.trim_start_matches("models/");
    let url = format!("{}/{path}", shared.url());
    if !store.create(&key, private) {
        let mut response = error(409, "", "You already created this repo");
        *response.body_mut() =
            Body::from(json!({"error": "You already created this repo", "url": url}).to_string());
        return response;
    }
    answer::json(json!({"url": url, "name": format!("{owner}/{name}"), "id": "1"}))
}

/// `GET /api/{T}/{id}` and `.../revision/{rev}`.
pub fn info(shared: &Shared, asked: &Asked, key: &str, revision: &str) -> Response {
    let store = shared.store.lock().unwrap();
    let repo = &store.repos[key];
    let (Some(commit), Some(tree)) = (repo.resolve(revision), repo.tree(revision)) else {
        return no_revision(revision);
    };
    let has_blobs = asked.query("blobs").is_some();
    let sibling = |(path, entry): (&String, &Entry)| {
        let mut sibling = json!({"rfilename": path});
        if has_blobs {
            sibling["size"] = entry.size().into();
            sibling["blobId"] = entry.oid().into();
            if let Entry::Large { sha256, size } = entry {
                sibling["lfs"] =
                    json!({"sha256": sha256, "size": size, "pointerSize": entry.pointer().len()});
            }
        }
        sibling
    };
    let siblings: Vec<Value> = tree.iter().map(sibling).collect();
    let (_, id) = key.split_once('/').unwrap();
    let card = match tree.get("README.md") {
        Some(Entry::Small(text)) => super::yaml::front_matter(&String::from_utf8_lossy(text)),
        _ => Ok(Value::Null),
    };
    answer::json(json!({
        "_id": "1", "id": id, "modelId": id, "author": id.split('/').next(), "sha": commit,
        "lastModified": date(repo.commits[&commit].number), "private": repo.private,
        "gated": if repo.gated { json!("manual") } else { json!(false) }, "disabled": false,
        "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
        "cardData": card.unwrap_or(Value::Null), "createdAt": date(0), "usedStorage": 0,
    }))
}

/// `GET .../tree/{rev}[/{path}]`, a page of it.
pub fn tree(shared: &Shared, asked: &Asked, key: &str, revision: &str, below: &str) -> Response {
    let store = shared.store.lock().unwrap();
    let Some(tree) = store.repos[key].tree(revision) else {
        return no_revision(revision);
    };
    let recursive = asked
        .query("recursive")
        .is_some_and(|v| matches!(v.to_lowercase().as_str(), "true" | "1"));
    let start = if below.is_empty() {
        String::new()
    } else {
        format!("{below}/")
    };
    let mut entries = BTreeMap::new();
    for (path, entry) in tree {
        let Some(rest) = path.strip_prefix(&start) else {
            continue;
        };
        let folders = rest.match_indices('/').map(|(i, _)| &rest[..i]);
        for folder in folders.take(if recursive { usize::MAX } else { 1 }) {
            let path = format!("{start}{folder}");
            let folder =
                json!({"type": "directory", "oid": "0".repeat(40), "size": 0, "path": path});
            entries.insert(path, folder);
        }
        if recursive || !rest.contains('/') {
            entries.insert(path.clone(), listed(shared, &store, path, entry));
        }
    }
    if entries.is_empty() && !below.is_empty() {
        return error(404, "EntryNotFound", &format!("{below} does not exist"));
    }
    let extra = shared.faults.take(|fault| match fault {
        Fault::Entry(entry) => Some(entry.clone()),
        _ => None,
    });
    if let Some(entry) = extra {
        entries.insert("~".into(), entry);
    }
    let page = shared.page();
    let from: usize = asked
        .query("cursor")
        .and_then(|c| c.parse().ok())
        .unwrap_or(0);
    let num_left = entries.len().saturating_sub(from);
    let entries: Vec<Value> = entries.into_values().skip(from).take(page).collect();
    let mut response = answer::json(entries.into());
    if num_left > page {
        let next = format!(
            "<{}{}?recursive={recursive}&cursor={}>; rel=\"next\"",
            shared.url(),
            asked.path,
            from + page
        );
        response.headers_mut().insert("Link", next.parse().unwrap());
    }
    let next = shared.faults.take(|fault| match fault {
        Fault::NextPage { address } => Some(address.clone()),
        _ => None,
    });
    if let Some(address) = next {
        let number = shared.asked.lock().unwrap().len().to_string();
        let address = address.replace("{}", &number);
        let next = format!("<{address}>; rel=\"next\"");
        response.headers_mut().insert("Link", next.parse().unwrap());
    }
    response
}

fn listed(shared: &Shared, store: &Store, path: &str, entry: &Entry) -> Value {
    let mut value = json!({"type": "file", "oid": entry.oid(), "size": entry.size(), "path": path});
    if let Entry::Large { sha256, size } = entry {
        value["lfs"] = json!({"oid": sha256, "size": size, "pointerSize": entry.pointer().len()});
        if let Some(hash) = shared.listed_xet_hash(store.large.get(sha256)) {
            value["xetHash"] = hash.to_string().into();
        }
    }
    value
}

/// `POST .../paths-info/{rev}`: entries of the listing by path.
pub fn paths_info(shared: &Shared, key: &str, revision: &str, paths: &[String]) -> Response {
    let store = shared.store.lock().unwrap();
    let Some(tree) = store.repos[key].tree(revision) else {
        return no_revision(revision);
    };
    let mut found = Vec::new();
    for path in paths {
        let start = format!("{}/", path.trim_end_matches('/'));
        if let Some(entry) = tree.get(path) {
            found.push(listed(shared, &store, path, entry));
        } else if tree.keys().any(|other| other.starts_with(&start)) {
            found
                .push(json!({"type": "directory", "oid": "0".repeat(40), "size": 0, "path": path}));
        }
    }
    answer::json(found.into())
}

/// `GET .../refs`.
pub fn refs(shared: &Shared, asked: &Asked, key: &str) -> Response {
    let store = shared.store.lock().unwrap();
    let repo = &store.repos[key];
    let all = |kind: &str, names: &BTreeMap<String, String>| -> Vec<Value> {
        let one = |(name, commit): (&String, &String)| json!({"name": name, "ref": format!("refs/{kind}/{name}"), "targetCommit": commit});
        names.iter().map(one).collect()
    };
    let mut refs = json!({
        "branches": all("heads", &repo.branches), "converts": [], "tags": all("tags", &repo.tags),
    });
    if asked.query("include_prs").is_some() {
        let one = |(i, commit): (usize, &String)| {
            let name = format!("refs/pr/{}", i + 1);
            json!({"name": name, "ref": name, "targetCommit": commit})
        };
        refs["pullRequests"] = repo.pull_requests.iter().enumerate().map(one).collect();
    }
    answer::json(refs)
}

/// `GET .../discussions`, the newest first.
pub fn discussions(shared: &Shared, asked: &Asked, key: &str) -> Response {
    let store = shared.store.lock().unwrap();
    let (kind, id) = key.split_once('/').unwrap();
    let fits = |name: &str, value: &str| asked.query(name).is_none_or(|want| want == value);
    let found: Vec<Value> = (store.repos[key].requests.iter().enumerate().rev())
        .filter(|(_, one)| fits("status", &one.status) && fits("author", &one.author))
        .map(|(i, one)| {
            json!({
                "num": i + 1, "title": one.title, "status": one.status, "isPullRequest": true,
                "author": {"name": one.author}, "createdAt": date(0),
                "repo": {"name": id, "type": kind.trim_end_matches('s')},
            })
        })
        .collect();
    let from = 10 * asked.query("p").and_then(|p| p.parse().ok()).unwrap_or(0);
    let page: Vec<&Value> = found.iter().skip(from).take(10).collect();
    answer::json(json!({"discussions": page, "count": found.len(), "start": from}))
}

/// `GET .../commits/{rev}`, newest first.
pub fn commits(shared: &Shared, key: &str, revision: &str) -> Response {
    let store = shared.store.lock().unwrap();
    let repo = &store.repos[key];
    if repo.resolve(revision).is_none() {
        return no_revision(revision);
    }
    let one = |(oid, commit): (String, super::store::Commit)| {
        json!({
            "id": oid, "title": commit.title, "message": commit.message, "date": date(commit.number),
            "authors": [{"user": "tester"}], "parents": commit.parent.iter().collect::<Vec<_>>(),
        })
    };
    answer::json(repo.history(revision).into_iter().map(one).collect())
}

/// `POST` and `DELETE` of `.../branch/{name}` and `.../tag/{name}`.
pub fn reference(
    shared: &Shared,
    asked: &Asked,
    key: &str,
    kind: &str,
    name: &str,
    request: &Value,
) -> Response {
    let mut store = shared.store.lock().unwrap();
    let repo = store.repos.get_mut(key).unwrap();
    let text = |field: &str| request[field].as_str().map(str::to_string);
    // a tag is posted to the revision that it is to name
    let (name, target) = match kind {
        "branch" => (
            name.to_string(),
            text("startingPoint").unwrap_or("main".into()),
        ),
        _ => (text("tag").unwrap_or(name.into()), name.to_string()),
    };
    let target = repo.resolve(&target);
    let Repo { branches, tags, .. } = repo;
    let names = if kind == "branch" { branches } else { tags };
    if asked.is("DELETE") {
        return match names.remove(&name) {
            Some(_) => answer::json(json!({})),
            None => no_revision(&name),
        };
    }
    let Some(target) = target else {
        return no_revision("the starting point");
    };
    if names.contains_key(&name) && request["overwrite"] != true {
        return error(409, "", &format!("Reference already exists: {name}"));
    }
    names.insert(name, target);
    answer::json(json!({}))
}

/// `POST .../preupload/{rev}`: which files go into git and which outside.
pub fn preupload(shared: &Shared, key: &str, revision: &str, request: &Value) -> Response {
    let store = shared.store.lock().unwrap();
    let Some(tree) = store.repos[key].tree(revision) else {
        return no_revision(revision);
    };
    let mut files = Vec::new();
    for file in request["files"].as_array().into_iter().flatten() {
        let (Some(path), Some(size)) = (file["path"].as_str(), file["size"].as_u64()) else {
            return error(400, "", "files need a path and a size");
        };
        let mode = if super::store::is_large(path, size) {
            "lfs"
        } else {
            "regular"
        };
        let mut file = json!({"path": path, "uploadMode": mode, "shouldIgnore": false});
        if let Some(entry) = tree.get(path) {
            file["oid"] = entry.etag().into();
        }
        files.push(file);
    }
    answer::json(json!({"files": files, "commitOid": store.repos[key].resolve(revision)}))
}

/// `POST /api/validate-yaml`.
pub fn validate_yaml(request: &Value) -> Response {
    let content = request["content"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    match super::yaml::front_matter(content) {
        Err(message) => errors.push(json!({"message": message})),
        Ok(card) => {
            let is_text = |name: &str| {
                card[name].is_null() || card[name].is_string() || card[name].is_array()
            };
            for name in [
                "license",
                "base_model",
                "datasets",
                "language",
                "tags",
                "library_name",
                "pipeline_tag",
            ] {
                if !is_text(name) {
                    errors
                        .push(json!({"message": format!("\"{name}\" must be a string or a list")}));
                }
            }
            if card["license"] == "other" && card["license_name"].is_null() {
                errors.push(json!({"message": "\"license_name\" is required with license: other"}));
            }
        }
    }
    let mut response = answer::json(json!({"errors": errors, "warnings": []}));
    if !errors.is_empty() {
        *response.status_mut() = axum::http::StatusCode::BAD_REQUEST;
    }
    response
}

/// `GET /api/whoami-v2`.
pub fn whoami(asked: &Asked) -> Response {
    let Some(user) = &asked.user else {
        return error(401, "", "Invalid username or password.");
    };
    let orgs: Vec<Value> = user
        .orgs
        .iter()
        .map(|org| json!({"name": org, "type": "org"}))
        .collect();
    let role = if user.may_write { "write" } else { "read" };
    answer::json(json!({
        "type": "user", "id": "1", "name": user.name, "fullname": user.name, "isPro": false, "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
    }))
}

pub fn no_revision(revision: &str) -> Response {
    error(
        404,
        "RevisionNotFound",
        &format!("Invalid rev id: {revision}"),
    )
}

/// A date that grows with every commit.
fn date(number: u64) -> String {
    let (minute, second) = (number / 60 % 60, number % 60);
    format!("2026-01-01T00:{minute:02}:{second:02}.000Z")
}

impl Shared {
    /// The Xet hash that the server tells of a large file.
    pub fn listed_xet_hash(
        &self,
        large: Option<&Large>,
    ) -> Option<xet_client::cas_types::HexMerkleHash> {
        let hash = large?.xet?;
        if self.faults.has(|f| matches!(f, Fault::NoXet)) {
            return None;
        }
        let is_wrong = self.faults.has(|f| matches!(f, Fault::WrongXetHash));
        Some(if is_wrong {
            self.decoy().unwrap_or(hash)
        } else {
            hash
        })
    }
}
