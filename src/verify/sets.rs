//! Sets of real numbers: unions of intervals and points, and the inequalities that describe them. An inequality is
//! compared with a set by asking, at every boundary of both, beside it and between, whether the number belongs.

use super::compare::Rules;
use super::exact::Budget;
use super::expr::{Constant, Expr, Relation, SetOperation};
use super::scalar::{approximate, value_at};

const MAX_PIECES: usize = 200;

/// One interval or, with equal closed ends, one number. The doubles order the ends, the expressions are compared.
#[derive(Debug, Clone)]
struct Piece {
    low: (f64, Expr),
    high: (f64, Expr),
    low_open: bool,
    high_open: bool,
}

impl Piece {
    fn holds(&self, x: f64) -> bool {
        let near = |a: f64, b: f64| a == b || (a - b).abs() <= 1e-9 * a.abs().max(1.0);
        let above = if near(x, self.low.0) {
            !self.low_open
        } else {
            x > self.low.0
        };
        let below = if near(x, self.high.0) {
            !self.high_open
        } else {
            x < self.high.0
        };
        above && below
    }

    fn is_empty(&self) -> bool {
        self.low.0 > self.high.0 || (self.low.0 == self.high.0 && (self.low_open || self.high_open))
    }
}

/// The pieces of a set in ascending order; None where it is no set of real numbers with known ends.
fn pieces(expr: &Expr, budget: &Budget) -> Option<Vec<Piece>> {
    let end = |expr: &Expr| Some((approximate(expr, budget)?, expr.clone()));
    let piece = |low: &Expr, high: &Expr, low_open: bool, high_open: bool| {
        let (low, high) = (end(low)?, end(high)?);
        Some(Piece {
            low_open: low_open || low.0.is_infinite(),
            high_open: high_open || high.0.is_infinite(),
            low,
            high,
        })
    };
    let all = match expr {
        // ends the wrong way round are a pair, and no empty set
        Expr::Interval(low, high) => {
            let piece = piece(&low.at, &high.at, low.open, high.open)?;
            (!piece.is_empty()).then(|| vec![piece])?
        }
        Expr::Tuple(ends) if ends.len() == 2 => {
            let piece = piece(&ends[0], &ends[1], true, true)?;
            (!piece.is_empty()).then(|| vec![piece])?
        }
        Expr::Set(all) => all
            .iter()
            .map(|x| piece(x, x, false, false))
            .collect::<Option<_>>()?,
        Expr::Empty => Vec::new(),
        Expr::NamedSet('R') => whole_line(),
        Expr::Sets(operation, all) => {
            let mut parts = all.iter().map(|part| pieces(part, budget));
            let first = parts.next()??;
            parts.try_fold(first, |left, right| {
                let right = right?;
                Some(match operation {
                    SetOperation::Union => left.into_iter().chain(right).collect(),
                    SetOperation::Intersection => intersection(&left, &right),
                    SetOperation::Difference => intersection(&left, &complement(right)),
                })
            })?
        }
        _ => return None,
    };
    (all.len() <= MAX_PIECES).then(|| merged(all))
}

fn infinity(positive: bool) -> (f64, Expr) {
    let constant = Expr::Constant(Constant::Infinity);
    if positive {
        (f64::INFINITY, constant)
    } else {
        (f64::NEG_INFINITY, Expr::Neg(Box::new(constant)))
    }
}

fn whole_line() -> Vec<Piece> {
    vec![Piece {
        low: infinity(false),
        high: infinity(true),
        low_open: true,
        high_open: true,
    }]
}

/// In order, with touching pieces joined.
fn merged(mut all: Vec<Piece>) -> Vec<Piece> {
    all.retain(|piece| !piece.is_empty());
    all.sort_by(|a, b| {
        a.low
            .0
            .total_cmp(&b.low.0)
            .then(a.low_open.cmp(&b.low_open))
    });
    let mut out: Vec<Piece> = Vec::with_capacity(all.len());
    for piece in all {
        if let Some(last) = out.last_mut()
            && (piece.low.0 < last.high.0
                || (piece.low.0 == last.high.0 && !(piece.low_open && last.high_open)))
        {
            if piece.high.0 > last.high.0 {
                (last.high, last.high_open) = (piece.high, piece.high_open);
            } else if piece.high.0 == last.high.0 {
                last.high_open &= piece.high_open;
            }
            continue;
        }
        out.push(piece);
    }
    out
}

