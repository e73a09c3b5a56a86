//! The engine elsewhere: completions of vLLM or SGLang, with our weights handed over as files. What is said to them is in
//! `wire`, how they are asked in `server` and [`super::http`].
//!
//! Weights are written into a folder that was never there before, and the engine is told to read it when it is whole:
//! neither half a file nor one that an engine remembers is ever read. Then a few tokens are sampled and their
//! log-probabilities compared with ours. That finds weights that were not read, another model, and log-probabilities of a
//! temperature that was not sampled at, any of which would bias what is learnt without a word.
//!
//! A completion is cut where our own engine would have ended it, and its text is what our tokenizer makes of its tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use super::http::{Http, NAP, Patience, Unanswered};
use super::local::with_special_stops;
use super::sampler::Choice;
use super::schedule::{Sequence, check_requests};
use super::server::{Pool, Server, spawn};
use super::wire::Answer;
use super::{Completion, Engine, FinishReason, Request, Sampling};
use crate::model::{Batch, CausalLm};
use crate::progress::Stop;
use crate::random::{GOLDEN, mix};
use crate::recipe::remote::{Remote, RemoteKind};
use crate::tokenize::Chat;
use crate::{Error, Result};

/// Longer bodies are no answer: 100 bytes each for more tokens than any context holds.
const MAX_BODY_BYTES: u64 = 1 << 30;
const MAX_SHARD_BYTES: u64 = 5_000_000_000;
/// Folders of weights begin so.
const PREFIX: &str = "distill-step-";
/// What weights are known by: so many tokens at this temperature, far from the 1 of raw log-probabilities.
const PROBE_TOKENS: usize = 32;
const PROBE_TEMPERATURE: f64 = 2.0;
/// Mean difference of log-probabilities, in nats, at which they are not those of the same weights. Engines of 16 and 8 bits
/// stay far below.
const MAX_GAP: f64 = 0.5;
/// The same for weights that were taken in part: so many times the least difference so far, and this at least. vLLM 0.32
/// keeps an old head on the CPU where it is the embedding, which a small update shows only after a while.
const MAX_GROWTH: f64 = 6.0;
const LEAST_GAP: f64 = 0.08;
/// An engine ends this many tokens before its context does.
const CONTEXT_SLACK: usize = 8;

/// Samples from a copy of a model's weights that another program has.
pub struct RemoteEngine<'a> {
    model: &'a CausalLm,
    chat: &'a Chat,
    settings: &'a Remote,
    server: Arc<Server>,
    stop: Stop,
    weights_dir: PathBuf,
    /// The update whose weights it has.
    held: Option<usize>,
    /// Whether its weights have been compared with ours.
    is_checked: bool,
    /// The least difference that was found.
    least_gap: f64,
}

