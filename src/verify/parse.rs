//! From tokens to an expression: the grammar of answers, by recursive descent of bounded depth. Names, functions and
//! environments are in [`super::parse_atoms`]; what an expression is worth is none of this file's business.

use super::expr::{Constant, Expr, Relation, SetOperation};
use super::latex::{Commas, Lexeme, Token, tokenize};
use super::units;

/// Longer text is no answer.
pub const MAX_ANSWER_BYTES: usize = 10_000;
/// Groups nest no deeper than this.
const MAX_DEPTH: usize = 60;

/// What was read, and the units and remarks that stood after values.
#[derive(Debug, Clone)]
pub struct Parsed {
    pub expr: Expr,
    pub units: Vec<String>,
    /// currencies before values, and scales of temperature
    pub signs: Vec<String>,
    /// whether "and" and "or" stand between its parts
    pub joined: (bool, bool),
}

/// Reads a whole answer; None where some of it cannot be read.
pub fn parse(text: &str, commas: Commas) -> Option<Parsed> {
    if text.len() > MAX_ANSWER_BYTES {
        return None;
    }
    let (mut tokens, signs) = tokenize(text, commas)?;
    let is_table = |name: &str| name.contains("matrix") || matches!(name, "array" | "cases");
    let tables = tokens
        .iter()
        .any(|t| matches!(&t.token, Token::Begin(name) if is_table(name)));
    tokens.retain(|t| match &t.token {
        Token::Begin(name) | Token::End(name) => is_table(name),
        Token::Sign('&') => tables,
        _ => true,
    });
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        bars: 0,
        colons: true,
        bound: Vec::new(),
        units: Vec::new(),
        signs,
    };
    let word = |lexeme: &Lexeme, word: &str, sign: char| {
        matches!(&lexeme.token, Token::Word(w) if w == word) || lexeme.token == Token::Sign(sign)
    };
    let joined = (
        parser.tokens.iter().any(|t| word(t, "and", '∧')),
        parser.tokens.iter().any(|t| word(t, "or", '∨')),
    );
    let expr = parser.whole()?;
    Some(Parsed {
        expr,
        units: parser.units,
        signs: parser.signs,
        joined,
    })
}

pub(super) struct Parser {
    pub(super) tokens: Vec<Lexeme>,
    pub(super) at: usize,
    depth: usize,
    /// `|` that are open
    pub(super) bars: usize,
    /// whether `:` makes a ratio
    pub(super) colons: bool,
    /// letters bound by a sum
    pub(super) bound: Vec<String>,
    pub(super) units: Vec<String>,
    pub(super) signs: Vec<String>,
}

