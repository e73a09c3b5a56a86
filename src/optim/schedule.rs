//! The learning rate as a function of the step, as transformers' `get_*_schedule_with_warmup` compute it.

use crate::recipe::ScheduleKind;
use std::f64::consts::PI;

/// Linear warmup from 0 to the peak, then the decay of `kind` down to `floor_ratio * peak`.
///
/// With `w` warmup steps of `n`, and `p = (step - w) / max(1, n - w)`, the factor on the peak is
/// - `step / max(1, w)` while `step < w`;
/// - cosine: `f = (1 + cos(pi p)) / 2`, then `f (1 - floor) + floor` (`cosine_with_min_lr`);
/// - linear: `f = max(0, 1 - p)`, floored in the same way;
/// - constant: 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup_steps: usize,
    pub total_steps: usize,
    /// The learning rate after the warmup.
    pub peak: f64,
    /// The learning rate at the end as a share of the peak; the constant schedule has none.
    pub floor_ratio: f64,
}

impl Schedule {
    /// Warmup steps for a share of all steps: rounded up, as transformers does.
    pub fn warmup_steps(total_steps: usize, ratio: f64) -> usize {
        (total_steps as f64 * ratio).ceil() as usize
    }

    /// Learning rate of the update with `step` updates before it: the first one is `at(0)`, which a warmup makes 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps.max(1) as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps) as f64 / decay_steps as f64;
        let factor = match self.kind {
            ScheduleKind::Constant => return self.peak,
            // beyond the end the floor stays; transformers would climb the next half wave
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress.min(1.0)).cos()),
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
        };
        self.peak * (factor * (1.0 - self.floor_ratio) + self.floor_ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kind: ScheduleKind, warmup_steps: usize, floor_ratio: f64) -> Vec<f64> {
        let schedule = Schedule {
            kind,
            warmup_steps,
            total_steps: 8,
            peak: 2.0,
            floor_ratio,
        };
        (0..=9).map(|step| schedule.at(step)).collect()
    }

    fn assert_near(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-12, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn cosine_by_hand() {
        // 4 steps of warmup, then a half wave over 4: cos(0), cos(pi/4), cos(pi/2), cos(3pi/4), cos(pi)
        let h = std::f64::consts::FRAC_1_SQRT_2;
        assert_near(
            &table(ScheduleKind::Cosine, 4, 0.0),
            &[0.0, 0.5, 1.0, 1.5, 2.0, 1.0 + h, 1.0, 1.0 - h, 0.0, 0.0],
        );
        // the floor lifts the decay alone: f * 0.9 + 0.1
        assert_near(
            &table(ScheduleKind::Cosine, 4, 0.1),
            &[
                0.0,
                0.5,
                1.0,
                1.5,
                2.0,
                0.9 * (1.0 + h) + 0.2,
                1.1,
                0.9 * (1.0 - h) + 0.2,
                0.2,
                0.2,
            ],
        );
    }

    #[test]
    fn linear_and_constant_by_hand() {
        assert_near(
            &table(ScheduleKind::Linear, 0, 0.0),
            &[2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
        );
        assert_near(
            &table(ScheduleKind::Linear, 3, 0.5),
            &[0.0, 2.0 / 3.0, 4.0 / 3.0, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 1.0],
        );
        assert_near(
            &table(ScheduleKind::Constant, 2, 0.1),
            &[0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
        );
    }

    #[test]
    fn warmup_is_rounded_up() {
        assert_eq!(Schedule::warmup_steps(100, 0.03), 3);
        assert_eq!(Schedule::warmup_steps(101, 0.03), 4);
        assert_eq!(Schedule::warmup_steps(10, 0.0), 0);
    }
}
