//! Which account takes a request: by priority, then the least loaded; a conversation stays where it was, as long as that is well.
//!
//! Every try of every request goes through here. An account that was refused something is left alone for a while, by all, for what
//! it was refused (`recovery.rs`). A request knows which state of the account it was sent in, and what it learns holds for no later
//! one. All of this is what one server knows.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use quick_cache::sync::Cache;

use super::recovery::{Follows, Pace, Place, Recovery, Request, Rest, Standing, Trouble};
use super::tally::Endpoint;
use crate::domain::claude_account::Target;
use crate::domain::relay_account::{Observed, RelayAccount};
use crate::model::{ClaudeAccountHealthState, ClaudeAccountId, Clock, Timestamp};

/// Of how many lanes something is remembered: callers name what they like. First those go of which there is nothing to say.
const LANES: usize = 64;
/// How many conversations are known.
const CONVERSATIONS: usize = 50_000;
/// How long one is, after it was last heard of: upstreams keep a prompt in their cache for an hour at most.
const CONVERSATION: TimeDelta = TimeDelta::hours(1);

/// What is known of the accounts.
pub(super) struct Pool {
    states: Mutex<States>,
    conversations: Cache<u64, (ClaudeAccountId, Timestamp)>,
    clock: Clock,
    /// How long an account rests at first.
    first_rest: TimeDelta,
    pub(super) hasher: RandomState,
}

#[derive(Default)]
struct States {
    accounts: HashMap<ClaudeAccountId, AccountState>,
    /// Numbers what happens, so that it is known what came before what, and equals take turns.
    turn: u64,
}

#[derive(Default)]
struct AccountState {
    in_flight: u32,
    turn: u64,
    /// Which version of the account it is about, and with which key at which upstream: no older ones, however old the list that
    /// somebody has.
    version: i32,
    target: Option<Arc<Target>>,
    /// Of all lanes, where no request may be sent to it, or could not.
    closed: Option<Recovery>,
    /// Those in which something went wrong.
    lanes: HashMap<Lane, Recovery>,
    /// Whether something went wrong since it was told to be well.
    is_ill: bool,
}

/// What upstreams limit by itself: the messages of a model, or what is asked about it and is free.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    model: String,
    is_charged: bool,
}

impl Lane {
    pub(super) fn new(endpoint: Endpoint, model: &str) -> Self {
        Self { model: model.to_owned(), is_charged: endpoint.is_charged() }
    }

    /// Where no model is meant.
    pub(super) fn of_lists() -> Self {
        Self { model: String::new(), is_charged: false }
    }
}

/// An account with the key and the upstream that it had: with others it is another.
pub(super) type Tried = (ClaudeAccountId, Arc<Target>);

/// What a request needs.
pub(super) struct Wanted<'a> {
    pub(super) accounts: &'a [Arc<RelayAccount>],
    pub(super) lane: &'a Lane,
    /// The conversation that it belongs to.
    pub(super) session: Option<u64>,
    /// Accounts that have failed it.
    pub(super) tried: &'a [Tried],
    /// The one that has failed it, and may do better now.
    pub(super) again: Option<ClaudeAccountId>,
}

/// Who may take a request.
pub(super) enum Choice {
    Take(Lease),
    /// One may soon: at this time, where it is known, or when something changes.
    Wait(Option<Timestamp>),
    Nobody(Why),
}

/// Why nobody may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// There is no account, or none that was not tried.
    None,
    /// The tokens of all are used up.
    Exhausted(Timestamp),
    /// All rest: this one is back first.
    Resting(Rest),
}

impl Pool {
    pub(super) fn new(clock: Clock, first_rest: TimeDelta) -> Arc<Self> {
        Arc::new(Self {
            states: Mutex::default(),
            conversations: Cache::new(CONVERSATIONS),
            clock,
            first_rest,
            hasher: RandomState::new(),
        })
    }

