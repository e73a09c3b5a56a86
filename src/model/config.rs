//! `config.json` in both dialects: the older one (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5
//! (`rope_parameters`, `dtype`). Written so that both read it; keys we do not know are kept.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Families of models that train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Qwen2,
    Qwen3,
    Llama,
}

impl Architecture {
    /// The family called `name` in `model_type`.
    ///
    /// # Errors
    /// A family that does not train.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "llama" => Ok(Self::Llama),
            _ => Err(
                Error::input(format!("unknown architecture `{name}`")).with_hint(
                    "architectures that train: qwen2 (Qwen2, Qwen2.5), qwen3, llama (Llama 3.x)",
                ),
            ),
        }
    }

    /// `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }

    /// The class of transformers, for `architectures`.
    pub fn class_name(self, head: Head) -> &'static str {
        match (self, head) {
            (Self::Qwen2, Head::Vocabulary) => "Qwen2ForCausalLM",
            (Self::Qwen3, Head::Vocabulary) => "Qwen3ForCausalLM",
            (Self::Llama, Head::Vocabulary) => "LlamaForCausalLM",
            (Self::Qwen2, Head::Score) => "Qwen2ForSequenceClassification",
            (Self::Qwen3, Head::Score) => "Qwen3ForSequenceClassification",
            (Self::Llama, Head::Score) => "LlamaForSequenceClassification",
        }
    }
}

/// What stands behind the last norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// A logit for each token of the vocabulary.
    #[default]
    Vocabulary,
    /// One number: a reward model.
    Score,
}

/// `rope_type = "llama3"`: low frequencies are slowed down, those between are blended (Llama 3.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

/// Shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<Llama3Scaling>,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// q, k and v have a bias.
    pub attention_bias: bool,
    /// q and k are normalised per head.
    pub qk_norm: bool,
    pub initializer_range: f64,
    pub head: Head,
    /// The file as it was.
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// No such file, not JSON, a family or feature that does not train.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::input(format!("`{}` is not valid JSON: {e}", path.display())))?;
        Self::from_json(&json, &path.display().to_string())
    }

    /// Reads the content of a `config.json`; `place` names it in errors.
    ///
    /// # Errors
    /// A missing or wrong key, a family or feature that does not train.
    pub fn from_json(json: &Value, place: &str) -> Result<Self> {
        let raw = json
            .as_object()
            .ok_or_else(|| Error::input(format!("`{place}` is not a JSON object")))?
            .clone();
        Fields { raw: &raw, place }
            .read()
            .map(|config| Self { raw, ..config })
    }

    /// The content of `config.json` for weights of `dtype` (`"float32"`, `"bfloat16"`, `"float16"`), in both dialects.
    pub fn to_json(&self, dtype: &str) -> Value {
        let mut out = self.raw.clone();
        let mut rope = json!({"rope_theta": self.rope_theta, "rope_type": "default"});
        if let Some(s) = &self.rope_scaling {
            rope["rope_type"] = json!("llama3");
            rope["factor"] = json!(s.factor);
            rope["low_freq_factor"] = json!(s.low_freq_factor);
            rope["high_freq_factor"] = json!(s.high_freq_factor);
            rope["original_max_position_embeddings"] = json!(s.original_max_position_embeddings);
        }
        let scaling = match &self.rope_scaling {
            None => Value::Null,
            Some(_) => {
                let mut scaling = rope.clone();
                if let Some(map) = scaling.as_object_mut() {
                    map.remove("rope_theta");
                }
                scaling
            }
        };
        let known = json!({
            "architectures": [self.architecture.class_name(self.head)],
            "model_type": self.architecture.model_type(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": rope,
            "torch_dtype": dtype,
            "dtype": dtype,
            "use_cache": true,
        });
        if let Value::Object(known) = known {
            out.extend(known);
        }
        if self.architecture != Architecture::Qwen2 {
            out.insert("attention_bias".into(), json!(self.attention_bias));
        }
        if self.head == Head::Score {
            // transformers counts the labels
            out.insert("id2label".into(), json!({"0": "LABEL_0"}));
            out.insert("label2id".into(), json!({"LABEL_0": 0}));
        }
        Value::Object(out)
    }

    /// Names and shapes of all weights, embeddings first; a tied head is not listed.
    pub fn weight_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (c, f, d) = (self.hidden_size, self.intermediate_size, self.head_dim);
        let (q, kv) = (self.num_attention_heads * d, self.num_key_value_heads * d);
        let mut all = vec![(
            "model.embed_tokens.weight".to_string(),
            vec![self.vocab_size, c],
        )];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: Vec<usize>| {
                all.push((format!("model.layers.{layer}.{name}"), shape))
            };
            add("input_layernorm.weight", vec![c]);
            add("self_attn.q_proj.weight", vec![q, c]);
            add("self_attn.k_proj.weight", vec![kv, c]);
            add("self_attn.v_proj.weight", vec![kv, c]);
            if self.attention_bias {
                add("self_attn.q_proj.bias", vec![q]);
                add("self_attn.k_proj.bias", vec![kv]);
                add("self_attn.v_proj.bias", vec![kv]);
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", vec![d]);
                add("self_attn.k_norm.weight", vec![d]);
            }
            add("self_attn.o_proj.weight", vec![c, q]);
            add("post_attention_layernorm.weight", vec![c]);
            add("mlp.gate_proj.weight", vec![f, c]);
            add("mlp.up_proj.weight", vec![f, c]);
            add("mlp.down_proj.weight", vec![c, f]);
        }
        all.push(("model.norm.weight".into(), vec![c]));
        match self.head {
            Head::Score => all.push(("score.weight".into(), vec![1, c])),
            Head::Vocabulary if self.tie_word_embeddings => {}
            Head::Vocabulary => all.push(("lm_head.weight".into(), vec![self.vocab_size, c])),
        }
        all
    }

    /// Number of weights.
    pub fn num_parameters(&self) -> usize {
        self.weight_shapes()
            .iter()
            .map(|(_, s)| s.iter().product::<usize>())
            .sum()
    }
}

