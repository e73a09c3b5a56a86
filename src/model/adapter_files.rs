//! Adapters in and out, in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`; with the `config.json` of the
//! model as it was trained.

use super::weights;
use super::weights_save::{write_config, write_json, write_shard};
use super::{AdapterConfig, CausalLm, Parameter};
use crate::ops::PackedAs;
use crate::ops::tensor_file::Entry;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What of `adapter_config.json` is understood.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    base_model_name_or_path: Option<String>,
    revision: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The base model that an adapter in PEFT's layout names, with its revision; none where `folder` holds no adapter.
///
/// # Errors
/// A damaged `adapter_config.json`, or one without a base.
pub fn base_of(folder: &Path) -> Result<Option<(String, Option<String>)>> {
    if !folder.join(CONFIG).is_file() {
        return Ok(None);
    }
    let config = read_config(folder)?;
    match config.base_model_name_or_path {
        Some(base) if !base.is_empty() => Ok(Some((base, config.revision))),
        _ => Err(Error::input(format!(
            "`{}` names no base model",
            folder.join(CONFIG).display()
        ))
        .with_hint("set `base_model_name_or_path` to the model that the adapter was trained on")),
    }
}

fn read_config(folder: &Path) -> Result<PeftConfig> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, e))?;
    let config: PeftConfig = serde_json::from_str(&text).map_err(|e| {
        Error::input(format!("`{}`: {e}", path.display()))
            .with_hint("it is no adapter of PEFT's kind LORA, or damaged: save it again")
    })?;
    let refuse = |what: String| {
        Err(
            Error::input(format!("`{}`: {what} is not supported", path.display()))
                .with_hint("merge the adapter with PEFT (`merge_and_unload`) and give the result"),
        )
    };
    if config.peft_type != "LORA" {
        return refuse(format!("`peft_type = {}`", config.peft_type));
    }
    // those change the base when they are loaded
    let changes_base = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    let init = config.others.get("init_lora_weights");
    if let Some(init) = init.and_then(Value::as_str)
        && changes_base.iter().any(|name| init.starts_with(name))
    {
        return refuse(format!("`init_lora_weights = {init:?}`"));
    }
    for (key, value) in &config.others {
        let is_neutral = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(s) => s.is_empty() || s == "none",
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        // what changes the result of an adapter that is there; how it was made or trained does not
        let matters = [
            "bias",
            "fan_in_fan_out",
            "modules_to_save",
            "layer_replication",
            "rank_pattern",
            "alpha_pattern",
            "lora_bias",
            "megatron_config",
            "alora_invocation_tokens",
            "use_qalora",
            "trainable_token_indices",
            "target_parameters",
            "arrow_config",
        ];
        if matters.contains(&key.as_str()) && !is_neutral {
            return refuse(format!("`{key} = {value}`"));
        }
    }
    Ok(config)
}

impl CausalLm {
    /// Writes the adapters.
    ///
    /// # Errors
    /// A model without adapters; the folder cannot be written.
    pub fn save_adapters(&self, folder: &Path) -> Result<()> {
        let Some(adapters) = &self.adapters else {
            return Err(Error::input("the model has no adapters to save"));
        };
        let (config, (base, revision)) = (&adapters.config, &adapters.base);
        fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
        let trained = self.trained().1;
        fn entry(p: &Parameter) -> Entry<'_> {
            Entry {
                name: &p.name,
                dtype: p.value.dtype(),
                shape: p.value.dims(),
            }
        }
        let entries: Vec<Entry> = trained.iter().map(entry).collect();
        // `adapter_config.json` has no place for it: PEFT warns of keys that it does not know
        let quant = self.frozen.quant().map(PackedAs::name);
        let facts = quant.map(|name| ("base_quantization", name));
        let get = |i: usize| Ok(trained[i].value.clone());
        write_shard(&folder.join(WEIGHTS), &entries, facts.as_slice(), &get)?;
        let json = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": true,
            "r": config.rank,
            // PEFT's type is an integer, though it reads others
            "lora_alpha": match config.alpha.fract() == 0.0 {
                true => json!(config.alpha as i64),
                false => json!(config.alpha),
            },
            "lora_dropout": 0.0,
            "target_modules": config.targets,
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": null,
            "layers_to_transform": null,
            "layers_pattern": null,
            "rank_pattern": {},
            "alpha_pattern": {},
        });
        // what it was trained with, which may be another RoPE than the base says
        write_config(folder, &self.config, self.dtype)?;
        write_json(&folder.join(CONFIG), &json)
    }

    /// Puts the adapters in `folder`, in PEFT's layout, beside these weights, which are frozen from here on.
    ///
    /// # Errors
    /// A kind of adapter that is not supported; a missing, unexpected or wrong-shaped tensor.
    pub fn with_saved_adapters(self, folder: &Path) -> Result<Self> {
        let config = read_config(folder)?;
        let base = config.base_model_name_or_path.clone().unwrap_or_default();
        let revision = config.revision.clone();
        let path = folder.join(WEIGHTS);
        if !path.is_file() {
            return Err(Error::input(format!("there is no `{}`", path.display()))
                .with_hint("only adapters saved as safetensors are read"));
        }
        let mut saved: HashMap<String, candle_core::Tensor> =
            weights::read_all(&path, &candle_core::Device::Cpu)?;
        let targets: BTreeSet<String> = saved
            .keys()
            .filter_map(|name| name.strip_suffix(".lora_A.weight")?.rsplit('.').next())
            .map(str::to_string)
            .collect();
        let config = AdapterConfig {
            rank: config.r,
            alpha: config.lora_alpha,
            rslora: config.use_rslora,
            dora: config.use_dora,
            targets: targets.into_iter().collect(),
        };
        let model = self
            .with_adapters_from(config, |name, shape| {
                let missing = || {
                    Error::input(format!(
                        "`{}` has no tensor `{name}`, expected with shape {shape:?}",
                        path.display()
                    ))
                    .with_hint("adapters on some of the layers only are not supported; merge with PEFT and give the result")
                };
                let tensor = saved.remove(name).ok_or_else(missing)?;
                if tensor.dims() != shape {
                    return Err(Error::input(format!(
                        "`{}`: tensor `{name}` has shape {:?}, expected {shape:?}",
                        path.display(),
                        tensor.dims()
                    ))
                    .with_hint("the adapter belongs to another base model"));
                }
                Ok(Some(tensor))
            })
            .map_err(|e| e.at(format!("adapter `{}`", folder.display())))?;
        match saved.keys().min() {
            None => Ok(model.beside(&base, revision.as_deref())),
            Some(name) => Err(Error::input(format!(
                "`{}` holds {} tensors that are no adapter of this model, such as `{name}`",
                path.display(),
                saved.len()
            ))
            .with_hint("the adapter belongs to another base model")),
        }
    }
}
