//! One WebSocket that speaks graphql-transport-ws.
//!
//! Three kinds of tasks: this one reads, one writes, and each operation has its own. All that is to be sent goes through one
//! short queue, so that who does not read stops what makes more; and who does not read for long is cut off. Whatever these wait
//! for, the end of the server or of the caller's sign-in ends them at once; but a mutation that has begun is finished, and
//! its answer goes out before the socket is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::graphql::{Unexecuted, authenticate};
use super::live::{Asker, FAREWELL, Held, concerning};
use super::metrics::Counted;
use super::observe::RequestContext;
use super::operations::{Operations, Outgoing, Queued, perform};
use super::panics::caught;
use super::request::GraphqlRequest;
use super::router::Server;
use super::subscription::{End, Sink as _, errors};
use crate::identity::Changes;
use crate::upstream::API_KEY;

/// The longest id that an operation may have, in bytes.
const MAX_ID: usize = 256;
/// How many pings may stay unanswered: what was sent before is read before the ping is.
const UNANSWERED: u32 = 3;

/// Why a socket is closed, by the codes of RFC 6455 and of the protocol.
enum Closed {
    /// The caller has closed it, or is gone.
    Gone,
    GoingAway,
    TooLarge,
    /// A frame that the protocol of sockets does not allow: with which code that is answered.
    BrokenFrame(u16),
    /// The database is away, and was for long.
    Unavailable,
    NotThere,
    Malformed(String),
    NotInitialised,
    Forbidden,
    InitTimeout,
    Duplicate(String),
    TooMany(&'static str),
}

impl Closed {
    fn malformed(why: impl Into<String>) -> Self {
        Self::Malformed(why.into())
    }

