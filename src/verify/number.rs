//! Numbers as they are written in answers, read as exact rationals: `1,234.50`, `-3/4`, `\frac{3}{4}`, `1\frac12`, `5\%`,
//! `$140`, `540 meters`. No floating point: equal means equal. Formulas, intervals and lists are no numbers here.
//!
//! A percent sign and a unit are dropped, not converted: `50\%` is 50.

pub use super::rational::Rational;

/// Longer numbers are refused: comparing takes time in the square of the digits.
const MAX_DIGITS: usize = 400;

/// Words after a number that are not its unit: they make it another number or no number.
const NO_UNITS: [&str; 14] = [
    "and",
    "or",
    "to",
    "pi",
    "sqrt",
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "dozen",
    "percentage",
    "mod",
    "choose",
];

/// The number that `text` is, with the signs and words around it that do not change its value.
pub fn parse(text: &str) -> Option<Rational> {
    // an answer, not an essay: nothing longer than its digits and some decoration
    if text.len() > 4 * MAX_DIGITS {
        return None;
    }
    let text = strip_decoration(text);
    // `x = 5` is 5
    let text = match text.rfind('=') {
        Some(at) => strip_decoration(&text[at + 1..]),
        None => text,
    };
    let (value, rest) = leading(text)?;
    is_unit(rest).then_some(value)
}

/// The last number in running text, and how it is written there.
pub fn last_in(text: &str) -> Option<(&str, Rational)> {
    let bytes = text.as_bytes();
    let mut end = text.len();
    // from the right: a run of characters that numbers are made of, holding a digit
    while let Some(digit) = bytes[..end].iter().rposition(u8::is_ascii_digit) {
        let of_number = |b: &u8| b.is_ascii_digit() || matches!(b, b'.' | b',' | b'/');
        let start = bytes[..digit]
            .iter()
            .rposition(|b| !of_number(b))
            .map_or(0, |at| at + 1);
        let run = text[start..=digit].trim_start_matches(['.', ',', '/']);
        let start = digit + 1 - run.len();
        let signed = match text[..start].chars().next_back() {
            Some(sign @ ('-' | '−')) => {
                let before = text[..start - sign.len_utf8()].chars().next_back();
                // `5-3` is a difference, `= -3` a sign
                let is_sign = before.is_none_or(|c| !c.is_alphanumeric() && c != ')');
                if is_sign {
                    &text[start - sign.len_utf8()..=digit]
                } else {
                    run
                }
            }
            _ => run,
        };
        if let Some((value, "")) = leading(signed) {
            return Some((signed, value));
        }
        // a list such as `1,2`, or too long a number: its last member
        let piece = run.rfind([',', '/']).map_or(run, |at| &run[at + 1..]);
        if let Some((value, "")) = leading(piece) {
            return Some((piece, value));
        }
        end = start;
    }
    None
}

/// Without the dollars, emphasis, delimiters and stops around an answer.
fn strip_decoration(mut text: &str) -> &str {
    loop {
        let before = text.len();
        text = text
            .trim()
            .trim_matches(['$', '*', '`', '"', '~', ':', ';', ',']);
        text = text.trim_end_matches('.');
        for prefix in ["\\$", "\\(", "\\[", "\\,", "\\!", "\\ ", "€", "£"] {
            text = text.strip_prefix(prefix).unwrap_or(text);
        }
        for suffix in ["\\)", "\\]", "\\,", "\\!", "\\ ", "\\", "\\%", "%", "\\$"] {
            text = text.strip_suffix(suffix).unwrap_or(text);
        }
        for open in ["\\text{", "\\mathrm{", "\\textbf{", "\\mathbf{", "{"] {
            if let Some(inner) = text
                .strip_prefix(open)
                .and_then(|rest| rest.strip_suffix('}'))
                && !inner.contains(['{', '}'])
            {
                text = inner;
            }
        }
        if text.len() == before {
            return text;
        }
    }
}

