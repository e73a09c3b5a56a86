//! What a checkpoint folder holds, as hashes: a stage that starts from it is run again when they change.

use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// The hash of each file of a checkpoint folder that says what the model is.
pub(super) fn contents(folder: &Path) -> Result<serde_json::Value> {
    hashes(folder, is_of_model)
}

fn is_of_model(name: &str) -> bool {
    name == "config.json" || name == "adapter_config.json" || name.contains(".safetensors")
}

/// The same with those that say how the model is asked.
pub(super) fn contents_with_chat(folder: &Path) -> Result<serde_json::Value> {
    const ASKED: [&str; 6] = [
        "reward_model.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ];
    hashes(folder, |name| is_of_model(name) || ASKED.contains(&name))
}

fn hashes(folder: &Path, is_meant: impl Fn(&str) -> bool) -> Result<serde_json::Value> {
    let io = |e| Error::io("reading", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry
            .map_err(io)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if is_meant(&name) {
            names.push(name);
        }
    }
    names.sort();
    let hash = |name: &String| -> Result<(String, String)> {
        let path = folder.join(name);
        let io = |e| Error::io("reading", &path, e);
        let mut file = std::fs::File::open(&path).map_err(io)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok((name.clone(), hex::encode(hasher.finalize())))
    };
    let hashes: std::collections::BTreeMap<_, _> =
        names.par_iter().map(hash).collect::<Result<_>>()?;
    Ok(json!({"files": hashes}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_reward_model_is_asked_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("config.json", "{}");
        put("model.safetensors", "w");
        let read = || {
            (
                contents(dir.path()).unwrap(),
                contents_with_chat(dir.path()).unwrap(),
            )
        };
        let (weights, mut whole) = read();
        for name in [
            "reward_model.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ] {
            put(name, name);
            let (weights_now, whole_now) = read();
            assert_eq!(weights_now, weights, "{name}");
            assert_ne!(whole_now, whole, "{name}");
            whole = whole_now;
        }
        put("README.md", "read me");
        assert_eq!(read(), (weights, whole));
    }
}
