//! A stand-in for the Hugging Face Hub on this machine: the git and API half of its wire, over the real Xet store. It
//! holds repositories in memory (large files in a temporary folder), answers Python's, JavaScript's and Rust's clients,
//! and misbehaves on demand (`Fault`). `serve.rs` is the same as a program.
//!
//! A repository is named as its address is: `org/name` for a model, `datasets/org/name` for a data set.

#![allow(dead_code)]

mod answer;
mod api;
mod commit;
mod fault;
mod files;
mod route;
mod store;
mod xet;
mod yaml;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use self::xet::Xet;
use xet_client::cas_types::HexMerkleHash;

pub use fault::Fault;
use fault::Faults;
use route::Asked;
use store::{Change, Entry, Large, Store, User};

/// A token that may write to `tester` and `org`.
pub const WRITE_TOKEN: &str = "hf_MarkerWriteTokenThatMustNotLeak";
/// A token that may read what `tester` and `org` have.
pub const READ_TOKEN: &str = "hf_MarkerReadTokenThatMustNotLeak";
/// A token of somebody else.
pub const STRANGER_TOKEN: &str = "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";

/// What the calls share.
struct Shared {
    store: Mutex<Store>,
    faults: Arc<Faults>,
    asked: Mutex<Vec<String>>,
    /// Where large files over LFS lie.
    folder: PathBuf,
    port: u16,
    xet: Xet,
    page: AtomicUsize,
    /// Uploads over LFS: now, and at most.
    uploads: (AtomicUsize, AtomicUsize),
    decoy: Mutex<Option<HexMerkleHash>>,
}

/// The running server; dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
    _folder: tempfile::TempDir,
}

impl Server {
    /// On a free port, with everything of Xet in memory.
    pub fn start() -> Self {
        Self::start_with(0, None)
    }

