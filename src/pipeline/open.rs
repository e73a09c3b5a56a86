//! Opens what a recipe or a command line names: a device, a student, a folder of traces. Hub names are fetched into the
//! standard cache; local folders and files need no network.

use crate::data::builtin;
use crate::model::{
    AdapterConfig, Architecture, CausalLm, Head, LoadOptions, ModelConfig, adapter_files, family,
};
use crate::progress::{Reporter, Silent};
use crate::recipe::plan::{AdapterPlan, Plan, StudentPlan, StudentSource, model_source};
use crate::recipe::{Dtype, Init, shipped};
use crate::tokenize::{Chat, TextTokenizer};
use crate::{Error, Result, hub};
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
                && let Ok(device) = Device::new_cuda(0)
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
    Device::new_cuda(ordinal).map_err(|e| {
        Error::input(format!("device `{name}` cannot be used: {}", first_line(&e)))
            .with_hint("build with `--features cuda` on a machine with an NVIDIA driver, or use `--device cpu`")
    })
}

fn first_line(e: &candle_core::Error) -> String {
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
        revision: files.repo.and_then(|(_, commit)| commit),
    })
}

/// The folder of the base model, where `folder` holds an adapter in PEFT's layout.
fn base_folder(folder: &Path, part: hub::Part, reporter: &dyn Reporter) -> Result<Option<PathBuf>> {
    let Some((base, revision)) = adapter_files::base_of(folder)? else {
        return Ok(None);
    };
    let at = |e: Error| e.at(format!("base of the adapter `{}`", folder.display()));
    let base = hub::resolve_model_part(&base, revision.as_deref(), part, reporter).map_err(at)?;
    if adapter_files::base_of(&base.folder).map_err(at)?.is_some() {
        return Err(at(
            Error::input("it is an adapter itself").with_hint("merge the inner one first")
        ));
    }
    Ok(Some(base.folder))
}

/// Where the tokenizer is: beside an adapter if it has one of its own.
fn with_tokenizer<'a>(folder: &'a Path, base: Option<&'a Path>) -> &'a Path {
    match base {
        Some(base) if !folder.join("tokenizer.json").is_file() => base,
        _ => folder,
    }
}

/// `base` with the adapter of `folder` in its weights.
fn merged(base: CausalLm, folder: &Path) -> Result<CausalLm> {
    base.with_saved_adapters(folder)?.merge()
}

