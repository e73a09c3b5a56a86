//! The student of a plan: tokenizer and shape at once, weights when they are asked for, as they are or as they are trained.

use super::open::{
    base_folder, contents, device, dtype, local_folder, merged, shape_of, template_text,
    tokenizer_of,
};
use crate::data::builtin;
use crate::model::frozen::formats;
use crate::model::{
    AdapterConfig, Architecture, CausalLm, FrozenAs, Head, LoadOptions, ModelConfig, family,
};
use crate::ops::PackedAs;
use crate::progress::{Reporter, Silent};
use crate::recipe::Init;
use crate::recipe::plan::{AdapterPlan, Plan, StudentPlan, StudentSource};
use crate::tokenize::{Chat, TextTokenizer};
use crate::{Error, Result, hub};
use candle_core::{DType, Device};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The student of a plan: tokenizer and shape at once, weights when they are asked for.
pub struct Student {
    chat: Chat,
    config: ModelConfig,
    device: Device,
    dtype: DType,
    weights: Weights,
    /// What the first weights are, for the keys of stages.
    identity: Value,
    /// What is trained beside them.
    adapter: Option<AdapterPlan>,
    /// Where the frozen weights of an adapter are, for its files: a folder or a repository, and its commit.
    base: (String, Option<String>),
}

