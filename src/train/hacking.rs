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

/// The point of the best accuracy so far, where the last point's reward is higher than there and its accuracy lower by more
/// than two standard errors of the difference.
pub fn alarm(points: &[Point]) -> Option<Point> {
    let (last, before) = points.split_last()?;
    let best = before
        .iter()
        .copied()
        .max_by(|a, b| a.accuracy.total_cmp(&b.accuracy))?;
    let error = (best.accuracy_error.powi(2) + last.accuracy_error.powi(2)).sqrt();
    let fell = best.accuracy - last.accuracy > 2.0 * error && last.accuracy < best.accuracy;
    (fell && last.reward > best.reward).then_some(best)
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
        assert_eq!(alarm(&hacked).map(|p| p.step), Some(2));
        // both fall: something else is wrong
        assert_eq!(alarm(&[&up[..], &[point(3, 0.3, 0.3)]].concat()), None);
        assert_eq!(alarm(&up[..1]), None);
        assert_eq!(alarm(&[]), None);
        assert_eq!(share_error(0.5, 0), 0.0);
    }
}
