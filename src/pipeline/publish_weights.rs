//! Whether the weights of a model folder are all there and whole: what others could not load is not published.

use super::folder::read_json;
use crate::hub::publish_files::{Source, Upload};
use crate::hub::{WEIGHTS_INDEX, missing_shard};
use crate::progress::Reporter;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longer headers of safetensors are none; so much is what its readers take.
const MAX_HEADER: u64 = 100_000_000;

/// Whether the folder holds a model that scores.
pub fn is_reward(folder: &Path) -> bool {
    let config: Value = read_json(&folder.join("config.json")).unwrap_or_default();
    let class = config["architectures"][0].as_str().unwrap_or_default();
    class.ends_with("ForSequenceClassification")
}

/// That a model, or an adapter, comes with all of its weights.
///
/// # Errors
/// Names the file that is missing, or shorter than it says itself.
pub fn check_weights(folder: &Path, uploads: &[Upload], reporter: &dyn Reporter) -> Result<()> {
    let names: BTreeSet<&str> = uploads.iter().map(|upload| upload.path.as_str()).collect();
    let has = |name: &str| names.contains(name);
    let missing = |what: String, hint: &str| {
        Err(Error::input(format!("`{}` {what}", folder.display())).with_hint(hint))
    };
    let of = |ending: &str| names.iter().any(|name| name.ends_with(ending));
    if has("adapter_config.json") && !has("adapter_model.safetensors") {
        let what = match folder.join("adapter_model.bin").is_file() {
            true => "has its adapter in `adapter_model.bin` and no `adapter_model.safetensors`",
            false => "has `adapter_config.json` and no `adapter_model.safetensors`",
        };
        return missing(
            what.into(),
            "save the adapter with `save_pretrained(..., safe_serialization=True)`",
        );
    }
    let files: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    if has(WEIGHTS_INDEX) {
        let index: Value = read_json(&folder.join(WEIGHTS_INDEX))?;
        let map = index["weight_map"].as_object();
        let mut named = map.into_iter().flatten().filter_map(|(_, v)| v.as_str());
        if let Some(absent) = named.find(|name| !has(name)) {
            return missing(
                format!("lacks `{absent}`, which `{WEIGHTS_INDEX}` names"),
                "copy the missing file there, or save the model again",
            );
        }
        check_index(folder, &index)?;
    }
    if let Some(absent) = missing_shard(&files) {
        return missing(
            format!("lacks `{absent}`"),
            "copy the missing file there, or save the model again",
        );
    } else if has(WEIGHTS_INDEX) {
        // everything that it names is there
    } else if names
        .iter()
        .any(|name| name.starts_with("model-") && name.contains("-of-"))
    {
        return missing(
            format!("has shards and no `{WEIGHTS_INDEX}`, which says what is in them"),
            "copy the index there, or save the model again",
        );
    } else if has("config.json")
        && !has("model.safetensors")
        && !has("adapter_config.json")
        && !of(".gguf")
    {
        let is_old = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.starts_with("pytorch_model")
            });
        let (what, hint) = match is_old {
            true => (
                "has its weights in `pytorch_model*.bin` and no `model.safetensors`",
                "save the model with `save_pretrained(..., safe_serialization=True)`: others should not have to run pickled code",
            ),
            false => (
                "has `config.json` and no weights: no `model.safetensors`, no shards with their index, no GGUF file",
                "give the folder that has both",
            ),
        };
        return missing(what.into(), hint);
    }
    for upload in uploads {
        if let Source::File(path) = &upload.source
            && upload.path.ends_with(".safetensors")
            && header(path)?.is_none()
        {
            reporter.warn(&format!(
                "`{}` has no header of a safetensors file: nobody can load it",
                upload.path
            ));
        }
    }
    Ok(())
}

/// That every tensor is in the shard that the index says.
fn check_index(folder: &Path, index: &Value) -> Result<()> {
    let map = index["weight_map"].as_object().cloned().unwrap_or_default();
    let mut by_file: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
    for (tensor, file) in &map {
        if let Some(file) = file.as_str() {
            by_file.entry(file).or_default().push(tensor);
        }
    }
    for (file, tensors) in by_file {
        let path = folder.join(file);
        let Some(there) = header(&path)? else {
            continue;
        };
        if let Some(absent) = tensors.iter().find(|name| there.get(**name).is_none()) {
            return Err(Error::input(format!(
                "`{}` lacks the tensor `{absent}`, which `{WEIGHTS_INDEX}` says is there",
                path.display()
            ))
            .with_hint("the shards are of another model or version: save the model again"));
        }
    }
    Ok(())
}

