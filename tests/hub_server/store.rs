//! What the stand-in Hub holds: repositories with commits, branches, tags and pull requests, and the large files they
//! point to. No HTTP here.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use axum::body::Bytes;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use xet_client::cas_types::HexMerkleHash;

/// Files above this size are large, as are those that `.gitattributes` of a new repository names.
const LARGE: u64 = 10 << 20;
const LARGE_ENDINGS: &[&str] = &[
    "safetensors",
    "bin",
    "gguf",
    "parquet",
    "arrow",
    "zst",
    "gz",
    "npy",
    "pt",
];

#[derive(Default)]
pub struct Store {
    /// By `models/org/name` or `datasets/org/name`.
    pub repos: BTreeMap<String, Repo>,
    /// Large files by sha256.
    pub large: HashMap<String, Large>,
    /// Tokens and whose they are.
    pub tokens: HashMap<String, User>,
    num_commits: u64,
}

#[derive(Clone)]
pub struct User {
    pub name: String,
    pub orgs: Vec<String>,
    pub may_write: bool,
}

impl User {
    pub fn owns(&self, namespace: &str) -> bool {
        self.name == namespace || self.orgs.iter().any(|org| org == namespace)
    }
}

#[derive(Default)]
pub struct Repo {
    pub private: bool,
    /// Listed for everybody, files only for the owner.
    pub gated: bool,
    pub branches: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// The head of each pull request, numbered from 1.
    pub pull_requests: Vec<String>,
    /// What else is known of each.
    pub requests: Vec<Request>,
    pub commits: HashMap<String, Commit>,
}

pub struct Request {
    pub title: String,
    pub author: String,
    /// `open`, `closed` or `merged`
    pub status: String,
}

#[derive(Clone, Default)]
pub struct Commit {
    pub parent: Option<String>,
    pub title: String,
    pub message: String,
    /// Its place in the order of all commits, which stands in for a date.
    pub number: u64,
    pub tree: BTreeMap<String, Entry>,
}

#[derive(Clone, PartialEq)]
pub enum Entry {
    Small(Bytes),
    Large { sha256: String, size: u64 },
}

/// Where the content of a large file lies: in the LFS store, in the Xet store, or in both.
#[derive(Clone)]
pub struct Large {
    pub size: u64,
    pub lfs: Option<PathBuf>,
    pub xet: Option<HexMerkleHash>,
}

pub enum Change {
    Put(String, Entry),
    DeleteFile(String),
    DeleteFolder(String),
}

impl Entry {
    pub fn size(&self) -> u64 {
        match self {
            Entry::Small(bytes) => bytes.len() as u64,
            Entry::Large { size, .. } => *size,
        }
    }

    /// The git hash, of a large file that of its pointer.
    pub fn oid(&self) -> String {
        match self {
            Entry::Small(bytes) => git_hash(bytes),
            Entry::Large { .. } => git_hash(self.pointer().as_bytes()),
        }
    }

    /// What names the content in a cache: the git hash of small files, the sha256 of large ones.
    pub fn etag(&self) -> String {
        match self {
            Entry::Small(_) => self.oid(),
            Entry::Large { sha256, .. } => sha256.clone(),
        }
    }

    pub fn pointer(&self) -> String {
        match self {
            Entry::Small(_) => String::new(),
            Entry::Large { sha256, size } => format!(
                "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
            ),
        }
    }
}

impl Repo {
    /// The commit that a branch, tag, pull request, full name of a reference or commit hash means.
    pub fn resolve(&self, revision: &str) -> Option<String> {
        let pull_request = |n: &str| {
            let n: usize = n.parse().ok()?;
            self.pull_requests.get(n.checked_sub(1)?)
        };
        let found = match revision.strip_prefix("refs/") {
            Some(full) => match full.split_once('/')? {
                ("heads", name) => self.branches.get(name),
                ("tags", name) => self.tags.get(name),
                ("pr", n) => pull_request(n),
                _ => None,
            },
            None => (self.branches.get(revision)).or_else(|| self.tags.get(revision)),
        };
        found
            .cloned()
            .or_else(|| (self.commits.contains_key(revision)).then(|| revision.to_string()))
    }

