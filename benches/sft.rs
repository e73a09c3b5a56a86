//! Tokens a second and peak memory of our training step; `.bench/sft_step.py` measures transformers on the same work.
//!
//! `cargo bench --bench sft [-- none|block] [f32|bf16] [STEPS]`: the shape `qwen2-42m` with random weights, 2 x 1024 tokens
//! a step, all trained, AdamW (with an f32 master copy beside bf16) and clipping included.

use candle_core::{DType, Device};
use distill::model::{CausalLm, family};
use distill::progress::Stop;
use distill::recipe::{Optimizer, Recompute, ScheduleKind};
use distill::train::{Examples, Observer, SftSettings, StepRecord, train_sft};
use distill::{Error, Result};
use std::path::Path;

const LENGTH: usize = 1024;

/// Rows of random tokens, all trained.
struct Rows(Vec<Vec<u32>>, Vec<u8>);

impl Examples for Rows {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn tokens(&self, i: usize) -> &[u32] {
        &self.0[i]
    }
    fn trained(&self, _: usize) -> &[u8] {
        &self.1
    }
    fn name(&self, i: usize) -> String {
        format!("row {i}")
    }
}

/// Times of the steps; the first one warms up. Ends the run before the checkpoint, which is not measured.
struct Times(Vec<f64>, usize);

impl Observer for Times {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        println!(
            "step {}: {:.2} s, loss {:.4}",
            record.step, record.step_time_s, record.loss
        );
        self.0.push(record.step_time_s);
        if self.0.len() == self.1 {
            return Err(Error::Interrupted {
                message: "measured".into(),
            });
        }
        Ok(())
    }
    fn checkpoint(&mut self, _: usize, _: &Path) -> Result<()> {
        Ok(())
    }
    fn resumed(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

fn main() -> Result<()> {
    distill::keep_freed_memory();
    let args: Vec<String> = std::env::args().collect();
    let recompute = match args.iter().any(|a| a == "block") {
        true => Recompute::Block,
        false => Recompute::None,
    };
    let steps = args.iter().find_map(|a| a.parse().ok()).unwrap_or(5);
    let dtype = match args.iter().any(|a| a == "bf16") {
        true => DType::BF16,
        false => DType::F32,
    };
    let config = family::config("qwen2-42m").ok_or_else(|| Error::input("no shape `qwen2-42m`"))?;
    let vocab = config.vocab_size;
    let model = CausalLm::random(config, 0, &Device::Cpu, dtype)?;
    // one epoch, since the end of each would save
    let row = |r: usize| {
        (0..LENGTH)
            .map(|i| ((r * 7919 + i * 104_729) % vocab) as u32)
            .collect()
    };
    let rows = Rows((0..2 * steps).map(row).collect(), vec![1; LENGTH]);
    let settings = SftSettings {
        seed: 0,
        inputs_key: String::new(),
        epochs: 1,
        max_steps: None,
        learning_rate: 1e-4,
        schedule: ScheduleKind::Constant,
        min_learning_rate_ratio: 0.0,
        warmup_ratio: 0.0,
        optimizer: Optimizer::AdamW,
        batch_size: 2,
        packing: true,
        pack_length: 2 * LENGTH,
        shuffle: false,
        weight_decay: 0.01,
        betas: [0.9, 0.999],
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        recompute,
        checkpoint_every_steps: usize::MAX,
        keep_checkpoints: 1,
    };
    let dir = tempfile::tempdir().map_err(|e| Error::io("creating", std::env::temp_dir(), e))?;
    let mut times = Times(Vec::new(), steps);
    match train_sft(
        &model,
        &rows,
        &settings,
        dir.path(),
        &mut times,
        &Stop::default(),
    ) {
        Ok(_) | Err(Error::Interrupted { .. }) => {}
        Err(e) => return Err(e),
    }
    let mut sorted = times.0.split_off(1.min(times.0.len() - 1));
    sorted.sort_by(f64::total_cmp);
    let rate = |s: f64| 2.0 * LENGTH as f64 / s;
    println!(
        "ours {recompute:?} {dtype:?}: median {:.0} tokens/s, best {:.0}, peak {:.2} GiB",
        rate(sorted[sorted.len() / 2]),
        rate(sorted[0]),
        peak_gib()
    );
    Ok(())
}

/// The most memory this process has held.
fn peak_gib() -> f64 {
    // SAFETY: a plain struct of integers, filled in by the call
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live struct of that type
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    usage.ru_maxrss as f64 / f64::from(1 << 20)
}
