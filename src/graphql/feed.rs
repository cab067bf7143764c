//! How far a subscription has read the organization's log, or its records of usage, from one event to the next.
//!
//! Each event is an execution of its own: with the caller as they are by then, and loaders of its own. What lasts from one to
//! the next stands here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_graphql::Context;

use super::error::Failure;
use crate::domain::{self, Cx, Error};
use crate::model::{ClaudeAccountId, NotificationId, ResourceType};

/// How far a subscription is.
#[derive(Debug, Default)]
pub struct Feed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
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
        Error::internal("there is no event yet").into()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave an assignment half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
