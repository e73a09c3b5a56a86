//! `distill bench`: what training and sampling a shape takes on this device, with random weights.

use super::options::{dtype, optimizer, packed_as, recompute, show_size};
use super::{Session, stdout};
use crate::model::{AdapterConfig, Batch, CausalLm, ModelConfig, family};
use crate::ops::{self, PackedAs};
use crate::optim::{AdamW, AdamWConfig};
use crate::pipeline::{fit, open};
use crate::progress::Reporter;
use crate::recipe::plan::PROJECTIONS;
use crate::recipe::{self, Dtype, Optimizer};
use crate::train::flops::step_flops;
use crate::train::footprint::{Footprint, Load};
use crate::{Error, Result};
use candle_core::{DType, Device, DeviceLocation, Tensor};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Measure training and sampling of a shape on this device
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill bench --shape qwen2-42m
  distill bench --shape qwen2.5-1.5b --device cuda --dtype bf16 --length 4096 --recompute --json

Weights are random. Utilisation is of the operations that the model needs (not of those computed again) against the largest of three square matrix products in the same dtype on the same
device, measured in the same run. Peak memory is that of the process, or of the tensors on a CUDA device; on Metal it is not measured.")]
pub struct Args {
    /// Name of a shape, such as `qwen2-42m` or `qwen2.5-1.5b`, or a folder with a `config.json`
    #[arg(long, value_name = "NAME")]
    shape: String,
    /// auto, cpu, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: String,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: Dtype,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 1024)]
    length: usize,
    /// Sequences of a training step, in one pack
    #[arg(long, default_value_t = 2)]
    num_sequences: usize,
    /// What the backward pass computes again: none, keep_attention, block or offload
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_value = "none", default_missing_value = "block", value_parser = recompute)]
    recompute: recipe::Recompute,
    /// Train adapters of this rank on all projections, not all weights
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Keep the frozen projections beside them quantised: nf4, q8_0 or q4_k
    #[arg(long, value_name = "FORMAT", requires = "lora", value_parser = packed_as)]
    quant: Option<PackedAs>,
    /// adamw or adamw_8bit
    #[arg(long, default_value = "adamw", value_parser = optimizer)]
    optimizer: Optimizer,
    /// Apply each gradient as soon as it is complete, as a run does whose steps are one pack without clipping: they are never
    /// all in memory
    #[arg(long)]
    at_once: bool,
    /// Sequences sampled side by side
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 64)]
    prompt_length: usize,
    /// Tokens sampled after it
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// How often training is measured, after one to warm up; the median counts
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Run what takes more memory than there is
    #[arg(long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What was measured; times are seconds.
