//! How the family `arithmetic` reads: wordings of the problem, the trace, and the words they are made of. The arithmetic
//! itself is in [`super::chain`].

use super::builtin_tokenizer;
use super::chain::{Chain, Op, Random};
use crate::Result;
use crate::tokenize::TextTokenizer;

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

pub fn sign(op: Op) -> char {
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

/// The tokenizer of the family.
pub fn tokenizer() -> Result<TextTokenizer> {
    builtin_tokenizer::of_words(&WORDS)
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
