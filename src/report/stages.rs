//! The sections that only a pipeline of several stages has: what ran, all evaluations by stage, what became of
//! samples. Training by rewards or preferences is in [`super::learning`].

use std::fmt::Write;

use super::data::{Evaluation, ReportData, Selection, StageReport};
use super::html::{escape, group, percent};
use super::plot::{intervals, short};

/// Stages in order with what they left, and the table of all evaluations.
pub fn overview(data: &ReportData) -> Option<String> {
    if !data.is_pipeline {
        return None;
    }
    let mut html = String::from("<div class=\"wide\"><table><thead><tr>");
    for heading in ["stage", "kind", "starts from", "status", "what it left"] {
        let _ = write!(html, "<th scope=\"col\">{heading}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for stage in &data.stages {
        let _ = write!(html, "<tr><td>{}</td>", escape(&stage.name));
        let from = match stage.inputs.is_empty() {
            true => "–".to_string(),
            false => stage.inputs.join(", "),
        };
        for text in [&stage.kind, &from, &status(stage), &left(stage, data)] {
            let _ = write!(html, "<td>{}</td>", escape(text));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    html.push_str(&by_stage(&data.evaluations));
    Some(html)
}

fn status(stage: &StageReport) -> String {
    let status = stage.facts.iter().find(|(key, _)| key == "status");
    status.map_or("not begun".into(), |(_, value)| value.clone())
}

/// The few numbers that say what a stage did.
fn left(stage: &StageReport, data: &ReportData) -> String {
    let fact = |key: &str| {
        let found = stage.facts.iter().find(|(k, _)| k == key);
        found.and_then(|(_, value)| value.parse::<f64>().ok())
    };
    let count = |key: &str, what: &str| fact(key).map(|n| format!("{} {what}", group(n as u64)));
    let share = |key: &str, what: &str| fact(key).map(|s| format!("{} {what}", percent(s)));
    let parts = match stage.kind.as_str() {
        "generate" => vec![
            count("num_samples", "samples"),
            share("correct_share", "correct"),
            fact("reward_mean").map(|r| format!("mean reward {}", short(r))),
            fact("num_tokens_mean").map(|n| format!("{} tokens on average", short(n))),
            share("truncated_share", "cut off"),
        ],
        "select" => vec![
            count("num_kept", "samples kept"),
            count("num_traces", "traces"),
        ],
        "eval" => {
            let of_stage = data.evaluations.iter().find(|e| e.stage == stage.name);
            vec![of_stage.map(|e| format!("{} {}", e.suite, percent(e.pass_at_1)))]
        }
        "grpo" => vec![
            count("num_steps", "updates"),
            count("num_completions", "completions"),
            fact("reward").map(|r| format!("reward {}", short(r))),
            fact("num_alarms")
                .filter(|n| *n > 0.0)
                .map(|n| format!("{n} alarms")),
        ],
        _ => vec![
            count("num_steps", "steps"),
            count("num_tokens", "tokens"),
            fact("loss").map(|loss| format!("loss {}", short(loss))),
            share("held_out_accuracy", "of held-out rows told apart"),
        ],
    };
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(", ")
}

/// Every model that was evaluated against every suite, with intervals: drawn, and in numbers.
fn by_stage(evaluations: &[Evaluation]) -> String {
    let mut suites: Vec<&str> = Vec::new();
    let mut models: Vec<String> = Vec::new();
    for evaluation in evaluations {
        if !suites.contains(&evaluation.suite.as_str()) {
            suites.push(&evaluation.suite);
        }
        let name = of_model(evaluation);
        if !models.contains(&name) {
            models.push(name);
        }
    }
    if suites.is_empty() {
        return String::new();
    }
    let find = |model: &str, suite: &str| -> Vec<&Evaluation> {
        let same = |e: &&Evaluation| e.suite == suite && of_model(e) == model;
        evaluations.iter().filter(same).collect()
    };
    let mut html = String::from("<h3>Evaluations by stage</h3>\n<div class=\"plots\">");
    for suite in &suites {
        let rows: Vec<_> = models
            .iter()
            .flat_map(|model| {
                let found = find(model, suite);
                found
                    .into_iter()
                    .map(move |e| (model.as_str(), e.pass_at_1, e.pass_at_1_ci95))
            })
            .collect();
        let _ = write!(
            html,
            "<figure><figcaption><b>{}</b>: pass@1 with its 95% interval</figcaption>{}</figure>",
            escape(suite),
            intervals(&format!("pass@1 on {suite} by stage"), &rows)
        );
    }
    html.push_str("</div>\n<div class=\"wide\"><table><caption>pass@1 in percent, with its 95% interval</caption><thead><tr><th scope=\"col\">model after</th>");
    for suite in &suites {
        let _ = write!(html, "<th scope=\"col\" class=\"n\">{}</th>", escape(suite));
    }
    html.push_str("</tr></thead><tbody>");
    for model in &models {
        let _ = write!(html, "<tr><td>{}</td>", escape(model));
        for suite in &suites {
            let cells: Vec<String> = find(model, suite).into_iter().map(cell).collect();
            let text = match cells.is_empty() {
                true => "–".into(),
                false => cells.join("<br>"),
            };
            let _ = write!(html, "<td class=\"n\">{text}</td>");
        }
        html.push_str("</tr>");
    }
    html + "</tbody></table></div>\n"
}

fn of_model(evaluation: &Evaluation) -> String {
    let model = evaluation.model.as_deref();
    model.unwrap_or(&evaluation.stage).to_string()
}

fn cell(e: &Evaluation) -> String {
    let interval = e.pass_at_1_ci95.map_or(String::new(), |(lo, hi)| {
        format!(
            " <span class=\"soft\">({} – {})</span>",
            percent(lo),
            percent(hi)
        )
    });
    format!("{}{interval}", percent(e.pass_at_1))
}

/// What became of the samples of every selection.
pub fn selections(data: &ReportData) -> Option<String> {
    let mut html = String::new();
    for stage in &data.stages {
        if let Some(selection) = &stage.selection {
            html.push_str(&selected(stage, selection));
        }
    }
    (!html.is_empty()).then_some(html)
}

fn selected(stage: &StageReport, s: &Selection) -> String {
    let mut html = format!(
        "<h3>{}</h3>\n<p>{} of {} samples are kept, for {} of {} prompts.",
        escape(&stage.name),
        group(s.num_kept),
        group(s.num_samples),
        group(s.num_prompts_kept),
        group(s.num_prompts)
    );
    if let Some(rate) = s.pass_rate_mean {
        let _ = write!(html, " The mean pass rate is {}.", percent(rate));
    }
    if let Some(tokens) = s.num_tokens_mean {
        let _ = write!(
            html,
            " A kept sample has {} tokens on average.",
            short(tokens)
        );
    }
    html.push_str("</p>\n");
    if !s.dropped.is_empty() {
        html.push_str("<div class=\"wide\"><table><thead><tr><th scope=\"col\">not kept because</th><th scope=\"col\" class=\"n\">samples</th><th scope=\"col\" class=\"n\">share</th><th scope=\"col\">for example</th></tr></thead><tbody>");
        for d in &s.dropped {
            let share = d.count as f64 / s.num_samples.max(1) as f64;
            let _ = write!(
                html,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
                escape(&d.reason.replace('_', " ")),
                group(d.count),
                percent(share),
                escape(&d.examples.join(", "))
            );
        }
        html.push_str("</tbody></table></div>\n");
    }
    for mixed in &s.mix {
        let _ = writeln!(
            html,
            "<p class=\"soft\">Mixed in: {} traces of {}{}.</p>",
            group(mixed.num_traces),
            escape(&mixed.source),
            match mixed.num_dropped {
                0 => String::new(),
                n => format!(", {} rows passed over", group(n)),
            }
        );
    }
    html
}
