//! What the server says that it has: repositories, branches, tags, pull requests, and the files of a commit with their hashes.

use super::publish_api::{Api, ApiError, Place, quoted};
use super::publish_files::Prepared;
use crate::progress::Reporter;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A listing has so many pages at most; a server that always names a next one is not followed for ever.
const MAX_PAGES: usize = 10_000;
/// Pull requests that are looked into.
const MAX_PULL_REQUESTS: usize = 20;

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub bytes: u64,
    /// Hash of git's blob; of a large file that of its pointer.
    pub oid: String,
    /// Of large files.
    pub sha256: Option<String>,
}

/// The files of a commit by path.
pub type Tree = BTreeMap<String, Listed>;

/// Where a name points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    pub name: String,
    pub commit: String,
}

/// `refs`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refs {
    pub branches: Vec<Ref>,
    pub tags: Vec<Ref>,
    /// `refs/pr/N`
    pub pull_requests: Vec<Ref>,
}

impl Listed {
    /// Whether this is that file, by size and hash.
    pub fn is(&self, file: &Prepared) -> bool {
        self.bytes == file.bytes
            && match &self.sha256 {
                Some(sha256) => sha256.eq_ignore_ascii_case(&file.sha256),
                None => {
                    (file.git_sha1.as_ref()).is_some_and(|oid| self.oid.eq_ignore_ascii_case(oid))
                }
            }
    }
}

/// Whether all of these files are in the tree.
pub fn holds(tree: &Tree, files: &[&Prepared]) -> bool {
    files
        .iter()
        .all(|file| tree.get(&file.path).is_some_and(|listed| listed.is(file)))
}

/// Sees to it that the repository is there. `true` where it has just been created.
///
/// # Errors
/// It cannot be created or written with this token.
pub fn ensure_repo(
    api: &Api,
    place: &Place,
    public: bool,
    reporter: &dyn Reporter,
) -> Result<bool> {
    let endpoint = &api.account.endpoint;
    let what = format!("{} cannot be opened", place.subject());
    let info = match api.get(&place.api(endpoint, "")) {
        Ok(info) => info,
        // a token without any right is told at once; a repository that is not there is made
        Err(error) if error.status() == Some(404) => {
            create(api, place, public)?;
            return Ok(true);
        }
        Err(error) if error.status() == Some(401) => {
            // the Hub answers so for what is not there, too: who the token belongs to tells them apart
            api.whoami()?;
            create(api, place, public)?;
            return Ok(true);
        }
        Err(error) => return Err(api.explain(error, &what)),
    };
    match info["private"].as_bool() {
        Some(false) if !public => reporter.warn(&format!(
            "{} is there already and everybody can see it",
            place.subject()
        )),
        Some(true) if public => reporter.warn(&format!(
            "{} is there already and private, and stays so: its settings are on {}/settings",
            place.subject(),
            place.page(endpoint)
        )),
        _ => {}
    }
    Ok(false)
}

fn create(api: &Api, place: &Place, public: bool) -> Result<()> {
    let (owner, name) = place.repo.split_once('/').unwrap_or(("", &place.repo));
    let visibility = if public { "public" } else { "private" };
    let body = json!({
        "name": name,
        "organization": owner,
        "type": match place.kind.plural() { "datasets" => "dataset", _ => "model" },
        "visibility": visibility,
        // for servers that do not know the word above
        "private": !public,
    });
    let url = format!("{}/api/repos/create", api.account.endpoint);
    match api.post(&url, &body) {
        Ok(_) => Ok(()),
        // an attempt before this one, or another process, has made it
        Err(error) if error.status() == Some(409) => Ok(()),
        Err(error) => Err(api.explain(error, &format!("{} cannot be created", place.subject()))),
    }
}

