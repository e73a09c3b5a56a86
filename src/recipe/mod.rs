//! TOML to a typed recipe, and the recipe to a resolved plan.
//!
//! This file holds the recipe as a user writes it: one struct a table, one doc comment a field. Reading, `--set` and
//! "did you mean" are in [`load`]; the shipped recipes, cards and suites in [`shipped`]; what a recipe means once every
//! default is filled in, in [`plan`]; the settings of rewards in [`reward`]. A recipe of several stages is in [`stage`], and
//! what it means in [`graph`]; what is kept of samples in [`select`];
//! what is learnt from preferences in [`preference`] and [`reward_model`], and how pairs are made in [`pairs`]. Where the
//! result goes is in [`publish`].

pub mod card;
pub mod graph;
pub mod grpo;
mod grpo_presets;
pub mod load;
pub mod pairs;
pub mod plan;
pub mod preference;
pub mod publish;
pub mod remote;
pub mod reward;
pub mod reward_model;
pub mod select;
pub mod shipped;
pub mod stage;
mod stage_check;
mod stage_student;
pub mod suite;
pub mod terms;

use crate::ops::PackedAs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run: which student learns from which traces, how, and how it is judged.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run; its folder is `runs/<name>` unless `--run-dir` says otherwise.
    pub name: String,
    /// Seed of shuffling, of random weights and of sampling.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// `auto` (CUDA, then Metal, then CPU), `cpu`, `cuda:N` or `metal`.
    #[serde(default = "default_device")]
    pub device: String,
    /// The model that learns.
    pub student: Student,
    /// What it learns from; several sources are read one after the other.
    pub traces: Vec<Traces>,
    /// How it learns.
    #[serde(default)]
    pub sft: Sft,
    /// How it is judged; without the table nothing is evaluated.
    #[serde(default)]
    pub eval: Option<Eval>,
    /// Where the result goes on the Hub; without the table nothing is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<publish::Publish>,
}

/// `[student]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// A card's name (`qwen2.5-math-7b`), a Hub repo (`org/name` or `org/name@revision`) or a folder in the Hugging Face
    /// layout. Left out where `[student.init]` makes random weights.
    #[serde(default)]
    pub model: Option<String>,
    /// Which weights are trained; default: `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// What adapters look like, where `method` asks for some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Dtype of weights and activations; optimiser states are f32, and so is a master copy of 16-bit weights.
    /// Default: `f32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// A Jinja chat template in place of the student's own: a file, or the name of one under `models/templates`.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// RoPE base in place of the checkpoint's.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// Number of positions written to the result's `config.json`.
    #[serde(default)]
    pub max_position_embeddings: Option<usize>,
    /// Random weights of a given shape in place of a checkpoint.
    #[serde(default)]
    pub init: Option<Init>,
}

impl Student {
    /// Takes over how another student is computed, where this one does not say.
    fn compute_as(&mut self, other: &Self) {
        let changes = self.method.is_some_and(|own| Some(own) != other.method);
        self.method = self.method.or(other.method);
        if !matches!(self.method, None | Some(Method::Full)) {
            let theirs = other.lora.clone().unwrap_or_default();
            let own = self.lora.take().unwrap_or_default();
            self.lora = Some(Lora {
                rank: own.rank.or(theirs.rank),
                alpha: own.alpha.or(theirs.alpha),
                target_modules: own.target_modules.or(theirs.target_modules),
                rslora: own.rslora.or(theirs.rslora),
                // of no use to another method
                quant: match changes && self.method != Some(Method::Qlora) {
                    true => own.quant,
                    false => own.quant.or(theirs.quant),
                },
                stream: own.stream.or(theirs.stream),
            });
        }
        self.dtype = self.dtype.or(other.dtype);
    }

    /// Takes over everything that this one does not say.
    fn complete(&mut self, other: &Self) {
        self.compute_as(other);
        self.model = self.model.take().or_else(|| other.model.clone());
        self.init = self.init.take().or_else(|| other.init.clone());
        let template = self.chat_template.take();
        self.chat_template = template.or_else(|| other.chat_template.clone());
        self.rope_theta = self.rope_theta.or(other.rope_theta);
        let positions = self.max_position_embeddings;
        self.max_position_embeddings = positions.or(other.max_position_embeddings);
    }
}

