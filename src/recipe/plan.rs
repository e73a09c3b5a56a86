//! The resolved plan: a recipe with every default, card and check applied. Stages see only this form; it is saved with
//! the run as `plan.json`, and hashed into the stages' keys.

use super::card::Card;
use super::publish::{self, Publish};
use super::suite::Suite;
use super::{
    Dtype, Eval, Init, Lora, Method, OnBad, Optimizer, OverLength, Recipe, Recompute, ScheduleKind,
    Sft, Student, Traces, TrainOn, load,
};
use crate::ops::PackedAs;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a run will do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    pub name: String,
    pub seed: u64,
    pub device: String,
    pub student: StudentPlan,
    pub traces: Vec<Traces>,
    pub sft: SftPlan,
    #[serde(default)]
    pub eval: Option<EvalPlan>,
    /// What runs, in order.
    pub stages: Vec<Stage>,
    /// What the user should know about choices made for him.
    pub notes: Vec<String>,
    /// Where the result goes on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// One step of the run; its files are in `RUN/<name>/`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Stage {
    pub name: String,
    pub kind: StageKind,
    /// The suite of an evaluation: its place in [`EvalPlan::suites`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<usize>,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum StageKind {
    /// Traces to the token store.
    Data,
    /// A suite on the student as it was.
    EvalBefore,
    /// Supervised fine-tuning.
    Sft,
    /// A suite on the result.
    Eval,
}

/// The student, with the card's values filled in.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StudentPlan {
    pub source: StudentSource,
    pub card: Option<String>,
    /// Shape for planning without network.
    pub family: Option<String>,
    pub method: Method,
    /// What the method trains beside frozen weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterPlan>,
    pub dtype: Dtype,
    /// File, or name under `models/templates`.
    pub chat_template: Option<String>,
    pub rope_theta: Option<f64>,
    pub max_position_embeddings: Option<usize>,
}

impl StudentPlan {
    /// Takes over what a later stage's own table says of how the same student is trained and asked.
    ///
    /// # Errors
    /// As [`resolve_adapter`].
    pub(super) fn change(&mut self, own: &Student, card: Option<&Card>) -> Result<()> {
        if own.method.is_some() || own.lora.is_some() {
            self.method = own.method.unwrap_or(self.method);
            let (mut own, before) = (own.clone(), self.adapter.take());
            own.method = Some(self.method);
            own.compute_as(&Student {
                lora: before.map(|plan| Lora {
                    quant: plan.packed_as(),
                    rank: Some(plan.rank),
                    alpha: Some(plan.alpha),
                    target_modules: Some(plan.target_modules),
                    rslora: Some(plan.rslora),
                    stream: Some(plan.stream),
                }),
                ..Student::default()
            });
            self.adapter = resolve_adapter(self.method, own.lora.as_ref(), card)?;
        }
        self.dtype = own.dtype.unwrap_or(self.dtype);
        let template = own.chat_template.clone();
        self.chat_template = template.or(self.chat_template.take());
        self.rope_theta = own.rope_theta.or(self.rope_theta);
        let positions = own.max_position_embeddings;
        self.max_position_embeddings = positions.or(self.max_position_embeddings);
        Ok(())
    }
}

/// `[student.lora]` without options.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct AdapterPlan {
    pub rank: usize,
    pub alpha: f64,
    pub target_modules: Vec<String>,
    pub rslora: bool,
    pub dora: bool,
    /// Beside weights in 4-bit NormalFloat.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nf4: bool,
    /// Beside weights in another format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<PackedAs>,
    /// Frozen projections are copied to the device for each use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
}

impl AdapterPlan {
    /// What the frozen projections are kept as, where they are quantised.
    pub fn packed_as(&self) -> Option<PackedAs> {
        self.quant.or(self.nf4.then_some(PackedAs::Nf4))
    }
}

/// Where the first weights come from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StudentSource {
    Hub { repo: String, revision: String },
    Folder(String),
    Random(Init),
}

/// `[sft]` without options.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct SftPlan {
    pub epochs: usize,
    pub max_steps: Option<usize>,
    pub learning_rate: f64,
    pub schedule: ScheduleKind,
    pub min_learning_rate_ratio: f64,
    pub warmup_ratio: f64,
    #[serde(default, skip_serializing_if = "Optimizer::is_default")]
    pub optimizer: Optimizer,
    pub batch_size: usize,
    pub max_length: usize,
    pub over_length: OverLength,
    pub on_untrainable: OnBad,
    pub packing: bool,
    pub pack_length: usize,
    pub train_on: TrainOn,
    pub shuffle: bool,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub adam_epsilon: f64,
    pub max_grad_norm: f64,
    pub recompute: Recompute,
    pub checkpoint_every_steps: usize,
    pub keep_checkpoints: usize,
}

