//! Adapters: gradients against differences, merged against beside, what is frozen, files in and out.

mod train_common;

use candle_core::{DType, Device, Tensor};
use distill::model::{
    AdapterConfig, Batch, CausalLm, FrozenAs, LoadOptions, ModelConfig, Recompute, frozen,
};
use distill::ops::{Packed, PackedAs, ParamId};
use train_common::{VOCAB, tiny};

const ALL: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

fn config(dora: bool, rslora: bool, targets: &[&str]) -> AdapterConfig {
    AdapterConfig {
        rank: 3,
        alpha: 5.0,
        rslora,
        dora,
        targets: targets.iter().map(|t| t.to_string()).collect(),
    }
}

/// A model whose adapters change something.
fn adapted(dora: bool, rslora: bool, targets: &[&str]) -> CausalLm {
    stirred(tiny(3), config(dora, rslora, targets))
}

/// The same beside these weights.
fn stirred(base: CausalLm, config: AdapterConfig) -> CausalLm {
    let model = base.with_adapters(config, 7).unwrap();
    for (i, p) in model.trained().1.iter().enumerate() {
        if !p.name.ends_with("lora_A.weight") {
            let noise: Vec<f32> = (0..p.value.elem_count())
                .map(|j| ((i * 31 + j * 17) % 23) as f32 / 100.0 - 0.1)
                .collect();
            let noise = Tensor::from_vec(noise, p.value.shape(), &Device::Cpu).unwrap();
            let changed = (&p.value + noise).unwrap();
            p.value.slice_set(&changed, 0, 0).unwrap();
        }
    }
    model.refresh().unwrap();
    model
}

fn batch() -> Batch {
    let tokens: Vec<u32> = (0..20).map(|t| (t * t * 5 + 3) % VOCAB as u32).collect();
    Batch {
        targets: tokens.iter().map(|t| (t * 7 + 1) % VOCAB as u32).collect(),
        tokens,
        seq_lens: vec![7, 1, 12],
        weights: (0..20).map(|t| 0.1 * t as f32 - 0.7).collect(),
    }
}

fn loss(model: &CausalLm) -> f64 {
    let batch = batch();
    let logprobs = model.logprobs(&batch).unwrap();
    let terms = logprobs.iter().zip(&batch.weights);
    -terms
        .map(|(l, w)| f64::from(*l) * f64::from(*w))
        .sum::<f64>()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &Tensor, b: &Tensor, most: f32, what: &str) {
    for (a, b) in values(a).iter().zip(values(b)) {
        assert!((a - b).abs() <= most, "{what}: {a} and {b}");
    }
}

#[test]
fn fresh_adapters_change_nothing() {
    let tokens = batch().tokens;
    let base = tiny(3).logits(&tokens, &[20]).unwrap();
    for dora in [false, true] {
        let model = tiny(3).with_adapters(config(dora, false, &ALL), 1).unwrap();
        assert!(model.adapters_are_neutral().unwrap());
        close(&model.logits(&tokens, &[20]).unwrap(), &base, 2e-6, "fresh");
        let off = adapted(dora, false, &ALL).without_adapters().unwrap();
        assert_eq!(
            values(&off.logits(&tokens, &[20]).unwrap()),
            values(&base),
            "switched off"
        );
    }
}

#[test]
fn gradients_equal_differences_and_the_base_has_none() {
    for (dora, rslora) in [(false, false), (false, true), (true, false)] {
        let model = adapted(dora, rslora, &ALL);
        let mut grads = model.new_gradients();
        model
            .forward_backward(&batch(), Recompute::None, &mut grads)
            .unwrap();
        let (first, trained) = model.trained();
        assert_eq!(trained.len(), 2 * 7 * if dora { 3 } else { 2 });
        for i in 0..first.0 {
            assert!(grads.get(ParamId(i)).is_none());
        }
        for (i, p) in trained.iter().enumerate() {
            let gradient = values(grads.get(ParamId(first.0 + i)).unwrap());
            let before = p.value.copy().unwrap();
            for at in [0, gradient.len() / 2, gradient.len() - 1] {
                let shifted = |by: f32| {
                    let mut changed = values(&before);
                    changed[at] += by;
                    let changed = Tensor::from_vec(changed, p.value.shape(), &Device::Cpu).unwrap();
                    p.value.slice_set(&changed, 0, 0).unwrap();
                    // DoRA's norm is a constant of the gradient: it stays as it was
                    loss(&model)
                };
                let h = 4e-3;
                let slope = (shifted(h) - shifted(-h)) / (2.0 * f64::from(h));
                p.value.slice_set(&before, 0, 0).unwrap();
                let found = f64::from(gradient[at]);
                assert!(
                    (slope - found).abs() < 2e-2 * (1.0 + found.abs()),
                    "{}[{at}]: {slope} by differences, {found}",
                    p.name
                );
            }
        }
    }
}

