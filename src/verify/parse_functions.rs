//! Commands and functions in the grammar of answers: fractions, binomials, accents, functions with their powers, bases and
//! arguments, sums and limits with their bounds.

use super::expr::{Binder, Expr, Function, Relation};
use super::latex::Token;
use super::parse::{Parser, one_or};

/// Functions by the names that LaTeX and plain text have for them.
#[rustfmt::skip]
const FUNCTIONS: &[(&str, Function)] = &[
    ("sin", Function::Sin), ("cos", Function::Cos), ("tan", Function::Tan), ("tg", Function::Tan),
    ("cot", Function::Cot), ("ctg", Function::Cot), ("sec", Function::Sec), ("csc", Function::Csc),
    ("arcsin", Function::Arcsin), ("asin", Function::Arcsin), ("arccos", Function::Arccos),
    ("acos", Function::Arccos), ("arctan", Function::Arctan), ("atan", Function::Arctan), ("sinh", Function::Sinh),
    ("cosh", Function::Cosh), ("tanh", Function::Tanh), ("exp", Function::Exp), ("ln", Function::Ln),
    ("log", Function::Log), ("lg", Function::Log), ("max", Function::Max), ("min", Function::Min),
    ("gcd", Function::Gcd), ("lcm", Function::Lcm), ("det", Function::Det), ("Re", Function::Re),
    ("Im", Function::Im), ("abs", Function::Abs), ("floor", Function::Floor), ("ceil", Function::Ceil),
];

/// The function of that name.
pub(super) fn function(name: &str) -> Option<Function> {
    FUNCTIONS.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
}

