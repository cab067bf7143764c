//! Claude accounts: the upstream API keys that the relay works with.

use chrono::{Datelike, Months, NaiveTime, TimeDelta};
use serde_json::{Value, json};

use super::account_notices;
use super::context::{Cx, Record, Services};
use super::deed::audited;
use super::error::{Code, Error, Result};
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Origin, Recorded};
use crate::crypto::{Aad, KeyRing, Purpose, Sealed, SecretText};
use crate::identity::Actor;
use crate::model::{
    AuditAction, ClaudeAccountHealthState, ClaudeAccountId, ClaudeAccountStatus, ClaudeTier, Direction, Email,
    LimitLevel, ManageClaudeAccounts, OrganizationId, Page, PageSlice, Permit, ResourceType, Timestamp,
};
use crate::store::Tx;
use crate::store::audit_log::next_account_change;
use crate::store::claude_account::{self as accounts, ClaudeAccount, ClaudeAccountFilter, ClaudeAccountOrder};
use crate::upstream::Probe;

const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=100;
const ORGANIZATION_LENGTH: std::ops::RangeInclusive<usize> = 1..=100;
/// Longer than any key that an upstream issues.
const KEY_LENGTH: usize = 500;
const TAKEN: &str = "Another account of the organization has this API key.";

/// The input of [`create`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Create {
    pub api_key: SecretText,
    pub account_name: String,
    pub email: Option<String>,
    pub organization: Option<String>,
    pub status: Option<ClaudeAccountStatus>,
    pub tier: Option<ClaudeTier>,
    pub usage_limit: Option<i64>,
    pub base_url: Option<String>,
    pub priority: Option<i32>,
    pub features: Option<Value>,
    pub metadata: Option<Value>,
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub account_name: Patch<String>,
    pub email: Patch<String>,
    pub organization: Patch<String>,
    pub status: Patch<ClaudeAccountStatus>,
    pub tier: Patch<ClaudeTier>,
    pub usage_limit: Patch<i64>,
    pub base_url: Patch<String>,
    pub priority: Patch<i32>,
    pub features: Patch<Value>,
    pub metadata: Patch<Value>,
    pub expected_version: Option<i32>,
}

/// What an account asks with and whom: with another key, or at another upstream, what is known of its health is not its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    api_key_version: i32,
    base_url: Option<String>,
}

impl Target {
    /// That of an account.
    #[must_use]
    pub fn of(account: &ClaudeAccount) -> Self {
        Self { api_key_version: account.api_key_version, base_url: account.base_url.clone() }
    }
}

impl Recorded for ClaudeAccount {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        let object =
            |object: &Option<crate::model::JsonObject>| object.as_ref().map(crate::model::JsonObject::to_value);
        vec![
            ("accountName", Field::plain(self.account_name.as_str())),
            ("email", Field::plain(self.email.as_ref().map(Email::as_str))),
            ("organization", Field::plain(self.organization.as_deref())),
            ("status", Field::plain(self.status.as_str())),
            ("tier", Field::plain(self.tier.as_str())),
            ("apiKey", Field::Secret(self.api_key_fingerprint.clone())),
            ("usageLimit", Field::plain(self.usage_limit)),
            ("currentUsage", Field::plain(self.current_usage)),
            ("isNearLimit", Field::plain(self.is_near_limit)),
            ("usageResetsAt", Field::plain(self.usage_resets_at.to_utc().to_rfc3339())),
            ("baseUrl", Field::plain(self.base_url.as_deref())),
            ("priority", Field::plain(self.priority)),
            ("health", Field::plain(self.health_state.as_str())),
            ("healthUntil", Field::plain(self.health_until.map(Timestamp::to_text))),
            ("features", Field::plain(object(&self.features))),
            ("metadata", Field::plain(object(&self.metadata))),
        ]
    }
}

