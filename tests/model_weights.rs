//! Weight files that are damaged, mixed or of another model: each is refused by name; and what a save leaves.

use candle_core::{DType, Device, Tensor};
use distill::model::{CausalLm, LoadOptions, ModelConfig};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

fn model(seed: u64) -> CausalLm {
    let json = json!({
        "model_type": "qwen2", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    CausalLm::random(config, seed, &Device::Cpu, DType::F32).unwrap()
}

/// A folder with a model in shards of at most `max_shard_bytes`.
fn saved(max_shard_bytes: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    model(1).save(dir.path(), max_shard_bytes).unwrap();
    dir
}

fn load(folder: &Path, dtype: DType) -> distill::Result<CausalLm> {
    let device = Device::Cpu;
    CausalLm::load(folder, &LoadOptions { device, dtype })
}

fn error(folder: &Path, dtype: DType) -> String {
    load(folder, dtype).err().expect("refused").to_string()
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NORM: &str = "model.norm.weight";

/// Changes the tensors of a file.
fn edit(file: &Path, change: impl Fn(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, file).unwrap();
}

fn index(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(INDEX)).unwrap()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_broken_index_is_named() {
    for (content, expected) in [
        (
            r#"{"weight_map": {"model.norm.weight": 7}}"#,
            "the file of tensor `model.norm.weight` must be a string, found 7",
        ),
        (
            r#"{"weight_map": {"model.norm.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}}"#,
            "lists tensor `model.norm.weight` twice, in `a.safetensors` and in `b.safetensors`",
        ),
        (r#"{"weight_map": {}}"#, "`weight_map` is empty"),
        (
            r#"{"weight_map": [1]}"#,
            "expected a map from tensor to file",
        ),
        (r#"{"metadata": {}}"#, "missing field `weight_map`"),
        ("{", "is not valid JSON"),
    ] {
        let dir = saved(4000);
        std::fs::write(dir.path().join(INDEX), content).unwrap();
        let error = error(dir.path(), DType::F32);
        assert!(
            error.contains(expected) && error.contains(INDEX),
            "{content}: {error}"
        );
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = saved(4000);
    let map = index(dir.path());
    let home = map["weight_map"][NORM].as_str().unwrap();
    let other = map["weight_map"]["model.embed_tokens.weight"]
        .as_str()
        .unwrap();
    assert_ne!(home, other);
    let norm = model(2)
        .parameters()
        .iter()
        .find(|p| p.name == NORM)
        .unwrap()
        .value
        .clone();
    edit(&dir.path().join(other), |tensors| {
        tensors.insert(NORM.into(), norm.clone());
    });
    let error = error(dir.path(), DType::F32);
    assert!(
        error.starts_with("tensor `model.norm.weight` is in two files, `")
            && error.contains(home)
            && error.contains(other),
        "{error}"
    );
}

#[test]
fn a_missing_tensor_names_the_file_to_look_into() {
    let dir = saved(u64::MAX);
    let remove = |file: &str| {
        edit(&dir.path().join(file), |tensors| {
            tensors.remove(NORM);
        });
    };
    remove(SINGLE);
    let text = error(dir.path(), DType::F32);
    let place = dir.path().join(SINGLE);
    assert_eq!(
        text,
        format!(
            "`{}` has no tensor `{NORM}`, expected with shape [16]",
            place.display()
        )
    );

    let dir = saved(4000);
    let mut map = index(dir.path());
    let shard = map["weight_map"][NORM].as_str().unwrap().to_string();
    edit(&dir.path().join(&shard), |tensors| {
        tensors.remove(NORM);
    });
    let text = error(dir.path(), DType::F32);
    assert!(text.contains(&format!("{shard}` has no tensor")), "{text}");
    map["weight_map"].as_object_mut().unwrap().remove(NORM);
    std::fs::write(dir.path().join(INDEX), map.to_string()).unwrap();
    let text = error(dir.path(), DType::F32);
    assert!(text.contains(&format!("{INDEX}` has no tensor")), "{text}");
}

#[test]
fn values_that_a_dtype_cannot_hold_are_refused() {
    let put = |dtype: DType, value: f64| {
        let dir = saved(u64::MAX);
        edit(&dir.path().join(SINGLE), |tensors| {
            let mut values = vec![1.0; 16];
            values[3] = value;
            values[5] = -value;
            let new = Tensor::new(values, &Device::Cpu).unwrap();
            tensors.insert(NORM.into(), new.to_dtype(dtype).unwrap());
        });
        dir
    };
    for (stored, value, dtype) in [
        (DType::F32, 7e4, DType::F16),
        (DType::BF16, 7e4, DType::F16),
        (DType::F32, 3.4e38, DType::BF16),
        (DType::F64, 1e300, DType::F32),
    ] {
        let dir = put(stored, value);
        let text = error(dir.path(), dtype);
        let expected = format!(
            "{SINGLE}`: tensor `{NORM}`: 2 of 16 values are too large for {}",
            dtype.as_str()
        );
        assert!(text.ends_with(&expected), "{text}");
        // the same file is fine where the values fit
        if stored != DType::F64 {
            load(dir.path(), DType::F32).unwrap();
        }
    }
    load(put(DType::F32, 65_504.0).path(), DType::F16).unwrap();
    let text = error(put(DType::F64, f64::NAN).path(), DType::F32);
    assert!(text.ends_with("2 of 16 values are not finite"), "{text}");
}

#[test]
fn a_save_leaves_nothing_of_an_earlier_one() {
    let dir = saved(4000);
    let other = [
        "model-card.safetensors",
        "model-00001.safetensors",
        "adapter_model.safetensors",
    ];
    for name in other {
        std::fs::write(dir.path().join(name), "not ours").unwrap();
    }
    assert!(names(dir.path()).len() > 6);
    let check = |expected: &[&str], seed: u64, shard: u64| {
        let model = model(seed);
        model.save(dir.path(), shard).unwrap();
        let mut all: Vec<&str> = [expected, &["config.json"], &other].concat();
        all.sort_unstable();
        assert_eq!(names(dir.path()), all);
        let again = load(dir.path(), DType::F32).unwrap();
        for (a, b) in again.parameters().iter().zip(model.parameters()) {
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values(&a.value) == values(&b.value), "{}", a.name);
        }
    };
    check(&[SINGLE], 2, u64::MAX);
    let halves = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
    ];
    check(&halves, 3, 16_000);
    check(&[SINGLE], 4, u64::MAX);
}
