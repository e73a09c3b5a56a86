//! Listing, downloading and checking, for models and data sets alike; with no network, the cache alone.

use std::path::PathBuf;
use std::sync::Arc;

use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, HFResult, RepoType, split_id};
use serde_json::Value;

use super::cache::RepoCache;
use super::failure::{Place, explain, is_unreachable};
use super::select::{self, INDEX, Part, SINGLE, Wanted};
use super::{Resolved, ResolvedFiles, check};
use crate::progress::{Reporter, Task};
use crate::{Error, Result};

/// Files up to this size are hashed whenever they are used, larger ones only when they have just been fetched.
const ALWAYS_HASHED: u64 = 32 << 20;

/// Where and how to fetch; what is `None` comes from the environment.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    pub endpoint: Option<String>,
    pub cache: Option<PathBuf>,
    pub token: Option<String>,
    /// Use the cache only.
    pub offline: bool,
    /// How often a request is tried again.
    pub num_retries: Option<usize>,
}

/// A connection to one Hub, with one cache.
pub struct Hub {
    client: HFClientSync,
    endpoint: String,
    cache: PathBuf,
    offline: bool,
}

/// One file of a listing.
struct Listed {
    path: String,
    size: u64,
    /// The git hash of the file, `None` for a large file, where it is that of a pointer.
    git_hash: Option<String>,
}

/// One repository at one commit, files listed.
struct Listing<'a, T: RepoType> {
    repo: &'a Repo<'a, T>,
    commit: String,
    files: Vec<Listed>,
}

/// What the API says of a repository.
struct Info {
    commit: Option<String>,
    card: Option<Value>,
}

/// One repository.
struct Repo<'a, T: RepoType> {
    hub: &'a Hub,
    handle: HFRepositorySync<T>,
    cache: RepoCache,
    what: &'static str,
    id: &'a str,
    revision: &'a str,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Result<Self> {
        let offline = std::env::var("HF_HUB_OFFLINE")
            .is_ok_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()));
        Self::new(HubOptions {
            offline,
            ..HubOptions::default()
        })
    }

    /// As given.
    pub fn new(options: HubOptions) -> Result<Self> {
        let mut builder =
            HFClient::builder().user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")));
        if let Some(endpoint) = options.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(cache) = options.cache {
            builder = builder.cache_dir(cache);
        }
        if let Some(token) = options.token {
            builder = builder.token(token);
        }
        if let Some(n) = options.num_retries {
            builder = builder.retry_max_attempts(n);
        }
        let failed = |e| {
            Error::input(format!("no connection to the Hub can be set up: {e}"))
                .with_hint("check `HF_ENDPOINT`, which must be a whole address such as `https://huggingface.co`")
        };
        let client = builder.build().map_err(failed)?;
        Ok(Self {
            endpoint: client.endpoint().to_string(),
            cache: client.cache_dir().to_path_buf(),
            client: HFClientSync::from_inner(client).map_err(failed)?,
            offline: options.offline,
        })
    }

    /// Fetches what is needed of a model and returns its folder in the cache.
    pub fn model(
        &self,
        id: &str,
        revision: Option<&str>,
        part: Part,
        reporter: &dyn Reporter,
    ) -> Result<Resolved> {
        let (owner, name) = split_id(id);
        let handle = self.client.model(owner, name);
        let repo = self.repo(handle.clone(), "model", id, revision);
        let done = |commit: String| Resolved {
            folder: repo.cache.snapshot(&commit),
            revision: Some(commit),
            source: id.to_string(),
        };
        let info = || {
            handle
                .info()
                .revision(repo.revision)
                .send()
                .map(|info| Info {
                    commit: info.sha,
                    card: None,
                })
        };
        let Some((listing, _)) = repo.list(info, reporter)? else {
            let commit = repo.cached_commit()?;
            repo.check_cached_model(&commit, part)?;
            return Ok(done(commit));
        };
        let mut wanted = select::model_files(listing.files.iter().map(|f| f.path.as_str()));
        if !wanted.iter().any(|file| file == "config.json") {
            return Err(Error::input(format!("model `{id}` has no `config.json`"))
                .with_hint("only repositories in the Hugging Face layout can be used"));
        }
        if part == Part::Everything {
            wanted.extend(listing.weights(reporter)?);
        }
        listing.fetch(&wanted, reporter)?;
        repo.cache.remember(repo.revision, &listing.commit)?;
        Ok(done(listing.commit))
    }

    /// Fetches the chosen files of a data set.
    pub fn dataset(
        &self,
        id: &str,
        revision: Option<&str>,
        wanted: Wanted,
        reporter: &dyn Reporter,
    ) -> Result<ResolvedFiles> {
        let (owner, name) = split_id(id);
        let handle = self.client.dataset(owner, name);
        let repo = self.repo(handle.clone(), "data set", id, revision);
        let place = format!("data set `{id}`");
        let info = || {
            let info = handle.info().revision(repo.revision).send()?;
            Ok(Info {
                commit: info.sha,
                card: info.card_data,
            })
        };
        let (commit, files) = match repo.list(info, reporter)? {
            Some((listing, card)) => {
                let paths: Vec<String> = listing.files.iter().map(|f| f.path.clone()).collect();
                let files = select::dataset_files(&place, &paths, card.as_ref(), wanted)?;
                listing.fetch(&files, reporter)?;
                repo.cache.remember(repo.revision, &listing.commit)?;
                (listing.commit, files)
            }
            None => {
                let commit = repo.cached_commit()?;
                let paths: Vec<String> = repo
                    .cache
                    .files(&commit)
                    .into_iter()
                    .map(|(path, _)| path)
                    .collect();
                let files = select::dataset_files(&place, &paths, None, wanted)
                    .map_err(|e| e.at("in the cache, without network"))?;
                if let Some(missing) = select::missing_shard(&files) {
                    return Err(repo.not_cached(&missing));
                }
                (commit, files)
            }
        };
        let folder = repo.cache.snapshot(&commit);
        Ok(ResolvedFiles {
            files: files.iter().map(|path| folder.join(path)).collect(),
            revision: Some(commit),
            source: id.to_string(),
        })
    }

    fn repo<'a, T: RepoType>(
        &'a self,
        handle: HFRepositorySync<T>,
        what: &'static str,
        id: &'a str,
        revision: Option<&'a str>,
    ) -> Repo<'a, T> {
        Repo {
            hub: self,
            handle,
            cache: RepoCache::new(&self.cache, T::default().plural(), id),
            what,
            id,
            revision: revision.unwrap_or("main"),
        }
    }
}

