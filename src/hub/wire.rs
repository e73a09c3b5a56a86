//! Our own requests to the Hub, for the calls where hf-hub cannot be trusted: with the token, tried again where that may
//! help, and refused in the words of `failure`. Which calls there are is decided elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::failure::{Failure, root_cause};

/// How long a server may ask to wait before the next attempt.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Attempts after the first, unless said otherwise.
const NUM_RETRIES: usize = 5;

/// One Hub, and who asks it.
pub struct Wire {
    client: Client,
    endpoint: String,
    token: Option<String>,
    num_retries: usize,
}

impl Wire {
    pub fn new(
        endpoint: &str,
        token: Option<String>,
        num_retries: Option<usize>,
    ) -> Result<Self, Failure> {
        let client = Client::builder()
            .user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            // of a single read: a transfer may take as long as it likes while bytes arrive
            .timeout(Duration::from_secs(60))
            .build()
            .map_err(|e| Failure::Other(root_cause(&e)))?;
        Ok(Self {
            client,
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            num_retries: num_retries.unwrap_or(NUM_RETRIES),
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
    pub fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, Failure> {
        let mut attempt = 0;
        loop {
            let (failure, wait) = match request().send() {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let wait = retry_after(response.headers());
                    (Failure::of_response(response), wait)
                }
                Err(error) => (Failure::of_request(&error), None),
            };
            if attempt >= self.num_retries || !failure.may_pass() {
                return Err(failure);
            }
            std::thread::sleep(wait.unwrap_or(backoff(attempt)).min(LONGEST_WAIT));
            attempt += 1;
        }
    }

    /// The JSON at a path, and the address of its next page.
    pub fn get_json(&self, path: &str) -> Result<(Value, Option<String>), Failure> {
        let response = self.send(|| self.request(Method::GET, path))?;
        let next = next_page(response.headers());
        let body = (response.bytes()).map_err(|e| Failure::of_request(&e))?;
        let value = serde_json::from_slice(&body)
            .map_err(|e| Failure::Other(format!("the answer is no JSON: {e}")))?;
        Ok((value, next))
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
    fn the_token_goes_to_the_hub_alone() {
        let wire = Wire::new("http://hub.test/", Some("hf_secret".into()), None).unwrap();
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
