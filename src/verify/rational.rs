//! Exact rational numbers of bounded size. An operation whose result would be too large answers None, so that no input
//! costs more than a little time and memory.

use num_bigint::{BigInt, BigUint};
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};
use std::cmp::Ordering;

/// Numerators and denominators never take more bits than this.
const MAX_BITS: u64 = 16_384;
/// Longer numerals are not numbers to compare.
pub const MAX_DIGITS: usize = 4_000;

/// A fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rational {
    numerator: BigInt,
    denominator: BigInt,
}

impl Rational {
    /// `numerator / denominator`; None for a division by zero or an oversized value.
    pub fn new(numerator: BigInt, denominator: BigInt) -> Option<Self> {
        if denominator.is_zero() || numerator.bits() > MAX_BITS || denominator.bits() > MAX_BITS {
            return None;
        }
        if denominator.is_one() {
            return Some(Self {
                numerator,
                denominator,
            });
        }
        let gcd = numerator.gcd(&denominator);
        let gcd = if denominator.is_negative() { -gcd } else { gcd };
        Some(Self {
            numerator: numerator / &gcd,
            denominator: denominator / gcd,
        })
    }

    pub fn integer(value: i64) -> Self {
        Self::from_int(BigInt::from(value))
    }

    pub fn from_int(value: BigInt) -> Self {
        Self {
            numerator: value,
            denominator: BigInt::one(),
        }
    }

    /// Unsigned decimal digits with at most one point, as `12.50`.
    pub fn from_decimal(text: &str) -> Option<Self> {
        let (whole, places) = text.split_once('.').unwrap_or((text, ""));
        if whole.len() + places.len() > MAX_DIGITS || whole.len() + places.len() == 0 {
            return None;
        }
        if places.is_empty() && whole.len() < 18 {
            return whole.parse::<i64>().ok().map(Self::integer);
        }
        let digits = [whole, places].concat();
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let value = BigInt::from(BigUint::parse_bytes(digits.as_bytes(), 10)?);
        Self::new(value, BigInt::from(10).pow(places.len() as u32))
    }

    /// A double as the fraction it is; None for what is not finite.
    pub fn from_f64(value: f64) -> Option<Self> {
        if !value.is_finite() || value.abs() > 1e15 {
            return None;
        }
        const SCALE: i64 = 1 << 20;
        Self::new(
            BigInt::from((value * SCALE as f64).round() as i128),
            BigInt::from(SCALE),
        )
    }

    pub fn numerator(&self) -> &BigInt {
        &self.numerator
    }

    pub fn denominator(&self) -> &BigInt {
        &self.denominator
    }

    pub fn is_zero(&self) -> bool {
        self.numerator.is_zero()
    }

    pub fn is_one(&self) -> bool {
        self.numerator.is_one() && self.denominator.is_one()
    }

    pub fn is_integer(&self) -> bool {
        self.denominator.is_one()
    }

    pub fn is_negative(&self) -> bool {
        self.numerator.is_negative()
    }

    /// The value as a small integer, where it is one.
    pub fn to_i64(&self) -> Option<i64> {
        if self.is_integer() {
            self.numerator.to_i64()
        } else {
            None
        }
    }

    /// The nearest double; 0 or infinite where it is out of range.
    pub fn to_f64(&self) -> f64 {
        if let (Some(n), Some(d)) = (self.numerator.to_i64(), self.denominator.to_i64()) {
            return n as f64 / d as f64;
        }
        // keep 64 significant bits of each, and the exponents apart
        let part = |value: &BigInt| {
            let shift = value.bits().saturating_sub(64);
            ((value >> shift).to_f64().unwrap_or(0.0), shift as i32)
        };
        let ((n, above), (d, below)) = (part(&self.numerator), part(&self.denominator));
        let power = (above - below).clamp(-1060, 1060);
        n / d * 2f64.powi(power / 2) * 2f64.powi(power - power / 2)
    }

    pub fn neg(&self) -> Self {
        Self {
            numerator: -&self.numerator,
            denominator: self.denominator.clone(),
        }
    }

    pub fn abs(&self) -> Self {
        Self {
            numerator: self.numerator.abs(),
            denominator: self.denominator.clone(),
        }
    }

    pub fn add(&self, other: &Self) -> Option<Self> {
        if self.is_integer() && other.is_integer() {
            return Self::new(&self.numerator + &other.numerator, BigInt::one());
        }
        Self::new(
            &self.numerator * &other.denominator + &other.numerator * &self.denominator,
            &self.denominator * &other.denominator,
        )
    }

