//! Losses of a reward model as functions of its scores, with their derivatives. Numbers only.
//!
//! ```text
//! pairwise (Bradley-Terry)  z = r_c - r_r - margin
//!     L = -log s(z) + k (r_c + r_r)^2       dL/dr_c = -s(-z) + 2 k (r_c + r_r)    dL/dr_r = s(-z) + 2 k (r_c + r_r)
//! pointwise                 L = -y log s(r) - (1 - y) log s(-r)                    dL/dr = s(r) - y
//! ```
//!
//! s is the logistic function, y the label. The square keeps scores around 0 (<https://arxiv.org/abs/2312.09244>, equation
//! 2; TRL's `center_rewards_coefficient`).

use super::preference_loss::{neg_log_sigmoid, sigmoid};

/// A pair's loss and its derivatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreTerm {
    pub loss: f64,
    pub slope_chosen: f64,
    pub slope_rejected: f64,
}

/// Loss of a pair.
pub fn pairwise(chosen: f64, rejected: f64, margin: f64, center: f64) -> ScoreTerm {
    let z = chosen - rejected - margin;
    let sum = chosen + rejected;
    ScoreTerm {
        loss: neg_log_sigmoid(z) + center * sum * sum,
        slope_chosen: -sigmoid(-z) + 2.0 * center * sum,
        slope_rejected: sigmoid(-z) + 2.0 * center * sum,
    }
}

/// Loss of a labelled answer and its derivative.
pub fn pointwise(score: f64, label: bool) -> (f64, f64) {
    match label {
        true => (neg_log_sigmoid(score), sigmoid(score) - 1.0),
        false => (neg_log_sigmoid(-score), sigmoid(score)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn by_hand() {
        // equal scores: log 2, and each goes its way by a half
        let term = pairwise(3.0, 3.0, 0.0, 0.0);
        close(term.loss, 2f64.ln());
        close(term.slope_chosen, -0.5);
        close(term.slope_rejected, 0.5);
        // z = 2 - 0.5 - 1 = 0.5; (2 + 0.5)^2 = 6.25
        let term = pairwise(2.0, 0.5, 1.0, 0.01);
        close(term.loss, (1.0 + (-0.5f64).exp()).ln() + 0.0625);
        close(term.slope_chosen, -1.0 / (1.0 + 0.5f64.exp()) + 0.05);
        close(term.slope_rejected, 1.0 / (1.0 + 0.5f64.exp()) + 0.05);
        let (loss, slope) = pointwise(0.0, true);
        close(loss, 2f64.ln());
        close(slope, -0.5);
        let (loss, slope) = pointwise(2.0, false);
        close(loss, (1.0 + 2f64.exp()).ln());
        close(slope, 1.0 / (1.0 + (-2f64).exp()));
    }

    #[test]
    fn slopes_are_differences_of_the_loss() {
        let (h, m, k) = (1e-5, 0.3, 0.02);
        for (c, r) in [(0.0, 0.0), (1.5, -0.7), (-2.0, 3.0)] {
            let term = pairwise(c, r, m, k);
            let by_c = (pairwise(c + h, r, m, k).loss - pairwise(c - h, r, m, k).loss) / (2.0 * h);
            let by_r = (pairwise(c, r + h, m, k).loss - pairwise(c, r - h, m, k).loss) / (2.0 * h);
            assert!((by_c - term.slope_chosen).abs() < 1e-8);
            assert!((by_r - term.slope_rejected).abs() < 1e-8);
            for label in [false, true] {
                let by = (pointwise(c + h, label).0 - pointwise(c - h, label).0) / (2.0 * h);
                assert!((by - pointwise(c, label).1).abs() < 1e-8);
            }
        }
    }
}
