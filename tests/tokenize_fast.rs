//! The quick way of tokenising against the crate `tokenizers`, on tokenizers trained here in the manner of GPT-2, Qwen2 and
//! Llama 3. `tests/peers/tokenize_files.py` hands in real ones by `DISTILL_TOKENIZER_CASES`.

use distill::tokenize::TextTokenizer;
use distill::tokenize::files::TokenizerFiles;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

const SAMPLE: &str = include_str!("tokenize_fast.rs");

/// A byte-level BPE of this file's own text with the given parts.
fn tokenizer(
    normalizer: Value,
    pre_tokenizer: Value,
    ignore_merges: bool,
    added: &[AddedToken],
) -> TextTokenizer {
    let mut model = BPE::default();
    model.ignore_merges = ignore_merges;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(600)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    tokenizer.train(&mut trainer, SAMPLE.lines()).unwrap();
    tokenizer.add_tokens(added.iter().cloned()).unwrap();
    let mut json: Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    json["normalizer"] = normalizer;
    json["pre_tokenizer"] = pre_tokenizer;
    TextTokenizer::new(json.to_string().into_bytes(), TokenizerFiles::default()).unwrap()
}

fn by_pattern(digits: &str) -> Value {
    let pattern = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
        digits,
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ];
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern.concat()}, "behavior": "Isolated", "invert": false},
        byte_level(false),
    ]})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn added() -> Vec<AddedToken> {
    vec![
        AddedToken::from("<|end|>", true).normalized(false),
        AddedToken::from("<|end|>x", true).normalized(false),
        AddedToken::from("<think>", false).normalized(false),
        AddedToken::from("caf\u{e9}", false).normalized(true),
    ]
}

#[test]
fn equal_to_the_crate_on_random_text() {
    let nfc = json!({"type": "NFC"});
    let kinds = [
        tokenizer(nfc.clone(), by_pattern(""), false, &added()),
        tokenizer(Value::Null, by_pattern("{1,3}"), true, &added()),
        tokenizer(Value::Null, byte_level(true), false, &[]),
        tokenizer(nfc, byte_level(true), false, &added()),
    ];
    let pieces = [
        "<|end|>",
        "<|end|>x",
        "<|en",
        "<think>",
        "cafe\u{301}",
        "caf\u{e9}",
        " the",
        "text",
        "tokenizer",
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        "123",
        "4",
        "²",
        "é",
        "e\u{301}",
        "\u{212b}",
        "\u{1100}\u{1161}",
        "\u{ac00}\u{11a8}",
        "か\u{3099}",
        "\u{958}",
        "👍🏽",
        "好的",
        "_",
        "::",
        "();",
        " ",
        ".",
        "\u{a0}",
        "\u{fb1d}",
        "ſ",
    ];
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for tokenizer in &kinds {
        assert!(tokenizer.is_fast());
        for _ in 0..3000 {
            let text: String = (0..random(12))
                .map(|_| pieces[random(pieces.len())])
                .collect();
            assert_eq!(
                tokenizer.encode(&text).unwrap(),
                tokenizer.encode_by_crate(&text).unwrap(),
                "{text:?}"
            );
        }
        for text in [
            SAMPLE,
            "",
            &"ab".repeat(5000),
            &" ".repeat(3000),
            &"=".repeat(3001),
        ] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids, tokenizer.encode_by_crate(text).unwrap());
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
}

#[test]
fn what_is_not_known_is_left_to_the_crate() {
    let strips = AddedToken::from("<mask>", true).lstrip(true);
    for (normalizer, pre_tokenizer, added) in [
        (json!({"type": "Lowercase"}), byte_level(true), vec![]),
        (json!({"type": "NFKC"}), byte_level(true), vec![]),
        (Value::Null, by_pattern("{1,2}"), vec![]),
        (
            Value::Null,
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
            vec![],
        ),
        (Value::Null, byte_level(true), vec![strips]),
    ] {
        let tokenizer = tokenizer(normalizer, pre_tokenizer, false, &added);
        assert!(!tokenizer.is_fast());
        let text = "Some  <mask> Text ½";
        assert_eq!(
            tokenizer.encode(text).unwrap(),
            tokenizer.encode_by_crate(text).unwrap()
        );
    }
}

#[test]
fn ids_outside_the_vocabulary_have_no_text() {
    let tokenizer = tokenizer(Value::Null, byte_level(true), false, &[]);
    let size = tokenizer.vocab_size() as u32;
    assert_eq!(size, 600);
    // a padded head can sample them
    let mut ids = tokenizer.encode("ab").unwrap();
    ids.push(size);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "ab");
    assert!(tokenizer.id_to_token(size).is_none());
}

#[derive(Deserialize)]
struct Case {
    from: PathBuf,
    to: PathBuf,
    texts: Vec<String>,
    /// By transformers; empty where only the crate judges.
    ids: Vec<Vec<u32>>,
}

/// Loads `from`, encodes and decodes, and saves into `to` for transformers to load.
#[test]
fn folders_are_read_and_saved() {
    let own = tempfile::tempdir().unwrap();
    let cases: Vec<Case> = match std::env::var("DISTILL_TOKENIZER_CASES") {
        Ok(file) => serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap(),
        Err(_) => {
            let (from, to) = (own.path().join("from"), own.path().join("to"));
            std::fs::create_dir_all(&from).unwrap();
            let tokenizer = tokenizer(json!({"type": "NFC"}), by_pattern(""), false, &added());
            tokenizer.save(&from).unwrap();
            vec![Case {
                from,
                to,
                texts: SAMPLE.lines().map(String::from).collect(),
                ids: Vec::new(),
            }]
        }
    };
    for case in cases {
        let loaded = TextTokenizer::load(&case.from).unwrap();
        std::fs::create_dir_all(&case.to).unwrap();
        loaded.save(&case.to).unwrap();
        let saved = TextTokenizer::load(&case.to).unwrap();
        for (index, text) in case.texts.iter().enumerate() {
            let ids = loaded.encode(text).unwrap();
            assert_eq!(
                ids,
                case.ids
                    .get(index)
                    .cloned()
                    .unwrap_or(loaded.encode_by_crate(text).unwrap()),
                "{text:?}"
            );
            assert_eq!(ids, saved.encode(text).unwrap());
        }
        assert_eq!(
            std::fs::read(case.from.join("tokenizer.json")).unwrap(),
            std::fs::read(case.to.join("tokenizer.json")).unwrap()
        );
    }
}
