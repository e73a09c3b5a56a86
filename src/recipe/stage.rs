//! `[[stage]]`: a recipe of several stages as a user writes it, one struct a table, one doc comment a field.
//!
//! ```toml
//! [[stage]]
//! name = "cold-start"
//! kind = "sft"
//! traces = "cold-start.jsonl"
//! [[stage]]
//! name = "samples"
//! kind = "generate"
//! model = "@cold-start"
//! prompts = "builtin:arithmetic"
//! ```
//!
//! `@name` stands for what an earlier stage left. What the stages mean once defaults, cards and references are resolved is
//! in [`super::graph`]; the tables of a kind that has many settings have a file of their own.

use super::preference::Preference;
use super::publish::Publish;
use super::reward::RewardTable;
use super::reward_model::RewardModelTable;
use super::select::Select;
use super::{
    Sft, Student, Traces, default_device, default_eval_batch, default_seed, default_split,
};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;

/// Several stages, each of which may start from what earlier ones left.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineRecipe {
    /// Name of the run; its folder is `runs/<name>` unless `--run-dir` says otherwise.
    pub name: String,
    /// Seed of random weights, and of every stage that has none of its own.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// `auto` (CUDA, then Metal, then CPU), `cpu`, `cuda:N` or `metal`.
    #[serde(default = "default_device")]
    pub device: String,
    /// The model of stages that name none.
    #[serde(default)]
    pub student: Option<Student>,
    /// What runs, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<StageRecipe>,
    /// Where the result goes on the Hub; without the table nothing is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// `[[stage]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// Its folder in the run folder, and what `@name` and `--set stage.NAME.key=value` call it.
    pub name: String,
    pub kind: Kind,
    /// Seed of shuffling and sampling; default: the recipe's.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Weights it starts from: `@stage`, a card's name, a Hub repo or a folder; default: `[student]` as it is.
    #[serde(default)]
    pub model: Option<String>,
    /// A student of its own in place of `[student]`.
    #[serde(default)]
    pub student: Option<Student>,
    /// What `sft` learns from: `@stage`, a source, or a list of both.
    #[serde(default)]
    pub traces: Option<Sources<Traces>>,
    /// What `generate` and `grpo` ask: a source, the problems of the traces that `@stage` selected, or a list of both.
    #[serde(default)]
    pub prompts: Option<Sources<Prompts>>,
    /// What `select` chooses from: `@stage`, a file as `generate` writes it, or a list of both.
    #[serde(default)]
    pub samples: Option<Sources<String>>,
    /// What `preference` and `reward-model` learn from: `@stage`, a file, or a list of both.
    #[serde(default)]
    pub pairs: Option<Sources<String>>,
    /// How samples are scored: the name of a preset, or `[[stage.rewards]]`.
    #[serde(default)]
    pub rewards: Option<RewardTable>,
    /// How `generate` samples.
    #[serde(default)]
    pub sampling: Option<SamplingTable>,
    /// How `sft` learns.
    #[serde(default)]
    pub sft: Option<Sft>,
    /// What `select` keeps.
    #[serde(default)]
    pub select: Option<Select>,
    /// What `select` adds to what it keeps.
    #[serde(default)]
    pub mix: Option<Sources<Traces>>,
    /// What `eval` asks.
    #[serde(default)]
    pub eval: Option<StageEval>,
    /// How `grpo` learns.
    #[serde(default)]
    pub grpo: Option<toml::Value>,
    /// How `reward-model` learns.
    #[serde(default)]
    pub reward_model: Option<RewardModelTable>,
    /// How `preference` learns.
    #[serde(default)]
    pub preference: Option<Preference>,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Supervised fine-tuning.
    Sft,
    /// Reinforcement learning from rewards.
    Grpo,
    /// Several samples a prompt.
    Generate,
    /// Rejection sampling: samples to traces.
    Select,
    /// A model that scores.
    RewardModel,
    /// Learning from chosen and rejected answers.
    Preference,
    /// Benchmarks on a model.
    Eval,
}

impl Kind {
    /// As `kind =` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Grpo => "grpo",
            Self::Generate => "generate",
            Self::Select => "select",
            Self::RewardModel => "reward-model",
            Self::Preference => "preference",
            Self::Eval => "eval",
        }
    }

    /// What later stages can use of it.
    pub fn leaves(self) -> Option<Leaves> {
        match self {
            Self::Sft | Self::Grpo | Self::Preference => Some(Leaves::Model),
            Self::RewardModel => Some(Leaves::RewardModel),
            Self::Generate => Some(Leaves::Samples),
            Self::Select => Some(Leaves::Traces),
            Self::Eval => None,
        }
    }
}

/// What a stage leaves to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// `model/`
    Model,
    /// `model/` that scores.
    RewardModel,
    /// `generations.jsonl`
    Samples,
    /// `traces.jsonl`
    Traces,
    /// `pairs.jsonl`, where they were made of samples.
    Pairs,
}

impl Leaves {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::RewardModel => "reward model",
            Self::Samples => "samples",
            Self::Traces => "traces",
            Self::Pairs => "pairs",
        }
    }

    /// The kinds that leave this.
    pub fn kinds(self) -> &'static str {
        match self {
            Self::Model => "`sft`, `grpo` or `preference`",
            Self::RewardModel => "`reward-model`",
            Self::Samples => "`generate`",
            Self::Traces => "`select`",
            Self::Pairs => "`reward-model` or `preference` that has `samples`",
        }
    }
}

