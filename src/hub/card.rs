//! Cards of models and data sets: README.md with YAML that the Hub accepts, and `.eval_results/*.yaml`, from plain structs.
//!
//! What a card says of a run is decided in `pipeline/`; nothing of runs is known here.

use super::card_yaml::to_yaml;
use serde_json::{Value, json};
use std::fmt::Write;

/// A licence as a card names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct License {
    /// An id of the Hub, or `other`.
    pub id: String,
    /// Of `other` only.
    pub name: Option<String>,
    /// Of `other` only: a file of the repository, or an address.
    pub link: Option<String>,
}

/// What a model is to the one it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Finetune,
    Adapter,
    Merge,
    Quantized,
}

impl Relation {
    /// `base_model_relation`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finetune => "finetune",
            Self::Adapter => "adapter",
            Self::Merge => "merge",
            Self::Quantized => "quantized",
        }
    }
}

/// One benchmark's result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalRow {
    pub suite: String,
    pub version: Option<String>,
    /// Hub data set of the problems, where they are on the Hub.
    pub dataset: Option<String>,
    pub config: Option<String>,
    pub split: Option<String>,
    pub revision: Option<String>,
    /// pass@1 in percent.
    pub value: f64,
    pub ci95: Option<(f64, f64)>,
    /// Majority vote over the samples, in percent.
    pub cons: Option<f64>,
    pub num_problems: u64,
    pub k: u64,
    pub num_tokens_mean: Option<f64>,
    pub truncated: Option<f64>,
    pub sampling: Option<String>,
    /// Of the samples; several where the same was done with each and the figures are their means.
    pub seeds: Vec<u64>,
    pub verifier: Option<String>,
    /// The student before it was trained, in percent.
    pub before: Option<f64>,
    /// What the paper says of its own student, in percent.
    pub paper: Option<f64>,
    /// Day of the evaluation, `2026-01-31`.
    pub date: Option<String>,
}

/// A piece of text under a heading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// What stands in a section.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Markdown as it is.
    Text(String),
    /// Cells are text: what Markdown would read is escaped.
    Table {
        head: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    Code {
        language: &'static str,
        text: String,
    },
}

/// A model's card.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// Name of the repository, without its owner.
    pub name: String,
    pub license: Option<License>,
    pub base: Option<(String, Relation)>,
    /// Hub data sets it was trained on.
    pub datasets: Vec<String>,
    pub languages: Vec<String>,
    pub tags: Vec<String>,
    /// `transformers`, or `peft` for an adapter.
    pub library: String,
    /// `pipeline_tag`; default: `text-generation`.
    pub task: Option<String>,
    pub results: Vec<EvalRow>,
    /// What stands above all sections.
    pub lead: String,
    pub sections: Vec<Section>,
}

/// The files of one configuration of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataConfig {
    pub name: String,
    pub split: String,
    /// A glob over paths of the repository.
    pub path: String,
}

/// A data set's card.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataCard {
    /// Name of the repository, without its owner.
    pub name: String,
    pub licenses: Vec<License>,
    pub languages: Vec<String>,
    pub tags: Vec<String>,
    pub configs: Vec<DataConfig>,
    /// Where it is known.
    pub num_rows: Option<u64>,
    /// Hub data sets that rows come from.
    pub sources: Vec<String>,
    pub lead: String,
    pub sections: Vec<Section>,
}

impl ModelCard {
    /// README.md.
    pub fn render(&self) -> String {
        let mut head = license_yaml(self.license.as_slice());
        head["library_name"] = json!(self.library);
        head["pipeline_tag"] = json!(self.task.as_deref().unwrap_or("text-generation"));
        if let Some((base, relation)) = &self.base {
            head["base_model"] = json!(base);
            head["base_model_relation"] = json!(relation.name());
        }
        head["datasets"] = json!(self.datasets);
        head["language"] = json!(self.languages);
        head["tags"] = json!(self.tags);
        if !self.results.is_empty() {
            let results: Vec<Value> = pooled(&self.results).iter().map(index_entry).collect();
            head["model-index"] = json!([{ "name": self.name, "results": results }]);
        }
        let mut sections = self.sections.clone();
        if !self.results.is_empty() {
            let at = sections.len().min(1);
            sections.insert(at, self.evaluation());
        }
        page(&head, &self.name, &self.lead, &sections)
    }

