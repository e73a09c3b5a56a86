//! The `sft` stage of a pipeline: traces of files and of earlier stages to the token store, then training as in a recipe of
//! one student. Everything is in the stage's own folder.

use super::graph::{Opening, StageContext};
use super::stage_select::{TRACES, label_hash};
use super::stages::{self, Context};
use super::student::{Student, check_positions};
use crate::recipe::graph::StagePlan;
use crate::recipe::plan::Plan;
use crate::{Error, Result, data};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// What the training depends on besides its model: the content of the traces, how they become rows, the settings.
pub fn inputs(opening: &Opening, stage: &StagePlan, student: &Student) -> Result<Value> {
    let mut plan = opening.plan.sft(stage)?;
    check_positions(student.config(), &plan)?;
    let mut of_stages = Vec::new();
    // which source is read when: those of stages, and those of files
    let order: Vec<bool> = plan
        .traces
        .iter()
        .map(|t| t.source.starts_with('@'))
        .collect();
    for traces in &plan.traces {
        if let Some(key) = opening.key_of(&traces.source)? {
            let mut one = json!({"spec": traces, "key": key});
            if let Some(hash) = label_hash(opening, traces)? {
                one["labels"] = json!(hash);
            }
            of_stages.push(one);
        }
    }
    let settings = stages::learned(&plan);
    plan.traces.retain(|traces| !traces.source.starts_with('@'));
    let earlier = opening.earlier(stage);
    let sources = stages::trace_sources(&plan, earlier.as_deref(), opening.reporter)?;
    opening.read_at(stages::commits_of(&sources));
    let options = stages::build_options(&plan);
    let files = data::store_key(&options, &sources, student.chat(), opening.stop)?;
    Ok(json!({
        "traces": {"files": files, "stages": of_stages, "order": order},
        "sft": settings,
    }))
}

/// Trains on the traces; leaves the store and `model/`.
///
/// # Errors
/// As [`stages::data`] and [`stages::train_rows`].
pub fn run(context: &StageContext) -> Result<Value> {
    let plan = with_paths(context)?;
    let job = Context {
        plan: &plan,
        stage: &plan.stages[0],
        dir: context.dir.clone(),
        reporter: context.reporter,
        stop: context.stop,
    };
    let student = context.student()?;
    let store = stages::data(&job, student)?;
    let model = context.model_to_train()?;
    stages::train_rows(&job, student, &model, &store, context.key)
}

/// The stage as a plan of its own, with the files that earlier stages left in place of their names, and weights as numbers.
fn with_paths(context: &StageContext) -> Result<Plan> {
    let mut plan = context.plan.sft(context.stage)?;
    let mut num_of_stages = 0;
    for traces in &mut plan.traces {
        if let Some(path) = context.left(&traces.source, TRACES) {
            let num = num_rows(&path)?;
            num_of_stages += traces.limit.map_or(num, |limit| num.min(limit));
            traces.source = path.display().to_string();
        }
    }
    for traces in &mut plan.traces {
        if let Some(weight) = traces.weight.take() {
            let most = (weight * num_of_stages as f64).round() as usize;
            traces.limit = Some(traces.limit.map_or(most, |limit| limit.min(most)));
        }
    }
    Ok(plan)
}

fn num_rows(path: &Path) -> Result<usize> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    let mut num = 0;
    for line in BufReader::new(file).split(b'\n') {
        num += usize::from(!line.map_err(|e| Error::io("reading", path, e))?.is_empty());
    }
    Ok(num)
}
