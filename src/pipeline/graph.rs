//! A pipeline from top to bottom: the keys of all stages first, so that nothing is written where something is refused, then
//! the stages in order.
//!
//! A stage's key is the hash of its resolved settings and of the keys of the stages it starts from. A stage whose key is
//! unchanged is skipped where it is finished, and goes on where it is not. Where one has changed, what it left is thrown
//! away only if the user says so (`--rerun`), evaluations and selections aside, which cost little to make again.
//!
//! What a kind does is one function in a file of its own. A kind is added by its arms in `inputs`, `leaves` and
//! `execute`.

use super::commits::Commits;
use super::estimate::of_stage;
use super::fit;
use super::folder::{RunFolder, key_of, write_atomic, write_json};
use super::open::contents_with_chat;
use super::rerun::{State, asked_again, check_rerun, to_redo};
use super::run::{RunOptions, RunOutcome, check_owner, interrupted, write_report};
use super::stage_generate::open_rewards;
use super::stages::{Place, earlier_inputs, files, first_difference};
use super::student::{Student, planned_config};
use super::{
    stage_eval, stage_generate, stage_grpo, stage_preference, stage_reward_model, stage_select,
    stage_sft,
};
use crate::model::{CausalLm, ModelConfig};
use crate::progress::{Reporter, Silent, Stop};
use crate::recipe::Recompute;
use crate::recipe::graph::{Job, PipelinePlan, StagePlan};
use crate::recipe::load::Loaded;
use crate::recipe::reward::{RewardKind, RewardTable};
use crate::recipe::stage::Kind;
use crate::reward::Judge;
use crate::{Error, Result, report};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// What every stage gets.
pub struct StageContext<'a> {
    pub plan: &'a PipelinePlan,
    pub stage: &'a StagePlan,
    /// The run folder.
    pub root: &'a Path,
    /// The stage's folder.
    pub dir: PathBuf,
    /// What the stage's result depends on, as a hash.
    pub key: &'a str,
    pub reporter: &'a dyn Reporter,
    pub stop: &'a Stop,
    student: Option<&'a Student>,
}

impl StageContext<'_> {
    /// Where it works.
    pub fn place(&self) -> Place<'_> {
        Place {
            name: &self.stage.name,
            dir: &self.dir,
            reporter: self.reporter,
            stop: self.stop,
        }
    }

    /// Tokenizer, template and shape of the model it works with.
    pub fn student(&self) -> Result<&Student> {
        self.student
            .ok_or_else(|| Error::input(format!("stage `{}` has no model", self.stage.name)))
    }

    /// The weights it starts from: an earlier stage's, or the student's own.
    pub fn model(&self) -> Result<CausalLm> {
        let student = self.student()?;
        match &self.stage.model {
            Some(name) => student.with_weights_in(&self.root.join(name).join("model")),
            None => student.untrained(),
        }
    }

    /// The same as it is trained, with adapters where the method asks for them.
    pub fn model_to_train(&self) -> Result<CausalLm> {
        let student = self.student()?;
        let earlier = self.stage.model.as_ref();
        let earlier = earlier.map(|name| self.root.join(name).join("model"));
        student.to_train(earlier.as_deref(), self.stage.seed, self.reporter)
    }

    /// The files of a source, of the commit that the stage was begun with.
    ///
    /// # Errors
    /// As [`files`].
    pub fn files(
        &self,
        source: &str,
        config: Option<&str>,
        split: &str,
        revision: Option<&str>,
    ) -> Result<Vec<PathBuf>> {
        let commits = Commits::read(&self.dir)?;
        let wanted = revision.or(commits.of(source));
        Ok(files(source, config, Some(split), wanted, self.reporter)?.0)
    }

    /// `file` in the folder of the stage that `source` names; none where it names no stage.
    pub fn left(&self, source: &str, file: &str) -> Option<PathBuf> {
        let name = source.strip_prefix('@')?;
        Some(self.root.join(name).join(file))
    }
}

/// What is known before anything runs.
pub struct Opening<'a> {
    pub plan: &'a PipelinePlan,
    pub root: &'a Path,
    pub reporter: &'a dyn Reporter,
    pub stop: &'a Stop,
    /// Of the stages before.
    keys: BTreeMap<&'a str, String>,
    /// Stages that run again because the user says so.
    again: BTreeSet<&'a str>,
    /// At which commits the sources of the stage in hand are read.
    commits: RefCell<Commits>,
}

