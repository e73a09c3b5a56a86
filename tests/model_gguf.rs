//! GGUF files as candle reads them back: names, shapes, types, settings and values, for every family.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value as Read};
use candle_core::{DType, Device, Tensor};
use distill::model::gguf::{self, Source, Value, Written};
use distill::model::gguf_tokenizer::Tokenizer;
use distill::model::gguf_types::Quant;
use distill::model::{CausalLm, LoadOptions, ModelConfig};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
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
    let (device, dtype) = (Device::Cpu, DType::F32);
    CausalLm::load(folder, &LoadOptions { device, dtype }).unwrap()
}

fn write(
    path: &Path,
    source: &Source<'_>,
    config: &ModelConfig,
    quant: Quant,
) -> distill::Result<Written> {
    gguf::write(path, source, config, quant, &[], &mut |_, _| Ok(()))
}

/// What candle makes of a file.
struct Back {
    content: Content,
    tensors: BTreeMap<String, Tensor>,
}

impl Back {
    fn read(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
        let tensors = names
            .into_iter()
            .map(|name| {
                let tensor = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
                (name, tensor.dequantize(&Device::Cpu).unwrap())
            })
            .collect();
        Self { content, tensors }
    }

    fn dtype(&self, name: &str) -> GgmlDType {
        self.content.tensor_infos[name].ggml_dtype
    }

    fn number(&self, key: &str) -> f64 {
        match &self.content.metadata[key] {
            Read::U32(n) => f64::from(*n),
            Read::F32(n) => f64::from(*n),
            other => panic!("{key}: {other:?}"),
        }
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// The name in a file, written out once more.
fn name_of(from: &str) -> String {
    let table = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let mut name = from.to_string();
    for (a, b) in table {
        name = name.replace(a, b);
    }
    name
}

/// Llama's q and k as llama.cpp has them: within each head of `d` rows, row 2i is row i of the checkpoint and row 2i + 1
/// row d/2 + i.
fn interleaved(t: &Tensor, d: usize) -> Tensor {
    let (rows, width) = t.dims2().unwrap();
    t.reshape((rows / d, 2, d / 2, width))
        .unwrap()
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape((rows, width))
        .unwrap()
}

#[test]
fn candle_reads_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let model = load(&folder(family));
        let config = model.config();
        for (quant, dtype) in [
            (Quant::F32, GgmlDType::F32),
            (Quant::F16, GgmlDType::F16),
            (Quant::Bf16, GgmlDType::BF16),
        ] {
            let path = dir.path().join("model.gguf");
            let source = folder(family);
            let written = write(&path, &Source::Folder(&source), config, quant).unwrap();
            let back = Back::read(&path);
            assert_eq!(
                written.num_bytes,
                std::fs::metadata(&path).unwrap().len(),
                "{family}"
            );
            assert_eq!(written.num_tensors, back.tensors.len());
            for parameter in model.parameters() {
                let name = name_of(&parameter.name);
                let what = format!("{family} {} {name}", quant.name());
                let is_rotated = name.contains("attn_q.w") || name.contains("attn_k.w");
                let expected = match family.starts_with("llama") && is_rotated {
                    true => interleaved(&parameter.value, config.head_dim),
                    false => parameter.value.clone(),
                };
                let found = &back.tensors[&name];
                assert_eq!(found.dims(), expected.dims(), "{what}");
                let dtype = match expected.dims().len() {
                    1 => GgmlDType::F32,
                    _ => dtype,
                };
                assert_eq!(back.dtype(&name), dtype, "{what}");
                let rounded = match dtype {
                    GgmlDType::F16 => expected.to_dtype(DType::F16).unwrap(),
                    GgmlDType::BF16 => expected.to_dtype(DType::BF16).unwrap(),
                    _ => expected,
                };
                let rounded = rounded.to_dtype(DType::F32).unwrap();
                assert_eq!(values(found), values(&rounded), "{what}");
            }
            let num_more = usize::from(config.rope_scaling.is_some());
            assert_eq!(back.tensors.len(), model.parameters().len() + num_more);
        }
    }
}

#[test]
fn a_model_in_memory_gives_the_same_file_as_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    for (family, quant) in [("llama", Quant::F32), ("qwen3", Quant::Q8_0)] {
        let model = load(&folder(family));
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write(&a, &Source::Folder(&folder(family)), model.config(), quant).unwrap();
        write(&b, &Source::Model(&model), model.config(), quant).unwrap();
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
    }
}

