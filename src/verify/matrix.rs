//! Matrices of formulas: sums, products and multiples written out cell by cell.

use super::expr::{Constant, Expr};

/// The matrix that an expression of matrices is.
pub fn matrix(expr: &Expr) -> Option<Vec<Vec<Expr>>> {
    match expr {
        Expr::Matrix(rows) => Some(rows.clone()),
        Expr::Neg(inner) => Some(each(&matrix(inner)?, |x| Expr::Neg(Box::new(x.clone())))),
        Expr::Add(terms) => {
            let mut sum = matrix(terms.first()?)?;
            for term in &terms[1..] {
                let term = matrix(term)?;
                if term.len() != sum.len() || term[0].len() != sum[0].len() {
                    return None;
                }
                for (row, other) in sum.iter_mut().zip(term) {
                    for (x, y) in row.iter_mut().zip(other) {
                        *x = Expr::Add(vec![x.clone(), y]);
                    }
                }
            }
            Some(sum)
        }
        Expr::Mul(factors) => {
            let mut product: Option<Vec<Vec<Expr>>> = None;
            let mut scalars = Vec::new();
            for factor in factors {
                match (matrix(factor), product.take()) {
                    (Some(next), Some(before)) => product = Some(times(&before, &next)?),
                    (Some(next), None) => product = Some(next),
                    (None, before) => {
                        factor.is_scalar().then_some(())?;
                        scalars.push(factor.clone());
                        product = before;
                    }
                }
            }
            let product = product?;
            if scalars.is_empty() {
                return Some(product);
            }
            Some(each(&product, |x| {
                let mut all = scalars.clone();
                all.push(x.clone());
                Expr::Mul(all)
            }))
        }
        Expr::Div(above, below) if below.is_scalar() => Some(each(&matrix(above)?, |x| {
            Expr::Div(Box::new(x.clone()), below.clone())
        })),
        _ => None,
    }
}

/// The coordinates of `3i - j + 2k`; None for what is no sum of multiples of the three, or only of the imaginary unit.
pub fn components(expr: &Expr) -> Option<Vec<Expr>> {
    let axis = |factor: &Expr| match factor {
        Expr::Constant(Constant::I) => Some(0),
        Expr::Symbol(name) if name == "i" => Some(0),
        Expr::Symbol(name) if name == "j" => Some(1),
        Expr::Symbol(name) if name == "k" => Some(2),
        _ => None,
    };
    let mut all = vec![Expr::integer(0); 3];
    let terms = match expr {
        Expr::Add(terms) => &terms[..],
        other => std::slice::from_ref(other),
    };
    let mut upper = false;
    for term in terms {
        let (negative, term) = match term {
            Expr::Neg(inner) => (true, &**inner),
            other => (false, other),
        };
        let factors = match term {
            Expr::Mul(factors) => &factors[..],
            other => std::slice::from_ref(other),
        };
        let at = factors.iter().position(|factor| axis(factor).is_some())?;
        let n = axis(&factors[at])?;
        upper |= n > 0;
        let mut rest = factors.to_vec();
        rest.remove(at);
        if rest
            .iter()
            .any(|factor| factor.has_symbols() || axis(factor).is_some())
        {
            return None;
        }
        if negative {
            rest.push(Expr::integer(-1));
        }
        all[n] = Expr::Add(vec![all[n].clone(), Expr::Mul(rest)]);
    }
    upper.then_some(all)
}

fn each(rows: &[Vec<Expr>], edit: impl Fn(&Expr) -> Expr) -> Vec<Vec<Expr>> {
    rows.iter()
        .map(|row| row.iter().map(&edit).collect())
        .collect()
}

fn times(a: &[Vec<Expr>], b: &[Vec<Expr>]) -> Option<Vec<Vec<Expr>>> {
    let (inner, columns) = (b.len(), b.first()?.len());
    if a.iter().any(|row| row.len() != inner) || a.len() * inner * columns > 1_000 {
        return None;
    }
    let cell = |row: &Vec<Expr>, j: usize| {
        Expr::Add(
            (0..inner)
                .map(|k| Expr::Mul(vec![row[k].clone(), b[k][j].clone()]))
                .collect(),
        )
    };
    Some(
        a.iter()
            .map(|row| (0..columns).map(|j| cell(row, j)).collect())
            .collect(),
    )
}

/// The determinant written out, for matrices of at most four rows.
pub fn determinant(rows: &[Vec<Expr>]) -> Option<Expr> {
    if rows.len() > 4 || rows.iter().any(|row| row.len() != rows.len()) {
        return None;
    }
    if let [row] = rows {
        return row.first().cloned();
    }
    let mut terms = Vec::new();
    for column in 0..rows.len() {
        let minor: Vec<Vec<Expr>> = rows[1..]
            .iter()
            .map(|row| {
                let others = row.iter().enumerate().filter(|(j, _)| *j != column);
                others.map(|(_, cell)| cell.clone()).collect()
            })
            .collect();
        let term = Expr::Mul(vec![rows[0][column].clone(), determinant(&minor)?]);
        terms.push(if column % 2 == 0 {
            term
        } else {
            Expr::Neg(Box::new(term))
        });
    }
    Some(Expr::Add(terms))
}
