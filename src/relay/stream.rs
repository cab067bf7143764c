//! A stream on its way from the upstream to the caller: event by event, as fast as the caller reads, with a sign of life in
//! silence.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::FutureExt as _;
use hyper::body::{Body, Frame, Incoming};
use serde_json::json;
use tokio::time::{Instant, Sleep};

use super::pool::Trouble;
use super::sse::Splitter;
use super::tally::Tally;

/// In whose words a stream speaks.
pub(super) trait Voice: Unpin {
    /// What the caller gets of whole events; may be nothing.
    fn events(&mut self, events: Bytes) -> Bytes;
    /// A sign of life.
    fn ping(&self) -> Bytes;
    /// That it has gone wrong.
    fn error(&mut self, kind: &str, message: &str) -> Bytes;
}

/// The API's own: the bytes as they came.
pub(super) struct Unchanged;

impl Voice for Unchanged {
    fn events(&mut self, events: Bytes) -> Bytes {
        events
    }

    fn ping(&self) -> Bytes {
        Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n")
    }

    fn error(&mut self, kind: &str, message: &str) -> Bytes {
        let data = json!({ "type": "error", "error": { "type": kind, "message": message } });
        format!("event: error\ndata: {data}\n\n").into()
    }
}

/// The body of an answer that is a stream. Dropped, it ends the request at the upstream, and what was used is recorded.
pub(super) struct Relayed<V> {
    /// None: it has ended.
    upstream: Option<Incoming>,
    splitter: Splitter,
    voice: V,
    tally: Tally,
    ping: Duration,
    silence: Duration,
    /// When the upstream was heard last, and when the caller was sent something.
    heard: Instant,
    sent: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<V: Voice> Relayed<V> {
    pub(super) fn new(upstream: Incoming, voice: V, tally: Tally) -> Self {
        let limits = tally.relay().limits;
        let now = Instant::now();
        Self {
            upstream: Some(upstream),
            splitter: Splitter::default(),
            voice,
            tally,
            ping: limits.ping,
            silence: limits.silence,
            heard: now,
            sent: now,
            timer: Box::pin(tokio::time::sleep(limits.ping.min(limits.silence))),
        }
    }

    /// The last thing that the caller hears of it. What had begun and is not whole is left out: nobody could read it.
    fn break_off(&mut self, kind: &str, message: &str) -> Bytes {
        self.upstream = None;
        self.tally.breaks(kind);
        if let Some(lease) = self.tally.lease() {
            let relay = self.tally.relay();
            relay.health.note(&relay.services, lease.failed(Trouble::Failing, message.to_owned()));
        }
        self.voice.error(kind, message)
    }

    /// What came from the upstream, as the caller gets it.
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        let events = self.splitter.push(bytes);
        if events.is_empty() {
            return events;
        }
        self.tally.reads(&events);
        self.voice.events(events)
    }

    /// The upstream has said all.
    fn end(&mut self) -> Option<Bytes> {
        self.upstream = None;
        if self.tally.meter.is_complete {
            self.tally.ends();
            return None;
        }
        if let Some(error) = self.tally.meter.error.take() {
            // It has told the caller itself.
            self.tally.breaks(&error.kind);
            if let (Some(lease), "overloaded_error") = (self.tally.lease(), error.kind.as_str()) {
                let relay = self.tally.relay();
                relay.health.note(&relay.services, lease.failed(Trouble::Overloaded(None), error.message));
            }
            return None;
        }
        Some(self.break_off("api_error", "The upstream's answer broke off."))
    }

    /// What is due because nothing came.
    fn in_silence(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            if self.timer.as_mut().poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now.duration_since(self.heard) >= self.silence {
                return Poll::Ready(self.break_off("timeout_error", "The upstream has been silent for too long."));
            }
            let is_due = now.duration_since(self.sent) >= self.ping;
            if is_due {
                self.sent = now;
            }
            // It is set anew only when it has run out, not with each event.
            self.timer.as_mut().reset((self.sent + self.ping).min(self.heard + self.silence));
            if is_due {
                return Poll::Ready(self.voice.ping());
            }
        }
    }
}

impl<V: Voice> Body for Relayed<V> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        loop {
            let Some(upstream) = &mut this.upstream else { return Poll::Ready(None) };
            match Pin::new(upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(part))) => {
                    let Ok(bytes) = part.into_data() else { continue };
                    let now = Instant::now();
                    this.heard = now;
                    let bytes = this.pass(bytes);
                    if !bytes.is_empty() {
                        this.sent = now;
                        return frame(bytes);
                    }
                }
                Poll::Ready(None) => return this.end().map_or(Poll::Ready(None), frame),
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "an upstream's stream broke off");
                    let last = if this.tally.meter.is_complete {
                        this.end()
                    } else {
                        Some(this.break_off("api_error", "The upstream's answer broke off."))
                    };
                    return last.map_or(Poll::Ready(None), frame);
                }
                Poll::Pending => return this.in_silence(cx).map(|bytes| Some(Ok(Frame::data(bytes)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.upstream.is_none()
    }
}