#[test]
fn settings_are_those_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for family in FAMILIES {
        let model = load(&folder(family));
        let config = model.config();
        let source = folder(family);
        write(&path, &Source::Folder(&source), config, Quant::Q8_0).unwrap();
        let back = Back::read(&path);
        let text = |key: &str| back.content.metadata[key].to_string().unwrap().clone();
        let name = family.split('-').next().unwrap();
        assert_eq!(text("general.architecture"), name);
        assert_eq!(back.number("general.file_type"), 7.0);
        assert_eq!(back.number("general.quantization_version"), 2.0);
        for (key, expected) in [
            ("block_count", config.num_hidden_layers),
            ("context_length", config.max_position_embeddings),
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
            ("rope.dimension_count", config.head_dim),
            ("vocab_size", config.vocab_size),
        ] {
            assert_eq!(
                back.number(&format!("{name}.{key}")),
                expected as f64,
                "{family} {key}"
            );
        }
        let theta = back.number(&format!("{name}.rope.freq_base"));
        assert_eq!(theta, config.rope_theta);
        let eps = back.number(&format!("{name}.attention.layer_norm_rms_epsilon"));
        assert_eq!(eps as f32, config.rms_norm_eps as f32);
    }
}

/// A model of two layers with rows of `width` values.
fn random(architecture: &str, width: usize, extra: serde_json::Value) -> CausalLm {
    let mut json = json!({
        "model_type": architecture, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width / 2, "vocab_size": 40,
        "tie_word_embeddings": false, "initializer_range": 0.3, "max_position_embeddings": 64,
    });
    let extra = extra.as_object().unwrap().clone();
    json.as_object_mut().unwrap().extend(extra);
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    CausalLm::random(config, 3, &Device::Cpu, DType::F32).unwrap()
}

#[test]
fn quantised_weights_are_near() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let model = random("qwen2", 256, json!({}));
    // largest error of a weight, in standard deviations of all
    for (quant, most) in [
        (Quant::Q8_0, 0.03),
        (Quant::Q6_K, 0.12),
        (Quant::Q5_K_M, 0.2),
        (Quant::Q5_K_S, 0.2),
        (Quant::Q5_1, 0.2),
        (Quant::Q5_0, 0.25),
        (Quant::Q4_K_M, 0.4),
        (Quant::Q4_K_S, 0.4),
        (Quant::Q4_1, 0.4),
        (Quant::Q4_0, 0.5),
        (Quant::Q3_K_L, 0.8),
        (Quant::Q3_K_M, 0.8),
        (Quant::Q3_K_S, 0.8),
        (Quant::Q2_K, 1.5),
    ] {
        write(&path, &Source::Model(&model), model.config(), quant).unwrap();
        let back = Back::read(&path);
        for parameter in model.parameters() {
            let found = values(&back.tensors[&name_of(&parameter.name)]);
            let expected = values(&parameter.value);
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            let bound = if parameter.value.dims().len() == 1 {
                0.0
            } else {
                0.3 * most
            };
            assert!(
                worst <= bound,
                "{} {}: {worst}",
                quant.name(),
                parameter.name
            );
        }
    }
}

#[test]
fn rows_that_no_block_divides_fall_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    // width, quantisation, type of q and of ffn_down (twice as wide), fallbacks
    type Case = (
        usize,
        Quant,
        GgmlDType,
        GgmlDType,
        &'static [((&'static str, &'static str), usize)],
    );
    let cases: [Case; 4] = [
        (
            64,
            Quant::Q4_K_S,
            GgmlDType::Q5_0,
            GgmlDType::Q5_0,
            &[(("Q4_K", "Q5_0"), 13), (("Q5_K", "Q5_1"), 2)],
        ),
        (
            128,
            Quant::Q6_K,
            GgmlDType::Q8_0,
            GgmlDType::Q6K,
            &[(("Q6_K", "Q8_0"), 13)],
        ),
        (
            48,
            Quant::Q8_0,
            GgmlDType::F16,
            GgmlDType::Q8_0,
            &[(("Q8_0", "F16"), 14)],
        ),
        (
            80,
            Quant::Q2_K,
            GgmlDType::F16,
            GgmlDType::Q4_0,
            &[
                (("Q2_K", "F16"), 9),
                (("Q3_K", "F16"), 4),
                (("Q3_K", "Q4_0"), 2),
                (("Q8_0", "F16"), 1),
            ],
        ),
    ];
    for (width, quant, q, down, fallbacks) in cases {
        let model = random("qwen2", width, json!({}));
        let written = write(&path, &Source::Model(&model), model.config(), quant).unwrap();
        let back = Back::read(&path);
        let what = format!("{width} {}", quant.name());
        assert_eq!(back.dtype("blk.1.attn_q.weight"), q, "{what}");
        assert_eq!(back.dtype("blk.1.ffn_down.weight"), down, "{what}");
        let found: Vec<_> = written.fallbacks.into_iter().collect();
        assert_eq!(found, fallbacks, "{what}");
    }
}

