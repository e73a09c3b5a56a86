//! Completions on the way of a policy that learns: read from `rollouts.jsonl`, shown side by side with rewards and
//! advantages. Both are bounded, and say how much they leave out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::html::{escape, group};
use super::plot::short;

/// Updates, of which one group each is shown.
const NUM_STEPS: usize = 4;
/// Completions of a group.
const NUM_COMPLETIONS: usize = 4;
/// Characters of a text.
const NUM_CHARS: usize = 3000;

/// What is shown, and out of how much.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampled {
    /// In the file.
    pub num_steps: u64,
    pub num_groups: u64,
    /// Lines that cannot be read.
    pub num_bad: u64,
    pub groups: Vec<SampledGroup>,
}

/// The completions of a prompt at one update.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SampledGroup {
    pub step: u64,
    pub id: String,
    pub question: String,
    /// What the template wrote behind it.
    pub opening: String,
    pub golds: Vec<String>,
    pub completions: Vec<Completion>,
    /// Not shown.
    pub num_more: u64,
}

/// One of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Completion {
    pub text: String,
    /// Characters behind what is shown.
    pub num_cut: u64,
    pub num_tokens: u64,
    pub finish_reason: String,
    /// None where no reward applies.
    pub reward: Option<f64>,
    pub parts: BTreeMap<String, Option<f64>>,
    pub correct: Option<bool>,
    /// Of the completion, or the mean over its tokens.
    pub advantage: f64,
}

/// A line of the file.
#[derive(Deserialize)]
struct Row {
    step: u64,
    groups: Vec<SampledGroup>,
}

/// The same, of which only the names are kept.
#[derive(Deserialize)]
struct Names {
    groups: Vec<Name>,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    id: String,
}

/// Reads the file twice, so that only what is shown is ever in memory; none where there is no file.
pub fn read(path: &Path) -> Option<Sampled> {
    let mut sampled = Sampled::default();
    // the number of the line, and the prompts in it
    let mut steps: Vec<(usize, Vec<String>)> = Vec::new();
    for (number, line) in lines(path)?.enumerate() {
        match serde_json::from_slice::<Names>(&line) {
            Ok(names) => {
                sampled.num_groups += names.groups.len() as u64;
                let ids = names.groups.into_iter().map(|name| name.id);
                steps.push((number, ids.collect()));
            }
            Err(_) => sampled.num_bad += 1,
        }
    }
    sampled.num_steps = steps.len() as u64;
    let chosen = chosen(&steps);
    for (number, line) in lines(path)?.enumerate() {
        let Some((_, at)) = chosen.iter().find(|(line, _)| *line == number) else {
            continue;
        };
        let Ok(row) = serde_json::from_slice::<Row>(&line) else {
            sampled.num_bad += 1;
            continue;
        };
        if let Some(group) = row.groups.into_iter().nth(*at) {
            sampled.groups.push(shortened(group, row.step));
        }
    }
    (sampled.num_steps > 0 || sampled.num_bad > 0).then_some(sampled)
}

/// Whole lines; a half-written last one is no fault.
fn lines(path: &Path) -> Option<impl Iterator<Item = Vec<u8>> + use<>> {
    let mut file = BufReader::new(File::open(path).ok()?);
    Some(std::iter::from_fn(move || {
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line).ok()?;
        (line.last() == Some(&b'\n')).then_some(line)
    }))
}

/// Lines and the group of each that is shown: the prompt that was seen at most steps where one was seen twice, evenly
/// spread, else the first group of steps evenly spread.
fn chosen(steps: &[(usize, Vec<String>)]) -> Vec<(usize, usize)> {
    let mut seen: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (line, ids) in steps {
        for (at, id) in ids.iter().enumerate() {
            let places = seen.entry(id).or_default();
            if places.last().is_none_or(|(last, _)| last != line) {
                places.push((*line, at));
            }
        }
    }
    let most = seen.into_values().max_by_key(Vec::len).unwrap_or_default();
    let all = match most.len() > 1 && steps.len() > 1 {
        true => most,
        false => {
            let some = steps.iter().filter(|(_, ids)| !ids.is_empty());
            some.map(|(line, _)| (*line, 0)).collect()
        }
    };
    spread(all.len(), NUM_STEPS).map(|i| all[i]).collect()
}

