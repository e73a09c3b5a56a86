//! Training of a reward model on pairs (Bradley-Terry) or labelled answers; the loop is [`super::judged_loop`], the formulas
//! are in [`super::reward_loss`].

use super::judged_loop::{self, JudgedJob, JudgedOutcome, JudgedRecord, Learner, Tally};
use super::reward_loss::{pairwise, pointwise};
use super::sft::Observer;
use crate::Result;
use crate::data::{Judged, JudgedRow};
use crate::model::{CausalLm, Recompute, RewardModel};
use crate::ops::Gradients;
use serde::Serialize;

/// What of the loss is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RewardObjective {
    /// Weight of `(r_chosen + r_rejected)^2`.
    pub center_coefficient: f64,
}

/// Trains `model` in place.
///
/// # Errors
/// As [`judged_loop::run`].
pub fn train_reward_model(
    model: &RewardModel,
    objective: RewardObjective,
    job: &JudgedJob,
    observer: &mut dyn Observer<JudgedRecord>,
) -> Result<JudgedOutcome> {
    let key = judged_loop::key(job, &("reward-model", objective))?;
    judged_loop::run(&mut Scorer { model, objective }, job, &key, observer)
}

struct Scorer<'a> {
    model: &'a RewardModel,
    objective: RewardObjective,
}

impl Learner for Scorer<'_> {
    fn weights(&self) -> &CausalLm {
        self.model.weights()
    }

    fn begin(&mut self, _: &[&JudgedRow]) {}

    fn gradient(
        &mut self,
        rows: &[&JudgedRow],
        recompute: Recompute,
        gradients: &mut Gradients,
    ) -> Result<Tally> {
        let (tokens, seq_lens) = end_to_end(rows);
        let mut tally = Tally::default();
        let mut slopes = |scores: &[f32]| {
            let (found, slopes) = losses(rows, scores, self.objective);
            tally = found;
            Ok(slopes)
        };
        self.model
            .forward_backward(&tokens, &seq_lens, recompute, &mut slopes, gradients)?;
        tally.num_tokens = tokens.len();
        Ok(tally)
    }

    fn measure(&mut self, rows: &[&JudgedRow]) -> Result<Tally> {
        let (tokens, seq_lens) = end_to_end(rows);
        let scores = self.model.scores(&tokens, &seq_lens)?;
        Ok(losses(rows, &scores, self.objective).0)
    }
}

fn end_to_end(rows: &[&JudgedRow]) -> (Vec<u32>, Vec<usize>) {
    let sequences = || rows.iter().flat_map(|row| row.sequences());
    (
        sequences().flat_map(|s| s.tokens.iter().copied()).collect(),
        sequences().map(|s| s.tokens.len()).collect(),
    )
}

/// Sums over rows, and the derivative by each score.
fn losses(rows: &[&JudgedRow], scores: &[f32], objective: RewardObjective) -> (Tally, Vec<f32>) {
    let mut tally = Tally {
        num_rows: rows.len(),
        num_trained: scores.len(),
        ..Tally::default()
    };
    let mut slopes = Vec::with_capacity(scores.len());
    let mut scores = scores.iter().map(|&r| f64::from(r));
    let mut next = || scores.next().unwrap_or(f64::NAN);
    for row in rows {
        match &row.judged {
            Judged::Pair { margin, .. } => {
                let (c, r) = (next(), next());
                let term = pairwise(c, r, *margin, objective.center_coefficient);
                tally.loss += term.loss;
                tally.add("accuracy", f64::from(u8::from(c > r)));
                tally.add("margin", c - r);
                tally.add("reward_chosen", c);
                tally.add("reward_rejected", r);
                slopes.push(term.slope_chosen as f32);
                slopes.push(term.slope_rejected as f32);
            }
            Judged::Labelled { label, .. } => {
                let r = next();
                let (loss, slope) = pointwise(r, *label);
                tally.loss += loss;
                tally.add("accuracy", f64::from(u8::from((r > 0.0) == *label)));
                // how far on the right side of 0
                tally.add("margin", if *label { r } else { -r });
                tally.add("reward", r);
                slopes.push(slope as f32);
            }
        }
    }
    (tally, slopes)
}
