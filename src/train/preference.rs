//! DPO, RPO and SimPO on pairs; the loop is [`super::judged_loop`], the formulas are in [`super::preference_loss`].
//!
//! Both answers of a pair are in one micro-batch. Their log-probabilities come from the head chunk by chunk, and the
//! gradient from `L = sum_t coef[t] * logp[t]`, where a token's coefficient is the derivative of the loss by the sum over its
//! answer: `[tokens, vocabulary]` never exists whole.

use super::judged_loop::{self, JudgedJob, JudgedOutcome, JudgedRecord, Learner, Tally};
use super::preference_loss::{PairLogprobs, PairTerm, pair_term};
use super::reference::Reference;
use super::sft::Observer;
use crate::data::{Judged, JudgedRow};
use crate::model::{Batch, CausalLm, Recompute, TokenObjective};
use crate::ops::Gradients;
use crate::recipe::preference::{PreferenceLoss, PreferenceObjective};
use crate::tokenize::Tokenized;
use crate::{Error, Result};

/// Trains `model` in place. Where the loss has a reference, it is the model as it comes in, before a checkpoint is read.
///
/// # Errors
/// As [`judged_loop::run`] and [`Reference::of`]; a row that is no pair.
pub fn train_preference(
    model: &CausalLm,
    objective: PreferenceObjective,
    job: &JudgedJob,
    observer: &mut dyn Observer<JudgedRecord>,
) -> Result<JudgedOutcome> {
    let all = || job.rows.iter().chain(job.held_out);
    if let Some(row) = all().find(|row| !matches!(row.judged, Judged::Pair { .. })) {
        return Err(Error::input(format!("`{}` is no pair", row.name)));
    }
    judged_loop::check_rows(job, model)?;
    let key = judged_loop::key(job, &("preference", objective))?;
    let reference = match objective.needs_reference() {
        false => None,
        true => {
            let rows: Vec<&JudgedRow> = all().collect();
            let (owner, settings) = (&job.settings.inputs_key, job.settings);
            Some(Reference::of(
                model, &rows, settings, owner, job.dir, job.stop,
            )?)
        }
    };
    let mut policy = Policy {
        model,
        objective,
        reference,
        tokens_per_pair: 1.0,
    };
    judged_loop::run(&mut policy, job, &key, observer)
}

struct Policy<'a> {
    model: &'a CausalLm,
    objective: PreferenceObjective,
    reference: Option<Reference>,
    /// Chosen tokens of the step, by its pairs.
    tokens_per_pair: f64,
}

impl Policy<'_> {
    /// The terms of pairs from the log-probabilities of their answers.
    fn terms(&self, rows: &[&JudgedRow], sums: &[f64]) -> Vec<PairTerm> {
        rows.iter()
            .zip(sums.chunks(2))
            .map(|(row, sums)| {
                let mut sequences = row.sequences();
                let (Some(chosen), Some(rejected), [c, r]) =
                    (sequences.next(), sequences.next(), sums)
                else {
                    return PairTerm::default();
                };
                let of_reference =
                    |s: &Tokenized| self.reference.as_ref().map_or(0.0, |all| all.get(s));
                let pair = PairLogprobs {
                    chosen: *c,
                    rejected: *r,
                    reference_chosen: of_reference(chosen),
                    reference_rejected: of_reference(rejected),
                    num_chosen: num_trained(chosen),
                    num_rejected: num_trained(rejected),
                };
                pair_term(&self.objective, &pair, self.tokens_per_pair)
            })
            .collect()
    }

    fn tally(&self, batch: &PairBatch, terms: &[PairTerm], sums: &[f64]) -> Tally {
        let mut tally = Tally {
            num_rows: terms.len(),
            num_tokens: batch.batch.tokens.len(),
            num_trained: batch.batch.weights.iter().filter(|&&w| w != 0.0).count(),
            ..Tally::default()
        };
        for (term, sums) in terms.iter().zip(sums.chunks(2)) {
            tally.loss += term.loss;
            let (c, r) = (term.reward_chosen, term.reward_rejected);
            tally.add("accuracy", f64::from(u8::from(c > r)));
            tally.add("margin", c - r);
            tally.add("reward_chosen", c);
            tally.add("reward_rejected", r);
            if let [c, r] = sums {
                tally.add("logprob_chosen", *c);
                tally.add("logprob_rejected", *r);
            }
            if self.objective.loss == PreferenceLoss::Rpo {
                tally.add("nll", term.nll);
            }
        }
        tally
    }
}

