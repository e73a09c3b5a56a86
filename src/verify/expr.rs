//! The expression that an answer is read into: numbers, formulas, lists, sets, intervals, relations, matrices and text.
//! Reading is in [`super::parse`], values are in [`super::eval`], sameness is in [`super::compare`].

use super::rational::Rational;

/// Constants with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Constant {
    Pi,
    E,
    I,
    Infinity,
}

/// Functions whose value is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Exp,
    Ln,
    /// argument, base
    Log,
    Abs,
    Floor,
    Ceil,
    Factorial,
    Binomial,
    Gcd,
    Lcm,
    Max,
    Min,
    Re,
    Im,
    Det,
}

/// How two sides are related.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Approx,
    Congruent,
    Modulo,
    In,
    NotIn,
    Subset,
    Arrow,
}

impl Relation {
    /// The relation with its sides exchanged.
    pub fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessEqual => Self::GreaterEqual,
            Self::Greater => Self::Less,
            Self::GreaterEqual => Self::LessEqual,
            other => other,
        }
    }

    pub fn is_order(self) -> bool {
        matches!(
            self,
            Self::Less | Self::LessEqual | Self::Greater | Self::GreaterEqual
        )
    }
}

/// Operations on sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetOperation {
    Union,
    Intersection,
    Difference,
}

/// Operators with a bound variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binder {
    Sum,
    Product,
    Integral,
    Limit,
}

/// One end of an interval.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub at: Expr,
    pub open: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Number(Rational),
    /// Written with a decimal point: compared after rounding.
    Decimal(Rational),
    Symbol(String),
    Constant(Constant),
    Add(Vec<Expr>),
    Mul(Vec<Expr>),
    Neg(Box<Expr>),
    Div(Box<Expr>, Box<Expr>),
    Pow(Box<Expr>, Box<Expr>),
    /// radicand, degree
    Root(Box<Expr>, Box<Expr>),
    /// `±x`, or `∓x` where the flag is set
    PlusMinus(Box<Expr>, bool),
    Function(Function, Vec<Expr>),
    /// A function nobody knows, or a name with a subscript that is a formula.
    Apply(String, Vec<Expr>),
    Bound {
        binder: Binder,
        variable: String,
        low: Box<Expr>,
        high: Box<Expr>,
        body: Box<Expr>,
    },
    Percent(Box<Expr>),
    Degree(Box<Expr>),
    /// digits, base: `204_5`
    Based(String, u32),
    Text(String),
    /// In parentheses: a point, or an open interval.
    Tuple(Vec<Expr>),
    /// Between commas.
    List(Vec<Expr>),
    /// In braces.
    Set(Vec<Expr>),
    Interval(Box<End>, Box<End>),
    Sets(SetOperation, Vec<Expr>),
    /// ℝ, ℤ, ...
    NamedSet(char),
    Empty,
    /// `{x | condition}`
    Builder(Box<Expr>, Box<Expr>),
    /// `a < b <= c`: sides and the relations between them
    Relation(Vec<Expr>, Vec<Relation>),
    Ratio(Vec<Expr>),
    Matrix(Vec<Vec<Expr>>),
    Ellipsis,
}

impl Expr {
    pub fn integer(value: i64) -> Self {
        Self::Number(Rational::integer(value))
    }

