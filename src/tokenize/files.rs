//! The JSON files beside a `tokenizer.json`: which special tokens have a name, which template is the folder's own, what
//! ends a generation. Kept as read, so that saving loses nothing.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

/// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and the chat template of a folder.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer_config.json` without its `chat_template`; empty where there is no such file.
    pub config: Map<String, Value>,
    /// `special_tokens_map.json`, where there is one.
    pub special_tokens_map: Option<Map<String, Value>>,
    /// `generation_config.json`, where there is one. Where neither it nor the tokenizer names an end of text, it has the
    /// `eos_token_id` of the model's `config.json`.
    pub generation_config: Option<Map<String, Value>>,
    /// Source of `chat_template.jinja`, else the `chat_template` of `tokenizer_config.json`.
    pub chat_template: Option<String>,
}

impl TokenizerFiles {
    /// Reads what is there; an absent file is no error, a broken one is.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut config = object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let listed = config.remove("chat_template");
        let jinja = folder.join("chat_template.jinja");
        let chat_template = match read(&jinja)? {
            Some(bytes) => Some(
                String::from_utf8(bytes)
                    .map_err(|_| Error::input(format!("`{}` is not UTF-8", jinja.display())))?,
            ),
            None => listed
                .and_then(|listed| default_template(&listed).transpose())
                .transpose()
                .map_err(|error| {
                    error.at(format!(
                        "`{}`",
                        folder.join("tokenizer_config.json").display()
                    ))
                })?,
        };
        let mut files = Self {
            config,
            special_tokens_map: object(&folder.join("special_tokens_map.json"))?,
            generation_config: object(&folder.join("generation_config.json"))?,
            chat_template,
        };
        if files.generation_eos_ids().is_empty()
            && !files.special_tokens().contains_key("eos_token")
            // a broken one is reported where the model is read
            && let Ok(Some(mut model)) = object(&folder.join("config.json"))
            && let Some(id) = model.remove("eos_token_id").filter(|id| !id.is_null())
        {
            let generation = files.generation_config.get_or_insert_default();
            generation.insert("eos_token_id".into(), id);
        }
        Ok(files)
    }

    /// Named special tokens (`bos_token`, `eos_token`, `pad_token`, `unk_token`, ...) and their text.
    /// `tokenizer_config.json` has the last word.
    pub fn special_tokens(&self) -> BTreeMap<String, String> {
        const NAMES: [&str; 7] = [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ];
        let mut named = BTreeMap::new();
        for map in [self.special_tokens_map.as_ref(), Some(&self.config)]
            .into_iter()
            .flatten()
        {
            for name in NAMES {
                let text = match map.get(name) {
                    Some(Value::String(text)) => Some(text.as_str()),
                    Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
                    _ => None,
                };
                if let Some(text) = text {
                    named.insert(name.to_string(), text.to_string());
                }
            }
        }
        named
    }

    /// `eos_token_id` of `generation_config.json`: a number or a list of them.
    pub fn generation_eos_ids(&self) -> Vec<u32> {
        self.generation_config
            .as_ref()
            .map(eos_ids)
            .unwrap_or_default()
    }

    /// Writes the files into `folder`, which exists; `tokenizer.json` is not among them.
    ///
    /// The template goes into `chat_template.jinja` alone, as transformers 5 writes it. Without a `tokenizer_class` the
    /// config names the one that takes everything from `tokenizer.json`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut config = self.config.clone();
        config
            .entry("tokenizer_class")
            .or_insert_with(|| json!("PreTrainedTokenizerFast"));
        write_json(
            &folder.join("tokenizer_config.json"),
            &Value::Object(config),
        )?;
        for (name, map) in [
            ("special_tokens_map.json", &self.special_tokens_map),
            ("generation_config.json", &self.generation_config),
        ] {
            if let Some(map) = map {
                write_json(&folder.join(name), &Value::Object(map.clone()))?;
            }
        }
        if let Some(template) = &self.chat_template {
            write(&folder.join("chat_template.jinja"), template.as_bytes())?;
        }
        Ok(())
    }
}

/// `eos_token_id`: a number or a list of them.
fn eos_ids(config: &Map<String, Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A template given as a string, or as a list of named ones of which `default` is meant.
fn default_template(value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(list) => {
            let source = |entry: &Value| {
                entry
                    .get("template")
                    .and_then(Value::as_str)
                    .map(str::to_string)
            };
            let default = list
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                .or(if list.len() == 1 { list.first() } else { None });
            default.and_then(source).map(Some).ok_or_else(|| {
                Error::input("the list `chat_template` has no template named `default`")
                    .with_hint("name the template to use in `[student] chat_template`")
            })
        }
        _ => Err(Error::input(
            "`chat_template` is neither a string nor a list of named templates",
        )),
    }
}