/// `[student.lora]`: adapters beside frozen weights.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// PEFT's `r`. Default: 16.
    #[serde(default)]
    pub rank: Option<usize>,
    /// PEFT's `lora_alpha`. Default: 32.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// Projections that get one; default: the card's `lora_targets`, else all seven of a block.
    #[serde(default)]
    pub target_modules: Option<Vec<String>>,
    /// Scale by `alpha / sqrt(rank)` in place of `alpha / rank`. Default: false.
    #[serde(default)]
    pub rslora: Option<bool>,
    /// What `method = "qlora"` keeps the frozen projections as: `nf4` (4.13 bits a weight), or the blocks of GGUF files, `q8_0`
    /// (8.5) or `q4_k` (4.5; in `q8_0` where rows are no multiple of 256 values). Default: `nf4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<PackedAs>,
    /// Keep the frozen projections in the memory of the host (their files are mapped, quantised ones are held) and copy each
    /// to the device when it is used: for models larger than the device. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

/// `[student.init]`: a student with random weights.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// `qwen2`, `qwen3` or `llama`.
    pub architecture: String,
    /// Folder or file of a `tokenizer.json`, `builtin:arithmetic` or `builtin:bilingual`.
    pub tokenizer: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    /// Default: `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Default: as many as the tokenizer has entries.
    #[serde(default)]
    pub vocab_size: Option<usize>,
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

/// Which weights are trained.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// All of them.
    #[default]
    Full,
    /// Low-rank adapters (arXiv 2106.09685).
    Lora,
    /// With magnitudes apart (arXiv 2402.09353).
    Dora,
    /// Low-rank adapters beside quantised weights (arXiv 2305.14314).
    Qlora,
}

/// Dtype of weights and activations.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
    F16,
}

/// `[[traces]]`: one source of traces.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// Hub data set, file or folder (parquet, JSONL, `.gz`, `.zst`), `builtin:arithmetic` or `builtin:bilingual`.
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
    /// How many problems a `builtin:` source makes.
    #[serde(default)]
    pub num_problems: Option<usize>,
    /// Where the parts of a trace stand, for a file whose columns are not told apart by themselves: part to column, dots
    /// going into objects. Parts: problem, reasoning, answer, generation (a text, or a list of several), messages, gold,
    /// system, correct (of several generations a list), domain, finish_reason, id (names the row beside its place).
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// Verdicts kept in a file of their own.
    #[serde(default)]
    pub labels: Option<Labels>,
    /// Which traces are used: `all`, or only those with a verdict that says `correct`.
    #[serde(default)]
    pub keep: Keep,
    /// Use at most so many traces a problem; a conversation's problem is all that was said before its last answer.
    #[serde(default)]
    pub max_per_problem: Option<usize>,
    /// Use at most so many traces of this source, the first ones that pass. What stands behind them is not looked at: it is
    /// in no count, not among the dropped ones either, and cannot fail.
    #[serde(default)]
    pub limit: Option<usize>,
    /// In `[[stage.mix]]`: traces of this source for each selected one; 0.25 adds a quarter as many. In `[[stage.traces]]`:
    /// for each one of the `@stage` sources beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// A row that cannot be read stops the run (`error`) or is dropped and counted (`drop`).
    #[serde(default)]
    pub on_bad_row: OnBad,
}

/// `[traces.labels]`: verdicts joined to the rows by a key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// JSONL file.
    pub file: String,
    /// Column of the key in both files.
    pub key: String,
    /// Column of the verdict in the label file: a bool, or a string such as `correct`; for a row of several traces a list,
    /// one a trace. A single verdict for several traces is an error of the row.
    pub column: String,
}

/// Which traces are used.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    #[default]
    All,
    Correct,
}

/// What a row that cannot be used does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    #[default]
    Error,
    Drop,
}

