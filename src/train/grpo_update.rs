//! One update of the policy: completions end to end in packs, through the model, into the gradient.
//!
//! Completions never see each other, and the denominators are those of the whole update, so packing changes memory and
//! speed, not the gradient.

use super::non_finite;
use super::policy_loss::{self, Known, Tally};
use crate::model::{Batch, CausalLm, Recompute, TokenObjective};
use crate::ops::{Gradients, ParamId};
use crate::recipe::grpo::{Grpo, Kl};
use crate::tokenize::pack;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use std::ops::Range;

/// A completion to learn from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Learnt {
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    pub num_prompt_tokens: usize,
    /// Under the sampler, one a token of the completion, as all that follow.
    pub sampled: Option<Vec<f64>>,
    /// Under the policy before the first update; none where that is the policy itself.
    pub old: Option<Vec<f64>>,
    /// Under the reference; none where that is the policy itself.
    pub reference: Option<Vec<f64>>,
    pub advantages: Vec<f64>,
    /// Whether it is learnt from.
    pub is_trained: bool,
    /// Where it came from, for messages.
    pub name: String,
}

impl Learnt {
    /// Tokens of the completion.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens.min(self.tokens.len())
    }

    fn num_trained(&self) -> usize {
        if self.is_trained {
            self.num_tokens()
        } else {
            0
        }
    }

    /// Whether its gradient is not sure to be 0.
    fn has_gradient(&self, settings: &Grpo) -> bool {
        let pulled = settings.needs_reference() && settings.kl != Kl::None;
        self.num_trained() > 0 && (pulled || self.advantages.iter().any(|a| *a != 0.0))
    }
}

/// What an update tells.
#[derive(Clone, Debug, Default)]
pub struct UpdateStats {
    pub tally: Tally,
    /// Sum over the tally's tokens.
    pub entropy: f64,
    /// Tokens that went through the model, prompts included.
    pub num_input_tokens: usize,
    pub num_packs: usize,
}

/// Groups `which` of the completions into packs of at most `pack_length` tokens; a longer one goes alone.
fn packs(all: &[Learnt], which: &[usize], pack_length: usize) -> Result<Vec<Vec<usize>>> {
    let lengths: Vec<usize> = which.iter().map(|&i| all[i].tokens.len() - 1).collect();
    let capacity = lengths.iter().copied().max().unwrap_or(1).max(pack_length);
    let packs = pack::best_fit(&lengths, capacity)?;
    Ok(packs
        .into_iter()
        .map(|pack| pack.into_iter().map(|i| which[i]).collect())
        .collect())
}

/// Completions end to end, and the places of each one's targets. The last token of each only is a target.
fn batch(all: &[Learnt], pack: &[usize]) -> (Batch, Vec<Range<usize>>) {
    let mut batch = Batch::default();
    let mut spans = Vec::with_capacity(pack.len());
    for &i in pack {
        let one = &all[i];
        let (start, length) = (batch.tokens.len(), one.tokens.len() - 1);
        batch.tokens.extend_from_slice(&one.tokens[..length]);
        batch.targets.extend_from_slice(&one.tokens[1..]);
        batch.seq_lens.push(length);
        let first = length - one.num_tokens();
        batch.weights.extend(std::iter::repeat_n(0.0, first));
        batch
            .weights
            .extend(std::iter::repeat_n(1.0, length - first));
        spans.push(start + first..start + length);
    }
    (batch, spans)
}

/// Log-probabilities of the tokens of every completion under `model`, without a gradient.
///
/// # Errors
/// As [`CausalLm::token_stats`].
pub fn logprobs(model: &CausalLm, all: &[Learnt], settings: &Grpo) -> Result<Vec<Vec<f64>>> {
    let mut found = vec![Vec::new(); all.len()];
    let which: Vec<usize> = (0..all.len())
        .filter(|&i| all[i].num_tokens() > 0)
        .collect();
    for pack in packs(all, &which, settings.pack_length)? {
        let (batch, spans) = batch(all, &pack);
        let stats = model.token_stats(&batch, settings.temperature)?;
        for (i, span) in pack.into_iter().zip(spans) {
            found[i] = stats.logprobs[span].iter().map(|&l| f64::from(l)).collect();
        }
    }
    Ok(found)
}

