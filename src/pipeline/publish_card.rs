//! What the card of a trained model says: how to use it, how it did, what it learned from what for how long, with every
//! setting and every count. Nothing in it changes from one push to the next.

use super::folder::read_json;
use super::publish_chain::{Chain, DataLicense};
use super::publish_license::Duties;
use super::publish_lineage::{EvalStage, Lineage, SourceUse, Step, in_words, public};
use super::publish_usage::usage;
use crate::hub::card::{Block, EvalRow, ModelCard, Relation, Section, escape};
use crate::recipe::plan::StudentSource;
use crate::report::{ReportData, StageReport};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// What else a card needs to know.
pub struct About<'a> {
    /// `owner/name`
    pub repo: &'a str,
    pub languages: &'a [String],
    pub tags: &'a [String],
    /// Step of a checkpoint; `None` is the result itself.
    pub checkpoint: Option<u64>,
    /// The folder is an adapter.
    pub is_adapter: bool,
    /// It scores answers, and writes none.
    pub is_reward: bool,
}

/// The card of the model of `lineage.stage`.
///
/// # Errors
/// A damaged result of an evaluation.
pub fn model_card(
    root: &Path,
    lineage: &Lineage,
    chain: &Chain,
    duties: &Duties,
    report: &ReportData,
    about: &About,
) -> Result<ModelCard> {
    let name = about.repo.rsplit('/').next().unwrap_or(about.repo);
    let relation = match about.is_adapter {
        true => Relation::Adapter,
        false => Relation::Finetune,
    };
    let results = match about.checkpoint {
        None => evaluations(root, lineage, report)?,
        // the results are those of the last step
        Some(_) => Vec::new(),
    };
    let mut datasets: Vec<String> = Vec::new();
    for source in lineage.steps.iter().flat_map(|step| &step.sources) {
        let repo = source.repo();
        if source.is_on_hub && !datasets.iter().any(|known| known == repo) {
            datasets.push(repo.to_string());
        }
    }
    let mut sections = vec![usage(about, report), training(root, lineage, report, about)];
    sections.push(data(lineage, chain, report));
    sections.push(settings(lineage));
    sections.push(machine(report));
    if !duties.notes.is_empty() {
        sections.push(Section {
            title: "License".into(),
            blocks: duties
                .notes
                .iter()
                .map(|note| Block::Text(escape_all(note)))
                .collect(),
        });
    }
    Ok(ModelCard {
        name: name.to_string(),
        license: duties.license.clone(),
        base: chain.repo().map(|repo| (repo.to_string(), relation)),
        datasets,
        languages: about.languages.to_vec(),
        tags: tags(lineage, about),
        library: if about.is_adapter {
            "peft"
        } else {
            "transformers"
        }
        .into(),
        task: about.is_reward.then(|| "text-classification".into()),
        results,
        lead: lead(lineage, duties, report, about),
        sections,
    })
}

/// Code spans stay, everything else is text.
pub fn escape_all(note: &str) -> String {
    let parts = note.split('`').enumerate();
    let shown: Vec<String> = parts
        .map(|(i, part)| match i % 2 {
            1 => format!("`{part}`"),
            _ => {
                let (start, end) = (part.starts_with(' '), part.ends_with(' '));
                let space = |is: bool| if is { " " } else { "" };
                match part.trim().is_empty() {
                    true => part.to_string(),
                    false => format!("{}{}{}", space(start), escape(part), space(end)),
                }
            }
        })
        .collect();
    shown.concat()
}

/// Whether this names a repository of the Hub, and nothing that lies here.
pub fn is_hub(source: &str) -> bool {
    let mut parts = source.split('/');
    let is_part = |part: Option<&str>| part.is_some_and(|part| !part.is_empty());
    let both = is_part(parts.next()) && is_part(parts.next()) && parts.next().is_none();
    let is_file = crate::hub::is_data_file(source);
    both && !is_file
        && !source.starts_with(['/', '.', '~', '@'])
        && !source.contains(':')
        && !Path::new(source).exists()
}

fn tags(lineage: &Lineage, about: &About) -> Vec<String> {
    let first = match about.is_reward {
        true => ["reward-model", "reasoning", "distill"],
        false => ["reasoning", "chain-of-thought", "distill"],
    };
    let mut tags: Vec<String> = first.map(String::from).into();
    let own = lineage.steps.iter().filter(|step| step.is_own);
    let kinds: BTreeSet<&str> = own.map(|step| step.kind).collect();
    for kind in ["sft", "grpo", "preference"] {
        if kinds.contains(kind) {
            tags.push(kind.into());
        }
    }
    if about.is_adapter {
        tags.push("lora".into());
    }
    tags.push("arxiv:2501.12948".into());
    tags.extend(about.tags.iter().cloned());
    let mut seen = BTreeSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    tags
}

