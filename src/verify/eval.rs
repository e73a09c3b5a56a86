//! What an expression is worth as a complex number, at a point that the names of its letters and the number of the trial
//! fix. Roots and powers of negative numbers with odd denominators are real. Exact values are in [`super::exact`].

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::ToPrimitive;

use super::exact::{Budget, MAX_TERMS, exact, exact_function};
use super::expr::{Binder, Constant, Expr, Function};
use super::rational::Rational;
use super::real::{Complex, Real};
use crate::random::{GOLDEN, mix};

/// Where the letters stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub trial: u32,
    /// letters are natural numbers
    pub integers: bool,
    /// salt of this comparison
    pub seed: u64,
}

/// Evaluates expressions at one point.
pub struct Evaluator<'a, R> {
    point: Point,
    budget: &'a Budget,
    /// values of bound letters
    bound: Vec<(String, Complex<R>)>,
    /// a root or logarithm of a negative number was taken
    pub branched: bool,
    /// binary exponent of the largest value met
    pub scale: i64,
    in_angle: bool,
}

fn hash(seed: u64, text: &str) -> u64 {
    let mut state = seed ^ 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(state.wrapping_add(GOLDEN))
}

impl<'a, R: Real> Evaluator<'a, R> {
    pub fn new(point: Point, budget: &'a Budget) -> Self {
        Self {
            point,
            budget,
            bound: Vec::new(),
            branched: false,
            scale: i64::MIN,
            in_angle: false,
        }
    }

    /// A fixed number between `low` and `high` for `text`.
    fn draw(&self, text: &str, low: f64, high: f64) -> Option<R> {
        const STEPS: i64 = 1 << 24;
        let random = (hash(
            self.point.seed.wrapping_add(u64::from(self.point.trial)),
            text,
        ) >> 40) as i64;
        let low_steps = (low * 1024.0) as i64 * (STEPS / 1024);
        let width = ((high - low) * 1024.0) as i64;
        let value = low_steps + random * width / 1024;
        R::rational(&Rational::new(BigInt::from(value), BigInt::from(STEPS))?)
    }

    fn symbol(&self, name: &str) -> Option<Complex<R>> {
        if let Some((_, value)) = self.bound.iter().rev().find(|(bound, _)| bound == name) {
            return Some(value.clone());
        }
        if self.point.integers {
            let seed = self.point.seed.wrapping_add(u64::from(self.point.trial));
            return Complex::integer((hash(seed, name) % 11 + 1) as i64);
        }
        const RANGES: [(f64, f64); 6] = [
            (0.05, 0.95),
            (1.05, 3.0),
            (0.3, 2.0),
            (-1.0, 1.0),
            (-3.0, 3.0),
            (-3.0, -0.125),
        ];
        let (low, high) = RANGES[self.point.trial as usize % RANGES.len()];
        Complex::real(self.draw(name, low, high)?)
    }

    pub fn value(&mut self, expr: &Expr) -> Option<Complex<R>> {
        self.budget.spend(2 * R::COST)?;
        let value = self.raw(expr)?;
        let size = value.re.to_f64().abs().max(value.im.to_f64().abs());
        if size > 0.0 {
            self.scale = self.scale.max(if size.is_finite() {
                size.log2() as i64
            } else {
                1_000
            });
        }
        Some(value)
    }

