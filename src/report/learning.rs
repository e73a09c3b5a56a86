//! The section of stages that learn from rewards or preferences: alarms, the curves that the papers show, all other curves
//! folded away, and samples on the way. A pipeline has several such stages, so each shows few curves at first.

use std::fmt::Write;

use super::data::{Alarm, ReportData, Series, StageReport};
use super::html::{escape, group};
use super::lines::{Line, chart};
use super::plot::short;
use super::rollouts;

/// A plot: title, note, keys of `metrics.jsonl` with their labels. A key that ends with a dot stands for all below it.
type Panel = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// Of `grpo`; the first [`NUM_SHOWN`] are not folded away.
const REWARDS: [Panel; 18] = [
    (
        "Accuracy",
        "share of completions that are right",
        &[
            ("pass_rate", "while training"),
            ("held_out_accuracy", "held-out problems"),
        ],
    ),
    (
        "Response length",
        "mean number of tokens",
        &[("length", "mean")],
    ),
    (
        "Reward",
        "mean over the completions of a step",
        &[("reward", "mean")],
    ),
    (
        "Reward by part",
        "mean where it applies, not weighted",
        &[("rewards.", "")],
    ),
    (
        "Language consistency",
        "share of the words in the language of the question",
        &[("language_consistency", "mean")],
    ),
    (
        "Reflective words",
        "wait, but, check, ... in a completion",
        &[("reflective_words", "mean")],
    ),
    (
        "Repetition",
        "share of three-word runs that were there before",
        &[("repetition", "mean")],
    ),
    (
        "Cut off",
        "share of completions that hit the token limit",
        &[("truncated", "share")],
    ),
    ("Entropy", "nats a token", &[("entropy", "mean")]),
    ("KL to the reference", "nats a token", &[("kl", "mean")]),
    (
        "Clipped ratios",
        "share of tokens",
        &[("clipped_low", "below"), ("clipped_high", "above")],
    ),
    ("Gradient norm", "before clipping", &[("grad_norm", "norm")]),
    (
        "Groups that teach nothing",
        "share of the groups",
        &[("all_right", "all right"), ("all_wrong", "all wrong")],
    ),
    (
        "Sampler and trainer",
        "difference of a token's log-probability",
        &[("gap", "mean"), ("gap_max", "largest")],
    ),
    (
        "Importance ratio",
        "policy by the policy that sampled",
        &[
            ("ratio", "mean"),
            ("ratio_min", "least"),
            ("ratio_max", "largest"),
        ],
    ),
    (
        "Spread of the reward",
        "standard deviation",
        &[("reward_std", "deviation")],
    ),
    (
        "Time",
        "seconds",
        &[
            ("rollout_s", "sampling"),
            ("reward_s", "rewards"),
            ("reference_s", "log-probabilities before"),
            ("update_s", "update"),
        ],
    ),
    ("Longest completion", "tokens", &[("length_max", "longest")]),
];

/// Of `reward-model` and `preference`.
const PREFERENCES: [Panel; 6] = [
    (
        "Loss",
        "",
        &[("loss", "training"), ("held_out_loss", "held-out")],
    ),
    (
        "Accuracy",
        "share of rows told apart",
        &[("accuracy", "training"), ("held_out_accuracy", "held-out")],
    ),
    (
        "Margin",
        "chosen less rejected",
        &[("margin", "training"), ("held_out_margin", "held-out")],
    ),
    (
        "Reward of both answers",
        "",
        &[("reward_chosen", "chosen"), ("reward_rejected", "rejected")],
    ),
    (
        "Log-probability of both answers",
        "",
        &[
            ("logprob_chosen", "chosen"),
            ("logprob_rejected", "rejected"),
        ],
    ),
    ("Gradient norm", "before clipping", &[("grad_norm", "norm")]),
];

/// Counters and sums of what is shown: no curve says more of them.
const UNSHOWN: [&str; 3] = ["epoch", "num_tokens", "step_time_s"];

/// Plots of a stage that are not folded away.
const NUM_SHOWN: usize = 4;

/// Every stage that learns from something else than traces.
pub fn learning(data: &ReportData) -> Option<String> {
    let stages: Vec<&StageReport> = data
        .stages
        .iter()
        .filter(|stage| !stage.series.is_empty())
        .collect();
    let mut html = String::new();
    for (number, stage) in stages.iter().enumerate() {
        let _ = writeln!(
            html,
            "<h3 id=\"learning-{number}\">{} <span class=\"soft\">{}</span></h3>",
            escape(&stage.name),
            escape(&stage.kind)
        );
        html.push_str(&alarms(&stage.alarms));
        html.push_str(&curves(stage));
        if let Some(sampled) = &stage.sampled {
            html.push_str(&rollouts::section(sampled));
        }
    }
    if stages.len() > 1 {
        let links = stages.iter().enumerate();
        let links: Vec<String> = links
            .map(|(n, s)| format!("<a href=\"#learning-{n}\">{}</a>", escape(&s.name)))
            .collect();
        html = format!("<p>{}</p>\n{html}", links.join(" · "));
    }
    (!html.is_empty()).then_some(html)
}

