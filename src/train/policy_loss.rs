//! Policy-gradient losses of one completion, with their derivatives by hand.
//!
//! With log-probabilities l_t under the policy, o_t under the policy before the update, f_t under the reference, s_t under
//! the sampler, advantages A_t, n tokens, and a constant scale w that holds the denominators:
//!
//! ```text
//! L = w sum_t [ c_t S_t + beta K_t ]
//! r_t = exp(l_t - o_t)                     ratio = "token"          dr_t/dl_t = r_t
//! r   = exp(1/n sum_t (l_t - o_t))         ratio = "sequence_mean"  dr/dl_t = r / n
//! r   = exp(sum_t (l_t - o_t))             ratio = "sequence"       dr/dl_t = r
//! S_t = -min(min(r, m) A_t, clip(r, 1 - e_low, 1 + e_high) A_t)     dS_t/dr = -A_t where the first is taken and r < m
//! S_t = -min(r_t, e_high) A_t l_t          cispo                    dS_t/dl_t = -min(r_t, e_high) A_t
//! K_t = l_t - f_t                          k1                       dK_t/dl_t = 1
//! K_t = (l_t - f_t)^2 / 2                  k2                       dK_t/dl_t = l_t - f_t
//! K_t = exp(f_t - l_t) - (f_t - l_t) - 1   k3                       dK_t/dl_t = 1 - exp(f_t - l_t)
//! K_t = r k3_t                             unbiased                 both factors
//! ```
//!
//! arXiv 2402.03300 eq. 3 and 21 (token, k3), 2501.12948 eq. 1 (sequence), 2503.14476 eq. 8 (e_high, mean over tokens),
//! 2503.20783 (w), 2507.18071 eq. 5 (sequence_mean), 2506.13585 eq. 4 (cispo), 2512.02556 (unbiased, off-policy mask).
//! c_t, the correction for the sampler, is `exp(o_t - s_t)` or the exponential of its sum over the completion, truncated or
//! masked; it is held constant. Where no update lies between sampling and this one, o is l with its gradient left out.
//!
//! `L` equals that of TRL's `GRPOTrainer` in every variant it has; its `delta` is `clip_max`.

use crate::recipe::grpo::{Correction, Grpo, Kl, Loss, Ratio};

/// What is known of a completion, one value a token.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Under the policy.
    pub logprobs: &'a [f64],
    /// Under the policy before the update; none where that is this one.
    pub old: Option<&'a [f64]>,
    /// Under the reference; none where it is the policy itself.
    pub reference: Option<&'a [f64]>,
    /// Under the sampler.
    pub sampled: Option<&'a [f64]>,
    pub advantages: &'a [f64],
    /// [`scales`]
    pub scale: f64,
}

/// A completion's share of the loss and `dL/dlogprob` of each token.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub loss: f64,
    pub coefs: Vec<f64>,
    pub tally: Tally,
}

/// Sums over tokens, for the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    pub num_tokens: usize,
    pub loss: f64,
    pub kl: f64,
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    pub num_clipped_low: usize,
    pub num_clipped_high: usize,
    /// Whose weight is not that of the sampler's probability, or 0.
    pub num_corrected: usize,
    /// Left out as too far off the policy.
    pub num_off_policy: usize,
    /// Sum and maximum of `|o - s|`.
    pub gap: f64,
    pub gap_max: f64,
    pub num_gaps: usize,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            num_tokens: 0,
            loss: 0.0,
            kl: 0.0,
            ratio: 0.0,
            ratio_min: f64::INFINITY,
            ratio_max: f64::NEG_INFINITY,
            num_clipped_low: 0,
            num_clipped_high: 0,
            num_corrected: 0,
            num_off_policy: 0,
            gap: 0.0,
            gap_max: 0.0,
            num_gaps: 0,
        }
    }
}

