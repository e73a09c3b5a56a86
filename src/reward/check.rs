//! Which settings of rewards mean nothing.

use crate::recipe::reward::{RewardKind, RewardSettings};
use crate::verify::Kind;
use crate::{Error, Result};

/// Refuses settings that mean nothing.
pub(super) fn check(reward: &RewardSettings) -> Result<()> {
    let bad = |what: &str| Err(Error::input(what.to_string()));
    let text_kind = |kind: Kind| match kind {
        Kind::Format | Kind::Language => {
            bad("`verifier` must be `math`, `choice`, `exact`, `number` or `boxed`")
        }
        _ => Ok(()),
    };
    if !reward.weight.is_finite() {
        return bad("`weight` must be a finite number");
    }
    match &reward.kind {
        RewardKind::RewardModel(s) => match s.label.as_deref() {
            Some(label) if label.is_empty() || RewardKind::NAMES.contains(&label) => {
                bad("`label` must be a word that is no name of a reward")
            }
            _ => Ok(()),
        },
        RewardKind::Accuracy(s) => {
            if ![s.correct, s.wrong, s.no_answer]
                .iter()
                .all(|value| value.is_finite())
            {
                return bad("`correct`, `wrong` and `no_answer` must be finite numbers");
            }
            if s.correct <= s.wrong || s.correct <= s.no_answer {
                return bad("`correct` must be more than `wrong` and `no_answer`");
            }
            text_kind(s.verifier)
        }
        RewardKind::Length(s) => text_kind(s.verifier),
        RewardKind::Cosine(s) => {
            if s.max_length == 0 {
                return bad("`max_length` must be at least 1");
            }
            // open-r1's own defaults have it the other way round, and reward short wrong answers most
            let ordered = s.min_wrong <= s.max_wrong
                && s.max_wrong <= s.min_correct
                && s.min_correct <= s.max_correct;
            if !ordered {
                return bad(
                    "`min_wrong`, `max_wrong`, `min_correct` and `max_correct` must not fall",
                );
            }
            text_kind(s.verifier)
        }
        RewardKind::SoftOverlong(s) if s.cache_length == 0 || s.cache_length > s.max_length => {
            bad("`cache_length` must be from 1 to `max_length`")
        }
        RewardKind::RepetitionPenalty(s) if s.ngram_size == 0 => {
            bad("`ngram_size` must be at least 1")
        }
        RewardKind::RepetitionPenalty(s)
            if !(s.max_penalty <= 0.0 && s.max_penalty.is_finite()) =>
        {
            bad("`max_penalty` must be 0 or less")
        }
        RewardKind::ReasoningSteps(s) if s.num_steps == 0 => bad("`num_steps` must be at least 1"),
        _ => Ok(()),
    }
}
