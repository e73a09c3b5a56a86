//! Evaluations: the problems of suites, and suites run on a model.

use super::stages::{Context, Place, files};
use super::student::Student;
use crate::eval::{EvalJob, Problem};
use crate::generate::LocalEngine;
use crate::model::CausalLm;
use crate::progress::Reporter;
use crate::recipe::plan::{EvalPlan, Plan, Stage};
use crate::recipe::suite::Suite;
use crate::{Error, Result, data, eval};
use serde_json::{Value, json};

fn eval_plan(plan: &Plan) -> Result<&EvalPlan> {
    plan.eval
        .as_ref()
        .ok_or_else(|| Error::input("the plan has an evaluation stage and no `eval`"))
}

/// The suite of a stage.
pub fn suite<'a>(plan: &'a Plan, stage: &Stage) -> Result<&'a Suite> {
    stage
        .suite
        .and_then(|i| eval_plan(plan).ok()?.suites.get(i))
        .ok_or_else(|| Error::input(format!("stage `{}` names no suite", stage.name)))
}

/// The problems of a suite, at most `limit` of them; `file` in place of the suite's data set.
///
/// # Errors
/// A data set or field that is not there.
pub fn problems(
    suite: &Suite,
    file: Option<&str>,
    limit: Option<usize>,
    reporter: &dyn Reporter,
) -> Result<Vec<Problem>> {
    let mut dataset = suite.dataset.clone();
    if let Some(file) = file {
        dataset.source = file.to_string();
    }
    let (files, _) = files(
        &dataset.source,
        dataset.config.as_deref(),
        dataset.split.as_deref(),
        dataset.revision.as_deref(),
        reporter,
    )?;
    data::problems(&dataset, &suite.fields, &files)?
        .take(limit.unwrap_or(usize::MAX))
        .map(|p| {
            p.map(|p| Problem {
                id: p.id,
                problem: p.problem,
                gold: p.gold,
            })
        })
        .collect()
}

/// The problems of every suite of the plan, in its order: a mistake in one shows before the training.
///
/// # Errors
/// As [`problems`]; a suite without problems.
pub fn all_problems(plan: &Plan, reporter: &dyn Reporter) -> Result<Vec<Vec<Problem>>> {
    let Some(eval) = &plan.eval else {
        return Ok(Vec::new());
    };
    let of_suite = |suite| suite_problems(suite, eval.limit, reporter);
    eval.suites.iter().map(of_suite).collect()
}

/// The problems of a suite, of which there is at least one.
///
/// # Errors
/// As [`problems`]; a suite without problems.
pub fn suite_problems(
    suite: &Suite,
    limit: Option<usize>,
    reporter: &dyn Reporter,
) -> Result<Vec<Problem>> {
    let found = problems(suite, None, limit, reporter).and_then(|found| {
        if found.is_empty() {
            let source = &suite.dataset.source;
            return Err(Error::input(format!("`{source}` holds no problem")));
        }
        Ok(found)
    });
    found.map_err(|e| e.at(format!("suite `{}`", suite.name)))
}

/// Runs the stage's suite on `model` and leaves `eval.json` and `samples.jsonl`; returns the stage's result.
///
/// # Errors
/// As [`eval::run`].
pub fn evaluate(
    context: &Context,
    student: &Student,
    model: &CausalLm,
    problems: &[Problem],
    key: &str,
) -> Result<Value> {
    let plan = context.plan;
    let suite = suite(plan, context.stage)?;
    let sampled = SuiteRun {
        suite,
        seed: plan.seed,
        batch_size: eval_plan(plan)?.batch_size,
        problems,
        key,
    };
    run_suite(&context.place(), student, model, &sampled)
}

/// A suite to be run.
pub struct SuiteRun<'a> {
    pub suite: &'a Suite,
    /// Of sampling.
    pub seed: u64,
    /// Sequences side by side.
    pub batch_size: usize,
    pub problems: &'a [Problem],
    /// Says which weights are judged.
    pub key: &'a str,
}

/// Runs a suite on `model` and leaves `eval.json` and `samples.jsonl`; returns the stage's result.
///
/// # Errors
/// As [`eval::run`].
pub fn run_suite(
    place: &Place,
    student: &Student,
    model: &CausalLm,
    run: &SuiteRun,
) -> Result<Value> {
    let (suite, chat) = (run.suite, student.chat());
    let (num_problems, k) = (run.problems.len(), suite.sampling.k);
    place.reporter.stage(
        place.name,
        &format!("{}: {num_problems} problems, {k} samples each", suite.name),
    );
    let sampling = eval::suite_sampling(suite, chat, run.seed);
    let job = EvalJob {
        suite,
        problems: run.problems,
        chat,
        k,
        sampling: &sampling,
        model_key: run.key,
        samples: &place.dir.join("samples.jsonl"),
    };
    let mut engine = LocalEngine::new(model, &chat.tokenizer, run.batch_size);
    let result = eval::run(&job, &mut engine, place.reporter, place.stop)?;
    result.write(&place.dir.join("eval.json"))?;
    let consistency = match result.language_consistency {
        Some(share) => format!(", language consistency {share:.3}"),
        None => String::new(),
    };
    place.reporter.note(&format!(
        "{}: pass@1 {:.1}% (95% interval {:.1} to {:.1}){consistency}",
        suite.name,
        100.0 * result.pass_at_1,
        100.0 * result.pass_at_1_ci95[0],
        100.0 * result.pass_at_1_ci95[1],
    ));
    Ok(json!(result))
}
