//! Cutting text into words as the regular expressions of GPT-2, Qwen2 and Llama 3 do, without a regular expression.
//!
//! Which characters are letters, numbers and white space is asked once of the engine that the crate `tokenizers` uses, so
//! that both know the same Unicode. Other patterns stay with the crate ([`super::fast`] decides).

use std::sync::LazyLock;
use tokenizers::utils::SysRegex;

/// How text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitRule {
    /// `ByteLevel` with its own expression.
    Gpt2,
    /// Qwen2 and Llama 3, which differ in how many digits make a word (1 and 3).
    Modern { max_digits: usize },
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const MODERN_HEAD: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}";
const MODERN_TAIL: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3;

/// The class of every code point.
static CLASSES: LazyLock<Option<Vec<u8>>> = LazyLock::new(|| {
    let every: String = (0..=u32::from(char::MAX))
        .filter_map(char::from_u32)
        .collect();
    let mut classes = vec![OTHER; char::MAX as usize + 1];
    for (class, pattern) in [(LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")] {
        for (start, end) in SysRegex::new(pattern).ok()?.find_iter(&every) {
            for c in every[start..end].chars() {
                classes[c as usize] = class;
            }
        }
    }
    Some(classes)
});

impl SplitRule {
    /// The rule of a regular expression, where it is one of those known here.
    pub fn of_pattern(pattern: &str) -> Option<Self> {
        if pattern == GPT2 {
            return Some(Self::Gpt2);
        }
        let max_digits = match pattern
            .strip_prefix(MODERN_HEAD)?
            .strip_suffix(MODERN_TAIL)?
        {
            "" => 1,
            "{1,3}" => 3,
            _ => return None,
        };
        Some(Self::Modern { max_digits })
    }

    /// Calls `word` with every word of `text` in order; together they are the text. False, and no call, where the
    /// classes of characters are not to be had.
    pub fn split<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) -> bool {
        let Some(classes) = CLASSES.as_deref() else {
            return false;
        };
        let cursor = Cursor { text, classes };
        let mut at = 0;
        while at < text.len() {
            let end = cursor.word_end(at, self);
            word(&text[at..end]);
            at = end;
        }
        true
    }
}

struct Cursor<'t> {
    text: &'t str,
    classes: &'static [u8],
}

