//! A run folder to [`ReportData`]: what is there is read, what is not is named, nothing is recomputed.
//!
//! | file | gives |
//! |---|---|
//! | `plan.json` | name, settings, stages in order; where it is missing, the folders in order of their names |
//! | `recipe.toml` | the recipe as given |
//! | `run.json` | facts about machine, version, duration ([`RunClock`](super::RunClock)) |
//! | `STAGE/done.json` | `{result}`: facts about the stage |
//! | `STAGE/metrics.jsonl` | one [`Step`](super::Step) a line |
//! | `STAGE/rollouts.jsonl` | completions on the way ([`Sampled`](super::Sampled)) |
//! | `STAGE/data.json` | a [`BuildReport`](crate::data::BuildReport) |
//! | `STAGE/select.json` | a [`Selection`](super::data::Selection) |
//! | `STAGE/eval.json`, `STAGE/samples.jsonl` | an [`Evaluation`] and its samples |
//! | `STAGE/checkpoint-*`, `STAGE/model` | checkpoints, the result |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::data::{Alarm, Evaluation, ReportData, Sample, Series, StageReport};
use super::rollouts;
use crate::{Error, Result};

/// Field of a step that has one.
const ALARM: &str = "alarm";
/// Samples kept for each evaluation; the page shows fewer.
const MAX_SAMPLES: usize = 200;

/// Reads a run folder. Only a folder that cannot be read at all is an error.
pub fn collect(run_dir: &Path) -> Result<ReportData> {
    std::fs::read_dir(run_dir).map_err(|e| Error::io("reading", run_dir, e))?;
    let mut files = Files {
        root: run_dir,
        missing: Vec::new(),
    };
    let plan: Map<String, Value> = files.json("plan.json", true).unwrap_or_default();
    let folder_name = run_dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let mut data = ReportData {
        title: text(&plan, "name")
            .or(folder_name)
            .unwrap_or_else(|| "run".into()),
        recipe: std::fs::read_to_string(run_dir.join("recipe.toml")).ok(),
        ..ReportData::default()
    };
    for (key, value) in &plan {
        if !["name", "stages", "notes", "key"].contains(&key.as_str()) {
            flatten(key, value, &mut data.settings);
        }
    }
    if let Some(facts) = files.json::<Value>("run.json", false) {
        flatten("", &facts, &mut data.facts);
    }
    let described = described(&plan);
    data.is_pipeline = !described.is_empty();
    for (name, kind) in stages(run_dir, &plan) {
        let mut stage = stage(&mut files, &name, &kind, &mut data.evaluations);
        if let Some(plan) = described.get(name.as_str()) {
            stage.inputs = named_stages(plan, &described);
            flatten(&name, &plan["job"], &mut data.settings);
            let from = data.evaluations.iter_mut().filter(|e| e.stage == name);
            from.for_each(|e| e.model = Some(model_name(plan)));
        }
        data.stages.push(stage);
    }
    if let Some(model) = data
        .stages
        .iter()
        .rev()
        .find_map(|stage| stage.model.as_ref())
    {
        data.facts.splice(0..0, model_facts(&run_dir.join(model)));
    }
    data.missing = files.missing;
    Ok(data)
}

/// What the result is, in words and in parameters.
fn model_facts(folder: &Path) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let config: Value = std::fs::read(folder.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let architecture = config["architectures"][0]
        .as_str()
        .map(|name| name.trim_end_matches("ForCausalLM"));
    let shape = [
        ("num_hidden_layers", "layers"),
        ("hidden_size", "wide"),
        ("vocab_size", "tokens"),
    ];
    let shape = shape
        .iter()
        .filter_map(|(key, unit)| Some(format!("{} {unit}", config[key].as_u64()?)));
    let parts: Vec<String> = architecture
        .map(str::to_string)
        .into_iter()
        .chain(shape)
        .collect();
    if !parts.is_empty() {
        facts.push(("model".into(), parts.join(", ")));
    }
    let files = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let counts: Option<Vec<u64>> = files
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .map(|p| num_parameters(&p))
        .collect();
    if let Some(n) = counts
        .map(|counts| counts.iter().sum::<u64>())
        .filter(|n| *n > 0)
    {
        facts.push(("num_parameters".into(), n.to_string()));
    }
    facts
}

/// Parameters in a safetensors file, from its header.
fn num_parameters(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut header = Vec::new();
    // a damaged length must not take all memory
    file.take(length.min(100 << 20))
        .read_to_end(&mut header)
        .ok()?;
    let header: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    let tensors = header
        .values()
        .filter_map(|tensor| tensor["shape"].as_array());
    Some(
        tensors
            .map(|shape| shape.iter().filter_map(Value::as_u64).product::<u64>())
            .sum(),
    )
}

