//! `report.html`: the frame of the page, its headline numbers, and the file. What stands in it is in `sections`.
//!
//! One file without scripts and without anything fetched from elsewhere.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::data::{Evaluation, ReportData, StageReport};
use super::plot::short;
use super::{answers, learning, sections, stages};
use crate::{Error, Result};

/// Writes `run_dir/report.html` and returns its path.
pub fn write(run_dir: &Path, data: &ReportData) -> Result<PathBuf> {
    let path = run_dir.join("report.html");
    let beside = run_dir.join(".report.html.new");
    std::fs::write(&beside, page(data)).map_err(|e| Error::io("writing", &beside, e))?;
    std::fs::rename(&beside, &path).map_err(|e| Error::io("writing", &path, e))?;
    Ok(path)
}

/// The whole page.
pub fn page(data: &ReportData) -> String {
    let sections = [
        ("stages", "Stages", stages::overview(data)),
        ("evaluation", "Evaluation", sections::evaluation(data)),
        ("training", "Training", sections::training(data)),
        (
            "learning",
            "Rewards and preferences",
            learning::learning(data),
        ),
        ("selection", "Selection", stages::selections(data)),
        ("data", "Data", sections::data(data)),
        (
            "answers",
            "Answers before and after",
            answers::answers(data),
        ),
        ("settings", "Settings", sections::settings(data)),
        ("result", "Result and how to use it", sections::result(data)),
    ];
    let title = escape(&data.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · distill</title>\n<style>\n{}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        include_str!("page.css")
    );
    let _ = writeln!(page, "<p class=\"lead\">{}</p>", escape(&lead(data)));
    page.push_str("<nav aria-label=\"Sections\">");
    for (id, heading, _) in sections.iter().filter(|(.., body)| body.is_some()) {
        let _ = write!(page, "<a href=\"#{id}\">{heading}</a>");
    }
    page.push_str("</nav>\n</header>\n<main>\n");
    page.push_str(&tiles(data));
    page.push_str(&missing(&data.missing));
    for (id, heading, body) in &sections {
        if let Some(body) = body {
            let _ = write!(
                page,
                "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n{body}</section>\n"
            );
        }
    }
    let _ = write!(
        page,
        "</main>\n<footer>Written by distill {}. Every number is from the files of this run folder; <code>distill report</code> makes this page anew.</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    page
}

/// One line: what was trained on what, and how far it got.
fn lead(data: &ReportData) -> String {
    let fact = |key: &str| {
        data.facts
            .iter()
            .chain(&data.settings)
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.clone())
    };
    let mut parts = Vec::new();
    let model = fact("model")
        .or_else(|| fact("student.card"))
        .or_else(|| fact("student.source"));
    let parameters = fact("num_parameters").and_then(|n| n.parse::<f64>().ok());
    parts.extend(model.map(|model| match parameters {
        Some(n) => format!("{model}, {} parameters", short(n)),
        None => model,
    }));
    parts.extend(fact("device").map(|device| format!("on {device}")));
    let unfinished = data.stages.iter().filter(|stage| {
        stage
            .facts
            .iter()
            .any(|(k, v)| k == "status" && v != "finished")
    });
    let open: Vec<&str> = unfinished.map(|stage| stage.name.as_str()).collect();
    parts.push(match open.len() {
        0 => format!("{} stages, all finished", data.stages.len()),
        _ => format!("not finished: {}", open.join(", ")),
    });
    parts.join(" · ")
}

