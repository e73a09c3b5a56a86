//! Which files of a repository are wanted: of a model what loads it, of a data set the training split of one config.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde_json::Value;

use super::cache;
use crate::{Error, Result};

/// How much of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Config, tokenizer and weights.
    Everything,
    /// Config and tokenizer.
    WithoutWeights,
}

/// The index of sharded weights.
pub const INDEX: &str = "model.safetensors.index.json";
/// Weights in one file.
pub const SINGLE: &str = "model.safetensors";

/// What an adapter in PEFT's layout is made of. Not among the files of a model: a repository that has both is a model.
pub const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

const MODEL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "reward_model.json",
];
/// Files that a licence may oblige to pass on.
const LICENCE_FILES: &[&str] = &[
    "license",
    "license.txt",
    "license.md",
    "notice",
    "notice.txt",
    "notice.md",
    "use_policy.md",
];
const DATA_ENDINGS: &[&str] = &[".parquet", ".jsonl", ".json", ".ndjson"];

/// The small files of a model, in listing order.
pub fn model_files<'a>(listing: impl Iterator<Item = &'a str>) -> Vec<String> {
    listing
        .filter(|path| {
            MODEL_FILES.contains(path)
                || LICENCE_FILES.contains(&path.to_ascii_lowercase().as_str())
        })
        .map(str::to_string)
        .collect()
}

/// The shards that an index names, each once.
pub fn shards(index: &[u8]) -> std::result::Result<Vec<String>, String> {
    let index: Value = serde_json::from_slice(index).map_err(|e| e.to_string())?;
    let map = index["weight_map"].as_object().ok_or("no `weight_map`")?;
    let mut files: Vec<String> = map
        .values()
        .filter_map(Value::as_str)
        .map(str::to_string)
        .collect();
    files.sort();
    files.dedup();
    // a shard is a file beside its index
    match files
        .iter()
        .find(|file| file.contains(['/', '\\']) || file.starts_with('.'))
    {
        Some(bad) => Err(format!("shard `{bad}` is no file name")),
        None if files.is_empty() => Err("an empty `weight_map`".into()),
        None => Ok(files),
    }
}

/// Whether the name ends as trace files do, compressed or not.
pub fn is_data_file(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    let plain = path
        .strip_suffix(".gz")
        .or_else(|| path.strip_suffix(".zst"))
        .unwrap_or(&path);
    DATA_ENDINGS.iter().any(|ending| plain.ends_with(ending))
}

/// Which files of a data set are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// A config that the card names, or a folder or beginning of file names.
    pub config: Option<&'a str>,
    /// `None` is `train`.
    pub split: Option<&'a str>,
    /// These files and no others, whatever config and split they belong to.
    pub patterns: &'a [String],
}

impl Wanted<'_> {
    fn split(&self) -> &str {
        self.split.unwrap_or("train")
    }
}

/// The data files of a local folder, and how many others are left out.
pub fn local_files(folder: &Path, wanted: Wanted) -> Result<(Vec<PathBuf>, usize)> {
    let mut files = Vec::new();
    cache::walk(folder, "", &mut files);
    files.sort();
    let listing: Vec<String> = files.into_iter().map(|(path, _)| path).collect();
    let place = format!("folder `{}`", folder.display());
    let chosen = dataset_files(&place, &listing, None, wanted)?;
    let num_data = listing.iter().filter(|path| is_data_file(path)).count();
    let num_left_out = num_data.saturating_sub(chosen.len());
    let files = chosen.into_iter().map(|path| folder.join(path)).collect();
    Ok((files, num_left_out))
}

