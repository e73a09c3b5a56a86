//! Weights to safetensors files in the layout of Hugging Face: beside their place, synced, then renamed.

use super::ModelConfig;
use super::weights::{INDEX, SINGLE};
use crate::ops::tensor_file::{self, Entry};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;

/// Writes weights and `config.json` to `folder`, one file or several of at most `max_shard_bytes`; `get` gives the weight of
/// each of `names`, one after the other. Weights of an earlier save that are not written over are removed: readers differ
/// in which of two checkpoints they take.
///
/// # Errors
/// The folder cannot be written; as `get`.
pub(super) fn save(
    folder: &Path,
    config: &ModelConfig,
    dtype: DType,
    names: &[String],
    get: &dyn Fn(usize) -> Result<Tensor>,
    max_shard_bytes: u64,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    let shapes: HashMap<String, Vec<usize>> = config.weight_shapes().into_iter().collect();
    let size = |name: &String| -> u64 {
        let num: usize = shapes.get(name).map_or(0, |shape| shape.iter().product());
        (num * dtype.size_in_bytes()) as u64
    };
    let mut sorted: Vec<usize> = (0..names.len()).collect();
    sorted.sort_by_key(|&i| &names[i]);
    let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
    let mut filled = 0;
    for i in sorted {
        let bytes = size(&names[i]);
        if filled > 0 && filled + bytes > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(i);
        }
    }
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut written = HashSet::new();
    for (n, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", n + 1),
        };
        let entries: Vec<Entry> = shard
            .iter()
            .map(|&i| Entry {
                name: &names[i],
                dtype,
                shape: shapes.get(&names[i]).map_or(&[], Vec::as_slice),
            })
            .collect();
        write_shard(&folder.join(&file), &entries, &[], &|i| get(shard[i]))?;
        for &i in shard {
            weight_map.insert(names[i].clone(), file.clone());
        }
        written.insert(file);
    }
    if count > 1 {
        let total_size: u64 = names.iter().map(size).sum();
        let index = json!({
            "metadata": {"total_size": total_size, "total_parameters": config.num_parameters()},
            "weight_map": weight_map,
        });
        write_json(&folder.join(INDEX), &index)?;
        written.insert(INDEX.to_string());
    }
    remove_stale(folder, &written)?;
    write_config(folder, config, dtype)
}

/// Writes `config.json`.
pub(super) fn write_config(folder: &Path, config: &ModelConfig, dtype: DType) -> Result<()> {
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    write_json(&folder.join("config.json"), &config.to_json(name))
}

/// Removes files of weights that [`save`] would write and that are not `written`.
fn remove_stale(folder: &Path, written: &HashSet<String>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("reading", folder, e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io("reading", folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if name.is_some_and(|n| is_of_weights(n) && !written.contains(n)) {
            fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
        }
    }
    Ok(())
}

/// A name that [`save`] gives: the single file, a shard, the index.
fn is_of_weights(name: &str) -> bool {
    let shard = || {
        let (i, count) = name
            .strip_prefix("model-")?
            .strip_suffix(".safetensors")?
            .split_once("-of-")?;
        let number = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        Some(number(i) && number(count))
    };
    name == SINGLE || name == INDEX || shard() == Some(true)
}

/// Writes one file of tensors beside its place, synced, then renames it.
pub(super) fn write_shard(
    path: &Path,
    entries: &[Entry],
    facts: &[(&str, &str)],
    get: &dyn Fn(usize) -> Result<Tensor>,
) -> Result<()> {
    let beside = path.with_extension("partial");
    let facts = [&[("format", "pt")], facts].concat();
    if let Err(e) = tensor_file::write_each(&beside, entries, &facts, get) {
        // that it stays is told by the error
        let _ = fs::remove_file(&beside);
        return Err(e);
    }
    publish(&beside, path)
}

/// The same for JSON.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
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
