//! What a `config.json` may not say: each mistake is named, none asks for memory.

use distill::model::ModelConfig;
use serde_json::{Value, json};

fn config(change: Value) -> distill::Result<ModelConfig> {
    let mut json = json!({
        "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40,
    });
    for (key, value) in change.as_object().unwrap() {
        json[key] = value.clone();
    }
    ModelConfig::from_json(&json, "config.json")
}

#[test]
fn mistakes_are_named() {
    for (change, expected) in [
        (
            json!({"num_hidden_layers": 100_000_000_000u64}),
            "`num_hidden_layers`",
        ),
        (
            json!({"max_position_embeddings": 1e13}),
            "`max_position_embeddings`",
        ),
        (json!({"hidden_size": 0}), "`hidden_size`"),
        (json!({"vocab_size": "many"}), "`vocab_size`"),
        (
            json!({"tie_word_embeddings": "yes"}),
            "`tie_word_embeddings` must be true or false",
        ),
        (
            json!({"use_sliding_window": 1}),
            "`use_sliding_window` must be true or false",
        ),
        (
            json!({"use_sliding_window": true}),
            "`use_sliding_window = true`",
        ),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "`layer_types` holds \"sliding_attention\"",
        ),
        (
            json!({"layer_types": "full_attention"}),
            "`layer_types` must be a list",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "`partial_rotary_factor = 0.5`",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
            "`rope_parameters.partial_rotary_factor = 0.25`",
        ),
        (json!({"attention_bias": true}), "not supported for qwen3"),
        (json!({"num_key_value_heads": 3}), "do not share"),
        (json!({"model_type": "gpt2"}), "unknown architecture `gpt2`"),
        (
            json!({"rope_scaling": {"rope_type": "yarn"}}),
            "`rope_type = \"yarn\"`",
        ),
        (json!({"quantization_config": {}}), "quantised"),
    ] {
        let error = config(change.clone()).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("config.json"),
            "{change}: {error}"
        );
    }
}

#[test]
fn what_says_nothing_special_is_read() {
    let plain = config(json!({})).unwrap();
    let said = config(json!({
        "layer_types": ["full_attention", "full_attention"], "use_sliding_window": false, "sliding_window": 4096,
        "partial_rotary_factor": 1, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0},
    }))
    .unwrap();
    let shape = |c: &ModelConfig| (c.rope_theta, c.rope_scaling, c.weight_shapes());
    assert_eq!(shape(&plain), shape(&said));
}

#[test]
fn without_a_head_dim_each_family_takes_its_own() {
    for (family, expected) in [("qwen3", 128), ("qwen2", 4), ("llama", 4)] {
        for absent in [json!({"head_dim": null}), json!({})] {
            let mut json = json!({
                "model_type": family, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
            });
            if let (Some(to), Some(from)) = (json.as_object_mut(), absent.as_object()) {
                to.extend(from.clone());
            }
            let config = ModelConfig::from_json(&json, "config.json").unwrap();
            assert_eq!(config.head_dim, expected, "{family}");
        }
    }
}

#[test]
fn both_dialects_give_the_same_model_and_are_written() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(5e5);
    let older =
        config(json!({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": scaling})).unwrap();
    let newer = config(json!({"model_type": "llama", "rope_parameters": parameters})).unwrap();
    assert_eq!(
        (older.rope_theta, older.rope_scaling),
        (newer.rope_theta, newer.rope_scaling)
    );
    let written = newer.to_json("bfloat16");
    assert_eq!(written["rope_theta"], 5e5);
    assert_eq!(written["rope_scaling"]["factor"], 8.0);
    assert_eq!(written["rope_parameters"]["rope_theta"], 5e5);
    assert_eq!(
        (&written["dtype"], &written["torch_dtype"]),
        (&json!("bfloat16"), &json!("bfloat16"))
    );
}

#[test]
fn where_the_dialects_disagree_the_choice_is_that_of_transformers() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let newer = json!({"rope_type": "default", "rope_theta": 2e4});
    let theta_of = |change| {
        let config = config(change).unwrap();
        (config.rope_theta, config.rope_scaling.map(|s| s.factor))
    };
    assert_eq!(
        theta_of(json!({"model_type": "llama", "rope_theta": 3e4, "rope_parameters": newer})),
        (2e4, None)
    );
    assert_eq!(
        theta_of(json!({
            "model_type": "llama", "rope_theta": 3e4, "rope_parameters": newer, "rope_scaling": scaling
        })),
        (3e4, Some(8.0))
    );
    let mut same = scaling.clone();
    same["high_freq_factor"] = json!(1.0);
    let mut zero = scaling.clone();
    zero["factor"] = json!(0.0);
    for (change, expected) in [
        (json!({"rope_theta": 0.0}), "rope_theta"),
        (json!({"rms_norm_eps": -1e-6}), "rms_norm_eps"),
        (json!({"rope_scaling": same}), "high_freq_factor"),
        (json!({"rope_scaling": zero}), "`factor`"),
    ] {
        let error = config(change).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
