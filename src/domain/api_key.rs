//! API keys: programs act with them in their owners' names, and never get more than who made them has.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::json;

use super::attempts::{Attempt, Guess};
use super::client;
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, FieldError, Result};
use super::quota::{self, Window};
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::crypto::{Purpose, RawApiKey, SecretText};
use crate::identity::{NoPermit, SignedIn, SignedInBy};
use crate::model::{
    AllowedIps, AllowedModels, ApiKeyId, ApiKeyScope, ApiKeyScopes, ApiKeyStatus, ApiKeyVerificationCode, AuditAction,
    ClientId, Denied, Direction, Grant, ManageApiKeys, ManageOwnApiKeys, MicroUsd, Page, PageSlice, Permission, Read,
    ResourceType, Role, Timestamp, UserId, UserStatus,
};
use crate::store::Tx;
use crate::store::api_key::{self as keys, ApiKey, ApiKeyFilter, ApiKeyOrder, FoundApiKey, NewDigest, Whose};
use crate::store::user as users;

const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=100;
const DESCRIPTION_LENGTH: usize = 1_000;
const LIFETIME_DAYS: std::ops::RangeInclusive<i32> = 1..=365;
const GRACE_HOURS: std::ops::RangeInclusive<i32> = 0..=168;
/// More than one server answers in each of these spans.
const MOST_PER_MINUTE: i64 = 1_000_000;
const MOST_PER_HOUR: i64 = 60_000_000;
const MOST_AT_ONCE: i64 = 10_000;
/// What the API can tell without rounding.
const MOST_TOKENS: i64 = (1 << 53) - 1;
const MOST_COST: MicroUsd = MicroUsd::from_usd(1_000_000_000);

/// A raw key that can be used.
pub struct Verified {
    /// The key.
    pub found: Arc<FoundApiKey>,
    /// What is left of its limits.
    pub quota: Vec<Window>,
}

/// The input of [`create`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Create {
    pub name: String,
    pub description: Option<String>,
    pub owner_id: Option<String>,
    pub client_id: Option<String>,
    pub scopes: Option<Vec<ApiKeyScope>>,
    pub expires_in_days: Option<i32>,
    pub allowed_ips: Option<Vec<String>>,
    pub allowed_models: Option<Vec<String>>,
    pub rate_limit_per_minute: Option<i32>,
    pub rate_limit_per_hour: Option<i32>,
    pub concurrency_limit: Option<i32>,
    pub token_limit_per_day: Option<i64>,
    pub cost_limit_usd_per_month: Option<String>,
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub name: Patch<String>,
    pub description: Patch<String>,
    pub scopes: Patch<Vec<ApiKeyScope>>,
    pub expires_at: Patch<Timestamp>,
    pub allowed_ips: Patch<Vec<String>>,
    pub allowed_models: Patch<Vec<String>>,
    pub rate_limit_per_minute: Patch<i32>,
    pub rate_limit_per_hour: Patch<i32>,
    pub concurrency_limit: Patch<i32>,
    pub token_limit_per_day: Patch<i64>,
    pub cost_limit_usd_per_month: Patch<String>,
    pub expected_version: Option<i32>,
}

impl Recorded for ApiKey {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        let time = |time: Option<Timestamp>| Field::plain(time.map(|time| time.to_utc().to_rfc3339()));
        vec![
            ("name", Field::plain(self.name.as_str())),
            ("description", Field::plain(self.description.as_deref())),
            ("ownerId", Field::plain(self.owner_id.to_string())),
            ("clientId", Field::plain(self.client_id.map(|id| id.to_string()))),
            ("keyPrefix", Field::plain(self.key_prefix.as_str())),
            ("scopes", Field::plain(self.scopes.iter().map(ApiKeyScope::as_str).collect::<Vec<_>>())),
            ("allowedIps", Field::plain(self.allowed_ips.iter().collect::<Vec<_>>())),
            ("allowedModels", Field::plain(self.allowed_models.iter().collect::<Vec<_>>())),
            ("rateLimitPerMinute", Field::plain(self.rate_limit_per_minute)),
            ("rateLimitPerHour", Field::plain(self.rate_limit_per_hour)),
            ("concurrencyLimit", Field::plain(self.concurrency_limit)),
            ("tokenLimitPerDay", Field::plain(self.token_limit_per_day)),
            ("costLimitUsdPerMonth", Field::plain(cost_limit(self).map(|limit| limit.to_string()))),
            ("expiresAt", time(self.expires_at)),
            ("revokedAt", time(self.revoked_at)),
            ("issuedWith", Field::plain(self.issued_with.map(Role::as_str))),
        ]
    }
}

