//! `distill debug-model`, hidden: logits and the gradient of every weight on a batch of token ids, for comparing a model
//! with other programs number by number (`tests/peers/model_live.py`).

use super::Session;
use super::options::packed_as;
use crate::model::{Batch, CausalLm, FrozenAs, LoadOptions, ModelConfig};
use crate::ops::{PackedAs, ParamId};
use crate::pipeline::open::dtype;
use crate::recipe;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;

/// Logits and gradients on a batch of token ids
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  distill debug-model --model MODEL --job JOB.json --output OUT

JOB.json holds `tokens`, `seq_lens`, `targets`, `weights` and `recompute` (none, block). OUT/result.safetensors gets
`logits`, `logprobs` and `grad.NAME` of -sum(weights * logprobs), with `--quant` `blocks.NAME` as in GGUF; OUT/model the model, saved again; with `cast` (f32,
bf16, f16), OUT/cast the model in that dtype.")]
pub struct Args {
    /// Folder in the Hugging Face layout
    #[arg(long)]
    model: PathBuf,
    /// Adapter in PEFT's layout, which alone has gradients; OUT/model is then merged, and OUT/adapter the adapter again
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Keep the frozen weights quantised: nf4, q8_0 or q4_k
    #[arg(long, requires = "adapter", value_parser = packed_as)]
    quant: Option<PackedAs>,
    /// The batch
    #[arg(long)]
    job: PathBuf,
    /// Folder for the results
    #[arg(long)]
    output: PathBuf,
}

#[derive(Deserialize)]
struct Job {
    tokens: Vec<u32>,
    seq_lens: Vec<usize>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    recompute: recipe::Recompute,
    /// Size of a shard of the saved model.
    max_shard_bytes: u64,
    /// Load the model once more as this and save it, as training in that dtype would.
    cast: Option<recipe::Dtype>,
}

pub fn run(args: &Args, _: &Session) -> Result<()> {
    let bytes = std::fs::read(&args.job).map_err(|e| Error::io("reading", &args.job, e))?;
    let job: Job = serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(format!("`{}`: {e}", args.job.display())))?;
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
    };
    let how = FrozenAs {
        quant: args.quant,
        stream: false,
    };
    let config = ModelConfig::from_folder(&args.model)?;
    let mut model = CausalLm::load_frozen(&args.model, config, &options, how)?;
    if let Some(adapter) = &args.adapter {
        model = model.with_saved_adapters(adapter)?;
        model.save_adapters(&args.output.join("adapter"))?;
    }
    let recompute = job.recompute.into();
    let logits = model.logits(&job.tokens, &job.seq_lens)?;
    let batch = Batch {
        tokens: job.tokens,
        seq_lens: job.seq_lens,
        targets: job.targets,
        weights: job.weights,
    };
    let mut gradients = model.new_gradients();
    let logprobs = model.forward_backward(&batch, recompute, &mut gradients)?;
    let mut out = HashMap::from([
        ("logits".to_string(), logits),
        ("logprobs".to_string(), Tensor::new(logprobs, &Device::Cpu)?),
    ]);
    for (i, parameter) in model.parameters().iter().enumerate() {
        if let Some(gradient) = gradients.get(ParamId(i)) {
            out.insert(format!("grad.{}", parameter.name), gradient.clone());
        }
    }
    for (name, blocks) in model.blocks() {
        out.insert(format!("blocks.{name}"), blocks.bytes().clone());
    }
    model.save(&args.output.join("model"), job.max_shard_bytes)?;
    if let Some(cast) = job.cast {
        let options = LoadOptions {
            device: Device::Cpu,
            dtype: dtype(cast),
        };
        let model = CausalLm::load(&args.model, &options)?;
        model.save(&args.output.join("cast"), job.max_shard_bytes)?;
    }
    candle_core::safetensors::save(&out, args.output.join("result.safetensors"))?;
    Ok(())
}