    pub fn sub(&self, other: &Self) -> Option<Self> {
        self.add(&other.neg())
    }

    pub fn mul(&self, other: &Self) -> Option<Self> {
        Self::new(
            &self.numerator * &other.numerator,
            &self.denominator * &other.denominator,
        )
    }

    pub fn div(&self, other: &Self) -> Option<Self> {
        Self::new(
            &self.numerator * &other.denominator,
            &self.denominator * &other.numerator,
        )
    }

    /// `self^exponent` for an integer exponent; None for 0^-n and for results that are too large.
    pub fn pow(&self, exponent: i64) -> Option<Self> {
        let times = exponent.unsigned_abs();
        let bits = self.numerator.bits().max(self.denominator.bits());
        let small = self.numerator.abs() <= BigInt::one() && self.denominator.is_one();
        if !small && bits.saturating_sub(1).saturating_mul(times) > MAX_BITS {
            return None;
        }
        // -1, 0 and 1 have no size: the parity of the exponent is enough
        let times = if small {
            times.min(2 + times % 2)
        } else {
            times
        };
        let times = u32::try_from(times).ok()?;
        let (n, d) = (self.numerator.pow(times), self.denominator.pow(times));
        if exponent < 0 {
            Self::new(d, n)
        } else {
            Self::new(n, d)
        }
    }

    /// The exact n-th root, where there is one; negative numbers have odd roots.
    pub fn root(&self, n: u32) -> Option<Self> {
        if n == 0 || n > 1000 || (self.is_negative() && n.is_multiple_of(2)) {
            return None;
        }
        let root = |value: &BigInt| {
            let root = value.nth_root(n);
            (root.pow(n) == *value).then_some(root)
        };
        Self::new(root(&self.numerator)?, root(&self.denominator)?)
    }

    /// The greatest integer that is not greater.
    pub fn floor(&self) -> BigInt {
        self.numerator.div_floor(&self.denominator)
    }

    /// Rounded to so many decimal places, half away from zero, times `10^places`.
    pub fn rounded(&self, places: u32) -> BigInt {
        let scaled: BigInt = self.numerator.abs() * BigInt::from(10).pow(places) * 2;
        let below = &self.denominator * 2;
        let rounded: BigInt = (scaled + &self.denominator) / below;
        if self.is_negative() {
            -rounded
        } else {
            rounded
        }
    }
}

impl std::fmt::Display for Rational {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.is_integer() {
            true => write!(f, "{}", self.numerator),
            false => write!(f, "{}/{}", self.numerator, self.denominator),
        }
    }
}

impl PartialOrd for Rational {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rational {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.numerator * &other.denominator).cmp(&(&other.numerator * &self.denominator))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Rational {
        Rational::from_decimal(text).unwrap()
    }

    #[test]
    fn arithmetic_is_exact() {
        let third = Rational::integer(1).div(&Rational::integer(3)).unwrap();
        assert_eq!(third.add(&third).unwrap().add(&third), Some(decimal("1")));
        assert_eq!(decimal("0.50"), Rational::integer(2).pow(-1).unwrap());
        assert_ne!(decimal("0.3333333333"), third);
        assert_eq!(decimal("2.25").root(2), Some(decimal("1.5")));
        assert_eq!(Rational::integer(-8).root(3), Some(Rational::integer(-2)));
        assert_eq!(Rational::integer(2).root(2), None);
        assert_eq!(Rational::integer(1).div(&Rational::integer(0)), None);
        assert_eq!(third.rounded(6), BigInt::from(333_333));
        assert_eq!(decimal("0.5").neg().rounded(0), BigInt::from(-1));
        assert_eq!(decimal("2.5").neg().floor(), BigInt::from(-3));
        assert!((third.to_f64() - 1.0 / 3.0).abs() < 1e-16);
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(Rational::integer(9).pow(387_420_489), None);
        assert_eq!(
            Rational::integer(-1).pow(i64::MAX),
            Some(Rational::integer(-1))
        );
        assert_eq!(Rational::from_decimal(&"7".repeat(100_000)), None);
        assert!(
            Rational::integer(10)
                .pow(400)
                .unwrap()
                .to_f64()
                .is_infinite()
        );
        assert_eq!(Rational::integer(10).pow(-400).unwrap().to_f64(), 0.0);
    }
}
