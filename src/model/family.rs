//! Shapes of known models by name, for planning without network. Numbers from each repository's `config.json`.

use super::ModelConfig;
use serde_json::{Value, json};

/// The shape called `name`, such as `qwen2.5-math-7b`.
pub fn config(name: &str) -> Option<ModelConfig> {
    let json = match name {
        // hidden, layers, heads, key/value heads, intermediate, vocabulary, tied
        "qwen2-42m" => qwen2([512, 12, 8, 2, 1408, 16_384], true, 1e4, 4096),
        "qwen2.5-0.5b" => qwen2([896, 24, 14, 2, 4864, 151_936], true, 1e6, 32_768),
        "qwen2.5-1.5b" => qwen2([1536, 28, 12, 2, 8960, 151_936], true, 1e6, 131_072),
        "qwen2.5-math-1.5b" => qwen2([1536, 28, 12, 2, 8960, 151_936], true, 1e4, 4096),
        "qwen2.5-3b" => qwen2([2048, 36, 16, 2, 11_008, 151_936], true, 1e6, 32_768),
        "qwen2.5-7b" => qwen2([3584, 28, 28, 4, 18_944, 152_064], false, 1e6, 131_072),
        "qwen2.5-math-7b" => qwen2([3584, 28, 28, 4, 18_944, 152_064], false, 1e4, 4096),
        "qwen2.5-14b" => qwen2([5120, 48, 40, 8, 13_824, 152_064], false, 1e6, 131_072),
        "qwen2.5-32b" => qwen2([5120, 64, 40, 8, 27_648, 152_064], false, 1e6, 131_072),
        "qwen3-0.6b" => qwen3([1024, 28, 16, 8, 3072], true),
        "qwen3-1.7b" => qwen3([2048, 28, 16, 8, 6144], true),
        "qwen3-4b" => qwen3([2560, 36, 32, 8, 9728], true),
        "qwen3-8b" => qwen3([4096, 36, 32, 8, 12_288], false),
        "qwen3-14b" => qwen3([5120, 40, 40, 8, 17_408], false),
        "qwen3-32b" => qwen3([5120, 64, 64, 8, 25_600], false),
        "llama-3.2-1b" => llama([2048, 16, 32, 8, 8192], 64, true, 32.0),
        "llama-3.2-3b" => llama([3072, 28, 24, 8, 8192], 128, true, 32.0),
        "llama-3.1-8b" => llama([4096, 32, 32, 8, 14_336], 128, false, 8.0),
        "llama-3.3-70b" => llama([8192, 80, 64, 8, 28_672], 128, false, 8.0),
        _ => return None,
    };
    ModelConfig::from_json(&json, name).ok()
}

fn qwen2(s: [usize; 6], tied: bool, theta: f64, positions: usize) -> Value {
    json!({
        "model_type": "qwen2", "hidden_size": s[0], "num_hidden_layers": s[1], "num_attention_heads": s[2],
        "num_key_value_heads": s[3], "intermediate_size": s[4], "vocab_size": s[5], "tie_word_embeddings": tied,
        "rope_theta": theta, "max_position_embeddings": positions, "rms_norm_eps": 1e-6,
    })
}

fn qwen3(s: [usize; 5], tied: bool) -> Value {
    json!({
        "model_type": "qwen3", "hidden_size": s[0], "num_hidden_layers": s[1], "num_attention_heads": s[2],
        "num_key_value_heads": s[3], "intermediate_size": s[4], "head_dim": 128, "vocab_size": 151_936,
        "tie_word_embeddings": tied, "rope_theta": 1e6, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6,
    })
}

fn llama(s: [usize; 5], head_dim: usize, tied: bool, factor: f64) -> Value {
    json!({
        "model_type": "llama", "hidden_size": s[0], "num_hidden_layers": s[1], "num_attention_heads": s[2],
        "num_key_value_heads": s[3], "intermediate_size": s[4], "head_dim": head_dim, "vocab_size": 128_256,
        "tie_word_embeddings": tied, "rope_theta": 5e5, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    })
}
