//! Our own requests to the Hub: with the token, tried again where that may help, never waited for without end, and refused
//! in the words of `failure`. Which calls there are is decided elsewhere.
//!
//! A blocking read cannot be told to stop. So each is done by a thread of its own while the caller looks up now and then
//! (`waiting`); a thread that nobody waits for any more ends with its connection.

use std::collections::HashSet;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Url};
use serde_json::Value;

use super::failure::{Failure, interrupted, root_cause};

/// How long a server may ask to wait before the next attempt.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Attempts after the first, unless said otherwise.
const NUM_RETRIES: usize = 5;
/// Attempts after one that met silence: a server that says nothing twice says nothing.
pub const MAX_SILENT: usize = 1;
/// How often whoever waits looks up.
pub const TICK: Duration = Duration::from_millis(50);
/// Longer answers are none.
const MAX_ANSWER: u64 = 256 << 20;
/// A listing has no more pages than this.
const MAX_PAGES: usize = 10_000;

/// How long a server may say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before it answers.
    pub answer: Duration,
    /// Between two bytes of a file.
    pub transfer: Duration,
}

impl Patience {
    /// As `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` say, in seconds.
    pub fn from_env() -> Self {
        let seconds = |name: &str, default: u64| {
            let given = std::env::var(name).ok().and_then(|s| s.trim().parse().ok());
            Duration::from_secs(given.filter(|s| (1..86_400).contains(s)).unwrap_or(default))
        };
        Self {
            answer: seconds("HF_HUB_ETAG_TIMEOUT", 30),
            transfer: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 60),
        }
    }
}

/// Why work that was waited for has no result.
#[derive(Debug)]
pub enum Unfinished {
    Stopped,
    TooLate,
    /// The system gives no thread.
    NoThread(std::io::Error),
}

/// What `work` gives, done on a thread of its own; left behind where it takes too long or the user stops.
pub fn waiting<T: Send + 'static>(
    patience: Duration,
    stopped: &dyn Fn() -> bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let end = Instant::now() + patience;
    waiting_until(&mut || Instant::now() >= end, stopped, work)
}

/// [`waiting`] where it is not the clock alone that says when it is too late.
pub fn waiting_until<T: Send + 'static>(
    is_late: &mut dyn FnMut() -> bool,
    stopped: &dyn Fn() -> bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("hub".into())
        // nobody may be waiting any more
        .spawn(move || drop(sender.send(work())))
        .map_err(Unfinished::NoThread)?;
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(done) => return Ok(done),
            // the work has panicked, which is told on stderr
            Err(RecvTimeoutError::Disconnected) => return Err(Unfinished::TooLate),
            Err(RecvTimeoutError::Timeout) if stopped() => return Err(Unfinished::Stopped),
            Err(RecvTimeoutError::Timeout) if is_late() => return Err(Unfinished::TooLate),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Waits, unless the user stops.
pub fn pause(time: Duration, stopped: &dyn Fn() -> bool) -> Result<(), Failure> {
    let end = Instant::now() + time;
    loop {
        if stopped() {
            return Err(Failure::Local(interrupted()));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(TICK));
    }
}

/// One Hub, and who asks it.
pub struct Wire {
    client: Client,
    endpoint: String,
    token: Option<String>,
    num_retries: usize,
    pub patience: Patience,
}

