//! How the family `arithmetic` reads: wordings of the problem, the trace, the tokenizer and the chat template. The
//! arithmetic itself is in [`super::builtin`].

use super::builtin::{Chain, Op, Random};
use crate::tokenize::TextTokenizer;
use crate::tokenize::files::TokenizerFiles;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const NAMES: [&str; 4] = ["Mia", "Tom", "Ada", "Leo"];

/// One of three wordings.
pub fn problem(chain: &Chain, random: &mut Random) -> String {
    let wording = random.between(0, 2);
    let start = chain.start;
    let said = |add: &str, subtract: &str, multiply: &str, between: &str| -> String {
        let steps = chain.steps.iter().map(|step| {
            let verb = match step.op {
                Op::Add => add,
                Op::Subtract => subtract,
                Op::Multiply => multiply,
            };
            format!("{between}{verb} {}", step.operand)
        });
        steps.collect()
    };
    match wording {
        0 => format!(
            "Start with {start}{}. What is the result?",
            said("add", "subtract", "multiply by", ", ")
        ),
        1 => format!(
            "What is {start}{}, from left to right?",
            said("plus", "minus", "times", " ")
        ),
        _ => {
            let name = NAMES[random.between(0, NAMES.len() as i64 - 1) as usize];
            format!(
                "{name} has {start} coins{}. How many coins are left?",
                said("finds", "loses", "multiplies them by", ", ")
            )
        }
    }
}

/// Reasoning and answer. What it says depends on the problem alone, so that every token can be learnt.
pub fn solution(chain: &Chain) -> (String, String) {
    let mut reasoning = String::from("Let me work step by step.\n");
    let last = chain.steps.len() - 1;
    for (index, step) in chain.steps.iter().enumerate() {
        let word = match index {
            0 => "First",
            _ if index == last => "Finally",
            1 => "Then",
            _ => "Next",
        };
        let (a, sign, b, c) = (step.before, sign(step.op), step.operand, step.after);
        reasoning.push_str(&format!("{word} {a}{sign}{b}={c}.\n"));
    }
    let step = chain.steps[last];
    if step.op == Op::Subtract {
        let (a, b, c) = (step.after, step.operand, step.before);
        reasoning.push_str(&format!("Wait, let me check: {a}+{b}={c}. Good.\n"));
    }
    let answer = format!("The answer is \\boxed{{{}}}.", chain.result());
    (reasoning, answer)
}

fn sign(op: Op) -> char {
    match op {
        Op::Add => '+',
        Op::Subtract => '-',
        Op::Multiply => '*',
    }
}

/// What the texts above are made of, each one token. Any other text falls into bytes; nothing is unknown.
const WORDS: [&str; 62] = [
    "user",
    "assistant",
    "system",
    "\n\n",
    ".\n",
    "}.",
    " \\",
    "boxed",
    "First",
    "Then",
    "Next",
    "Finally",
    "Wait",
    "Let",
    " let",
    " me",
    " work",
    " step",
    " by",
    " check",
    " Good",
    "The",
    " answer",
    " is",
    "Start",
    " with",
    " add",
    " subtract",
    " multiply",
    " What",
    " the",
    " result",
    "What",
    " plus",
    " minus",
    " times",
    " from",
    " left",
    " to",
    " right",
    "Mia",
    "Tom",
    "Ada",
    "Leo",
    " has",
    " coins",
    " finds",
    " loses",
    " multiplies",
    " them",
    " How",
    " many",
    " are",
    "Compute",
    " and",
    " of",
    " a",
    " so",
    " then",
    " we",
    " you",
    " it",
];

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

/// The tokenizer: whole words as far as the texts above use them, bytes for everything else, digits always alone. It is cut
/// and merged as Qwen2's is, because transformers makes a Qwen2 student's tokenizer anew from its words and merges alone.
pub fn tokenizer() -> Result<TextTokenizer> {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    };
    SPECIAL.iter().for_each(|(token, _)| add((*token).into()));
    (0..=255u8).for_each(|byte| add(byte_char(byte).into()));
    let merges = merges();
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

/// Byte-pair merges that make each of [`WORDS`] one token: the commonest pair first, the smaller one among equals.
fn merges() -> Vec<(String, String)> {
    let mut words: Vec<Vec<String>> = WORDS
        .iter()
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

#[cfg(test)]
mod tests {
    use super::super::builtin;
    use super::*;
    use crate::tokenize::Chat;

    #[test]
    fn any_text_survives_the_tokenizer() {
        let tokenizer = tokenizer().unwrap();
        for text in [
            "12+30=42.\n",
            "  a\tb\r\n",
            "Ünïcode 中文 🙂",
            "<think>\nx</think>\n\n",
            "\0",
        ] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
        let ids = tokenizer.encode("420").unwrap();
        assert_eq!(ids.len(), 3);
        assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [2]);
    }

    #[test]
    fn every_piece_of_a_trace_is_one_token() {
        let chat = Chat::new(tokenizer().unwrap(), None).unwrap();
        for trace in builtin::traces("arithmetic", 3, 300).unwrap() {
            for text in [
                &trace.problem,
                &trace.reasoning.unwrap(),
                &trace.answer.unwrap(),
            ] {
                let ids = chat.tokenizer.encode(text).unwrap();
                let tokens: Vec<String> = ids
                    .iter()
                    .map(|&id| chat.tokenizer.decode(&[id], false).unwrap())
                    .collect();
                assert_eq!(tokens, cut_by_hand(text), "{text}");
            }
        }
    }

    /// The pieces of ASCII text, cut by hand as [`PIECES`] says.
    fn cut_by_hand(text: &str) -> Vec<String> {
        let mut pieces: Vec<String> = Vec::new();
        let chars: Vec<char> = text.chars().collect();
        let sign = |c: char| !c.is_whitespace() && !c.is_alphanumeric();
        let mut i = 0;
        while i < chars.len() {
            let start = i;
            let body = usize::from(chars[i] == ' ');
            let next = chars.get(i + body).copied().unwrap_or(' ');
            let mut skip = |which: &dyn Fn(char) -> bool| {
                while i < chars.len() && which(chars[i]) {
                    i += 1;
                }
            };
            if chars[start].is_ascii_digit() {
                i += 1;
            } else if next.is_alphabetic() {
                skip(&|c| c == ' ');
                skip(&char::is_alphabetic);
            } else if sign(next) {
                skip(&|c| c == ' ');
                skip(&sign);
                skip(&|c| c == '\n');
            } else {
                skip(&char::is_whitespace);
            }
            pieces.push(chars[start..i].iter().collect());
        }
        pieces
    }
}