/// At most `most` of `n` places, with the first and the last.
fn spread(n: usize, most: usize) -> impl Iterator<Item = usize> {
    let num = n.min(most);
    (0..num).map(move |i| match num {
        1 => 0,
        num => i * (n - 1) / (num - 1),
    })
}

/// The best, the worst and what lies between, each text cut.
fn shortened(mut group: SampledGroup, step: u64) -> SampledGroup {
    group.step = step;
    let (question, num_cut) = cut(&group.question);
    group.question = match num_cut {
        0 => question,
        n => format!("{question} ... ({n} more characters)"),
    };
    let mut all = std::mem::take(&mut group.completions);
    // the first of equal ones stays first
    let reward = |one: &Completion| one.reward.unwrap_or(f64::NEG_INFINITY);
    all.sort_by(|a, b| reward(b).total_cmp(&reward(a)));
    let places: Vec<usize> = spread(all.len(), NUM_COMPLETIONS).collect();
    group.num_more = (all.len() - places.len()) as u64;
    let all = all.into_iter().enumerate();
    let some = all.filter(|(i, _)| places.contains(i));
    group.completions = some
        .map(|(_, one)| {
            let (text, num_cut) = cut(&one.text);
            Completion {
                text,
                num_cut,
                ..one
            }
        })
        .collect();
    group
}

fn cut(text: &str) -> (String, u64) {
    match text.char_indices().nth(NUM_CHARS) {
        None => (text.to_string(), 0),
        Some((at, _)) => (text[..at].to_string(), text[at..].chars().count() as u64),
    }
}

/// Folded away: the groups one below the other, the completions of each side by side.
pub fn section(sampled: &Sampled) -> String {
    let mut html = format!(
        "<details><summary>Samples of {} updates</summary>\n<p class=\"soft\">{} of {} groups in <code>rollouts.jsonl</code>, which has them of {} updates; of each the best completion, the worst and some between.{}</p>\n",
        sampled.groups.len(),
        sampled.groups.len(),
        group(sampled.num_groups),
        group(sampled.num_steps),
        match sampled.num_bad {
            0 => String::new(),
            n => format!(" {} lines cannot be read.", group(n)),
        }
    );
    for one in &sampled.groups {
        let golds = match one.golds.is_empty() {
            true => String::new(),
            false => format!(
                " <span class=\"soft\">(answer: {})</span>",
                escape(&one.golds.join(" or "))
            ),
        };
        let _ = write!(
            html,
            "<p class=\"problem\"><span class=\"soft\">step {}</span> <b>{}</b>{golds}</p><div class=\"pair\">",
            one.step,
            escape(&one.question)
        );
        one.completions
            .iter()
            .for_each(|c| html.push_str(&completion(c, &one.opening)));
        html.push_str("</div>\n");
        if one.num_more > 0 {
            let _ = writeln!(
                html,
                "<p class=\"soft\">{} more completions are not shown.</p>",
                one.num_more
            );
        }
    }
    html + "</details>\n"
}