/// What a key may cost a month.
#[must_use]
pub fn cost_limit(key: &ApiKey) -> Option<MicroUsd> {
    key.cost_limit_micro_usd_per_month.map(MicroUsd::from_micros)
}

/// Whose keys the caller may use `G` on: everybody's with `MANAGE_API_KEYS`, else the caller's own.
fn whose<G: Grant>(cx: Cx<'_>) -> Result<Whose<G>> {
    let permit = cx.actor.require::<G>()?;
    match (cx.actor.require::<ManageApiKeys>(), cx.actor.signed_in()) {
        (Ok(all), _) => Ok(Whose::Everybodys(all)),
        (Err(_), Some(user)) => Ok(Whose::Own(permit, user.user)),
        (Err(denied), None) => Err(denied.into()),
    }
}

/// A page of the organization's keys, or of the caller's own.
///
/// # Errors
/// Where nobody is signed in, or with a cursor of another list.
pub async fn page(
    cx: Cx<'_>,
    filter: &ApiKeyFilter,
    order: (ApiKeyOrder, Direction),
    page: &Page,
) -> Result<PageSlice<ApiKey>> {
    let whose = whose::<Read>(cx)?;
    check_search(filter.search.as_deref())?;
    let is_filtered = whose.owner().is_some() || *filter != ApiKeyFilter::default();
    let mut conn = cx.services.db.list(page, is_filtered).await?;
    Ok(keys::page(&mut conn, &whose, filter, order, page).await?)
}

/// The same page of the keys for each of the clients, newest first.
///
/// # Errors
/// As for [`page`].
pub async fn pages_by_client(
    cx: Cx<'_>,
    clients: &[ClientId],
    page: &Page,
) -> Result<HashMap<ClientId, PageSlice<ApiKey>>> {
    Ok(keys::pages_by_client(&mut cx.services.db.scan().await?, &whose::<Read>(cx)?, clients, page).await?)
}

/// The same page of the keys of each of the owners, newest first.
///
/// # Errors
/// As for [`page`].
pub async fn pages_by_owner(cx: Cx<'_>, owners: &[UserId], page: &Page) -> Result<HashMap<UserId, PageSlice<ApiKey>>> {
    Ok(keys::pages_by_owner(&mut cx.services.db.scan().await?, &whose::<Read>(cx)?, owners, page).await?)
}

/// Whether the caller may see the keys of this user.
///
/// # Errors
/// Where it may not.
pub fn check_visible(cx: Cx<'_>, owner: UserId) -> Result<()> {
    match whose::<Read>(cx)?.owner() {
        Some(own) if own != owner => Err(Denied::Permission(Permission::ManageApiKeys).into()),
        _ => Ok(()),
    }
}

/// How many of the organization's keys, or of the caller's own, pass the filter.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count(cx: Cx<'_>, filter: &ApiKeyFilter) -> Result<i64> {
    Ok(keys::count(&mut cx.services.db.scan().await?, &whose::<Read>(cx)?, filter).await?)
}

/// How many keys for each of the clients pass the filter; a client without any is left out.
///
/// # Errors
/// Where nobody is signed in.
pub async fn counts_by_client(
    cx: Cx<'_>,
    clients: &[ClientId],
    filter: &ApiKeyFilter,
) -> Result<HashMap<ClientId, i64>> {
    Ok(keys::counts_by_client(&mut cx.services.db.scan().await?, &whose::<Read>(cx)?, clients, filter).await?)
}

