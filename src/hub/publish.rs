//! A push from top to bottom: repository, card, what differs, large files, commits, and the server's own listing at the end.
//!
//! A commit is never sent on faith. Each begins with what the branch holds now and names that commit as its parent; after
//! any doubt (no answer, a 5xx, a branch that moved) the listing is read again, and what is there already is not committed
//! again. So a push that was killed anywhere goes on when it is called again, and a push of what is there does nothing.
//!
//! | file | holds |
//! |---|---|
//! | `publish_files` | which files, their hashes, no tokens |
//! | `publish_api` | questions and answers, patience, errors |
//! | `publish_tree` | what the server has |
//! | `publish_upload`, `publish_xet` | large files |

use super::publish_api::{Account, Api, ApiError, Place};
use super::publish_files::{Prepared, RepoKind, Source};
use super::publish_secrets::find_token;
use super::publish_tree::{self as remote, Ref, Tree};
use super::publish_upload::{self as upload, Modes};
use crate::progress::{Reporter, Stop};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Files of a commit, as the Hub asks for.
const MAX_FILES: usize = 100;
/// Bytes of small files of a commit.
const MAX_INLINE_BYTES: u64 = 32 << 20;
/// Commits in a row that do not bring the branch nearer to what is wanted.
const MAX_DOUBTS: u32 = 6;
/// A commit of many large files takes the server its time, and small files their way in it.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
const BYTES_A_SECOND: u64 = 16_000;
/// The card goes up last: where it is, everything is.
const CARD: &str = "README.md";

/// Where a push goes.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: RepoKind,
    /// `owner/name`
    pub repo: String,
    /// Branch; `None` is `main`.
    pub revision: Option<String>,
    /// Everybody can see it, where it has to be created.
    pub public: bool,
    /// Open a pull request in place of a commit.
    pub create_pr: bool,
    pub tag: Option<String>,
    /// First line of the commits.
    pub message: String,
}

impl Target {
    fn place(&self) -> Place {
        Place {
            kind: self.kind,
            repo: self.repo.clone(),
            revision: self.revision.clone().unwrap_or_else(|| "main".into()),
        }
    }
}

/// What a push gave.
#[derive(Clone, Debug, Serialize)]
pub struct Published {
    pub repo: String,
    /// Its page.
    pub url: String,
    /// Branch, or `refs/pr/N`.
    pub revision: String,
    pub commit: String,
    /// 0 where everything was there.
    pub num_commits: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// As the server lists them.
    pub files: Vec<PublishedFile>,
}

/// A file that the server has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedFile {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// `lfs` or `inline`
    pub upload: &'static str,
}

/// Pushes the files, or what of them is not there yet.
///
/// # Errors
/// No token or no right, a card that the server refuses, a server that does not take the files or does not list them
/// afterwards; [`Error::Interrupted`] where the user stops. The same call goes on.
pub fn push(
    account: &Account,
    target: &Target,
    files: &[Prepared],
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Published> {
    account.need_token()?;
    check_names(target, files, &account.secrets())?;
    if files.is_empty() {
        return Err(Error::input("there is nothing to push"));
    }
    let api = Api::open(account.clone(), stop.clone())?;
    let place = target.place();
    let is_there = remote::exists(&api, &place, target.public, reporter)?;
    // before there is a repository that nothing can go into
    if let Some(card) = files.iter().find(|file| file.path == CARD) {
        remote::validate_card(&api, &place, &card_text(card)?, reporter)?;
    }
    if !is_there {
        remote::create(&api, &place, target.public)?;
        let seen = if target.public { "public" } else { "private" };
        reporter.note(&format!("created {} ({seen})", place.subject()));
    }
    remote::ensure_branch(&api, &place)?;
    let mut push = Push {
        api: &api,
        target,
        place,
        files,
        reporter,
        sent: HashSet::new(),
        stale: HashMap::new(),
        num_commits: 0,
        pull_request: None,
    };
    let (commit, tree) = push.run()?;
    if let Some(tag) = &target.tag {
        remote::tag(&api, &push.place, &commit, tag)?;
    }
    Ok(push.published(commit, &tree))
}

/// Refuses access tokens in what is seen beside the files: their names, the title of the commits, branch and tag.
fn check_names(target: &Target, files: &[Prepared], known: &[String]) -> Result<()> {
    let of_target = [
        ("message", Some(&target.message)),
        ("tag", target.tag.as_ref()),
        ("branch", target.revision.as_ref()),
    ];
    let of_files = files
        .iter()
        .map(|file| ("name of a file", Some(&file.path)));
    for (what, text) in of_target.into_iter().chain(of_files) {
        if text.is_some_and(|text| find_token(text.as_bytes(), known).is_some()) {
            return Err(
                Error::input(format!("the {what} holds what looks like an access token"))
                    .with_hint("everybody who may see the repository would read it"),
            );
        }
    }
    Ok(())
}

fn card_text(card: &Prepared) -> Result<String> {
    match &card.source {
        Source::Text(text) => Ok(text.clone()),
        Source::File(path) => {
            std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))
        }
    }
}

