//! One function a stage: what it reads, what it leaves in its folder. Evaluations are in [`super::suites`].

use super::commits::Commits;
use super::folder::{read_json, write_json};
use super::student::Student;
use crate::data::{BuildOptions, Store, TraceSource};
use crate::model::CausalLm;
use crate::progress::{Reporter, Stop, Task};
use crate::recipe::plan::{Plan, Stage, StageKind};
use crate::report::{EventWriter, MetricsLog};
use crate::train::{self, JudgedRecord, Observer, SftSettings, StepRecord};
use crate::{Error, Result, data, hub};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Weights of a result are cut into files of at most so many bytes: those of one are held while it is written.
pub(super) const MAX_SHARD_BYTES: u64 = crate::train::footprint::SHARD;

/// What every stage gets.
pub struct Context<'a> {
    pub plan: &'a Plan,
    pub stage: &'a Stage,
    /// The stage's folder.
    pub dir: PathBuf,
    pub reporter: &'a dyn Reporter,
    pub stop: &'a Stop,
}

impl Context<'_> {
    /// Where it works.
    pub fn place(&self) -> Place<'_> {
        Place {
            name: &self.stage.name,
            dir: &self.dir,
            reporter: self.reporter,
            stop: self.stop,
        }
    }
}

/// Where a stage works, and whom it tells.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The stage's name.
    pub name: &'a str,
    /// Its folder.
    pub dir: &'a Path,
    pub reporter: &'a dyn Reporter,
    pub stop: &'a Stop,
}

/// Traces to the token store; one that was made of the same content is taken as it is.
///
/// # Errors
/// A source that cannot be read, a row that the recipe refuses, no row left.
pub fn data(context: &Context, student: &Student) -> Result<Store> {
    let plan = context.plan;
    context
        .reporter
        .stage(&context.stage.name, "traces to tokens");
    let sources = trace_sources(plan, Some(&context.dir), context.reporter)?;
    commits_of(&sources).write(&context.dir)?;
    let (store, report) = Store::build(
        &build_options(plan),
        &sources,
        student.chat(),
        &context.dir.join("store"),
        context.reporter,
        context.stop,
    )?;
    write_json(&context.dir.join("data.json"), &report)?;
    context.reporter.note(&format!(
        "{} rows, {} tokens, {} of them trained; {} rows dropped{}",
        report.kept,
        report.tokens,
        report.trained_tokens,
        report.num_dropped(),
        if report.num_dropped() > 0 {
            format!(": {}", report.reasons())
        } else {
            String::new()
        },
    ));
    Ok(store)
}

/// How the plan turns traces into rows.
pub fn build_options(plan: &Plan) -> BuildOptions {
    BuildOptions {
        max_length: plan.sft.max_length,
        over_length: plan.sft.over_length,
        on_untrainable: plan.sft.on_untrainable,
        train_on: plan.sft.train_on,
        seed: plan.seed,
    }
}

/// The local files of every `[[traces]]`. A Hub data set without a revision is read at the commit that the data stage in
/// `earlier` read: a run goes on with the rows it began with, whatever has changed since.
pub fn trace_sources(
    plan: &Plan,
    earlier: Option<&Path>,
    reporter: &dyn Reporter,
) -> Result<Vec<TraceSource>> {
    let earlier = earlier.map(Commits::read).transpose()?.unwrap_or_default();
    plan.traces
        .iter()
        .map(|spec| {
            let commit = earlier.of(&spec.source);
            let (files, revision) = files(
                &spec.source,
                spec.config.as_deref(),
                Some(&spec.split),
                spec.revision.as_deref().or(commit),
                reporter,
            )?;
            Ok(TraceSource {
                spec: spec.clone(),
                files,
                revision,
            })
        })
        .collect()
}

/// Where the traces came from.
pub fn commits_of(sources: &[TraceSource]) -> Commits {
    let mut commits = Commits::default();
    for TraceSource { spec, revision, .. } in sources {
        commits.add(&spec.source, spec.revision.as_deref(), revision.clone());
    }
    commits
}

/// The files a source stands for, and the commit of a Hub data set; a built-in one has none.
///
/// # Errors
/// No such file, folder or data set.
pub fn files(
    source: &str,
    config: Option<&str>,
    split: Option<&str>,
    revision: Option<&str>,
    reporter: &dyn Reporter,
) -> Result<(Vec<PathBuf>, Option<String>)> {
    if source.starts_with("builtin:") {
        return Ok((Vec::new(), None));
    }
    let wanted = hub::Wanted {
        config,
        split,
        patterns: &[],
    };
    let resolved = hub::resolve_dataset(source, revision, wanted, reporter)?;
    Ok((resolved.files, resolved.revision))
}