fn intersection(a: &[Piece], b: &[Piece]) -> Vec<Piece> {
    let mut out = Vec::new();
    for x in a {
        for y in b {
            if out.len() > MAX_PIECES {
                return out;
            }
            let mut both = x.clone();
            if y.low.0 > x.low.0 || (y.low.0 == x.low.0 && y.low_open) {
                (both.low, both.low_open) = (y.low.clone(), y.low_open);
            }
            if y.high.0 < x.high.0 || (y.high.0 == x.high.0 && y.high_open) {
                (both.high, both.high_open) = (y.high.clone(), y.high_open);
            }
            if !both.is_empty() {
                out.push(both);
            }
        }
    }
    out
}

fn complement(all: Vec<Piece>) -> Vec<Piece> {
    let mut out = Vec::new();
    let (mut low, mut low_open) = (infinity(false), true);
    for piece in merged(all) {
        out.push(Piece {
            low,
            low_open,
            high: piece.low.clone(),
            high_open: !piece.low_open,
        });
        (low, low_open) = (piece.high, !piece.high_open);
    }
    out.push(Piece {
        low,
        low_open,
        high: infinity(true),
        high_open: true,
    });
    out.retain(|piece| !piece.is_empty());
    out
}

/// Whether two sets are the same: piece by piece, or part by part where their ends are formulas.
pub fn same(gold: &Expr, prediction: &Expr, rules: &Rules) -> bool {
    if let (Some(g), Some(p)) = (pieces(gold, rules.budget), pieces(prediction, rules.budget)) {
        return g.len() == p.len()
            && g.iter().zip(&p).all(|(g, p)| {
                g.low_open == p.low_open
                    && g.high_open == p.high_open
                    && rules.equal(&g.low.1, &p.low.1)
                    && rules.equal(&g.high.1, &p.high.1)
            });
    }
    match (gold, prediction) {
        (Expr::Interval(gl, gh), Expr::Interval(pl, ph)) => {
            gl.open == pl.open
                && gh.open == ph.open
                && rules.equal(&gl.at, &pl.at)
                && rules.equal(&gh.at, &ph.at)
        }
        (Expr::Interval(gl, gh), Expr::Tuple(p)) | (Expr::Tuple(p), Expr::Interval(gl, gh)) => {
            gl.open
                && gh.open
                && p.len() == 2
                && rules.equal(&gl.at, &p[0])
                && rules.equal(&gh.at, &p[1])
        }
        (Expr::Sets(go, g), Expr::Sets(po, p)) if go == po => match go {
            SetOperation::Difference => {
                g.len() == p.len() && g.iter().zip(p).all(|(g, p)| rules.equal(g, p))
            }
            _ => rules.unordered_equal(g, p),
        },
        _ => false,
    }
}

/// The only letter of an expression, be it applied to something or not; None where there are several.
fn letter(expr: &Expr) -> Option<String> {
    let mut found: Option<String> = None;
    let mut several = false;
    expr.any(&mut |part| {
        if let Expr::Symbol(name) = part {
            several |= found.as_ref().is_some_and(|known| known != name);
            found = Some(name.clone());
        }
        false
    });
    if several { None } else { found }
}

/// `f(x)` as a letter of its own: `0 < f(x) < 1` speaks of the values of f.
fn named(expr: &Expr) -> Expr {
    match expr {
        Expr::Apply(name, arguments) => Expr::Symbol(format!("{name}{arguments:?}")),
        other => other.map_children(&mut named),
    }
}

/// Numbers to ask about: all constants, what is beside them, and a grid.
fn samples(exprs: &[&Expr], ends: &[f64], budget: &Budget) -> Vec<f64> {
    let mut marks: Vec<f64> = ends.iter().copied().filter(|x| x.is_finite()).collect();
    for expr in exprs {
        expr.any(&mut |part| {
            if marks.len() < 60
                && !matches!(part, Expr::Relation(..) | Expr::List(_))
                && let Some(value) = approximate(part, budget)
                && value.is_finite()
            {
                marks.extend([value, -value]);
            }
            false
        });
    }
    let mut all = Vec::new();
    for mark in marks {
        let step = 1e-4 * mark.abs().max(1.0);
        all.extend([mark, mark - step, mark + step]);
    }
    all.extend((-24..=24).map(|n| f64::from(n) / 2.0 + 0.01));
    all.extend([-1e6, 1e6, -1e3, 1e3, -57.3, 57.3]);
    all
}

