//! `distill debug-train`, hidden: trains a folder on rows of token ids, for comparing the loop with other trainers number
//! by number (`tests/peers/train_sft.py`).

use super::options::packed_as;
use super::{Session, stdout};
use crate::model::{CausalLm, FrozenAs, LoadOptions, ModelConfig};
use crate::ops::PackedAs;
use crate::train::{Examples, Observer, SftSettings, StepRecord, train_sft};
use crate::{Error, Result};
use candle_core::{DType, Device};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Train on rows of token ids
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill debug-train --model MODEL --job JOB.json --output OUT

JOB.json holds `settings` and `rows` of `tokens` and `trained`. Step records go to stdout, checkpoints and the result
under OUT.")]
pub struct Args {
    /// Folder in the Hugging Face layout
    #[arg(long)]
    model: PathBuf,
    /// Adapter in PEFT's layout, which alone is trained
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Keep the frozen weights quantised: nf4, q8_0 or q4_k
    #[arg(long, requires = "adapter", value_parser = packed_as)]
    quant: Option<PackedAs>,
    /// Keep the frozen weights in their files
    #[arg(long, requires = "adapter")]
    stream: bool,
    /// Settings and rows
    #[arg(long)]
    job: PathBuf,
    /// Where checkpoints and the result go
    #[arg(long)]
    output: PathBuf,
}

#[derive(Deserialize)]
struct Job {
    settings: SftSettings,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    tokens: Vec<u32>,
    trained: Vec<u8>,
}

impl Examples for Vec<Row> {
    fn len(&self) -> usize {
        self.len()
    }
    fn tokens(&self, i: usize) -> &[u32] {
        &self[i].tokens
    }
    fn trained(&self, i: usize) -> &[u8] {
        &self[i].trained
    }
    fn name(&self, i: usize) -> String {
        format!("row {i}")
    }
}

/// Prints every step.
struct Print;

impl Observer for Print {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let line = serde_json::to_string(record)
            .map_err(|e| Error::input(format!("a step record cannot be written: {e}")))?;
        stdout::text(&(line + "\n"))
    }
    fn checkpoint(&mut self, _: usize, _: &Path) -> Result<()> {
        Ok(())
    }
    fn resumed(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

pub fn run(args: &Args, session: &Session) -> Result<()> {
    let bytes = std::fs::read(&args.job).map_err(|e| Error::io("reading", &args.job, e))?;
    let job: Job = serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(format!("`{}`: {e}", args.job.display())))?;
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
    };
    let how = FrozenAs {
        quant: args.quant,
        stream: args.stream,
    };
    let config = ModelConfig::from_folder(&args.model)?;
    let mut model = CausalLm::load_frozen(&args.model, config, &options, how)?;
    if let Some(adapter) = &args.adapter {
        model = model.with_saved_adapters(adapter)?;
    }
    session.stop_on_signals()?;
    train_sft(
        &model,
        &job.rows,
        &job.settings,
        &args.output,
        &mut Print,
        &session.stop,
    )?;
    Ok(())
}
