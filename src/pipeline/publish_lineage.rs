//! What a published model comes from, read from its run folder: the stages that led to it, what each learned from, at which
//! commits, with which settings, and the evaluations of it. Stages of the same run that have no part in it are left out.

use super::commits::Commits;
use super::folder::read_json;
use crate::ops::PackedAs;
use crate::recipe::Traces;
use crate::recipe::card::Card;
use crate::recipe::graph::{Job, PipelinePlan};
use crate::recipe::plan::{Plan, StageKind, StudentPlan, StudentSource};
use crate::recipe::publish::Publish;
use crate::recipe::stage::Leaves;
use crate::recipe::suite::Suite;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The plan of a run, of either form.
pub enum RunPlan {
    Student(Box<Plan>),
    Pipeline(Box<PipelinePlan>),
}

/// Where a model comes from.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Name of the run.
    pub run: String,
    /// The stage whose model, or traces, it is.
    pub stage: String,
    /// The models whose weights or outputs are in it; the first is the one that was trained.
    pub bases: Vec<Base>,
    /// The first base was trained; else all of them only wrote what was learnt from, or is published.
    pub has_weights: bool,
    /// Models that judged what was learnt from, on an endpoint or in a folder.
    pub judges: Vec<StudentSource>,
    /// What the frozen weights were quantised to while adapters were trained beside them.
    pub quant: Option<PackedAs>,
    /// What led to it, in order, the stage itself last.
    pub steps: Vec<Step>,
    pub evals: Vec<EvalStage>,
}

/// A model that something began with.
#[derive(Clone, Debug)]
pub struct Base {
    pub source: StudentSource,
    /// The commit, where it is known.
    pub commit: Option<String>,
    pub card: Option<Card>,
}

/// A stage that has a part in the result.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    /// As recipes call it.
    pub kind: &'static str,
    /// What it starts from, in words.
    pub from: Option<String>,
    pub sources: Vec<SourceUse>,
    /// It changed the weights of the result, and not only made what they learned from.
    pub is_own: bool,
    /// Key and value, without those that say nothing.
    pub settings: Vec<(String, String)>,
    /// Folders of the run with its counts.
    pub folders: Vec<String>,
}

/// What a stage read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceUse {
    /// Hub data set, file, `builtin:...` or `@stage`.
    pub source: String,
    pub config: Option<String>,
    pub split: String,
    /// The commit that was read, else what the recipe asks for.
    pub revision: Option<String>,
    /// It was read from the Hub, and not from a folder of that name.
    pub is_on_hub: bool,
}

/// An evaluation of the model, or of the one it began as.
#[derive(Clone, Debug)]
pub struct EvalStage {
    /// Folder of the run.
    pub folder: String,
    pub suite: Suite,
    /// Of the model before it was trained.
    pub before: bool,
}