/// The first words: what it is, of what, and what a licence wants to be seen.
fn lead(lineage: &Lineage, duties: &Duties, report: &ReportData, about: &About) -> String {
    let mut text = String::new();
    for display in &duties.displays {
        text += &format!("**{display}**\n\n");
    }
    let ways: Vec<&str> = ["sft", "preference", "grpo"]
        .into_iter()
        .filter(|kind| {
            lineage
                .steps
                .iter()
                .any(|step| step.is_own && step.kind == *kind)
        })
        .map(way)
        .collect();
    let what = match about.checkpoint {
        Some(step) => format!("Step {step} of a training"),
        None if about.is_reward => "A reward model".to_string(),
        None => "A reasoning model".to_string(),
    };
    let from = match lineage.bases.first() {
        Some(base) => match (&base.source, base.revision()) {
            (StudentSource::Hub { repo, .. }, Some(revision)) => format!(
                "[{}](https://huggingface.co/{repo}/tree/{revision})",
                escape(repo)
            ),
            _ => escape_all(&in_words(base)),
        },
        None => "nothing".into(),
    };
    let kind = if about.is_adapter {
        ", as an adapter"
    } else {
        ""
    };
    let does = match about.is_reward {
        true => "It gives an answer one number: the higher, the better.",
        false => "It thinks between `<think>` and `</think>` before it answers.",
    };
    let ways = match about.is_reward {
        true => vec!["preferences"],
        false => ways,
    };
    text += &format!(
        "{what}{kind}: {from}, trained by {} the way DeepSeek-R1 was ([arXiv 2501.12948](https://arxiv.org/abs/2501.12948)), with `distill`{}. {does}",
        ways.join(" and "),
        fact(report, "version").map_or(String::new(), |v| format!(" {v}")),
    );
    text
}

fn way(kind: &str) -> &'static str {
    match kind {
        "sft" => "supervised fine-tuning",
        "grpo" => "reinforcement learning (GRPO)",
        "preference" => "preference optimisation",
        "generate" => "sampling",
        "select" => "rejection sampling",
        "reward-model" => "reward model",
        _ => "evaluation",
    }
}

fn training(root: &Path, lineage: &Lineage, report: &ReportData, about: &About) -> Section {
    let row = |step: &Step| {
        let all = || step.folders.iter().filter_map(|name| stage(report, name));
        let get = |key: &str| all().find_map(|stage| value(&stage.facts, key));
        let count = |keys: &[&str], unit: &str| {
            let found = keys.iter().find_map(|key| get(key));
            found.map(|n| format!("{n} {unit}"))
        };
        let learned = step.sources.iter().map(|source| named(&source.source));
        let learned: Vec<String> = learned.collect();
        let much: Vec<String> = [
            count(&["num_steps"], "steps"),
            count(&["num_tokens"], "tokens"),
            count(&["num_trained_tokens"], "of them trained"),
            count(&["num_completions"], "completions"),
            count(&["num_kept"], "kept"),
            count(&["num_samples"], "samples"),
        ]
        .into_iter()
        .flatten()
        .collect();
        vec![
            step.name.clone(),
            way(step.kind).to_string(),
            step.from.clone().unwrap_or_default().replace('`', ""),
            learned.join(", "),
            much.join(", "),
            get("loss")
                .or(get("reward"))
                .map_or(String::new(), |n| short(&n)),
            seconds(root, &step.name).map_or(String::new(), |s| format!("{s:.0}")),
        ]
    };
    let mut blocks = vec![Block::Table {
        head: [
            "stage",
            "what",
            "from",
            "learned from",
            "how much",
            "last loss or reward",
            "seconds",
        ]
        .map(String::from)
        .into(),
        rows: lineage.steps.iter().map(row).collect(),
    }];
    if let Some(quant) = lineage.quant {
        let quant = quant.name();
        blocks.push(Block::Text(match about.is_adapter {
            true => format!("The adapter was trained beside projections quantised to {quant}: beside other weights, those of the base in 16 bits too, it is a little another model."),
            false => format!("Adapters were trained beside projections quantised to {quant}, and then merged into what these stand for."),
        }));
    }
    let shape = shape(root, lineage);
    if !shape.is_empty() {
        blocks.push(Block::Text(format!("{}.", escape(&shape))));
    }
    Section {
        title: "Training".into(),
        blocks,
    }
}

/// How long the process that finished a stage worked on it.
fn seconds(root: &Path, stage: &str) -> Option<f64> {
    let done: Value = read_json(&root.join(stage).join("done.json")).ok()?;
    done["seconds"].as_f64()
}

/// A number with as many digits as say something.
fn short(number: &str) -> String {
    let value: Option<f64> = number.parse().ok();
    value.map_or(number.to_string(), |value| match value.abs() < 0.001 {
        true => format!("{value:.2e}"),
        false => format!("{value:.4}"),
    })
}

