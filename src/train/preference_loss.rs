//! Losses of a pair as functions of log-probabilities, with their derivatives. Numbers only.
//!
//! Letters: c and r are `log pi(chosen | prompt)` and `log pi(rejected | prompt)`, sums over the answer's tokens; c0 and r0
//! the same of the reference; n_c and n_r the numbers of tokens; `s` the logistic function; e the label smoothing.
//!
//! ```text
//! DPO    z = beta ((c - c0) - (r - r0))           https://arxiv.org/abs/2305.18290
//! RPO    z as DPO, and alpha * NLL(chosen)        https://arxiv.org/abs/2404.19733
//! SimPO  z = beta (c / n_c - r / n_r) - gamma     https://arxiv.org/abs/2405.14734
//! L = -(1 - e) log s(z) - e log s(-z)             dL/dz = e - s(-z)
//! ```
//!
//! TRL's SimPO writes gamma as `beta * (simpo_gamma / beta)`, which is the same. RPO's likelihood is a mean over the tokens
//! of all chosen answers of a batch in TRL, and over each answer's own tokens in the paper: [`NllMean`].

use crate::recipe::preference::{NllMean, PreferenceLoss, PreferenceObjective};

/// Log-probabilities of both answers of a pair, summed over their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLogprobs {
    pub chosen: f64,
    pub rejected: f64,
    /// Of the reference; not read where the loss has none.
    pub reference_chosen: f64,
    pub reference_rejected: f64,
    pub num_chosen: usize,
    pub num_rejected: usize,
}

/// A pair's share of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairTerm {
    pub loss: f64,
    /// RPO's likelihood, which is part of the loss, before alpha.
    pub nll: f64,
    /// dL/dc: what each token of the chosen answer gets.
    pub slope_chosen: f64,
    /// dL/dr
    pub slope_rejected: f64,
    /// The implicit reward: `beta (c - c0)`, for SimPO `beta c / n_c`.
    pub reward_chosen: f64,
    pub reward_rejected: f64,
}

/// `-log s(z)`, which neither overflows nor loses small values.
pub fn neg_log_sigmoid(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p()
}

/// The logistic function.
pub fn sigmoid(z: f64) -> f64 {
    match z >= 0.0 {
        true => 1.0 / (1.0 + (-z).exp()),
        false => z.exp() / (1.0 + z.exp()),
    }
}

/// The factor of RPO's negative log-likelihood of a pair, before alpha: summed over the pairs of a step and divided by their
/// number, it is the mean that `nll_mean` names. `tokens_per_pair` is the mean number of chosen tokens of the step's pairs.
fn nll_factor(nll_mean: NllMean, num_chosen: usize, tokens_per_pair: f64) -> f64 {
    match nll_mean {
        NllMean::Tokens => 1.0 / tokens_per_pair,
        NllMean::Sequences => 1.0 / num_chosen.max(1) as f64,
    }
}

