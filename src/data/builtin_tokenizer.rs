//! Tokenizers of the built-in families, made from the words of their texts, with a chat template.

use crate::tokenize::TextTokenizer;
use crate::tokenize::files::TokenizerFiles;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};

/// Special tokens come first: padding is 0.
const SPECIAL: [(&str, bool); 5] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<think>", false),
    ("</think>", false),
];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Qwen2's cut: digits one by one, words with the space before them, signs with the line ends behind them.
const PIECES: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer: each of `words` in one token, bytes for everything else, digits always alone. It is cut
/// and merged as Qwen2's is, because transformers makes a Qwen2 student's tokenizer anew from its words and merges alone.
pub fn of_words(words: &[&str]) -> Result<TextTokenizer> {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    };
    SPECIAL.iter().for_each(|(token, _)| add((*token).into()));
    (0..=255u8).for_each(|byte| add(byte_char(byte).into()));
    let merges = merges(words);
    merges.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, (content, special))| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
        },
    });
    let bytes = serde_json::to_vec_pretty(&tokenizer)
        .map_err(|e| Error::input(format!("built-in tokenizer: {e}")))?;
    let Value::Object(config) = json!({
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": false,
        "model_max_length": 32768,
    }) else {
        return Err(Error::input(
            "built-in tokenizer: its settings are no object",
        ));
    };
    TextTokenizer::new(
        bytes,
        TokenizerFiles {
            config,
            special_tokens_map: None,
            generation_config: None,
            chat_template: Some(CHAT_TEMPLATE.to_string()),
        },
    )
}

/// Byte-pair merges that make each word one token: first those of ASCII words, the commonest pair first, the smaller one
/// among equals; then the bytes of every other character, then its words from left to right, so that no token ever holds
/// half a character.
fn merges(words: &[&str]) -> Vec<(String, String)> {
    let mut merges = ascii_merges(words);
    let mut seen: HashSet<(String, String)> = merges.iter().cloned().collect();
    let mut join = |parts: Vec<String>| -> String {
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or_default();
        parts.fold(first, |left, right| {
            let both = format!("{left}{right}");
            if seen.insert((left.clone(), right.clone())) {
                merges.push((left, right));
            }
            both
        })
    };
    let others = words.iter().filter(|word| !word.is_ascii());
    let words: Vec<Vec<String>> = others
        .map(|word| {
            let bytes = |c: char| c.to_string().bytes().map(|b| byte_char(b).into()).collect();
            word.chars().map(|c| join(bytes(c))).collect()
        })
        .collect();
    for word in words {
        join(word);
    }
    merges
}

fn ascii_merges(words: &[&str]) -> Vec<(String, String)> {
    let mut words: Vec<Vec<String>> = words
        .iter()
        .filter(|word| word.is_ascii())
        .map(|word| {
            word.bytes()
                .map(|byte| byte_char(byte).to_string())
                .collect()
        })
        .collect();
    let mut merges = Vec::new();
    loop {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry((&pair[0], &pair[1])).or_default() += 1;
        }
        // of equal counts the first one, which is the smaller pair
        let best = counts
            .iter()
            .rev()
            .max_by_key(|(_, count)| **count)
            .map(|((a, b), _)| (a.to_string(), b.to_string()));
        let Some((a, b)) = best else { return merges };
        for word in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == a && word[i + 1] == b {
                    word[i] = format!("{a}{b}");
                    word.remove(i + 1);
                }
                i += 1;
            }
        }
        merges.push((a, b));
    }
}

/// GPT-2's printable stand-in for a byte, as byte-level tokenizers write it.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + before).unwrap_or('\u{FFFD}')
}
