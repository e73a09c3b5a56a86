//! What a run would take, before anything is fetched or trained: steps, tokens, work and memory by part.
//!
//! Shapes come from the card's family, so that no network is needed; how many rows and tokens there are is known where
//! the traces are local, and else only bounded.

use super::advice::advice;
use super::folder::ScratchDir;
use super::stages::{build_options, trace_sources};
use super::student::{Student, adapter_config, check_positions, planned_config};
use crate::Result;
use crate::data::Store;
use crate::model::ModelConfig;
use crate::ops::PackedAs;
use crate::progress::{Reporter, Stop};
use crate::recipe::graph::{Job, PipelinePlan, StagePlan};
use crate::recipe::grpo::Grpo;
use crate::recipe::plan::{Plan, SftPlan, StudentPlan, StudentSource};
use crate::recipe::stage::Prompts;
use crate::recipe::{Dtype, Optimizer, Recompute};
use crate::train::SftSettings;
use crate::train::flops::step_flops;
use crate::train::footprint::{Footprint, Load, Rollouts};
use crate::train::shrink;
use serde::Serialize;
use std::path::Path;

/// What a run would take.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    pub num_parameters: usize,
    /// Bytes by part while training.
    pub memory: Footprint,
    /// The most that is held at once, in bytes.
    pub peak_memory: u64,
    /// Bytes to fit into, where they were given.
    pub device_memory: Option<u64>,
    /// What is computed again in the backward pass, where something is trained; and whether that was chosen for the memory.
    pub recompute: Option<Recompute>,
    pub recompute_chosen: bool,
    /// What to change so that it fits; empty where it fits.
    pub advice: Vec<String>,
    /// Rows, tokens and steps, where the traces are local.
    pub work: Option<Work>,
    /// Floating-point operations of a step of full sequences, an upper bound.
    pub flops_of_full_step: f64,
}

/// How much there is to do.
#[derive(Clone, Debug, Serialize)]
pub struct Work {
    pub num_rows: usize,
    pub num_tokens: u64,
    pub num_steps: usize,
    /// Floating-point operations of the whole training.
    pub flops: f64,
}