    /// On this port (0 is any), with Xet's content in `disk`.
    pub fn start_with(port: u16, disk: Option<PathBuf>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let folder = match &disk {
            Some(disk) => tempfile::tempdir_in(disk).unwrap(),
            None => tempfile::tempdir().unwrap(),
        };
        let faults = Arc::new(Faults::default());
        let large = folder.path().to_path_buf();
        let shared = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
                .await
                .unwrap();
            let shared = Arc::new(Shared {
                store: Mutex::new(Store::new(tokens())),
                faults: faults.clone(),
                asked: Mutex::default(),
                folder: large,
                port: listener.local_addr().unwrap().port(),
                xet: Xet::start(disk.map(|disk| disk.join("xet")), faults).await,
                page: AtomicUsize::new(1000),
                uploads: Default::default(),
                decoy: Mutex::default(),
            });
            let state = shared.clone();
            let router =
                axum::Router::new().fallback(move |request| route::answer(state.clone(), request));
            tokio::spawn(async move { axum::serve(listener, router).await });
            shared
        });
        Self {
            shared,
            runtime: Some(runtime),
            _folder: folder,
        }
    }

    /// For `HF_ENDPOINT`.
    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// Something goes wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.fault_times(fault, u32::MAX);
    }

    /// Something goes wrong so many times.
    pub fn fault_times(&self, fault: Fault, times: u32) {
        if matches!(fault, Fault::WrongXetHash) {
            let content = b"content of another file".repeat(1000);
            let (hash, _) = self.put_xet(vec![content]).remove(0);
            *self.shared.decoy.lock().unwrap() = Some(hash);
        }
        self.shared.faults.add(fault, times);
    }

    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// What was asked, as `METHOD /path`.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub fn forget_asked(&self) {
        self.shared.asked.lock().unwrap().clear();
    }

    /// Entries of a page of a listing.
    pub fn page_size(&self, num_entries: usize) {
        self.shared.page.store(num_entries, Ordering::Relaxed);
    }

    /// Makes a repository; `false` where there is one.
    pub fn create(&self, repo: &str, private: bool) -> bool {
        self.shared
            .store
            .lock()
            .unwrap()
            .create(&key(repo), private)
    }

    pub fn set_gated(&self, repo: &str, gated: bool) {
        let mut store = self.shared.store.lock().unwrap();
        store.repos.get_mut(&key(repo)).unwrap().gated = gated;
    }

    pub fn is_private(&self, repo: &str) -> Option<bool> {
        let store = self.shared.store.lock().unwrap();
        store.repos.get(&key(repo)).map(|repo| repo.private)
    }

    /// Commits files to `main`, large ones over LFS; makes the repository where there is none. Returns the commit.
    pub fn put(&self, repo: &str, files: &[(&str, &[u8])]) -> String {
        let mut changes = Vec::new();
        for (path, content) in files {
            let size = content.len() as u64;
            let entry = if store::is_large(path, size) {
                let sha256 = store::sha256(content);
                let place = self.shared.folder.join(&sha256);
                std::fs::write(&place, content).unwrap();
                let mut store = self.shared.store.lock().unwrap();
                let large = store.large.entry(sha256.clone()).or_insert(Large {
                    size,
                    lfs: None,
                    xet: None,
                });
                large.lfs = Some(place);
                Entry::Large { sha256, size }
            } else {
                Entry::Small(content.to_vec().into())
            };
            changes.push(Change::Put(path.to_string(), entry));
        }
        self.shared.commit_to(&key(repo), "main", changes)
    }

    /// The same, with large files in the Xet store.
    pub fn put_with_xet(&self, repo: &str, files: &[(&str, &[u8])]) -> String {
        let is_large =
            |(path, content): &&(&str, &[u8])| store::is_large(path, content.len() as u64);
        let contents = files
            .iter()
            .filter(is_large)
            .map(|(_, content)| content.to_vec());
        self.put_xet(contents.collect());
        let commit = self.put(repo, files);
        // the content is in the Xet store alone
        let mut store = self.shared.store.lock().unwrap();
        for large in store.large.values_mut().filter(|large| large.xet.is_some()) {
            if let Some(path) = large.lfs.take() {
                let _ = std::fs::remove_file(path);
            }
        }
        commit
    }

    /// Removes a file that was put, in a commit to `main`.
    pub fn delete(&self, repo: &str, path: &str) -> String {
        let changes = vec![Change::DeleteFile(path.to_string())];
        self.shared.commit_to(&key(repo), "main", changes)
    }

    /// Every file at a revision with its content; empty where there is no such revision.
    pub fn files(&self, repo: &str, revision: &str) -> BTreeMap<String, Vec<u8>> {
        let tree = {
            let store = self.shared.store.lock().unwrap();
            let repo = store.repos.get(&key(repo));
            repo.and_then(|repo| repo.tree(revision))
                .cloned()
                .unwrap_or_default()
        };
        tree.into_iter()
            .map(|(path, entry)| (path, self.content(entry)))
            .collect()
    }

    fn content(&self, entry: Entry) -> Vec<u8> {
        let Entry::Large { sha256, size } = entry else {
            let Entry::Small(bytes) = entry else {
                unreachable!()
            };
            return bytes.to_vec();
        };
        let large = self.shared.store.lock().unwrap().large[&sha256].clone();
        match large {
            Large {
                lfs: Some(path), ..
            } => std::fs::read(path).unwrap(),
            Large {
                xet: Some(hash), ..
            } => {
                let read = self.shared.xet.read(hash, 0, size);
                self.runtime().block_on(read).unwrap().to_vec()
            }
            _ => Vec::new(),
        }
    }

    /// Titles of the commits of a revision, newest first; the last is the one that every repository begins with.
    pub fn commits(&self, repo: &str, revision: &str) -> Vec<String> {
        let store = self.shared.store.lock().unwrap();
        let history = store
            .repos
            .get(&key(repo))
            .map(|repo| repo.history(revision));
        history
            .into_iter()
            .flatten()
            .map(|(_, commit)| commit.title)
            .collect()
    }

    /// The commit that a revision means.
    pub fn commit_of(&self, repo: &str, revision: &str) -> Option<String> {
        let store = self.shared.store.lock().unwrap();
        store.repos.get(&key(repo))?.resolve(revision)
    }

    /// Closes a pull request, or gives it to somebody else.
    pub fn change_pull_request(&self, repo: &str, number: usize, status: &str, author: &str) {
        let mut store = self.shared.store.lock().unwrap();
        let repo = store.repos.get_mut(&key(repo)).unwrap();
        let one = &mut repo.requests[number - 1];
        (one.status, one.author) = (status.into(), author.into());
    }

    /// How many uploads over LFS were on their way at the same time, at most.
    pub fn most_uploads_at_once(&self) -> usize {
        self.shared.uploads.1.load(Ordering::SeqCst)
    }

    pub fn num_pull_requests(&self, repo: &str) -> usize {
        let store = self.shared.store.lock().unwrap();
        store
            .repos
            .get(&key(repo))
            .map_or(0, |repo| repo.pull_requests.len())
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().unwrap()
    }

    /// Puts content into the Xet store; its hash there and its sha256.
    fn put_xet(&self, contents: Vec<Vec<u8>>) -> Vec<(HexMerkleHash, String)> {
        use ::xet::xet_session::{Sha256Policy, XetSessionBuilder};
        // of its own: the user's cache remembers what another server on this port once had, and would leave that out
        let session = XetSessionBuilder::new()
            .with_cache_dir(self.shared.folder.join("xet-cache"))
            .build()
            .unwrap();
        let far = 4_000_000_000;
        let commit = session
            .new_upload_commit()
            .unwrap()
            .with_endpoint(self.shared.xet.url(&Faults::default()))
            .with_token_info("xet", far)
            .build_blocking()
            .unwrap();
        let mut handles = Vec::new();
        for content in contents {
            let (size, sha256) = (content.len() as u64, store::sha256(&content));
            let handle = commit
                .upload_bytes_blocking(content, Sha256Policy::Compute, None)
                .unwrap();
            handles.push((handle, sha256, size));
        }
        let report = commit.commit_blocking().unwrap();
        let mut hashes = Vec::new();
        for (handle, sha256, size) in handles {
            let info = &report.uploads[&handle.task_id()].xet_info;
            let hash: HexMerkleHash = serde_json::from_value(info.hash.clone().into()).unwrap();
            self.shared.xet.know(hash);
            let mut store = self.shared.store.lock().unwrap();
            let large = (store.large.entry(sha256.clone())).or_insert(Large {
                size,
                lfs: None,
                xet: None,
            });
            large.xet = Some(hash);
            hashes.push((hash, sha256));
        }
        hashes
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn page(&self) -> usize {
        self.page.load(Ordering::Relaxed)
    }

    fn decoy(&self) -> Option<HexMerkleHash> {
        *self.decoy.lock().unwrap()
    }

    /// The fault that the body of this answer has.
    fn body_fault(&self, asked: &Asked) -> Option<Fault> {
        let line = asked.line();
        self.faults.take(|fault| match fault {
            Fault::Cut { on, .. }
            | Fault::Corrupt { on }
            | Fault::Stall { on, .. }
            | Fault::Slow { on, .. } => {
                (asked.is("GET") && line.contains(on)).then(|| fault.clone())
            }
            _ => None,
        })
    }

    /// Somebody else's commit to a branch.
    fn overtake(&self, key: &str, branch: &str) {
        let entry = Entry::Small("by somebody else".into());
        self.commit_to(key, branch, vec![Change::Put("other.txt".into(), entry)]);
    }

    fn commit_to(&self, key: &str, branch: &str, changes: Vec<Change>) -> String {
        let mut store = self.store.lock().unwrap();
        store.create(key, false);
        let parent = store.repos[key].resolve(branch).unwrap();
        let oid = store.follow(key, &parent, "files", "", changes).unwrap();
        let repo = store.repos.get_mut(key).unwrap();
        repo.branches.insert(branch.into(), oid.clone());
        oid
    }
}

fn key(repo: &str) -> String {
    if repo.starts_with("datasets/") {
        repo.into()
    } else {
        format!("models/{repo}")
    }
}

fn tokens() -> std::collections::HashMap<String, User> {
    let user = |name: &str, orgs: &[&str], may_write| User {
        name: name.into(),
        orgs: orgs.iter().map(|org| org.to_string()).collect(),
        may_write,
    };
    [
        (WRITE_TOKEN, user("tester", &["org"], true)),
        (READ_TOKEN, user("tester", &["org"], false)),
        (STRANGER_TOKEN, user("stranger", &[], true)),
    ]
    .map(|(token, user)| (token.to_string(), user))
    .into()
}
