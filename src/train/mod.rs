//! Supervised fine-tuning: the loop, what it reads, how it is stopped and resumed, and what it needs.
//!
//! - [`sft`]: the loop, top to bottom;
//! - [`settings`]: its numbers, resolved; [`examples`]: what it trains on;
//! - [`order`]: which rows make which step; [`micro_batch`]: rows end to end as the model takes them;
//! - [`checkpoint`]: everything needed to go on bit for bit;
//! - [`footprint`]: memory and work of a run before it runs.

pub mod checkpoint;
pub mod examples;
pub mod footprint;
pub mod micro_batch;
mod non_finite;
pub mod order;
pub mod settings;
pub mod sft;

pub use examples::Examples;
pub use settings::SftSettings;
pub use sft::{Observer, SftOutcome, StepRecord, train_sft};
