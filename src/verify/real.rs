//! Complex numbers over doubles or over [`super::fixed`]: the arithmetic that formulas are evaluated in.

use super::fixed::Fixed;
use super::rational::Rational;

/// A kind of real number. What is out of range is None.
pub trait Real: Clone {
    /// What one operation costs, in units of a double's.
    const COST: u64;
    /// What an elementary function costs.
    const FUNCTION_COST: u64;
    fn rational(value: &Rational) -> Option<Self>;
    fn pi() -> Self;
    fn e() -> Self;
    fn add(&self, other: &Self) -> Self;
    fn mul(&self, other: &Self) -> Option<Self>;
    fn div(&self, other: &Self) -> Option<Self>;
    fn neg(&self) -> Self;
    fn sqrt(&self) -> Option<Self>;
    fn exp(&self) -> Option<Self>;
    fn ln(&self) -> Option<Self>;
    fn sin_cos(&self) -> Option<(Self, Self)>;
    fn arctan(&self) -> Option<Self>;
    fn floor(&self) -> Self;
    fn is_zero(&self) -> bool;
    fn is_negative(&self) -> bool;
    fn to_f64(&self) -> f64;
    /// Whether the two are equal as far as can be told after sums as large as `2^scale`.
    fn agrees(&self, other: &Self, scale: i64) -> bool;

    fn integer(value: i64) -> Option<Self> {
        Self::rational(&Rational::integer(value))
    }
}

impl Real for f64 {
    const COST: u64 = 1;
    const FUNCTION_COST: u64 = 20;

