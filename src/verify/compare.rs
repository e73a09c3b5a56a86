//! When an answer is the gold answer: lists, equations, inequalities, percentages, ratios, matrices and words. The rules
//! are Math-Verify's where they are sound. They are not symmetric: an interval answers a gold inequality, an inequality
//! does not answer a gold interval. Values are compared in [`super::scalar`], sets of numbers in [`super::sets`].

use super::exact::Budget;
use super::expr::{Constant, Expr};
use super::matrix::{components, matrix};
use super::rational::Rational;
use super::relations::{
    condition, equation, is_equation, is_member, is_named, is_order, is_unequal, residue,
    without_approximation,
};
use super::{scalar, sets};

/// Longer lists are only compared in order.
const MAX_UNORDERED: usize = 64;

/// What is compared how.
#[derive(Debug)]
pub struct Rules<'a> {
    /// decimals are rounded to so many places
    pub rounding: u32,
    /// an inequality answers a gold interval
    pub relation_for_set: bool,
    /// the prediction has units: `1 km = 1000 m` is a conversion
    pub converted: bool,
    /// whether "and" and "or" stand between the inequalities of a side
    pub joined: (bool, bool),
    pub budget: &'a Budget,
}

impl Rules<'_> {
    /// Whether `prediction` is the answer `gold`.
    pub fn equal(&self, gold: &Expr, prediction: &Expr) -> bool {
        if gold == prediction {
            return true;
        }
        if self.budget.spend(20).is_none() {
            return false;
        }
        let (gold, prediction) = (self.plain(gold), self.plain(prediction));
        if self.unwrapped_equal(&gold, &prediction) {
            return true;
        }
        // an answer given twice is given once
        match &prediction {
            Expr::List(all) => {
                let distinct = self.distinct(all.clone());
                distinct.len() < all.len()
                    && self.unwrapped_equal(&gold, &self.single(Expr::List(distinct)))
            }
            _ => false,
        }
    }

    pub(super) fn scalars(&self, a: &Expr, b: &Expr) -> bool {
        scalar::equal(a, b, self.rounding, self.budget)
    }

    /// Without what does not change the answer: approximations after it, signs `±`, lists in lists, single elements.
    fn plain(&self, expr: &Expr) -> Expr {
        let expr = match expr {
            Expr::Relation(sides, relations) => without_approximation(sides, relations),
            other => other.clone(),
        };
        match expr {
            // `P(1, 2)` is the point
            Expr::Mul(factors)
                if matches!(&factors[..], [Expr::Symbol(name), Expr::Tuple(_)]
                    if name.starts_with(|c: char| c.is_ascii_uppercase())) =>
            {
                factors[1].clone()
            }
            // `\overline{AB}` is the segment
            Expr::Apply(name, arguments)
                if name == "overline"
                    && matches!(&arguments[..], [Expr::Mul(ends)] if ends.iter().all(is_point)) =>
            {
                arguments[0].clone()
            }
            Expr::List(all) => {
                let flat: Vec<Expr> = all
                    .into_iter()
                    .flat_map(|element| match self.plain(&element) {
                        Expr::List(inner) => inner,
                        other => vec![other],
                    })
                    .collect();
                self.single(Expr::List(grouped(flat)))
            }
            Expr::Set(all) => {
                let flat: Vec<Expr> = all
                    .into_iter()
                    .flat_map(|element| match both_signs(&element) {
                        Some(signs) => signs,
                        None => vec![element],
                    })
                    .collect();
                self.single(Expr::Set(self.distinct(flat)))
            }
            other => match both_signs(&other) {
                Some(signs) => Expr::List(self.distinct(signs)),
                None => other,
            },
        }
    }

    fn single(&self, expr: Expr) -> Expr {
        match expr {
            Expr::List(mut all) | Expr::Set(mut all) if all.len() == 1 => all.remove(0),
            other => other,
        }
    }

    fn distinct(&self, all: Vec<Expr>) -> Vec<Expr> {
        if all.len() > MAX_UNORDERED {
            return all;
        }
        let mut kept: Vec<Expr> = Vec::with_capacity(all.len());
        for element in all {
            let known = kept.iter().any(|k| {
                *k == element || (k.is_scalar() && element.is_scalar() && self.scalars(k, &element))
            });
            if !known {
                kept.push(element);
            }
        }
        kept
    }

    fn unwrapped_equal(&self, gold: &Expr, prediction: &Expr) -> bool {
        if gold == prediction {
            return true;
        }
        match (gold, prediction) {
            (Expr::Relation(g, _), Expr::Relation(p, _))
                if is_member(gold) && is_member(prediction) =>
            {
                return self.equal(&g[0], &p[0]) && self.equal(&g[1], &p[1]);
            }
            (_, Expr::Relation(p, _)) if is_member(prediction) => return self.equal(gold, &p[1]),
            (Expr::Relation(g, _), _) if is_member(gold) && !is_equation(prediction) => {
                if is_order(prediction) && !self.relation_for_set {
                    return false;
                }
                return self.equal(&g[1], prediction);
            }
            _ => {}
        }
        match (equation(gold), equation(prediction)) {
            (Some(g), Some(p)) => return self.equations(g, p),
            (None, Some(p)) => {
                return self
                    .value_of_equation(p)
                    .is_some_and(|value| self.equal(gold, value));
            }
            (Some(g), None) if !is_order(prediction) => {
                let computed = !g[0].has_symbols() && !g[g.len() - 1].has_symbols();
                let named = is_named(&g[0]) || g.len() > 2 || computed;
                return named && self.closes(g) && self.equal(&g[g.len() - 1], prediction);
            }
            _ => {}
        }
        if let Some(condition) = condition(gold)
            && !matches!(prediction, Expr::Builder(..))
        {
            return match is_order(prediction) {
                true => self.relation_for_set && self.inequalities(condition, prediction),
                false => sets::satisfies(condition, prediction, self.budget),
            };
        }
        if let Some(condition) = condition(prediction)
            && !matches!(gold, Expr::Builder(..))
        {
            return match is_order(gold) {
                true => self.inequalities(gold, condition),
                false => sets::satisfies(condition, gold, self.budget),
            };
        }
        match (is_order(gold), is_order(prediction)) {
            (true, true) => return self.inequalities(gold, prediction),
            (true, false) => return sets::satisfies(gold, prediction, self.budget),
            (false, false) if is_unequal(gold) && !matches!(prediction, Expr::Relation(..)) => {
                return sets::satisfies(gold, prediction, self.budget);
            }
            (false, true) => {
                return self.relation_for_set && sets::satisfies(prediction, gold, self.budget);
            }
            // `x < 1 or x > 2` and `x ≠ 2` for sets
            (false, false) if self.relation_for_set && is_set(gold) => match prediction {
                Expr::List(all) if all.iter().all(is_order) => {
                    return sets::any_satisfies(all, gold, self.joined, self.budget);
                }
                _ if is_unequal(prediction) => {
                    return sets::satisfies(prediction, gold, self.budget);
                }
                _ => {}
            },
            _ => {}
        }
        if let (Expr::Relation(g, gr), Expr::Relation(p, pr)) = (gold, prediction) {
            return self.other_relations(g, gr, p, pr);
        }
        if let Some(rest) = residue(gold) {
            return self.equal(rest, prediction);
        }
        if let (Expr::Apply(g, gold), Expr::Apply(p, prediction)) = (gold, prediction)
            && g == "cases"
            && p == "cases"
        {
            return self.all_equal(gold, prediction);
        }
        if let Some(verdict) = self.percentages(gold, prediction) {
            return verdict;
        }
        if let Some(verdict) = self.collections(gold, prediction) {
            return verdict;
        }
        if let Some(verdict) = self.ratios(gold, prediction) {
            return verdict;
        }
        if let (Some(g), Some(p)) = (matrix(gold), matrix(prediction)) {
            return g.len() == p.len() && g.iter().zip(&p).all(|(g, p)| self.all_equal(g, p));
        }
        if let Some(verdict) = self.words(gold, prediction) {
            return verdict;
        }
        if let (Expr::Builder(gv, gc), Expr::Builder(pv, pc)) = (gold, prediction) {
            return self.equal(gv, pv) && self.equal(gc, pc);
        }
        if let (Expr::Based(gd, gb), Expr::Based(pd, pb)) = (gold, prediction) {
            return gb == pb && gd.eq_ignore_ascii_case(pd);
        }
        // the digits without the base that was asked for; in another base they are another number
        match (gold, prediction) {
            (Expr::Based(digits, _), Expr::Number(value)) => return value.to_string() == *digits,
            (gold, Expr::Based(digits, 10)) => {
                let value = Rational::from_decimal(digits).map(Expr::Number);
                return value.is_some_and(|value| self.equal(gold, &value));
            }
            (_, Expr::Based(..)) => return false,
            _ => {}
        }
        if !gold.is_scalar() || !prediction.is_scalar() {
            return false;
        }
        match (gold, prediction) {
            (Expr::Degree(angle), other) | (other, Expr::Degree(angle)) if has_pi(other) => {
                self.scalars(&radians(angle), other)
            }
            _ => self.scalars(gold, prediction),
        }
    }

    pub(super) fn all_equal(&self, gold: &[Expr], prediction: &[Expr]) -> bool {
        gold.len() == prediction.len() && gold.iter().zip(prediction).all(|(g, p)| self.equal(g, p))
    }

    /// `28%` is 28 and 28/100.
    fn percentages(&self, gold: &Expr, prediction: &Expr) -> Option<bool> {
        let inner = |expr: &Expr| match expr {
            Expr::Percent(inner) => Some((**inner).clone()),
            Expr::Neg(inner) => match &**inner {
                Expr::Percent(inner) => Some(Expr::Neg(inner.clone())),
                _ => None,
            },
            _ => None,
        };
        match (inner(gold), inner(prediction)) {
            (Some(g), Some(p)) => Some(self.equal(&g, &p)),
            (Some(g), None) => {
                Some(self.equal(&g, prediction) || self.equal(&hundredth(&g), prediction))
            }
            (None, Some(p)) => Some(self.equal(gold, &p) || self.equal(gold, &hundredth(&p))),
            (None, None) => None,
        }
    }

    /// Lists, sets, points and intervals; None where neither side is one.
    fn collections(&self, gold: &Expr, prediction: &Expr) -> Option<bool> {
        let is_collection = |expr: &Expr| {
            matches!(
                expr,
                Expr::List(_)
                    | Expr::Set(_)
                    | Expr::Tuple(_)
                    | Expr::Interval(..)
                    | Expr::Sets(..)
                    | Expr::NamedSet(_)
                    | Expr::Empty
            )
        };
        if !is_collection(gold) && !is_collection(prediction) {
            return None;
        }
        // a point as a column
        let column = |expr: &Expr| match expr {
            Expr::Matrix(rows) if rows.iter().all(|row| row.len() == 1) => {
                Some(rows.iter().map(|row| row[0].clone()).collect::<Vec<_>>())
            }
            Expr::Matrix(rows) if rows.len() == 1 => Some(rows[0].clone()),
            _ => None,
        };
        Some(match (gold, prediction) {
            (Expr::List(g), p)
                if g.iter().any(is_order) && !matches!(p, Expr::List(_) | Expr::Set(_)) =>
            {
                sets::any_satisfies(g, p, self.joined, self.budget)
            }
            (Expr::Tuple(g), Expr::Tuple(p)) => self.all_equal(g, p),
            (Expr::Tuple(g), Expr::List(p)) => self.all_equal(g, p),
            // a list of solutions is no interval
            (Expr::List(g), Expr::Tuple(p)) => {
                (p.len() > 2 || named(g) || self.descend(p)) && self.all_equal(g, p)
            }
            // `x = 1, y = 2` answered by values alone: in the same order
            (Expr::List(g), Expr::List(p)) if named(g) && !p.iter().any(is_equation) => {
                self.all_equal(g, p)
            }
            (Expr::List(g), Expr::Set(p)) if named(g) && !p.iter().any(is_equation) => false,
            (Expr::List(g) | Expr::Set(g), Expr::List(p) | Expr::Set(p)) => {
                self.unordered_equal(g, p)
                    || (g.iter().any(is_order)
                        && sets::any_satisfies(g, prediction, self.joined, self.budget))
            }
            (Expr::Tuple(g), p) | (p, Expr::Tuple(g)) if matches!(p, Expr::Matrix(_)) => {
                column(p).is_some_and(|p| self.all_equal(g, &p))
            }
            (Expr::Tuple(g), p) if p.is_scalar() => {
                let zero = Expr::integer(0);
                components(p).is_some_and(|p| match g.len() {
                    2 => self.all_equal(g, &p[..2]) && self.equal(&zero, &p[2]),
                    _ => self.all_equal(g, &p),
                })
            }
            (Expr::NamedSet(a), Expr::NamedSet(b)) => a == b,
            _ => sets::same(gold, prediction, self),
        })
    }

    /// Whether two numbers are no ends of an interval: the first is not the smaller one.
    fn descend(&self, pair: &[Expr]) -> bool {
        let ends: Vec<_> = pair
            .iter()
            .map(|end| scalar::approximate(end, self.budget))
            .collect();
        !matches!(ends[..], [Some(low), Some(high)] if low < high)
    }

    /// Whether the elements are equal in some order.
    pub fn unordered_equal(&self, gold: &[Expr], prediction: &[Expr]) -> bool {
        if gold.len() != prediction.len() {
            return false;
        }
        if gold.len() > MAX_UNORDERED {
            return self.all_equal(gold, prediction);
        }
        let mut used = vec![false; prediction.len()];
        gold.iter().enumerate().all(|(i, g)| {
            // the element in the same place first
            let order = std::iter::once(i).chain(0..prediction.len());
            for j in order {
                if !used[j] && self.equal(g, &prediction[j]) {
                    used[j] = true;
                    return true;
                }
            }
            false
        })
    }

    /// `7:32`, `14:64` and 7/32; times of day are no ratios.
    fn ratios(&self, gold: &Expr, prediction: &Expr) -> Option<bool> {
        match (gold, prediction) {
            (Expr::Ratio(g), Expr::Ratio(p)) => {
                if self.all_equal(g, p) {
                    return Some(true);
                }
                let zero =
                    |terms: &[Expr]| terms.iter().any(|t| self.scalars(t, &Expr::integer(0)));
                if g.len() != p.len()
                    || zero(g)
                    || zero(p)
                    || !g.iter().chain(p).all(Expr::is_scalar)
                {
                    return Some(false);
                }
                if is_time(g) && (is_time(p) || !in_lowest_terms(g, self.budget)) {
                    return Some(false);
                }
                let cross = |i: usize| {
                    let left = Expr::Mul(vec![g[0].clone(), p[i].clone()]);
                    let right = Expr::Mul(vec![p[0].clone(), g[i].clone()]);
                    self.scalars(&left, &right)
                };
                Some((1..g.len()).all(cross))
            }
            (Expr::Ratio(terms), other) | (other, Expr::Ratio(terms)) => {
                let [above, below] = &terms[..] else {
                    return Some(false);
                };
                let quotient = Expr::Div(Box::new(above.clone()), Box::new(below.clone()));
                Some(other.is_scalar() && quotient.is_scalar() && self.scalars(&quotient, other))
            }
            _ => None,
        }
    }

    /// Names and words; None where neither side is one.
    fn words(&self, gold: &Expr, prediction: &Expr) -> Option<bool> {
        let is_text = |expr: &Expr| matches!(expr, Expr::Text(_));
        if !is_text(gold) && !is_text(prediction) {
            return None;
        }
        let (Some(g), Some(p)) = (spelled(gold), spelled(prediction)) else {
            return Some(false);
        };
        Some(if g.chars().count() > 1 && p.chars().count() > 1 {
            g.to_lowercase() == p.to_lowercase()
        } else {
            g == p
        })
    }
}