impl<'a> RemoteEngine<'a> {
    /// An engine that gets the weights of `model` under `weights_dir`, with the files of `chat` beside them; nothing is
    /// asked or written yet.
    ///
    /// # Errors
    /// A key that cannot be sent.
    pub fn open(
        settings: &'a Remote,
        model: &'a CausalLm,
        chat: &'a Chat,
        weights_dir: PathBuf,
        stop: Stop,
    ) -> Result<Self> {
        let url = settings.url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url);
        let patience = Patience {
            url,
            key_variable: settings.api_key_env.as_deref(),
            timeout_s: settings.timeout_s,
            max_retries: settings.retries,
            backoff_s: settings.backoff_s,
            max_body_bytes: MAX_BODY_BYTES,
        };
        let server = Server {
            http: Http::open(&patience, stop.clone()).map_err(|e| e.at("`grpo.remote`"))?,
            kind: settings.engine,
            url: url.to_string(),
            model: settings.model.clone(),
            key_variable: settings.api_key_env.clone(),
        };
        Ok(Self {
            model,
            chat,
            settings,
            server: Arc::new(server),
            stop,
            weights_dir,
            held: None,
            is_checked: false,
            least_gap: f64::INFINITY,
        })
    }

    /// Writes the weights and has them read.
    fn hand_over_now(&self, step: usize) -> Result<()> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |e| Error::io(action, path, e)
        };
        fs::create_dir_all(&self.weights_dir).map_err(io("creating", &self.weights_dir))?;
        // the engine runs in another folder
        let dir = fs::canonicalize(&self.weights_dir).map_err(io("reading", &self.weights_dir))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        let folder = dir.join(format!("{PREFIX}{step:06}-{now:x}"));
        let beside = folder.with_extension("partial");
        self.model.save(&beside, MAX_SHARD_BYTES)?;
        self.chat.save(&beside)?;
        fs::rename(&beside, &folder).map_err(io("renaming", &beside))?;
        let to_read = folder.clone();
        let read = self.aside(move |server| server.reload(&to_read));
        if let Err(error) = read.flatten() {
            // every attempt writes another; the error is the news
            let _ = fs::remove_dir_all(&folder);
            return Err(error);
        }
        // those of before, and what a killed run left
        self.delete(Some(&folder))
    }

    /// Deletes the weights that were handed over: whoever read them needs them no more.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn clear(&self) -> Result<()> {
        match self.weights_dir.exists() {
            true => self.delete(None),
            false => Ok(()),
        }
    }

    fn delete(&self, except: Option<&Path>) -> Result<()> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |e| Error::io(action, path, e)
        };
        let dir = fs::canonicalize(&self.weights_dir).map_err(io("reading", &self.weights_dir))?;
        for entry in fs::read_dir(&dir).map_err(io("listing", &dir))? {
            let path = entry.map_err(io("listing", &dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let is_ours = name.is_some_and(|name| name.starts_with(PREFIX));
            if is_ours && except != Some(path.as_path()) {
                fs::remove_dir_all(&path).map_err(io("deleting", &path))?;
            }
        }
        Ok(())
    }

    /// Does something that may take long while the user may stop.
    fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Server) -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, done) = mpsc::channel();
        let server = self.server.clone();
        // nobody listens after a stop
        spawn(move || drop(sender.send(work(&server))))?;
        loop {
            match done.recv_timeout(NAP) {
                Ok(done) => return Ok(done),
                Err(mpsc::RecvTimeoutError::Timeout) if !self.stop.requested() => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(Error::Interrupted {
                        message: format!("while {} was waited for", self.server),
                    });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::input(format!("{}: no answer came", self.server)));
                }
            }
        }
    }

    /// Compares log-probabilities of a few tokens after `prompt` with ours.
    fn check(&mut self, prompt: &[u32], temperature: f64) -> Result<()> {
        let room = self.max_positions() - prompt.len();
        let limit = PROBE_TOKENS.min(room);
        let sampling = Sampling {
            temperature: PROBE_TEMPERATURE,
            ..Sampling::default()
        };
        let body = self.server.question(prompt, &sampling, limit, 1);
        let answer = self
            .aside(move |server| server.ask(&body, &AtomicBool::new(false)))?
            .map_err(|e| self.server.error(e, 1))?;
        self.check_tokens(&answer)?;
        let tokens = [prompt, &answer.tokens].concat();
        let length = tokens.len() - 1;
        let first = prompt.len() - 1;
        let batch = Batch {
            tokens: tokens[..length].to_vec(),
            seq_lens: vec![length],
            targets: tokens[1..].to_vec(),
            weights: (0..length)
                .map(|i| if i < first { 0.0 } else { 1.0 })
                .collect(),
        };
        let gap_at = |temperature| -> Result<f64> {
            let ours = self.model.token_stats(&batch, temperature)?.logprobs;
            let pairs = ours[first..].iter().zip(&answer.logprobs);
            let sum: f64 = pairs.map(|(&o, s)| (f64::from(o) - s).abs()).sum();
            Ok(sum / answer.tokens.len() as f64)
        };
        let (sampled, raw) = (gap_at(PROBE_TEMPERATURE)?, gap_at(1.0)?);
        let kind = self.settings.engine;
        let gap = sampled.min(raw);
        let limit = (MAX_GROWTH * self.least_gap).clamp(LEAST_GAP, MAX_GAP);
        if gap > limit {
            return Err(Error::input(format!(
                "{} does not have the weights that it was given: its log-probabilities are {gap:.2} off ours in the mean, and may be {limit:.2}",
                self.server
            ))
            .with_hint("it must serve the same model, take all of its weights, and be alone behind its address"));
        }
        self.least_gap = self.least_gap.min(gap);
        if raw < sampled && temperature != 1.0 {
            let hint = match kind {
                RemoteKind::Vllm => "start it with `--logprobs-mode processed_logprobs`",
                RemoteKind::Sglang => "start it without `SGLANG_RETURN_ORIGINAL_LOGPROB`",
            };
            return Err(Error::input(format!(
                "{} samples at a temperature of {temperature} and tells the log-probabilities of 1, which would bias what is learnt",
                self.server
            ))
            .with_hint(hint));
        }
        Ok(())
    }

    /// That the tokens are some, and of the vocabulary.
    fn check_tokens(&self, answer: &Answer) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let of = &self.server;
        if answer.tokens.is_empty() {
            return Err(Error::input(format!("{of}: a completion has no tokens")));
        }
        match answer.tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(token) => Err(Error::input(format!(
                "{of}: token {token} is outside the model's vocabulary of {vocab}"
            ))
            .with_hint("it serves another model")),
            None => Ok(()),
        }
    }

    fn max_positions(&self) -> usize {
        self.model.config().max_position_embeddings
    }

    /// The completion as our own engine would have ended it.
    fn completion(
        &self,
        request: &Request,
        sampling: &Sampling,
        answer: Answer,
    ) -> Result<Completion> {
        self.check_tokens(&answer)?;
        let (tokenizer, limit) = (&self.chat.tokenizer, self.limit(request, sampling));
        let n = answer.tokens.len();
        if n > limit {
            return Err(Error::input(format!(
                "{}: a completion has {n} tokens, and {limit} were asked for",
                self.server
            )));
        }
        if answer.finish_reason == FinishReason::Length && n + CONTEXT_SLACK < limit {
            return Err(Error::input(format!(
                "{} cut a completion off after {n} tokens of {limit}: its context is too short",
                self.server
            ))
            .with_hint(match self.settings.engine {
                RemoteKind::Vllm => "raise its `--max-model-len`",
                RemoteKind::Sglang => "raise its `--context-length`",
            }));
        }
        let mut sequence = Sequence::new(request, 0, 0, sampling, self.max_positions());
        let mut found = None;
        for (&token, &logprob) in answer.tokens.iter().zip(&answer.logprobs) {
            let logprob = logprob.min(0.0) as f32;
            let choice = Choice {
                token,
                logprob,
                sampled_logprob: logprob,
            };
            found = sequence.push(choice, request, sampling, tokenizer)?;
            if found.is_some() {
                break;
            }
        }
        // where it ended at a token of its own, or had no more room
        let mut completion = match found {
            Some(completion) => completion,
            None => {
                let has_stopped = answer.finish_reason == FinishReason::Stop;
                sequence.end(request, n, has_stopped, sampling, tokenizer)?
            }
        };
        if sampling.temperature != 1.0 {
            completion.logprobs = Vec::new();
        }
        Ok(completion)
    }

    /// Longest completion of a request.
    fn limit(&self, request: &Request, sampling: &Sampling) -> usize {
        let room = self.max_positions() - request.prompt.len();
        sampling.max_new_tokens.min(room)
    }
}