fn alarms(alarms: &[Alarm]) -> String {
    /// More say nothing new.
    const NUM_SHOWN: usize = 5;
    if alarms.is_empty() {
        return String::new();
    }
    let items: String = alarms
        .iter()
        .take(NUM_SHOWN)
        .map(|Alarm { since, now }| {
            format!(
                "<li>step {}: the reward is up from {} to {} since step {}, the held-out accuracy down from {:.1}% to {:.1}%</li>",
                now.step,
                short(since.reward),
                short(now.reward),
                since.step,
                100.0 * since.accuracy,
                100.0 * now.accuracy
            )
        })
        .collect();
    let more = match alarms.len().saturating_sub(NUM_SHOWN) {
        0 => String::new(),
        n => format!("<li>{} more</li>", group(n as u64)),
    };
    format!(
        "<div class=\"notice\" role=\"note\"><b>Alarm: what is rewarded may not be what is wanted.</b><ul>{items}{more}</ul></div>\n"
    )
}

fn curves(stage: &StageReport) -> String {
    let panels: &[Panel] = match stage.kind.as_str() {
        "grpo" => &REWARDS,
        _ => &PREFERENCES,
    };
    let unshown = |s: &Series| UNSHOWN.contains(&s.name.as_str());
    let mut is_shown: Vec<bool> = stage.series.iter().map(unshown).collect();
    let mut figures = Vec::new();
    for &(title, note, keys) in panels {
        let mut lines = Vec::new();
        let mut places = Vec::new();
        for (key, label) in keys {
            for (place, series) in stage.series.iter().enumerate() {
                let label = match (key.strip_suffix('.'), series.name.strip_prefix(key)) {
                    (Some(_), Some(part)) => part.replace('_', " "),
                    (None, Some("")) => (*label).to_string(),
                    _ => continue,
                };
                places.push(place);
                lines.push(Line {
                    label,
                    points: series.points.clone(),
                });
            }
        }
        // what never changes needs no curve, but stands in one with what does
        if places
            .iter()
            .all(|&place| is_constant(&stage.series[place]))
        {
            continue;
        }
        let marks: Vec<f64> = match title {
            "Accuracy" => stage.alarms.iter().map(|a| a.now.step as f64).collect(),
            _ => Vec::new(),
        };
        if let Some(figure) = figure(title, note, &lines, &marks) {
            places.iter().for_each(|&place| is_shown[place] = true);
            figures.push(figure);
        }
    }
    let rest = stage.series.iter().zip(&is_shown);
    let rest: Vec<&Series> = rest.filter(|(_, shown)| !**shown).map(|(s, _)| s).collect();
    let (constant, rest): (Vec<&Series>, Vec<&Series>) =
        rest.into_iter().partition(|series| is_constant(series));
    figures.extend(rest.into_iter().filter_map(|series| {
        let line = Line {
            label: words(&series.name),
            points: series.points.clone(),
        };
        figure(&words(&series.name), "", &[line], &[])
    }));
    let constant: Vec<String> = constant
        .iter()
        .filter_map(|series| {
            let (_, value) = series.points.first()?;
            Some(format!("{} {}", words(&series.name), short(*value)))
        })
        .collect();
    let folded = figures.split_off(figures.len().min(NUM_SHOWN));
    let mut html = format!("<div class=\"plots\">{}</div>\n", figures.concat());
    if !(folded.is_empty() && constant.is_empty()) {
        let _ = writeln!(
            html,
            "<details><summary>{} more curves</summary><div class=\"plots\">{}</div>{}</details>",
            folded.len(),
            folded.concat(),
            match constant.is_empty() {
                true => String::new(),
                false => format!(
                    "<p class=\"soft\">The same at every step: {}.</p>",
                    escape(&constant.join(", "))
                ),
            }
        );
    }
    html
}

fn is_constant(series: &Series) -> bool {
    let first = series.points.first().map(|p| p.1);
    series.points.iter().all(|p| Some(p.1) == first)
}

fn words(name: &str) -> String {
    name.replace(['_', '.'], " ")
}

fn figure(title: &str, note: &str, lines: &[Line], marks: &[f64]) -> Option<String> {
    let chart = chart(title, lines, marks)?;
    let note = match note {
        "" => String::new(),
        note => format!(" – {note}"),
    };
    Some(format!(
        "<figure><figcaption><b>{}</b>{note}</figcaption>{chart}</figure>",
        escape(title)
    ))
}
