//! Which account takes a request: by priority, then the least loaded; a conversation stays where it was, as long as that is well.
//!
//! An account that was refused something is left alone for a while, for the model that it was refused for, and is then asked by
//! one request at first: each that succeeds, and a while in which nothing goes wrong, lets twice as many in. All of this is what one server knows.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use quick_cache::sync::Cache;
use tokio::sync::Notify;

use crate::domain::relay_account::{Observed, RelayAccount};
use crate::model::{ClaudeAccountHealthState, ClaudeAccountId, Clock, Timestamp};

/// However an upstream words it, an account is tried again after this.
const LONGEST: TimeDelta = TimeDelta::minutes(10);
/// How long an account is left alone that said that it is overloaded, or failed, at first.
const OVERLOADED: TimeDelta = TimeDelta::seconds(2);
/// How long at last: no longer than callers wait for it.
const OVERLOADED_AT_LAST: TimeDelta = TimeDelta::seconds(10);
/// How long one that has a limit and does not say until when, at first.
const LIMITED: TimeDelta = TimeDelta::seconds(15);
/// How long one whose key is not accepted, or that has not paid.
const CLOSED: TimeDelta = TimeDelta::minutes(5);
/// After how long without trouble twice as many are let to an account that was left alone.
const STEP: TimeDelta = TimeDelta::seconds(3);
/// So many at once are as good as any number.
const MANY: u32 = 64;
/// Of how many models something is remembered, before those go of which there is nothing to say.
const MODELS: usize = 64;
/// How many conversations are known.
const CONVERSATIONS: usize = 50_000;
/// How long one is, after it was last heard of: upstreams keep a prompt in their cache for an hour at most.
const CONVERSATION: TimeDelta = TimeDelta::hours(1);

/// What is known of the accounts.
pub(super) struct Pool {
    states: Mutex<States>,
    conversations: Cache<u64, (ClaudeAccountId, Timestamp)>,
    /// Tells whoever waits that something has changed.
    changed: Notify,
    clock: Clock,
    pub(super) hasher: RandomState,
}

#[derive(Default)]
struct States {
    accounts: HashMap<ClaudeAccountId, AccountState>,
    /// Counts the requests, so that equals take turns.
    turn: u64,
}

#[derive(Default)]
struct AccountState {
    in_flight: u32,
    turn: u64,
    /// Which key and which version of the account it is about.
    seen: (i32, i32),
    /// For every model.
    rest: Option<Rest>,
    models: HashMap<String, ModelState>,
}

#[derive(Default)]
struct ModelState {
    rest: Option<Rest>,
    in_flight: u32,
    /// How many may be at once, after something went wrong; none: any number.
    ramp: Option<Ramp>,
    /// How often in a row it went wrong.
    failures: u32,
}

/// How an account is used more and more again.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    /// How many requests there may be at once.
    allowed: u32,
    /// Since when; none: nobody has asked it since.
    since: Option<Timestamp>,
}

/// An account is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) state: ClaudeAccountHealthState,
    pub(super) until: Timestamp,
}

/// What a request needs.
pub(super) struct Wanted<'a> {
    pub(super) accounts: &'a [Arc<RelayAccount>],
    pub(super) model: &'a str,
    /// The conversation that it belongs to.
    pub(super) session: Option<u64>,
    /// Accounts that have failed it.
    pub(super) tried: &'a [ClaudeAccountId],
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

/// How a request went wrong, as far as it is the account's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Too many requests for the model; until then, where the upstream says so.
    RateLimited(Option<Timestamp>),
    Overloaded(Option<Timestamp>),
    Failing,
    /// The key is not accepted.
    Unauthorized,
    /// The account is not paid for.
    Unpaid,
}

enum Standing {
    Ready,
    /// As many are under way as may be.
    Full,
    Resting(Rest),
    Exhausted(Timestamp),
}

