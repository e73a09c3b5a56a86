//! Numbers and option letters in running text: where one begins and ends, the formula that it is part of, and what is prose.

use super::find::floor_boundary;
use super::units;

/// A place in a text and the answer there.
pub type Place = (usize, usize, String);

/// Words of formulas and units that do not make a text prose.
#[rustfmt::skip]
const FORMULA_WORDS: &[&str] = &[
    "and", "or", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "log", "exp", "sqrt", "max", "min", "gcd", "lcm", "mod", "inf", "infinity", "percent", "pct", "percentage",
    "theta", "alpha", "beta", "gamma", "delta", "lambda", "floor", "ceil", "abs", "det", "pmatrix", "bmatrix",
    "matrix", "array", "million", "billion", "thousand", "hundred", "binom", "either", "cup",
];

/// Whether a text is sentences rather than a formula or a name.
pub fn is_prose(text: &str) -> bool {
    if text.contains("\n\n") {
        return true;
    }
    let bytes = text.as_bytes();
    let (mut words, mut at) = (0, 0);
    while at < bytes.len() {
        if bytes[at] == b'\\' {
            // a command, and the words in its braces
            at += 1;
            let from = at;
            while at < bytes.len() && bytes[at].is_ascii_alphabetic() {
                at += 1;
            }
            let name = &text[from..at];
            if (name.starts_with("text")
                || name == "mbox"
                || name == "begin"
                || name == "end"
                || name.starts_with("math")
                || name == "operatorname")
                && let Some((inner, rest)) =
                    super::latex::group(&text[at..floor_boundary(text, at + 400)])
            {
                let _ = inner;
                at = floor_boundary(text, at + 400) - rest.len();
            }
            at = at.max(
                from + usize::from(from < bytes.len() && bytes[from].is_ascii() && at == from),
            );
            continue;
        }
        if bytes[at].is_ascii_alphabetic() {
            let from = at;
            while at < bytes.len() && bytes[at].is_ascii_alphabetic() {
                at += 1;
            }
            let word = &text[from..at];
            let lower = word.to_ascii_lowercase();
            let indexed = from > 0 && bytes[from - 1] == b'_' || text[..from].ends_with("_{");
            let upper = word.bytes().all(|b| b.is_ascii_uppercase());
            let glued = lower.starts_with("or")
                && word.len() == 3
                && word.as_bytes()[2].is_ascii_uppercase();
            let small = matches!(
                lower.as_str(),
                "so" | "is"
                    | "it"
                    | "we"
                    | "he"
                    | "to"
                    | "of"
                    | "at"
                    | "as"
                    | "an"
                    | "be"
                    | "by"
                    | "if"
                    | "my"
                    | "us"
            ) && !text[at..].starts_with(['(', '^', '_']);
            if (word.len() >= 3 || small)
                && !indexed
                && !glued
                && (!upper || word.len() > 4)
                && !FORMULA_WORDS.contains(&lower.as_str())
                && !units::is_unit(word)
            {
                words += 1;
            }
            continue;
        }
        at += 1;
    }
    let cjk = text
        .chars()
        .filter(|c| ('\u{3040}'..='\u{9fff}').contains(c) || ('\u{0590}'..='\u{0dff}').contains(c))
        .count();
    if cjk > 0 && text.bytes().any(|b| b.is_ascii_alphanumeric()) {
        return true;
    }
    words >= 2
        || (words == 1
            && text
                .bytes()
                .any(|b| b.is_ascii_digit() || b == b'=' || b == b'$'))
}

/// Whether what follows "answer" states it: at once, or in a text that is short to its end. Otherwise an explanation follows.
pub fn is_statement(after: &str) -> bool {
    let head = after[..floor_boundary(after, 40)].trim_start_matches([':', ' ', '*', '\n', '"']);
    let head = head.strip_prefix("is").unwrap_or(head);
    let head = head.trim_start_matches([':', ' ', '*', '$', '\\', '(', '[', '\n', '-']);
    head.starts_with(|c: char| c.is_ascii_digit()) || after.len() <= 200
}

/// Whether what stands between two dollar signs is running text about money.
pub fn is_money(content: &str) -> bool {
    content.starts_with(|c: char| c.is_ascii_digit()) && !content.contains(['\\', '=', '^']) && {
        content.split_whitespace().any(|word| {
            word.len() >= 2
                && word.bytes().all(|b| b.is_ascii_alphabetic())
                && word != "and"
                && word != "or"
        })
    }
}

/// Whether a digit follows the last occurrence of `mark` at once.
pub fn has_digit_after(text: &str, mark: &str) -> bool {
    text.rfind(mark).is_some_and(|at| {
        text[at + mark.len()..]
            .trim_start()
            .starts_with(|c: char| c.is_ascii_digit())
    })
}

