//! What a recipe of `[[stage]]`s means: every stage with its defaults, its student and the earlier stages it starts from.
//!
//! A stage may only name earlier ones, so there are no cycles, and running them in order is enough. The form resolved here
//! is saved as `plan.json` and hashed into the stages' keys.
//!
//! A kind is added in four places: its settings in [`StageRecipe`], its variant of [`Job`] and its arm in `Resolver::jobs`
//! here, and its function in `pipeline/`, with its arms in `pipeline::graph`. What is checked of a stage by itself is in
//! `super::stage_check`.

use super::card::Card;
use super::grpo::Grpo;
use super::load::{Document, closest};
use super::plan::{self, EvalPlan, Plan, SftPlan, StageKind, StudentPlan, in_range};
use super::preference::Preference;
use super::publish::{self, Publish};
use super::reward::RewardTable;
use super::reward_model::{RewardLoss, RewardModelTable};
use super::select::Select;
use super::stage::{Kind, Leaves, PipelineRecipe, Prompts, SamplingTable, Sources, StageRecipe};
use super::stage_check::{
    asked_while_learning, check_prompts, check_sampling, check_stage_name, check_tables,
    evaluations, needed,
};
use super::{Recompute, Traces};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a recipe turned out to be.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Resolved {
    /// One student: data, training, evaluation.
    Student(Box<Plan>),
    /// A list of stages.
    Pipeline(Box<PipelinePlan>),
}

/// What a pipeline will do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PipelinePlan {
    pub name: String,
    pub seed: u64,
    pub device: String,
    /// What runs, in order.
    pub stages: Vec<StagePlan>,
    /// What the user should know about choices made for him.
    pub notes: Vec<String>,
    /// Where the result goes on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// One stage; its files are in `RUN/<name>/`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StagePlan {
    pub name: String,
    /// Of an evaluation of several suites or seeds, each of which is a stage: as the recipe calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    pub kind: Kind,
    pub seed: u64,
    /// The model it works with, where it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student: Option<StudentPlan>,
    /// The earlier stage whose weights it starts from; else those of `student`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub job: Job,
}

/// What a stage does, resolved.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    Sft {
        /// `source = "@stage"` is what that stage left.
        traces: Vec<Traces>,
        sft: SftPlan,
    },
    Generate {
        prompts: Vec<Prompts>,
        sampling: SamplingTable,
        rewards: Option<RewardTable>,
    },
    Select {
        /// `@stage` or files.
        samples: Vec<String>,
        select: Select,
        rewards: Option<RewardTable>,
        mix: Vec<Traces>,
    },
    Grpo {
        prompts: Vec<Prompts>,
        grpo: Box<Grpo>,
        rewards: RewardTable,
        /// Asked while it learns.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eval: Option<EvalPlan>,
    },
    RewardModel {
        sources: PairSources,
        table: Box<RewardModelTable>,
    },
    Preference {
        sources: PairSources,
        table: Box<Preference>,
    },
    /// One suite with one seed.
    Eval(EvalPlan),
}

/// Where pairs, or labelled answers, come from.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PairSources {
    /// `@stage`, which made some of samples, or files and data sets.
    pub pairs: Vec<String>,
    /// `@stage` or files; pairs are made of them.
    pub samples: Vec<String>,
    /// How samples without a verdict or a reward get one.
    pub rewards: Option<RewardTable>,
}

impl Job {
    /// What is computed again in the backward pass, where something is trained.
    pub fn recompute(&self) -> Option<Recompute> {
        match self {
            Self::Sft { sft, .. } => Some(sft.recompute),
            Self::Grpo { grpo, .. } => Some(grpo.recompute),
            Self::RewardModel { table, .. } => Some(table.recompute),
            Self::Preference { table, .. } => Some(table.recompute),
            Self::Generate { .. } | Self::Select { .. } | Self::Eval(_) => None,
        }
    }

