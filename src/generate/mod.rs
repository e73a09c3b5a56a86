//! Batched sampling from a causal language model.
//!
//! This file holds what goes in and comes out: [`Sampling`], [`Request`], [`Completion`] and the [`Engine`] trait. The
//! engine on our own weights is in [`local`], the one on another machine in [`remote`], what is said to it in `wire` and how
//! it is asked in `server` and [`http`]. Who is sampled when is in `schedule`, how a token is chosen in `sampler`, where
//! a text ends in `stopping`, files that grow row by row in [`row_log`], log-probabilities of given tokens in [`score`]. Prompts come as tokens: templates belong to
//! `tokenize/`.

pub mod http;
pub mod local;
pub mod remote;
mod retry_after;
pub mod row_log;
mod sampler;
mod schedule;
pub mod score;
mod server;
mod softmax;
mod stopping;
mod wire;

pub use local::LocalEngine;
pub use remote::RemoteEngine;

use serde::{Deserialize, Serialize};

use crate::progress::Stop;
use crate::{Error, Result};

/// How tokens are chosen and where a completion ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0, or below a millionth, is greedy: the most probable token, the lowest id among equals.
    pub temperature: f64,
    /// Keep the most probable tokens whose probabilities sum to this; 1 keeps all.
    pub top_p: f64,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f64,
    /// Tokens of the prompt and of the completion have positive logits divided and negative ones multiplied by this; 1 is
    /// none.
    pub repetition_penalty: f64,
    pub max_new_tokens: usize,
    /// Texts that end a completion; what is found and all after it is cut off the text.
    pub stop: Vec<String>,
    /// Tokens that end a completion; they are among its tokens, not in its text.
    pub stop_ids: Vec<u32>,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 1024,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses settings that mean nothing.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (
                self.temperature.is_finite() && self.temperature >= 0.0,
                format!(
                    "`temperature` is {}, and must be 0 (greedy) or more",
                    self.temperature
                ),
            ),
            (
                self.top_p > 0.0 && self.top_p <= 1.0,
                format!(
                    "`top_p` is {}, and must be above 0 and at most 1",
                    self.top_p
                ),
            ),
            (
                (0.0..=1.0).contains(&self.min_p),
                format!("`min_p` is {}, and must be between 0 and 1", self.min_p),
            ),
            (
                (1e-3..=1e3).contains(&self.repetition_penalty),
                format!(
                    "`repetition_penalty` is {}, and must be between 0.001 and 1000",
                    self.repetition_penalty
                ),
            ),
            (
                self.max_new_tokens > 0,
                "`max_new_tokens` is 0, and must be at least 1".to_string(),
            ),
            (
                self.stop.iter().all(|text| !text.is_empty()),
                "`stop` holds an empty text, which would end every completion".to_string(),
            ),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, message)) => Err(Error::input(message)),
            None => Ok(()),
        }
    }
}

/// One prompt to continue. The id is part of the random seed: the same id, seed and prompt give the same completion in
/// whatever company.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub id: u64,
    pub prompt: Vec<u32>,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// At a stop token or a stop text.
    Stop,
    /// At `max_new_tokens`, or where the model has no more positions.
    Length,
}

/// What was sampled for one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    pub id: u64,
    /// Everything sampled, the stop token and the tokens of a stop text included.
    pub tokens: Vec<u32>,
    /// Natural log-probability of each token under the model itself: temperature 1, nothing filtered, no penalty. Empty
    /// where a remote engine samples at another temperature: it tells only those at its own.
    pub logprobs: Vec<f32>,
    /// The same at the temperature that was sampled at, still with nothing filtered: what the sampler believed where no
    /// filter is on. 0 where the most probable token is always taken.
    pub sampled_logprobs: Vec<f32>,
    /// The text up to the stop token or stop text, special tokens left out.
    pub text: String,
    pub finish_reason: FinishReason,
}

/// Something that continues prompts: our own model, or another machine.
pub trait Engine {
    /// Says before sampling that the policy has had `step` updates, and returns after how many the weights are that will
    /// be sampled from: fewer where the engine has a copy and is not given a new one each time.
    fn hand_over(&mut self, step: usize) -> Result<usize> {
        Ok(step)
    }

    /// Continues every request and hands each completion to `on_done` the moment it ends, in no particular order.
    /// Returns [`Error::Interrupted`] where `stop` was requested, after which nothing more is handed out.
    fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        on_done: &mut dyn FnMut(Completion) -> Result<()>,
        stop: &Stop,
    ) -> Result<()>;
}
