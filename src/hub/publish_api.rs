//! Questions to the Hub's API that a push asks: with a token that is never shown, asked again while the server is busy.
//!
//! What went wrong is one of three things: a status, no answer, or an answer that cannot be read. Whether a question may be
//! asked twice is the caller's to say: a commit may not.

use super::failure::interrupted;
use super::publish_files::RepoKind;
pub use super::wire::token_from_env;
use super::wire::{MAX_SILENT, Patience, Unfinished, waiting};
use crate::progress::Stop;
use crate::{Error, Result};
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::Value;
use std::io::Read;
use std::time::{Duration, Instant};

/// Questions that are asked again are asked so often.
const MAX_ATTEMPTS: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Of the wait between attempts.
const MAX_DOUBLINGS: u32 = 4;
/// A server that asks for more patience is believed, up to this.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// A question with a long answer, or one that takes the server some work, is waited for so much longer.
const LONGER: u32 = 2;
/// Longer answers are none.
const MAX_ANSWER: u64 = 256 << 20;

/// Which Hub, and as whom.
#[derive(Clone)]
pub struct Account {
    /// Without a slash at its end.
    pub endpoint: String,
    token: Option<String>,
}

/// A repository, and a branch of it.
#[derive(Clone, Debug)]
pub struct Place {
    pub kind: RepoKind,
    /// `owner/name`
    pub repo: String,
    pub revision: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ApiError {
    Status {
        status: u16,
        /// `X-Error-Code`
        code: Option<String>,
        message: String,
        wait: Option<Duration>,
    },
    /// Nobody answered, or the answer was cut: the question may have arrived.
    NoAnswer(String),
    /// The same, after so long.
    Silent(Duration),
    /// The user stopped.
    Stopped,
}

/// A connection with one account.
pub struct Api {
    client: Client,
    pub account: Account,
    pub patience: Patience,
    stop: Stop,
}

impl Account {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, and the file that logging in leaves.
    ///
    /// # Errors
    /// No network is to be used; an address that is none.
    pub fn from_env() -> Result<Self> {
        if is_on("HF_HUB_OFFLINE") {
            return Err(
                Error::input("nothing can be published while `HF_HUB_OFFLINE` is set")
                    .with_hint("unset it, or see with `--dry-run` what would go up"),
            );
        }
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self::new(&endpoint, token_from_env().as_deref())
    }

    /// As given.
    ///
    /// # Errors
    /// An address that is none, a token that cannot be sent.
    pub fn new(endpoint: &str, token: Option<&str>) -> Result<Self> {
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(
                Error::input(format!("`HF_ENDPOINT = {endpoint}` is no address"))
                    .with_hint("give a whole address such as `https://huggingface.co`"),
            );
        }
        if endpoint
            .split('/')
            .nth(2)
            .is_some_and(|host| host.contains('@'))
        {
            return Err(Error::input("`HF_ENDPOINT` holds a name or a password")
                .with_hint("addresses are printed: give it without, and the token as `HF_TOKEN`"));
        }
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        if token.is_some_and(|token| HeaderValue::from_str(token).is_err()) {
            return Err(
                Error::input("the access token holds characters that no token has")
                    .with_hint("check `HF_TOKEN`, or log in again with `hf auth login`"),
            );
        }
        Ok(Self {
            endpoint,
            token: token.map(String::from),
        })
    }

    /// Texts that may go nowhere.
    pub fn secrets(&self) -> Vec<String> {
        self.token.iter().cloned().collect()
    }

    /// # Errors
    /// There is no token.
    pub fn need_token(&self) -> Result<()> {
        match self.token {
            Some(_) => Ok(()),
            None => Err(Error::input("publishing needs an access token, and there is none")
                .with_hint(format!(
                    "set `HF_TOKEN` to a token with write permission ({}/settings/tokens), or run `hf auth login`",
                    self.endpoint
                ))),
        }
    }

    /// `text` without the token, wherever it came from.
    fn without_token(&self, text: &str) -> String {
        match &self.token {
            Some(token) => text.replace(token.as_str(), "***"),
            None => text.to_string(),
        }
    }

    /// Says who asks. Only the Hub itself is told.
    pub fn headers(&self, url: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let below = url.strip_prefix(&self.endpoint);
        if !below.is_some_and(|rest| rest.starts_with('/')) {
            return headers;
        }
        let value = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if let Some(Ok(mut value)) = value.map(|value| HeaderValue::from_str(&value)) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }
}

