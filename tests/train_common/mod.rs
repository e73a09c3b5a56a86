//! What the tests of the training loop share: a tiny model, rows in memory, an observer that remembers.

// every test crate uses a part of it
#![allow(dead_code)]

pub mod grpo;

use candle_core::{DType, Device};
use distill::Result;
use distill::model::{CausalLm, ModelConfig};
use distill::progress::Stop;
use distill::recipe::{Optimizer, Recompute, ScheduleKind};
use distill::train::{Examples, Observer, SftSettings, StepRecord};
use std::path::Path;

pub const VOCAB: usize = 24;

/// A Qwen3 of two layers with random weights.
pub fn tiny(seed: u64) -> CausalLm {
    tiny_of(seed, 24)
}

/// The same whose feed-forward matrices have `16 * width` values.
pub fn tiny_of(seed: u64, width: usize) -> CausalLm {
    let json = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 16,
        "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": true, "initializer_range": 0.2,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    CausalLm::random(config, seed, &Device::Cpu, DType::F32).unwrap()
}

/// The weights to the bit.
pub fn bits(model: &CausalLm) -> Vec<Vec<u32>> {
    model
        .parameters()
        .iter()
        .map(|p| p.value.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .map(|v| v.into_iter().map(f32::to_bits).collect())
        .collect()
}

/// Rows in memory.
pub struct Rows(pub Vec<(Vec<u32>, Vec<u8>)>);

impl Examples for Rows {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn tokens(&self, i: usize) -> &[u32] {
        &self.0[i].0
    }
    fn trained(&self, i: usize) -> &[u8] {
        &self.0[i].1
    }
    fn name(&self, i: usize) -> String {
        format!("row {i}")
    }
}

/// `n` rows of 5 to 11 tokens; the first two tokens are a prompt that names the row.
pub fn rows(n: usize) -> Rows {
    let row = |i: usize| {
        let length = 5 + i * 5 % 7;
        let token = |t: usize| ((i * 31 + t * t * 7 + i * t) % (VOCAB - 8)) as u32 + 8;
        let tokens = (0..length).map(|t| if t < 2 { (i + t) as u32 % 8 } else { token(t) });
        let trained = (0..length).map(|t| u8::from(t >= 2));
        (tokens.collect(), trained.collect())
    };
    Rows((0..n).map(row).collect())
}

/// Two epochs of three rows a step; every test changes what it is about.
pub fn settings() -> SftSettings {
    SftSettings {
        seed: 1,
        inputs_key: "test".into(),
        epochs: 2,
        max_steps: None,
        learning_rate: 1e-2,
        schedule: ScheduleKind::Cosine,
        min_learning_rate_ratio: 0.1,
        warmup_ratio: 0.0,
        optimizer: Optimizer::AdamW,
        batch_size: 3,
        packing: true,
        pack_length: 32,
        shuffle: true,
        weight_decay: 0.0,
        betas: [0.9, 0.95],
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        recompute: Recompute::None,
        checkpoint_every_steps: 100,
        keep_checkpoints: 2,
    }
}

/// Remembers everything it is told, and can ask to stop.
#[derive(Default)]
pub struct Log {
    pub steps: Vec<StepRecord>,
    pub checkpoints: Vec<usize>,
    pub resumed: Vec<usize>,
    pub warnings: Vec<String>,
    stop: Option<(usize, Stop)>,
}

impl Log {
    pub fn stopping_after(step: usize, stop: Stop) -> Self {
        Self {
            stop: Some((step, stop)),
            ..Self::default()
        }
    }
}

impl Observer for Log {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.steps.push(record.clone());
        if let Some((step, stop)) = &self.stop
            && *step == record.step
        {
            stop.request();
        }
        Ok(())
    }
    fn checkpoint(&mut self, step: usize, path: &Path) -> Result<()> {
        assert!(path.ends_with(format!("checkpoint-{step}")));
        self.checkpoints.push(step);
        Ok(())
    }
    fn resumed(&mut self, step: usize) -> Result<()> {
        self.resumed.push(step);
        Ok(())
    }
    fn warn(&mut self, text: &str) {
        self.warnings.push(text.into());
    }
}
