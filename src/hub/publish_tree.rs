//! What the server says that it has: repositories, branches, tags, pull requests, and the files of a commit with their hashes.

use super::publish_api::{Api, ApiError, Place, quoted};
use super::publish_files::Prepared;
use super::wire::Pages;
use crate::progress::Reporter;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Pull requests that are looked into.
const MAX_PULL_REQUESTS: usize = 20;
/// Where the Hub reads results of evaluations.
const RESULTS: &str = ".eval_results/";
/// How the note of every result begins that a push of ours makes.
const OUR_RESULT: &str = "pass@1 in percent over ";
/// Longer files are no results.
const MAX_RESULT: u64 = 1 << 20;

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

/// Whether the repository is there. What it is for others to see is told where it is not as asked for.
///
/// # Errors
/// It cannot be read with this token; nobody answers.
pub fn exists(api: &Api, place: &Place, public: bool, reporter: &dyn Reporter) -> Result<bool> {
    let endpoint = &api.account.endpoint;
    let what = format!("{} cannot be opened", place.subject());
    let info = match api.get(&place.api(endpoint, "")) {
        Ok(info) => info,
        Err(error) if error.status() == Some(404) => return Ok(false),
        Err(error) if error.status() == Some(401) => {
            // the Hub answers so for what is not there, too: who the token belongs to tells them apart
            api.whoami()?;
            return Ok(false);
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
    Ok(true)
}

/// Whether the repository can be read without a token.
///
/// # Errors
/// Nobody answers.
pub fn is_readable(api: &Api, place: &Place) -> Result<bool> {
    match api.get(&place.api(&api.account.endpoint, "")) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.status(), Some(401 | 403 | 404)) => Ok(false),
        Err(error) => Err(api.explain(error, &format!("{} cannot be opened", place.subject()))),
    }
}

/// Whether the branch is there.
///
/// # Errors
/// As [`refs`].
pub fn has_branch(api: &Api, place: &Place) -> Result<bool> {
    let refs = refs(api, place)?;
    Ok((refs.branches.iter()).any(|branch| branch.name == place.revision))
}