fn has_pi(expr: &Expr) -> bool {
    expr.any(&mut |part| *part == Expr::Constant(Constant::Pi))
}

/// An angle in degrees as one in radians.
fn radians(degrees: &Expr) -> Expr {
    let turn = Expr::Div(
        Box::new(Expr::Constant(Constant::Pi)),
        Box::new(Expr::integer(180)),
    );
    Expr::Mul(vec![degrees.clone(), turn])
}

/// Whether an expression is the name of a point.
fn is_point(expr: &Expr) -> bool {
    matches!(expr, Expr::Symbol(name) if name.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Whether an expression is a set of numbers that an inequality may describe.
fn is_set(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Interval(..) | Expr::Sets(..) | Expr::NamedSet(_) | Expr::Tuple(_)
    )
}

/// The letters of a word, however it was written.
fn spelled(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Text(text) => Some(
            text.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .trim_matches(['(', ')', '.'])
                .to_string(),
        ),
        Expr::Symbol(name) => Some(name.clone()),
        Expr::Constant(Constant::E) => Some("e".into()),
        Expr::Constant(Constant::I) => Some("i".into()),
        Expr::Mul(factors) => factors.iter().map(spelled).collect::<Option<String>>(),
        _ => None,
    }
}

/// Whether two numbers may be hours and minutes.
fn is_time(terms: &[Expr]) -> bool {
    let small = |expr: &Expr| match expr {
        Expr::Number(value) => value.to_i64(),
        _ => None,
    };
    match terms {
        [hours, minutes] => matches!(
            (small(hours), small(minutes)),
            (Some(0..=24), Some(0 | 10..=59))
        ),
        _ => false,
    }
}