/// How many keys of each of the owners pass the filter; an owner without any is left out.
///
/// # Errors
/// Where nobody is signed in.
pub async fn counts_by_owner(cx: Cx<'_>, owners: &[UserId], filter: &ApiKeyFilter) -> Result<HashMap<UserId, i64>> {
    Ok(keys::counts_by_owner(&mut cx.services.db.scan().await?, &whose::<Read>(cx)?, owners, filter).await?)
}

/// The keys among `ids` that the caller may see, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[ApiKeyId]) -> Result<Vec<ApiKey>> {
    Ok(keys::find_many(&mut cx.services.db.read().await?, &whose::<Read>(cx)?, ids).await?)
}

/// The key that the caller is known by, if it is one.
///
/// # Errors
/// Where nobody is signed in.
pub async fn of_viewer(cx: Cx<'_>) -> Result<Option<ApiKey>> {
    let permit = cx.actor.introspect()?;
    let Some(SignedIn { user, by: SignedInBy::ApiKey(id, _), .. }) = cx.actor.signed_in() else { return Ok(None) };
    let mut conn = cx.services.db.read().await?;
    Ok(keys::find_many(&mut conn, &Whose::Own(permit, user), &[id]).await?.pop())
}

/// What a raw key is good for, and where it is valid the key and what is left of its limits; whoever has it may ask. That is no use
/// of the key.
///
/// # Errors
/// Where the database fails, or too many keys were asked for that are none.
pub async fn verify(cx: Cx<'_>, raw: SecretText) -> Result<(ApiKeyVerificationCode, Option<Verified>)> {
    let attempt = Attempt::begin(cx, Guess::ApiKey).await?;
    let verified = cx.in_time(cx.services.authenticator.verify_api_key(raw, cx.origin.ip_address)).await;
    let verified = verified.and_then(|verified| Ok(verified?));
    // What has not the form of a key was not looked up: it is no guess.
    if !matches!(verified, Ok((ApiKeyVerificationCode::NotFound, _))) {
        attempt.end(&verified).await;
    }
    let (code, found) = verified?;
    let Some(found) = found else { return Ok((code, None)) };
    let quota = quota::of_api_key(cx, &found.key).await?;
    if quota.iter().any(|window| window.used >= window.limit) {
        return Ok((ApiKeyVerificationCode::RateLimited, None));
    }
    Ok((code, Some(Verified { found, quota })))
}

