//! What is wanted of a model or a data set, found at the Hub and brought into the cache (`listing`); with no network, the
//! cache alone.

use std::path::PathBuf;

use hf_hub::{HFClient, HFClientSync, HFResult, split_id};
use serde_json::Value;

use super::cache::{RepoCache, is_commit};
use super::download::Listed;
use super::failure::{Failure, Place};
use super::listing::{Listing, checking, in_parallel};
use super::select::{self, ADAPTER, INDEX, Part, SINGLE, Wanted};
use super::wire::{Wire, encoded, token_from_env};
use super::{Resolved, ResolvedFiles, check};
use crate::progress::Reporter;
use crate::{Error, Result};

/// Where and how to fetch; what is `None` comes from the environment.
#[derive(Clone, Default)]
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
    pub(super) wire: Wire,
    cache: PathBuf,
    offline: bool,
}

/// What the API says of a repository.
struct Info {
    commit: Option<String>,
    card: Option<Value>,
}

/// One repository.
pub struct Repo<'a> {
    pub hub: &'a Hub,
    /// `models` or `datasets`.
    pub kind: &'static str,
    pub cache: RepoCache,
    /// `model` or `data set`.
    pub what: &'static str,
    pub id: &'a str,
    pub revision: &'a str,
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
        let token = options.token.or_else(token_from_env);
        if let Some(token) = &token {
            builder = builder.token(token.clone());
        }
        if let Some(n) = options.num_retries {
            builder = builder.retry_max_attempts(n);
        }
        let failed = |why: String| {
            Error::input(format!("no connection to the Hub can be set up: {why}"))
                .with_hint("check `HF_ENDPOINT`, which must be a whole address such as `https://huggingface.co`")
        };
        let client = builder.build().map_err(|e| failed(e.to_string()))?;
        let wire = Wire::new(client.endpoint(), token, options.num_retries);
        Ok(Self {
            wire: wire.map_err(|_| failed("no TLS".into()))?,
            cache: client.cache_dir().to_path_buf(),
            client: HFClientSync::from_inner(client).map_err(|e| failed(e.to_string()))?,
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
        let repo = self.repo("models", "model", id, revision);
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
            repo.check_cached_model(&commit, part, reporter)?;
            return Ok(done(commit));
        };
        let mut wanted = select::model_files(listing.files.iter().map(|f| f.path.as_str()));
        if listing.is_adapter() {
            wanted.extend(listing.adapter(part)?);
        } else if !wanted.iter().any(|file| file == "config.json") {
            return Err(Error::input(format!("model `{id}` has no `config.json`"))
                .with_hint("only repositories in the Hugging Face layout can be used"));
        }
        if part == Part::Everything && !listing.is_adapter() {
            wanted.extend(listing.weights(reporter)?);
        }
        listing.fetch(&wanted, reporter)?;
        repo.cache.remember(repo.revision, &listing.commit)?;
        Ok(done(listing.commit))
    }

    /// Fetches the files of a model that match these globs, and no others.
    pub fn model_files(
        &self,
        id: &str,
        revision: Option<&str>,
        patterns: &[String],
        reporter: &dyn Reporter,
    ) -> Result<ResolvedFiles> {
        let (owner, name) = split_id(id);
        let handle = self.client.model(owner, name);
        let repo = self.repo("models", "model", id, revision);
        let place = format!("model `{id}`");
        let info = || {
            let info = handle.info().revision(repo.revision).send()?;
            Ok(Info {
                commit: info.sha,
                card: None,
            })
        };
        let (commit, files) = match repo.list(info, reporter)? {
            Some((listing, _)) => {
                let paths: Vec<String> = listing.files.iter().map(|f| f.path.clone()).collect();
                let files = select::matching(&place, &paths, patterns)?;
                listing.fetch(&files, reporter)?;
                repo.cache.remember(repo.revision, &listing.commit)?;
                (listing.commit, files)
            }
            None => {
                let commit = repo.cached_commit()?;
                let cached = repo.cache.files(&commit).into_iter();
                let paths: Vec<String> = cached.map(|(path, _)| path).collect();
                let files = select::matching(&place, &paths, patterns)
                    .map_err(|e| e.at("in the cache, without network"))?;
                repo.check_cached(&commit, &files, reporter)?;
                (commit, files)
            }
        };
        Ok(repo.resolved(&commit, &files))
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
        let repo = self.repo("datasets", "data set", id, revision);
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
                repo.check_cached(&commit, &files, reporter)?;
                (commit, files)
            }
        };
        Ok(repo.resolved(&commit, &files))
    }

    fn repo<'a>(
        &'a self,
        kind: &'static str,
        what: &'static str,
        id: &'a str,
        revision: Option<&'a str>,
    ) -> Repo<'a> {
        Repo {
            hub: self,
            kind,
            cache: RepoCache::new(&self.cache, kind, id),
            what,
            id,
            revision: revision.unwrap_or("main"),
        }
    }
}

impl<'a> Repo<'a> {
    pub fn explain(&self, failure: impl Into<Failure>, file: Option<&str>) -> Error {
        let Self {
            what, id, revision, ..
        } = self;
        failure.into().explain(Place {
            what,
            id,
            revision,
            file,
            endpoint: self.hub.wire.endpoint(),
        })
    }

