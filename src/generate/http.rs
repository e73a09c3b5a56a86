//! Questions over HTTP that are asked until they are answered: with backoff, under a key that is never shown, until the user
//! stops. What is asked and what an answer means is the caller's.
//!
//! A question is asked again when the other side is busy or broken (connection, timeout, 408, 409, 425, 429, 5xx, a body
//! that is cut) and when the caller cannot read the answer; any other status is final.

use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};

use super::retry_after;
use crate::progress::Stop;
use crate::{Error, Result};

/// Backoff grows up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A server that asks to be left alone for longer is not waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Sleeps are cut into pieces, so that a stop is noticed.
pub const NAP: Duration = Duration::from_millis(50);

/// Whom to ask, and how patiently.
pub struct Patience<'a> {
    /// An address of the server.
    pub url: &'a str,
    /// The environment variable of its key.
    pub key_variable: Option<&'a str>,
    pub timeout_s: f64,
    pub max_retries: usize,
    /// Before the first further attempt.
    pub backoff_s: f64,
    /// Longer bodies are no answer.
    pub max_body_bytes: u64,
}

/// A server and how it is asked.
pub struct Http {
    client: Client,
    /// Never shown, never written.
    key: Option<HeaderValue>,
    max_retries: usize,
    backoff: Duration,
    max_body_bytes: u64,
    stop: Stop,
    random: RandomState,
}

/// Why an attempt gave no answer.
pub enum Failure {
    /// Worth another attempt.
    Again(String),
    /// Another status than 2xx: the number, what was said, and for how long the server wants to be left alone.
    Status(u16, String, Option<Duration>),
    Final(Error),
}

/// Why a question stays without an answer.
pub enum Unanswered {
    /// After so many attempts.
    GaveUp(usize, String),
    /// With a status that another attempt would not change.
    Refused(u16, String),
    /// The user stopped.
    Stopped,
    Failed(Error),
}

impl Http {
    /// Reads the key; nothing is asked yet.
    ///
    /// # Errors
    /// A key that cannot be sent; no client can be made.
    pub fn open(patience: &Patience, stop: Stop) -> Result<Self> {
        let key = patience
            .key_variable
            .and_then(|name| Some((name, std::env::var(name).ok()?)))
            .filter(|(_, key)| !key.is_empty())
            .map(|(name, key)| {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {}", key.trim())).map_err(|_| {
                        Error::input(format!("what `{name}` holds is no key"))
                            .with_hint("it may hold no line ends")
                    })?;
                value.set_sensitive(true);
                Ok::<_, Error>(value)
            })
            .transpose()?;
        let mut client = Client::builder()
            .timeout(Duration::from_secs_f64(patience.timeout_s))
            .connect_timeout(Duration::from_secs_f64(patience.timeout_s.min(20.0)))
            // a redirect would carry the texts to where nobody wanted them
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")));
        if is_local(patience.url) {
            client = client.no_proxy();
        }
        let client = client
            .build()
            .map_err(|e| Error::input(format!("no HTTP client: {e}")))?;
        Ok(Self {
            client,
            key,
            max_retries: patience.max_retries,
            backoff: Duration::from_secs_f64(patience.backoff_s),
            max_body_bytes: patience.max_body_bytes,
            stop,
            random: RandomState::new(),
        })
    }

    /// One attempt: sends a JSON body and returns that of the answer.
    ///
    /// # Errors
    /// No answer, half of one, or another status than 2xx.
    pub fn post(&self, url: &str, body: String) -> std::result::Result<Vec<u8>, Failure> {
        let mut request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .body(body);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let response = request
            .send()
            .map_err(|e| Failure::Again(format!("it cannot be reached: {}", reason(e))))?;
        if !response.status().is_success() {
            return Err(refused(response));
        }
        let mut bytes = Vec::new();
        response
            .take(self.max_body_bytes)
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::Again(format!("its answer was cut off: {e}")))?;
        Ok(bytes)
    }

    /// Makes attempts until one has an answer. `failed` says that a failure elsewhere makes waiting of no use.
    ///
    /// # Errors
    /// No attempt had one.
    pub fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> std::result::Result<T, Failure>,
        failed: &AtomicBool,
    ) -> std::result::Result<T, Unanswered> {
        let mut backoff = self.backoff;
        let mut num_attempts = 0;
        loop {
            if self.stop.requested() {
                return Err(Unanswered::Stopped);
            }
            let (why, wait) = match attempt() {
                Ok(answer) => return Ok(answer),
                Err(Failure::Again(why)) => (why, None),
                Err(Failure::Status(408 | 409 | 425 | 429 | 500..=599, why, wait)) => (why, wait),
                Err(Failure::Status(status, why, _)) => {
                    return Err(Unanswered::Refused(status, why));
                }
                Err(Failure::Final(error)) => return Err(Unanswered::Failed(error)),
            };
            num_attempts += 1;
            if num_attempts > self.max_retries || failed.load(Ordering::SeqCst) {
                return Err(Unanswered::GaveUp(num_attempts, why));
            }
            if wait.is_some_and(|wait| wait > MAX_RETRY_AFTER) {
                let why = format!("{why}, and it asks to be left alone for longer than 10 minutes");
                return Err(Unanswered::GaveUp(num_attempts, why));
            }
            let jitter =
                0.5 + self.random.hash_one((num_attempts, Instant::now())) as f64 / u64::MAX as f64;
            let wait = backoff.mul_f64(jitter).max(wait.unwrap_or_default());
            if !self.sleep(wait, failed) {
                return Err(Unanswered::Stopped);
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits, unless a failure elsewhere says that it is of no use; false where the user stopped.
    fn sleep(&self, time: Duration, failed: &AtomicBool) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end && !failed.load(Ordering::SeqCst) {
            if self.stop.requested() {
                return false;
            }
            std::thread::sleep(NAP.min(end.saturating_duration_since(Instant::now())));
        }
        true
    }
}

/// What a status other than 2xx comes with.
fn refused(response: Response) -> Failure {
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
    let words: Vec<&str> = text.split_whitespace().collect();
    let shown: String = words.join(" ").chars().take(200).collect();
    Failure::Status(
        status.as_u16(),
        format!("it answered {status}: {shown}"),
        wait,
    )
}

/// `, 3 times` of several attempts.
pub fn times(num_attempts: usize) -> String {
    match num_attempts {
        0 | 1 => String::new(),
        n => format!(", {n} times"),
    }
}

/// Whether the server runs on this machine, where no proxy leads.
fn is_local(url: &str) -> bool {
    let host = url.split("://").nth(1).unwrap_or_default();
    host.starts_with("localhost") || host.starts_with("127.") || host.starts_with("[::1]")
}

/// An address without the name and password that it may hold.
pub fn without_login(url: &str) -> String {
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
