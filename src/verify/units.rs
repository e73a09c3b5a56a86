//! Units, currencies and remarks after a value, and which words change a value instead.

use super::expr::Expr;
use super::latex::{Lexeme, Token};
use super::parse::Parsed;
use super::rational::Rational;

/// Words of units; a plural `s` or `es` is taken off first.
#[rustfmt::skip]
const UNITS: &[&str] = &[
    "cm", "mm", "km", "dm", "nm", "ft", "foot", "feet", "inch", "in", "mile", "mi", "yd", "yard", "meter", "metre",
    "centimeter", "centimetre", "millimeter", "kilometer", "kilometre", "kg", "mg", "gram", "kilogram", "lb",
    "pound", "ounce", "oz", "ton", "tonne", "liter", "litre", "ml", "gallon", "cup", "pint", "quart", "hr", "hour",
    "minute", "min", "second", "sec", "ms", "day", "week", "month", "year", "yr", "dollar", "cent", "euro", "rupee",
    "rs", "usd", "eur", "yuan", "rmb", "rub", "yen", "degree", "deg", "rad", "radian", "mph", "kmh", "kph", "kmph",
    "square", "cubic", "sq", "cu", "unit", "acre", "hectare", "volt", "watt", "joule", "newton", "ohm", "amp", "hz",
    "khz", "mhz", "kw", "kwh", "pa", "kpa", "mol", "mole", "kelvin", "celsius", "fahrenheit", "bit", "byte", "kb",
    "mb", "gb", "am", "pm", "per", "mb/h", "people", "person", "student", "apple", "men", "women", "children",
    "way", "time", "point", "page", "card", "ticket", "coin", "mark", "more", "less", "total", "digit", "each",
    "of", "old", "solution", "item", "block", "box", "ball",
];