/// Estimates `plan` for a device of `device_memory` bytes.
///
/// # Errors
/// A student whose shape is not known, local traces that cannot be read.
pub fn estimate(
    plan: &Plan,
    device_memory: Option<u64>,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Estimate> {
    estimated(plan, device_memory, false, reporter, stop)
}

fn estimated(
    plan: &Plan,
    device_memory: Option<u64>,
    is_stage: bool,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Estimate> {
    let config = planned_config(&plan.student)?;
    check_positions(&config, plan)?;
    let all = sft(plan, &config, device_memory, is_stage);
    let recompute = all.recompute.unwrap_or_default();
    Ok(Estimate {
        work: work(plan, &config, recompute, reporter, stop)?,
        ..all
    })
}

/// The same of a model of shape `config`, without looking at the traces.
pub fn of_sft(plan: &Plan, config: &ModelConfig, device_memory: Option<u64>) -> Estimate {
    sft(plan, config, device_memory, false)
}

/// `is_stage`: what it starts from is what another stage left.
fn sft(plan: &Plan, config: &ModelConfig, device_memory: Option<u64>, is_stage: bool) -> Estimate {
    let load = load(plan, config);
    let full = vec![plan.sft.max_length; plan.sft.batch_size];
    let in_files = is_stage || in_files(&plan.student);
    let of = (Footprint::new as Shape, "sft", in_files);
    trained(config, load, of, device_memory, &full)
}

/// What a stage of a pipeline would take.
#[derive(Clone, Debug, Serialize)]
pub struct StageEstimate {
    pub name: String,
    pub kind: &'static str,
    /// None where no model is in memory.
    pub estimate: Option<Estimate>,
}

/// Estimates every stage of a pipeline.
///
/// # Errors
/// As [`estimate`].
pub fn estimate_stages(
    plan: &PipelinePlan,
    device_memory: Option<u64>,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Vec<StageEstimate>> {
    let of = |stage: &StagePlan| -> Result<StageEstimate> {
        let estimate = match &stage.job {
            Job::Sft { .. } => {
                let (sft, is_stage) = (plan.sft(stage)?, stage.model.is_some());
                Some(estimated(&sft, device_memory, is_stage, reporter, stop)?)
            }
            Job::Select { .. } => None,
            _ => {
                let config = planned_config(stage.student()?)?;
                of_stage(plan, stage, &config, device_memory, reporter)?
            }
        };
        Ok(StageEstimate {
            name: stage.name.clone(),
            kind: stage.kind.name(),
            estimate,
        })
    };
    let at = |stage: &StagePlan, e: crate::Error| e.at(format!("stage `{}`", stage.name));
    plan.stages
        .iter()
        .map(|stage| of(stage).map_err(|e| at(stage, e)))
        .collect()
}

/// What a stage takes whose model is of shape `config`, without looking at traces; none where no model is in memory.
///
/// # Errors
/// Prompts that cannot be read.
pub fn of_stage(
    plan: &PipelinePlan,
    stage: &StagePlan,
    config: &ModelConfig,
    device_memory: Option<u64>,
    reporter: &dyn Reporter,
) -> Result<Option<Estimate>> {
    Ok(match &stage.job {
        Job::Sft { .. } => Some(sft(
            &plan.sft(stage)?,
            config,
            device_memory,
            stage.model.is_some(),
        )),
        Job::Select { .. } => None,
        Job::RewardModel { table, .. } => {
            let training = table.training();
            let of = (&training, "reward_model", Footprint::scoring as Shape);
            Some(of_pairs(plan, stage, config, of, device_memory)?)
        }
        Job::Preference { table, .. } => {
            let training = table.training();
            let of = (&training, "preference", Footprint::new as Shape);
            Some(of_pairs(plan, stage, config, of, device_memory)?)
        }
        Job::Generate { sampling, .. } => {
            let slots = (sampling.batch_size, sampling.max_new_tokens);
            Some(of_sampling(
                plan,
                stage,
                config,
                slots,
                "sampling",
                device_memory,
            )?)
        }
        Job::Grpo { prompts, grpo, .. } => {
            let longest = longest_prompt(plan, stage, prompts, reporter)?;
            Some(of_grpo(plan, stage, config, grpo, longest, device_memory)?)
        }
        Job::Eval(eval) => {
            let lengths = eval.suites.iter().map(|s| s.sampling.max_new_tokens);
            let slots = (eval.batch_size, lengths.max().unwrap_or(0));
            Some(of_sampling(
                plan,
                stage,
                config,
                slots,
                "eval",
                device_memory,
            )?)
        }
    })
}

/// A size as people read it.
pub fn gib(bytes: u64) -> String {
    match bytes as f64 / 1_073_741_824.0 {
        g if g >= 1.0 => format!("{g:.1} GiB"),
        g => format!("{:.0} MiB", g * 1024.0),
    }
}

/// A stage that samples `num_slots` sequences of `slot_length` tokens side by side; `table` is where that is set.
fn of_sampling(
    plan: &PipelinePlan,
    stage: &StagePlan,
    config: &ModelConfig,
    (num_slots, slot_length): (usize, usize),
    table: &str,
    device_memory: Option<u64>,
) -> Result<Estimate> {
    let student = stage.student()?;
    let load = |num_slots, stream| Load {
        dtype: student.dtype,
        recompute: Recompute::None,
        num_adapter_weights: None,
        quant: None,
        stream,
        dora: false,
        optimizer: Optimizer::AdamW,
        at_once: false,
        pack_length: 0,
        max_length: 0,
        on_host: is_cpu(&plan.device),
        fast_cpu: is_cpu(&plan.device) && student.dtype != Dtype::F16,
        fast_gpu: has_kernels(&plan.device, student, config),
        num_slots,
        slot_length,
        rollouts: None,
    };
    let stream = is_streamed(student);
    let of = |num_slots, stream| Footprint::sampling(config, &load(num_slots, stream));
    let memory = of(num_slots, stream);
    let may_stream =
        !stream && student.adapter.is_some() && (stage.model.is_some() || in_files(student));
    let mut advice = Vec::new();
    if let Some(bytes) = device_memory.filter(|bytes| memory.peak() > *bytes) {
        let streamed = largest_batch(num_slots, |n| may_stream && of(n, true).peak() <= bytes);
        let smaller = largest_batch(num_slots / 2, |n| of(n, stream).peak() <= bytes);
        advice.push(match smaller {
            Some(n) => {
                format!("`{table}.batch_size = {n}`: fewer sequences side by side")
            }
            None => match streamed {
                Some(n) => format!("`student.lora.stream = true`, `{table}.batch_size = {n}`: weights wait on the host and come for each token"),
                None => "the weights and one sequence do not fit: take a smaller student, shorter answers or a larger device".into(),
            }
        });
    }
    Ok(Estimate {
        num_parameters: config.num_parameters(),
        peak_memory: memory.peak(),
        memory,
        device_memory,
        recompute: None,
        recompute_chosen: false,
        advice,
        work: None,
        flops_of_full_step: 0.0,
    })
}

/// The first of `n`, `n / 2`, `n / 4`, ... sequences that fit.
fn largest_batch(n: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    std::iter::successors(Some(n), |n| Some(n / 2))
        .take_while(|n| *n > 0)
        .find(|n| fits(*n))
}

/// Weights of the adapters that are trained, where some are.
fn num_adapter_weights(student: &StudentPlan, config: &ModelConfig) -> Option<u64> {
    let adapter = student.adapter.as_ref()?;
    Some(adapter_config(adapter).num_parameters(config) as u64)
}

fn quant(student: &StudentPlan) -> Option<PackedAs> {
    student.adapter.as_ref()?.packed_as()
}

fn is_streamed(student: &StudentPlan) -> bool {
    student
        .adapter
        .as_ref()
        .is_some_and(|adapter| adapter.stream)
}

fn is_dora(student: &StudentPlan) -> bool {
    student.adapter.as_ref().is_some_and(|adapter| adapter.dora)
}

fn load(plan: &Plan, config: &ModelConfig) -> Load {
    let eval = plan.eval.as_ref();
    let slot_length = eval.map_or(0, |e| {
        e.suites
            .iter()
            .map(|s| s.sampling.max_new_tokens)
            .max()
            .unwrap_or(0)
    });
    Load {
        dtype: plan.student.dtype,
        recompute: plan.sft.recompute,
        num_adapter_weights: num_adapter_weights(&plan.student, config),
        quant: quant(&plan.student),
        stream: is_streamed(&plan.student),
        dora: is_dora(&plan.student),
        optimizer: plan.sft.optimizer,
        at_once: is_at_once(&plan.sft),
        pack_length: if plan.sft.packing {
            plan.sft.pack_length
        } else {
            plan.sft.max_length
        },
        max_length: plan.sft.max_length,
        on_host: is_cpu(&plan.device),
        fast_cpu: is_cpu(&plan.device) && plan.student.dtype != Dtype::F16,
        fast_gpu: has_kernels(&plan.device, &plan.student, config),
        num_slots: eval
            .filter(|e| !e.suites.is_empty())
            .map_or(0, |e| e.batch_size),
        slot_length,
        rollouts: None,
    }
}

/// Whether every step is one micro-batch, and nothing is clipped.
fn is_at_once(sft: &SftPlan) -> bool {
    let is_one = match sft.packing {
        true => sft.batch_size.saturating_mul(sft.max_length) <= sft.pack_length,
        false => sft.batch_size == 1,
    };
    is_one && sft.max_grad_norm == 0.0
}

/// The memory of a model of some shape under some load.
type Shape = fn(&ModelConfig, &Load) -> Footprint;

/// A stage that learns from pairs or labelled answers; the log-probabilities of a reference are computed before it.
fn of_pairs(
    plan: &PipelinePlan,
    stage: &StagePlan,
    config: &ModelConfig,
    (training, table, shape): (&SftPlan, &str, Shape),
    device_memory: Option<u64>,
) -> Result<Estimate> {
    let student = stage.student()?;
    let load = Load {
        dtype: student.dtype,
        recompute: training.recompute,
        num_adapter_weights: num_adapter_weights(student, config),
        quant: quant(student),
        stream: is_streamed(student),
        dora: is_dora(student),
        optimizer: training.optimizer,
        at_once: false,
        // a pack holds whole pairs
        pack_length: match training.packing {
            true => training.pack_length,
            false => 2 * training.max_length,
        },
        max_length: training.max_length,
        on_host: is_cpu(&plan.device),
        fast_cpu: is_cpu(&plan.device) && student.dtype != Dtype::F16,
        fast_gpu: has_kernels(&plan.device, student, config),
        num_slots: 0,
        slot_length: 0,
        rollouts: None,
    };
    let lengths = vec![training.max_length; 2 * training.batch_size];
    let of = (shape, table, stage.model.is_some() || in_files(student));
    Ok(trained(config, load, of, device_memory, &lengths))
}

/// Tokens that a prompt is taken to have where it cannot be looked at.
const PROMPT_LENGTH: usize = 512;

/// A policy that learns from its own samples: sampling and updates in turn, with all that training holds.
fn of_grpo(
    plan: &PipelinePlan,
    stage: &StagePlan,
    config: &ModelConfig,
    grpo: &Grpo,
    longest_prompt: usize,
    device_memory: Option<u64>,
) -> Result<Estimate> {
    let student = stage.student()?;
    let longest = (longest_prompt + grpo.max_new_tokens).min(config.max_position_embeddings);
    let num_completions = grpo.num_prompts_per_step * grpo.group_size;
    let num_of_rollout = grpo.num_prompts_per_rollout() * grpo.group_size;
    let load = Load {
        dtype: student.dtype,
        recompute: grpo.recompute,
        num_adapter_weights: num_adapter_weights(student, config),
        quant: quant(student),
        stream: is_streamed(student),
        dora: is_dora(student),
        optimizer: grpo.optimizer,
        at_once: false,
        pack_length: grpo.pack_length.max(longest).min(num_completions * longest),
        max_length: longest,
        on_host: is_cpu(&plan.device),
        fast_cpu: is_cpu(&plan.device) && student.dtype != Dtype::F16,
        fast_gpu: has_kernels(&plan.device, student, config),
        // a remote engine has memory of its own
        num_slots: match grpo.remote {
            Some(_) => 0,
            None => grpo.batch_size.min(num_of_rollout),
        },
        slot_length: longest,
        rollouts: Some(Rollouts {
            has_reference: grpo.needs_reference(),
            num_tokens: num_of_rollout * longest,
            group_size: grpo.group_size,
            prompt_length: longest_prompt,
        }),
    };
    let lengths = vec![longest; num_completions];
    let in_files = stage.model.is_some() || in_files(student);
    let of = (Footprint::new as Shape, "grpo", in_files);
    Ok(trained(config, load, of, device_memory, &lengths))
}

/// Whether weights come from files, which they can be streamed from.
fn in_files(student: &StudentPlan) -> bool {
    !matches!(student.source, StudentSource::Random(_))
}

/// `of`: the shape of the memory, the table of the settings, and whether the weights are in files. `lengths` are those of a
/// step's sequences.
fn trained(
    config: &ModelConfig,
    mut load: Load,
    (shape, table, in_files): (Shape, &str, bool),
    device_memory: Option<u64>,
    lengths: &[usize],
) -> Estimate {
    let recompute_chosen = load.recompute == Recompute::Auto;
    load.recompute = shrink::recompute(&load, device_memory, |load| {
        shape(config, load).without_evaluation().peak()
    });
    let memory = shape(config, &load);
    let too_small = device_memory.filter(|bytes| memory.peak() > *bytes);
    let is_frozen = load.num_adapter_weights.is_some();
    Estimate {
        num_parameters: config.num_parameters(),
        peak_memory: memory.peak(),
        memory,
        device_memory,
        recompute: Some(load.recompute),
        recompute_chosen,
        advice: too_small.map_or_else(Vec::new, |bytes| {
            advice(config, &load, bytes, (table, in_files))
        }),
        work: None,
        flops_of_full_step: step_flops(config, lengths, load.recompute, is_frozen),
    }
}

/// Tokens of the longest prompt, where all of them and the tokenizer are on this machine.
fn longest_prompt(
    plan: &PipelinePlan,
    stage: &StagePlan,
    sources: &[Prompts],
    reporter: &dyn Reporter,
) -> Result<usize> {
    let student = stage.student()?;
    let is_local = |s: &Prompts| s.source.starts_with("builtin:") || Path::new(&s.source).is_file();
    if matches!(student.source, StudentSource::Hub { .. }) || !sources.iter().all(is_local) {
        return Ok(PROMPT_LENGTH);
    }
    let student = Student::open_as(student, plan.seed, &plan.device, reporter)?;
    let mut longest = 0;
    for spec in sources {
        let files = match spec.source.starts_with("builtin:") {
            true => Vec::new(),
            false => vec![spec.source.clone().into()],
        };
        for prompt in crate::data::prompts(spec, &files, stage.seed)? {
            longest = longest.max(prompt?.render(student.chat())?.tokens.len());
        }
    }
    Ok(longest)
}

/// `auto` finds nothing else in a binary built for nothing else, or where there is nothing else.
fn is_cpu(device: &str) -> bool {
    let knows_more = cfg!(any(feature = "cuda", feature = "metal"));
    let finds_cpu = || super::device(device).is_ok_and(|device| device.is_cpu());
    device == "cpu" || (device == "auto" && (!knows_more || finds_cpu()))
}

/// Whether the CUDA kernels compute all of it.
fn has_kernels(device: &str, student: &StudentPlan, config: &ModelConfig) -> bool {
    let is_cuda = device.starts_with("cuda")
        || (device == "auto" && cfg!(feature = "cuda") && !is_cpu(device));
    is_cuda && student.dtype == Dtype::Bf16 && matches!(config.head_dim, 64 | 128)
}

/// Rows and steps where all traces and the tokenizer are on this machine.
fn work(
    plan: &Plan,
    config: &ModelConfig,
    recompute: Recompute,
    reporter: &dyn Reporter,
    stop: &Stop,
) -> Result<Option<Work>> {
    let local = plan
        .traces
        .iter()
        .all(|t| t.source.starts_with("builtin:") || Path::new(&t.source).exists());
    if !local || matches!(plan.student.source, StudentSource::Hub { .. }) {
        return Ok(None);
    }
    let student = Student::open(plan, reporter)?;
    let dir = ScratchDir::new("plan")?;
    let sources = trace_sources(plan, None, reporter)?;
    let (store, report) = Store::build(
        &build_options(plan),
        &sources,
        student.chat(),
        dir.path(),
        reporter,
        stop,
    )?;
    let lengths: Vec<usize> = (0..store.len()).map(|i| store.tokens(i).len()).collect();
    let num_steps = SftSettings::from_plan(&plan.sft, plan.seed, "").total_steps(store.len());
    let rows_trained = (num_steps * plan.sft.batch_size) as f64 / store.len().max(1) as f64;
    Ok(Some(Work {
        num_rows: store.len(),
        num_tokens: report.tokens,
        num_steps,
        flops: step_flops(config, &lengths, recompute, plan.student.adapter.is_some())
            * rows_trained.min(plan.sft.epochs as f64),
    }))
}
