//! From account to account, until one has taken the request: short tries of the same, then another, then what the upstream says.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Response;
use chrono::TimeDelta;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Relay;
use super::caller::Admitted;
use super::error::{Refusal, Result};
use super::pool::{Choice, Lease, Trouble, Wanted, Why};
use super::tally::Tally;
use super::upstream::{Answer, Errand, Failure, Whole, ask};
use crate::domain::relay_account::RelayAccounts;
use crate::model::{ClaudeAccountHealthState, Timestamp};

/// How often the same account is tried again.
const RETRIES: u32 = 2;
/// No longer is waited for that.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often those who wait for their turn look again by themselves.
const LOOK: Duration = Duration::from_secs(1);
/// No request is tried on more accounts.
const MAX_ACCOUNTS: usize = 5;

/// What an upstream has answered in the end.
pub(super) enum Answered {
    Success(Response<Incoming>),
    Error(Whole),
}

/// What decides which account a request goes to.
#[derive(Clone, Copy)]
pub(super) struct Route<'a> {
    pub(super) model: &'a str,
    pub(super) session: Option<u64>,
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
    let accounts = RelayAccounts::of(&relay.services, &admitted.permit).await?;
    let mut tried = Vec::new();
    let mut last: Option<Result<Whole>> = None;
    loop {
        let wanted = Wanted { accounts: &accounts, model: route.model, session: route.session, tried: &tried };
        let patience = if last.is_none() { relay.limits.patience } else { Duration::ZERO };
        let lease = match find(relay, &wanted, patience).await {
            Ok(lease) => Arc::new(lease),
            Err(why) => {
                let last = last.unwrap_or_else(|| Err(refusal(why, relay.services.clock.now())));
                return last.map(Answered::Error);
            }
        };
        tally.at(lease.clone());
        let failure = match at_account(relay, &lease, &wanted, errand, tally).await {
            ControlFlow::Break(answered) => return answered,
            ControlFlow::Continue(failure) => failure,
        };
        tried.push(lease.account.id());
        if tried.len() >= MAX_ACCOUNTS {
            return failure.map(Answered::Error);
        }
        last = Some(failure);
    }
}

/// Tries one account. It breaks with what the caller gets, and goes on with what the caller gets where no other does better.
async fn at_account(
    relay: &Arc<Relay>,
    lease: &Arc<Lease>,
    wanted: &Wanted<'_>,
    errand: &Errand<'_>,
    tally: &mut Tally,
) -> ControlFlow<Result<Answered>, Result<Whole>> {
    let mut tries = 0;
    loop {
        tally.attempt();
        let failure = match ask(relay, lease, errand).await {
            Answer::Success(response) => {
                if let Some(observed) = lease.succeeded() {
                    relay.health.note(&relay.services, observed);
                }
                return ControlFlow::Break(Ok(Answered::Success(response)));
            }
            Answer::Final(whole) => return ControlFlow::Break(Ok(Answered::Error(whole))),
            Answer::Elsewhere(failure) => failure,
            Answer::GivenUp(failure) => {
                note(relay, lease, failure.trouble);
                return ControlFlow::Break(failure.answer.map(Answered::Error));
            }
            Answer::Again(failure, wait) => {
                if tries < RETRIES && is_worth_it(relay, lease, wanted, &failure, wait) {
                    tries += 1;
                    tokio::time::sleep(wait.unwrap_or(relay.limits.retry * 2_u32.pow(tries - 1))).await;
                    continue;
                }
                failure
            }
        };
        note(relay, lease, failure.trouble);
        return ControlFlow::Continue(failure.answer);
    }
}

/// Whether the same account is tried once more. One that has a limit only where it says when, and nobody else could take it.
fn is_worth_it(relay: &Relay, lease: &Lease, wanted: &Wanted<'_>, failure: &Failure, wait: Option<Duration>) -> bool {
    let is_limited = matches!(failure.trouble, Some((Trouble::RateLimited(_), _)));
    match wait {
        Some(wait) => wait <= LONGEST_WAIT && !(is_limited && relay.pool.has_another(wanted, lease.account.id())),
        None => !is_limited,
    }
}

fn note(relay: &Arc<Relay>, lease: &Lease, trouble: Option<(Trouble, String)>) {
    if let Some((trouble, message)) = trouble {
        relay.health.note(&relay.services, lease.failed(trouble, message));
    }
}

/// Why no account was found.
#[derive(Clone, Copy)]
enum NotFound {
    Nobody(Why),
    /// All are asked as much as they may be.
    Busy,
}

async fn find(relay: &Relay, wanted: &Wanted<'_>, patience: Duration) -> Result<Lease, NotFound> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Before it is looked: what changes in between is not missed.
        let changed = relay.pool.changed();
        let back_at = match relay.pool.choose(wanted, TimeDelta::from_std(left).unwrap_or_default()) {
            Choice::Take(lease) => return Ok(lease),
            Choice::Nobody(why) => return Err(NotFound::Nobody(why)),
            Choice::Wait(back_at) => back_at,
        };
        if left.is_zero() {
            return Err(NotFound::Busy);
        }
        let now = relay.services.clock.now();
        let pause = back_at.map_or(LOOK, |at| (at - now).to_std().unwrap_or_default()).min(left);
        // Either way it is looked again.
        let _ = tokio::time::timeout(pause, changed).await;
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
