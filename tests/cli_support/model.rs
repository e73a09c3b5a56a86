//! A model small enough to work out by hand: after each token one other is e^2 times as probable as any else.
//!
//! The hidden state is the token as a one-hot vector (attention and MLP are zero), which RMSNorm makes four times as
//! long; the head holds 0.5 where one token follows another. So the logits are 2 for [`next`] and 0 for the 15 others.

use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

pub const IM_START: u32 = 1;
pub const IM_END: u32 = 2;
/// 0 to 2 are special, 3 to 15 the letters a to m.
const VOCAB: usize = 16;

/// `<|im_start|>` a b c `<|im_end|>` `<|im_start|>` ...; every other token follows itself.
pub fn next(token: u32) -> u32 {
    match token {
        1 => 3,
        2 => 1,
        3 => 4,
        4 => 5,
        5 => 2,
        other => other,
    }
}

/// Natural log-probability of `to` after `from`.
pub fn logprob(from: u32, to: u32) -> f64 {
    let logit = if next(from) == to { 2.0 } else { 0.0 };
    logit - (2f64.exp() + 15.0).ln()
}

pub type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn weights() -> Weights {
    let mut all = Weights::new();
    let mut put = |name: &str, shape: &[usize], at: &dyn Fn(usize) -> f32| {
        let values = (0..shape.iter().product()).map(at).collect();
        all.insert(name.to_string(), (shape.to_vec(), values));
    };
    let zero = |_| 0.0;
    let one = |_| 1.0;
    put("model.embed_tokens.weight", &[VOCAB, 16], &|i| {
        if i / 16 == i % 16 { 1.0 } else { 0.0 }
    });
    put("lm_head.weight", &[VOCAB, 16], &|i| {
        if next((i % 16) as u32) as usize == i / 16 {
            0.5
        } else {
            0.0
        }
    });
    put("model.norm.weight", &[16], &one);
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        put(&format!("model.layers.0.{norm}.weight"), &[16], &one);
    }
    for (name, out) in [("q", 16), ("k", 8), ("v", 8)] {
        put(
            &format!("model.layers.0.self_attn.{name}_proj.weight"),
            &[out, 16],
            &zero,
        );
        put(
            &format!("model.layers.0.self_attn.{name}_proj.bias"),
            &[out],
            &zero,
        );
    }
    put("model.layers.0.self_attn.o_proj.weight", &[16, 16], &zero);
    for name in ["gate", "up", "down"] {
        put(
            &format!("model.layers.0.mlp.{name}_proj.weight"),
            &[16, 16],
            &zero,
        );
    }
    all
}

/// Writes the model in the Hugging Face layout.
pub fn save(folder: &Path) {
    save_with(folder, &weights(), config(), TEMPLATE);
}

pub fn config() -> serde_json::Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "eos_token_id": IM_END
    })
}

pub const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}\
                            {% if add_generation_prompt %}<|im_start|>{% endif %}";

/// Writes a model with something changed.
pub fn save_with(folder: &Path, weights: &Weights, config: serde_json::Value, template: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let bytes: BTreeMap<&str, Vec<u8>> = weights
        .iter()
        .map(|(name, (_, values))| {
            (
                name.as_str(),
                values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            )
        })
        .collect();
    let views: Vec<_> = weights
        .iter()
        .map(|(name, (shape, _))| {
            let data = &bytes[name.as_str()];
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
            (name, view.unwrap())
        })
        .collect();
    std::fs::write(
        folder.join("model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    let write = |name: &str, value: &serde_json::Value| {
        std::fs::write(folder.join(name), serde_json::to_vec_pretty(value).unwrap()).unwrap();
    };
    write("config.json", &config);
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let mut vocab: serde_json::Map<_, _> = special
        .iter()
        .enumerate()
        .map(|(i, t)| (t.to_string(), json!(i)))
        .collect();
    vocab.extend(
        ('a'..='m')
            .enumerate()
            .map(|(i, c)| (c.to_string(), json!(i + 3))),
    );
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    write(
        "tokenizer.json",
        &json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": []}
        }),
    );
    write(
        "tokenizer_config.json",
        &json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}),
    );
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
}
