//! The processes that answer conversations, and their tools, in the API.

use async_graphql::{Context, Enum, ID, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{Declared, Permission, requires};
use super::error::Result;
use super::feed::{Delivered, Feed};
use super::scalars::{BigInt, DateTime};
use crate::domain::worker as deeds;
use crate::workers::Worker as Row;

/// A process of the Claude CLI that answers a conversation of the organization's, on the server that is asked.
pub(super) struct Worker(pub(super) Row);

/// What such a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::WorkerState")]
pub(super) enum WorkerState {
    /// It is being started.
    Starting,
    /// It waits for the next message of its conversation.
    Idle,
    /// It answers.
    Busy,
    /// It ends, or has ended.
    Stopping,
    /// It has ended by a failure, or could not be started.
    Failed,
}

/// A process of the Claude CLI that answers a conversation of the organization's, on the server that is asked.
#[Object(serial)]
impl Worker {
    /// Its id. A process that is started anew has another.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// The process's id on its machine; null: it does not run.
    async fn pid(&self) -> Option<i32> {
        self.0.pid.and_then(|pid| i32::try_from(pid).ok())
    }

    /// What it does.
    async fn state(&self) -> WorkerState {
        self.0.state.into()
    }

    /// The conversation that it is at.
    async fn current_conversation_id(&self) -> Option<ID> {
        self.0.conversation.map(|id| id.to_string().into())
    }

    /// When it was started.
    async fn started_at(&self) -> DateTime {
        self.0.started_at.into()
    }

    /// When it was last asked, or has last answered.
    async fn last_active_at(&self) -> Option<DateTime> {
        self.0.last_active_at.map(DateTime)
    }

    /// How many messages it has answered.
    async fn handled(&self) -> BigInt {
        BigInt(self.0.handled.into())
    }

    /// How many it has failed to answer.
    async fn failed(&self) -> BigInt {
        BigInt(self.0.failed.into())
    }

    /// What went wrong last.
    async fn last_error(&self) -> Option<&str> {
        self.0.last_error.as_deref()
    }
}

/// A tool of the Claude CLI.
#[derive(SimpleObject)]
pub(super) struct CliTool {
    /// What the CLI calls it.
    name: String,
    /// What it does.
    description: String,
    /// Whether conversations may use it: the setting `CLAUDE_TOOLS` allows it, and the CLI is there.
    enabled: bool,
}

#[derive(Default)]
pub(super) struct WorkerQuery;

#[Object(guard = "Declared")]
impl WorkerQuery {
    /// The tools that the CLI workers may use.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn tools(&self, ctx: &Context<'_>) -> Result<Vec<CliTool>> {
        let tools = deeds::tools(ctx.cx())?.into_iter();
        Ok(tools
            .map(|(tool, enabled)| CliTool {
                name: tool.name.to_owned(),
                description: tool.description.to_owned(),
                enabled,
            })
            .collect())
    }

    /// The processes that answer the organization's conversations, on the server that is asked; those that have failed lately, too.
    #[graphql(directive = requires::apply(Permission::ViewSystem))]
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn workers(&self, ctx: &Context<'_>) -> Result<Option<Vec<Worker>>> {
        Ok(Some(deeds::all(ctx.cx())?.into_iter().map(Worker).collect()))
    }
}

#[derive(Default)]
pub(super) struct WorkerSubscription;

#[Object(guard = "Declared")]
impl WorkerSubscription {
    /// Each process that answers the organization's conversations, when it has changed, as it is by then; on the server that is asked.
    #[graphql(directive = requires::apply(Permission::ViewSystem))]
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn worker_changed(&self, ctx: &Context<'_>) -> Result<Worker> {
        let (feed, cx) = (Feed::of(ctx), ctx.cx());
        let span = feed.span_of_workers(&cx.services.workers)?;
        match deeds::next_change(cx, span.0.unsigned_abs())? {
            Some(worker) => {
                let sequence = i64::try_from(worker.revision).unwrap_or(i64::MAX);
                feed.deliver(Delivered { sequence, account: None, passed: None });
                Ok(Worker(worker))
            }
            None => Err(feed.nothing_until(span)),
        }
    }
}
