//! New tokens a second of our sampling; `.bench/generate.py` measures transformers on the same work.
//!
//! `cargo bench --bench generate [-- ROUNDS]`: the shape `qwen2-42m` with random weights in f32, 16 prompts of 64 tokens,
//! 256 new tokens each at temperature 1.

use std::time::Instant;

use candle_core::{DType, Device};
use distill::generate::{Engine, LocalEngine, Request, Sampling};
use distill::model::{CausalLm, ModelConfig};
use distill::progress::Stop;

const BATCH: usize = 16;
const PROMPT: usize = 64;
const NEW: usize = 256;

fn main() -> distill::Result<()> {
    // cargo passes `--bench`
    let rounds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(3);
    let config = ModelConfig::from_json(
        r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 512, "num_hidden_layers": 12,
            "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408, "vocab_size": 16384,
            "tie_word_embeddings": true, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}"#,
    )?;
    let vocab_size = config.vocab_size;
    let model = CausalLm::random(config, 0, &Device::Cpu, DType::F32)?;
    let requests: Vec<Request> = (0..BATCH)
        .map(|row| Request {
            id: row as u64,
            prompt: (0..PROMPT).map(|i| ((row * 7919 + i * 104_729) % vocab_size) as u32).collect(),
        })
        .collect();
    let sampling = Sampling { max_new_tokens: NEW, ..Sampling::default() };
    let tokenizer = todo();
    for _ in 0..rounds {
        let start = Instant::now();
        let mut num_tokens = 0;
        LocalEngine::new(&model, &tokenizer, BATCH).generate(
            &requests,
            &sampling,
            &mut |completion| {
                num_tokens += completion.tokens.len();
                Ok(())
            },
            &Stop::default(),
        )?;
        assert_eq!(num_tokens, BATCH * NEW);
        println!("generate: {:.0} new tokens/s", num_tokens as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}
