//! How an account is used again for what it was refused: not at all for a while, then by one request at first, then by more and
//! more; and who waits for that, in their order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use tokio::sync::Notify;

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
/// So many requests have to fail, and none to succeed between, before it is the account that fails: one may do so by its own doing.
const SEVERAL: u32 = 3;

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
    /// The key may not do this, and perhaps nothing.
    Forbidden,
    /// The key is not accepted.
    Unauthorized,
    /// The account is not paid for.
    Unpaid,
}

impl Trouble {
    /// Whether the upstream has said how long.
    fn is_told(self) -> bool {
        matches!(self, Self::RateLimited(Some(_)) | Self::Overloaded(Some(_)))
    }

    pub(super) fn state(self) -> ClaudeAccountHealthState {
        match self {
            Self::RateLimited(_) => ClaudeAccountHealthState::RateLimited,
            Self::Overloaded(_) => ClaudeAccountHealthState::Overloaded,
            Self::Forbidden | Self::Unauthorized => ClaudeAccountHealthState::Unauthorized,
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
            Self::Forbidden => pace.scattered(doubled(pace.first, CLOSED)),
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
/// Requests and troubles have numbers, in their order. Of a request that began before the last trouble nothing is learned but what
/// the upstream tells: neither that all is well again, nor that it went wrong once more; and it takes nobody's place.
#[derive(Debug)]
pub(super) struct Recovery {
    /// The number of the last trouble.
    troubled_at: u64,
    rest: Option<Rest>,
    /// How often in a row it went wrong.
    failures: u32,
    /// How many requests in a row have failed of which it is not known that the account was the reason.
    doubts: u32,
    /// How many answers in a row broke off after they had begun.
    breaks: u32,
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
    /// Those who wait for the end of it may do so in a queue.
    Resting(Rest, Option<Arc<Queue>>),
}

/// A request that went wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// Its number.
    pub(super) began: u64,
    /// Whether its answer had begun.
    pub(super) is_answered: bool,
}

/// What follows from a request that went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// It was known.
    Nothing,
    /// It may have been the request: others go on.
    Doubt,
    Rest(Rest),
}

impl Recovery {
    pub(super) fn new() -> Self {
        Self {
            troubled_at: 0,
            rest: None,
            failures: 0,
            doubts: 0,
            breaks: 0,
            allowed: u32::MAX,
            since: None,
            begun: 0,
            queue: Arc::default(),
        }
    }

    /// A request that has this number went wrong, which has that number; perhaps after its answer had begun.
    pub(super) fn fail(
        &mut self,
        Request { began, is_answered }: Request,
        troubled_at: u64,
        trouble: Trouble,
        now: Timestamp,
        pace: Pace,
    ) -> Follows {
        if began < self.troubled_at {
            let (known, rest) = (self.rest(now), trouble.rest(self.failures, now, pace));
            // What the upstream tells holds, whomever it tells; but not one trouble that several ran into, or one that is over sooner.
            let is_new = trouble.is_told() && known.is_none_or(|known| known.until < rest.until);
            return if is_new {
                self.begin_rest(rest, troubled_at)
            } else {
                known.map_or(Follows::Nothing, Follows::Rest)
            };
        }
        if matches!(trouble, Trouble::Failing | Trouble::Forbidden) {
            let in_a_row = if is_answered { &mut self.breaks } else { &mut self.doubts };
            *in_a_row = in_a_row.saturating_add(1);
            if *in_a_row < SEVERAL && self.is_trusted(now) {
                return Follows::Doubt;
            }
        }
        self.failures = self.failures.saturating_add(1);
        self.begin_rest(trouble.rest(self.failures, now, pace), troubled_at)
    }

    fn begin_rest(&mut self, rest: Rest, troubled_at: u64) -> Follows {
        (self.troubled_at, self.allowed, self.since, self.begun) = (troubled_at, 1, None, 0);
        (self.rest, self.doubts) = (Some(rest), 0);
        Follows::Rest(rest)
    }

    /// Whether the upstream has taken a request since it went wrong: then one that fails may be itself the reason.
    pub(super) fn is_trusted(&self, now: Timestamp) -> bool {
        self.rest(now).is_none() && self.failures == 0
    }