/// Makes a key. The raw key is told once, here.
///
/// # Errors
/// Without permission, with wrong input, where the client is archived, or where the key would get more than the caller has.
pub async fn create(cx: Cx<'_>, input: Create) -> Result<(ApiKey, SecretText)> {
    let caller = caller(cx)?;
    let whose = whose::<ManageOwnApiKeys>(cx)?;
    let now = cx.services.clock.now();
    let mut checks = Checks::new();
    let name = checks.line("name", &input.name, NAME_LENGTH);
    let description = input.description.and_then(|text| checks.text("description", &text, DESCRIPTION_LENGTH));
    let owner_id = input.owner_id.map_or(Some(caller.user), |id| checks.id("ownerId", &id));
    let client_id = input.client_id.and_then(|id| checks.id("clientId", &id));
    let scopes = input
        .scopes
        .map_or(Some(ApiKeyScopes::from_iter([ApiKeyScope::Relay])), |scopes| check_scopes(&mut checks, scopes));
    let days = input.expires_in_days.and_then(|days| checks.within("expiresInDays", days, &LIFETIME_DAYS));
    let allowed_ips = input.allowed_ips.and_then(|texts| checks.noting("allowedIps", AllowedIps::parse(&texts)));
    let allowed_models =
        input.allowed_models.and_then(|texts| checks.noting("allowedModels", AllowedModels::parse(&texts)));
    let rate_limit_per_minute = input.rate_limit_per_minute.and_then(|most| per_minute(&mut checks, most));
    let rate_limit_per_hour = input.rate_limit_per_hour.and_then(|most| per_hour(&mut checks, most));
    let concurrency_limit = input.concurrency_limit.and_then(|most| at_once(&mut checks, most));
    let token_limit_per_day = input.token_limit_per_day.and_then(|most| tokens(&mut checks, most));
    let cost_limit = input.cost_limit_usd_per_month.and_then(|most| cost(&mut checks, &most));
    checks.finish()?;
    // They were checked: nothing was found wrong.
    let (Some(name), Some(owner_id), Some(scopes)) = (name, owner_id, scopes) else {
        return Err(Error::internal("a failed check was not noted"));
    };
    // For another user or for a client.
    if client_id.is_some() || whose.owner().is_some_and(|own| own != owner_id) {
        cx.actor.require::<ManageApiKeys>()?;
    }
    let raw = RawApiKey::generate(&cx.services.random);
    let key = ApiKey {
        id: cx.services.new_id(),
        organization_id: caller.access.organization(),
        owner_id,
        client_id,
        name,
        description,
        key_prefix: raw.prefix().to_owned(),
        scopes,
        issued_with: issued_with(&caller, owner_id),
        allowed_ips: allowed_ips.unwrap_or_default(),
        allowed_models: allowed_models.unwrap_or_default(),
        rate_limit_per_minute,
        rate_limit_per_hour,
        concurrency_limit,
        token_limit_per_day,
        cost_limit_micro_usd_per_month: cost_limit,
        expires_at: days.map(|days| now + TimeDelta::days(days.into())),
        revoked_at: None,
        last_used_at: None,
        last_used_ip: None,
        created_by: Some(caller.user),
        created_at: now,
        updated_at: now,
        version: 1,
    };
    audited(cx, async |tx| {
        if let Some(client) = client_id {
            client::lock_open(tx, &cx.actor.require::<Read>()?, client).await?;
        }
        lock_owner(cx, tx, &caller, owner_id).await?;
        check_bounds(tx, &whose, &caller, &key, now).await?;
        keys::insert(tx, &whose, &key, &digest(cx, key.id, &raw)).await?;
        let changes = Changes::created(&key);
        let entry = Entry::new(AuditAction::Create, ResourceType::ApiKey).on(&key.id).with(changes);
        Ok(((key, raw.text().clone()), entry))
    })
    .await
}

/// Changes a key that is not revoked; what the input leaves out stays.
///
/// # Errors
/// Without permission, with wrong input, where there is no such key, where it is not at the expected version, where it would
/// get more than the caller has, or where it would live again though it cannot be found any more.
pub async fn update(cx: Cx<'_>, id: ApiKeyId, input: Update) -> Result<ApiKey> {
    let caller = caller(cx)?;
    let key = change(cx, id, AuditAction::Update, async |tx, whose, key| {
        if input.expected_version.is_some_and(|version| version != key.version) {
            return Err(Error::conflict("The API key is not at the expected version. Read it again."));
        }
        let (before, now) = (key.clone(), cx.services.clock.now());
        apply(key, input, now)?;
        let lives_again = before.status(now) == ApiKeyStatus::Expired && key.status(now) == ApiKeyStatus::Active;
        if lives_again && !is_findable(cx, tx, id).await? {
            return Err(Error::conflict(
                "The encryption key that the API key was kept under is gone: regenerate it first.",
            ));
        }
        if is_other_reach(&before, key) {
            check_bounds(tx, whose, &caller, key, now).await?;
        }
        Ok(None)
    })
    .await?;
    Ok(key)
}