/// Words after a number that make it another number.
#[rustfmt::skip]
const MULTIPLIERS: &[(&str, u32)] = &[
    ("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12),
];

/// Words that make a value no single value, or not the one written.
#[rustfmt::skip]
const HEDGES: &[&str] = &[
    "or", "and", "not", "either", "maybe", "perhaps", "possibly", "to", "through", "than", "except", "minus",
    "plus", "times", "but", "if", "when", "dozen", "dozens", "half", "is", "are", "isn", "wrong", "alternatively",
    "also", "squared", "cubed", "between", "nor", "without", "excluding", "otherwise", "percent", "out", "tenth",
    "tenths", "hundredth", "hundredths", "thousandth", "thousandths", "halves", "third", "thirds", "quarters",
    "factorial", "doubled", "tripled", "inverse", "reciprocal", "pi", "over", "most", "least", "no", "never", "one",
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "incorrect", "false",
];

/// Words of which each says something else than the others of its row.
#[rustfmt::skip]
const OPPOSITES: &[&[&str]] = &[
    &["am", "pm"], &["north", "south", "east", "west"], &["up", "down"], &["left", "right"],
    &["more", "fewer", "less"], &["increase", "decrease"], &["increased", "decreased"], &["profit", "loss"],
    &["gain", "loss"], &["ago", "now", "later"], &["old", "new", "young"], &["boy", "girl"], &["men", "women"],
    &["win", "loss", "draw"], &["before", "after"], &["bc", "ad"], &["clockwise", "counterclockwise"],
    &["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
      "december"],
    &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    &["red", "blue", "green", "yellow", "white", "black"], &["odd", "even"], &["above", "below"],
    &["wide", "long", "high", "deep"], &["taller", "shorter"], &["older", "younger"], &["debit", "credit"],
];

/// Words of counting that may be exchanged or left out.
#[rustfmt::skip]
const COUNTERS: &[&str] = &[
    "unit", "people", "person", "student", "way", "time", "point", "solution", "item", "digit", "each", "of", "the",
    "a", "an", "in", "total", "square", "cubic", "sq", "cu", "per", "number", "integer", "value", "triple", "pair",
    "ordered", "set", "arrangement", "children", "mark", "only", "exactly", "about", "approximately", "per",
];

/// Units written otherwise, and the name to compare them by.
#[rustfmt::skip]
const NAMES: &[(&str, &str)] = &[
    ("centimeter", "cm"), ("centimetre", "cm"), ("millimeter", "mm"), ("millimetre", "mm"), ("meter", "m"),
    ("metre", "m"), ("kilometer", "km"), ("kilometre", "km"), ("inch", "in"), ("inche", "in"), ("foot", "ft"),
    ("feet", "ft"), ("yard", "yd"), ("mile", "mi"), ("gram", "g"), ("kilogram", "kg"), ("kgs", "kg"),
    ("pound", "lb"), ("ounce", "oz"), ("liter", "l"), ("litre", "l"), ("milliliter", "ml"), ("hour", "h"),
    ("hr", "h"), ("minute", "min"), ("second", "s"), ("sec", "s"), ("year", "yr"), ("dollar", "dollar"),
    ("usd", "dollar"), ("$", "dollar"), ("€", "euro"), ("eur", "euro"), ("£", "lb"), ("rupee", "₹"), ("rs", "₹"),
    ("yen", "¥"), ("yuan", "¥"), ("rmb", "¥"), ("₽", "rub"), ("mph", "mi/h"), ("kph", "km/h"), ("kmh", "km/h"),
    ("kmph", "km/h"), ("celsius", "c"), ("fahrenheit", "f"), ("radian", "rad"), ("deg", "degree"), ("°", "degree"),
    ("percent", "%"), ("cent", "cent"), ("newton", "n"), ("joule", "j"), ("watt", "w"), ("volt", "v"),
];

/// Whether a word multiplies the number before it.
pub fn is_multiplier(word: &str) -> bool {
    let lower = word.to_lowercase();
    MULTIPLIERS.iter().any(|(name, _)| *name == lower)
}

/// Whether a word is a unit, or counts things.
pub fn is_unit(word: &str) -> bool {
    let lower = word.to_lowercase();
    let known = |w: &str| UNITS.contains(&w);
    known(&lower)
        || lower.strip_suffix('s').is_some_and(known)
        || lower.strip_suffix("es").is_some_and(known)
}

/// A plain word of a language rather than a product of letters.
fn is_noun(word: &str) -> bool {
    word.len() >= 4
        && word.bytes().all(|b| b.is_ascii_lowercase())
        && word.bytes().any(|b| b"aeiou".contains(&b))
        && !matches!(
            word,
            "sqrt"
                | "infty"
                | "infinity"
                | "sinh"
                | "cosh"
                | "tanh"
                | "arcsin"
                | "arccos"
                | "arctan"
                | "theta"
                | "alpha"
                | "beta"
                | "gamma"
                | "delta"
                | "lambda"
                | "floor"
                | "ceil"
        )
}

fn is_hedge(word: &str) -> bool {
    HEDGES.contains(&word.to_lowercase().as_str())
}

/// What stands in words after a value: the number of tokens, the words, and the factor they multiply by. Some(None) where
/// nothing does; None where the words make the value another one.
#[allow(clippy::type_complexity)]
pub fn after_value(
    tokens: &[Lexeme],
    numeric: bool,
) -> Option<Option<(usize, String, Option<Rational>)>> {
    let word = match tokens.first().map(|t| &t.token) {
        Some(Token::Text(text)) => text.clone(),
        Some(Token::Word(word)) if numeric && word.len() > 1 => word.clone(),
        _ => return Some(None),
    };
    let is_text = matches!(tokens[0].token, Token::Text(_));
    if let Some((_, power)) = MULTIPLIERS
        .iter()
        .find(|(name, _)| *name == word.trim().to_lowercase())
        && numeric
    {
        return Some(Some((
            1,
            word,
            Rational::integer(10).pow(i64::from(*power)),
        )));
    }
    if !is_text && is_hedge(&word) && !matches!(word.as_str(), "and" | "or" | "times" | "to") {
        return None;
    }
    let counted = is_unit(&word) || (tokens[0].spaced && is_noun(&word));
    if !is_text && !counted {
        return Some(None);
    }
    let mut units = Vec::new();
    let mut at = 0;
    while let Some(lexeme) = tokens.get(at) {
        match &lexeme.token {
            Token::Text(text) => {
                remark(text)?;
                units.push(text.trim().to_string());
            }
            Token::Word(word) if word == "and" || word == "or" => break,
            Token::Word(word) if is_hedge(word) => return None,
            Token::Word(word) if is_unit(word) || is_noun(word) || (at > 0 && word.len() <= 4) => {
                units.push(word.clone());
            }
            Token::Sign(sign @ ('/' | '*' | '-'))
                if at > 0
                    && matches!(
                        tokens.get(at + 1).map(|t| &t.token),
                        Some(Token::Text(_) | Token::Word(_))
                    ) =>
            {
                units.push(sign.to_string());
            }
            Token::Sign('^') if at > 0 => {
                // an exponent of the unit
                let next = |n: usize| tokens.get(at + n).map(|t| &t.token);
                let digits = [1, 2, 3].into_iter().find_map(|n| match next(n) {
                    Some(Token::Number { digits, .. }) => Some(digits),
                    _ => None,
                });
                units.push(format!("^{}", digits.map_or("", String::as_str)));
                at += match (next(1), next(2), next(3), next(4)) {
                    (Some(Token::Number { .. }), ..) => 1,
                    (
                        Some(Token::Sign('{')),
                        Some(Token::Number { .. }),
                        Some(Token::Sign('}')),
                        _,
                    ) => 3,
                    (
                        Some(Token::Sign('{')),
                        Some(Token::Sign('-')),
                        Some(Token::Number { .. }),
                        Some(Token::Sign('}')),
                    ) => 4,
                    _ => return None,
                };
            }
            Token::Sign('°' | '.') if at > 0 => {}
            // `(each)`, `(for part a)`: a remark in parentheses is read as the formula it looks like
            _ => break,
        }
        at += 1;
    }
    let ended = match tokens.get(at).map(|t| &t.token) {
        None | Some(Token::RowEnd | Token::End(_)) => true,
        Some(Token::Word(word)) => word == "and" || word == "or",
        Some(Token::Sign(c)) => matches!(
            c,
            ',' | ';'
                | ')'
                | ']'
                | '}'
                | '⦄'
                | '='
                | '≈'
                | '<'
                | '>'
                | '≤'
                | '≥'
                | '&'
                | '|'
                | '+'
                | '-'
        ),
        _ => is_text,
    };
    if !ended && !is_text {
        return Some(None);
    }
    Some(Some((at, units.join(" "), None)))
}

/// Whether words in `\text{}` after a value leave it alone: no number, no other value.
fn remark(text: &str) -> Option<()> {
    let mut words = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty());
    let fine = |word: &str| {
        let unit_power = word.trim_end_matches(['2', '3']);
        !is_hedge(word)
            && MULTIPLIERS
                .iter()
                .all(|(name, _)| *name != word.to_lowercase())
            && (word.chars().all(char::is_alphabetic)
                || (is_unit(unit_power) && !unit_power.is_empty()))
    };
    words.all(fine).then_some(())
}