/// The stages of a pipeline as its plan has them, by name; none of one student's run.
fn described(plan: &Map<String, Value>) -> BTreeMap<&str, &Value> {
    let stages = plan.get("stages").and_then(Value::as_array);
    let stages = stages.into_iter().flatten();
    stages
        .filter(|stage| stage.get("job").is_some())
        .filter_map(|stage| Some((stage["name"].as_str()?, stage)))
        .collect()
}

/// The earlier stages that a stage names.
fn named_stages(stage: &Value, all: &BTreeMap<&str, &Value>) -> Vec<String> {
    fn walk(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::String(text) => {
                out.extend(text.strip_prefix('@').map(String::from));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, out)),
            Value::Object(map) => map.values().for_each(|item| walk(item, out)),
            _ => {}
        }
    }
    let mut names: Vec<String> = stage["model"]
        .as_str()
        .map(String::from)
        .into_iter()
        .collect();
    walk(&stage["job"], &mut names);
    names.retain(|name| all.contains_key(name.as_str()));
    names.dedup();
    names
}

/// What the table of evaluations calls the model of a stage.
fn model_name(stage: &Value) -> String {
    let student = &stage["student"];
    let source = &student["source"];
    let names = [
        &stage["model"],
        &student["card"],
        &source["hub"]["repo"],
        &source["folder"],
    ];
    let name = names.iter().find_map(|name| name.as_str());
    name.unwrap_or("random weights").to_string()
}

/// Name and kind of every stage.
fn stages(run_dir: &Path, plan: &Map<String, Value>) -> Vec<(String, String)> {
    if let Some(stages) = plan.get("stages").and_then(Value::as_array) {
        let stage = |stage: &Value| {
            let name = stage["name"].as_str().or(stage.as_str())?.to_string();
            let kind = stage["kind"].as_str().unwrap_or(&name).to_string();
            Some((name, kind))
        };
        return stages.iter().filter_map(stage).collect();
    }
    let known = ["metrics.jsonl", "data.json", "eval.json", "done.json"];
    let mut found: Vec<_> = std::fs::read_dir(run_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| known.iter().any(|file| entry.path().join(file).exists()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    found.into_iter().map(|name| (name.clone(), name)).collect()
}

fn stage(
    files: &mut Files,
    name: &str,
    kind: &str,
    evaluations: &mut Vec<Evaluation>,
) -> StageReport {
    let mut stage = StageReport {
        name: name.into(),
        kind: kind.into(),
        ..StageReport::default()
    };
    let folder = files.root.join(name);
    if !folder.is_dir() {
        files
            .missing
            .push(format!("{name}/ (this stage has not been run)"));
        return stage;
    }
    match files.json::<Value>(&format!("{name}/done.json"), false) {
        Some(done) => {
            stage.facts.push(("status".into(), "finished".into()));
            if let Some(result) = done.get("result").filter(|_| !kind.contains("eval")) {
                flatten("", result, &mut stage.facts);
            }
        }
        None => stage.facts.push(("status".into(), "not finished".into())),
    }
    let metrics = format!("{name}/metrics.jsonl");
    if ["grpo", "preference", "reward-model"].contains(&kind) {
        let rows: Vec<Map<String, Value>> = files.lines(&metrics, true, usize::MAX);
        stage.series = series(&rows);
        let alarms = rows.iter().filter_map(|row| row.get(ALARM));
        stage.alarms = alarms
            .filter_map(|alarm| Alarm::deserialize(alarm).ok())
            .collect();
        stage.sampled = rollouts::read(&folder.join("rollouts.jsonl"));
    } else {
        stage.steps = files.lines(&metrics, kind == "sft", usize::MAX);
    }
    stage.selection = files.json(&format!("{name}/select.json"), kind == "select");
    stage.data = files.json(&format!("{name}/data.json"), kind == "data");
    let is_eval = kind.contains("eval");
    if let Some(result) = files.json::<Value>(&format!("{name}/eval.json"), is_eval) {
        let mut evaluation = evaluation(name, &result);
        let samples: Vec<Value> = files.lines(&format!("{name}/samples.jsonl"), true, MAX_SAMPLES);
        evaluation.samples = samples.iter().map(sample).collect();
        evaluations.push(evaluation);
    }
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let entry_name = entry.file_name().to_string_lossy().into_owned();
        if entry_name.starts_with("checkpoint-") && entry.path().is_dir() {
            stage
                .checkpoints
                .push((format!("{name}/{entry_name}"), size(&entry.path())));
        }
    }
    let number = |path: &str| path.rsplit('-').next().and_then(|n| n.parse::<u64>().ok());
    stage.checkpoints.sort_by_key(|(path, _)| number(path));
    stage.model = folder
        .join("model/config.json")
        .exists()
        .then(|| format!("{name}/model"));
    stage
}

/// Every number of the steps but the steps themselves, in the order in which they first appear.
fn series(rows: &[Map<String, Value>]) -> Vec<Series> {
    fn numbers(prefix: &str, map: &Map<String, Value>, step: f64, all: &mut Vec<Series>) {
        for (key, value) in map {
            let name = match prefix {
                "" => key.clone(),
                prefix => format!("{prefix}.{key}"),
            };
            match value {
                Value::Object(_) if name == ALARM => {}
                Value::Object(inner) => numbers(&name, inner, step, all),
                Value::Number(number) if name != "step" => {
                    let Some(number) = number.as_f64() else {
                        continue;
                    };
                    match all.iter_mut().find(|series| series.name == name) {
                        Some(series) => series.points.push((step, number)),
                        None => all.push(Series {
                            name,
                            points: vec![(step, number)],
                        }),
                    }
                }
                _ => {}
            }
        }
    }
    let mut all = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let step = row.get("step").and_then(Value::as_f64);
        numbers("", row, step.unwrap_or(i as f64 + 1.0), &mut all);
    }
    all
}