/// The data files of a data set, sorted. `card` is the repository's metadata, whose `configs` name the files.
pub fn dataset_files(
    place: &str,
    listing: &[String],
    card: Option<&Value>,
    wanted: Wanted,
) -> Result<Vec<String>> {
    let Wanted {
        config, patterns, ..
    } = wanted;
    let split = wanted.split();
    let data: Vec<&str> = listing
        .iter()
        .map(String::as_str)
        .filter(|path| is_data_file(path))
        .collect();
    let configs = card
        .and_then(|card| card["configs"].as_array())
        .map(Vec::as_slice)
        .unwrap_or_default();
    let config_names = || {
        let names: Vec<&str> = configs
            .iter()
            .filter_map(|c| c["config_name"].as_str())
            .collect();
        format!("its configs are `{}`", names.join("`, `"))
    };
    if !patterns.is_empty() {
        return matching(place, listing, patterns);
    }
    if config.is_none() && configs.len() > 1 && find_config(configs, None).is_none() {
        return Err(Error::input(format!(
            "{place} has several configs and none is the default"
        ))
        .with_hint(format!("choose one with `config`: {}", config_names())));
    }
    let mut chosen: Vec<String> = if let Some(entry) = find_config(configs, config) {
        let globs = globs(&split_patterns(place, entry, split)?)?;
        data.iter()
            .filter(|path| globs.is_match(path))
            .map(|path| path.to_string())
            .collect()
    } else {
        by_name(&data, config, split)
    };
    chosen.sort();
    if chosen.is_empty() {
        let wanted = match config {
            Some(config) if split == "train" => format!("belongs to config `{config}`"),
            Some(config) => format!("belongs to split `{split}` of config `{config}`"),
            None if split != "train" && !data.is_empty() => format!("belongs to split `{split}`"),
            None => "is Parquet or JSON lines".into(),
        };
        let hint = match (config.is_some() && !configs.is_empty(), data.first()) {
            (true, _) => config_names(),
            (false, Some(first)) => {
                format!("it has {} data files, `{first}` among them", data.len())
            }
            (false, None) => "only Parquet and JSON lines, compressed or not, can be read".into(),
        };
        return Err(Error::input(format!("no file of {place} {wanted}")).with_hint(hint));
    }
    Ok(chosen)
}

/// The files that match these globs, sorted.
pub fn matching(place: &str, listing: &[String], patterns: &[String]) -> Result<Vec<String>> {
    let globs = globs(patterns)?;
    let mut chosen: Vec<String> = listing
        .iter()
        .filter(|path| globs.is_match(path))
        .cloned()
        .collect();
    chosen.sort();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let wanted = patterns.join("`, `");
    let hint = match listing.first() {
        Some(first) => format!("it has {} files, `{first}` among them", listing.len()),
        None => "it has no files".into(),
    };
    Err(Error::input(format!("no file of {place} matches `{wanted}`")).with_hint(hint))
}

fn find_config<'a>(configs: &'a [Value], config: Option<&str>) -> Option<&'a Value> {
    match config {
        Some(name) => configs.iter().find(|c| c["config_name"] == name),
        None => (configs.iter().find(|c| c["default"] == true))
            .or_else(|| configs.iter().find(|c| c["config_name"] == "default"))
            .or_else(|| configs.first().filter(|_| configs.len() == 1)),
    }
    .filter(|entry| !entry["data_files"].is_null() || entry["data_dir"].is_string())
}

/// The patterns of a split. `data_files` is a pattern, a list of patterns, or a list of `{split, path}`; where no split has a
/// name, the files are of all of them, and without one called `train` all are for training.
///
/// # Errors
/// Splits are named, and the one asked for is not among them.
fn split_patterns(place: &str, entry: &Value, split: &str) -> Result<Vec<String>> {
    fn strings(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::String(text) => out.push(text.trim_start_matches("./").to_string()),
            Value::Array(items) => items.iter().for_each(|item| strings(item, out)),
            Value::Object(map) => strings(map.get("path").unwrap_or(&Value::Null), out),
            _ => {}
        }
    }
    let mut patterns = Vec::new();
    let files = &entry["data_files"];
    let named = || files.as_array().into_iter().flatten();
    let of_split = named().filter(|f| f["split"] == split);
    of_split.for_each(|split| strings(split, &mut patterns));
    if patterns.is_empty() {
        let names: Vec<&str> = named().filter_map(|f| f["split"].as_str()).collect();
        if split != "train" && !names.is_empty() {
            return Err(Error::input(format!("{place} has no split `{split}`"))
                .with_hint(format!("its splits are `{}`", names.join("`, `"))));
        }
        strings(files, &mut patterns);
    }
    let folder = entry["data_dir"].as_str().map(|f| f.trim_matches('/'));
    Ok(match folder {
        Some(folder) if patterns.is_empty() => vec![format!("{folder}/**")],
        Some(folder) => patterns.iter().map(|p| format!("{folder}/{p}")).collect(),
        None => patterns,
    })
}

