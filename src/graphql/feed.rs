//! How far a subscription has read the organization's log, its records of usage, the changes of its workers, or an answer that comes,
//! from one event to the next.
//!
//! Each event is an execution of its own: with the caller as they are by then, and loaders of its own. What lasts from one to
//! the next stands here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_graphql::Context;

use super::error::Failure;
use crate::domain::turn::{Streamed, TurnEvent};
use crate::domain::{self, Cx, Error};
use crate::model::{ClaudeAccountId, NotificationId, ResourceType};
use crate::store::conversation::Conversation;
use crate::store::message::Message;
use crate::workers::Workers;

/// How far a subscription is.
#[derive(Default)]
pub struct Feed {
    state: Mutex<State>,
    /// The answer that it tells.
    turn: tokio::sync::Mutex<Option<Streamed>>,
}

/// Where what is told besides what the log and the records have comes from.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Commits,
    Workers,
    Turn,
}

/// What is told of an answer.
#[derive(Clone)]
pub(super) enum Told {
    Text(String),
    ToolUse { name: String, input: serde_json::Value },
    Kept(Arc<Conversation>, Arc<Message>),
}

#[derive(Default)]
struct State {
    source: Source,
    /// What is to be told next of an answer: found again until it is sent.
    next: Option<Result<Told, Failure>>,
    /// Whether the end of an answer was told.
    is_over: bool,
    /// What its events are about; none: anything.
    about: Option<ResourceType>,
    /// Whether what it reads are records of usage, and not the audit log.
    is_of_usage: bool,
    /// The place in the log up to which everything was read; none: it has not begun.
    read: Option<i64>,
    /// The place up to which there is something to read; none: the log has to be asked.
    until: Option<i64>,
    /// The accounts that were sent, each with its version then.
    versions: HashMap<ClaudeAccountId, i32>,
    /// The last that was sent of several notifications at the place after that.
    passed: Option<NotificationId>,
    outcome: Outcome,
}

/// What an execution came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Outcome {
    /// Not read yet: where the answer is not sent, the next execution finds the same event again.
    Event(Delivered),
    /// What comes of an answer.
    Turn,
    Nothing,
    #[default]
    Failed,
}

/// What an event is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivered {
    /// The place of its entry.
    pub(super) sequence: i64,
    /// The account that it sends, with its version.
    pub(super) account: Option<(ClaudeAccountId, i32)>,
    /// The notification that it sends, where others follow at the place after that: then the place is the one before.
    pub(super) passed: Option<NotificationId>,
}

