//! Mathematical answers: the verdict on a whole model text against a gold field, and whether two answers are the same.
//!
//! Where an answer stands is found in `find.rs`, read in `parse.rs` and compared in `compare.rs`; this
//! file puts them together, and says why.

use serde::{Deserialize, Serialize};

use super::compare::Rules;
use super::exact::Budget;
use super::expr::Expr;
use super::find::{self, Found};
use super::latex::Commas;
use super::parse::{Parsed, parse};
use super::{Outcome, Verdict, units};

/// What one verdict may cost, in units of about ten nanoseconds.
const BUDGET: u64 = 3_000_000;

/// Longer answers are compared as they are.
const MAX_COMPARED_BYTES: usize = 4 * super::parse::MAX_ANSWER_BYTES;

/// How answers are found and compared. The default follows Math-Verify's priorities for a model's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MathOptions {
    /// A box is taken before a sentence such as "the final answer is 5"; false: after it.
    pub boxed_first: bool,
    /// Formulas between dollars and their like are answers.
    pub latex: bool,
    /// Plain numbers in running text are answers.
    pub plain: bool,
    /// A decimal is compared with a fraction, a root or a constant after rounding to this many places: 0.142857 answers
    /// 1/7, 3.141593 answers pi. Two numerals must agree in every digit.
    pub float_rounding: u32,
    /// An inequality answers a gold interval, as an interval a gold inequality.
    pub relation_for_set: bool,
    /// Letters matter: f(x) is not f(y).
    pub strict: bool,
}

impl Default for MathOptions {
    fn default() -> Self {
        Self {
            boxed_first: true,
            latex: true,
            plain: true,
            float_rounding: 6,
            relation_for_set: true,
            strict: true,
        }
    }
}

/// One text read in one way.
struct Reading {
    parsed: Option<Parsed>,
    flat: String,
}

/// The verdict on a whole model text (thinking included) against a gold field: a bare answer, `$..$`, a worked solution
/// with a box, or `#### n`.
pub fn check(prediction: &str, gold: &str, options: &MathOptions) -> Verdict {
    let Some(wanted) = find::in_gold(gold) else {
        return Verdict::bad_gold("the gold answer is empty");
    };
    let Some(answer) = super::answer_part(prediction) else {
        return Verdict::unparsable("the thinking never ends");
    };
    let found = match find::in_text(answer, options) {
        _ if answer.trim() == gold.trim() => wanted.clone(),
        Found::Answer(found) => found,
        Found::Several(text) => {
            return Verdict::new(Outcome::Wrong, Some(&text), "several different answers");
        }
        Found::Nothing(reason) => return Verdict::unparsable(reason),
    };
    let compared = match find::is_worded(&wanted) {
        true => (
            Outcome::Wrong,
            "another text than the gold answer, which is no formula",
        ),
        false => judge(&wanted, &found, options),
    };
    let (outcome, reason) = match compared {
        // a gold text whose formula is another one may be repeated as it is
        (Outcome::Wrong | Outcome::Unparsable, _)
            if repeats(gold, &found) || repeats(&wanted, &found) =>
        {
            (Outcome::Correct, "the same text")
        }
        verdict => verdict,
    };
    Verdict::new(outcome, Some(found.trim()), reason)
}

/// Whether an answer is the whole gold field, set otherwise.
fn repeats(gold: &str, answer: &str) -> bool {
    gold.len() + answer.len() <= MAX_COMPARED_BYTES
        && !answer.trim().is_empty()
        && flattened(gold) == flattened(answer)
}

/// Whether two extracted answers are the same, for majority votes.
pub fn same(a: &str, b: &str) -> bool {
    let options = MathOptions {
        relation_for_set: true,
        ..MathOptions::default()
    };
    a.trim() == b.trim()
        || judge(a, b, &options).0 == Outcome::Correct
        || judge(b, a, &options).0 == Outcome::Correct
}

