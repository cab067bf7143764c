//! From account to account, until one has taken the request: short tries of the same, then another, then what the upstream says.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Response;
use chrono::TimeDelta;
use tokio::time::{Instant, sleep, timeout};

use super::Relay;
use super::beginning::Begun;
use super::caller::Admitted;
use super::error::{Refusal, Result};
use super::pool::{Choice, Failed, Lane, Lease, Tried, Wanted, Why, tried};
use super::recovery::{Place, Trouble};
use super::tally::Tally;
use super::upstream::{Answer, Errand, Failure, Whole, ask};
use crate::domain::relay_account::{Observed, RelayAccounts};
use crate::model::{ClaudeAccountHealthState, ClaudeAccountId, Timestamp};

/// How often the same account is tried again.
const RETRIES: usize = 2;
/// No longer is waited for that.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Nor so long, where another account can take the request and the upstream does not say how long.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// How often those who wait for their turn look again by themselves.
const LOOK: Duration = Duration::from_secs(1);
/// No request is tried on more accounts.
pub(super) const MAX_ACCOUNTS: usize = 5;
/// Nor more often.
const MAX_TRIES: usize = (RETRIES + 1) * MAX_ACCOUNTS;
/// Nor is another try begun after this.
const LONGEST: Duration = Duration::from_secs(60);

/// What an upstream has answered in the end.
pub(super) enum Answered {
    Success(Response<Begun>),
    Error(Whole),
}

/// What decides which account a request goes to.
#[derive(Clone, Copy)]
pub(super) struct Route<'a> {
    pub(super) lane: &'a Lane,
    pub(super) session: Option<u64>,
}

/// What a request has been through.
struct Tries {
    started: Instant,
    all: Vec<Tried>,
    /// The accounts that are not tried again.
    done: Vec<Tried>,
    /// The one that is, if it does better in a moment.
    again: Option<ClaudeAccountId>,
    /// Its place among those who wait for that: who comes while it pauses comes after.
    place: Option<Place>,
    /// What there is to be told of that, if it does not.
    untold: Option<Observed>,
    /// What the caller gets, unless an account does better.
    answer: Option<Result<Whole>>,
}

impl Tries {
    fn new() -> Self {
        let (all, done) = (Vec::new(), Vec::new());
        Self { started: Instant::now(), all, done, again: None, place: None, untold: None, answer: None }
    }

    /// Whether enough was tried.
    fn are_over(&self) -> bool {
        let is_late = !self.all.is_empty() && self.started.elapsed() >= LONGEST;
        is_late || self.done.len() >= MAX_ACCOUNTS || self.all.len() >= MAX_TRIES
    }

    /// Whether an account may be tried once more. One that has a limit only where it says when.
    fn may_again(&self, at: &Tried, failure: &Failure, wait: Option<Duration>) -> bool {
        let is_limited = matches!(failure.trouble, Some((Trouble::RateLimited(_), _)));
        let is_soon = wait.map_or(!is_limited, |wait| wait <= LONGEST_WAIT);
        is_soon && self.times(at) <= RETRIES
    }

    /// How often an account was tried.
    fn times(&self, at: &Tried) -> usize {
        self.all.iter().filter(|tried| *tried == at).count()
    }

    /// The account that is to be tried again rests, for all, where it is not only this request that fails. Returns how long this
    /// request waits before it looks for an account: not where it has a limit, which another may not have, or rests for long.
    fn rest(
        &mut self,
        relay: &Relay,
        lease: &Lease,
        trouble: Option<(Trouble, String)>,
        wait: Option<Duration>,
    ) -> Duration {
        let Some((trouble, message)) = trouble else { return Duration::ZERO };
        let failed = lease.failed(trouble, message, false);
        let until = failed.as_ref().and_then(|failed| failed.rest).map(|rest| rest.until);
        self.untold = failed.map(|Failed { observed, .. }| observed);
        if matches!(trouble, Trouble::RateLimited(_)) {
            return Duration::ZERO;
        }
        let pause = match until {
            Some(until) => until - relay.services.clock.now(),
            None => lease.pause(self.times(&tried(&lease.account))),
        };
        let (pause, wait) = (pause.to_std().unwrap_or_default(), wait.unwrap_or_default());
        if until.is_some() && pause > wait.max(SHORT_WAIT) {
            return Duration::ZERO;
        }
        // Who is asked to wait for longer than all others would keep them waiting.
        self.place = lease.place().filter(|_| until.is_some() && wait <= pause + SHORT_WAIT);
        pause.max(wait)
    }

    /// Tells how the account does that was to be tried again, where it is not the one that was found: a moment that is bridged is
    /// nobody's matter.
    fn tell(&mut self, relay: &Relay, found: Option<&Lease>) {
        let is_elsewhere = |observed: &Observed| found.is_none_or(|lease| lease.account.id() != observed.id);
        if let Some(observed) = self.untold.take().filter(is_elsewhere) {
            relay.health.note(&relay.services, observed);
        }
    }

    /// An upstream's own words are worth more than ours on another.
    fn keep(&mut self, answer: Result<Whole>) {
        if answer.is_ok() || !matches!(self.answer, Some(Ok(_))) {
            self.answer = Some(answer);
        }
    }

    /// What the caller gets, where nobody does better; else this.
    fn end(self, refusal: Refusal) -> Result<Answered> {
        self.answer.unwrap_or(Err(refusal)).map(Answered::Error)
    }
}

