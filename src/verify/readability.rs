//! Can a person read this reasoning? The four things that the paper's filter drops or that every reader stumbles over:
//! several languages, overlong paragraphs, code blocks, repetition.
//!
//! The paper names the first three and gives no numbers (arXiv 2501.12948, section 2.3.3); the limits here are ours and can
//! be set. Nothing is judged right or wrong: the measures are kept beside the flags.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::format;
use super::language;

/// From where on a flag is raised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadabilityLimits {
    /// Mixed below this share of words in the main language.
    pub min_language_share: f64,
    /// Longest paragraph in characters; paragraphs end at an empty line.
    pub max_paragraph_chars: usize,
    /// Code blocks that are allowed.
    pub max_code_blocks: usize,
    /// Words that are repeated together, see [`repeated_share`].
    pub repetition_ngram: usize,
    /// Largest share of such repetitions.
    pub max_repeated_share: f64,
}

impl Default for ReadabilityLimits {
    fn default() -> Self {
        Self {
            min_language_share: language::CONSISTENT_SHARE,
            max_paragraph_chars: 2500,
            max_code_blocks: 0,
            repetition_ngram: 8,
            max_repeated_share: 0.3,
        }
    }
}

/// One reason why a text is hard to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    MixedLanguage,
    OverlongParagraph,
    CodeBlock,
    Repetition,
}

impl Flag {
    /// As it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::MixedLanguage => "mixed_language",
            Self::OverlongParagraph => "overlong_paragraph",
            Self::CodeBlock => "code_block",
            Self::Repetition => "repetition",
        }
    }
}

/// The measures of a reasoning, and what they say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Readability {
    pub flags: Vec<Flag>,
    /// ISO 639-1 code of the main language; none where there are no words.
    pub language: Option<String>,
    /// Share of the words that are in it.
    pub language_share: f64,
    pub longest_paragraph_chars: usize,
    pub num_code_blocks: usize,
    pub repeated_share: f64,
}

impl Readability {
    /// Nothing stands out.
    pub fn is_readable(&self) -> bool {
        self.flags.is_empty()
    }
}

/// Measures the reasoning of `text`: what stands before `</think>`, or the whole text where nobody thought.
pub fn readability(text: &str, limits: &ReadabilityLimits) -> Readability {
    let reasoning = format::reasoning(text);
    let main = language::main_language(reasoning);
    let language_share = main.map_or(1.0, |(_, found)| found.share());
    let longest_paragraph_chars = longest_paragraph(reasoning);
    let num_code_blocks = num_code_blocks(reasoning);
    let repeated_share = repeated_share(words(reasoning), limits.repetition_ngram);
    let flags = [
        (
            language_share < limits.min_language_share,
            Flag::MixedLanguage,
        ),
        (
            longest_paragraph_chars > limits.max_paragraph_chars,
            Flag::OverlongParagraph,
        ),
        (num_code_blocks > limits.max_code_blocks, Flag::CodeBlock),
        (repeated_share > limits.max_repeated_share, Flag::Repetition),
    ];
    Readability {
        flags: flags
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, flag)| flag)
            .collect(),
        language: main.map(|(language, _)| language.code().to_string()),
        language_share,
        longest_paragraph_chars,
        num_code_blocks,
        repeated_share,
    }
}

fn longest_paragraph(text: &str) -> usize {
    let mut longest = 0;
    let mut length = 0;
    for line in text.lines() {
        if line.trim().is_empty() {
            length = 0;
        } else {
            length += line.chars().count();
            longest = longest.max(length);
        }
    }
    longest
}

/// Fences that open, whether or not they close.
fn num_code_blocks(text: &str) -> usize {
    let fences = text.lines().filter(|line| {
        let line = line.trim_start();
        line.starts_with("```") || line.starts_with("~~~")
    });
    fences.count().div_ceil(2)
}

/// The words of a text for counting repetitions, small: runs of letters and digits, every other character that is no white
/// space by itself, and so are Han characters and kana.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let is_alone = |c: char| {
            !c.is_alphanumeric()
                || matches!(u32::from(c), 0x2e80..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
        };
        let length = if is_alone(first) {
            first.len_utf8()
        } else {
            rest.find(is_alone).unwrap_or(rest.len())
        };
        let word = rest[..length].to_lowercase();
        rest = &rest[length..];
        Some(word)
    })
}

/// The share of runs of `n` words that have been there before: 1 - distinct / all. 0 where there are fewer than `n` words.
pub fn repeated_share(words: impl Iterator<Item = String>, n: usize) -> f64 {
    let n = n.max(1);
    let hashes: Vec<u64> = words
        .map(|word| {
            let mut hasher = DefaultHasher::new();
            word.hash(&mut hasher);
            hasher.finish()
        })
        .collect();
    if hashes.len() < n {
        return 0.0;
    }
    // a polynomial in a random looking base, rolled along
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    let highest = (0..n).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let mut rolled = 0_u64;
    let mut seen = HashSet::new();
    for (at, hash) in hashes.iter().enumerate() {
        rolled = rolled.wrapping_mul(BASE).wrapping_add(*hash);
        if at >= n {
            rolled = rolled.wrapping_sub(hashes[at - n].wrapping_mul(highest));
        }
        if at + 1 >= n {
            seen.insert(rolled);
        }
    }
    let num_runs = hashes.len() + 1 - n;
    1.0 - seen.len() as f64 / num_runs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Vec<Flag> {
        readability(text, &ReadabilityLimits::default()).flags
    }

    #[test]
    fn flags_by_hand() {
        let sum = "We add two and two and get four. ";
        assert_eq!(flags(sum), []);
        assert_eq!(flags(""), []);
        // the answer is not judged
        assert_eq!(flags("<think>We add them.</think>\n```\nx\n```"), []);
        assert_eq!(
            flags("We add 二和二得到四 and get four."),
            [Flag::MixedLanguage]
        );
        assert_eq!(
            flags("We run it.\n```python\nprint(4)\n```\nFour."),
            [Flag::CodeBlock]
        );
        assert_eq!(flags(&sum.repeat(10)), [Flag::Repetition]);
        let long: String = (0..700).map(|i| format!("x{i} ")).collect();
        assert_eq!(flags(&long), [Flag::OverlongParagraph]);
        assert_eq!(flags(&long.replace("x300", "\n\nx300")), []);
    }

    #[test]
    fn repetition_by_hand() {
        let cases = [
            ("this is a this is a test", 3, 0.2), // 5 runs, 4 distinct
            ("a a a a a", 2, 0.75),
            ("a b c", 3, 0.0),
            ("a b", 3, 0.0),
            ("我们我们", 2, 1.0 / 3.0),
            ("", 1, 0.0),
        ];
        for (text, n, expected) in cases {
            let found = repeated_share(words(text), n);
            assert!((found - expected).abs() < 1e-12, "{text:?}: {found}");
        }
    }
}