/// Whether an inequality holds where its letter is `x`; None where a side has no value.
fn holds(relation: &Expr, name: &str, x: f64, budget: &Budget) -> Option<bool> {
    let Expr::Relation(sides, relations) = relation else {
        return None;
    };
    let values = sides
        .iter()
        .map(|side| match approximate(side, budget) {
            Some(value) => Some(value),
            None => value_at(side, name, x, budget),
        })
        .collect::<Vec<_>>();
    let mut all = true;
    for (pair, relation) in values.windows(2).zip(relations) {
        let (Some(a), Some(b)) = (pair[0], pair[1]) else {
            return Some(false);
        };
        let near = a == b || (a - b).abs() <= 1e-7 * a.abs().max(b.abs()).max(1.0);
        all &= match relation {
            Relation::Less => a < b && !near,
            Relation::Greater => a > b && !near,
            Relation::LessEqual => a < b || near,
            Relation::GreaterEqual => a > b || near,
            Relation::Equal => near,
            Relation::NotEqual => !near,
            _ => return None,
        };
    }
    Some(all)
}

/// Whether the numbers that satisfy an inequality are the numbers of a set.
pub fn satisfies(relation: &Expr, set: &Expr, budget: &Budget) -> bool {
    any_satisfies(std::slice::from_ref(relation), set, (false, true), budget)
}

/// Whether the numbers that satisfy some of the inequalities ("or"), or all of them ("and"), are the numbers of a set;
/// a comma may mean either.
pub fn any_satisfies(
    relations: &[Expr],
    set: &Expr,
    (and, or): (bool, bool),
    budget: &Budget,
) -> bool {
    let Some(pieces) = pieces(set, budget) else {
        return false;
    };
    let relations: Vec<Expr> = relations.iter().map(named).collect();
    let Some(name) = letter(&Expr::List(relations.clone())) else {
        return false;
    };
    let ends: Vec<f64> = pieces.iter().flat_map(|p| [p.low.0, p.high.0]).collect();
    let points = samples(&relations.iter().collect::<Vec<_>>(), &ends, budget);
    let (mut some, mut every) = (or || !and, and || !or);
    let mut holds_somewhere = false;
    for x in points {
        let belongs = pieces.iter().any(|piece| piece.holds(x));
        holds_somewhere |= belongs;
        let answers = relations
            .iter()
            .map(|r| holds(r, &name, x, budget))
            .collect::<Option<Vec<_>>>();
        let Some(answers) = answers else { return false };
        some &= answers.iter().any(|yes| *yes) == belongs;
        every &= answers.iter().all(|yes| *yes) == belongs;
        if !some && !every {
            return false;
        }
    }
    // a budget that ran out makes every answer false; only a single inequality, or "and", is satisfied by nothing
    let may_be_empty = relations.len() == 1 || (and && !or);
    (holds_somewhere || may_be_empty) && budget.spend(1).is_some()
}

/// Whether two inequalities in one letter hold for the same numbers. Both must be linear: elsewhere samples prove nothing.
pub fn same_solutions(gold: &Expr, prediction: &Expr, budget: &Budget) -> bool {
    let (gold, prediction) = (named(gold), named(prediction));
    let (Some(name), Some(other)) = (letter(&gold), letter(&prediction)) else {
        return false;
    };
    let linear = |relation: &Expr| {
        relation.children().iter().all(|side| {
            let at =
                |x: f64| approximate(side, budget).or_else(|| value_at(side, &name, x, budget));
            match (at(-3.0), at(1.0), at(5.0), at(2.5)) {
                (Some(a), Some(b), Some(c), Some(d)) => {
                    let size = 1e-9 * a.abs().max(c.abs()).max(1.0);
                    (c - 2.0 * b + a).abs() < size && (d - b - (c - b) * 0.375).abs() < size
                }
                _ => false,
            }
        })
    };
    if name != other || !linear(&prediction) || !linear(&gold) {
        return false;
    }
    // the boundaries of linear sides: where two neighbours meet
    let mut ends = Vec::new();
    for relation in [&gold, &prediction] {
        let Expr::Relation(sides, _) = relation else {
            return false;
        };
        for pair in sides.windows(2) {
            let gap = |x: f64| {
                let at = |side: &Expr| {
                    approximate(side, budget).or_else(|| value_at(side, &name, x, budget))
                };
                Some(at(&pair[0])? - at(&pair[1])?)
            };
            if let (Some(a), Some(b)) = (gap(0.0), gap(1.0))
                && a != b
            {
                ends.push(a / (a - b));
            }
        }
    }
    let points = samples(&[&gold, &prediction], &ends, budget);
    points.into_iter().all(|x| {
        let (g, p) = (
            holds(&gold, &name, x, budget),
            holds(&prediction, &name, x, budget),
        );
        g.is_some() && g == p
    }) && budget.spend(1).is_some()
}
