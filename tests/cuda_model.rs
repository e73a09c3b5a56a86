//! Whole models through the CUDA kernels: gradients of every weight and sampled text against the CPU's. Where it runs: see
//! `tests/cuda/mod.rs`.
#![cfg(any(feature = "cuda", feature = "cuda-emulator"))]

mod cuda;

use candle_core::{DType, Device, Tensor};
use cuda::{device, off, reference};
use distill::model::{AdapterConfig, Batch, CausalLm, ModelConfig, Recompute};
use distill::ops::{Gradients, ParamId};

const VOCAB: usize = 97;

fn config(architecture: &str) -> ModelConfig {
    let json = serde_json::json!({
        "architectures": [format!("{architecture}ForCausalLM")], "model_type": architecture.to_lowercase(),
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": VOCAB, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": architecture == "Qwen2",
    });
    ModelConfig::from_json(&json, "test").unwrap()
}

fn batch() -> Batch {
    let seq_lens = vec![70, 1, 29];
    let tokens: Vec<u32> = (0..100).map(|t| (t * t * 5 + 3) % VOCAB as u32).collect();
    let mut targets = tokens.clone();
    targets.rotate_left(1);
    let weights = (0..100)
        .map(|t| if t % 3 == 0 { 0.0 } else { 0.5 })
        .collect();
    Batch {
        tokens,
        seq_lens,
        targets,
        weights,
    }
}

fn gradients(model: &CausalLm, recompute: Recompute) -> (Vec<f32>, Gradients) {
    let mut grads = model.new_gradients();
    let logprobs = model
        .forward_backward(&batch(), recompute, &mut grads)
        .unwrap();
    (logprobs, grads)
}

/// Largest distance of log-probabilities and of any weight's gradient, the latter relative to its largest value.
fn compare(name: &str, got: &CausalLm, want: &CausalLm, limits: (f64, f64)) {
    let (logprobs_want, grads_want) = reference(|| gradients(want, Recompute::None));
    for recompute in [
        Recompute::None,
        Recompute::KeepAttention,
        Recompute::Block,
        Recompute::Offload,
    ] {
        let (logprobs, grads) = gradients(got, recompute);
        for (a, b) in logprobs.iter().zip(&logprobs_want) {
            assert!(f64::from((a - b).abs()) < limits.0, "{name}: {a} {b}");
        }
        let (first, trained) = got.trained();
        for (i, parameter) in trained.iter().enumerate() {
            let id = ParamId(first.0 + i);
            let of = |grads: &Gradients| -> Tensor { grads.get(id).unwrap().clone() };
            let off = off(&of(&grads), &of(&grads_want));
            assert!(
                off < limits.1,
                "{name}: {} is off by {off:e}",
                parameter.name
            );
        }
    }
}

/// The same random weights on the device of the kernels and on the CPU.
fn twins(architecture: &str, dtype: DType) -> (CausalLm, CausalLm) {
    let on_cpu = CausalLm::random(config(architecture), 5, &Device::Cpu, dtype).unwrap();
    let folder = tempfile::tempdir().unwrap();
    on_cpu.save(folder.path(), u64::MAX).unwrap();
    let load = |device: Device, dtype| {
        let options = distill::model::LoadOptions { device, dtype };
        CausalLm::load_as(folder.path(), config(architecture), &options).unwrap()
    };
    (load(device(), dtype), load(Device::Cpu, DType::F32))
}

#[test]
fn gradients_are_those_of_the_cpu() {
    for architecture in ["Qwen2", "Qwen3", "Llama"] {
        let (got, want) = twins(architecture, DType::F32);
        compare(architecture, &got, &want, (1e-4, 1e-4));
        // what bf16 loses on its way through two blocks
        let (got, want) = twins(architecture, DType::BF16);
        compare(architecture, &got, &want, (5e-2, 5e-2));
    }
}

#[test]
fn adapters_learn_the_same() {
    for dora in [false, true] {
        let adapters = AdapterConfig {
            rank: 4,
            alpha: 8.0,
            rslora: false,
            dora,
            targets: ["q_proj", "v_proj", "down_proj"]
                .map(str::to_string)
                .to_vec(),
        };
        let (got, want) = twins("Qwen2", DType::F32);
        let with = |model: CausalLm| model.with_adapters(adapters.clone(), 3).unwrap();
        compare("adapters", &with(got), &with(want), (1e-4, 1e-4));
    }
}

#[test]
fn decoding_goes_on_like_the_whole_sequence() {
    for dtype in [DType::F32, DType::BF16] {
        let (model, _) = twins("Qwen2", dtype);
        let tokens = batch().tokens;
        let limit = if dtype == DType::F32 { 1e-4 } else { 3e-2 };
        let whole = model.logits(&tokens[..80], &[80]).unwrap();
        let mut cache = model.new_cache(3).unwrap();
        let first = model.prefill(&mut cache, 2, &tokens[..60]).unwrap();
        let near = |got: &Tensor, row: usize| {
            let off = off(got, &whole.get(row).unwrap());
            assert!(off < limit, "{dtype:?}: row {row} is off by {off:e}");
        };
        near(&first, 59);
        cache.copy_prefix(2, 0, 60).unwrap();
        model.prefill(&mut cache, 1, &tokens[..3]).unwrap();
        for at in 60..80 {
            let next = [tokens[at], tokens[at - 57], tokens[at]];
            let logits = model.decode(&mut cache, &[2, 1, 0], &next).unwrap();
            near(&logits.get(0).unwrap(), at);
            near(&logits.get(1).unwrap(), at - 57);
            near(&logits.get(2).unwrap(), at);
        }
    }
}