#[derive(Serialize)]
struct Measured {
    shape: String,
    device: String,
    dtype: &'static str,
    num_parameters: usize,
    num_trained: usize,
    tokens_per_step: usize,
    /// Log-probabilities alone.
    forward_s: f64,
    /// What the gradient takes on top.
    backward_s: f64,
    /// None where it is a part of the backward pass.
    optimizer_s: Option<f64>,
    train_tokens_per_s: f64,
    /// Of the training step, as counted by weights and attention; what is computed again counts once.
    flops_per_step: f64,
    /// Of the largest product.
    peak_flops_per_s: f64,
    utilisation: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    /// Of the process, or of the tensors on a CUDA device; none where it cannot be told.
    peak_memory: Option<u64>,
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    check(args)?;
    let reporter = &session.terminal;
    let config = match family::config(&args.shape) {
        Some(config) => config,
        None if Path::new(&args.shape).is_dir() => {
            ModelConfig::from_folder(Path::new(&args.shape))?
        }
        None => {
            return Err(Error::input(format!("no shape `{}`", args.shape)).with_hint(
                "give a folder with `config.json`, or a name such as qwen2-42m, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, qwen3-0.6b, llama-3.2-1b, llama-3.1-8b",
            ));
        }
    };
    let longest = args
        .length
        .max(args.prompt_length.saturating_add(args.new_tokens));
    if longest > config.max_position_embeddings {
        return Err(Error::input(format!(
            "sequences of {longest} tokens are longer than the {} positions of the shape",
            config.max_position_embeddings
        ))
        .with_hint("lower `--length`, `--prompt-length` or `--new-tokens`"));
    }
    let device = open::device(&args.device)?;
    let dtype = open::dtype(args.dtype);
    let adapters = args.lora.map(|rank| AdapterConfig {
        rank,
        alpha: 2.0 * rank as f64,
        rslora: false,
        dora: false,
        targets: PROJECTIONS.map(str::to_string).to_vec(),
    });
    if let Some(adapters) = &adapters {
        adapters.check_rank(&config)?;
    }
    check_memory(args, &config, &device, adapters.as_ref())?;
    reporter.note("random weights");
    let mut model = CausalLm::random(config, 0, &device, dtype)?;
    let num_base = model.config().num_parameters();
    if let Some(quant) = args.quant {
        model = model.into_packed(quant)?;
    }
    if let Some(adapters) = adapters {
        model = model.with_adapters(adapters, 0)?;
    }
    reporter.note("training");
    let training = train(args, &model)?;
    reporter.note("sampling");
    let (prefill_tokens_per_s, decode_tokens_per_s) = sample(args, &model)?;
    let peak_flops_per_s = product(&device, dtype)?;
    // of the model: what is computed twice counts once
    let recompute = recipe::Recompute::None;
    let is_frozen = args.lora.is_some();
    let lengths = vec![args.length; args.num_sequences];
    let flops = step_flops(model.config(), &lengths, recompute, is_frozen);
    let [forward_s, both_s, optimizer_s] = training;
    let step_s = both_s + optimizer_s;
    let optimizer_s = (!args.at_once).then_some(optimizer_s);
    let tokens_per_step = args.length * args.num_sequences;
    let count = |some: &[crate::model::Parameter]| -> usize {
        some.iter().map(|p| p.value.elem_count()).sum()
    };
    let num_trained = count(model.trained().1);
    let measured = Measured {
        shape: args.shape.clone(),
        device: match device.location() {
            DeviceLocation::Cpu => "cpu".to_string(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { .. } => "metal".to_string(),
        },
        dtype: dtype.as_str(),
        num_parameters: match args.lora {
            None => num_base,
            Some(_) => num_base + num_trained,
        },
        num_trained,
        tokens_per_step,
        forward_s,
        backward_s: (both_s - forward_s).max(0.0),
        optimizer_s,
        train_tokens_per_s: tokens_per_step as f64 / step_s,
        flops_per_step: flops,
        peak_flops_per_s,
        utilisation: flops / step_s / peak_flops_per_s,
        prefill_tokens_per_s,
        decode_tokens_per_s,
        peak_memory: match device.is_cpu() {
            true => peak_memory(),
            false => ops::device::peak_memory(&device),
        },
    };
    match args.json {
        true => stdout::json(&measured),
        false => stdout::text(&show(&measured)),
    }
}

fn check(args: &Args) -> Result<()> {
    let sizes = [
        ("--length", args.length, 2),
        ("--num-sequences", args.num_sequences, 1),
        ("--batch-size", args.batch_size, 1),
        ("--prompt-length", args.prompt_length, 1),
        ("--new-tokens", args.new_tokens, 1),
        ("--steps", args.steps, 1),
    ];
    match sizes.iter().find(|(_, n, least)| n < least) {
        None => Ok(()),
        Some((name, n, least)) => Err(Error::input(format!(
            "`{name} {n}` must be at least {least}"
        ))),
    }
}

/// That the weights, which are made whole before they are quantised, and what training and sampling hold besides, are less
/// than what is free.
fn check_memory(
    args: &Args,
    config: &ModelConfig,
    device: &Device,
    adapters: Option<&AdapterConfig>,
) -> Result<()> {
    let room = fit::free_memory(&args.device).filter(|_| !args.force);
    let num_tokens = args.length.checked_mul(args.num_sequences);
    let is_sane = num_tokens.is_some_and(|n| n < MOST) && args.batch_size < MOST;
    let Some(room) = room.filter(|_| is_sane) else {
        return match is_sane {
            true => Ok(()),
            false => Err(Error::input("more tokens than any memory holds")
                .with_hint("lower `--num-sequences` or `--batch-size`")),
        };
    };
    let is_16_bit = args.dtype != Dtype::F32;
    let load = Load {
        dtype: args.dtype,
        recompute: args.recompute,
        num_adapter_weights: adapters.map(|a| a.num_parameters(config) as u64),
        quant: args.quant,
        stream: false,
        dora: false,
        optimizer: args.optimizer,
        at_once: args.at_once,
        pack_length: num_tokens.unwrap_or(MOST),
        max_length: args.length,
        on_host: device.is_cpu(),
        fast_cpu: device.is_cpu() && args.dtype != Dtype::F16,
        fast_gpu: device.is_cuda()
            && args.dtype == Dtype::Bf16
            && matches!(config.head_dim, 64 | 128),
        num_slots: 0,
        slot_length: 0,
        rollouts: None,
    };
    let sampling = Load {
        num_slots: args.batch_size,
        slot_length: args.prompt_length + args.new_tokens,
        ..load
    };
    let whole = config.num_parameters() as u64 * if is_16_bit { 2 } else { 4 };
    let peak = Footprint::new(config, &load)
        .peak()
        .max(Footprint::drawing(config, &sampling))
        .max(whole);
    if peak <= room {
        return Ok(());
    }
    Err(Error::input(format!(
        "`{}` takes {} here, and {} of memory are free",
        args.shape,
        show_size(peak),
        show_size(room)
    ))
    .with_hint("take `--dtype bf16`, `--recompute`, `--lora`, shorter sequences or fewer of them; or run it anyway with `--force`"))
}

/// More tokens or sequences than are measured.
const MOST: usize = 1 << 24;

/// Medians of the forward alone, forward and backward, and the update, which is 0 where the backward pass updates.
fn train(args: &Args, model: &CausalLm) -> Result<[f64; 3]> {
    let n = args.length * args.num_sequences;
    let tokens = tokens(n, model);
    let mut targets = tokens.clone();
    targets.rotate_left(1);
    let batch = Batch {
        targets,
        tokens,
        seq_lens: vec![args.length; args.num_sequences],
        weights: vec![1.0; n],
    };
    let recompute = args.recompute.into();
    let (first, trained) = model.trained();
    let named: Vec<(String, Tensor)> = trained
        .iter()
        .map(|p| (p.name.clone(), p.value.clone()))
        .collect();
    let adamw = AdamWConfig {
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.0,
        eight_bit: args.optimizer == Optimizer::AdamW8bit,
    };
    let mut optimizer = AdamW::from(first, &named, adamw)?;
    let mut gradients = model.new_gradients();
    let mut times: [Vec<f64>; 3] = Default::default();
    for step in 0..=args.steps {
        let forward = timed(model.device(), || model.logprobs(&batch).map(|_| ()))?;
        gradients.zero();
        let (rate, scale) = (1e-6, 1.0 / n as f64);
        let both = timed(model.device(), || {
            if !args.at_once {
                model.forward_backward(&batch, recompute, &mut gradients)?;
                return Ok(());
            }
            let mut pieces = optimizer.begin(rate, scale);
            model.forward_backward_each(&batch, recompute, &mut gradients, &mut |some, held| {
                pieces.apply(some, held)
            })?;
            pieces.finish()?;
            model.refresh()
        })?;
        let update = match args.at_once {
            true => 0.0,
            false => timed(model.device(), || {
                ops::in_pool(|| optimizer.step(&gradients, rate, scale))?;
                model.refresh()
            })?,
        };
        if step > 0 {
            times[0].push(forward);
            times[1].push(both);
            times[2].push(update);
        }
    }
    Ok(times.map(median))
}

/// Tokens a second while prompts are read and while tokens follow them, after a token of each prompt to warm up: a device
/// loads its kernels when they are first used.
fn sample(args: &Args, model: &CausalLm) -> Result<(f64, f64)> {
    sampled(args, model, 1)?;
    sampled(args, model, args.new_tokens)
}

fn sampled(args: &Args, model: &CausalLm, new_tokens: usize) -> Result<(f64, f64)> {
    let prompt = tokens(args.prompt_length, model);
    let mut cache = model.new_cache(args.batch_size)?;
    let slots: Vec<u32> = (0..args.batch_size as u32).collect();
    let read = timed(model.device(), || {
        for &slot in &slots {
            model.prefill(&mut cache, slot, &prompt)?;
        }
        Ok(())
    })?;
    let next = tokens(args.batch_size, model);
    let us = vec![0.5; args.batch_size];
    let draw_of_all = ops::Filters {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };
    let mut written = 0.0;
    for _ in 0..new_tokens {
        written += timed(model.device(), || {
            let logits = model.decode(&mut cache, &slots, &next)?;
            if ops::sample(&logits, &draw_of_all, &us)?.is_none() {
                // the draw needs them on the host
                logits.to_device(&Device::Cpu)?;
            }
            Ok(())
        })?;
    }
    let num = |n: usize| (args.batch_size * n) as f64;
    Ok((num(args.prompt_length) / read, num(new_tokens) / written))
}

/// Floating-point operations a second of the largest of three products, each the best of three.
fn product(device: &Device, dtype: DType) -> Result<f64> {
    let mut most = 0.0f64;
    let sizes: &[usize] = match device.is_cpu() {
        true => &[512, 1024, 2048],
        false => &[2048, 4096, 8192],
    };
    for &n in sizes {
        let a = Tensor::randn(0f32, 1.0, (n, n), device)?.to_dtype(dtype)?;
        let b = Tensor::randn(0f32, 1.0, (n, n), device)?.to_dtype(dtype)?;
        for _ in 0..3 {
            let seconds = timed(device, || ops::linear(&a, &b, None).map(|_| ()))?;
            most = most.max(2.0 * (n as f64).powi(3) / seconds);
        }
    }
    Ok(most)
}

fn timed(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    device.synchronize()?;
    let started = Instant::now();
    work()?;
    device.synchronize()?;
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn tokens(n: usize, model: &CausalLm) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..n).map(|i| (i * 7919 % vocab) as u32).collect()
}