#[test]
fn recomputation_and_packing_change_no_gradient() {
    let model = adapted(true, false, &["q_proj", "down_proj"]);
    let gradients = |recompute| {
        let mut grads = model.new_gradients();
        model
            .forward_backward(&batch(), recompute, &mut grads)
            .unwrap();
        grads
    };
    let (kept, again) = (gradients(Recompute::None), gradients(Recompute::Block));
    let (first, trained) = model.trained();
    for (i, p) in trained.iter().enumerate() {
        let id = ParamId(first.0 + i);
        let (a, b) = (kept.get(id).unwrap(), again.get(id).unwrap());
        assert_eq!(values(a), values(b), "{}", p.name);
    }
}

#[test]
fn merged_equals_beside_also_while_sampling() {
    let tokens = batch().tokens;
    for (dora, rslora) in [(false, true), (true, false)] {
        let model = adapted(dora, rslora, &ALL);
        let beside = model.logits(&tokens, &[20]).unwrap();
        let base = tiny(3).logits(&tokens, &[20]).unwrap();
        let moved = (&beside - base).unwrap().abs().unwrap();
        assert!(moved.max_all().unwrap().to_scalar::<f32>().unwrap() > 1e-2);
        let mut cache = model.new_cache(1).unwrap();
        let mut last = model.prefill(&mut cache, 0, &tokens[..15]).unwrap();
        for &token in &tokens[15..] {
            last = model.decode(&mut cache, &[0], &[token]).unwrap();
        }
        close(
            &last.flatten_all().unwrap(),
            &beside.get(19).unwrap(),
            1e-5,
            "decoded",
        );
        let merged = model.merge().unwrap();
        assert_eq!(merged.trained().0, ParamId(0));
        close(
            &merged.logits(&tokens, &[20]).unwrap(),
            &beside,
            1e-5,
            "merged",
        );
    }
}

#[test]
fn files_come_back_and_foreign_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (base, place) = (folder.path().join("base"), folder.path().join("adapter"));
    tiny(3).save(&base, u64::MAX).unwrap();
    let model = adapted(true, true, &["v_proj", "up_proj"]).beside("org/base", Some("main"));
    model.save_adapters(&place).unwrap();
    let named = distill::model::adapter_files::base_of(&place).unwrap();
    assert_eq!(named, Some(("org/base".into(), Some("main".into()))));
    assert_eq!(distill::model::adapter_files::base_of(&base).unwrap(), None);
    let load = || {
        let options = LoadOptions {
            device: Device::Cpu,
            dtype: DType::F32,
        };
        CausalLm::load(&base, &options).unwrap()
    };
    let again = load().with_saved_adapters(&place).unwrap();
    assert_eq!(
        again.adapter_config(),
        Some(&config(true, true, &["up_proj", "v_proj"]))
    );
    let tokens = batch().tokens;
    assert_eq!(
        values(&again.logits(&tokens, &[20]).unwrap()),
        values(&model.logits(&tokens, &[20]).unwrap())
    );

    let error = again.with_saved_adapters(&place).err().unwrap().to_string();
    assert!(error.contains("has adapters already"), "{error}");
    let json = place.join("adapter_config.json");
    let text = std::fs::read_to_string(&json).unwrap();
    for (from, to, word) in [
        ("\"LORA\"", "\"IA3\"", "`peft_type = IA3` is not supported"),
        (
            "\"bias\": \"none\"",
            "\"bias\": \"all\"",
            "`bias = \"all\"` is not supported",
        ),
        ("\"r\": 3", "\"r\": 4", "has shape [3, "),
        ("\"r\": 3", "\"r\": \"x\"", "adapter_config.json"),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(&json, text.replace(from, to)).unwrap();
        let error = load()
            .with_saved_adapters(&place)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(word), "{error}");
    }
    let error = tiny(3)
        .with_adapters(config(false, false, &["w_proj"]), 1)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "there is no projection `w_proj` for an adapter"
    );
}