/// Where the first weights come from.
enum Weights {
    Folder(PathBuf),
    /// An adapter, its base, and where it is on the Hub.
    Adapter {
        folder: PathBuf,
        base: PathBuf,
        repo: Option<(String, String)>,
    },
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
                let base = base_folder(&folder, hub::Part::WithoutWeights, reporter)?;
                let config = shape_of(&folder, base.as_deref())?;
                let tokenizer = tokenizer_of(&folder, base.as_deref())?;
                let chat = Chat::new(tokenizer, template.as_deref())
                    .map_err(|error| error.at(format!("`{}`", folder.display())))?;
                let (weights, identity) = match (source, revision) {
                    (source, commit) if base.is_some() => {
                        let repo = match (source, commit) {
                            (StudentSource::Hub { repo, .. }, Some(commit)) => {
                                Some((repo.clone(), commit))
                            }
                            _ => None,
                        };
                        let base = base.unwrap_or_default();
                        (Weights::Adapter { folder, base, repo }, json!({}))
                    }
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
        if student.adapter.is_some() && matches!(weights, Weights::Adapter { .. }) {
            return Err(
                Error::input("an adapter cannot be trained beside another adapter's weights")
                    .with_hint("give the folder in which that one is merged, `model/` of its stage, or set `student.method = \"full\"`"),
            );
        }
        check_adapter(&config, student)?;
        let identity = json!({
            "weights": identity,
            "dtype": student.dtype,
            "rope_theta": student.rope_theta,
            "max_position_embeddings": student.max_position_embeddings,
        });
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
            adapter: student.adapter.clone(),
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
            Weights::Adapter { folder, repo, .. } => {
                let (folder, repo) = match repo {
                    None => (folder.clone(), None),
                    Some((id, commit)) => {
                        let resolved = hub::resolve_model(id, Some(commit), reporter)?;
                        (resolved.folder, repo.clone())
                    }
                };
                let base =
                    base_folder(&folder, hub::Part::Everything, reporter)?.unwrap_or_default();
                self.identity["weights"] =
                    json!({"adapter": contents(&folder)?, "base": contents(&base)?});
                self.weights = Weights::Adapter { folder, base, repo };
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
    pub fn identity(&self) -> &Value {
        &self.identity
    }

    /// The same for a stage that trains it.
    pub fn trained_identity(&self) -> Value {
        let mut identity = self.identity.clone();
        if let Some(adapter) = &self.adapter {
            // where frozen weights wait changes nothing of what is learnt
            let adapter = AdapterPlan {
                stream: false,
                ..adapter.clone()
            };
            identity["adapter"] = json!(adapter);
        }
        identity
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
    pub fn to_train(
        &self,
        earlier: Option<&Path>,
        seed: u64,
        reporter: &dyn Reporter,
    ) -> Result<CausalLm> {
        let folder = match (earlier, &self.weights) {
            (Some(folder), _) => Some(folder),
            (None, Weights::Folder(folder)) => Some(folder.as_path()),
            (None, _) => None,
        };
        let how = self
            .adapter
            .as_ref()
            .map_or(FrozenAs::default(), |a| FrozenAs {
                quant: a.packed_as(),
                stream: a.stream,
            });
        if let Some(quant) = how.quant {
            self.say_fallbacks(quant, reporter)?;
        }
        let model = match folder {
            Some(folder) if how != FrozenAs::default() => {
                CausalLm::load_frozen(folder, self.config.clone(), &self.options(), how)?
            }
            Some(folder) => self.with_weights_in(folder)?,
            None if how.stream => {
                return Err(Error::input(
                    "weights that are in no file of their own cannot be streamed from there",
                )
                .with_hint("give a checkpoint folder, or leave `student.lora.stream` out"));
            }
            None => match how.quant {
                Some(quant) => self.untrained()?.into_packed(quant)?,
                None => self.untrained()?,
            },
        };
        match &self.adapter {
            None => Ok(model),
            Some(adapter) => {
                let (base, revision) = match earlier {
                    Some(folder) => (absolute(folder), None),
                    None => self.base.clone(),
                };
                let model = model.with_adapters(adapter_config(adapter), seed)?;
                Ok(model.beside(&base, revision.as_deref()))
            }
        }
    }

    /// Projections that are kept in another format than the one that was asked for.
    fn say_fallbacks(&self, quant: PackedAs, reporter: &dyn Reporter) -> Result<()> {
        let formats = formats(&self.config, quant)?;
        let num_all: usize = formats.values().sum();
        for (taken, num) in formats.iter().filter(|(taken, _)| **taken != quant) {
            reporter.warn(&format!(
                "{num} of {num_all} projections are kept in {}: their rows are no multiple of the {} values of a block of {}",
                taken.name(),
                quant.block_size(),
                quant.name()
            ));
        }
        Ok(())
    }

    /// The student as it is before training.
    pub fn untrained(&self) -> Result<CausalLm> {
        match &self.weights {
            Weights::Random(seed) => {
                CausalLm::random(self.config.clone(), *seed, &self.device, self.dtype)
            }
            Weights::Folder(folder) => self.with_weights_in(folder),
            Weights::Adapter { folder, base, .. } => merged(
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
        self.in_shape(folder, ModelConfig::from_folder(folder)?)
    }

    /// The weights in `folder` in this student's own shape, RoPE changes applied.
    pub fn with_weights_in(&self, folder: &Path) -> Result<CausalLm> {
        self.in_shape(folder, self.config.clone())
    }

    /// Weights to sample from: where a student is streamed while it learns, so is what it became.
    fn in_shape(&self, folder: &Path, config: ModelConfig) -> Result<CausalLm> {
        match self.adapter.as_ref().is_some_and(|a| a.stream) {
            false => CausalLm::load_as(folder, config, &self.options()),
            true => {
                let how = FrozenAs {
                    quant: None,
                    stream: true,
                };
                CausalLm::load_frozen(folder, config, &self.options(), how)
            }
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
            shape_of(folder, base.as_deref())?
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
    check_adapter(&config, student)?;
    Ok(config)
}

/// That the model has what the adapters stand beside, in a format that divides it.
fn check_adapter(config: &ModelConfig, student: &StudentPlan) -> Result<()> {
    let Some(adapter) = &student.adapter else {
        return Ok(());
    };
    adapter_config(adapter).check_rank(config)?;
    match adapter.packed_as() {
        Some(quant) => formats(config, quant).map(|_| ()),
        None => Ok(()),
    }
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
