//! Equations, inequalities and the other relations of an answer: which of them say the same. Two equations do where their
//! sides differ by a constant factor, or where both give every letter the same value.

use super::compare::Rules;
use super::exact::substituted;
use super::expr::{Expr, Relation};
use super::{scalar, sets};

impl Rules<'_> {
    /// The value that a predicted equation gives: its last side, where the first is a name or is equal to it.
    pub(super) fn value_of_equation<'e>(&self, sides: &'e [Expr]) -> Option<&'e Expr> {
        let (first, last) = (&sides[0], &sides[sides.len() - 1]);
        let consistent = || first.is_scalar() && last.is_scalar() && self.scalars(first, last);
        ((is_named(first) || self.converted || consistent()) && self.closes(sides)).then_some(last)
    }

    /// Whether the numbers of a chain such as `m + n = 12 + 1 = 13` are equal; `x = 6 = 5` says nothing.
    pub(super) fn closes(&self, sides: &[Expr]) -> bool {
        let last = &sides[sides.len() - 1];
        let number = |side: &Expr| side.is_scalar() && !side.has_symbols();
        self.converted
            || !number(last)
            || sides[1..]
                .iter()
                .all(|side| !number(side) || self.scalars(last, side))
    }

    pub(super) fn equations(&self, g: &[Expr], p: &[Expr]) -> bool {
        let (g_left, g_right) = (&g[0], &g[g.len() - 1]);
        let (p_left, p_right) = (&p[0], &p[p.len() - 1]);
        // f(x) = ... and f(y) = ...: the letter is bound
        if let (Expr::Apply(gf, ga), Expr::Apply(pf, pa)) = (g_left, p_left)
            && gf == pf
            && let ([Expr::Symbol(gx)], [Expr::Symbol(px)]) = (&ga[..], &pa[..])
        {
            let renamed = substituted(p_right, px, &Expr::Symbol(gx.clone()), self.budget);
            return renamed.is_some_and(|p_right| self.equal(g_right, &p_right));
        }
        if self.equal(g_left, p_left) && self.equal(g_right, p_right) {
            return true;
        }
        if ![g_left, g_right, p_left, p_right]
            .into_iter()
            .all(Expr::is_scalar)
        {
            return self.equal(g_left, p_right) && self.equal(g_right, p_left);
        }
        let (g, p) = (difference(g_left, g_right), difference(p_left, p_right));
        if !g.has_symbols() || !p.has_symbols() {
            return false;
        }
        scalar::proportion(&g, &p, self.budget).is_some() || self.same_solution(&g, &p)
    }

    /// Whether both expressions are linear in a letter and vanish at the same value of it.
    pub(super) fn same_solution(&self, g: &Expr, p: &Expr) -> bool {
        let mut names = Vec::new();
        g.any(&mut |part| {
            if let Expr::Symbol(name) = part
                && !names.contains(name)
                && names.len() < 6
            {
                names.push(name.clone());
            }
            false
        });
        let root = |expr: &Expr, name: &str| {
            let at = |n: i64| substituted(expr, name, &Expr::integer(n), self.budget);
            let (zero, one, two) = (at(0)?, at(1)?, at(2)?);
            let slope = difference(&one, &zero);
            let straight = self.scalars(&difference(&two, &one), &slope);
            let flat = self.scalars(&slope, &Expr::integer(0));
            (straight && !flat).then(|| Expr::Div(Box::new(zero), Box::new(slope)))
        };
        // a letter that is a common factor vanishes at zero in both: all letters must agree
        let mut matching = 0;
        for name in &names {
            if let (Some(g), Some(p)) = (root(g, name), root(p, name)) {
                if !self.scalars(&g, &p) {
                    return false;
                }
                matching += 1;
            }
        }
        matching > 0 && scalar::letters(g) == scalar::letters(p)
    }

    pub(super) fn inequalities(&self, gold: &Expr, prediction: &Expr) -> bool {
        let (Some((g, gr)), Some((p, pr))) = (ascending(gold), ascending(prediction)) else {
            return false;
        };
        if gr == pr && self.all_equal(&g, &p) {
            return true;
        }
        if !g.iter().chain(&p).all(Expr::is_scalar) {
            return false;
        }
        if g.len() == 2 && p.len() == 2 {
            let (gd, pd) = (difference(&g[0], &g[1]), difference(&p[0], &p[1]));
            // both are ascending: a positive factor keeps the relation; a negative one turns it
            return gr == pr
                && scalar::proportion(&gd, &pd, self.budget).is_some_and(|c| !c.is_negative());
        }
        sets::same_solutions(gold, prediction, self.budget)
    }

    pub(super) fn other_relations(
        &self,
        g: &[Expr],
        gr: &[Relation],
        p: &[Expr],
        pr: &[Relation],
    ) -> bool {
        if gr == pr && self.all_equal(g, p) {
            return true;
        }
        let different = |r: &[Relation]| r == [Relation::NotEqual];
        if different(gr) && different(pr) && g.iter().chain(p).all(Expr::is_scalar) {
            return scalar::proportion(
                &difference(&g[0], &g[1]),
                &difference(&p[0], &p[1]),
                self.budget,
            )
            .is_some();
        }
        let congruence = |r: &[Relation]| {
            r == [Relation::Congruent, Relation::Modulo] || r == [Relation::Equal, Relation::Modulo]
        };
        if gr == [Relation::Modulo] && pr == [Relation::Modulo] {
            return self.equal(&g[1], &p[1]) && scalar::congruent(&g[0], &p[0], &g[1], self.budget);
        }
        if congruence(gr) && congruence(pr) {
            return self.equal(&g[0], &p[0])
                && self.equal(&g[2], &p[2])
                && scalar::congruent(&g[1], &p[1], &g[2], self.budget);
        }
        false
    }
}