impl RunPlan {
    /// The plan of the run in `root`.
    ///
    /// # Errors
    /// No run folder, or one of another version.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join("plan.json");
        let value: Value = read_json(&path)?;
        let is_pipeline = value["stages"][0].get("job").is_some();
        let plan = match is_pipeline {
            true => serde_json::from_value(value).map(|plan| Self::Pipeline(Box::new(plan))),
            false => serde_json::from_value(value).map(|plan| Self::Student(Box::new(plan))),
        };
        plan.map_err(|e| {
            Error::input(format!("`{}` cannot be read: {e}", path.display()))
                .with_hint("the run was made by another version: run its recipe again")
        })
    }

    /// `[publish]`
    pub fn publish(&self) -> Option<&Publish> {
        match self {
            Self::Student(plan) => plan.publish.as_ref(),
            Self::Pipeline(plan) => plan.publish.as_ref(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Student(plan) => &plan.name,
            Self::Pipeline(plan) => &plan.name,
        }
    }

    /// The last stage that leaves one of these, or the one of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn stage(&self, name: Option<&str>, leaves: &[Leaves]) -> Result<String> {
        let what = match leaves[0].name() {
            several if several.ends_with('s') => several.to_string(),
            one => format!("a {one}"),
        };
        let stages: Vec<(&str, Option<Leaves>)> = match self {
            Self::Student(plan) => plan
                .stages
                .iter()
                .map(|stage| {
                    let is_model = stage.kind == StageKind::Sft;
                    (stage.name.as_str(), is_model.then_some(Leaves::Model))
                })
                .collect(),
            Self::Pipeline(plan) => plan
                .stages
                .iter()
                .map(|stage| (stage.name.as_str(), stage.kind.leaves()))
                .collect(),
        };
        let fits = |left: Option<Leaves>| left.is_some_and(|left| leaves.contains(&left));
        let found = match name {
            Some(name) => stages
                .iter()
                .find(|(stage, left)| *stage == name && fits(*left)),
            // the first kind that is asked for goes before the others
            None => leaves.iter().find_map(|wanted| {
                let mut last_first = stages.iter().rev();
                last_first.find(|(_, left)| *left == Some(*wanted))
            }),
        };
        let names = || {
            let fitting = stages.iter().filter(|(_, left)| fits(*left));
            fitting
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        match (found, name) {
            (Some((stage, _)), _) => Ok(stage.to_string()),
            (None, Some(name)) => Err(Error::input(format!(
                "run `{}` has no stage `{name}` that leaves {what}",
                self.name()
            ))
            .with_hint(match names() {
                none if none.is_empty() => format!("no stage of it leaves {what}"),
                names => format!("those that do: {names}"),
            })),
            (None, None) => Err(Error::input(format!(
                "no stage of run `{}` leaves {what}",
                self.name()
            ))),
        }
    }

    /// What led to the result of `stage`.
    ///
    /// # Errors
    /// A damaged file of the run.
    pub fn lineage(&self, root: &Path, stage: &str) -> Result<Lineage> {
        match self {
            Self::Student(plan) => of_student(plan, root, stage),
            Self::Pipeline(plan) => of_stage(plan, root, stage),
        }
    }
}

fn of_student(plan: &Plan, root: &Path, stage: &str) -> Result<Lineage> {
    let of_kind = |kind| plan.stages.iter().filter(move |s| s.kind == kind);
    let data = of_kind(StageKind::Data).next().map_or("data", |s| &s.name);
    let saved: Value = read_json(&root.join("plan.json"))?;
    let commit = saved["student"]["identity"]["weights"]["commit"].as_str();
    let base = base(&plan.student, commit)?;
    let step = Step {
        name: stage.to_string(),
        kind: "sft",
        from: Some(in_words(&base)),
        sources: sources_of(&plan.traces, &root.join(data))?,
        is_own: true,
        settings: settings(&[
            ("seed", json!(plan.seed)),
            ("student", json!(plan.student)),
            ("traces", json!(plan.traces)),
            ("sft", json!(plan.sft)),
        ]),
        folders: vec![data.to_string(), stage.to_string()],
    };
    let suites = plan
        .eval
        .iter()
        .flat_map(|eval| &eval.suites)
        .collect::<Vec<_>>();
    let evals = plan.stages.iter().filter_map(|stage| {
        let before = match stage.kind {
            StageKind::EvalBefore => true,
            StageKind::Eval => false,
            StageKind::Data | StageKind::Sft => return None,
        };
        Some(EvalStage {
            folder: stage.name.clone(),
            suite: (*suites.get(stage.suite?)?).clone(),
            before,
        })
    });
    Ok(Lineage {
        run: plan.name.clone(),
        stage: stage.to_string(),
        quant: quant_of(&plan.student),
        bases: vec![base],
        has_weights: true,
        judges: Vec::new(),
        steps: vec![step],
        evals: evals.collect(),
    })
}

