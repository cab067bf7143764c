//! Operations of sockets and streams: executed as any other, and subscriptions event by event.

use std::sync::Arc;

use async_graphql::parser::types::OperationType;
use async_graphql::{Response as Answer, ServerError};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;

use super::graphql::{Prepared, Unexecuted, authenticate, caller, code_of, execute_once, failed, origin, prepare};
use super::live::Asker;
use super::metrics::Counted;
use super::rate_limit;
use super::request::GraphqlRequest;
use super::router::Server;
use crate::domain::Error;
use crate::graphql::{Feed, Step, finish_errors};

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
    /// What the caller came with opens nothing any more. The sink was not told.
    Revoked,
}

/// Executes an operation of whatever kind.
pub(super) async fn perform(server: &Arc<Server>, asker: &Asker, request: GraphqlRequest, sink: &mut impl Sink) -> End {
    let prepared = match prepare(server, request, Instant::now()).await {
        Ok(prepared) => prepared,
        Err(refused) => {
            server.metrics.graphql_request("none", refused.code);
            return refuse(asker, refused.errors, sink).await;
        }
    };
    let address = asker.context.client_address;
    let actor = match authenticate(server, &asker.headers, address).await {
        Ok((_, true)) => return End::Revoked,
        Ok((actor, false)) => actor,
        Err(refused) => return refuse(asker, refused.errors, sink).await,
    };
    // What is left is told where there is nothing left: a socket has no headers to tell it in.
    if let Err(refused) = rate_limit::take(server, &actor, address, &prepared).await {
        server.metrics.graphql_request("none", refused.code);
        return refuse(asker, refused.errors, sink).await;
    }
    if prepared.kind == OperationType::Subscription {
        return follow(server, asker, prepared, sink).await;
    }
    let executed = execute_once(server, prepared, actor, origin(&asker.context, &asker.headers)).await;
    if executed.is_request_error {
        sink.refuse(json(&executed.answer.errors)).await;
    } else if sink.next(json(&executed.answer)).await {
        sink.complete().await;
    }
    End::Told
}

/// Sends the events of a subscription until somebody ends it: each is an execution of its own, for the caller as they are then.
pub(super) async fn follow(server: &Arc<Server>, asker: &Asker, prepared: Prepared, sink: &mut impl Sink) -> End {
    let mut counted = None;
    let field = prepared.field.clone();
    let feed = Arc::new(Feed::default());
    let mut changes = server.services.authenticator.forgotten();
    let mut commits = None;
    loop {
        let actor = match authenticate(server, &asker.headers, asker.context.client_address).await {
            Ok((_, true)) => return End::Revoked,
            Ok((actor, false)) => actor,
            Err(refused) => return refuse(asker, refused.errors, sink).await,
        };
        // Before the log is read first, so that no entry falls between.
        if commits.is_none() {
            commits = actor.access().map(|access| server.services.commits.listen(access.organization()));
        }
        let deadline = Instant::now() + server.request_timeout;
        let caller = caller(server, actor, origin(&asker.context, &asker.headers), deadline);
        let step = server.api.step(&prepared.operation, prepared.variables.clone(), caller, &feed);
        let step = tokio::time::timeout_at(deadline, step).await;
        match step.unwrap_or_else(|_| Step::Failed(failed(&Error::timeout()))) {
            Step::Nothing => {}
            Step::Event(mut answer) => {
                finish_errors(&mut answer.errors, &asker.context.request_id);
                server.metrics.graphql_request(&field, answer.errors.first().map_or("OK", code_of));
                if !sink.next(json(&answer)).await {
                    return End::Told;
                }
            }
            Step::Failed(Answer { errors, .. }) => {
                let mut errors = errors;
                finish_errors(&mut errors, &asker.context.request_id);
                server.metrics.graphql_request(&field, errors.first().map_or("OK", code_of));
                sink.refuse(json(&errors)).await;
                return End::Told;
            }
        }
        // From now on nothing is missed.
        counted.get_or_insert_with(|| Counted::on(&server.metrics.subscriptions));
        // Who has no organization was refused by what the field declares.
        let Some(commits) = &mut commits else { return End::Told };
        if !feed.is_behind() {
            tokio::select! {
                to = commits.grown(feed.about()) => feed.grown(to),
                // The authenticator lives as long as the server.
                _ = changes.changed() => {}
            }
        }
    }
}

async fn refuse(asker: &Asker, mut errors: Vec<ServerError>, sink: &mut impl Sink) -> End {
    finish_errors(&mut errors, &asker.context.request_id);
    sink.refuse(json(&errors)).await;
    End::Told
}

/// The errors of an operation that the server refuses by itself.
pub(super) fn errors(refused: Unexecuted, request_id: &str) -> Box<RawValue> {
    let mut errors = refused.errors;
    finish_errors(&mut errors, request_id);
    json(&errors)
}

/// As text at once: the fields keep their order.
fn json(value: &impl serde::Serialize) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
