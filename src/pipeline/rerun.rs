//! Which stages of a pipeline are thrown away and run again: those that are asked for, with all that comes of them, and those
//! that have changed and cost little. Any other that has changed is refused.

use crate::recipe::graph::PipelinePlan;
use crate::recipe::load::closest;
use crate::recipe::stage::Kind;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a run folder holds of a stage.
pub(super) enum State {
    New,
    Begun,
    Finished(Value),
    /// Something else was run there; the first difference.
    Changed(String),
}

/// The stages that are named, and those that depend on them.
pub(super) fn asked_again<'a>(plan: &'a PipelinePlan, rerun: &[String]) -> BTreeSet<&'a str> {
    let mut again: BTreeSet<&str> = BTreeSet::new();
    for stage in &plan.stages {
        let is_meant = rerun.iter().any(|r| names_stage(plan, r, &stage.name));
        if is_meant || stage.inputs().iter().any(|input| again.contains(input)) {
            again.insert(&stage.name);
        }
    }
    again
}

/// The stages whose folders are thrown away: those that run `again`, and those that cost little and have changed.
pub(super) fn to_redo<'a>(
    plan: &'a PipelinePlan,
    states: &[State],
    again: BTreeSet<&'a str>,
) -> Result<BTreeSet<&'a str>> {
    let mut redo = again;
    let mut changed: BTreeMap<&str, &str> = BTreeMap::new();
    // changes that are not asked for and cannot be made lightly: what they come from
    let mut refused: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (stage, state) in plan.stages.iter().zip(states) {
        let name = stage.name.as_str();
        if redo.contains(name) {
            continue;
        }
        let State::Changed(_) = state else { continue };
        let origin = stage.inputs().iter().find_map(|i| changed.get(i).copied());
        changed.insert(name, origin.unwrap_or(name));
        if !matches!(stage.kind, Kind::Eval | Kind::Select) {
            refused
                .entry(origin.unwrap_or(name))
                .or_default()
                .push(name);
        }
    }
    let Some((first, _)) = refused.first_key_value() else {
        redo.extend(changed.keys());
        return Ok(redo);
    };
    let why = plan
        .stages
        .iter()
        .zip(states)
        .find_map(|(stage, state)| match state {
            State::Changed(why) if stage.name == *first => Some(why.as_str()),
            _ => None,
        });
    let mut message = format!(
        "stage `{first}` was run with other settings: {}",
        why.unwrap_or_default()
    );
    let depending: Vec<String> = refused
        .iter()
        .flat_map(|(origin, names)| names.iter().filter(move |name| *name != origin))
        .map(|name| format!("`{name}`"))
        .collect();
    if !depending.is_empty() {
        message += &format!("; what it left is used by {}", depending.join(", "));
    }
    let flags: Vec<String> = refused.keys().map(|n| format!("--rerun {n}")).collect();
    Err(Error::input(message).with_hint(format!(
        "`{}` throws away what {} and the stages that depend on it left, and runs them again; `--run-dir` keeps both",
        flags.join(" "),
        if flags.len() == 1 { "it" } else { "each" }
    )))
}

/// Whether `--rerun text` means the stage: by its name, or by that of an evaluation with several suites or seeds.
fn names_stage(plan: &PipelinePlan, text: &str, stage: &str) -> bool {
    let part_of = plan.stage(stage).and_then(|s| s.part_of.as_deref());
    text == stage || (part_of == Some(text) && plan.stage(text).is_none())
}

/// That every `--rerun` names a stage.
pub(super) fn check_rerun(plan: &PipelinePlan, rerun: &[String]) -> Result<()> {
    let names = || plan.stages.iter().map(|stage| stage.name.as_str());
    for text in rerun {
        if !names().any(|name| names_stage(plan, text, name)) {
            let hint = match closest(text, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the stages are {}", names().collect::<Vec<_>>().join(", ")),
            };
            return Err(Error::input(format!("`--rerun {text}`: no such stage")).with_hint(hint));
        }
    }
    Ok(())
}