impl Parser {
    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|lexeme| &lexeme.token)
    }

    pub(super) fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|lexeme| &lexeme.token)
    }

    pub(super) fn is_sign(&self, sign: char) -> bool {
        matches!(self.peek(), Some(Token::Sign(c)) if *c == sign)
    }

    pub(super) fn eat(&mut self, sign: char) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn spaced(&self) -> bool {
        self.tokens.get(self.at).is_some_and(|lexeme| lexeme.spaced)
    }

    /// Runs `inner` one level deeper; None where that is too deep.
    pub(super) fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn whole(&mut self) -> Option<Expr> {
        // a full stop, a stray comma or an escape at the end says nothing
        while matches!(
            self.tokens.last().map(|l| &l.token),
            Some(Token::Sign('.' | ',' | ';' | ':' | '\\'))
        ) {
            self.tokens.pop();
        }
        let elements = self.elements()?;
        if self.at < self.tokens.len() {
            return None;
        }
        one_or(elements, Expr::List)
    }

    /// Expressions between commas, semicolons, "and" and "or", up to the end or a closing sign.
    pub(super) fn elements(&mut self) -> Option<Vec<Expr>> {
        let mut groups: Vec<Vec<Expr>> = vec![Vec::new()];
        loop {
            while self.is_word("and")
                || self.is_word("or")
                || self.is_word("either")
                || self.is_word("both")
            {
                self.at += 1;
            }
            if self.ends() {
                break;
            }
            let element = self.deeper(Self::statement)?;
            groups.last_mut()?.push(element);
            let mut separated = false;
            loop {
                if self.eat(',')
                    || self.eat('∨')
                    || self.eat('∧')
                    || self.is_word("and")
                    || self.is_word("or")
                {
                    if self.is_word("and") || self.is_word("or") {
                        self.at += 1;
                    }
                } else if self.eat(';') {
                    groups.push(Vec::new());
                } else {
                    break;
                }
                separated = true;
            }
            if !separated {
                break;
            }
        }
        groups.retain(|group| !group.is_empty());
        if groups.len() > 1 && groups.iter().any(|group| group.len() > 1) {
            return Some(
                groups
                    .into_iter()
                    .filter_map(|group| one_or(group, Expr::Tuple))
                    .collect(),
            );
        }
        Some(groups.into_iter().flatten().collect())
    }

    fn ends(&self) -> bool {
        match self.peek() {
            None | Some(Token::RowEnd | Token::End(_)) => true,
            Some(Token::Sign(c)) => match c {
                ')' | '}' | '⦄' | '⟩' | '&' | '⌝' | '∣' => true,
                // `]0, 1[` is an open interval
                ']' => !matches!(
                    self.peek_at(1),
                    Some(Token::Number { .. } | Token::Word(_) | Token::Sign('-' | '∞'))
                ),
                '|' => self.bars > 0,
                _ => false,
            },
            _ => false,
        }
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(w)) if w == word)
    }

    /// A chain of relations, or a value.
    pub(super) fn statement(&mut self) -> Option<Expr> {
        self.eat('⇒');
        let _ = self.eat('=') || self.eat('≈');
        if let Some(Token::Text(words)) = self.peek()
            && self.peek_at(1).is_some()
            && units::is_introduction(words)
        {
            self.at += 1;
        }
        let mut sides = vec![self.named_function().map_or_else(|| self.sets(), Some)?];
        let mut relations = Vec::new();
        while let Some(relation) = self.relation() {
            relations.push(relation);
            sides.push(self.sets()?);
            if sides.len() > 200 {
                return None;
            }
        }
        Some(match relations.is_empty() {
            true => sides.pop()?,
            false => Expr::Relation(sides, relations),
        })
    }

    /// `W(n) =`: a single letter applied to a single letter, defined by an equation.
    fn named_function(&mut self) -> Option<Expr> {
        let letter = |token: Option<&Token>| match token {
            Some(Token::Word(w)) if w.len() == 1 => Some(w.clone()),
            _ => None,
        };
        let name = letter(self.peek())?;
        let argument = letter(self.peek_at(2))?;
        let signs = [(1, '('), (3, ')'), (4, '=')];
        if signs
            .iter()
            .all(|(ahead, sign)| self.peek_at(*ahead) == Some(&Token::Sign(*sign)))
        {
            self.at += 4;
            return Some(Expr::Apply(name, vec![Expr::Symbol(argument)]));
        }
        None
    }

    fn relation(&mut self) -> Option<Relation> {
        let relation = match self.peek()? {
            Token::Sign('=') => Relation::Equal,
            Token::Sign('≠') => Relation::NotEqual,
            Token::Sign('<') => Relation::Less,
            Token::Sign('≤') => Relation::LessEqual,
            Token::Sign('>') => Relation::Greater,
            Token::Sign('≥') => Relation::GreaterEqual,
            Token::Sign('≈') => Relation::Approx,
            Token::Sign('≡') => Relation::Congruent,
            Token::Sign('∈') => Relation::In,
            Token::Sign('∉') => Relation::NotIn,
            Token::Sign('⊂') => Relation::Subset,
            Token::Sign('→' | '⇒') => Relation::Arrow,
            Token::Command(name) if matches!(name.as_str(), "pmod" | "bmod" | "mod") => {
                Relation::Modulo
            }
            Token::Sign('(')
                if matches!(self.peek_at(1), Some(Token::Command(n)) if n == "mod")
                    || matches!(self.peek_at(1), Some(Token::Word(n)) if n == "mod") =>
            {
                // `(mod 7)`: the closing parenthesis is eaten with the modulus
                let close = (2..40).find(|n| self.peek_at(*n) == Some(&Token::Sign(')')))?;
                self.tokens.remove(self.at + close);
                self.at += 1;
                Relation::Modulo
            }
            _ => return None,
        };
        self.at += 1;
        Some(relation)
    }

    /// Unions, intersections and differences, then ratios.
    fn sets(&mut self) -> Option<Expr> {
        let mut left = self.ratio()?;
        for _ in 0..MAX_DEPTH {
            let operation = match self.peek() {
                Some(Token::Sign('∪')) => SetOperation::Union,
                Some(Token::Sign('∩')) => SetOperation::Intersection,
                Some(Token::Sign('∖')) => SetOperation::Difference,
                Some(Token::Word(w)) if w == "U" && self.is_interval(&left) => SetOperation::Union,
                _ => return Some(left),
            };
            self.at += 1;
            let right = self.ratio()?;
            left = match left {
                Expr::Sets(same, mut all)
                    if same == operation && operation != SetOperation::Difference =>
                {
                    all.push(right);
                    Expr::Sets(same, all)
                }
                other => Expr::Sets(operation, vec![other, right]),
            };
        }
        None
    }

    fn is_interval(&self, expr: &Expr) -> bool {
        matches!(expr, Expr::Tuple(_) | Expr::Interval(..) | Expr::Sets(..))
    }

    fn ratio(&mut self) -> Option<Expr> {
        let mut terms = vec![self.sum()?];
        while self.colons && self.is_sign(':') {
            self.at += 1;
            terms.push(self.sum()?);
        }
        one_or(terms, Expr::Ratio)
    }

    pub(super) fn sum(&mut self) -> Option<Expr> {
        let mut terms = vec![self.term()?];
        while let Some(Token::Sign('+' | '-' | '±' | '∓')) = self.peek() {
            terms.push(self.term()?);
        }
        one_or(terms, Expr::Add)
    }

    /// Signs, then a product.
    fn term(&mut self) -> Option<Expr> {
        let mut negative = false;
        let mut both: Option<bool> = None;
        loop {
            match self.peek()? {
                Token::Sign('+') => {}
                Token::Sign('-') => negative = !negative,
                Token::Sign(sign @ ('±' | '∓')) if both.is_none() => both = Some(*sign == '∓'),
                _ => break,
            }
            self.at += 1;
        }
        let product = self.deeper(Self::product)?;
        let product = match both {
            Some(reversed) => Expr::PlusMinus(Box::new(product), reversed),
            None => product,
        };
        Some(if negative { negated(product) } else { product })
    }

    /// Factors multiplied, divided or side by side.
    pub(super) fn product(&mut self) -> Option<Expr> {
        let literal = matches!(self.peek(), Some(Token::Number { exact: true, .. }));
        let first = self.power()?;
        let mut above = vec![first];
        let mut below: Vec<Expr> = Vec::new();
        let mut fresh = literal;
        loop {
            if self.eat('*') {
                let factor = self.signed_power()?;
                above.push(factor);
            } else if self.eat('/') {
                let factor = self.signed_power()?;
                below.push(factor);
            } else if self.units_follow(&above, &below)? {
                continue;
            } else if self.starts_factor() {
                if matches!(self.peek(), Some(Token::Number { .. })) {
                    // `3 1/2`; other numerals side by side mean nothing
                    let fraction = matches!(self.peek_at(1), Some(Token::Sign('/')))
                        && matches!(self.peek_at(2), Some(Token::Number { .. }));
                    let after_number =
                        matches!(above.last(), Some(Expr::Number(_) | Expr::Decimal(_)));
                    if fraction && fresh && above.len() == 1 && below.is_empty() {
                        let n = self.power()?;
                        self.at += 1;
                        let d = self.power()?;
                        let whole = above.pop()?;
                        above.push(Expr::Add(vec![whole, Expr::Div(Box::new(n), Box::new(d))]));
                        fresh = false;
                        continue;
                    }
                    if after_number || !below.is_empty() {
                        return None;
                    }
                }
                let is_fraction =
                    matches!(self.peek(), Some(Token::Command(name)) if name.ends_with("frac"));
                let factor = self.power()?;
                let proper = matches!(&factor, Expr::Div(n, d)
                    if matches!((&**n, &**d), (Expr::Number(n), Expr::Number(d)) if n.is_integer() && !n.is_negative() && n < d));
                // `33\frac13\%`
                let percent = match &factor {
                    Expr::Percent(inner) if fresh && is_fraction => Some((**inner).clone()),
                    _ => None,
                };
                if let (Some(part), true) = (percent, above.len() == 1 && below.is_empty()) {
                    let whole = above.pop()?;
                    above.push(Expr::Percent(Box::new(Expr::Add(vec![whole, part]))));
                } else if fresh && is_fraction && proper && above.len() == 1 && below.is_empty() {
                    let whole = above.pop()?;
                    above.push(Expr::Add(vec![whole, factor]));
                } else if units::is_unit_fraction(&factor) {
                    self.units.push("per".into());
                } else {
                    above.push(factor);
                }
            } else {
                break;
            }
            fresh = false;
        }
        let above = one_or(above, Expr::Mul)?;
        Some(match one_or(below, Expr::Mul) {
            Some(below) => Expr::Div(Box::new(above), Box::new(below)),
            None => above,
        })
    }

    /// Units, currencies and remarks after a value are noted and passed over; Some(true) where there were some. None where
    /// what follows a value in words changes it.
    fn units_follow(&mut self, above: &[Expr], below: &[Expr]) -> Option<bool> {
        let valued = |factor: &Expr| !matches!(factor, Expr::Text(_));
        if !above.last().is_some_and(valued) {
            return Some(false);
        }
        let numeric = below.is_empty()
            && above
                .iter()
                .all(|f| !f.any(&mut |part| matches!(part, Expr::Symbol(_))));
        let Some((length, unit, factor)) = units::after_value(&self.tokens[self.at..], numeric)?
        else {
            return Some(false);
        };
        self.at += length;
        if let Some(factor) = factor {
            // `5 million`: the multiplication is put where the next factor would be
            self.tokens.insert(
                self.at,
                Lexeme {
                    token: Token::Number {
                        value: factor,
                        digits: String::new(),
                        exact: true,
                    },
                    spaced: true,
                },
            );
            self.tokens.insert(
                self.at,
                Lexeme {
                    token: Token::Sign('*'),
                    spaced: true,
                },
            );
            return Some(true);
        }
        self.units.push(unit);
        Some(true)
    }

    fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(Token::Number { .. } | Token::Name(_) | Token::Begin(_)) => true,
            Some(Token::Text(_)) => false,
            Some(Token::Word(word)) => !matches!(word.as_str(), "and" | "or" | "U" | "mod"),
            Some(Token::Command(name)) => {
                !matches!(name.as_str(), "pmod" | "bmod" | "mod" | "over" | "choose")
            }
            Some(Token::Sign(c)) => match c {
                '(' => {
                    !matches!(self.peek_at(1), Some(Token::Command(n)) if n == "mod")
                        && !matches!(self.peek_at(1), Some(Token::Word(n)) if n == "mod")
                }
                '{' | '[' | '⌊' | '⌈' | '√' | '∛' | 'π' | '∞' | '⦃' | '⌜' | '‖' | '…' | 'ⅈ' => {
                    true
                }
                '|' => self.bars == 0,
                _ => false,
            },
            _ => false,
        }
    }

    /// A factor that may have its own sign, as in `2 * -3`.
    fn signed_power(&mut self) -> Option<Expr> {
        let mut negative = false;
        while let Some(Token::Sign(sign @ ('-' | '+'))) = self.peek() {
            negative ^= *sign == '-';
            self.at += 1;
        }
        let value = self.power()?;
        Some(if negative { negated(value) } else { value })
    }

    /// A value with its exponents, factorials, percent and degree signs.
    pub(super) fn power(&mut self) -> Option<Expr> {
        let mut value = self.deeper(Self::atom)?;
        for _ in 0..8 {
            match self.peek() {
                Some(Token::Sign('!')) => {
                    self.at += 1;
                    value = Expr::Function(super::expr::Function::Factorial, vec![value]);
                }
                Some(Token::Sign('%')) => {
                    self.at += 1;
                    value = Expr::Percent(Box::new(value));
                }
                Some(Token::Word(word))
                    if matches!(word.as_str(), "percent" | "pct" | "percentage") =>
                {
                    self.at += 1;
                    value = Expr::Percent(Box::new(value));
                }
                Some(Token::Sign('°')) => {
                    self.at += 1;
                    self.temperature();
                    value = Expr::Degree(Box::new(value));
                }
                Some(Token::Sign('\'')) => {
                    self.at += 1;
                    value = match value {
                        Expr::Symbol(name) if name.len() < 64 => Expr::Symbol(name + "'"),
                        _ => return None,
                    };
                    if self.is_sign('(') {
                        let Expr::Symbol(name) = &value else {
                            return None;
                        };
                        let name = name.clone();
                        self.at += 1;
                        let arguments = self.elements()?;
                        self.eat(')').then_some(())?;
                        value = Expr::Apply(name, arguments);
                    }
                }
                Some(Token::Sign('^')) => {
                    self.at += 1;
                    if self.degree_sign() {
                        self.temperature();
                        value = Expr::Degree(Box::new(value));
                        continue;
                    }
                    if self.is_sign('\'') {
                        continue;
                    }
                    let exponent = self.deeper(Self::script)?;
                    value = Expr::Pow(Box::new(value), Box::new(exponent));
                }
                _ => return Some(value),
            }
        }
        None
    }

    /// What stands after `^` or `_`.
    pub(super) fn script(&mut self) -> Option<Expr> {
        match self.peek()? {
            Token::Sign('-') => {
                self.at += 1;
                Some(negated(self.deeper(Self::script)?))
            }
            Token::Sign('+') => {
                self.at += 1;
                self.deeper(Self::script)
            }
            _ => {
                let base = self.atom()?;
                // `2^3^2` is 2^(3^2)
                if self.is_sign('^') {
                    self.at += 1;
                    let exponent = self.deeper(Self::script)?;
                    return Some(Expr::Pow(Box::new(base), Box::new(exponent)));
                }
                Some(base)
            }
        }
    }
}

/// The only element, or all of them joined; None where there is none.
pub(super) fn one_or(mut all: Vec<Expr>, join: impl FnOnce(Vec<Expr>) -> Expr) -> Option<Expr> {
    match all.len() {
        0 => None,
        1 => all.pop(),
        _ => Some(join(all)),
    }
}

/// The negative, with numerals kept numerals.
pub(super) fn negated(expr: Expr) -> Expr {
    match expr {
        Expr::Number(value) => Expr::Number(value.neg()),
        Expr::Decimal(value) => Expr::Decimal(value.neg()),
        Expr::Constant(Constant::Infinity) => Expr::Neg(Box::new(expr)),
        other => Expr::Neg(Box::new(other)),
    }
}
