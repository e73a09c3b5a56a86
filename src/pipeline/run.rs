//! A recipe from top to bottom: data, evaluation before, SFT, evaluation, report.
//!
//! A stage whose key is unchanged is not run again; changed evaluations run again, a changed training is refused so that
//! nothing is lost. What a stage needs is opened when it is needed.

use super::estimate::of_sft;
use super::fit;
use super::folder::{RunFolder, key_of, read_json, write_atomic, write_json};
use super::stages::{self, Context};
use super::student::{Student, planned_config};
use super::suites;
use crate::data::Store;
use crate::eval::Problem;
use crate::model::ModelConfig;
use crate::progress::{Reporter, Stop};
use crate::recipe::Recompute;
use crate::recipe::load::Loaded;
use crate::recipe::plan::{Plan, Stage, StageKind};
use crate::{Error, Result, report};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What an evaluation leaves in its folder.
const EVALUATED: [&str; 2] = ["eval.json", "samples.jsonl"];

/// How a recipe is run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Folder in place of `runs/<name>`.
    pub run_dir: Option<PathBuf>,
    /// Throw away what an earlier run left in the folder.
    pub fresh: bool,
    /// Stages of a pipeline that are thrown away and run again, with those that depend on them.
    pub rerun: Vec<String>,
    /// Bytes that the run may take, in place of what is free.
    pub device_memory: Option<u64>,
    /// Run even where it does not fit.
    pub force: bool,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    pub run_dir: PathBuf,
    /// Result of every stage by name.
    pub summary: Value,
}

/// Runs `plan`, or what is left of it.
///
/// # Errors
/// Anything a stage meets; [`Error::Interrupted`] after Ctrl-C, with everything saved.
pub fn run(
    loaded: &Loaded,
    plan: &Plan,
    options: &RunOptions,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<RunOutcome> {
    let root = options
        .run_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(&plan.name));
    if !options.rerun.is_empty() {
        return Err(
            Error::input("`--rerun` is for recipes of several `[[stage]]`s")
                .with_hint("`--fresh` starts this run over"),
        );
    }
    let folder = RunFolder::open(&root)?;
    let mut plan = plan.clone();
    let is_there = |name: &str| root.join("sft").join(name).exists();
    let trains = options.fresh || !is_there("done.json") || !is_there("model/config.json");
    let check = |plan: &Plan, config: &ModelConfig| {
        let estimate = |room| Ok(Some(of_sft(plan, config, room)));
        fit::check("the run", &plan.device, options, estimate, reporter)
    };
    // before anything is fetched, where the shape is known
    let planned = planned_config(&plan.student).ok().filter(|_| trains);
    let mut fitting = None;
    if let Some(config) = &planned {
        fitting = check(&plan, config)?;
    }
    let student = Student::open(&plan, reporter)?;
    let shapes = |config: &ModelConfig| config.weight_shapes();
    if trains && planned.as_ref().map(shapes) != Some(shapes(student.config())) {
        fitting = check(&plan, student.config())?;
    }
    plan.sft.recompute = fitting.unwrap_or(plan.sft.recompute);
    if !trains && plan.sft.recompute == Recompute::Auto {
        plan.sft.recompute = fit::recomputed(&root, None).unwrap_or_default();
    }
    let plan = &plan;
    if options.fresh {
        let mut names: Vec<String> = plan.stages.iter().map(|s| s.name.clone()).collect();
        names.extend(folder.earlier_stages()?);
        folder.clear(&names)?;
    }
    check_owner(&root, &plan.name)?;
    for note in &plan.notes {
        reporter.note(note);
    }
    let started = Instant::now();
    let student = student.with_weights(reporter)?;
    let problems = suites::all_problems(plan, reporter)?;
    stages::check_training(&root, plan, &student, reporter, stop)?;
    let clock = report::RunClock::start(&root, &plan.device)?;
    write_atomic(&root.join("recipe.toml"), loaded.text.as_bytes())?;
    write_json(&root.join("plan.json"), &saved_plan(plan, &student)?)?;
    let mut run = Run {
        plan,
        folder: &folder,
        student: &student,
        reporter,
        stop,
        problems,
        store: None,
        sft_key: String::new(),
    };
    let mut summary = Map::new();
    for stage in &plan.stages {
        if stop.requested() {
            return Err(interrupted(&root));
        }
        summary.insert(stage.name.clone(), run.stage(stage)?);
        write_report(&root)?;
    }
    clock.stop()?;
    let report = write_report(&root)?;
    reporter.note(&format!(
        "done in {} s: {}",
        started.elapsed().as_secs(),
        report.display()
    ));
    Ok(RunOutcome {
        run_dir: root,
        summary: Value::Object(summary),
    })
}

