//! The settings of the papers on group-relative policy optimisation, by name. What a setting means is in [`super::grpo`].

use super::grpo::{Grpo, Kl, Loss, Ratio, Scale};
use serde::{Deserialize, Serialize};

/// Settings that go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// DeepSeekMath (arXiv 2402.03300): lr 1e-6, KL 0.04, G 64, one update a rollout of 16 prompts.
    #[default]
    Deepseekmath,
    /// DeepSeek-R1 (arXiv 2501.12948): lr 3e-6, KL 0.001, clipping at 10, G 16, 32 prompts an update, rollouts of 8192
    /// completions in 16 minibatches, the reference replaced every 400 updates.
    R1,
    /// DAPO (arXiv 2503.14476): clipping at 0.2 and 0.28, no KL, a mean over tokens, dynamic sampling, overlong filter.
    Dapo,
    /// Dr. GRPO (arXiv 2503.20783): no standard deviation, a constant denominator, no KL.
    DrGrpo,
    /// GSPO (arXiv 2507.18071): the ratio of a completion, by its length; clipping at 3e-4 and 4e-4, no KL.
    Gspo,
    /// CISPO (arXiv 2506.13585): weights that are clipped and held constant, no KL.
    Cispo,
}

impl Preset {
    /// The settings of the paper; sizes that it does not give are DeepSeekMath's.
    pub fn settings(self) -> Grpo {
        let base = Grpo {
            preset: self,
            ..Grpo::default()
        };
        let without_kl = Grpo {
            kl: Kl::None,
            kl_coef: 0.0,
            ..base.clone()
        };
        match self {
            Self::Deepseekmath => base,
            Self::R1 => Grpo {
                num_prompts_per_step: 32,
                group_size: 16,
                num_minibatches: 16,
                max_new_tokens: 32_768,
                pack_length: 32_768,
                clip_low: 10.0,
                clip_high: 10.0,
                kl_coef: 0.001,
                reference_every_steps: 400,
                learning_rate: 3e-6,
                ..base
            },
            Self::Dapo => Grpo {
                num_prompts_per_step: 32,
                group_size: 16,
                num_minibatches: 16,
                max_new_tokens: 20_480,
                pack_length: 20_480,
                loss: Loss::Dapo,
                clip_high: 0.28,
                overlong_filter: true,
                dynamic_sampling_rounds: 10,
                weight_decay: 0.1,
                ..without_kl
            },
            Self::DrGrpo => Grpo {
                group_size: 8,
                loss: Loss::DrGrpo,
                advantage: Scale::None,
                ..without_kl
            },
            Self::Gspo => Grpo {
                num_minibatches: 4,
                ratio: Ratio::SequenceMean,
                clip_low: 3e-4,
                clip_high: 4e-4,
                ..without_kl
            },
            Self::Cispo => Grpo {
                num_minibatches: 4,
                loss: Loss::Cispo,
                clip_high: 5.0,
                ..without_kl
            },
        }
    }
}