fn apply(key: &mut ApiKey, input: Update, now: Timestamp) -> Result<()> {
    let mut checks = Checks::new();
    let name = std::mem::take(&mut key.name);
    key.name = checks.required("name", input.name, name, |checks, text| checks.line("name", &text, NAME_LENGTH));
    key.description =
        input.description.or_keep(key.description.take(), |text| checks.text("description", &text, DESCRIPTION_LENGTH));
    key.scopes = checks.required("scopes", input.scopes, key.scopes, check_scopes);
    key.expires_at = input.expires_at.or_keep(key.expires_at, |time| {
        let last = now + TimeDelta::days((*LIFETIME_DAYS.end()).into());
        if time <= now || time > last {
            checks.fail("expiresAt", format!("must be in the next {} days", LIFETIME_DAYS.end()));
        }
        Some(time)
    });
    let ips = std::mem::take(&mut key.allowed_ips);
    key.allowed_ips = checks.required("allowedIps", input.allowed_ips, ips, |checks, texts| {
        checks.noting("allowedIps", AllowedIps::parse(&texts))
    });
    let models = std::mem::take(&mut key.allowed_models);
    key.allowed_models = checks.required("allowedModels", input.allowed_models, models, |checks, texts| {
        checks.noting("allowedModels", AllowedModels::parse(&texts))
    });
    key.rate_limit_per_minute =
        input.rate_limit_per_minute.or_keep(key.rate_limit_per_minute, |most| per_minute(&mut checks, most));
    key.rate_limit_per_hour =
        input.rate_limit_per_hour.or_keep(key.rate_limit_per_hour, |most| per_hour(&mut checks, most));
    key.concurrency_limit = input.concurrency_limit.or_keep(key.concurrency_limit, |most| at_once(&mut checks, most));
    key.token_limit_per_day =
        input.token_limit_per_day.or_keep(key.token_limit_per_day, |most| tokens(&mut checks, most));
    key.cost_limit_micro_usd_per_month =
        input.cost_limit_usd_per_month.or_keep(key.cost_limit_micro_usd_per_month, |most| cost(&mut checks, &most));
    checks.finish()
}

/// Gives a key that is not revoked another raw key, told once, here. The one before it serves for `grace` more hours, but not
/// beyond the key's own end.
///
/// # Errors
/// Without permission, with wrong input, where there is no such key, where it has more than the caller, or where it has expired;
/// but one that cannot be found any more needs another raw key before it can live again.
pub async fn regenerate(cx: Cx<'_>, id: ApiKeyId, grace: i32) -> Result<(ApiKey, SecretText)> {
    let caller = caller(cx)?;
    let mut checks = Checks::new();
    checks.within("gracePeriodHours", grace, &GRACE_HOURS);
    checks.finish()?;
    let raw = RawApiKey::generate(&cx.services.random);
    let key = change(cx, id, AuditAction::Regenerate, async |tx, whose, key| {
        let now = cx.services.clock.now();
        if key.status(now) == ApiKeyStatus::Expired && is_findable(cx, tx, id).await? {
            return Err(Error::conflict("The API key has expired. Set another expiresAt first."));
        }
        check_bounds(tx, whose, &caller, key, now).await?;
        let end = now + TimeDelta::hours(grace.into());
        let until = (grace > 0).then(|| key.expires_at.map_or(end, |expires| expires.min(end)));
        keys::replace_digest(tx, &digest(cx, id, &raw), until).await?;
        raw.prefix().clone_into(&mut key.key_prefix);
        // What bounds the raw key before it bounds the key for as long as that one serves, and until it is regenerated again.
        let bounds = [issued_with(&caller, key.owner_id), key.issued_with.filter(|_| until.is_some())];
        key.issued_with = bounds.into_iter().flatten().reduce(Role::at_most);
        Ok(Some(json!({ "gracePeriodHours": grace })))
    })
    .await?;
    Ok((key, raw.text().clone()))
}

/// Ends a key for good.
///
/// # Errors
/// Without permission, or where there is no such key that is not revoked yet.
pub async fn revoke(cx: Cx<'_>, id: ApiKeyId) -> Result<ApiKey> {
    change(cx, id, AuditAction::Revoke, async |_, _, key| {
        key.revoked_at = Some(cx.services.clock.now());
        Ok(None)
    })
    .await
}