impl Learner for Policy<'_> {
    fn weights(&self) -> &CausalLm {
        self.model
    }

    fn begin(&mut self, rows: &[&JudgedRow]) {
        let chosen = rows.iter().filter_map(|row| row.sequences().next());
        let num: usize = chosen.map(num_trained).sum();
        self.tokens_per_pair = num.max(1) as f64 / rows.len().max(1) as f64;
    }

    fn gradient(
        &mut self,
        rows: &[&JudgedRow],
        recompute: Recompute,
        gradients: &mut Gradients,
    ) -> Result<Tally> {
        let batch = PairBatch::new(rows);
        let mut coefficients = Coefficients {
            policy: self,
            rows,
            batch: &batch,
            tally: Tally::default(),
        };
        self.model
            .policy_backward(&batch.batch, 1.0, recompute, &mut coefficients, gradients)?;
        Ok(coefficients.tally)
    }

    fn measure(&mut self, rows: &[&JudgedRow]) -> Result<Tally> {
        let batch = PairBatch::new(rows);
        let stats = self.model.token_stats(&batch.batch, 1.0)?;
        let sums = sums(&batch, &stats.logprobs);
        let terms = self.terms(rows, &sums);
        Ok(self.tally(&batch, &terms, &sums))
    }
}

/// Derivatives of the losses of pairs by the log-probability of each token.
struct Coefficients<'a> {
    policy: &'a Policy<'a>,
    rows: &'a [&'a JudgedRow],
    batch: &'a PairBatch,
    tally: Tally,
}

impl TokenObjective for Coefficients<'_> {
    fn is_per_token(&self) -> bool {
        false
    }

    fn coefs(&mut self, places: &[u32], logprobs: &[f32]) -> Result<Vec<f32>> {
        let owner = |place: &u32| self.batch.owners[*place as usize];
        let mut sums = vec![0f64; self.batch.batch.seq_lens.len()];
        for (place, logprob) in places.iter().zip(logprobs) {
            sums[owner(place)] += f64::from(*logprob);
        }
        let terms = self.policy.terms(self.rows, &sums);
        let slopes: Vec<f32> = terms
            .iter()
            .flat_map(|term| [term.slope_chosen as f32, term.slope_rejected as f32])
            .collect();
        self.tally = self.policy.tally(self.batch, &terms, &sums);
        Ok(places.iter().map(|place| slopes[owner(place)]).collect())
    }
}

/// Sequences of rows end to end.
pub(super) struct PairBatch {
    pub batch: Batch,
    /// The sequence of each token.
    owners: Vec<usize>,
}

impl PairBatch {
    pub(super) fn new(rows: &[&JudgedRow]) -> Self {
        let mut batch = Batch::default();
        let mut owners = Vec::new();
        for (i, sequence) in rows.iter().flat_map(|row| row.sequences()).enumerate() {
            let length = sequence.tokens.len();
            batch.tokens.extend(&sequence.tokens);
            batch.seq_lens.push(length);
            batch.targets.extend(sequence.tokens.iter().skip(1));
            batch.targets.push(0); // nothing follows; weight 0
            let weight = |&trained: &bool| if trained { 1.0 } else { 0.0 };
            batch
                .weights
                .extend(sequence.trained.iter().skip(1).map(weight));
            batch.weights.push(0.0);
            owners.extend(std::iter::repeat_n(i, length));
        }
        Self { batch, owners }
    }
}

/// Sum over each sequence of the log-probabilities that count.
pub(super) fn sums(batch: &PairBatch, logprobs: &[f32]) -> Vec<f64> {
    let mut sums = vec![0f64; batch.batch.seq_lens.len()];
    for ((owner, logprob), weight) in batch.owners.iter().zip(logprobs).zip(&batch.batch.weights) {
        if *weight != 0.0 {
            sums[*owner] += f64::from(*logprob);
        }
    }
    sums
}

/// Tokens of the answer that the model predicts.
fn num_trained(sequence: &Tokenized) -> usize {
    sequence.trained.iter().skip(1).filter(|&&t| t).count()
}
