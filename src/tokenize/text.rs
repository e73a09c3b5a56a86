//! A Hugging Face `tokenizer.json` with the files beside it: text to ids and back, and the whole set saved again.
//!
//! What is a prompt and what is trained is not known here: see [`super::chat`].

use super::fast::{FastEncoder, split_rule};
use super::files::{self, TokenizerFiles};
use super::split::SplitRule;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokenizers::{AddedToken, Tokenizer};

/// Text to token ids and back. Cloning is cheap.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: Tokenizer,
    /// `tokenizer.json` as read, so that saving gives the same bytes.
    json: Vec<u8>,
    files: TokenizerFiles,
    fast: Option<FastEncoder>,
    special: BTreeMap<String, String>,
    vocab_size: usize,
}

impl TextTokenizer {
    /// Reads a folder in the Hugging Face layout, or a `tokenizer.json` and what lies beside it.
    pub fn load(path: &Path) -> Result<Self> {
        let (folder, file) = if path.is_dir() {
            (path, path.join("tokenizer.json"))
        } else {
            (path.parent().unwrap_or(Path::new(".")), path.to_path_buf())
        };
        let json = files::read(&file)?.ok_or_else(|| {
            let error = Error::input(format!("there is no `{}`", file.display()));
            if ["tokenizer.model", "vocab.json"].iter().any(|old| folder.join(old).exists()) {
                error.with_hint("only `tokenizer.json` is read: save the tokenizer with transformers' fast class once")
            } else {
                error.with_hint("name a folder in the Hugging Face layout, or a `tokenizer.json`")
            }
        })?;
        Self::new(json, TokenizerFiles::load(folder)?)
            .map_err(|error| error.at(format!("`{}`", file.display())))
    }

    /// The tokenizer beside an adapter. How to sample, and what ends an answer, is said by the folder of its `base` where
    /// its own says nothing of it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_beside(folder: &Path, base: &Path) -> Result<Self> {
        let own = Self::load(folder)?;
        if own.files().generation_config.is_some() {
            return Ok(own);
        }
        let mut files = own.files().clone();
        files.generation_config = TokenizerFiles::load(base)?.generation_config;
        own.with_files(files)
    }

    /// A tokenizer from the bytes of a `tokenizer.json` and what the files beside it would say.
    pub fn new(json: Vec<u8>, files: TokenizerFiles) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_bytes(&json)
            .map_err(|error| Error::input(format!("not a tokenizer that can be read: {error}")))?;
        let json = if add_configured_tokens(&mut tokenizer, &files)? {
            tokenizer
                .to_string(true)
                .map_err(|error| Error::input(format!("tokenizer cannot be written: {error}")))?
                .into_bytes()
        } else {
            json
        };
        // lengths are the trainer's business; a file may carry the settings of whoever saved it
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::input(format!("truncation cannot be switched off: {error}")))?;
        let special = files.special_tokens();
        for (name, text) in &special {
            if tokenizer.token_to_id(text).is_none() {
                return Err(Error::input(format!(
                    "{name} `{text}` is no token of the tokenizer"
                )));
            }
        }
        let vocab_size = tokenizer
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1);
        Ok(Self {
            inner: Arc::new(Inner {
                fast: FastEncoder::new(&tokenizer),
                tokenizer,
                json,
                files,
                special,
                vocab_size,
            }),
        })
    }

    /// Token ids of a text. Special tokens in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self
            .inner
            .fast
            .as_ref()
            .and_then(|fast| fast.encode(&self.inner.tokenizer, text))
        {
            Some(ids) => Ok(ids),
            None => self.encode_by_crate(text),
        }
    }

    /// Whether [`encode`](Self::encode) has a quick way for this tokenizer.
    pub fn is_fast(&self) -> bool {
        self.inner.fast.is_some()
    }

    /// How it cuts text into words, where that is one of the ways known here.
    pub fn split_rule(&self) -> Option<SplitRule> {
        let pre_tokenizer = self.inner.tokenizer.get_pre_tokenizer()?;
        split_rule(&serde_json::to_value(pre_tokenizer).ok()?)
    }

    /// [`encode`](Self::encode) by the crate `tokenizers` alone: the reference for the fast way.
    pub fn encode_by_crate(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| Error::input(format!("text cannot be tokenised: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text that stands alone, as transformers' `tokenizer(text)` gives them: with the special tokens that
    /// `tokenizer.json` puts around it, such as Llama's `<|begin_of_text|>`. Rendered chats hold theirs already.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| Error::input(format!("text cannot be tokenised: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids. Bytes that are no UTF-8 become U+FFFD, and ids without a token nothing, as in transformers: a
    /// model's vocabulary is often padded beyond its tokenizer's, and a student with random weights samples from all of it.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .tokenizer
            .decode(ids, skip_special)
            .map_err(|error| Error::input(format!("token ids cannot be decoded: {error}")))
    }

    /// Id of a token, written as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token of an id, written as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// Whether `id` is an added token marked special, such as `<|im_end|>`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.tokenizer.get_added_vocabulary();
        added
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    /// One more than the largest id: the rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Text of the named special tokens: `bos_token`, `eos_token`, `pad_token` and so on, where they are set.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.inner.special
    }

    /// Id of a named special token.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.token_to_id(self.inner.special.get(name)?)
    }

    /// The bytes of its `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.inner.json
    }

    /// The files beside `tokenizer.json`, as read.
    pub fn files(&self) -> &TokenizerFiles {
        &self.inner.files
    }

    /// The same tokenizer with other files beside it.
    pub fn with_files(&self, files: TokenizerFiles) -> Result<Self> {
        Self::new(self.inner.json.clone(), files)
    }

    /// Writes `tokenizer.json` and the files beside it into `folder`, which exists.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.save_with(folder, &self.inner.files)
    }

    /// [`save`](Self::save) with other files beside `tokenizer.json`.
    pub(super) fn save_with(&self, folder: &Path, files: &TokenizerFiles) -> Result<()> {
        files::write(&folder.join("tokenizer.json"), &self.inner.json)?;
        files.save(folder)
    }
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextTokenizer({} tokens)", self.inner.vocab_size)
    }
}

