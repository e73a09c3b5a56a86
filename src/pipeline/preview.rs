//! Rows as the trainer will see them, cut where trained and masked text meet.

use super::folder::ScratchDir;
use super::stage_select::TRACES;
use super::stages::{build_options, trace_sources};
use super::student::Student;
use crate::data::Store;
use crate::progress::{Reporter, Stop};
use crate::recipe::graph::{Job, PipelinePlan, StagePlan};
use crate::recipe::plan::Plan;
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct PreviewRow {
    /// Where it came from.
    pub name: String,
    /// Text and whether it is trained, in order.
    pub segments: Vec<(String, bool)>,
    pub num_tokens: usize,
    pub num_trained: usize,
}

/// The first `n` rows of a plan's traces. Only as many rows are read as that takes.
///
/// # Errors
/// A source that cannot be read, no row left.
pub fn preview(
    plan: &Plan,
    n: usize,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Vec<PreviewRow>> {
    let student = Student::open(plan, reporter)?;
    let mut sources = trace_sources(plan, None, reporter)?;
    for source in &mut sources {
        let limit = source.spec.limit.unwrap_or(usize::MAX).min(n);
        source.spec.limit = Some(limit);
    }
    let dir = ScratchDir::new("preview")?;
    let (store, _) = Store::build(
        &build_options(plan),
        &sources,
        student.chat(),
        dir.path(),
        reporter,
        stop,
    )?;
    (0..store.len().min(n))
        .map(|i| row(&store, i, &student))
        .collect()
}

/// The `sft` stage called `name`, or the first one, as a plan of its own. Traces of earlier stages are those that a run in
/// `run_dir` has left.
///
/// # Errors
/// No such stage, or one of another kind; traces that no run has left yet.
pub fn stage_of(plan: &PipelinePlan, name: Option<&str>, run_dir: Option<&Path>) -> Result<Plan> {
    let learns = |stage: &&StagePlan| matches!(stage.job, Job::Sft { .. });
    let names = || plan.stages.iter().filter(learns).map(|s| s.name.as_str());
    let stage = match name {
        None => plan.stages.iter().find(learns),
        Some(name) => plan.stage(name),
    };
    let Some(stage) = stage else {
        let what = match name {
            None => "the recipe has no stage of kind `sft`".into(),
            Some(name) => format!("`--stage {name}`: no such stage"),
        };
        return Err(Error::input(what).with_hint(format!(
            "rows are shown of stages of kind `sft`: {}",
            names().collect::<Vec<_>>().join(", ")
        )));
    };
    let mut flat = plan.sft(stage)?;
    let root = run_dir.map_or_else(|| Path::new("runs").join(&plan.name), Path::to_path_buf);
    for traces in &mut flat.traces {
        let Some(earlier) = traces.source.strip_prefix('@') else {
            continue;
        };
        let path = root.join(earlier).join(TRACES);
        if !path.is_file() {
            return Err(Error::input(format!(
                "stage `{}` learns from `@{earlier}`, which has not run yet in `{}`",
                stage.name,
                root.display()
            ))
            .with_hint("run the recipe first, or name its folder with `--run-dir`"));
        }
        traces.source = path.display().to_string();
    }
    Ok(flat)
}

fn row(store: &Store, i: usize, student: &Student) -> Result<PreviewRow> {
    let (tokens, trained) = (store.tokens(i), store.trained(i));
    let mut segments = Vec::new();
    let mut start = 0;
    for end in 1..=tokens.len() {
        if end == tokens.len() || trained[end] != trained[start] {
            let text = student
                .chat()
                .tokenizer
                .decode(&tokens[start..end], false)?;
            segments.push((text, trained[start] != 0));
            start = end;
        }
    }
    Ok(PreviewRow {
        name: store.name(i),
        segments,
        num_tokens: tokens.len(),
        num_trained: trained.iter().filter(|&&t| t != 0).count(),
    })
}
