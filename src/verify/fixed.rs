//! Real numbers to a fixed number of binary places, with the elementary functions: what decides whether two formulas that
//! agree as doubles are equal. Results out of range are None.
//!
//! `exp` halves its argument and sums Taylor's series; `ln` and `arctan` take one Newton step from the double and a short
//! series for what is left; `sin` and `cos` reduce by multiples of pi/2.

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};
use std::sync::LazyLock;

use super::rational::Rational;

/// Binary places.
pub const PLACES: u64 = 512;
/// Values have at most so many bits before the point.
const MAX_BITS: u64 = 8_192;
/// A sum this small is rounding: the difference of equal numbers.
const NOISE: u64 = 80;
/// A product this small is too inexact to compare.
const TINY: u64 = 150;

/// `value / 2^PLACES`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fixed(BigInt);

static PI: LazyLock<Fixed> = LazyLock::new(|| {
    // Machin: pi/4 = 4 arctan(1/5) - arctan(1/239)
    let arctan = |n: u32| {
        let (mut power, square) = ((BigInt::one() << (PLACES + 32)) / n, BigInt::from(n) * n);
        let mut sum = power.clone();
        for k in 1u32.. {
            power = -power / &square;
            let term = &power / (2 * k + 1);
            if term.is_zero() {
                break;
            }
            sum += term;
        }
        sum
    };
    Fixed((BigInt::from(16) * arctan(5) - BigInt::from(4) * arctan(239)) >> 32)
});

static E: LazyLock<Fixed> = LazyLock::new(|| {
    let mut term = BigInt::one() << (PLACES + 32);
    let mut sum = term.clone();
    for k in 1u32.. {
        term /= k;
        if term.is_zero() {
            break;
        }
        sum += &term;
    }
    Fixed(sum >> 32)
});

static LN_2: LazyLock<Fixed> = LazyLock::new(|| {
    // ln 2 = 2 artanh(1/3)
    let mut power: BigInt = (BigInt::one() << (PLACES + 33)) / 3;
    let mut sum = power.clone();
    for k in 1u32.. {
        power /= 9;
        let term = &power / (2 * k + 1);
        if term.is_zero() {
            break;
        }
        sum += term;
    }
    Fixed(sum >> 32)
});

impl Fixed {
    pub fn zero() -> Self {
        Self(BigInt::zero())
    }

    pub fn pi() -> Self {
        PI.clone()
    }

    pub fn e() -> Self {
        E.clone()
    }

    /// None where the value is too large, or too small to be told from zero.
    pub fn from_rational(value: &Rational) -> Option<Self> {
        let scaled: BigInt = (value.numerator() << PLACES) / value.denominator();
        let lost = !value.is_zero() && scaled.bits() < PLACES - TINY;
        (scaled.bits() < MAX_BITS && !lost).then_some(Self(scaled))
    }

    /// A double as it is; None for what is not finite.
    pub fn from_f64(value: f64) -> Option<Self> {
        if !value.is_finite() || value.abs() > 1e18 {
            return None;
        }
        let whole = BigInt::from((value * 1024.0).trunc() as i128);
        let part = ((value * 1024.0).fract() * 2f64.powi(60)) as i64;
        Some(Self(
            (whole << (PLACES - 10)) + (BigInt::from(part) << (PLACES - 70)),
        ))
    }

    pub fn to_f64(&self) -> f64 {
        let shift = self.0.bits().saturating_sub(64);
        let top = (&self.0 >> shift).to_f64().unwrap_or(0.0);
        let power = shift as i32 - PLACES as i32;
        if power > 900 {
            return top.signum() * f64::INFINITY;
        }
        top * 2f64.powi(power)
    }

    /// The value as a fraction, to 128 binary places.
    pub fn to_rational(&self) -> Option<Rational> {
        Rational::new(&self.0 >> (PLACES - 128), BigInt::one() << 128)
    }