fn in_lowest_terms(terms: &[Expr], budget: &Budget) -> bool {
    let gcd = Expr::Function(super::expr::Function::Gcd, terms.to_vec());
    super::exact::exact(&gcd, budget).is_some_and(|gcd| gcd.is_one())
}

fn hundredth(expr: &Expr) -> Expr {
    let hundred = Rational::integer(100);
    match expr {
        Expr::Decimal(value) => value.div(&hundred).map_or(Expr::Empty, Expr::Decimal),
        other => Expr::Div(Box::new(other.clone()), Box::new(Expr::Number(hundred))),
    }
}

/// Both values of an expression with `±`; None without one or with too many.
fn both_signs(expr: &Expr) -> Option<Vec<Expr>> {
    let (mut count, mut reversed) = (0, false);
    expr.any(&mut |part| {
        if let Expr::PlusMinus(_, flag) = part {
            count += 1;
            reversed |= flag;
        }
        false
    });
    if count == 0 || count > 4 {
        return None;
    }
    // with `∓` the signs go together; else each is free
    let choices: Vec<u32> = if reversed {
        vec![0, (1 << count) - 1]
    } else {
        (0..1 << count).collect()
    };
    Some(
        choices
            .into_iter()
            .map(|bits| {
                let mut seen = 0;
                signed(expr, bits, &mut seen)
            })
            .collect(),
    )
}

