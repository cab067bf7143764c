//! A stream on its way from the upstream to the caller: event by event, as fast as the caller reads, with a sign of life in
//! silence.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use serde_json::json;
use tokio::time::{Instant, Sleep};

use super::RelayLimits;
use super::beginning::Begun;
use super::recovery::Trouble;
use super::sse::Splitter;
use super::tally::Tally;
use super::upstream::without_key;
use super::watched::{Source, Watched};
use crate::upstream::tamed;

const BROKEN_OFF: &str = "The upstream's answer broke off.";
/// How soon after its last word an upstream ends its answer, as a rule: until then its connection is worth waiting for.
const LINGER: Duration = Duration::from_secs(1);

/// In whose words a stream speaks.
pub(super) trait Voice: Unpin + Send + 'static {
    /// Whether a piece of an event can be passed on.
    const TAKES_PIECES: bool;

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
    const TAKES_PIECES: bool = true;

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

/// The body of an answer that is a stream. Dropped, it ends the request at the upstream, and what was used is recorded; the same
/// where the caller does not read it.
pub(super) type Relayed<V> = Watched<Stream<V>>;

pub(super) struct Stream<V> {
    /// What was read before; empty: it was passed on.
    first: Bytes,
    /// None: it has ended.
    upstream: Option<Incoming>,
    splitter: Splitter,
    voice: V,
    tally: Tally,
    limits: RelayLimits,
    started: Instant,
    /// When the upstream was heard last, and when the caller was sent something.
    heard: Instant,
    sent: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<V: Voice> Relayed<V> {
    pub(super) fn new(Begun { first, rest, since }: Begun, voice: V, tally: Tally) -> Self {
        let limits = tally.relay().limits;
        let stream = Stream {
            first,
            upstream: Some(rest),
            splitter: Splitter::default(),
            voice,
            tally,
            limits,
            started: since,
            heard: Instant::now(),
            sent: since,
            timer: Box::pin(tokio::time::sleep_until(since + limits.ping.min(limits.silence))),
        };
        Self::over(stream, limits.unread)
    }
}

impl<V: Voice> Stream<V> {
    /// The last thing that the caller hears of it. What had begun and is not whole is left out: nobody could read it.
    fn give_up(&mut self, kind: &str, message: &str) -> Bytes {
        self.upstream = None;
        self.tally.breaks(kind);
        let error = self.voice.error(kind, message);
        if V::TAKES_PIECES && self.splitter.is_inside() {
            // It must not become a part of what had begun.
            return [b"\n\n", &error[..]].concat().into();
        }
        error
    }

    /// The same by the account's doing.
    fn break_off(&mut self, kind: &str, message: &str) -> Bytes {
        if let Some(lease) = self.tally.lease() {
            self.tally.relay().note(lease, Trouble::Failing, message.to_owned());
        }
        self.give_up(kind, message)
    }

    /// What came from the upstream, as the caller gets it.
    fn pass(&mut self, bytes: &Bytes) -> Bytes {
        let mut events = self.splitter.push(bytes);
        if self.splitter.is_inside() && !V::TAKES_PIECES {
            return self.give_up("api_error", "An event of the upstream's is too large.");
        }
        if events.is_empty() {
            return events;
        }
        self.tally.reads(&events);
        if self.tally.meter.error.is_some() {
            events = match self.without_key(events) {
                Some(events) => events,
                None => return self.break_off("api_error", BROKEN_OFF),
            };
        }
        self.voice.events(events)
    }

    /// An upstream may repeat the key in an error. None: the key does not open any longer.
    fn without_key(&mut self, events: Bytes) -> Option<Bytes> {
        let key = self.tally.lease()?.account.open_key(&self.tally.relay().services.keys).ok()?;
        if let Some(error) = &mut self.tally.meter.error {
            (error.kind, error.message) = (tamed(&error.kind, &key), tamed(&error.message, &key));
        }
        Some(without_key(events, &key))
    }

    /// Whether the upstream has said the last that counts. What it does after is nobody's matter.
    fn is_over(&self) -> bool {
        self.tally.meter.is_complete() || self.tally.meter.error.is_some()
    }

    fn end(&mut self, goes_on: bool) {
        if let (Some(upstream), true) = (self.upstream.take(), goes_on) {
            self.tally.relay().tasks.spawn(drain(upstream));
        }
        if self.tally.meter.is_complete() {
            return self.tally.ends();
        }
        if let Some(error) = self.tally.meter.error.take() {
            // It has told the caller itself.
            self.tally.breaks(&error.kind);
            if let (Some(lease), "overloaded_error") = (self.tally.lease(), error.kind.as_str()) {
                self.tally.relay().note(lease, Trouble::Overloaded(None), error.message);
            }
        }
    }

    /// What is due because nothing came.
    fn in_silence(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            if self.timer.as_mut().poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now.duration_since(self.heard) >= self.limits.silence {
                return Poll::Ready(self.break_off("timeout_error", "The upstream has been silent for too long."));
            }
            let is_due = now.duration_since(self.sent) >= self.limits.ping;
            if is_due {
                self.sent = now;
            }
            // It is set anew only when it has run out, not with each event.
            self.timer.as_mut().reset((self.sent + self.limits.ping).min(self.heard + self.limits.silence));
            // Within an event it would become a part of that.
            if is_due && !self.splitter.is_inside() {
                return Poll::Ready(self.voice.ping());
            }
        }
    }
}

impl<V: Voice> Source for Stream<V> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
            let polled = if self.first.is_empty() {
                Pin::new(upstream).poll_frame(cx)
            } else {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))))
            };
            if self.is_over() {
                self.end(matches!(polled, Poll::Pending | Poll::Ready(Some(Ok(_)))));
                return Poll::Ready(None);
            }
            match polled {
                Poll::Ready(Some(Ok(part))) => {
                    let Ok(bytes) = part.into_data() else { continue };
                    let now = Instant::now();
                    self.heard = now;
                    if now.duration_since(self.started) >= self.limits.longest {
                        return Poll::Ready(Some(
                            self.give_up("timeout_error", "The answer has gone on for too long."),
                        ));
                    }
                    let bytes = self.pass(&bytes);
                    if !bytes.is_empty() {
                        self.sent = now;
                        return Poll::Ready(Some(bytes));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Some(self.break_off("api_error", BROKEN_OFF))),
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "an upstream's stream broke off");
                    return Poll::Ready(Some(self.break_off("api_error", BROKEN_OFF)));
                }
                Poll::Pending => return self.in_silence(cx).map(Some),
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.upstream.is_none()
    }

    fn size(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Reads what an upstream says after its last word, so that its connection can be used again.
async fn drain(mut upstream: Incoming) {
    let ending = async { while let Some(Ok(_)) = upstream.frame().await {} };
    // One that goes on is cut off.
    let _ = tokio::time::timeout(LINGER, ending).await;
}