/// The most memory that the process has had.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn show(m: &Measured) -> String {
    let ms = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
    let rows = [
        (
            "shape",
            format!(
                "{}, {} weights, {} trained, {} on {}",
                m.shape, m.num_parameters, m.num_trained, m.dtype, m.device
            ),
        ),
        ("forward", ms(m.forward_s)),
        ("backward", ms(m.backward_s)),
        (
            "optimiser",
            m.optimizer_s
                .map_or_else(|| "within the backward".to_string(), ms),
        ),
        (
            "training",
            format!(
                "{:.0} tokens/s, {} a step",
                m.train_tokens_per_s, m.tokens_per_step
            ),
        ),
        (
            "utilisation",
            format!(
                "{:.0}% of {:.3} TFLOP/s, {:.3} TFLOP a step",
                100.0 * m.utilisation,
                m.peak_flops_per_s / 1e12,
                m.flops_per_step / 1e12
            ),
        ),
        ("prompts", format!("{:.0} tokens/s", m.prefill_tokens_per_s)),
        ("sampling", format!("{:.0} tokens/s", m.decode_tokens_per_s)),
        (
            "peak memory",
            m.peak_memory
                .map_or_else(|| "not measured".to_string(), show_size),
        ),
    ];
    rows.iter()
        .map(|(name, value)| format!("{name:<12} {value}\n"))
        .collect()
}