    fn frame(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Gone => return None,
            Self::GoingAway => (1001, "The server is stopping".to_owned()),
            Self::TooLarge => (1009, "The message is larger than 256 KiB".to_owned()),
            Self::BrokenFrame(code) => (code, "The frame is against RFC 6455".to_owned()),
            Self::Unavailable => (1013, "Try again later".to_owned()),
            Self::Malformed(why) => (4400, why),
            Self::NotInitialised => (4401, "Unauthorized".to_owned()),
            Self::Forbidden => (4403, "Forbidden".to_owned()),
            Self::InitTimeout => (4408, "Connection initialisation timeout".to_owned()),
            Self::Duplicate(id) => (4409, format!("Subscriber for {id} already exists")),
            Self::TooMany(what) => (4429, format!("Too many {what}")),
            // With 1011, as with any code below 2000 but a few, graphql-ws would not come again.
            Self::NotThere => (4499, "No sign of life".to_owned()),
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

/// Serves a socket to its end.
pub(super) async fn serve(server: Arc<Server>, socket: WebSocket, asker: Asker, held: Held) {
    let _counted = Counted::on(&server.metrics.sockets);
    let limits = server.live.limits;
    let (sink, mut incoming) = socket.split();
    let (queue, outgoing) = mpsc::channel(limits.queue);
    let (close, frame) = oneshot::channel();
    let (closing, pings) = (CancellationToken::new(), Arc::<AtomicU32>::default());
    let writer = Writer {
        sink,
        queue: outgoing,
        closing: closing.clone(),
        frame,
        pings: pings.clone(),
        patience: limits.write,
        farewell: FAREWELL,
    };
    let mut writer = tokio::spawn(writer.run());
    let operations = Operations::new(limits.operations);
    let pulse = Pulse { sent: pings, asked: 0, unanswered: 0 };
    let session = Session { server, asker, held: Arc::new(held), operations, queue, closing, pulse };
    // The writer may have ended already: then nobody is there.
    let _ = close.send(session.run(&mut incoming).await.frame());
    // Until the caller has answered. Cut off at once, it might never read why.
    let farewell = async {
        let _ = (&mut writer).await;
        while let Some(Ok(_)) = incoming.next().await {}
    };
    if timeout(FAREWELL, farewell).await.is_err() {
        writer.abort();
    }
}

/// Sends what is in the queue, and at last why the socket is closed.
struct Writer<S = SplitSink<WebSocket, Message>> {
    sink: S,
    queue: mpsc::Receiver<Queued>,
    /// Done once nothing more is to be sent but what is owed.
    closing: CancellationToken,
    /// None: the caller has closed it, which is answered.
    frame: oneshot::Receiver<Option<CloseFrame>>,
    /// Counts the pings that were sent.
    pings: Arc<AtomicU32>,
    patience: Duration,
    /// For how long all that is owed while the socket is closing may wait for the caller to read it; that a mutation takes its time
    /// does not count.
    farewell: Duration,
}

impl<S: Sink<Message> + Unpin> Writer<S> {
    async fn run(mut self) {
        while let Some(Queued { message, is_owed }) = self.queue.recv().await {
            if !is_owed && self.closing.is_cancelled() {
                continue;
            }
            let is_ping = matches!(message, Message::Ping(_));
            let mut hurried_since = None;
            let hurried = async {
                self.closing.cancelled().await;
                hurried_since = Some(Instant::now());
                sleep(self.farewell).await;
            };
            tokio::select! {
                biased;
                sent = timeout(self.patience, self.sink.send(message)) => if !matches!(sent, Ok(Ok(()))) { return },
                () = hurried => return,
            }
            if let Some(since) = hurried_since {
                self.farewell = self.farewell.saturating_sub(since.elapsed());
            }
            self.pings.fetch_add(is_ping.into(), Ordering::Relaxed);
        }
        // Nobody reads what becomes of it.
        let _ = match self.frame.await {
            Ok(Some(frame)) => self.sink.send(Message::Close(Some(frame))).await,
            _ => self.sink.close().await,
        };
    }
}

/// Whether anybody is there, as far as pings tell.
struct Pulse {
    /// How many pings have left the queue.
    sent: Arc<AtomicU32>,
    /// How many were put into it.
    asked: u32,
    /// How many since anything came.
    unanswered: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Ask,
    Wait,
    GiveUp,
}

impl Pulse {
    /// What to do at the next time for a ping. A caller that is slow to read is not there the less: while a ping waits
    /// for what was sent before it, there is no other, and nothing is made of the silence.
    fn turn(&self) -> Turn {
        match self.unanswered {
            _ if self.sent.load(Ordering::Relaxed) != self.asked => Turn::Wait,
            UNANSWERED.. => Turn::GiveUp,
            _ => Turn::Ask,
        }
    }
}

struct Session {
    server: Arc<Server>,
    asker: Asker,
    /// A place among those that the caller may have; before the connection was initialised, that its address may have.
    held: Arc<Held>,
    operations: Operations,
    queue: mpsc::Sender<Queued>,
    closing: CancellationToken,
    pulse: Pulse,
}

impl Session {
    /// Reads until the socket is to be closed.
    async fn run(mut self, incoming: &mut SplitStream<WebSocket>) -> Closed {
        let (stop, queue) = (self.server.stop.clone(), self.queue.clone());
        let closed = tokio::select! {
            biased;
            () = stop.cancelled() => Closed::GoingAway,
            () = queue.closed() => Closed::Gone,
            closed = self.converse(incoming) => closed,
        };
        self.closing.cancel();
        if matches!(closed, Closed::Gone | Closed::NotThere) {
            return closed;
        }
        tokio::select! {
            biased;
            () = self.operations.settle() => {}
            () = queue.closed() => {}
            // Where a frame could not be taken nothing can be read any more, but the caller is there as before.
            () = gone(incoming), if !matches!(closed, Closed::TooLarge | Closed::BrokenFrame(_)) => {}
        }
        closed
    }

    async fn converse(&mut self, incoming: &mut SplitStream<WebSocket>) -> Closed {
        let deadline = Instant::now() + self.server.live.limits.init;
        let changes = match timeout_at(deadline, self.begin(incoming)).await {
            Ok(Ok(changes)) => changes,
            Ok(Err(closed)) => return closed,
            Err(_) => return Closed::InitTimeout,
        };
        let ended = self.asker.clone().ended(self.server.clone(), changes, |_| true);
        tokio::select! {
            biased;
            _ = ended => Closed::Forbidden,
            closed = self.go_on(incoming) => closed,
        }
    }

    /// Reads until the connection is initialised. Returns the changes of access from then on.
    async fn begin(&mut self, incoming: &mut SplitStream<WebSocket>) -> Result<Changes, Closed> {
        loop {
            match read(incoming.next().await)? {
                Some(Incoming::ConnectionInit { payload }) => {
                    return self.initialise(&payload.unwrap_or_default()).await;
                }
                Some(Incoming::Subscribe { .. }) => return Err(Closed::NotInitialised),
                Some(Incoming::Ping { payload }) => self.pong(payload).await?,
                Some(Incoming::Pong {} | Incoming::Complete { .. }) | None => {}
            }
        }
    }

    async fn go_on(&mut self, incoming: &mut SplitStream<WebSocket>) -> Closed {
        let limits = self.server.live.limits;
        let mut ping = tokio::time::interval_at(Instant::now() + limits.ping, limits.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                biased;
                Some(end) = self.operations.tasks.join_next() => match end {
                    Ok(End::Expired | End::Revoked) => Err(Closed::Forbidden),
                    Ok(End::Failed) => Err(Closed::Unavailable),
                    // One that was ended by the caller is an error here.
                    Ok(End::Told) | Err(_) => Ok(()),
                },
                // What has ended may still wait to be sent: who does not read what came makes no more of it.
                message = incoming.next(), if self.operations.tasks.len() < 2 * limits.operations => {
                    self.pulse.unanswered = 0;
                    match read(message) {
                        Ok(Some(message)) => self.obey(message).await,
                        Ok(None) => Ok(()),
                        Err(closed) => Err(closed),
                    }
                }
                _ = ping.tick() => self.ping(),
            };
            if let Err(closed) = done {
                return closed;
            }
        }
    }

    fn ping(&mut self) -> Result<(), Closed> {
        match self.pulse.turn() {
            Turn::GiveUp => return Err(Closed::NotThere),
            Turn::Wait => {}
            Turn::Ask => {
                let ping = Queued { message: Message::Ping(Bytes::new()), is_owed: false };
                // Where the queue is full there is something else to read.
                if self.queue.try_send(ping).is_ok() {
                    self.pulse.asked = self.pulse.asked.wrapping_add(1);
                    self.pulse.unanswered += 1;
                }
            }
        }
        Ok(())
    }

    async fn pong(&mut self, payload: Option<Map<String, Value>>) -> Result<(), Closed> {
        self.send(Outgoing { id: None, kind: "pong", payload }.message()).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Closed> {
        self.queue.send(Queued { message, is_owed: false }).await.map_err(|_| Closed::Gone)
    }

    async fn obey(&mut self, message: Incoming) -> Result<(), Closed> {
        match message {
            Incoming::ConnectionInit { .. } => Err(Closed::TooMany("initialisation requests")),
            Incoming::Ping { payload } => self.pong(payload).await,
            Incoming::Pong {} => Ok(()),
            Incoming::Subscribe { id, payload } => self.subscribe(id, payload).await,
            Incoming::Complete { id } => {
                self.operations.end(&id);
                Ok(())
            }
        }
    }

    async fn initialise(&mut self, payload: &Map<String, Value>) -> Result<Changes, Closed> {
        add_credentials(&mut self.asker.headers, payload);
        let changes = self.server.services.authenticator.changes();
        let address = self.asker.context.client_address;
        let actor = match authenticate(&self.server, &self.asker.headers, address).await {
            Ok(asking) if asking.is_refused => return Err(Closed::Forbidden),
            Ok(asking) => asking.actor,
            Err(refused) if refused.status == StatusCode::BAD_REQUEST => {
                let why = refused.errors.into_iter().map(|error| error.message).next();
                return Err(Closed::malformed(why.unwrap_or_default()));
            }
            // The caller comes again by itself.
            Err(_) => return Err(Closed::GoingAway),
        };
        if actor.signed_in().is_some() {
            let held = self.server.live.hold(&actor, address);
            self.held = Arc::new(held.ok_or(Closed::TooMany("open sockets and streams"))?);
        }
        self.send(Outgoing::<()> { id: None, kind: "connection_ack", payload: None }.message()).await?;
        Ok(concerning(changes, &actor))
    }

    async fn subscribe(&mut self, id: String, payload: Map<String, Value>) -> Result<(), Closed> {
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Closed::malformed("The id must have 1 to 256 bytes"));
        }
        let request = GraphqlRequest::from_object(payload).map_err(Closed::malformed)?;
        if request.query.is_none() && request.persisted_hash.is_none() {
            return Err(Closed::malformed("The parameter query is missing."));
        }
        if self.operations.has(&id) {
            return Err(Closed::Duplicate(id));
        }
        // Each operation has an id of its own, by which the log, errors and the audit log name it.
        let request_id = hex::encode(self.server.services.random.bytes::<16>());
        let context = RequestContext { request_id, ..self.asker.context.clone() };
        let asker = Asker { context, headers: self.asker.headers.clone() };
        let place = self.operations.place(self.held.clone());
        let is_refused = place.is_none();
        let mut answers = self.operations.answers(id.clone(), self.queue.clone(), place);
        if is_refused {
            let message = "The socket has as many operations as it may have at once.";
            let refused = Unexecuted::rate_limited(message, 1);
            answers.refuse(errors(refused, &asker.context.request_id)).await;
            return Ok(());
        }
        // At the level of errors, as a request's.
        let span = tracing::error_span!("operation", request_id = asker.context.request_id);
        let server = self.server.clone();
        let work = async move {
            match caught(Box::pin(perform(&server, &asker, request, &mut answers))).await {
                Ok(end) => end,
                Err(failed) => {
                    answers.refuse(errors(failed, &asker.context.request_id)).await;
                    End::Told
                }
            }
        };
        self.operations.begin(id, work.instrument(span));
        Ok(())
    }
}

/// Waits until the caller has closed the socket or is gone. What else it sends is too late.
async fn gone(incoming: &mut SplitStream<WebSocket>) {
    loop {
        match incoming.next().await {
            Some(Ok(Message::Close(_))) | None => return,
            Some(Ok(_)) => {}
            Some(Err(error)) => match fault(&error) {
                Closed::Gone => return,
                // It is there, though nothing of it can be read any more.
                _ => std::future::pending().await,
            },
        }
    }
}

/// What came: none where it is the transport's.
fn read(message: Option<Result<Message, axum::Error>>) -> Result<Option<Incoming>, Closed> {
    match message {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str(&text).map(Some).map_err(|_| Closed::malformed("Invalid message"))
        }
        Some(Ok(Message::Binary(_))) => Err(Closed::malformed("Only text messages are accepted")),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
        Some(Err(error)) => Err(fault(&error)),
        Some(Ok(Message::Close(_))) | None => Err(Closed::Gone),
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

/// Why nothing more can be read. The types are those of the library below axum: a test has it that they are of one version.
fn fault(error: &axum::Error) -> Closed {
    use tungstenite::error::{Error, ProtocolError};

    match std::error::Error::source(error).and_then(|cause| cause.downcast_ref()) {
        Some(Error::Capacity(_)) => Closed::TooLarge,
        Some(Error::Utf8(_)) => Closed::BrokenFrame(1007),
        Some(Error::Protocol(error)) if *error != ProtocolError::ResetWithoutClosingHandshake => {
            Closed::BrokenFrame(1002)
        }
        _ => Closed::Gone,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_reads_each_message_slowly_has_one_farewell_for_all() {
        const PAUSE: Duration = Duration::from_millis(30);
        let (reads, mut read) = mpsc::unbounded_channel();
        // Each takes less than the farewell.
        let sink = futures_util::sink::unfold((), |(), _: Message| {
            let reads = reads.clone();
            async move {
                sleep(PAUSE).await;
                reads.send(()).map_err(|_| ())
            }
        });
        let ((queue, outgoing), (_close, frame)) = (mpsc::channel(64), oneshot::channel());
        for _ in 0..64 {
            queue.send(Queued { message: Message::Ping(Bytes::new()), is_owed: true }).await.unwrap();
        }
        let closing = CancellationToken::new();
        closing.cancel();
        let (pings, patience, farewell) = (Arc::default(), Duration::from_secs(60), 4 * PAUSE);
        Writer { sink: Box::pin(sink), queue: outgoing, closing, frame, pings, patience, farewell }.run().await;
        let mut count = 0;
        while read.try_recv().is_ok() {
            count += 1;
        }
        assert!(count < 64 && queue.is_closed(), "{count}");
    }

    #[test]
    fn who_is_slow_to_read_is_not_given_up() {
        let mut pulse = Pulse { sent: Arc::default(), asked: 0, unanswered: 0 };
        for _ in 0..UNANSWERED {
            assert_eq!(pulse.turn(), Turn::Ask);
            pulse.asked += 1;
            pulse.unanswered += 1;
            // The ping waits behind what the caller has not read yet, for as long as that takes.
            for _ in 0..100 {
                assert_eq!(pulse.turn(), Turn::Wait);
            }
            pulse.sent.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(pulse.turn(), Turn::GiveUp);
        pulse.unanswered = 0;
        assert_eq!(pulse.turn(), Turn::Ask);
    }
}