fn signed(expr: &Expr, bits: u32, seen: &mut u32) -> Expr {
    if let Expr::PlusMinus(inner, reversed) = expr {
        let minus = (bits >> *seen & 1 == 1) != *reversed;
        *seen += 1;
        let inner = signed(inner, bits, seen);
        return if minus {
            Expr::Neg(Box::new(inner))
        } else {
            inner
        };
    }
    expr.map_children(&mut |child| signed(child, bits, seen))
}

/// Whether a list gives values to different names; `x_1` and `x_2` are two solutions of one.
fn named(all: &[Expr]) -> bool {
    let name = |element: &Expr| match equation(element) {
        Some([Expr::Symbol(name), ..]) => name
            .strip_prefix('x')
            .filter(|index| index.starts_with('_'))
            .map_or(Some(name.clone()), |_| Some("x".to_string())),
        _ => None,
    };
    let names: Option<Vec<String>> = all.iter().map(name).collect();
    names.is_some_and(|names| names.windows(2).any(|pair| pair[0] != pair[1]))
}

/// `p=5, q=2, p=7, q=2` as two points, where the names repeat.
fn grouped(all: Vec<Expr>) -> Vec<Expr> {
    let names: Option<Vec<&Expr>> = all
        .iter()
        .map(|element| {
            equation(element)
                .map(|sides| &sides[0])
                .filter(|name| name.is_name())
        })
        .collect();
    let Some(names) = names else { return all };
    let Some(period) =
        (2..names.len()).find(|n| names.len().is_multiple_of(*n) && names[*n] == names[0])
    else {
        return all;
    };
    if names
        .iter()
        .enumerate()
        .any(|(i, name)| *name != names[i % period])
    {
        return all;
    }
    all.chunks(period)
        .map(|chunk| Expr::Tuple(chunk.to_vec()))
        .collect()
}
