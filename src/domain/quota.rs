//! How many requests a caller may make: somebody without a sign-in by the address, a user, an API key by its own limits and its
//! owner's; on the relay by its own alone, or, where it has none, by one that its owner's keys share there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use chrono::TimeDelta;

use super::api_key;
use super::budget::{Level, Limits};
use super::context::{Cx, Services};
use super::error::{Error, Result};
use crate::identity::{Actor, ApiKeyRates, LookUps, SignedIn, SignedInBy};
use crate::limits::{Answer, Bucket, Policy, Standing, Subject, WhileAway};
use crate::model::{ApiKeyId, MicroUsd, Timestamp, UsageInterval};
use crate::settings::Settings;
use crate::store::api_key::ApiKey;

/// Of how many keys rate limits are looked at in one go: Redis does nothing else meanwhile.
const AT_ONCE: usize = 100;
/// The limit that the keys of an owner share on the relay.
const ON_RELAY: &str = "relay";
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
    /// How many organizations an address may register in an hour.
    pub(super) registrations_per_hour: u32,
}

impl From<&Settings> for Rates {
    fn from(settings: &Settings) -> Self {
        Self {
            anonymous_per_minute: settings.anonymous_rate_limit_per_minute,
            user_per_minute: settings.user_rate_limit_per_minute,
            api_key_per_hour: settings.default_rate_limit_per_hour,
            failed_sign_ins_per_hour: settings.failed_sign_ins_per_hour,
            registrations_per_hour: settings.registrations_per_hour,
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

/// Counts a request of the caller's, at the price of `cost`, of which `taken` was taken before; of more than the caller may ever make
/// at once, of all that.
///
/// # Errors
/// `SERVICE_UNAVAILABLE` where Redis is away and nothing is to be done without it.
pub async fn take(services: &Services, actor: &Actor, address: IpAddr, cost: u32, taken: u32) -> Result<Answer> {
    take_of(services, &buckets(services, actor, address), cost, taken).await
}

/// Counts a request of the relay: what programs send takes nothing of what their owner may ask otherwise, who has to be able to stop
/// them.
///
/// # Errors
/// As for [`take`].
pub async fn take_on_relay(services: &Services, actor: &Actor) -> Result<Answer> {
    let buckets = actor.signed_in().map(|caller| on_relay(services, caller)).unwrap_or_default();
    take_of(services, &buckets, 1, 0).await
}

/// Whether what refuses a request of the relay is the limit that the keys of an owner share.
#[must_use]
pub fn is_shared_on_relay(answer: &Answer) -> bool {
    answer.standings.iter().any(|standing| standing.policy.name == ON_RELAY && standing.remaining() == 0)
}

async fn take_of(services: &Services, buckets: &[Bucket], cost: u32, taken: u32) -> Result<Answer> {
    let most = buckets.iter().map(|bucket| bucket.policy().limit).min().unwrap_or(u32::MAX);
    let cost = cost.min(most).saturating_sub(taken);
    services.limits.take(buckets, cost, WhileAway::AsSet).await.map_err(Error::unavailable)
}

/// Takes back that one was counted.
pub async fn give_back(services: &Services, actor: &Actor, address: IpAddr) {
    services.limits.give_back(&buckets(services, actor, address)).await;
}

fn buckets(services: &Services, actor: &Actor, address: IpAddr) -> Vec<Bucket> {
    match actor {
        Actor::Anonymous => {
            let policy = per_minute("anonymous", services.rates.anonymous_per_minute);
            policy.map(|policy| services.limits.buckets_of(address, policy)).unwrap_or_default()
        }
        Actor::User(user) => of_signed_in(services, *user),
        Actor::System(_) => Vec::new(),
    }
}

/// What API keys are counted in that are looked up, until they are found: there is no other price for trying some.
#[must_use]
pub fn look_ups(services: &Services, address: IpAddr) -> LookUps<'_> {
    let policy = per_minute("api-key", services.rates.anonymous_per_minute);
    LookUps { limits: &services.limits, address, policy }
}

fn per_minute(name: &'static str, limit: Option<u32>) -> Option<Policy> {
    limit.map(|limit| Policy { name, limit, window: MINUTE })
}

/// An API key counts for its owner too, or more of them would be more than the owner may ask.
fn of_signed_in(services: &Services, caller: SignedIn) -> Vec<Bucket> {
    let own = match caller.by {
        SignedInBy::Session(_) => Vec::new(),
        SignedInBy::ApiKey(id, own) => of_key(services, id, own),
    };
    let of_user = per_minute("user", services.rates.user_per_minute);
    let of_user = of_user.map(|policy| services.limits.bucket(Subject::User(caller.user), policy));
    own.into_iter().chain(of_user).collect()
}

/// The key's own, which are for what it may take of the relay. One that has none shares a limit with its owner's others, or more of
/// them would be more than one may take.
fn on_relay(services: &Services, caller: SignedIn) -> Vec<Bucket> {
    let SignedInBy::ApiKey(id, own) = caller.by else { return of_signed_in(services, caller) };
    let shared = per_minute(ON_RELAY, services.rates.user_per_minute).filter(|_| own == ApiKeyRates::default());
    let shared = shared.map(|policy| services.limits.bucket(Subject::User(caller.user), policy));
    of_key(services, id, own).into_iter().chain(shared).collect()
}

fn of_key(services: &Services, id: ApiKeyId, own: ApiKeyRates) -> Vec<Bucket> {
    let default = if own == ApiKeyRates::default() { services.rates.api_key_per_hour } else { None };
    let per_hour = own.per_hour.or(default).map(|limit| Policy { name: "key-hour", limit, window: HOUR });
    let policies = per_minute("key-minute", own.per_minute).into_iter().chain(per_hour);
    policies.map(|policy| services.limits.bucket(Subject::ApiKey(id), policy)).collect()
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
    windows(cx, &of_signed_in(cx.services, user)).await
}

/// What is left of an API key's limits.
///
/// # Errors
/// Where it cannot be told.
pub async fn of_api_key(cx: Cx<'_>, key: &ApiKey) -> Result<Vec<Window>> {
    Ok(of_api_keys(cx, &[key]).await?.pop().unwrap_or_default())
}

/// What is left of the limits of several API keys of one organization, read together: of each in its place, since there may be several
/// versions of one.
///
/// # Errors
/// Where it cannot be told.
pub async fn of_api_keys(cx: Cx<'_>, keys: &[&ApiKey]) -> Result<Vec<Vec<Window>>> {
    let limited: Vec<&ApiKey> = keys.iter().copied().filter(|key| !Limits::from(*key).are_none()).collect();
    let levels = match limited.first() {
        Some(first) => cx.services.budgets.levels(cx.services, first.organization_id, &limited).await?,
        None => HashMap::new(),
    };
    let now = cx.services.clock.now();
    let mut found = Vec::with_capacity(keys.len());
    for part in keys.chunks(AT_ONCE) {
        let buckets: Vec<Vec<Bucket>> = part.iter().map(|key| of_key(cx.services, key.id, (*key).into())).collect();
        // Of all of them, or of none, where Redis is away.
        let mut rates = windows(cx, &buckets.concat()).await?.into_iter();
        for (key, buckets) in part.iter().zip(buckets) {
            let mut windows: Vec<Window> = rates.by_ref().take(buckets.len()).collect();
            if let Some(level) = levels.get(&key.id) {
                windows.extend(of_budget(&Limits::from(*key), level, now));
            }
            found.push(windows);
        }
    }
    Ok(found)
}

fn of_budget(limits: &Limits, level: &Level, now: Timestamp) -> impl Iterator<Item = Window> {
    let window = |kind, limit: Option<i64>, used, resets_at| limit.map(|limit| Window { kind, limit, used, resets_at });
    let (day, month) = (UsageInterval::Day.end(now), UsageInterval::Month.end(now));
    let cost = level.cost.rounded_up().micros();
    [
        window(QuotaKind::ConcurrentRequests, limits.requests, level.requests, now),
        window(QuotaKind::TokensPerDay, limits.tokens, level.tokens, day),
        window(QuotaKind::CostMicroUsdPerMonth, limits.cost.map(MicroUsd::micros), cost, month),
    ]
    .into_iter()
    .flatten()
}

async fn windows(cx: Cx<'_>, buckets: &[Bucket]) -> Result<Vec<Window>> {
    let answer = cx.services.limits.take(buckets, 0, WhileAway::AsSet).await.map_err(Error::unavailable)?;
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