/// The end of the first sentence: a line's end, or a full stop with space after it.
pub fn sentence_end(text: &str) -> usize {
    let mut dollars = 0;
    let bytes = text.as_bytes();
    for (at, c) in text.char_indices() {
        match c {
            '$' => dollars += 1,
            '\n' if dollars % 2 == 0 => return at,
            '。' => return at,
            '.' | '!' | '?' if dollars % 2 == 0 => {
                let next = bytes.get(at + 1);
                let spaced = next.is_none_or(u8::is_ascii_whitespace);
                if spaced && (c == '.' || next.is_none() || c == '?') {
                    return at;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// The last number of a text, or the formula it ends.
pub fn last_in(text: &str) -> Option<Place> {
    let bytes = text.as_bytes();
    let mut end = bytes.len();
    for _ in 0..50 {
        let digit = bytes[..end].iter().rposition(u8::is_ascii_digit)?;
        let start = numeral_start(text, digit);
        if let Some(place) = place(text, start, digit + 1).filter(|place| is_given(text, place)) {
            return Some(with_alternative_before(text, place));
        }
        end = start;
    }
    None
}

/// The first number of a text, or the formula it begins.
pub fn first_in(text: &str) -> Option<Place> {
    let bytes = text.as_bytes();
    let mut from = 0;
    for _ in 0..20 {
        let first = from + bytes[from..].iter().position(u8::is_ascii_digit)?;
        let end = numeral_end(bytes, first);
        let start = if first > 0 && bytes[first - 1] == b'.' {
            first - 1
        } else {
            first
        };
        if let Some(place) = place(text, start, end).filter(|place| is_given(text, place)) {
            return Some(with_alternative_after(text, place));
        }
        from = end;
    }
    None
}

/// What makes the number after it another one, or no answer.
#[rustfmt::skip]
const DENIALS: &[&str] = &[
    "not", "never", "rather than", "instead of", "at least", "at most", "less than", "greater than", "more than",
    "fewer than", "larger than", "smaller than", "bigger than", "higher than", "lower than", "other than",
    "different from", "up to", "cannot be", "can't be", "isn't", "anything but", "everything but", "not be",
    "not equal to", "not equal", "except", "except for", "besides", "excluding", "without", "twice", "thrice",
    "double", "triple", "half", "half of", "a third of", "a quarter of", "minus", "negative", "root of", "square of",
    "cube of", "reciprocal of", "inverse of", "opposite of", "negative of", "logarithm of", "factorial of",
    "multiple of", "question", "question number", "problem", "problem number", "gold:", "question no.", "no.",
];

/// What makes the number before it another one.
const CHANGES: [&str; 7] = [
    "squared",
    "cubed",
    "factorial",
    "times",
    "doubled",
    "and also",
    "tenths",
];

/// Whether a text ends with a "not", or another word that what follows is subject to.
fn is_denied(before: &str) -> bool {
    let before = before.trim_end_matches([' ', '$', '*', '\\', '(']);
    let tail =
        before[floor_boundary(before, before.len().saturating_sub(24))..].to_ascii_lowercase();
    tail.ends_with("n't")
        || DENIALS.iter().any(|words| {
            tail.strip_suffix(words)
                .is_some_and(|rest| !rest.ends_with(|c: char| c.is_alphanumeric()))
        })
}

/// Whether the number at a place is one to answer with: nothing before or after it makes it another one, and it is not one
/// of several in a row.
fn is_given(text: &str, place: &Place) -> bool {
    let (before, after) = (
        &text[..place.0],
        text[place.1..].trim_start_matches([' ', '$', '*']),
    );
    let row = before
        .strip_suffix(' ')
        .is_some_and(|b| b.ends_with(|c: char| c.is_ascii_digit()));
    let changed = CHANGES.iter().any(|word| {
        after.strip_prefix(word).is_some_and(|rest| {
            let rest = rest.trim_start();
            *word != "times" && *word != "and also"
                || rest.starts_with(|c: char| c.is_ascii_digit())
        })
    });
    !row && !changed && !is_denied(before)
}

/// Whether what follows a box at once takes it back.
pub fn is_retracted(after: &str) -> bool {
    const PHRASES: [&str; 8] = [
        "is wrong",
        "is incorrect",
        "is not correct",
        "is not right",
        "is not the answer",
        "is false",
        "isn't correct",
        "isn't right",
    ];
    let after = after.trim_start_matches(['$', ' ', '\\', ')', ']', '*']);
    PHRASES.iter().any(|phrase| after.starts_with(phrase))
}

/// Whether a text says that its author has no answer.
pub fn is_refusal(text: &str) -> bool {
    const PHRASES: [&str; 12] = [
        "do not know",
        "don't know",
        "not sure",
        "no idea",
        "cannot be determined",
        "can't be determined",
        "unable to",
        "cannot answer",
        "cannot solve",
        "can't solve",
        "could not solve",
        "couldn't solve",
    ];
    let tail = text[floor_boundary(text, text.len().saturating_sub(200))..].to_ascii_lowercase();
    PHRASES.iter().any(|phrase| tail.contains(phrase))
}

fn numeral_start(text: &str, digit: usize) -> usize {
    let bytes = text.as_bytes();
    let mut start = digit;
    while start > 0
        && (bytes[start - 1].is_ascii_digit() || matches!(bytes[start - 1], b'.' | b','))
    {
        start -= 1;
    }
    while matches!(bytes[start], b',')
        || (bytes[start] == b'.' && !bytes[start + 1].is_ascii_digit())
    {
        start += 1;
    }
    // groups of three after a space
    if start >= 2
        && bytes[start - 1] == b' '
        && bytes[start - 2].is_ascii_digit()
        && digit + 1 - start == 3
    {
        let before = numeral_start(text, start - 2);
        if start - 1 - before <= 3 && bytes[before..start - 1].iter().all(u8::is_ascii_digit) {
            return before;
        }
    }
    start
}

fn numeral_end(bytes: &[u8], from: usize) -> usize {
    let mut end = from;
    while end < bytes.len()
        && (bytes[end].is_ascii_digit()
            || (matches!(bytes[end], b'.' | b',')
                && bytes.get(end + 1).is_some_and(u8::is_ascii_digit)))
    {
        end += 1;
    }
    end
}

/// The number at `start..end` with its sign, percent sign and the rest of the formula that it stands in; None where it is
/// part of a name.
fn place(text: &str, start: usize, end: usize) -> Option<Place> {
    let bytes = text.as_bytes();
    if text[..start].ends_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let (mut from, mut to) = (start, end);
    // to the left: operators with their operands
    for _ in 0..40 {
        let before = text[..from].trim_end_matches([' ', '$', '\\']);
        let Some(operator) = before.chars().next_back() else {
            break;
        };
        let operand = before[..before.len() - operator.len_utf8()].trim_end_matches(' ');
        let last = operand.chars().next_back();
        let spaced = before.len() < from;
        let tight = operand.len() == before.len() - operator.len_utf8();
        match operator {
            // a sign stands at its number, with space before it
            '-' | '−' | '–'
                if !spaced && !tight && last.is_some_and(|c| c.is_ascii_alphabetic()) =>
            {
                from = before.len() - operator.len_utf8();
                break;
            }
            '-' | '−' | '–' if !last.is_some_and(|c| c.is_ascii_alphanumeric() || c == ')') => {
                if !spaced || text[before.len()..from].starts_with('$') {
                    from = before.len() - operator.len_utf8();
                }
                break;
            }
            '+' | '-' | '−' | '*' | '×' | '·' | '/' | '÷' | '^' => {
                match last {
                    Some(c) if c.is_ascii_digit() => from = numeral_start(text, operand.len() - 1),
                    Some(')') => from = matching_open(operand)?,
                    Some(c) if c.is_ascii_alphabetic() => {
                        let word = operand.len()
                            - operand
                                .bytes()
                                .rev()
                                .take_while(u8::is_ascii_alphabetic)
                                .count();
                        // a list item after a word, or a word before a dash
                        if operand.len() - word > 1 {
                            if operator == '-' && tight {
                                return None;
                            }
                            break;
                        }
                        from = word;
                    }
                    _ => break,
                }
            }
            '(' if bytes.get(to) == Some(&b')') && operand.ends_with(['/', '*', '^', '×']) => {
                from = before.len() - 1;
                to += 1;
            }
            _ => break,
        }
    }
    // to the right: letters, exponents, percent
    let after = &text[to..];
    if let Some(power) = after.strip_prefix('^') {
        let length = power
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || b"{}()-".contains(b))
            .count();
        to += 1 + length;
    } else if after.starts_with(['²', '³']) {
        to += after.chars().next().map_or(0, char::len_utf8);
    } else {
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let word = &after[..letters];
        let beyond = &after[letters..];
        let power = beyond.starts_with(['²', '³', '^']);
        if letters > 0
            && !units::is_unit(word)
            && !matches!(word, "m" | "g" | "s" | "L" | "l" | "h" | "th" | "x" if power || word != "x")
        {
            if letters <= 2 || beyond.starts_with(['(', '^']) {
                to += letters;
            } else {
                return None;
            }
        }
    }
    let after = text[to..].trim_start_matches([' ', '$', '\\', '*']);
    let mut answer = text[from..to].trim_matches(['$', ' ', '*']).to_string();
    if answer.starts_with("-$") || answer.starts_with("- $") {
        answer = answer.replace('$', "");
    }
    if ["%", "percent", "Percent", "pct"]
        .iter()
        .any(|word| after.starts_with(word))
        && from == to.min(from)
    {
        answer.push_str("\\%");
    } else if let Some(word) = after.split_whitespace().next()
        && matches!(
            word.trim_end_matches(['.', ',', ';']),
            "million" | "billion" | "thousand" | "trillion" | "hundred"
        )
    {
        answer.push(' ');
        answer.push_str(word.trim_end_matches(['.', ',', ';']));
    } else if after.starts_with(['+', '×', '÷', '^', '!', '√', 'π'])
        || after.starts_with("* ")
        || after.starts_with("sqrt")
    {
        // the number begins a formula that goes on
        let formula =
            &text[from..from + sentence_end(&text[from..floor_boundary(text, from + 200)])];
        let formula = if formula.ends_with(')') && !formula.contains('(') {
            &formula[..formula.len() - 1]
        } else {
            formula
        };
        if !is_prose(formula) {
            return Some((from, from + formula.len(), formula.to_string()));
        }
    }
    Some((from, to, answer))
}

fn matching_open(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate().rev().take(300) {
        match byte {
            b')' => depth += 1,
            b'(' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// `3 or 4`: both, where another number stands before an "or".
fn with_alternative_before(text: &str, (start, end, answer): Place) -> Place {
    if let Some(from) = list_start(text, start) {
        return (from, end, text[from..end].to_string());
    }
    let before = text[..start].trim_end_matches([' ', '$', '*', '\\']);
    if let Some(left) = before.strip_suffix("or")
        && left.ends_with([' ', '$', '*', ','])
    {
        let left = left.trim_end_matches([' ', '$', '*', ',', '\\']);
        if left.ends_with(|c: char| c.is_ascii_digit() || c == '%') {
            let digit = left.len() - 1 - usize::from(left.ends_with('%'));
            if left.as_bytes().get(digit).is_some_and(u8::is_ascii_digit) {
                let from = numeral_start(left, digit);
                return (from, end, format!("{} or {answer}", &left[from..]));
            }
        }
    }
    (start, end, answer)
}

/// Where a list of three or more numbers begins whose last one begins at `start`.
fn list_start(text: &str, start: usize) -> Option<usize> {
    let (mut from, mut count) = (start, 1);
    while let Some(left) = text[..from].strip_suffix(", ")
        && left.ends_with(|c: char| c.is_ascii_digit())
        && count < 100
    {
        from = numeral_start(left, left.len() - 1);
        count += 1;
    }
    (count >= 3).then_some(from)
}

fn with_alternative_after(text: &str, (start, end, answer): Place) -> Place {
    let after = text[end..].trim_start_matches([' ', '$', '*', ',', '\\', '%']);
    if let Some(right) = after.strip_prefix("or ") {
        let right = right.trim_start_matches([' ', '$', '*', '\\']);
        if right.starts_with(|c: char| c.is_ascii_digit()) {
            let length = numeral_end(right.as_bytes(), 0);
            return (start, end, format!("{answer} or {}", &right[..length]));
        }
    }
    (start, end, answer)
}

/// An option letter that stands alone: the first one where asked or where the text begins with it, else the last.
pub fn letter(text: &str, first: bool) -> Option<String> {
    let text = text.trim_start_matches(['*', '(', ' ']);
    let alone = |at: usize, c: char, text: &str| {
        if !('A'..='J').contains(&c) {
            return false;
        }
        let before = text[..at].chars().next_back();
        let after = &text[at + 1..];
        let next = after.chars().next();
        let article = c == 'A'
            && after
                .strip_prefix(' ')
                .is_some_and(|rest| rest.starts_with(|n: char| n.is_ascii_lowercase()));
        before.is_none_or(|b| !b.is_ascii_alphanumeric() && b != '\'')
            && next.is_none_or(|n| !n.is_ascii_alphanumeric() && n != '\'')
            && !article
    };
    let mut letters = text.char_indices().filter(|(at, c)| alone(*at, *c, text));
    if let Some((at, c)) = letters.clone().next()
        && (at == 0 || first)
    {
        return Some(c.to_string());
    }
    letters.next_back().map(|(_, c)| c.to_string())
}
