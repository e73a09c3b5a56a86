//! The shape of an answer: R1's `<think>...</think><answer>...</answer>` and its variants, and how many of the four tags
//! are right. What stands inside the tags is not judged here, beyond that there is something.
//!
//! The tags are these very letters; `<Think>` or `< think >` are text. Every tag stands exactly once: a text that quotes a
//! tag inside its reasoning has no clear parts, and is refused.

use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::{Error, Result};

/// The four tags, in the order in which they stand.
pub const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// Which shape is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `<think>reasoning</think><answer>answer</answer>`: white space between the parts is free, nothing else is there.
    /// The paper's template writes spaces inside the tags, its models newlines: both are right.
    #[default]
    R1,
    /// The same with newlines where open-r1's template has them: after and before the content of each part, and one
    /// between the parts. Unlike its regular expression this ends at the end of the text: whatever follows `</answer>`
    /// but white space is wrong.
    OpenR1,
    /// `<think>reasoning</think>answer`: no `<answer>` tags; the reasoning may be empty, the answer may not.
    ThinkOnly,
}

/// The parts of a text that has the shape asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    pub reasoning: &'a str,
    pub answer: &'a str,
}

impl Format {
    /// Every format by name.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("r1", Self::R1),
        ("open-r1", Self::OpenR1),
        ("think-only", Self::ThinkOnly),
    ];

    /// The format called `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn parse(name: &str) -> Result<Self> {
        let known = Self::NAMES.into_iter().find(|(other, _)| *other == name);
        known.map(|(_, format)| format).ok_or_else(|| {
            Error::input(format!("unknown format `{name}`"))
                .with_hint("the formats are `r1`, `open-r1` and `think-only`")
        })
    }

    /// The parts of `text`, or why it has another shape.
    pub fn split(self, text: &str) -> std::result::Result<Parts<'_>, &'static str> {
        let tags = match self {
            Self::R1 | Self::OpenR1 => &TAGS[..],
            Self::ThinkOnly => &TAGS[..2],
        };
        let mut starts = [0; 4];
        let mut end = 0;
        for (start, tag) in starts.iter_mut().zip(tags) {
            let mut found = text.match_indices(tag);
            *start = found.next().ok_or("a tag is missing")?.0;
            if found.next().is_some() {
                return Err("a tag stands twice");
            }
            if *start < end {
                return Err("the tags are out of order");
            }
            end = *start + tag.len();
        }
        let before = &text[..starts[0]];
        let reasoning = &text[starts[0] + TAGS[0].len()..starts[1]];
        let after_thinking = &text[starts[1] + TAGS[1].len()..];
        if !before.trim().is_empty() {
            return Err("there is text before the reasoning");
        }
        let answer = if self == Self::ThinkOnly {
            if TAGS[2..].iter().any(|tag| text.contains(tag)) {
                return Err("there are answer tags");
            }
            after_thinking
        } else {
            let between = &text[starts[1] + TAGS[1].len()..starts[2]];
            let answer = &text[starts[2] + TAGS[2].len()..starts[3]];
            let rest = &text[starts[3] + TAGS[3].len()..];
            if !between.trim().is_empty() {
                return Err("there is text between reasoning and answer");
            }
            if !rest.trim().is_empty() {
                return Err("there is text after the answer");
            }
            if is_blank(reasoning) {
                return Err("the reasoning is empty");
            }
            let in_lines =
                |part: &str| part.len() > 1 && part.starts_with('\n') && part.ends_with('\n');
            if self == Self::OpenR1
                && !(before.is_empty()
                    && between == "\n"
                    && in_lines(reasoning)
                    && in_lines(answer))
            {
                return Err("a newline is missing at a tag");
            }
            answer
        };
        if is_blank(answer) {
            return Err("the answer is empty");
        }
        Ok(Parts { reasoning, answer })
    }

    /// The verdict on the shape of `text`; what was extracted is the answer.
    pub fn check(self, text: &str) -> Verdict {
        match self.split(text) {
            Ok(parts) => Verdict::new(
                super::Outcome::Correct,
                Some(parts.answer.trim()),
                "the format is right",
            ),
            Err(why) => Verdict::new(super::Outcome::Wrong, None, why),
        }
    }
}