/// Adds what `added_tokens_decoder` of `tokenizer_config.json` lists beyond `tokenizer.json`, as transformers does.
/// True when something was added.
fn add_configured_tokens(tokenizer: &mut Tokenizer, files: &TokenizerFiles) -> Result<bool> {
    let Some(listed) = files
        .config
        .get("added_tokens_decoder")
        .and_then(|v| v.as_object())
    else {
        return Ok(false);
    };
    let mut missing = Vec::new();
    for (id, token) in listed {
        let broken = || {
            Error::input(format!(
                "`added_tokens_decoder` of tokenizer_config.json: entry `{id}` is no token"
            ))
        };
        let id: u32 = id.parse().map_err(|_| broken())?;
        let content = token
            .get("content")
            .and_then(|c| c.as_str())
            .ok_or_else(broken)?;
        if tokenizer.token_to_id(content).is_none() {
            let flag = |name: &str, default: bool| {
                token.get(name).and_then(|v| v.as_bool()).unwrap_or(default)
            };
            let special = flag("special", false);
            missing.push((
                id,
                AddedToken::from(content, special)
                    .single_word(flag("single_word", false))
                    .lstrip(flag("lstrip", false))
                    .rstrip(flag("rstrip", false))
                    .normalized(flag("normalized", !special)),
            ));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in &missing {
        tokenizer.add_tokens([token.clone()]).map_err(|error| {
            Error::input(format!(
                "token `{}` cannot be added: {error}",
                token.content
            ))
        })?;
        if tokenizer.token_to_id(&token.content) != Some(*id) {
            return Err(Error::input(format!(
                "tokenizer_config.json gives token `{}` the id {id}, which tokenizer.json leaves no room for",
                token.content
            )));
        }
    }
    Ok(!missing.is_empty())
}
