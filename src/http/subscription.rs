//! Subscriptions of sockets and streams: executed event by event.

use std::sync::Arc;
use std::time::Duration;

use async_graphql::{Response as Answer, ServerError};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::graphql::{Prepared, Unexecuted, caller, code_of, failed, operation_span, origin};
use super::live::{Asker, concerning};
use super::metrics::Counted;
use super::router::Server;
use crate::domain::{Code, Error};
use crate::graphql::{Feed, Step, finish_errors};
use crate::model::{Access, Timestamp};

/// Where the answers of an operation go.
pub(super) trait Sink: Send {
    /// One answer. Returns whether there may be more: whether anybody is there to have it.
    fn next(&mut self, answer: Box<RawValue>) -> impl Future<Output = bool> + Send;
    /// All answers were sent.
    fn complete(&mut self) -> impl Future<Output = ()> + Send;
    /// The operation is not executed, or no longer.
    fn refuse(&mut self, errors: Box<RawValue>) -> impl Future<Output = ()> + Send;
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Its sink knows.
    Told,
    /// The access token has expired: with a fresh one it goes on. The sink was not told.
    Expired,
    /// What the caller came with opens nothing any more. The sink was not told.
    Revoked,
    /// The server cannot do what it should, for too long. The sink was not told: to most callers an error is the last word.
    Failed,
}

impl End {
    /// Why nothing is opened any more by what expires then.
    pub(super) fn of(expires_at: Option<Timestamp>, now: Timestamp) -> Self {
        if expires_at.is_some_and(|at| at <= now) { Self::Expired } else { Self::Revoked }
    }
}

/// Sends the events of a subscription until somebody ends it: each is an execution of its own, for the caller as they are then.
pub(super) async fn follow(server: &Arc<Server>, asker: &Asker, prepared: Prepared, sink: &mut impl Sink) -> End {
    let mut counted = None;
    let field = prepared.field.clone();
    let expires_at = asker.expires_at(server);
    let feed = Arc::new(Feed::default());
    let mut changes = server.services.authenticator.changes();
    let (mut commits, mut follows_usage) = (None, false);
    let mut backoff = Backoff::default();
    loop {
        let step = match asker.look(server).await {
            Ok(asking) if asking.is_refused => return End::of(expires_at, server.services.clock.now()),
            Ok(asking) => {
                // Before the log is read first, so that no entry falls between.
                if let Some(organization) = asking.actor.access().map(Access::organization) {
                    if commits.is_none() {
                        commits = Some(server.services.commits.listen(organization));
                        changes = concerning(changes, &asking.actor);
                    }
                    if feed.is_of_usage() && !follows_usage {
                        (commits, follows_usage) = (Some(server.services.usage_commits.listen(organization)), true);
                        feed.grown(None);
                    }
                }
                let deadline = Instant::now() + server.request_timeout;
                let caller = caller(
                    server,
                    asking.actor,
                    origin(&asker.context, &asker.headers),
                    deadline,
                    CancellationToken::new(),
                );
                let trace = operation_span(prepared.kind, &field, &asker.context.request_id);
                let step = server.api.step(&prepared.operation, prepared.variables.clone(), caller, &feed);
                let step = tokio::time::timeout_at(deadline, step).instrument(trace.clone()).await;
                let step = step.unwrap_or_else(|_| Step::Failed(failed(&Error::timeout())));
                trace.record("claviger.outcome", outcome(&step));
                // That it began is a use of an API key, and each event is; to wait for one is none.
                if counted.is_none() || matches!(step, Step::Event(_)) {
                    asking.note_use(server);
                }
                step
            }
            Err(refused) => Step::Failed(Answer::from_errors(refused.errors)),
        };
        let (is_event, mut answer) = match step {
            Step::Nothing => (false, Answer::default()),
            Step::Event(answer) => (true, answer),
            Step::Failed(answer) => (false, answer),
        };
        finish_errors(&mut answer.errors, &asker.context.request_id);
        // A fault that may pass ends no subscription, and takes no part of an event.
        if let Some(fault) = Fault::of(&answer.errors).filter(|_| !feed.has_failed()) {
            if let Some(pause) = backoff.pause(server, fault) {
                tokio::time::sleep(pause).await;
                continue;
            }
            if fault == Fault::Server {
                return End::Failed;
            }
        } else {
            backoff = Backoff::default();
        }
        if is_event || !answer.errors.is_empty() {
            server.metrics.graphql_request(&field, answer.errors.first().map_or("OK", code_of));
        }
        if is_event {
            feed.accept();
            if !sink.next(json(&answer)).await {
                return End::Told;
            }
            if feed.is_over() {
                sink.complete().await;
                return End::Told;
            }
        } else if !answer.errors.is_empty() {
            sink.refuse(json(&answer.errors)).await;
            return End::Told;
        }
        // What it reads is known now: looked at once more when that is listened to.
        if feed.is_of_usage() && !follows_usage {
            continue;
        }
        // From now on nothing is missed.
        counted.get_or_insert_with(|| Counted::on(&server.metrics.subscriptions));
        // Who has no organization was refused by what the field declares.
        let Some(commits) = &mut commits else { return End::Told };
        if !feed.is_behind() {
            tokio::select! {
                to = commits.grown(feed.about()), if feed.is_of_commits() => feed.grown(to),
                () = feed.woken(&server.services.workers) => {}
                () = changes.next() => {}
            }
        }
    }
}

/// What a step has come to, for traces.
fn outcome(step: &Step) -> &str {
    match step {
        Step::Nothing => "NOTHING",
        Step::Event(answer) | Step::Failed(answer) => answer.errors.first().map_or("OK", code_of),
    }
}

/// Why what failed may succeed if it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The server's own: the database is away.
    Server,
    /// As likely as not the caller's: they ask too often, or for too much.
    Caller,
}

impl Fault {
    /// None: it will not succeed.
    fn of(errors: &[ServerError]) -> Option<Self> {
        let has = |code: Code| errors.iter().any(|error| code_of(error) == code.as_str());
        if has(Code::ServiceUnavailable) {
            Some(Self::Server)
        } else {
            (has(Code::Timeout) || has(Code::RateLimited)).then_some(Self::Caller)
        }
    }
}

/// How long a subscription waits before it tries again.
#[derive(Default)]
struct Backoff {
    /// What failed, and when it did first; none: nothing has.
    since: Option<(Fault, Instant)>,
    tries: u32,
}

impl Backoff {
    /// None: it has tried for long enough.
    fn pause(&mut self, server: &Server, fault: Fault) -> Option<Duration> {
        const LONGEST: Duration = Duration::from_secs(5);
        let since = self.since.filter(|(known, _)| *known == fault).map_or_else(Instant::now, |(_, since)| since);
        self.since = Some((fault, since));
        let limits = server.live.limits;
        let bound = if fault == Fault::Server { limits.retry } else { limits.patience };
        let pause = (Duration::from_millis(100) * 2_u32.pow(self.tries.min(8))).min(LONGEST);
        self.tries += 1;
        // Not all at the same moment: from half of it to all of it.
        let [part] = server.services.random.bytes::<1>();
        (since.elapsed() < bound).then(|| pause / 2 + pause * u32::from(part) / 512)
    }
}

/// The errors of an operation that the server refuses by itself.
pub(super) fn errors(refused: Unexecuted, request_id: &str) -> Box<RawValue> {
    let mut errors = refused.errors;
    finish_errors(&mut errors, request_id);
    json(&errors)
}

/// As text at once: the fields keep their order.
pub(super) fn json(value: &impl serde::Serialize) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
