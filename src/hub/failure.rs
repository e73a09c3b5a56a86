//! What hf-hub reports, in our words: what failed, on which repository, and what to do.

use hf_hub::HFError;

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

/// Whether nobody answered, so that the cache may stand in.
pub fn is_unreachable(error: &HFError) -> bool {
    match error {
        HFError::Request { source, .. } => source.is_connect() || source.is_timeout(),
        _ => false,
    }
}

/// The error to show.
pub fn explain(error: HFError, place: Place) -> Error {
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
    // the server knows better than the client which part of the address it did not find
    let code = match &error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::RepoNotFound {
            context: Some(context),
            ..
        }
        | HFError::RevisionNotFound {
            context: Some(context),
            ..
        }
        | HFError::EntryNotFound {
            context: Some(context),
            ..
        } => context.error_code.clone(),
        _ => None,
    };
    let no_repo = || {
        Error::input(format!("there is no {what} `{id}` at {endpoint}"))
            .with_hint("check the spelling; a private repository needs `HF_TOKEN`")
    };
    match (&error, code.as_deref()) {
        (_, Some("GatedRepo")) => Error::input(format!(
            "{subject} is gated and this token has no access"
        ))
        .with_hint(format!(
            "accept its terms at {endpoint}/{id}, then set `HF_TOKEN` to a token of that account"
        )),
        (HFError::AuthRequired { .. }, _) => Error::input(format!(
            "{subject} cannot be read without a valid token, or does not exist (401)"
        ))
        .with_hint("check the spelling, then set `HF_TOKEN` or run `hf auth login`"),
        (HFError::Forbidden { .. }, _) => {
            Error::input(format!("{subject} may not be read with this token (403)")).with_hint(
                format!("ask for access at {endpoint}/{id}, or use a token with read permission"),
            )
        }
        (HFError::RepoNotFound { .. }, _) | (_, Some("RepoNotFound")) => no_repo(),
        (HFError::EntryNotFound { .. }, Some("RevisionNotFound"))
        | (HFError::RevisionNotFound { .. }, _) => {
            Error::input(format!("{what} `{id}` has no revision `{revision}`")).with_hint(
                "give a branch, a tag or a full commit hash, or leave the revision out for `main`",
            )
        }
        (HFError::EntryNotFound { .. }, _) => Error::input(format!(
            "{subject} is listed at revision `{revision}` but the server does not have it (404)"
        ))
        .with_hint("try again later, or pin another revision"),
        (HFError::RateLimited { .. }, _) => Error::input(format!(
            "the server refuses more requests for {subject} (429)"
        ))
        .with_hint("wait some minutes; requests with `HF_TOKEN` set are allowed more"),
        (HFError::Request { source, .. }, _) if source.is_connect() || source.is_timeout() => {
            Error::input(format!(
                "{endpoint} cannot be reached for {subject}: {}",
                root(source)
            ))
            .with_hint("check the network (and `HF_ENDPOINT`), or give a local folder")
        }
        (HFError::Request { source, .. }, _) => {
            Error::input(format!("{subject} did not arrive whole: {}", root(source)))
                .with_hint("run the same command again")
        }
        (HFError::Http { context }, _) => Error::input(format!(
            "the server answered {} for {subject}",
            context.status
        ))
        .with_hint("try again later"),
        _ => Error::input(format!("{subject} cannot be fetched: {error}")),
    }
}

/// The innermost cause, which is the one that says something.
fn root(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
