//! How an account is used again for what it was refused: not at all for a while, then by one request at first, then by more and
//! more; and who waits for that, in their order.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::TimeDelta;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::model::{ClaudeAccountHealthState, Timestamp};

/// However an upstream words it, an account is left alone for so long, and is tried again after that.
const SHORTEST: TimeDelta = TimeDelta::milliseconds(50);
const LONGEST: TimeDelta = TimeDelta::minutes(10);
/// How long an account that is overloaded or fails is left alone at last: no longer than callers wait for it.
const OVERLOADED_AT_LAST: TimeDelta = TimeDelta::seconds(10);
/// How long one that has a limit and does not say until when, at first.
const LIMITED: TimeDelta = TimeDelta::seconds(15);
/// How long one whose key is not accepted, or that has not paid.
const CLOSED: TimeDelta = TimeDelta::minutes(5);
/// After how long without trouble twice as many are let to an account that was left alone.
const STEP: TimeDelta = TimeDelta::seconds(3);
/// So many at once are as good as any number.
const MANY: u32 = 64;

/// An account is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) state: ClaudeAccountHealthState,
    pub(super) until: Timestamp,
}

impl Rest {
    /// A clock that was set back must not make it longer.
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        self.until > now && self.until - now <= LONGEST
    }
}

/// How a request went wrong, as far as it is the account's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Too many requests; until then, where the upstream says so.
    RateLimited(Option<Timestamp>),
    Overloaded(Option<Timestamp>),
    Failing,
    /// The key is not accepted.
    Unauthorized,
    /// The account is not paid for.
    Unpaid,
}

impl Trouble {
    fn state(self) -> ClaudeAccountHealthState {
        match self {
            Self::RateLimited(_) => ClaudeAccountHealthState::RateLimited,
            Self::Overloaded(_) => ClaudeAccountHealthState::Overloaded,
            Self::Unauthorized => ClaudeAccountHealthState::Unauthorized,
            Self::Failing | Self::Unpaid => ClaudeAccountHealthState::Failing,
        }
    }

    /// For how long the account is left alone: as the upstream says, within bounds, or twice as long each time.
    pub(super) fn rest(self, failures: u32, now: Timestamp, pace: Pace) -> Rest {
        let doubled = |first: TimeDelta, last: TimeDelta| {
            first.checked_mul(1 << (failures.clamp(1, 16) - 1)).unwrap_or(last).min(last)
        };
        let told = |until: Timestamp, most: TimeDelta| (until - now).clamp(SHORTEST, most);
        let length = match self {
            Self::RateLimited(Some(until)) => told(until, LONGEST),
            Self::RateLimited(None) => doubled(LIMITED, TimeDelta::minutes(1)),
            Self::Overloaded(Some(until)) => told(until, TimeDelta::minutes(1)),
            Self::Overloaded(None) | Self::Failing => pace.scattered(doubled(pace.first, OVERLOADED_AT_LAST)),
            Self::Unauthorized | Self::Unpaid => CLOSED,
        };
        Rest { state: self.state(), until: now + length }
    }
}

/// How long rests are of which the upstream says nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The first.
    pub(super) first: TimeDelta,
    /// Of how much of a quarter it is shorter, of 255: several servers do not come back at once.
    pub(super) scatter: u8,
}

impl Pace {
    fn scattered(self, length: TimeDelta) -> TimeDelta {
        length - length * i32::from(self.scatter) / (4 * 255)
    }
}

/// What became of an account since something went wrong for the first time, until as many may ask it as like to.
///
/// Requests and troubles have numbers, in their order. Of a request that began before the last trouble nothing is learned: neither
/// that all is well again, nor that it went wrong once more; and it takes nobody's place.
#[derive(Debug)]
pub(super) struct Recovery {
    /// The number of the last trouble.
    troubled_at: u64,
    rest: Option<Rest>,
    /// How often in a row it went wrong.
    failures: u32,
    /// How many requests there may be at once of those that began since.
    allowed: u32,
    /// Since when so many; none: nobody has asked it since.
    since: Option<Timestamp>,
    /// How many requests that began since are under way.
    begun: u32,
    queue: Arc<Queue>,
}

/// Whether a request may begin.
#[derive(Debug)]
pub(super) enum Standing {
    Ready,
    /// As many are under way as may be, or as many wait as there are places.
    Full(Arc<Queue>),
    Resting(Rest),
}

