//! Training: the loops, what they read, how they are stopped and resumed, and what they need.
//!
//! - [`sft`]: supervised fine-tuning, top to bottom;
//! - [`grpo`]: reinforcement learning, top to bottom, with [`rollout`]: samples and rewards, [`advantage`], [`policy_loss`],
//!   [`grpo_update`]: completions through the model, [`grpo_reference`]: what the KL is taken to, [`grpo_record`]: what is
//!   watched, [`hacking`]: its alarm;
//! - [`preference`]: DPO, RPO and SimPO; [`reward_model`]: a model that scores; [`judged_loop`]: the loop of both;
//! - [`preference_loss`], [`reward_loss`]: their losses as functions of numbers;
//! - [`reference`](mod@reference): log-probabilities of the reference, computed once;
//! - [`settings`]: its numbers, resolved; [`examples`]: what it trains on;
//! - [`order`]: which rows make which step; [`micro_batch`]: rows end to end as the model takes them;
//! - [`checkpoint`]: everything needed to go on bit for bit;
//! - [`footprint`], [`flops`], [`shrink`]: memory and work of a run before it runs, and what to change where it does not fit.

pub mod advantage;
pub mod checkpoint;
pub mod examples;
pub mod flops;
pub mod footprint;
pub mod grpo;
pub mod grpo_record;
pub mod grpo_reference;
pub mod grpo_update;
pub mod hacking;
pub mod judged_loop;
pub mod micro_batch;
mod non_finite;
pub mod order;
pub mod policy_loss;
pub mod preference;
pub mod preference_loss;
pub mod reference;
pub mod reward_loss;
pub mod reward_model;
pub mod rollout;
pub mod settings;
pub mod sft;
pub mod shrink;

pub use examples::Examples;
pub use grpo::{GrpoJob, GrpoObserver, GrpoOutcome, train_grpo};
pub use judged_loop::{JudgedOutcome, JudgedRecord};
pub use preference::train_preference;
pub use reward_model::train_reward_model;
pub use rollout::GrpoPrompt;
pub use settings::SftSettings;
pub use sft::{Observer, SftOutcome, StepRecord, train_sft};

use crate::Result;
use crate::model::CausalLm;
use crate::optim::{AdamW, AdamWConfig};

/// AdamW over the weights of `model` that are trained.
fn optimizer(model: &CausalLm, config: AdamWConfig) -> Result<AdamW> {
    let (first, trained) = model.trained();
    let named: Vec<_> = trained
        .iter()
        .map(|p| (p.name.clone(), p.value.clone()))
        .collect();
    AdamW::from(first, &named, config)
}
