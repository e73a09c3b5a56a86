//! Whether to colour, and the few styles there are. Meaning never depends on them.

use std::io::IsTerminal;

/// Wraps text in escape codes, or not.
#[derive(Clone, Copy, Debug)]
pub struct Color {
    on: bool,
}

impl Color {
    /// For text on stdout.
    pub fn stdout() -> Self {
        Self::for_terminal(std::io::stdout().is_terminal())
    }

    /// For text on stderr.
    pub fn stderr() -> Self {
        Self::for_terminal(std::io::stderr().is_terminal())
    }

    /// No escape codes.
    pub fn never() -> Self {
        Self { on: false }
    }

    /// Escape codes wherever the text goes.
    pub fn always() -> Self {
        Self { on: true }
    }

    /// Whether escape codes are written.
    pub fn is_on(self) -> bool {
        self.on
    }

    /// <https://no-color.org>: set and not empty means no colour.
    fn for_terminal(is_terminal: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            on: is_terminal && !no_color && !dumb,
        }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less: masked tokens, details.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// Errors.
    pub fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// Trained tokens, success.
    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Warnings.
    pub fn yellow(self, text: &str) -> String {
        self.wrap("1;33", text)
    }

    /// Hints.
    pub fn cyan(self, text: &str) -> String {
        self.wrap("36", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_only_where_on() {
        assert_eq!(Color::always().green("a"), "\x1b[32ma\x1b[0m");
        assert_eq!(Color::never().green("a"), "a");
        assert!(!Color::for_terminal(false).is_on());
    }
}