/// The bytes of a file, or nothing where there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("reading", path, error)),
    }
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::input(format!(
            "`{}` holds no JSON object",
            path.display()
        ))),
        Err(error) => Err(Error::input(format!(
            "`{}` is not valid JSON: {error}",
            path.display()
        ))),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| {
        Error::input(format!(
            "`{}` cannot be written as JSON: {error}",
            path.display()
        ))
    })?;
    text.push('\n');
    write(path, text.as_bytes())
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let synced = || {
        let mut file = fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    synced().map_err(|error| Error::io("writing", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn reads_both_forms_of_everything() {
        let folder = folder(&[
            (
                "tokenizer_config.json",
                r#"{"eos_token":{"content":"<e>","special":true},"pad_token":"<p>","bos_token":null,
                    "chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]}"#,
            ),
            (
                "special_tokens_map.json",
                r#"{"eos_token":"<old>","unk_token":"<u>"}"#,
            ),
            ("generation_config.json", r#"{"eos_token_id":[7,9]}"#),
        ]);
        let files = TokenizerFiles::load(folder.path()).unwrap();
        let named: Vec<_> = files.special_tokens().into_iter().collect();
        let expected = [
            ("eos_token", "<e>"),
            ("pad_token", "<p>"),
            ("unk_token", "<u>"),
        ];
        assert_eq!(
            named,
            expected.map(|(name, text)| (name.to_string(), text.to_string()))
        );
        assert_eq!(files.generation_eos_ids(), [7, 9]);
        assert_eq!(files.chat_template.as_deref(), Some("d"));
    }

    #[test]
    fn the_template_file_wins() {
        let folder = folder(&[
            (
                "tokenizer_config.json",
                r#"{"chat_template":"from config"}"#,
            ),
            ("chat_template.jinja", "from file"),
            ("generation_config.json", r#"{"eos_token_id":7}"#),
            ("config.json", r#"{"eos_token_id":[5,6]}"#),
        ]);
        let files = TokenizerFiles::load(folder.path()).unwrap();
        assert_eq!(files.chat_template.as_deref(), Some("from file"));
        assert_eq!(files.generation_eos_ids(), [7]);
    }

    #[test]
    fn the_model_names_the_end_where_nothing_else_does() {
        let model = ("config.json", r#"{"eos_token_id":[5,6]}"#);
        let ids = |files: &[_]| {
            let files = TokenizerFiles::load(folder(files).path()).unwrap();
            files.generation_eos_ids()
        };
        assert_eq!(ids(&[model]), [5, 6]);
        let named = ("tokenizer_config.json", r#"{"eos_token":"<e>"}"#);
        assert!(ids(&[model, named]).is_empty());
    }

    #[test]
    fn nothing_there_is_no_error() {
        let files = TokenizerFiles::load(folder(&[]).path()).unwrap();
        assert!(
            files.config.is_empty()
                && files.chat_template.is_none()
                && files.generation_eos_ids().is_empty()
        );
    }

    #[test]
    fn broken_files_are_named() {
        for (name, text, why) in [
            ("tokenizer_config.json", "{", "not valid JSON"),
            ("generation_config.json", "[]", "no JSON object"),
            (
                "tokenizer_config.json",
                r#"{"chat_template":3}"#,
                "neither a string",
            ),
            (
                "tokenizer_config.json",
                r#"{"chat_template":[{"name":"a"},{"name":"b"}]}"#,
                "named `default`",
            ),
        ] {
            let error = TokenizerFiles::load(folder(&[(name, text)]).path())
                .unwrap_err()
                .to_string();
            assert!(error.contains(name) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn saving_and_loading_keeps_all() {
        let from = folder(&[
            (
                "tokenizer_config.json",
                r#"{"z":1,"a":{"b":[2]},"chat_template":"x"}"#,
            ),
            ("special_tokens_map.json", r#"{"eos_token":"<e>"}"#),
            ("generation_config.json", r#"{"temperature":0.6}"#),
        ]);
        let files = TokenizerFiles::load(from.path()).unwrap();
        let to = tempfile::tempdir().unwrap();
        files.save(to.path()).unwrap();
        let again = TokenizerFiles::load(to.path()).unwrap();
        assert_eq!(again.config["z"], 1);
        assert_eq!(again.config["a"], json!({"b": [2]}));
        assert_eq!(again.config["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(again.special_tokens_map, files.special_tokens_map);
        assert_eq!(again.generation_config, files.generation_config);
        assert_eq!(
            fs::read_to_string(to.path().join("chat_template.jinja")).unwrap(),
            "x"
        );
    }
}
