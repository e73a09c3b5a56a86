//! Frozen weights that stay in their files: training holds less than the model takes, and learns the same.

mod cli_support;

use candle_core::{DType, Device};
use cli_support::Place;
use distill::model::{AdapterConfig, CausalLm, ModelConfig};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn config() -> ModelConfig {
    let json = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 512,
        "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
    });
    ModelConfig::from_json(&json, "test").unwrap()
}

/// A model in bf16 in two files, which becomes f32 whenever it is read, an adapter that learns, and what it learns from.
fn prepare(place: &Place) -> u64 {
    let model = CausalLm::random(config(), 1, &Device::Cpu, DType::BF16).unwrap();
    let bytes = 4 * model.config().num_parameters() as u64;
    model.save(&place.path().join("model"), bytes / 3).unwrap();
    let adapters = AdapterConfig {
        rank: 4,
        alpha: 8.0,
        rslora: false,
        dora: false,
        targets: ["q_proj", "down_proj"].map(str::to_string).to_vec(),
    };
    let model = model.with_adapters(adapters, 2).unwrap();
    model.save_adapters(&place.path().join("adapter")).unwrap();
    let rows: Vec<Value> = (0..8)
        .map(|i| {
            let tokens: Vec<usize> = (0..20).map(|t| (t * (i + 3) + i) % 64).collect();
            json!({"tokens": tokens, "trained": vec![1; 20]})
        })
        .collect();
    let settings = json!({
        "seed": 1, "inputs_key": "", "epochs": 1, "max_steps": null, "learning_rate": 1e-2, "schedule": "constant",
        "min_learning_rate_ratio": 0.0, "warmup_ratio": 0.0, "batch_size": 2, "packing": true, "pack_length": 64,
        "shuffle": true, "weight_decay": 0.0, "betas": [0.9, 0.95], "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
        "recompute": "block", "checkpoint_every_steps": 0, "keep_checkpoints": 1,
    });
    place.file(
        "job.json",
        json!({"settings": settings, "rows": rows}).to_string(),
    );
    bytes
}

/// Losses of all steps, and the most memory that no file stands for while they were made.
fn train(place: &Place, output: &str, flags: &[&str]) -> (Vec<f64>, u64) {
    let mut args = vec!["debug-train", "--model", "model", "--adapter", "adapter"];
    args.extend(["--job", "job.json", "--output", output]);
    args.extend(flags);
    let mut child = place.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let done = AtomicBool::new(false);
    let (losses, most) = std::thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find(|line| line.starts_with("RssAnon"));
                let kib = line.and_then(|line| line.split_whitespace().nth(1));
                most = most.max(kib.map_or(0, |kib| 1024 * kib.parse::<u64>().unwrap()));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // what comes after the last step writes the merged weights, a whole file of them at a time
        let losses: Vec<f64> = lines
            .take(4)
            .map(|line| {
                let step: Value = serde_json::from_str(&line.unwrap()).unwrap();
                step["loss"].as_f64().unwrap()
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        (losses, most.join().unwrap())
    });
    assert!(child.wait().unwrap().success());
    (losses, most)
}

#[test]
fn what_is_streamed_learns_the_same_in_less_memory() {
    let place = Place::new();
    let limit = prepare(&place);
    let (losses, most) = train(&place, "whole", &[]);
    assert_eq!(losses.len(), 4);
    assert!(
        most > limit,
        "the weights take {limit} bytes, the process {most}"
    );
    let (streamed, most) = train(&place, "streamed", &["--stream"]);
    assert_eq!(streamed, losses);
    assert!(most < limit * 3 / 4, "{most} bytes of a limit of {limit}");
    let bytes = |run: &str| {
        let folder = place.path().join(run).join("checkpoint-4");
        std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
    };
    assert!(bytes("whole") == bytes("streamed"));
}
