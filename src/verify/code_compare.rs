//! Whether what a program wrote or returned is what was expected. All of it happens here, outside of any process that
//! model code has touched.
//!
//! Standard output is compared as LiveCodeBench does it: the ends trimmed, split into lines, each line trimmed, as many
//! lines as expected, each the same text or the same decimal numbers token by token. The whole is compared: a prefix or a
//! tail too many is wrong. Values of calls are compared as Python's `==` does, with tuples as lists.

use serde_json::Value;

/// Why `actual` is not `expected`; None where it is.
pub fn output_difference(actual: &[u8], expected: &str) -> Option<String> {
    let Ok(actual) = std::str::from_utf8(actual) else {
        return Some("the output is not UTF-8".into());
    };
    let lines = |text: &'_ str| -> Vec<String> {
        text.trim()
            .split('\n')
            .map(|line| line.trim().to_string())
            .collect()
    };
    let (actual, expected) = (lines(actual), lines(expected));
    if actual.len() != expected.len() {
        return Some(format!(
            "{} lines where {} are expected",
            if actual == [""] { 0 } else { actual.len() },
            expected.len()
        ));
    }
    let differs = actual
        .iter()
        .zip(&expected)
        .position(|(a, e)| !same_line(a, e))?;
    Some(format!("line {} differs", differs + 1))
}

fn same_line(actual: &str, expected: &str) -> bool {
    if actual == expected {
        return true;
    }
    let (mut actual, mut expected) = (actual.split_whitespace(), expected.split_whitespace());
    loop {
        match (actual.next(), expected.next()) {
            (None, None) => return true,
            (Some(a), Some(e)) => match (Decimal::parse(a), Decimal::parse(e)) {
                (Some(a), Some(e)) if a == e => {}
                _ => return false,
            },
            _ => return false,
        }
    }
}

/// A finite decimal number: sign, digits without zeros at either end, exponent of the last digit.
#[derive(Debug, PartialEq, Eq)]
struct Decimal<'a> {
    negative: bool,
    digits: std::borrow::Cow<'a, str>,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, text) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                let bare = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                let short = !bare.is_empty() && bare.len() <= 9;
                if !short || !bare.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                (mantissa, exponent.parse::<i64>().ok()?)
            }
            None => (text, 0),
        };
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let numeric = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + part.len() == 0 || !numeric(whole) || !numeric(part) {
            return None;
        }
        let digits: std::borrow::Cow<str> = if part.is_empty() {
            whole.into()
        } else {
            format!("{whole}{part}").into()
        };
        let digits = digits.trim_start_matches('0').to_string();
        let kept = digits.trim_end_matches('0').len();
        if kept == 0 {
            return Some(Self {
                negative: false,
                digits: "".into(),
                exponent: 0,
            });
        }
        let exponent = exponent - part.len() as i64 + (digits.len() - kept) as i64;
        Some(Self {
            negative,
            digits: digits[..kept].to_string().into(),
            exponent,
        })
    }
}

/// What a call gave, as the runner encodes it: integers and floats as text, so that no digit is lost.
#[derive(Debug, Clone, PartialEq)]
enum Returned {
    None,
    Bool(bool),
    Int(String),
    Float(f64),
    Text(String),
    List(Vec<Returned>),
    Dict(Vec<(Returned, Returned)>),
    Other(String),
}

/// Why the value in `encoded` is not `expected`; None where it is.
pub fn value_difference(encoded: &[u8], expected: &Value) -> Option<String> {
    if encoded.is_empty() {
        return Some("the program ended without returning".into());
    }
    // one value, nothing behind it
    let Some(value) = serde_json::from_slice(encoded).ok().and_then(decode) else {
        return Some("the returned value cannot be read".into());
    };
    match &value {
        Returned::Other(name) => Some(format!("returned a `{name}`")),
        value if same_value(value, expected) => None,
        _ => Some("returned another value".into()),
    }
}

fn decode(value: Value) -> Option<Returned> {
    Some(match value {
        Value::Null => Returned::None,
        Value::Bool(value) => Returned::Bool(value),
        Value::String(text) => Returned::Text(text),
        Value::Array(items) => {
            Returned::List(items.into_iter().map(decode).collect::<Option<_>>()?)
        }
        Value::Number(_) => return None,
        Value::Object(tagged) => {
            let (tag, value) = tagged.into_iter().next()?;
            match (tag.as_str(), value) {
                ("int", Value::String(text)) => {
                    let digits = text.strip_prefix('-').unwrap_or(&text);
                    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                    plain.then_some(Returned::Int(text))?
                }
                ("float", Value::String(text)) => Returned::Float(text.parse().ok()?),
                ("tuple", Value::Array(items)) => {
                    Returned::List(items.into_iter().map(decode).collect::<Option<_>>()?)
                }
                ("set" | "frozenset" | "bytes" | "complex" | "type", _) => Returned::Other(tag),
                ("other", Value::String(text)) => Returned::Other(text),
                ("dict", Value::Array(pairs)) => {
                    let mut entries = Vec::with_capacity(pairs.len());
                    for pair in pairs {
                        let Value::Array(pair) = pair else {
                            return None;
                        };
                        let [key, value] = <[Value; 2]>::try_from(pair).ok()?;
                        entries.push((decode(key)?, decode(value)?));
                    }
                    Returned::Dict(entries)
                }
                _ => return None,
            }
        }
    })
}