    fn resolved(&self, commit: &str, files: &[String]) -> ResolvedFiles {
        let folder = self.cache.snapshot(commit);
        ResolvedFiles {
            files: files.iter().map(|path| folder.join(path)).collect(),
            revision: Some(commit.to_string()),
            source: self.id.to_string(),
        }
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
    ) -> Result<Option<(Listing<'a>, Option<Value>)>> {
        if self.hub.offline {
            return Ok(None);
        }
        let info = match info().map_err(Failure::from) {
            Ok(info) => info,
            Err(failure)
                if failure.is_unreachable()
                    && self
                        .cache
                        .commit_of(self.revision)
                        .is_some_and(|c| self.cache.snapshot(&c).exists()) =>
            {
                reporter.warn(&format!(
                    "{} cannot be reached; {} `{}` is taken from the cache as it was last fetched",
                    self.hub.wire.endpoint(),
                    self.what,
                    self.id
                ));
                return Ok(None);
            }
            Err(failure) => return Err(self.explain(failure, None)),
        };
        let commit = info.commit.ok_or_else(|| {
            Error::input(format!(
                "the server names no commit for {} `{}` at `{}`",
                self.what, self.id, self.revision
            ))
        })?;
        // it names folders of the cache
        if !is_commit(&commit) {
            return Err(Error::input(format!(
                "the server's commit for {} `{}` is `{commit}`, which is none",
                self.what, self.id
            ))
            .with_hint("check `HF_ENDPOINT`"));
        }
        let files = self.tree(&commit)?;
        Ok(Some((
            Listing {
                repo: self,
                commit,
                files,
            },
            info.card,
        )))
    }

    /// Every file of a commit. hf-hub's listing loses the sha256 of large files.
    fn tree(&self, commit: &str) -> Result<Vec<Listed>> {
        let kind = self.kind;
        let mut files = Vec::new();
        let mut page = Some(format!(
            "/api/{kind}/{}/tree/{}?recursive=true",
            self.id,
            encoded(commit, false)
        ));
        while let Some(path) = page {
            let (entries, next) =
                (self.hub.wire.get_json(&path)).map_err(|failure| self.explain(failure, None))?;
            for entry in entries.as_array().into_iter().flatten() {
                if entry["type"] == "file" {
                    files.push(self.listed(entry)?);
                }
            }
            page = next;
        }
        Ok(files)
    }

    fn listed(&self, entry: &Value) -> Result<Listed> {
        let text = |value: &Value| value.as_str().map(str::to_string);
        let path = text(&entry["path"]).unwrap_or_default();
        let large = &entry["lfs"];
        let hash = text(&large["oid"]).or_else(|| text(&entry["oid"]).filter(|_| large.is_null()));
        let hash = hash.filter(|h| matches!(h.len(), 40 | 64) && check::is_hex(h));
        let size = large["size"].as_u64().or(entry["size"].as_u64());
        // such a path would leave the cache
        let is_inside =
            !path.contains('\\') && !path.split('/').any(|part| matches!(part, "" | "." | ".."));
        match (hash, size) {
            (Some(hash), Some(size)) if is_inside => Ok(Listed {
                path,
                size,
                hash: hash.to_ascii_lowercase(),
                xet_hash: text(&entry["xetHash"]),
            }),
            _ => Err(Error::input(format!(
                "the server lists `{path}` of {} `{}` without size and hash, or outside the repository",
                self.what, self.id
            ))
            .with_hint("check `HF_ENDPOINT`: this is no answer of a Hugging Face Hub")),
        }
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
    fn check_cached_model(&self, commit: &str, part: Part, reporter: &dyn Reporter) -> Result<()> {
        let folder = self.cache.snapshot(commit);
        let has = |file: &str| folder.join(file).is_file();
        let is_adapter = has(ADAPTER[0]) && !has(SINGLE) && !has(INDEX);
        let mut needed = match (is_adapter, part) {
            (false, _) => vec!["config.json".to_string()],
            (true, Part::WithoutWeights) => vec![ADAPTER[0].to_string()],
            (true, Part::Everything) => ADAPTER.map(String::from).to_vec(),
        };
        if part == Part::Everything && !is_adapter {
            match std::fs::read(folder.join(INDEX)) {
                Ok(index) => needed.extend(self.shards(&index)?),
                Err(_) => needed.push(SINGLE.into()),
            }
        }
        if let Some(missing) = needed.iter().find(|file| !folder.join(file).is_file()) {
            return Err(self.not_cached(missing));
        }
        let cached = self.cache.files(commit);
        let small = select::model_files(cached.iter().map(|(path, _)| path.as_str()));
        let others: Vec<String> = small.into_iter().filter(|f| !needed.contains(f)).collect();
        needed.extend(others);
        self.check_cached(commit, &needed, reporter)
    }

    /// Without a listing: the content of a cached file is what its name says.
    fn check_cached(&self, commit: &str, paths: &[String], reporter: &dyn Reporter) -> Result<()> {
        let folder = self.cache.snapshot(commit);
        let size = |path: &String| folder.join(path).metadata().map_or(0, |data| data.len());
        let total = paths.iter().map(size).sum();
        let meter = checking(self.id, total, reporter);
        in_parallel(paths, &meter, |path| {
            let hash = self.cache.blob_name(commit, path);
            let fault = check::fault(&folder.join(path), None, hash.as_deref())?;
            meter.add(size(path));
            match fault {
                None => Ok(()),
                Some(fault) => Err(Error::input(format!(
                    "cached `{path}` of {} `{}` is damaged ({fault}), and the network is not used",
                    self.what, self.id
                ))
                .with_hint(
                    "run once with network and without `HF_HUB_OFFLINE`: it is fetched again",
                )),
            }
        })
    }

    pub fn shards(&self, index: &[u8]) -> Result<Vec<String>> {
        select::shards(index).map_err(|e| {
            Error::input(format!(
                "`{INDEX}` of {} `{}` cannot be used: {e}",
                self.what, self.id
            ))
        })
    }
}
