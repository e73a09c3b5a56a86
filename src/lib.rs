//! `distill`: small open models to reasoning models, the way DeepSeek-R1 did.
//!
//! The crate is cut into rooms. A room imports only rooms of earlier layers; `tests/architecture.rs` holds the table and
//! checks it.
//!
//! | layer | room | holds |
//! |---|---|---|
//! | 0 | [`random`] | numbers of a seed, the same everywhere |
//! | 1 | [`error`], [`progress`] | the error enum with its hints; the reporter trait (no terminal code) |
//! | 1 | [`ops`] | operations with a backward, plain and fast; tensors to the device and to files |
//! | 1 | [`verify`] | text to verdict |
//! | 2 | [`recipe`] | TOML to typed recipe to resolved plan; cards of students and suites |
//! | 2 | [`hub`] | models and data sets from the Hugging Face Hub |
//! | 3 | [`tokenize`] | tokenizer, chat template and loss mask, packing |
//! | 3 | [`model`] | Qwen2, Qwen3, Llama: forward, backward, KV cache, weights in and out |
//! | 3 | [`optim`] | AdamW, schedules, clipping |
//! | 4 | [`data`] | the trace record, its sources, the token store |
//! | 4 | [`generate`] | batched sampling |
//! | 5 | [`reward`] | samples to numbers: weighted sum with breakdown, judge, reward model; samples to pairs |
//! | 6 | [`train`] | SFT, GRPO, preference and reward-model training, checkpoints, memory footprint |
//! | 6 | [`eval`] | benchmark runs with intervals |
//! | 7 | [`report`] | metrics log, TensorBoard events, HTML report |
//! | 8 | [`pipeline`] | stages in order, run folder, resume |
//! | 9 | [`cli`] | one file per command; the only place that prints |

pub mod cli;
pub mod data;
pub mod error;
pub mod eval;
pub mod generate;
pub mod hub;
pub mod model;
pub mod ops;
pub mod optim;
pub mod pipeline;
pub mod progress;
pub mod random;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod tokenize;
pub mod train;
pub mod verify;

pub use error::{Error, Result};

/// Training frees and asks for the same large buffers every step; the system's allocator would return and clear their
/// pages each time. See [`keep_freed_memory`].
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Freed memory stays with the process: by default the allocator gives it back after ten milliseconds, and a seventh of a
/// training step goes into clearing the same pages again. For programs that train or sample; called once, at the start.
pub fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc.h; the crate names only some of the options
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the option is there in every version that the crate builds, and may be set at any time
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