/// What the result is, in a line.
fn shape(root: &Path, lineage: &Lineage) -> String {
    let path = root.join(&lineage.stage).join("model/config.json");
    // an adapter has none, and its base is named
    let config: Value = read_json(&path).unwrap_or_default();
    let counts = [
        ("num_hidden_layers", "layers"),
        ("hidden_size", "wide"),
        ("vocab_size", "tokens"),
        ("max_position_embeddings", "positions"),
    ];
    let counts = counts
        .iter()
        .filter_map(|(key, unit)| Some(format!("{} {unit}", config[key].as_u64()?)));
    let texts = [&config["architectures"][0], &config["dtype"]];
    let texts = texts.iter().filter_map(|text| text.as_str());
    let parts: Vec<String> = texts.map(String::from).chain(counts).collect();
    parts.join(", ")
}

fn data(lineage: &Lineage, chain: &Chain, report: &ReportData) -> Section {
    let mut blocks = Vec::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for source in lineage.steps.iter().flat_map(|step| &step.sources) {
        let row = source_row(source, &chain.data);
        if !source.source.starts_with('@') && !rows.contains(&row) {
            rows.push(row);
        }
    }
    blocks.push(Block::Table {
        head: SOURCE_HEAD.map(String::from).into(),
        rows,
    });
    for folder in lineage.steps.iter().flat_map(|step| &step.folders) {
        let Some(stage) = stage(report, folder) else {
            continue;
        };
        blocks.extend(counts(stage));
    }
    Section {
        title: "Data".into(),
        blocks,
    }
}

/// Above the rows of [`source_row`].
pub const SOURCE_HEAD: [&str; 5] = ["source", "config", "split", "revision", "license"];

/// A source as a row of a table.
pub fn source_row(source: &SourceUse, licenses: &[DataLicense]) -> Vec<String> {
    let license = licenses.iter().find(|data| data.source == source.source);
    vec![
        named(&source.source),
        source.config.clone().unwrap_or_default(),
        source.split.clone(),
        source.revision.clone().unwrap_or_default(),
        license.map(DataLicense::in_words).unwrap_or_default(),
    ]
}

fn named(source: &str) -> String {
    match source.strip_prefix('@') {
        Some(stage) => format!("stage {stage}"),
        None => public(source),
    }
}

/// What became of the rows of a stage.
pub fn counts(stage: &StageReport) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |what: &str, count: u64| rows.push(vec![what.to_string(), count.to_string()]);
    if let Some(data) = &stage.data {
        row("rows kept", data.kept);
        row("tokens", data.tokens);
        row("tokens trained on", data.trained_tokens);
        row("longest row, in tokens", data.longest);
        row("cut to the longest length", data.truncated);
        for dropped in &data.dropped {
            row(&format!("dropped: {}", dropped.reason), dropped.count);
        }
        let verdicts = &data.verdicts;
        row("with the verdict right", verdicts.correct);
        row("with the verdict wrong", verdicts.wrong);
        row("without a verdict", verdicts.unknown);
    }
    if let Some(selection) = &stage.selection {
        row("prompts", selection.num_prompts);
        row(
            "prompts with a sample that is kept",
            selection.num_prompts_kept,
        );
        row("samples", selection.num_samples);
        row("samples kept", selection.num_kept);
        for dropped in &selection.dropped {
            row(&format!("dropped: {}", dropped.reason), dropped.count);
        }
        for mixed in &selection.mix {
            row(
                &format!("mixed in from {}", named(&mixed.source)),
                mixed.num_traces,
            );
            if mixed.num_dropped > 0 {
                row(
                    &format!("dropped of {}", named(&mixed.source)),
                    mixed.num_dropped,
                );
            }
        }
        row("traces in all", selection.num_traces);
    }
    if !rows.is_empty() {
        blocks.push(Block::Text(format!("Stage `{}`:", stage.name)));
        blocks.push(Block::Table {
            head: ["rows", "count"].map(String::from).into(),
            rows,
        });
    }
    blocks
}

fn settings(lineage: &Lineage) -> Section {
    let several = lineage.steps.len() > 1;
    let mut blocks = Vec::new();
    for step in &lineage.steps {
        if several {
            blocks.push(Block::Text(format!("Stage `{}`:", step.name)));
        }
        let rows = step
            .settings
            .iter()
            .map(|(key, value)| vec![key.clone(), value.clone()]);
        blocks.push(Block::Table {
            head: ["setting", "value"].map(String::from).into(),
            rows: rows.collect(),
        });
    }
    Section {
        title: "Settings".into(),
        blocks,
    }
}

