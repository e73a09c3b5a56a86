//! An OpenAI-compatible chat endpoint: many questions at once, retried with backoff, within a budget.
//!
//! What is asked and what an answer means is the caller's. A question is asked again when the endpoint is busy or broken
//! (connection, timeout, 408, 409, 429, 5xx, a body that is cut or no chat completion) and when its words cannot be read; at
//! last that is an error. What the endpoint refuses for good (a wrong key, an unknown model) is an error at once.

use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::retry_after;
use crate::progress::Stop;
use crate::recipe::reward::JudgeSettings;
use crate::{Error, Result};

/// Longer bodies are no answer.
const MAX_BODY_BYTES: u64 = 4 << 20;
/// Backoff grows up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// An endpoint that asks to be left alone for longer is not waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Sleeps are cut into pieces, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(50);

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
    http: Client,
    url: String,
    /// Never shown, never written.
    key: Option<HeaderValue>,
    settings: JudgeSettings,
    usage: Mutex<Usage>,
    stop: Stop,
    random: RandomState,
}

/// Why an attempt gave no answer.
enum Failure {
    /// Worth another attempt, not before so long.
    Again(String, Option<Duration>),
    Final(Error),
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
        let key = match std::env::var(&settings.key_variable) {
            Ok(key) if !key.is_empty() => {
                let value =
                    HeaderValue::from_str(&format!("Bearer {}", key.trim())).map(|mut value| {
                        value.set_sensitive(true);
                        value
                    });
                Some(value.map_err(|_| {
                    let name = &settings.key_variable;
                    Error::input(format!("judge: what `{name}` holds is no key"))
                        .with_hint("it may hold no line ends")
                })?)
            }
            _ => None,
        };
        let base = settings.url.trim_end_matches('/');
        let url = match base.ends_with("/chat/completions") {
            true => base.to_string(),
            false => format!("{base}/chat/completions"),
        };
        let mut http = Client::builder()
            .timeout(Duration::from_secs_f64(settings.timeout_s))
            .connect_timeout(Duration::from_secs_f64(settings.timeout_s.min(20.0)))
            // a redirect would carry the texts to where nobody wanted them
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")));
        if is_local(base) {
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|e| Error::input(format!("judge: no HTTP client: {e}")))?;
        Ok(Self {
            http,
            url,
            key,
            settings: settings.clone(),
            usage: Mutex::new(Usage::default()),
            stop,
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
        let mut backoff = Duration::from_secs_f64(self.settings.backoff_s);
        let mut attempt = 0;
        loop {
            self.check_stop()?;
            let (why, wait) = match self.request(&messages(&self.nonce())) {
                Ok(text) => match read(&text)? {
                    Ok(answer) => return Ok(answer),
                    Err(why) => (why, None),
                },
                Err(Failure::Again(why, wait)) => (why, wait),
                Err(Failure::Final(error)) => return Err(error),
            };
            let gives_up = |why: &str| {
                let times = match attempt {
                    0 => String::new(),
                    n => format!(", {} times", n + 1),
                };
                Err(Error::input(format!(
                    "the judge at `{}` gave no verdict{times}: {why}",
                    without_login(&self.settings.url)
                ))
                .with_hint("no answer was scored in its place"))
            };
            if attempt == self.settings.max_retries || failed.load(Ordering::SeqCst) {
                return gives_up(&why);
            }
            if wait.is_some_and(|wait| wait > MAX_RETRY_AFTER) {
                return gives_up(&format!(
                    "{why}, and it asks to be left alone for longer than 10 minutes"
                ));
            }
            let jitter =
                0.5 + self.random.hash_one((attempt, Instant::now())) as f64 / u64::MAX as f64;
            self.sleep(
                backoff.mul_f64(jitter).max(wait.unwrap_or_default()),
                failed,
            )?;
            backoff = (backoff * 2).min(MAX_BACKOFF);
            attempt += 1;
        }
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
        let mut request = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .body(body);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let response = request
            .send()
            .map_err(|e| Failure::Again(format!("it cannot be reached: {}", reason(e)), None))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(response));
        }
        let mut bytes = Vec::new();
        response
            .take(MAX_BODY_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::Again(format!("its answer was cut off: {e}"), None))?;
        let completion: Completion = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::Again(format!("its answer is no chat completion: {e}"), None))?;
        let used = completion.usage.and_then(|usage| usage.total_tokens);
        self.lock_usage().num_tokens += used.unwrap_or(((num_bytes + bytes.len()) / 4) as u64);
        let choice = completion.choices.into_iter().next();
        match choice.and_then(|choice| choice.message.content) {
            Some(text) => Ok(text),
            None => Err(Failure::Again("its answer holds no text".into(), None)),
        }
    }

    /// What a status other than 2xx means.
    fn refused(&self, response: Response) -> Failure {
        let status = response.status();
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after::parse(value, SystemTime::now()));
        let mut bytes = Vec::new();
        // the explanation is a courtesy
        let _ = response.take(2000).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let shown: String = text
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(200)
            .collect();
        let why = format!("it answered {status}: {shown}");
        if matches!(status.as_u16(), 408 | 409 | 425 | 429 | 500..=599) {
            return Failure::Again(why, wait);
        }
        let error = Error::input(format!(
            "the judge at `{}`: {why}",
            without_login(&self.settings.url)
        ));
        Failure::Final(match status.as_u16() {
            401 | 403 => {
                error.with_hint(format!("put the key into `{}`", self.settings.key_variable))
            }
            404 => {
                error.with_hint("the address ends with `/v1`, and the model must be one it serves")
            }
            _ => error,
        })
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

    fn check_stop(&self) -> Result<()> {
        if self.stop.requested() {
            return Err(Error::Interrupted {
                message: format!("what was judged is kept in `{}`", self.settings.cache),
            });
        }
        Ok(())
    }

    /// Waits, unless the user or a failure elsewhere says that it is of no use.
    fn sleep(&self, time: Duration, failed: &AtomicBool) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end && !failed.load(Ordering::SeqCst) {
            self.check_stop()?;
            std::thread::sleep(NAP.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
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

/// Whether the endpoint runs on this machine, where no proxy leads.
fn is_local(url: &str) -> bool {
    let host = url.split("://").nth(1).unwrap_or_default();
    host.starts_with("localhost") || host.starts_with("127.") || host.starts_with("[::1]")
}

/// An address without the name and password that it may hold.
fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_string();
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// What went wrong, without the address, which may hold a password.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut deepest: &dyn std::error::Error = &error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
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
