//! Whether two formulas are the same value or the same function: by structure, exactly where both are rational, else as
//! doubles at several points, which refutes, and then with 150 digits at several points, which confirms.

use super::eval::{Evaluator, Point};
use super::exact::{Budget, exact};
use super::expr::{Binder, Constant, Expr, Function};
use super::fixed::Fixed;
use super::rational::Rational;
use super::real::Real;

/// What evaluating at points says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Equal,
    Different,
    /// nowhere could both be evaluated
    Unknown,
}

/// Whether two scalars are equal; decimals are compared after rounding to `rounding` places.
pub fn equal(a: &Expr, b: &Expr, rounding: u32, budget: &Budget) -> bool {
    if a == b {
        return true;
    }
    if let (Some(a), Some(b)) = (infinite(a), infinite(b)) {
        return a == b;
    }
    let (decimal_a, decimal_b) = (decimal(a), decimal(b));
    match (exact(a, budget), exact(b, budget)) {
        (Some(x), Some(y)) if x == y => return true,
        (Some(x), Some(y)) => {
            let both = decimal_a.is_some() && decimal_b.is_some();
            return match (&decimal_a, &decimal_b) {
                (None, None) => false,
                // numerals without rounding: both say all their digits
                _ if rounding >= 4 && is_numeral(a) && is_numeral(b) => same_double(&x, &y),
                (Some(_), _) => rounds_to(&y, &x, rounding, both),
                (None, Some(_)) => rounds_to(&x, &y, rounding, both),
            };
        }
        _ => {}
    }
    if let Some(written) = decimal_a.as_ref().or(decimal_b.as_ref()) {
        let other = if decimal_a.is_some() { b } else { a };
        if other.has_symbols() {
            return false;
        }
        return constant(other, budget)
            .is_some_and(|value| rounds_to(&value, written, rounding, true));
    }
    let seed = 0x5eed;
    match at_points::<f64>(a, b, &[0, 1, 2, 3, 4, 5], seed, budget) {
        Finding::Different => false,
        _ => at_points::<Fixed>(a, b, &[0, 1, 2, 4], seed, budget) == Finding::Equal,
    }
}

/// Whether an expression is a number written with digits only.
fn is_numeral(expr: &Expr) -> bool {
    match expr {
        Expr::Number(_) | Expr::Decimal(_) => true,
        Expr::Neg(inner) | Expr::Percent(inner) | Expr::Degree(inner) => is_numeral(inner),
        _ => false,
    }
}

/// Whether two numerals differ in the last digits of a double only, as 0.30000000000000004 and 0.3 do.
fn same_double(a: &Rational, b: &Rational) -> bool {
    let epsilon = Rational::integer(1_000_000_000_000_000);
    let difference = a.sub(b).and_then(|d| d.abs().mul(&epsilon));
    difference.is_some_and(|d| d <= a.abs().max(b.abs()))
}

/// The numeral where the whole expression is one with a decimal point.
fn decimal(expr: &Expr) -> Option<Rational> {
    match expr {
        Expr::Decimal(value) => Some(value.clone()),
        Expr::Neg(inner) => Some(decimal(inner)?.neg()),
        Expr::Percent(inner) => decimal(inner)?.div(&Rational::integer(100)),
        Expr::Degree(inner) => decimal(inner),
        // scientific notation
        Expr::Mul(factors) if factors.len() == 2 => match &factors[..] {
            [Expr::Decimal(mantissa), Expr::Pow(base, exponent)] if **base == Expr::integer(10) => {
                let Expr::Number(exponent) = &**exponent else {
                    return None;
                };
                mantissa.mul(&Rational::integer(10).pow(exponent.to_i64()?)?)
            }
            _ => None,
        },
        _ => None,
    }
}

/// Whether two numbers of which one is a decimal agree to so many places, and in three leading digits at least. A number
/// that those places hold entirely must be met exactly, but for the last digits of a double.
fn rounds_to(exact: &Rational, decimal: &Rational, places: u32, both_decimal: bool) -> bool {
    let (a, b) = (exact, decimal);
    let Some(difference) = a.sub(b).map(|d| d.abs()) else {
        return false;
    };
    let size = a.abs().max(b.abs());
    let thousand = Rational::integer(1000);
    let close = Rational::integer(10)
        .pow(i64::from(places))
        .and_then(|scale| difference.mul(&scale))
        .is_some_and(|scaled| {
            scaled
                .mul(&Rational::integer(2))
                .is_some_and(|d| d <= Rational::integer(1))
        });
    let alike = difference.mul(&thousand).is_some_and(|d| d <= size);
    // asked for few places, few digits must do
    let alike = alike || places < 4;
    let scale = Rational::integer(10).pow(i64::from(places));
    let written_out = |x: &Rational| {
        scale
            .as_ref()
            .and_then(|s| x.mul(s))
            .is_some_and(|x| x.is_integer())
    };
    if !both_decimal && places >= 4 && written_out(exact) {
        let trillion = Rational::integer(1_000_000_000_000);
        return difference.mul(&trillion).is_some_and(|d| d <= size);
    }
    alike && (close || a.rounded(places) == b.rounded(places))
}

/// The value of a real constant, to 60 binary places relative to it.
fn constant(expr: &Expr, budget: &Budget) -> Option<Rational> {
    let point = Point {
        trial: 0,
        integers: false,
        seed: 0,
    };
    let value = Evaluator::<Fixed>::new(point, budget).value(expr)?;
    value.is_real().then(|| value.re.to_rational()).flatten()
}

fn infinite(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Constant(Constant::Infinity) => Some(true),
        Expr::Neg(inner) => infinite(inner).map(|positive| !positive),
        _ => None,
    }
}