    fn raw(&mut self, expr: &Expr) -> Option<Complex<R>> {
        match expr {
            Expr::Number(value) | Expr::Decimal(value) => Complex::real(R::rational(value)?),
            Expr::Symbol(name) => self.symbol(name),
            Expr::Ellipsis => self.symbol("…"),
            Expr::Constant(Constant::Pi) => Complex::real(R::pi()),
            Expr::Constant(Constant::E) => Complex::real(R::e()),
            Expr::Constant(Constant::I) => Some(Complex {
                re: R::integer(0)?,
                im: R::integer(1)?,
            }),
            Expr::Constant(Constant::Infinity) => None,
            Expr::Add(terms) => {
                let mut sum = Complex::integer(0)?;
                for term in terms {
                    sum = sum.add(&self.value(term)?);
                }
                Some(sum)
            }
            Expr::Mul(factors) => {
                let mut product = Complex::integer(1)?;
                for factor in factors {
                    product = product.mul(&self.value(factor)?)?;
                }
                Some(product)
            }
            Expr::Neg(inner) => Some(self.value(inner)?.neg()),
            Expr::Div(above, below) => {
                let below = self.value(below)?;
                self.value(above)?.div(&below)
            }
            Expr::Pow(base, exponent) => self.power(base, exponent),
            Expr::Root(radicand, degree) => {
                let radicand = self.value(radicand)?;
                let degree = exact(degree, self.budget).and_then(|d| d.to_i64());
                match degree {
                    Some(2) => {
                        self.branched |= radicand.is_real() && radicand.re.is_negative();
                        self.budget.spend(10 * R::COST)?;
                        radicand.sqrt()
                    }
                    Some(n) if n != 0 => self.rational_power(
                        &radicand,
                        &Rational::integer(1).div(&Rational::integer(n))?,
                    ),
                    _ => None,
                }
            }
            Expr::Percent(inner) => self.value(inner)?.div(&Complex::integer(100)?),
            Expr::Degree(inner) => {
                let value = self.value(inner)?;
                if !self.in_angle {
                    return Some(value);
                }
                value
                    .mul(&Complex::real(R::pi())?)?
                    .div(&Complex::integer(180)?)
            }
            Expr::Based(..) => Complex::real(R::rational(&exact(expr, self.budget)?)?),
            Expr::Function(function, arguments) => self.function(*function, arguments),
            Expr::Apply(name, arguments) => {
                let values = arguments
                    .iter()
                    .map(|a| self.value(a))
                    .collect::<Option<Vec<_>>>()?;
                self.unknown(name, &values)
            }
            Expr::Bound { .. } => self.bounded(expr),
            _ => None,
        }
    }

    fn power(&mut self, base: &Expr, exponent: &Expr) -> Option<Complex<R>> {
        if let Some(exponent) = exact(exponent, self.budget) {
            let base = self.value(base)?;
            return self.rational_power(&base, &exponent);
        }
        let exponent = self.value(exponent)?;
        self.budget.spend(R::FUNCTION_COST)?;
        if *base == Expr::Constant(Constant::E) {
            return exponent.exp();
        }
        let base = self.value(base)?;
        if self.point.integers && exponent.is_real() {
            let n = exponent.re.to_f64();
            if n.fract() == 0.0 && n.abs() < 1000.0 {
                return base.integer_power(n as i64);
            }
        }
        if base.is_zero() {
            return None;
        }
        self.branched |= base.is_real() && base.re.is_negative();
        base.ln()?.mul(&exponent)?.exp()
    }

    fn rational_power(&mut self, base: &Complex<R>, exponent: &Rational) -> Option<Complex<R>> {
        if let Some(n) = exponent.to_i64() {
            if n.unsigned_abs() <= 20_000 {
                self.budget
                    .spend(u64::from(64 - n.unsigned_abs().leading_zeros()) * 4 * R::COST)?;
                return base.integer_power(n);
            }
            if base.is_zero() || !base.is_real() {
                return None;
            }
        }
        if base.is_zero() {
            return if exponent.is_negative() {
                None
            } else {
                Complex::integer(0)
            };
        }
        self.budget.spend(2 * R::FUNCTION_COST)?;
        let power = Complex::real(R::rational(exponent)?)?;
        if base.is_real() && base.re.is_negative() {
            if exponent.denominator().is_odd() {
                let size = base.neg().ln()?.mul(&power)?.exp()?;
                return Some(if exponent.numerator().is_odd() {
                    size.neg()
                } else {
                    size
                });
            }
            self.branched = true;
        }
        if *exponent.denominator() == BigInt::from(2) && base.is_real() {
            // halves by square roots: exact to the last place
            return base.sqrt()?.integer_power(exponent.numerator().to_i64()?);
        }
        base.ln()?.mul(&power)?.exp()
    }