    /// Whether one may begin who has this place in a queue, or none.
    pub(super) fn standing(&self, now: Timestamp, place: Option<&Place>) -> Standing {
        if let Some(rest) = self.rest(now) {
            return Standing::Resting(rest, Some(self.queue.clone()));
        }
        let place = place.filter(|place| place.is_in(&self.queue));
        // Nobody overtakes those who wait.
        if self.queue.is_among(self.allowed(now).saturating_sub(self.begun), place) {
            Standing::Ready
        } else {
            Standing::Full(self.queue.clone())
        }
    }

    /// The last place of those who wait.
    pub(super) fn place(&self) -> Place {
        Place::new(self.queue.clone())
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
        (self.rest, self.failures, self.doubts, self.allowed, self.since) = (None, 0, 0, allowed, Some(now));
        self.queue.call(allowed.saturating_sub(self.begun));
        self.is_over(now)
    }

    /// An answer came to its end. Returns whether there is nothing more to be minded.
    pub(super) fn complete(&mut self, began: u64, now: Timestamp) -> bool {
        if self.is_older(began) {
            return false;
        }
        self.breaks = 0;
        self.is_over(now)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.is_trusted(now) && self.doubts == 0 && self.breaks == 0 && self.allowed(now) >= MANY
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
        self.queue.call(u32::MAX);
    }
}

/// Those who wait until one more may begin, by the numbers of their places.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

impl Queue {
    /// Calls so many, who have waited longest.
    fn call(&self, count: u32) {
        self.lock().values().take(count as usize).for_each(|turn| turn.notify_one());
    }