impl Feed {
    /// The feed of the subscription that is executed.
    pub(super) fn of<'a>(ctx: &Context<'a>) -> &'a Self {
        ctx.data_unchecked::<Arc<Self>>()
    }

    /// What its events are about; none: anything.
    #[must_use]
    pub fn about(&self) -> Option<ResourceType> {
        self.state().about
    }

    /// Whether what it reads are records of usage, and not the audit log.
    #[must_use]
    pub fn is_of_usage(&self) -> bool {
        self.state().is_of_usage
    }

    /// The log has grown: up to this place, or nobody knows to where.
    pub fn grown(&self, to: Option<i64>) {
        let mut state = self.state();
        state.until = to.map(|to| state.until.map_or(to, |until| until.max(to)));
    }

    /// Whether there is, or may be, something to read.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        let state = self.state();
        if state.source == Source::Turn {
            return state.next.is_some();
        }
        state.until.is_none_or(|until| state.read.is_none_or(|read| read < until))
    }

    /// The event that the last execution found is sent.
    pub fn accept(&self) {
        let mut state = self.state();
        if let Outcome::Event(Delivered { sequence, account, passed }) = state.outcome {
            state.read = Some(sequence);
            state.passed = passed;
            state.versions.extend(account);
        }
        if let Outcome::Turn = state.outcome {
            state.is_over = matches!(state.next.take(), Some(Ok(Told::Kept(..))));
        }
    }

    /// Whether nothing can follow what was sent.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// Whether there is no answer: to ask again is to send a message again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state().next, Some(Err(_)))
    }

    /// Whether its events are commits, and it waits for those.
    #[must_use]
    pub fn is_of_commits(&self) -> bool {
        self.state().source == Source::Commits
    }

    /// Waits for something to tell that is no commit. Given up, nothing is lost.
    pub async fn woken(&self, workers: &Workers) {
        let (source, read) = {
            let state = self.state();
            (state.source, state.read)
        };
        match source {
            Source::Commits => std::future::pending().await,
            Source::Workers => {
                let mut changes = workers.changes();
                let known = read.unwrap_or_default().unsigned_abs();
                if let Ok(latest) = changes.wait_for(|latest| *latest > known).await {
                    self.grown(i64::try_from(*latest).ok());
                }
            }
            Source::Turn => {
                let mut turn = self.turn.lock().await;
                let event = match &mut *turn {
                    Some(streamed) => streamed.next().await,
                    None => std::future::pending().await,
                };
                let broken = || Err(Error::internal("an answer broke off").into());
                self.state().next = Some(event.map_or_else(broken, Told::of));
            }
        }
    }

    /// Whether an answer is to be asked for: the first execution does.
    pub(super) fn begins_turn(&self) -> bool {
        std::mem::replace(&mut self.state().source, Source::Turn) != Source::Turn
    }

    /// Tells this answer.
    pub(super) async fn follow_turn(&self, streamed: Streamed) {
        *self.turn.lock().await = Some(streamed);
    }

    /// What is to be told of the answer.
    ///
    /// # Errors
    /// Where there is nothing yet, which ends the execution without an event; or where there is no answer.
    pub(super) fn turn(&self) -> Result<Told, Failure> {
        let mut state = self.state();
        match state.next.clone() {
            Some(Ok(told)) => {
                state.outcome = Outcome::Turn;
                Ok(told)
            }
            Some(Err(failure)) => Err(failure),
            None => {
                state.outcome = Outcome::Nothing;
                Err(nothing())
            }
        }
    }

    /// The changes of workers between which there may be events.
    ///
    /// # Errors
    /// Where there are none, which ends the execution without an event.
    pub(super) fn span_of_workers(&self, workers: &Workers) -> Result<(i64, i64), Failure> {
        let latest = i64::try_from(*workers.changes().borrow()).unwrap_or(i64::MAX);
        let read = {
            let mut state = self.state();
            state.source = Source::Workers;
            state.read.unwrap_or(latest)
        };
        if read >= latest { Err(self.nothing_until((read, latest))) } else { Ok((read, latest)) }
    }

    pub(super) fn begin_step(&self) {
        self.state().outcome = Outcome::Failed;
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.state().outcome
    }

    /// The places between which there may be events: after the first, up to the second. Where a subscription begins, these are
    /// the same.
    ///
    /// # Errors
    /// Where there are none, which ends the execution without an event; or where the log cannot be asked.
    pub(super) async fn span(&self, cx: Cx<'_>, about: Option<ResourceType>) -> Result<(i64, i64), Failure> {
        self.state().about = about;
        self.between(domain::audit_log::end(cx)).await
    }

    /// The same, of records of usage.
    ///
    /// # Errors
    /// As for [`Feed::span`].
    pub(super) async fn span_of_usage(&self, cx: Cx<'_>) -> Result<(i64, i64), Failure> {
        self.state().is_of_usage = true;
        self.between(domain::usage::end(cx)).await
    }

    async fn between(&self, end: impl Future<Output = domain::Result<i64>>) -> Result<(i64, i64), Failure> {
        let (read, until) = {
            let state = self.state();
            (state.read, state.until)
        };
        let until = match until {
            Some(until) => until,
            None => end.await?,
        };
        let read = read.unwrap_or(until);
        if read >= until {
            return Err(self.nothing_until((read, until)));
        }
        Ok((read, until))
    }

    /// Whether an account was not sent yet as it is now.
    pub(super) fn is_new(&self, id: ClaudeAccountId, version: i32) -> bool {
        self.state().versions.get(&id) != Some(&version)
    }

    /// The last that was sent of several notifications at the place after the one that is read.
    pub(super) fn passed(&self) -> Option<NotificationId> {
        self.state().passed
    }

    /// This is the event.
    pub(super) fn deliver(&self, event: Delivered) {
        self.state().outcome = Outcome::Event(event);
    }

    /// There is no event in the span. The error is nobody's: it only ends the execution.
    pub(super) fn nothing_until(&self, (read, until): (i64, i64)) -> Failure {
        let mut state = self.state();
        state.read = Some(read.max(until));
        state.passed = None;
        state.until = Some(until);
        state.outcome = Outcome::Nothing;
        nothing()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave an assignment half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nothing() -> Failure {
    Error::internal("there is no event yet").into()
}

impl Told {
    fn of(event: TurnEvent) -> Result<Self, Failure> {
        match event {
            TurnEvent::Text(text) => Ok(Self::Text(text)),
            TurnEvent::ToolUse { name, input } => Ok(Self::ToolUse { name, input }),
            TurnEvent::Kept(kept) => {
                let (conversation, message) = *kept;
                Ok(Self::Kept(conversation.into(), message.into()))
            }
            TurnEvent::Failed(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn an_event_that_is_not_sent_is_found_again() {
        let feed = Feed::default();
        let id = ClaudeAccountId::new(Timestamp::from_micros(0).unwrap(), &[1; 10]);
        let event = Delivered { sequence: 4, account: Some((id, 2)), passed: None };
        feed.nothing_until((3, 3));
        feed.grown(Some(4));
        for _ in 0..2 {
            // The execution that failed before has left nothing.
            feed.begin_step();
            assert!(feed.is_behind() && feed.is_new(id, 2));
            feed.deliver(event);
        }
        feed.accept();
        assert!(!feed.is_behind() && !feed.is_new(id, 2) && feed.is_new(id, 3));
        feed.grown(Some(5));
        feed.begin_step();
        feed.accept();
        assert!(feed.is_behind());
    }
}
