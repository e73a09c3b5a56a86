//! safetensors in and out, in the layout and with the names of Hugging Face. Files are read through mmap.

use super::ModelConfig;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Reads the weights of `config` from `folder`, in the order of [`ModelConfig::weight_shapes`].
///
/// # Errors
/// A missing, unexpected, wrong-shaped or non-finite tensor, a damaged file: each names file and tensor.
pub fn load(
    folder: &Path,
    config: &ModelConfig,
    device: &Device,
    dtype: DType,
) -> Result<Vec<Tensor>> {
    let (files, listed) = files(folder)?;
    let maps: Vec<(PathBuf, Mmap)> = files
        .into_iter()
        .map(|path| map(&path).map(|m| (path, m)))
        .collect::<Result<_>>()?;
    let mut places: HashMap<String, (usize, TensorView<'_>)> = HashMap::new();
    for (i, (path, mmap)) in maps.iter().enumerate() {
        let file = SafeTensors::deserialize(mmap).map_err(|e| {
            Error::input(format!(
                "`{}` is not a whole safetensors file: {e}",
                path.display()
            ))
            .with_hint("fetch or copy the file again")
        })?;
        for (name, view) in file.tensors() {
            places.insert(name, (i, view));
        }
    }
    let mut weights = Vec::new();
    for (name, shape) in config.weight_shapes() {
        let Some((i, view)) = places.remove(&name) else {
            let place = listed
                .get(&name)
                .cloned()
                .unwrap_or_else(|| folder.to_path_buf());
            return Err(Error::input(format!(
                "`{}` has no tensor `{name}`, expected with shape {shape:?}",
                place.display()
            ))
            .with_hint(
                "the checkpoint is incomplete, or its `config.json` describes another model",
            ));
        };
        let path = &maps[i].0;
        if view.shape() != shape {
            return Err(Error::input(format!(
                "`{}`: tensor `{name}` has shape {:?}, expected {shape:?}",
                path.display(),
                view.shape()
            ))
            .with_hint("the weights do not fit `config.json`"));
        }
        weights.push(
            convert(&view, &shape, device, dtype)
                .map_err(|e| e.at(format!("`{}`: tensor `{name}`", path.display())))?,
        );
    }
    // buffers that older files carry, and a head that is tied anyway
    places.retain(|name, _| {
        let tied = config.tie_word_embeddings && name == "lm_head.weight";
        !(name.ends_with("rotary_emb.inv_freq") || tied)
    });
    if let Some(name) = places.keys().min() {
        return Err(Error::input(format!(
            "`{}` holds {} tensors that the model does not have, such as `{name}`",
            maps[places[name].0].0.display(),
            places.len()
        ))
        .with_hint("the weights do not fit `config.json`"));
    }
    Ok(weights)
}

/// The safetensors files of a folder, and where the index says each tensor is.
fn files(folder: &Path) -> Result<(Vec<PathBuf>, HashMap<String, PathBuf>)> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let single = folder.join(SINGLE);
        if !single.exists() {
            return Err(Error::input(format!(
                "`{}` has neither `{SINGLE}` nor `{INDEX}`",
                folder.display()
            ))
            .with_hint("only safetensors checkpoints are read"));
        }
        return Ok((vec![single], HashMap::new()));
    }
    let bytes = fs::read(&index).map_err(|e| Error::io("reading", &index, e))?;
    let json: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(format!("`{}` is not valid JSON: {e}", index.display())))?;
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::input(format!("`{}` has no `weight_map`", index.display())))?;
    let listed: HashMap<String, PathBuf> = map
        .iter()
        .filter_map(|(name, file)| Some((name.clone(), folder.join(file.as_str()?))))
        .collect();
    let mut files: Vec<PathBuf> = listed.values().cloned().collect();
    files.sort();
    files.dedup();
    Ok((files, listed))
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    // SAFETY: a file that another process shortens while it is read ends this one; checkpoints are not written in place
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io("mapping", path, e))
}

fn convert(
    view: &TensorView<'_>,
    shape: &[usize],
    device: &Device,
    dtype: DType,
) -> Result<Tensor> {
    let stored = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F64 => DType::F64,
        other => {
            return Err(Error::input(format!(
                "dtype {other:?} is not supported, only F32, BF16, F16 and F64"
            )));
        }
    };
    let tensor = Tensor::from_raw_buffer(view.data(), stored, shape, &Device::Cpu)?;
    let num_bad = non_finite(&tensor)?;
    if num_bad > 0 {
        return Err(Error::input(format!(
            "{num_bad} of {} values are not finite",
            tensor.elem_count()
        ))
        .with_hint("the checkpoint is damaged or training it had diverged"));
    }
    Ok(tensor.to_dtype(dtype)?.to_device(device)?)
}

fn non_finite(tensor: &Tensor) -> Result<usize> {
    // x - x is 0 for finite values, NaN for the others
    let wide = tensor.to_dtype(DType::F32)?.flatten_all()?;
    let bad = wide.sub(&wide)?.ne(0f32)?;
    Ok(bad.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? as usize)
}

/// Writes weights and `config.json` to `folder`, one file or several of at most `max_shard_bytes`.
///
/// # Errors
/// The folder cannot be written.
pub fn save(
    folder: &Path,
    config: &ModelConfig,
    weights: &[(String, Tensor)],
    max_shard_bytes: u64,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    let size = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
    let mut sorted: Vec<&(String, Tensor)> = weights.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut shards: Vec<Vec<&(String, Tensor)>> = vec![Vec::new()];
    let mut filled = 0;
    for entry in sorted {
        let bytes = size(&entry.1);
        if filled > 0 && filled + bytes > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(entry);
        }
    }
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        write_shard(&folder.join(&file), shard)?;
        for (name, _) in shard {
            weight_map.insert(name.clone(), file.clone());
        }
    }
    if count > 1 {
        let total_size: u64 = weights.iter().map(|(_, t)| size(t)).sum();
        let index = json!({
            "metadata": {"total_size": total_size, "total_parameters": config.num_parameters()},
            "weight_map": weight_map,
        });
        write_json(&folder.join(INDEX), &index)?;
    }
    let dtype = match weights.first().map(|(_, t)| t.dtype()) {
        Some(DType::BF16) => "bfloat16",
        Some(DType::F16) => "float16",
        _ => "float32",
    };
    write_json(&folder.join("config.json"), &config.to_json(dtype))
}

fn write_shard(path: &Path, shard: &[&(String, Tensor)]) -> Result<()> {
    let beside = path.with_extension("partial");
    let tensors: Vec<(&str, Tensor)> = shard
        .iter()
        .map(|(name, t)| Ok((name.as_str(), t.to_device(&Device::Cpu)?)))
        .collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &beside).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => Error::io("writing", &beside, e),
        e => Error::input(format!("writing `{}`: {e}", beside.display())),
    })?;
    publish(&beside, path)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let beside = path.with_extension("partial");
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::input(format!("`{}`: {e}", path.display())))?;
    fs::write(&beside, text + "\n").map_err(|e| Error::io("writing", &beside, e))?;
    publish(&beside, path)
}

fn publish(beside: &Path, path: &Path) -> Result<()> {
    File::open(beside)
        .and_then(|f| f.sync_all())
        .and_then(|()| fs::rename(beside, path))
        .map_err(|e| Error::io("writing", path, e))
}