/// Sends a request to the accounts that may take it.
///
/// # Errors
/// Where no upstream has answered.
pub(super) async fn run(
    relay: &Arc<Relay>,
    admitted: &Admitted,
    route: Route<'_>,
    errand: &Errand<'_>,
    tally: &mut Tally,
) -> Result<Answered> {
    let mut tries = Tries::new();
    loop {
        let place = tries.place.take();
        let found = find(relay, admitted, route, &tries, place).await;
        tries.tell(relay, found.as_ref().ok());
        let lease = match found {
            Ok(lease) => Arc::new(lease),
            Err(refusal) => return tries.end(refusal),
        };
        let at = tried(&lease.account);
        tries.all.push(at.clone());
        let answer = ask(relay, &lease, errand, tally.attempt(lease.clone())).await;
        let (failure, again) = match answer {
            Answer::Success(response) => {
                if let Some(observed) = lease.succeeded() {
                    relay.health.note(&relay.services, observed);
                }
                return Ok(Answered::Success(response));
            }
            Answer::Final(whole) => {
                tally.attempt_failed();
                return Ok(Answered::Error(whole));
            }
            Answer::GivenUp(failure) => {
                tally.attempt_lost();
                note(relay, &lease, failure.trouble);
                return failure.answer.map(Answered::Error);
            }
            Answer::Elsewhere(failure) => (failure, None),
            Answer::Again(failure, wait) => {
                let is_again = tries.may_again(&at, &failure, wait);
                (failure, is_again.then_some(wait))
            }
        };
        tally.attempt_failed();
        tries.keep(failure.answer);
        if let Some(wait) = again {
            tries.again = Some(at.0);
            let pause = tries.rest(relay, &lease, failure.trouble, wait);
            drop(lease);
            sleep(pause).await;
        } else {
            tries.again = None;
            tries.done.push(at);
            note(relay, &lease, failure.trouble);
        }
    }
}

fn note(relay: &Relay, lease: &Lease, trouble: Option<(Trouble, String)>) {
    if let Some((trouble, message)) = trouble {
        relay.note(lease, trouble, message);
    }
}

/// Why no account was found.
#[derive(Clone, Copy)]
enum NotFound {
    Nobody(Why),
    /// All are asked as much as they may be.
    Busy,
}

/// Waits for an account of those that there are by then.
///
/// # Errors
/// Where there is none soon enough.
async fn find(
    relay: &Relay,
    admitted: &Admitted,
    route: Route<'_>,
    tries: &Tries,
    mut place: Option<Place>,
) -> Result<Lease> {
    let patience = match (&tries.answer, tries.again) {
        (None, _) => relay.limits.patience,
        (Some(_), Some(_)) => relay.limits.patience.min(LONGEST_WAIT),
        // For another account a moment only: there is an answer.
        (Some(_), None) => relay.limits.patience.min(SHORT_WAIT),
    };
    let deadline = Instant::now() + patience;
    loop {
        let now = relay.services.clock.now();
        if tries.are_over() {
            return Err(refusal(NotFound::Busy, now));
        }
        // What was changed meanwhile holds from now on.
        let accounts = RelayAccounts::of(&relay.services, &admitted.permit).await?;
        let Route { lane, session } = route;
        let wanted = Wanted { accounts: &accounts, lane, session, tried: &tries.done, again: tries.again };
        let left = deadline.saturating_duration_since(Instant::now());
        let back_at = match relay.pool.choose(&wanted, TimeDelta::from_std(left).unwrap_or_default(), &mut place) {
            Choice::Take(lease) => return Ok(lease),
            Choice::Nobody(why) => return Err(refusal(NotFound::Nobody(why), now)),
            Choice::Wait(_) if left.is_zero() => return Err(refusal(NotFound::Busy, now)),
            Choice::Wait(back_at) => back_at,
        };
        let pause = back_at.map_or(LOOK, |at| (at - now).to_std().unwrap_or_default()).min(LOOK).min(left);
        match &place {
            // Either way it is looked again.
            Some(place) => drop(timeout(pause, place.called()).await),
            None => sleep(pause).await,
        }
    }
}

fn refusal(why: NotFound, now: Timestamp) -> Refusal {
    let wait = |until: Timestamp| (until - now).to_std().unwrap_or_default();
    match why {
        NotFound::Busy => Refusal::overloaded("All Claude accounts are busy. Try again later.", Duration::from_secs(1)),
        NotFound::Nobody(Why::None) => {
            let message = "The organization has no Claude account that may be used.";
            Refusal::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, message).for_good()
        }
        NotFound::Nobody(Why::Exhausted(until)) => {
            let message = "The tokens of all Claude accounts are used up for this month.";
            Refusal::rate_limited(message, wait(until)).for_good()
        }
        NotFound::Nobody(Why::Resting(rest)) => match rest.state {
            ClaudeAccountHealthState::RateLimited => Refusal::rate_limited(
                "All Claude accounts have reached the limits of their upstream.",
                wait(rest.until),
            ),
            ClaudeAccountHealthState::Overloaded => {
                Refusal::overloaded("The upstream is overloaded. Try again later.", wait(rest.until))
            }
            _ => {
                let message = "No Claude account can take this request at the moment.";
                Refusal::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, message).after(wait(rest.until))
            }
        },
    }
}
