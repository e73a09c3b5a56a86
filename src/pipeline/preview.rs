//! Rows as the trainer will see them, cut where trained and masked text meet.

use super::folder::ScratchDir;
use super::open::Student;
use super::stages::{build_options, trace_sources};
use crate::Result;
use crate::data::Store;
use crate::progress::{Reporter, Stop};
use crate::recipe::plan::Plan;
use serde::Serialize;

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