#[test]
fn a_copy_shares_what_is_frozen_and_nothing_else() {
    let model = adapted(false, false, &["q_proj"]);
    let copy = model.copy().unwrap();
    let tokens = batch().tokens;
    let before = values(&copy.logits(&tokens, &[20]).unwrap());
    for p in model.trained().1 {
        let zero = p.value.zeros_like().unwrap();
        p.value.slice_set(&zero, 0, 0).unwrap();
    }
    assert_eq!(values(&copy.logits(&tokens, &[20]).unwrap()), before);
    assert_ne!(values(&model.logits(&tokens, &[20]).unwrap()), before);
    copy.copy_from(&model).unwrap();
    assert_eq!(
        values(&copy.logits(&tokens, &[20]).unwrap()),
        values(&model.logits(&tokens, &[20]).unwrap())
    );
}

/// Rows of 256 values, and of 320 in its last matrix: q8_0 in place of q4_k there.
fn wide(dtype: DType) -> CausalLm {
    let json = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": 256,
        "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": true,
        "initializer_range": 0.05,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    CausalLm::random(config, 5, &Device::Cpu, dtype).unwrap()
}

/// The same whose projections are what their quantised forms stand for, as numbers.
fn dense(quant: PackedAs, dtype: DType) -> CausalLm {
    let model = wide(dtype);
    for p in model.parameters() {
        if frozen::is_projection(&p.name) {
            let packed = Packed::quantise(&p.value, quant, &Device::Cpu).unwrap();
            let value = packed.dequantise(dtype).unwrap();
            p.value.slice_set(&value, 0, 0).unwrap();
        }
    }
    model
}

fn wide_values(t: &Tensor) -> Vec<f32> {
    values(&t.to_dtype(DType::F32).unwrap())
}