    /// The commits from a revision back to the first, newest first.
    pub fn history(&self, revision: &str) -> Vec<(String, Commit)> {
        let mut next = self.resolve(revision);
        let mut history = Vec::new();
        while let Some(oid) = next {
            let commit = self.commits[&oid].clone();
            next = commit.parent.clone();
            history.push((oid, commit));
        }
        history
    }

    pub fn tree(&self, revision: &str) -> Option<&BTreeMap<String, Entry>> {
        Some(&self.commits[&self.resolve(revision)?].tree)
    }
}

impl Store {
    pub fn new(tokens: HashMap<String, User>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }

    /// A new repository with its first commit, as the Hub makes it; `false` where there is one.
    pub fn create(&mut self, key: &str, private: bool) -> bool {
        if self.repos.contains_key(key) {
            return false;
        }
        let mut repo = Repo {
            private,
            ..Repo::default()
        };
        let attributes: String = LARGE_ENDINGS
            .iter()
            .map(|ending| format!("*.{ending} filter=lfs diff=lfs merge=lfs -text\n"))
            .collect();
        let commit = Commit {
            title: "initial commit".into(),
            tree: BTreeMap::from([(".gitattributes".into(), Entry::Small(attributes.into()))]),
            ..Commit::default()
        };
        let oid = self.number(commit, &mut repo);
        repo.branches.insert("main".into(), oid);
        self.repos.insert(key.into(), repo);
        true
    }

    /// The commit that follows `parent` with these changes; it belongs to no branch yet.
    pub fn follow(
        &mut self,
        key: &str,
        parent: &str,
        title: &str,
        message: &str,
        changes: Vec<Change>,
    ) -> Result<String, String> {
        let Some(mut repo) = self.repos.remove(key) else {
            return Err("no such repository".into());
        };
        let result = apply(&repo.commits[parent].tree, changes).map(|tree| {
            let commit = Commit {
                parent: Some(parent.into()),
                title: title.into(),
                message: message.into(),
                number: 0,
                tree,
            };
            self.number(commit, &mut repo)
        });
        self.repos.insert(key.into(), repo);
        result
    }

    fn number(&mut self, mut commit: Commit, repo: &mut Repo) -> String {
        self.num_commits += 1;
        commit.number = self.num_commits;
        let mut digest = Sha1::new();
        digest.update(format!(
            "{} {} {:?}\n",
            commit.number, commit.title, commit.parent
        ));
        for (path, entry) in &commit.tree {
            digest.update(format!("{path} {}\n", entry.oid()));
        }
        let oid = hex::encode(digest.finalize());
        repo.commits.insert(oid.clone(), commit);
        oid
    }
}

fn apply(
    tree: &BTreeMap<String, Entry>,
    changes: Vec<Change>,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut tree = tree.clone();
    for change in changes {
        match change {
            Change::Put(path, entry) => {
                let odd = path
                    .split('/')
                    .any(|p| matches!(p, "" | "." | ".." | ".git"));
                if odd || path.contains('\\') {
                    return Err(format!("path `{path}` is not allowed"));
                }
                tree.insert(path, entry);
            }
            Change::DeleteFile(path) => {
                if tree.remove(&path).is_none() {
                    return Err(format!("A file with this name doesn't exist: {path}"));
                }
            }
            Change::DeleteFolder(path) => {
                let start = format!("{}/", path.trim_end_matches('/'));
                tree.retain(|path, _| !path.starts_with(&start));
            }
        }
    }
    Ok(tree)
}

/// Whether the server wants a file outside git.
pub fn is_large(path: &str, size: u64) -> bool {
    let ending = path.rsplit('.').next().unwrap_or("");
    size > 0 && (size > LARGE || LARGE_ENDINGS.contains(&ending))
}

pub fn git_hash(content: &[u8]) -> String {
    let mut digest = Sha1::new();
    digest.update(format!("blob {}\0", content.len()));
    digest.update(content);
    hex::encode(digest.finalize())
}

pub fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}
