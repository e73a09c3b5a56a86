//! Opens what a command line names: a device, a model with its tokenizer; a recipe's student is in `student`. Hub names are
//! fetched into the standard cache; local folders and files need no network.

use crate::model::{CausalLm, LoadOptions, ModelConfig, adapter_files};
use crate::progress::Reporter;
use crate::recipe::plan::{StudentSource, model_source};
use crate::recipe::{Dtype, shipped};
use crate::tokenize::{Chat, TextTokenizer};
use crate::{Error, Result, hub, ops};
use candle_core::{DType, Device};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A model with its tokenizer and template.
pub struct Opened {
    pub model: CausalLm,
    pub chat: Chat,
    /// Where tokenizer and weights came from.
    pub folder: PathBuf,
    /// The weights that the adapter in `folder` is for.
    pub base: Option<PathBuf>,
    /// The Hub commit, for a model from the Hub.
    pub revision: Option<String>,
}

/// The device called `name`: `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
///
/// # Errors
/// A name that is none of these; a device that this binary was not built for or that is not there.
pub fn device(name: &str) -> Result<Device> {
    let ordinal = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => {
            if cfg!(feature = "cuda")
                && let Ok(device) = ops::device::cuda(0)
            {
                return Ok(device);
            }
            if cfg!(feature = "metal")
                && let Ok(device) = Device::new_metal(0)
            {
                return Ok(device);
            }
            return Ok(Device::Cpu);
        }
        "metal" => {
            return Device::new_metal(0).map_err(|e| {
                Error::input(format!("device `metal` cannot be used: {}", first_line(&e)))
                    .with_hint("build with `--features metal` on a Mac, or use `--device cpu`")
            });
        }
        "cuda" => Some(0),
        _ => name
            .strip_prefix("cuda:")
            .and_then(|n| n.parse::<usize>().ok()),
    };
    let Some(ordinal) = ordinal else {
        return Err(Error::input(format!("unknown device `{name}`"))
            .with_hint("devices: auto, cpu, cuda:N, metal"));
    };
    ops::device::cuda(ordinal).map_err(|e| {
        Error::input(format!("device `{name}` cannot be used: {}", first_line(&e)))
            .with_hint("build with `--features cuda` on a machine with an NVIDIA driver, or use `--device cpu`")
    })
}

fn first_line(e: &impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

/// candle's name of a recipe's dtype.
pub fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    }
}

/// Opens the model called `place`: a card, `org/name[@revision]` or a folder. A chat template is only asked for where a
/// conversation is rendered.
///
/// # Errors
/// No such model, or one that cannot be loaded.
pub fn open_model(
    place: &str,
    device_name: &str,
    dtype_name: Dtype,
    reporter: &dyn Reporter,
) -> Result<Opened> {
    let options = LoadOptions {
        device: device(device_name)?,
        dtype: dtype(dtype_name),
    };
    let files = open_files(place, reporter)?;
    Ok(Opened {
        model: files.load(&options)?,
        chat: files.chat,
        folder: files.folder,
        base: files.base,
        revision: files.repo.and_then(|(_, commit)| commit),
    })
}

/// The folder of the base model, where `folder` holds an adapter in PEFT's layout.
pub(super) fn base_folder(
    folder: &Path,
    part: hub::Part,
    reporter: &dyn Reporter,
) -> Result<Option<PathBuf>> {
    let Some((base, revision)) = adapter_files::base_of(folder)? else {
        return Ok(None);
    };
    let at = |e: Error| e.at(format!("base of the adapter `{}`", folder.display()));
    let base = hub::resolve_base(folder, &base, revision.as_deref(), part, reporter).map_err(at)?;
    if adapter_files::base_of(&base.folder).map_err(at)?.is_some() {
        return Err(at(
            Error::input("it is an adapter itself").with_hint("merge the inner one first")
        ));
    }
    Ok(Some(base.folder))
}

/// The shape of a model: an adapter's own, where it was trained with another RoPE than its base, else the base's.
pub(super) fn shape_of(folder: &Path, base: Option<&Path>) -> Result<ModelConfig> {
    match base {
        Some(base) if !folder.join("config.json").is_file() => ModelConfig::from_folder(base),
        _ => ModelConfig::from_folder(folder),
    }
}

/// The tokenizer: that beside an adapter if it has one of its own, with its base's settings where it has none of its own.
pub(super) fn tokenizer_of(folder: &Path, base: Option<&Path>) -> Result<TextTokenizer> {
    match base {
        None => TextTokenizer::load(folder),
        Some(base) if !folder.join("tokenizer.json").is_file() => TextTokenizer::load(base),
        Some(base) => TextTokenizer::load_beside(folder, base),
    }
}

/// `base` with the adapter of `folder` in its weights.
pub(super) fn merged(base: CausalLm, folder: &Path) -> Result<CausalLm> {
    base.with_saved_adapters(folder)?.merge()
}

/// The hash of each file of a checkpoint folder that says what the model is.
pub(super) fn contents(folder: &Path) -> Result<serde_json::Value> {
    hashes(folder, is_of_model)
}

fn is_of_model(name: &str) -> bool {
    name == "config.json" || name == "adapter_config.json" || name.contains(".safetensors")
}

