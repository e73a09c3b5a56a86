//! An OpenAI-compatible chat endpoint: many questions at once, within a budget. How a question is asked until it is
//! answered is in [`crate::generate::http`].
//!
//! What is asked and what an answer means is the caller's. A question is asked again when the endpoint is busy or broken,
//! when its body is no chat completion, and when its words cannot be read; at last that is an error. What the endpoint
//! refuses for good (a wrong key, an unknown model) is an error at once.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::generate::http::{Failure, Http, Patience, Unanswered, times, without_login};
use crate::progress::Stop;
use crate::recipe::reward::JudgeSettings;
use crate::{Error, Result};

/// Longer bodies are no answer.
const MAX_BODY_BYTES: u64 = 4 << 20;

/// A turn of the conversation.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Message {
    pub role: &'static str,
    pub content: String,
}

impl Message {
    pub fn new(role: &'static str, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }
}

/// What was asked of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Retries included.
    pub num_requests: u64,
    /// As the endpoint counts them, or else a quarter of the bytes.
    pub num_tokens: u64,
}

pub(super) struct Endpoint {
    http: Http,
    url: String,
    settings: JudgeSettings,
    usage: Mutex<Usage>,
    random: RandomState,
}

impl Endpoint {
    /// Reads the key; nothing is asked yet.
    ///
    /// # Errors
    /// Settings that mean nothing.
    pub fn open(settings: &JudgeSettings, stop: Stop) -> Result<Self> {
        let bad =
            |key: &str, wanted: &str| Err(Error::input(format!("judge: `{key}` must be {wanted}")));
        if !(settings.url.starts_with("http://") || settings.url.starts_with("https://")) {
            return bad("url", "an address such as `http://localhost:8000/v1`");
        }
        if settings.model.is_empty() {
            return bad("model", "the name of a model");
        }
        if settings.concurrency == 0 || settings.concurrency > 1024 {
            return bad("concurrency", "from 1 to 1024");
        }
        if !(settings.timeout_s > 0.0 && settings.timeout_s <= 86_400.0) {
            return bad("timeout_s", "a number of seconds in (0, 86400]");
        }
        if !(settings.backoff_s >= 0.0 && settings.backoff_s <= 600.0) {
            return bad("backoff_s", "a number of seconds in [0, 600]");
        }
        if settings.max_retries > 100 {
            return bad("max_retries", "at most 100");
        }
        if settings.max_tokens == 0 {
            return bad("max_tokens", "at least 1");
        }
        if !(0.0..=2.0).contains(&settings.temperature) {
            return bad("temperature", "in [0, 2]");
        }
        let base = settings.url.trim_end_matches('/');
        let url = match base.ends_with("/chat/completions") {
            true => base.to_string(),
            false => format!("{base}/chat/completions"),
        };
        let patience = Patience {
            url: base,
            key_variable: Some(&settings.key_variable),
            timeout_s: settings.timeout_s,
            max_retries: settings.max_retries,
            backoff_s: settings.backoff_s,
            max_body_bytes: MAX_BODY_BYTES,
        };
        let http = Http::open(&patience, stop).map_err(|e| e.at("judge"))?;
        Ok(Self {
            http,
            url,
            settings: settings.clone(),
            usage: Mutex::new(Usage::default()),
            random: RandomState::new(),
        })
    }

    pub fn usage(&self) -> Usage {
        *self.lock_usage()
    }

