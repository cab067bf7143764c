//! One WebSocket that speaks graphql-transport-ws.
//!
//! Three kinds of tasks: this one reads, one writes, and each operation has its own. All that is to be sent goes through one
//! short queue, so that who does not read stops what makes more; and who does not read for long is cut off.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout};
use tracing::Instrument as _;

use super::graphql::{Unexecuted, authenticate};
use super::live::{Asker, Held};
use super::metrics::Counted;
use super::observe::RequestContext;
use super::request::GraphqlRequest;
use super::router::{API_KEY, Server};
use super::subscription::{End, Sink, errors, perform};

/// The longest id that an operation may have, in bytes.
const MAX_ID: usize = 256;
/// How long the caller may take to answer that the socket is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a socket is closed, by the codes of RFC 6455 and of the protocol.
enum Closed {
    /// The caller has closed it, or is gone.
    Gone,
    GoingAway,
    TooLarge,
    NotThere,
    Malformed(&'static str),
    NotInitialised,
    Forbidden,
    InitTimeout,
    Duplicate(String),
    TooMany(&'static str),
}

impl Closed {
    fn frame(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Gone => return None,
            Self::GoingAway => (1001, "The server is stopping".to_owned()),
            Self::TooLarge => (1009, "The message is larger than 256 KiB".to_owned()),
            Self::NotThere => (1011, "No sign of life".to_owned()),
            Self::Malformed(why) => (4400, why.to_owned()),
            Self::NotInitialised => (4401, "Unauthorized".to_owned()),
            Self::Forbidden => (4403, "Forbidden".to_owned()),
            Self::InitTimeout => (4408, "Connection initialisation timeout".to_owned()),
            Self::Duplicate(id) => (4409, format!("Subscriber for {id} already exists")),
            Self::TooMany(what) => (4429, format!("Too many {what}")),
        };
        // A frame of control has 125 bytes, two of them for the code.
        let end = (0..=reason.len().min(123)).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or_default();
        Some(CloseFrame { code, reason: reason[..end].into() })
    }
}

/// What the caller sends.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Incoming {
    ConnectionInit { payload: Option<Map<String, Value>> },
    Ping { payload: Option<Map<String, Value>> },
    Pong {},
    Subscribe { id: String, payload: Map<String, Value> },
    Complete { id: String },
}

/// What the server sends.
#[derive(Serialize)]
struct Outgoing<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<P>,
}

impl<P: Serialize> Outgoing<'_, P> {
    fn message(&self) -> Message {
        // Texts and what was JSON before are JSON.
        Message::Text(serde_json::to_string(self).unwrap_or_default().into())
    }
}

/// Serves a socket to its end.
pub(super) async fn serve(server: Arc<Server>, socket: WebSocket, asker: Asker) {
    let _counted = Counted::on(&server.metrics.sockets);
    let (sink, mut incoming) = socket.split();
    let (queue, outgoing) = mpsc::channel(server.live.limits.queue);
    let (close, closing) = oneshot::channel();
    let mut writer = tokio::spawn(write(sink, outgoing, closing, server.live.limits.write));
    let session = Session {
        begun: Instant::now(),
        operations: Operations::default(),
        ended: std::future::pending().boxed(),
        held: None,
        is_there: true,
        queue,
        asker,
        server,
    };
    // What still runs ends with the session: a mutation has a task of its own, and is finished.
    if let Some(frame) = session.run(&mut incoming).await.frame() {
        // The writer may have ended already: then nobody is there.
        let _ = close.send(frame);
        // Until the caller has answered. Cut off at once, it might never read why.
        let _ = timeout(FAREWELL, async { while let Some(Ok(_)) = incoming.next().await {} }).await;
    } else {
        drop(close);
    }
    if timeout(FAREWELL, &mut writer).await.is_err() {
        writer.abort();
    }
}

/// Sends what is in the queue, and at last why the socket is closed.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<Message>,
    mut closing: oneshot::Receiver<CloseFrame>,
    patience: Duration,
) {
    loop {
        let (message, is_last) = tokio::select! {
            biased;
            frame = &mut closing => match frame {
                Ok(frame) => (Message::Close(Some(frame)), true),
                Err(_) => return,
            },
            Some(message) = queue.recv() => (message, false),
        };
        if !matches!(timeout(patience, sink.send(message)).await, Ok(Ok(()))) || is_last {
            return;
        }
    }
}