/// A quarter for each of the four tags that stands exactly once and behind those before it; the last one also ends the
/// text. open-r1 counts tags wherever they stand; a heap of tags would be worth as much as an answer.
pub fn tag_count(text: &str) -> f64 {
    let mut end = 0;
    let mut num_right = 0;
    for tag in TAGS {
        let mut found = text.match_indices(tag);
        let (Some((start, _)), None) = (found.next(), found.next()) else {
            continue;
        };
        let after = &text[start + tag.len()..];
        if start < end || (tag == TAGS[3] && !after.trim().is_empty()) {
            continue;
        }
        // a part that closes holds something
        if tag.starts_with("</") && is_blank(&text[end..start]) {
            continue;
        }
        end = start + tag.len();
        num_right += 1;
    }
    f64::from(num_right) / 4.0
}

/// Whether there is nothing to read: white space, and characters that have no shape.
fn is_blank(text: &str) -> bool {
    text.chars().all(|c| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}')
    })
}

/// The `<think>` that a prompt ends with, and the white space behind it: what is written next stands inside the thinking.
pub fn opened_thinking(prompt: &str) -> Option<&str> {
    let tail = &prompt[prompt.rfind("<think>")?..];
    tail["<think>".len()..].trim().is_empty().then_some(tail)
}

/// The reasoning of a text: what stands before its last `</think>`, without the tag that opens it; where nothing closes
/// it, all of what follows `<think>`; where nobody thought, the whole text.
pub fn reasoning(text: &str) -> &str {
    let text = text.rfind("</think>").map_or(text, |at| &text[..at]);
    match text.find("<think>") {
        Some(at) => &text[at + "<think>".len()..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        // text, r1, open-r1, think-only
        let cases = [
            (
                "<think>\na\n</think>\n<answer>\nb\n</answer>",
                true,
                true,
                false,
            ),
            (
                "<think>\na\n</think>\n<answer>\nb\n</answer>\n",
                true,
                true,
                false,
            ),
            (
                "<think> a </think> <answer> b </answer>",
                true,
                false,
                false,
            ),
            ("<think>a</think><answer>b</answer>", true, false, false),
            (
                "\n<think>a</think>\n\n<answer>b</answer> \n",
                true,
                false,
                false,
            ),
            (
                "<think>\na\n</think>\n\n<answer>\nb\n</answer>",
                true,
                false,
                false,
            ),
            ("<think>a</think>b", false, false, true),
            ("<think>a</think>\n\nb\n", false, false, true),
            ("<think></think>b", false, false, true),
            ("<think></think><answer>b</answer>", false, false, false),
            (
                "<think>\n</think>\n<answer>\nb\n</answer>",
                false,
                false,
                false,
            ),
            ("<think>a</think><answer> </answer>", false, false, false),
            ("<think>a</think>", false, false, false),
            ("a</think>b", false, false, false),
            ("<think>a", false, false, false),
            ("b", false, false, false),
            ("", false, false, false),
        ];
        for (text, r1, open_r1, think_only) in cases {
            let found = Format::NAMES.map(|(_, format)| format.check(text).is_correct());
            assert_eq!(found, [r1, open_r1, think_only], "{text:?}");
        }
        let parts = Format::R1.split("<think>é</think><answer>数</answer>");
        assert_eq!(
            parts,
            Ok(Parts {
                reasoning: "é",
                answer: "数"
            })
        );
        assert!(Format::parse("r2").is_err());
    }

    #[test]
    fn tags_are_counted_in_their_order() {
        let cases = [
            ("<think>\na\n</think>\n<answer>\nb\n</answer>", 1.0),
            ("<think>a</think><answer>b</answer>\n", 1.0),
            ("a", 0.0),
            ("<think>a</think>b</answer>", 0.75),
            ("<think>a</think><answer>b", 0.75),
            ("a</think><answer>b</answer>", 0.75),
            ("<think>a<answer>b</answer>", 0.75),
            ("<think><think>a</think><answer>b</answer>", 0.75),
            ("<think>a</think><answer>b</answer> and more", 0.75),
            // a heap of tags
            ("<think></think><answer></answer>", 0.5),
            ("</answer><answer></think><think>", 0.25),
            ("", 0.0),
        ];
        for (text, expected) in cases {
            assert_eq!(tag_count(text), expected, "{text:?}");
        }
    }

    #[test]
    fn reasoning_stands_before_the_answer() {
        let cases = [
            ("<think>a</think>b", "a"),
            ("a</think>b", "a"),
            ("<think>a", "a"),
            ("a", "a"),
            ("<think>a</think>b<think>c</think>d", "a</think>b<think>c"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(reasoning(text), expected, "{text:?}");
        }
    }
}
