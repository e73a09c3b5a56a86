//! The sections of the page, each a function of the data; `None` where there is nothing to show.

use std::fmt::Write;

use super::data::{ReportData, StageReport, Step};
use super::html::{duration, escape, group, percent, suites, trains};
use super::plot::{Curve, histogram, intervals, short};

/// pass@1 before and after, drawn and in numbers.
pub fn evaluation(data: &ReportData) -> Option<String> {
    if data.evaluations.is_empty() {
        return None;
    }
    let mut html = String::from("<div class=\"plots\">");
    // a pipeline's are drawn by stage, among the stages
    let drawn = match data.is_pipeline {
        true => Vec::new(),
        false => suites(&data.evaluations),
    };
    for (suite, before, after) in drawn {
        let rows: Vec<_> = [("before", before), ("after", after)]
            .into_iter()
            .filter_map(|(name, e)| e.map(|e| (name, e.pass_at_1, e.pass_at_1_ci95)))
            .collect();
        let _ = write!(
            html,
            "<figure><figcaption><b>{}</b>: pass@1 with its 95% interval</figcaption>{}</figure>",
            escape(suite),
            intervals(&format!("pass@1 on {suite}"), &rows)
        );
    }
    html.push_str("</div>\n<div class=\"wide\"><table><caption>All results. pass@1 is the mean over k samples a problem, cons@k the majority's answer.</caption><thead><tr>");
    for (heading, class) in [
        ("suite", ""),
        ("when", ""),
        ("pass@1", "n"),
        ("95% interval", "n"),
        ("cons@k", "n"),
        ("problems", "n"),
        ("k", "n"),
        ("mean tokens", "n"),
        ("cut off", "n"),
    ] {
        let _ = write!(html, "<th scope=\"col\" class=\"{class}\">{heading}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for e in &data.evaluations {
        let interval = e.pass_at_1_ci95.map_or("–".into(), |(lo, hi)| {
            format!("{} – {}", percent(lo), percent(hi))
        });
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".into());
        let suite = match &e.version {
            Some(version) => format!(
                "{} <span class=\"soft\">version {}</span>",
                escape(&e.suite),
                escape(version)
            ),
            None => escape(&e.suite),
        };
        let _ = write!(html, "<tr><td>{suite}</td><td>{}</td>", escape(&e.stage));
        for number in [
            percent(e.pass_at_1),
            interval,
            or_dash(e.cons_at_k.map(percent)),
            group(e.num_problems),
            e.k.to_string(),
            or_dash(e.num_tokens_mean.map(short)),
            or_dash(e.truncated_share.map(percent)),
        ] {
            let _ = write!(html, "<td class=\"n\">{number}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    let mut sampling: Vec<&str> = data
        .evaluations
        .iter()
        .filter_map(|e| e.sampling.as_deref())
        .collect();
    sampling.dedup();
    for line in sampling {
        let _ = writeln!(html, "<p class=\"soft\">Sampling: {}.</p>", escape(line));
    }
    Some(html)
}

/// Title, note, the value of a step, whether to smooth, whether the axis begins at 0.
type CurveSpec = (
    &'static str,
    &'static str,
    fn(&Step) -> Option<f64>,
    bool,
    bool,
);

/// The curves of every training stage.
pub fn training(data: &ReportData) -> Option<String> {
    let stages: Vec<&StageReport> = data.stages.iter().filter(|stage| trains(stage)).collect();
    if stages.is_empty() {
        return None;
    }
    let mut html = String::new();
    for stage in &stages {
        if stages.len() > 1 {
            let _ = writeln!(html, "<h3>{}</h3>", escape(&stage.name));
        }
        if stage.steps.is_empty() {
            html.push_str("<p class=\"soft\">No step has been logged yet.</p>\n");
            continue;
        }
        html.push_str("<div class=\"plots\">");
        let epochs = epochs(&stage.steps);
        let curves: [CurveSpec; 4] = [
            (
                "Loss",
                "mean over the trained tokens of each step; thin: every step, thick: smoothed",
                |s| s.loss,
                true,
                false,
            ),
            ("Learning rate", "", |s| s.learning_rate, false, true),
            (
                "Gradient norm",
                "before clipping",
                |s| s.grad_norm,
                true,
                true,
            ),
            (
                "Throughput",
                "tokens per second",
                |s| s.tokens_per_s,
                true,
                true,
            ),
        ];
        for (title, note, value, smooth, from_zero) in curves {
            let points: Vec<_> = stage
                .steps
                .iter()
                .filter_map(|s| Some((s.step as f64, value(s)?)))
                .collect();
            let curve = Curve {
                title,
                points,
                epochs: &epochs,
                smooth,
                from_zero,
            };
            let note = if note.is_empty() {
                String::new()
            } else {
                format!(" – {note}")
            };
            match curve.svg() {
                Some(svg) => {
                    let _ = write!(
                        html,
                        "<figure><figcaption><b>{title}</b>{note}</figcaption>{svg}</figure>"
                    );
                }
                None => {
                    let _ = write!(
                        html,
                        "<figure><figcaption><b>{title}</b> – not logged</figcaption></figure>"
                    );
                }
            }
        }
        html.push_str("</div>\n");
        html.push_str(&step_table(&stage.steps));
    }
    Some(html)
}

/// Where every epoch but the first begins, in steps. `epoch` may count finished epochs in fractions or name the running
/// one.
fn epochs(steps: &[Step]) -> Vec<(f64, u64)> {
    let offset = if steps.first().and_then(|s| s.epoch).unwrap_or(0.0) >= 1.0 {
        0
    } else {
        1
    };
    // the last step of a run ends its last epoch and begins none
    let last = steps.last().map_or(0.0, |s| s.step as f64);
    let change = |pair: &[Step]| {
        let (before, after) = (pair[0].epoch?, pair[1].epoch?);
        let (from, to) = (pair[0].step as f64, pair[1].step as f64);
        let at = to - (after - after.floor()) / (after - before) * (to - from);
        (after.floor() > before.floor() && at < last).then_some((at, after as u64 + offset))
    };
    steps.windows(2).filter_map(change).collect()
}

/// About twenty steps in numbers, for those who read rather than look.
fn step_table(steps: &[Step]) -> String {
    let every = steps.len().div_ceil(20);
    let shown = steps
        .iter()
        .enumerate()
        .filter(|(i, _)| i % every == 0 || i + 1 == steps.len());
    let mut html = String::from(
        "<details><summary>The same in numbers</summary><div class=\"wide\"><table><thead><tr>",
    );
    for heading in [
        "step",
        "epoch",
        "loss",
        "learning rate",
        "gradient norm",
        "tokens",
        "tokens/s",
    ] {
        let _ = write!(html, "<th scope=\"col\" class=\"n\">{heading}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for (_, s) in shown {
        let cell = |value: Option<f64>| value.map_or("–".into(), short);
        let loss = s.loss.map_or("–".into(), |loss| format!("{loss:.4}"));
        let epoch = s.epoch.map_or("–".into(), |epoch| format!("{epoch:.2}"));
        html.push_str("<tr>");
        for text in [
            s.step.to_string(),
            epoch,
            loss,
            cell(s.learning_rate),
            cell(s.grad_norm),
            cell(s.num_tokens),
            cell(s.tokens_per_s),
        ] {
            let _ = write!(html, "<td class=\"n\">{text}</td>");
        }
        html.push_str("</tr>");
    }
    html + "</tbody></table></div></details>\n"
}

/// What became of the rows.
pub fn data(data: &ReportData) -> Option<String> {
    let reports: Vec<_> = data
        .stages
        .iter()
        .filter_map(|stage| Some((stage, stage.data.as_ref()?)))
        .collect();
    if reports.is_empty() {
        return None;
    }
    let mut html = String::new();
    for (stage, report) in &reports {
        if reports.len() > 1 {
            let _ = writeln!(html, "<h3>{}</h3>", escape(&stage.name));
        }
        let dropped = report.num_dropped();
        let share = report.trained_tokens as f64 / report.tokens.max(1) as f64;
        let _ = writeln!(
            html,
            "<p>{} rows are trained on, {} were dropped. They hold {} tokens, of which {} ({}) are trained on; the rest is prompt.</p>",
            group(report.kept),
            group(dropped),
            group(report.tokens),
            group(report.trained_tokens),
            percent(share)
        );
        let judged = &report.verdicts;
        for (n, text) in [
            (
                report.truncated,
                "kept rows were cut at the greatest length",
            ),
            (judged.correct, "rows come labelled correct"),
            (judged.wrong, "rows come labelled wrong"),
        ] {
            if n > 0 {
                let _ = writeln!(html, "<p class=\"soft\">{} {text}.</p>", group(n));
            }
        }
        html.push_str("<div class=\"plots\">");
        let bins: Vec<_> = report
            .lengths
            .iter()
            .map(|bin| (bin.from, bin.to, bin.count))
            .collect();
        if let Some(svg) = histogram("Lengths of the rows", "tokens", &bins) {
            let _ = write!(
                html,
                "<figure><figcaption><b>Lengths</b> – rows by their number of tokens</figcaption>{svg}</figure>"
            );
        }
        if !report.sources.is_empty() {
            html.push_str("<figure><figcaption><b>Sources</b></figcaption><div class=\"wide\"><table><thead><tr><th scope=\"col\">source</th><th scope=\"col\" class=\"n\">kept</th><th scope=\"col\" class=\"n\">dropped</th><th scope=\"col\" class=\"n\">tokens</th></tr></thead><tbody>");
            for s in &report.sources {
                let revision = s
                    .revision
                    .as_deref()
                    .map(|r| format!("<br><span class=\"soft\">{}</span>", escape(r)));
                let _ = write!(
                    html,
                    "<tr><td>{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                    escape(&s.name),
                    revision.unwrap_or_default(),
                    group(s.kept),
                    group(s.dropped),
                    group(s.tokens)
                );
            }
            html.push_str("</tbody></table></div></figure>");
        }
        html.push_str("</div>\n<h3>Dropped rows</h3>\n");
        if dropped == 0 {
            html.push_str("<p>None: every row that was read is trained on.</p>\n");
            continue;
        }
        html.push_str("<div class=\"wide\"><table><thead><tr><th scope=\"col\">reason</th><th scope=\"col\" class=\"n\">rows</th><th scope=\"col\" class=\"n\">share of all</th><th scope=\"col\">for example</th></tr></thead><tbody>");
        for d in report.dropped.iter().filter(|d| d.count > 0) {
            let names = |names: &[String]| {
                names
                    .iter()
                    .map(|n| escape(n))
                    .collect::<Vec<_>>()
                    .join("<br>")
            };
            let examples = match &d.examples[..] {
                [] => "–".into(),
                few @ ([_] | [_, _]) => names(few),
                [first, rest @ ..] => format!(
                    "{}<details><summary>{} more</summary>{}</details>",
                    escape(first),
                    rest.len(),
                    names(rest)
                ),
            };
            let _ = write!(
                html,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{examples}</td></tr>",
                escape(&d.reason),
                group(d.count),
                percent(d.count as f64 / (report.kept + dropped).max(1) as f64)
            );
        }
        html.push_str("</tbody></table></div>\n");
    }
    Some(html)
}

/// Facts about the run and its stages, every setting, and the recipe.
pub fn settings(data: &ReportData) -> Option<String> {
    let mut html = String::from("<div class=\"columns\">");
    html.push_str(&facts("Run", &data.facts));
    for stage in &data.stages {
        html.push_str(&facts(&format!("Stage {}", stage.name), &stage.facts));
    }
    let mut groups: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for (key, value) in &data.settings {
        let (head, rest) = key.split_once('.').unwrap_or(("general", key));
        let row = (rest.to_string(), value.clone());
        match groups.iter_mut().find(|(name, _)| *name == head) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((head, vec![row])),
        }
    }
    for (name, rows) in &groups {
        html.push_str(&facts(&format!("Plan: {name}"), rows));
    }
    html.push_str("</div>\n");
    if let Some(recipe) = &data.recipe {
        let _ = writeln!(
            html,
            "<details><summary>The recipe as given</summary><pre>{}</pre></details>",
            escape(recipe)
        );
    }
    let is_empty = data.facts.is_empty()
        && data.settings.is_empty()
        && data.recipe.is_none()
        && data.stages.is_empty();
    (!is_empty).then_some(html)
}

fn facts(title: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut html = format!("<table><caption>{}</caption><tbody>", escape(title));
    for (key, value) in rows {
        let value = match (key.as_str(), value.parse::<f64>()) {
            (key, Ok(seconds))
                if key == "seconds" || key.ends_with("_s") && !key.contains("per") =>
            {
                duration(seconds)
            }
            (key, Ok(bytes)) if key.ends_with("bytes") => mebibytes(bytes),
            (_, Ok(number))
                if value.len() > 4
                    && number.fract() == 0.0
                    && number >= 0.0
                    && !value.contains('e')
                    && !key.contains("seed") =>
            {
                group(number as u64)
            }
            (_, Ok(number)) if value.len() > 9 => short(number),
            _ => value.clone(),
        };
        let _ = write!(
            html,
            "<tr><td class=\"key\">{}</td><td>{}</td></tr>",
            escape(&key.replace('_', " ")),
            escape(&value)
        );
    }
    html + "</tbody></table>"
}

fn mebibytes(bytes: f64) -> String {
    match bytes {
        b if b < 1024.0 * 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b if b < 1024f64.powi(3) => format!("{:.1} MiB", b / 1024f64.powi(2)),
        b => format!("{:.2} GiB", b / 1024f64.powi(3)),
    }
}

/// Where the result lies and what to type.
pub fn result(data: &ReportData) -> Option<String> {
    let model = data
        .stages
        .iter()
        .rev()
        .find_map(|stage| stage.model.as_deref());
    let checkpoints: Vec<_> = data
        .stages
        .iter()
        .flat_map(|stage| &stage.checkpoints)
        .collect();
    if model.is_none() && checkpoints.is_empty() {
        return None;
    }
    let mut html = String::new();
    match model {
        Some(model) => {
            let model = escape(model);
            let _ = write!(
                html,
                "<p>The trained model is in <code>{model}</code> of this run folder, in the Hugging Face layout.</p>\n\
                 <pre>distill chat --model RUN/{model}\n\
                 distill generate --model RUN/{model} --input prompts.jsonl --output answers.jsonl</pre>\n\
                 <p>With transformers:</p>\n\
                 <pre>from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(&quot;RUN/{model}&quot;)\n\
                 tokenizer = AutoTokenizer.from_pretrained(&quot;RUN/{model}&quot;)</pre>\n"
            );
        }
        None => html.push_str("<p>The run has not come to its end: the same command goes on from the last checkpoint.</p>\n"),
    }
    if !checkpoints.is_empty() {
        html.push_str("<div class=\"wide\"><table><caption>Checkpoints: weights, optimiser and place in the data, enough to go on</caption><tbody>");
        for (path, bytes) in checkpoints {
            let _ = write!(
                html,
                "<tr><td><code>{}</code></td><td class=\"n\">{}</td></tr>",
                escape(path),
                mebibytes(*bytes as f64)
            );
        }
        html.push_str("</tbody></table></div>\n");
    }
    Some(html)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_begin_where_their_number_grows() {
        let steps = |epochs: &[f64]| -> Vec<Step> {
            (1..)
                .zip(epochs)
                .map(|(step, e)| Step {
                    step,
                    epoch: Some(*e),
                    ..Step::default()
                })
                .collect()
        };
        // fractions of epochs done: the second begins after step 2, the last step ends it
        assert_eq!(epochs(&steps(&[0.5, 1.0, 1.5, 2.0])), [(2.0, 2)]);
        assert_eq!(epochs(&steps(&[0.4, 0.8, 1.2, 1.6])), [(2.5, 2)]);
        // numbers of the running epoch from 1 and from 0
        assert_eq!(epochs(&steps(&[1.0, 1.0, 2.0, 2.0])), [(3.0, 2)]);
        assert_eq!(epochs(&steps(&[0.0, 0.0, 1.0, 1.0])), [(3.0, 2)]);
    }
}