    fn function(&mut self, function: Function, arguments: &[Expr]) -> Option<Complex<R>> {
        let trigonometric = matches!(
            function,
            Function::Sin
                | Function::Cos
                | Function::Tan
                | Function::Cot
                | Function::Sec
                | Function::Csc
        );
        let outer = self.in_angle;
        self.in_angle |= trigonometric;
        let values = arguments
            .iter()
            .map(|a| self.value(a))
            .collect::<Option<Vec<_>>>();
        self.in_angle = outer;
        let values = values?;
        let x = values.first()?;
        self.budget.spend(R::FUNCTION_COST)?;
        let one = Complex::integer(1)?;
        let real = |x: &Complex<R>| x.is_real().then(|| x.re.clone());
        match function {
            Function::Exp => x.exp(),
            Function::Ln => {
                self.branched |= x.is_real() && x.re.is_negative();
                if x.is_zero() { None } else { x.ln() }
            }
            Function::Log => {
                let base = values.get(1)?;
                self.branched |= x.is_real() && x.re.is_negative();
                if x.is_zero() || base.is_zero() {
                    return None;
                }
                x.ln()?.div(&base.ln()?)
            }
            Function::Sin
            | Function::Cos
            | Function::Tan
            | Function::Cot
            | Function::Sec
            | Function::Csc => {
                let (sin, cos) = sine_and_cosine(x)?;
                match function {
                    Function::Sin => Some(sin),
                    Function::Cos => Some(cos),
                    Function::Tan => sin.div(&cos),
                    Function::Cot => cos.div(&sin),
                    Function::Sec => one.div(&cos),
                    _ => one.div(&sin),
                }
            }
            Function::Arctan => Complex::real(real(x)?.arctan()?),
            Function::Arcsin | Function::Arccos => {
                // arcsin x = arctan(x / sqrt(1 - x^2))
                let x = real(x)?;
                let rest = R::integer(1)?.add(&x.mul(&x)?.neg());
                if rest.is_negative() {
                    return None;
                }
                let half = R::pi().div(&R::integer(2)?)?;
                let arcsin = if rest.is_zero() {
                    if x.is_negative() {
                        half.neg()
                    } else {
                        half.clone()
                    }
                } else {
                    x.div(&rest.sqrt()?)?.arctan()?
                };
                Complex::real(if function == Function::Arcsin {
                    arcsin
                } else {
                    half.add(&arcsin.neg())
                })
            }
            Function::Sinh | Function::Cosh | Function::Tanh => {
                let (up, down) = (x.exp()?, x.neg().exp()?);
                let (sinh, cosh) = (up.add(&down.neg()), up.add(&down));
                match function {
                    Function::Tanh => sinh.div(&cosh),
                    Function::Sinh => sinh.div(&Complex::integer(2)?),
                    _ => cosh.div(&Complex::integer(2)?),
                }
            }
            Function::Abs => Complex::real(x.abs()?),
            Function::Floor => Complex::real(real(x)?.floor()),
            Function::Ceil => Complex::real(real(x)?.neg().floor().neg()),
            Function::Re => Complex::real(x.re.clone()),
            Function::Im => Complex::real(x.im.clone()),
            Function::Max | Function::Min => {
                let mut best = real(x)?;
                for value in &values[1..] {
                    let value = real(value)?;
                    let less = value.add(&best.neg()).is_negative();
                    if less == (function == Function::Min) {
                        best = value;
                    }
                }
                Complex::real(best)
            }
            Function::Factorial | Function::Binomial | Function::Gcd | Function::Lcm => {
                let integers = values
                    .iter()
                    .map(|v| {
                        let double = real(v)?.to_f64();
                        (double.fract() == 0.0 && double.abs() < 2000.0)
                            .then(|| Rational::integer(double as i64))
                    })
                    .collect::<Option<Vec<_>>>()?;
                Complex::real(R::rational(&exact_function(
                    function,
                    &integers,
                    self.budget,
                )?)?)
            }
            Function::Det => None,
        }
    }