impl Engine for RemoteEngine<'_> {
    fn hand_over(&mut self, step: usize) -> Result<usize> {
        let every = self.settings.sync_every_steps;
        if let Some(held) = self.held
            && (held..held + every).contains(&step)
        {
            return Ok(held);
        }
        self.held = None;
        self.hand_over_now(step)?;
        (self.held, self.is_checked) = (Some(step), false);
        Ok(step)
    }

    fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        on_done: &mut dyn FnMut(Completion) -> Result<()>,
        stop: &Stop,
    ) -> Result<()> {
        sampling.validate()?;
        let plain = Sampling {
            max_new_tokens: sampling.max_new_tokens,
            temperature: sampling.temperature,
            stop: sampling.stop.clone(),
            stop_ids: sampling.stop_ids.clone(),
            seed: sampling.seed,
            ..Sampling::default()
        };
        if plain != *sampling || sampling.temperature < 1e-3 {
            return Err(Error::input(
                "a remote engine samples at a temperature above 0, without a filter or a penalty",
            ));
        }
        let vocab = self.model.config().vocab_size;
        check_requests(requests, vocab, self.max_positions())?;
        let Some(first) = requests.first() else {
            return Ok(());
        };
        if !self.is_checked {
            self.check(&first.prompt, sampling.temperature)?;
            self.is_checked = true;
        }
        let sampling = &with_special_stops(sampling, &self.chat.tokenizer);
        let questions = requests.iter().map(|request| {
            let limit = self.limit(request, sampling);
            let seed = seed(sampling.seed, request.id);
            self.server.question(&request.prompt, sampling, limit, seed)
        });
        let pool = Pool::start(&self.server, questions.collect(), self.settings.concurrency)?;
        let mut num_missing = requests.len();
        while num_missing > 0 {
            let interrupted = || Error::Interrupted {
                message: format!("with {num_missing} completions to go"),
            };
            // the threads end by themselves: nobody waits for an answer that is not wanted
            if stop.requested() {
                return Err(interrupted());
            }
            match pool.answers.recv_timeout(NAP) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::input(format!(
                        "{}: no more answers came",
                        self.server
                    )));
                }
                Ok((_, Err(Unanswered::Stopped))) => return Err(interrupted()),
                Ok((_, Err(why))) => return Err(self.server.error(why, num_missing)),
                Ok((at, Ok(answer))) => {
                    on_done(self.completion(&requests[at], sampling, answer)?)?;
                    num_missing -= 1;
                }
            }
        }
        Ok(())
    }
}

/// The seed of a request, 63 bits: both engines take it as a signed number.
pub fn seed(seed: u64, id: u64) -> u64 {
    mix(seed.wrapping_add(id.wrapping_add(1).wrapping_mul(GOLDEN))) >> 1
}