impl Pool {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            states: Mutex::default(),
            conversations: Cache::new(CONVERSATIONS),
            changed: Notify::new(),
            clock,
            hasher: RandomState::new(),
        })
    }

    /// Chooses an account.
    pub(super) fn choose(self: &Arc<Self>, wanted: &Wanted<'_>, patience: TimeDelta) -> Choice {
        let now = self.clock.now();
        let mut states = self.lock();
        let stays_with = wanted.session.and_then(|session| self.conversations.get(&session));
        let stays_with = stays_with.filter(|(_, heard)| now - *heard < CONVERSATION).map(|(id, _)| id);
        let (mut best, mut best_rank) = (None, None);
        let (mut is_full, mut first_back, mut exhausted): (_, Option<Rest>, Option<Timestamp>) = (false, None, None);
        for account in wanted.accounts.iter().filter(|account| !wanted.tried.contains(&account.id())) {
            let state = states.accounts.entry(account.id()).or_default();
            state.look_again(account);
            match state.standing(account, wanted.model, now) {
                Standing::Ready => {
                    let rank = (stays_with != Some(account.id()), account.row().priority, state.in_flight, state.turn);
                    if best_rank.is_none_or(|best| rank < best) {
                        (best, best_rank) = (Some(account), Some(rank));
                    }
                }
                Standing::Full => is_full = true,
                Standing::Resting(rest) => {
                    if first_back.is_none_or(|first| rest.until < first.until) {
                        first_back = Some(rest);
                    }
                }
                Standing::Exhausted(until) => exhausted = Some(exhausted.map_or(until, |known| known.min(until))),
            }
        }
        if let Some(account) = best {
            if let Some(session) = wanted.session {
                self.conversations.insert(session, (account.id(), now));
            }
            return Choice::Take(states.begin(self, account, wanted.model, now));
        }
        match first_back {
            Some(rest) if rest.until - now <= patience => Choice::Wait(Some(rest.until)),
            _ if is_full => Choice::Wait(None),
            Some(rest) => Choice::Nobody(Why::Resting(rest)),
            None => Choice::Nobody(exhausted.map_or(Why::None, Why::Exhausted)),
        }
    }

    /// Whether another account than this one would take the request now.
    pub(super) fn has_another(&self, wanted: &Wanted<'_>, than: ClaudeAccountId) -> bool {
        let now = self.clock.now();
        let mut states = self.lock();
        wanted.accounts.iter().any(|account| {
            let id = account.id();
            let state = states.accounts.entry(id).or_default();
            id != than
                && !wanted.tried.contains(&id)
                && matches!(state.standing(account, wanted.model, now), Standing::Ready)
        })
    }

    /// Done when something changes after this is first polled.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        // A panic cannot leave more behind than a count that is wrong.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl States {
    fn begin(&mut self, pool: &Arc<Pool>, account: &Arc<RelayAccount>, model: &str, now: Timestamp) -> Lease {
        self.turn += 1;
        let state = self.accounts.entry(account.id()).or_default();
        state.turn = self.turn;
        state.in_flight += 1;
        match state.models.get_mut(model) {
            Some(known) => {
                known.in_flight += 1;
                if let Some(ramp) = &mut known.ramp {
                    ramp.since.get_or_insert(now);
                }
            }
            None => drop(state.models.insert(model.to_owned(), ModelState { in_flight: 1, ..ModelState::default() })),
        }
        Lease { pool: pool.clone(), account: account.clone(), model: model.to_owned() }
    }
}

impl AccountState {
    /// Another key is another account; and one that was found well by somebody else is.
    fn look_again(&mut self, account: &RelayAccount) {
        use ClaudeAccountHealthState::{Healthy, Unknown};
        let row = account.row();
        let (key_version, version) = self.seen;
        if key_version != row.api_key_version {
            self.rest = None;
            for model in self.models.values_mut() {
                *model = ModelState { in_flight: model.in_flight, ..ModelState::default() };
            }
        } else if version != row.version && matches!(row.health_state, Healthy | Unknown) {
            self.rest = None;
        }
        self.seen = (row.api_key_version, row.version);
    }

    fn standing(&self, account: &RelayAccount, model: &str, now: Timestamp) -> Standing {
        if let Some(until) = account.exhausted_until(now) {
            return Standing::Exhausted(until);
        }
        let model = self.models.get(model);
        let rests = [self.rest, model.and_then(|model| model.rest)];
        if let Some(rest) = rests.into_iter().flatten().filter(|rest| rest.holds(now)).max_by_key(|rest| rest.until) {
            return Standing::Resting(rest);
        }
        match model {
            Some(model) if model.ramp.is_some_and(|ramp| model.in_flight >= ramp.allowed(now)) => Standing::Full,
            _ => Standing::Ready,
        }
    }

    /// The worst that holds of it.
    fn rest(&self, now: Timestamp) -> Option<Rest> {
        let rests = self.models.values().filter_map(|model| model.rest).chain(self.rest);
        rests.filter(|rest| rest.holds(now)).max_by_key(|rest| rest.until)
    }
}

