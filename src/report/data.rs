//! What a report shows, as plain data: the pipeline fills it, or [`super::collect()`] rebuilds it from the run folder.
//!
//! Every part may be absent; the page then says so instead of showing an empty section.

use serde::{Deserialize, Serialize};

use super::rollouts::Sampled;
use crate::data::BuildReport;

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// Name of the run, the page's title.
    pub title: String,
    /// What was run, as label and value: command, model, parameters, device, version, started, duration.
    pub facts: Vec<(String, String)>,
    /// The resolved settings, keys joined with dots.
    pub settings: Vec<(String, String)>,
    /// Several `[[stage]]`s, not one student.
    pub is_pipeline: bool,
    /// Every stage in order.
    pub stages: Vec<StageReport>,
    /// The recipe as given.
    pub recipe: Option<String>,
    /// Results of all suites, in the order they were run.
    pub evaluations: Vec<Evaluation>,
    /// Files that were expected and are not there or cannot be read.
    pub missing: Vec<String>,
}

/// One stage of the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StageReport {
    /// Name of the stage and of its folder.
    pub name: String,
    /// `data`, `sft`, `eval`, ... as the plan calls it.
    pub kind: String,
    /// Facts about how it went: status, duration, tokens, peak memory.
    pub facts: Vec<(String, String)>,
    /// The earlier stages it starts from.
    pub inputs: Vec<String>,
    /// Optimiser steps, ascending.
    pub steps: Vec<Step>,
    /// What a stage that learns from something else than traces logs of each step.
    pub series: Vec<Series>,
    /// Evaluations on the way that found the reward up and the accuracy down.
    pub alarms: Vec<Alarm>,
    /// Completions on the way.
    pub sampled: Option<Sampled>,
    /// What became of samples.
    pub selection: Option<Selection>,
    /// What became of the data.
    pub data: Option<BuildReport>,
    /// Checkpoint folders, relative to the run folder, with their size in bytes.
    pub checkpoints: Vec<(String, u64)>,
    /// The resulting model folder, relative to the run folder.
    pub model: Option<String>,
}

/// One number of each step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// Keys of `metrics.jsonl`, joined with dots.
    pub name: String,
    /// Step and value, ascending.
    pub points: Vec<(f64, f64)>,
}

/// Of a step of `metrics.jsonl`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Alarm {
    /// The best accuracy before.
    pub since: AlarmPoint,
    pub now: AlarmPoint,
}

/// One evaluation on the way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AlarmPoint {
    pub step: u64,
    /// Mean since the evaluation before.
    pub reward: f64,
    pub accuracy: f64,
}

/// `select.json`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    pub num_prompts: u64,
    pub num_prompts_kept: u64,
    pub num_samples: u64,
    pub num_kept: u64,
    pub pass_rate_mean: Option<f64>,
    pub num_tokens_mean: Option<f64>,
    pub dropped: Vec<NotKept>,
    pub mix: Vec<Mixed>,
    pub num_traces: u64,
}

/// Samples that were not kept for one reason.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NotKept {
    pub reason: String,
    pub count: u64,
    pub examples: Vec<String>,
}

/// Traces of another source.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mixed {
    pub source: String,
    pub num_traces: u64,
    pub num_dropped: u64,
}

/// One line of `metrics.jsonl`; other fields of the line are not shown.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    pub step: u64,
    pub epoch: Option<f64>,
    pub loss: Option<f64>,
    pub grad_norm: Option<f64>,
    pub learning_rate: Option<f64>,
    pub num_tokens: Option<f64>,
    pub tokens_per_s: Option<f64>,
}

/// One suite at one moment of the run: `eval.json` with some rows of its `samples.jsonl`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// When: the stage's name, such as `before` or `eval`.
    pub stage: String,
    /// Of a pipeline: the stage that left the model, or the model's name.
    pub model: Option<String>,
    pub suite: String,
    pub version: Option<String>,
    pub num_problems: u64,
    pub k: u64,
    /// Share of correct samples, 0 to 1.
    pub pass_at_1: f64,
    pub pass_at_1_ci95: Option<(f64, f64)>,
    pub cons_at_k: Option<f64>,
    pub num_tokens_mean: Option<f64>,
    /// Share of samples that ran into the token limit.
    pub truncated_share: Option<f64>,
    /// Temperature, top-p and the like in one line.
    pub sampling: Option<String>,
    pub samples: Vec<Sample>,
}

/// One sampled answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    pub problem: String,
    pub gold: Option<String>,
    /// What the model wrote, thinking included.
    pub text: String,
    /// `correct`, `wrong` or `unparsable`.
    pub verdict: Option<String>,
    /// `stop` or `length`.
    pub finish_reason: Option<String>,
}