/// `[sft]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// Passes over the traces.
    pub epochs: usize,
    /// Stop after so many optimiser steps even when epochs are left.
    pub max_steps: Option<usize>,
    /// Peak learning rate; default: the card's (the paper's for that student).
    pub learning_rate: Option<f64>,
    /// Shape of the decay after the warmup.
    pub schedule: ScheduleKind,
    /// Floor of the schedule as a share of the peak.
    pub min_learning_rate_ratio: f64,
    /// Share of all steps that warm up linearly.
    pub warmup_ratio: f64,
    /// `adamw`, or `adamw_8bit` with states of a quarter of the size.
    #[serde(skip_serializing_if = "Optimizer::is_default")]
    pub optimizer: Optimizer,
    /// Sequences per optimiser step.
    pub batch_size: usize,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// What happens to a longer one; always counted and reported.
    pub over_length: OverLength,
    /// What happens to a row without a trained token or without an end.
    pub on_untrainable: OnBad,
    /// Sequences share a pack and never see each other; `false` runs them one by one.
    pub packing: bool,
    /// Tokens a pack holds at most; default `max_length`. Memory grows with it.
    pub pack_length: Option<usize>,
    /// Whose tokens are trained.
    pub train_on: TrainOn,
    /// Shuffle each epoch by the seed; `false` trains in file order.
    pub shuffle: bool,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 turns it off.
    pub max_grad_norm: f64,
    /// Which activations are computed again in the backward pass.
    pub recompute: Recompute,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: usize,
    /// Checkpoints that are kept; the newest ones.
    pub keep_checkpoints: usize,
}

impl Default for Sft {
    fn default() -> Self {
        Self {
            epochs: 2,
            max_steps: None,
            learning_rate: None,
            schedule: ScheduleKind::Cosine,
            min_learning_rate_ratio: 0.1,
            warmup_ratio: 0.0,
            optimizer: Optimizer::AdamW,
            batch_size: 64,
            max_length: 32_768,
            over_length: OverLength::Drop,
            on_untrainable: OnBad::Drop,
            packing: true,
            pack_length: None,
            train_on: TrainOn::Last,
            shuffle: true,
            weight_decay: 0.0,
            betas: [0.9, 0.95],
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            recompute: Recompute::Auto,
            checkpoint_every_steps: 100,
            keep_checkpoints: 2,
        }
    }
}

/// Shape of the learning rate after the warmup.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    #[default]
    Cosine,
    Linear,
    Constant,
}

/// How weights are updated.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum Optimizer {
    /// States in f32, 8 bytes a trained weight.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// States in 8 bits, block by block (arXiv 2110.02861): 2 bytes a trained weight. Embeddings and small tensors keep
    /// theirs in f32.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
}

impl Optimizer {
    /// What a plan does not say: plans from before there was a choice stay what they were.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens to a sequence over `max_length`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OverLength {
    #[default]
    Drop,
    Truncate,
    Error,
}

/// Whose tokens are trained.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// The last assistant turn.
    #[default]
    Last,
    /// Every assistant turn.
    All,
}

/// Which activations are computed again in the backward pass.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// The first of the others that fits into the device's memory.
    #[default]
    Auto,
    None,
    /// A block's input and the output of its attention are kept, the rest is computed again.
    KeepAttention,
    /// A block's inputs are kept, the rest is computed again.
    Block,
    /// The same, and the inputs wait in the memory of the host.
    Offload,
}

impl Recompute {
    /// As recipes say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::KeepAttention => "keep_attention",
            Self::Block => "block",
            Self::Offload => "offload",
        }
    }
}

/// `[eval]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Names of shipped suites or paths of suite files.
    pub suites: Vec<String>,
    /// Evaluate the student before training as well.
    #[serde(default)]
    pub before: bool,
    /// Samples a problem in place of the suite's.
    #[serde(default)]
    pub num_samples: Option<usize>,
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

fn default_seed() -> u64 {
    42
}
fn default_device() -> String {
    "auto".into()
}
fn default_split() -> String {
    "train".into()
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_positions() -> usize {
    32_768
}
fn default_eval_batch() -> usize {
    32
}
fn yes() -> bool {
    true
}