/// Words in file names that say a split, as `datasets` reads them.
const SPLIT_WORDS: [(&str, &str); 8] = [
    ("train", "train"),
    ("training", "train"),
    ("test", "test"),
    ("testing", "test"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
];

/// Without a card: files below a folder named as the config, or `CONFIG-...` files; of those the files of the split. A file
/// whose name says no split is for training, and for everything where no name says one.
fn by_name(data: &[&str], config: Option<&str>, split: &str) -> Vec<String> {
    let of_config = |path: &&&str| match config {
        None => true,
        Some(config) => {
            let (folders, file) = path.rsplit_once('/').unwrap_or(("", path));
            folders.split('/').any(|folder| folder == config)
                || file
                    .strip_prefix(config)
                    .is_some_and(|rest| rest.starts_with(['.', '-', '_']))
        }
    };
    let files: Vec<&str> = data.iter().filter(of_config).copied().collect();
    let says = |path: &str, split: &str| {
        path.split(['/', '-', '.', '_'])
            .any(|word| word == split || SPLIT_WORDS.contains(&(word, split)))
    };
    let others = || SPLIT_WORDS.iter().filter(|(_, other)| *other != split);
    let of_other = |path: &str| others().any(|(_, other)| says(path, other));
    let none_says = !files.iter().any(|path| says(path, split) || of_other(path));
    let chosen =
        |path: &&&str| says(path, split) || none_says || (split == "train" && !of_other(path));
    files.iter().filter(chosen).map(|p| p.to_string()).collect()
}

/// `*` stays within a folder, `**` does not.
fn globs(patterns: &[String]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|e| {
            Error::input(format!("pattern `{pattern}` cannot be read: {}", e.kind()))
        })?);
    }
    set.build()
        .map_err(|e| Error::input(format!("patterns cannot be read: {}", e.kind())))
}