/// The hash of each file of a checkpoint folder that says what the model is.
fn contents(folder: &Path) -> Result<serde_json::Value> {
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
fn local_folder(
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
        ModelConfig::from_folder(self.base.as_ref().unwrap_or(&self.folder))
    }

    /// The model in memory, with its adapter merged.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn load(&self, options: &LoadOptions) -> Result<CausalLm> {
        match &self.base {
            None => CausalLm::load(&self.folder, options),
            Some(base) => merged(CausalLm::load(base, options)?, &self.folder),
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
    let tokenizer = with_tokenizer(&folder, base.as_deref());
    let chat = Chat::load_for_text(tokenizer, template.as_deref())?;
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
fn template_text(name: Option<&str>) -> Result<Option<String>> {
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

/// The student of a plan: tokenizer and shape at once, weights when they are asked for.
pub struct Student {
    chat: Chat,
    config: ModelConfig,
    device: Device,
    dtype: DType,
    weights: Weights,
    /// What the first weights are, for the keys of stages.
    identity: serde_json::Value,
    /// What is trained beside them.
    adapter: Option<AdapterConfig>,
    /// The weights beside them are in 4 bits.
    nf4: bool,
    /// Where the frozen weights of an adapter are, for its files: a folder or a repository, and its commit.
    base: (String, Option<String>),
}

/// Where the first weights come from.
enum Weights {
    Folder(PathBuf),
    /// An adapter, and its base.
    Adapter(PathBuf, PathBuf),
    /// Not fetched yet: repository and commit.
    Hub(String, String),
    Random(u64),
}

impl Student {
    /// Opens tokenizer and configuration of the plan's student, fetching the checkpoint where it is on the Hub.
    ///
    /// # Errors
    /// A checkpoint, tokenizer or template that is not there or cannot be read; more positions than the student has.
    pub fn open(plan: &Plan, reporter: &dyn Reporter) -> Result<Self> {
        let student = Self::open_as(&plan.student, plan.seed, &plan.device, reporter)?;
        check_positions(&student.config, plan)?;
        Ok(student)
    }

    /// Opens `student`; `seed` is for random weights.
    ///
    /// # Errors
    /// A checkpoint, tokenizer or template that is not there or cannot be read.
    pub fn open_as(
        student: &StudentPlan,
        seed: u64,
        device_name: &str,
        reporter: &dyn Reporter,
    ) -> Result<Self> {
        let template = template_text(student.chat_template.as_deref())?;
        let (chat, mut config, weights, identity) = match &student.source {
            StudentSource::Random(init) => {
                let tokenizer = open_tokenizer(&init.tokenizer)?;
                let config = random_config(init, tokenizer.vocab_size())?;
                let chat = Chat::new(tokenizer, template.as_deref())?;
                let identity = json!({"random": init, "seed": seed});
                (chat, config, Weights::Random(seed), identity)
            }
            source => {
                let (folder, revision) = local_folder(source, hub::Part::WithoutWeights, reporter)?;
                let base = base_folder(&folder, hub::Part::Everything, reporter)?;
                let config = ModelConfig::from_folder(base.as_ref().unwrap_or(&folder))?;
                let place = with_tokenizer(&folder, base.as_deref());
                let chat = Chat::load(place, template.as_deref())?;
                let (weights, identity) = match (source, revision) {
                    (StudentSource::Folder(_), _) if base.is_some() => (
                        Weights::Adapter(folder, base.unwrap_or_default()),
                        json!({}),
                    ),
                    (StudentSource::Hub { repo, .. }, Some(commit)) => {
                        let identity = json!({"source": source, "commit": commit});
                        (Weights::Hub(repo.clone(), commit), identity)
                    }
                    _ => (Weights::Folder(folder), json!({})),
                };
                (chat, config, weights, identity)
            }
        };
        apply_rope(&mut config, student);
        let mut identity = json!({
            "weights": identity,
            "dtype": student.dtype,
            "rope_theta": student.rope_theta,
            "max_position_embeddings": student.max_position_embeddings,
        });
        if let Some(adapter) = &student.adapter {
            identity["adapter"] = json!(adapter);
        }
        let base = match (&student.source, &weights) {
            (_, Weights::Hub(repo, commit)) => (repo.clone(), Some(commit.clone())),
            (StudentSource::Folder(folder), _) => (absolute(Path::new(folder)), None),
            _ => (String::new(), None),
        };
        Ok(Self {
            chat,
            config,
            device: device(device_name)?,
            dtype: dtype(student.dtype),
            weights,
            identity,
            adapter: student.adapter.as_ref().map(adapter_config),
            nf4: student.adapter.as_ref().is_some_and(|adapter| adapter.nf4),
            base,
        })
    }

    /// Fetches the weights where they are on the Hub; those of a local folder are known by their content from here on.
    ///
    /// # Errors
    /// Weights that cannot be fetched or read.
    pub fn with_weights(mut self, reporter: &dyn Reporter) -> Result<Self> {
        match &self.weights {
            Weights::Hub(repo, commit) => {
                let resolved = hub::resolve_model(repo, Some(commit), reporter)?;
                self.weights = Weights::Folder(resolved.folder);
            }
            Weights::Folder(folder) => self.identity["weights"] = contents(folder)?,
            Weights::Adapter(folder, base) => {
                self.identity["weights"] =
                    json!({"adapter": contents(folder)?, "base": contents(base)?});
            }
            Weights::Random(_) => {}
        }
        Ok(self)
    }

    /// Tokenizer and template.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// What stands for the tokenizer in a key.
    pub fn tokenizer_hash(&self) -> String {
        hex::encode(Sha256::digest(self.chat.tokenizer.json()))
    }

    /// The shape, RoPE changes applied.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the first weights are.
    pub fn identity(&self) -> &serde_json::Value {
        &self.identity
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The student to be trained, with new adapters where its method asks for them: its own weights, or those in `earlier`,
    /// the model of an earlier stage. `seed` is for the adapters.
    ///
    /// # Errors
    /// Weights that cannot be read; a target that the model does not have.
    pub fn to_train(&self, earlier: Option<&Path>, seed: u64) -> Result<CausalLm> {
        let folder = match (earlier, &self.weights) {
            (Some(folder), _) => Some(folder),
            (None, Weights::Folder(folder)) => Some(folder.as_path()),
            (None, _) => None,
        };
        let model = match folder {
            Some(folder) if self.nf4 => {
                CausalLm::load_nf4(folder, self.config.clone(), &self.options())?
            }
            Some(folder) => self.with_weights_in(folder)?,
            None if self.nf4 => self.untrained()?.into_nf4()?,
            None => self.untrained()?,
        };
        match &self.adapter {
            None => Ok(model),
            Some(adapter) => model.with_adapters(adapter.clone(), seed),
        }
    }

    /// The student as it is before training.
    pub fn untrained(&self) -> Result<CausalLm> {
        match &self.weights {
            Weights::Random(seed) => {
                CausalLm::random(self.config.clone(), *seed, &self.device, self.dtype)
            }
            Weights::Folder(folder) => {
                CausalLm::load_as(folder, self.config.clone(), &self.options())
            }
            Weights::Adapter(folder, base) => merged(
                CausalLm::load_as(base, self.config.clone(), &self.options())?,
                folder,
            ),
            Weights::Hub(repo, _) => Err(Error::input(format!(
                "the weights of `{repo}` have not been fetched"
            ))),
        }
    }

    /// A checkpoint of this student in `folder`, such as the result of a stage.
    pub fn load(&self, folder: &Path) -> Result<CausalLm> {
        CausalLm::load(folder, &self.options())
    }

    /// The weights in `folder` in this student's own shape, RoPE changes applied.
    pub fn with_weights_in(&self, folder: &Path) -> Result<CausalLm> {
        CausalLm::load_as(folder, self.config.clone(), &self.options())
    }

    /// Where the frozen weights beside an adapter are: `earlier`, the model of an earlier stage, or the student's own.
    pub fn base(&self, earlier: Option<&Path>) -> (String, Option<String>) {
        match earlier {
            Some(folder) => (absolute(folder), None),
            None => self.base.clone(),
        }
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            device: self.device.clone(),
            dtype: self.dtype,
        }
    }
}

fn absolute(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    path.display().to_string()
}

/// The adapters of a plan.
pub fn adapter_config(plan: &AdapterPlan) -> AdapterConfig {
    AdapterConfig {
        rank: plan.rank,
        alpha: plan.alpha,
        rslora: plan.rslora,
        dora: plan.dora,
        targets: plan.target_modules.clone(),
    }
}

/// The shape of a student without network or weights, for planning.
///
/// # Errors
/// A Hub student without a card, whose shape is not known.
pub fn planned_config(student: &StudentPlan) -> Result<ModelConfig> {
    let mut config = match &student.source {
        StudentSource::Random(init) => {
            let vocab = match init.vocab_size {
                Some(n) => n,
                None => open_tokenizer(&init.tokenizer)?.vocab_size(),
            };
            random_config(init, vocab)?
        }
        StudentSource::Folder(folder) => {
            let folder = Path::new(folder);
            let base = base_folder(folder, hub::Part::WithoutWeights, &Silent)?;
            ModelConfig::from_folder(base.as_deref().unwrap_or(folder))?
        }
        StudentSource::Hub { repo, .. } => student
            .family
            .as_deref()
            .and_then(family::config)
            .ok_or_else(|| {
                Error::input(format!(
                    "the shape of `{repo}` is not known without network"
                ))
                .with_hint(format!(
                    "fetch it first: `distill pull {repo}`, then give its folder"
                ))
            })?,
    };
    apply_rope(&mut config, student);
    Ok(config)
}

fn apply_rope(config: &mut ModelConfig, student: &StudentPlan) {
    if let Some(theta) = student.rope_theta {
        config.rope_theta = theta;
    }
    if let Some(n) = student.max_position_embeddings {
        config.max_position_embeddings = n;
    }
}

/// That the longest rows have their positions.
pub fn check_positions(config: &ModelConfig, plan: &Plan) -> Result<()> {
    if plan.sft.max_length <= config.max_position_embeddings {
        return Ok(());
    }
    Err(Error::input(format!(
        "`sft.max_length = {}` is more than the {} positions the student was made for",
        plan.sft.max_length, config.max_position_embeddings
    ))
    .with_hint("lower `sft.max_length`, or raise `student.max_position_embeddings` and `student.rope_theta` together"))
}

/// A tokenizer by name: `builtin:arithmetic`, a folder or a `tokenizer.json`.
fn open_tokenizer(name: &str) -> Result<TextTokenizer> {
    match name.strip_prefix("builtin:") {
        Some(family) => builtin::tokenizer(family),
        None => TextTokenizer::load(Path::new(name)),
    }
}

fn random_config(init: &Init, vocab_of_tokenizer: usize) -> Result<ModelConfig> {
    let vocab_size = init.vocab_size.unwrap_or(vocab_of_tokenizer);
    if vocab_size < vocab_of_tokenizer {
        return Err(Error::input(format!(
            "`student.init.vocab_size = {vocab_size}` is less than the tokenizer's {vocab_of_tokenizer} entries"
        )));
    }
    let architecture = Architecture::parse(&init.architecture)?;
    ModelConfig::from_json(
        &json!({
            "architectures": [architecture.class_name(Head::Vocabulary)],
            "model_type": init.architecture,
            "hidden_size": init.hidden_size,
            "intermediate_size": init.intermediate_size,
            "num_hidden_layers": init.num_hidden_layers,
            "num_attention_heads": init.num_attention_heads,
            "num_key_value_heads": init.num_key_value_heads,
            "head_dim": init.head_dim.unwrap_or(init.hidden_size / init.num_attention_heads.max(1)),
            "vocab_size": vocab_size,
            "rms_norm_eps": 1e-6,
            "rope_theta": init.rope_theta,
            "max_position_embeddings": init.max_position_embeddings,
            "tie_word_embeddings": init.tie_word_embeddings,
        }),
        "student.init",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
