//! The section of answers: the same problems answered at two times, side by side.

use std::fmt::Write;

use super::data::{Evaluation, ReportData, Sample};
use super::html::{escape, suites};

/// Problems shown side by side.
const NUM_ANSWERS: usize = 6;

/// The same problems answered before and after.
pub fn answers(data: &ReportData) -> Option<String> {
    let mut html = String::new();
    for (suite, before, after) in suites(&data.evaluations) {
        let problems = chosen(before, after);
        if problems.is_empty() {
            continue;
        }
        let _ = writeln!(
            html,
            "<p class=\"soft\">{} problems of {}, evenly spread; one sample each.</p>",
            problems.len(),
            escape(suite)
        );
        for (early, late) in problems {
            let Some(known) = late.or(early) else {
                continue;
            };
            let gold = known
                .gold
                .as_deref()
                .map(|gold| format!(" <span class=\"soft\">(answer: {})</span>", escape(gold)));
            let _ = writeln!(
                html,
                "<p class=\"problem\"><b>{}</b>{}</p><div class=\"pair\">{}{}</div>",
                escape(&known.problem),
                gold.unwrap_or_default(),
                early.map_or(String::new(), |s| answer(when(before, "Before"), s)),
                late.map_or(String::new(), |s| answer(when(after, "After"), s))
            );
        }
    }
    (!html.is_empty()).then_some(html)
}

/// Problems evenly spread, each with its first sample of either time.
fn chosen<'a>(
    before: Option<&'a Evaluation>,
    after: Option<&'a Evaluation>,
) -> Vec<(Option<&'a Sample>, Option<&'a Sample>)> {
    let samples = |e: Option<&'a Evaluation>| e.map_or(&[][..], |e| &e.samples[..]);
    let (before, after) = (samples(before), samples(after));
    let mut problems: Vec<&str> = Vec::new();
    for sample in if after.is_empty() { before } else { after } {
        if problems.last() != Some(&sample.problem.as_str()) {
            problems.push(&sample.problem);
        }
    }
    let every = problems.len().div_ceil(NUM_ANSWERS).max(1);
    let find = |samples: &'a [Sample], problem: &str| samples.iter().find(|s| s.problem == problem);
    problems
        .iter()
        .step_by(every)
        .map(|p| (find(before, p), find(after, p)))
        .collect()
}

/// Whose answer it is: in a pipeline, of the model after that stage.
fn when<'a>(evaluation: Option<&'a Evaluation>, or: &'a str) -> &'a str {
    evaluation.and_then(|e| e.model.as_deref()).unwrap_or(or)
}

fn answer(when: &str, sample: &Sample) -> String {
    let when = escape(when);
    let verdict = match sample.verdict.as_deref() {
        Some("correct") => "<span class=\"correct\">✓ correct</span>".into(),
        Some(other) => format!("<span class=\"wrong\">✗ {}</span>", escape(other)),
        None => String::new(),
    };
    let cut = if sample.finish_reason.as_deref() == Some("length") {
        ", cut off"
    } else {
        ""
    };
    let (think, rest) = split_thinking(&sample.text);
    let think = think.map_or(String::new(), |t| {
        format!("<div class=\"think\">{}</div>", escape(t.trim()))
    });
    let rest = match rest.trim() {
        "" => "<span class=\"soft\">(no answer)</span>".into(),
        rest => escape(rest),
    };
    format!(
        "<article class=\"answer\"><header><span>{when}{cut}</span>{verdict}</header><div class=\"text\" tabindex=\"0\" role=\"region\" aria-label=\"{when}\">{think}{rest}</div></article>"
    )
}

/// What stands before `</think>` and what after it. Thinking that never ends is all thinking.
fn split_thinking(text: &str) -> (Option<&str>, &str) {
    let inner = text.trim_start().strip_prefix("<think>");
    match (inner.unwrap_or(text).split_once("</think>"), inner) {
        (Some((think, rest)), _) => (Some(think), rest),
        (None, Some(think)) => (Some(think), ""),
        (None, None) => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_told_from_the_answer() {
        assert_eq!(split_thinking("<think>a</think>b"), (Some("a"), "b"));
        assert_eq!(split_thinking("a</think>b"), (Some("a"), "b")); // the template opened it
        assert_eq!(split_thinking("<think>a"), (Some("a"), ""));
        assert_eq!(split_thinking("b"), (None, "b"));
    }
}