/// Adds the gradient of the loss over `which` completions to `gradients`.
///
/// # Errors
/// [`Error::NonFinite`] where a log-probability is no number; what does not fit the model.
pub fn backward(
    model: &CausalLm,
    all: &[Learnt],
    which: &[usize],
    settings: &Grpo,
    recompute: Recompute,
    gradients: &mut Gradients,
) -> Result<UpdateStats> {
    let lengths: Vec<usize> = which.iter().map(|&i| all[i].num_trained()).collect();
    let mut scale_of = vec![0.0; all.len()];
    for (&i, scale) in which.iter().zip(policy_loss::scales(settings, &lengths)) {
        scale_of[i] = scale;
    }
    let with_gradient = which.iter().copied();
    let with_gradient: Vec<usize> = with_gradient
        .filter(|&i| all[i].has_gradient(settings))
        .collect();
    let mut stats = UpdateStats::default();
    for pack in packs(all, &with_gradient, settings.pack_length)? {
        let (batch, spans) = batch(all, &pack);
        let mut objective = Objective {
            settings,
            parts: pack
                .iter()
                .zip(&spans)
                .map(|(&i, span)| (span.clone(), &all[i], scale_of[i]))
                .collect(),
            tally: Tally::default(),
        };
        let found = model.policy_backward(
            &batch,
            settings.temperature,
            recompute,
            &mut objective,
            gradients,
        )?;
        stats.tally.add(&objective.tally);
        for span in spans {
            let entropies = &found.entropies[span];
            stats.entropy += entropies.iter().map(|&e| f64::from(e)).sum::<f64>();
        }
        stats.num_input_tokens += batch.tokens.len();
        stats.num_packs += 1;
    }
    if stats.num_packs == 0 {
        // nothing to learn: an update by zeros, so that the optimiser's momentum goes on as it would
        let (first, trained) = model.trained();
        for (i, parameter) in trained.iter().enumerate() {
            let zeros = Tensor::zeros(parameter.value.shape(), DType::F32, model.device())?;
            gradients.add(ParamId(first.0 + i), &zeros)?;
        }
    }
    Ok(stats)
}

/// Names the completions among `which`, and the parameters, whose gradient of update `step` is no number.
pub fn not_finite(
    step: usize,
    model: &CausalLm,
    all: &[Learnt],
    which: &[usize],
    settings: &Grpo,
    gradients: &mut Gradients,
) -> Error {
    let update = non_finite::Update {
        step,
        name: &|i| all[i].name.clone(),
        noun: "completions",
        hint: HINT,
    };
    let mut alone = |i: usize, gradients: &mut Gradients| {
        backward(model, all, &[i], settings, Recompute::None, gradients).map(|_| ())
    };
    non_finite::update_error(&update, which, model, &mut alone, gradients)
}

/// Where a log-probability or a gradient is no number.
const HINT: &str = "lower `grpo.learning_rate`, or bound the ratio with `grpo.clip_max`, and go on from an earlier checkpoint";

/// The loss of a pack's completions.
struct Objective<'a> {
    settings: &'a Grpo,
    /// Places of the targets, ascending.
    parts: Vec<(Range<usize>, &'a Learnt, f64)>,
    tally: Tally,
}

impl TokenObjective for Objective<'_> {
    fn is_per_token(&self) -> bool {
        policy_loss::is_per_token(self.settings)
    }

    fn coefs(&mut self, places: &[u32], logprobs: &[f32]) -> Result<Vec<f32>> {
        let mut coefs = Vec::with_capacity(places.len());
        while let Some(&place) = places.get(coefs.len()) {
            let place = place as usize;
            let at = self.parts.partition_point(|(span, ..)| span.end <= place);
            let Some((span, one, scale)) = self.parts.get(at) else {
                return Err(Error::input("a place outside every completion"));
            };
            let from = coefs.len();
            let n = (span.end - place).min(places.len() - from);
            let first = place - span.start;
            let some = |values: &'_ Option<Vec<f64>>| -> Option<Vec<f64>> {
                values.as_ref().map(|v| v[first..first + n].to_vec())
            };
            let policy: Vec<f64> = logprobs[from..from + n].iter().map(|&l| l.into()).collect();
            if policy.iter().any(|l| !l.is_finite()) {
                return Err(Error::NonFinite {
                    message: format!(
                        "the log-probabilities of {} are not finite; the weights are as they were before the step",
                        one.name
                    ),
                    hint: Some(HINT.into()),
                });
            }
            let terms = policy_loss::terms(
                self.settings,
                &Known {
                    logprobs: &policy,
                    old: some(&one.old).as_deref(),
                    reference: some(&one.reference).as_deref(),
                    sampled: some(&one.sampled).as_deref(),
                    advantages: &one.advantages[first..first + n],
                    scale: *scale,
                },
            );
            self.tally.add(&terms.tally);
            coefs.extend(terms.coefs.iter().map(|&c| c as f32));
        }
        Ok(coefs)
    }
}
