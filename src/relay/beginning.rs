//! How an upstream's answer begins. Of a stream the first event is waited for before anything is passed on: that it is overloaded an
//! upstream may say only there, and until then another account can take the request.

use std::borrow::Cow;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::RelayLimits;
use super::error::status_of;
use super::sse::{Event, Splitter, events};

/// No more is read for that.
const MOST: usize = 64 * 1024;

/// An answer that has begun.
pub(super) struct Begun {
    /// What was read of it.
    pub(super) first: Bytes,
    pub(super) rest: Incoming,
    /// Since when it is there.
    pub(super) since: Instant,
}

/// A stream that is none: its first event is an error.
pub(super) struct Refused {
    /// That of an answer which says the same.
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Waits for the first event of a stream, but no longer than its caller is left without a sign of life.
pub(super) async fn begin(headers: &HeaderMap, rest: Incoming, limits: &RelayLimits) -> Result<Begun, Refused> {
    let mut begun = Begun { first: Bytes::new(), rest, since: Instant::now() };
    if !is_stream(headers) {
        return Ok(begun);
    }
    let deadline = begun.since + limits.ping.min(limits.silence);
    let (mut splitter, mut read) = (Splitter::default(), Vec::new());
    while read.len() < MOST {
        // What has ended is found to be so by whoever reads on.
        let Ok(Some(Ok(frame))) = timeout_at(deadline, begun.rest.frame()).await else { break };
        let Ok(bytes) = frame.into_data() else { continue };
        read.extend_from_slice(&bytes);
        match first(&splitter.push(&bytes)) {
            None => {}
            Some(First::Error(refused)) => return Err(refused),
            Some(First::Other) => break,
        }
    }
    begun.first = read.into();
    Ok(begun)
}

pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|text| text.to_ascii_lowercase().starts_with(b"text/event-stream"))
}

enum First {
    Error(Refused),
    Other,
}

/// What the first of some events is, which is no mere sign of life.
fn first(whole: &[u8]) -> Option<First> {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(rename = "type", borrow)]
        kind: Option<Cow<'a, str>>,
        #[serde(borrow)]
        error: Option<Detail<'a>>,
    }
    #[derive(Deserialize)]
    struct Detail<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    events(whole).find_map(|Event { name, data }| {
        let said = || serde_json::from_slice::<Said<'_>>(data).ok();
        let error = match name {
            Some(b"ping") => return None,
            Some(b"error") => said().and_then(|said| said.error),
            Some(_) => return Some(First::Other),
            // By the specification each event has its name twice; a gateway may have left one out.
            None => match said().and_then(|said| Some((said.kind?, said.error))) {
                Some((kind, _)) if kind == "ping" => return None,
                Some((kind, error)) if kind == "error" => error,
                _ => return Some(First::Other),
            },
        };
        let status = error.map_or(StatusCode::INTERNAL_SERVER_ERROR, |error| status_of(&error.kind));
        Some(First::Error(Refused { status, body: Bytes::copy_from_slice(data) }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_says_whether_there_is_an_answer() {
        let status = |text: &str| match first(text.as_bytes()) {
            Some(First::Error(refused)) => Some(refused.status.as_u16()),
            Some(First::Other) => Some(200),
            None => None,
        };
        let error =
            |kind: &str| format!("data: {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"\"}}}}\n\n");
        let named = |kind: &str| format!("event: error\n{}", error(kind));
        assert_eq!(status(&named("overloaded_error")), Some(529));
        assert_eq!(status(&error("rate_limit_error")), Some(429));
        assert_eq!(status(&named("something_new")), Some(500));
        assert_eq!(status("event: error\ndata: nothing\n\n"), Some(500));
        let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n: comment\n\ndata: {\"type\":\"ping\"}\n\n";
        assert_eq!(status(ping), None);
        assert_eq!(status(&format!("{ping}{}", named("api_error"))), Some(500));
        let start = "event: message_start\ndata: {}\n\n";
        assert_eq!(status(&format!("{start}{}", named("api_error"))), Some(200));
        assert_eq!(status("data: {\"type\":\"message_start\"}\n\n"), Some(200));
    }
}
