//! Text to verdict: is what a model wrote the answer that was asked for?
//!
//! This file holds the verdict and the kinds of check that need nothing but two texts. Model output is never an error here:
//! whatever it holds, it gets a [`Verdict`].
//!
//! | file | holds |
//! |---|---|
//! | [`extract`] | where the answer stands in a text |
//! | [`math`] | mathematical equality |
//! | [`number`] | numbers, exactly |
//! | [`code`] | programs against tests |
//! | [`sandbox`] | where programs run |
//! | [`choice`] | multiple choice letters |
//! | [`mod@format`] | `<think>` and `<answer>` tags |
//! | [`language`] | the share of words in one language |
//! | [`readability`] | what makes reasoning hard to read |

pub mod choice;
mod choice_claims;
mod choice_words;
pub mod code;
mod code_assertions;
pub mod code_cases;
pub mod code_checker;
mod code_compare;
mod code_extract;
mod compare;
mod eval;
mod exact;
mod expr;
pub mod extract;
mod find;
mod find_numbers;
mod fixed;
pub mod format;
pub mod language;
mod latex;
mod latex_number;
mod latex_tables;
pub mod math;
mod matrix;
pub mod number;
mod parse;
mod parse_atoms;
mod parse_functions;
mod prose;
mod rational;
pub mod readability;
mod real;
mod relations;
#[cfg(target_os = "linux")]
pub mod sandbox;
#[cfg(not(target_os = "linux"))]
#[path = "sandbox_absent.rs"]
pub mod sandbox;
#[cfg(target_os = "linux")]
mod sandbox_filter;
#[cfg(target_os = "linux")]
mod sandbox_layout;
pub mod sandbox_program;
#[cfg(target_os = "linux")]
mod sandbox_spawn;
mod scalar;
mod sets;
mod units;

pub use extract::{answer_part, extract_boxed};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How much of the extracted text a verdict keeps: model output can be long, an answer is not.
const MAX_EXTRACTED_CHARS: usize = 400;

/// What came out of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The answer equals the gold answer.
    Correct,
    /// An answer was found and it is another one.
    Wrong,
    /// No answer could be found, or the gold answer cannot be read.
    Unparsable,
}

/// The outcome, what was taken for the answer, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    #[serde(rename = "verdict")]
    pub outcome: Outcome,
    pub extracted: Option<String>,
    pub reason: String,
    /// The gold answer, not the prediction, is what cannot be read: nobody could have been right.
    #[serde(skip)]
    pub gold_unreadable: bool,
}

impl Verdict {
    /// Whether the answer is right; wrong and unparsable both are not.
    pub fn is_correct(&self) -> bool {
        self.outcome == Outcome::Correct
    }

    /// The verdict where several answers are accepted: the first correct one, or else the first about a gold answer that
    /// can be read. Without any gold answer nobody could have been right.
    pub fn among(verdicts: impl IntoIterator<Item = Self>) -> Self {
        let mut kept: Option<Self> = None;
        for verdict in verdicts {
            if verdict.is_correct() {
                return verdict;
            }
            if kept
                .as_ref()
                .is_none_or(|k| k.gold_unreadable && !verdict.gold_unreadable)
            {
                kept = Some(verdict);
            }
        }
        kept.unwrap_or_else(|| Self::bad_gold("there is no gold answer"))
    }

    fn new(outcome: Outcome, extracted: Option<&str>, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            extracted: extracted.map(|text| text.chars().take(MAX_EXTRACTED_CHARS).collect()),
            reason: reason.into(),
            gold_unreadable: false,
        }
    }

    fn unparsable(reason: impl Into<String>) -> Self {
        Self::new(Outcome::Unparsable, None, reason)
    }

    /// The verdict where the gold answer cannot be read.
    fn bad_gold(reason: impl Into<String>) -> Self {
        Self {
            gold_unreadable: true,
            ..Self::unparsable(reason)
        }
    }
}