impl Tally {
    /// Adds another's sums.
    pub fn add(&mut self, other: &Self) {
        self.num_tokens += other.num_tokens;
        self.loss += other.loss;
        self.kl += other.kl;
        self.ratio += other.ratio;
        self.ratio_min = self.ratio_min.min(other.ratio_min);
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.num_clipped_low += other.num_clipped_low;
        self.num_clipped_high += other.num_clipped_high;
        self.num_corrected += other.num_corrected;
        self.num_off_policy += other.num_off_policy;
        self.gap += other.gap;
        self.gap_max = self.gap_max.max(other.gap_max);
        self.num_gaps += other.num_gaps;
    }
}

/// The scale of each completion of an update. `num_tokens` are those that are trained: 0 for one that is left out, which
/// still counts among the completions, as in TRL.
pub fn scales(settings: &Grpo, num_tokens: &[usize]) -> Vec<f64> {
    let completions = num_tokens.len().max(1) as f64;
    let tokens = num_tokens.iter().sum::<usize>().max(1) as f64;
    num_tokens
        .iter()
        .map(|&n| match settings.loss {
            Loss::Grpo => 1.0 / (completions * n.max(1) as f64),
            Loss::DrGrpo => 1.0 / (completions * settings.max_new_tokens as f64),
            Loss::Dapo | Loss::Bnpo | Loss::Cispo => 1.0 / tokens,
        })
        .collect()
}

/// Whether a token's coefficient needs no other token of its completion.
pub fn is_per_token(settings: &Grpo) -> bool {
    let whole = matches!(
        settings.correction,
        Correction::SequenceTruncate | Correction::SequenceMask
    );
    settings.ratio == Ratio::Token && !whole && settings.off_policy_max.is_none()
}

/// The loss of a completion and its derivative; of a run of its tokens where [`is_per_token`] holds.
pub fn terms(settings: &Grpo, known: &Known) -> Terms {
    let n = known.logprobs.len();
    let old = known.old.unwrap_or(known.logprobs);
    let mut tally = Tally {
        num_tokens: n,
        ..Tally::default()
    };
    if n == 0 {
        return Terms::default();
    }

    // ratios; along `d_log`, the derivative of ln r with respect to each token
    let differences = || known.logprobs.iter().zip(old).map(|(l, o)| l - o);
    let (ratios, d_log): (Vec<f64>, f64) = match settings.ratio {
        Ratio::Token => (differences().map(f64::exp).collect(), 1.0),
        Ratio::SequenceMean => {
            let mean = differences().sum::<f64>() / n as f64;
            (vec![mean.exp(); n], 1.0 / n as f64)
        }
        Ratio::Sequence => (vec![differences().sum::<f64>().exp(); n], 1.0),
    };
    let corrections = corrections(settings, old, known.sampled, &mut tally);
    let kept = is_on_policy(settings, known, old);

    let mut coefs = vec![0.0; n];
    // dL / d ln r, which the whole completion shares where the ratio is its own
    let mut through_ratio = vec![0.0; n];
    for t in 0..n {
        let (l, r, a) = (known.logprobs[t], ratios[t], known.advantages[t]);
        let weight = known.scale * corrections[t];
        tally.ratio += r;
        tally.ratio_min = tally.ratio_min.min(r);
        tally.ratio_max = tally.ratio_max.max(r);
        if a < 0.0 && !kept {
            tally.num_off_policy += 1;
        } else if settings.loss == Loss::Cispo {
            let held = r.min(settings.clip_high);
            tally.loss -= weight * held * a * l;
            coefs[t] -= weight * held * a;
            tally.num_clipped_high += usize::from(r > settings.clip_high && a > 0.0);
        } else {
            let (low, high) = (1.0 - settings.clip_low, 1.0 + settings.clip_high);
            let most = settings.clip_max.unwrap_or(f64::INFINITY);
            let (free, clipped) = (r.min(most) * a, r.clamp(low, high) * a);
            tally.num_clipped_low += usize::from(r < low && a < 0.0);
            tally.num_clipped_high += usize::from(r > high && a > 0.0);
            // an advantage of 0 is worth nothing whatever the ratio
            if a != 0.0 {
                tally.loss -= weight * free.min(clipped);
                let flows = match free <= clipped {
                    true => r < most,
                    false => low < r && r < high,
                };
                if flows {
                    through_ratio[t] -= weight * a * r;
                }
            }
        }
        let Some(f) = reference_of(settings, known, t) else {
            continue;
        };
        let (d, beta) = (f - l, known.scale * settings.kl_coef);
        let (k3, d_k3) = (d.exp() - d - 1.0, 1.0 - d.exp());
        let (k, d_k) = match settings.kl {
            Kl::None => (0.0, 0.0),
            Kl::K1 => (-d, 1.0),
            Kl::K2 => (d * d / 2.0, -d),
            Kl::K3 => (k3, d_k3),
            Kl::Unbiased => {
                through_ratio[t] += beta * k3 * r;
                (r * k3, r * d_k3)
            }
        };
        tally.kl += k;
        tally.loss += beta * k;
        coefs[t] += beta * d_k;
    }
    match settings.ratio {
        Ratio::Token => coefs
            .iter_mut()
            .zip(&through_ratio)
            .for_each(|(c, g)| *c += g),
        Ratio::SequenceMean | Ratio::Sequence => {
            let shared = through_ratio.iter().sum::<f64>() * d_log;
            coefs.iter_mut().for_each(|c| *c += shared);
        }
    }
    Terms {
        loss: tally.loss,
        coefs,
        tally,
    }
}

