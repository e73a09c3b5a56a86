//! AdamW in place, learning-rate schedules, gradient clipping. What a step is and when it runs is in `train/`; the fused
//! update itself is [`crate::ops::adamw_inplace`].

mod adamw;
mod clip;
mod schedule;

pub use adamw::{AdamW, AdamWConfig, Piecewise, has_8bit_states};
pub use clip::clip_scale;
pub use schedule::Schedule;