fn machine(report: &ReportData) -> Section {
    let known = [
        ("version", "distill"),
        ("started", "started"),
        ("device", "device"),
        ("processor", "processor"),
        ("num_threads", "threads"),
        ("operating_system", "system"),
    ];
    let rows = known
        .iter()
        .filter_map(|(key, label)| Some(vec![label.to_string(), fact(report, key)?]));
    Section {
        title: "Machine".into(),
        blocks: vec![Block::Table {
            head: ["fact", "value"].map(String::from).into(),
            rows: rows.collect(),
        }],
    }
}

fn stage<'a>(report: &'a ReportData, name: &str) -> Option<&'a StageReport> {
    report.stages.iter().find(|stage| stage.name == name)
}

fn value(facts: &[(String, String)], key: &str) -> Option<String> {
    let found = facts.iter().find(|(name, _)| name == key);
    found.map(|(_, value)| value.clone())
}

fn fact(report: &ReportData, key: &str) -> Option<String> {
    value(&report.facts, key)
}

/// The results of the model, each with that of the model it began as and the paper's.
fn evaluations(root: &Path, lineage: &Lineage, report: &ReportData) -> Result<Vec<EvalRow>> {
    let day = fact(report, "started").and_then(|text| text.get(..10).map(String::from));
    let read = |eval: &EvalStage| -> Result<Option<Value>> {
        let path = root.join(&eval.folder).join("eval.json");
        match path.exists() {
            true => read_json(&path).map(Some),
            false => Ok(None),
        }
    };
    let percent = |result: &Value, key: &str| result[key].as_f64().map(|share| 100.0 * share);
    let mut before = Vec::new();
    for eval in lineage.evals.iter().filter(|eval| eval.before) {
        if let Some(result) = read(eval)? {
            let seed = result["seed"].as_u64();
            before.push((eval.suite.name.clone(), seed, percent(&result, "pass@1")));
        }
    }
    let paper = lineage.bases.first().and_then(|base| base.card.as_ref());
    let mut rows = Vec::new();
    for eval in lineage.evals.iter().filter(|eval| !eval.before) {
        let Some(result) = read(eval)? else { continue };
        let suite = &eval.suite;
        let value = percent(&result, "pass@1")
            .filter(|value| value.is_finite())
            .ok_or_else(|| {
                Error::input(format!("`{}/eval.json` has no `pass@1`", eval.folder))
                    .with_hint("run the recipe again: the evaluation is made anew")
            })?;
        let interval = &result["pass@1_ci95"];
        let sampling = result["sampling"].as_object().map(|sampling| {
            let parts = sampling
                .iter()
                .map(|(key, value)| format!("{} {value}", key.replace('_', " ")));
            parts.collect::<Vec<_>>().join(", ")
        });
        let source = &suite.dataset.source;
        let on_hub = is_hub(source);
        rows.push(EvalRow {
            suite: suite.name.clone(),
            version: Some(suite.version.clone()),
            dataset: on_hub.then(|| source.clone()),
            config: suite.dataset.config.clone(),
            split: on_hub.then(|| suite.dataset.split.clone()).flatten(),
            revision: on_hub.then(|| suite.dataset.revision.clone()).flatten(),
            value,
            ci95: interval[0]
                .as_f64()
                .zip(interval[1].as_f64())
                .map(|(low, high)| (100.0 * low, 100.0 * high)),
            cons: percent(&result, "cons@k"),
            num_problems: result["num_problems"].as_u64().unwrap_or(0),
            k: result["k"].as_u64().unwrap_or(1),
            num_tokens_mean: result["num_tokens_mean"].as_f64(),
            truncated: percent(&result, "truncated_share"),
            sampling,
            seeds: result["seed"].as_u64().into_iter().collect(),
            verifier: result["verifier"].as_str().map(String::from),
            before: {
                let same = || before.iter().filter(|(name, _, _)| *name == suite.name);
                let seed = result["seed"].as_u64();
                let found = same().find(|(_, own, _)| *own == seed);
                found.or(same().next()).and_then(|(_, _, value)| *value)
            },
            paper: paper.and_then(|card| card.paper.get(&suite.name).copied()),
            date: day.clone(),
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_of_the_hub_are_told_from_files_and_stages() {
        for source in ["open-r1/Mixture-of-Thoughts", "a/b"] {
            assert!(is_hub(source), "{source}");
        }
        for source in [
            "@stage",
            "builtin:arithmetic",
            "/a/b",
            "./a/b",
            "a/b/c",
            "data/x.jsonl",
            "x",
            "~/a",
        ] {
            assert!(!is_hub(source), "{source}");
        }
    }

    #[test]
    fn text_is_escaped_and_code_is_not() {
        assert_eq!(
            escape_all("A `LICENSE_1` of a_b <c>."),
            "A `LICENSE_1` of a\\_b &lt;c&gt;."
        );
    }
}