/// What of the plan changes the result of SFT; how often it is saved does not.
pub fn learned(plan: &Plan) -> Value {
    json!(SftSettings {
        checkpoint_every_steps: 0,
        keep_checkpoints: 0,
        recompute: crate::recipe::Recompute::None,
        ..SftSettings::from_plan(&plan.sft, plan.seed, "")
    })
}

/// The key of SFT on a store, with what it is made of.
pub fn sft_inputs(plan: &Plan, student: &Student, store: &Store) -> Value {
    json!({"version": 1, "student": student.trained_identity(), "data": store.key(), "sft": learned(plan)})
}

/// Trains the student on the store and leaves `model/`; returns the stage's result.
///
/// # Errors
/// As [`train::train_sft`]; a folder that holds another training.
pub fn sft(
    context: &Context,
    student: &Student,
    store: &Store,
    key: &str,
    inputs: &Value,
) -> Result<Value> {
    claim_training(&context.dir, inputs)?;
    let model = student.to_train(None, context.plan.seed, context.reporter)?;
    train_rows(context, student, &model, store, key)
}

/// Trains `model` on the store and leaves `model/`; returns the stage's result. Checkpoints of another key are refused.
///
/// # Errors
/// As [`train::train_sft`].
pub fn train_rows(
    context: &Context,
    student: &Student,
    model: &CausalLm,
    store: &Store,
    key: &str,
) -> Result<Value> {
    let plan = context.plan;
    let settings = SftSettings::from_plan(&plan.sft, plan.seed, key);
    let total = settings.total_steps(store.len());
    context.reporter.stage(
        &context.stage.name,
        &format!(
            "{total} steps over {} rows, {} epochs",
            store.len(),
            plan.sft.epochs
        ),
    );
    let mut log = StepLog::new(&context.place(), total);
    let outcome = train::train_sft(
        model,
        store,
        &settings,
        &context.dir,
        &mut log,
        context.stop,
    )?;
    log.sync()?;
    drop(log);
    save_model(model, student, &context.dir)?;
    Ok(json!(outcome))
}

/// Writes `model/` whole or not at all; before it `adapter/`, in PEFT's layout, where there is one.
///
/// # Errors
/// The disk refuses.
pub fn save_model(model: &CausalLm, student: &Student, dir: &Path) -> Result<()> {
    if model.adapter_config().is_some() {
        publish_folder(dir, "adapter", |beside| {
            model.save_adapters(beside)?;
            student.chat().save(beside)
        })?;
    }
    publish_folder(dir, "model", |beside| {
        model.save(beside, MAX_SHARD_BYTES)?;
        student.chat().save(beside)
    })
}

/// Makes the folder `name` of what `write` puts into the one it is given.
///
/// # Errors
/// As `write`; the disk refuses.
pub fn publish_folder(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let (beside, place) = (dir.join(format!("{name}.partial")), dir.join(name));
    for path in [&beside, &place] {
        if path.exists() {
            fs::remove_dir_all(path).map_err(|e| Error::io("deleting", path, e))?;
        }
    }
    write(&beside)?;
    fs::rename(&beside, &place).map_err(|e| Error::io("renaming", &beside, e))
}

/// Refuses a run folder in which a training with another student or other settings was begun, before anything of the
/// folder is written.
///
/// # Errors
/// Says the first setting that differs.
pub fn check_training(
    root: &Path,
    plan: &Plan,
    student: &Student,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<()> {
    for stage in plan.stages.iter().filter(|s| s.kind == StageKind::Sft) {
        let dir = root.join(&stage.name);
        let Some(earlier) = earlier_inputs(&dir)? else {
            continue;
        };
        let now = |data: &Value| {
            json!({
                "version": earlier["version"],
                "student": student.trained_identity(),
                "data": data,
                "sft": learned(plan),
            })
        };
        same_inputs(&dir, &earlier, &now(&earlier["data"]))?;
        let data = plan.stages.iter().find(|s| s.kind == StageKind::Data);
        let data = data.map(|stage| root.join(&stage.name));
        let sources = trace_sources(plan, data.as_deref(), reporter)?;
        let key = data::store_key(&build_options(plan), &sources, student.chat(), stop)?;
        if earlier["data"] != key.as_str() {
            return Err(other_training(
                &dir,
                "the traces, or how they are made into rows, are others",
            ));
        }
    }
    Ok(())
}

/// Refuses a folder in which another training was begun: nothing of it is overwritten.
fn claim_training(dir: &Path, inputs: &Value) -> Result<()> {
    match earlier_inputs(dir)? {
        Some(earlier) => same_inputs(dir, &earlier, inputs),
        None => write_json(&dir.join("inputs.json"), inputs),
    }
}

/// What the stage in `dir` was begun with.
///
/// # Errors
/// A damaged file.
pub fn earlier_inputs(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join("inputs.json");
    path.exists().then(|| read_json(&path)).transpose()
}

fn same_inputs(dir: &Path, earlier: &Value, now: &Value) -> Result<()> {
    // numbers as they read back from a file
    let now: Value = serde_json::from_str(&now.to_string())
        .map_err(|e| Error::input(format!("settings of the training: {e}")))?;
    match first_difference("", earlier, &now) {
        None => Ok(()),
        Some(difference) => Err(other_training(dir, &difference)),
    }
}

fn other_training(dir: &Path, difference: &str) -> Error {
    Error::input(format!(
        "`{}` holds a training with other settings: {difference}",
        dir.display()
    ))
    .with_hint(
        "give this run a folder of its own with `--run-dir`, or throw the other one away with `--fresh`",
    )
}

/// The first key in which two values differ, with both values.
pub fn first_difference(at: &str, a: &Value, b: &Value) -> Option<String> {
    if a == b {
        return None;
    }
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
        for key in keys {
            let place = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            let (x, y) = (
                a.get(key).unwrap_or(&Value::Null),
                b.get(key).unwrap_or(&Value::Null),
            );
            if let Some(found) = first_difference(&place, x, y) {
                return Some(found);
            }
        }
    }
    Some(format!("`{at}` was {a}, is {b}"))
}

