//! Large files through Xet: cut into chunks, sent where the store does not have them, and compared by SHA-256 afterwards.

use super::publish_api::{Api, Place};
use super::publish_files::{Prepared, Source};
use crate::progress::Task;
use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xet::XetError;
use xet::xet_session::{Sha256Policy, XetFileUpload, XetSessionBuilder};

/// Attempts where the store is busy or the connection breaks.
const MAX_ATTEMPTS: u32 = 4;

/// Sends the files; what the store has already is not sent again.
///
/// # Errors
/// The store does not take them, the user stops, a file changes meanwhile.
pub fn upload(
    api: &Api,
    place: &Place,
    files: &[&Prepared],
    create_pr: bool,
    task: &dyn Task,
    before: u64,
) -> Result<()> {
    let what = format!("large files cannot be sent to {}", place.subject());
    let pr = if create_pr { "?create_pr=1" } else { "" };
    let url = place.api(
        &api.account.endpoint,
        &format!("/xet-write-token/{}{pr}", place.branch()),
    );
    for number in 0.. {
        let given = api.get(&url).map_err(|e| api.explain(e, &what))?;
        let (Some(token), Some(expiry), Some(store)) = (
            given["accessToken"].as_str(),
            given["exp"].as_u64(),
            given["casUrl"].as_str(),
        ) else {
            return Err(Error::input(format!(
                "{what}: the server gives no way into its store"
            )));
        };
        match attempt(api, files, &url, (store, token, expiry), task, before) {
            Err(Failed::Xet(error)) if may_pass(&error) && number + 1 < MAX_ATTEMPTS => {
                api.wait(number, None).map_err(|e| api.explain(e, &what))?;
            }
            Err(Failed::Xet(_)) if api.stopped() => {
                return Err(Error::Interrupted {
                    message: "the same command goes on where this one stopped".into(),
                });
            }
            // the token of the store may stand in the message
            Err(Failed::Xet(error)) => {
                let said = error.to_string().replace(token, "***");
                return Err(Error::input(format!("{what}: {said}")).with_hint(
                    "run the same command again: what the store has is not sent twice",
                ));
            }
            Err(Failed::Ours(error)) => return Err(error),
            Ok(()) => break,
        }
    }
    Ok(())
}

enum Failed {
    Xet(XetError),
    Ours(Error),
}

impl From<XetError> for Failed {
    fn from(error: XetError) -> Self {
        Self::Xet(error)
    }
}

fn may_pass(error: &XetError) -> bool {
    matches!(
        error,
        XetError::Network(_)
            | XetError::RateLimited(_)
            | XetError::ServerError(_)
            | XetError::Timeout(_)
    )
}

fn attempt(
    api: &Api,
    files: &[&Prepared],
    refresh: &str,
    (store, token, expiry): (&str, &str, u64),
    task: &dyn Task,
    before: u64,
) -> std::result::Result<(), Failed> {
    let session = XetSessionBuilder::new().build()?;
    let commit = session
        .new_upload_commit()?
        .with_endpoint(store)
        .with_token_info(token, expiry)
        .with_token_refresh_url(refresh, api.account.headers(refresh))
        .build_blocking()?;
    let mut handles: Vec<(&Prepared, XetFileUpload)> = Vec::new();
    for file in files {
        let handle = match &file.source {
            Source::File(path) => {
                commit.upload_from_path_blocking(path.clone(), Sha256Policy::Compute)?
            }
            Source::Text(text) => commit.upload_bytes_blocking(
                text.clone().into_bytes(),
                Sha256Policy::Compute,
                Some(file.path.clone()),
            )?,
        };
        handles.push((file, handle));
    }
    let done = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let watched = commit.clone();
        scope.spawn(|| {
            let commit = watched;
            while !done.load(Ordering::SeqCst) {
                task.set_position(before + commit.progress().total_bytes_completed);
                if api.stopped() {
                    // what comes of it shows where the commit is awaited
                    let _ = commit.abort();
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let report = commit.commit_blocking();
        done.store(true, Ordering::SeqCst);
        report
    })?;
    for (file, handle) in handles {
        let sent = report.uploads.get(&handle.task_id());
        let sha256 = sent.and_then(|sent| sent.xet_info.sha256.as_deref());
        if sha256 != Some(file.sha256.as_str()) {
            let name = match &file.source {
                Source::File(path) => path.as_path(),
                Source::Text(_) => Path::new(&file.path),
            };
            return Err(Failed::Ours(
                Error::input(format!("`{}` changes while it is sent", name.display()))
                    .with_hint("wait until whatever writes it is done, and push again"),
            ));
        }
    }
    Ok(())
}