    /// `.eval_results/*.yaml`: one file a suite whose problems are on the Hub, with one entry for every way it was run.
    pub fn eval_results(&self) -> Vec<(String, String)> {
        let mut files: Vec<(String, Vec<Value>)> = Vec::new();
        for row in pooled(&self.results) {
            if row.dataset.is_none() {
                continue;
            }
            let entry = json!({
                "dataset": {
                    "id": row.dataset,
                    "task_id": row.config.as_deref().unwrap_or("default"),
                    "revision": row.revision,
                },
                "value": rounded(row.value),
                "date": row.date,
                "notes": notes(&row),
            });
            let name: String = row
                .suite
                .chars()
                .map(|c| match c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    true => c,
                    false => '-',
                })
                .collect();
            let path = format!(".eval_results/{name}.yaml");
            match files.iter_mut().find(|(known, _)| *known == path) {
                Some((_, entries)) => entries.push(entry),
                None => files.push((path, vec![entry])),
            }
        }
        let text = |(path, entries)| (path, to_yaml(&Value::Array(entries)));
        files.into_iter().map(text).collect()
    }

    fn evaluation(&self) -> Section {
        let any = |has: fn(&EvalRow) -> bool| self.results.iter().any(has);
        let (with_before, with_paper) = (any(|r| r.before.is_some()), any(|r| r.paper.is_some()));
        let mut head = vec![
            "benchmark".to_string(),
            "pass@1".into(),
            "95% interval".into(),
        ];
        if any(|r| r.cons.is_some()) {
            head.push("cons@k".into());
        }
        if with_before {
            head.push("before training".into());
        }
        if with_paper {
            head.push("DeepSeek-R1-Distill".into());
        }
        head.extend(["problems", "k", "tokens", "cut off"].map(String::from));
        let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.1}"));
        let mut shown: Vec<EvalRow> = Vec::new();
        for mean in pooled(&self.results) {
            let is_one = |row: &&EvalRow| is_same(row, &mean);
            shown.extend(self.results.iter().filter(is_one).cloned());
            if mean.seeds.len() > 1 {
                shown.push(mean);
            }
        }
        let rows = shown.iter().map(|row| {
            let version = row.version.as_deref();
            let mut name = version.map_or(row.suite.clone(), |v| {
                format!("{} (version {v})", row.suite)
            });
            let is_one_of_several = || {
                let same = self.results.iter().filter(|other| is_same(other, row));
                same.count() > 1
            };
            match row.seeds.as_slice() {
                [seed] if is_one_of_several() => name += &format!(", seed {seed}"),
                [_, _, ..] => name += &format!(", mean of {} seeds", row.seeds.len()),
                _ => {}
            }
            let mut cells = vec![
                name,
                format!("{:.1}", row.value),
                row.ci95
                    .map_or("-".into(), |(low, high)| format!("{low:.1} to {high:.1}")),
            ];
            if any(|r| r.cons.is_some()) {
                cells.push(percent(row.cons));
            }
            if with_before {
                cells.push(percent(row.before));
            }
            if with_paper {
                cells.push(percent(row.paper));
            }
            cells.push(row.num_problems.to_string());
            cells.push(row.k.to_string());
            cells.push(
                row.num_tokens_mean
                    .map_or("-".into(), |n| format!("{n:.0}")),
            );
            cells.push(
                row.truncated
                    .map_or("-".into(), |share| format!("{share:.1}%")),
            );
            cells
        });
        let mut blocks = vec![Block::Table {
            head,
            rows: rows.collect(),
        }];
        let mut text = String::from(
            "pass@1 is the share of right samples in percent, over `k` samples a problem; the interval is over problems. `tokens` is the mean length of an answer, `cut off` the share that ran into the limit.",
        );
        if with_paper {
            text += " The figures of DeepSeek-R1-Distill are those of the paper (arXiv 2501.12948) for the student of the same base model, trained on its own 800k traces.";
        }
        blocks.push(Block::Text(text));
        let protocol: Vec<Vec<String>> = pooled(&self.results)
            .iter()
            .map(|row| {
                let problems = match (&row.dataset, &row.revision) {
                    (Some(id), Some(revision)) => format!("{id} at {revision}"),
                    (Some(id), None) => id.clone(),
                    (None, _) => "made by distill".into(),
                };
                vec![
                    row.suite.clone(),
                    problems,
                    how(row),
                    row.verifier.clone().unwrap_or_default(),
                ]
            })
            .collect();
        blocks.push(Block::Table {
            head: ["benchmark", "problems", "sampling", "verifier"]
                .map(String::from)
                .into(),
            rows: protocol,
        });
        Section {
            title: "Evaluation".into(),
            blocks,
        }
    }
}