/// Writes every step to `metrics.jsonl` and TensorBoard, and shows it.
pub struct StepLog<'a> {
    dir: &'a Path,
    reporter: &'a dyn Reporter,
    task: Box<dyn Task>,
    metrics: Option<MetricsLog>,
    events: Option<EventWriter>,
}

impl<'a> StepLog<'a> {
    /// For a training of `total` steps; files are opened when it begins.
    pub fn new(place: &Place<'a>, total: usize) -> Self {
        Self {
            dir: place.dir,
            reporter: place.reporter,
            task: place.reporter.task("training", Some(total as u64), "steps"),
            metrics: None,
            events: None,
        }
    }

    /// Everything is on the disk when this returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&mut self) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.sync()?;
        }
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        Ok(())
    }
}

impl StepLog<'_> {
    fn begin(&mut self, step: usize) -> Result<()> {
        self.metrics = Some(MetricsLog::open(
            &self.dir.join("metrics.jsonl"),
            step as u64,
        )?);
        self.events = Some(EventWriter::create(self.dir, step as u64)?);
        if step > 0 {
            self.reporter.note(&format!("going on after step {step}"));
            self.task.set_position(step as u64);
        }
        Ok(())
    }

    /// A line of metrics, and the same in TensorBoard and on the screen.
    fn line(
        &mut self,
        whole: &impl Serialize,
        record: &StepRecord,
        more: &[(String, f64)],
    ) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.append(whole)?;
        }
        if let Some(events) = &mut self.events {
            let mut scalars = vec![
                ("train/loss", record.loss),
                ("train/grad_norm", record.grad_norm),
                ("train/learning_rate", record.learning_rate),
                ("train/tokens_per_s", record.tokens_per_s),
                ("train/epoch", record.epoch),
            ];
            scalars.extend(more.iter().map(|(name, value)| (name.as_str(), *value)));
            events.scalars(record.step as u64, &scalars)?;
        }
        self.task.set_position(record.step as u64);
        self.task.message(&format!(
            "loss {:.4}, lr {:.2e}, {:.0} tokens/s",
            record.loss, record.learning_rate, record.tokens_per_s
        ));
        Ok(())
    }
}

impl Observer<JudgedRecord> for StepLog<'_> {
    fn resumed(&mut self, step: usize) -> Result<()> {
        self.begin(step)
    }

    fn step(&mut self, record: &JudgedRecord) -> Result<()> {
        let more: Vec<(String, f64)> = record
            .means
            .iter()
            .map(|(name, mean)| match name.strip_prefix("held_out_") {
                Some(name) => (format!("held_out/{name}"), *mean),
                None => (format!("train/{name}"), *mean),
            })
            .collect();
        self.line(record, &record.base, &more)
    }

    fn checkpoint(&mut self, _step: usize, _path: &Path) -> Result<()> {
        self.sync()
    }

    fn warn(&mut self, text: &str) {
        self.reporter.warn(text);
    }
}

impl Observer for StepLog<'_> {
    fn resumed(&mut self, step: usize) -> Result<()> {
        self.begin(step)
    }

    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.line(record, record, &[])
    }

    fn checkpoint(&mut self, _step: usize, _path: &Path) -> Result<()> {
        self.sync()
    }

    fn warn(&mut self, text: &str) {
        self.reporter.warn(text);
    }
}