    /// Sets that.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        match self {
            Self::Sft { sft, .. } => sft.recompute = recompute,
            Self::Grpo { grpo, .. } => grpo.recompute = recompute,
            Self::RewardModel { table, .. } => table.recompute = recompute,
            Self::Preference { table, .. } => table.recompute = recompute,
            Self::Generate { .. } | Self::Select { .. } | Self::Eval(_) => {}
        }
    }

    /// The rewards that the stage asks for.
    pub fn rewards(&self) -> Option<&RewardTable> {
        match self {
            Self::Generate { rewards, .. } | Self::Select { rewards, .. } => rewards.as_ref(),
            Self::RewardModel { sources, .. } | Self::Preference { sources, .. } => {
                sources.rewards.as_ref()
            }
            Self::Grpo { rewards, .. } => Some(rewards),
            Self::Sft { .. } | Self::Eval(_) => None,
        }
    }
}

impl StagePlan {
    /// The earlier stages it starts from, in no particular order.
    pub fn inputs(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.model.as_deref().into_iter().collect();
        let named: Vec<&str> = match &self.job {
            Job::Sft { traces, .. } => traces.iter().map(|t| t.source.as_str()).collect(),
            Job::Select { samples, mix, .. } => {
                let mixed = mix.iter().map(|t| t.source.as_str());
                samples.iter().map(String::as_str).chain(mixed).collect()
            }
            Job::Generate { prompts, .. } | Job::Grpo { prompts, .. } => {
                prompts.iter().map(|p| p.source.as_str()).collect()
            }
            Job::RewardModel { sources, .. } | Job::Preference { sources, .. } => {
                let all = sources.pairs.iter().chain(&sources.samples);
                all.map(String::as_str).collect()
            }
            Job::Eval(_) => Vec::new(),
        };
        let scorers = self.job.rewards().into_iter().flat_map(RewardTable::models);
        let named = named.into_iter().chain(scorers);
        all.extend(
            named
                .into_iter()
                .filter_map(|source| source.strip_prefix('@')),
        );
        all
    }

    /// The student of a stage that works with a model.
    ///
    /// # Errors
    /// It has none.
    pub fn student(&self) -> Result<&StudentPlan> {
        let none = || Error::input(format!("stage `{}` has no model", self.name));
        self.student.as_ref().ok_or_else(none)
    }
}

impl PipelinePlan {
    /// The stage called `name`.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// An SFT stage as the plan of a run of its own.
    ///
    /// # Errors
    /// A stage of another kind.
    pub fn sft(&self, stage: &StagePlan) -> Result<Plan> {
        let Job::Sft { traces, sft } = &stage.job else {
            return Err(Error::input(format!(
                "stage `{}` is of kind `{}` and learns from no traces",
                stage.name,
                stage.kind.name()
            )));
        };
        Ok(Plan {
            name: stage.name.clone(),
            seed: stage.seed,
            device: self.device.clone(),
            student: stage.student()?.clone(),
            traces: traces.clone(),
            sft: sft.clone(),
            eval: None,
            stages: vec![plan::Stage {
                name: stage.name.clone(),
                kind: StageKind::Sft,
                suite: None,
            }],
            notes: Vec::new(),
            publish: None,
        })
    }
}

/// Resolves either form of recipe.
///
/// # Errors
/// As [`plan::resolve`] and [`resolve`].
pub fn resolve_document(document: &Document) -> Result<Resolved> {
    match document {
        Document::Student(recipe) => {
            plan::resolve(recipe).map(|plan| Resolved::Student(Box::new(plan)))
        }
        Document::Pipeline(recipe) => {
            resolve(recipe).map(|plan| Resolved::Pipeline(Box::new(plan)))
        }
    }
}