/// Whether the letters must be natural numbers for the expression to have a value.
fn needs_integers(expr: &Expr) -> bool {
    expr.any(&mut |part| match part {
        Expr::Function(
            Function::Factorial | Function::Binomial | Function::Gcd | Function::Lcm,
            all,
        ) => all.iter().any(Expr::has_symbols),
        Expr::Bound {
            binder: Binder::Sum | Binder::Product,
            low,
            high,
            ..
        } => low.has_symbols() || high.has_symbols(),
        Expr::Pow(base, exponent) => {
            exponent.has_symbols()
                && match &**base {
                    Expr::Number(value) => value.is_negative(),
                    Expr::Neg(_) => true,
                    _ => false,
                }
        }
        _ => false,
    })
}

fn at_points<R: Real>(a: &Expr, b: &Expr, trials: &[u32], seed: u64, budget: &Budget) -> Finding {
    let constant = !a.has_symbols() && !b.has_symbols();
    let integers = !constant && (needs_integers(a) || needs_integers(b));
    let (mut plain, mut branched, mut torn) = (0, 0, false);
    for &trial in if constant { &trials[..1] } else { trials } {
        let point = Point {
            trial,
            integers,
            seed,
        };
        let (mut left, mut right) = (
            Evaluator::<R>::new(point, budget),
            Evaluator::<R>::new(point, budget),
        );
        let (Some(x), Some(y)) = (left.value(a), right.value(b)) else {
            continue;
        };
        let scale = left.scale.max(right.scale);
        let same = x.re.agrees(&y.re, scale) && x.im.agrees(&y.im, scale);
        // beyond a root or logarithm of a negative number both sides mean what their author chose
        if !(left.branched || right.branched) || constant {
            if !same {
                return Finding::Different;
            }
            plain += 1;
        } else if trial < 3 {
            branched += i32::from(same);
            torn |= !same;
        }
    }
    let needed = if constant { 1 } else { 2 };
    if plain >= needed || (!torn && plain + branched >= needed) {
        Finding::Equal
    } else if torn {
        Finding::Different
    } else {
        Finding::Unknown
    }
}

/// The double of a real constant, for ordering; infinities included.
pub fn approximate(expr: &Expr, budget: &Budget) -> Option<f64> {
    if let Some(positive) = infinite(expr) {
        return Some(if positive {
            f64::INFINITY
        } else {
            f64::NEG_INFINITY
        });
    }
    if expr.has_symbols() {
        return None;
    }
    if let Some(value) = exact(expr, budget) {
        return Some(value.to_f64());
    }
    let point = Point {
        trial: 0,
        integers: false,
        seed: 0,
    };
    let value = Evaluator::<f64>::new(point, budget).value(expr)?;
    value.is_real().then_some(value.re)
}

/// The value at a point where one letter is given, as a double.
pub fn value_at(expr: &Expr, name: &str, at: f64, budget: &Budget) -> Option<f64> {
    let at = Expr::Decimal(Rational::from_f64(at)?);
    approximate(&super::exact::substituted(expr, name, &at, budget)?, budget)
}

/// The rational number `c` with `a = c b` everywhere, where there is one with small terms.
pub fn proportion(a: &Expr, b: &Expr, budget: &Budget) -> Option<Rational> {
    let integers = needs_integers(a) || needs_integers(b);
    for trial in [1, 0, 2] {
        let point = Point {
            trial,
            integers,
            seed: 0xfac7,
        };
        let x = Evaluator::<f64>::new(point, budget).value(a);
        let y = Evaluator::<f64>::new(point, budget).value(b);
        let (Some(x), Some(y)) = (x, y) else { continue };
        if !x.is_real() || !y.is_real() || y.re == 0.0 || x.re == 0.0 {
            continue;
        }
        let factor = small_fraction(x.re / y.re)?;
        let scaled = Expr::Mul(vec![Expr::Number(factor.clone()), b.clone()]);
        return equal(a, &scaled, 12, budget).then_some(factor);
    }
    None
}

/// The continued fraction of a double, cut where it fits.
fn small_fraction(value: f64) -> Option<Rational> {
    let (mut n0, mut d0, mut n1, mut d1) = (0i64, 1i64, 1i64, 0i64);
    let mut rest = value.abs();
    for _ in 0..20 {
        if rest > 1e12 {
            return None;
        }
        let whole = rest.floor() as i64;
        (n0, n1) = (n1, whole.checked_mul(n1)?.checked_add(n0)?);
        (d0, d1) = (d1, whole.checked_mul(d1)?.checked_add(d0)?);
        if (n1 as f64 / d1 as f64 - value.abs()).abs() < 1e-10 * value.abs() {
            let n = if value < 0.0 { -n1 } else { n1 };
            return Rational::integer(n).div(&Rational::integer(d1));
        }
        rest = 1.0 / (rest - whole as f64);
    }
    None
}

/// Whether two integers leave the same remainder.
pub fn congruent(a: &Expr, b: &Expr, modulus: &Expr, budget: &Budget) -> bool {
    let quotient = || {
        let (a, b, m) = (
            exact(a, budget)?,
            exact(b, budget)?,
            exact(modulus, budget)?,
        );
        a.sub(&b)?.div(&m)
    };
    quotient().is_some_and(|q| q.is_integer())
}

/// The letters of a formula, sorted.
pub fn letters(expr: &Expr) -> Vec<String> {
    let mut names = Vec::new();
    expr.any(&mut |part| {
        if let Expr::Symbol(name) = part {
            names.push(name.clone());
        }
        false
    });
    names.sort();
    names.dedup();
    names
}