    /// Whether one who has this place, or none, is among the first so many.
    fn is_among(&self, first: u32, place: Option<&Place>) -> bool {
        let first = first as usize;
        let waiting = self.lock();
        let before = place.map_or(waiting.len(), |place| waiting.range(..place.number).take(first).count());
        before < first
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        // A panic cannot leave it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a queue, until it is dropped.
pub(super) struct Place {
    queue: Arc<Queue>,
    number: u64,
    turn: Arc<Notify>,
}

impl Place {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        let turn = Arc::new(Notify::new());
        let mut waiting = queue.lock();
        let number = waiting.last_key_value().map_or(0, |(last, _)| last + 1);
        waiting.insert(number, turn.clone());
        drop(waiting);
        Self { queue, number, turn }
    }

    pub(super) fn is_in(&self, queue: &Arc<Queue>) -> bool {
        Arc::ptr_eq(&self.queue, queue)
    }

    /// Waits until it is called. Given up, it keeps its place.
    pub(super) async fn called(&self) {
        self.turn.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.lock().remove(&self.number);
        // It may have been called and have left: then it is the next one's turn.
        self.queue.call(1);
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

    fn request(began: u64) -> Request {
        Request { began, is_answered: false }
    }

    fn fail(recovery: &mut Recovery, began: u64) -> Follows {
        recovery.fail(request(began), began + 1, Trouble::Failing, at(0), PACE)
    }

    fn failed(recovery: &mut Recovery, began: u64, number: u64, now: Timestamp) -> Option<i64> {
        match recovery.fail(request(began), number, Trouble::Overloaded(None), now, PACE) {
            Follows::Rest(rest) => Some((rest.until - now).num_milliseconds()),
            Follows::Doubt | Follows::Nothing => None,
        }
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
        let told = Rest { state: ClaudeAccountHealthState::RateLimited, until: at(30_000) };
        let limited = Trouble::RateLimited(Some(told.until));
        assert_eq!(recovery.fail(request(2), 20, limited, at(1), PACE), Follows::Rest(told));
        assert_eq!((recovery.rest(at(2)), recovery.failures), (Some(told), 8));
        // And of one that is told less it is not shortened.
        assert_eq!(failed(&mut recovery, 3, 21, at(2)), Some(29_998));
        let shortest = Trouble::Failing.rest(1, at(0), Pace { scatter: 255, ..PACE });
        assert!((187..=188).contains(&(shortest.until - at(0)).num_milliseconds()), "{shortest:?}");
    }

    #[test]
    fn what_an_earlier_request_is_told_holds_after_a_rest_too() {
        let mut recovery = Recovery::new();
        failed(&mut recovery, 5, 6, at(0));
        recovery.begin(at(300));
        recovery.succeed(7, at(400));
        assert!(is_ready(&recovery, at(500), None));
        assert_eq!(failed(&mut recovery, 1, 8, at(500)), None);
        let until = at(8_500);
        let rest = Rest { state: ClaudeAccountHealthState::Overloaded, until };
        let follows = recovery.fail(request(1), 9, Trouble::Overloaded(Some(until)), at(500), PACE);
        assert_eq!((follows, recovery.rest(at(600))), (Follows::Rest(rest), Some(rest)));
        // Then they come one by one again, whatever is still under way.
        recovery.end(7);
        assert!(is_ready(&recovery, until, None));
        recovery.begin(until);
        assert!(!is_ready(&recovery, until, None));
    }

    #[test]
    fn one_that_fails_shuts_nobody_out_and_several_in_a_row_do() {
        let mut recovery = Recovery::new();
        for number in [1, 3] {
            assert_eq!(fail(&mut recovery, number), Follows::Doubt);
            assert!((0..100).all(|_| is_ready(&recovery, at(0), None)));
        }
        assert!(recovery.succeed(1, at(0)));
        assert_eq!([5, 7].map(|number| fail(&mut recovery, number)), [Follows::Doubt; 2]);
        let rest = Rest { state: ClaudeAccountHealthState::Failing, until: at(250) };
        assert_eq!(fail(&mut recovery, 9), Follows::Rest(rest));
        // The first after that does by itself. Once one has succeeded, one that fails may be the reason again.
        let follows = recovery.fail(request(11), 12, Trouble::Failing, at(250), PACE);
        assert_eq!(follows, Follows::Rest(Rest { until: at(750), ..rest }));
        recovery.begin(at(750));
        assert!(!recovery.succeed(13, at(750)));
        assert_eq!(recovery.fail(request(14), 15, Trouble::Failing, at(750), PACE), Follows::Doubt);
        assert_eq!(recovery.allowed(at(750)), 2);
        // One that began before the rest, and is told nothing, changes nothing.
        assert_eq!(recovery.fail(request(2), 16, Trouble::Failing, at(750), PACE), Follows::Nothing);
    }

    #[test]
    fn answers_that_break_off_are_counted_until_one_comes_to_its_end() {
        let mut recovery = Recovery::new();
        let breaks = |recovery: &mut Recovery, began: u64| {
            let request = Request { began, is_answered: true };
            matches!(recovery.fail(request, began + 1, Trouble::Failing, at(0), PACE), Follows::Rest(_))
        };
        let pass = |recovery: &mut Recovery, began: u64| (recovery.succeed(began, at(0)), breaks(recovery, began));
        assert_eq!(pass(&mut recovery, 1), (true, false));
        assert_eq!(pass(&mut recovery, 3), (false, false));
        assert!(recovery.complete(4, at(0)));
        assert_eq!([5, 7].map(|began| pass(&mut recovery, began).1), [false; 2]);
        assert_eq!(pass(&mut recovery, 9), (false, true));
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

    #[test]
    fn who_has_waited_for_the_end_of_a_rest_comes_first() {
        let mut recovery = Recovery::new();
        failed(&mut recovery, 1, 2, at(0));
        let [first, second, third] = [0, 1, 2].map(|n| match recovery.standing(at(n), None) {
            Standing::Resting(_, Some(queue)) => Place::new(queue),
            other => panic!("{other:?}"),
        });
        // Whoever looks first.
        for later in [None, Some(&third), Some(&second)] {
            assert!(!is_ready(&recovery, at(250), later));
        }
        assert!(is_ready(&recovery, at(250), Some(&first)));
        recovery.begin(at(250));
        drop(first);
        assert!(!is_ready(&recovery, at(260), Some(&second)));
        // Two may: one of them is under way.
        let later = at(250) + STEP;
        assert!(!is_ready(&recovery, later, None) && !is_ready(&recovery, later, Some(&third)));
        assert!(is_ready(&recovery, later, Some(&second)));
        // Who leaves keeps nobody.
        drop(second);
        assert!(is_ready(&recovery, later, Some(&third)));
    }

    #[test]
    fn who_waits_is_called_in_order_and_only_for_a_place() {
        let mut recovery = Recovery::new();
        failed(&mut recovery, 1, 2, at(0));
        recovery.begin(at(300));
        let (first, second) = (wait(&recovery, at(300)), wait(&recovery, at(300)));
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
        let third = wait(&recovery, at(300));
        recovery.end(4);
        drop(second);
        assert!(third.called().now_or_never().is_some());
        // What is over keeps nobody.
        drop(recovery);
        assert!(third.called().now_or_never().is_some());
    }
}