impl Recovery {
    pub(super) fn new() -> Self {
        Self { troubled_at: 0, rest: None, failures: 0, allowed: 1, since: None, begun: 0, queue: Arc::default() }
    }

    /// A request that has this number went wrong, which has that number. Returns the rest that follows; none: it says nothing new.
    pub(super) fn fail(
        &mut self,
        began: u64,
        troubled_at: u64,
        trouble: Trouble,
        now: Timestamp,
        pace: Pace,
    ) -> Option<Rest> {
        if began < self.troubled_at {
            // One trouble that several ran into. It may be longer than the first of them was told.
            let known = self.rest.as_mut().filter(|rest| rest.holds(now))?;
            known.until = known.until.max(trouble.rest(self.failures, now, pace).until);
            return Some(*known);
        }
        self.failures = self.failures.saturating_add(1);
        (self.troubled_at, self.allowed, self.since, self.begun) = (troubled_at, 1, None, 0);
        self.rest = Some(trouble.rest(self.failures, now, pace));
        self.rest
    }

    /// Whether one may begin who has this place in a queue, or none.
    pub(super) fn standing(&self, now: Timestamp, place: Option<&Place>) -> Standing {
        if let Some(rest) = self.rest(now) {
            return Standing::Resting(rest);
        }
        let has_waited = place.is_some_and(|place| place.is_in(&self.queue));
        // Nobody overtakes those who wait.
        let before = if has_waited { 0 } else { self.queue.waiting.load(Ordering::Relaxed) };
        if self.begun.saturating_add(before) < self.allowed(now) {
            Standing::Ready
        } else {
            Standing::Full(self.queue.clone())
        }
    }

    pub(super) fn begin(&mut self, now: Timestamp) {
        self.begun += 1;
        self.since.get_or_insert(now);
    }

    /// The request that began with this number is over.
    pub(super) fn end(&mut self, began: u64) {
        if began > self.troubled_at {
            self.begun = self.begun.saturating_sub(1);
            self.queue.call(1);
        }
    }

    /// The upstream has taken a request. Returns whether there is nothing more to be minded.
    pub(super) fn succeed(&mut self, began: u64, now: Timestamp) -> bool {
        if self.is_older(began) {
            return false;
        }
        let allowed = self.allowed(now).saturating_mul(2);
        (self.rest, self.failures, self.allowed, self.since) = (None, 0, allowed, Some(now));
        self.queue.call(allowed.saturating_sub(self.begun));
        allowed >= MANY
    }

    /// Whether a request began before the last trouble.
    pub(super) fn is_older(&self, began: u64) -> bool {
        began < self.troubled_at
    }

    /// Until when nobody asks the account.
    pub(super) fn rest(&self, now: Timestamp) -> Option<Rest> {
        self.rest.filter(|rest| rest.holds(now))
    }

    /// Whether requests that began since are under way.
    pub(super) fn is_used(&self) -> bool {
        self.begun > 0
    }

    /// Twice as many each time that nothing went wrong for a while, since an answer may take long.
    fn allowed(&self, now: Timestamp) -> u32 {
        let steps = self.since.map_or(0, |since| (now - since).num_seconds() / STEP.num_seconds());
        self.allowed.saturating_mul(1 << steps.clamp(0, 16))
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.queue.turn.notify_waiters();
    }
}

/// Those who wait until one more may begin.
#[derive(Debug, Default)]
pub(super) struct Queue {
    turn: Arc<Notify>,
    waiting: AtomicU32,
}

impl Queue {
    /// Calls so many, who have waited longest.
    fn call(&self, count: u32) {
        for _ in 0..count.min(self.waiting.load(Ordering::Relaxed)) {
            self.turn.notify_one();
        }
    }
}

/// A place in a queue, until it is dropped.
pub(super) struct Place {
    queue: Arc<Queue>,
    turn: Pin<Box<OwnedNotified>>,
}