impl Opening<'_> {
    /// What stands for an input in a key: the stage's key for `@stage`.
    ///
    /// # Errors
    /// Not an earlier stage; resolving has refused that.
    pub fn key_of(&self, source: &str) -> Result<Option<&str>> {
        let Some(name) = source.strip_prefix('@') else {
            return Ok(None);
        };
        let key = self.keys.get(name).map(String::as_str);
        key.map(Some)
            .ok_or_else(|| Error::input(format!("stage `{name}` does not come before")))
    }

    /// The folder whose commits a stage is bound to; none where what is in it is thrown away.
    pub fn earlier(&self, stage: &StagePlan) -> Option<PathBuf> {
        let name = stage.name.as_str();
        (!self.again.contains(name)).then(|| self.root.join(name))
    }

    /// The sources of the stage in hand were read at these commits.
    pub fn read_at(&self, commits: Commits) {
        *self.commits.borrow_mut() = commits;
    }

    /// The files of a source: of the commit that the stage was begun with, if it was.
    ///
    /// # Errors
    /// As [`files`].
    pub fn files(
        &self,
        stage: &StagePlan,
        source: &str,
        config: Option<&str>,
        split: &str,
        revision: Option<&str>,
    ) -> Result<Vec<PathBuf>> {
        let earlier = self.earlier(stage).map(|dir| Commits::read(&dir));
        let earlier = earlier.transpose()?.unwrap_or_default();
        let mut commits = self.commits.borrow_mut();
        let wanted = revision.or(earlier.of(source)).or(commits.of(source));
        let (paths, commit) = files(source, config, Some(split), wanted, self.reporter)?;
        commits.add(source, revision, commit);
        Ok(paths)
    }
}

/// What a stage's result depends on besides its seed and its model: an object whose keys are those of the recipe, as the user
/// is told the first that differs.
fn inputs(opening: &Opening, stage: &StagePlan, student: Option<&Student>) -> Result<Value> {
    match (&stage.job, student) {
        (Job::Sft { .. }, Some(student)) => stage_sft::inputs(opening, stage, student),
        (Job::Generate { .. }, Some(student)) => stage_generate::inputs(opening, stage, student),
        (Job::Grpo { .. }, Some(student)) => stage_grpo::inputs(opening, stage, student),
        (Job::Eval(eval), Some(student)) => stage_eval::inputs(opening, eval, student),
        (Job::Select { .. }, _) => stage_select::inputs(opening, stage),
        (Job::RewardModel { .. }, Some(student)) => {
            stage_reward_model::inputs(opening, stage, student)
        }
        (Job::Preference { .. }, Some(student)) => {
            stage_preference::inputs(opening, stage, student)
        }
        (_, None) => stage.student().map(|_| json!({})),
    }
}

/// Files without which a finished stage is not finished.
fn leaves(job: &Job) -> &'static [&'static str] {
    match job {
        Job::Sft { .. } | Job::Grpo { .. } | Job::RewardModel { .. } | Job::Preference { .. } => {
            &["model/config.json"]
        }
        Job::Generate { .. } => &[stage_generate::GENERATIONS],
        Job::Select { .. } => &[stage_select::TRACES],
        Job::Eval(_) => &["eval.json", "samples.jsonl"],
    }
}

/// Runs a stage, or what is left of it; returns its result.
fn execute(context: &StageContext) -> Result<Value> {
    match &context.stage.job {
        Job::Sft { .. } => stage_sft::run(context),
        Job::Grpo { .. } => stage_grpo::run(context),
        Job::Generate { .. } => stage_generate::run(context),
        Job::Select { .. } => stage_select::run(context),
        Job::RewardModel { .. } => stage_reward_model::run(context),
        Job::Preference { .. } => stage_preference::run(context),
        Job::Eval(eval) => stage_eval::run(context, eval),
    }
}