#[test]
fn slowed_frequencies_are_a_tensor_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    // RoPE base 16, heads of 8: wavelengths 2 pi times 1, 2, 4, 8 = 6.28, 12.57, 25.13, 50.27. Up to 64/4 = 16 nothing
    // changes, from 64/1 = 64 on it is all divided; between, 1 / ((1 - s)/8 + s) with s = (64/wavelength - 1)/3
    let scaling = json!({
        "head_dim": 8, "rope_theta": 16.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64},
    });
    let model = random("llama", 16, scaling.clone());
    write(&path, &Source::Model(&model), model.config(), Quant::F16).unwrap();
    let back = Back::read(&path);
    let found = values(&back.tensors["rope_freqs.weight"]);
    let expected = [1.0, 1.0, 1.735_94, 4.885_32];
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-4, "{found:?}");
    }
    assert_eq!(back.dtype("rope_freqs.weight"), GgmlDType::F32);

    let model = random("qwen2", 16, scaling);
    let error = write(&path, &Source::Model(&model), model.config(), Quant::F16).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`rope_type = \"llama3\"` of a qwen2 model has no place in GGUF"
    );
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, "old").unwrap();
    let mut model = random("qwen2", 32, json!({}));
    let refused = |model: &CausalLm, quant: Quant| {
        let error = write(&path, &Source::Model(model), model.config(), quant).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        (error.to_string(), error.hint().unwrap())
    };
    let set = |model: &mut CausalLm, value: f32| {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), 1 << 30).unwrap();
        let file = folder.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        let mut all = values(&tensors[name]);
        all[77] = value;
        let changed = Tensor::from_vec(all, tensors[name].shape(), &Device::Cpu).unwrap();
        tensors.insert(name.to_string(), changed);
        candle_core::safetensors::save(&tensors, &file).unwrap();
        folder
    };
    let folder = set(&mut model, 7e4);
    let large = load(folder.path());
    let (message, hint) = refused(&large, Quant::F16);
    assert_eq!(
        message,
        "tensor `blk.1.ffn_up.weight`: value 70000 is too large for F16"
    );
    assert_eq!(hint, "use `--quant` f32 or bf16");
    refused(&large, Quant::Q8_0);
    refused(&large, Quant::Q4_K_M);

    let folder = set(&mut model, f32::NAN);
    let source = Source::Folder(folder.path());
    let error = write(&path, &source, model.config(), Quant::F32).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with(
            "model.safetensors`: tensor `model.layers.1.mlp.up_proj.weight`: a value is NaN"
        ),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");

    // a stop half-way
    let mut num_calls = 0;
    let stopped = gguf::write(
        &path,
        &Source::Model(&model),
        model.config(),
        Quant::F32,
        &[],
        &mut |done, total| {
            assert!(done <= total);
            num_calls += 1;
            match num_calls {
                5 => Err(distill::Error::Interrupted {
                    message: "stopped".into(),
                }),
                _ => Ok(()),
            }
        },
    );
    assert_eq!(stopped.unwrap_err().to_string(), "stopped");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

const TOKENIZER: &str = r#"{"added_tokens": [
    {"id": 4, "content": "<|end|>", "special": true},
    {"id": 3, "content": "<think>", "special": false}],
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<think>": 3},
            "merges": [["a", "b"], "ab a"]}}"#;

fn tokenizer(json: &str) -> Tokenizer<'_> {
    Tokenizer {
        json: json.as_bytes(),
        pre: "qwen2",
        vocab_size: 7,
        bos: Some(4),
        eos: Some(4),
        eot: None,
        pad: Some(5),
        add_bos: true,
        add_eos: false,
        chat_template: Some("{{ messages }}"),
    }
}

#[test]
fn a_tokenizer_becomes_settings() {
    let texts = |list: &[&str]| Value::Texts(list.iter().map(|t| t.to_string()).collect());
    let text = |t: &str| Value::Text(t.to_string());
    let found = tokenizer(TOKENIZER).settings().unwrap();
    let expected = [
        ("ggml.model", text("gpt2")),
        ("ggml.pre", text("qwen2")),
        (
            "ggml.tokens",
            texts(&["a", "b", "ab", "<think>", "<|end|>", "[PAD5]", "[PAD6]"]),
        ),
        ("ggml.token_type", Value::Ints(vec![1, 1, 1, 4, 3, 5, 5])),
        ("ggml.merges", texts(&["a b", "ab a"])),
        ("ggml.bos_token_id", Value::U32(4)),
        ("ggml.eos_token_id", Value::U32(4)),
        ("ggml.padding_token_id", Value::U32(5)),
        ("ggml.add_bos_token", Value::Bool(true)),
        ("ggml.add_eos_token", Value::Bool(false)),
        ("chat_template", text("{{ messages }}")),
    ]
    .map(|(key, value)| (format!("tokenizer.{key}"), value));
    assert_eq!(found, expected);
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let few = Tokenizer {
        vocab_size: 4,
        ..tokenizer(TOKENIZER)
    };
    let error = few.settings().unwrap_err();
    assert_eq!(
        error.to_string(),
        "token `<|end|>` has the id 4, and the model only 4 embeddings"
    );
    let words = r#"{"model": {"type": "WordLevel", "vocab": {"a": 0}}}"#;
    let error = tokenizer(words).settings().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a tokenizer of type `WordLevel` cannot be written as GGUF"
    );
    for broken in [
        "",
        "[]",
        r#"{"model": {"type": "BPE", "vocab": {"a": -1}}}"#,
    ] {
        assert!(tokenizer(broken).settings().is_err(), "{broken}");
    }
}
