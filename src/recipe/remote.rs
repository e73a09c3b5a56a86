//! `[stage.grpo.remote]`: completions come from an engine that runs elsewhere, vLLM or SGLang, and gets the weights as
//! files. What is said to the engine is in `generate/remote.rs`.
//!
//! Its numbers are never quite the trainer's (other kernels, often another dtype), and with `sync_every_steps` above the
//! updates of a rollout its weights are older than the policy's. Both are what `grpo.correction` is for: older weights
//! without a correction are refused, a fresh copy without one is warned of.

use super::grpo::{Correction, Grpo};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[stage.grpo.remote]`
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Which program it is, `vllm` or `sglang`.
    pub engine: RemoteKind,
    /// Where it listens, such as `http://localhost:8000`.
    pub url: String,
    /// The name that vLLM serves the model under; what it was started with where this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The environment variable that holds the engine's key, never the key itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Completions that are asked for side by side.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Longest wait for a completion, or until the engine has read new weights.
    #[serde(default = "timeout_s")]
    pub timeout_s: f64,
    /// Further attempts where the engine cannot be reached, is busy or breaks.
    #[serde(default = "retries")]
    pub retries: usize,
    /// Wait before the first further attempt; doubled each time.
    #[serde(default = "backoff_s")]
    pub backoff_s: f64,
    /// Folder for the weights that the engine reads, under the same path on both sides and of this run alone; default:
    /// `remote-weights` in the stage's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_dir: Option<String>,
    /// Updates after which new weights are handed over, which happens between rollouts; more than a rollout has makes
    /// completions stale.
    #[serde(default = "sync_every_steps")]
    pub sync_every_steps: usize,
}

/// Whose endpoints are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemoteKind {
    /// vLLM 0.16 or newer.
    Vllm,
    /// SGLang 0.5.4 or newer.
    Sglang,
}

impl RemoteKind {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
        }
    }

    /// vLLM raises lower ones without a word in its answer.
    fn least_temperature(self) -> f64 {
        match self {
            Self::Vllm => 0.01,
            Self::Sglang => 1e-3,
        }
    }
}

fn concurrency() -> usize {
    256
}

fn timeout_s() -> f64 {
    3600.0
}

fn retries() -> usize {
    5
}

fn backoff_s() -> f64 {
    1.0
}

fn sync_every_steps() -> usize {
    1
}

impl Remote {
    /// What changes what is learnt: which program samples, and how old its weights may be.
    pub fn learned(&self) -> Self {
        Self {
            url: String::new(),
            model: None,
            api_key_env: None,
            concurrency: 0,
            timeout_s: 0.0,
            retries: 0,
            backoff_s: 0.0,
            weights_dir: None,
            ..self.clone()
        }
    }

    /// Updates between two times that weights are handed over: they come between rollouts.
    pub fn every_updates(&self, grpo: &Grpo) -> usize {
        let updates = grpo.num_updates_per_rollout().max(1);
        self.sync_every_steps.div_ceil(updates) * updates
    }

    /// Refuses settings that mean nothing, alone or with those of the table around them.
    ///
    /// # Errors
    /// The first such setting, by its key.
    pub fn check(&self, grpo: &Grpo) -> Result<()> {
        let bad = |key: &str, wanted: &str| {
            Err(Error::input(format!(
                "`grpo.remote.{key}` must be {wanted}"
            )))
        };
        let has_host = self
            .url
            .split_once("://")
            .is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && !rest.is_empty());
        if !has_host {
            return bad("url", "an address such as `http://localhost:8000`");
        }
        let texts = [
            ("model", &self.model),
            ("api_key_env", &self.api_key_env),
            ("weights_dir", &self.weights_dir),
        ];
        for (key, text) in texts {
            if text.as_ref().is_some_and(String::is_empty) {
                return bad(key, "a name, or left out");
            }
        }
        if !(1..=1024).contains(&self.concurrency) {
            return bad("concurrency", "from 1 to 1024");
        }
        if !(self.timeout_s > 0.0 && self.timeout_s <= 86_400.0) {
            return bad("timeout_s", "a number of seconds in (0, 86400]");
        }
        if self.retries > 100 {
            return bad("retries", "at most 100");
        }
        if !(0.0..=600.0).contains(&self.backoff_s) {
            return bad("backoff_s", "a number of seconds in [0, 600]");
        }
        if self.sync_every_steps == 0 {
            return bad("sync_every_steps", "at least 1");
        }
        let least = self.engine.least_temperature();
        if grpo.temperature < least {
            return Err(Error::input(format!(
                "`grpo.temperature` is {}, and {} samples at {least} at least",
                grpo.temperature,
                self.engine.name()
            )));
        }
        let updates = grpo.num_updates_per_rollout();
        if grpo.correction == Correction::None && self.sync_every_steps > updates {
            return Err(Error::input(format!(
                "`grpo.remote.sync_every_steps` is {}, and a rollout has {updates} updates: completions of older weights need a `grpo.correction`",
                self.sync_every_steps
            ))
            .with_hint("set `correction = \"token_truncate\"`, or hand over the weights before every rollout"));
        }
        Ok(())
    }
}