fn evaluation(stage: &str, result: &Value) -> Evaluation {
    let number = |key: &str| result[key].as_f64();
    let ci = &result["pass@1_ci95"];
    Evaluation {
        stage: stage.into(),
        model: None,
        suite: result["suite"].as_str().unwrap_or("suite").into(),
        version: result.get("version").filter(|v| !v.is_null()).map(scalar),
        num_problems: result["num_problems"].as_u64().unwrap_or(0),
        k: result["k"].as_u64().unwrap_or(1),
        pass_at_1: number("pass@1").unwrap_or(f64::NAN),
        pass_at_1_ci95: ci[0].as_f64().zip(ci[1].as_f64()),
        cons_at_k: number("cons@k"),
        num_tokens_mean: number("num_tokens_mean"),
        truncated_share: number("truncated_share"),
        sampling: result["sampling"].as_object().map(|sampling| {
            let parts: Vec<String> = sampling
                .iter()
                .map(|(k, v)| format!("{} {}", k.replace('_', " "), scalar(v)))
                .collect();
            parts.join(", ")
        }),
        samples: Vec::new(),
    }
}

/// A line of `samples.jsonl`; the question's text stands under different names.
fn sample(row: &Value) -> Sample {
    let first = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| row.get(key).filter(|v| !v.is_null()).map(scalar))
    };
    Sample {
        problem: first(&["question", "prompt", "problem", "id"]).unwrap_or_default(),
        gold: first(&["gold", "answer"]),
        text: first(&["text", "generation", "completion", "prediction"]).unwrap_or_default(),
        verdict: first(&["verdict", "outcome"]).or_else(|| {
            row["correct"].as_bool().map(|correct| {
                if correct {
                    "correct".into()
                } else {
                    "wrong".into()
                }
            })
        }),
        finish_reason: first(&["finish_reason"]),
    }
}

/// The run folder, and what it lacks.
struct Files<'a> {
    root: &'a Path,
    missing: Vec<String>,
}

impl Files<'_> {
    /// A JSON file; absent or damaged is `None`, and remembered where it should be there.
    fn json<T: DeserializeOwned>(&mut self, name: &str, expected: bool) -> Option<T> {
        match std::fs::read(self.root.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| self.missing.push(format!("{name} (cannot be read: {e})")))
                .ok(),
            Err(_) => {
                if expected {
                    self.missing.push(name.into());
                }
                None
            }
        }
    }

    /// The first lines of a JSON lines file. A half-written last line is passed over, other bad lines are counted.
    fn lines<T: DeserializeOwned>(&mut self, name: &str, expected: bool, limit: usize) -> Vec<T> {
        let Ok(file) = File::open(self.root.join(name)) else {
            if expected {
                self.missing.push(name.into());
            }
            return Vec::new();
        };
        let (mut rows, mut bad) = (Vec::new(), Vec::new());
        for (i, line) in BufReader::new(file)
            .split(b'\n')
            .map_while(|line| line.ok())
            .enumerate()
        {
            if rows.len() == limit {
                break;
            }
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(row) => rows.push(row),
                Err(_) => bad.push(i + 1),
            }
        }
        if let [first, ..] = bad[..]
            && (bad.len() > 1 || first <= rows.len())
        {
            self.missing.push(format!(
                "{name} ({} lines cannot be read, line {first} first)",
                bad.len()
            ));
        }
        rows
    }
}

fn text(map: &Map<String, Value>, key: &str) -> Option<String> {
    Some(map.get(key)?.as_str()?.to_string())
}

/// Nested tables to `a.b.c` and a short text each; nulls are left out.
fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    let join = |key: &str| {
        if prefix.is_empty() {
            key.to_string()
        } else {
            format!("{prefix}.{key}")
        }
    };
    match value {
        Value::Null => {}
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| flatten(&join(key), value, out)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, item) in items.iter().enumerate() {
                flatten(&join(&(i + 1).to_string()), item, out);
            }
        }
        other => out.push((prefix.to_string(), scalar(other))),
    }
}

/// A value as people write it: no quotes, lists with commas.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Bytes below a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => size(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}
