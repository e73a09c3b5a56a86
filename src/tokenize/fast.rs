//! The quick way through byte-level BPE: text to ids as the crate `tokenizers` gives them, several times faster.
//!
//! Words come from [`SplitRule`], and most of them from a cache; only a word not seen before is merged, by the crate. A
//! tokenizer that does anything not known here (another normaliser, another pattern, added tokens that strip spaces) has
//! no quick way, and one whose quick way differs from the crate on a sample does not use it.

use super::split::SplitRule;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};
use tokenizers::{Model, NormalizedString, Normalizer, Tokenizer};

/// What is needed beside the crate's tokenizer to encode quickly.
pub struct FastEncoder {
    rule: SplitRule,
    /// Text is brought into NFC first.
    nfc: bool,
    /// Added tokens looked for in the text as it is, and in the normalised text.
    raw: TokenSet,
    normalized: TokenSet,
    /// The character that stands for each byte in the vocabulary.
    alphabet: [char; 256],
    /// One for each caller at a time.
    caches: Mutex<Vec<WordCache>>,
}

impl FastEncoder {
    /// The quick way of this tokenizer, where there is one.
    pub fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let described = |part: Option<serde_json::Result<Value>>| {
            part.transpose().ok().map(|v| v.unwrap_or(Value::Null))
        };
        let normalizer = described(tokenizer.get_normalizer().map(serde_json::to_value))?;
        let nfc = match &normalizer {
            Value::Null => false,
            value if *value == json!({"type": "NFC"}) => true,
            _ => return None,
        };
        let rule = split_rule(&described(
            tokenizer.get_pre_tokenizer().map(serde_json::to_value),
        )?)?;
        let model = described(Some(model_options(tokenizer)))?;
        // dropout makes a word's ids change from call to call
        if model.get("type")? != "BPE" || model.get("dropout")?.as_f64().unwrap_or(0.0) != 0.0 {
            return None;
        }
        let added = tokenizer.get_added_vocabulary();
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in added.get_added_tokens_decoder() {
            if token.single_word || token.lstrip || token.rstrip {
                return None;
            }
            match token.normalized {
                false => raw.push((token.content.clone(), *id)),
                true => normalized.push((normalize(tokenizer, &token.content)?, *id)),
            }
        }
        let fast = Self {
            rule,
            nfc,
            raw: TokenSet::new(raw),
            normalized: TokenSet::new(normalized),
            alphabet: byte_alphabet(),
            caches: Mutex::new(Vec::new()),
        };
        let sample =
            "I'LL don't  pay\n\n $1234.5;\r\n\tok  <b>é e\u{301} 好 👍🏽 ①²\u{3000}x\u{a0}</b>\n";
        let expected = tokenizer.encode_fast(sample, false).ok()?;
        (fast.encode(tokenizer, sample)? == expected.get_ids()).then_some(fast)
    }

    /// Ids of a text; `None` where something unforeseen happened and the crate has to do it.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Option<Vec<u32>> {
        let mut cache = self.lock().pop().unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        let complete = self.raw.cut(text, &mut ids, |piece, ids| {
            if self.nfc && !is_nfc(piece) {
                let piece = normalize(tokenizer, piece)?;
                return self.encode_piece(tokenizer, &piece, &mut cache, ids);
            }
            self.encode_piece(tokenizer, piece, &mut cache, ids)
        });
        self.lock().push(cache);
        complete.map(|()| ids)
    }

    fn encode_piece(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        cache: &mut WordCache,
        ids: &mut Vec<u32>,
    ) -> Option<()> {
        self.normalized.cut(text, ids, |piece, ids| {
            let mut failed = false;
            let split = self.rule.split(piece, |word| {
                if let Some(known) = cache.get(word) {
                    ids.extend_from_slice(known);
                } else {
                    match self.merge(tokenizer, word) {
                        Some(found) => {
                            ids.extend_from_slice(&found);
                            cache.put(word, &found);
                        }
                        None => failed = true,
                    }
                }
            });
            (split && !failed).then_some(())
        })
    }

    /// Ids of one word, by the crate.
    fn merge(&self, tokenizer: &Tokenizer, word: &str) -> Option<Vec<u32>> {
        let spelled: String = word
            .bytes()
            .map(|byte| self.alphabet[byte as usize])
            .collect();
        let tokens = tokenizer.get_model().tokenize(&spelled).ok()?;
        Some(tokens.iter().map(|token| token.id).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<WordCache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The model's options without its vocabulary and merges, which would take long to write out.
fn model_options(tokenizer: &Tokenizer) -> serde_json::Result<Value> {
    use tokenizers::models::ModelWrapper;
    Ok(match tokenizer.get_model() {
        ModelWrapper::BPE(model) => json!({"type": "BPE", "dropout": model.dropout}),
        _ => json!({"type": "other"}),
    })
}

/// The rule of a pre-tokenizer: `ByteLevel` with its own pattern, or `Split` by a known one and then `ByteLevel`.
pub(super) fn split_rule(pre_tokenizer: &Value) -> Option<SplitRule> {
    let is_byte_level = |part: &Value, use_regex: bool| {
        part["type"] == "ByteLevel"
            && part["add_prefix_space"] == false
            && part["use_regex"] == use_regex
    };
    if is_byte_level(pre_tokenizer, true) {
        return Some(SplitRule::Gpt2);
    }
    match pre_tokenizer["pretokenizers"].as_array()?.as_slice() {
        [split, bytes] if pre_tokenizer["type"] == "Sequence" && is_byte_level(bytes, false) => {
            let isolates = split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] == false;
            SplitRule::of_pattern(split["pattern"]["Regex"].as_str().filter(|_| isolates)?)
        }
        _ => None,
    }
}

fn normalize(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized).ok()?;
    }
    Some(normalized.get().to_string())
}