struct Push<'a> {
    api: &'a Api,
    target: &'a Target,
    place: Place,
    files: &'a [Prepared],
    reporter: &'a dyn Reporter,
    /// Hashes of large files that have arrived.
    sent: HashSet<String>,
    /// Results that are no longer true, by commit.
    stale: HashMap<String, Vec<String>>,
    num_commits: usize,
    pull_request: Option<String>,
}

/// What one commit does.
struct Batch<'a> {
    files: Vec<&'a Prepared>,
    /// Paths that go.
    removed: Vec<String>,
}

impl<'a> Push<'a> {
    /// Commits until the listing shows every file; returns the commit and its listing.
    fn run(&mut self) -> Result<(String, Tree)> {
        let mut at = remote::head(self.api, &self.place)?;
        let mut doubts = 0;
        loop {
            let tree = match &at {
                Some(commit) => remote::tree(self.api, &self.place, commit)?,
                None => Tree::new(),
            };
            let stale = self.stale_results(at.as_deref(), &tree)?;
            let Some(batch) = next(self.target.kind, self.files, &tree, &stale) else {
                let nothing = || Error::input(format!("{} has no commit", self.place.subject()));
                return Ok((at.ok_or_else(nothing)?, tree));
            };
            if doubts >= MAX_DOUBTS {
                return Err(self.not_listed(&batch));
            }
            let modes = upload::modes(self.api, &self.place, &batch.files, self.opens_pr())?;
            let is_large = |file: &Prepared| modes.get(&file.path).copied().unwrap_or(false);
            let large: Vec<&Prepared> = batch
                .files
                .iter()
                .copied()
                .filter(|file| is_large(file))
                .collect();
            upload::large_files(
                self.api,
                &self.place,
                &large,
                self.opens_pr(),
                &mut self.sent,
                self.reporter,
            )?;
            if self.opens_pr()
                && let Some(found) = remote::pull_request_with(
                    self.api,
                    &self.place,
                    &self.target.message,
                    &batch.files,
                )?
            {
                // an earlier call, or one whose answer was lost, has opened it
                at = Some(self.go_on_in(found));
                continue;
            }
            let body = self.body(&batch, &modes, at.as_deref())?;
            match self.commit(body) {
                Ok(commit) => {
                    self.num_commits += 1;
                    at = match commit {
                        Some(commit) => Some(commit),
                        None => remote::head(self.api, &self.place)?,
                    };
                    // a server may need a moment to list what it has taken; it is not asked to take it again
                    doubts = 0;
                    for wait in 0.. {
                        if let Some(commit) = &at
                            && self.lists(commit, &batch)?
                        {
                            break;
                        }
                        if wait >= MAX_DOUBTS {
                            return Err(self.not_listed(&batch));
                        }
                        self.wait(wait, None)?;
                        if at.is_none() {
                            at = remote::head(self.api, &self.place)?;
                        }
                    }
                }
                Err(error) if error.is_doubtful() || passes(&error) => {
                    doubts += 1;
                    if doubts >= MAX_DOUBTS {
                        return Err(self.explain(error));
                    }
                    self.wait(doubts - 1, error.wait())?;
                    at = remote::head(self.api, &self.place)?;
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// Whether the next commit opens a pull request.
    fn opens_pr(&self) -> bool {
        self.target.create_pr && self.pull_request.is_none()
    }

    fn go_on_in(&mut self, found: Ref) -> String {
        let number = found.name.rsplit('/').next().unwrap_or_default();
        let page = self.place.page(&self.api.account.endpoint);
        self.pull_request = Some(format!("{page}/discussions/{number}"));
        self.place.revision = found.name;
        found.commit
    }

    /// Results of evaluations beside the files that are pushed, of an earlier push and other weights.
    fn stale_results(&mut self, commit: Option<&str>, tree: &Tree) -> Result<Vec<String>> {
        let Some(commit) = commit else {
            return Ok(Vec::new());
        };
        if let Some(known) = self.stale.get(commit) {
            return Ok(known.clone());
        }
        let stale = stale_results(self.api, &self.place, self.files, commit, tree)?;
        self.stale.insert(commit.to_string(), stale.clone());
        Ok(stale)
    }

    /// Whether the server lists what has just been committed.
    fn lists(&self, commit: &str, batch: &Batch) -> Result<bool> {
        let tree = remote::tree(self.api, &self.place, commit)?;
        let gone = batch.removed.iter().all(|path| !tree.contains_key(path));
        Ok(gone && remote::holds(&tree, &batch.files))
    }

    /// A commit as it goes over the wire: a line for what it is, and one for each file.
    fn body(&self, batch: &Batch, modes: &Modes, parent: Option<&str>) -> Result<Vec<u8>> {
        if !batch.removed.is_empty() {
            self.reporter.note(&format!(
                "of an earlier version and removed: {}",
                batch.removed.join(", ")
            ));
        }
        let mut body = Vec::new();
        let mut line = |key: &str, value: Value| {
            body.extend_from_slice(json!({"key": key, "value": value}).to_string().as_bytes());
            body.push(b'\n');
        };
        let mut header = json!({"summary": self.target.message, "description": ""});
        if let Some(parent) = parent {
            header["parentCommit"] = json!(parent);
        }
        line("header", header);
        for path in &batch.removed {
            line("deletedFile", json!({ "path": path }));
        }
        for file in &batch.files {
            if modes.get(&file.path).copied().unwrap_or(false) {
                line(
                    "lfsFile",
                    json!({"path": file.path, "algo": "sha256", "oid": file.sha256, "size": file.bytes}),
                );
            } else {
                let content = upload::base64(&bytes_of(file)?);
                line(
                    "file",
                    json!({"path": file.path, "encoding": "base64", "content": content}),
                );
            }
        }
        Ok(body)
    }

    /// Sends a commit, once. Returns its hash, where the server says it.
    fn commit(&mut self, body: Vec<u8>) -> std::result::Result<Option<String>, ApiError> {
        let opens_pr = self.opens_pr();
        let pr = if opens_pr { "?create_pr=1" } else { "" };
        let rest = format!("/commit/{}{pr}", self.place.branch());
        let url = self.place.api(&self.api.account.endpoint, &rest);
        let patience = COMMIT_TIMEOUT + Duration::from_secs(body.len() as u64 / BYTES_A_SECOND);
        let request = self
            .api
            .client()
            .post(&url)
            .headers(self.api.account.headers(&url))
            .header("content-type", "application/x-ndjson")
            .body(body);
        let said = self.api.json(self.api.send(request, patience)?)?;
        let commit = said["commitOid"].as_str().map(String::from);
        if opens_pr {
            let url = said["pullRequestUrl"].as_str().unwrap_or_default();
            let number = url.trim_end_matches('/').rsplit('/').next();
            match number.and_then(|n| n.parse::<u64>().ok()) {
                Some(number) => {
                    self.pull_request = Some(url.to_string());
                    self.place.revision = format!("refs/pr/{number}");
                }
                None => {
                    return Err(ApiError::NoAnswer(
                        "the answer names no pull request".into(),
                    ));
                }
            }
        }
        Ok(commit)
    }

    fn wait(&self, number: u32, asked: Option<Duration>) -> Result<()> {
        self.api
            .wait(number, asked)
            .map_err(|e| self.api.explain(e, ""))
    }

    fn explain(&self, error: ApiError) -> Error {
        let what = format!("{} takes no commit", self.place.subject());
        self.api.explain(error, &what)
    }

    fn not_listed(&self, batch: &Batch) -> Error {
        let first = batch.files.first().map_or("", |file| file.path.as_str());
        Error::input(format!(
            "{} does not list `{first}` with its size and hash after {MAX_DOUBTS} attempts",
            self.place.subject()
        ))
        .with_hint("nothing is lost: run the same command again later")
    }

    fn published(&self, commit: String, tree: &Tree) -> Published {
        let upload = |file: &Prepared| match tree.get(&file.path) {
            Some(listed) if listed.sha256.is_some() => "lfs",
            _ => "inline",
        };
        Published {
            repo: self.place.repo.clone(),
            url: self.place.page(&self.api.account.endpoint),
            revision: self.place.revision.clone(),
            commit,
            num_commits: self.num_commits,
            pull_request: self.pull_request.clone(),
            tag: self.target.tag.clone(),
            files: self
                .files
                .iter()
                .map(|file| PublishedFile {
                    path: file.path.clone(),
                    bytes: file.bytes,
                    sha256: file.sha256.clone(),
                    upload: upload(file),
                })
                .collect(),
        }
    }
}

/// [`remote::stale_results`], where weights are pushed: without them the results that are there stay true.
fn stale_results(
    api: &Api,
    place: &Place,
    files: &[Prepared],
    commit: &str,
    tree: &Tree,
) -> Result<Vec<String>> {
    let ours: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let has_weights = ours.iter().any(|path| path.ends_with(".safetensors"));
    match has_weights && place.kind == RepoKind::Model {
        true => remote::stale_results(api, place, commit, tree, &ours),
        false => Ok(Vec::new()),
    }
}

/// What the next commit has to do: everything that differs, as much of it as a commit takes.
fn next<'a>(
    kind: RepoKind,
    all: &'a [Prepared],
    tree: &Tree,
    stale: &[String],
) -> Option<Batch<'a>> {
    let differing = differing(all, tree);
    let mut inline = 0;
    let mut files = Vec::new();
    for file in &differing {
        inline += if file.is_large() { 0 } else { file.bytes };
        if !files.is_empty() && (files.len() == MAX_FILES || inline > MAX_INLINE_BYTES) {
            break;
        }
        files.push(*file);
    }
    // with the last files, so that no moment has neither the old nor the new
    let removed = match files.len() == differing.len() {
        true => removed(kind, all, tree, stale),
        false => Vec::new(),
    };
    (!files.is_empty() || !removed.is_empty()).then_some(Batch { files, removed })
}

/// Files that are not there, or not like this.
fn differing<'a>(all: &'a [Prepared], tree: &Tree) -> Vec<&'a Prepared> {
    let mut differing: Vec<&Prepared> = all
        .iter()
        .filter(|file| !remote::holds(tree, &[*file]))
        .collect();
    differing.sort_by_key(|file| (file.path == CARD, file.path.as_str()));
    differing
}

