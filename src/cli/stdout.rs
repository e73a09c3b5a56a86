//! The way of results: stdout, without a panic where nobody reads it.

use crate::{Error, Result};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// What messages call it.
pub(super) const NAME: &str = "stdout";

/// Writes a text as it is.
///
/// # Errors
/// stdout is closed, or a file on a full disk.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("writing", NAME, e))
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As [`text`].
pub fn json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| Error::input(format!("the result cannot be written as JSON: {e}")))?;
    text(&(json + "\n"))
}

/// Whether an error says that nobody reads stdout any more.
pub fn is_closed(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. } if path.as_os_str() == NAME && source.kind() == ErrorKind::BrokenPipe)
}