/// Writes `report.html` of a run folder from what is in it.
///
/// # Errors
/// A folder that cannot be read or written.
pub fn write_report(root: &Path) -> Result<PathBuf> {
    report::html::write(root, &report::collect(root)?)
}

/// The run while its stages go by.
struct Run<'a> {
    plan: &'a Plan,
    folder: &'a RunFolder,
    student: &'a Student,
    reporter: &'a dyn Reporter,
    stop: &'a Stop,
    /// of each suite
    problems: Vec<Vec<Problem>>,
    store: Option<Store>,
    sft_key: String,
}

impl Run<'_> {
    fn stage(&mut self, stage: &Stage) -> Result<Value> {
        let context = Context {
            plan: self.plan,
            stage,
            dir: self.folder.stage(&stage.name)?,
            reporter: self.reporter,
            stop: self.stop,
        };
        match stage.kind {
            StageKind::Data => {
                let started = Instant::now();
                let store = stages::data(&context, self.student)?;
                let result = json!({"rows": store.len(), "key": store.key()});
                let key = store.key().to_string();
                self.folder.finish(&stage.name, &key, &result, started)?;
                self.store = Some(store);
                Ok(result)
            }
            StageKind::EvalBefore => {
                let key = self.eval_key(stage, &json!(self.student.identity()))?;
                self.once(stage, &key, &EVALUATED, |run| {
                    let model = run.student.untrained()?;
                    suites::evaluate(&context, run.student, &model, run.problems(stage), &key)
                })
            }
            StageKind::Sft => {
                let store = self
                    .store
                    .take()
                    .ok_or_else(|| Error::input("the plan trains before it reads traces"))?;
                let inputs = stages::sft_inputs(self.plan, self.student, &store);
                let key = key_of(&inputs)?;
                let result = self.once(stage, &key, &["model/config.json"], |run| {
                    stages::sft(&context, run.student, &store, &key, &inputs)
                })?;
                self.sft_key = key;
                Ok(result)
            }
            StageKind::Eval => {
                let key = self.eval_key(stage, &json!(self.sft_key))?;
                self.once(stage, &key, &EVALUATED, |run| {
                    let model = run.student.load(&run.folder.root().join("sft/model"))?;
                    suites::evaluate(&context, run.student, &model, run.problems(stage), &key)
                })
            }
        }
    }

    fn problems(&self, stage: &Stage) -> &[Problem] {
        let of_suite = stage.suite.and_then(|i| self.problems.get(i));
        of_suite.map(Vec::as_slice).unwrap_or_default()
    }

    /// Runs a stage unless it is finished with this key and what it leaves is there.
    fn once(
        &self,
        stage: &Stage,
        key: &str,
        leaves: &[&str],
        body: impl FnOnce(&Self) -> Result<Value>,
    ) -> Result<Value> {
        if let Some(result) = self.folder.finished(&stage.name, key, leaves)? {
            self.reporter
                .note(&format!("stage `{}` is finished already", stage.name));
            return Ok(result);
        }
        let started = Instant::now();
        let result = body(self)?;
        self.folder.finish(&stage.name, key, &result, started)?;
        Ok(result)
    }

    fn eval_key(&self, stage: &Stage, model: &Value) -> Result<String> {
        let problems: Vec<_> = self
            .problems(stage)
            .iter()
            .map(|p| (&p.id, &p.problem, &p.gold))
            .collect();
        key_of(&json!({
            "version": 2,
            "problems": key_of(&problems)?,
            "model": model,
            "suite": suites::suite(self.plan, stage)?,
            "limit": self.plan.eval.as_ref().and_then(|e| e.limit),
            "seed": self.plan.seed,
            "template": self.student.chat().template()?.source(),
        }))
    }
}

/// Refuses the folder of a recipe of another name.
pub(super) fn check_owner(root: &Path, name_now: &str) -> Result<()> {
    let path = root.join("plan.json");
    if !path.exists() {
        return Ok(());
    }
    let earlier: Value = read_json(&path)?;
    match earlier.get("name").and_then(Value::as_str) {
        Some(name) if name != name_now => Err(Error::input(format!(
            "`{}` is the run folder of recipe `{name}`, not of `{}`",
            root.display(),
            name_now
        ))
        .with_hint("give this run a folder of its own with `--run-dir`")),
        _ => Ok(()),
    }
}

/// The plan with what its student turned out to be.
fn saved_plan(plan: &Plan, student: &Student) -> Result<Value> {
    let mut value =
        serde_json::to_value(plan).map_err(|e| Error::input(format!("writing the plan: {e}")))?;
    value["student"]["identity"] = student.trained_identity();
    value["student"]["num_parameters"] = json!(student.config().num_parameters());
    Ok(value)
}

pub(super) fn interrupted(root: &Path) -> Error {
    Error::Interrupted {
        message: format!("the same command goes on in `{}`", root.display()),
    }
}