impl Cursor<'_> {
    /// Class and length of the character at `at`; a class that is none at the end of the text.
    #[inline]
    fn peek(&self, at: usize) -> (u8, usize) {
        match self.text.as_bytes().get(at) {
            None => (u8::MAX, 0),
            Some(&byte) if byte < 0x80 => (self.classes[byte as usize], 1),
            Some(_) => match self.text[at..].chars().next() {
                Some(c) => (self.classes[c as usize], c.len_utf8()),
                None => (u8::MAX, 0),
            },
        }
    }

    /// End of the run of one class that goes on at `at`, of at most `max` characters.
    #[inline]
    fn run(&self, mut at: usize, class: u8, max: usize) -> usize {
        for _ in 0..max {
            match self.peek(at) {
                (found, len) if found == class => at += len,
                _ => break,
            }
        }
        at
    }

    fn word_end(&self, at: usize, rule: SplitRule) -> usize {
        let bytes = self.text.as_bytes();
        let first = bytes[at];
        if first == b'\''
            && let Some(len) = contraction(&self.text[at + 1..], rule != SplitRule::Gpt2)
        {
            return at + 1 + len;
        }
        let (class, len) = self.peek(at);
        if class == LETTER {
            return self.run(at + len, LETTER, usize::MAX);
        }
        let (next, next_len) = self.peek(at + len);
        let leads = match rule {
            SplitRule::Gpt2 => first == b' ',
            SplitRule::Modern { .. } => class != NUMBER && first != b'\r' && first != b'\n',
        };
        if leads && next == LETTER {
            return self.run(at + len + next_len, LETTER, usize::MAX);
        }
        match rule {
            SplitRule::Gpt2 if class == NUMBER || (first == b' ' && next == NUMBER) => {
                return self.run(at + len, NUMBER, usize::MAX);
            }
            SplitRule::Modern { max_digits } if class == NUMBER => {
                return self.run(at + len, NUMBER, max_digits - 1);
            }
            _ => {}
        }
        if class == OTHER || (first == b' ' && next == OTHER) {
            let mut end = self.run(at + len, OTHER, usize::MAX);
            if rule != SplitRule::Gpt2 {
                while matches!(bytes.get(end), Some(b'\r' | b'\n')) {
                    end += 1;
                }
            }
            return end;
        }
        self.space_end(at, rule)
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`, for GPT-2 without the first: up to the last line end of the run, else all of the run
    /// but the character that the next word begins with.
    fn space_end(&self, at: usize, rule: SplitRule) -> usize {
        let end = self.run(at, SPACE, usize::MAX);
        let run = &self.text[at..end];
        if let Some(line_end) = run.rfind(['\r', '\n']).filter(|_| rule != SplitRule::Gpt2) {
            return at + line_end + 1;
        }
        match run.char_indices().next_back() {
            Some((last, _)) if end < self.text.len() && last > 0 => at + last,
            _ => end,
        }
    }
}

/// Length of `s`, `t`, `re`, `ve`, `m`, `ll` or `d` at the head of what follows an apostrophe. Without regard to case the
/// long s (U+017F) is an s.
fn contraction(after: &str, ignore_case: bool) -> Option<usize> {
    if ignore_case && after.starts_with('\u{17f}') {
        return Some('\u{17f}'.len_utf8());
    }
    let at = |index: usize| {
        let byte = after.as_bytes().get(index)?;
        Some(if ignore_case {
            byte.to_ascii_lowercase()
        } else {
            *byte
        })
    };
    match (at(0)?, at(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(rule: SplitRule, text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        assert!(rule.split(text, |word| words.push(word)));
        words
    }

    fn patterns() -> [(SplitRule, String); 3] {
        [
            (SplitRule::Gpt2, GPT2.to_string()),
            (
                SplitRule::Modern { max_digits: 1 },
                [MODERN_HEAD, MODERN_TAIL].concat(),
            ),
            (
                SplitRule::Modern { max_digits: 3 },
                [MODERN_HEAD, "{1,3}", MODERN_TAIL].concat(),
            ),
        ]
    }

    #[test]
    fn by_hand() {
        let text = "I'LL don't  pay\n\n $1234.5;\r\n\tok  ";
        let expected = [
            "I", "'LL", " don", "'t", " ", " pay", "\n\n", " $", "123", "4", ".", "5", ";\r\n",
            "\tok", "  ",
        ];
        assert_eq!(words(SplitRule::Modern { max_digits: 3 }, text), expected);
        let expected = [
            "I", "'", "LL", " don", "'t", " ", " pay", "\n\n", " $", "1234", ".", "5", ";", "\r\n",
            "\t", "ok", "  ",
        ];
        assert_eq!(words(SplitRule::Gpt2, text), expected);
    }

    #[test]
    fn patterns_are_told_apart() {
        for (rule, pattern) in patterns() {
            assert_eq!(SplitRule::of_pattern(&pattern), Some(rule));
        }
        for other in ["", r"\s+", &[MODERN_HEAD, "{1,2}", MODERN_TAIL].concat()] {
            assert_eq!(SplitRule::of_pattern(other), None);
        }
    }

    /// Random strings over characters that matter to the patterns, against the regular expressions themselves.
    #[test]
    fn equals_the_regular_expression() {
        let alphabet: Vec<char> = "  \n\r\t'''sStTrReEvVmMlLdDaé好ß١Ⅷ²½1 23.,!?-<>_|\u{a0}\u{3000}\u{2028}\u{85}\u{1c}\u{200b}\u{301}👍ſKﬆʼ"
            .chars()
            .collect();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for (rule, pattern) in patterns() {
            let regex = SysRegex::new(&pattern).unwrap();
            for _ in 0..20_000 {
                let text: String = (0..random(14))
                    .map(|_| alphabet[random(alphabet.len())])
                    .collect();
                let expected: Vec<&str> = regex
                    .find_iter(&text)
                    .map(|(start, end)| &text[start..end])
                    .collect();
                assert_eq!(words(rule, &text), expected, "{rule:?} {text:?}");
            }
        }
    }

    /// Every character there is, alone and between others.
    #[test]
    fn equals_the_regular_expression_on_every_character() {
        let mut text = String::new();
        for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
            text.extend([c, 'a', c, c, ' ', c, '1', '\'', c]);
        }
        for (rule, pattern) in patterns() {
            let expected = SysRegex::new(&pattern).unwrap();
            let mut expected = expected.find_iter(&text);
            rule.split(&text, |word| {
                let (start, end) = expected.next().unwrap();
                assert_eq!(word, &text[start..end], "{rule:?}");
            });
            assert_eq!(expected.next(), None);
        }
    }
}