fn completion(one: &Completion, opening: &str) -> String {
    let verdict = match one.correct {
        Some(true) => "<span class=\"correct\">✓ right</span>",
        Some(false) => "<span class=\"wrong\">✗ wrong</span>",
        None => "",
    };
    let parts = one.parts.iter();
    let parts: Vec<String> = parts
        .map(|(name, value)| {
            let value = value.map_or("–".into(), short);
            format!("{} {value}", name.replace('_', " "))
        })
        .collect();
    let sign = if one.advantage > 0.0 { "+" } else { "" };
    let end = match (one.num_cut, one.finish_reason.as_str()) {
        (0, "length") => "<span class=\"soft\"> (cut off)</span>".to_string(),
        (0, _) => String::new(),
        (n, _) => format!(
            "<span class=\"soft\"> ... ({} more characters)</span>",
            group(n)
        ),
    };
    format!(
        "<article class=\"answer\"><header><span>reward {}, advantage {sign}{}, {} tokens</span>{verdict}</header><p class=\"soft\">{}</p><div class=\"text\" tabindex=\"0\" role=\"region\" aria-label=\"completion\"><span class=\"soft\">{}</span>{}{end}</div></article>",
        one.reward.map_or("–".into(), short),
        short(one.advantage),
        group(one.num_tokens),
        escape(&parts.join(", ")),
        escape(opening),
        escape(&one.text),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_are_evenly_spread() {
        let of = |n| spread(n, 4).collect::<Vec<_>>();
        assert_eq!(of(0), [0usize; 0]);
        assert_eq!(of(1), [0]);
        assert_eq!(of(3), [0, 1, 2]);
        assert_eq!(of(10), [0, 3, 6, 9]);
    }

    #[test]
    fn the_same_prompt_where_it_was_seen_again() {
        let ids = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>();
        let steps = [
            (0, ids(&["a", "b"])),
            (1, ids(&["c"])),
            (3, ids(&["d", "b"])),
        ];
        assert_eq!(chosen(&steps), [(0, 1), (3, 1)]);
        assert_eq!(chosen(&steps[..2]), [(0, 0), (1, 0)]);
        assert!(chosen(&[]).is_empty());
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollouts.jsonl");
        assert!(read(&path).is_none());
        let completion = |i: usize| json!({"text": "ä<b>".repeat(i * 1000), "num_tokens": i, "finish_reason": "stop", "reward": (i > 0).then_some(i as f64 / 8.0), "parts": {"accuracy": null, "format": 1.0}, "correct": i == 7, "advantage": i as f64 - 3.5});
        let line = |step: usize| {
            let groups = json!([{"id": format!("p{step}"), "question": "1 < 2?", "golds": ["<yes>"], "opening": "<think>", "completions": (0..8).map(completion).collect::<Vec<_>>()}]);
            json!({"step": step, "groups": groups}).to_string() + "\n"
        };
        let mut text: String = (1..=9).map(|i| line(10 * i)).collect();
        text += "{\"step\": 100, \"gr\n{\"step\": 1";
        std::fs::write(&path, text).unwrap();
        let sampled = read(&path).unwrap();
        assert_eq!(
            (sampled.num_steps, sampled.num_groups, sampled.num_bad),
            (9, 9, 1)
        );
        let steps: Vec<u64> = sampled.groups.iter().map(|g| g.step).collect();
        assert_eq!(steps, [10, 30, 60, 90]);
        let group = &sampled.groups[0];
        let rewards = group.completions.iter().map(|c| c.reward.map(|r| r * 8.0));
        let rewards: Vec<Option<f64>> = rewards.collect();
        let expected = vec![Some(7.0), Some(5.0), Some(3.0), None];
        assert_eq!((rewards, group.num_more), (expected, 4));
        let first = &group.completions[0];
        assert_eq!((first.text.chars().count(), first.num_cut), (3000, 25_000));
        let html = section(&sampled);
        for text in [
            "4 of 9 groups in <code>rollouts.jsonl</code>, which has them of 9 updates",
            "1 lines cannot be read",
            "reward 0.875, advantage +3.5, 7 tokens</span><span class=\"correct\">✓ right",
            "accuracy –, format 1",
            "(answer: &lt;yes&gt;)",
            "(25,000 more characters)",
            "4 more completions are not shown",
        ] {
            assert!(html.contains(text), "`{text}` is not shown");
        }
        assert!(!html.contains("<b>ä") && !html.contains("<think>"));
    }
}