/// Whether the ring has each key that a raw key of this API key is found by. Without it the raw key opens nothing; and were the
/// API key alive, no server would start.
async fn is_findable(cx: Cx<'_>, tx: &mut Tx, id: ApiKeyId) -> Result<bool> {
    let versions = keys::key_versions(tx, id, cx.services.clock.now()).await?;
    Ok(versions.iter().all(|version| cx.services.keys.has(version)))
}

/// Changes a locked key that is not revoked, and writes it, unless nothing has changed.
async fn change(
    cx: Cx<'_>,
    id: ApiKeyId,
    action: AuditAction,
    apply: impl AsyncFnOnce(&mut Tx, &Whose<ManageOwnApiKeys>, &mut ApiKey) -> Result<Option<serde_json::Value>>,
) -> Result<ApiKey> {
    let whose = whose::<ManageOwnApiKeys>(cx)?;
    audited(cx, async |tx| {
        let found = |key: Option<ApiKey>| {
            let key = key.filter(|key| key.revoked_at.is_none());
            key.ok_or_else(|| Error::not_found("API key that is not revoked"))
        };
        // To end a key needs nobody's role. The owner, who never changes, is locked before the key, as where a user is deleted.
        if action != AuditAction::Revoke {
            let key = found(keys::find_many(tx.conn().await?, &whose, &[id]).await?.pop())?;
            lock_owner(cx, tx, &caller(cx)?, key.owner_id).await?;
        }
        let before = found(keys::lock(tx, &whose, id).await?)?;
        let mut key = before.clone();
        let metadata = apply(tx, &whose, &mut key).await?;
        let changes = Changes::between(&before, &key);
        if !changes.is_empty() {
            key.version += 1;
            key.updated_at = cx.services.clock.now();
            keys::update(tx, &whose, &key).await?;
        }
        let mut entry = Entry::new(action, ResourceType::ApiKey).on(&id).with(changes);
        if action != AuditAction::Update || is_other_reach(&before, &key) {
            entry = entry.changing_access();
        }
        entry.metadata = metadata;
        Ok((key, entry))
    })
    .await
}

/// Who makes or changes a key: a key that is nobody's deed would have no bounds.
fn caller(cx: Cx<'_>) -> Result<SignedIn> {
    Ok(cx.actor.signed_in().ok_or(NoPermit::Anonymous)?)
}

/// The role that bounds a key which somebody else than its owner has seen, or a key of the owner's: should the owner get more
/// rights later, that one does not get them, too.
fn issued_with(caller: &SignedIn, owner: UserId) -> Option<Role> {
    let is_owners = caller.user == owner && caller.api_key().is_none();
    (!is_owners).then(|| caller.access.role())
}

/// A key acts with its owner's role: that must not be more than the caller's, as both are now. What the request was judged by
/// may be some seconds old, and a key lasts. Both stay as they are to the end of the transaction: the keys of an owner who is
/// deleted meanwhile would not be revoked.
async fn lock_owner(cx: Cx<'_>, tx: &mut Tx, caller: &SignedIn, owner: UserId) -> Result<()> {
    let permit = cx.actor.require::<Read>()?;
    let both = users::lock_many(tx, &permit, &[caller.user, owner]).await?;
    let find = |id: UserId| both.iter().find(|user| user.id == id);
    let is_as_judged = find(caller.user)
        .is_some_and(|now| now.status == UserStatus::Active && now.role.includes(caller.access.role()));
    if !is_as_judged {
        return Err(Error::unauthenticated());
    }
    let Some(owner) = find(owner) else {
        let message = "is not the id of a user of the organization".into();
        return Err(Error::bad_input(vec![FieldError { path: vec!["input", "ownerId"], message }]));
    };
    if caller.access.role().includes(owner.role) {
        Ok(())
    } else {
        Err(Error::forbidden("The key acts with its owner's role, which may do more than yours."))
    }
}

/// Whether the key reaches other things than before, or is bounded otherwise.
fn is_other_reach(before: &ApiKey, after: &ApiKey) -> bool {
    let reach =
        |key: &ApiKey| (key.scopes, key.expires_at, key.allowed_ips.clone(), key.allowed_models.clone(), limits(key));
    reach(before) != reach(after)
}

