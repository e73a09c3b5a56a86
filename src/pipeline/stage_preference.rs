//! The `preference` stage of a pipeline: DPO, RPO or SimPO on pairs. It leaves `model/`.

use super::graph::{Opening, StageContext};
use super::pair_rows;
use super::stages::{self, StepLog};
use super::student::Student;
use crate::data::JudgedOptions;
use crate::recipe::Recompute;
use crate::recipe::graph::{Job, StagePlan};
use crate::recipe::plan::SftPlan;
use crate::recipe::reward_model::{RewardLoss, Scope};
use crate::train::judged_loop::JudgedJob;
use crate::train::{SftSettings, train_preference};
use crate::{Error, Result};
use serde_json::{Value, json};

/// What of a loop's settings changes its result.
pub(super) fn without_saving(plan: &SftPlan, seed: u64) -> SftSettings {
    SftSettings {
        checkpoint_every_steps: 0,
        keep_checkpoints: 0,
        recompute: Recompute::None,
        ..SftSettings::from_plan(plan, seed, "")
    }
}

/// What the model depends on besides the weights it starts from.
pub fn inputs(opening: &Opening, stage: &StagePlan, student: &Student) -> Result<Value> {
    let Job::Preference { sources, table } = &stage.job else {
        return Ok(json!({}));
    };
    let mut settings = json!(without_saving(&table.training(), stage.seed));
    settings["objective"] = json!(table.objective());
    settings["held_out"] = json!(table.held_out);
    settings["max_length"] = json!(table.max_length);
    settings["on_bad"] = json!(table.on_bad);
    let mut inputs = pair_rows::inputs(opening, stage, student, sources, &table.build)?;
    inputs["preference"] = settings;
    Ok(inputs)
}

/// Trains on the pairs; leaves `model/`.
///
/// # Errors
/// As [`pair_rows::read`] and [`train_preference`].
pub fn run(context: &StageContext) -> Result<Value> {
    let Job::Preference { sources, table } = &context.stage.job else {
        return Err(Error::input("the stage learns no preferences"));
    };
    let objective = table.objective();
    let what = format!(
        "{} on pairs of answers",
        format!("{:?}", objective.loss).to_uppercase()
    );
    context.reporter.stage(&context.stage.name, &what);
    let options = JudgedOptions {
        rows: RewardLoss::Pairwise,
        scope: Scope::All,
        bare_question: false,
        max_length: table.max_length,
        over_length: table.over_length,
        on_bad: table.on_bad,
    };
    let (rows, held_out) =
        pair_rows::read(context, sources, &table.build, &options, table.held_out)?;
    let student = context.student()?;
    let model = context.model_to_train()?;
    let settings = SftSettings::from_plan(&table.training(), context.stage.seed, context.key);
    let job = JudgedJob {
        rows: &rows,
        held_out: &held_out,
        settings: &settings,
        eval_every_steps: table.eval_every_steps,
        dir: &context.dir,
        stop: context.stop,
    };
    let mut log = StepLog::new(&context.place(), settings.total_steps(rows.len()));
    let outcome = train_preference(&model, objective, &job, &mut log)?;
    log.sync()?;
    drop(log);
    stages::save_model(&model, student, &context.dir)?;
    Ok(json!(outcome))
}
