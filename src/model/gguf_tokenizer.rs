//! A byte-level BPE tokenizer as settings of a GGUF file: `tokenizer.json` in, `tokenizer.ggml.*` out.
//!
//! llama.cpp cuts text into words by rules of its own that a file picks by name, and normalises nothing: text that is not in
//! NFC becomes other tokens there than with a tokenizer that says `NFC`.

use super::gguf::Value;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::HashMap;

/// What is known of a tokenizer, to be written into a file.
pub struct Tokenizer<'a> {
    /// The bytes of its `tokenizer.json`.
    pub json: &'a [u8],
    /// llama.cpp's name of the rule that cuts text into words.
    pub pre: &'a str,
    /// Rows of the model's embedding.
    pub vocab_size: usize,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// What ends a turn, where it is not `eos`.
    pub eot: Option<u32>,
    pub pad: Option<u32>,
    /// Whether text that stands alone begins with `bos`, and ends with `eos`.
    pub add_bos: bool,
    pub add_eos: bool,
    pub chat_template: Option<&'a str>,
}

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
}

/// Both forms there are.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

/// Kinds of tokens, by llama.cpp's numbers.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

impl Tokenizer<'_> {
    /// The settings.
    ///
    /// # Errors
    /// A tokenizer that is no BPE, or has tokens beyond the model's embedding.
    pub fn settings(&self) -> Result<Vec<(String, Value)>> {
        let File {
            model,
            added_tokens,
        } = serde_json::from_slice(self.json).map_err(|e| {
            Error::input(format!("`tokenizer.json` cannot be written as GGUF: {e}"))
        })?;
        if model.kind != "BPE" {
            return Err(Error::input(format!(
                "a tokenizer of type `{}` cannot be written as GGUF",
                model.kind
            ))
            .with_hint("byte-level BPE can: GPT-2, Qwen2, Qwen3, Llama 3"));
        }
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; self.vocab_size];
        let mut put = |id: u32, text: String, kind: i32| match tokens.get_mut(id as usize) {
            Some(place) => {
                *place = Some((text, kind));
                Ok(())
            }
            None => Err(Error::input(format!(
                "token `{text}` has the id {id}, and the model only {} embeddings",
                self.vocab_size
            ))
            .with_hint("the tokenizer belongs to another model")),
        };
        for (text, id) in model.vocab {
            put(id, text, NORMAL)?;
        }
        for Added {
            id,
            content,
            special,
        } in added_tokens
        {
            put(id, content, if special { CONTROL } else { USER_DEFINED })?;
        }
        let (tokens, kinds): (Vec<String>, Vec<i32>) = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)))
            .unzip();
        let merges = model
            .merges
            .into_iter()
            .map(|merge| match merge {
                Merge::Pair(a, b) => format!("{a} {b}"),
                Merge::Text(text) => text,
            })
            .collect();
        let mut all = Vec::new();
        let mut set = |key: &str, value: Value| all.push((format!("tokenizer.{key}"), value));
        set("ggml.model", Value::Text("gpt2".into()));
        set("ggml.pre", Value::Text(self.pre.into()));
        set("ggml.tokens", Value::Texts(tokens));
        set("ggml.token_type", Value::Ints(kinds));
        set("ggml.merges", Value::Texts(merges));
        for (key, id) in [
            ("ggml.bos_token_id", self.bos),
            ("ggml.eos_token_id", self.eos),
            ("ggml.eot_token_id", self.eot),
            ("ggml.padding_token_id", self.pad),
        ] {
            if let Some(id) = id {
                set(key, Value::U32(id));
            }
        }
        set("ggml.add_bos_token", Value::Bool(self.add_bos));
        set("ggml.add_eos_token", Value::Bool(self.add_eos));
        if let Some(template) = self.chat_template {
            set("chat_template", Value::Text(template.into()));
        }
        Ok(all)
    }
}
