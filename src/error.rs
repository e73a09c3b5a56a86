//! The one error type of the crate: what failed, on which file, row, key or tensor, and one hint of what to do.
//!
//! Messages are lower case without a full stop, literals in backticks. Model output is never an error: it is a verdict.

use std::path::{Path, PathBuf};

/// Result of every fallible function of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong, cut by what a caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input that cannot be used: a recipe, a data row, a checkpoint, an option. The message names the place.
    #[error("{message}")]
    Input {
        message: String,
        hint: Option<String>,
    },
    /// The operating system refused a file operation.
    #[error("{action} `{}`: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A tensor operation failed in candle; shapes are in the source.
    #[error("{context}: {source}")]
    Tensor {
        context: String,
        source: candle_core::Error,
    },
    /// Training or sampling met a NaN or an infinity.
    #[error("{message}")]
    NonFinite {
        message: String,
        hint: Option<String>,
    },
    /// The user asked to stop (Ctrl-C); everything needed to go on is saved.
    #[error("{message}")]
    Interrupted { message: String },
}

impl Error {
    /// Unusable input, without a hint yet.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input {
            message: message.into(),
            hint: None,
        }
    }

    /// A refused file operation: `action` is a gerund phrase such as `"reading"`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// Adds the one line that says what to do; replaces an earlier one.
    pub fn with_hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Input { message, .. } => Self::Input {
                message,
                hint: Some(text.into()),
            },
            Self::NonFinite { message, .. } => Self::NonFinite {
                message,
                hint: Some(text.into()),
            },
            other => Self::Input {
                message: other.to_string(),
                hint: Some(text.into()),
            },
        }
    }

    /// Puts the place in front of the message: `context: message`.
    pub fn at(self, context: impl std::fmt::Display) -> Self {
        match self {
            Self::Input { message, hint } => Self::Input {
                message: format!("{context}: {message}"),
                hint,
            },
            Self::NonFinite { message, hint } => Self::NonFinite {
                message: format!("{context}: {message}"),
                hint,
            },
            Self::Tensor { context: c, source } => Self::Tensor {
                context: format!("{context}: {c}"),
                source,
            },
            other => other,
        }
    }

    /// The hint line, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Input { hint, .. } | Self::NonFinite { hint, .. } => hint.clone(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => Some(
                    "free some space and run the same command again: it goes on where it stopped"
                        .into(),
                ),
                std::io::ErrorKind::PermissionDenied => {
                    Some("check the permissions of that path".into())
                }
                std::io::ErrorKind::NotFound => Some("check the spelling of the path".into()),
                _ => None,
            },
            Self::Tensor { .. } | Self::Interrupted { .. } => None,
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::Tensor {
            context: "tensor operation failed".into(),
            source,
        }
    }
}