    /// Some fixed smooth function that no identity holds for, the same for the same name.
    fn unknown(&mut self, name: &str, values: &[Complex<R>]) -> Option<Complex<R>> {
        let constant =
            |slot: &str| Complex::real(self.draw(&format!("{name}#{slot}"), 0.5, 2.5)?);
        let mut total = constant("0")?;
        for (i, value) in values.iter().enumerate() {
            let square = value.mul(value)?;
            let pole = square.add(&constant(&format!("a{i}"))?);
            total = total
                .add(&value.mul(&constant(&format!("b{i}"))?)?)
                .add(&square.mul(&constant(&format!("c{i}"))?)?)
                .add(&constant(&format!("d{i}"))?.div(&pole)?);
        }
        Some(total)
    }

    /// A sum written out where its bounds are numbers; else a function of its bounds and of its body at one point.
    fn bounded(&mut self, expr: &Expr) -> Option<Complex<R>> {
        let Expr::Bound {
            binder,
            variable,
            low,
            high,
            body,
        } = expr
        else {
            return None;
        };
        let mut whole = |expr: &Expr| {
            if let Some(n) = exact(expr, self.budget) {
                return n.to_i64();
            }
            let symbolic = self.point.integers && expr.has_symbols();
            let value = self.value(expr).filter(|v| symbolic && v.is_real())?;
            let double = value.re.to_f64();
            (double.fract() == 0.0 && double.abs() < 1e6).then_some(double as i64)
        };
        let ends = (whole(low), whole(high));
        if let (Some(from), Some(to), Binder::Sum | Binder::Product) = (ends.0, ends.1, binder) {
            if to.checked_sub(from)? > MAX_TERMS {
                return None;
            }
            let mut total = Complex::integer(i64::from(*binder == Binder::Product))?;
            for n in from..=to {
                self.bound.push((variable.clone(), Complex::integer(n)?));
                let value = self.value(body);
                self.bound.pop();
                let value = value?;
                total = if *binder == Binder::Sum {
                    total.add(&value)
                } else {
                    total.mul(&value)?
                };
            }
            return Some(total);
        }
        let mut end = |expr: &Expr| match expr {
            Expr::Empty => Complex::integer(7),
            Expr::Constant(Constant::Infinity) => Complex::integer(11),
            Expr::Neg(inner) if **inner == Expr::Constant(Constant::Infinity) => {
                Complex::integer(-11)
            }
            other => self.value(other),
        };
        let (low, high) = (end(low)?, end(high)?);
        let inner = Complex::real(self.draw(&format!("bound{}", self.bound.len()), 0.5, 2.5)?)?;
        self.bound.push((variable.clone(), inner));
        let body = self.value(body);
        self.bound.pop();
        self.unknown(&format!("{binder:?}"), &[low, high, body?])
    }
}

fn sine_and_cosine<R: Real>(x: &Complex<R>) -> Option<(Complex<R>, Complex<R>)> {
    if x.is_real() {
        let (sin, cos) = x.re.sin_cos()?;
        return Some((Complex::real(sin)?, Complex::real(cos)?));
    }
    // by the exponentials of ix and -ix
    let turned = Complex {
        re: x.im.neg(),
        im: x.re.clone(),
    };
    let (up, down) = (turned.exp()?, turned.neg().exp()?);
    let two = Complex::integer(2)?;
    let twice_i = Complex {
        re: R::integer(0)?,
        im: R::integer(2)?,
    };
    Some((up.add(&down.neg()).div(&twice_i)?, up.add(&down).div(&two)?))
}