impl Place {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        queue.waiting.fetch_add(1, Ordering::Relaxed);
        let mut turn = Box::pin(queue.turn.clone().notified_owned());
        // From here on it is in the queue.
        turn.as_mut().enable();
        Self { queue, turn }
    }

    pub(super) fn is_in(&self, queue: &Arc<Queue>) -> bool {
        Arc::ptr_eq(&self.queue, queue)
    }

    /// Waits until it is called. Given up, it keeps its place.
    pub(super) async fn called(&mut self) {
        self.turn.as_mut().await;
        self.turn.set(self.queue.turn.clone().notified_owned());
        self.turn.as_mut().enable();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const PACE: Pace = Pace { first: TimeDelta::milliseconds(250), scatter: 0 };

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000 + milliseconds * 1_000).unwrap()
    }

    fn is_ready(recovery: &Recovery, now: Timestamp, place: Option<&Place>) -> bool {
        matches!(recovery.standing(now, place), Standing::Ready)
    }

    fn wait(recovery: &Recovery, now: Timestamp) -> Place {
        match recovery.standing(now, None) {
            Standing::Full(queue) => Place::new(queue),
            other => panic!("{other:?}"),
        }
    }

    fn failed(recovery: &mut Recovery, began: u64, number: u64, now: Timestamp) -> Option<i64> {
        let rest = recovery.fail(began, number, Trouble::Overloaded(None), now, PACE);
        rest.map(|rest| (rest.until - now).num_milliseconds())
    }

    #[test]
    fn what_began_before_takes_no_place_and_tells_nothing() {
        let mut recovery = Recovery::new();
        // Of five requests that run, the third goes wrong.
        assert_eq!(failed(&mut recovery, 3, 6, at(0)), Some(250));
        assert!(!recovery.succeed(4, at(1)));
        assert!(recovery.rest(at(1)).is_some());
        assert!(is_ready(&recovery, at(250), None));
        recovery.begin(at(250));
        assert!(!is_ready(&recovery, at(250), None));
        // Those end, which frees no place, and go wrong, which is known.
        recovery.end(1);
        assert_eq!(failed(&mut recovery, 2, 8, at(260)), None);
        assert!(!is_ready(&recovery, at(260), None) && recovery.failures == 1);
        recovery.end(7);
        assert!(is_ready(&recovery, at(260), None));
    }

    #[test]
    fn it_rests_for_longer_each_time_and_as_long_as_it_is_told() {
        let mut recovery = Recovery::new();
        let lengths = (1..9).map(|n| failed(&mut recovery, 2 * n, 2 * n + 1, at(0)).unwrap());
        assert_eq!(lengths.collect::<Vec<_>>(), [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        // Another that ran into the same is told of more.
        let rest = recovery.fail(2, 20, Trouble::RateLimited(Some(at(30_000))), at(1), PACE).unwrap();
        assert_eq!((rest.until, recovery.failures), (at(30_000), 8));
        let shortest = Trouble::Failing.rest(1, at(0), Pace { scatter: 255, ..PACE });
        assert!((187..=188).contains(&(shortest.until - at(0)).num_milliseconds()), "{shortest:?}");
    }

    #[test]
    fn twice_as_many_are_let_in_with_each_success_and_with_time() {
        let mut recovery = Recovery::new();
        failed(&mut recovery, 1, 2, at(0));
        // Not before somebody has asked: after an hour it is one, too.
        let hour = at(3_600_000);
        assert_eq!(recovery.allowed(hour), 1);
        recovery.begin(hour);
        assert_eq!(recovery.allowed(hour + STEP), 2);
        assert!(!recovery.succeed(3, hour + STEP));
        assert_eq!(recovery.allowed(hour + STEP), 4);
        let is_over = (0..4).map(|_| recovery.succeed(3, hour + STEP)).collect::<Vec<_>>();
        assert_eq!(is_over, [false, false, false, true]);
    }

    #[tokio::test]
    async fn who_waits_is_called_in_order_and_only_for_a_place() {
        let mut recovery = Recovery::new();
        failed(&mut recovery, 1, 2, at(0));
        recovery.begin(at(300));
        let (mut first, mut second) = (wait(&recovery, at(300)), wait(&recovery, at(300)));
        assert!(first.called().now_or_never().is_none() && second.called().now_or_never().is_none());
        recovery.end(3);
        // Whoever comes now comes after them, though there is a place.
        assert!(!is_ready(&recovery, at(300), None));
        assert!(second.called().now_or_never().is_none());
        assert!(first.called().now_or_never().is_some());
        assert!(is_ready(&recovery, at(300), Some(&first)));
        drop(first);
        recovery.begin(at(300));
        // One has left: its call goes to the next.
        let mut third = wait(&recovery, at(300));
        recovery.end(4);
        drop(second);
        assert!(third.called().now_or_never().is_some());
        // What is over keeps nobody.
        drop(recovery);
        assert!(third.called().now_or_never().is_some());
    }
}