    /// The number of bits of the value above 2^-PLACES.
    pub fn bits(&self) -> u64 {
        self.0.bits()
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    pub fn is_negative(&self) -> bool {
        self.0.is_negative()
    }

    pub fn neg(&self) -> Self {
        Self(-&self.0)
    }

    /// The sum; what is left when equal numbers cancel is zero.
    pub fn add(&self, other: &Self) -> Self {
        let sum = &self.0 + &other.0;
        let cancelled = sum.bits() < NOISE && !self.0.is_zero() && !other.0.is_zero();
        Self(if cancelled { BigInt::zero() } else { sum })
    }

    pub fn sub(&self, other: &Self) -> Self {
        self.add(&other.neg())
    }

    pub fn mul(&self, other: &Self) -> Option<Self> {
        if self.is_zero() || other.is_zero() {
            return Some(Self::zero());
        }
        Self::in_range((&self.0 * &other.0) >> PLACES)
    }

    pub fn div(&self, other: &Self) -> Option<Self> {
        if other.is_zero() {
            return None;
        }
        if self.is_zero() {
            return Some(Self::zero());
        }
        Self::in_range((&self.0 << PLACES) / &other.0)
    }

    fn in_range(value: BigInt) -> Option<Self> {
        let bits = value.bits();
        (bits < MAX_BITS && bits > PLACES - TINY - 100).then_some(Self(value))
    }

    /// The root of a number that is not negative.
    pub fn sqrt(&self) -> Option<Self> {
        (!self.is_negative()).then(|| Self((&self.0 << PLACES).sqrt()))
    }

    pub fn floor(&self) -> Self {
        // numbers a hair below an integer are that integer
        let raised = &self.0 + (BigInt::one() << NOISE);
        Self((raised >> PLACES) << PLACES)
    }

    pub fn exp(&self) -> Option<Self> {
        if self.bits() > PLACES + 12 || self.to_f64() < -80.0 {
            return None;
        }
        let (k, rest) = self.0.div_mod_floor(&LN_2.0);
        let k = k.to_i64()?;
        const HALVINGS: u64 = 12;
        const GUARD: u64 = 32;
        let places = PLACES + GUARD;
        let x = (rest << GUARD) >> HALVINGS;
        let mut term = BigInt::one() << places;
        let mut sum = term.clone();
        for n in 1u32.. {
            term = ((term * &x) >> places) / n;
            if term.is_zero() {
                break;
            }
            sum += &term;
        }
        for _ in 0..HALVINGS {
            sum = (&sum * &sum) >> places;
        }
        sum >>= GUARD;
        Some(Self(if k >= 0 { sum << k } else { sum >> -k }))
    }

    /// The natural logarithm of a positive number.
    pub fn ln(&self) -> Option<Self> {
        if self.is_negative() || self.is_zero() {
            return None;
        }
        // x = m 2^k with m in [1, 2); y = the double of ln m; ln m = y + ln(m e^-y), the last within 1e-15 of zero
        let k = self.bits() as i64 - PLACES as i64 - 1;
        let m = Self(if k >= 0 { &self.0 >> k } else { &self.0 << -k });
        let guess = Self::from_f64(m.to_f64().ln())?;
        let ratio = m.mul(&guess.neg().exp()?)?;
        let small = Self(ratio.0 - (BigInt::one() << PLACES));
        let (mut power, mut sum) = (small.0.clone(), BigInt::zero());
        for n in 1i32..40 {
            sum += &power / if n % 2 == 1 { n } else { -n };
            power = (power * &small.0) >> PLACES;
            if power.is_zero() || power == -BigInt::one() {
                break;
            }
        }
        Some(Self(guess.0 + sum + &LN_2.0 * k))
    }

    /// Sine and cosine.
    pub fn sin_cos(&self) -> Option<(Self, Self)> {
        if self.bits() > PLACES + 64 {
            return None;
        }
        let quarter: BigInt = &PI.0 >> 1;
        let centred: BigInt = &self.0 + (&quarter >> 1);
        let turns = centred.div_floor(&quarter);
        let x: BigInt = &self.0 - &turns * &quarter;
        let square = (&x * &x) >> PLACES;
        let series = |first: BigInt, from: u32| {
            let (mut term, mut sum) = (first.clone(), first);
            let mut n = from;
            loop {
                term = -((term * &square) >> PLACES) / (n * (n + 1));
                if term.is_zero() || n > 400 {
                    return sum;
                }
                sum += &term;
                n += 2;
            }
        };
        let clean = |value: BigInt| {
            Self(if value.bits() < NOISE {
                BigInt::zero()
            } else {
                value
            })
        };
        let sin = clean(series(x.clone(), 2));
        let cos = clean(series(BigInt::one() << PLACES, 1));
        let quadrant = turns.mod_floor(&BigInt::from(4)).to_u8()?;
        Some(match quadrant {
            0 => (sin, cos),
            1 => (cos, sin.neg()),
            2 => (sin.neg(), cos.neg()),
            _ => (cos.neg(), sin),
        })
    }

    pub fn arctan(&self) -> Option<Self> {
        if self.is_zero() {
            return Some(Self::zero());
        }
        // y = the double of arctan x; arctan x = y + arctan((x cos y - sin y) / (cos y + x sin y))
        let guess = Self::from_f64(self.to_f64().atan())?;
        let (sin, cos) = guess.sin_cos()?;
        let raw = |a: &Self, b: &Self| (&a.0 * &b.0) >> PLACES;
        let above = raw(self, &cos) - &sin.0;
        let below = cos.0 + raw(self, &sin);
        if below.is_zero() {
            return None;
        }
        let small: BigInt = (above << PLACES) / below;
        let square = (&small * &small) >> PLACES;
        let (mut power, mut sum) = (small.clone(), small);
        for n in 1i32..20 {
            power = -((power * &square) >> PLACES);
            sum += &power / (2 * n + 1);
        }
        Some(Self(guess.0 + sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(text: &str) -> Fixed {
        Fixed::from_rational(&Rational::from_decimal(text).unwrap()).unwrap()
    }

    fn near(a: &Fixed, b: &Fixed) -> bool {
        a.sub(b).bits() < 140
    }

    #[test]
    fn functions_undo_each_other() {
        for text in ["0.1", "0.75", "1", "1.9", "2.5", "17.25", "40"] {
            let x = fixed(text);
            assert!(near(&x.exp().unwrap().ln().unwrap(), &x), "{text}");
            let root = x.sqrt().unwrap();
            assert!(near(&root.mul(&root).unwrap(), &x), "{text}");
            let (sin, cos) = x.sin_cos().unwrap();
            let one = sin.mul(&sin).unwrap().add(&cos.mul(&cos).unwrap());
            assert!(near(&one, &fixed("1")), "{text}");
            let (sin, cos) = x.arctan().unwrap().sin_cos().unwrap();
            assert!(near(&sin.div(&cos).unwrap(), &x), "{text}");
        }
        assert!(near(&fixed("1").exp().unwrap(), &Fixed::e()));
        assert!(near(
            &fixed("1").arctan().unwrap().mul(&fixed("4")).unwrap(),
            &Fixed::pi()
        ));
        assert!(Fixed::pi().sin_cos().unwrap().0.is_zero());
        assert!((Fixed::pi().to_f64() - std::f64::consts::PI).abs() < 1e-15);
        assert!((fixed("3").neg().to_f64() + 3.0).abs() < 1e-15);
    }

    #[test]
    fn what_is_out_of_range_has_no_value() {
        assert!(fixed("1000000").exp().is_none());
        assert!(fixed("1000").neg().exp().is_none());
        assert!(Fixed::zero().ln().is_none());
        assert!(fixed("1").neg().sqrt().is_none());
        assert!(fixed("1").div(&Fixed::zero()).is_none());
    }
}