    /// Asks `num_questions` questions, several at once, and returns what `read` makes of the answers, in order. `messages`
    /// gets the number of the question and a random number; `read` the number and the words, and says why it cannot read
    /// them, or fails for good.
    ///
    /// # Errors
    /// The first question that stays without an answer; the others that are on their way are still read.
    pub fn ask_all<T: Send>(
        &self,
        num_questions: usize,
        messages: impl Fn(usize, &str) -> [Message; 2] + Sync,
        read: impl Fn(usize, &str) -> Result<std::result::Result<T, String>> + Sync,
    ) -> Result<Vec<T>> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let done: Mutex<Vec<(usize, Result<T>)>> = Mutex::new(Vec::new());
        let num_workers = self.settings.concurrency.min(num_questions);
        std::thread::scope(|scope| {
            for _ in 0..num_workers {
                scope.spawn(|| {
                    while !failed.load(Ordering::SeqCst) {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        if at >= num_questions {
                            break;
                        }
                        let answer =
                            self.ask(|nonce| messages(at, nonce), |text| read(at, text), &failed);
                        if answer.is_err() {
                            failed.store(true, Ordering::SeqCst);
                        }
                        done.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push((at, answer));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        // the failure that came first stopped the others
        if let Some(at) = done.iter().position(|(_, answer)| answer.is_err()) {
            let (_, answer) = done.swap_remove(at);
            return answer.map(|_| Vec::new());
        }
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Asks one question until its answer can be read.
    fn ask<T>(
        &self,
        messages: impl Fn(&str) -> [Message; 2],
        read: impl Fn(&str) -> Result<std::result::Result<T, String>>,
        failed: &AtomicBool,
    ) -> Result<T> {
        let attempt = || match read(&self.request(&messages(&self.nonce()))?) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(Failure::Again(why)),
            Err(error) => Err(Failure::Final(error)),
        };
        let judge = || format!("the judge at `{}`", without_login(&self.settings.url));
        let error = match self.http.persist(attempt, failed) {
            Ok(answer) => return Ok(answer),
            Err(unanswered) => unanswered,
        };
        Err(match error {
            Unanswered::GaveUp(num_attempts, why) => {
                let times = times(num_attempts);
                Error::input(format!("{} gave no verdict{times}: {why}", judge()))
                    .with_hint("no answer was scored in its place")
            }
            Unanswered::Refused(status, why) => {
                let error = Error::input(format!("{}: {why}", judge()));
                match status {
                    401 | 403 => error
                        .with_hint(format!("put the key into `{}`", self.settings.key_variable)),
                    404 => error.with_hint(
                        "the address ends with `/v1`, and the model must be one it serves",
                    ),
                    _ => error,
                }
            }
            Unanswered::Stopped => Error::Interrupted {
                message: format!("what was judged is kept in `{}`", self.settings.cache),
            },
            Unanswered::Failed(error) => error,
        })
    }

    /// The words of one completion.
    fn request(&self, messages: &[Message]) -> std::result::Result<String, Failure> {
        self.spend_request().map_err(Failure::Final)?;
        let settings = &self.settings;
        let body = json!({
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        })
        .to_string();
        let num_bytes = body.len();
        let bytes = self.http.post(&self.url, body)?;
        let completion: Completion = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::Again(format!("its answer is no chat completion: {e}")))?;
        let used = completion.usage.and_then(|usage| usage.total_tokens);
        self.lock_usage().num_tokens += used.unwrap_or(((num_bytes + bytes.len()) / 4) as u64);
        let choice = completion.choices.into_iter().next();
        match choice.and_then(|choice| choice.message.content) {
            Some(text) => Ok(text),
            None => Err(Failure::Again("its answer holds no text".into())),
        }
    }

    /// Takes a request out of the budget.
    fn spend_request(&self) -> Result<()> {
        let mut usage = self.lock_usage();
        let spent = |what: &str, limit: u64| {
            Err(
                Error::input(format!("the judge's budget of {limit} {what} is spent")).with_hint(
                    format!("raise `max_{}`", what.replace("tokens", "total_tokens")),
                ),
            )
        };
        match (self.settings.max_requests, self.settings.max_total_tokens) {
            (Some(limit), _) if usage.num_requests >= limit => spent("requests", limit),
            (_, Some(limit)) if usage.num_tokens >= limit => spent("tokens", limit),
            _ => {
                usage.num_requests += 1;
                Ok(())
            }
        }
    }

    fn lock_usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number nobody can guess: 128 bits of keyed hashes, under a key of the operating system's randomness.
    fn nonce(&self) -> String {
        let now = Instant::now();
        let fresh = RandomState::new();
        format!(
            "{:016x}{:016x}",
            fresh.hash_one(now),
            self.random.hash_one((now, fresh.hash_one(1)))
        )
    }
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
}

#[derive(Deserialize)]
struct Said {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    total_tokens: Option<u64>,
}