/// Length in metres, time in seconds, mass in grams, money in cents: dimension and size of units that are compared.
#[rustfmt::skip]
const SIZES: &[(&str, u8, i64, i64)] = &[
    ("mm", 0, 1, 1000), ("cm", 0, 1, 100), ("dm", 0, 1, 10), ("m", 0, 1, 1), ("km", 0, 1000, 1), ("meter", 0, 1, 1),
    ("metre", 0, 1, 1), ("centimeter", 0, 1, 100), ("kilometer", 0, 1000, 1), ("millimeter", 0, 1, 1000),
    ("inch", 0, 254, 10000), ("in", 0, 254, 10000), ("foot", 0, 3048, 10000), ("feet", 0, 3048, 10000),
    ("ft", 0, 3048, 10000), ("yard", 0, 9144, 10000), ("mile", 0, 1609344, 1000), ("second", 1, 1, 1),
    ("sec", 1, 1, 1), ("minute", 1, 60, 1), ("min", 1, 60, 1), ("hour", 1, 3600, 1), ("hr", 1, 3600, 1),
    ("day", 1, 86400, 1), ("week", 1, 604800, 1), ("mg", 2, 1, 1000), ("gram", 2, 1, 1), ("g", 2, 1, 1),
    ("kg", 2, 1000, 1), ("kilogram", 2, 1000, 1), ("dollar", 3, 100, 1), ("cent", 3, 1, 1), ("ml", 4, 1, 1000),
    ("liter", 4, 1, 1), ("litre", 4, 1, 1), ("l", 4, 1, 1), ("h", 1, 3600, 1), ("s", 1, 1, 1), ("yd", 0, 9144, 10000),
    ("mi", 0, 1609344, 1000), ("lb", 2, 45359237, 100000), ("pound", 2, 45359237, 100000),
    ("oz", 2, 45359237, 1600000), ("ounce", 2, 45359237, 1600000), ("ton", 2, 1000000, 1), ("tonne", 2, 1000000, 1),
];

