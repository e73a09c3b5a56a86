//! The `reward-model` stage of a pipeline: a model that scores, learnt from pairs or labelled answers. It leaves `model/`,
//! which transformers reads too, and beside the weights what it was made to see.

use super::graph::{Opening, StageContext};
use super::pair_rows;
use super::stage_preference::without_saving;
use super::stages::{self, StepLog};
use super::student::Student;
use crate::data::JudgedOptions;
use crate::model::RewardModel;
use crate::recipe::graph::{Job, StagePlan};
use crate::reward::model_score::{self, Seen};
use crate::train::judged_loop::JudgedJob;
use crate::train::reward_model::RewardObjective;
use crate::train::{SftSettings, train_reward_model};
use crate::{Error, Result};
use serde_json::{Value, json};

/// What the model depends on besides the weights it starts from.
pub fn inputs(opening: &Opening, stage: &StagePlan, student: &Student) -> Result<Value> {
    let Job::RewardModel { sources, table } = &stage.job else {
        return Ok(json!({}));
    };
    let mut settings = json!(without_saving(&table.training(), stage.seed));
    settings["loss"] = json!(table.loss);
    settings["scope"] = json!(table.scope);
    settings["center_coefficient"] = json!(table.center_coefficient);
    settings["held_out"] = json!(table.held_out);
    settings["max_length"] = json!(table.max_length);
    settings["on_bad"] = json!(table.on_bad);
    let mut inputs = pair_rows::inputs(opening, stage, student, sources, &table.build)?;
    inputs["reward_model"] = settings;
    Ok(inputs)
}

/// Trains on the pairs; leaves `model/`.
///
/// # Errors
/// As [`pair_rows::read`] and [`train_reward_model`].
pub fn run(context: &StageContext) -> Result<Value> {
    let Job::RewardModel { sources, table } = &context.stage.job else {
        return Err(Error::input("the stage makes no reward model"));
    };
    context
        .reporter
        .stage(&context.stage.name, "a reward model from preferences");
    let options = JudgedOptions {
        rows: table.loss,
        scope: table.scope,
        bare_question: true,
        max_length: table.max_length,
        over_length: table.over_length,
        on_bad: table.on_bad,
    };
    let (rows, held_out) =
        pair_rows::read(context, sources, &table.build, &options, table.held_out)?;
    let student = context.student()?;
    let chat = student.chat();
    let special = |name: &str| chat.tokenizer.special_id(name);
    let pad = special("pad_token").or_else(|| special("eos_token"));
    let model = RewardModel::from_lm(context.model()?, pad, context.stage.seed)?;
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
    let objective = RewardObjective {
        center_coefficient: table.center_coefficient,
    };
    let outcome = train_reward_model(&model, objective, &job, &mut log)?;
    log.sync()?;
    drop(log);
    stages::publish_folder(&context.dir, "model", |beside| {
        model.save(beside, stages::MAX_SHARD_BYTES)?;
        chat.save(beside)?;
        model_score::save_seen(beside, &Seen { scope: table.scope })
    })?;
    Ok(json!(outcome))
}
