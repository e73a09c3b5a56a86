//! Numerals in mathematical text: thousands and decimal places, `0.1\overline{6}` and `0.166...`, `1.5e-3`. The rest of
//! the text is in [`super::latex`].

use super::latex::{Commas, Lexeme, Lexer, Token};
use super::rational::Rational;

impl Lexer {
    /// A numeral, its groups joined, and what follows it.
    pub(super) fn number<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let count = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole = count(text);
        let mut digits = text[..whole].to_string();
        let mut rest = &text[whole..];
        let after_number = matches!(
            self.out.last(),
            Some(Lexeme {
                token: Token::Sign(','),
                ..
            })
        ) && !self.spaced;
        let thousands = self.commas == Commas::Thousands
            && !after_number
            && (self.brackets == 0 || self.spaced_commas);
        if (1..=3).contains(&whole) && !digits.starts_with('0') {
            // within one numeral the groups are separated alike
            let mut mark: Option<usize> = None;
            const MARKS: [&str; 8] = ["{,}\\!", "{,}", ",\\!\\!", ",\\!", "\\,", "\\!", ",", " "];
            while let Some((which, after)) = MARKS
                .iter()
                .enumerate()
                .find_map(|(i, m)| rest.strip_prefix(m).map(|after| (i, after)))
            {
                let after = if which < 6 { after.trim_start() } else { after };
                let plain_comma = MARKS[which] == ",";
                if count(after) != 3
                    || mark.is_some_and(|earlier| earlier != which)
                    || (plain_comma && !thousands)
                {
                    break;
                }
                mark = Some(which);
                digits.push_str(&after[..3]);
                rest = &after[3..];
            }
        }
        let mut exact = true;
        let places = rest.strip_prefix('.').map_or(0, count);
        if places > 0 {
            digits.push('.');
            digits.push_str(&rest[1..=places]);
            rest = &rest[1 + places..];
            exact = false;
        } else if self.commas == Commas::Decimal
            && let Some(after) = rest.strip_prefix(',')
            && count(after) > 0
        {
            let places = count(after);
            digits.push('.');
            digits.push_str(&after[..places]);
            rest = &after[places..];
            exact = false;
        } else if let Some(after) = rest.strip_prefix('.')
            && !after.starts_with('.')
            && !digits.is_empty()
            && !after.starts_with("\\overline")
        {
            // `5.` ends a sentence
            rest = after;
            if after.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
        }
        let written = digits.clone();
        let mut value = Rational::from_decimal(&digits)?;
        // 0.1\overline{6}
        let repeated = rest.strip_prefix('.').filter(|_| exact).unwrap_or(rest);
        if let Some(inner) = ["\\overline{", "\\bar{", "\\dot{"]
            .iter()
            .find_map(|m| repeated.strip_prefix(m))
            && (!exact || repeated.len() < rest.len())
        {
            let period = count(inner);
            if period == 0 || period > 300 || !inner[period..].starts_with('}') {
                return None;
            }
            let ten = Rational::integer(10);
            let tail = Rational::from_decimal(&inner[..period])?
                .div(&ten.pow(period as i64)?.sub(&Rational::integer(1))?)?
                .div(&ten.pow(places as i64)?)?;
            value = value.add(&tail)?;
            rest = &inner[period + 1..];
            exact = true;
            if rest.starts_with("\\dot{") || rest.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
        } else if let Some(after) = ["...", "\\ldots", "\\dots", "\\cdots", "…"]
            .iter()
            .find_map(|dots| rest.strip_prefix(dots))
            && let Some(recurring) = recurring(&digits)
        {
            value = recurring;
            exact = true;
            rest = after.trim_start_matches('.');
        } else if let Some(after) = rest.strip_prefix(['e', 'E']) {
            // 1.5e-3, but neither `2e` nor `3ex`
            let sign = after.strip_prefix(['-', '+', '−']).unwrap_or(after);
            let length = count(sign);
            if (1..=4).contains(&length)
                && !sign[length..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.')
            {
                let power: i64 = sign[..length].parse().ok()?;
                let power = if after.starts_with(['-', '−']) {
                    -power
                } else {
                    power
                };
                value = value.mul(&Rational::integer(10).pow(power)?)?;
                rest = &sign[length..];
                exact = exact && power >= 0;
            }
        }
        self.push(Token::Number {
            value,
            digits: written,
            exact,
        })?;
        Some(rest)
    }
}

/// The fraction of a decimal whose last digits clearly repeat, as the 3 of `0.333...` and the 12 of `0.1212...`: one digit
/// three times, or more digits twice. None where nothing does: what dots stand for is unknown then.
fn recurring(digits: &str) -> Option<Rational> {
    let (whole, places) = digits.split_once('.')?;
    if places.len() > 300 {
        return None;
    }
    let period = (1..=places.len() / 2).find(|period| {
        let times = if *period == 1 { 3 } else { 2 };
        let tail = &places[places.len() - period..];
        let repeated = places
            .len()
            .checked_sub(times * period)
            .map(|from| &places[from..]);
        repeated.is_some_and(|all| all.as_bytes().chunks(*period).all(|c| c == tail.as_bytes()))
    })?;
    let ten = Rational::integer(10);
    // what is written holds some periods already; the ones after it are a geometric series
    let tail = Rational::from_decimal(&places[places.len() - period..])?
        .div(&ten.pow(period as i64)?.sub(&Rational::integer(1))?)?
        .div(&ten.pow(places.len() as i64)?)?;
    Rational::from_decimal(&format!("{whole}.{places}"))?.add(&tail)
}