impl Place {
    /// An address of the API below the repository; `rest` begins with `/` or is empty.
    pub fn api(&self, endpoint: &str, rest: &str) -> String {
        format!("{endpoint}/api/{}/{}{rest}", self.kind.plural(), self.repo)
    }

    /// The branch as part of an address.
    pub fn branch(&self) -> String {
        quoted(&self.revision)
    }

    /// As people call it.
    pub fn subject(&self) -> String {
        format!("{} `{}`", self.kind.name(), self.repo)
    }

    /// Its page.
    pub fn page(&self, endpoint: &str) -> String {
        format!("{endpoint}/{}{}", self.kind.prefix(), self.repo)
    }
}

impl Api {
    /// # Errors
    /// No HTTP client can be made.
    pub fn open(account: Account, stop: Stop) -> Result<Self> {
        let mut builder = Client::builder()
            .user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .timeout(None);
        let host = account.endpoint.split("://").nth(1).unwrap_or_default();
        if ["localhost", "127.", "[::1]"]
            .iter()
            .any(|local| host.starts_with(local))
        {
            builder = builder.no_proxy();
        }
        let client = builder
            .build()
            .map_err(|e| Error::input(format!("no HTTP client: {e}")))?;
        Ok(Self {
            client,
            account,
            patience: Patience::from_env(),
            stop,
        })
    }

    /// Whether the user wants to stop.
    pub fn stopped(&self) -> bool {
        self.stop.requested()
    }

    /// The client itself, for bodies that are no JSON.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads a value, with as many attempts as it takes.
    pub fn get(&self, url: &str) -> std::result::Result<Value, ApiError> {
        self.get_page(url).map(|(value, _)| value)
    }

    /// [`Self::get`] with the address of the next page.
    pub fn get_page(&self, url: &str) -> std::result::Result<(Value, Option<String>), ApiError> {
        self.persist(|| {
            let request = self.client.get(url).headers(self.account.headers(url));
            let response = self.send(request, self.answer())?;
            let next = response
                .headers()
                .get_all("link")
                .iter()
                .filter_map(|value| value.to_str().ok())
                .find_map(next_page);
            Ok((self.json(response)?, next))
        })
    }

    /// A small text, as it is.
    pub fn get_text(&self, url: &str, most: u64) -> std::result::Result<String, ApiError> {
        self.persist(|| {
            let request = self.client.get(url).headers(self.account.headers(url));
            let bytes = self.read(self.send(request, self.answer())?, most)?;
            String::from_utf8(bytes).map_err(|e| ApiError::NoAnswer(e.to_string()))
        })
    }

    /// Sends a value that may arrive twice.
    pub fn post(&self, url: &str, body: &Value) -> std::result::Result<Value, ApiError> {
        self.persist(|| self.post_once(url, body))
    }

    /// Sends a value once.
    pub fn post_once(&self, url: &str, body: &Value) -> std::result::Result<Value, ApiError> {
        let request = self.client.post(url);
        let request = request
            .headers(self.account.headers(url))
            .header("content-type", "application/json")
            .body(body.to_string());
        self.json(self.send(request, self.answer())?)
    }

    /// How long a question is waited for.
    pub fn answer(&self) -> Duration {
        LONGER * self.patience.answer
    }

    /// One attempt, which takes no longer than `patience` with everything that it answers.
    pub fn send(
        &self,
        request: RequestBuilder,
        patience: Duration,
    ) -> std::result::Result<Response, ApiError> {
        let request = request.timeout(patience);
        let work = move || request.send();
        match waiting(patience, &|| self.stopped(), work) {
            Ok(answer) => self.answered(answer, patience),
            Err(unfinished) => Err(ApiError::of(unfinished, patience)),
        }
    }