/// A number at the beginning of `text`, and the rest.
fn leading(text: &str) -> Option<(Rational, &str)> {
    let (negative, rest) = match text.strip_prefix(['-', '−']) {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    // `-\$5`
    let rest = rest.trim_start();
    let rest = rest
        .strip_prefix("\\$")
        .or(rest.strip_prefix('$'))
        .unwrap_or(rest);
    let (value, rest) = match fraction(rest) {
        Some(found) => found,
        None => {
            let (whole, rest) = decimal(rest)?;
            if let Some((part, after)) = fraction(rest.trim_start()).filter(|_| whole.is_integer())
            {
                (proper_sum(&whole, &part)?, after)
            } else if let Some(below) = rest.trim_start().strip_prefix('/') {
                let (below, after) = decimal(below.trim_start())?;
                (whole.div(&below)?, after)
            } else {
                (whole, rest)
            }
        }
    };
    Some((if negative { value.neg() } else { value }, rest))
}

/// `\frac{a}{b}`, `\dfrac{a}{b}` or `\frac12`, and the rest.
fn fraction(text: &str) -> Option<(Rational, &str)> {
    let rest = ["\\frac", "\\dfrac", "\\tfrac"]
        .iter()
        .find_map(|name| text.strip_prefix(name))?;
    let (above, rest) = argument(rest)?;
    let (below, rest) = argument(rest)?;
    Some((above.div(&below)?, rest))
}

/// A braced number or a single digit.
fn argument(text: &str) -> Option<(Rational, &str)> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('{') {
        let (inner, rest) = rest.split_once('}')?;
        let inner = inner.trim();
        let (negative, inner) = match inner.strip_prefix(['-', '−']) {
            Some(inner) => (true, inner),
            None => (false, inner),
        };
        let (value, "") = decimal(inner)? else {
            return None;
        };
        return Some((if negative { value.neg() } else { value }, rest));
    }
    let digit = text
        .get(..1)
        .filter(|c| c.bytes().all(|b| b.is_ascii_digit()))?;
    Some((decimal(digit)?.0, &text[1..]))
}

/// An unsigned decimal, thousands separated or not, and the rest. Groups are `,`, `{,}` or `\,` and three digits; a comma
/// that separates no thousands (`1,2`) ends nothing: it makes the text no number.
fn decimal(text: &str) -> Option<(Rational, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let mut count = digits(text);
    let mut whole = text[..count].to_string();
    let mut rest = &text[count..];
    if (1..=3).contains(&count) && !whole.starts_with('0') {
        while let Some(after) = ["{,}", ",\\!", "\\,", ","]
            .iter()
            .find_map(|mark| rest.strip_prefix(mark))
        {
            if digits(after) != 3 {
                break;
            }
            whole.push_str(&after[..3]);
            rest = &after[3..];
        }
    }
    if rest
        .strip_prefix(',')
        .is_some_and(|after| after.trim_start().starts_with(|c: char| c.is_ascii_digit()))
    {
        return None;
    }
    if let Some(after) = rest.strip_prefix('.') {
        count = digits(after);
        // `5.` ends a sentence; `5.a` is no number
        if count > 0 {
            whole.push('.');
            whole.push_str(&after[..count]);
            rest = &after[count..];
            if rest.starts_with('.') {
                return None;
            }
        }
    }
    if whole.is_empty() || whole.len() > MAX_DIGITS {
        return None;
    }
    Some((Rational::from_decimal(&whole)?, rest))
}

/// A mixed number: an integer and a fraction after it, as in `1\frac12`.
fn proper_sum(whole: &Rational, part: &Rational) -> Option<Rational> {
    if part.is_negative() {
        None
    } else {
        whole.add(part)
    }
}

