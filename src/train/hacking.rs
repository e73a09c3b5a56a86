//! An alarm for rewards that are earned without being deserved: the training reward climbs while the accuracy on held-out
//! problems falls (arXiv 2501.12948 shows it for its preference reward, supplement B.5).

/// What is known of one evaluation.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Point {
    pub step: usize,
    /// Mean training reward since the evaluation before.
    pub reward: f64,
    /// Share of held-out problems that are right.
    pub accuracy: f64,
    /// Standard error of that share.
    pub accuracy_error: f64,
}

/// The reward is up and the accuracy down; a field of the update's record.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Alarm {
    /// The best accuracy before.
    pub since: Point,
    pub now: Point,
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { since, now } = self;
        write!(
            f,
            "step {}: the reward is up from {:.3} to {:.3} since step {}, the held-out accuracy down from {:.3} to {:.3}: what is rewarded may not be what is wanted",
            now.step, since.reward, now.reward, since.step, since.accuracy, now.accuracy
        )
    }
}

/// Raised where the last point's reward is higher than at the best accuracy so far, and its accuracy lower by more than two
/// standard errors of the difference.
pub fn alarm(points: &[Point]) -> Option<Alarm> {
    let (last, before) = points.split_last()?;
    let best = before
        .iter()
        .copied()
        .max_by(|a, b| a.accuracy.total_cmp(&b.accuracy))?;
    let error = (best.accuracy_error.powi(2) + last.accuracy_error.powi(2)).sqrt();
    let fell = best.accuracy - last.accuracy > 2.0 * error && last.accuracy < best.accuracy;
    (fell && last.reward > best.reward).then_some(Alarm {
        since: best,
        now: *last,
    })
}

/// Standard error of a share of `n` problems.
pub fn share_error(share: f64, n: usize) -> f64 {
    match n {
        0 => 0.0,
        n => (share * (1.0 - share) / n as f64).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reward_up_and_accuracy_down() {
        let point = |step, reward, accuracy| Point {
            step,
            reward,
            accuracy,
            accuracy_error: share_error(accuracy, 100),
        };
        // errors of 0.05 each: twice that of the difference is 0.141
        let up = [point(1, 0.2, 0.3), point(2, 0.4, 0.5)];
        assert_eq!(alarm(&up), None);
        assert_eq!(alarm(&[&up[..], &[point(3, 0.6, 0.4)]].concat()), None);
        let hacked = [&up[..], &[point(3, 0.6, 0.3)]].concat();
        let raised = alarm(&hacked).unwrap();
        assert_eq!((raised.since.step, raised.now.step), (2, 3));
        assert_eq!(
            raised.to_string(),
            "step 3: the reward is up from 0.400 to 0.600 since step 2, the held-out accuracy down from 0.500 to 0.300: what is rewarded may not be what is wanted"
        );
        // both fall: something else is wrong
        assert_eq!(alarm(&[&up[..], &[point(3, 0.3, 0.3)]].concat()), None);
        assert_eq!(alarm(&up[..1]), None);
        assert_eq!(alarm(&[]), None);
        assert_eq!(share_error(0.5, 0), 0.0);
    }
}
