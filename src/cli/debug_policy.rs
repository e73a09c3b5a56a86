//! `distill debug-policy`, hidden: loss and gradient of one policy update on given completions, for comparing with other
//! trainers number by number (`tests/peers/grpo_loss.py`).

use super::{Session, stdout};
use crate::model::{CausalLm, LoadOptions, Recompute};
use crate::ops::ParamId;
use crate::recipe::grpo::Grpo;
use crate::train::grpo_update::{self, Learnt};
use crate::{Error, Result};
use candle_core::{DType, Device};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;

/// Loss and gradient of one policy update
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill debug-policy --model MODEL --jobs JOBS.json --output OUT

JOBS.json is a list of `settings` and `completions`. Losses go to stdout, the gradient of job N to OUT/N.safetensors.")]
pub struct Args {
    /// Folder in the Hugging Face layout
    #[arg(long)]
    model: PathBuf,
    /// Settings and completions
    #[arg(long)]
    jobs: PathBuf,
    /// Folder of the gradients
    #[arg(long)]
    output: PathBuf,
}

#[derive(Deserialize)]
struct Job {
    settings: Grpo,
    completions: Vec<Learnt>,
}

pub fn run(args: &Args, _: &Session) -> Result<()> {
    let bytes = std::fs::read(&args.jobs).map_err(|e| Error::io("reading", &args.jobs, e))?;
    let jobs: Vec<Job> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(format!("`{}`: {e}", args.jobs.display())))?;
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
    };
    let model = CausalLm::load(&args.model, &options)?;
    for (i, job) in jobs.iter().enumerate() {
        if let Some(bad) = job.completions.iter().position(|one| !fits(one)) {
            return Err(Error::input(format!(
                "job {i}: the parts of completion {bad} do not fit each other"
            )));
        }
        let all: Vec<usize> = (0..job.completions.len()).collect();
        let mut gradients = model.new_gradients();
        let stats = grpo_update::backward(
            &model,
            &job.completions,
            &all,
            &job.settings,
            Recompute::None,
            &mut gradients,
        )?;
        let named = model.parameters().iter().enumerate();
        let named: HashMap<String, _> = named
            .filter_map(|(i, p)| Some((p.name.clone(), gradients.get(ParamId(i))?.clone())))
            .collect();
        candle_core::safetensors::save(&named, args.output.join(format!("{i}.safetensors")))?;
        let n = stats.tally.num_tokens.max(1) as f64;
        let line = serde_json::json!({
            "loss": stats.tally.loss,
            "kl": stats.tally.kl / n,
            "entropy": stats.entropy / n,
            "clipped_low": stats.tally.num_clipped_low as f64 / n,
            "clipped_high": stats.tally.num_clipped_high as f64 / n,
        });
        stdout::text(&format!("{line}\n"))?;
    }
    Ok(())
}

fn fits(one: &Learnt) -> bool {
    let n = one.num_tokens();
    let given = [&one.sampled, &one.old, &one.reference];
    (1..one.tokens.len()).contains(&one.num_prompt_tokens)
        && one.advantages.len() == n
        && given
            .iter()
            .all(|v| v.as_ref().is_none_or(|v| v.len() == n))
}
