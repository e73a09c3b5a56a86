//! Answers of the stand-in: JSON, errors as the Hub words them, and bodies that break off, crawl or are damaged.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::stream;
use serde_json::Value;

use super::fault::Fault;

/// Bytes of a body that are read at a time.
const PIECE: u64 = 1 << 20;

pub fn json(value: Value) -> Response {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(value.to_string()))
        .unwrap()
}

/// An error: `code` as the Hub's `X-Error-Code`, the message in a header and in the body.
pub fn error(status: u16, code: &str, message: &str) -> Response {
    let mut response = json(serde_json::json!({"error": message}));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let headers = response.headers_mut();
    if !code.is_empty() {
        headers.insert("X-Error-Code", code.parse().unwrap());
    }
    if let Ok(message) = HeaderValue::from_str(message) {
        headers.insert("X-Error-Message", message);
    }
    response
}

/// The connection breaks before any answer.
pub fn broken() -> Response {
    let broken = stream::iter([Err::<Bytes, _>(io::Error::other("no answer"))]);
    Response::new(Body::from_stream(broken))
}

/// What a body is read from: its bytes from one place to another.
pub trait Source: Clone + Send + Sync + 'static {
    fn read(
        &self,
        start: u64,
        end: u64,
    ) -> impl std::future::Future<Output = io::Result<Bytes>> + Send;
}

impl Source for Bytes {
    async fn read(&self, start: u64, end: u64) -> io::Result<Bytes> {
        Ok(self.slice(start as usize..end as usize))
    }
}

/// The part of `source` that `Range` asks for, with the fault that concerns it.
pub fn body(
    source: impl Source,
    size: u64,
    request: &HeaderMap,
    is_head: bool,
    fault: Option<Fault>,
) -> Response {
    let range = request.get(header::RANGE).and_then(|v| v.to_str().ok());
    let (start, end) = match range.map(|range| parse_range(range, size)) {
        None => (0, size),
        Some(Some(range)) => range,
        Some(None) => {
            let mut response = error(416, "", "range not satisfiable");
            let all = format!("bytes */{size}").parse().unwrap();
            response.headers_mut().insert(header::CONTENT_RANGE, all);
            return response;
        }
    };
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, end - start);
    if range.is_some() {
        response = response.status(206).header(
            header::CONTENT_RANGE,
            format!("bytes {start}-{}/{size}", end.max(1) - 1),
        );
    }
    let body = if is_head {
        Body::empty()
    } else {
        Body::from_stream(pieces(source, start, end, fault))
    };
    response.body(body).unwrap()
}

fn pieces(
    source: impl Source,
    start: u64,
    end: u64,
    fault: Option<Fault>,
) -> impl futures::Stream<Item = io::Result<Bytes>> {
    let broken = move || io::Error::other("the connection breaks here");
    let last = match &fault {
        Some(Fault::Cut { after, .. } | Fault::Stall { after, .. }) => (start + after).min(end),
        _ => end,
    };
    stream::unfold(Some(start), move |at| {
        let (source, fault) = (source.clone(), fault.clone());
        async move {
            let at = at?;
            if at >= last {
                if last < end && matches!(fault, Some(Fault::Stall { .. })) {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
                return (last < end).then(|| (Err(broken()), None));
            }
            let piece = match fault {
                Some(Fault::Slow { bytes_per_s, .. }) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    (bytes_per_s / 20).max(1)
                }
                _ => PIECE,
            };
            let next = (at + piece).min(last);
            let read = source.read(at, next).await;
            let read = read.map(|bytes| match fault {
                Some(Fault::Corrupt { .. }) if at == start => {
                    let mut bytes = bytes.to_vec();
                    bytes[0] ^= 1;
                    bytes.into()
                }
                _ => bytes,
            });
            if matches!(fault, Some(Fault::Cut { .. })) && next == last && last < end {
                // what has been written must leave before the connection breaks
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Some((read, Some(next)))
        }
    })
}

/// `bytes=A-B`, `bytes=A-` or `bytes=-N` as a half-open range; `None` where nothing of it exists.
fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = if first.is_empty() {
        (size.saturating_sub(last.parse().ok()?), size)
    } else if last.is_empty() {
        (first.parse().ok()?, size)
    } else {
        (
            first.parse().ok()?,
            last.parse::<u64>().ok()?.saturating_add(1).min(size),
        )
    };
    (start < end).then_some((start, end))
}
