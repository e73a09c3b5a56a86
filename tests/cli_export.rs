//! `distill export` through the binary.

mod cli_support;

use candle_core::quantized::gguf_file::{Content, Value};
use cli_support::{Place, model};
use serde_json::json;
use std::fs::File;

fn read(place: &Place, name: &str) -> Content {
    Content::read(&mut File::open(place.path().join(name)).unwrap()).unwrap()
}

fn text(content: &Content, key: &str) -> String {
    content.metadata[key].to_string().unwrap().clone()
}

#[test]
fn a_model_becomes_a_file() {
    let place = Place::new();
    model::save(&place.path().join("m"));
    let run = place.works(&["export", "--model", "m", "--gguf", "m.gguf"]);
    assert_eq!(run.stdout, "m.gguf\n");
    let size = place.path().join("m.gguf").metadata().unwrap().len();
    assert!(
        run.stderr.contains("15 tensors (9 F16, 6 F32), "),
        "{}",
        run.stderr
    );
    let content = read(&place, "m.gguf");
    assert_eq!(content.tensor_infos.len(), 15);
    assert_eq!(text(&content, "general.name"), "m");
    assert_eq!(text(&content, "general.architecture"), "qwen2");
    assert_eq!(text(&content, "tokenizer.ggml.model"), "gpt2");
    assert_eq!(text(&content, "tokenizer.ggml.pre"), "gpt-2");
    assert_eq!(text(&content, "tokenizer.chat_template"), model::TEMPLATE);
    let id = |key: &str| content.metadata[key].to_u32().unwrap();
    assert_eq!(id("tokenizer.ggml.eos_token_id"), model::IM_END);
    assert_eq!(id("tokenizer.ggml.padding_token_id"), 0);
    assert_eq!(id("tokenizer.ggml.bos_token_id"), 0);
    assert!(!content.metadata.contains_key("tokenizer.ggml.eot_token_id"));
    assert!(
        !content.metadata["tokenizer.ggml.add_bos_token"]
            .to_bool()
            .unwrap()
    );
    let Value::Array(tokens) = &content.metadata["tokenizer.ggml.tokens"] else {
        panic!("no list");
    };
    let tokens: Vec<&str> = tokens
        .iter()
        .map(|t| t.to_string().unwrap().as_str())
        .collect();
    assert_eq!(
        tokens[..5],
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b"]
    );

    // the same file again, by another name, said as JSON
    let args = [
        "export", "--model", "m", "--gguf", "n.gguf", "--name", "N", "--json", "-q",
    ];
    let run = place.works(&args);
    assert_eq!(run.stderr, "");
    let found: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        found,
        json!({"file": "n.gguf", "quant": "f16", "num_bytes": size, "num_tensors": 15,
               "types": {"F16": 9, "F32": 6}, "fallbacks": []})
    );
    assert_eq!(text(&read(&place, "n.gguf"), "general.name"), "N");
}

#[test]
fn rows_that_do_not_divide_are_told() {
    let place = Place::new();
    model::save(&place.path().join("m"));
    let args = [
        "export", "--model", "m", "--gguf", "m.gguf", "--quant", "Q4_K_M",
    ];
    let run = place.works(&args);
    let warnings: Vec<&str> = run
        .stderr
        .lines()
        .filter(|l| l.contains("warning:"))
        .collect();
    assert_eq!(
        warnings,
        [
            "warning: 6 tensors are F16 in place of Q4_K, whose blocks do not divide the rows",
            "warning: 2 tensors are F16 in place of Q6_K, whose blocks do not divide the rows",
            "warning: 1 tensor is F16 in place of Q8_0, whose blocks do not divide the rows",
        ]
    );
}

#[test]
fn how_to_sample_and_the_end_of_a_turn_go_along() {
    let place = Place::new();
    let folder = place.path().join("runs/first/sft/model");
    model::save(&folder);
    place.file(
        "runs/first/sft/model/generation_config.json",
        r#"{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [0, 2, 9]}"#,
    );
    place.file(
        "runs/first/sft/model/tokenizer_config.json",
        r#"{"eos_token": "<|endoftext|>"}"#,
    );
    let args = [
        "export",
        "--model",
        "runs/first/sft/model",
        "--gguf",
        "m.gguf",
    ];
    let run = place.works(&args);
    assert!(
        run.stderr
            .contains("warning: token `g` ends answers here, and GGUF has no place to say so"),
        "{}",
        run.stderr
    );
    let content = read(&place, "m.gguf");
    assert_eq!(text(&content, "general.name"), "first-sft");
    let id = |key: &str| content.metadata[key].to_u32().unwrap();
    assert_eq!(id("tokenizer.ggml.eos_token_id"), 0);
    assert_eq!(id("tokenizer.ggml.eot_token_id"), model::IM_END);
    let number = |key: &str| content.metadata[key].to_f32().unwrap();
    assert_eq!(number("general.sampling.temp"), 0.6);
    assert_eq!(number("general.sampling.top_p"), 0.95);
    assert_eq!(
        content.metadata["general.sampling.top_k"].to_i32().unwrap(),
        20
    );
}

#[test]
fn mistakes_are_named() {
    let place = Place::new();
    model::save(&place.path().join("m"));
    let (error, hint) = place.fails(&["export", "--model", "m", "--gguf", "."]);
    assert_eq!(error, "`.` is a folder");
    assert_eq!(
        hint,
        "name the file that is to be written, such as `model-f16.gguf`"
    );
    // the weights themselves, or a device
    for path in ["m/model.safetensors", "/dev/null"] {
        let (error, _) = place.fails(&["export", "--model", "m", "--gguf", path]);
        assert!(
            error.ends_with("is there already and is no GGUF file"),
            "{error}"
        );
    }
    let (error, hint) = place.fails(&["export", "--model", "m", "--gguf", "none/m.gguf"]);
    assert!(error.starts_with("creating `none/m.gguf`"), "{error}");
    assert_eq!(hint, "check the spelling of the path");

    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&place.read("m/tokenizer.json")).unwrap();
    tokenizer["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
    place.file("m/tokenizer.json", tokenizer.to_string());
    let (error, hint) = place.fails(&["export", "--model", "m", "--gguf", "m.gguf"]);
    assert_eq!(
        error,
        "the tokenizer cuts text in a way that GGUF has no name for"
    );
    assert_eq!(
        hint,
        "tokenizers of GPT-2, Qwen2, Qwen3 and Llama 3 can be written"
    );

    let mut config = model::config();
    config["architectures"] = json!(["Qwen2ForSequenceClassification"]);
    config["num_labels"] = json!(1);
    place.file("m/config.json", config.to_string());
    let (error, _) = place.fails(&["export", "--model", "m", "--gguf", "m.gguf"]);
    assert_eq!(error, "a reward model cannot be written as GGUF");
    assert!(!place.path().join("m.gguf").exists());

    let run = place.run(&[
        "export", "--model", "m", "--gguf", "m.gguf", "--quant", "q9",
    ]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("types: f32, f16, bf16, q8_0, "),
        "{}",
        run.stderr
    );
}