impl DataCard {
    /// README.md.
    pub fn render(&self) -> String {
        let mut head = license_yaml(&self.licenses);
        head["language"] = json!(self.languages);
        head["pretty_name"] = json!(self.name);
        head["size_categories"] = json!(self.num_rows.map(|num| [size_category(num)]));
        head["task_categories"] = json!(["text-generation"]);
        head["tags"] = json!(self.tags);
        let extended: Vec<String> = self
            .sources
            .iter()
            .map(|s| format!("extended|{s}"))
            .collect();
        head["source_datasets"] = json!(extended);
        let configs: Vec<Value> = self
            .configs
            .iter()
            .map(|config| {
                json!({
                    "config_name": config.name,
                    "data_files": [{ "split": config.split, "path": config.path }],
                })
            })
            .collect();
        head["configs"] = json!(configs);
        page(&head, &self.name, &self.lead, &self.sections)
    }
}

fn page(head: &Value, name: &str, lead: &str, sections: &[Section]) -> String {
    let mut text = format!("---\n{}---\n\n# {}\n\n", to_yaml(head), escape(name));
    if !lead.is_empty() {
        text += lead.trim_end();
        text += "\n\n";
    }
    for section in sections {
        // a String never refuses
        let _ = writeln!(text, "## {}\n", section.title);
        for block in &section.blocks {
            write_block(block, &mut text);
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn write_block(block: &Block, out: &mut String) {
    match block {
        Block::Text(text) => {
            out.push_str(text.trim_end());
            out.push_str("\n\n");
        }
        Block::Table { head, rows } => {
            let row = |cells: &[String]| {
                let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
                format!("| {} |\n", cells.join(" | "))
            };
            out.push_str(&row(head));
            out.push_str(&format!("|{}\n", " --- |".repeat(head.len())));
            rows.iter().for_each(|cells| out.push_str(&row(cells)));
            out.push('\n');
        }
        Block::Code { language, text } => {
            // a fence longer than any within
            let mut fence = String::from("```");
            while text.contains(&fence) {
                fence.push('`');
            }
            out.push_str(&format!(
                "{fence}{language}\n{}\n{fence}\n\n",
                text.trim_end()
            ));
        }
    }
}

/// Text as Markdown that shows it: one line, no table cell ends, no HTML.
pub fn escape(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut shown = String::new();
    for c in words.join(" ").chars() {
        match c {
            '|' => shown.push_str("\\|"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '&' => shown.push_str("&amp;"),
            '*' | '_' | '`' | '[' | ']' | '\\' => {
                shown.push('\\');
                shown.push(c);
            }
            c => shown.push(c),
        }
    }
    shown
}

fn license_yaml(licenses: &[License]) -> Value {
    let ids: Vec<&str> = licenses.iter().map(|l| l.id.as_str()).collect();
    let other = licenses.iter().find(|license| license.id == "other");
    json!({
        "license": match ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        },
        "license_name": other.and_then(|license| license.name.clone()),
        "license_link": other.and_then(|license| license.link.clone()),
    })
}

/// An entry of `model-index`.
fn index_entry(row: &EvalRow) -> Value {
    json!({
        "task": { "type": "text-generation", "name": "Text Generation" },
        "dataset": {
            "name": row.suite,
            "type": row.dataset.as_deref().unwrap_or(&row.suite),
            "config": row.config,
            "split": row.split,
            "revision": row.revision,
        },
        "metrics": [{
            "type": "pass@1",
            "name": format!(
                "pass@1 over {} a problem{}",
                samples(row.k),
                match row.seeds.len() {
                    0 | 1 => String::new(),
                    n => format!(", mean of {n} seeds"),
                }
            ),
            "value": rounded(row.value),
            "verified": false,
        }],
    })
}

/// How a result was reached, in a line.
fn notes(row: &EvalRow) -> String {
    let mut text = format!(
        "pass@1 in percent over {} of {} problems",
        samples(row.k),
        row.num_problems
    );
    if let Some((low, high)) = row.ci95 {
        let _ = write!(text, ", 95% interval {low:.1} to {high:.1}");
    }
    if let [_, _, ..] = row.seeds.as_slice() {
        let _ = write!(text, ", mean of {} seeds", row.seeds.len());
    }
    let how = how(row);
    if !how.is_empty() {
        let _ = write!(text, "; {how}");
    }
    if let Some(verifier) = &row.verifier {
        let _ = write!(text, "; verifier {verifier}");
    }
    text
}

/// Sampling and seeds, in a line.
fn how(row: &EvalRow) -> String {
    let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
    let seeds = match seeds.len() {
        0 => None,
        1 => Some(format!("seed {}", seeds[0])),
        _ => Some(format!("seeds {}", seeds.join(" "))),
    };
    let parts: Vec<String> = row.sampling.iter().cloned().chain(seeds).collect();
    parts.join(", ")
}

/// Whether two results differ by their seed alone: the same problems, asked in the same way.
fn is_same(a: &EvalRow, b: &EvalRow) -> bool {
    let problems = |row: &EvalRow| {
        let EvalRow {
            suite,
            version,
            dataset,
            config,
            split,
            revision,
            ..
        } = row.clone();
        (suite, version, dataset, config, split, revision)
    };
    problems(a) == problems(b)
        && (a.num_problems, a.k) == (b.num_problems, b.k)
        && (&a.sampling, &a.verifier) == (&b.sampling, &b.verifier)
}

/// The results with those that differ by their seed alone as one, their mean.
///
/// The mean of the bounds is an interval that is never too narrow: the deviation of a mean is at most the mean of the
/// deviations.
fn pooled(rows: &[EvalRow]) -> Vec<EvalRow> {
    let mut groups: Vec<Vec<&EvalRow>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| is_same(group[0], row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let of_group = |group: Vec<&EvalRow>| {
        let mean_of = |get: &dyn Fn(&EvalRow) -> Option<f64>| {
            let values: Option<Vec<f64>> = group.iter().map(|row| get(row)).collect();
            values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
        };
        let low = mean_of(&|row| row.ci95.map(|(low, _)| low));
        let high = mean_of(&|row| row.ci95.map(|(_, high)| high));
        EvalRow {
            value: mean_of(&|row| Some(row.value)).unwrap_or_default(),
            ci95: low.zip(high),
            cons: mean_of(&|row| row.cons),
            num_tokens_mean: mean_of(&|row| row.num_tokens_mean),
            truncated: mean_of(&|row| row.truncated),
            before: mean_of(&|row| row.before),
            seeds: group.iter().flat_map(|row| row.seeds.clone()).collect(),
            ..group[0].clone()
        }
    };
    groups.into_iter().map(of_group).collect()
}

fn samples(k: u64) -> String {
    format!("{k} sample{}", if k == 1 { "" } else { "s" })
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// As the Hub sorts data sets by size.
fn size_category(num_rows: u64) -> &'static str {
    match num_rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        10_000_000..100_000_000 => "10M<n<100M",
        _ => "100M<n<1B",
    }
}
