//! Clipping by the global norm.

/// Factor that brings gradients of global norm `norm` down to `max`, as `torch.nn.utils.clip_grad_norm_` computes it:
/// `min(1, max / (norm + 1e-6))`. A `max` of 0 turns clipping off.
pub fn clip_scale(norm: f64, max: f64) -> f64 {
    if max <= 0.0 {
        return 1.0;
    }
    (max / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(4.0, 1.0), 1.0 / 4.000001);
        // torch scales a norm of exactly `max` down by the 1e-6
        assert_eq!(clip_scale(1.0, 1.0), 1.0 / 1.000001);
        assert_eq!(clip_scale(1e9, 0.0), 1.0);
        assert_eq!(clip_scale(0.0, 1.0), 1.0);
    }
}