/// How many of unit `b` make one of unit `a`, where both are known: None of them is, or they measure different things and
/// the inner None says so.
pub fn conversion(a: &str, b: &str) -> Option<Option<Rational>> {
    let find = |unit: &str| {
        let unit = unit.trim().trim_end_matches('.').to_lowercase();
        let known = |name: &str| SIZES.iter().find(|(n, ..)| *n == name);
        known(&unit)
            .or_else(|| unit.strip_suffix('s').and_then(known))
            .or_else(|| unit.strip_suffix("es").and_then(known))
    };
    let (a, b) = (find(a)?, find(b)?);
    if a.1 != b.1 {
        return Some(None);
    }
    let size =
        |unit: &(&str, u8, i64, i64)| Rational::integer(unit.2).div(&Rational::integer(unit.3));
    Some(size(a)?.div(&size(b)?))
}

/// Whether what stands beside two values, units, currencies and words, says different things. What only one side says is
/// no difference, but that something is less.
pub fn conflict(gold: &Parsed, prediction: &Parsed) -> bool {
    let (g, p) = (measures(gold), measures(prediction));
    let less = |all: &[String]| all.iter().any(|m| m == "less" || m == "fewer");
    if less(&p) && !less(&g) {
        return true;
    }
    if g.is_empty() || p.is_empty() {
        return false;
    }
    let opposite = OPPOSITES.iter().any(|row| {
        let of = |all: &[String]| row.iter().position(|w| all.iter().any(|m| m == w));
        matches!((of(&g), of(&p)), (Some(g), Some(p)) if g != p)
    });
    if opposite {
        return true;
    }
    // two lengths may be converted
    if let ([g], [p]) = (&gold.units[..], &prediction.units[..])
        && matches!(conversion(g, p), Some(Some(_)))
    {
        return false;
    }
    let known = |all: &[String]| -> Vec<String> {
        all.iter()
            .filter(|name| is_measure(name))
            .cloned()
            .collect()
    };
    let (known_g, known_p) = (known(&g), known(&p));
    if !known_g.is_empty() && !known_p.is_empty() {
        let (few, many) = match known_g.len() <= known_p.len() {
            true => (known_g, known_p),
            false => (known_p, known_g),
        };
        return !few.iter().all(|a| many.iter().any(|b| same_measure(a, b)));
    }
    // apples are no pears; a short word may be an abbreviation
    let noun = |all: &[String]| {
        all.len() == 1
            && all[0].len() >= 4
            && !is_measure(&all[0])
            && all[0].bytes().all(|b| b.is_ascii_alphabetic())
    };
    noun(&g) && noun(&p) && g != p
}