/// Python's `==` between a returned value and one read from JSON: `1 == 1.0 == True`, an integer exactly.
fn same_value(value: &Returned, expected: &Value) -> bool {
    match (value, expected) {
        (Returned::None, Value::Null) => true,
        (Returned::Text(a), Value::String(b)) => a == b,
        (Returned::Bool(a), Value::Bool(b)) => a == b,
        (Returned::Bool(a), Value::Number(_)) => {
            same_value(&Returned::Int(u8::from(*a).to_string()), expected)
        }
        (Returned::Int(_) | Returned::Float(_), Value::Bool(b)) => {
            same_value(value, &Value::from(u8::from(*b)))
        }
        (Returned::Int(text), Value::Number(number)) => {
            if number.is_f64() {
                // reading JSON has rounded what does not fit 64 bits
                text.parse::<f64>().ok() == number.as_f64()
            } else {
                *text == number.to_string()
            }
        }
        (Returned::Float(a), Value::Number(number)) => match (number.as_i64(), number.as_u64()) {
            (Some(b), _) => a.fract() == 0.0 && a.abs() < 9.3e18 && *a as i128 == i128::from(b),
            (_, Some(b)) => a.fract() == 0.0 && a.abs() < 1.9e19 && *a as i128 == i128::from(b),
            _ => Some(*a) == number.as_f64(),
        },
        (Returned::List(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
        }
        (Returned::Dict(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| match key {
                    Returned::Text(key) => b.get(key).is_some_and(|b| same_value(value, b)),
                    _ => false,
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn outputs() {
        let cases: &[(&str, &str, bool)] = &[
            ("5\n", "5", true),
            ("  5  \r\n", "5", true),
            ("5", "6", false),
            ("1\n2\n", "1\n2", true),
            ("1 \n 2", "1\n2\n\n", true),
            // a prefix, a tail, an empty line between
            ("1", "1\n2", false),
            ("1\n2\n3", "1\n2", false),
            ("1\n\n2", "1\n2", false),
            ("", "1", false),
            ("1 2", "1\n2", false),
            // numbers token by token, exactly
            ("1.0", "1", true),
            ("0.50", ".5", true),
            ("1e3", "1000", true),
            ("-0", "0", true),
            ("1.0 2.00", "1 2", true),
            ("1  2", "1 2", true),
            ("0.333", "0.3333", false),
            ("1.0000000000000001", "1", false),
            ("1 2 3", "1 2", false),
            ("1 x", "1.0 x", false),
            ("Yes", "YES", false),
            ("nan", "NaN", false),
            ("inf", "Infinity", false),
            ("nan", "nan", true),
            ("1e99999999999", "1e99999999998", false),
            ("0x10", "16", false),
            ("1_000", "1000", false),
            ("\u{663}", "3", false),
            (".", "0", false),
            ("e5", "0", false),
        ];
        for (actual, expected, same) in cases {
            let difference = output_difference(actual.as_bytes(), expected);
            assert_eq!(
                difference.is_none(),
                *same,
                "{actual:?} {expected:?} {difference:?}"
            );
        }
        assert!(output_difference(b"\xff\xfe", "\u{fffd}").is_some());
    }

    #[test]
    fn values() {
        let int = |text: &str| json!({"int": text});
        let float = |text: &str| json!({"float": text});
        let cases = [
            (int("5"), json!(5), true),
            (int("5"), json!(5.0), true),
            (float("5.0"), json!(5), true),
            (float("5.5"), json!(5), false),
            (float("nan"), json!(5), false),
            (float("inf"), json!(f64::MAX), false),
            (json!(true), json!(true), true),
            (int("1"), json!(true), true),
            (json!(true), json!(1), true),
            (json!("5"), json!(5), false),
            (json!("a"), json!("a"), true),
            (json!(null), json!(null), true),
            (json!(null), json!(false), false),
            (json!([int("1"), [int("2")]]), json!([1, [2]]), true),
            (json!([int("1")]), json!([1, 2]), false),
            (json!([]), json!([]), true),
            (json!([]), json!({}), false),
            (json!({"tuple": [int("1")]}), json!([1]), true),
            (json!({"set": [int("1")]}), json!([1]), false),
            (json!({"dict": [["a", int("1")]]}), json!({"a": 1}), true),
            (
                json!({"dict": [[int("1"), int("1")]]}),
                json!({"1": 1}),
                false,
            ),
            (json!({"other": "Sneaky"}), json!("Sneaky"), false),
            (int("9007199254740993"), json!(9007199254740992_i64), false),
            (
                float("9007199254740992.0"),
                json!(9007199254740993_i64),
                false,
            ),
            (int("18446744073709551615"), json!(u64::MAX), true),
            // no encoding of ours
            (json!(5), json!(5), false),
            (int("5 "), json!(5), false),
        ];
        for (encoded, expected, same) in cases {
            let difference = value_difference(encoded.to_string().as_bytes(), &expected);
            assert_eq!(
                difference.is_none(),
                same,
                "{encoded} {expected} {difference:?}"
            );
        }
        assert!(value_difference(b"", &json!(null)).is_some());
        assert!(value_difference(b"null null", &json!(null)).is_some());
    }
}
