//! What the Hub says of a repository's licence, and the text of it that lies there.

use super::publish_api::{Account, Api, ApiError, Place, quoted};
use super::publish_files::RepoKind;
use crate::progress::Stop;

/// Longer texts are no licence.
const MAX_TEXT: u64 = 1 << 20;
/// As repositories call it.
const FILES: [&str; 5] = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "USE_POLICY.md",
    "NOTICE",
];

/// Asks a Hub about licences. Where nobody answers there is nothing to say: the caller decides whether that will do.
pub struct Licenses {
    api: Option<Api>,
}

impl Licenses {
    /// Of this Hub; without an account nothing is asked.
    pub fn new(account: Option<&Account>, stop: &Stop) -> Self {
        let open = |account: &Account| Api::open(account.clone(), stop.clone()).ok();
        Self {
            api: account.and_then(open),
        }
    }

    /// `license` of the repository's card.
    pub fn id(&self, kind: RepoKind, repo: &str, revision: Option<&str>) -> Option<String> {
        let api = self.api.as_ref()?;
        let place = place(kind, repo, revision);
        let rest = format!("/revision/{}", place.branch());
        let info = api.get(&place.api(&api.account.endpoint, &rest)).ok()?;
        let license = &info["cardData"]["license"];
        let one = license.as_str().or(license[0].as_str())?;
        Some(one.to_string())
    }

    /// The texts that lie in a model's repository, by name.
    pub fn texts(&self, repo: &str, revision: Option<&str>) -> Vec<(String, String)> {
        let Some(api) = &self.api else {
            return Vec::new();
        };
        let place = place(RepoKind::Model, repo, revision);
        let page = place.page(&api.account.endpoint);
        let mut texts = Vec::new();
        for name in FILES {
            let url = format!("{page}/resolve/{}/{}", place.branch(), quoted(name));
            match api.get_text(&url, MAX_TEXT) {
                Ok(text) if !text.trim().is_empty() => texts.push((name.to_string(), text)),
                // nobody answers: it is of no use to ask for the others
                Err(ApiError::NoAnswer(_) | ApiError::Silent(_) | ApiError::Stopped) => break,
                _ => {}
            }
        }
        texts
    }
}

fn place(kind: RepoKind, repo: &str, revision: Option<&str>) -> Place {
    Place {
        kind,
        repo: repo.to_string(),
        revision: revision.unwrap_or("main").to_string(),
    }
}
