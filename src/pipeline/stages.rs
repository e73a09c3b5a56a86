//! One function a stage: what it reads, what it leaves in its folder, and its key.

use super::folder::{key_of, write_json};
use super::open::{Student, trace_sources};
use crate::data::{BuildOptions, Store};
use crate::eval::EvalJob;
use crate::generate::LocalEngine;
use crate::model::CausalLm;
use crate::progress::{Reporter, Stop, Task};
use crate::recipe::plan::{EvalPlan, Plan, Stage, StageKind};
use crate::recipe::suite::Suite;
use crate::report::{EventWriter, MetricsLog};
use crate::train::{self, Observer, SftSettings, StepRecord};
use crate::{Error, Result, data, eval};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Weights of a result are cut into files of at most so many bytes, as transformers does.
const MAX_SHARD_BYTES: u64 = 50_000_000_000;

/// What every stage gets.
pub struct Context<'a> {
    pub plan: &'a Plan,
    pub stage: &'a Stage,
    /// The stage's folder.
    pub dir: PathBuf,
    /// The run's folder.
    pub root: &'a Path,
    pub key: &'a str,
    pub reporter: &'a dyn Reporter,
    pub stop: &'a Stop,
}

/// The key of a stage: the hash of its settings and of what it stands on.
///
/// # Errors
/// A source of traces that is not there.
pub fn key(plan: &Plan, stage: &Stage, student: &Student, upstream: &str) -> Result<String> {
    match stage.kind {
        StageKind::Data => key_of(&json!({
            "version": 1, "traces": plan.traces, "seed": plan.seed, "max_length": plan.sft.max_length,
            "over_length": plan.sft.over_length, "on_untrainable": plan.sft.on_untrainable,
            "train_on": plan.sft.train_on, "chat": student.chat_key()?,
        })),
        StageKind::EvalBefore => key_of(&json!({
            "version": 1, "student": student.identity(), "suite": suite(plan, stage)?, "seed": plan.seed,
            "limit": plan.eval.as_ref().and_then(|e| e.limit), "chat": student.chat_key()?,
        })),
        StageKind::Sft => key_of(&json!({
            "version": 1, "student": student.identity(), "data": upstream, "sft": learned(plan), "seed": plan.seed,
        })),
        StageKind::Eval => key_of(&json!({
            "version": 1, "sft": upstream, "suite": suite(plan, stage)?, "seed": plan.seed,
            "limit": plan.eval.as_ref().and_then(|e| e.limit),
        })),
    }
}

/// What of `[sft]` changes what is learned; how often it is saved does not.
fn learned(plan: &Plan) -> Value {
    let settings = SftSettings::from_plan(&plan.sft, plan.seed, "");
    json!(SftSettings {
        checkpoint_every_steps: 0,
        keep_checkpoints: 0,
        recompute: crate::recipe::Recompute::None,
        ..settings
    })
}

fn eval_plan(plan: &Plan) -> Result<&EvalPlan> {
    plan.eval.as_ref().ok_or_else(|| Error::input("the plan has an evaluation stage and no `eval`"))
}

fn suite<'a>(plan: &'a Plan, stage: &Stage) -> Result<&'a Suite> {
    stage
        .suite
        .and_then(|i| eval_plan(plan).ok()?.suites.get(i))
        .ok_or_else(|| Error::input(format!("stage `{}` names no suite", stage.name)))
}

/// Traces to the token store.
///
/// # Errors
/// A source that cannot be read, a row that the recipe refuses, no row left.
pub fn data(context: &Context, student: &Student) -> Result<Value> {
    let plan = context.plan;
    context.reporter.stage(&context.stage.name, "traces to tokens");
    let store = build_store(context, student)?;
    let report = store.report();
    write_json(&context.dir.join("data.json"), report)?;
    context.reporter.note(&report.summary());
    if store.is_empty() {
        return Err(Error::input(format!("no row of the traces can be trained on: {}", report.summary()))
            .with_hint(format!(
                "`{}` lists every reason with examples; `sft.max_length` is {}",
                context.dir.join("data.json").display(),
                plan.sft.max_length
            )));
    }
    Ok(json!({"rows": store.len(), "tokens": report.tokens, "trained_tokens": report.trained_tokens}))
}