/// What is compared, and how: the checks that need a text and a gold text. Programs are checked by running their tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Mathematical equality of the final answer.
    Math,
    /// The letter of a multiple choice question.
    Choice,
    /// The whole answer part, letter by letter apart from white space.
    Exact,
    /// The number in the last `\boxed{}`, or else the last number of the answer part, as an exact rational.
    Number,
    /// The content of the last `\boxed{}`: as numbers where both are numbers, else as normalised LaTeX text.
    Boxed,
    /// The shape `<think>...</think><answer>...</answer>`; the gold text names a [`format::Format`], empty is R1's.
    Format,
    /// The share of words of the reasoning that are in the language that the gold text names.
    Language,
}

impl Kind {
    /// Every kind by name.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("math", Self::Math),
        ("choice", Self::Choice),
        ("exact", Self::Exact),
        ("number", Self::Number),
        ("boxed", Self::Boxed),
        ("format", Self::Format),
        ("language", Self::Language),
    ];

    /// The kind called `name` in a suite or a row.
    pub fn parse(name: &str) -> Result<Self> {
        let known = Self::NAMES.into_iter().find(|(other, _)| *other == name);
        known.map(|(_, kind)| kind).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES
                .iter()
                .map(|(name, _)| format!("`{name}`"))
                .collect();
            Error::input(format!("unknown verifier `{name}`"))
                .with_hint(format!("the verifiers are {}", names.join(", ")))
        })
    }

    /// The verdict on `prediction`, the whole text a model wrote, thinking included.
    pub fn check(self, prediction: &str, gold: &str) -> Verdict {
        match self {
            Self::Math => return math::check(prediction, gold, &math::MathOptions::default()),
            Self::Choice => return choice::check(prediction, gold),
            Self::Format if gold.is_empty() => return format::Format::R1.check(prediction),
            Self::Format => {
                return match format::Format::parse(gold) {
                    Ok(format) => format.check(prediction),
                    Err(e) => Verdict::bad_gold(e.to_string()),
                };
            }
            Self::Language => {
                return match language::Language::parse(gold) {
                    Ok(target) => language::check(prediction, target).0,
                    Err(e) => Verdict::bad_gold(e.to_string()),
                };
            }
            Self::Exact | Self::Number | Self::Boxed => {}
        }
        if gold.trim().is_empty() {
            return Verdict::bad_gold("the gold answer is empty");
        }
        // whose fault it is must not depend on what was predicted
        if self == Self::Number && number::parse(extract::gold_answer(gold)).is_none() {
            return Verdict::bad_gold("the gold answer is not a number");
        }
        let Some(answer) = answer_part(prediction) else {
            return Verdict::unparsable("the thinking never ends");
        };
        match self {
            Self::Number => check_number(answer, gold),
            Self::Boxed => check_boxed(answer, gold),
            _ => check_exact(answer, gold),
        }
    }

    /// Whether two extracted answers are the same answer, for majority votes.
    pub fn same(self, a: &str, b: &str) -> bool {
        match self {
            Self::Math => math::same(a, b),
            Self::Exact | Self::Choice | Self::Format | Self::Language => {
                collapse(a) == collapse(b)
            }
            Self::Number | Self::Boxed => match (number::parse(a), number::parse(b)) {
                (Some(a), Some(b)) => a == b,
                _ => extract::normalise(a) == extract::normalise(b),
            },
        }
    }
}

/// The verdict on `prediction` by the verifier called `kind`; only an unknown name is an error.
pub fn check(kind: &str, prediction: &str, gold: &str) -> Result<Verdict> {
    Ok(Kind::parse(kind)?.check(prediction, gold))
}

fn check_exact(answer: &str, gold: &str) -> Verdict {
    let (answer, gold) = (collapse(answer), collapse(gold));
    if answer.is_empty() {
        return Verdict::unparsable("the answer is empty");
    }
    if answer == gold {
        Verdict::new(Outcome::Correct, Some(&answer), "same text")
    } else {
        Verdict::new(Outcome::Wrong, Some(&answer), "other text")
    }
}

fn check_number(answer: &str, gold: &str) -> Verdict {
    let Some(wanted) = number::parse(extract::gold_answer(gold)) else {
        return Verdict::bad_gold("the gold answer is not a number");
    };
    let boxed = extract_boxed(answer);
    let found = match boxed {
        Some(content) => number::parse(content).map(|value| (content.trim(), value)),
        None => number::last_in(answer),
    };
    match (found, boxed) {
        (Some((text, value)), _) if value == wanted => {
            Verdict::new(Outcome::Correct, Some(text), "same number")
        }
        (Some((text, _)), _) => Verdict::new(Outcome::Wrong, Some(text), "other number"),
        (None, Some(content)) => Verdict::new(
            Outcome::Unparsable,
            Some(content.trim()),
            "the box does not hold a number",
        ),
        (None, None) => Verdict::unparsable("no box and no number in the answer"),
    }
}