/// Runs `plan`, or what is left of it.
///
/// # Errors
/// Anything a stage meets; a stage with other settings than those it was run with; [`Error::Interrupted`] after Ctrl-C, with
/// everything saved.
pub fn run(
    loaded: &Loaded,
    plan: &PipelinePlan,
    options: &RunOptions,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<RunOutcome> {
    let root = options
        .run_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(&plan.name));
    check_rerun(plan, &options.rerun)?;
    let folder = RunFolder::open(&root)?;
    let mut fitting = plan.clone();
    let mut checked: Vec<Option<ModelConfig>> = vec![None; plan.stages.len()];
    let mut check = |i: usize, config: Option<&ModelConfig>| -> Result<()> {
        let stage = &plan.stages[i];
        let shapes = |config: &ModelConfig| config.weight_shapes();
        if (checked[i].is_none() || checked[i].as_ref().map(shapes) != config.map(shapes))
            && let Some(recompute) = fit::check_stage(plan, stage, config, options, reporter)?
        {
            fitting.stages[i].job.set_recompute(recompute);
        }
        checked[i] = config.cloned();
        Ok(())
    };
    // before anything is fetched or thrown away, where the shape is known; what else is wrong is told where it is met
    for (i, stage) in plan.stages.iter().enumerate() {
        let is_done = !options.fresh && root.join(&stage.name).join("done.json").exists();
        if let Ok(config) = stage.student().and_then(planned_config)
            && !is_done
            && of_stage(plan, stage, &config, None, &Silent).is_ok()
        {
            check(i, Some(&config))?;
        }
    }
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
    let again = asked_again(plan, &options.rerun);
    let ready = prepare(plan, &root, again.clone(), reporter, stop)?;
    let states = ready
        .iter()
        .zip(&plan.stages)
        .map(|(ready, stage)| state(&folder, stage, ready))
        .collect::<Result<Vec<_>>>()?;
    let redo = to_redo(plan, &states, again)?;
    for (stage, state) in plan.stages.iter().zip(&states) {
        if redo.contains(stage.name.as_str()) || !matches!(state, State::Finished(_)) {
            check_rewards(stage, stop)?;
        }
    }
    for (i, (ready, state)) in ready.iter().zip(&states).enumerate() {
        if redo.contains(plan.stages[i].name.as_str()) || !matches!(state, State::Finished(_)) {
            check(i, ready.student.as_ref().map(|student| student.config()))?;
        }
    }
    for (stage, state) in fitting.stages.iter_mut().zip(&states) {
        if stage.job.recompute() == Some(Recompute::Auto)
            && matches!(state, State::Finished(_))
            && let Some(level) = fit::recomputed(&root, Some(&stage.name))
        {
            stage.job.set_recompute(level);
        }
    }
    let plan = &fitting;
    let clock = report::RunClock::start(&root, &plan.device)?;
    write_atomic(&root.join("recipe.toml"), loaded.text.as_bytes())?;
    write_json(&root.join("plan.json"), &saved_plan(plan, &ready)?)?;
    for name in &redo {
        folder.remove_stage(name)?;
    }
    let mut summary = Map::new();
    for ((stage, ready), state) in plan.stages.iter().zip(&ready).zip(states) {
        if stop.requested() {
            return Err(interrupted(&root));
        }
        let result = match state {
            State::Finished(result) if !redo.contains(stage.name.as_str()) => {
                reporter.note(&format!("stage `{}` is finished already", stage.name));
                result
            }
            _ => {
                let dir = folder.stage(&stage.name)?;
                if !ready.commits.is_local() {
                    ready.commits.write(&dir)?;
                }
                write_json(&dir.join("inputs.json"), &ready.inputs)?;
                let context = StageContext {
                    plan,
                    stage,
                    root: &root,
                    dir,
                    key: &ready.key,
                    reporter,
                    stop,
                    student: ready.student.as_deref(),
                };
                let started = Instant::now();
                let result = execute(&context)?;
                folder.finish(&stage.name, &ready.key, &result, started)?;
                result
            }
        };
        summary.insert(stage.name.clone(), result);
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

/// That the rewards of a stage can be had: no sandbox or no key for the judge shows before hours of training, not after.
fn check_rewards(stage: &StagePlan, stop: &Stop) -> Result<()> {
    let judge = match &stage.job {
        Job::RewardModel { table, .. } => table.build.judge.as_ref(),
        Job::Preference { table, .. } => table.build.judge.as_ref(),
        _ => None,
    };
    if let Some(judge) = judge {
        Judge::open(judge, stop.clone()).map_err(|e| e.at(format!("stage `{}`", stage.name)))?;
    }
    let Some(table) = stage.job.rewards() else {
        return Ok(());
    };
    let mut rewards = table.rewards();
    // those of stages are not there yet
    rewards.retain(|reward| match &reward.kind {
        RewardKind::RewardModel(settings) => !settings.model.starts_with('@'),
        _ => true,
    });
    if rewards.is_empty() && !table.rewards().is_empty() {
        return Ok(());
    }
    let at = |e: Error| e.at(format!("stage `{}`", stage.name));
    let table = RewardTable::List(rewards);
    let separator = match &stage.job {
        Job::Grpo { grpo, .. } => grpo.separator(),
        _ => None,
    };
    open_rewards(&table, Path::new(""), separator, stop)
        .map(|_| ())
        .map_err(at)
}

/// A stage before it runs.
struct Ready {
    student: Option<Rc<Student>>,
    inputs: Value,
    /// Of its sources.
    commits: Commits,
    key: String,
}

/// The students and keys of all stages.
fn prepare<'a>(
    plan: &'a PipelinePlan,
    root: &Path,
    again: BTreeSet<&'a str>,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Vec<Ready>> {
    let mut students: BTreeMap<(String, bool), Rc<Student>> = BTreeMap::new();
    let mut opening = Opening {
        plan,
        root,
        reporter,
        stop,
        keys: BTreeMap::new(),
        again,
        commits: RefCell::default(),
    };
    let mut all = Vec::new();
    for stage in &plan.stages {
        let at = |e: Error| e.at(format!("stage `{}`", stage.name));
        let student = match &stage.student {
            None => None,
            Some(student) => {
                let own_weights = stage.model.is_none();
                let cached = (key_of(student)?, own_weights);
                if !students.contains_key(&cached) {
                    let mut opened =
                        Student::open_as(student, plan.seed, &plan.device, reporter).map_err(at)?;
                    if own_weights {
                        opened = opened.with_weights(reporter).map_err(at)?;
                    }
                    students.insert(cached.clone(), Rc::new(opened));
                }
                students.get(&cached).cloned()
            }
        };
        let is_trained = matches!(stage.kind, Kind::Sft | Kind::Grpo | Kind::Preference);
        let mut model = student.as_ref().map(|student| match is_trained {
            true => student.trained_identity(),
            false => student.identity().clone(),
        });
        if let (Some(model), Some(name)) = (&mut model, &stage.model) {
            model["weights"] = json!({ "stage": opening.key_of(&format!("@{name}"))? });
        }
        let mut inputs = inputs(&opening, stage, student.as_deref()).map_err(at)?;
        inputs["version"] = json!(1);
        inputs["kind"] = json!(stage.kind);
        inputs["seed"] = json!(stage.seed);
        inputs["model"] = json!(model);
        for scorer in stage
            .job
            .rewards()
            .into_iter()
            .flat_map(RewardTable::models)
        {
            let key = match opening.key_of(scorer).map_err(at)? {
                Some(key) => json!({ "stage": key }),
                None => contents_with_chat(Path::new(scorer)).map_err(at)?,
            };
            // one has had no list around it from the start
            inputs["reward_model_weights"] = match inputs["reward_model_weights"].take() {
                Value::Null => key,
                Value::Array(mut all) => {
                    all.push(key);
                    Value::Array(all)
                }
                one => json!([one, key]),
            };
        }
        // numbers as they read back from a file
        let inputs: Value = serde_json::from_str(&inputs.to_string())
            .map_err(|e| Error::input(format!("settings of the stage: {e}")).at(&stage.name))?;
        let key = key_of(&inputs)?;
        opening.keys.insert(&stage.name, key.clone());
        all.push(Ready {
            student,
            inputs,
            commits: opening.commits.take(),
            key,
        });
    }
    Ok(all)
}

/// What the run folder holds of a stage.
fn state(folder: &RunFolder, stage: &StagePlan, ready: &Ready) -> Result<State> {
    let dir = folder.root().join(&stage.name);
    match earlier_inputs(&dir)? {
        Some(earlier) if earlier == ready.inputs => {
            let finished = folder.finished(&stage.name, &ready.key, leaves(&stage.job))?;
            Ok(finished.map_or(State::Begun, State::Finished))
        }
        Some(earlier) => Ok(State::Changed(
            first_difference("", &earlier, &ready.inputs).unwrap_or_default(),
        )),
        None if dir.join("done.json").exists() => {
            Ok(State::Changed("it belongs to another recipe".into()))
        }
        None => Ok(State::New),
    }
}

/// The plan with the stages' keys and what their students turned out to be.
fn saved_plan(plan: &PipelinePlan, ready: &[Ready]) -> Result<Value> {
    let mut value =
        serde_json::to_value(plan).map_err(|e| Error::input(format!("writing the plan: {e}")))?;
    for (i, ready) in ready.iter().enumerate() {
        let stage = &mut value["stages"][i];
        stage["key"] = json!(ready.key);
        if let Some(student) = &ready.student {
            stage["student"]["num_parameters"] = json!(student.config().num_parameters());
        }
    }
    Ok(value)
}