/// Compares two answers, read in every way that an ambiguous comma allows.
fn judge(gold: &str, prediction: &str, options: &MathOptions) -> (Outcome, &'static str) {
    if gold.len() + prediction.len() > MAX_COMPARED_BYTES {
        return match gold.trim() == prediction.trim() {
            true => (Outcome::Correct, "the same text"),
            false => (Outcome::Wrong, "too long for an answer, and another text"),
        };
    }
    let (flat_gold, flat) = (flattened(gold), flattened(prediction));
    if flat.is_empty() {
        return (Outcome::Unparsable, "the answer is empty");
    }
    if flat_gold == flat
        || (flat.len() > 1 && is_word(&flat) && flat_gold.eq_ignore_ascii_case(&flat))
    {
        return (Outcome::Correct, "the same text");
    }
    if let Some(verdict) = chosen(gold, &flat_gold, prediction, &flat, options) {
        return verdict;
    }
    let (gold, prediction) = (in_signs(gold, &flat_gold), in_signs(prediction, &flat));
    let budget = Budget::new(BUDGET);
    let rules = Rules {
        rounding: options.float_rounding,
        relation_for_set: options.relation_for_set,
        converted: false,
        joined: (false, false),
        budget: &budget,
    };
    if let Some((letter, words)) = option(&flat_gold)
        && (flat == letter || (words.eq_ignore_ascii_case(&flat) && flat.len() > 1))
    {
        return (Outcome::Correct, "the same option");
    }
    // `2,3` as a gold answer are two numbers, `1,22` and `0,5` are one where a decimal point answers
    let decimal_gold = flat_gold
        .split_once(',')
        .is_some_and(|(whole, places)| whole == "0" || places.len() > 1)
        && flat.contains('.')
        && !flat.contains([',', '(', '[', '{']);
    let decimal_prediction = !gold.contains(',');
    let golds = readings(gold, flat_gold, decimal_gold);
    let predictions = readings(prediction, flat, decimal_prediction);
    let rules = Rules {
        converted: predictions
            .iter()
            .any(|p| p.parsed.as_ref().is_some_and(|p| !p.units.is_empty())),
        ..rules
    };
    for g in &golds {
        for p in &predictions {
            if g.equals(p, &rules, options) {
                return (Outcome::Correct, "the same value");
            }
        }
    }
    match (golds[0].parsed.is_some(), predictions[0].parsed.is_some()) {
        (true, true) => (Outcome::Wrong, "another value"),
        (false, _) => (
            Outcome::Wrong,
            "another text than the gold answer, which is no formula",
        ),
        (true, false) => (Outcome::Wrong, "the answer is no formula that can be read"),
    }
}

impl Reading {
    fn equals(&self, prediction: &Reading, rules: &Rules, options: &MathOptions) -> bool {
        let (Some(g), Some(p)) = (&self.parsed, &prediction.parsed) else {
            return false;
        };
        // words are compared as words: `on` is not `no`
        if is_word(&self.flat)
            && is_word(&prediction.flat)
            && self.flat.len() > 1
            && prediction.flat.len() > 1
        {
            let letters = |text: &str| {
                text.bytes()
                    .all(|b| b.is_ascii_lowercase() && !b"eiou".contains(&b))
            };
            if !(letters(&self.flat) && letters(&prediction.flat)) {
                return false;
            }
        }
        if is_date(&self.flat) || is_date(&prediction.flat) || units::conflict(g, p) {
            return false;
        }
        let rules = &Rules {
            joined: (g.joined.0 || p.joined.0, g.joined.1 || p.joined.1),
            ..*rules
        };
        match unit_factor(g, p) {
            Some(None) => return false,
            Some(Some(factor)) if !factor.is_one() => {
                let scaled = Expr::Mul(vec![Expr::Number(factor), p.expr.clone()]);
                return rules.equal(&g.expr, &scaled);
            }
            _ => {}
        }
        if rules.equal(&g.expr, &p.expr) {
            return true;
        }
        let metres = without_letter_unit(&g.expr, &p.expr);
        if metres.is_some_and(|value| rules.equal(&g.expr, value)) {
            return true;
        }
        !options.strict
            && renamed(&g.expr, &p.expr, rules).is_some_and(|p| rules.equal(&g.expr, &p))
    }
}