/// Sees to it that the branch is there; a new one begins where `main` is.
///
/// # Errors
/// It cannot be created.
pub fn ensure_branch(api: &Api, place: &Place) -> Result<()> {
    if place.revision == "main" {
        return Ok(());
    }
    let refs = refs(api, place)?;
    if refs
        .branches
        .iter()
        .any(|branch| branch.name == place.revision)
    {
        return Ok(());
    }
    if refs.tags.iter().any(|tag| tag.name == place.revision) {
        return Err(Error::input(format!(
            "`{}` of {} is a tag, and a tag does not move",
            place.revision,
            place.subject()
        ))
        .with_hint("give a branch"));
    }
    let rest = format!("/branch/{}", place.branch());
    match api.post(&place.api(&api.account.endpoint, &rest), &json!({})) {
        Err(error) if error.status() != Some(409) => Err(api.explain(
            error,
            &format!(
                "branch `{}` of {} cannot be created",
                place.revision,
                place.subject()
            ),
        )),
        _ => Ok(()),
    }
}

/// The commit that the branch is at; none of an empty repository.
pub fn head(api: &Api, place: &Place) -> Result<Option<String>> {
    let rest = format!("/revision/{}", place.branch());
    match api.get(&place.api(&api.account.endpoint, &rest)) {
        Ok(info) => Ok(info["sha"].as_str().map(String::from)),
        Err(ApiError::Status {
            status: 404, code, ..
        }) if code.as_deref() == Some("RevisionNotFound") && place.revision == "main" => Ok(None),
        Err(error) => Err(api.explain(
            error,
            &format!(
                "branch `{}` of {} cannot be read",
                place.revision,
                place.subject()
            ),
        )),
    }
}

/// The files of a commit.
///
/// # Errors
/// The server gives no listing, or one that cannot be read.
pub fn tree(api: &Api, place: &Place, commit: &str) -> Result<Tree> {
    let what = format!("the files of {} cannot be listed", place.subject());
    let rest = format!("/tree/{}?recursive=true&expand=false", quoted(commit));
    let mut url = place.api(&api.account.endpoint, &rest);
    let mut tree = Tree::new();
    for _ in 0..MAX_PAGES {
        let (page, next) = match api.get_page(&url) {
            Ok(page) => page,
            // an empty repository has no files
            Err(error) if error.status() == Some(404) && tree.is_empty() => return Ok(tree),
            Err(error) => return Err(api.explain(error, &what)),
        };
        let entries = page.as_array().ok_or_else(|| {
            Error::input(format!("{what}: the answer is no list")).with_hint("check `HF_ENDPOINT`")
        })?;
        tree.extend(entries.iter().filter_map(listed));
        match next {
            Some(next) => url = next,
            None => return Ok(tree),
        }
    }
    Err(Error::input(format!("{what}: the listing has no end")))
}

fn listed(entry: &Value) -> Option<(String, Listed)> {
    if entry["type"] != "file" {
        return None;
    }
    // the field has had both names
    let sha256 = entry["lfs"]["oid"]
        .as_str()
        .or(entry["lfs"]["sha256"].as_str());
    Some((
        entry["path"].as_str()?.to_string(),
        Listed {
            bytes: entry["lfs"]["size"].as_u64().or(entry["size"].as_u64())?,
            oid: entry["oid"].as_str().unwrap_or_default().to_string(),
            sha256: sha256.map(|text| text.trim_start_matches("sha256:").to_string()),
        },
    ))
}

/// Branches, tags and pull requests.
///
/// # Errors
/// The server does not say.
pub fn refs(api: &Api, place: &Place) -> Result<Refs> {
    let value = api
        .get(&place.api(&api.account.endpoint, "/refs?include_prs=1"))
        .map_err(|e| {
            api.explain(
                e,
                &format!("the branches of {} cannot be listed", place.subject()),
            )
        })?;
    let list = |key: &str, name: &str| -> Vec<Ref> {
        let entries = value[key].as_array().into_iter().flatten();
        let one = |entry: &Value| {
            Some(Ref {
                name: entry[name].as_str()?.to_string(),
                commit: entry["targetCommit"].as_str()?.to_string(),
            })
        };
        entries.filter_map(one).collect()
    };
    Ok(Refs {
        branches: list("branches", "name"),
        tags: list("tags", "name"),
        pull_requests: list("pullRequests", "ref"),
    })
}