/// Whether what follows a number leaves its value alone: nothing, or a unit in words.
fn is_unit(text: &str) -> bool {
    let mut text = text.trim_end_matches('.').trim();
    for space in ["\\,", "\\;", "\\ ", "\\quad", "~"] {
        text = text.strip_prefix(space).unwrap_or(text).trim_start();
    }
    for degree in ["^\\circ", "^{\\circ}", "°", "\\%", "%"] {
        text = text.strip_prefix(degree).unwrap_or(text).trim_start();
    }
    if text.is_empty() {
        return true;
    }
    // the unit stands in `\text{}` or is a word; `3x` and `3 x` are formulas
    let upright = ["\\text", "\\mathrm", "\\textbf"]
        .iter()
        .find_map(|font| text.strip_prefix(font));
    let words = upright.unwrap_or(text);
    let plain = |c: char| c.is_alphabetic() || c.is_whitespace() || "{}°./-^23".contains(c);
    let names = || {
        words
            .split(|c: char| !c.is_alphabetic())
            .filter(|word| !word.is_empty())
    };
    words.chars().all(plain)
        && words.starts_with(|c: char| c.is_alphabetic() || (c == '{' && upright.is_some()))
        && names().all(|word| upright.is_some() || word.len() > 1)
        && names().all(|word| !NO_UNITS.contains(&word.to_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_however_written() {
        let same = [
            ("540", "540.0"),
            ("1,234", "1234"),
            ("1{,}234{,}567", "1234567"),
            (r"1,\!234", "1234"),
            ("0.75", "3/4"),
            (r"\frac{3}{4}", "6/8"),
            (r"\dfrac34", ".75"),
            (r"-\frac{1}{2}", "-0.5"),
            (r"\frac{-1}{2}", "-.50"),
            (r"1\frac{1}{2}", "1.5"),
            ("$140", "140"),
            (r"\$140.00", "140"),
            (r"**\$140**", "140"),
            (r"50\%", "50"),
            ("−7", "-7"),
            ("+7", "7"),
            ("-0", "0"),
            ("x = 5", "5"),
            ("540 meters", "540"),
            (r"540 \text{ meters}", "540"),
            (r"12\text{ cm}^2", "12"),
            (r"90^\circ", "90"),
            (r"72\, \text{Mb/h}", "72"),
            (r"-10\,\text{°F}", "-10"),
            (r"20^\circ \text{C}", "20"),
            ("007", "7"),
            ("5.", "5"),
            (
                "100000000000000000000000000000000000000001",
                "100000000000000000000000000000000000000001.0",
            ),
        ];
        for (a, b) in same {
            assert!(parse(a).is_some(), "{a:?} is a number");
            assert_eq!(parse(a), parse(b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn unequal_numbers_stay_unequal() {
        let other = [
            ("0.3333333333333333", "1/3"),
            ("5", "-5"),
            (
                "100000000000000000000000000000000000000001",
                "100000000000000000000000000000000000000002",
            ),
            ("1234", "1.234"),
            ("50%", "0.5"),
        ];
        for (a, b) in other {
            assert!(parse(a).is_some() && parse(b).is_some());
            assert_ne!(parse(a), parse(b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn what_is_no_number() {
        let long = "9".repeat(100_000);
        let texts = [
            "",
            "-",
            ".",
            "x",
            "3x",
            "3 x",
            r"3\pi",
            "3 pi",
            "1,2",
            "1, 2",
            "(1,2)",
            "5 and 6",
            "5 million",
            "1/0",
            r"\frac{1}{0}",
            r"\frac{1}",
            r"\frac{x}{2}",
            "1.2.3",
            "2^{10}",
            "12,34",
            "1,2345",
            "é",
            &long,
        ];
        for text in texts {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_last_number_of_a_text() {
        let cases = [
            ("James runs a total of 540 meters a week.", Some("540")),
            ("**Final Answer:** $1,234.50.", Some("1,234.50")),
            ("It is -3.", Some("-3")),
            ("so 5-3", Some("3")),
            ("either 1,2", Some("2")),
            ("about 3/4 of it", Some("3/4")),
            ("at 10/0", Some("0")),
            ("no digits", None),
            ("数5é", Some("5")),
        ];
        for (text, expected) in cases {
            assert_eq!(last_in(text).map(|found| found.0), expected, "{text:?}");
        }
        // a long row of digits costs no more than its length
        assert!(last_in(&"7".repeat(1_000_000)).is_none());
        assert!(last_in(&"1,".repeat(500_000)).is_some());
    }
}