/// The factor between the units of two single values; None where one has none, Some(None) where they measure other things.
fn unit_factor(g: &Parsed, p: &Parsed) -> Option<Option<super::rational::Rational>> {
    let ([g], [p]) = (&g.units[..], &p.units[..]) else {
        return None;
    };
    units::conversion(p, g)
}

/// `5 m` where the gold answer is a bare number: the value without the unit.
fn without_letter_unit<'e>(gold: &Expr, prediction: &'e Expr) -> Option<&'e Expr> {
    const UNITS: [&str; 8] = ["m", "g", "s", "h", "L", "N", "J", "W"];
    let plain = |expr: &Expr| matches!(expr, Expr::Number(_) | Expr::Decimal(_) | Expr::Div(..));
    let Expr::Mul(factors) = prediction else {
        return None;
    };
    let [value, unit] = &factors[..] else {
        return None;
    };
    let letter = match unit {
        Expr::Symbol(name) => Some(name),
        Expr::Pow(base, _) => match &**base {
            Expr::Symbol(name) => Some(name),
            _ => None,
        },
        _ => None,
    }?;
    (plain(gold) && !gold.has_symbols() && plain(value) && UNITS.contains(&letter.as_str()))
        .then_some(value)
}

/// The prediction with its letters called as the gold answer's, where there are as many.
fn renamed(gold: &Expr, prediction: &Expr, rules: &Rules) -> Option<Expr> {
    let letters = |expr: &Expr| {
        let mut names: Vec<String> = Vec::new();
        expr.any(&mut |part| {
            if let Expr::Symbol(name) = part
                && !names.contains(name)
            {
                names.push(name.clone());
            }
            false
        });
        names
    };
    let (g, p) = (letters(gold), letters(prediction));
    if g.len() != p.len() || g.len() > 20 {
        return None;
    }
    let mut result = prediction.clone();
    for (i, name) in p.iter().enumerate() {
        result =
            super::exact::substituted(&result, name, &Expr::Symbol(format!("#{i}")), rules.budget)?;
    }
    for (i, name) in g.iter().enumerate() {
        result = super::exact::substituted(
            &result,
            &format!("#{i}"),
            &Expr::Symbol(name.clone()),
            rules.budget,
        )?;
    }
    Some(result)
}

/// The ways to read a text: with commas between thousands, between members, and, where it is a numeral in which a comma
/// can be neither, before decimal places.
fn readings(text: &str, flat: String, decimal_comma: bool) -> Vec<Reading> {
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        at > 0
            && bytes[at - 1].is_ascii_digit()
            && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)
    };
    let commas = || (0..bytes.len()).filter(|at| bytes[*at] == b',' && between_digits(*at));
    let reading = |commas| Reading {
        parsed: parse(text, commas),
        flat: flat.clone(),
    };
    let mut all = vec![reading(Commas::Thousands)];
    // `1,000` are no two numbers
    let zeros = |at: usize| bytes[at + 1..].starts_with(b"00");
    if commas().next().is_some() && !commas().all(zeros) {
        all.push(reading(Commas::Separate));
    }
    let numeral = flat
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b',' || b == b'-');
    if decimal_comma && numeral && commas().count() == 1 && !is_grouped(&flat) {
        all.push(reading(Commas::Decimal));
    }
    all
}

/// Whether the digits after the comma of a numeral are a group of thousands.
fn is_grouped(numeral: &str) -> bool {
    numeral.split_once(',').is_some_and(|(whole, places)| {
        places.len() == 3 && !whole.trim_start_matches('-').starts_with('0')
    })
}

/// A date such as `2020-01-02`, which is text and no difference.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths = parts.iter().map(|part| part.len());
    lengths.eq([4, 2, 2]) && parts.concat().bytes().all(|b| b.is_ascii_digit())
}