/// Loss and derivatives of one pair; the loss of a step is the mean over its pairs.
pub fn pair_term(
    objective: &PreferenceObjective,
    pair: &PairLogprobs,
    tokens_per_pair: f64,
) -> PairTerm {
    let (beta, e) = (objective.beta, objective.label_smoothing);
    let (per_chosen, per_rejected, margin) = match objective.loss {
        PreferenceLoss::Dpo | PreferenceLoss::Rpo => (1.0, 1.0, 0.0),
        PreferenceLoss::Simpo => (
            1.0 / pair.num_chosen.max(1) as f64,
            1.0 / pair.num_rejected.max(1) as f64,
            objective.gamma,
        ),
    };
    let (c0, r0) = match objective.needs_reference() {
        true => (pair.reference_chosen, pair.reference_rejected),
        false => (0.0, 0.0),
    };
    let reward_chosen = beta * (pair.chosen - c0) * per_chosen;
    let reward_rejected = beta * (pair.rejected - r0) * per_rejected;
    let z = reward_chosen - reward_rejected - margin;
    let slope = e - sigmoid(-z);
    let mut term = PairTerm {
        loss: (1.0 - e) * neg_log_sigmoid(z) + e * neg_log_sigmoid(-z),
        nll: 0.0,
        slope_chosen: slope * beta * per_chosen,
        slope_rejected: -slope * beta * per_rejected,
        reward_chosen,
        reward_rejected,
    };
    if objective.loss == PreferenceLoss::Rpo {
        let factor = nll_factor(objective.nll_mean, pair.num_chosen, tokens_per_pair);
        term.nll = -factor * pair.chosen;
        term.loss += objective.alpha * term.nll;
        term.slope_chosen -= objective.alpha * factor;
    }
    term
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::preference::Preference;

    fn objective(loss: PreferenceLoss) -> PreferenceObjective {
        Preference {
            loss,
            ..Preference::default()
        }
        .objective()
    }

    const PAIR: PairLogprobs = PairLogprobs {
        chosen: -10.0,
        rejected: -14.0,
        reference_chosen: -12.0,
        reference_rejected: -11.0,
        num_chosen: 5,
        num_rejected: 4,
    };

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn by_hand() {
        // z = 0.1 ((-10 + 12) - (-14 + 11)) = 0.5
        let term = pair_term(&objective(PreferenceLoss::Dpo), &PAIR, 5.0);
        close(term.loss, (1.0 + (-0.5f64).exp()).ln());
        close(term.slope_chosen, -0.1 / (1.0 + 0.5f64.exp()));
        close(term.slope_rejected, -term.slope_chosen);
        close(term.reward_chosen, 0.2);
        close(term.reward_rejected, -0.3);
        // and 10 / 8 for 8 chosen tokens a pair in the mean, 10 / 5 for the answer by itself
        let mut rpo = objective(PreferenceLoss::Rpo);
        close(pair_term(&rpo, &PAIR, 8.0).loss, term.loss + 1.25);
        close(
            pair_term(&rpo, &PAIR, 8.0).slope_chosen,
            term.slope_chosen - 0.125,
        );
        rpo.nll_mean = NllMean::Sequences;
        rpo.alpha = 0.5;
        close(pair_term(&rpo, &PAIR, 8.0).loss, term.loss + 1.0);
        // z = 2.5 (-2 + 3.5) - 1.375 = 2.375
        let term = pair_term(&objective(PreferenceLoss::Simpo), &PAIR, 5.0);
        close(term.loss, (1.0 + (-2.375f64).exp()).ln());
        close(term.slope_chosen, -0.5 / (1.0 + 2.375f64.exp()));
        close(term.slope_rejected, 0.625 / (1.0 + 2.375f64.exp()));
    }

    #[test]
    fn a_policy_that_is_its_reference_has_log_2() {
        let pair = PairLogprobs {
            chosen: -12.0,
            rejected: -11.0,
            ..PAIR
        };
        let mut dpo = objective(PreferenceLoss::Dpo);
        close(pair_term(&dpo, &pair, 5.0).loss, 2f64.ln());
        close(pair_term(&dpo, &pair, 5.0).slope_chosen, -0.05);
        // a pair that may as well be the other way round teaches nothing
        dpo.label_smoothing = 0.5;
        close(pair_term(&dpo, &pair, 5.0).slope_chosen, 0.0);
    }

    #[test]
    fn slopes_are_differences_of_the_loss() {
        for loss in [
            PreferenceLoss::Dpo,
            PreferenceLoss::Rpo,
            PreferenceLoss::Simpo,
        ] {
            for label_smoothing in [0.0, 0.2] {
                let objective = PreferenceObjective {
                    label_smoothing,
                    ..objective(loss)
                };
                let at = |dc: f64, dr: f64| {
                    let pair = PairLogprobs {
                        chosen: PAIR.chosen + dc,
                        rejected: PAIR.rejected + dr,
                        ..PAIR
                    };
                    pair_term(&objective, &pair, 6.0).loss
                };
                let h = 1e-5;
                let term = pair_term(&objective, &PAIR, 6.0);
                let slope = (at(h, 0.0) - at(-h, 0.0)) / (2.0 * h);
                assert!((slope - term.slope_chosen).abs() < 1e-9, "{loss:?}");
                let slope = (at(0.0, h) - at(0.0, -h)) / (2.0 * h);
                assert!((slope - term.slope_rejected).abs() < 1e-9, "{loss:?}");
            }
        }
    }

    #[test]
    fn nothing_overflows() {
        for z in [-1e6, -800.0, -40.0, 0.0, 40.0, 800.0, 1e6] {
            assert!(neg_log_sigmoid(z).is_finite() && (0.0..=1.0).contains(&sigmoid(z)));
        }
        close(neg_log_sigmoid(-800.0), 800.0);
        assert!(neg_log_sigmoid(40.0) > 0.0);
    }
}