/// The reference's log-probability, the policy's own where they are the same; none without such a term.
fn reference_of(settings: &Grpo, known: &Known, t: usize) -> Option<f64> {
    let used = settings.needs_reference();
    used.then(|| known.reference.map_or(known.logprobs[t], |f| f[t]))
}

/// c_t
fn corrections(
    settings: &Grpo,
    old: &[f64],
    sampled: Option<&[f64]>,
    tally: &mut Tally,
) -> Vec<f64> {
    let n = old.len();
    let Some(sampled) = sampled else {
        return vec![1.0; n];
    };
    for (o, s) in old.iter().zip(sampled) {
        let gap = (o - s).abs();
        tally.gap += gap;
        tally.gap_max = tally.gap_max.max(gap);
        tally.num_gaps += 1;
    }
    let each = || old.iter().zip(sampled).map(|(o, s)| o - s);
    let ratios: Vec<f64> = match settings.correction {
        Correction::None => return vec![1.0; n],
        Correction::TokenTruncate | Correction::TokenMask => each().map(f64::exp).collect(),
        Correction::SequenceTruncate | Correction::SequenceMask => {
            vec![each().sum::<f64>().exp(); n]
        }
    };
    let masks = matches!(
        settings.correction,
        Correction::TokenMask | Correction::SequenceMask
    );
    let (low, high) = (settings.correction_min, settings.correction_max);
    let mut one = |c: f64| {
        let corrected = match masks {
            true if !(low..=high).contains(&c) => 0.0,
            true => c,
            false => c.min(high),
        };
        tally.num_corrected += usize::from(corrected != c);
        corrected
    };
    ratios.into_iter().map(&mut one).collect()
}

/// Whether the mean of `s - l` stays below the bound.
fn is_on_policy(settings: &Grpo, known: &Known, old: &[f64]) -> bool {
    let Some(most) = settings.off_policy_max else {
        return true;
    };
    let from = known.sampled.unwrap_or(old).iter();
    let sum: f64 = from.zip(known.logprobs).map(|(s, l)| s - l).sum();
    sum / known.logprobs.len() as f64 <= most
}

#[cfg(test)]
#[path = "policy_loss_tests.rs"]
mod tests;
