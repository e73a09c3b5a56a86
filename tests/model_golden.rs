//! Every family against transformers: logits, gradients and greedy text of tiny checkpoints made by
//! `tests/peers/model_golden.py`.

use candle_core::{DType, Device, Tensor};
use distill::model::{Batch, CausalLm, LoadOptions, Recompute};
use distill::ops::ParamId;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 3] = ["qwen2", "qwen3", "llama"];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/model")
        .join(family)
}

fn load(folder: &Path) -> CausalLm {
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
    };
    CausalLm::load(folder, &options).unwrap()
}

fn expected(family: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(family).join("expected.safetensors"), &Device::Cpu)
        .unwrap()
}

fn input() -> (Vec<u32>, Vec<usize>) {
    let text = std::fs::read(folder("input.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let list = |key: &str| -> Vec<u64> {
        json[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap())
            .collect()
    };
    let tokens = list("tokens").into_iter().map(|v| v as u32).collect();
    (
        tokens,
        list("seq_lens").into_iter().map(|v| v as usize).collect(),
    )
}

/// The script's batch: every second target of a sequence is trained.
fn batch() -> Batch {
    let (tokens, seq_lens) = input();
    let (mut targets, mut weights) = (vec![0; tokens.len()], vec![0.0; tokens.len()]);
    let mut start = 0;
    for &n in &seq_lens {
        for t in start..start + n - 1 {
            targets[t] = tokens[t + 1];
            if t % 2 == 0 {
                weights[t] = 0.25 + 0.01 * t as f32;
            }
        }
        start += n;
    }
    Batch {
        tokens,
        seq_lens,
        targets,
        weights,
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Largest difference relative to the largest value.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let largest = b.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    a.iter()
        .zip(&b)
        .fold(0.0f32, |m, (x, y)| m.max((x - y).abs()))
        / largest
}

#[test]
fn logits_are_those_of_transformers() {
    let (tokens, seq_lens) = input();
    for family in FAMILIES {
        let logits = load(&folder(family)).logits(&tokens, &seq_lens).unwrap();
        let worst = difference(&logits, &expected(family)["logits"]);
        assert!(worst < 1e-5, "{family}: {worst}");
    }
}

#[test]
fn every_gradient_is_that_of_transformers_with_and_without_recomputation() {
    for family in FAMILIES {
        let model = load(&folder(family));
        let expected = expected(family);
        let batch = batch();
        let mut bits: Option<Vec<Vec<f32>>> = None;
        for recompute in [Recompute::None, Recompute::Block] {
            let mut grads = model.new_gradients();
            let logprobs = model
                .forward_backward(&batch, recompute, &mut grads)
                .unwrap();
            let loss: f32 = -logprobs
                .iter()
                .zip(&batch.weights)
                .map(|(l, w)| l * w)
                .sum::<f32>();
            assert!(
                (loss - values(&expected["loss"])[0]).abs() < 1e-5,
                "{family}"
            );
            let mut all = Vec::new();
            for (i, p) in model.parameters().iter().enumerate() {
                let grad = grads
                    .get(ParamId(i))
                    .unwrap_or_else(|| panic!("{family}: {} has no gradient", p.name));
                let reference = &expected[&format!("grad.{}", p.name)];
                let worst = difference(grad, reference);
                assert!(
                    worst < 1e-4,
                    "{family}: gradient of {} differs by {worst}",
                    p.name
                );
                // the bias of k shifts all scores of a query alike: its gradient is 0 up to rounding only without RoPE
                assert!(
                    values(grad).iter().any(|v| *v != 0.0),
                    "{family}: {} gets no gradient",
                    p.name
                );
                all.push(values(grad));
            }
            match &bits {
                None => bits = Some(all),
                Some(first) => assert!(*first == all, "{family}: recomputation changes bits"),
            }
        }
    }
}

#[test]
fn greedy_text_through_the_cache_is_that_of_transformers() {
    let (tokens, _) = input();
    for family in FAMILIES {
        let model = load(&folder(family));
        let greedy: Vec<i64> = expected(family)["greedy"].to_vec1().unwrap();
        let mut cache = model.new_cache(2).unwrap();
        let mut logits = values(&model.prefill(&mut cache, 1, &tokens[..6]).unwrap());
        for (i, want) in greedy.iter().enumerate() {
            let best = (0..logits.len())
                .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
                .unwrap();
            assert_eq!(best as i64, *want, "{family}: token {i}");
            logits = values(&model.decode(&mut cache, &[1], &[best as u32]).unwrap());
        }
    }
}

#[test]
fn saved_checkpoints_load_again_single_and_sharded() {
    let (tokens, seq_lens) = input();
    for family in FAMILIES {
        let model = load(&folder(family));
        let before = values(&model.logits(&tokens, &seq_lens).unwrap());
        for shard in [u64::MAX, 4000] {
            let dir = tempfile::tempdir().unwrap();
            model.save(dir.path(), shard).unwrap();
            assert_eq!(
                dir.path().join("model.safetensors.index.json").exists(),
                shard == 4000
            );
            let again = load(dir.path());
            assert_eq!(
                again.config().num_parameters(),
                model.config().num_parameters()
            );
            assert!(
                values(&again.logits(&tokens, &seq_lens).unwrap()) == before,
                "{family}"
            );
        }
    }
}