    fn rational(value: &Rational) -> Option<Self> {
        let double = value.to_f64();
        (double.is_finite() && (double != 0.0 || value.is_zero())).then_some(double)
    }
    fn pi() -> Self {
        std::f64::consts::PI
    }
    fn e() -> Self {
        std::f64::consts::E
    }
    fn add(&self, other: &Self) -> Self {
        let sum = self + other;
        // equal numbers cancel to rounding
        if sum.abs() < 1e-13 * self.abs().max(other.abs()) {
            0.0
        } else {
            sum
        }
    }
    fn mul(&self, other: &Self) -> Option<Self> {
        finite(self * other)
    }
    fn div(&self, other: &Self) -> Option<Self> {
        if *other == 0.0 {
            None
        } else {
            finite(self / other)
        }
    }
    fn neg(&self) -> Self {
        -self
    }
    fn sqrt(&self) -> Option<Self> {
        finite(f64::sqrt(*self))
    }
    fn exp(&self) -> Option<Self> {
        finite(f64::exp(*self))
    }
    fn ln(&self) -> Option<Self> {
        if *self > 0.0 {
            finite(f64::ln(*self))
        } else {
            None
        }
    }
    fn sin_cos(&self) -> Option<(Self, Self)> {
        if self.abs() > 1e6 {
            return None;
        }
        let clean = |x: f64| if x.abs() < 1e-12 { 0.0 } else { x };
        Some((clean(self.sin()), clean(self.cos())))
    }
    fn arctan(&self) -> Option<Self> {
        Some(self.atan())
    }
    fn floor(&self) -> Self {
        f64::floor(self + 1e-11 * self.abs().max(1.0))
    }
    fn is_zero(&self) -> bool {
        *self == 0.0
    }
    fn is_negative(&self) -> bool {
        *self < 0.0
    }
    fn to_f64(&self) -> f64 {
        *self
    }
    fn agrees(&self, other: &Self, scale: i64) -> bool {
        let largest = self
            .abs()
            .max(other.abs())
            .max(2f64.powi(scale.clamp(-1000, 1000) as i32) * 1e-6);
        (self - other).abs() <= 1e-7 * largest
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

impl Real for Fixed {
    const COST: u64 = 12;
    const FUNCTION_COST: u64 = 1_500;

    fn rational(value: &Rational) -> Option<Self> {
        Self::from_rational(value)
    }
    fn pi() -> Self {
        Self::pi()
    }
    fn e() -> Self {
        Self::e()
    }
    fn add(&self, other: &Self) -> Self {
        Fixed::add(self, other)
    }
    fn mul(&self, other: &Self) -> Option<Self> {
        Fixed::mul(self, other)
    }
    fn div(&self, other: &Self) -> Option<Self> {
        Fixed::div(self, other)
    }
    fn neg(&self) -> Self {
        Fixed::neg(self)
    }
    fn sqrt(&self) -> Option<Self> {
        Fixed::sqrt(self)
    }
    fn exp(&self) -> Option<Self> {
        Fixed::exp(self)
    }
    fn ln(&self) -> Option<Self> {
        Fixed::ln(self)
    }
    fn sin_cos(&self) -> Option<(Self, Self)> {
        Fixed::sin_cos(self)
    }
    fn arctan(&self) -> Option<Self> {
        Fixed::arctan(self)
    }
    fn floor(&self) -> Self {
        Fixed::floor(self)
    }
    fn is_zero(&self) -> bool {
        Fixed::is_zero(self)
    }
    fn is_negative(&self) -> bool {
        Fixed::is_negative(self)
    }
    fn to_f64(&self) -> f64 {
        Fixed::to_f64(self)
    }
    fn agrees(&self, other: &Self, scale: i64) -> bool {
        let lost = scale.max(0) as u64;
        if lost > 220 {
            return false;
        }
        let (difference, noise) = (self.sub(other).bits(), 140 + lost);
        let size = self.bits().max(other.bits());
        difference <= noise && (size <= noise || size >= difference + 60)
    }
}

/// A complex number.
#[derive(Debug, Clone)]
pub struct Complex<R> {
    pub re: R,
    pub im: R,
}

impl<R: Real> Complex<R> {
    pub fn real(re: R) -> Option<Self> {
        Some(Self {
            re,
            im: R::integer(0)?,
        })
    }

    pub fn integer(value: i64) -> Option<Self> {
        Self::real(R::integer(value)?)
    }

    pub fn is_real(&self) -> bool {
        self.im.is_zero()
    }

    pub fn is_zero(&self) -> bool {
        self.re.is_zero() && self.im.is_zero()
    }

    pub fn add(&self, other: &Self) -> Self {
        Self {
            re: self.re.add(&other.re),
            im: self.im.add(&other.im),
        }
    }

    pub fn neg(&self) -> Self {
        Self {
            re: self.re.neg(),
            im: self.im.neg(),
        }
    }

    pub fn mul(&self, other: &Self) -> Option<Self> {
        if self.is_real() && other.is_real() {
            return Self::real(self.re.mul(&other.re)?);
        }
        Some(Self {
            re: self.re.mul(&other.re)?.add(&self.im.mul(&other.im)?.neg()),
            im: self.re.mul(&other.im)?.add(&self.im.mul(&other.re)?),
        })
    }

    pub fn div(&self, other: &Self) -> Option<Self> {
        if other.is_real() {
            return Some(Self {
                re: self.re.div(&other.re)?,
                im: self.im.div(&other.re)?,
            });
        }
        let size = other.re.mul(&other.re)?.add(&other.im.mul(&other.im)?);
        let top = self.mul(&Self {
            re: other.re.clone(),
            im: other.im.neg(),
        })?;
        Some(Self {
            re: top.re.div(&size)?,
            im: top.im.div(&size)?,
        })
    }

    pub fn abs(&self) -> Option<R> {
        if self.is_real() {
            return Some(if self.re.is_negative() {
                self.re.neg()
            } else {
                self.re.clone()
            });
        }
        self.re.mul(&self.re)?.add(&self.im.mul(&self.im)?).sqrt()
    }

    /// The angle in (-pi, pi].
    pub fn argument(&self) -> Option<R> {
        let half = R::pi().div(&R::integer(2)?)?;
        if self.re.is_zero() {
            return Some(if self.im.is_negative() {
                half.neg()
            } else {
                half
            });
        }
        let angle = self.im.div(&self.re)?.arctan()?;
        Some(match (self.re.is_negative(), self.im.is_negative()) {
            (false, _) => angle,
            (true, false) => angle.add(&R::pi()),
            (true, true) => angle.add(&R::pi().neg()),
        })
    }

    /// The principal logarithm of a number that is not zero.
    pub fn ln(&self) -> Option<Self> {
        if self.is_real() && !self.re.is_negative() {
            return Self::real(self.re.ln()?);
        }
        Some(Self {
            re: self.abs()?.ln()?,
            im: self.argument()?,
        })
    }

    pub fn exp(&self) -> Option<Self> {
        let size = self.re.exp()?;
        if self.is_real() {
            return Self::real(size);
        }
        let (sin, cos) = self.im.sin_cos()?;
        Some(Self {
            re: size.mul(&cos)?,
            im: size.mul(&sin)?,
        })
    }

    /// The principal square root.
    pub fn sqrt(&self) -> Option<Self> {
        if self.is_real() {
            return if self.re.is_negative() {
                Some(Self {
                    re: R::integer(0)?,
                    im: self.re.neg().sqrt()?,
                })
            } else {
                Self::real(self.re.sqrt()?)
            };
        }
        let two = R::integer(2)?;
        let size = self.abs()?;
        let re = size.add(&self.re).div(&two)?.sqrt()?;
        if re.is_zero() {
            return None;
        }
        let im = self.im.div(&re.mul(&two)?)?;
        Some(Self { re, im })
    }

    /// `self^n` by squaring.
    pub fn integer_power(&self, n: i64) -> Option<Self> {
        let mut left = n.unsigned_abs();
        let mut base = self.clone();
        let mut result = Self::integer(1)?;
        while left > 0 {
            if left & 1 == 1 {
                result = result.mul(&base)?;
            }
            left >>= 1;
            if left > 0 {
                base = base.mul(&base)?;
            }
        }
        if n < 0 {
            return Self::integer(1)?.div(&result);
        }
        Some(result)
    }
}