fn check_boxed(answer: &str, gold: &str) -> Verdict {
    let Some(content) = extract_boxed(answer) else {
        return Verdict::unparsable("no closed `\\boxed{}` in the answer");
    };
    let (content, gold) = (content.trim(), extract::gold_answer(gold));
    if content.is_empty() {
        return Verdict::unparsable("the box is empty");
    }
    match (number::parse(content), number::parse(gold)) {
        (Some(found), Some(wanted)) if found == wanted => {
            Verdict::new(Outcome::Correct, Some(content), "same number")
        }
        (Some(_), Some(_)) => Verdict::new(Outcome::Wrong, Some(content), "other number"),
        _ if extract::normalise(content) == extract::normalise(gold) => {
            Verdict::new(Outcome::Correct, Some(content), "same text")
        }
        _ => Verdict::new(Outcome::Wrong, Some(content), "other text"),
    }
}

/// Runs of white space made one space, none at the ends.
fn collapse(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Correct, Unparsable, Wrong};

    #[test]
    fn verdicts() {
        let cases = [
            // kind, prediction, gold, outcome, extracted
            (
                "number",
                r"<think>2</think>\boxed{1,024}",
                "1024",
                Correct,
                Some("1,024"),
            ),
            (
                "number",
                r"<think>\boxed{1024}</think>\boxed{1025}",
                "1024",
                Wrong,
                Some("1025"),
            ),
            ("number", r"<think>\boxed{1024}", "1024", Unparsable, None),
            (
                "number",
                "thinking</think>\n**$140**",
                "some steps\n#### 140",
                Correct,
                Some("140"),
            ),
            (
                "number",
                r"\boxed{\frac{1}{2}}",
                "0.5",
                Correct,
                Some(r"\frac{1}{2}"),
            ),
            ("number", r"5 or \boxed{x}", "5", Unparsable, Some("x")),
            ("number", "I don't know", "5", Unparsable, None),
            ("number", r"\boxed{5}", "five", Unparsable, None),
            (
                "boxed",
                r"\boxed{\left( 3, \frac{\pi}{2} \right)}",
                r"(3,\frac{\pi}{2})",
                Correct,
                None,
            ),
            ("boxed", r"\boxed{0.5}", r"\frac12", Correct, None),
            ("boxed", r"\boxed{(1,2)}", "(1,3)", Wrong, None),
            ("boxed", "the answer is 5", "5", Unparsable, None),
            ("boxed", r"\boxed{ }", "5", Unparsable, None),
            (
                "exact",
                "<think>x</think>\n  Yes,  it is\n",
                "Yes, it is",
                Correct,
                Some("Yes, it is"),
            ),
            ("exact", "yes", "Yes", Wrong, Some("yes")),
            ("exact", " ", "Yes", Unparsable, None),
        ];
        for (kind, prediction, gold, outcome, extracted) in cases {
            let verdict = check(kind, prediction, gold).unwrap();
            assert_eq!(
                verdict.outcome, outcome,
                "{kind} {prediction:?} {gold:?}: {verdict:?}"
            );
            if extracted.is_some() {
                assert_eq!(verdict.extracted.as_deref(), extracted, "{prediction:?}");
            }
        }
        assert!(check("maths", "", "").is_err());
    }

    #[test]
    fn votes_are_grouped_by_value() {
        assert!(Kind::Number.same("0.50", r"\frac{1}{2}"));
        assert!(!Kind::Number.same("2", "3"));
        assert!(Kind::Boxed.same(r"x^{2}", "x^2"));
        assert!(!Kind::Exact.same("2", "2.0"));
    }

    #[test]
    fn a_verdict_is_read_by_other_programs() {
        let verdict = Kind::Number.check(r"\boxed{4}", "4");
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(
            json,
            r#"{"verdict":"correct","extracted":"4","reason":"same number"}"#
        );
    }
}
