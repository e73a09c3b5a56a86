//! Text to tokens: the tokenizer, the chat template, what of a conversation is trained, and packing.
//!
//! | file | holds |
//! |---|---|
//! | [`text`] | [`TextTokenizer`]: `tokenizer.json` to ids and back |
//! | [`fast`], [`split`] | the quick way through byte-level BPE, equal to the crate `tokenizers` id for id |
//! | [`files`] | the JSON files beside it, read and written |
//! | [`template`] | [`ChatTemplate`]: Jinja rendering equal to transformers' byte for byte |
//! | [`python`] | the Python behaviour templates rely on: `json.dumps`, `str.strip`, `strftime` |
//! | [`chat`] | [`Chat`]: prompts, and rows with what is trained marked |
//! | [`pack`] | sequences into packs |
//!
//! Where the rows come from is the room `data`; how packs become a batch is the room `train`.

pub mod chat;
pub mod fast;
pub mod files;
pub mod pack;
pub mod python;
mod spans;
pub mod split;
pub mod template;
pub mod text;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

pub use chat::{Chat, MissingEnd, Tokenized, TrainOn};
pub use pack::best_fit;
pub use spans::{text_ends, tokens_at};
pub use template::ChatTemplate;
pub use text::TextTokenizer;

/// One turn of a conversation, as in `{"role": "user", "content": "…"}`; other fields are kept and templates see them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text. `null` reads as empty, a list of `{"type": "text", "text": "…"}` parts as their texts end to end.
    #[serde(default, deserialize_with = "text_content")]
    pub content: String,
    /// Every other field of the message.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with nothing but a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: Map::new(),
        }
    }
}

fn text_content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    struct Part {
        text: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
        Null(()),
    }
    let content = Content::deserialize(deserializer).map_err(|_| {
        serde::de::Error::custom("`content` is neither a string, null nor a list of text parts")
    })?;
    Ok(match content {
        Content::Text(text) => text,
        Content::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        Content::Null(()) => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_reads_every_form_of_content() {
        let message: Message =
            serde_json::from_str(r#"{"role":"user","content":"a","weight":1}"#).unwrap();
        assert_eq!(
            (message.role.as_str(), message.content.as_str()),
            ("user", "a")
        );
        assert_eq!(message.extra["weight"], 1);
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"role":"user","content":"a","weight":1}"#
        );
        for (content, text) in [
            ("null", ""),
            (
                r#"[{"type":"text","text":"a"},{"type":"text","text":"b"}]"#,
                "ab",
            ),
        ] {
            let message: Message =
                serde_json::from_str(&format!(r#"{{"role":"user","content":{content}}}"#)).unwrap();
            assert_eq!(message.content, text);
        }
        let missing: Message = serde_json::from_str(r#"{"role":"assistant"}"#).unwrap();
        assert_eq!(missing.content, "");
        let error = serde_json::from_str::<Message>(r#"{"role":"user","content":3}"#).unwrap_err();
        assert!(error.to_string().contains("neither a string"), "{error}");
    }
}