impl Wire {
    pub fn new(
        endpoint: &str,
        token: Option<String>,
        num_retries: Option<usize>,
        patience: Patience,
    ) -> Result<Self, Failure> {
        let client = Client::builder()
            .user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            // of a single read, where nobody waits for it any more: a transfer may take as long as it likes while bytes arrive
            .timeout(2 * patience.answer.max(patience.transfer))
            .build()
            .map_err(|e| Failure::Other(root_cause(&e)))?;
        Ok(Self {
            client,
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            num_retries: num_retries.unwrap_or(NUM_RETRIES),
            patience,
        })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn num_retries(&self) -> usize {
        self.num_retries
    }

    /// `Authorization`, where there is a token.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A request to a path of the Hub or a whole address. Only the Hub itself is told the token; where it redirects to
    /// another host, the client leaves the token out.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        if path.starts_with("http://") || path.starts_with("https://") {
            let is_hub = path
                .strip_prefix(self.endpoint.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            let request = self.client.request(method, path);
            return match &self.token {
                Some(token) if is_hub => request.bearer_auth(token),
                _ => request,
            };
        }
        let request = self
            .client
            .request(method, format!("{}{path}", self.endpoint));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends what `request` makes until there is an answer that trying again would not change. Only for requests that may
    /// be made twice.
    pub fn send(
        &self,
        request: impl Fn() -> RequestBuilder,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Response, Failure> {
        self.persist(stopped, || self.once(request(), stopped))
    }

    /// The JSON at a path, and the address of its next page.
    pub fn get_json(
        &self,
        path: &str,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(Value, Option<String>), Failure> {
        self.persist(stopped, || {
            let response = self.once(self.request(Method::GET, path), stopped)?;
            let next = next_page(response.headers());
            let read = move || {
                let mut body = Vec::new();
                response
                    .take(MAX_ANSWER)
                    .read_to_end(&mut body)
                    .map(|_| body)
            };
            // a long listing may take longer than its beginning
            let body = match waiting(4 * self.patience.answer, stopped, read) {
                Ok(Ok(body)) => body,
                Ok(Err(error)) => return refused(Failure::Broken(root_cause(&error)), None),
                Err(unfinished) => return refused(self.failure(unfinished), None),
            };
            match serde_json::from_slice(&body) {
                Ok(value) => Ok((value, next)),
                Err(e) => refused(Failure::Other(format!("the answer is no JSON: {e}")), None),
            }
        })
    }

    /// One attempt; a refusal comes with how long the server wants to be left alone.
    fn once(
        &self,
        request: RequestBuilder,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Response, Box<Refused>> {
        match waiting(self.patience.answer, stopped, move || request.send()) {
            Ok(Ok(response)) if response.status().is_success() => Ok(response),
            Ok(Ok(response)) => {
                let wait = retry_after(response.headers());
                refused(Failure::of_response(response), wait)
            }
            Ok(Err(error)) => refused(Failure::of_request(&error), None),
            Err(unfinished) => refused(self.failure(unfinished), None),
        }
    }

    fn failure(&self, unfinished: Unfinished) -> Failure {
        match unfinished {
            Unfinished::Stopped => Failure::Local(interrupted()),
            Unfinished::TooLate => Failure::Silent(self.patience.answer),
            Unfinished::NoThread(error) => Failure::Other(error.to_string()),
        }
    }

    fn persist<T>(
        &self,
        stopped: &dyn Fn() -> bool,
        once: impl Fn() -> Result<T, Box<Refused>>,
    ) -> Result<T, Failure> {
        let mut attempt = 0;
        loop {
            let Refused { failure, wait } = match once() {
                Ok(done) => return Ok(done),
                Err(refused) => *refused,
            };
            let most = match failure {
                Failure::Silent(_) => self.num_retries.min(MAX_SILENT),
                _ => self.num_retries,
            };
            if attempt >= most || !failure.may_pass() {
                return Err(failure);
            }
            pause(wait.unwrap_or(backoff(attempt)).min(LONGEST_WAIT), stopped)?;
            attempt += 1;
        }
    }
}

/// An attempt in vain.
struct Refused {
    failure: Failure,
    /// How long the server wants to be left alone.
    wait: Option<Duration>,
}

fn refused<T>(failure: Failure, wait: Option<Duration>) -> Result<T, Box<Refused>> {
    Err(Box::new(Refused { failure, wait }))
}

/// The pages of a listing, followed as long as they lead on: within the same server, each once.
pub struct Pages {
    here: Url,
    seen: HashSet<String>,
}

impl Pages {
    /// Of the listing that begins at this whole address; `None` where it is none.
    pub fn new(first: &str) -> Option<Self> {
        Some(Self {
            here: Url::parse(first).ok()?,
            seen: HashSet::from([first.to_string()]),
        })
    }

    /// The address of the next page, where the last one, of so many entries, names one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn follow(
        &mut self,
        next: Option<String>,
        num_entries: usize,
    ) -> Result<Option<String>, String> {
        let Some(next) = next else {
            return Ok(None);
        };
        let address = self.here.join(&next);
        let address = address.map_err(|_| "its next page has no address".to_string())?;
        if address.origin() != self.here.origin() {
            return Err("its next page is on another server".into());
        }
        if num_entries == 0 || self.seen.len() >= MAX_PAGES {
            return Err("it has no end".into());
        }
        let address = address.to_string();
        match self.seen.insert(address.clone()) {
            true => Ok(Some(address)),
            false => Err("its pages lead back to one that was read already".into()),
        }
    }
}

/// How long to wait after so many failed attempts.
pub fn backoff(attempt: usize) -> Duration {
    Duration::from_millis(500 << attempt.min(6))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    Some(Duration::from_secs(seconds.parse().ok()?))
}

/// `Link: <address>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get("link")?.to_str().ok()?;
    let next = links.split(',').find(|l| l.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    Some(rest.split_once('>')?.0.to_string())
}

/// A name as one segment of a path, or with `keep_slashes` as several.
pub fn encoded(text: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if is_plain || keep_slashes && byte == b'/' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The token of the environment, found as Python and hf-hub find it: `HF_TOKEN`, then the file of `hf auth login`.
pub fn token_from_env() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let given = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let file = variable("HF_TOKEN_PATH")
        .map(PathBuf::from)
        .unwrap_or_else(|| hf_home().join("token"));
    given
        .or_else(|| std::fs::read_to_string(file).ok())
        .map(|token| token.trim().to_string())
        .filter(|token| !token.is_empty())
}

/// Where what is fetched lies.
pub fn cache_folder() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .map_or_else(|| hf_home().join("hub"), PathBuf::from)
}

fn hf_home() -> PathBuf {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    folder("HF_HOME")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(folder("HOME")?.join(".cache/huggingface")))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses() {
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/c#1é.txt", true), "a%20b/c%231%C3%A9.txt");
    }

    #[test]
    fn the_next_page_of_a_listing() {
        let mut headers = HeaderMap::new();
        let link = "<http://h/a?cursor=1>; rel=\"prev\", <http://h/a?cursor=3>; rel=\"next\"";
        headers.insert("link", link.parse().unwrap());
        assert_eq!(next_page(&headers).unwrap(), "http://h/a?cursor=3");
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
    }

    #[test]
    fn pages_lead_on_or_are_refused() {
        let first = "http://h:1/api/x/tree/c?recursive=true";
        let mut pages = Pages::new(first).unwrap();
        let mut follow = |next: &str, num_entries| pages.follow(Some(next.into()), num_entries);
        let second = "http://h:1/api/x/tree/c?cursor=2";
        assert_eq!(follow(second, 5), Ok(Some(second.into())));
        // below the same server
        let third = follow("/api/x/tree/c?cursor=3", 5).unwrap().unwrap();
        assert_eq!(third, "http://h:1/api/x/tree/c?cursor=3");
        for (next, num_entries, why) in [
            (second, 5, "lead back"),
            (first, 5, "lead back"),
            ("http://h:2/api/x", 5, "another server"),
            ("https://h:1/api/x", 5, "another server"),
            ("//evil/api", 5, "another server"),
            ("http://", 5, "no address"),
            ("?cursor=4", 0, "no end"),
        ] {
            let found = follow(next, num_entries).unwrap_err();
            assert!(found.contains(why), "{next}: {found}");
        }
        assert_eq!(pages.follow(None, 0), Ok(None));
        let mut pages = Pages::new(first).unwrap();
        let num_read = (0..)
            .take_while(|i| pages.follow(Some(format!("?c={i}")), 1).is_ok())
            .count();
        assert_eq!(num_read, MAX_PAGES - 1);
        assert!(Pages::new("no address").is_none());
    }

    #[test]
    fn whoever_waits_looks_up() {
        let long = || std::thread::sleep(Duration::from_secs(20));
        let begun = Instant::now();
        let found = waiting(Duration::from_millis(100), &|| false, long);
        assert!(matches!(found, Err(Unfinished::TooLate)));
        let found = waiting(Duration::from_secs(20), &|| true, long);
        assert!(matches!(found, Err(Unfinished::Stopped)));
        assert!(pause(Duration::from_secs(20), &|| true).is_err());
        assert!(matches!(waiting(TICK, &|| false, || 7), Ok(7)));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let wire = Wire::new(
            "http://hub.test/",
            Some("hf_secret".into()),
            None,
            Patience::from_env(),
        )
        .unwrap();
        let is_sent = |path: &str| {
            let request = wire.request(Method::GET, path).build().unwrap();
            request.headers().contains_key("authorization")
        };
        assert!(is_sent("/api/models"));
        assert!(is_sent("http://hub.test/api/models"));
        assert!(!is_sent("http://hub.test.evil/api"));
        assert!(!is_sent("https://elsewhere.test/file"));
    }
}