/// The newest pull request that holds these files.
///
/// # Errors
/// As [`refs`] and [`tree`].
pub fn pull_request_with(api: &Api, place: &Place, files: &[&Prepared]) -> Result<Option<Ref>> {
    // every one holds nothing
    if files.is_empty() {
        return Ok(None);
    }
    let number = |found: &Ref| {
        let last = found.name.rsplit('/').next();
        last.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut found = refs(api, place)?.pull_requests;
    found.sort_by_key(|one| std::cmp::Reverse(number(one)));
    for one in found.into_iter().take(MAX_PULL_REQUESTS) {
        if holds(&tree(api, place, &one.commit)?, files) {
            return Ok(Some(one));
        }
    }
    Ok(None)
}

/// Gives a commit a name that stays.
///
/// # Errors
/// Another commit has the name.
pub fn tag(api: &Api, place: &Place, commit: &str, name: &str) -> Result<()> {
    let rest = format!("/tag/{}", quoted(commit));
    let url = place.api(&api.account.endpoint, &rest);
    let Err(error) = api.post(&url, &json!({ "tag": name })) else {
        return Ok(());
    };
    if error.status() == Some(409) {
        let tags = refs(api, place)?.tags;
        let target = tags
            .iter()
            .find(|tag| tag.name == name)
            .map(|tag| tag.commit.as_str());
        return match target {
            Some(target) if target == commit => Ok(()),
            _ => Err(Error::input(format!(
                "{} has a tag `{name}` already, of another commit",
                place.subject()
            ))
            .with_hint("give another `--tag`; what was pushed is there")),
        };
    }
    Err(api.explain(
        error,
        &format!("{} cannot be tagged `{name}`", place.subject()),
    ))
}

/// What the server says of a card.
///
/// # Errors
/// It refuses the card.
pub fn validate_card(api: &Api, place: &Place, card: &str, reporter: &dyn Reporter) -> Result<()> {
    let kind = match place.kind.plural() {
        "datasets" => "dataset",
        _ => "model",
    };
    let body = json!({ "repoType": kind, "content": card });
    let url = format!("{}/api/validate-yaml", api.account.endpoint);
    let messages = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        let text = |one: &Value| one["message"].as_str().or(one.as_str()).map(String::from);
        all.filter_map(text).collect()
    };
    let found = match api.post(&url, &body) {
        Ok(found) => found,
        Err(ApiError::Stopped) => return Err(api.explain(ApiError::Stopped, "")),
        Err(ApiError::Status {
            status: 400 | 422,
            message,
            ..
        }) => json!({ "errors": [message] }),
        Err(error) => {
            let error = api.explain(error, "the card cannot be checked by the server");
            reporter.warn(&error.to_string());
            return Ok(());
        }
    };
    for warning in messages(&found["warnings"]) {
        reporter.warn(&format!("card: {warning}"));
    }
    match messages(&found["errors"]).as_slice() {
        [] => Ok(()),
        errors => Err(Error::input(format!(
            "the server refuses the card of {}: {}",
            place.subject(),
            errors.join("; ")
        ))
        .with_hint("`--dry-run --card` shows the card; licence, languages and tags are keys of `[publish]`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::publish_files::Source;

    #[test]
    fn both_kinds_of_entries_are_compared_by_their_own_hash() {
        let entry = json!({"type": "file", "oid": "p", "size": 6, "path": "a", "lfs": {"oid": "s", "size": 6, "pointerSize": 130}});
        let (path, large) = listed(&entry).unwrap();
        assert_eq!((path.as_str(), large.sha256.as_deref()), ("a", Some("s")));
        let (_, small) =
            listed(&json!({"type": "file", "oid": "g", "size": 6, "path": "b"})).unwrap();
        assert_eq!(
            listed(&json!({"type": "directory", "oid": "g", "path": "b"})),
            None
        );
        let file = |sha256: &str, git: Option<&str>, bytes| Prepared {
            path: "a".into(),
            source: Source::Text(String::new()),
            bytes,
            sha256: sha256.into(),
            git_sha1: git.map(String::from),
            sample: Vec::new(),
        };
        assert!(large.is(&file("S", Some("x"), 6)));
        assert!(!large.is(&file("s", Some("p"), 7)));
        assert!(!large.is(&file("x", Some("p"), 6)));
        assert!(small.is(&file("x", Some("g"), 6)));
        assert!(!small.is(&file("g", None, 6)));
    }
}