struct Session {
    server: Arc<Server>,
    asker: Asker,
    begun: Instant,
    /// A place among those that the caller may have; none before the connection was initialised.
    held: Option<Held>,
    /// Done once what the caller came with opens nothing any more.
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    operations: Operations,
    queue: mpsc::Sender<Message>,
    /// Whether anything came since the caller was last asked.
    is_there: bool,
}

impl Session {
    /// Reads until the socket is to be closed.
    async fn run(mut self, incoming: &mut SplitStream<WebSocket>) -> Closed {
        let limits = self.server.live.limits;
        let init_timeout = sleep_until(self.begun + limits.init);
        tokio::pin!(init_timeout);
        let mut ping = tokio::time::interval_at(self.begun + limits.ping, limits.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.server.stop.clone();
        let queue = self.queue.clone();
        loop {
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => Err(Closed::GoingAway),
                () = &mut self.ended => Err(Closed::Forbidden),
                () = queue.closed() => Err(Closed::Gone),
                () = &mut init_timeout, if self.held.is_none() => Err(Closed::InitTimeout),
                Some(end) = self.operations.tasks.join_next() => match end {
                    Ok(End::Revoked) => Err(Closed::Forbidden),
                    // One that was ended by the caller is an error here.
                    Ok(End::Told) | Err(_) => Ok(()),
                },
                _ = ping.tick() => self.ping().await,
                // What has ended may still wait to be sent: who does not read what came makes no more of it.
                message = incoming.next(), if self.operations.tasks.len() < 2 * limits.operations => {
                    self.receive(message).await
                }
            };
            if let Err(closed) = done {
                return closed;
            }
        }
    }

    async fn ping(&mut self) -> Result<(), Closed> {
        if !std::mem::replace(&mut self.is_there, false) {
            return Err(Closed::NotThere);
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Closed> {
        self.queue.send(message).await.map_err(|_| Closed::Gone)
    }

    async fn receive(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), Closed> {
        self.is_there = true;
        match message {
            Some(Ok(Message::Text(text))) => {
                let message = serde_json::from_str(&text).map_err(|_| Closed::Malformed("Invalid message"))?;
                self.obey(message).await
            }
            Some(Ok(Message::Binary(_))) => Err(Closed::Malformed("Only text messages are accepted")),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Err(error)) if is_too_large(&error) => Err(Closed::TooLarge),
            Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Closed::Gone),
        }
    }

    async fn obey(&mut self, message: Incoming) -> Result<(), Closed> {
        match message {
            Incoming::ConnectionInit { .. } if self.held.is_some() => Err(Closed::TooMany("initialisation requests")),
            Incoming::ConnectionInit { payload } => self.initialise(&payload.unwrap_or_default()).await,
            Incoming::Ping { payload } => self.send(Outgoing { id: None, kind: "pong", payload }.message()).await,
            Incoming::Pong {} => Ok(()),
            Incoming::Subscribe { .. } if self.held.is_none() => Err(Closed::NotInitialised),
            Incoming::Subscribe { id, payload } => self.subscribe(id, payload).await,
            Incoming::Complete { id } => {
                self.operations.end(&id);
                Ok(())
            }
        }
    }

    async fn initialise(&mut self, payload: &Map<String, Value>) -> Result<(), Closed> {
        add_credentials(&mut self.asker.headers, payload);
        let changes = self.server.services.authenticator.forgotten();
        let actor = match authenticate(&self.server, &self.asker.headers, self.asker.context.client_address).await {
            Ok((actor, false)) => actor,
            Ok((_, true)) => return Err(Closed::Forbidden),
            // The caller comes again by itself.
            Err(_) => return Err(Closed::GoingAway),
        };
        let held = self.server.live.hold(&actor, self.asker.context.client_address);
        self.held = Some(held.ok_or(Closed::TooMany("open sockets and streams"))?);
        self.ended = self.asker.clone().ended(self.server.clone(), changes).boxed();
        self.send(Outgoing::<()> { id: None, kind: "connection_ack", payload: None }.message()).await
    }