/// Whether two units are one; 5 dollars a week are 5 dollars.
fn same_measure(a: &str, b: &str) -> bool {
    let rate = |rate: &str, money: &str| {
        let coin = matches!(money, "dollar" | "cent" | "euro" | "lb" | "₹" | "¥" | "rub");
        coin && rate
            .strip_prefix(money)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    a == b || rate(a, b) || rate(b, a)
}

/// Whether a name is of a unit, and not of things.
fn is_measure(name: &str) -> bool {
    let first = name.split(['/', '^']).next().unwrap_or(name);
    NAMES
        .iter()
        .any(|(_, short)| *short == first || *short == name)
        || SIZES.iter().any(|(unit, ..)| *unit == first)
        || [
            "hz", "khz", "kw", "kwh", "pa", "mol", "acre", "month", "ohm",
        ]
        .contains(&first)
}

/// The names of the units, currencies and other words beside a value, each in the form that it is compared in.
fn measures(parsed: &Parsed) -> Vec<String> {
    let mut all = Vec::new();
    for words in parsed.units.iter().chain(&parsed.signs) {
        let words = words
            .to_lowercase()
            .replace("a.m.", "am")
            .replace("p.m.", "pm");
        let squared = words.contains("square") || words.contains("sq ");
        let cubic = words.contains("cubic");
        let mut over = false;
        for part in words
            .replace('²', "^2")
            .replace('³', "^3")
            .replace('/', " / ")
            .replace('^', " ^")
            .split(|c: char| {
                c.is_whitespace() || matches!(c, ',' | '.' | '(' | ')' | '*' | '{' | '}')
            })
        {
            match part {
                "" => {}
                "/" | "per" => over = true,
                _ if part.starts_with('^') => {
                    if let Some(last) = all.last_mut() {
                        *last = format!("{last}{part}");
                    }
                }
                _ => {
                    let name = name_of(part);
                    let counter = COUNTERS.contains(&name.as_str());
                    if over && let Some(last) = all.last_mut() {
                        *last = format!("{last}/{name}");
                    } else if !counter {
                        let power = match (squared, cubic) {
                            (true, _) => "^2",
                            (_, true) => "^3",
                            _ => "",
                        };
                        all.push(name + power);
                    }
                    over = false;
                }
            }
        }
    }
    match &parsed.expr {
        Expr::Degree(_) => all.push("degree".into()),
        Expr::Percent(_) if !parsed.units.is_empty() || parsed.signs.is_empty() => {
            all.push("%".into());
        }
        _ => {}
    }
    let scaled = all.iter().any(|m| m == "c" || m == "f");
    all.retain(|m| !(scaled && m == "degree"));
    all.dedup();
    all
}

/// A unit in the form that it is compared in: short and singular.
fn name_of(word: &str) -> String {
    let known = |w: &str| NAMES.iter().find(|(name, _)| *name == w);
    let singular = match word {
        w if w.len() < 3 || w.ends_with("ss") => None,
        w if w.ends_with("ies") && w.len() > 4 => Some(format!("{}y", &w[..w.len() - 3])),
        w if ["xes", "ches", "shes", "sses"]
            .iter()
            .any(|end| w.ends_with(end)) =>
        {
            w.strip_suffix("es").map(str::to_string)
        }
        w => w.strip_suffix('s').map(str::to_string),
    };
    match known(word).or_else(|| singular.as_deref().and_then(known)) {
        Some((_, short)) => (*short).to_string(),
        None => match singular {
            Some(singular) if word.len() > 3 || is_measure(&singular) => singular,
            _ => word.to_string(),
        },
    }
}

/// Miles per hour as a fraction of words.
pub fn is_unit_fraction(expr: &Expr) -> bool {
    let words = |expr: &Expr| match expr {
        Expr::Text(words) => is_unit(words.trim()),
        Expr::Pow(base, _) => matches!(&**base, Expr::Text(words) if is_unit(words.trim())),
        _ => false,
    };
    matches!(expr, Expr::Div(above, below) if words(above) && words(below))
}

/// Whether words announce the value that follows: "the answer is", "Area:", "USD".
pub fn is_introduction(words: &str) -> bool {
    let words = words.trim().to_lowercase();
    let currency = matches!(words.as_str(), "rs." | "rs" | "usd" | "eur" | "inr");
    let ends = currency
        || words.ends_with(':')
        || words.ends_with('=')
        || words == "is"
        || words.ends_with(" is");
    ends && !words.chars().any(|c| c.is_ascii_digit())
}