/// No size of a model is larger; a damaged file must not ask for all memory.
const MAX_SIZE: u64 = 1 << 24;

/// A `config.json` being read.
struct Fields<'a> {
    raw: &'a Map<String, Value>,
    place: &'a str,
}

impl Fields<'_> {
    fn read(&self) -> Result<ModelConfig> {
        let name = self
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| self.bad("model_type", "a string"))?;
        let architecture =
            Architecture::parse(name).map_err(|e| e.at(format!("`{}`", self.place)))?;
        self.refuse_what_does_not_train()?;
        self.refuse_partial_attention()?;
        let hidden_size = self.size("hidden_size")?;
        let num_attention_heads = self.size("num_attention_heads")?;
        let num_key_value_heads = self.size_or("num_key_value_heads", num_attention_heads)?;
        // transformers' default of Qwen3 is a number, that of the others follows from the width
        let head_dim = match architecture {
            Architecture::Qwen3 => self.size_or("head_dim", 128)?,
            _ => self.size_or("head_dim", hidden_size / num_attention_heads)?,
        };
        if num_attention_heads % num_key_value_heads != 0 || head_dim % 2 != 0 {
            return Err(self.input(&format!(
                "{num_attention_heads} heads of {head_dim} do not share {num_key_value_heads} key/value heads: \
                 heads must divide evenly and `head_dim` be even"
            )));
        }
        let bias = self.flag("attention_bias", architecture == Architecture::Qwen2)?;
        if architecture != Architecture::Qwen2 && bias {
            return Err(self.input(&format!(
                "`attention_bias = true` is not supported for {name}"
            )));
        }
        // as transformers 5 chooses where both dialects are there: the older key's scaling, the inner theta
        let is_given = |rope: &&Value| rope.as_object().is_none_or(|rope| !rope.is_empty());
        let rope = self
            .get("rope_scaling")
            .filter(is_given)
            .or_else(|| self.get("rope_parameters"));
        let inner = rope.and_then(|rope| rope.get("rope_theta"));
        let rope_theta = match inner
            .filter(|v| !v.is_null())
            .or_else(|| self.get("rope_theta"))
        {
            Some(v) => v.as_f64().filter(|theta| *theta > 0.0).ok_or_else(|| {
                self.input(&format!(
                    "`rope_theta` must be a positive number, found {v}"
                ))
            })?,
            None => 10_000.0,
        };
        let rms_norm_eps = self.number_or("rms_norm_eps", 1e-6)?;
        if rms_norm_eps < 0.0 {
            return Err(self.bad("rms_norm_eps", "zero or positive"));
        }
        Ok(ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.size("vocab_size")?,
            rms_norm_eps,
            rope_theta,
            rope_scaling: self.scaling(rope)?,
            max_position_embeddings: self.size_or("max_position_embeddings", 32_768)?,
            tie_word_embeddings: self.flag("tie_word_embeddings", false)?,
            attention_bias: bias,
            qk_norm: architecture == Architecture::Qwen3,
            initializer_range: self.number_or("initializer_range", 0.02)?,
            head: self.head()?,
            raw: Map::new(),
        })
    }

    fn head(&self) -> Result<Head> {
        let classes = self.get("architectures").and_then(Value::as_array);
        let is_classifier = classes
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|class| class.ends_with("ForSequenceClassification"));
        if !is_classifier {
            return Ok(Head::Vocabulary);
        }
        let labels = self.get("id2label").and_then(Value::as_object);
        let num_labels =
            labels.map_or_else(|| self.size_or("num_labels", 2), |labels| Ok(labels.len()))?;
        match num_labels {
            1 => Ok(Head::Score),
            n => Err(self.input(&format!(
                "a classifier of {n} labels is no reward model, which has 1"
            ))),
        }
    }

    fn refuse_what_does_not_train(&self) -> Result<()> {
        if self.get("quantization_config").is_some() {
            return Err(self
                .input("a quantised checkpoint cannot be trained")
                .with_hint("use the unquantised one"));
        }
        if self.flag("use_sliding_window", false)? {
            return Err(self.input("`use_sliding_window = true` is not supported"));
        }
        if self.flag("mlp_bias", false)? {
            return Err(self.input("`mlp_bias = true` is not supported"));
        }
        match self.get("hidden_act").and_then(Value::as_str) {
            None | Some("silu") => Ok(()),
            Some(other) => Err(self.input(&format!(
                "`hidden_act = \"{other}\"` is not supported, only `silu`"
            ))),
        }
    }

    /// Attention that sees a window, and RoPE that turns a part of a head.
    fn refuse_partial_attention(&self) -> Result<()> {
        if let Some(types) = self.get("layer_types") {
            let types = types
                .as_array()
                .ok_or_else(|| self.bad("layer_types", "a list of strings"))?;
            if let Some(other) = types.iter().find(|t| **t != json!("full_attention")) {
                return Err(self.input(&format!(
                    "`layer_types` holds {other}, only `full_attention` is supported"
                )));
            }
        }
        for (place, value) in [
            ("partial_rotary_factor", self.get("partial_rotary_factor")),
            (
                "rope_scaling.partial_rotary_factor",
                self.get("rope_scaling")
                    .and_then(|rope| rope.get("partial_rotary_factor")),
            ),
            (
                "rope_parameters.partial_rotary_factor",
                self.get("rope_parameters")
                    .and_then(|rope| rope.get("partial_rotary_factor")),
            ),
        ] {
            if let Some(value) = value.filter(|v| !v.is_null() && v.as_f64() != Some(1.0)) {
                return Err(self.input(&format!(
                    "`{place} = {value}` is not supported, only 1: all of a head is rotated"
                )));
            }
        }
        Ok(())
    }

    fn scaling(&self, rope: Option<&Value>) -> Result<Option<Llama3Scaling>> {
        let Some(rope) = rope else { return Ok(None) };
        let kind = rope
            .get("rope_type")
            .or_else(|| rope.get("type"))
            .and_then(Value::as_str);
        match kind {
            None | Some("default") => return Ok(None),
            Some("llama3") => {}
            Some(other) => {
                return Err(self
                    .input(&format!("`rope_type = \"{other}\"` is not supported"))
                    .with_hint("supported: default, llama3"));
            }
        }
        let number = |key: &str| {
            let value = rope.get(key);
            let number = value.and_then(Value::as_f64).filter(|n| *n > 0.0);
            number.ok_or_else(|| {
                let found = value.map_or("nothing".to_string(), Value::to_string);
                self.input(&format!("`{key}` must be a positive number, found {found}"))
            })
        };
        let (low_freq_factor, high_freq_factor) =
            (number("low_freq_factor")?, number("high_freq_factor")?);
        // what lies between the two is blended, and divided by their distance
        if low_freq_factor == high_freq_factor {
            return Err(self.input(&format!(
                "`low_freq_factor` and `high_freq_factor` must differ, both are {low_freq_factor}"
            )));
        }
        Ok(Some(Llama3Scaling {
            factor: number("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
        }))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.raw.get(key).filter(|v| !v.is_null())
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(key, "true or false")),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.get(key)
            .and_then(Value::as_u64)
            .filter(|n| (1..=MAX_SIZE).contains(n))
            .map(|n| n as usize)
            .ok_or_else(|| self.bad(key, "a positive integer of a plausible size"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_none() {
            Ok(default)
        } else {
            self.size(key)
        }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.bad(key, "a number")),
        }
    }

    fn bad(&self, key: &str, expected: &str) -> Error {
        let found = self
            .raw
            .get(key)
            .map_or("nothing".to_string(), Value::to_string);
        self.input(&format!("`{key}` must be {expected}, found {found}"))
    }

    fn input(&self, message: &str) -> Error {
        Error::input(format!("`{}`: {message}", self.place))
    }
}