#[test]
fn quantised_weights_have_the_gradients_of_what_they_stand_for() {
    for (quant, dora) in [
        (PackedAs::Nf4, false),
        (PackedAs::Q8_0, false),
        (PackedAs::Q4K, false),
        (PackedAs::Q4K, true),
    ] {
        let (rank, targets) = (3, &ALL[..]);
        let config = || AdapterConfig {
            rank,
            ..config(dora, false, targets)
        };
        let packed = stirred(wide(DType::F32).into_packed(quant).unwrap(), config());
        let plain = stirred(dense(quant, DType::F32), config());
        assert!(packed.resident_bytes() < plain.resident_bytes() / 2);
        let gradients = |model: &CausalLm| {
            let mut grads = model.new_gradients();
            let recompute = Recompute::Block;
            model
                .forward_backward(&batch(), recompute, &mut grads)
                .unwrap();
            grads
        };
        let (got, want) = (gradients(&packed), gradients(&plain));
        let (first, trained) = packed.trained();
        assert_eq!(trained.len(), 2 * 7 * if dora { 3 } else { 2 });
        let mut largest = 0.0f32;
        for (i, p) in trained.iter().enumerate() {
            let id = ParamId(first.0 + i);
            let (got, want) = (values(got.get(id).unwrap()), values(want.get(id).unwrap()));
            assert_eq!(got, want, "{quant:?}: {}", p.name);
            largest = got.iter().fold(largest, |m, v| m.max(v.abs()));
        }
        assert!(largest > 1e-2, "{largest}");
        // the largest entry of some against differences in f32
        for (i, p) in trained.iter().enumerate().step_by(5) {
            let gradient = values(got.get(ParamId(first.0 + i)).unwrap());
            let at = (0..gradient.len())
                .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()))
                .unwrap();
            let before = p.value.copy().unwrap();
            let shifted = |by: f32| {
                let mut changed = values(&before);
                changed[at] += by;
                let changed = Tensor::from_vec(changed, p.value.shape(), &Device::Cpu).unwrap();
                p.value.slice_set(&changed, 0, 0).unwrap();
                loss(&packed)
            };
            let h = 4e-3;
            let slope = (shifted(h) - shifted(-h)) / (2.0 * f64::from(h));
            p.value.slice_set(&before, 0, 0).unwrap();
            let found = f64::from(gradient[at]);
            assert!(
                (slope - found).abs() < 2e-2 * (1.0 + found.abs()),
                "{quant:?}: {}[{at}]: {slope} by differences, {found}",
                p.name
            );
        }
        // merged into what they stand for, and that alone where adapters are off
        let tokens = batch().tokens;
        let logits = |model: &CausalLm| values(&model.logits(&tokens, &[20]).unwrap());
        let off = packed.without_adapters().unwrap();
        assert_eq!(logits(&off), logits(&dense(quant, DType::F32)));
        let folder = tempfile::tempdir().unwrap();
        packed.save_adapters(folder.path()).unwrap();
        let file = std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
        let said = format!("\"base_quantization\":\"{}\"", quant.name());
        let head = String::from_utf8_lossy(&file[8..200]);
        assert!(head.contains(&said), "{head}");
        let merged = packed.merge().unwrap();
        assert_eq!(logits(&merged), logits(&plain.merge().unwrap()));
        assert_eq!(merged.resident_bytes(), wide(DType::F32).resident_bytes());
    }
}

#[test]
fn quantised_from_files_or_memory_in_two_dtypes_streamed_or_not_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = batch().tokens;
    for dtype in [DType::F32, DType::BF16] {
        let model = wide(dtype);
        let place = folder.path().join(dtype.as_str());
        model.save(&place, u64::MAX).unwrap();
        for quant in PackedAs::ALL {
            let logits = |model: &CausalLm| wide_values(&model.logits(&tokens, &[20]).unwrap());
            let expected = logits(&dense(quant, dtype));
            let in_memory = wide(dtype).into_packed(quant).unwrap();
            assert_eq!(logits(&in_memory), expected, "{quant:?} {dtype:?}");
            // token by token, where products are others
            let mut cache = in_memory.new_cache(1).unwrap();
            let mut last = in_memory.prefill(&mut cache, 0, &tokens[..15]).unwrap();
            for &token in &tokens[15..] {
                last = in_memory.decode(&mut cache, &[0], &[token]).unwrap();
            }
            let most = if dtype == DType::F32 { 1e-4 } else { 0.1 };
            for (a, b) in wide_values(&last).iter().zip(&expected[19 * VOCAB..]) {
                assert!((a - b).abs() < most, "{quant:?} {dtype:?}: {a}, {b}");
            }
            for stream in [false, true] {
                let how = FrozenAs {
                    quant: Some(quant),
                    stream,
                };
                let options = LoadOptions {
                    device: Device::Cpu,
                    dtype,
                };
                let config = ModelConfig::from_folder(&place).unwrap();
                let loaded = CausalLm::load_frozen(&place, config, &options, how).unwrap();
                assert_eq!(logits(&loaded), expected, "{quant:?} {dtype:?}");
                assert_eq!(loaded.resident_bytes(), in_memory.resident_bytes());
            }
        }
    }
    let formats = frozen::formats(wide(DType::F32).config(), PackedAs::Q4K).unwrap();
    let counts: Vec<_> = formats.into_iter().collect();
    assert_eq!(counts, [(PackedAs::Q8_0, 2), (PackedAs::Q4K, 12)]);
    // rows of 16 and 24 values
    let error = tiny(3).into_packed(PackedAs::Q8_0).err().unwrap();
    assert!(
        error.to_string().contains("q_proj.weight`: rows of 16"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("nf4"));
}
