//! Server-sent events: a subscription as an answer that goes on, by the distinct connections mode of graphql-sse.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::Instrument as _;

use super::graphql::{Prepared, Unexecuted, authenticate};
use super::live::{Asker, FAREWELL, concerning};
use super::media_type::AnswerType;
use super::metrics::Counted;
use super::observe::RequestContext;
use super::panics::caught;
use super::router::Server;
use super::subscription::{End, Sink, errors, follow};
use crate::relay::ACCEL_BUFFERING;

/// A comment, which nobody is told of.
const KEEP_ALIVE: Bytes = Bytes::from_static(b":\n\n");

/// An answer that is all there is: one `next`, and `complete`.
pub(super) fn whole(body: &[u8]) -> Vec<u8> {
    [event("next", body), event("complete", b"")].concat()
}

/// JSON has no line breaks, which would end an event.
fn event(name: &str, data: &[u8]) -> Vec<u8> {
    [b"event: ", name.as_bytes(), b"\ndata: ", data, b"\n\n"].concat()
}

/// Answers a subscription with a stream of its events.
pub(super) fn subscribe(
    server: &Arc<Server>,
    context: &RequestContext,
    headers: &HeaderMap,
    prepared: Prepared,
) -> Response {
    let asker = Asker { headers: headers.clone(), context: context.clone() };
    // One event: the next is made once the caller has taken it.
    let (sender, receiver) = mpsc::channel(1);
    let counted = Counted::on(&server.metrics.event_streams);
    let work = {
        let server = server.clone();
        async move {
            let request_id = asker.context.request_id.clone();
            let mut events = Events(sender);
            if let Err(failed) = caught(Box::pin(stream(&server, asker, prepared, &mut events))).await {
                events.refuse(errors(failed, &request_id)).await;
            }
            drop(counted);
        }
    };
    tokio::spawn(work.in_current_span());
    let keep_alive = server.live.limits.keep_alive;
    let body = futures_util::stream::unfold(receiver, move |mut receiver| async move {
        match timeout(keep_alive, receiver.recv()).await {
            Ok(Some(bytes)) => Some((Ok::<_, std::convert::Infallible>(bytes), receiver)),
            Ok(None) => None,
            Err(_) => Some((Ok(KEEP_ALIVE), receiver)),
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(AnswerType::EventStream.content_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept, authorization, x-api-key"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

async fn stream(server: &Arc<Server>, asker: Asker, prepared: Prepared, events: &mut Events) {
    let request_id = asker.context.request_id.clone();
    let changes = server.services.authenticator.changes();
    let actor = match authenticate(server, &asker.headers, asker.context.client_address).await {
        Ok(asking) => asking.actor,
        Err(refused) => return events.refuse(errors(refused, &request_id)).await,
    };
    let Some(_held) = server.live.hold(&actor, asker.context.client_address) else {
        let message = "You have too many open sockets and streams.";
        let refused = Unexecuted::rate_limited(message, 1);
        return events.refuse(errors(refused, &request_id)).await;
    };
    let sender = events.0.clone();
    // The first line goes out at once, so that the caller knows that it is connected.
    if sender.send(KEEP_ALIVE).await.is_err() {
        return;
    }
    let end = tokio::select! {
        end = follow(server, &asker, prepared, events) => end,
        end = asker.clone().ended(server.clone(), concerning(changes, &actor), |_| true) => end,
        () = server.stop.cancelled() => End::Told,
        () = sender.closed() => End::Told,
    };
    // A stream whose token has expired, or that the server cannot go on with, ends without a word, as one that broke off: graphql-sse
    // opens it again, with a fresh token.
    if end == End::Revoked {
        let refused = Unexecuted::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "You need to sign in to do this.");
        events.refuse(errors(refused, &request_id)).await;
    }
}

/// Writes events into the answer.
struct Events(mpsc::Sender<Bytes>);

impl Events {
    async fn send(&self, name: &str, data: &str) -> bool {
        self.0.send(event(name, data.as_bytes()).into()).await.is_ok()
    }
}

impl Sink for Events {
    async fn next(&mut self, answer: Box<RawValue>) -> bool {
        self.send("next", answer.get()).await
    }

    async fn complete(&mut self) {
        // Where nobody is there any more, nobody misses it.
        self.send("complete", "").await;
    }

    /// Whoever does not read that it is over is not waited for: the stream would keep its place.
    async fn refuse(&mut self, errors: Box<RawValue>) {
        let told = async {
            if self.send("next", &format!("{{\"errors\":{}}}", errors.get())).await {
                self.complete().await;
            }
        };
        let _ = timeout(FAREWELL, told).await;
    }
}
