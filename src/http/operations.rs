//! The operations of one socket: each has its id, its place among those that may run at once, and its answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::Message;
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::graphql::{Unexecuted, authenticate, execute_once, origin, prepare};
use super::live::{Asker, Held};
use super::rate_limit;
use super::request::GraphqlRequest;
use super::router::Server;
use super::subscription::{End, Sink, errors, follow, json};

/// What the server sends.
#[derive(Serialize)]
pub(super) struct Outgoing<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) payload: Option<P>,
}

impl<P: Serialize> Outgoing<'_, P> {
    pub(super) fn message(&self) -> Message {
        // Texts and what was JSON before are JSON.
        Message::Text(serde_json::to_string(self).unwrap_or_default().into())
    }
}

/// A message that waits to be sent.
pub(super) struct Queued {
    pub(super) message: Message,
    /// Whether it is sent though the socket is closing: who is not told what a mutation did would do it again.
    pub(super) is_owed: bool,
}

/// The operations of a socket.
pub(super) struct Operations {
    running: Running,
    places: Arc<Semaphore>,
    pub(super) tasks: JoinSet<End>,
    last_number: u64,
}

/// The operations that the caller knows of by their ids.
type Running = Arc<Mutex<HashMap<String, Operation>>>;

struct Operation {
    /// An id may be used again, a number is not.
    number: u64,
    task: AbortHandle,
    is_mutation: bool,
}

/// What an operation takes while it runs: a mutation that is finished though the caller has left takes it until then.
pub(super) struct Place {
    _among_the_operations: OwnedSemaphorePermit,
    _among_the_sockets: Arc<Held>,
}

impl Operations {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            running: Running::default(),
            places: Arc::new(Semaphore::new(limit)),
            tasks: JoinSet::new(),
            last_number: 0,
        }
    }

    pub(super) fn has(&self, id: &str) -> bool {
        locked(&self.running).contains_key(id)
    }

    /// A place for one more, unless there is none.
    pub(super) fn place(&self, held: Arc<Held>) -> Option<Place> {
        let permit = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { _among_the_operations: permit, _among_the_sockets: held })
    }

    /// Where the answers of a new operation go.
    pub(super) fn answers(&mut self, id: String, queue: mpsc::Sender<Queued>, place: Option<Place>) -> Answers {
        self.last_number += 1;
        Answers { id, number: self.last_number, running: self.running.clone(), queue, place, is_owed: false }
    }

    /// Begins the operation with this id, the last that answers were made for.
    pub(super) fn begin(&mut self, id: String, work: impl Future<Output = End> + Send + 'static) {
        // Locked until it stands there: it may be done before.
        let mut running = locked(&self.running);
        let task = self.tasks.spawn(work);
        running.insert(id, Operation { number: self.last_number, task, is_mutation: false });
    }

    /// The caller wants no more of it. A mutation that has begun is finished, unheard.
    pub(super) fn end(&self, id: &str) {
        if let Some(operation) = locked(&self.running).remove(id) {
            operation.task.abort();
        }
    }

    /// Ends all but the mutations that have begun, and waits for their answers to be on their way.
    pub(super) async fn settle(&mut self) {
        locked(&self.running).retain(|_, operation| {
            if !operation.is_mutation {
                operation.task.abort();
            }
            operation.is_mutation
        });
        while self.tasks.join_next().await.is_some() {}
    }
}

fn locked(running: &Running) -> MutexGuard<'_, HashMap<String, Operation>> {
    // A panic cannot leave an insertion half done.
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the answers of one operation.
pub(super) struct Answers {
    id: String,
    number: u64,
    running: Running,
    queue: mpsc::Sender<Queued>,
    place: Option<Place>,
    is_owed: bool,
}

impl Answers {
    async fn send(&self, kind: &'static str, payload: Option<Box<RawValue>>) -> bool {
        let message = Outgoing { id: Some(&self.id), kind, payload }.message();
        self.queue.send(Queued { message, is_owed: self.is_owed }).await.is_ok()
    }

    /// Whether a mutation may begin. Not where it has been ended meanwhile, which stops it at its next wait only: it would be done
    /// unheard, and done again by who comes back.
    fn begin_mutation(&mut self) -> bool {
        let mut running = locked(&self.running);
        let operation = running.get_mut(&self.id).filter(|operation| operation.number == self.number);
        self.is_owed = operation.is_some();
        if let Some(operation) = operation {
            operation.is_mutation = true;
        }
        self.is_owed
    }

    /// Frees the id and the place, before the caller is told that it may use them again.
    fn finish(&mut self) {
        let mut running = locked(&self.running);
        if running.get(&self.id).is_some_and(|operation| operation.number == self.number) {
            running.remove(&self.id);
        }
        self.place = None;
    }
}

impl Sink for Answers {
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

/// Executes an operation of whatever kind.
pub(super) async fn perform(
    server: &Arc<Server>,
    asker: &Asker,
    request: GraphqlRequest,
    answers: &mut Answers,
) -> End {
    let request_id = &asker.context.request_id;
    let address = asker.context.client_address;
    let asking = match authenticate(server, &asker.headers, address).await {
        Ok(asking) if asking.is_refused => return End::Revoked,
        asking => asking,
    };
    let admitted = match &asking {
        Ok(asking) => rate_limit::admit(server, &asking.actor, address).await,
        Err(_) => Ok(HeaderMap::new()),
    };
    // What is left is told where there is nothing left: a socket has no headers to tell it in.
    let limits = match admitted {
        Ok(limits) => limits,
        Err(refused) => {
            server.metrics.graphql_request("none", refused.code);
            return refuse(refused, request_id, answers).await;
        }
    };
    let prepared = match prepare(server, request, Instant::now()).await {
        Ok(prepared) => prepared,
        Err(refused) => {
            server.metrics.graphql_request("none", refused.code);
            return refuse(refused, request_id, answers).await;
        }
    };
    let asking = match asking {
        Ok(asking) => asking,
        // It tries again by itself.
        Err(refused) if prepared.is_subscription() && refused.status == StatusCode::SERVICE_UNAVAILABLE => {
            return follow(server, asker, prepared, answers).await;
        }
        Err(refused) => return refuse(refused, request_id, answers).await,
    };
    asking.note_use(server);
    if let Err(refused) = rate_limit::charge(server, &asking.actor, address, &prepared, limits).await {
        server.metrics.graphql_request("none", refused.code);
        return refuse(refused, request_id, answers).await;
    }
    if prepared.is_subscription() {
        return follow(server, asker, prepared, answers).await;
    }
    if prepared.is_mutation() && !answers.begin_mutation() {
        return End::Told;
    }
    // It keeps its place until it is done.
    let place = answers.place.take_if(|_| prepared.is_mutation());
    let executed = execute_once(server, prepared, asking.actor, origin(&asker.context, &asker.headers), place).await;
    if executed.is_request_error {
        answers.refuse(json(&executed.answer.errors)).await;
    } else if answers.next(json(&executed.answer)).await {
        answers.complete().await;
    }
    End::Told
}

async fn refuse(refused: Unexecuted, request_id: &str, answers: &mut Answers) -> End {
    answers.refuse(errors(refused, request_id)).await;
    End::Told
}