fn of_stage(plan: &PipelinePlan, root: &Path, name: &str) -> Result<Lineage> {
    // everything that it starts from, and what that starts from
    let mut part: BTreeSet<&str> = BTreeSet::from([name]);
    for stage in plan.stages.iter().rev() {
        if part.contains(stage.name.as_str()) {
            part.extend(stage.inputs());
        }
    }
    let mut own = BTreeSet::new();
    let mut next = Some(name);
    while let Some(stage) = next.filter(|name| own.insert(*name)) {
        next = plan.stage(stage).and_then(|stage| stage.model.as_deref());
    }
    let (mut steps, mut bases) = (Vec::new(), Vec::<Base>::new());
    let mut trained = None;
    let mut has_weights = false;
    let mut judges = Vec::new();
    let mut quant = None;
    for stage in plan
        .stages
        .iter()
        .filter(|s| part.contains(s.name.as_str()))
    {
        let dir = root.join(&stage.name);
        let mut from = stage.model.as_ref().map(|model| format!("stage `{model}`"));
        if let Some(student) = &stage.student {
            let inputs: Value = match dir.join("inputs.json") {
                path if path.exists() => read_json(&path)?,
                _ => Value::Null,
            };
            let commit = inputs["model"]["weights"]["commit"].as_str();
            if stage.model.is_none() {
                let base = base(student, commit)?;
                from = Some(in_words(&base));
                let is_known = |other: &Base| json!(other.source) == json!(base.source);
                if !bases.iter().any(is_known) {
                    bases.push(base);
                }
            }
            if stage.name == name {
                quant = quant_of(student);
                trained = Some(student);
                let left = stage.kind.leaves();
                has_weights = matches!(left, Some(Leaves::Model | Leaves::RewardModel));
            }
        }
        let scorers = stage.job.rewards().into_iter().flat_map(|r| r.models());
        let scorers = scorers.filter(|model| !model.starts_with('@'));
        judges.extend(scorers.map(|model| StudentSource::Folder(model.to_string())));
        judges_of(&json!(stage.job), &mut judges);
        let sources = match &stage.job {
            Job::Sft { traces, .. } | Job::Select { mix: traces, .. } => sources_of(traces, &dir)?,
            Job::Generate { prompts, .. } | Job::Grpo { prompts, .. } => {
                let commits = Commits::read(&dir)?;
                let one = |prompts: &crate::recipe::stage::Prompts| {
                    let asked = prompts.revision.as_deref();
                    SourceUse {
                        config: prompts.config.clone(),
                        split: prompts.split.clone(),
                        ..SourceUse::of(&commits, &prompts.source, asked)
                    }
                };
                prompts.iter().map(one).collect()
            }
            Job::RewardModel { sources, .. } | Job::Preference { sources, .. } => {
                let commits = Commits::read(&dir)?;
                let one = |source: &String| SourceUse::of(&commits, source, None);
                sources
                    .pairs
                    .iter()
                    .chain(&sources.samples)
                    .map(one)
                    .collect()
            }
            Job::Eval(_) => Vec::new(),
        };
        let job = json!(stage.job);
        // the one table that the job is
        let job = job.as_object().and_then(|map| map.values().next().cloned());
        let mut tables = vec![("seed".to_string(), json!(stage.seed))];
        if stage.model.is_none() {
            tables.push(("student".into(), json!(stage.student)));
        }
        tables.extend(
            job.as_ref()
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let tables: Vec<(&str, Value)> = tables
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        steps.push(Step {
            name: stage.name.clone(),
            kind: stage.kind.name(),
            from,
            sources,
            is_own: own.contains(stage.name.as_str()),
            settings: settings(&tables),
            folders: vec![stage.name.clone()],
        });
    }
    if let Some(student) = trained {
        // the model itself goes before teachers and reward models
        let own = json!(student.source);
        bases.sort_by_key(|base| json!(base.source) != own);
    }
    let evals = plan.stages.iter().filter_map(|stage| {
        let Job::Eval(eval) = &stage.job else {
            return None;
        };
        let is_base = stage.model.is_none()
            && trained.is_some_and(|student| json!(stage.student) == json!(student));
        let before = match &stage.model {
            Some(model) if model == name => false,
            None if is_base => true,
            _ => return None,
        };
        Some(EvalStage {
            folder: stage.name.clone(),
            suite: eval.suites.first()?.clone(),
            before,
        })
    });
    let evals = evals.collect();
    Ok(Lineage {
        run: plan.name.clone(),
        stage: name.to_string(),
        bases,
        has_weights,
        judges,
        quant,
        steps,
        evals,
    })
}

fn quant_of(student: &StudentPlan) -> Option<PackedAs> {
    student.adapter.as_ref()?.packed_as()
}

fn base(student: &StudentPlan, commit: Option<&str>) -> Result<Base> {
    let card = student.card.as_deref().map(Card::load).transpose()?;
    Ok(Base {
        source: student.source.clone(),
        commit: commit.map(String::from),
        card,
    })
}

impl Base {
    /// Its repository on the Hub.
    pub fn repo(&self) -> Option<&str> {
        match &self.source {
            StudentSource::Hub { repo, .. } => Some(repo),
            _ => None,
        }
    }

    /// The commit, else what was asked for.
    pub fn revision(&self) -> Option<&str> {
        match &self.source {
            StudentSource::Hub { revision, .. } => Some(self.commit.as_deref().unwrap_or(revision)),
            _ => None,
        }
    }
}

/// What a base is called.
pub fn in_words(base: &Base) -> String {
    match &base.source {
        StudentSource::Hub { repo, .. } => repo.clone(),
        StudentSource::Folder(folder) => format!("local model `{}`", file_name(folder)),
        StudentSource::Random(init) => format!("random weights ({})", init.architecture),
    }
}

fn sources_of(traces: &[Traces], dir: &Path) -> Result<Vec<SourceUse>> {
    let commits = Commits::read(dir)?;
    let one = |traces: &Traces| SourceUse {
        config: traces.config.clone(),
        split: traces.split.clone(),
        ..SourceUse::of(&commits, &traces.source, traces.revision.as_deref())
    };
    Ok(traces.iter().map(one).collect())
}

impl SourceUse {
    /// The repository, without the revision that may stand beside it.
    pub fn repo(&self) -> &str {
        self.source.split('@').next().unwrap_or(&self.source)
    }

    /// The training split of a source for which the recipe asks for this revision.
    fn of(commits: &Commits, source: &str, asked: Option<&str>) -> Self {
        let commit = commits.read_at(source, asked);
        Self {
            source: source.to_string(),
            config: None,
            split: "train".into(),
            revision: commit.or(asked).map(String::from),
            is_on_hub: commit.is_some(),
        }
    }
}

/// The models behind the endpoints that a stage asks for its opinion.
fn judges_of(job: &Value, out: &mut Vec<StudentSource>) {
    match job {
        Value::Object(map) => {
            let text = |key: &str| map.get(key).and_then(Value::as_str);
            if let (Some(_), Some(_), Some(model)) =
                (text("key_variable"), text("url"), text("model"))
                && !out.iter().any(|known| is_named(known, model))
            {
                out.push(StudentSource::Hub {
                    repo: model.to_string(),
                    revision: "main".into(),
                });
            }
            map.values().for_each(|value| judges_of(value, out));
        }
        Value::Array(items) => items.iter().for_each(|item| judges_of(item, out)),
        _ => {}
    }
}

fn is_named(source: &StudentSource, name: &str) -> bool {
    matches!(source, StudentSource::Hub { repo, .. } if repo == name)
}

/// Nested tables to `a.b.c` and a short text each. What is not set is left out, and of local paths and of addresses only
/// what says nothing about the machine stays.
fn settings(tables: &[(&str, Value)]) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Null => {}
            Value::Object(map) => {
                let shown: Map<String, Value> = map
                    .iter()
                    .filter(|(key, _)| key.as_str() != "identity")
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                for (key, value) in &shown {
                    walk(&format!("{prefix}.{key}"), value, out);
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (i, item) in items.iter().enumerate() {
                    walk(&format!("{prefix}.{}", i + 1), item, out);
                }
            }
            other => out.push((prefix.to_string(), scalar(other))),
        }
    }
    let mut out = Vec::new();
    for (name, value) in tables {
        walk(name, value, &mut out);
    }
    out
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => public(text),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A text without what it says about the machine it was written on.
pub fn public(text: &str) -> String {
    let is_path = text.starts_with(['/', '~', '\\'])
        || text.starts_with("../")
        || text.starts_with("./")
        || text.get(1..3) == Some(":\\");
    if text.contains("://") {
        return "(an address)".into();
    }
    match is_path {
        true => file_name(text),
        false => text.to_string(),
    }
}

fn file_name(path: &str) -> String {
    let name = PathBuf::from(path);
    let name = name
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "(a path)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_nothing_about_the_machine() {
        let table = json!({
            "url": "http://user:secret@10.0.0.7:8000/v1", "file": "/home/me/traces.jsonl", "none": null,
            "betas": [0.9, 0.95], "name": "r1", "deep": [{"source": "a/b"}, {"source": "~/x/y.parquet"}],
            "identity": {"commit": "c"},
        });
        let flat = settings(&[("t", table)]);
        let flat: Vec<(&str, &str)> = flat.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            flat,
            [
                ("t.url", "(an address)"),
                ("t.file", "traces.jsonl"),
                ("t.betas", "0.9, 0.95"),
                ("t.name", "r1"),
                ("t.deep.1.source", "a/b"),
                ("t.deep.2.source", "y.parquet"),
            ]
        );
    }
}