/// Applies cards, defaults and checks, and resolves what stages start from.
///
/// # Errors
/// A value out of range, a name that is taken or unknown, a table that the stage's kind does not have, a card or suite that
/// does not exist, a feature this version does not have.
pub fn resolve(recipe: &PipelineRecipe) -> Result<PipelinePlan> {
    plan::check_name(&recipe.name)?;
    if recipe.stages.is_empty() {
        return Err(Error::input("the recipe has no `[[stage]]`")
            .with_hint("add `[[stage]]` with `name = ...` and `kind = ...`"));
    }
    for (i, stage) in recipe.stages.iter().enumerate() {
        check_stage_name(&stage.name)?;
        if recipe.stages[..i].iter().any(|s| s.name == stage.name) {
            return Err(
                Error::input(format!("two stages are called `{}`", stage.name))
                    .with_hint("the name is the stage's folder: give one of them another"),
            );
        }
    }
    let mut resolver = Resolver {
        recipe,
        done: Vec::new(),
        notes: Vec::new(),
    };
    for (i, stage) in recipe.stages.iter().enumerate() {
        let at = |e: Error| e.at(format!("stage `{}`", stage.name));
        resolver.stage(i, stage).map_err(at)?;
    }
    let Resolver {
        done, mut notes, ..
    } = resolver;
    let mut seen = std::collections::HashSet::new();
    notes.retain(|note| seen.insert(note.clone()));
    if let Some(publish) = &recipe.publish {
        publish::check_stages(publish, &done)?;
    }
    let stages: Vec<StagePlan> = done.into_iter().map(|(stage, _)| stage).collect();
    for (i, stage) in stages.iter().enumerate() {
        if stages[..i].iter().any(|other| other.name == stage.name) {
            return Err(Error::input(format!(
                "two stages are called `{}`, as an evaluation of several suites or seeds has one stage for each",
                stage.name
            ))
            .with_hint("give one of them another name"));
        }
    }
    Ok(PipelinePlan {
        name: recipe.name.clone(),
        seed: recipe.seed,
        device: recipe.device.clone(),
        stages,
        notes,
        publish: recipe.publish.clone(),
    })
}

/// The stages while they are resolved, one after the other.
pub(super) struct Resolver<'a> {
    pub(super) recipe: &'a PipelineRecipe,
    /// With the card of the student.
    done: Vec<(StagePlan, Option<Card>)>,
    pub(super) notes: Vec<String>,
}