/// `[eval]` with its suites read.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EvalPlan {
    pub suites: Vec<Suite>,
    pub before: bool,
    pub limit: Option<usize>,
    pub batch_size: usize,
}

/// Applies cards, defaults and checks.
///
/// # Errors
/// A value out of range, a card or suite that does not exist, a feature this version does not have.
pub fn resolve(recipe: &Recipe) -> Result<Plan> {
    check_name(&recipe.name)?;
    if recipe.traces.is_empty() {
        return Err(Error::input("the recipe has no `[[traces]]`")
            .with_hint("add `[[traces]]` with `source = ...`"));
    }
    let mut notes = Vec::new();
    if let Some(traces) = recipe.traces.iter().find(|t| t.weight.is_some()) {
        return Err(Error::input(format!(
            "`weight` of `[[traces]]` `{}` has nothing to be weighed against",
            traces.source
        ))
        .with_hint("use `limit`; weights belong to `[[stage.mix]]`"));
    }
    let (student, card) = resolve_student(&recipe.student, &mut notes)?;
    let sft = resolve_sft(&recipe.sft, card.as_ref())?;
    let eval = recipe.eval.as_ref().map(resolve_eval).transpose()?;
    let stages = stages(eval.as_ref());
    if let Some(publish) = &recipe.publish {
        publish::check(publish, card.as_ref(), Some(&student.source))?;
        if publish.stage.is_some() || publish.traces.is_some() {
            return Err(Error::input(
                "`publish.stage` and `[publish.traces]` are for recipes of several `[[stage]]`s",
            )
            .with_hint("a student's recipe publishes its one model"));
        }
    }
    Ok(Plan {
        name: recipe.name.clone(),
        seed: recipe.seed,
        device: recipe.device.clone(),
        student,
        traces: recipe.traces.clone(),
        sft,
        eval,
        stages,
        notes,
        publish: recipe.publish.clone(),
    })
}

/// `[eval]` with its suites read and changed.
pub(super) fn resolve_eval(e: &Eval) -> Result<EvalPlan> {
    let mut suites = Vec::new();
    for name in &e.suites {
        let mut suite = Suite::load(name)?;
        if let Some(k) = e.num_samples {
            suite.sampling.k = k;
        }
        if let Some(n) = e.max_new_tokens {
            suite.sampling.max_new_tokens = n;
        }
        suite.check()?;
        if suites.iter().any(|other: &Suite| other.name == suite.name) {
            return Err(
                Error::input(format!("two suites are called `{}`", suite.name))
                    .with_hint("give one of them another `name`"),
            );
        }
        suites.push(suite);
    }
    if let Some(limit) = e.limit {
        at_least("eval.limit", limit, 1)?;
    }
    at_least("eval.batch_size", e.batch_size, 1)?;
    Ok(EvalPlan {
        suites,
        before: e.before,
        limit: e.limit,
        batch_size: e.batch_size,
    })
}

fn stages(eval: Option<&EvalPlan>) -> Vec<Stage> {
    let stage = |name: &str, kind| Stage {
        name: name.to_string(),
        kind,
        suite: None,
    };
    // one suite keeps the plain name, several carry the suite's
    let suites = |prefix: &str, kind| -> Vec<Stage> {
        let Some(eval) = eval else { return Vec::new() };
        let several = eval.suites.len() > 1;
        eval.suites
            .iter()
            .enumerate()
            .map(|(i, s)| Stage {
                name: if several {
                    format!("{prefix}-{}", s.name)
                } else {
                    prefix.to_string()
                },
                kind,
                suite: Some(i),
            })
            .collect()
    };
    let mut all = vec![stage("data", StageKind::Data)];
    if eval.is_some_and(|e| e.before) {
        all.extend(suites("eval-before", StageKind::EvalBefore));
    }
    all.push(stage("sft", StageKind::Sft));
    all.extend(suites("eval", StageKind::Eval));
    all
}