    /// What an attempt gave that was made elsewhere.
    pub fn answered(
        &self,
        answer: reqwest::Result<Response>,
        patience: Duration,
    ) -> std::result::Result<Response, ApiError> {
        let response = answer.map_err(|e| {
            if e.is_timeout() && !e.is_connect() {
                return ApiError::Silent(patience);
            }
            let mut deepest: &dyn std::error::Error = &e;
            while let Some(source) = deepest.source() {
                deepest = source;
            }
            let why = match e.is_timeout() {
                true => "no answer in time".to_string(),
                false => deepest.to_string(),
            };
            ApiError::NoAnswer(self.account.without_token(&why))
        })?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(self.refused(response)),
        }
    }

    /// The JSON of an answer; nothing at all is `null`.
    pub fn json(&self, response: Response) -> std::result::Result<Value, ApiError> {
        let bytes = self.read(response, MAX_ANSWER)?;
        if bytes.iter().all(u8::is_ascii_whitespace) || bytes == b"OK" || bytes == b"Created" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::NoAnswer(format!("the answer is no JSON: {e}")))
    }

    /// So many bytes of an answer at most.
    fn read(&self, response: Response, most: u64) -> std::result::Result<Vec<u8>, ApiError> {
        let patience = LONGER * self.answer();
        let work = move || {
            let mut bytes = Vec::new();
            let read = response.take(most).read_to_end(&mut bytes);
            read.map(|_| bytes)
        };
        match waiting(patience, &|| self.stopped(), work) {
            Ok(read) => {
                read.map_err(|e| ApiError::NoAnswer(format!("the answer was cut off: {e}")))
            }
            Err(unfinished) => Err(ApiError::of(unfinished, patience)),
        }
    }

    fn refused(&self, response: Response) -> ApiError {
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_string())
        };
        let status = response.status().as_u16();
        let code = header("x-error-code");
        let wait = header(RETRY_AFTER.as_str()).and_then(|v| v.trim().parse::<u64>().ok());
        let said = header("x-error-message");
        // the explanation is a courtesy
        let bytes = self.read(response, 4000).unwrap_or_default();
        let body = String::from_utf8_lossy(&bytes).into_owned();
        let parsed: Option<Value> = serde_json::from_str(&body).ok();
        let from_json = parsed.and_then(|v| {
            let first = &v["errors"][0]["message"];
            Some(v["error"].as_str().or(first.as_str())?.to_string())
        });
        let text = said.or(from_json).unwrap_or(body);
        let words: Vec<&str> = text.split_whitespace().collect();
        let message: String = words.join(" ").chars().take(300).collect();
        ApiError::Status {
            status,
            code,
            message: self.account.without_token(&message),
            wait: wait.map(Duration::from_secs),
        }
    }

    /// Asks until there is an answer that another attempt would not change.
    pub fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> std::result::Result<T, ApiError>,
    ) -> std::result::Result<T, ApiError> {
        for number in 0.. {
            match attempt() {
                Err(ApiError::Silent(time)) if number as usize >= MAX_SILENT => {
                    return Err(ApiError::Silent(time));
                }
                Err(error) if error.may_pass() && number + 1 < MAX_ATTEMPTS => {
                    self.wait(number, error.wait())?;
                }
                done => return done,
            }
        }
        Err(ApiError::Stopped)
    }

    /// Waits before the next attempt.
    pub fn wait(&self, number: u32, asked: Option<Duration>) -> std::result::Result<(), ApiError> {
        let backoff = FIRST_WAIT * 2u32.pow(number.min(MAX_DOUBLINGS));
        let end = Instant::now() + backoff.max(asked.unwrap_or_default()).min(MAX_WAIT);
        while Instant::now() < end {
            if self.stop.requested() {
                return Err(ApiError::Stopped);
            }
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }

    /// Who the token belongs to.
    ///
    /// # Errors
    /// No token, one that is not valid, no network.
    pub fn whoami(&self) -> Result<String> {
        self.account.need_token()?;
        let url = format!("{}/api/whoami-v2", self.account.endpoint);
        match self.get(&url) {
            Ok(value) => Ok(value["name"].as_str().unwrap_or_default().to_string()),
            Err(error) => Err(self.explain(error, "the account cannot be read")),
        }
    }

    /// The error to show; `what` says what was not possible.
    pub fn explain(&self, error: ApiError, what: &str) -> Error {
        let endpoint = &self.account.endpoint;
        match error {
            ApiError::Stopped => interrupted(),
            ApiError::Silent(time) => Error::input(format!("{what}: {endpoint} says nothing for {} s", time.as_secs()))
                .with_hint("check the network (and `HF_ENDPOINT`) and run the same command again: it goes on where it stopped; `HF_HUB_ETAG_TIMEOUT` is the seconds that it is waited"),
            ApiError::NoAnswer(why) => Error::input(format!("{what}: {endpoint} gave no answer: {why}"))
                .with_hint("check the network (and `HF_ENDPOINT`) and run the same command again: it goes on where it stopped"),
            ApiError::Status { status, code, message, .. } => {
                let said = match message.is_empty() {
                    true => String::new(),
                    false => format!(": {message}"),
                };
                let error = Error::input(format!("{what}: the server answered {status}{said}"));
                match (status, code.as_deref()) {
                    (_, Some("GatedRepo")) => error.with_hint(format!("accept its terms on its page at {endpoint} with the account of this token")),
                    (401, _) => error.with_hint(format!(
                        "the token is not valid here: set `HF_TOKEN` to one with write permission ({endpoint}/settings/tokens)"
                    )),
                    (402, _) => error.with_hint("the account's plan or its storage does not allow this"),
                    (403, _) => error.with_hint("this token may not write there: use one with write permission, or a repository of your own"),
                    (404, _) => error.with_hint("check the spelling; a private repository is only there for tokens that may read it"),
                    (412, _) => error.with_hint("somebody else writes to the branch: run the same command again"),
                    (413, _) => error.with_hint("the server refuses so much at once"),
                    (429, _) => error.with_hint("wait some minutes and run the same command again: it goes on where it stopped"),
                    (500..=599, _) => error.with_hint("run the same command again later: it goes on where it stopped"),
                    _ => error,
                }
            }
        }
    }
}