/// Files that are there and go.
fn removed(kind: RepoKind, all: &[Prepared], tree: &Tree, stale: &[String]) -> Vec<String> {
    let ours: HashSet<&str> = all.iter().map(|file| file.path.as_str()).collect();
    tree.keys()
        .filter(|path| kind.replaces(&ours, path) || stale.contains(path))
        .cloned()
        .collect()
}

/// What a push would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Whether the repository is there.
    pub exists: bool,
    /// Paths that would go up: not there yet, or not like this.
    pub changed: Vec<String>,
    /// Paths that are there and would be deleted.
    pub removed: Vec<String>,
}

/// What [`push`] would do; nothing is changed.
///
/// # Errors
/// Nobody answers; the repository cannot be read.
pub fn preview(
    account: &Account,
    target: &Target,
    files: &[Prepared],
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Preview> {
    let api = Api::open(account.clone(), stop.clone())?;
    let place = target.place();
    let all = |exists| Preview {
        exists,
        changed: differing(files, &Tree::new())
            .iter()
            .map(|file| file.path.clone())
            .collect(),
        removed: Vec::new(),
    };
    // without a token one that is private is as good as not there
    let exists = match account.need_token() {
        Ok(()) => remote::exists(&api, &place, target.public, reporter)?,
        Err(_) => remote::is_readable(&api, &place)?,
    };
    if !exists {
        return Ok(all(false));
    }
    let is_main = place.revision == "main";
    if !is_main && !remote::has_branch(&api, &place)? {
        return Ok(all(true));
    }
    let Some(commit) = remote::head(&api, &place)? else {
        return Ok(all(true));
    };
    let tree = remote::tree(&api, &place, &commit)?;
    let stale = stale_results(&api, &place, files, &commit, &tree)?;
    let changed = differing(files, &tree);
    Ok(Preview {
        exists,
        changed: changed.iter().map(|file| file.path.clone()).collect(),
        removed: removed(target.kind, files, &tree, &stale),
    })
}

/// What a commit may be told that is over after a look at the branch: it moved, or the server is busy.
fn passes(error: &ApiError) -> bool {
    matches!(error.status(), Some(409 | 412 | 429))
}

/// The content of a small file, which is still the one that was hashed.
fn bytes_of(file: &Prepared) -> Result<Vec<u8>> {
    let bytes = match &file.source {
        Source::Text(text) => text.clone().into_bytes(),
        Source::File(path) => std::fs::read(path).map_err(|e| Error::io("reading", path, e))?,
    };
    match hex::encode(Sha256::digest(&bytes)) == file.sha256 {
        true => Ok(bytes),
        false => Err(
            Error::input(format!("`{}` changes while it is sent", file.path))
                .with_hint("wait until whatever writes it is done, and push again"),
        ),
    }
}