impl Resolver<'_> {
    fn stage(&mut self, number: usize, stage: &StageRecipe) -> Result<()> {
        check_tables(stage)?;
        for model in stage.rewards.iter().flat_map(RewardTable::models) {
            self.earlier(number, "rewards.model", model, Leaves::RewardModel)?;
        }
        let (student, model, card) = match stage.kind {
            Kind::Select => (None, None, None),
            _ => {
                let (student, model, card) = self.student(number, stage)?;
                (Some(student), model, card)
            }
        };
        let jobs = self.jobs(number, stage, card.as_ref())?;
        for (suffix, seed, job) in jobs {
            self.done.push((
                StagePlan {
                    name: format!("{}{suffix}", stage.name),
                    part_of: (!suffix.is_empty()).then(|| stage.name.clone()),
                    kind: stage.kind,
                    seed,
                    student: student.clone(),
                    model: model.clone(),
                    job,
                },
                card.clone(),
            ));
        }
        Ok(())
    }

    /// What the stage does; an evaluation of several suites or seeds is a stage for each, told apart by a suffix.
    fn jobs(
        &self,
        number: usize,
        stage: &StageRecipe,
        card: Option<&Card>,
    ) -> Result<Vec<(String, u64, Job)>> {
        let seed = stage.seed.unwrap_or(self.recipe.seed);
        let one = |job| Ok(vec![(String::new(), seed, job)]);
        match stage.kind {
            Kind::Sft => {
                let traces = self.traces(number, stage)?;
                let sft = plan::resolve_sft(&stage.sft.clone().unwrap_or_default(), card)?;
                one(Job::Sft { traces, sft })
            }
            Kind::Generate => one(self.generate(number, stage)?),
            Kind::Select => one(self.select(number, stage)?),
            Kind::Eval => evaluations(stage, seed),
            Kind::Grpo => one(self.grpo(number, stage)?),
            Kind::RewardModel => {
                let table = Box::new(stage.reward_model.clone().unwrap_or_default());
                table.check()?;
                if table.loss == RewardLoss::Pointwise && stage.samples.is_some() {
                    return Err(Error::input("`samples` are made into pairs, and `reward_model.loss = \"pointwise\"` learns from labelled answers")
                        .with_hint("give `pairs` with rows of `completion` and `label`"));
                }
                let sources = self.pairs(number, stage)?;
                one(Job::RewardModel { sources, table })
            }
            Kind::Preference => {
                let table = Box::new(stage.preference.clone().unwrap_or_default());
                table.check()?;
                let sources = self.pairs(number, stage)?;
                one(Job::Preference { sources, table })
            }
        }
    }

    /// The earlier stage that `text` names, which must leave `wanted`; none where it names no stage.
    pub(super) fn earlier(
        &self,
        number: usize,
        key: &str,
        text: &str,
        wanted: Leaves,
    ) -> Result<Option<&(StagePlan, Option<Card>)>> {
        let Some(name) = text.strip_prefix('@') else {
            return Ok(None);
        };
        let stages = &self.recipe.stages;
        let Some(at) = stages.iter().position(|stage| stage.name == name) else {
            let names = stages[..number].iter().map(|stage| stage.name.as_str());
            let hint = match (closest(name, names.clone()), names.clone().next()) {
                (Some(near), _) => format!("did you mean `@{near}`?"),
                (None, None) => "it is the first stage: there is nothing to start from".into(),
                (None, Some(_)) => format!(
                    "the stages before it are {}",
                    names
                        .map(|n| format!("`@{n}`"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            };
            return Err(
                Error::input(format!("`{key} = \"@{name}\"`: no such stage")).with_hint(hint),
            );
        };
        if at >= number {
            let what = match at == number {
                true => "is the stage itself",
                false => "comes later",
            };
            return Err(Error::input(format!("`{key} = \"@{name}\"` {what}")).with_hint(
                "a stage may only start from earlier ones, so that there are no cycles: change the order of the stages",
            ));
        }
        let kind = stages[at].kind;
        let made_pairs = wanted == Leaves::Pairs
            && matches!(kind, Kind::RewardModel | Kind::Preference)
            && stages[at].samples.is_some();
        if kind.leaves() != Some(wanted) && !made_pairs {
            let leaves = match kind.leaves() {
                Some(leaves) => format!("leaves {}, not {}", leaves.name(), wanted.name()),
                None => format!("leaves no {}", wanted.name()),
            };
            let hint = match (kind, wanted) {
                (Kind::Generate, Leaves::Traces) => {
                    "put a `select` stage between, which says what of the samples is learnt".into()
                }
                _ => format!("name a stage of kind {}", wanted.kinds()),
            };
            return Err(Error::input(format!(
                "`{key} = \"@{name}\"`: stage `{name}` is of kind `{}` and {leaves}",
                kind.name()
            ))
            .with_hint(hint));
        }
        Ok(self.done.iter().find(|(stage, _)| stage.name == name))
    }

    fn traces(&self, number: usize, stage: &StageRecipe) -> Result<Vec<Traces>> {
        let traces = needed(&stage.traces, "traces", stage)?;
        let of_stages = traces.0.iter().any(|t| t.source.starts_with('@'));
        for one in &traces.0 {
            self.earlier(number, "traces", &one.source, Leaves::Traces)?;
            let Some(weight) = one.weight else { continue };
            in_range("traces.weight", weight, f64::MIN_POSITIVE, f64::MAX)?;
            if !of_stages || one.source.starts_with('@') {
                return Err(Error::input(format!(
                    "`traces`: `weight` of `{}` has nothing to be weighed against",
                    one.source
                ))
                .with_hint("a weight is the number of traces for each one of `@stage`; use `limit` for a number"));
            }
        }
        Ok(traces.0.clone())
    }

    /// What `generate` and `grpo` ask.
    fn prompts(&self, number: usize, stage: &StageRecipe) -> Result<Vec<Prompts>> {
        let prompts = needed(&stage.prompts, "prompts", stage)?;
        for one in &prompts.0 {
            check_prompts(one)?;
            self.earlier(number, "prompts", &one.source, Leaves::Traces)?;
        }
        Ok(prompts.0.clone())
    }

    fn generate(&self, number: usize, stage: &StageRecipe) -> Result<Job> {
        let prompts = self.prompts(number, stage)?;
        let sampling = stage.sampling.clone().unwrap_or_default();
        check_sampling(&sampling)?;
        Ok(Job::Generate {
            prompts,
            sampling,
            rewards: stage.rewards.clone(),
        })
    }

    fn grpo(&self, number: usize, stage: &StageRecipe) -> Result<Job> {
        let prompts = self.prompts(number, stage)?;
        let grpo = Box::new(Grpo::from_table(stage.grpo.as_ref())?);
        let Some(rewards) = stage.rewards.clone() else {
            return Err(
                Error::input("a stage of kind `grpo` needs `rewards`").with_hint(
                    "add `rewards = \"r1\"`, or `[[stage.rewards]]` with `name = \"accuracy\"`",
                ),
            );
        };
        grpo.check_rewards(&rewards)?;
        let eval = asked_while_learning(stage)?;
        if eval.is_some() != (grpo.eval_every_steps > 0) {
            return Err(
                Error::input("`[stage.eval]` and `grpo.eval_every_steps` need each other")
                    .with_hint(
                        "say both which suites are asked and after how many updates, or neither",
                    ),
            );
        }
        Ok(Job::Grpo {
            prompts,
            grpo,
            rewards,
            eval,
        })
    }

    /// What `reward-model` and `preference` learn from.
    fn pairs(&self, number: usize, stage: &StageRecipe) -> Result<PairSources> {
        let all = |sources: &Option<Sources<String>>| {
            let sources = sources.as_ref().map(|sources| sources.0.clone());
            sources.unwrap_or_default()
        };
        let sources = PairSources {
            pairs: all(&stage.pairs),
            samples: all(&stage.samples),
            rewards: stage.rewards.clone(),
        };
        for one in &sources.pairs {
            self.earlier(number, "pairs", one, Leaves::Pairs)?;
        }
        for one in &sources.samples {
            self.earlier(number, "samples", one, Leaves::Samples)?;
        }
        if sources.samples.is_empty() {
            needed(&stage.pairs, "pairs", stage)?;
            if sources.rewards.is_some() {
                return Err(
                    Error::input("`rewards` mean nothing to pairs that are made already")
                        .with_hint("they score `samples`"),
                );
            }
        }
        Ok(sources)
    }

    fn select(&self, number: usize, stage: &StageRecipe) -> Result<Job> {
        let samples = needed(&stage.samples, "samples", stage)?.0.clone();
        for one in &samples {
            self.earlier(number, "samples", one, Leaves::Samples)?;
        }
        let select = stage.select.clone().unwrap_or_default();
        select.check()?;
        let mix = stage.mix.clone().map(|mix| mix.0).unwrap_or_default();
        for one in &mix {
            if let Some(weight) = one.weight {
                in_range("mix.weight", weight, f64::MIN_POSITIVE, f64::MAX)?;
            }
            if one.source.starts_with('@') {
                self.earlier(number, "mix", &one.source, Leaves::Traces)?;
            }
        }
        Ok(Job::Select {
            samples,
            select,
            rewards: stage.rewards.clone(),
            mix,
        })
    }
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