pub(super) fn resolve_student(
    student: &Student,
    notes: &mut Vec<String>,
) -> Result<(StudentPlan, Option<Card>)> {
    let method = student.method.unwrap_or_default();
    let (source, card) = match (&student.model, &student.init) {
        (Some(_), Some(_)) => {
            return Err(Error::input("`[student]` has both `model` and `[student.init]`")
                .with_hint("keep `model` to start from a checkpoint, `[student.init]` to start from random weights"));
        }
        (None, None) => {
            return Err(
                Error::input("`[student]` has neither `model` nor `[student.init]`")
                    .with_hint("add `model = \"qwen2.5-math-1.5b\"`, a Hub repo or a folder"),
            );
        }
        (None, Some(init)) => (StudentSource::Random(init.clone()), None),
        (Some(model), None) => model_source(model)?,
    };
    if let Some(note) = card.as_ref().and_then(|c| c.rope_note.clone())
        && student.rope_theta.is_none()
    {
        notes.push(note);
    }
    let adapter = resolve_adapter(method, student.lora.as_ref(), card.as_ref())?;
    if adapter.is_some() && matches!(source, StudentSource::Random(_)) {
        return Err(
            Error::input("adapters beside random weights that stay frozen learn little").with_hint(
                "train these weights with `method = \"full\"`; a later stage may have `[stage.student]` with `method = \"lora\"`",
            ),
        );
    }
    let plan = StudentPlan {
        source,
        adapter,
        family: card.as_ref().map(|c| c.family.clone()),
        method,
        dtype: student.dtype.unwrap_or_default(),
        chat_template: student
            .chat_template
            .clone()
            .or_else(|| card.as_ref().and_then(|c| c.chat_template.clone())),
        rope_theta: student
            .rope_theta
            .or_else(|| card.as_ref().and_then(|c| c.rope_theta)),
        max_position_embeddings: student
            .max_position_embeddings
            .or_else(|| card.as_ref().and_then(|c| c.max_position_embeddings)),
        card: card.as_ref().map(|c| c.name.clone()),
    };
    Ok((plan, card))
}

/// Every projection of a block.
pub const PROJECTIONS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// The adapters that `method` asks for.
///
/// # Errors
/// A table without a use, a rank of 0, a name that is no projection.
pub(super) fn resolve_adapter(
    method: Method,
    lora: Option<&Lora>,
    card: Option<&Card>,
) -> Result<Option<AdapterPlan>> {
    match method {
        Method::Full => {
            return match lora {
                None => Ok(None),
                Some(_) => Err(Error::input(
                    "`[student.lora]` has no effect: `student.method` is `full`",
                )
                .with_hint("set `method` to `lora`, `dora` or `qlora`, or leave the table out")),
            };
        }
        Method::Lora | Method::Dora | Method::Qlora => {}
    }
    let lora = lora.cloned().unwrap_or_default();
    if let (Some(quant), false) = (lora.quant, method == Method::Qlora) {
        return Err(Error::input(format!(
            "`student.lora.quant = \"{}\"` has no effect: `student.method` is not `qlora`",
            quant.name()
        ))
        .with_hint("set `student.method = \"qlora\"`, or leave `quant` out"));
    }
    let quant = lora.quant.unwrap_or(PackedAs::Nf4);
    let plan = AdapterPlan {
        rank: lora.rank.unwrap_or(16),
        alpha: lora.alpha.unwrap_or(32.0),
        target_modules: lora
            .target_modules
            .or_else(|| card.map(|card| card.lora_targets.clone()))
            .unwrap_or_else(|| PROJECTIONS.map(str::to_string).to_vec()),
        rslora: lora.rslora.unwrap_or(false),
        dora: method == Method::Dora,
        nf4: method == Method::Qlora && quant == PackedAs::Nf4,
        quant: Some(quant).filter(|q| method == Method::Qlora && *q != PackedAs::Nf4),
        stream: lora.stream.unwrap_or(false),
    };
    if plan.rank == 0 || plan.alpha <= 0.0 || !plan.alpha.is_finite() {
        return Err(Error::input(format!(
            "`student.lora` has `rank = {}` and `alpha = {}`: both must be above 0",
            plan.rank, plan.alpha
        ))
        .with_hint("the defaults are 16 and 32"));
    }
    let targets = &plan.target_modules;
    let unknown = targets.iter().find(|t| !PROJECTIONS.contains(&t.as_str()));
    if unknown.is_some() || targets.is_empty() {
        let name = unknown.map_or("nothing", String::as_str);
        return Err(
            Error::input(format!("`student.lora.target_modules` names {name}"))
                .with_hint(format!("projections: {}", PROJECTIONS.join(", "))),
        );
    }
    Ok(Some(plan))
}

/// What a `model =` or `--model` means: a folder, a card's name, or `org/name[@revision]`.
///
/// # Errors
/// A name that is none of the three.
pub fn model_source(model: &str) -> Result<(StudentSource, Option<Card>)> {
    if Path::new(model).is_dir() {
        return Ok((StudentSource::Folder(model.to_string()), None));
    }
    let looks_like_path = model.starts_with(['.', '/', '~']) || model.matches('/').count() > 1;
    if looks_like_path && !model.ends_with(".toml") {
        return Err(Error::input(format!("no folder `{model}`")).with_hint(
            "a local model is a folder with `config.json`, `tokenizer.json` and `*.safetensors`",
        ));
    }
    if model.matches('/').count() == 1 && !model.ends_with(".toml") {
        let (repo, revision) = model.split_once('@').unwrap_or((model, "main"));
        return Ok((
            StudentSource::Hub {
                repo: repo.to_string(),
                revision: revision.to_string(),
            },
            None,
        ));
    }
    let card = Card::load(model)?;
    let source = StudentSource::Hub {
        repo: card.repo.clone(),
        revision: card.revision.clone(),
    };
    Ok((source, Some(card)))
}

