//! How the stand-in Hub misbehaves when told to.

use std::sync::Mutex;

/// What goes wrong. `on` is a part of `METHOD /path` as it was asked, such as `GET /org/name/resolve` or `tokenizer.json`;
/// an empty one is every request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection breaks after so many bytes of the body, which the headers promised whole.
    Cut { on: String, after: u64 },
    /// One bit of the body is another.
    Corrupt { on: String },
    /// This many bytes of the body a second.
    Slow { on: String, bytes_per_s: u64 },
    /// The request is taken and nothing is said; what it sends is not read either.
    Silent { on: String },
    /// The body stops after so many bytes, and the connection stays.
    Stall { on: String, after: u64 },
    /// The answer comes so much later.
    Late { on: String, millis: u64 },
    /// Every page of a listing names this one as its next; `{}` in it is a number that grows.
    NextPage { address: String },
    /// Listings have this entry, too.
    Entry(serde_json::Value),
    /// An answer in place of the usual one, before anything is done; `code` goes into `X-Error-Code`.
    Refuse {
        on: String,
        status: u16,
        code: &'static str,
        retry_after_s: Option<u64>,
    },
    /// A commit is taken, and 500 is answered.
    ErrorAfterCommit,
    /// A commit is taken, and the connection breaks before any answer.
    SilenceAfterCommit,
    /// Somebody else commits to the branch just before each commit: 412 for a stale parent.
    Overtaken,
    /// The server offers LFS only: no Xet hashes, no Xet tokens, no Xet uploads.
    NoXet,
    /// Files in the Xet store are listed under the Xet hash of other content.
    WrongXetHash,
    /// Connections to the Xet store break after so many bytes towards the client.
    CutXet { after: u64 },
    /// The Xet store takes or sends this many bytes a second in each connection.
    SlowXet { bytes_per_s: u64 },
    /// The upload of a large file over LFS arrives, and is not kept.
    LostUpload,
}

/// The faults that are switched on, each with how often it still happens.
#[derive(Default)]
pub struct Faults(Mutex<Vec<(Fault, u32)>>);

impl Faults {
    pub fn add(&self, fault: Fault, times: u32) {
        self.0.lock().unwrap().push((fault, times));
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// The first fault that `which` takes something from; it happens once less after that.
    pub fn take<T>(&self, which: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut faults = self.0.lock().unwrap();
        for (fault, times) in faults.iter_mut() {
            if *times > 0
                && let Some(found) = which(fault)
            {
                *times = times.saturating_sub(u32::from(*times < u32::MAX));
                return Some(found);
            }
        }
        None
    }

    /// Whether such a fault is on; it does not wear off.
    pub fn has(&self, which: impl Fn(&Fault) -> bool) -> bool {
        let faults = self.0.lock().unwrap();
        faults
            .iter()
            .any(|(fault, times)| *times > 0 && which(fault))
    }
}
