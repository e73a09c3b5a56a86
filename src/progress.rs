//! How rooms say what they are doing without knowing a terminal, and how they learn that the user wants to stop.
//!
//! `cli/` implements [`Reporter`] with progress bars or plain lines; tests use [`Silent`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives what happens. Implementations print to stderr or nowhere, never to stdout.
pub trait Reporter: Send + Sync {
    /// A stage of the pipeline begins: its name and one line of what it will do.
    fn stage(&self, name: &str, detail: &str);
    /// A task with a countable amount of work begins; `unit` is the plural of what is counted (`"steps"`, `"rows"`,
    /// `"bytes"`), `total` unknown where the end is not known.
    fn task(&self, label: &str, total: Option<u64>, unit: &'static str) -> Box<dyn Task>;
    /// A fact that should stay on the screen.
    fn note(&self, text: &str);
    /// Something the user should know that is no error.
    fn warn(&self, text: &str);
    /// Whether the user asked to stop, for work that is handed no [`Stop`]: transfers ask it while they wait.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// One running task; dropping it ends it.
pub trait Task: Send + Sync {
    /// `position` units of the task are done.
    fn set_position(&self, position: u64);
    /// `n` more units are done.
    fn advance(&self, n: u64);
    /// What stands beside the bar: loss, learning rate, a file name.
    fn message(&self, text: &str);
}

/// Reports nothing.
pub struct Silent;

impl Reporter for Silent {
    fn stage(&self, _: &str, _: &str) {}
    fn task(&self, _: &str, _: Option<u64>, _: &'static str) -> Box<dyn Task> {
        Box::new(Silent)
    }
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

impl Task for Silent {
    fn set_position(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn message(&self, _: &str) {}
}

/// Set once by Ctrl-C; long loops ask it between steps, save, and return [`crate::Error::Interrupted`].
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks everybody to stop at the next safe point.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked to stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag itself, for a signal handler.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}