/// The header of a safetensors file, which is as long as its header says; none of a file that is something else.
///
/// # Errors
/// A file that was cut.
fn header(path: &PathBuf) -> Result<Option<Value>> {
    let io = |e| Error::io("reading", path, e);
    let size = fs::metadata(path).map_err(io)?.len();
    let mut file = File::open(path).map_err(io)?;
    let mut length = [0; 8];
    if size < 8 {
        return Ok(None);
    }
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > size - 8 {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).map_err(io)?;
    let Ok(header) = serde_json::from_slice::<Value>(&text) else {
        return Ok(None);
    };
    let tensors = header.as_object().into_iter().flatten();
    let ends = tensors.filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64());
    let (there, end) = (size - 8 - length, ends.max().unwrap_or(0));
    if there < end {
        return Err(Error::input(format!(
            "`{}` is cut: it has {there} bytes of tensors, and its header says {end}",
            path.display()
        ))
        .with_hint("copy it again, or save the model again"));
    }
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::publish_files::{RepoKind, gather};
    use crate::progress::Silent;

    /// One tensor of two f32, cut by so many bytes.
    fn tensors(names: &[&str], cut: usize) -> Vec<u8> {
        let header: serde_json::Map<String, Value> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let offsets = [8 * i, 8 * (i + 1)];
                let tensor =
                    serde_json::json!({"dtype": "F32", "shape": [2], "data_offsets": offsets});
                (name.to_string(), tensor)
            })
            .collect();
        let header = Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; 8 * names.len() - cut]);
        bytes
    }

    fn check(files: &[(&str, Vec<u8>)]) -> std::result::Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("m");
        fs::create_dir(&folder).unwrap();
        for (name, bytes) in files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let uploads = gather(&folder, RepoKind::Model).unwrap().uploads;
        let place = format!("`{}", folder.display());
        check_weights(&folder, &uploads, &Silent).map_err(|e| e.to_string().replace(&place, "`m"))
    }

    #[test]
    fn what_is_missing_is_named() {
        let config = ("config.json", b"{}".to_vec());
        let index = |two: &str| {
            let map = format!(
                r#"{{"weight_map": {{"a": "model-00001-of-00002.safetensors", "{two}": "model-00002-of-00002.safetensors"}}}}"#
            );
            ("model.safetensors.index.json", map.into_bytes())
        };
        let one = ("model-00001-of-00002.safetensors", tensors(&["a"], 0));
        let two = ("model-00002-of-00002.safetensors", tensors(&["b"], 0));
        let whole = ("model.safetensors", tensors(&["a", "b"], 0));
        let adapter = ("adapter_config.json", b"{}".to_vec());
        check(&[config.clone(), whole.clone()]).unwrap();
        // told, not refused
        check(&[config.clone(), ("model.safetensors", b"abc".to_vec())]).unwrap();
        check(&[config.clone(), one.clone(), two.clone(), index("b")]).unwrap();
        check(&[config.clone(), ("m.gguf", b"GGUF".to_vec())]).unwrap();
        check(&[
            adapter.clone(),
            ("adapter_model.safetensors", tensors(&["a"], 0)),
        ])
        .unwrap();
        for (files, want) in [
            (
                vec![config.clone()],
                "`m` has `config.json` and no weights: no `model.safetensors`, no shards with their index, no GGUF file",
            ),
            (
                vec![config.clone(), ("pytorch_model.bin", vec![0])],
                "`m` has its weights in `pytorch_model*.bin` and no `model.safetensors`",
            ),
            (
                vec![config.clone(), one.clone(), index("b")],
                "`m` lacks `model-00002-of-00002.safetensors`, which `model.safetensors.index.json` names",
            ),
            (
                vec![config.clone(), two.clone()],
                "`m` lacks `model-00001-of-00002.safetensors`",
            ),
            (
                vec![config.clone(), one.clone(), two.clone()],
                "`m` has shards and no `model.safetensors.index.json`, which says what is in them",
            ),
            (
                vec![config.clone(), one.clone(), two.clone(), index("c")],
                "`m/model-00002-of-00002.safetensors` lacks the tensor `c`, which `model.safetensors.index.json` says is there",
            ),
            (
                vec![
                    config.clone(),
                    ("model.safetensors", tensors(&["a", "b"], 3)),
                ],
                "`m/model.safetensors` is cut: it has 13 bytes of tensors, and its header says 16",
            ),
            (
                vec![adapter],
                "`m` has `adapter_config.json` and no `adapter_model.safetensors`",
            ),
        ] {
            assert_eq!(check(&files).unwrap_err(), want);
        }
    }

    #[test]
    fn a_model_that_scores_is_told_from_one_that_writes() {
        let dir = tempfile::tempdir().unwrap();
        let put = |text: &str| fs::write(dir.path().join("config.json"), text).unwrap();
        put(r#"{"architectures": ["Qwen2ForSequenceClassification"]}"#);
        assert!(is_reward(dir.path()));
        put(r#"{"architectures": ["Qwen2ForCausalLM"]}"#);
        assert!(!is_reward(dir.path()));
    }
}