impl<'a, T: RepoType> Repo<'a, T> {
    fn explain(&self, error: HFError, file: Option<&str>) -> Error {
        let Self {
            what, id, revision, ..
        } = self;
        explain(
            error,
            Place {
                what,
                id,
                revision,
                file,
                endpoint: &self.hub.endpoint,
            },
        )
    }

    fn not_cached(&self, file: &str) -> Error {
        Error::input(format!(
            "`{file}` of {} `{}` is not in the cache, and the network is not used",
            self.what, self.id
        ))
        .with_hint("run once with network and without `HF_HUB_OFFLINE`")
    }

    /// The listing at the wanted revision, `None` where the cache has to do: offline, or nobody answers.
    fn list(
        &'a self,
        info: impl Fn() -> HFResult<Info>,
        reporter: &dyn Reporter,
    ) -> Result<Option<(Listing<'a, T>, Option<Value>)>> {
        if self.hub.offline {
            return Ok(None);
        }
        let info = match info() {
            Ok(info) => info,
            Err(error)
                if is_unreachable(&error)
                    && self
                        .cache
                        .commit_of(self.revision)
                        .is_some_and(|c| self.cache.snapshot(&c).exists()) =>
            {
                reporter.warn(&format!(
                    "{} cannot be reached; {} `{}` is taken from the cache as it was last fetched",
                    self.hub.endpoint, self.what, self.id
                ));
                return Ok(None);
            }
            Err(error) => return Err(self.explain(error, None)),
        };
        let commit = info.commit.ok_or_else(|| {
            Error::input(format!(
                "the server names no commit for {} `{}` at `{}`",
                self.what, self.id, self.revision
            ))
        })?;
        let entries = self
            .handle
            .list_tree()
            .revision(commit.clone())
            .recursive(true)
            .send();
        let files = entries
            .map_err(|e| self.explain(e, None))?
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File {
                    oid,
                    size,
                    path,
                    lfs,
                    xet_hash,
                    ..
                } => {
                    let is_large = lfs.is_some() || xet_hash.is_some();
                    Some(Listed {
                        path,
                        size,
                        git_hash: (!is_large).then_some(oid),
                    })
                }
                RepoTreeEntry::Directory { .. } => None,
            })
            .collect();
        Ok(Some((
            Listing {
                repo: self,
                commit,
                files,
            },
            info.card,
        )))
    }

    fn cached_commit(&self) -> Result<String> {
        self.cache
            .commit_of(self.revision)
            .filter(|commit| self.cache.snapshot(commit).is_dir())
            .ok_or_else(|| {
                Error::input(format!(
                    "{} `{}` at revision `{}` is not in the cache, and the network is not used",
                    self.what, self.id, self.revision
                ))
                .with_hint(
                    "run once with network and without `HF_HUB_OFFLINE`, or give a local folder",
                )
            })
    }

    /// Without a listing: a model has its config, and all weights that its index names.
    fn check_cached_model(&self, commit: &str, part: Part) -> Result<()> {
        let folder = self.cache.snapshot(commit);
        let mut needed = vec!["config.json".to_string()];
        if part == Part::Everything {
            match std::fs::read(folder.join(INDEX)) {
                Ok(index) => needed.extend(self.shards(&index)?),
                Err(_) => needed.push(SINGLE.into()),
            }
        }
        match needed.iter().find(|file| !folder.join(file).is_file()) {
            Some(missing) => Err(self.not_cached(missing)),
            None => Ok(()),
        }
    }

    fn shards(&self, index: &[u8]) -> Result<Vec<String>> {
        select::shards(index).map_err(|e| {
            Error::input(format!(
                "`{INDEX}` of {} `{}` cannot be used: {e}",
                self.what, self.id
            ))
        })
    }
}

