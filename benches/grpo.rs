//! Seconds by part and peak memory of a GRPO step; `.bench/grpo_step.py` measures TRL on the same work.
//!
//! `cargo bench --bench grpo [-- STEPS [PACK_LENGTH]]`: the shape `qwen2-42m` with Qwen2's vocabulary of 151,936 and random
//! weights in f32; 16 prompts of 64 tokens, 8 completions of 128 tokens each, KL to a reference that has moved on.

use candle_core::{DType, Device};
use distill::data::Prompt;
use distill::generate::LocalEngine;
use distill::model::{CausalLm, ModelConfig};
use distill::progress::Stop;
use distill::recipe::grpo::Grpo;
use distill::recipe::reward::{RewardKind, RewardSettings, RewardTable};
use distill::reward::{Rewards, Tools};
use distill::tokenize::TextTokenizer;
use distill::tokenize::files::TokenizerFiles;
use distill::train::grpo::HeldOut;
use distill::train::grpo_record::GrpoRecord;
use distill::train::rollout::Group;
use distill::train::{GrpoJob, GrpoObserver, GrpoPrompt, train_grpo};
use distill::{Error, Result};
use serde_json::json;
use std::path::Path;

const VOCAB: usize = 151_936;
const PROMPT: usize = 64;
const NEW: usize = 128;

/// Ends the run before the checkpoint, which is not measured.
struct Times(usize);

impl GrpoObserver for Times {
    fn step(&mut self, r: &GrpoRecord) -> Result<()> {
        println!(
            "step {}: {:.1} s: rollout {:.1}, reward {:.2}, reference {:.1}, update {:.1}; {} packs, length {:.0}, gap {:.1e}, peak {:.2} GB",
            r.step,
            r.step_time_s,
            r.rollout_s,
            r.reward_s,
            r.reference_s,
            r.update_s,
            r.num_packs,
            r.length,
            r.gap_max,
            peak_gb()
        );
        match r.step == self.0 {
            true => Err(Error::Interrupted {
                message: "measured".into(),
            }),
            false => Ok(()),
        }
    }
    fn samples(&mut self, _: usize, _: &[Group], _: &[GrpoPrompt]) -> Result<()> {
        Ok(())
    }
    fn evaluate(&mut self, _: usize) -> Result<Option<HeldOut>> {
        Ok(None)
    }
    fn checkpoint(&mut self, _: usize, _: &Path) -> Result<()> {
        Ok(())
    }
    fn resumed(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// The largest memory the process has had.
fn peak_gb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e9
}

fn main() -> Result<()> {
    distill::keep_freed_memory();
    let numbers: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let num_steps = numbers.first().copied().unwrap_or(2);
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 512, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408, "vocab_size": VOCAB,
        "tie_word_embeddings": true, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    let config = ModelConfig::from_json(&config, "qwen2-42m")?;
    let model = CausalLm::random(config, 0, &Device::Cpu, DType::F32)?;
    let tokenizer = words()?;
    let prompts: Vec<GrpoPrompt> = (0..16)
        .map(|row| GrpoPrompt {
            prompt: Prompt {
                id: row.to_string(),
                question: "?".into(),
                messages: Vec::new(),
                golds: Vec::new(),
                options: Vec::new(),
                domain: None,
                row: serde_json::Map::new(),
            },
            tokens: (0..PROMPT)
                .map(|i| ((row * 7919 + i * 104_729) % VOCAB) as u32)
                .collect(),
            opening: String::new(),
        })
        .collect();
    // something that differs between completions of random words
    let kind = RewardKind::RepetitionPenalty(distill::recipe::reward::RepetitionReward {
        ngram_size: 1,
        max_penalty: -1.0,
    });
    let table = RewardTable::List(vec![RewardSettings {
        weight: 1.0,
        domains: Vec::new(),
        kind,
    }]);
    let rewards = Rewards::build(&table, Tools::default())?;
    let settings = Grpo {
        num_steps: Some(num_steps + 1),
        num_prompts_per_step: 16,
        group_size: 8,
        max_new_tokens: NEW,
        pack_length: numbers.get(1).copied().unwrap_or(2048),
        samples_every_steps: 0,
        ..Grpo::default()
    };
    let dir = tempfile::tempdir().map_err(|e| Error::io("creating", "a temporary folder", e))?;
    let mut engine = LocalEngine::new(&model, &tokenizer, settings.batch_size);
    let job = GrpoJob {
        engine: &mut engine,
        prompts: &prompts,
        rewards: &rewards,
        tokenizer: &tokenizer,
        settings: &settings,
        stop_ids: &[],
        seed: 1,
        inputs_key: "bench",
    };
    match train_grpo(
        &model,
        job,
        dir.path(),
        &mut Times(num_steps),
        &Stop::default(),
    ) {
        Err(Error::Interrupted { .. }) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// One word a token.
fn words() -> Result<TextTokenizer> {
    let vocab: serde_json::Map<_, _> = (0..VOCAB).map(|i| (format!("t{i}"), i.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    TextTokenizer::new(json.to_string().into_bytes(), TokenizerFiles::default())
}
