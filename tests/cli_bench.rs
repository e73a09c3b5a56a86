//! `distill bench`: numbers of a small shape, and what it refuses.

mod cli_support;

use cli_support::Place;
use serde_json::Value;

const CONFIG: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 200,
 "tie_word_embeddings": true, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}"#;

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["bench", "--shape", "shape", "--device", "cpu"];
    all.extend([
        "--batch-size",
        "2",
        "--new-tokens",
        "4",
        "--prompt-length",
        "8",
        "--steps",
        "1",
    ]);
    if !more.contains(&"--length") {
        all.extend(["--length", "32"]);
    }
    all.extend(more);
    all
}

#[test]
fn a_small_shape_is_measured() {
    let place = Place::new();
    place.file("shape/config.json", CONFIG);
    let measured = |more: &[&str]| -> Value {
        let run = place.works(&args(&[more, &["--json"]].concat()));
        serde_json::from_str(&run.stdout).unwrap()
    };
    let full = measured(&[]);
    // embedding; two blocks of q and o, k and v, three of the feed-forward, biases, norms; the last norm
    let block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 64 + 2 * 32 + 2 * 64;
    assert_eq!(full["num_parameters"], 200 * 64 + 2 * block + 64);
    assert_eq!(full["num_trained"], full["num_parameters"]);
    assert_eq!(full["tokens_per_step"], 64);
    for field in [
        "forward_s",
        "optimizer_s",
        "train_tokens_per_s",
        "utilisation",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "peak_memory",
    ] {
        assert!(full[field].as_f64().unwrap() > 0.0, "{field}: {full}");
    }
    let at_once = measured(&["--at-once", "--optimizer", "adamw_8bit"]);
    assert!(at_once["optimizer_s"].is_null(), "{at_once}");
    assert!(at_once["backward_s"].as_f64().unwrap() > 0.0, "{at_once}");
    let lora = measured(&["--lora", "2", "--recompute"]);
    // rank 2: inputs and outputs of seven projections
    let adapter = 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96));
    assert_eq!(lora["num_trained"], 2 * adapter);
    let quantised = measured(&["--lora", "2", "--quant", "q8_0"]);
    assert_eq!(quantised["num_trained"], lora["num_trained"]);
    assert_eq!(quantised["num_parameters"], lora["num_parameters"]);
    let text = place.works(&args(&[])).stdout;
    for word in [
        "forward",
        "backward",
        "optimiser",
        "tokens/s",
        "TFLOP/s",
        "peak memory",
    ] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Place::new();
    place.file("shape/config.json", CONFIG);
    let (error, hint) = place.fails(&["bench", "--shape", "qwen9"]);
    assert_eq!(error, "no shape `qwen9`");
    assert!(hint.contains("qwen2-42m"), "{hint}");
    let (error, _) = place.fails(&args(&["--length", "129"]));
    assert!(error.contains("longer than the 128 positions"), "{error}");
    let (error, _) = place.fails(&args(&["--num-sequences", "0"]));
    assert_eq!(error, "`--num-sequences 0` must be at least 1");
}