impl ApiError {
    /// Of something that was not waited for to its end.
    pub fn of(unfinished: Unfinished, patience: Duration) -> Self {
        match unfinished {
            Unfinished::Stopped => Self::Stopped,
            Unfinished::TooLate => Self::Silent(patience),
            Unfinished::NoThread(error) => Self::NoAnswer(error.to_string()),
        }
    }

    /// Whether it may be another time.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoAnswer(_) | Self::Silent(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Stopped => false,
        }
    }

    /// Whether what was asked for may have been done all the same.
    pub fn is_doubtful(&self) -> bool {
        matches!(
            self,
            Self::NoAnswer(_)
                | Self::Silent(_)
                | Self::Status {
                    status: 408 | 500..=599,
                    ..
                }
        )
    }

    /// How long the server wants to be left alone.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Status { wait, .. } => *wait,
            _ => None,
        }
    }

    /// The status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// The address in `<...>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
        is_next.then(|| address.to_string())
    })
}

fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    value.filter(|value| !value.trim().is_empty())
}

fn is_on(name: &str) -> bool {
    let value = variable(name).map(|value| value.trim().to_ascii_lowercase());
    value.is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.as_str()))
}

/// A name as one segment of an address.
pub fn quoted(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(b).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_in_no_message_and_in_no_debug_output() {
        let account = Account::new("http://localhost:1/", Some(" marker-token-1\n")).unwrap();
        assert_eq!(account.endpoint, "http://localhost:1");
        assert_eq!(
            account.without_token("no marker-token-1 here"),
            "no *** here"
        );
        let told = account.headers("http://localhost:1/api");
        assert!(told.contains_key(AUTHORIZATION) && !format!("{told:?}").contains("marker"));
        for other in ["http://localhost:12/api", "https://store.example/x"] {
            assert!(account.headers(other).is_empty(), "{other}");
        }
        for (endpoint, token) in [("huggingface.co", None), ("http://x", Some("a\nb"))] {
            let error = Account::new(endpoint, token).err().unwrap();
            assert!(error.hint().is_some() && !error.to_string().contains("a\nb"));
        }
    }

    #[test]
    fn pages_and_names_in_addresses() {
        let link = "<http://x/a?cursor=1>; rel=\"next\", <http://x/b>; rel=\"last\"";
        assert_eq!(next_page(link).as_deref(), Some("http://x/a?cursor=1"));
        assert_eq!(next_page("<http://x/b>; rel=\"last\""), None);
        assert_eq!(quoted("refs/pr/1"), "refs%2Fpr%2F1");
        let place = Place {
            kind: RepoKind::Dataset,
            repo: "a/b".into(),
            revision: "runs/1".into(),
        };
        assert_eq!(
            place.api("http://x", "/refs"),
            "http://x/api/datasets/a/b/refs"
        );
        assert_eq!(place.branch(), "runs%2F1");
        assert_eq!(place.page("http://x"), "http://x/datasets/a/b");
    }

    #[test]
    fn what_may_pass_and_what_is_in_doubt() {
        let status = |status| ApiError::Status {
            status,
            code: None,
            message: String::new(),
            wait: None,
        };
        for (number, passes, doubt) in [
            (429, true, false),
            (500, true, true),
            (408, true, true),
            (403, false, false),
            (412, false, false),
        ] {
            let error = status(number);
            assert_eq!(
                (error.may_pass(), error.is_doubtful()),
                (passes, doubt),
                "{number}"
            );
        }
        assert!(ApiError::NoAnswer(String::new()).is_doubtful());
    }
}
