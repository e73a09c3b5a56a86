//! What of a folder goes up: chosen by name, never outside the folder, hashed, and searched for access tokens.
//!
//! The choice is a list of what belongs to a published model or data set; everything else stays and is counted with its
//! reason, so that optimiser states, logs and notes cannot slip in.

use super::publish_secrets::{Kind, Search, refused, search_packed};
use super::select::is_data_file;
use crate::progress::Reporter;
use crate::{Error, Result};
use rayon::prelude::*;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a file that the server wants to see before it says how the file goes up.
pub const SAMPLE: usize = 512;
/// Larger files are never kept in git itself.
pub const MAX_INLINE: u64 = 10 << 20;

/// A model or a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }

    /// In addresses of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// Before the name in all other addresses.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }

    /// Whether an earlier version of `ours`, the files that are published, has left this one, so that it goes: readers would
    /// take shards of two versions for one. Only what `ours` has another version of: weights beside weights, an adapter
    /// beside an adapter or whole weights, the shards of a split beside those of the same split.
    pub fn replaces(self, ours: &HashSet<&str>, path: &str) -> bool {
        if ours.contains(path) {
            return false;
        }
        match self {
            Self::Model => {
                let has_weights = ours.iter().any(|path| is_weights(path));
                (is_weights(path) && has_weights)
                    || (is_adapter(path)
                        && (has_weights || ours.iter().any(|path| is_adapter(path))))
            }
            Self::Dataset => split_of(path)
                .is_some_and(|split| ours.iter().any(|path| split_of(path) == Some(split))),
        }
    }
}

/// The weights of a whole model, as transformers names them.
fn is_weights(path: &str) -> bool {
    let shard = || path.strip_prefix("model-")?.strip_suffix(".safetensors");
    path == "model.safetensors"
        || path == "model.safetensors.index.json"
        || shard().is_some_and(|numbers| numbers.contains("-of-"))
}

fn is_adapter(path: &str) -> bool {
    matches!(path, "adapter_model.safetensors" | "adapter_config.json")
}

/// `data/train` of `data/train-00000-of-00002.parquet`.
fn split_of(path: &str) -> Option<&str> {
    let (rest, _) = path.strip_suffix(".parquet")?.rsplit_once("-of-")?;
    let (split, number) = rest.rsplit_once('-')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (is_number && split.starts_with("data/")).then_some(split)
}

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Text(String),
}

/// A file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// In the repository, with `/`.
    pub path: String,
    pub source: Source,
}

impl Upload {
    /// A text that stands in no file.
    pub fn text(path: &str, text: String) -> Self {
        Self {
            path: path.into(),
            source: Source::Text(text),
        }
    }
}

/// What a folder gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    pub uploads: Vec<Upload>,
    /// Paths with the reason why they stay.
    pub left_out: Vec<(String, &'static str)>,
}

/// A file that is ready to go up.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub path: String,
    pub source: Source,
    pub bytes: u64,
    pub sha256: String,
    /// Hash of git's blob, of files that git itself may keep.
    pub git_sha1: Option<String>,
    pub sample: Vec<u8>,
}

impl Prepared {
    /// Whether the Hub keeps it outside git where nothing in the repository says otherwise.
    pub fn is_large(&self) -> bool {
        let ending = Path::new(&self.path).extension().and_then(|e| e.to_str());
        let by_name = [
            "safetensors",
            "gguf",
            "parquet",
            "gz",
            "zst",
            "model",
            "bin",
        ];
        self.bytes > 0 && (self.bytes > MAX_INLINE || ending.is_some_and(|e| by_name.contains(&e)))
    }
}

/// The files of `folder` that belong to a published model or data set.
///
/// # Errors
/// A folder that cannot be read; a link out of it.
pub fn gather(folder: &Path, kind: RepoKind) -> Result<Gathered> {
    let root = fs::canonicalize(folder).map_err(|e| Error::io("reading", folder, e))?;
    let mut gathered = Gathered::default();
    walk(&root, &root, "", kind, &mut gathered)?;
    gathered.uploads.sort_by(|a, b| a.path.cmp(&b.path));
    gathered.left_out.sort();
    Ok(gathered)
}

fn walk(
    root: &Path,
    folder: &Path,
    prefix: &str,
    kind: RepoKind,
    out: &mut Gathered,
) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("reading", folder, e))? {
        let entry = entry.map_err(|e| Error::io("reading", folder, e))?;
        let Ok(name) = entry.file_name().into_string() else {
            let name = entry.file_name().to_string_lossy().into_owned();
            out.left_out
                .push((format!("{prefix}{name}"), "its name is not UTF-8"));
            continue;
        };
        let path = format!("{prefix}{name}");
        let place = entry.path();
        let is_link = entry
            .file_type()
            .map_err(|e| Error::io("reading", &place, e))?
            .is_symlink();
        let is_dir = place.is_dir();
        match left_out(&path, &name, is_dir, kind) {
            Some(reason) => out.left_out.push((path, reason)),
            None if is_link && is_dir => out.left_out.push((path, "a link to a folder")),
            None if is_dir => walk(root, &place, &format!("{path}/"), kind, out)?,
            None => {
                let target =
                    fs::canonicalize(&place).map_err(|e| Error::io("following", &place, e))?;
                if !target.starts_with(root) {
                    return Err(Error::input(format!(
                        "`{path}` of `{}` is a link to a file outside of it",
                        root.display()
                    ))
                    .with_hint("copy the folder with `cp -rL` and push the copy"));
                }
                out.uploads.push(Upload {
                    path,
                    source: Source::File(place),
                });
            }
        }
    }
    Ok(())
}