/// Whether the left side of an equation names what the right side is, `f^{-1}(x)` included.
pub fn is_named(side: &Expr) -> bool {
    let inverse = |factors: &[Expr]| match factors {
        [Expr::Pow(function, power), Expr::Symbol(_)] => {
            matches!(&**function, Expr::Symbol(name) if name.len() == 1)
                && **power == Expr::integer(-1)
        }
        _ => false,
    };
    side.is_name() || matches!(side, Expr::Mul(factors) if inverse(factors))
}

/// The 7 of `7 (mod 11)` and of `x ≡ 7 (mod 11)`, where it is the smallest remainder.
pub fn residue(expr: &Expr) -> Option<&Expr> {
    let Expr::Relation(sides, relations) = expr else {
        return None;
    };
    let (rest, modulus) = match (&sides[..], &relations[..]) {
        ([rest, modulus], [Relation::Modulo]) => (rest, modulus),
        ([name, rest, modulus], [Relation::Congruent, Relation::Modulo]) if name.is_name() => {
            (rest, modulus)
        }
        _ => return None,
    };
    let small = |expr: &Expr| match expr {
        Expr::Number(value) => value.to_i64(),
        _ => None,
    };
    matches!((small(rest), small(modulus)), (Some(r), Some(m)) if (0..m).contains(&r))
        .then_some(rest)
}

/// The sides of an equation or chain of equations.
pub fn equation(expr: &Expr) -> Option<&[Expr]> {
    match expr {
        Expr::Relation(sides, relations) if relations.iter().all(|r| *r == Relation::Equal) => {
            Some(sides)
        }
        _ => None,
    }
}

pub fn is_equation(expr: &Expr) -> bool {
    equation(expr).is_some()
}

pub fn is_member(expr: &Expr) -> bool {
    matches!(expr, Expr::Relation(_, relations) if *relations == [Relation::In])
}

/// Whether it is an inequality or a chain with one.
pub fn is_order(expr: &Expr) -> bool {
    matches!(expr, Expr::Relation(_, relations) if relations.iter().any(|r| r.is_order())
        && relations.iter().all(|r| r.is_order() || *r == Relation::Equal || *r == Relation::NotEqual))
}

pub fn is_unequal(expr: &Expr) -> bool {
    matches!(expr, Expr::Relation(_, relations) if *relations == [Relation::NotEqual])
}

/// The inequality of a set `{x | ...}` of numbers.
pub fn condition(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Builder(letter, condition)
            if matches!(**letter, Expr::Symbol(_)) && is_order(condition) =>
        {
            Some(condition)
        }
        _ => None,
    }
}

pub fn difference(a: &Expr, b: &Expr) -> Expr {
    Expr::Add(vec![a.clone(), Expr::Neg(Box::new(b.clone()))])
}

/// A chain of inequalities with the small side first.
pub fn ascending(expr: &Expr) -> Option<(Vec<Expr>, Vec<Relation>)> {
    let Expr::Relation(sides, relations) = expr else {
        return None;
    };
    let first = relations.iter().find(|r| r.is_order())?;
    if matches!(first, Relation::Less | Relation::LessEqual) {
        return Some((sides.clone(), relations.clone()));
    }
    Some((
        sides.iter().rev().cloned().collect(),
        relations.iter().rev().map(|r| r.flipped()).collect(),
    ))
}

/// Of `x = 1/3 ≈ 0.33` the part before the approximation; `x ≈ 11` as an equation; of `a ⇒ b` the part after.
pub fn without_approximation(sides: &[Expr], relations: &[Relation]) -> Expr {
    let (mut sides, mut relations) = (sides.to_vec(), relations.to_vec());
    if let Some(at) = relations.iter().rposition(|r| *r == Relation::Arrow)
        && relations.len() > 1
    {
        sides.drain(..=at);
        relations.drain(..=at);
    }
    if relations.first() == Some(&Relation::Approx) && sides[0].is_name() {
        relations[0] = Relation::Equal;
    }
    // `4 ≈ 5` are two numbers
    let literal = matches!(&sides[0], Expr::Number(value) if value.is_integer());
    if let Some(at) = relations.iter().position(|r| *r == Relation::Approx)
        && !literal
    {
        sides.truncate(at + 1);
        relations.truncate(at);
    }
    if relations.is_empty() {
        return sides.swap_remove(0);
    }
    Expr::Relation(sides, relations)
}
