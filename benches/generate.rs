//! New tokens a second of our sampling; `.bench/generate.py` measures transformers on the same work.
//!
//! `cargo bench --bench generate [-- ROUNDS] [bf16]`: the shape `qwen2-42m` with random weights in f32 or bf16, 16 prompts of 64 tokens,
//! 256 new tokens each at temperature 1.

use std::time::Instant;

use candle_core::{DType, Device};
use distill::generate::{Engine, LocalEngine, Request, Sampling};
use distill::model::{CausalLm, ModelConfig};
use distill::progress::Stop;
use distill::tokenize::TextTokenizer;
use distill::tokenize::files::TokenizerFiles;
use serde_json::json;

const BATCH: usize = 16;
const PROMPT: usize = 64;
const NEW: usize = 256;
const VOCAB: usize = 16_384;

fn main() -> distill::Result<()> {
    distill::keep_freed_memory();
    // cargo passes `--bench` as well
    let rounds = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(3);
    let dtype = match std::env::args().any(|arg| arg == "bf16") {
        true => DType::BF16,
        false => DType::F32,
    };
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 512, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408, "vocab_size": VOCAB,
        "tie_word_embeddings": true, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    let model = CausalLm::random(
        ModelConfig::from_json(&config, "qwen2-42m")?,
        0,
        &Device::Cpu,
        dtype,
    )?;
    let tokenizer = words()?;
    let prompt = |row: usize| {
        (0..PROMPT)
            .map(|i| ((row * 7919 + i * 104_729) % VOCAB) as u32)
            .collect()
    };
    let requests: Vec<Request> = (0..BATCH)
        .map(|row| Request {
            id: row as u64,
            prompt: prompt(row),
        })
        .collect();
    let sampling = Sampling {
        max_new_tokens: NEW,
        ..Sampling::default()
    };
    for _ in 0..rounds {
        let start = Instant::now();
        let mut num_tokens = 0;
        let mut count = |completion: distill::generate::Completion| {
            num_tokens += completion.tokens.len();
            Ok(())
        };
        LocalEngine::new(&model, &tokenizer, BATCH).generate(
            &requests,
            &sampling,
            &mut count,
            &Stop::default(),
        )?;
        assert_eq!(num_tokens, BATCH * NEW);
        println!(
            "distill generate: {:.0} new tokens/s",
            num_tokens as f64 / start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// One word a token.
fn words() -> distill::Result<TextTokenizer> {
    let vocab: serde_json::Map<_, _> = (0..VOCAB).map(|i| (format!("t{i}"), i.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    TextTokenizer::new(json.to_string().into_bytes(), TokenizerFiles::default())
}