/// A page of the organization's accounts.
///
/// # Errors
/// Without permission, with a cursor of another list, or with more text to search for than is taken.
pub async fn page(
    cx: Cx<'_>,
    filter: &ClaudeAccountFilter,
    order: (ClaudeAccountOrder, Direction),
    page: &Page,
) -> Result<PageSlice<ClaudeAccount>> {
    let permit = cx.actor.require()?;
    check_search(filter.search.as_deref())?;
    let mut conn = cx.services.db.list(page, *filter != ClaudeAccountFilter::default()).await?;
    Ok(accounts::page(&mut conn, &permit, filter, order, page).await?)
}

/// How many of the organization's accounts pass the filter.
///
/// # Errors
/// Without permission.
pub async fn count(cx: Cx<'_>, filter: &ClaudeAccountFilter) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(accounts::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// One account, for showing it: that it was looked at stands in the audit log before it is shown.
///
/// # Errors
/// Without permission, or where the entry cannot be written.
pub async fn view(cx: Cx<'_>, id: ClaudeAccountId) -> Result<Option<ClaudeAccount>> {
    let Some(account) = find(cx, id).await? else { return Ok(None) };
    audited(cx, async |_| Ok(((), Entry::new(AuditAction::View, ResourceType::ClaudeAccount).on(&id)))).await?;
    Ok(Some(account))
}

/// The accounts among `ids` that belong to the caller's organization, in no order: what other records refer to.
///
/// # Errors
/// Without permission.
pub async fn find_many(cx: Cx<'_>, ids: &[ClaudeAccountId]) -> Result<Vec<ClaudeAccount>> {
    let permit = cx.actor.require()?;
    Ok(accounts::find_many(&mut cx.services.db.read().await?, &permit, ids).await?)
}

async fn find(cx: Cx<'_>, id: ClaudeAccountId) -> Result<Option<ClaudeAccount>> {
    let permit = cx.actor.require()?;
    Ok(accounts::find(&mut cx.services.db.read().await?, &permit, id).await?)
}

/// The account of the next entry after a place of the log, up to another, that may have changed one, and the entry's place. The
/// account is as it is now; those that are gone by now are passed over.
///
/// # Errors
/// Without permission.
pub async fn next_change(cx: Cx<'_>, (mut after, until): (i64, i64)) -> Result<Option<(i64, ClaudeAccount)>> {
    let permit = cx.actor.require::<ManageClaudeAccounts>()?;
    let mut conn = cx.services.db.scan().await?;
    while let Some((sequence, account)) = next_account_change(&mut conn, &permit, (after, until)).await? {
        if let Some(id) = account.and_then(|id| id.parse().ok())
            && let Some(account) = accounts::find(&mut conn, &permit, id).await?
        {
            return Ok(Some((sequence, account)));
        }
        after = sequence;
    }
    Ok(None)
}

/// Makes an account.
///
/// # Errors
/// Without permission, with wrong input, or where another account has the same API key.
pub async fn create(cx: Cx<'_>, input: Create) -> Result<ClaudeAccount> {
    let permit = cx.actor.require::<ManageClaudeAccounts>()?;
    let id = cx.services.new_id();
    let now = cx.services.clock.now();

    let mut checks = Checks::new();
    let api_key = check_key(&mut checks, &input.api_key);
    let account_name = checks.line("accountName", &input.account_name, NAME_LENGTH);
    let email = input.email.and_then(|text| checks.email("email", &text));
    let organization = input.organization.and_then(|text| checks.line("organization", &text, ORGANIZATION_LENGTH));
    let usage_limit = input.usage_limit.and_then(|number| checks.positive("usageLimit", number));
    let base_url = input.base_url.and_then(|url| checks.noting("baseUrl", cx.services.upstream.check_base_url(&url)));
    let features = input.features.and_then(|value| checks.object("features", value));
    let metadata = input.metadata.and_then(|value| checks.object("metadata", value));
    checks.finish()?;
    // Both were checked: nothing was found wrong.
    let (Some(api_key), Some(account_name)) = (api_key, account_name) else {
        return Err(Error::internal("a failed check was not noted"));
    };

    let mut account = ClaudeAccount {
        id,
        account_name,
        email,
        organization,
        status: input.status.unwrap_or(ClaudeAccountStatus::Active),
        tier: input.tier.unwrap_or(ClaudeTier::Pro),
        api_key_sealed: Vec::new(),
        api_key_key_version: String::new(),
        api_key_version: 0,
        api_key_fingerprint: Vec::new(),
        api_key_hint: String::new(),
        usage_limit,
        current_usage: 0,
        usage_resets_at: month_end(now),
        base_url,
        priority: input.priority.unwrap_or(0),
        health_state: ClaudeAccountHealthState::Unknown,
        health_until: None,
        health_last_error: None,
        is_near_limit: false,
        last_used_at: None,
        features,
        metadata,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    seal_key(cx, permit.organization(), &mut account, &api_key)?;

    audited(cx, async |tx| {
        if accounts::find_by_fingerprint(tx, &permit, &fingerprints(cx, &api_key)).await?.is_some() {
            return Err(Error::conflict(TAKEN));
        }
        accounts::insert(tx, &permit, &account).await.map_err(taken)?;
        let entry = Entry::new(AuditAction::Create, ResourceType::ClaudeAccount).on(&id);
        let changes = Changes::created(&account);
        Ok((account, entry.with(changes)))
    })
    .await
}

/// Changes an account; what the input leaves out stays. What was known of its health was its upstream's, if that is another now.
///
/// # Errors
/// Without permission, with wrong input, where there is no such account, or where it is not at the expected version.
pub async fn update(cx: Cx<'_>, id: ClaudeAccountId, input: Update) -> Result<ClaudeAccount> {
    change(cx, id, AuditAction::Update, async |account| {
        let mut checks = Checks::new();
        if input.expected_version.is_some_and(|version| version != account.version) {
            return Err(Error::conflict("The account is not at the expected version. Read it again."));
        }
        account.account_name = checks.required(
            "accountName",
            input.account_name,
            std::mem::take(&mut account.account_name),
            |checks, text| checks.line("accountName", &text, NAME_LENGTH),
        );
        account.status = checks.required("status", input.status, account.status, |_, status| Some(status));
        account.tier = checks.required("tier", input.tier, account.tier, |_, tier| Some(tier));
        account.priority = checks.required("priority", input.priority, account.priority, |_, priority| Some(priority));
        account.email = input.email.or_keep(account.email.take(), |text| checks.email("email", &text));
        account.organization = input
            .organization
            .or_keep(account.organization.take(), |text| checks.line("organization", &text, ORGANIZATION_LENGTH));
        account.usage_limit =
            input.usage_limit.or_keep(account.usage_limit, |number| checks.positive("usageLimit", number));
        let target = Target::of(account);
        account.base_url = input.base_url.or_keep(account.base_url.take(), |url| {
            checks.noting("baseUrl", cx.services.upstream.check_base_url(&url))
        });
        if Target::of(account) != target {
            forget_health(account);
        }
        account.features = input.features.or_keep(account.features.take(), |value| checks.object("features", value));
        account.metadata = input.metadata.or_keep(account.metadata.take(), |value| checks.object("metadata", value));
        (account.current_usage, account.usage_resets_at) = usage_at(account, cx.services.clock.now());
        follow_limit(account);
        checks.finish()
    })
    .await
}

/// Replaces an account's upstream API key. What was known of its health was the old key's.
///
/// # Errors
/// Without permission, with a wrong key, where there is no such account, or where another account has the key.
pub async fn replace_key(cx: Cx<'_>, id: ClaudeAccountId, api_key: &SecretText) -> Result<ClaudeAccount> {
    let permit = cx.actor.require::<ManageClaudeAccounts>()?;
    let mut checks = Checks::new();
    let api_key = check_key(&mut checks, api_key);
    checks.finish()?;
    let Some(api_key) = api_key else { return Err(Error::internal("a failed check was not noted")) };
    audited(cx, async |tx| {
        let before = accounts::lock(tx, &permit, id).await?.ok_or_else(no_such_account)?;
        let holder = accounts::find_by_fingerprint(tx, &permit, &fingerprints(cx, &api_key)).await?;
        if holder.is_some_and(|holder| holder != id) {
            return Err(Error::conflict(TAKEN));
        }
        let mut account = before.clone();
        seal_key(cx, permit.organization(), &mut account, &api_key)?;
        forget_health(&mut account);
        follow_limit(&mut account);
        write(cx, tx, &permit, &before, &mut account).await?;
        let changes = Changes::between(&before, &account);
        Ok((account, Entry::new(AuditAction::Update, ResourceType::ClaudeAccount).on(&id).with(changes)))
    })
    .await
}

/// Sets an account's usage of this month to nothing.
///
/// # Errors
/// Without permission, or where there is no such account.
pub async fn reset_usage(cx: Cx<'_>, id: ClaudeAccountId) -> Result<ClaudeAccount> {
    change(cx, id, AuditAction::Update, async |account| {
        account.current_usage = 0;
        account.usage_resets_at = month_end(cx.services.clock.now());
        follow_limit(account);
        Ok(())
    })
    .await
}

/// Asks the upstream for its models with the account's key, and notes how that went as the account's health, unless the
/// account has another key or another upstream by then.
///
/// # Errors
/// Without permission, or where there is no such account. What the upstream answers is no error.
pub async fn test(cx: Cx<'_>, id: ClaudeAccountId) -> Result<(ClaudeAccount, Probe)> {
    let permit = cx.actor.require::<ManageClaudeAccounts>()?;
    let tested = find(cx, id).await?.ok_or_else(no_such_account)?;
    let api_key = open_key(&cx.services.keys, permit.organization(), &tested)?;
    let probe = cx.services.upstream.probe(tested.base_url.as_deref(), &api_key).await;
    audited(cx, async |tx| {
        let before = accounts::lock(tx, &permit, id).await?.ok_or_else(no_such_account)?;
        let mut account = before.clone();
        if Target::of(&before) == Target::of(&tested) {
            account.health_state = health_after(&probe);
            account.health_until = None;
            account.health_last_error = if probe.ok { None } else { probe.message.clone() };
            follow_limit(&mut account);
        }
        if Changes::between(&before, &account).is_empty() && before.health_last_error == account.health_last_error {
            account = before.clone();
        } else {
            write(cx, tx, &permit, &before, &mut account).await?;
        }
        let entry = Entry::new(AuditAction::Test, ResourceType::ClaudeAccount)
            .on(&id)
            .with(Changes::between(&before, &account))
            .noting(json!({ "ok": probe.ok, "status": probe.status }));
        Ok(((account, probe), entry))
    })
    .await
}

/// Deletes an account. Its usage records and audit logs stay.
///
/// # Errors
/// Without permission, or where there is no such account.
pub async fn delete(cx: Cx<'_>, id: ClaudeAccountId) -> Result<()> {
    let permit = cx.actor.require::<ManageClaudeAccounts>()?;
    audited(cx, async |tx| {
        let account = accounts::lock(tx, &permit, id).await?.ok_or_else(no_such_account)?;
        accounts::delete(tx, &permit, id).await?;
        let entry = Entry::new(AuditAction::Delete, ResourceType::ClaudeAccount).on(&id);
        Ok(((), entry.with(Changes::deleted(&account))))
    })
    .await
}

/// The account's usage now and when it starts again: nothing, once the month that was counted is over.
#[must_use]
pub fn usage_at(account: &ClaudeAccount, now: Timestamp) -> (i64, Timestamp) {
    if account.usage_resets_at <= now { (0, month_end(now)) } else { (account.current_usage, account.usage_resets_at) }
}

/// Notes what follows from an account's usage: that it is near its limit or at it, or no longer, since its month has turned.
///
/// # Errors
/// Where the database fails.
pub async fn follow_usage(services: &Services, organization: OrganizationId, id: ClaudeAccountId) -> Result<()> {
    let actor = Actor::system(organization);
    let request_id = format!("usage-{}", hex::encode(services.random.bytes::<8>()));
    let (origin, record) = (Origin { request_id, ..Origin::default() }, Record::default());
    let cx = Cx { services, actor: &actor, origin: &origin, operation: "usage", record: &record, deadline: None };
    let follow = |account: &mut ClaudeAccount| {
        (account.current_usage, account.usage_resets_at) = usage_at(account, services.clock.now());
        follow_limit(account);
    };
    let is_followed = |account: &mut ClaudeAccount| {
        let before = account.clone();
        follow(account);
        Changes::between(&before, account).is_empty()
    };
    // Looked at without a lock first: another server may have done it.
    if find(cx, id).await?.is_none_or(|mut account| is_followed(&mut account)) {
        return Ok(());
    }
    let followed =
        change(
            cx,
            id,
            AuditAction::Update,
            async |account| {
                if is_followed(account) { Err(no_such_account()) } else { Ok(()) }
            },
        );
    match followed.await {
        // It was deleted meanwhile, or there is nothing left to do: no entry says so.
        Err(error) if error.code() == Code::NotFound => Ok(()),
        followed => followed.map(drop),
    }
}

/// Turns the month of the accounts whose month is over, and notes of those of which it was not, since that failed, that they are near
/// their limit or at it: what is at its limit has no next request to be found with. Returns how many they were.
///
/// # Errors
/// Where it failed for one, the last of them: each was tried.
pub async fn follow_all_usage(services: &Services) -> Result<usize> {
    /// How many are read at once.
    const BATCH: i64 = 100;
    let (mut followed, mut last, mut failed) = (0, None, None);
    loop {
        let wrong = accounts::to_follow(&mut services.db.read().await?, services.clock.now(), last, BATCH).await?;
        for (organization, id) in &wrong {
            match follow_usage(services, *organization, *id).await {
                Ok(()) => followed += 1,
                Err(error) => failed = Some(error),
            }
        }
        last = wrong.last().map(|(_, id)| *id);
        if i64::try_from(wrong.len()).is_ok_and(|count| count < BATCH) {
            return failed.map_or(Ok(followed), Err);
        }
    }
}

/// An account at its limit is not used until its month turns; one below it is no longer kept from use by it.
fn follow_limit(account: &mut ClaudeAccount) {
    let level = account.limit_level();
    account.is_near_limit = level >= LimitLevel::Near;
    let is_exhausted = account.health_state == ClaudeAccountHealthState::Exhausted;
    if level == LimitLevel::Reached {
        account.health_state = ClaudeAccountHealthState::Exhausted;
        account.health_until = Some(account.usage_resets_at);
    } else if is_exhausted {
        account.health_state = ClaudeAccountHealthState::Unknown;
        account.health_until = None;
    }
}

/// What is known of an account's health holds no longer.
fn forget_health(account: &mut ClaudeAccount) {
    account.health_state = ClaudeAccountHealthState::Unknown;
    account.health_until = None;
    account.health_last_error = None;
}

/// Changes a locked account and writes it, unless nothing has changed.
async fn change(
    cx: Cx<'_>,
    id: ClaudeAccountId,
    action: AuditAction,
    apply: impl AsyncFnOnce(&mut ClaudeAccount) -> Result<()>,
) -> Result<ClaudeAccount> {
    let permit = cx.actor.require::<ManageClaudeAccounts>()?;
    audited(cx, async |tx| {
        let before = accounts::lock(tx, &permit, id).await?.ok_or_else(no_such_account)?;
        let mut account = before.clone();
        apply(&mut account).await?;
        let changes = Changes::between(&before, &account);
        if !changes.is_empty() {
            write(cx, tx, &permit, &before, &mut account).await?;
        }
        Ok((account, Entry::new(action, ResourceType::ClaudeAccount).on(&id).with(changes)))
    })
    .await
}

/// Writes a locked account as its next version, and tells who should know what that changes.
pub(super) async fn write(
    cx: Cx<'_>,
    tx: &mut Tx,
    permit: &Permit<ManageClaudeAccounts>,
    before: &ClaudeAccount,
    account: &mut ClaudeAccount,
) -> Result<()> {
    account.version += 1;
    account.updated_at = cx.services.clock.now();
    accounts::update(tx, permit, account).await.map_err(taken)?;
    account_notices::tell(cx, tx, permit.organization(), (before, account)).await
}

fn no_such_account() -> Error {
    Error::not_found("Claude account")
}

/// Two that race for one key: the loser learns it from the database.
fn taken(error: crate::store::Error) -> Error {
    match error {
        crate::store::Error::Duplicate => Error::conflict(TAKEN),
        error => error.into(),
    }
}

/// A key goes into an HTTP header, so it is made of visible ASCII characters.
fn check_key(checks: &mut Checks, key: &SecretText) -> Option<SecretText> {
    let text = key.expose().trim();
    if text.is_empty() || text.len() > KEY_LENGTH {
        checks.fail("apiKey", format!("must have 1 to {KEY_LENGTH} characters"));
        None
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        checks.fail("apiKey", "must have visible ASCII characters only");
        None
    } else {
        Some(SecretText::from(text.to_owned()))
    }
}

fn aad(organization: OrganizationId, account: &ClaudeAccount) -> Aad {
    Aad {
        organization: organization.to_string(),
        record: account.id.to_string(),
        field: "api_key",
        secret_version: account.api_key_version,
    }
}

fn seal_key(cx: Cx<'_>, organization: OrganizationId, account: &mut ClaudeAccount, api_key: &SecretText) -> Result<()> {
    account.api_key_version += 1;
    account.api_key_hint = hint(api_key.expose());
    seal_under_newest(cx, organization, account, api_key)
}

/// Seals the account's key with the newest key of the ring.
pub(super) fn reseal(cx: Cx<'_>, organization: OrganizationId, account: &mut ClaudeAccount) -> Result<()> {
    let api_key = open_key(&cx.services.keys, organization, account)?;
    seal_under_newest(cx, organization, account, &api_key)
}

fn seal_under_newest(
    cx: Cx<'_>,
    organization: OrganizationId,
    account: &mut ClaudeAccount,
    api_key: &SecretText,
) -> Result<()> {
    let keys = &cx.services.keys;
    let sealed = keys.seal(&cx.services.random, &aad(organization, account), api_key).map_err(Error::internal)?;
    account.api_key_sealed = sealed.bytes;
    account.api_key_key_version = sealed.key_version;
    account.api_key_fingerprint =
        keys.digest(Purpose::UpstreamKeyFingerprint, api_key.expose().as_bytes()).as_bytes().to_vec();
    Ok(())
}

/// The account's upstream API key.
pub(super) fn open_key(keys: &KeyRing, organization: OrganizationId, account: &ClaudeAccount) -> Result<SecretText> {
    let sealed = Sealed { key_version: account.api_key_key_version.clone(), bytes: account.api_key_sealed.clone() };
    keys.open(&aad(organization, account), &sealed).map_err(Error::internal)
}

/// Under every key of the ring: an account that was made before the newest key came has the fingerprint of its time.
fn fingerprints(cx: Cx<'_>, api_key: &SecretText) -> Vec<Vec<u8>> {
    let digests = cx.services.keys.digests(Purpose::UpstreamKeyFingerprint, api_key.expose().as_bytes());
    digests.iter().map(|digest| digest.as_bytes().to_vec()).collect()
}

/// The last four characters; fewer of a key that is so short that four would say too much of it.
fn hint(api_key: &str) -> String {
    let shown = 4.min(api_key.len() / 4);
    api_key[api_key.len() - shown..].to_owned()
}

fn health_after(probe: &Probe) -> ClaudeAccountHealthState {
    match probe.status {
        _ if probe.ok => ClaudeAccountHealthState::Healthy,
        Some(401 | 403) => ClaudeAccountHealthState::Unauthorized,
        Some(429) => ClaudeAccountHealthState::RateLimited,
        Some(529) => ClaudeAccountHealthState::Overloaded,
        _ => ClaudeAccountHealthState::Failing,
    }
}

/// The first moment of the next calendar month, UTC.
fn month_end(now: Timestamp) -> Timestamp {
    let today = now.to_utc();
    let first = today.date_naive() - TimeDelta::days(i64::from(today.day0()));
    Timestamp::from((first + Months::new(1)).and_time(NaiveTime::MIN).and_utc())
}