impl Ramp {
    /// Twice as many each time that nothing went wrong for a while, since an answer may take long.
    fn allowed(&self, now: Timestamp) -> u32 {
        let steps = self.since.map_or(0, |since| (now - since).num_seconds() / STEP.num_seconds());
        self.allowed.saturating_mul(1 << steps.clamp(0, 16))
    }
}

impl Rest {
    /// A clock that was set back must not make it longer.
    fn holds(&self, now: Timestamp) -> bool {
        self.until > now && self.until - now <= LONGEST
    }
}

/// An account that has a request, until it is done.
pub(super) struct Lease {
    pool: Arc<Pool>,
    pub(super) account: Arc<RelayAccount>,
    model: String,
}

impl Lease {
    /// The upstream has taken the request. Returns what there is to be told of the account.
    pub(super) fn succeeded(&self) -> Option<Observed> {
        let now = self.pool.clock.now();
        let is_known = self.account.row().health_state == ClaudeAccountHealthState::Healthy;
        let mut states = self.pool.lock();
        let state = states.accounts.entry(self.account.id()).or_default();
        state.rest = None;
        let mut was_held = false;
        if let Some(model) = state.models.get_mut(&self.model) {
            was_held = model.ramp.is_some();
            (model.rest, model.failures) = (None, 0);
            let allowed = model.ramp.map(|ramp| ramp.allowed(now).saturating_mul(2)).filter(|allowed| *allowed < MANY);
            model.ramp = allowed.map(|allowed| Ramp { allowed, since: Some(now) });
        }
        let rests = state.rest(now).is_some();
        drop(states);
        if was_held {
            self.pool.changed.notify_waiters();
        }
        (!is_known && !rests).then(|| self.observed(ClaudeAccountHealthState::Healthy, None, None))
    }

    /// The request went wrong, by the account's doing.
    pub(super) fn failed(&self, trouble: Trouble, message: String) -> Observed {
        let now = self.pool.clock.now();
        let mut states = self.pool.lock();
        let state = states.accounts.entry(self.account.id()).or_default();
        let rest = match trouble {
            Trouble::Unauthorized | Trouble::Unpaid => {
                let rest = Rest { state: trouble.state(), until: now + CLOSED };
                state.rest = Some(rest);
                rest
            }
            Trouble::RateLimited(_) | Trouble::Overloaded(_) | Trouble::Failing => {
                let model = state.models.entry(self.model.clone()).or_default();
                let known = model.rest.filter(|rest| rest.holds(now));
                // Several that were under way go wrong together.
                model.failures += u32::from(known.is_none());
                model.ramp = Some(Ramp { allowed: 1, since: None });
                let until = now + trouble.length(model.failures, now);
                let until = known.map_or(until, |rest| rest.until.max(until));
                let rest = Rest { state: trouble.state(), until };
                model.rest = Some(rest);
                rest
            }
        };
        let worst = state.rest(now).unwrap_or(rest);
        drop(states);
        self.observed(worst.state, Some(worst.until), Some(message))
    }

    fn observed(&self, state: ClaudeAccountHealthState, until: Option<Timestamp>, error: Option<String>) -> Observed {
        let row = self.account.row();
        Observed {
            id: row.id,
            organization: self.account.organization(),
            key_version: row.api_key_version,
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
            if let Some(model) = state.models.get_mut(&self.model) {
                model.in_flight = model.in_flight.saturating_sub(1);
            }
            if state.models.len() > MODELS {
                let now = self.pool.clock.now();
                state.models.retain(|_, model| model.in_flight > 0 || model.rest.is_some_and(|rest| rest.holds(now)));
            }
        }
        drop(states);
        self.pool.changed.notify_waiters();
    }
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
    fn length(self, failures: u32, now: Timestamp) -> TimeDelta {
        let doubled = |first: TimeDelta, last: TimeDelta| (first * (1 << (failures.clamp(1, 6) - 1))).min(last);
        match self {
            Self::RateLimited(Some(until)) => (until - now).clamp(TimeDelta::seconds(1), LONGEST),
            Self::RateLimited(None) => doubled(LIMITED, TimeDelta::minutes(1)),
            Self::Overloaded(Some(until)) => (until - now).clamp(TimeDelta::seconds(1), TimeDelta::minutes(1)),
            Self::Overloaded(None) | Self::Failing => doubled(OVERLOADED, OVERLOADED_AT_LAST),
            Self::Unauthorized | Self::Unpaid => CLOSED,
        }
    }
}
