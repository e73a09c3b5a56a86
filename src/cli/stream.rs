//! Rows through a function, in order, in parallel and in bounded memory: a file is read and written by chunks, whatever its
//! size. What is done with a row is the caller's.

use super::Session;
use super::rows::{Beside, Row, Rows, is_standard};
use crate::progress::Reporter;
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::Path;

/// A chunk ends after so many rows, or so many bytes.
const CHUNK_ROWS: usize = 1024;
const CHUNK_BYTES: usize = 8 << 20;

/// What a row gets: names and JSON.
pub type Added = Vec<(&'static str, String)>;

/// Writes every row of `input` with what `work` adds to it; `work` sees a chunk of rows and what messages call their file,
/// and answers for each row in order. The output appears once it is complete. Returns the number of rows.
///
/// # Errors
/// The first row in order that cannot be read or that `work` refuses; a file that cannot be read or written;
/// [`Error::Interrupted`] where the user asked to stop.
pub fn map_rows(
    input: &Path,
    output: &Path,
    label: &str,
    session: &Session,
    mut work: impl FnMut(&[Row], &Path) -> Result<Vec<Added>>,
) -> Result<usize> {
    let mut rows = Rows::open(input)?;
    let place = rows.place().to_path_buf();
    let mut beside = Beside::create(output)?;
    let task = session.terminal.task(label, None, "rows");
    let mut num_rows = 0;
    loop {
        let mut lines: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut num_bytes = 0;
        while lines.len() < CHUNK_ROWS && num_bytes < CHUNK_BYTES {
            let Some((line, bytes)) = rows.line()? else {
                break;
            };
            num_bytes += bytes.len();
            lines.push((line, bytes.to_vec()));
        }
        if lines.is_empty() {
            break;
        }
        if session.stop.requested() {
            let message = match is_standard(output) {
                true => format!("after {num_rows} rows"),
                false => format!("nothing was written to `{}`", output.display()),
            };
            return Err(Error::Interrupted { message });
        }
        let parsed: Vec<Result<Row>> = lines
            .into_par_iter()
            .map(|(line, bytes)| Row::parse(&bytes, line, &place))
            .collect();
        // the rows before a bad one are worked on first: they may be worse
        let mut good = Vec::with_capacity(parsed.len());
        let mut bad = None;
        for row in parsed {
            match row {
                Ok(row) => good.push(row),
                Err(e) => {
                    bad = Some(e);
                    break;
                }
            }
        }
        let added = work(&good, &place)?;
        if let Some(e) = bad {
            return Err(e);
        }
        let written: Vec<String> = good
            .par_iter()
            .zip(added)
            .map(|(row, added)| row.with(&added))
            .collect();
        for line in &written {
            beside.line(line)?;
        }
        num_rows += good.len();
        task.advance(good.len() as u64);
    }
    drop(task);
    beside.finish()?;
    Ok(num_rows)
}

/// Refuses rows as the output and a result as JSON on the same stdout.
///
/// # Errors
/// Both are asked for.
pub fn check_standard_output(output: &Path, json: bool) -> Result<()> {
    if json && is_standard(output) {
        return Err(
            Error::input("`--json` and `--output -` both write to stdout")
                .with_hint("give a file as `--output`"),
        );
    }
    Ok(())
}

/// A pool of `num_threads` threads, or the usual one.
///
/// # Errors
/// The system gives no threads.
pub fn in_pool<T: Send>(
    num_threads: Option<u32>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(num_threads) = num_threads else {
        return work();
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads as usize)
        .build()
        .map_err(|e| Error::input(format!("{num_threads} threads cannot be started: {e}")))?;
    pool.install(work)
}

/// A value as JSON text.
pub fn json_text(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::input(format!("a result cannot be written as JSON: {e}")))
}