fn limits(key: &ApiKey) -> [Option<i64>; 5] {
    [
        key.rate_limit_per_minute.map(i64::from),
        key.rate_limit_per_hour.map(i64::from),
        key.concurrency_limit.map(i64::from),
        key.token_limit_per_day,
        key.cost_limit_micro_usd_per_month,
    ]
}

/// A key that a key makes, widens or regenerates has no more than that one. Limits count for each key by itself: with another
/// key for the relay, a key that has limits would have them twice.
async fn check_bounds(
    tx: &mut Tx,
    whose: &Whose<ManageOwnApiKeys>,
    caller: &SignedIn,
    key: &ApiKey,
    now: Timestamp,
) -> Result<()> {
    let Some(id) = caller.api_key() else { return Ok(()) };
    // As it is now: it may have ended since the request was let in.
    let own = keys::find_many(tx.conn().await?, whose, &[id]).await?.pop();
    let own = own.filter(|own| own.status(now) == ApiKeyStatus::Active).ok_or_else(Error::unauthenticated)?;
    let ends_in_time = own.expires_at.is_none_or(|last| key.expires_at.is_some_and(|expires| expires <= last));
    let is_limited = limits(&own)
        .iter()
        .zip(limits(key))
        .all(|(most, limit)| most.is_none_or(|most| limit.is_some_and(|limit| limit <= most)));
    let is_limited_alone =
        own.id != key.id && key.scopes.has(ApiKeyScope::Relay) && limits(&own).iter().any(Option::is_some);
    if is_limited_alone {
        return Err(Error::forbidden("The key that you use has limits: it can give no other key the scope RELAY."));
    }
    let exceeded = [
        ("scopes", own.scopes.include(key.scopes)),
        ("expiry", ends_in_time),
        ("allowedIps", own.allowed_ips.include(&key.allowed_ips)),
        ("allowedModels", own.allowed_models.include(&key.allowed_models)),
        ("limits", is_limited),
    ];
    match exceeded.iter().find(|(_, is_within)| !is_within) {
        None => Ok(()),
        Some((what, _)) => {
            Err(Error::forbidden(format!("By its {what}, the key would have more than the key that you use.")))
        }
    }
}

fn digest(cx: Cx<'_>, id: ApiKeyId, raw: &RawApiKey) -> NewDigest {
    let keys = &cx.services.keys;
    NewDigest {
        digest: keys.digest(Purpose::ApiKey, raw.text().expose().as_bytes()).as_bytes().to_vec(),
        api_key_id: id,
        key_version: keys.newest_version().to_owned(),
    }
}

fn check_scopes(checks: &mut Checks, scopes: Vec<ApiKeyScope>) -> Option<ApiKeyScopes> {
    if scopes.is_empty() {
        checks.fail("scopes", "must have at least one member");
        return None;
    }
    Some(scopes.into_iter().collect())
}

fn per_minute(checks: &mut Checks, most: i32) -> Option<i32> {
    checks.within("rateLimitPerMinute", most, &(1..=MOST_PER_MINUTE))
}

fn per_hour(checks: &mut Checks, most: i32) -> Option<i32> {
    checks.within("rateLimitPerHour", most, &(1..=MOST_PER_HOUR))
}

fn at_once(checks: &mut Checks, most: i32) -> Option<i32> {
    checks.within("concurrencyLimit", most, &(1..=MOST_AT_ONCE))
}

fn tokens(checks: &mut Checks, most: i64) -> Option<i64> {
    checks.within("tokenLimitPerDay", most, &(1..=MOST_TOKENS))
}

fn cost(checks: &mut Checks, most: &str) -> Option<i64> {
    const FIELD: &str = "costLimitUsdPerMonth";
    let most: MicroUsd = checks.noting(FIELD, most.parse())?;
    if most.micros() < 1 || most > MOST_COST {
        checks.fail(FIELD, format!("must be greater than 0 and at most {MOST_COST}"));
    }
    Some(most.micros())
}
