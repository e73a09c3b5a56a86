//! What is checked of a stage by itself: tables that its kind reads, inputs that it needs, values in their range. What it
//! starts from is resolved in [`super::graph`].

use super::Eval;
use super::graph::Job;
use super::plan::{self, EvalPlan, at_least, in_range};
use super::stage::{Kind, Prompts, SamplingTable, StageEval, StageRecipe};
use crate::{Error, Result};

/// Refuses tables that the stage's kind does not read: they would change nothing, and their author believes otherwise.
pub(super) fn check_tables(stage: &StageRecipe) -> Result<()> {
    use Kind::{Eval, Generate, Grpo, Preference, RewardModel, Select, Sft};
    let tables: [(&str, bool, &[Kind]); 13] = [
        (
            "model",
            stage.model.is_some(),
            &[Sft, Grpo, Generate, RewardModel, Preference, Eval],
        ),
        (
            "student",
            stage.student.is_some(),
            &[Sft, Grpo, Generate, RewardModel, Preference, Eval],
        ),
        ("traces", stage.traces.is_some(), &[Sft]),
        ("prompts", stage.prompts.is_some(), &[Generate, Grpo]),
        (
            "samples",
            stage.samples.is_some(),
            &[Select, Preference, RewardModel],
        ),
        ("pairs", stage.pairs.is_some(), &[Preference, RewardModel]),
        (
            "rewards",
            stage.rewards.is_some(),
            &[Generate, Select, Grpo, Preference, RewardModel],
        ),
        ("sampling", stage.sampling.is_some(), &[Generate]),
        ("sft", stage.sft.is_some(), &[Sft]),
        ("select", stage.select.is_some(), &[Select]),
        ("mix", stage.mix.is_some(), &[Select]),
        ("eval", stage.eval.is_some(), &[Eval, Grpo]),
        ("grpo", stage.grpo.is_some(), &[Grpo]),
    ];
    let of_steps = stage.rewards.as_ref().is_some_and(|r| r.is_of_steps());
    if of_steps && stage.kind != Grpo {
        return Err(Error::input(format!(
            "`steps = true` among the rewards means nothing to a stage of kind `{}`",
            stage.kind.name()
        ))
        .with_hint("steps are rewarded by `grpo` with `supervision = \"process\"`"));
    }
    let late: [(&str, bool, &[Kind]); 2] = [
        ("reward_model", stage.reward_model.is_some(), &[RewardModel]),
        ("preference", stage.preference.is_some(), &[Preference]),
    ];
    for (table, is_there, kinds) in tables.into_iter().chain(late) {
        if is_there && !kinds.contains(&stage.kind) {
            let kinds: Vec<_> = kinds.iter().map(|k| format!("`{}`", k.name())).collect();
            return Err(Error::input(format!(
                "`{table}` means nothing to a stage of kind `{}`",
                stage.kind.name()
            ))
            .with_hint(format!("it belongs to stages of kind {}", kinds.join(", "))));
        }
    }
    Ok(())
}

/// An input without which the stage has nothing to do.
pub(super) fn needed<'a, T>(value: &'a Option<T>, key: &str, stage: &StageRecipe) -> Result<&'a T> {
    value.as_ref().ok_or_else(|| {
        Error::input(format!(
            "a stage of kind `{}` needs `{key}`",
            stage.kind.name()
        ))
        .with_hint(match key {
            "samples" | "pairs" => format!("add `{key} = \"@stage\"`, or a file"),
            _ => format!("add `{key} = \"@stage\"`, a file or a Hub data set"),
        })
    })
}

/// That prompts can be asked.
pub(super) fn check_prompts(prompts: &Prompts) -> Result<()> {
    if !prompts.template.contains("{problem}") {
        return Err(Error::input(
            "the `template` of the prompts has no `{problem}`",
        ));
    }
    match prompts.limit {
        Some(limit) => at_least("prompts.limit", limit, 1),
        None => Ok(()),
    }
}

/// That an answer can be sampled so.
pub(super) fn check_sampling(sampling: &SamplingTable) -> Result<()> {
    at_least("sampling.num_samples", sampling.num_samples, 1)?;
    at_least("sampling.max_new_tokens", sampling.max_new_tokens, 1)?;
    at_least("sampling.batch_size", sampling.batch_size, 1)?;
    in_range("sampling.temperature", sampling.temperature, 0.0, 1e3)?;
    in_range("sampling.top_p", sampling.top_p, f64::MIN_POSITIVE, 1.0)?;
    in_range("sampling.min_p", sampling.min_p, 0.0, 1.0)?;
    in_range(
        "sampling.repetition_penalty",
        sampling.repetition_penalty,
        1e-3,
        1e3,
    )?;
    if sampling.stop.iter().any(String::is_empty) {
        return Err(Error::input(
            "`sampling.stop` holds an empty text, which would end every answer",
        ));
    }
    Ok(())
}

fn eval_plan(table: &StageEval) -> Result<EvalPlan> {
    let all = plan::resolve_eval(&Eval {
        suites: table.suites.clone(),
        before: false,
        num_samples: table.num_samples,
        limit: table.limit,
        max_new_tokens: table.max_new_tokens,
        batch_size: table.batch_size,
    })?;
    match all.suites.is_empty() {
        true => Err(Error::input("`eval.suites` is empty")),
        false => Ok(all),
    }
}

/// The suites that a stage asks while it learns.
pub(super) fn asked_while_learning(stage: &StageRecipe) -> Result<Option<EvalPlan>> {
    let Some(table) = &stage.eval else {
        return Ok(None);
    };
    if !table.seeds.is_empty() {
        return Err(Error::input(
            "`eval.seeds` means nothing to a stage of kind `grpo`",
        ));
    }
    eval_plan(table).map(Some)
}

/// A stage for each suite and seed.
pub(super) fn evaluations(stage: &StageRecipe, seed: u64) -> Result<Vec<(String, u64, Job)>> {
    let table = stage.eval.as_ref().ok_or_else(|| {
        Error::input("a stage of kind `eval` needs `[stage.eval]`")
            .with_hint("add `[stage.eval]` with `suites = [\"math-500\"]`")
    })?;
    let all = eval_plan(table)?;
    let seeds = match table.seeds.is_empty() {
        true => vec![seed],
        false => table.seeds.clone(),
    };
    let mut jobs = Vec::new();
    for suite in &all.suites {
        for &seed in &seeds {
            let mut suffix = String::new();
            if all.suites.len() > 1 {
                suffix += &format!("-{}", suite.name);
            }
            if seeds.len() > 1 {
                suffix += &format!("-seed{seed}");
            }
            let one = EvalPlan {
                suites: vec![suite.clone()],
                ..all.clone()
            };
            jobs.push((suffix, seed, Job::Eval(one)));
        }
    }
    Ok(jobs)
}

/// What can name a stage: its folder, and what `--set` calls it.
pub(super) fn check_stage_name(name: &str) -> Result<()> {
    plan::check_name(name)?;
    // `--set stage.NAME.key=value` must not mean something else
    if name.contains('.') || name.chars().all(|c| c.is_ascii_digit()) {
        return Err(Error::input(format!("`{name}` cannot name a stage"))
            .with_hint("use letters, digits, `-` and `_`, and not only digits"));
    }
    Ok(())
}
