//! The smallest parts of the grammar of answers: numerals with a base, names with indices, groups, roots, matrices. Commands
//! and functions are in [`super::parse_functions`], how all combine is in [`super::parse`].

use super::expr::{Constant, End, Expr, Function};
use super::latex::{Lexeme, Token};
use super::latex_tables::is_greek;
use super::matrix::determinant;
use super::parse::{Parser, one_or};
use super::parse_functions::function;
use super::rational::Rational;

/// Matrices have at most so many cells.
const MAX_CELLS: usize = 400;

impl Parser {
    pub(super) fn atom(&mut self) -> Option<Expr> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Number {
                value,
                digits,
                exact,
            } => {
                if self.is_sign('_') && exact {
                    self.at += 1;
                    return self.based(digits);
                }
                Some(if exact {
                    Expr::Number(value)
                } else {
                    Expr::Decimal(value)
                })
            }
            Token::Word(word) => self.word(word),
            Token::Name(name) => self.symbol(name),
            Token::Text(text) => Some(Expr::Text(text)),
            Token::Command(name) => self.command(&name),
            Token::Begin(name) => self.table(&name),
            Token::Sign(sign) => self.sign(sign),
            Token::End(_) | Token::RowEnd => None,
        }
    }

    /// The base after `204_`.
    fn based(&mut self, digits: String) -> Option<Expr> {
        let mut base = self.deeper(Self::script)?;
        if let Expr::Text(word) = &base {
            const NAMES: [&str; 11] = [
                "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
                "twelve",
            ];
            let at = NAMES
                .iter()
                .position(|name| *name == word.trim().to_lowercase())?;
            base = Expr::integer(at as i64 + 2);
        }
        let Expr::Number(base) = base else {
            return None;
        };
        let base = u32::try_from(base.to_i64()?)
            .ok()
            .filter(|base| (2..=36).contains(base))?;
        digits.chars().all(|d| d.is_digit(base)).then_some(())?;
        Some(Expr::Based(
            digits.trim_start_matches('0').to_string(),
            base,
        ))
    }

    /// Letters in a row: a function, a constant, a Greek letter, or a product of letters.
    fn word(&mut self, word: String) -> Option<Expr> {
        let lower = word.to_ascii_lowercase();
        if word.len() > 1 {
            match lower.as_str() {
                "sqrt" => return self.square_root(),
                "pi" => return Some(Expr::Constant(Constant::Pi)),
                "inf" | "infinity" | "infty" | "oo" => {
                    return Some(Expr::Constant(Constant::Infinity));
                }
                "percent" | "pct" | "percentage" => return None,
                _ => {}
            }
            if let Some(found) = function(&word).or_else(|| function(&lower)) {
                return self.call(found, &lower);
            }
            if is_greek(&word) {
                return self.symbol(word);
            }
            // the longest function at the beginning or a single letter, and the rest after it
            let head = word.chars().next()?.to_string();
            let rest = word[1..].to_string();
            self.tokens.insert(
                self.at,
                Lexeme {
                    token: Token::Word(rest),
                    spaced: false,
                },
            );
            return self.symbol(head);
        }
        if matches!(word.as_str(), "f" | "g" | "h") && self.is_sign('(') && !self.spaced() {
            self.at += 1;
            let arguments = self.elements()?;
            self.eat(')').then_some(())?;
            return (!arguments.is_empty()).then_some(Expr::Apply(word, arguments));
        }
        self.symbol(word)
    }

    /// A name with its index, if it has one.
    pub(super) fn symbol(&mut self, name: String) -> Option<Expr> {
        if self.is_sign('_') {
            self.at += 1;
            let index = self.index()?;
            return Some(match index {
                Ok(index) => {
                    if name == "C"
                        && let Some(binomial) = self.combinations(&index)
                    {
                        return Some(binomial);
                    }
                    let named = format!("{name}_{index}");
                    if matches!(name.as_str(), "f" | "g" | "h") && self.is_sign('(') {
                        self.at += 1;
                        let arguments = self.elements()?;
                        self.eat(')').then_some(())?;
                        return Some(Expr::Apply(named, arguments));
                    }
                    Expr::Symbol(named)
                }
                Err(formula) => Expr::Apply(format!("{name}_"), vec![formula]),
            });
        }
        if !self.bound.contains(&name) {
            match name.as_str() {
                "e" => return Some(Expr::Constant(Constant::E)),
                "i" => return Some(Expr::Constant(Constant::I)),
                _ => {}
            }
        }
        Some(Expr::Symbol(name))
    }

    /// `C_{10}^3`: how many ways to choose 3 of 10.
    fn combinations(&mut self, index: &str) -> Option<Expr> {
        let n: i64 = index.parse().ok()?;
        let braced = usize::from(self.peek_at(1) == Some(&Token::Sign('{')));
        let Some(Token::Number { value, .. }) = self.peek_at(1 + braced) else {
            return None;
        };
        let k = value.to_i64()?;
        let closed = braced == 0 || self.peek_at(3) == Some(&Token::Sign('}'));
        if !self.is_sign('^') || !closed || !(0..=n).contains(&k) {
            return None;
        }
        self.at += 2 + 2 * braced;
        Some(Expr::Function(
            Function::Binomial,
            vec![Expr::integer(n), Expr::integer(k)],
        ))
    }

    /// An index: plain letters and digits are part of the name, a formula is an argument.
    fn index(&mut self) -> Option<Result<String, Expr>> {
        let from = self.at;
        if self.eat('{') {
            let mut plain = String::new();
            let mut count = 0;
            while let Some(token) = self.peek() {
                match token {
                    Token::Number { digits, .. } => plain.push_str(digits),
                    Token::Word(word) | Token::Text(word) | Token::Name(word) => {
                        plain.push_str(word)
                    }
                    Token::Sign(',') => plain.push(','),
                    _ => break,
                }
                self.at += 1;
                count += 1;
            }
            // a single letter may be bound by a sum around it
            let bound = self.bound.contains(&plain);
            if self.eat('}') && count > 0 && !bound {
                return Some(Ok(plain));
            }
            self.at = from;
            return Some(Err(self.deeper(Self::atom)?));
        }
        match self.peek()? {
            Token::Number { digits, .. } => {
                let digits = digits.clone();
                self.at += 1;
                Some(Ok(digits))
            }
            Token::Word(_) => {
                let letter = self.first_letter()?;
                Some(if self.bound.contains(&letter) {
                    Err(Expr::Symbol(letter))
                } else {
                    Ok(letter)
                })
            }
            Token::Name(name) | Token::Text(name) => {
                let name = name.clone();
                self.at += 1;
                Some(Ok(name))
            }
            _ => Some(Err(self.deeper(Self::atom)?)),
        }
    }

    /// Takes the first letter of the word that comes next.
    pub(super) fn first_letter(&mut self) -> Option<String> {
        let Some(Lexeme {
            token: Token::Word(word),
            ..
        }) = self.tokens.get_mut(self.at)
        else {
            return None;
        };
        let letter = word[..1].to_string();
        if word.len() > 1 {
            word.remove(0);
        } else {
            self.at += 1;
        }
        Some(letter)
    }

    /// The argument of a TeX command: a group, or one digit or letter.
    pub(super) fn argument(&mut self) -> Option<Expr> {
        if let Some(Lexeme {
            token:
                Token::Number {
                    digits,
                    value,
                    exact: true,
                },
            ..
        }) = self.tokens.get_mut(self.at)
            && digits.len() > 1
            && digits.bytes().all(|b| b.is_ascii_digit())
        {
            let first = digits.remove(0);
            *value = Rational::from_decimal(digits)?;
            return Some(Expr::integer(i64::from(first.to_digit(10)?)));
        }
        if matches!(self.peek()?, Token::Word(_)) {
            let letter = self.first_letter()?;
            let saved = self.at;
            let symbol = self.symbol(letter);
            if symbol.is_none() {
                self.at = saved;
            }
            return symbol;
        }
        if self.is_sign('-') {
            self.at += 1;
            return Some(super::parse::negated(self.deeper(Self::argument)?));
        }
        self.deeper(Self::atom)
    }

    /// The scale after a degree sign: `20°C` and `20° F` are temperatures.
    pub(super) fn temperature(&mut self) {
        for scale in ["C", "F"] {
            if self.is_word(scale) {
                self.at += 1;
                self.signs.push(scale.to_string());
            }
        }
    }

    /// `\circ` after `^`, braced or not.
    pub(super) fn degree_sign(&mut self) -> bool {
        if self.eat('°') {
            return true;
        }
        let braced = self.is_sign('{')
            && self.peek_at(1) == Some(&Token::Sign('°'))
            && self.peek_at(2) == Some(&Token::Sign('}'));
        self.at += if braced { 3 } else { 0 };
        braced
    }

    fn sign(&mut self, sign: char) -> Option<Expr> {
        match sign {
            '(' | '[' | ']' | '⟨' => self.bracketed(sign),
            '{' => {
                let bars = std::mem::replace(&mut self.bars, 0);
                let elements = self.elements()?;
                self.bars = bars;
                let infix = match self.peek() {
                    Some(Token::Command(name)) if elements.len() == 1 => name.clone(),
                    _ => String::new(),
                };
                if infix == "choose" || infix == "over" {
                    // `{n \choose k}` and `{a \over b}`
                    self.at += 1;
                    let above = one_or(elements, Expr::List)?;
                    let below = self.sum()?;
                    self.eat('}').then_some(())?;
                    return Some(match infix.as_str() {
                        "choose" => Expr::Function(Function::Binomial, vec![above, below]),
                        _ => Expr::Div(Box::new(above), Box::new(below)),
                    });
                }
                self.eat('}').then_some(())?;
                one_or(elements, Expr::List)
            }
            '⦃' => self.set(),
            '|' | '⌜' => {
                let outer = self.bars;
                self.bars = if sign == '|' { outer + 1 } else { 0 };
                let inner = self.sum();
                self.bars = outer;
                let close = if sign == '|' { '|' } else { '⌝' };
                let inner = inner?;
                (self.eat(close) || self.eat('⌝') || self.eat('|')).then_some(())?;
                Some(match inner {
                    Expr::Matrix(rows) => determinant(&rows)?,
                    _ => Expr::Function(Function::Abs, vec![inner]),
                })
            }
            '‖' => {
                let inner = self.sum()?;
                self.eat('‖').then_some(())?;
                Some(Expr::Apply("norm".into(), vec![inner]))
            }
            '⌊' | '⌈' => {
                let bars = std::mem::replace(&mut self.bars, 0);
                let inner = self.sum()?;
                self.bars = bars;
                let (close, function) = if sign == '⌊' {
                    ('⌋', Function::Floor)
                } else {
                    ('⌉', Function::Ceil)
                };
                self.eat(close).then_some(())?;
                Some(Expr::Function(function, vec![inner]))
            }
            '√' => self.square_root(),
            '∛' => Some(Expr::Root(
                Box::new(self.radicand()?),
                Box::new(Expr::integer(3)),
            )),
            '∜' => Some(Expr::Root(
                Box::new(self.radicand()?),
                Box::new(Expr::integer(4)),
            )),
            '∞' => Some(Expr::Constant(Constant::Infinity)),
            'π' => Some(Expr::Constant(Constant::Pi)),
            'ⅈ' => Some(Expr::Constant(Constant::I)),
            '∅' => Some(Expr::Empty),
            '…' => Some(Expr::Ellipsis),
            'ℝ' => Some(Expr::NamedSet('R')),
            'ℤ' => Some(Expr::NamedSet('Z')),
            'ℕ' => Some(Expr::NamedSet('N')),
            'ℚ' => Some(Expr::NamedSet('Q')),
            'ℂ' => Some(Expr::NamedSet('C')),
            // `\angle ABC`
            '∠' | '△' => {
                let inner = self.power()?;
                Some(Expr::Apply("angle".into(), vec![inner]))
            }
            _ => None,
        }
    }

    /// `(...)` and `[...)` after the opening sign.
    pub(super) fn bracketed(&mut self, open: char) -> Option<Expr> {
        let bars = std::mem::replace(&mut self.bars, 0);
        let colons = std::mem::replace(&mut self.colons, true);
        let mut elements = self.elements()?;
        self.bars = bars;
        self.colons = colons;
        let Token::Sign(close) = self.peek()? else {
            return None;
        };
        let close = *close;
        self.at += 1;
        let end = |at: Expr, open: bool| Box::new(End { at, open });
        match (open, close) {
            ('(', ')') | ('⟨', '⟩') if elements.len() > 1 || open == '⟨' => {
                Some(Expr::Tuple(elements))
            }
            ('(', ')') | ('[', ']') if elements.len() == 1 => elements.pop(),
            ('(' | '[' | ']', ')' | ']' | '[') if elements.len() == 2 => {
                let high = elements.pop()?;
                let low = elements.pop()?;
                Some(Expr::Interval(
                    end(low, open != '['),
                    end(high, close != ']'),
                ))
            }
            ('[', ']') if elements.len() > 2 => Some(Expr::Tuple(elements)),
            _ => None,
        }
    }

    /// `{1, 2}` or `{x | x > 0}` after the opening brace.
    fn set(&mut self) -> Option<Expr> {
        let bars = std::mem::replace(&mut self.bars, 1);
        let colons = std::mem::replace(&mut self.colons, false);
        let elements = self.elements();
        self.bars = 0;
        self.colons = true;
        let elements = elements?;
        let conditional = self.eat('|') || self.eat('∣') || self.eat(':');
        let result = if conditional {
            let conditions = self.elements()?;
            let variable = one_or(elements, Expr::Tuple)?;
            let condition = one_or(conditions, Expr::List)?;
            Expr::Builder(Box::new(variable), Box::new(condition))
        } else if elements.is_empty() {
            Expr::Empty
        } else {
            Expr::Set(elements)
        };
        self.bars = bars;
        self.colons = colons;
        self.eat('⦄').then_some(result)
    }

    pub(super) fn square_root(&mut self) -> Option<Expr> {
        Some(Expr::Root(
            Box::new(self.radicand()?),
            Box::new(Expr::integer(2)),
        ))
    }

    /// What stands under a root written without a command: a group or a whole numeral.
    fn radicand(&mut self) -> Option<Expr> {
        if matches!(self.peek()?, Token::Word(word) if function(word).is_none()) {
            return self.argument();
        }
        self.deeper(Self::atom)
    }

    /// Rows and cells up to the `\end` of the environment.
    fn table(&mut self, name: &str) -> Option<Expr> {
        let mut rows: Vec<Vec<Expr>> = vec![Vec::new()];
        let mut cells = 0;
        loop {
            match self.peek()? {
                Token::End(_) => {
                    self.at += 1;
                    break;
                }
                Token::RowEnd => {
                    self.at += 1;
                    rows.push(Vec::new());
                }
                Token::Sign('&') => self.at += 1,
                // conditions of cases
                Token::Text(word)
                    if matches!(word.trim().to_lowercase().as_str(), "if" | "for" | "when") =>
                {
                    self.at += 1;
                }
                _ => {
                    cells += 1;
                    if cells > MAX_CELLS {
                        return None;
                    }
                    let cell = self.deeper(Self::statement)?;
                    // conditions of cases follow a comma
                    self.eat(',');
                    rows.last_mut()?.push(cell);
                }
            }
        }
        rows.retain(|row| !row.is_empty());
        let width = rows.first()?.len();
        if name == "cases" {
            return Some(Expr::Apply(
                "cases".into(),
                rows.into_iter().flatten().collect(),
            ));
        }
        if rows.iter().any(|row| row.len() != width) {
            return None;
        }
        if name == "vmatrix" {
            return determinant(&rows);
        }
        Some(Expr::Matrix(rows))
    }
}
