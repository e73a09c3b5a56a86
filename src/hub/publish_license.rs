//! What cards say of licences and origins, and the texts of licences: from the cache, where the commit lies there, else from
//! the Hub, else from whatever commit of the repository the cache has.

use super::cache::{RepoCache, is_commit};
use super::card_facts::CardFacts;
use super::publish_api::{Account, Api, ApiError, Place, quoted};
use super::publish_files::RepoKind;
use super::wire::cache_folder;
use crate::progress::Stop;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Longer texts are no licence.
const MAX_TEXT: u64 = 1 << 20;
/// As repositories call it.
pub const FILES: [&str; 7] = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "USE_POLICY.md",
    "NOTICE",
    "NOTICE.txt",
    "Notice",
];

/// Asks the cache and a Hub about licences. Where nobody answers there is nothing to say: the caller decides whether that
/// will do.
pub struct Licenses {
    api: Option<Api>,
    cache: PathBuf,
    /// Nobody answers: it is of no use to ask for more.
    is_silent: AtomicBool,
}

impl Licenses {
    /// Of this Hub; without an account only the cache is asked.
    pub fn new(account: Option<&Account>, stop: &Stop) -> Self {
        Self::with_cache(account, stop, cache_folder())
    }

    /// [`Self::new`] with a cache elsewhere.
    pub fn with_cache(account: Option<&Account>, stop: &Stop, cache: PathBuf) -> Self {
        let open = |account: &Account| Api::open(account.clone(), stop.clone()).ok();
        Self {
            api: account.and_then(open),
            cache,
            is_silent: AtomicBool::new(false),
        }
    }

    /// What a repository's card says; none where it is not at hand.
    pub fn card(&self, kind: RepoKind, repo: &str, revision: Option<&str>) -> Option<CardFacts> {
        let cached = |exact: bool| {
            let folders = self.snapshots(kind, repo, revision, exact);
            let texts = folders
                .iter()
                .map(|f| fs::read_to_string(f.join("README.md")));
            texts.flatten().next().map(|text| CardFacts::of_text(&text))
        };
        cached(true)
            .or_else(|| self.card_there(kind, repo, revision))
            .or_else(|| cached(false))
    }

    fn card_there(&self, kind: RepoKind, repo: &str, revision: Option<&str>) -> Option<CardFacts> {
        let api = self.api()?;
        let place = place(kind, repo, revision);
        let rest = format!("/revision/{}", place.branch());
        match api.get(&place.api(&api.account.endpoint, &rest)) {
            Ok(info) => Some(CardFacts::of_json(&info["cardData"])),
            Err(error) => {
                self.note(&error);
                None
            }
        }
    }

    /// The texts that lie in a model's repository, by name.
    pub fn texts(&self, repo: &str, revision: Option<&str>) -> Vec<(String, String)> {
        let cached = |exact: bool| {
            let folders = self.snapshots(RepoKind::Model, repo, revision, exact);
            let texts = folders.iter().map(|folder| texts_of(folder));
            texts.into_iter().find(|texts| !texts.is_empty())
        };
        let there = || Some(self.texts_there(repo, revision)).filter(|texts| !texts.is_empty());
        cached(true)
            .or_else(there)
            .or_else(|| cached(false))
            .unwrap_or_default()
    }

    fn texts_there(&self, repo: &str, revision: Option<&str>) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for name in FILES {
            let Some(api) = self.api() else { break };
            let place = place(RepoKind::Model, repo, revision);
            let page = place.page(&api.account.endpoint);
            let url = format!("{page}/resolve/{}/{}", place.branch(), quoted(name));
            match api.get_text(&url, MAX_TEXT) {
                Ok(text) if !text.trim().is_empty() => texts.push((name.to_string(), text)),
                Ok(_) => {}
                Err(error) => self.note(&error),
            }
        }
        texts
    }

    fn api(&self) -> Option<&Api> {
        let is_silent = self.is_silent.load(Ordering::Relaxed);
        self.api.as_ref().filter(|_| !is_silent)
    }

    fn note(&self, error: &ApiError) {
        if matches!(
            error,
            ApiError::NoAnswer(_) | ApiError::Silent(_) | ApiError::Stopped
        ) {
            self.is_silent.store(true, Ordering::Relaxed);
        }
    }

    /// The folders of a repository in the cache: that of this very commit, or of others.
    fn snapshots(
        &self,
        kind: RepoKind,
        repo: &str,
        revision: Option<&str>,
        exact: bool,
    ) -> Vec<PathBuf> {
        let cache = RepoCache::new(&self.cache, kind.plural(), repo);
        if exact {
            // what a branch was when it was last fetched may have changed
            let commit = revision.filter(|revision| is_commit(revision));
            return commit.map(|c| cache.snapshot(c)).into_iter().collect();
        }
        let known = cache.commit_of(revision.unwrap_or("main"));
        let known = known.map(|commit| cache.snapshot(&commit));
        let all = fs::read_dir(cache.snapshot("")).into_iter().flatten();
        let mut others: Vec<PathBuf> = all.flatten().map(|entry| entry.path()).collect();
        others.sort();
        known.into_iter().chain(others).collect()
    }
}

/// The texts of licences in a folder, by name.
pub fn texts_of(folder: &Path) -> Vec<(String, String)> {
    let read = |name: &&str| {
        let path = folder.join(name);
        let is_text = fs::metadata(&path).is_ok_and(|data| data.len() <= MAX_TEXT);
        let text = is_text.then(|| fs::read_to_string(&path).ok()).flatten()?;
        (!text.trim().is_empty()).then(|| (name.to_string(), text))
    };
    FILES.iter().filter_map(read).collect()
}

fn place(kind: RepoKind, repo: &str, revision: Option<&str>) -> Place {
    Place {
        kind,
        repo: repo.to_string(),
        revision: revision.unwrap_or("main").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_answers_without_network() {
        let cache = tempfile::tempdir().unwrap();
        let commit = "0123456789012345678901234567890123456789";
        let folder = cache.path().join("models--a--b/snapshots").join(commit);
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("README.md"),
            "---\nlicense: mit\nbase_model: c/d\n---\n",
        )
        .unwrap();
        fs::write(folder.join("LICENSE"), "MIT License").unwrap();
        let hub = Licenses::with_cache(None, &Stop::default(), cache.path().to_path_buf());
        for revision in [Some(commit), Some("main"), None] {
            let card = hub.card(RepoKind::Model, "a/b", revision).unwrap();
            assert_eq!(card.licenses[0].id, "mit");
            assert_eq!(card.bases, ["c/d"]);
            let texts = hub.texts("a/b", revision);
            assert_eq!(texts, [("LICENSE".to_string(), "MIT License".to_string())]);
        }
        assert_eq!(hub.card(RepoKind::Dataset, "a/b", None), None);
        assert!(hub.texts("c/d", None).is_empty());
    }
}