/// The numbers one looks for first.
fn tiles(data: &ReportData) -> String {
    let mut tiles: Vec<(String, String)> = Vec::new();
    for (suite, before, after) in suites(&data.evaluations) {
        let last = after.or(before).map_or(f64::NAN, |e| e.pass_at_1);
        let value = match (before, after) {
            (Some(before), Some(_)) => format!("{} → {}", percent(before.pass_at_1), percent(last)),
            _ => percent(last),
        };
        tiles.push((value, format!("pass@1, {suite}")));
    }
    let steps: Vec<_> = data.stages.iter().flat_map(|stage| &stage.steps).collect();
    let losses: Vec<f64> = steps.iter().filter_map(|step| step.loss).collect();
    // the losses of several stages have nothing to do with each other
    if let (Some(first), Some(_), false) = (losses.first(), losses.last(), data.is_pipeline) {
        // one step's loss is noise
        let tail = &losses[losses.len() - losses.len().div_ceil(20)..];
        let end = tail.iter().sum::<f64>() / tail.len() as f64;
        tiles.push((
            format!("{} → {}", short(*first), short(end)),
            "loss, first step and end".into(),
        ));
        tiles.push((group(steps.len() as u64), "optimiser steps".into()));
    }
    if let Some(seen) = steps.iter().filter_map(|step| step.num_tokens).next_back() {
        tiles.push((short(seen), "tokens seen".into()));
    }
    if let Some(report) = data.stages.iter().find_map(|stage| stage.data.as_ref())
        && !data.is_pipeline
    {
        let dropped = report.num_dropped();
        tiles.push((
            group(report.kept),
            format!("rows kept, {} dropped", group(dropped)),
        ));
    }
    if let Some((_, seconds)) = data.facts.iter().find(|(key, _)| key == "seconds")
        && let Ok(seconds) = seconds.parse::<f64>()
    {
        tiles.push((duration(seconds), "from start to end".into()));
    }
    if tiles.is_empty() {
        return String::new();
    }
    let tile = |(value, label): &(String, String)| {
        format!(
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>",
            escape(value),
            escape(label)
        )
    };
    format!(
        "<div class=\"tiles\">{}</div>\n",
        tiles.iter().map(tile).collect::<String>()
    )
}

fn missing(missing: &[String]) -> String {
    if missing.is_empty() {
        return String::new();
    }
    let items: String = missing
        .iter()
        .map(|item| format!("<li><code>{}</code></li>", escape(item)))
        .collect();
    format!(
        "<div class=\"notice\" role=\"note\"><b>Not in this run folder:</b><ul>{items}</ul></div>\n"
    )
}

/// Each suite with its first and last result. A suite that was run once has it as the last, unless its stage says
/// that it was run before training.
pub(super) fn suites(
    evaluations: &[Evaluation],
) -> Vec<(&str, Option<&Evaluation>, Option<&Evaluation>)> {
    let mut names: Vec<&str> = Vec::new();
    for evaluation in evaluations {
        if !names.contains(&evaluation.suite.as_str()) {
            names.push(&evaluation.suite);
        }
    }
    let is_early = |e: &&Evaluation| e.stage.contains("before");
    let results = |name| {
        let mut of_suite = evaluations.iter().filter(|e| e.suite == name);
        let (first, last) = (of_suite.next(), of_suite.next_back());
        match last {
            Some(last) => (name, first, Some(last)),
            None => (name, first.filter(is_early), first.filter(|e| !is_early(e))),
        }
    };
    names.into_iter().map(results).collect()
}

/// A training stage has steps or says that it trains.
pub(super) fn trains(stage: &StageReport) -> bool {
    !stage.steps.is_empty() || stage.kind == "sft"
}

/// Text for HTML, in elements and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // not allowed in HTML, and sampled text may hold them
            '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\x7f' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

pub(super) fn percent(share: f64) -> String {
    match share.is_finite() {
        true => format!("{:.1}%", share * 100.0),
        false => "n/a".into(),
    }
}

/// `12,345`.
pub(super) fn group(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        s => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_text_cannot_break_the_page() {
        assert_eq!(
            escape("<b a=\"x\">&'\u{0}\n"),
            "&lt;b a=&quot;x&quot;&gt;&amp;&#39;\u{fffd}\n"
        );
    }

    #[test]
    fn numbers_in_words() {
        assert_eq!(
            [group(7), group(1234), group(1_234_567)],
            ["7", "1,234", "1,234,567"]
        );
        assert_eq!(duration(3.6), "4 s");
        assert_eq!(duration(125.0), "2 min 05 s");
        assert_eq!(percent(0.125), "12.5%");
    }

    #[test]
    fn before_and_after_of_each_suite() {
        let evaluation = |stage: &str, suite: &str| Evaluation {
            stage: stage.into(),
            suite: suite.into(),
            ..Evaluation::default()
        };
        let all = [
            evaluation("eval-before", "a"),
            evaluation("eval", "a"),
            evaluation("eval", "b"),
            evaluation("eval-before-c", "c"),
        ];
        let names: Vec<_> = suites(&all)
            .into_iter()
            .map(|(suite, before, after)| {
                (
                    suite,
                    before.map(|e| e.stage.as_str()),
                    after.map(|e| e.stage.as_str()),
                )
            })
            .collect();
        assert_eq!(
            names,
            [
                ("a", Some("eval-before"), Some("eval")),
                ("b", None, Some("eval")),
                ("c", Some("eval-before-c"), None)
            ]
        );
    }
}