    /// The parts of the expression one level down.
    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Self::Number(_)
            | Self::Decimal(_)
            | Self::Symbol(_)
            | Self::Constant(_)
            | Self::Based(..)
            | Self::Text(_)
            | Self::NamedSet(_)
            | Self::Empty
            | Self::Ellipsis => Vec::new(),
            Self::Neg(a) | Self::PlusMinus(a, _) | Self::Percent(a) | Self::Degree(a) => vec![a],
            Self::Div(a, b) | Self::Pow(a, b) | Self::Root(a, b) | Self::Builder(a, b) => {
                vec![a, b]
            }
            Self::Add(all)
            | Self::Mul(all)
            | Self::Function(_, all)
            | Self::Apply(_, all)
            | Self::Tuple(all)
            | Self::List(all)
            | Self::Set(all)
            | Self::Sets(_, all)
            | Self::Relation(all, _)
            | Self::Ratio(all) => all.iter().collect(),
            Self::Bound {
                low, high, body, ..
            } => vec![low, high, body],
            Self::Interval(a, b) => vec![&a.at, &b.at],
            Self::Matrix(rows) => rows.iter().flatten().collect(),
        }
    }

    /// Whether some part of the expression, or the whole, is as asked.
    pub fn any(&self, test: &mut impl FnMut(&Expr) -> bool) -> bool {
        test(self) || self.children().into_iter().any(|child| child.any(test))
    }

    /// The same expression with `edit` applied to its direct parts.
    pub fn map_children(&self, edit: &mut impl FnMut(&Expr) -> Expr) -> Expr {
        let mut all = |list: &[Expr]| list.iter().map(&mut *edit).collect::<Vec<_>>();
        match self {
            Self::Add(v) => Self::Add(all(v)),
            Self::Mul(v) => Self::Mul(all(v)),
            Self::Function(f, v) => Self::Function(*f, all(v)),
            Self::Apply(name, v) => Self::Apply(name.clone(), all(v)),
            Self::Tuple(v) => Self::Tuple(all(v)),
            Self::List(v) => Self::List(all(v)),
            Self::Set(v) => Self::Set(all(v)),
            Self::Sets(op, v) => Self::Sets(*op, all(v)),
            Self::Relation(v, r) => Self::Relation(all(v), r.clone()),
            Self::Ratio(v) => Self::Ratio(all(v)),
            Self::Matrix(rows) => Self::Matrix(rows.iter().map(|row| all(row)).collect()),
            Self::Neg(a) => Self::Neg(Box::new(edit(a))),
            Self::PlusMinus(a, flag) => Self::PlusMinus(Box::new(edit(a)), *flag),
            Self::Percent(a) => Self::Percent(Box::new(edit(a))),
            Self::Degree(a) => Self::Degree(Box::new(edit(a))),
            Self::Div(a, b) => Self::Div(Box::new(edit(a)), Box::new(edit(b))),
            Self::Pow(a, b) => Self::Pow(Box::new(edit(a)), Box::new(edit(b))),
            Self::Root(a, b) => Self::Root(Box::new(edit(a)), Box::new(edit(b))),
            Self::Builder(a, b) => Self::Builder(Box::new(edit(a)), Box::new(edit(b))),
            Self::Bound {
                binder,
                variable,
                low,
                high,
                body,
            } => Self::Bound {
                binder: *binder,
                variable: variable.clone(),
                low: Box::new(edit(low)),
                high: Box::new(edit(high)),
                body: Box::new(edit(body)),
            },
            Self::Interval(a, b) => {
                let mut end = |end: &End| {
                    Box::new(End {
                        at: edit(&end.at),
                        open: end.open,
                    })
                };
                Self::Interval(end(a), end(b))
            }
            leaf => leaf.clone(),
        }
    }

    /// Whether this is a value to compute with: no list, set, relation, text or matrix in it.
    pub fn is_scalar(&self) -> bool {
        !self.any(&mut |part| {
            matches!(
                part,
                Self::Text(_)
                    | Self::Tuple(_)
                    | Self::List(_)
                    | Self::Set(_)
                    | Self::Interval(..)
                    | Self::Sets(..)
                    | Self::NamedSet(_)
                    | Self::Empty
                    | Self::Builder(..)
                    | Self::Relation(..)
                    | Self::Ratio(_)
                    | Self::Matrix(_)
                    | Self::PlusMinus(..)
            )
        })
    }

    /// Whether a value changes with the values of letters.
    pub fn has_symbols(&self) -> bool {
        self.any(&mut |part| {
            matches!(
                part,
                Self::Symbol(_) | Self::Apply(..) | Self::Ellipsis | Self::Bound { .. }
            )
        })
    }

    /// Whether it names something rather than computing it, as the left side of `|AB| = 1` does: letters, no numbers.
    pub fn is_name(&self) -> bool {
        let named = self.any(&mut |part| matches!(part, Self::Symbol(_) | Self::Text(_)));
        let constant =
            self.any(&mut |part| matches!(part, Self::Constant(Constant::E | Constant::I)));
        let computed = self.any(&mut |part| {
            matches!(
                part,
                Self::Number(_) | Self::Decimal(_) | Self::Constant(Constant::Pi) | Self::Based(..)
            )
        });
        // `f(2) = 5` names the value of f at 2
        let applied = matches!(self, Self::Apply(..));
        applied || ((named || constant) && !computed)
    }
}
