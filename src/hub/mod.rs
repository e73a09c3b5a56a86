//! Models and data sets from the Hugging Face Hub, through hf-hub, into the standard cache that Python shares.
//!
//! A local folder or file is taken as it is, without network. Everything used is checked for size and hash, fetched or
//! cached (`check`). hf-hub knows where the Hub and the cache are; asking, listing and downloading are ours (`wire`,
//! `download`, `xet`), since its own wait without end, lose hashes, start anew after a cut and keep error pages. Which files are wanted is decided in
//! `select`; what went wrong is worded in `failure`. What goes up is in [`publish`], with its [`card`].
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_XET`,
//! `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` are honoured.

mod cache;
pub mod card;
pub mod card_facts;
mod card_read;
mod card_yaml;
mod check;
mod download;
mod failure;
mod fetch;
mod listing;
pub mod publish;
pub mod publish_api;
pub mod publish_files;
pub mod publish_license;
pub mod publish_secrets;
mod publish_tree;
mod publish_upload;
mod publish_xet;
mod select;
mod wire;
mod xet;

use std::path::{Path, PathBuf};

use crate::progress::Reporter;
use crate::{Error, Result};

pub use fetch::{Hub, HubOptions};
pub use select::{INDEX as WEIGHTS_INDEX, Part, Wanted, is_data_file, missing_shard};

/// A model folder in the Hugging Face layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub folder: PathBuf,
    /// The commit, for a Hub model.
    pub revision: Option<String>,
    /// What was asked for: `org/name` or a path.
    pub source: String,
}

/// The files of a data set, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedFiles {
    pub files: Vec<PathBuf>,
    /// The commit, for a Hub data set.
    pub revision: Option<String>,
    /// What was asked for: `org/name` or a path.
    pub source: String,
}

/// A model: a local folder, else the Hub repository `org/name` or `org/name@revision`.
pub fn resolve_model(
    id_or_path: &str,
    revision: Option<&str>,
    reporter: &dyn Reporter,
) -> Result<Resolved> {
    resolve_model_part(id_or_path, revision, Part::Everything, reporter)
}

/// The same, but only as much of it as `part` says: a tokenizer does not need the weights.
pub fn resolve_model_part(
    id_or_path: &str,
    revision: Option<&str>,
    part: Part,
    reporter: &dyn Reporter,
) -> Result<Resolved> {
    if let Some(folder) = local(id_or_path)? {
        if !folder.is_dir() {
            return Err(Error::input(format!("model `{id_or_path}` is a file"))
                .with_hint("give the folder that holds `config.json`"));
        }
        return Ok(Resolved {
            folder,
            revision: None,
            source: id_or_path.to_string(),
        });
    }
    let (id, revision) = split_revision(id_or_path, revision);
    check_id(id, "model")?;
    check_revision(revision)?;
    Hub::from_env()?.model(id, revision, part, reporter)
}

/// The base that the adapter in `folder` names. One that came from the Hub means a repository there, whatever lies in the
/// current folder under that name.
pub fn resolve_base(
    folder: &Path,
    base: &str,
    revision: Option<&str>,
    part: Part,
    reporter: &dyn Reporter,
) -> Result<Resolved> {
    if !cache::is_snapshot(folder) {
        return resolve_model_part(base, revision, part, reporter);
    }
    let (id, revision) = split_revision(base, revision);
    check_id(id, "model")?;
    check_revision(revision)?;
    Hub::from_env()?.model(id, revision, part, reporter)
}

/// The files of the Hub model `org/name` or `org/name@revision` that match these globs over its paths.
pub fn resolve_model_files(
    id: &str,
    revision: Option<&str>,
    patterns: &[String],
    reporter: &dyn Reporter,
) -> Result<ResolvedFiles> {
    let (id, revision) = split_revision(id, revision);
    check_id(id, "model")?;
    check_revision(revision)?;
    Hub::from_env()?.model_files(id, revision, patterns, reporter)
}

/// The data files of a data set: a local file or folder, else the Hub repository `org/name` or `org/name@revision`.
///
/// `patterns` (globs over paths in the repository) choose the files; without any it is the training split of `config`,
/// as the repository's card tells it.
pub fn resolve_dataset(
    id_or_path: &str,
    revision: Option<&str>,
    wanted: Wanted,
    reporter: &dyn Reporter,
) -> Result<ResolvedFiles> {
    if let Some(path) = local(id_or_path)? {
        let files = if path.is_dir() {
            let (files, num_left_out) = select::local_files(&path, wanted)?;
            if num_left_out > 0 {
                reporter.note(&format!(
                    "`{id_or_path}`: {} data files are read, {num_left_out} of other splits or configs are not",
                    files.len()
                ));
            }
            files
        } else {
            vec![path]
        };
        return Ok(ResolvedFiles {
            files,
            revision: None,
            source: id_or_path.to_string(),
        });
    }
    let (id, revision) = split_revision(id_or_path, revision);
    check_id(id, "data set")?;
    check_revision(revision)?;
    Hub::from_env()?.dataset(id, revision, wanted, reporter)
}

/// The path, where it exists or can be nothing else.
fn local(id_or_path: &str) -> Result<Option<PathBuf>> {
    let expanded = match id_or_path.strip_prefix("~/") {
        Some(rest) => std::env::var_os("HOME").map(|home| Path::new(&home).join(rest)),
        None => None,
    };
    let path = expanded.unwrap_or_else(|| PathBuf::from(id_or_path));
    if path.exists() {
        return Ok(Some(path));
    }
    let is_path = id_or_path.starts_with(['/', '.', '~'])
        || id_or_path.matches('/').count() > 1
        || select::is_data_file(id_or_path)
        || id_or_path.ends_with('/');
    if is_path {
        return Err(Error::input(format!("`{id_or_path}` does not exist"))
            .with_hint("check the spelling of the path; a Hub repository is given as `org/name`"));
    }
    Ok(None)
}

/// `org/name@revision` into its parts; an explicit revision wins. `None` is the main branch.
fn split_revision<'a>(id: &'a str, revision: Option<&'a str>) -> (&'a str, Option<&'a str>) {
    match id.split_once('@') {
        Some((id, inline)) => (id, revision.or(Some(inline))),
        None => (id, revision),
    }
}

/// Refuses a revision that would leave its folder in the cache.
fn check_revision(revision: Option<&str>) -> Result<()> {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
    let is_fit = |revision: &str| {
        revision.split('/').all(is_name) && !revision.contains(['\\', ':', ' ', '\n'])
    };
    match revision {
        Some(revision) if !is_fit(revision) => {
            Err(Error::input(format!("`{revision}` is no revision"))
                .with_hint("give a branch, a tag or a commit, such as `main`"))
        }
        _ => Ok(()),
    }
}

fn check_id(id: &str, what: &str) -> Result<()> {
    let part = |s: &str| {
        !s.is_empty()
            && s != "."
            && s != ".."
            && s.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match id.split_once('/') {
        Some((owner, name)) if part(owner) && part(name) => Ok(()),
        _ => Err(Error::input(format!(
            "there is no {what} `{id}`: no such path, and no Hub repository name"
        ))
        .with_hint("give a local path, or a Hub repository as `org/name`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn local_paths_win_and_need_no_network() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let model = resolve_model(path, None, &Silent).unwrap();
        assert_eq!(
            (model.folder.as_path(), model.revision),
            (folder.path(), None)
        );
        for name in ["b.jsonl", "a.parquet", "notes.txt"] {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        let names = |files: &[PathBuf]| -> Vec<String> {
            files
                .iter()
                .map(|f| f.file_name().unwrap().to_str().unwrap().to_string())
                .collect()
        };
        let data = resolve_dataset(path, None, Wanted::default(), &Silent).unwrap();
        assert_eq!(names(&data.files), ["a.parquet", "b.jsonl"]);
        let wanted = Wanted {
            patterns: &["*.jsonl".into()],
            ..Wanted::default()
        };
        let data = resolve_dataset(path, None, wanted, &Silent).unwrap();
        assert_eq!(names(&data.files), ["b.jsonl"]);
        let file = folder.path().join("b.jsonl");
        assert_eq!(
            resolve_dataset(file.to_str().unwrap(), None, Wanted::default(), &Silent)
                .unwrap()
                .files,
            [file]
        );
    }

    #[test]
    fn what_can_only_be_a_path_is_not_looked_for_on_the_hub() {
        for path in [
            "./missing",
            "/no/such/folder",
            "a/b/c",
            "traces.jsonl.gz",
            "rows/x.parquet",
        ] {
            let error = resolve_dataset(path, None, Wanted::default(), &Silent).unwrap_err();
            assert_eq!(error.to_string(), format!("`{path}` does not exist"));
        }
        let error = resolve_model("qwen", None, &Silent).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no model `qwen`: no such path, and no Hub repository name"
        );
        assert!(resolve_model("a b/c", None, &Silent).is_err());
        assert!(resolve_model("../c", None, &Silent).is_err());
    }

    #[test]
    fn revisions_inline_and_explicit() {
        assert_eq!(split_revision("a/b@v1", None), ("a/b", Some("v1")));
        assert_eq!(split_revision("a/b@v1", Some("v2")), ("a/b", Some("v2")));
        assert_eq!(split_revision("a/b", None), ("a/b", None));
        for fit in [None, Some("main"), Some("refs/pr/1"), Some("v1.0")] {
            assert!(check_revision(fit).is_ok());
        }
        for unfit in ["", "..", "../x", "a/../b", "/etc", "a\\b"] {
            assert!(check_revision(Some(unfit)).is_err(), "{unfit}");
        }
    }
}
