//! The formulas of rewards that are functions of numbers or of one text. Which samples they see, and with which settings, is
//! in [`super`]; the rules for tags are in [`crate::verify::format`].
//!
//! Where open-r1's `rewards.py` has the same reward, we differ from it thus:
//! - [`cosine`] is held at its end beyond `max_length`; there a right answer of twice the length gets the full reward again;
//! - [`reasoning_steps`] finds numbered lines inside the text, and counts steps that say something, once;
//! - [`length`] leaves a prompt alone whose gold answer cannot be read; there it counts as right;
//! - lengths are tokens where they are known; there the same number is taken for characters in one reward and for tokens in
//!   another.

use std::collections::HashSet;
use std::f64::consts::PI;

use crate::recipe::reward::{CosineReward, OverlongReward};
use crate::verify::readability::repeated_share;

/// Kimi k1.5's length reward (arXiv 2501.12599, section 2.3.3) of each sample of a prompt, from lengths and verdicts.
///
///   lambda = 0.5 - (len - min_len) / (max_len - min_len);  right: lambda;  wrong: min(0, lambda)
///
/// All 0 where the lengths are equal.
pub fn length(lengths: &[usize], correct: &[bool]) -> Vec<f64> {
    let min = lengths.iter().copied().min().unwrap_or(0);
    let max = lengths.iter().copied().max().unwrap_or(0);
    if min == max {
        return vec![0.0; lengths.len()];
    }
    let lambda = |length: usize| 0.5 - (length - min) as f64 / (max - min) as f64;
    lengths
        .iter()
        .zip(correct)
        .map(|(&length, &correct)| {
            if correct {
                lambda(length)
            } else {
                lambda(length).min(0.0)
            }
        })
        .collect()
}

/// A cosine from one value at length 0 to another at `max_length` and beyond (arXiv 2502.03373, section 4.2).
///
///   end + (start - end) (1 + cos(pi min(1, len / max_length))) / 2
///
/// Right answers go from `max_correct` down to `min_correct`, wrong ones from `min_wrong` up to `max_wrong`: a short wrong
/// answer is the worst, a long one at least tried.
pub fn cosine(length: usize, correct: bool, settings: &CosineReward) -> f64 {
    let (start, end) = if correct {
        (settings.max_correct, settings.min_correct)
    } else {
        (settings.min_wrong, settings.max_wrong)
    };
    let progress = (length as f64 / settings.max_length as f64).min(1.0);
    end + 0.5 * (start - end) * (1.0 + (PI * progress).cos())
}

/// DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).
///
///   0 up to L - c;  (L - c - len) / c up to L;  -1 beyond
///
/// A sample that was cut off is overlong, however soon that was.
pub fn soft_overlong(length: usize, truncated: bool, settings: &OverlongReward) -> f64 {
    let free = settings.max_length - settings.cache_length;
    if truncated || length > settings.max_length {
        -1.0
    } else if length <= free {
        0.0
    } else {
        -((length - free) as f64 / settings.cache_length as f64)
    }
}

/// The share of n-grams that have been there before, times `max_penalty` (arXiv 2502.03373, appendix). Words are small and
/// end at white space; Han characters and kana are words of their own.
pub fn repetition(text: &str, ngram_size: usize, max_penalty: f64) -> f64 {
    repeated_share(spaced_words(text), ngram_size) * max_penalty
}

fn spaced_words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().flat_map(|word| {
        let mut words = vec![String::new()];
        for c in word.chars() {
            let is_alone = matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff);
            if is_alone {
                words.extend([c.to_string(), String::new()]);
            } else if let Some(last) = words.last_mut() {
                last.extend(c.to_lowercase());
            }
        }
        words.into_iter().filter(|word| !word.is_empty())
    })
}

/// How many steps a reasoning takes, as a share of `wanted`, at most 1. A step begins with "Step 3:", a number or a bullet
/// at the beginning of a line, or "First,", "Second,", "Next,", "Finally,", and goes on with words that no other step has.
pub fn reasoning_steps(text: &str, wanted: usize) -> f64 {
    let mut seen = HashSet::new();
    for line in text.lines() {
        let line = line.trim();
        let starts = marker_ends(line);
        for (i, &(_, start)) in starts.iter().enumerate() {
            let end = starts.get(i + 1).map_or(line.len(), |next| next.0);
            let content: String = line[start..end.max(start)]
                .chars()
                .filter(|c| c.is_alphanumeric())
                .flat_map(char::to_lowercase)
                .collect();
            if content.chars().filter(|c| c.is_alphabetic()).count() >= 2 || content.len() >= 3 {
                seen.insert(content);
            }
        }
    }
    (seen.len() as f64 / wanted.max(1) as f64).min(1.0)
}