/// A text without what only sets it: dollars, fonts, spaces that part no two words or numbers, a full stop at the end.
fn flattened(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut gap = false;
    let scripts = text.contains(['^', '_']);
    while let Some(c) = rest.chars().next() {
        let fonts = [
            "\\text{",
            "\\textbf{",
            "\\mathrm{",
            "\\mathbf{",
            "\\mbox{",
            "\\boxed{",
        ];
        if c == '\\'
            && let Some(font) = fonts.into_iter().find(|font| rest.starts_with(font))
        {
            rest = &rest[font.len()..];
            gap = true;
            continue;
        }
        if c == '\\'
            && let Some(space) = [
                "\\,", "\\;", "\\!", "\\ ", "\\(", "\\)", "\\[", "\\]", "\\left", "\\right",
            ]
            .into_iter()
            .find(|space| rest.starts_with(space))
        {
            rest = &rest[space.len()..];
            gap = true;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if c == '$' || c.is_whitespace() || c == '"' || (matches!(c, '{' | '}') && !scripts) {
            gap = true;
            continue;
        }
        // a gap matters between two words or numbers only
        if gap && c.is_alphanumeric() && out.ends_with(|b: char| b.is_alphanumeric()) {
            out.push(' ');
        }
        gap = false;
        out.push(c);
    }
    // dots that go on say something
    let trimmed = match out.ends_with("..") {
        true => out.as_str(),
        false => out.trim_end_matches(['.', ',', ';']),
    };
    match trimmed
        .strip_prefix('(')
        .and_then(|inner| inner.strip_suffix(')'))
    {
        Some(letter) if letter.len() == 1 && letter.bytes().all(|b| b.is_ascii_uppercase()) => {
            letter.to_string()
        }
        _ => trimmed.to_string(),
    }
}

/// The letter and the words of a gold option such as `(C) Cecile` or `C. Cecile`.
fn option(gold: &str) -> Option<(&str, &str)> {
    let gold = gold
        .rsplit_once("answer is")
        .map_or(gold, |(_, after)| after)
        .trim();
    let inner = gold.strip_prefix('(').unwrap_or(gold);
    let letter = inner
        .get(..1)
        .filter(|c| c.bytes().all(|b| (b'A'..=b'J').contains(&b)))?;
    let after = &inner[1..];
    let marked = after.starts_with([')', '.', ':']);
    let words = after.trim_start_matches([')', '.', ':']).trim_start();
    let name = after.starts_with(' ') && words.starts_with(|c: char| c.is_uppercase());
    (words.len() > 1 && (marked || name)).then_some((letter, words))
}

/// The verdict on an option with its value, `(C) 12`, where the gold answer is the letter or the value.
fn chosen(
    gold: &str,
    flat_gold: &str,
    prediction: &str,
    flat: &str,
    options: &MathOptions,
) -> Option<(Outcome, &'static str)> {
    let (letter, words) = option(flat).filter(|_| flat.starts_with('('))?;
    let another = words.contains('(') || words.starts_with([',', '+', '-', '/', '=']);
    let joined = ["or ", "and ", "not "]
        .iter()
        .any(|word| words.starts_with(word));
    if another || joined {
        return None;
    }
    if flat_gold == letter {
        return Some((Outcome::Correct, "the same option"));
    }
    let (_, value) = prediction.split_once(')')?;
    let apart = value.starts_with(['}', ' ', '\\', '~']);
    let value = value.trim_start_matches(['}', ' ', '~']);
    let value = value.strip_prefix("\\ ").unwrap_or(value);
    let verdict = judge(gold, value, options);
    (apart && verdict.0 == Outcome::Correct).then_some(verdict)
}

/// A set named in words as the sign of it.
fn in_signs<'a>(text: &'a str, flat: &str) -> &'a str {
    const REALS: [&str; 4] = [
        "all real numbers",
        "all reals",
        "the set of all real numbers",
        "all real numbers x",
    ];
    match REALS.iter().any(|words| flat.eq_ignore_ascii_case(words)) {
        true => "\\mathbb{R}",
        false => text,
    }
}

/// Whether a text is words only.
fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_alphabetic() || c == ' ')
}