impl Parser {
    pub(super) fn command(&mut self, name: &str) -> Option<Expr> {
        match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" => {
                let single = matches!(self.peek(), Some(Token::Number { .. }));
                let above = self.argument()?;
                // `\frac123`: the digits that are left are the denominator
                let below = if single && matches!(self.peek(), Some(Token::Number { .. })) {
                    self.deeper(Self::atom)?
                } else {
                    self.argument()?
                };
                Some(Expr::Div(Box::new(above), Box::new(below)))
            }
            "sqrt" => {
                let degree = if self.eat('[') {
                    let degree = self.sum()?;
                    self.eat(']').then_some(())?;
                    degree
                } else {
                    Expr::integer(2)
                };
                let radicand = if self.is_sign('(') {
                    self.deeper(Self::atom)?
                } else {
                    self.argument()?
                };
                Some(Expr::Root(Box::new(radicand), Box::new(degree)))
            }
            "cbrt" => Some(Expr::Root(
                Box::new(self.argument()?),
                Box::new(Expr::integer(3)),
            )),
            "binom" | "dbinom" | "tbinom" => {
                let (n, k) = (self.argument()?, self.argument()?);
                Some(Expr::Function(Function::Binomial, vec![n, k]))
            }
            "sum" => self.bounded(Binder::Sum),
            "prod" => self.bounded(Binder::Product),
            "int" => self.bounded(Binder::Integral),
            "lim" => self.bounded(Binder::Limit),
            "overline" | "bar" | "vec" | "overrightarrow" | "hat" | "widehat" | "dot" | "tilde" => {
                let inner = self.argument()?;
                Some(Expr::Apply(name.to_string(), vec![inner]))
            }
            "mathbb" => {
                let inner = self.argument()?;
                match inner {
                    Expr::Symbol(letter) if "RZNQC".contains(letter.as_str()) => {
                        Some(Expr::NamedSet(letter.chars().next()?))
                    }
                    other => Some(other),
                }
            }
            _ => {
                let found = function(name)?;
                self.call(found, name)
            }
        }
    }

    /// A function's power, base and arguments after its name.
    pub(super) fn call(&mut self, function: Function, name: &str) -> Option<Expr> {
        let mut exponent = None;
        let mut base = None;
        for _ in 0..2 {
            if self.is_sign('^') && exponent.is_none() {
                self.at += 1;
                exponent = Some(self.deeper(Self::script)?);
            }
            if self.is_sign('_') && base.is_none() {
                self.at += 1;
                base = Some(if self.is_sign('{') {
                    self.deeper(Self::atom)?
                } else {
                    self.argument()?
                });
            }
        }
        let several = matches!(
            function,
            Function::Max | Function::Min | Function::Gcd | Function::Lcm | Function::Log
        );
        let mut arguments = match self.peek()? {
            Token::Sign(open @ ('(' | '{' | '[' | '⦃')) => {
                let open = *open;
                let braced = open == '{';
                self.at += 1;
                let bars = std::mem::replace(&mut self.bars, 0);
                let arguments = self.elements();
                self.bars = bars;
                let arguments = arguments?;
                let close = match open {
                    '(' => ')',
                    '[' => ']',
                    '{' => '}',
                    _ => '⦄',
                };
                self.eat(close).then_some(())?;
                let arguments = if arguments.len() == 1 && several {
                    match arguments {
                        list if matches!(list[0], Expr::Tuple(_) | Expr::Set(_)) => {
                            list[0].children().into_iter().cloned().collect()
                        }
                        list => list,
                    }
                } else {
                    arguments
                };
                // `\cos{2x}` and `\ln(x)^2`: the power is of the function
                let _ = braced;
                arguments
            }
            _ => vec![self.juxtaposed()?],
        };
        if arguments.is_empty() || (arguments.len() > 1 && !several) {
            return None;
        }
        let inverse = exponent.as_ref().is_some_and(|e| *e == Expr::integer(-1));
        let inverted = match function {
            Function::Sin => Some(Function::Arcsin),
            Function::Cos => Some(Function::Arccos),
            Function::Tan => Some(Function::Arctan),
            _ => None,
        };
        if let (true, Some(arc)) = (inverse, inverted) {
            return Some(Expr::Function(arc, arguments));
        }
        if function == Function::Log && arguments.len() == 1 {
            let _ = name;
            arguments.push(base.take().unwrap_or(Expr::integer(10)));
        }
        if base.is_some() {
            return None;
        }
        let value = Expr::Function(function, arguments);
        Some(match exponent {
            Some(exponent) => Expr::Pow(Box::new(value), Box::new(exponent)),
            None => value,
        })
    }

    /// The argument of a function without parentheses: `2x` in `\sin 2x`, up to the next function.
    fn juxtaposed(&mut self) -> Option<Expr> {
        if self.is_sign('-') {
            self.at += 1;
            return Some(super::parse::negated(self.deeper(Self::juxtaposed)?));
        }
        let mut factors = vec![self.power()?];
        while factors.len() < 16 {
            let more = match self.peek() {
                Some(Token::Number { .. }) => false,
                Some(Token::Name(_)) => true,
                Some(Token::Word(word)) => {
                    function(word).is_none() && !matches!(word.as_str(), "and" | "or" | "mod" | "U")
                }
                Some(Token::Command(name)) => {
                    matches!(name.as_str(), "frac" | "dfrac" | "tfrac" | "sqrt")
                }
                Some(Token::Sign(c)) => matches!(c, 'π' | '√' | '{'),
                _ => false,
            };
            if !more {
                break;
            }
            factors.push(self.power()?);
        }
        one_or(factors, Expr::Mul)
    }

    /// Bounds and body of a sum, product, integral or limit.
    fn bounded(&mut self, binder: Binder) -> Option<Expr> {
        let (mut variable, mut low, mut high) = (String::new(), Expr::Empty, Expr::Empty);
        let depth = self.bound.len();
        for _ in 0..2 {
            if self.eat('_') {
                // the letter before `=` is bound already in its own bounds: `i` is no imaginary unit there
                let ahead = if self.is_sign('{') { 1 } else { 0 };
                if let Some(Token::Word(word)) = self.peek_at(ahead)
                    && word.len() == 1
                    && binder != Binder::Integral
                {
                    self.bound.push(word.clone());
                }
                let bound = if self.eat('{') {
                    let bound = self.deeper(Self::statement)?;
                    self.eat('}').then_some(())?;
                    bound
                } else {
                    self.argument()?
                };
                match bound {
                    Expr::Relation(mut sides, relations)
                        if relations.len() == 1
                            && matches!(
                                relations[0],
                                Relation::Equal | Relation::Arrow | Relation::In
                            ) =>
                    {
                        low = sides.pop()?;
                        let Some(Expr::Symbol(name)) = sides.pop() else {
                            return None;
                        };
                        variable = name;
                    }
                    other => low = other,
                }
            } else if self.eat('^') {
                high = self.deeper(Self::script)?;
            }
        }
        if !variable.is_empty() && !self.bound.contains(&variable) {
            self.bound.push(variable.clone());
        }
        let body = self.deeper(Self::product)?;
        self.bound.truncate(depth);
        Some(Expr::Bound {
            binder,
            variable,
            low: Box::new(low),
            high: Box::new(high),
            body: Box::new(body),
        })
    }
}