/// True only for text in NFC: every character is of a block in which none is decomposed, combines or is combined with.
fn is_nfc(text: &str) -> bool {
    text.is_ascii()
        || text.chars().all(|c| {
            matches!(u32::from(c),
                0..=0x2ff
                | 0x370..=0x373 | 0x391..=0x482 | 0x48a..=0x52f          // Greek without accents, Cyrillic
                | 0x2002..=0x20cf | 0x2100..=0x2125 | 0x212c..=0x2328    // punctuation, currency, letter-like, arrows, operators
                | 0x232b..=0x2adb | 0x2add..=0x2bff                      // technical, boxes, shapes, operators
                | 0x3001..=0x3029 | 0x3030..=0x3098 | 0x309b..=0x9fff    // CJK punctuation, kana, ideographs
                | 0xac00..=0xd7a3 | 0xfe00..=0xfe1f | 0xfe30..=0xfe6b | 0xff01..=0xffef
                | 0x1d400..=0x1d7ff | 0x1f000..=0x1faff | 0x20000..=0x2a6df)
        })
}

/// How `ByteLevel` spells bytes: printable Latin-1 as itself, the rest from U+0100 on.
fn byte_alphabet() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}

/// Added tokens by their first byte, the longest first.
struct TokenSet {
    by_first: Vec<Vec<(String, u32)>>,
    /// Whether a token begins with the byte.
    begins: [bool; 256],
}

impl TokenSet {
    fn new(mut tokens: Vec<(String, u32)>) -> Self {
        tokens.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let mut set = Self {
            by_first: vec![Vec::new(); 256],
            begins: [false; 256],
        };
        for (text, id) in tokens {
            if let Some(&first) = text.as_bytes().first() {
                set.begins[first as usize] = true;
                set.by_first[first as usize].push((text, id));
            }
        }
        set
    }

    /// Pushes the ids of the tokens in `text`, leftmost and longest first, and hands what lies between to `rest`.
    fn cut(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        mut rest: impl FnMut(&str, &mut Vec<u32>) -> Option<()>,
    ) -> Option<()> {
        let bytes = text.as_bytes();
        let (mut start, mut at) = (0, 0);
        while let Some(ahead) = bytes[at..]
            .iter()
            .position(|&byte| self.begins[byte as usize])
        {
            at += ahead;
            let found = self.by_first[bytes[at] as usize]
                .iter()
                .find(|(token, _)| bytes[at..].starts_with(token.as_bytes()));
            match found {
                Some((token, id)) => {
                    if start < at {
                        rest(&text[start..at], ids)?;
                    }
                    ids.push(*id);
                    at += token.len();
                    start = at;
                }
                None => at += 1,
            }
        }
        if start < text.len() {
            rest(&text[start..], ids)
        } else {
            Some(())
        }
    }
}

/// Ids of words seen before. Words are pieces of natural text: few make up most of it.
#[derive(Default)]
struct WordCache {
    /// Where a word's ids lie in `ids`, and how many there are.
    places: HashMap<Box<str>, (u32, u32), BuildHasherDefault<WordHasher>>,
    ids: Vec<u32>,
}

impl WordCache {
    const MAX_WORDS: usize = 1 << 17;
    const MAX_BYTES: usize = 64;

    fn get(&self, word: &str) -> Option<&[u32]> {
        let &(start, len) = self.places.get(word)?;
        self.ids.get(start as usize..(start + len) as usize)
    }

    fn put(&mut self, word: &str, ids: &[u32]) {
        if word.len() > Self::MAX_BYTES {
            return;
        }
        if self.places.len() >= Self::MAX_WORDS {
            self.places.clear();
            self.ids.clear();
        }
        self.places
            .insert(word.into(), (self.ids.len() as u32, ids.len() as u32));
        self.ids.extend_from_slice(ids);
    }
}

/// Multiply and fold, eight bytes at a time. Only speed hangs on it.
#[derive(Default)]
struct WordHasher(u64);

impl WordHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.mix(
                chunk
                    .iter()
                    .rev()
                    .fold(0, |word, &byte| word << 8 | u64::from(byte)),
            );
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            self.mix(
                rest.iter()
                    .fold(rest.len() as u64, |word, &byte| word << 8 | u64::from(byte)),
            );
        }
    }

    fn write_u8(&mut self, _: u8) {} // the mark behind a str: one word is hashed at a time

    fn finish(&self) -> u64 {
        self.0
    }
}