    async fn subscribe(&mut self, id: String, payload: Map<String, Value>) -> Result<(), Closed> {
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Closed::Malformed("The id must have 1 to 256 bytes"));
        }
        let request = GraphqlRequest::from_object(payload).map_err(Closed::Malformed)?;
        if request.query.is_none() && request.persisted_hash.is_none() {
            return Err(Closed::Malformed("The parameter query is missing."));
        }
        // Each operation has an id of its own, by which the log, errors and the audit log name it.
        let request_id = hex::encode(self.server.services.random.bytes::<16>());
        let context = RequestContext { request_id, ..self.asker.context.clone() };
        let asker = Asker { context, headers: self.asker.headers.clone() };
        let (number, running) = (self.operations.next_number(), self.operations.running.clone());
        let mut sink = Messages { id: id.clone(), number, running, queue: self.queue.clone() };
        if locked(&self.operations.running).contains_key(&id) {
            return Err(Closed::Duplicate(id));
        }
        if self.operations.count() >= self.server.live.limits.operations {
            let message = "The socket has as many operations as it may have at once.";
            let refused = Unexecuted::rate_limited(message, 1);
            sink.refuse(errors(refused, &asker.context.request_id)).await;
            return Ok(());
        }
        // At the level of errors, as a request's.
        let span = tracing::error_span!("operation", request_id = asker.context.request_id);
        let server = self.server.clone();
        let work = async move {
            let performed = AssertUnwindSafe(perform(&server, &asker, request, &mut sink)).catch_unwind().await;
            if let Ok(end) = performed {
                return end;
            }
            tracing::error!("an operation panicked");
            let message = "Something went wrong on the server.";
            let failed = Unexecuted::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_SERVER_ERROR", message);
            sink.refuse(errors(failed, &asker.context.request_id)).await;
            End::Told
        };
        self.operations.begin(id, number, work.instrument(span));
        Ok(())
    }
}

/// The operations of a socket.
#[derive(Default)]
struct Operations {
    running: Running,
    tasks: JoinSet<End>,
    last_number: u64,
}

/// The operations that run by their ids, each with its number: an id may be used again, a number is not.
type Running = Arc<Mutex<HashMap<String, (u64, AbortHandle)>>>;

impl Operations {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn count(&self) -> usize {
        locked(&self.running).len()
    }

    fn begin(&mut self, id: String, number: u64, work: impl Future<Output = End> + Send + 'static) {
        // Locked until it stands there: it may be done before.
        let mut running = locked(&self.running);
        let task = self.tasks.spawn(work);
        running.insert(id, (number, task));
    }

    /// The caller wants no more of it.
    fn end(&self, id: &str) {
        if let Some((_, task)) = locked(&self.running).remove(id) {
            task.abort();
        }
    }
}

fn locked(running: &Running) -> MutexGuard<'_, HashMap<String, (u64, AbortHandle)>> {
    // A panic cannot leave an insertion half done.
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the answers of one operation.
struct Messages {
    id: String,
    number: u64,
    running: Running,
    queue: mpsc::Sender<Message>,
}

impl Messages {
    async fn send(&self, kind: &'static str, payload: Option<Box<RawValue>>) -> bool {
        let message = Outgoing { id: Some(&self.id), kind, payload }.message();
        self.queue.send(message).await.is_ok()
    }

    /// Frees the id, before the caller is told that it may use it again.
    fn finish(&self) {
        let mut running = locked(&self.running);
        if running.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            running.remove(&self.id);
        }
    }
}

impl Sink for Messages {
    async fn next(&mut self, answer: Box<RawValue>) -> bool {
        self.send("next", Some(answer)).await
    }

    async fn complete(&mut self) {
        self.finish();
        self.send("complete", None).await;
    }

    async fn refuse(&mut self, errors: Box<RawValue>) {
        self.finish();
        self.send("error", Some(errors)).await;
    }
}

/// Takes over what the caller says of itself in the first message: browsers cannot set the headers of a socket. What stands there
/// goes before the headers.
fn add_credentials(headers: &mut HeaderMap, payload: &Map<String, Value>) {
    for (name, value) in payload {
        let Some(known) =
            [header::AUTHORIZATION, API_KEY].into_iter().find(|known| name.eq_ignore_ascii_case(known.as_str()))
        else {
            continue;
        };
        // A value that is no header opens nothing, as one that is no text.
        let value = value.as_str().and_then(|text| HeaderValue::from_str(text).ok());
        headers.insert(known, value.unwrap_or(HeaderValue::from_static("invalid")));
    }
}

/// Whether a message, or a frame of it, was larger than it may be.
fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("too long") {
            return true;
        }
        cause = error.source();
    }
    false
}
