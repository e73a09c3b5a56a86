//! Which files go up, which stay, which give way.

use super::*;
use crate::progress::Silent;

fn put(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn paths(gathered: &Gathered) -> Vec<&str> {
    gathered.uploads.iter().map(|u| u.path.as_str()).collect()
}

#[test]
fn a_model_is_what_it_is_known_to_be_made_of() {
    let dir = tempfile::tempdir().unwrap();
    put(
        dir.path(),
        &[
            ("config.json", "{}"),
            ("model-00001-of-00002.safetensors", "a"),
            ("optimizer.safetensors", "o"),
            ("checkpoint.json", "{}"),
            ("metrics.jsonl", ""),
            ("events.out.tfevents.1", ""),
            (".env", "HF_TOKEN=x"),
            (".eval_results/aime-2024.yaml", "[]"),
            (".eval_results/notes", ""),
            ("LICENSE.txt", ""),
            ("old/model.safetensors", ""),
            ("model.safetensors.partial", ""),
        ],
    );
    let gathered = gather(dir.path(), RepoKind::Model).unwrap();
    assert_eq!(
        paths(&gathered),
        [
            ".eval_results/aime-2024.yaml",
            "LICENSE.txt",
            "config.json",
            "model-00001-of-00002.safetensors"
        ]
    );
    let reasons: Vec<(&str, &str)> = gathered
        .left_out
        .iter()
        .map(|(p, r)| (p.as_str(), *r))
        .collect();
    assert_eq!(
        reasons,
        [
            (".env", "hidden"),
            (".eval_results/notes", "no result of an evaluation"),
            ("checkpoint.json", "not part of a model"),
            ("events.out.tfevents.1", "not part of a model"),
            ("metrics.jsonl", "not part of a model"),
            ("model.safetensors.partial", "half-written"),
            ("old", "a folder, which a model does not have"),
            ("optimizer.safetensors", "state of a training"),
        ]
    );
    let gathered = gather(dir.path(), RepoKind::Dataset).unwrap();
    assert_eq!(
        paths(&gathered),
        [
            "LICENSE.txt",
            "checkpoint.json",
            "config.json",
            "metrics.jsonl"
        ]
    );
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(dir.path(), &[("config.json", "{}")]);
    put(other.path(), &[("secret", "s")]);
    std::os::unix::fs::symlink("config.json", dir.path().join("generation_config.json")).unwrap();
    assert_eq!(
        gather(dir.path(), RepoKind::Model).unwrap().uploads.len(),
        2
    );
    std::os::unix::fs::symlink(
        other.path().join("secret"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    let error = gather(dir.path(), RepoKind::Model).unwrap_err().to_string();
    assert!(error.starts_with("`model.safetensors` of "), "{error}");
}

#[test]
fn hashes_and_what_goes_inline() {
    let uploads = vec![
        Upload::text("b.json", "hello\n".into()),
        Upload::text("a.safetensors", "hello\n".into()),
        Upload::text("empty.safetensors", String::new()),
    ];
    let files = prepare(uploads, &[], &Silent).unwrap();
    let facts: Vec<_> = files
        .iter()
        .map(|f| (f.path.as_str(), f.bytes, f.is_large()))
        .collect();
    assert_eq!(
        facts,
        [
            ("a.safetensors", 6, true),
            ("b.json", 6, false),
            ("empty.safetensors", 0, false)
        ]
    );
    // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
    assert_eq!(
        files[1].git_sha1.as_deref(),
        Some("ce013625030ba8dba906f756967f9e9ca394464a")
    );
    assert_eq!(
        files[1].sha256,
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    );
    assert_eq!(files[1].sample, b"hello\n");
}

#[test]
fn tokens_are_found_across_chunks_and_never_shown() {
    let token = format!("hf_{}", "aB3".repeat(11));
    for before in [0, 5, (1 << 20) - 10, (1 << 20) + 1] {
        let text = format!("{}{token}\"", " ".repeat(before));
        let upload = Upload::text("tokenizer_config.json", text);
        let error = prepare(vec![upload], &[], &Silent).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("`tokenizer_config.json` holds an access token near byte {before}")
        );
    }
}

#[test]
fn only_an_earlier_version_of_what_goes_up_is_replaced() {
    let stale = |kind: RepoKind, ours: &[&str], path: &str| {
        kind.replaces(&ours.iter().copied().collect(), path)
    };
    let model = |ours: &[&str], path: &str| stale(RepoKind::Model, ours, path);
    let shards = ["config.json", "model-00001-of-00002.safetensors"];
    for path in [
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00003.safetensors",
        "adapter_model.safetensors",
        "adapter_config.json",
    ] {
        assert!(model(&shards, path), "{path}");
        // neither a GGUF file nor a config is another version of weights
        assert!(!model(&["config.json", "m.gguf"], path), "{path}");
    }
    for path in [
        "model-00001-of-00002.safetensors",
        "config.json",
        "m.gguf",
        "sub/model.safetensors",
        "modeling.safetensors",
    ] {
        assert!(!model(&shards, path), "{path}");
    }
    let adapter = ["adapter_model.safetensors"];
    assert!(!model(&adapter, "model.safetensors"));
    assert!(model(&adapter, "adapter_config.json"));
    let data = |ours: &[&str], path: &str| stale(RepoKind::Dataset, ours, path);
    let ours = ["data/train-00000-of-00001.parquet"];
    assert!(data(&ours, "data/train-00000-of-00002.parquet"));
    assert!(!data(&ours, "data/test-00000-of-00001.parquet"));
    assert!(!data(&ours, "data/math/train-00000-of-00002.parquet"));
    assert!(!data(&["x.jsonl"], "data/train-00000-of-00002.parquet"));
}
