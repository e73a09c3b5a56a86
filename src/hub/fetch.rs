//! What is wanted of a model or a data set, found at the Hub and brought into the cache (`listing`); with no network, the
//! cache alone.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::HFClient;
use serde_json::Value;

use super::cache::{RepoCache, is_commit};
use super::card_read;
use super::failure::{Failure, Place};
use super::listing::{Listing, checking, in_parallel};
use super::select::{self, ADAPTER, INDEX, Part, SINGLE, Wanted};
use super::wire::{Patience, Wire, encoded, token_from_env};
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
    /// How long the server may say nothing.
    pub patience: Option<Duration>,
}

/// Of a data set: says which files belong to which config.
const CARD: &str = "README.md";

/// A connection to one Hub, with one cache.
pub struct Hub {
    pub(super) wire: Wire,
    cache: PathBuf,
    offline: bool,
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
        let failed = |why: String| {
            Error::input(format!("no connection to the Hub can be set up: {why}"))
                .with_hint("check `HF_ENDPOINT`, which must be a whole address such as `https://huggingface.co`")
        };
        // who knows which variables name the Hub and its cache
        let known = builder.build().map_err(|e| failed(e.to_string()))?;
        let mut patience = Patience::from_env();
        if let Some(time) = options.patience {
            (patience.answer, patience.transfer) = (time, time);
        }
        let wire = Wire::new(known.endpoint(), token, options.num_retries, patience);
        Ok(Self {
            wire: wire.map_err(|_| failed("no TLS".into()))?,
            cache: known.cache_dir().to_path_buf(),
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
        let repo = self.repo("models", "model", id, revision);
        let done = |commit: String| Resolved {
            folder: repo.cache.snapshot(&commit),
            revision: Some(commit),
            source: id.to_string(),
        };
        let Some((listing, _)) = repo.list(reporter)? else {
            let commit = repo.cached_commit()?;
            repo.check_cached_model(&commit, part, reporter)?;
            return Ok(done(commit));
        };
        let mut wanted = select::model_files(listing.paths());
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
        let repo = self.repo("models", "model", id, revision);
        let place = format!("model `{id}`");
        let (commit, files) = match repo.list(reporter)? {
            Some((listing, _)) => {
                let paths: Vec<String> = listing.paths().map(String::from).collect();
                let files = select::matching(&place, &paths, patterns)?;
                listing.fetch(&files, reporter)?;
                repo.cache.remember(repo.revision, &listing.commit)?;
                (listing.commit, files)
            }
            None => {
                let commit = repo.cached_commit()?;
                let files = repo.cached_matching(&commit, patterns, reporter)?;
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
        let repo = self.repo("datasets", "data set", id, revision);
        let place = format!("data set `{id}`");
        let (commit, files) = match repo.list(reporter)? {
            Some((listing, card)) => {
                let paths: Vec<String> = listing.paths().map(String::from).collect();
                let files = select::dataset_files(&place, &paths, card.as_ref(), wanted)?;
                let mut all = files.clone();
                // which files belong to which config is to be known without network, too
                let has_configs = card.is_some_and(|card| card["configs"].is_array());
                if has_configs && listing.find(CARD).is_some() && !all.iter().any(|f| f == CARD) {
                    all.push(CARD.into());
                }
                listing.fetch(&all, reporter)?;
                repo.cache.remember(repo.revision, &listing.commit)?;
                (listing.commit, files)
            }
            None if !wanted.patterns.is_empty() => {
                let commit = repo.cached_commit()?;
                let files = repo.cached_matching(&commit, wanted.patterns, reporter)?;
                repo.check_cached(&commit, &files, reporter)?;
                (commit, files)
            }
            None => {
                let commit = repo.cached_commit()?;
                let cached = repo.cache.files(&commit).into_iter();
                let paths: Vec<String> = cached.map(|(path, _)| path).collect();
                let card = std::fs::read_to_string(repo.cache.snapshot(&commit).join(CARD));
                let card = card.ok().and_then(|card| card_read::configs(&card));
                let files = select::dataset_files(&place, &paths, card.as_ref(), wanted)
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

    /// The listing at the wanted revision and the card's metadata, `None` where the cache has to do: offline, or nobody
    /// answers.
    fn list(&'a self, reporter: &dyn Reporter) -> Result<Option<(Listing<'a>, Option<Value>)>> {
        if self.hub.offline {
            return Ok(None);
        }
        let stopped = || reporter.stop_requested();
        let path = format!(
            "/api/{}/{}/revision/{}",
            self.kind,
            self.id,
            encoded(self.revision, false)
        );
        let mut info = match self.hub.wire.get_json(&path, &stopped) {
            Ok((info, _)) => info,
            // a server that does not say what it did not find
            Err(Failure::NoFile) => return Err(self.explain(Failure::NoRepo, None)),
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
        let commit = info["sha"].as_str().map(String::from).ok_or_else(|| {
            Error::input(format!(
                "the server names no commit for {} `{}` at `{}`",
                self.what, self.id, self.revision
            ))
            .with_hint("check `HF_ENDPOINT`")
        })?;
        // it names folders of the cache
        if !is_commit(&commit) {
            return Err(Error::input(format!(
                "the server's commit for {} `{}` is `{commit}`, which is none",
                self.what, self.id
            ))
            .with_hint("check `HF_ENDPOINT`"));
        }
        let card = Some(info["cardData"].take()).filter(|card| !card.is_null());
        Ok(Some((Listing::read(self, commit, reporter)?, card)))
    }

    /// Without a listing: the cached files that match these globs. What the cache does not have cannot be told from what the
    /// repository does not have, so every glob has to match something.
    fn cached_matching(
        &self,
        commit: &str,
        patterns: &[String],
        reporter: &dyn Reporter,
    ) -> Result<Vec<String>> {
        let cached = self.cache.files(commit).into_iter();
        let paths: Vec<String> = cached.map(|(path, _)| path).collect();
        let place = format!("{} `{}`", self.what, self.id);
        for pattern in patterns {
            select::matching(&place, &paths, std::slice::from_ref(pattern))
                .map_err(|e| e.at("in the cache, without network"))?;
        }
        let files = select::matching(&place, &paths, patterns)?;
        if let Some(missing) = select::missing_shard(&files) {
            return Err(self.not_cached(&missing));
        }
        reporter.warn(&format!(
            "{place}: {} cached files match; what else on the Hub does is not known without network",
            files.len()
        ));
        Ok(files)
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
            let path_there = folder.join(path);
            let stopped = || meter.is_stopped();
            let fault = check::fault(&path_there, None, hash.as_deref(), &stopped)?;
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
