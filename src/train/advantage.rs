//! From the rewards of groups to advantages.
//!
//! Outcome supervision (arXiv 2402.03300, section 4.1.2): `A_i = (r_i - mean(r)) / std(r)` over the group; every token of
//! completion i has it. Process supervision (section 4.1.3): rewards of all steps of the group are normalised together, and
//! a token's advantage is the sum over the steps that end at or after it. A completion without a step has advantages of 0.
//!
//! The standard deviation is that of a sample (n - 1), as TRL computes it; the papers do not say which. A group, or a batch,
//! whose rewards are all equal teaches nothing and has advantages of 0: TRL divides by `std + 1e-4` instead, which is the
//! same there and 1e-4 off elsewhere.

use crate::recipe::grpo::Scale;

/// Mean, and standard deviation of a sample; 0 for fewer than two values.
pub fn mean_and_std(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count();
    if n == 0 {
        return (0.0, 0.0);
    }
    let mean = values.clone().sum::<f64>() / n as f64;
    let squares: f64 = values.map(|v| (v - mean) * (v - mean)).sum();
    match n {
        1 => (mean, 0.0),
        n => (mean, (squares / (n - 1) as f64).sqrt()),
    }
}

/// Below this share of the largest reward a spread is rounding.
const FLAT: f64 = 1e-9;

/// Whether rewards do not differ.
pub fn is_flat(rewards: &[f64]) -> bool {
    let largest = rewards.iter().fold(1.0f64, |m, r| m.max(r.abs()));
    let of = |f: fn(f64, f64) -> f64, start| rewards.iter().copied().fold(start, f);
    rewards.len() < 2
        || of(f64::max, f64::NEG_INFINITY) - of(f64::min, f64::INFINITY) <= FLAT * largest
}

/// The advantage of every completion of every group.
pub fn outcome(groups: &[Vec<f64>], scale: Scale) -> Vec<Vec<f64>> {
    let all = groups.iter().flatten().copied();
    let batch_std = mean_and_std(all).1;
    groups
        .iter()
        .map(|rewards| {
            let (mean, std) = mean_and_std(rewards.iter().copied());
            let divisor = match scale {
                Scale::Group => std,
                Scale::Batch => batch_std,
                Scale::None => 1.0,
            };
            let flat = is_flat(rewards);
            let one = |r: &f64| if flat { 0.0 } else { (r - mean) / divisor };
            rewards.iter().map(one).collect()
        })
        .collect()
}

/// A reward for a step of a completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReward {
    /// Place of its last token among those of the completion.
    pub end: usize,
    pub reward: f64,
}

/// The rewarded steps of a completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps {
    /// Ascending by their ends.
    pub steps: Vec<StepReward>,
    /// Of the completion.
    pub num_tokens: usize,
}

/// The advantage of every token of each completion of every group, from rewards of steps.
pub fn process(groups: &[Vec<Steps>], scale: Scale) -> Vec<Vec<Vec<f64>>> {
    let of = |one: &Steps| one.steps.iter().map(|step| step.reward).collect::<Vec<_>>();
    let rewards: Vec<Vec<f64>> = groups
        .iter()
        .map(|group| group.iter().flat_map(of).collect())
        .collect();
    groups
        .iter()
        .zip(outcome(&rewards, scale))
        .map(|(group, normalised)| {
            let mut normalised = normalised.into_iter();
            let each = group.iter().map(|one| {
                let mut advantages = vec![0.0; one.num_tokens];
                for (step, value) in one.steps.iter().zip(normalised.by_ref()) {
                    let end = one.num_tokens.min(step.end + 1);
                    advantages[..end].iter_mut().for_each(|a| *a += value);
                }
                advantages
            });
            each.collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-6, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn outcomes_by_hand() {
        // mean 75, differences 15, 5, -5, -15; sum of squares 500, std sqrt(500 / 3) = 12.909944
        let rewards = vec![vec![90.0, 80.0, 70.0, 60.0]];
        near(
            &outcome(&rewards, Scale::Group)[0],
            &[1.161_895, 0.387_298, -0.387_298, -1.161_895],
        );
        near(
            &outcome(&rewards, Scale::None)[0],
            &[15.0, 5.0, -5.0, -15.0],
        );
        // two groups: overall mean 0.75, squares 0.0625 * 3 + 0.5625 = 0.75, std sqrt(0.75 / 3) = 0.5
        let rewards = vec![vec![1.0, 0.0], vec![1.0, 1.0]];
        let batch = outcome(&rewards, Scale::Batch);
        near(&batch[0], &[1.0, -1.0]);
        near(&batch[1], &[0.0, 0.0]);
        // 0.5 / sqrt(0.5) each way
        let h = std::f64::consts::FRAC_1_SQRT_2;
        near(&outcome(&rewards, Scale::Group)[0], &[h, -h]);
    }

    #[test]
    fn groups_that_teach_nothing() {
        for scale in [Scale::Group, Scale::Batch, Scale::None] {
            // equal, alone, equal but for rounding, none
            let groups = vec![vec![2.0; 4], vec![7.0], vec![0.1 + 0.2, 0.3], vec![]];
            let advantages = outcome(&groups, scale);
            assert_eq!(advantages, [vec![0.0; 4], vec![0.0], vec![0.0; 2], vec![]]);
        }
        let without = |num_tokens| Steps {
            steps: Vec::new(),
            num_tokens,
        };
        let alone = Steps {
            steps: vec![StepReward {
                end: 1,
                reward: 3.0,
            }],
            num_tokens: 2,
        };
        for scale in [Scale::Group, Scale::Batch, Scale::None] {
            let groups = [
                vec![without(2), without(0)],
                vec![alone.clone(), alone.clone(), without(1)],
                vec![alone.clone()],
            ];
            let expected = [
                vec![vec![0.0; 2], vec![]],
                vec![vec![0.0; 2], vec![0.0; 2], vec![0.0]],
                vec![vec![0.0; 2]],
            ];
            assert_eq!(process(&groups, scale), expected);
        }
    }

    #[test]
    fn steps_by_hand() {
        let steps = |num_tokens, steps: &[(usize, f64)]| Steps {
            steps: steps
                .iter()
                .map(|&(end, reward)| StepReward { end, reward })
                .collect(),
            num_tokens,
        };
        // rewards 1, 0, 0, 1: mean 0.5, std sqrt(1 / 3) = 0.57735, normalised 0.866025 and -0.866025
        let group = vec![
            steps(5, &[(1, 1.0), (3, 0.0)]),
            steps(3, &[(0, 0.0), (2, 1.0)]),
        ];
        let z = 0.866_025;
        let advantages = process(std::slice::from_ref(&group), Scale::Group);
        // the last token belongs to no step
        near(&advantages[0][0], &[0.0, 0.0, -z, -z, 0.0]);
        near(&advantages[0][1], &[0.0, z, z]);
        let advantages = process(std::slice::from_ref(&group), Scale::None);
        near(&advantages[0][0], &[0.0, 0.0, -0.5, -0.5, 0.0]);
        near(&advantages[0][1], &[0.0, 0.5, 0.5]);
        // with a second group of rewards 2, 2: overall mean 1, squares 0 + 1 + 1 + 0 + 1 + 1, std sqrt(4 / 5)
        let other = vec![steps(1, &[(0, 2.0)]), steps(2, &[(1, 2.0)])];
        let advantages = process(&[group, other], Scale::Batch);
        let b = 0.5 / 0.8f64.sqrt();
        near(&advantages[0][0], &[0.0, 0.0, -b, -b, 0.0]);
        near(&advantages[1][1], &[0.0, 0.0]);
    }
}
