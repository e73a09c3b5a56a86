//! A recipe from top to bottom: data, evaluation before, SFT, evaluation, report.
//!
//! A stage whose key is unchanged is not run again; a changed setting runs its stage and those after it again. What a
//! stage needs is opened when it is needed.

use super::folder::{RunFolder, key_of, write_atomic, write_json};
use super::open::{self, Student};
use super::stages;
use crate::progress::{Reporter, Stop};
use crate::recipe::load::Loaded;
use crate::recipe::plan::{Plan, StageKind};
use crate::{Error, Result, report};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// How a recipe is run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Folder in place of `runs/<name>`.
    pub run_dir: Option<PathBuf>,
    /// Throw away what an earlier run left in the folder.
    pub fresh: bool,
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
    let folder = RunFolder::open(&root)?;
    let names: Vec<String> = plan.stages.iter().map(|s| s.name.clone()).collect();
    if options.fresh {
        folder.clear(&names)?;
    }
    claim(&folder, loaded, plan)?;
    for note in &plan.notes {
        reporter.note(note);
    }
    let started = Instant::now();
    let clock = report::RunClock::start(&root, &plan.device)?;
    let mut student = Student::new(plan, &root, reporter)?;
    let mut summary = Map::new();
    let mut upstream = student.key().to_string();
    for stage in &plan.stages {
        if stop.requested() {
            return Err(interrupted(&root));
        }
        let key = stages::key(plan, stage, &upstream, &mut student)?;
        let result = match folder.finished(&stage.name, &key)? {
            Some(result) => {
                reporter.note(&format!("`{}` is finished already", stage.name));
                result
            }
            None => {
                let context = stages::Context {
                    plan,
                    stage,
                    dir: folder.stage(&stage.name)?,
                    root: &root,
                    key: &key,
                    reporter,
                    stop,
                };
                let result = match stage.kind {
                    StageKind::Data => stages::data(&context, &mut student),
                    StageKind::EvalBefore => stages::evaluate(&context, student.untrained()?),
                    StageKind::Sft => stages::sft(&context, &mut student),
                    StageKind::Eval => stages::evaluate(&context, student.trained(&root)?),
                }?;
                folder.finish(&stage.name, &key, &result)?;
                result
            }
        };
        if matches!(stage.kind, StageKind::Data | StageKind::Sft) {
            upstream = key;
        }
        summary.insert(stage.name.clone(), result);
    }
    clock.stop()?;
    let data = report::collect(&root)?;
    report::html::write(&root, &data)?;
    reporter.note(&format!(
        "finished in {} s: {}",
        started.elapsed().as_secs(),
        root.join("report.html").display()
    ));
    Ok(RunOutcome {
        run_dir: root,
        summary: Value::Object(summary),
    })
}