/// `[[stage.prompts]]`: one source of prompts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// Hub data set, file or folder (parquet, JSONL, `.gz`, `.zst`), `builtin:arithmetic`, or `@stage`.
    pub source: String,
    /// Configuration of a Hub data set.
    #[serde(default)]
    pub config: Option<String>,
    /// Split of a Hub data set.
    #[serde(default = "default_split")]
    pub split: String,
    /// Branch, tag or commit of a Hub data set.
    #[serde(default)]
    pub revision: Option<String>,
    /// How many problems a `builtin:` source makes; none that a suite asks.
    #[serde(default)]
    pub num_problems: Option<usize>,
    /// Columns, where they are not called as usual.
    #[serde(default)]
    pub fields: PromptFields,
    /// System prompt.
    #[serde(default)]
    pub system: Option<String>,
    /// User turn; `{problem}` stands for the problem.
    #[serde(default = "default_template")]
    pub template: String,
    /// Use at most so many prompts of this source, the first ones.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Field of knowledge, kept with every sample: `math`, `code`, ...
    #[serde(default)]
    pub domain: Option<String>,
}

/// `[stage.prompts.fields]`: columns of a file of prompts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptFields {
    /// Default: the first of `problem`, `question`, `prompt`, `instruction`, or the user's turns of `messages`.
    pub problem: Option<String>,
    /// Default: the first of `gold`, `answer`, `ground_truth`, `reference_answer`, `solution`; a prompt without one has no right answer.
    pub answer: Option<String>,
    /// Default: `id`, else its number.
    pub id: Option<String>,
    /// Options of a multiple choice question, a list of texts; default: `options` or `choices`.
    pub options: Option<String>,
}

/// `[stage.sampling]`: how answers are sampled.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingTable {
    /// Samples a prompt.
    pub num_samples: usize,
    /// 0 always takes the most probable token.
    pub temperature: f64,
    pub top_p: f64,
    /// 0 samples among all tokens.
    pub top_k: usize,
    pub min_p: f64,
    pub repetition_penalty: f64,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Sequences that are sampled side by side.
    pub batch_size: usize,
}

impl Default for SamplingTable {
    fn default() -> Self {
        Self {
            num_samples: 4,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 4096,
            stop: Vec::new(),
            batch_size: default_eval_batch(),
        }
    }
}

/// `[stage.eval]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageEval {
    /// Names of shipped suites or paths of suite files.
    pub suites: Vec<String>,
    /// Samples a problem in place of the suite's.
    #[serde(default)]
    pub num_samples: Option<usize>,
    /// Run every suite once for each of these in place of the stage's seed.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// Only the first so many problems of each suite; said in the result.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Longest answer in tokens in place of the suite's.
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    /// Sequences that are sampled side by side.
    #[serde(default = "default_eval_batch")]
    pub batch_size: usize,
}

/// One source, or a list; an entry is a string, which is the source, or a table.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(transparent)]
pub struct Sources<T>(pub Vec<T>);

/// What a plain string can stand for.
pub trait FromSource: Sized {
    /// The source of that name, all else by default.
    fn from_source(source: String) -> Self;
}

impl FromSource for String {
    fn from_source(source: String) -> Self {
        source
    }
}

impl FromSource for Traces {
    fn from_source(source: String) -> Self {
        Self {
            source,
            config: None,
            split: default_split(),
            revision: None,
            num_problems: None,
            columns: Default::default(),
            labels: None,
            keep: Default::default(),
            max_per_problem: None,
            limit: None,
            weight: None,
            on_bad_row: Default::default(),
        }
    }
}

impl FromSource for Prompts {
    fn from_source(source: String) -> Self {
        Self {
            source,
            config: None,
            split: default_split(),
            revision: None,
            num_problems: None,
            fields: PromptFields::default(),
            system: None,
            template: default_template(),
            limit: None,
            domain: None,
        }
    }
}

// not derived: an untagged enum would hide what is wrong inside a table, and where
impl<'de, T: Deserialize<'de> + FromSource> Deserialize<'de> for Sources<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + FromSource> Visitor<'de> for List<T> {
            type Value = Sources<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("`@stage`, a source, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, source: &str) -> Result<Self::Value, E> {
                Ok(Sources(vec![T::from_source(source.to_string())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut sources = Vec::new();
                while let Some(Entry(source)) = list.next_element()? {
                    sources.push(source);
                }
                if sources.is_empty() {
                    return Err(A::Error::custom("the list is empty"));
                }
                Ok(Sources(sources))
            }
        }
        deserializer.deserialize_any(List(PhantomData))
    }
}

/// One of a list.
struct Entry<T>(T);

impl<'de, T: Deserialize<'de> + FromSource> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + FromSource> Visitor<'de> for One<T> {
            type Value = Entry<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("`@stage`, a source, or a table with `source`")
            }

            fn visit_str<E: serde::de::Error>(self, source: &str) -> Result<Self::Value, E> {
                Ok(Entry(T::from_source(source.to_string())))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(table)).map(Entry)
            }
        }
        deserializer.deserialize_any(One(PhantomData))
    }
}

pub(super) fn default_template() -> String {
    "{problem}".into()
}