/// The same with those that say how the model is asked.
pub(super) fn contents_with_chat(folder: &Path) -> Result<serde_json::Value> {
    const ASKED: [&str; 6] = [
        "reward_model.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ];
    hashes(folder, |name| is_of_model(name) || ASKED.contains(&name))
}

fn hashes(folder: &Path, is_meant: impl Fn(&str) -> bool) -> Result<serde_json::Value> {
    let io = |e| Error::io("reading", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry
            .map_err(io)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if is_meant(&name) {
            names.push(name);
        }
    }
    names.sort();
    let hash = |name: &String| -> Result<(String, String)> {
        let path = folder.join(name);
        let io = |e| Error::io("reading", &path, e);
        let mut file = std::fs::File::open(&path).map_err(io)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok((name.clone(), hex::encode(hasher.finalize())))
    };
    let hashes: std::collections::BTreeMap<_, _> =
        names.par_iter().map(hash).collect::<Result<_>>()?;
    Ok(json!({"files": hashes}))
}

/// The local folder of a checkpoint, fetched where it is on the Hub, with the commit it has there.
pub(super) fn local_folder(
    source: &StudentSource,
    part: hub::Part,
    reporter: &dyn Reporter,
) -> Result<(PathBuf, Option<String>)> {
    match source {
        StudentSource::Folder(path) => Ok((PathBuf::from(path), None)),
        StudentSource::Hub { repo, revision } => {
            let resolved = hub::resolve_model_part(repo, Some(revision), part, reporter)?;
            Ok((resolved.folder, resolved.revision))
        }
        StudentSource::Random(_) => {
            Err(Error::input("a student with random weights has no folder"))
        }
    }
}

/// The files of a model with its tokenizer and template; the weights are not read.
pub struct ModelFiles {
    pub folder: PathBuf,
    /// Where the weights are that an adapter in `folder` is for.
    pub base: Option<PathBuf>,
    /// On the Hub, with the commit.
    pub repo: Option<(String, Option<String>)>,
    pub chat: Chat,
}

impl ModelFiles {
    /// The shape of the model.
    ///
    /// # Errors
    /// No `config.json`, or one that is not known.
    pub fn config(&self) -> Result<ModelConfig> {
        shape_of(&self.folder, self.base.as_deref())
    }

    /// The model in memory, with its adapter merged.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn load(&self, options: &LoadOptions) -> Result<CausalLm> {
        match &self.base {
            None => CausalLm::load(&self.folder, options),
            Some(base) => merged(
                CausalLm::load_as(base, self.config()?, options)?,
                &self.folder,
            ),
        }
    }
}

/// Finds the files of the model called `place`: a card, `org/name[@revision]` or a folder. A chat template is only asked for
/// where a conversation is rendered.
///
/// # Errors
/// No such model, or a tokenizer that cannot be read.
pub fn open_files(place: &str, reporter: &dyn Reporter) -> Result<ModelFiles> {
    let (source, card) = model_source(place)?;
    let (folder, revision) = local_folder(&source, hub::Part::Everything, reporter)?;
    let template = card.and_then(|c| c.chat_template);
    let template = template_text(template.as_deref())?;
    let base = base_folder(&folder, hub::Part::Everything, reporter)?;
    let tokenizer = tokenizer_of(&folder, base.as_deref())?;
    let chat = Chat::for_text(tokenizer, template.as_deref())
        .map_err(|error| error.at(format!("`{}`", folder.display())))?;
    let repo = match source {
        StudentSource::Hub { repo, .. } => Some((repo, revision)),
        _ => None,
    };
    Ok(ModelFiles {
        folder,
        base,
        repo,
        chat,
    })
}

/// The text of a chat template: a file, or one of those under `models/templates`.
pub(super) fn template_text(name: Option<&str>) -> Result<Option<String>> {
    let Some(name) = name else { return Ok(None) };
    if let Some(text) = shipped::template(name) {
        return Ok(Some(text.to_string()));
    }
    if Path::new(name).is_file() {
        return crate::recipe::load::read_text(Path::new(name)).map(Some);
    }
    Err(
        Error::input(format!("no chat template `{name}`")).with_hint(format!(
            "give a file, or one of: {}",
            shipped::template_names().join(", ")
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapters_own_tokenizer_keeps_its_bases_way_to_sample() {
        let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tokenizer = crate::data::builtin::tokenizer("arithmetic").unwrap();
        for folder in [base.path(), adapter.path()] {
            std::fs::write(folder.join("tokenizer.json"), tokenizer.json()).unwrap();
        }
        let settings = r#"{"temperature": 0.6, "eos_token_id": [1]}"#;
        std::fs::write(base.path().join("generation_config.json"), settings).unwrap();
        let read = || {
            let tokenizer = tokenizer_of(adapter.path(), Some(base.path())).unwrap();
            let files = tokenizer.files();
            let temperature = files
                .generation_config
                .as_ref()?
                .get("temperature")?
                .as_f64();
            Some((temperature, files.generation_eos_ids()))
        };
        assert_eq!(read(), Some((Some(0.6), vec![1])));
        // its own word is the last one
        let own = r#"{"temperature": 0.9}"#;
        std::fs::write(adapter.path().join("generation_config.json"), own).unwrap();
        assert_eq!(read(), Some((Some(0.9), Vec::new())));
        // without a tokenizer of its own everything is the base's
        std::fs::remove_file(adapter.path().join("tokenizer.json")).unwrap();
        assert_eq!(read(), Some((Some(0.6), vec![1])));
    }

    #[test]
    fn how_a_reward_model_is_asked_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("config.json", "{}");
        put("model.safetensors", "w");
        let read = || {
            (
                contents(dir.path()).unwrap(),
                contents_with_chat(dir.path()).unwrap(),
            )
        };
        let (weights, mut whole) = read();
        for name in [
            "reward_model.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ] {
            put(name, name);
            let (weights_now, whole_now) = read();
            assert_eq!(weights_now, weights, "{name}");
            assert_ne!(whole_now, whole, "{name}");
            whole = whole_now;
        }
        put("README.md", "read me");
        assert_eq!(read(), (weights, whole));
    }
}
