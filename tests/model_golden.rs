//! Every family against transformers: logits, gradients and greedy text of tiny checkpoints made by
//! `tests/peers/model_golden.py`, with tied and untied embeddings, from files of f32, f16 and bf16, whole and sharded.

use candle_core::{DType, Device, Tensor};
use distill::model::{Batch, CausalLm, LoadOptions, Recompute};
use distill::ops::ParamId;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 6] = [
    "qwen2",
    "qwen3",
    "llama",
    "qwen2-untied-f16",
    "qwen3-tied-bf16",
    "llama-tied-bf16",
];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/model")
        .join(family)
}

fn load(folder: &Path) -> CausalLm {
    load_as(folder, DType::F32)
}

fn load_as(folder: &Path, dtype: DType) -> CausalLm {
    let device = Device::Cpu;
    CausalLm::load(folder, &LoadOptions { device, dtype }).unwrap()
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
        for recompute in [
            Recompute::None,
            Recompute::KeepAttention,
            Recompute::Block,
            Recompute::Offload,
        ] {
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

/// Every tensor of a folder: dtype, shape, bytes.
fn stored(folder: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes)
                .unwrap()
                .tensors()
            {
                let dtype = format!("{:?}", view.dtype());
                let content = (dtype, view.shape().to_vec(), view.data().to_vec());
                assert!(all.insert(name, content).is_none());
            }
        }
    }
    all
}

#[test]
fn a_checkpoint_loaded_and_saved_is_the_same_to_the_bit_single_and_sharded() {
    for (family, dtype, written) in [
        ("qwen2", DType::F32, "float32"),
        ("qwen3", DType::F32, "float32"),
        ("llama", DType::F32, "float32"),
        ("qwen2-untied-f16", DType::F16, "float16"),
        ("qwen3-tied-bf16", DType::BF16, "bfloat16"),
        ("llama-tied-bf16", DType::BF16, "bfloat16"),
    ] {
        let model = load_as(&folder(family), dtype);
        for shard in [u64::MAX, 4000] {
            let dir = tempfile::tempdir().unwrap();
            model.save(dir.path(), shard).unwrap();
            let is_sharded = dir.path().join("model.safetensors.index.json").exists();
            assert_eq!(is_sharded, shard == 4000);
            assert!(stored(dir.path()) == stored(&folder(family)), "{family}");
            let again = load_as(dir.path(), dtype);
            assert_eq!(
                again.config().weight_shapes(),
                model.config().weight_shapes()
            );
            assert_eq!(
                again.config().to_json(written),
                Value::Object(again.config().raw.clone())
            );
            for (a, b) in again.parameters().iter().zip(model.parameters()) {
                assert!(values(&a.value) == values(&b.value), "{family}: {}", a.name);
            }
        }
    }
}

#[test]
fn weights_of_16_bits_widened_and_narrowed_are_the_same_to_the_bit() {
    for (family, dtype) in [
        ("qwen2-untied-f16", DType::F16),
        ("llama-tied-bf16", DType::BF16),
    ] {
        let dir = tempfile::tempdir().unwrap();
        load(&folder(family)).save(dir.path(), u64::MAX).unwrap();
        assert!(
            stored(dir.path())
                .values()
                .all(|(dtype, ..)| dtype == "F32")
        );
        let narrow = tempfile::tempdir().unwrap();
        load_as(dir.path(), dtype)
            .save(narrow.path(), u64::MAX)
            .unwrap();
        assert!(stored(narrow.path()) == stored(&folder(family)), "{family}");
    }
}
