//! What llama.cpp calls the tensors and settings of Qwen2, Qwen3 and Llama, and how it wants their rows.

use super::gguf::Value;
use super::gguf_types::Quant;
use super::rope;
use super::{Architecture, Head, ModelConfig};
use crate::{Error, Result};

/// The order of a tensor's rows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// As in the checkpoint.
    InOrder,
    /// Llama's q and k: llama.cpp rotates neighbouring dimensions of a head, Hugging Face those half a head apart.
    Interleaved { head_dim: usize },
}

impl Rows {
    /// The row of the checkpoint that is row `row` of the file.
    pub fn source(self, row: usize) -> usize {
        match self {
            Self::InOrder => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
        }
    }
}

/// The name in the file of a weight of Hugging Face, and the order of its rows.
///
/// # Errors
/// A weight that llama.cpp has no place for.
pub(super) fn tensor(config: &ModelConfig, from: &str) -> Result<(String, Rows)> {
    if config.head == Head::Score {
        return Err(
            Error::input("a reward model cannot be written as GGUF").with_hint(
                "serve it with `distill`, or load its safetensors files in transformers or vLLM",
            ),
        );
    }
    let unknown = || Error::input(format!("GGUF has no name for tensor `{from}`"));
    let whole = match from {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Ok((name.to_string(), Rows::InOrder));
    }
    let (layer, rest) = from
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
        .ok_or_else(unknown)?;
    let (module, kind) = rest.rsplit_once('.').ok_or_else(unknown)?;
    let name = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return Err(unknown()),
    };
    let is_rotated = matches!(name, "attn_q" | "attn_k");
    let rows = match config.architecture {
        Architecture::Llama if is_rotated => Rows::Interleaved {
            head_dim: config.head_dim,
        },
        _ => Rows::InOrder,
    };
    Ok((format!("blk.{layer}.{name}.{kind}"), rows))
}

/// By how much each frequency of RoPE is divided (Llama 3.1), as a tensor of the file.
///
/// # Errors
/// Scaled frequencies in a family for which llama.cpp does not read them.
pub(super) fn rope_factors(config: &ModelConfig) -> Result<Option<(String, Vec<f32>)>> {
    if config.rope_scaling.is_none() {
        return Ok(None);
    }
    if config.architecture != Architecture::Llama {
        return Err(Error::input(format!(
            "`rope_type = \"llama3\"` of a {} model has no place in GGUF",
            config.architecture.model_type()
        )));
    }
    let plain = ModelConfig {
        rope_scaling: None,
        ..config.clone()
    };
    let factors = rope::inverse_frequencies(&plain)
        .iter()
        .zip(rope::inverse_frequencies(config))
        .map(|(plain, scaled)| (plain / scaled) as f32)
        .collect();
    Ok(Some(("rope_freqs.weight".to_string(), factors)))
}

/// The settings that follow from the shape of the model and the type of the file.
pub(super) fn settings(config: &ModelConfig, quant: Quant) -> Vec<(String, Value)> {
    /// Of the layout of quantised blocks.
    const QUANTIZATION_VERSION: u32 = 2;
    let architecture = config.architecture.model_type();
    let mut all = vec![
        (
            "general.architecture".to_string(),
            Value::Text(architecture.to_string()),
        ),
        ("general.type".to_string(), Value::Text("model".to_string())),
        (
            "general.size_label".to_string(),
            Value::Text(size_label(config.num_parameters())),
        ),
        (
            "general.file_type".to_string(),
            Value::U32(quant.file_type()),
        ),
        (
            "general.quantization_version".to_string(),
            Value::U32(QUANTIZATION_VERSION),
        ),
    ];
    let sizes = [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    let size = |(key, n): (&str, usize)| {
        (
            format!("{architecture}.{key}"),
            Value::U32(u32::try_from(n).unwrap_or(u32::MAX)),
        )
    };
    all.extend(sizes.map(size));
    let numbers = [
        ("rope.freq_base", config.rope_theta),
        ("attention.layer_norm_rms_epsilon", config.rms_norm_eps),
    ];
    all.extend(numbers.map(|(key, n)| (format!("{architecture}.{key}"), Value::F32(n as f32))));
    all
}

/// `1.5B`, `42M`: a number of weights as names of models have it.
fn size_label(num_parameters: usize) -> String {
    let n = num_parameters as f64;
    let (value, unit) = [(1e12, "T"), (1e9, "B"), (1e6, "M")]
        .into_iter()
        .find(|(scale, _)| n >= *scale)
        .map_or((n / 1e3, "K"), |(scale, unit)| (n / scale, unit));
    let digits = usize::from(value < 9.5);
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_from_half_a_head_apart() {
        let rows = Rows::Interleaved { head_dim: 6 };
        let found: Vec<usize> = (0..12).map(|row| rows.source(row)).collect();
        assert_eq!(found, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }

    #[test]
    fn sizes_are_named() {
        for (n, label) in [
            (1_543_714_304, "1.5B"),
            (8_030_261_248, "8.0B"),
            (70_553_706_496, "71B"),
            (42_000_000, "42M"),
            (512, "0.5K"),
        ] {
            assert_eq!(size_label(n), label);
        }
    }
}