pub(super) fn resolve_sft(sft: &Sft, card: Option<&Card>) -> Result<SftPlan> {
    let learning_rate = sft.learning_rate.or(card.map(|c| c.learning_rate)).ok_or_else(|| {
        Error::input("`sft.learning_rate` is missing, and the student has no card that knows it")
            .with_hint("add `learning_rate = 1e-5` or so to `[sft]`; the paper's students use 1e-4 (1.5B) to 2e-5 (70B)")
    })?;
    at_least("sft.epochs", sft.epochs, 1)?;
    at_least("sft.batch_size", sft.batch_size, 1)?;
    at_least("sft.max_length", sft.max_length, 2)?;
    at_least("sft.checkpoint_every_steps", sft.checkpoint_every_steps, 1)?;
    at_least("sft.keep_checkpoints", sft.keep_checkpoints, 1)?;
    if let Some(n) = sft.max_steps {
        at_least("sft.max_steps", n, 1)?;
    }
    let pack_length = sft.pack_length.unwrap_or(sft.max_length);
    at_least("sft.pack_length", pack_length, sft.max_length).map_err(|e| {
        e.with_hint("the longest sequence must fit into a pack: raise it or lower `max_length`")
    })?;
    in_range("sft.learning_rate", learning_rate, f64::MIN_POSITIVE, 1e3)?;
    in_range(
        "sft.min_learning_rate_ratio",
        sft.min_learning_rate_ratio,
        0.0,
        1.0,
    )?;
    in_range("sft.warmup_ratio", sft.warmup_ratio, 0.0, 1.0)?;
    in_range("sft.weight_decay", sft.weight_decay, 0.0, 1e3)?;
    in_range("sft.betas.0", sft.betas[0], 0.0, 1.0 - 1e-9)?;
    in_range("sft.betas.1", sft.betas[1], 0.0, 1.0 - 1e-9)?;
    in_range("sft.adam_epsilon", sft.adam_epsilon, 1e-30, 1.0)?;
    in_range("sft.max_grad_norm", sft.max_grad_norm, 0.0, f64::MAX)?;
    Ok(SftPlan {
        epochs: sft.epochs,
        max_steps: sft.max_steps,
        learning_rate,
        schedule: sft.schedule,
        min_learning_rate_ratio: sft.min_learning_rate_ratio,
        warmup_ratio: sft.warmup_ratio,
        optimizer: sft.optimizer,
        batch_size: sft.batch_size,
        max_length: sft.max_length,
        over_length: sft.over_length,
        on_untrainable: sft.on_untrainable,
        packing: sft.packing,
        pack_length,
        train_on: sft.train_on,
        shuffle: sft.shuffle,
        weight_decay: sft.weight_decay,
        betas: sft.betas,
        adam_epsilon: sft.adam_epsilon,
        max_grad_norm: sft.max_grad_norm,
        recompute: sft.recompute,
        checkpoint_every_steps: sft.checkpoint_every_steps,
        keep_checkpoints: sft.keep_checkpoints,
    })
}

pub(super) fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if fine {
        return Ok(());
    }
    Err(
        Error::input(format!("`name = \"{name}\"` cannot name a folder"))
            .with_hint("use letters, digits, `-`, `_` and `.`"),
    )
}

pub(super) fn at_least(key: &str, value: usize, least: usize) -> Result<()> {
    if value >= least {
        return Ok(());
    }
    Err(Error::input(format!(
        "`{key} = {value}` must be at least {least}"
    )))
}

pub(super) fn in_range(key: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if value >= least && value <= most {
        return Ok(());
    }
    // the smallest positive number and the largest have 300 digits
    let least = match least == f64::MIN_POSITIVE {
        true => "be above 0".to_string(),
        false => format!("be at least {least}"),
    };
    let most = match most == f64::MAX {
        true => "finite".to_string(),
        false => format!("at most {most}"),
    };
    Err(Error::input(format!(
        "`{key} = {value:?}` must {least} and {most}"
    )))
}

/// Parses a recipe's text and resolves it, for tests and tools.
pub fn from_text(text: &str, origin: &str, sets: &[String]) -> Result<Plan> {
    resolve(&load::parse::<Recipe>(text, origin, sets)?)
}
