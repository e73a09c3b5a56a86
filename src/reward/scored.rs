//! What a sample earned: the parts, their sum, and whether it is right.

use crate::recipe::reward::RewardKind;
use crate::verify::Verdict;
use std::sync::Arc;

/// One reward's share of a sample's sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// [`RewardKind::label`]
    pub name: Arc<str>,
    /// Not yet weighted; None where the reward does not apply. Of a reward of steps, the mean over them.
    pub value: Option<f64>,
    /// Of a reward of steps: one value for each of [`Scored::step_ends`]; none where it does not apply.
    pub steps: Option<Vec<f64>>,
    /// Whether it rewards steps.
    pub is_of_steps: bool,
    pub weight: f64,
    /// Why there is no value.
    pub missing: Option<String>,
}

/// What a sample earned.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The weighted sum over the parts that have a value.
    pub total: f64,
    /// In the order of the settings.
    pub parts: Vec<Part>,
    /// Of the first reward that needs one.
    pub verdict: Option<Verdict>,
    /// Where the steps of the text end, in bytes; empty where no reward is of steps.
    pub step_ends: Vec<usize>,
}

impl Part {
    /// Puts in what a reward found, or why it found nothing.
    pub(super) fn put(&mut self, found: Result<f64, String>) {
        (self.value, self.missing) = match found {
            Ok(value) => (Some(value), None),
            Err(why) => (None, Some(why)),
        };
    }

    /// The same for a reward of steps.
    pub(super) fn put_steps(&mut self, found: Result<Vec<f64>, String>) {
        let steps = found.and_then(|steps| match steps.is_empty() {
            true => Err("there is no step".to_string()),
            false => Ok(steps),
        });
        self.put(match &steps {
            Ok(steps) => Ok(steps.iter().sum::<f64>() / steps.len() as f64),
            Err(why) => Err(why.clone()),
        });
        self.steps = steps.ok();
    }
}

impl Scored {
    pub(super) fn sum_up(&mut self) {
        self.total = sum(self.parts.iter());
    }

    /// Whether every reward had a value.
    pub fn is_complete(&self) -> bool {
        self.parts.iter().all(|part| part.value.is_some())
    }

    /// Whether the sample is right: the verifier says so, or the judge does; none where neither was asked or could tell.
    pub fn is_correct(&self) -> Option<bool> {
        let name = RewardKind::JUDGE;
        let judge = self.parts.iter().find(|part| &*part.name == name);
        let judged = judge.and_then(|part| part.value).map(|value| value > 0.0);
        let verified = self.verdict.as_ref().filter(|v| !v.gold_unreadable);
        match (verified.map(Verdict::is_correct), judged) {
            (None, judged) => judged,
            (Some(verified), judged) => Some(verified || judged.unwrap_or(false)),
        }
    }

    /// The weighted sum; none where no reward applies, which is another thing than a sum of 0.
    pub fn reward(&self) -> Option<f64> {
        let applies = self.parts.iter().any(|part| part.value.is_some());
        applies.then_some(self.total)
    }

    /// The weighted sum over the rewards of the whole; none where none of them applies.
    pub fn outcome(&self) -> Option<f64> {
        let whole = || self.parts.iter().filter(|part| !part.is_of_steps);
        let applies = whole().any(|part| part.value.is_some());
        applies.then(|| sum(whole()))
    }

    /// The weighted sum of each step, in order; empty where no reward of steps applies.
    pub fn steps(&self) -> Vec<f64> {
        let mut sums = Vec::new();
        for part in &self.parts {
            let Some(steps) = &part.steps else { continue };
            sums.resize(steps.len(), 0.0);
            for (sum, value) in sums.iter_mut().zip(steps) {
                *sum += part.weight * value;
            }
        }
        sums
    }
}

fn sum<'a>(parts: impl Iterator<Item = &'a Part>) -> f64 {
    let values = parts.filter_map(|part| Some(part.weight * part.value?));
    values.sum::<f64>() + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &'static str, value: Option<f64>, weight: f64) -> Part {
        Part {
            name: name.into(),
            value,
            steps: None,
            is_of_steps: false,
            weight,
            missing: None,
        }
    }

    fn scored(parts: Vec<Part>) -> Scored {
        let mut scored = Scored {
            total: 0.0,
            parts,
            verdict: None,
            step_ends: vec![3, 5],
        };
        scored.sum_up();
        scored
    }

    #[test]
    fn steps_and_the_whole_by_hand() {
        let mut of_steps = part("reward_model", None, 2.0);
        of_steps.is_of_steps = true;
        of_steps.put_steps(Ok(vec![0.5, 1.0]));
        assert_eq!(of_steps.value, Some(0.75));
        let mut other = of_steps.clone();
        (other.weight, other.name) = (1.0, "language_consistency".into());
        other.put_steps(Ok(vec![1.0, 0.0]));
        let both = scored(vec![
            part("accuracy", Some(1.0), 3.0),
            of_steps.clone(),
            other,
        ]);
        assert_eq!((both.total, both.outcome()), (5.0, Some(3.0)));
        assert_eq!(both.steps(), [2.0, 2.0]);
        let alone = scored(vec![of_steps.clone()]);
        assert_eq!((alone.total, alone.outcome()), (1.5, None));
        of_steps.put_steps(Ok(Vec::new()));
        assert_eq!(of_steps.missing.as_deref(), Some("there is no step"));
        let none = scored(vec![part("accuracy", None, 1.0), of_steps]);
        assert_eq!((none.outcome(), none.steps()), (None, vec![]));
        assert_eq!((none.reward(), none.total), (None, 0.0));
        // a weighted 0 is a reward
        let zero = scored(vec![part("accuracy", Some(0.0), 1.0)]);
        assert_eq!(zero.reward(), Some(0.0));
    }

    #[test]
    fn a_judge_counts_where_no_verifier_is() {
        let judged = |value| scored(vec![part("judge", value, 0.5)]).is_correct();
        assert_eq!(judged(Some(1.0)), Some(true));
        assert_eq!(judged(Some(0.0)), Some(false));
        assert_eq!(judged(None), None);
        // a score is no verdict
        assert_eq!(
            scored(vec![part("reward_model", Some(0.9), 1.0)]).is_correct(),
            None
        );
    }
}
