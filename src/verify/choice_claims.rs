//! What makes the words around a letter a claim, a denial or nothing.

use super::choice_words::{Sense, Token, sense};

/// Words between a statement and its letter: "the answer is for sure (B)".
pub(super) const MAX_FILLERS: usize = 10;

/// `a = 3`, `A + B`, `A^2`: letters that are names.
pub(super) fn is_formula(words: &[Token<'_>]) -> bool {
    words.get(1).is_some_and(|t| {
        matches!(
            t.text,
            "=" | "+" | "-" | "^" | "<" | ">" | "\\" | "'" | "#" | "_"
        )
    })
}

/// Whether a word between a statement and its letter leaves it a statement. A line ends one that has not begun to say what
/// the answer is.
pub(super) fn says_nothing(token: &Token<'_>, is_said: bool) -> bool {
    match sense(token.text) {
        Sense::Filler | Sense::Anchor | Sense::Option | Sense::Right | Sense::AfterLetter => true,
        Sense::Clause => {
            token.text == ","
                || (token.text == "\n" && is_said)
                || token.is_word() && token.text != "but"
        }
        _ => false,
    }
}

/// Whether the word at `at` announces the letter that is chosen.
pub(super) fn is_anchor(words: &[Token<'_>], at: usize) -> bool {
    let token = &words[at];
    if sense(token.text) == Sense::Anchor {
        return true;
    }
    // `the correct option is`: options are also described
    let before = at.checked_sub(1).and_then(|i| words.get(i));
    sense(token.text) == Sense::Option && before.is_some_and(|t| sense(t.text) == Sense::Right)
}

/// Whether `is correct`, `must be the right answer` follow.
pub(super) fn is_called_right(words: &[Token<'_>], start: usize) -> bool {
    let mut is_said = false;
    for token in words.iter().skip(start).take(6) {
        match sense(token.text) {
            Sense::Right if is_said => return true,
            Sense::Anchor if is_said && token.text.is_ascii() => return true,
            _ if matches!(
                token.text.to_lowercase().as_str(),
                "is" | "be" | "seems" | "looks"
            ) =>
            {
                is_said = true;
            }
            Sense::Filler | Sense::AfterLetter => {}
            _ if token.text == "also" => {}
            _ => return false,
        }
    }
    false
}

/// Whether the letter at `at` is denied: "it can't be A or B", "A is wrong".
pub(super) fn is_ruled_out(words: &[Token<'_>], at: usize) -> bool {
    let before = words[..at]
        .iter()
        .rev()
        .take_while(|t| sense(t.text) != Sense::Clause)
        .any(|t| sense(t.text) == Sense::Not);
    let after = words[at + 1..]
        .iter()
        .take(5)
        .take_while(|t| sense(t.text) != Sense::Clause)
        .any(|t| matches!(sense(t.text), Sense::Not | Sense::Wrong));
    // `anything but B`
    let is_all_but = at >= 2
        && words[at - 1].text == "but"
        && ["anything", "everything", "all", "any"]
            .contains(&words[at - 2].text.to_lowercase().as_str());
    before || after || is_all_but
}

/// Whether a letter is said to be the answer only to be denied: "the answer B is wrong".
pub(super) fn is_denied(words: &[Token<'_>], at: usize) -> bool {
    let mut is_said = false;
    for token in words[at + 1..].iter().take(5) {
        match sense(token.text) {
            Sense::Clause => return false,
            Sense::Wrong => return true,
            Sense::Not if is_said => return true,
            Sense::AfterLetter => is_said = true,
            _ => {}
        }
    }
    false
}

/// Whether none of the options is said to be the answer.
pub(super) fn says_none(words: &[Token<'_>]) -> bool {
    (0..words.len()).any(|at| {
        is_anchor(words, at)
            && words[at + 1..]
                .iter()
                .take(MAX_FILLERS)
                .find(|t| !says_nothing(t, true))
                .is_some_and(|t| t.text.eq_ignore_ascii_case("none"))
    })
}
