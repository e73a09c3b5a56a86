//! Questions to an engine elsewhere: one until it is answered, many side by side, and the reading of new weights, with every
//! failure in words. What completions are made of the answers is in [`super::remote`].

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use super::Sampling;
use super::http::{Failure, Http, Unanswered, times, without_login};
use super::wire::{self, Answer, Unreadable};
use crate::recipe::remote::RemoteKind;
use crate::{Error, Result};

/// What threads ask with.
pub struct Server {
    pub http: Http,
    pub kind: RemoteKind,
    /// Without a path.
    pub url: String,
    pub model: Option<String>,
    pub key_variable: Option<String>,
}

/// Threads that ask questions side by side; dropping it lets them end after the answers they wait for.
pub struct Pool {
    pub answers: mpsc::Receiver<(usize, std::result::Result<Answer, Unanswered>)>,
    failed: Arc<AtomicBool>,
}

impl Pool {
    pub fn start(server: &Arc<Server>, questions: Vec<String>, concurrency: usize) -> Result<Self> {
        let (sender, answers) = mpsc::channel();
        let failed = Arc::new(AtomicBool::new(false));
        let pool = Self {
            answers,
            failed: failed.clone(),
        };
        let num_threads = concurrency.min(questions.len());
        let (questions, next) = (Arc::new(questions), Arc::new(AtomicUsize::new(0)));
        for _ in 0..num_threads {
            let (server, questions, next) = (server.clone(), questions.clone(), next.clone());
            let (sender, failed) = (sender.clone(), failed.clone());
            let work = move || {
                while !failed.load(Ordering::SeqCst) {
                    let at = next.fetch_add(1, Ordering::SeqCst);
                    let Some(question) = questions.get(at) else {
                        break;
                    };
                    let answer = server.ask(question, &failed);
                    if answer.is_err() {
                        // here, not where it is heard: else one more question goes out
                        failed.store(true, Ordering::SeqCst);
                    }
                    // nobody listens any more after a failure
                    if sender.send((at, answer)).is_err() {
                        break;
                    }
                }
            };
            spawn(work)?;
        }
        Ok(pool)
    }
}

/// A thread of its own.
///
/// # Errors
/// The operating system has none.
pub fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("remote".into());
    thread.spawn(work).map(drop).map_err(|e| {
        Error::input(format!("a thread for the remote engine: {e}"))
            .with_hint("lower `grpo.remote.concurrency`")
    })
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.failed.store(true, Ordering::SeqCst);
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} at `{}`", self.kind.name(), without_login(&self.url))
    }
}

impl Server {
    /// The body that asks for a completion.
    pub fn question(&self, prompt: &[u32], sampling: &Sampling, limit: usize, seed: u64) -> String {
        let model = self.model.as_deref();
        wire::question(self.kind, model, prompt, sampling, limit, seed).to_string()
    }

    /// Asks for one completion until it is there.
    pub fn ask(&self, body: &str, failed: &AtomicBool) -> std::result::Result<Answer, Unanswered> {
        let url = format!("{}{}", self.url, wire::path(self.kind));
        let attempt = || {
            let bytes = self.http.post(&url, body.to_string())?;
            wire::answer(self.kind, &bytes).map_err(|why| match why {
                Unreadable::Broken(why) => Failure::Again(why),
                Unreadable::Wrong(why) => Failure::Final(Error::input(format!("{self}: {why}"))),
            })
        };
        self.http.persist(attempt, failed)
    }

    /// Has the weights of a folder read.
    pub fn reload(&self, folder: &Path) -> Result<()> {
        let Some(folder) = folder.to_str() else {
            return Err(Error::input(format!(
                "`{}` cannot be said to {self}: it is no UTF-8",
                folder.display()
            ))
            .with_hint("set `grpo.remote.weights_dir`"));
        };
        let refused = |why: &str| {
            Error::input(format!("{self} did not take the weights in `{folder}`: {why}")).with_hint(
                "it must see this folder under the same path (`grpo.remote.weights_dir`), and be new enough to read weights from a path",
            )
        };
        for (path, body) in wire::reload(self.kind, folder) {
            let url = format!("{}{path}", self.url);
            let attempt = || match self.http.post(&url, body.to_string()) {
                Ok(bytes) => match wire::reload_failure(&bytes) {
                    None => Ok(()),
                    Some(why) => Err(Failure::Again(why)),
                },
                // what it could not read once it cannot read again
                Err(Failure::Status(400 | 500, why, _)) => Err(Failure::Final(refused(&why))),
                Err(failure) => Err(failure),
            };
            self.http
                .persist(attempt, &AtomicBool::new(false))
                .map_err(|e| match e {
                    Unanswered::Refused(404 | 405, why) if self.kind == RemoteKind::Vllm => {
                        Error::input(format!("{self} has no `{path}`: {why}")).with_hint(
                            "start vLLM with `VLLM_SERVER_DEV_MODE=1`: it takes new weights in that mode only",
                        )
                    }
                    Unanswered::GaveUp(n, why) => Error::input(format!(
                        "{self} did not take the weights in `{folder}`{}: {why}",
                        times(n)
                    ))
                    .with_hint("when it runs, the same command goes on"),
                    other => self.error(other, 0),
                })?;
        }
        Ok(())
    }

    /// In words, with what to do.
    pub fn error(&self, unanswered: Unanswered, num_missing: usize) -> Error {
        match unanswered {
            Unanswered::GaveUp(num_attempts, why) => Error::input(format!(
                "{self} gave no completion{}: {why}",
                times(num_attempts)
            ))
            .with_hint("whole groups are kept: when it runs again, the same command goes on"),
            Unanswered::Refused(status, why) => {
                let error = Error::input(format!("{self}: {why}"));
                match (status, &self.key_variable) {
                    (401 | 403, Some(name)) => {
                        error.with_hint(format!("put its key into `{name}`"))
                    }
                    (401 | 403, None) => error.with_hint(
                        "it wants a key: name the variable that holds it as `grpo.remote.api_key_env`",
                    ),
                    (404, _) => error.with_hint(
                        "check `grpo.remote.url`, and that `model` is the name it serves",
                    ),
                    _ => error,
                }
            }
            Unanswered::Stopped => Error::Interrupted {
                message: format!("with {num_missing} completions to go"),
            },
            Unanswered::Failed(error) => error,
        }
    }
}