/// Why a file stays, `None` where it goes up.
fn left_out(path: &str, name: &str, is_dir: bool, kind: RepoKind) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let is_text = ["readme.md", "license", "notice", "use_policy.md"]
        .iter()
        .any(|known| {
            lower == *known || lower == format!("{known}.txt") || lower == format!("{known}.md")
        });
    if path == ".eval_results" || path.starts_with(".eval_results/") {
        let is_result = is_dir || lower.ends_with(".yaml");
        return (kind == RepoKind::Dataset || !is_result).then_some("no result of an evaluation");
    }
    if name.starts_with('.') {
        return Some("hidden");
    }
    if lower.starts_with("optimizer") || lower.starts_with("reference.") {
        return Some("state of a training");
    }
    if lower.ends_with(".partial") || lower.ends_with(".tmp") || lower.ends_with(".incomplete") {
        return Some("half-written");
    }
    match kind {
        RepoKind::Model if is_dir => Some("a folder, which a model does not have"),
        RepoKind::Model => (!is_text && !is_model_file(&lower)).then_some("not part of a model"),
        RepoKind::Dataset if is_dir => None,
        RepoKind::Dataset => (!is_text && !is_data_file(name)).then_some("not part of a data set"),
    }
}

/// What `save_pretrained` writes, and GGUF.
fn is_model_file(name: &str) -> bool {
    const KNOWN: [&str; 14] = [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "adapter_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "reward_model.json",
    ];
    KNOWN.contains(&name) || name.ends_with(".safetensors") || name.ends_with(".gguf")
}

/// Hashes the files, in parallel, and refuses those that hold an access token. `known` are tokens in use, whatever they look
/// like.
///
/// # Errors
/// A file that cannot be read; two files of the same path; a token.
pub fn prepare(
    mut uploads: Vec<Upload>,
    known: &[String],
    reporter: &dyn Reporter,
) -> Result<Vec<Prepared>> {
    uploads.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(pair) = uploads.windows(2).find(|pair| pair[0].path == pair[1].path) {
        return Err(Error::input(format!("`{}` goes up twice", pair[0].path)));
    }
    let size = |upload: &Upload| match &upload.source {
        Source::File(path) => fs::metadata(path)
            .map(|data| data.len())
            .map_err(|e| Error::io("reading", path, e)),
        Source::Text(text) => Ok(text.len() as u64),
    };
    let total = uploads.iter().map(size).sum::<Result<u64>>()?;
    let task = reporter.task("hash", Some(total), "bytes");
    uploads
        .into_par_iter()
        .map(|upload| {
            let bytes = size(&upload)?;
            let at = |e| match &upload.source {
                Source::File(path) => Error::io("reading", path, e),
                Source::Text(_) => Error::io("reading", &upload.path, e),
            };
            let mut reader: Box<dyn Read> = match &upload.source {
                Source::File(path) => Box::new(File::open(path).map_err(at)?),
                Source::Text(text) => Box::new(text.as_bytes()),
            };
            let mut digest = Digests::new(&upload.path, bytes, known);
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = reader.read(&mut buffer).map_err(at)?;
                if n == 0 {
                    break;
                }
                digest.update(&buffer[..n])?;
                task.advance(n as u64);
            }
            if let Source::File(path) = &upload.source {
                search_packed(&upload.path, path, known)?;
            }
            digest.finish(upload.source.clone())
        })
        .collect()
}

/// Everything that one pass over a file finds out.
struct Digests<'a> {
    path: &'a str,
    sha256: Sha256,
    git: Option<Sha1>,
    sample: Vec<u8>,
    bytes: u64,
    expected: u64,
    search: Search<'a>,
    num_searched: u64,
}

impl<'a> Digests<'a> {
    fn new(path: &'a str, expected: u64, known: &'a [String]) -> Self {
        Self {
            path,
            sha256: Sha256::new(),
            git: (expected <= 2 * MAX_INLINE)
                .then(|| Sha1::new().chain_update(format!("blob {expected}\0"))),
            sample: Vec::new(),
            bytes: 0,
            expected,
            search: Search::new(known),
            num_searched: Kind::of(path).num_searched(),
        }
    }

    fn update(&mut self, chunk: &[u8]) -> Result<()> {
        self.sha256.update(chunk);
        if let Some(git) = &mut self.git {
            git.update(chunk);
        }
        let wanted = SAMPLE.saturating_sub(self.sample.len()).min(chunk.len());
        self.sample.extend_from_slice(&chunk[..wanted]);
        if self.bytes < self.num_searched
            && let Some(at) = self.search.next(chunk)
        {
            return Err(refused(self.path, &format!("near byte {at}")));
        }
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    fn finish(self, source: Source) -> Result<Prepared> {
        if self.bytes != self.expected {
            return Err(
                Error::input(format!("`{}` changes while it is read", self.path))
                    .with_hint("wait until whatever writes it is done"),
            );
        }
        Ok(Prepared {
            path: self.path.to_string(),
            source,
            bytes: self.bytes,
            sha256: hex::encode(self.sha256.finalize()),
            git_sha1: self.git.map(|git| hex::encode(git.finalize())),
            sample: self.sample,
        })
    }
}

#[cfg(test)]
#[path = "publish_files_tests.rs"]
mod tests;
