//! What can go wrong with a Hub, and how it is told: what failed, on which repository, and what to do. No secret goes into
//! a message: addresses, which may be signed, and bodies are left out.

use std::time::Duration;

use reqwest::blocking::Response;

use crate::Error;

/// What was being fetched.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// `model` or `data set`.
    pub what: &'a str,
    pub id: &'a str,
    pub revision: &'a str,
    pub file: Option<&'a str>,
    pub endpoint: &'a str,
}

/// Why a request was in vain.
#[derive(Debug)]
pub enum Failure {
    /// The terms of the repository have not been accepted.
    Gated,
    /// The token is no token.
    BadToken,
    /// No token, and one is needed; or no such repository: a server does not say which.
    NoAccess,
    Forbidden,
    NoRepo,
    NoRevision,
    NoFile,
    TooManyRequests,
    /// Nobody answers.
    Unreachable(String),
    /// Somebody takes the question and says nothing for so long.
    Silent(Duration),
    /// The connection broke.
    Broken(String),
    /// What arrived is not what the server listed.
    Damaged(String),
    /// Another answer than success.
    Status(String),
    /// The disk, not the network.
    Local(Error),
    Other(String),
}

impl Failure {
    /// Of an answer that is no success.
    pub fn of_response(response: Response) -> Self {
        let status = response.status();
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_string())
        };
        let code = header("x-error-code");
        let message = header("x-error-message").unwrap_or_default();
        Self::of_status(
            status.as_u16(),
            &status.to_string(),
            code.as_deref(),
            &message,
        )
    }

    fn of_status(status: u16, text: &str, code: Option<&str>, message: &str) -> Self {
        match (status, code) {
            (_, Some("GatedRepo")) => Self::Gated,
            (_, Some("RepoNotFound")) => Self::NoRepo,
            (_, Some("RevisionNotFound")) => Self::NoRevision,
            (_, Some("EntryNotFound")) => Self::NoFile,
            (401, _) if message.contains("Invalid credentials") => Self::BadToken,
            (401, _) => Self::NoAccess,
            (403, _) => Self::Forbidden,
            (404, _) => Self::NoFile,
            (429, _) => Self::TooManyRequests,
            _ => Self::Status(text.to_string()),
        }
    }

    /// Of a request without an answer, or whose body broke off.
    pub fn of_request(error: &reqwest::Error) -> Self {
        if error.is_connect() {
            Self::Unreachable(root_cause(error))
        } else if error.is_timeout() {
            Self::Unreachable("no answer in time".into())
        } else {
            Self::Broken(root_cause(error))
        }
    }

    /// Whether the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::TooManyRequests | Self::Unreachable(_) | Self::Silent(_) | Self::Broken(_) => {
                true
            }
            Self::Status(text) => text.starts_with('5') || text.starts_with("408"),
            _ => false,
        }
    }

    /// Whether nobody answered, so that the cache may stand in.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Silent(_))
    }

    /// The error to show.
    pub fn explain(self, place: Place) -> Error {
        let Place {
            what,
            id,
            revision,
            file,
            endpoint,
        } = place;
        let subject = match file {
            Some(file) => format!("`{file}` of {what} `{id}`"),
            None => format!("{what} `{id}`"),
        };
        let page = match what {
            "data set" => format!("{endpoint}/datasets/{id}"),
            _ => format!("{endpoint}/{id}"),
        };
        let (message, hint) = match self {
            Self::Local(error) => return error,
            Self::Gated => (
                format!("{subject} is gated and this token has no access"),
                format!("accept its terms at {page}, then set `HF_TOKEN` to a token of that account"),
            ),
            Self::BadToken => (
                format!("{endpoint} does not know the token that it was given for {subject} (401)"),
                "set `HF_TOKEN` to a token that is still valid, or run `hf auth login` again".into(),
            ),
            Self::NoAccess => (
                format!("{subject} cannot be read without a valid token, or does not exist (401)"),
                "check the spelling, then set `HF_TOKEN` or run `hf auth login`".into(),
            ),
            Self::Forbidden => (
                format!("{subject} may not be read with this token (403)"),
                format!("ask for access at {page}, or use a token with read permission"),
            ),
            Self::NoRepo => (
                format!("there is no {what} `{id}` at {endpoint}"),
                "check the spelling; a private repository needs `HF_TOKEN`".into(),
            ),
            Self::NoRevision => (
                format!("{what} `{id}` has no revision `{revision}`"),
                "give a branch, a tag or a full commit hash, or leave the revision out for `main`".into(),
            ),
            Self::NoFile => (
                format!("{subject} is listed at revision `{revision}` but the server does not have it (404)"),
                "try again later, or pin another revision".into(),
            ),
            Self::TooManyRequests => (
                format!("the server refuses more requests for {subject} (429)"),
                "wait some minutes; requests with `HF_TOKEN` set are allowed more".into(),
            ),
            Self::Unreachable(why) => (
                format!("{endpoint} cannot be reached for {subject}: {why}"),
                "check the network (and `HF_ENDPOINT`), or give a local folder".into(),
            ),
            Self::Silent(time) => (
                format!("{endpoint} says nothing about {subject} for {} s", time.as_secs()),
                "check the network (and `HF_ENDPOINT`) and run the same command again: it goes on where it stopped; `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` are the seconds that it is waited for an answer and for bytes".into(),
            ),
            Self::Broken(why) => (
                format!("{subject} did not arrive whole: {why}"),
                "run the same command again: it goes on where it stopped".into(),
            ),
            Self::Damaged(why) => (
                format!("{subject} arrived damaged: {why}"),
                "run the same command again; if it stays so, the server may be sending an error page in place of the file".into(),
            ),
            Self::Status(status) => (
                format!("the server answered {status} for {subject}"),
                "try again later".into(),
            ),
            Self::Other(why) => (
                format!("{subject} cannot be fetched: {why}"),
                "run the same command again".into(),
            ),
        };
        Error::input(message).with_hint(hint)
    }
}

/// The user asked to stop while something was on its way.
pub fn interrupted() -> Error {
    Error::Interrupted {
        message: "the same command goes on where this one stopped".into(),
    }
}

/// The innermost cause, which is the one that says something and names no address.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