/// Creates the repository.
///
/// # Errors
/// This token may not.
pub fn create(api: &Api, place: &Place, public: bool) -> Result<()> {
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

/// Sees to it that the branch is there. A new one begins with the first commit of `main`, which has no files but
/// `.gitattributes`: what is on `main` belongs to another run, or to another step of this one.
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
    let start = match first_commit(api, place)? {
        Some(commit) => json!({ "startingPoint": commit }),
        None => json!({}),
    };
    match api.post(&place.api(&api.account.endpoint, &rest), &start) {
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

/// The commit that `main` began with, where the server tells.
fn first_commit(api: &Api, place: &Place) -> Result<Option<String>> {
    let what = format!("the commits of {} cannot be listed", place.subject());
    let first = place.api(&api.account.endpoint, "/commits/main");
    let mut last = None;
    let page = |entries: &[Value]| {
        if let Some(id) = entries.last().and_then(|entry| entry["id"].as_str()) {
            last = Some(id.to_string());
        }
    };
    match all_pages(api, first, page) {
        Ok(()) => Ok(last),
        Err(Unlisted::Api(error)) if error.status() == Some(404) => Ok(None),
        Err(unlisted) => Err(unlisted.explain(api, &what)),
    }
}

/// Why a listing cannot be had.
enum Unlisted {
    Api(ApiError),
    /// It is none.
    Strange(String),
}

impl Unlisted {
    fn explain(self, api: &Api, what: &str) -> Error {
        match self {
            Self::Api(error) => api.explain(error, what),
            Self::Strange(why) => {
                Error::input(format!("{what}: {why}")).with_hint("check `HF_ENDPOINT`")
            }
        }
    }
}

/// Hands out a listing page by page.
fn all_pages(
    api: &Api,
    first: String,
    mut page: impl FnMut(&[Value]),
) -> std::result::Result<(), Unlisted> {
    let none = || Unlisted::Strange("the server has no address".into());
    let mut pages = Pages::new(&first).ok_or_else(none)?;
    let mut url = first;
    loop {
        let (value, next) = api.get_page(&url).map_err(Unlisted::Api)?;
        let entries = value
            .as_array()
            .ok_or_else(|| Unlisted::Strange("the answer is no list".into()))?;
        page(entries);
        let next = pages.follow(next, entries.len());
        match next.map_err(Unlisted::Strange)? {
            Some(next) => url = next,
            None => return Ok(()),
        }
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
    let first = place.api(&api.account.endpoint, &rest);
    let mut tree = Tree::new();
    let page = |entries: &[Value]| tree.extend(entries.iter().filter_map(listed));
    match all_pages(api, first, page) {
        Ok(()) => Ok(tree),
        // an empty repository has no files
        Err(Unlisted::Api(error)) if error.status() == Some(404) && tree.is_empty() => Ok(tree),
        Err(unlisted) => Err(unlisted.explain(api, &what)),
    }
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

/// The newest pull request that holds these files: open, by the account of the token, and called `title`. Others may hold the
/// same files and are none of ours.
///
/// # Errors
/// As [`refs`] and [`tree`].
pub fn pull_request_with(
    api: &Api,
    place: &Place,
    title: &str,
    files: &[&Prepared],
) -> Result<Option<Ref>> {
    // every one holds nothing
    if files.is_empty() {
        return Ok(None);
    }
    let number = |found: &Ref| found.name.rsplit('/').next()?.parse::<u64>().ok();
    let mut found = refs(api, place)?.pull_requests;
    if found.is_empty() {
        return Ok(None);
    }
    let ours = open_pull_requests(api, place, title)?;
    found.retain(|one| number(one).is_some_and(|number| ours.contains(&number)));
    found.sort_by_key(|one| std::cmp::Reverse(number(one)));
    for one in found.into_iter().take(MAX_PULL_REQUESTS) {
        if holds(&tree(api, place, &one.commit)?, files) {
            return Ok(Some(one));
        }
    }
    Ok(None)
}

/// Numbers of the open pull requests that this account has opened under this title.
fn open_pull_requests(api: &Api, place: &Place, title: &str) -> Result<BTreeSet<u64>> {
    let me = api.whoami()?;
    let what = format!("the pull requests of {} cannot be listed", place.subject());
    let mut ours = BTreeSet::new();
    let mut num_seen = 0;
    for page in 0..MAX_PULL_REQUESTS {
        let rest = format!(
            "/discussions?type=pull_request&status=open&author={}&p={page}",
            quoted(&me)
        );
        let said = match api.get(&place.api(&api.account.endpoint, &rest)) {
            // a server without discussions has no pull requests that could be told apart
            Err(error) if error.status() == Some(404) => break,
            said => said.map_err(|e| api.explain(e, &what))?,
        };
        let entries = said["discussions"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        // the server may not know the filters
        let is_ours = |entry: &&Value| {
            entry["isPullRequest"] == true
                && matches!(entry["status"].as_str(), Some("open" | "draft"))
                && entry["author"]["name"] == me.as_str()
                && entry["title"] == title
        };
        ours.extend(
            entries
                .iter()
                .filter(is_ours)
                .filter_map(|e| e["num"].as_u64()),
        );
        num_seen += entries.len() as u64;
        if entries.is_empty() || said["count"].as_u64().is_none_or(|count| num_seen >= count) {
            break;
        }
    }
    Ok(ours)
}

/// Results of evaluations that earlier pushes of ours have left beside these files and that are none of them: they are of
/// other weights.
///
/// # Errors
/// The user stops.
pub fn stale_results(
    api: &Api,
    place: &Place,
    commit: &str,
    tree: &Tree,
    ours: &HashSet<&str>,
) -> Result<Vec<String>> {
    let mut stale = Vec::new();
    for path in tree.keys().filter(|path| path.starts_with(RESULTS)) {
        if ours.contains(path.as_str()) || !path.ends_with(".yaml") {
            continue;
        }
        let name: Vec<String> = path.split('/').map(quoted).collect();
        let page = place.page(&api.account.endpoint);
        let url = format!("{page}/resolve/{}/{}", quoted(commit), name.join("/"));
        match api.get_text(&url, MAX_RESULT) {
            Ok(text) if is_our_result(&text) => stale.push(path.clone()),
            Err(ApiError::Stopped) => return Err(api.explain(ApiError::Stopped, "")),
            // somebody else's, or who knows whose: it stays
            _ => {}
        }
    }
    Ok(stale)
}

/// Whether a push of ours has made this result.
pub fn is_our_result(yaml: &str) -> bool {
    let note = |line: &str| {
        let value = line.trim_start_matches(['-', ' ']).strip_prefix("notes:");
        value.is_some_and(|text| {
            text.trim_start_matches([' ', '"', '\''])
                .starts_with(OUR_RESULT)
        })
    };
    yaml.lines().any(note)
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
        // this token's rights are told where they are needed
        Err(error) if matches!(error.status(), Some(401 | 403)) => return Ok(()),
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
    fn results_of_our_cards_are_known() {
        use crate::hub::card::{EvalRow, ModelCard};
        let card = ModelCard {
            results: vec![EvalRow {
                suite: "aime-2024".into(),
                dataset: Some("a/b".into()),
                ..EvalRow::default()
            }],
            ..ModelCard::default()
        };
        let [(_, ours)] = card.eval_results().try_into().unwrap();
        assert!(is_our_result(&ours), "{ours}");
        for other in ["", "- value: 1\n  notes: by hand\n", "- notes: not pass@1"] {
            assert!(!is_our_result(other), "{other}");
        }
    }

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