/// The first shard that a set of `NAME-00000-of-00003.ENDING` files lacks.
pub fn missing_shard(files: &[String]) -> Option<String> {
    for file in files {
        let Some((start, rest)) = file.rsplit_once("-of-") else {
            continue;
        };
        let Some((count, ending)) = rest.split_once('.') else {
            continue;
        };
        let Some((stem, first)) = start.rsplit_once('-') else {
            continue;
        };
        let (Ok(count), Ok(_), width) =
            (count.parse::<usize>(), first.parse::<usize>(), first.len())
        else {
            continue;
        };
        // shards are counted from 0 (data sets) or 1 (weights)
        let name = |i: usize| {
            format!(
                "{stem}-{i:0width$}-of-{rest}",
                rest = format_args!("{count:0width$}.{ending}")
            )
        };
        let from = usize::from(!files.contains(&name(0)) && files.contains(&name(count)));
        if let Some(missing) = (from..from + count)
            .map(name)
            .find(|name| !files.contains(name))
        {
            return Some(missing);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn listing() -> Vec<String> {
        [
            "README.md",
            "all/train-00000-of-00002.parquet",
            "all/train-00001-of-00002.parquet",
            "math/train-0.parquet",
            "math/test-0.parquet",
        ]
        .map(str::to_string)
        .into()
    }

    #[test]
    fn the_card_says_which_files() {
        let card = json!({"configs": [
            {"config_name": "all", "default": true, "data_files": [{"split": "train", "path": "all/train-*"}]},
            {"config_name": "math", "data_files": [{"split": "test", "path": ["math/test-*"]}, {"split": "train", "path": ["math/train-*"]}]},
        ]});
        let files = |config, patterns: &[String]| {
            let wanted = Wanted {
                config,
                patterns,
                ..Wanted::default()
            };
            dataset_files("data set `a/b`", &listing(), Some(&card), wanted)
        };
        assert_eq!(files(None, &[]).unwrap(), listing()[1..3]);
        assert_eq!(files(Some("math"), &[]).unwrap(), ["math/train-0.parquet"]);
        assert_eq!(
            files(None, &["math/*".into()]).unwrap(),
            ["math/test-0.parquet", "math/train-0.parquet"]
        );
        let error = files(Some("maths"), &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no file of data set `a/b` belongs to config `maths`"
        );
        assert_eq!(error.hint().unwrap(), "its configs are `all`, `math`");
        let error = files(None, &["x/*.csv".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no file of data set `a/b` matches `x/*.csv`"
        );
        let two = json!({"configs": [{"config_name": "v0", "data_files": "a*"}, {"config_name": "v1", "data_files": "b*"}]});
        let wanted = Wanted::default();
        let error = dataset_files("data set `a/b`", &listing(), Some(&two), wanted).unwrap_err();
        assert_eq!(
            error.to_string(),
            "data set `a/b` has several configs and none is the default"
        );
        assert_eq!(
            error.hint().unwrap(),
            "choose one with `config`: its configs are `v0`, `v1`"
        );
        assert!(
            files(None, &["a[".into()])
                .unwrap_err()
                .to_string()
                .starts_with("pattern `a[` cannot be read")
        );
    }

    #[test]
    fn the_split_asked_for_is_the_one_given() {
        let card = json!({"configs": [{"config_name": "main", "data_files": [
            {"split": "train", "path": "math/train-*"}, {"split": "test", "path": "math/test-*"}]}]});
        let files = |split| {
            let wanted = Wanted {
                split,
                ..Wanted::default()
            };
            dataset_files("data set `a/b`", &listing(), Some(&card), wanted)
        };
        assert_eq!(files(None).unwrap(), ["math/train-0.parquet"]);
        assert_eq!(files(Some("test")).unwrap(), ["math/test-0.parquet"]);
        let error = files(Some("dev")).unwrap_err();
        assert_eq!(error.to_string(), "data set `a/b` has no split `dev`");
        assert_eq!(error.hint().unwrap(), "its splits are `train`, `test`");
    }

    #[test]
    fn without_a_card_names_decide() {
        let of = |config, split, listing: &[String]| {
            let wanted = Wanted {
                config,
                split,
                ..Wanted::default()
            };
            dataset_files("x", listing, None, wanted)
        };
        let files = |config, split| of(config, split, &listing()).unwrap();
        assert_eq!(files(Some("math"), None), ["math/train-0.parquet"]);
        assert_eq!(files(Some("math"), Some("test")), ["math/test-0.parquet"]);
        assert_eq!(files(Some("all"), None).len(), 2);
        assert_eq!(files(None, None).len(), 3);
        let error = of(None, Some("validation"), &listing()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no file of x belongs to split `validation`"
        );
        // a name without a split is for training, and for all where no name says one
        let names = ["code.jsonl", "math_train.jsonl", "val.jsonl"].map(str::to_string);
        let files = |split, n| of(None, split, &names[..n]).unwrap();
        assert_eq!(files(None, 3), ["code.jsonl", "math_train.jsonl"]);
        assert_eq!(files(Some("validation"), 3), ["val.jsonl"]);
        assert_eq!(files(Some("test"), 1), ["code.jsonl"]);
    }

    #[test]
    fn shards_of_an_index() {
        let index = br#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        assert_eq!(
            shards(index).unwrap(),
            ["m-1.safetensors", "m-2.safetensors"]
        );
        assert_eq!(
            shards(br#"{"weight_map": {"a": "../x"}}"#).unwrap_err(),
            "shard `../x` is no file name"
        );
        assert_eq!(shards(b"{}").unwrap_err(), "no `weight_map`");
    }

    #[test]
    fn a_missing_shard_is_named() {
        let files = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let two = files(&[
            "a/t-00000-of-00002.parquet",
            "a/t-00001-of-00002.parquet",
            "b.jsonl",
        ]);
        assert_eq!(missing_shard(&two), None);
        assert_eq!(
            missing_shard(&two[1..]).unwrap(),
            "a/t-00000-of-00002.parquet"
        );
        assert_eq!(
            missing_shard(&files(&["m-00001-of-00002.s", "m-00002-of-00002.s"])),
            None
        );
    }
}
