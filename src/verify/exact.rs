//! The exact value of an expression, where it is a rational number; and what a verdict may cost.

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{One, ToPrimitive, Zero};
use std::cell::Cell;

use super::expr::{Binder, Expr, Function};
use super::rational::Rational;

/// Sums and products over more terms are not written out.
pub const MAX_TERMS: i64 = 400;

/// What one verdict may cost, in units of about ten nanoseconds.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

impl Budget {
    pub fn new(units: u64) -> Self {
        Self(Cell::new(units))
    }

    /// Takes from what is left; None where it is spent.
    pub fn spend(&self, units: u64) -> Option<()> {
        let left = self.0.get().checked_sub(units);
        self.0.set(left.unwrap_or(0));
        left.map(|_| ())
    }
}

/// The value of a formula without letters or roots that do not come out even; None for all others.
pub fn exact(expr: &Expr, budget: &Budget) -> Option<Rational> {
    budget.spend(10)?;
    match expr {
        Expr::Number(value) | Expr::Decimal(value) => Some(value.clone()),
        Expr::Add(terms) => terms.iter().try_fold(Rational::integer(0), |sum, term| {
            sum.add(&exact(term, budget)?)
        }),
        Expr::Mul(factors) => factors
            .iter()
            .try_fold(Rational::integer(1), |product, factor| {
                product.mul(&exact(factor, budget)?)
            }),
        Expr::Neg(inner) => Some(exact(inner, budget)?.neg()),
        Expr::Div(above, below) => match falling(above, below, budget) {
            Some(quotient) => Some(quotient),
            None => exact(above, budget)?.div(&exact(below, budget)?),
        },
        Expr::Pow(base, exponent) => {
            let exponent = exact(exponent, budget)?;
            let base = exact(base, budget)?;
            if let Some(n) = exponent.to_i64() {
                budget.spend(200)?;
                return base.pow(n);
            }
            let degree = exponent.denominator().to_u32()?;
            base.root(degree)?.pow(exponent.numerator().to_i64()?)
        }
        Expr::Root(radicand, degree) => {
            let degree = u32::try_from(exact(degree, budget)?.to_i64()?).ok()?;
            budget.spend(50)?;
            exact(radicand, budget)?.root(degree)
        }
        Expr::Percent(inner) => exact(inner, budget)?.div(&Rational::integer(100)),
        Expr::Degree(inner) => exact(inner, budget),
        Expr::Based(digits, base) => {
            let digits = if digits.is_empty() { "0" } else { digits };
            Some(Rational::from_int(BigInt::parse_bytes(
                digits.as_bytes(),
                *base,
            )?))
        }
        Expr::Function(function, arguments) => {
            let values = arguments
                .iter()
                .map(|argument| exact(argument, budget))
                .collect::<Option<Vec<_>>>()?;
            exact_function(*function, &values, budget)
        }
        Expr::Bound {
            binder: binder @ (Binder::Sum | Binder::Product),
            variable,
            low,
            high,
            body,
        } => {
            let (low, high) = (
                exact(low, budget)?.to_i64()?,
                exact(high, budget)?.to_i64()?,
            );
            if high.checked_sub(low)? > MAX_TERMS {
                return None;
            }
            let mut total = Rational::integer(i64::from(*binder == Binder::Product));
            for n in low..=high {
                let value = exact(
                    &substituted(body, variable, &Expr::integer(n), budget)?,
                    budget,
                )?;
                total = if *binder == Binder::Sum {
                    total.add(&value)?
                } else {
                    total.mul(&value)?
                };
            }
            Some(total)
        }
        _ => None,
    }
}

/// `2024!/2022!`, whose factorials may be too large to write out.
fn falling(above: &Expr, below: &Expr, budget: &Budget) -> Option<Rational> {
    let argument = |expr: &Expr| match expr {
        Expr::Function(Function::Factorial, arguments) => {
            exact(arguments.first()?, budget)?.to_i64()
        }
        _ => None,
    };
    let (n, m) = (argument(above)?, argument(below)?);
    if m < 0 || n < m || n - m > 100 {
        return None;
    }
    budget.spend((n - m) as u64 * 10)?;
    Rational::new((m + 1..=n).map(BigInt::from).product(), BigInt::one())
}

/// The value of a function of rational numbers, where it is rational.
pub fn exact_function(
    function: Function,
    values: &[Rational],
    budget: &Budget,
) -> Option<Rational> {
    let first = values.first()?;
    let integers = || {
        values
            .iter()
            .map(|v| v.is_integer().then(|| v.numerator().clone()))
            .collect::<Option<Vec<_>>>()
    };
    match function {
        Function::Abs => Some(first.abs()),
        Function::Floor => Some(Rational::from_int(first.floor())),
        Function::Ceil => Some(Rational::from_int(-first.neg().floor())),
        Function::Re => Some(first.clone()),
        Function::Max => values.iter().max().cloned(),
        Function::Min => values.iter().min().cloned(),
        Function::Gcd => Some(Rational::from_int(
            integers()?
                .into_iter()
                .fold(BigInt::zero(), |a, b| a.gcd(&b)),
        )),
        Function::Lcm => {
            let lcm = integers()?
                .into_iter()
                .fold(BigInt::one(), |a, b| a.lcm(&b));
            Rational::new(lcm, BigInt::one())
        }
        Function::Factorial => {
            let n = first.to_i64().filter(|n| (0..=1000).contains(n))?;
            budget.spend(n as u64 * 10)?;
            Rational::new((1..=n).map(BigInt::from).product(), BigInt::one())
        }
        Function::Binomial => {
            let (n, k) = (first.to_i64()?, values.get(1)?.to_i64()?);
            if n < 0 || k < 0 || n > 5_000 {
                return None;
            }
            if k > n {
                return Some(Rational::integer(0));
            }
            let k = k.min(n - k);
            budget.spend(k as u64 * 20)?;
            let mut value = BigInt::one();
            for i in 0..k {
                value = value * (n - i) / (i + 1);
            }
            Rational::new(value, BigInt::one())
        }
        Function::Log => {
            // a whole power of the base
            let (value, base) = (first, values.get(1)?);
            let estimate = (value.to_f64().ln() / base.to_f64().ln()).round();
            if !estimate.is_finite()
                || estimate.abs() > 1000.0
                || base.is_negative()
                || base.is_one()
            {
                return None;
            }
            (base.pow(estimate as i64)? == *value).then(|| Rational::integer(estimate as i64))
        }
        _ => None,
    }
}

/// `body` with every `name` replaced.
pub fn substituted(body: &Expr, name: &str, value: &Expr, budget: &Budget) -> Option<Expr> {
    budget.spend(5)?;
    if let Expr::Symbol(symbol) = body
        && symbol == name
    {
        return Some(value.clone());
    }
    let mut failed = false;
    let result = body.map_children(&mut |child| {
        substituted(child, name, value, budget).unwrap_or_else(|| {
            failed = true;
            Expr::Empty
        })
    });
    (!failed).then_some(result)
}
