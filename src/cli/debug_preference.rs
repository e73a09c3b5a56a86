//! `distill debug-preference`, hidden: trains a folder on pairs or labelled answers of token ids, for comparing losses and
//! gradients with other trainers number by number (`tests/peers/preference.py`).

use super::{Session, stdout};
use crate::data::{Judged, JudgedRow};
use crate::model::{CausalLm, LoadOptions, RewardModel};
use crate::recipe::preference::PreferenceObjective;
use crate::tokenize::Tokenized;
use crate::train::judged_loop::JudgedJob;
use crate::train::reward_model::RewardObjective;
use crate::train::{JudgedRecord, Observer, SftSettings, train_preference, train_reward_model};
use crate::{Error, Result};
use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Train on pairs of token ids
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  distill debug-preference --model MODEL --job JOB.json --output OUT

JOB.json holds `settings`, `rows`, and `preference` (a loss) or `center_coefficient` (a reward model). Step records go to
stdout, and the scores of all rows after the last step; checkpoints under OUT.")]
pub struct Args {
    /// Folder in the Hugging Face layout
    #[arg(long)]
    model: PathBuf,
    /// Settings and rows
    #[arg(long)]
    job: PathBuf,
    /// Where checkpoints go
    #[arg(long)]
    output: PathBuf,
}

#[derive(Deserialize)]
struct Job {
    settings: SftSettings,
    rows: Vec<Row>,
    preference: Option<PreferenceObjective>,
    #[serde(default)]
    center_coefficient: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Pair {
        chosen: Sequence,
        rejected: Sequence,
        #[serde(default)]
        margin: f64,
    },
    Labelled {
        answer: Sequence,
        label: bool,
    },
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    trained: Vec<bool>,
}

impl Sequence {
    fn tokenized(self) -> Tokenized {
        Tokenized {
            tokens: self.tokens,
            trained: self.trained,
            joint_differs: false,
        }
    }
}

impl Row {
    fn judged(self, number: usize) -> JudgedRow {
        let judged = match self {
            Self::Pair {
                chosen,
                rejected,
                margin,
            } => Judged::Pair {
                chosen: chosen.tokenized(),
                rejected: rejected.tokenized(),
                margin,
            },
            Self::Labelled { answer, label } => Judged::Labelled {
                answer: answer.tokenized(),
                label,
            },
        };
        JudgedRow {
            name: format!("row {number}"),
            judged,
        }
    }
}

/// Prints every step.
struct Print;

impl Observer<JudgedRecord> for Print {
    fn step(&mut self, record: &JudgedRecord) -> Result<()> {
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
    session.stop_on_signals()?;
    let rows: Vec<JudgedRow> = job
        .rows
        .into_iter()
        .enumerate()
        .map(|(i, row)| row.judged(i))
        .collect();
    let judged_job = JudgedJob {
        rows: &rows,
        held_out: &[],
        settings: &job.settings,
        eval_every_steps: usize::MAX,
        dir: &args.output,
        stop: &session.stop,
    };
    if let Some(objective) = job.preference {
        let model = CausalLm::load(&args.model, &options)?;
        train_preference(&model, objective, &judged_job, &mut Print)?;
        return Ok(());
    }
    let model = RewardModel::load(&args.model, &options)?;
    let objective = RewardObjective {
        center_coefficient: job.center_coefficient,
    };
    train_reward_model(&model, objective, &judged_job, &mut Print)?;
    let mut scores = Vec::new();
    for sequence in rows.iter().flat_map(JudgedRow::sequences) {
        scores.extend(model.scores(&sequence.tokens, &[sequence.tokens.len()])?);
    }
    stdout::text(&format!("{}\n", json!({ "scores": scores })))
}
