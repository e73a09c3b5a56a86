//! The [`Reporter`] of the command line: progress bars on a terminal, plain lines elsewhere, everything on stderr. Also
//! how an error is shown and what Ctrl-C does. How one task is drawn is in `tasks`. Results are printed by the commands themselves, on stdout.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, OnceLock};

use indicatif::{MultiProgress, ProgressDrawTarget};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::color::Color;
use super::tasks::{Bar, Lines, Out, write_line};
use crate::progress::{Reporter, Stop, Task};
use crate::{Error, Result};

/// How much to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Bars that redraw themselves.
    Bars,
    /// Lines that stay.
    Lines,
    /// Warnings only.
    Quiet,
}

impl Verbosity {
    /// What the options ask for and stderr can show.
    pub fn from_options(quiet: bool, no_progress: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        if quiet {
            Self::Quiet
        } else if no_progress || dumb || !std::io::stderr().is_terminal() {
            Self::Lines
        } else {
            Self::Bars
        }
    }
}

/// Reports to stderr. Clones share the same bars.
#[derive(Clone)]
pub struct Terminal {
    verbosity: Verbosity,
    color: Color,
    bars: MultiProgress,
    out: Out,
    /// Where signals only ask to stop.
    stop: Arc<OnceLock<Stop>>,
}

impl Terminal {
    /// A reporter on stderr.
    pub fn new(verbosity: Verbosity) -> Self {
        let target = match verbosity {
            Verbosity::Bars => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        Self {
            verbosity,
            color: Color::stderr(),
            bars: MultiProgress::with_draw_target(target),
            out: Arc::new(Mutex::new(std::io::stderr())),
            stop: Arc::default(),
        }
    }

    /// One line that stays; bars step aside.
    fn line(&self, text: &str) {
        self.bars.suspend(|| write_line(&self.out, text));
    }
}

impl Reporter for Terminal {
    fn stage(&self, name: &str, detail: &str) {
        if self.verbosity != Verbosity::Quiet {
            let rest = if detail.is_empty() {
                String::new()
            } else {
                format!("  {detail}")
            };
            self.line(&format!("{}{rest}", self.color.bold(name)));
        }
    }

    fn task(&self, label: &str, total: Option<u64>, unit: &'static str) -> Box<dyn Task> {
        match self.verbosity {
            Verbosity::Bars => Box::new(Bar::new(
                &self.bars,
                self.color,
                Lines::new(self.out.clone(), label, total, unit, false),
            )),
            Verbosity::Lines => Box::new(Lines::new(self.out.clone(), label, total, unit, true)),
            Verbosity::Quiet => Box::new(crate::progress::Silent),
        }
    }

    fn note(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            self.line(text);
        }
    }

    fn warn(&self, text: &str) {
        self.line(&format!("{} {text}", self.color.yellow("warning:")));
    }

    fn stop_requested(&self) -> bool {
        self.stop.get().is_some_and(Stop::requested)
    }
}

/// Shows an error and its hint, below whatever bars there were.
pub fn print_error(error: &Error) {
    let color = Color::stderr();
    let label = match error {
        Error::Interrupted { .. } => color.yellow("stopped:"),
        _ => color.red("error:"),
    };
    let mut text = format!("{label} {error}\n");
    if let Some(hint) = error.hint() {
        text += &format!("{} {hint}\n", color.cyan("hint:"));
    }
    // nobody is left to tell when stderr is closed
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The first Ctrl-C (or SIGTERM) sets `stop` and says so; the second ends the process at once with 128 + signal number.
pub fn stop_on_signals(stop: &Stop, terminal: &Terminal) -> Result<()> {
    let failed =
        |e: std::io::Error| Error::input(format!("signal handlers cannot be installed: {e}"));
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        // in this order: the signal that sets the flag does not find it set
        signal_hook::flag::register_conditional_shutdown(signal, code, stop.flag())
            .map_err(failed)?;
        signal_hook::flag::register(signal, stop.flag()).map_err(failed)?;
    }
    // one terminal has one
    let _ = terminal.stop.set(stop.clone());
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let terminal = terminal.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                terminal.warn("stopping: the current step is finished and saved first (Ctrl-C again ends at once)");
            }
        })
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal(verbosity: Verbosity) -> (Terminal, Arc<Mutex<Vec<u8>>>) {
        let out = Arc::new(Mutex::new(Vec::new()));
        let mut terminal = Terminal::new(verbosity);
        terminal.color = Color::never();
        terminal.bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        terminal.out = out.clone();
        (terminal, out)
    }

    fn text(out: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(out.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn lines_say_what_quiet_leaves_out() {
        for verbosity in [Verbosity::Lines, Verbosity::Quiet] {
            let (terminal, out) = terminal(verbosity);
            terminal.stage("sft", "300 steps");
            terminal.note("kept 5 rows");
            terminal.warn("2 rows dropped");
            let want = match verbosity {
                Verbosity::Quiet => "warning: 2 rows dropped\n",
                _ => "sft  300 steps\nkept 5 rows\nwarning: 2 rows dropped\n",
            };
            assert_eq!(text(&out), want);
        }
    }

    #[test]
    fn the_end_is_always_told_once() {
        let (terminal, out) = terminal(Verbosity::Lines);
        let task = terminal.task("rows", Some(0), "rows");
        drop(task);
        assert_eq!(text(&out), "");
        let task = terminal.task("rows", None, "rows");
        task.set_position(2);
        drop(task);
        assert_eq!(text(&out), "rows: 2 rows\n");
    }
}