/// Where the markers of a line begin and end.
fn marker_ends(line: &str) -> Vec<(usize, usize)> {
    const WORDS: [&str; 4] = ["First,", "Second,", "Next,", "Finally,"];
    let mut found = Vec::new();
    let num_digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    // a number and a full stop, not a decimal
    let digits = num_digits(line);
    if digits > 0
        && line[digits..].starts_with('.')
        && !line[digits + 1..].starts_with(|c: char| c.is_ascii_digit())
    {
        found.push((0, digits + 1));
    }
    if ["- ", "* ", "• "]
        .iter()
        .any(|bullet| line.starts_with(bullet))
    {
        found.push((0, line.find(' ').map_or(0, |at| at + 1)));
    }
    for (at, _) in line.match_indices("Step ") {
        let rest = &line[at + "Step ".len()..];
        let digits = num_digits(rest);
        if digits > 0 && rest[digits..].starts_with(':') {
            found.push((at, at + "Step ".len() + digits + 1));
        }
    }
    for word in WORDS {
        found.extend(
            line.match_indices(word)
                .map(|(at, _)| (at, at + word.len())),
        );
    }
    found.sort_unstable();
    found
}

/// Whether `answer` holds a code block of `language` that closes and has something in it.
pub fn has_code_block(answer: &str, language: &str) -> bool {
    let mut open: Option<bool> = None;
    let mut num_code_lines = 0;
    for line in answer.lines() {
        let line = line.trim();
        match (line.strip_prefix("```"), open) {
            (Some(info), None) => {
                open = Some(info.trim().eq_ignore_ascii_case(language));
                num_code_lines = 0;
            }
            (Some(_), Some(wanted)) => {
                if wanted && num_code_lines > 0 {
                    return true;
                }
                open = None;
            }
            (None, Some(_)) => num_code_lines += usize::from(!line.is_empty()),
            (None, None) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn length_by_hand() {
        // lambda 0.5, 0, -0.5
        assert_eq!(length(&[10, 20, 30], &[true; 3]), [0.5, 0.0, -0.5]);
        assert_eq!(length(&[10, 20, 30], &[false; 3]), [0.0, 0.0, -0.5]);
        assert_eq!(length(&[7, 7], &[true, false]), [0.0, 0.0]);
        assert_eq!(length(&[], &[]), [0.0; 0]);
        assert_eq!(length(&[0, 4], &[false, true]), [0.0, -0.5]);
    }

    #[test]
    fn cosine_by_hand() {
        let settings = CosineReward {
            max_length: 100,
            ..CosineReward::default()
        };
        let cases = [
            (0, true, 1.0),
            (50, true, 0.75),
            (100, true, 0.5),
            (200, true, 0.5), // held at its end
            (100_000, true, 0.5),
            (0, false, -1.0),
            (50, false, -0.75),
            (100, false, -0.5),
            (200, false, -0.5),
        ];
        for (n, correct, expected) in cases {
            close(cosine(n, correct, &settings), expected);
        }
    }

    #[test]
    fn soft_overlong_by_hand() {
        let settings = OverlongReward {
            max_length: 100,
            cache_length: 20,
            ..OverlongReward::default()
        };
        for (n, truncated, expected) in [
            (0, false, 0.0),
            (80, false, 0.0),
            (85, false, -0.25),
            (100, false, -1.0),
            (101, false, -1.0),
            (10, true, -1.0),
        ] {
            close(soft_overlong(n, truncated, &settings), expected);
        }
    }

    #[test]
    fn repetition_by_hand() {
        for (text, n, penalty, expected) in [
            ("this is a this is a test", 3, -2.0, -0.4),
            ("This this THIS", 2, -1.0, -0.5),
            ("one two", 3, -1.0, 0.0),
            ("", 3, -1.0, 0.0),
            ("好好好 好", 2, -1.0, -2.0 / 3.0),
        ] {
            close(repetition(text, n, penalty), expected);
        }
    }

    #[test]
    fn steps_by_hand() {
        let cases = [
            ("Step 1: add\nStep 2: divide\nStep 3: check", 1.0),
            ("Step 1: add", 1.0 / 3.0),
            // numbered lines inside the text
            ("We go:\n1. add\n2. divide\n3. check", 1.0),
            ("- add\n* divide", 2.0 / 3.0),
            ("First, we add. Finally, we check.", 2.0 / 3.0),
            ("3.14 is pi\n-3 + 5", 0.0),
            ("no steps", 0.0),
            // markers without a step, and the same step again
            ("First, Second, Next, Finally,", 0.0),
            ("Step 1: Step 2: Step 3:", 0.0),
            ("1. add\n2. add\n3. add", 1.0 / 3.0),
        ];
        for (text, expected) in cases {
            let found = reasoning_steps(text, 3);
            assert!((found - expected).abs() < 1e-12, "{text:?}: {found}");
        }
    }

    #[test]
    fn code_blocks_by_hand() {
        let cases = [
            ("```python\nx\n```", true),
            ("text\n```Python\nx\n```\ntext", true),
            ("```js\nx\n```\n```python\ny\n```", true),
            ("```js\nx\n```", false),
            ("```\nx\n```", false),
            ("```python\n```", false),
            ("```python\nx", false),
            ("python x", false),
            // the fence closes one block, it does not open the next
            ("```\n```python\nx\n", false),
        ];
        for (text, expected) in cases {
            assert_eq!(has_code_block(text, "python"), expected, "{text:?}");
        }
    }
}