impl<T: RepoType> Listing<'_, T> {
    fn find(&self, path: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The weight files of a model: the shards of its index, else the one file.
    fn weights(&self, reporter: &dyn Reporter) -> Result<Vec<String>> {
        let (what, id) = (self.repo.what, self.repo.id);
        if self.find(INDEX).is_none() {
            return match self.find(SINGLE) {
                Some(_) => Ok(vec![SINGLE.into()]),
                None => Err(Error::input(format!(
                    "{what} `{id}` has no `{SINGLE}` and no `{INDEX}`"
                ))
                .with_hint("only safetensors weights are read; choose a repository that has them")),
            };
        }
        self.fetch(&[INDEX.to_string()], reporter)?;
        let path = self.repo.cache.snapshot(&self.commit).join(INDEX);
        let index = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let mut files = self.repo.shards(&index)?;
        if let Some(missing) = files.iter().find(|file| self.find(file).is_none()) {
            return Err(Error::input(format!(
                "`{INDEX}` of {what} `{id}` names `{missing}`, which the repository does not have"
            )));
        }
        files.push(INDEX.into());
        Ok(files)
    }

    /// Sees to it that these files are in the cache and whole.
    fn fetch(&self, paths: &[String], reporter: &dyn Reporter) -> Result<()> {
        let snapshot = self.repo.cache.snapshot(&self.commit);
        let wanted: Vec<&Listed> = paths.iter().filter_map(|path| self.find(path)).collect();
        let mut absent = Vec::new();
        for file in wanted {
            if !snapshot.join(&file.path).exists() {
                absent.push(file);
            } else if let Some(fault) = self.fault(file, file.size <= ALWAYS_HASHED)? {
                reporter.warn(&format!(
                    "cached `{}` of `{}` is damaged ({fault}) and is fetched again",
                    file.path, self.repo.id
                ));
                self.repo.cache.forget(&self.commit, &file.path);
                absent.push(file);
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        let total = absent.iter().map(|file| file.size).sum();
        let task: Arc<dyn Task> = reporter.task(self.repo.id, Some(total), "bytes").into();
        let mut before = 0;
        for file in absent {
            task.message(&file.path);
            self.fetch_one(file, &task, before)?;
            before += file.size;
            task.set_position(before);
        }
        Ok(())
    }

    fn fetch_one(&self, file: &Listed, task: &Arc<dyn Task>, before: u64) -> Result<()> {
        let repo = self.repo;
        repo.handle
            .download_file()
            .filename(file.path.clone())
            .revision(self.commit.clone())
            .progress(Progress::new(Bytes {
                task: task.clone(),
                before,
            }))
            .send()
            .map_err(|e| repo.explain(e, Some(&file.path)))?;
        let Some(fault) = self.fault(file, true)? else {
            return Ok(());
        };
        // an error page can arrive in place of the file: it must not stay in a cache that others trust
        repo.cache.forget(&self.commit, &file.path);
        Err(Error::input(format!("`{}` of {} `{}` arrived damaged: {fault}", file.path, repo.what, repo.id))
            .with_hint("run the same command again; if it stays so, the server may be sending an error page in place of the file"))
    }

    fn fault(&self, file: &Listed, hashed: bool) -> Result<Option<String>> {
        let blob = self.repo.cache.blob_name(&self.commit, &file.path);
        let hash = file.git_hash.clone().or(blob).filter(|_| hashed);
        check::fault(
            &self.repo.cache.snapshot(&self.commit).join(&file.path),
            Some(file.size),
            hash.as_deref(),
        )
    }
}

/// Passes one file's progress on to the task of all files.
struct Bytes {
    task: Arc<dyn Task>,
    before: u64,
}

impl ProgressHandler for Bytes {
    fn on_progress(&self, event: &ProgressEvent) {
        let done = match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                files.iter().map(|f| f.bytes_completed).sum()
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed, ..
            }) => *bytes_completed,
            _ => return,
        };
        self.task.set_position(self.before + done);
    }
}
