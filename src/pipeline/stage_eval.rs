//! The `eval` stage of a pipeline: one suite on one model with one seed.

use super::folder::key_of;
use super::graph::{Opening, StageContext};
use super::student::Student;
use super::suites::{SuiteRun, run_suite, suite_problems};
use crate::recipe::plan::EvalPlan;
use crate::recipe::suite::Suite;
use crate::{Error, Result};
use serde_json::{Value, json};

/// What the result depends on besides the model: the problems and how they are asked.
pub fn inputs(opening: &Opening, eval: &EvalPlan, student: &Student) -> Result<Value> {
    let suite = only(eval)?;
    let problems = suite_problems(suite, eval.limit, opening.reporter)?;
    let problems: Vec<_> = problems
        .iter()
        .map(|p| (&p.id, &p.problem, &p.gold))
        .collect();
    Ok(json!({
        "problems": key_of(&problems)?,
        "suite": suite,
        "limit": eval.limit,
        "template": student.chat().template()?.source(),
    }))
}

/// Runs the suite; leaves `eval.json` and `samples.jsonl`.
///
/// # Errors
/// As [`run_suite`].
pub fn run(context: &StageContext, eval: &EvalPlan) -> Result<Value> {
    let suite = only(eval)?;
    let problems = suite_problems(suite, eval.limit, context.reporter)?;
    let model = context.model()?;
    let run = SuiteRun {
        suite,
        seed: context.stage.seed,
        batch_size: eval.batch_size,
        problems: &problems,
        key: context.key,
    };
    run_suite(&context.place(), context.student()?, &model, &run)
}

fn only(eval: &EvalPlan) -> Result<&Suite> {
    eval.suites
        .first()
        .ok_or_else(|| Error::input("the evaluation has no suite"))
}