    /// Chooses an account. Who has to wait gets a place in the queue of one, and keeps the place that it has.
    pub(super) fn choose(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        patience: TimeDelta,
        place: &mut Option<Place>,
    ) -> Choice {
        let now = self.clock.now();
        let mut states = self.lock();
        let stays_with = wanted.session.and_then(|session| self.conversations.get(&session));
        let stays_with = stays_with.filter(|(_, heard)| now - *heard < CONVERSATION).map(|(id, _)| id);
        let (mut best, mut queued, mut is_full) = (None, None, false);
        let (mut first_back, mut exhausted): (Option<Rest>, Option<Timestamp>) = (None, None);
        for account in wanted.accounts.iter().filter(|account| !wanted.tried.contains(&tried(account))) {
            let id = account.id();
            let state = states.accounts.entry(id).or_default();
            state.look_again(account);
            if let Some(until) = account.exhausted_until(now) {
                exhausted = Some(exhausted.map_or(until, |known| known.min(until)));
                continue;
            }
            let rank =
                (wanted.again != Some(id), stays_with != Some(id), account.row().priority, state.in_flight, state.turn);
            let (rest, queue) = match state.standing(wanted.lane, now, place.as_ref()) {
                Standing::Ready => {
                    if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                        best = Some((rank, account));
                    }
                    continue;
                }
                Standing::Full(queue) => (None, Some(queue)),
                Standing::Resting(rest, queue) => (Some(rest), queue),
            };
            match rest {
                None => is_full = true,
                Some(rest) if first_back.is_none_or(|first| rest.until < first.until) => first_back = Some(rest),
                Some(_) => {}
            }
            if let Some(queue) = queue {
                let is_new = !place.as_ref().is_some_and(|place| place.is_in(&queue));
                let rank = (rest.is_some(), is_new, rest.map(|rest| rest.until), rank);
                if queued.as_ref().is_none_or(|(known, _, _)| rank < *known) {
                    queued = Some((rank, is_new, queue));
                }
            }
        }
        if let Some((_, account)) = best {
            if let Some(session) = wanted.session {
                self.conversations.insert(session, (account.id(), now));
            }
            *place = None;
            return Choice::Take(states.begin(self, account, wanted.lane, now));
        }
        let back_at = match first_back {
            Some(rest) if rest.until - now <= patience => Some(rest.until),
            _ if is_full => None,
            Some(rest) => return Choice::Nobody(Why::Resting(rest)),
            None => return Choice::Nobody(exhausted.map_or(Why::None, Why::Exhausted)),
        };
        if let Some((_, true, queue)) = queued {
            *place = Some(Place::new(queue));
        }
        Choice::Wait(back_at)
    }

    fn pace(&self, turn: u64) -> Pace {
        let [scatter, ..] = self.hasher.hash_one(turn).to_ne_bytes();
        Pace { first: self.first_rest, scatter }
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        // A panic cannot leave more behind than a count that is wrong.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request remembers of an account that it was at.
pub(super) fn tried(account: &RelayAccount) -> Tried {
    (account.id(), account.target().clone())
}

impl States {
    fn next(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn begin(&mut self, pool: &Arc<Pool>, account: &Arc<RelayAccount>, lane: &Lane, now: Timestamp) -> Lease {
        let turn = self.next();
        let state = self.accounts.entry(account.id()).or_default();
        state.turn = turn;
        state.in_flight += 1;
        let lane_of = state.lanes.get_mut(lane);
        state.closed.iter_mut().chain(lane_of).for_each(|recovery| recovery.begin(now));
        Lease {
            pool: pool.clone(),
            account: account.clone(),
            lane: lane.clone(),
            turn,
            is_answered: AtomicBool::new(false),
        }
    }
}

impl AccountState {
    /// Another key, or another upstream, is another account; and one that was found well by somebody else is.
    fn look_again(&mut self, account: &RelayAccount) {
        use ClaudeAccountHealthState::{Healthy, Unknown};
        let row = account.row();
        if row.version <= self.version {
            return;
        }
        if !self.is_of(account) {
            (self.closed, self.is_ill) = (None, false);
            self.lanes.clear();
            self.target = Some(account.target().clone());
        } else if matches!(row.health_state, Healthy | Unknown) {
            self.closed = None;
        }
        self.version = row.version;
    }

    fn standing(&self, lane: &Lane, now: Timestamp, place: Option<&Place>) -> Standing {
        let of = |recovery: Option<&Recovery>| recovery.map_or(Standing::Ready, |found| found.standing(now, place));
        match (of(self.closed.as_ref()), of(self.lanes.get(lane))) {
            (Standing::Resting(closed, _), Standing::Resting(rest, queue)) if rest.until > closed.until => {
                Standing::Resting(rest, queue)
            }
            (closed @ Standing::Resting(..), _) => closed,
            (_, lane @ Standing::Resting(..)) | (Standing::Ready, lane) => lane,
            (closed @ Standing::Full(_), _) => closed,
        }
    }

    /// The worst that holds of it.
    fn rest(&self, now: Timestamp) -> Option<Rest> {
        let all = self.lanes.values().chain(&self.closed);
        all.filter_map(|recovery| recovery.rest(now)).max_by_key(|rest| rest.until)
    }

    /// What becomes of a lane in which something went wrong. What is known of another may be forgotten for that: it is found out anew.
    fn recovery(&mut self, lane: &Lane, now: Timestamp) -> &mut Recovery {
        if self.lanes.len() >= LANES && !self.lanes.contains_key(lane) {
            self.lanes.retain(|_, recovery| recovery.is_used() || recovery.rest(now).is_some());
            let until = |recovery: &Recovery| recovery.rest(now).map(|rest| rest.until);
            if self.lanes.len() >= LANES
                && let Some(first) =
                    self.lanes.iter().min_by_key(|(_, recovery)| until(recovery)).map(|(lane, _)| lane.clone())
            {
                self.lanes.remove(&first);
            }
        }
        self.lanes.entry(lane.clone()).or_insert_with(Recovery::new)
    }

    /// Whether what a request learns that had this account holds of it as it is now.
    fn is_of(&self, account: &RelayAccount) -> bool {
        self.target.as_ref() == Some(account.target())
    }
}

/// What follows from a request that went wrong.
pub(super) struct Failed {
    /// How long nobody asks the account for the same; none: others go on.
    pub(super) rest: Option<Rest>,
    /// What there is to be told of the account.
    pub(super) observed: Observed,
}

/// An account that has a request, until it is done.
pub(super) struct Lease {
    pool: Arc<Pool>,
    pub(super) account: Arc<RelayAccount>,
    lane: Lane,
    /// Its number.
    turn: u64,
    /// Whether the upstream has begun to answer.
    is_answered: AtomicBool,
}

impl Lease {
    /// The upstream has taken the request. Returns what there is to be told of the account.
    pub(super) fn succeeded(&self) -> Option<Observed> {
        self.is_answered.store(true, Ordering::Relaxed);
        let now = self.pool.clock.now();
        let mut states = self.pool.lock();
        let state = states.accounts.entry(self.account.id()).or_default();
        if !state.is_of(&self.account) {
            return None;
        }
        if state.closed.as_mut().is_some_and(|closed| closed.succeed(self.turn, now)) {
            state.closed = None;
        }
        if let Some(recovery) = state.lanes.get_mut(&self.lane) {
            if recovery.is_older(self.turn) {
                return None;
            }
            if recovery.succeed(self.turn, now) {
                state.lanes.remove(&self.lane);
            }
        }
        let is_known = self.account.row().health_state == ClaudeAccountHealthState::Healthy && !state.is_ill;
        if is_known || state.rest(now).is_some() {
            return None;
        }
        state.is_ill = false;
        drop(states);
        Some(self.observed(ClaudeAccountHealthState::Healthy, None, None))
    }

    /// The answer came to its end.
    pub(super) fn completed(&self) {
        let now = self.pool.clock.now();
        let mut states = self.pool.lock();
        let Some(state) = states.accounts.get_mut(&self.account.id()) else { return };
        let lane = state.lanes.get_mut(&self.lane);
        if lane.is_some_and(|recovery| recovery.complete(self.turn, now)) {
            state.lanes.remove(&self.lane);
        }
    }

    /// The request went wrong, by the account's doing, and gives it up, or may do better in a moment. None: that says nothing of the
    /// account as it is now.
    pub(super) fn failed(&self, trouble: Trouble, message: String, is_given_up: bool) -> Option<Failed> {
        let now = self.pool.clock.now();
        let mut states = self.pool.lock();
        let turn = states.next();
        let state = states.accounts.entry(self.account.id()).or_default();
        if !state.is_of(&self.account) {
            return None;
        }
        let pace = self.pool.pace(turn);
        let recovery = if matches!(trouble, Trouble::Unauthorized | Trouble::Unpaid) {
            state.closed.get_or_insert_with(Recovery::new)
        } else {
            let is_trusted = state.lanes.get(&self.lane).is_none_or(|recovery| recovery.is_trusted(now));
            if trouble == Trouble::Failing && is_trusted && !is_given_up {
                return None;
            }
            state.recovery(&self.lane, now)
        };
        let request = Request { began: self.turn, is_answered: self.is_answered.load(Ordering::Relaxed) };
        let rest = match recovery.fail(request, turn, trouble, now, pace) {
            Follows::Nothing => return None,
            // What one request may not do says nothing of the account's health.
            Follows::Doubt if trouble == Trouble::Forbidden => return None,
            Follows::Doubt => None,
            Follows::Rest(rest) => Some(rest),
        };
        state.is_ill = true;
        let worst = state.rest(now).or(rest);
        drop(states);
        let (health, until) = worst.map_or((trouble.state(), None), |rest| (rest.state, Some(rest.until)));
        Some(Failed { rest, observed: self.observed(health, until, Some(message)) })
    }

    /// How long a request that went wrong so often waits by itself, where the account does not rest.
    pub(super) fn pause(&self, failures: usize) -> TimeDelta {
        let failures = u32::try_from(failures).unwrap_or(u32::MAX);
        let now = self.pool.clock.now();
        Trouble::Failing.rest(failures, now, self.pool.pace(self.turn)).until - now
    }

    /// A place among those who wait for the account, where something went wrong.
    pub(super) fn place(&self) -> Option<Place> {
        let states = self.pool.lock();
        states.accounts.get(&self.account.id())?.lanes.get(&self.lane).map(Recovery::place)
    }

    fn observed(&self, state: ClaudeAccountHealthState, until: Option<Timestamp>, error: Option<String>) -> Observed {
        let row = self.account.row();
        Observed {
            id: row.id,
            organization: self.account.organization(),
            target: self.account.target().clone(),
            state,
            until,
            error,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut states = self.pool.lock();
        if let Some(state) = states.accounts.get_mut(&self.account.id()) {
            state.in_flight = state.in_flight.saturating_sub(1);
            let lane = state.lanes.get_mut(&self.lane);
            state.closed.iter_mut().chain(lane).for_each(|recovery| recovery.end(self.turn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_makes_more_lanes_than_there_are() {
        let at = |seconds: i64| Timestamp::from_micros((1_800_000_000 + seconds) * 1_000_000).unwrap();
        let pace = Pace { first: TimeDelta::milliseconds(250), scatter: 0 };
        let mut state = AccountState::default();
        let lane = |n: u64| Lane::new(Endpoint::Messages, &format!("model-{n}"));
        for n in 1..500 {
            // The first rests longest.
            let trouble = Trouble::RateLimited(Some(at(if n == 1 { 60 } else { 30 })));
            state.recovery(&lane(n), at(0)).fail(
                Request { began: 2 * n, is_answered: false },
                2 * n + 1,
                trouble,
                at(0),
                pace,
            );
        }
        assert_eq!(state.lanes.len(), LANES);
        assert!(matches!(state.standing(&lane(1), at(1), None), Standing::Resting(..)));
        assert!(matches!(state.standing(&lane(499), at(1), None), Standing::Resting(..)));
    }
}
