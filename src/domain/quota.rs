//! How many requests a caller may make: somebody without a sign-in by the address, a user, an API key by its own limits.

use std::net::IpAddr;
use std::time::Duration;

use chrono::TimeDelta;

use super::api_key;
use super::budget::Limits;
use super::context::{Cx, Services};
use super::error::{Error, Result};
use crate::identity::{Actor, ApiKeyRates, SignedIn, SignedInBy};
use crate::limits::{Answer, Bucket, Policy, Standing, Subject, WhileAway};
use crate::model::{MicroUsd, Timestamp, UsageInterval};
use crate::settings::Settings;
use crate::store::api_key::ApiKey;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// What the rate limits are, by the settings; none: no limit.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    anonymous_per_minute: Option<u32>,
    user_per_minute: Option<u32>,
    /// Of a key that has no limits of its own.
    api_key_per_hour: Option<u32>,
    /// How many sign-ins from an address may fail in an hour.
    pub(super) failed_sign_ins_per_hour: u32,
}

impl From<&Settings> for Rates {
    fn from(settings: &Settings) -> Self {
        Self {
            anonymous_per_minute: settings.anonymous_rate_limit_per_minute,
            user_per_minute: settings.user_rate_limit_per_minute,
            api_key_per_hour: settings.default_rate_limit_per_hour,
            failed_sign_ins_per_hour: settings.failed_sign_ins_per_hour,
        }
    }
}

/// What is limited, and over which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    /// Requests a minute.
    RequestsPerMinute,
    /// Requests an hour.
    RequestsPerHour,
    /// Requests of the relay at the same time.
    ConcurrentRequests,
    /// Tokens of the relay a day.
    TokensPerDay,
    /// Costs of the relay a month, in millionths of a dollar.
    CostMicroUsdPerMonth,
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// What is limited.
    pub kind: QuotaKind,
    /// How much there is.
    pub limit: i64,
    /// How much is used up: more than there is, where the limit was lowered since.
    pub used: i64,
    /// When all of it is there again, if nothing is used.
    pub resets_at: Timestamp,
}

/// Counts a request of the caller's, at the price of `cost`; of more than the caller may ever make at once, of all that.
///
/// # Errors
/// `SERVICE_UNAVAILABLE` where Redis is away and nothing is to be done without it.
pub async fn take(services: &Services, actor: &Actor, address: IpAddr, cost: u32) -> Result<Answer> {
    let (subject, policies) = match actor {
        Actor::Anonymous => (Subject::Address(address), anonymous(&services.rates)),
        Actor::User(user) => of_signed_in(&services.rates, *user),
        Actor::System(_) => return Ok(Answer::unlimited()),
    };
    let most = policies.iter().map(|policy| policy.limit).min().unwrap_or(u32::MAX);
    let buckets = buckets(services, subject, policies);
    services.limits.take(&buckets, cost.min(most), WhileAway::AsSet).await.map_err(Error::unavailable)
}

fn buckets(services: &Services, subject: Subject<'_>, policies: Vec<Policy>) -> Vec<Bucket> {
    policies.into_iter().map(|policy| services.limits.bucket(subject, policy)).collect()
}

fn anonymous(rates: &Rates) -> Vec<Policy> {
    let per_minute = |limit| Policy { name: "anonymous", limit, window: MINUTE };
    rates.anonymous_per_minute.map(per_minute).into_iter().collect()
}

fn of_signed_in(rates: &Rates, user: SignedIn) -> (Subject<'static>, Vec<Policy>) {
    match user.by {
        SignedInBy::Session(_) => {
            let per_minute = |limit| Policy { name: "user", limit, window: MINUTE };
            (Subject::User(user.user), rates.user_per_minute.map(per_minute).into_iter().collect())
        }
        SignedInBy::ApiKey(id, own) => (Subject::ApiKey(id), of_key(rates, own)),
    }
}

fn of_key(rates: &Rates, own: ApiKeyRates) -> Vec<Policy> {
    let default = if own == ApiKeyRates::default() { rates.api_key_per_hour } else { None };
    let per_minute = |limit| Policy { name: "key-minute", limit, window: MINUTE };
    let per_hour = |limit| Policy { name: "key-hour", limit, window: HOUR };
    own.per_minute.map(per_minute).into_iter().chain(own.per_hour.or(default).map(per_hour)).collect()
}

/// What is left of the caller's limits.
///
/// # Errors
/// Where nobody is signed in, or what is left cannot be told.
pub async fn of_viewer(cx: Cx<'_>) -> Result<Vec<Window>> {
    if let Some(key) = api_key::of_viewer(cx).await? {
        return of_api_key(cx, &key).await;
    }
    let user = cx.actor.signed_in().ok_or_else(Error::unauthenticated)?;
    let (subject, policies) = of_signed_in(&cx.services.rates, user);
    windows(cx, subject, policies).await
}

/// What is left of an API key's limits.
///
/// # Errors
/// Where it cannot be told.
pub async fn of_api_key(cx: Cx<'_>, key: &ApiKey) -> Result<Vec<Window>> {
    let mut windows = windows(cx, Subject::ApiKey(key.id), of_key(&cx.services.rates, key.into())).await?;
    let limits = Limits::from(key);
    if limits.are_none() {
        return Ok(windows);
    }
    let level = cx.services.budgets.level(cx.services, key).await?;
    let now = cx.services.clock.now();
    let mut window = |kind, limit: Option<i64>, used, resets_at| {
        windows.extend(limit.map(|limit| Window { kind, limit, used, resets_at }));
    };
    window(QuotaKind::ConcurrentRequests, limits.requests, level.requests, now);
    window(QuotaKind::TokensPerDay, limits.tokens, level.tokens, UsageInterval::Day.end(now));
    let (cost, month_end) = (level.cost.rounded_up().micros(), UsageInterval::Month.end(now));
    window(QuotaKind::CostMicroUsdPerMonth, limits.cost.map(MicroUsd::micros), cost, month_end);
    Ok(windows)
}

async fn windows(cx: Cx<'_>, subject: Subject<'_>, policies: Vec<Policy>) -> Result<Vec<Window>> {
    let buckets = buckets(cx.services, subject, policies);
    let answer = cx.services.limits.take(&buckets, 0, WhileAway::AsSet).await.map_err(Error::unavailable)?;
    let now = cx.services.clock.now();
    Ok(answer.standings.iter().map(|standing| window(standing, now)).collect())
}

fn window(standing: &Standing, now: Timestamp) -> Window {
    let is_minute = standing.policy.window == MINUTE;
    Window {
        kind: if is_minute { QuotaKind::RequestsPerMinute } else { QuotaKind::RequestsPerHour },
        limit: standing.policy.limit.into(),
        used: (standing.policy.limit - standing.remaining()).into(),
        resets_at: now + TimeDelta::from_std(standing.empty()).unwrap_or_default(),
    }
}
