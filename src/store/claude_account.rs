//! Claude accounts: upstream API keys, sealed, with what the relay needs to know of them.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::{Error, Result};
use super::fields::{distinct, fold};
use super::locks::first_locked;
use super::page::{bounded, keyset};
use super::search::searched;
use super::tables::claude_accounts;
use super::tx::Tx;
use crate::model::{
    ClaudeAccountHealthState, ClaudeAccountId, ClaudeAccountStatus, ClaudeTier, Direction, Email, JsonObject,
    LimitLevel, ManageClaudeAccounts, OrganizationId, Page, PageSlice, Permit, Position, SortKey, Timestamp, UseRelay,
};

/// An upstream account.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = claude_accounts, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct ClaudeAccount {
    /// The id.
    pub id: ClaudeAccountId,
    /// What people call it.
    pub account_name: String,
    /// The address that it is registered with upstream.
    pub email: Option<Email>,
    /// The organization that it belongs to upstream.
    pub organization: Option<String>,
    /// Whether the relay may use it.
    pub status: ClaudeAccountStatus,
    /// Its plan upstream.
    pub tier: ClaudeTier,
    /// The upstream API key, sealed.
    pub api_key_sealed: Vec<u8>,
    /// Which key of the ring sealed it.
    pub api_key_key_version: String,
    /// Counts the upstream API keys that it has had, from 1; part of what the seal is bound to.
    pub api_key_version: i32,
    /// The keyed digest of the upstream API key, for its uniqueness in the organization.
    pub api_key_fingerprint: Vec<u8>,
    /// The last four characters of the upstream API key.
    pub api_key_hint: String,
    /// Tokens a calendar month (UTC); none: no limit.
    pub usage_limit: Option<i64>,
    /// Tokens used in the month that ends at `usage_resets_at`.
    pub current_usage: i64,
    /// The end of the month that `current_usage` counts.
    pub usage_resets_at: Timestamp,
    /// Where the relay sends its requests; none: the default upstream.
    pub base_url: Option<String>,
    /// Lower is preferred.
    pub priority: i32,
    /// How its last requests went.
    pub health_state: ClaudeAccountHealthState,
    /// Until when that holds.
    pub health_until: Option<Timestamp>,
    /// What went wrong last.
    pub health_last_error: Option<String>,
    /// Whether it is known that most of its limit is used.
    pub is_near_limit: bool,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// A JSON object for whoever manages it.
    pub features: Option<JsonObject>,
    /// A JSON object for whoever manages it.
    pub metadata: Option<JsonObject>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

impl ClaudeAccount {
    /// How far its limit is used up.
    #[must_use]
    pub fn limit_level(&self) -> LimitLevel {
        LimitLevel::of(self.current_usage, self.usage_limit)
    }

    /// Columns that follow from others.
    fn derived(&self) -> (String, String) {
        let parts =
            [Some(self.account_name.as_str()), self.email.as_ref().map(Email::as_str), self.organization.as_deref()];
        // A line each: a search term has no line break, so it never matches across two fields.
        let search_text = parts.into_iter().flatten().map(fold).collect::<Vec<_>>().join("\n");
        (fold(&self.account_name), search_text)
    }
}

/// Which accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaudeAccountFilter {
    /// In these states.
    pub status: Option<Vec<ClaudeAccountStatus>>,
    /// Of these tiers.
    pub tier: Option<Vec<ClaudeTier>>,
    /// With this in the name, the email or the organization, whatever the case.
    pub search: Option<String>,
}

/// What accounts are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum ClaudeAccountOrder {
    CreatedAt,
    UpdatedAt,
    AccountName,
    Status,
    Tier,
    CurrentUsage,
    Priority,
}

impl ClaudeAccountOrder {
    /// Where an account stands in this ordering.
    #[must_use]
    pub fn position(self, account: &ClaudeAccount) -> Position {
        let key = match self {
            Self::CreatedAt => SortKey::Number(account.created_at.micros()),
            Self::UpdatedAt => SortKey::Number(account.updated_at.micros()),
            Self::AccountName => SortKey::Text(fold(&account.account_name)),
            Self::Status => SortKey::Text(account.status.as_str().to_owned()),
            Self::Tier => SortKey::Text(account.tier.as_str().to_owned()),
            Self::CurrentUsage => SortKey::Number(account.current_usage),
            Self::Priority => SortKey::Number(account.priority.into()),
        };
        Position { key, id: account.id.to_string() }
    }
}

macro_rules! filtered {
    ($backend:ident, $permit:expr, $filter:expr, $search:expr) => {{
        let filter: &ClaudeAccountFilter = $filter;
        let mut query = claude_accounts::table
            .filter(claude_accounts::organization_id.eq($permit.organization()))
            .into_boxed::<$backend>();
        if let Some(statuses) = &filter.status {
            query = query.filter(claude_accounts::status.eq_any(distinct(statuses)));
        }
        if let Some(tiers) = &filter.tier {
            query = query.filter(claude_accounts::tier.eq_any(distinct(tiers)));
        }
        if let Some(search) = $search {
            query = query.filter(search);
        }
        query
    }};
}

/// A page of accounts.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    permit: &Permit<ManageClaudeAccounts>,
    filter: &ClaudeAccountFilter,
    (order, direction): (ClaudeAccountOrder, Direction),
    page: &Page,
) -> Result<PageSlice<ClaudeAccount>> {
    use claude_accounts as t;
    let search = searched!(conn, claude_accounts, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, permit, filter, search).select(ClaudeAccount::as_select());
        match order {
            ClaudeAccountOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            ClaudeAccountOrder::UpdatedAt => keyset!(query, page, direction, t::updated_at, t::id, Timestamp),
            ClaudeAccountOrder::AccountName => keyset!(query, page, direction, t::account_name_folded, t::id, String),
            ClaudeAccountOrder::Status => keyset!(query, page, direction, t::status, t::id, String),
            ClaudeAccountOrder::Tier => keyset!(query, page, direction, t::tier, t::id, String),
            ClaudeAccountOrder::CurrentUsage => keyset!(query, page, direction, t::current_usage, t::id, i64),
            ClaudeAccountOrder::Priority => keyset!(query, page, direction, t::priority, t::id, i32),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// How many accounts there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(
    conn: &mut Conn,
    permit: &Permit<ManageClaudeAccounts>,
    filter: &ClaudeAccountFilter,
) -> Result<i64> {
    let search = searched!(conn, claude_accounts, filter);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter, search).count().get_result(c).await?))
}

/// One account.
///
/// # Errors
/// Where the database fails.
pub async fn find(
    conn: &mut Conn,
    permit: &Permit<ManageClaudeAccounts>,
    id: ClaudeAccountId,
) -> Result<Option<ClaudeAccount>> {
    Ok(on_conn!(conn, |c| claude_accounts::table
        .filter(claude_accounts::organization_id.eq(permit.organization()).and(claude_accounts::id.eq(id)))
        .select(ClaudeAccount::as_select())
        .first(c)
        .await
        .optional()?))
}

/// The accounts among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(
    conn: &mut Conn,
    permit: &Permit<ManageClaudeAccounts>,
    ids: &[ClaudeAccountId],
) -> Result<Vec<ClaudeAccount>> {
    Ok(on_conn!(conn, |c| claude_accounts::table
        .filter(claude_accounts::organization_id.eq(permit.organization()).and(claude_accounts::id.eq_any(ids)))
        .select(ClaudeAccount::as_select())
        .load(c)
        .await?))
}

/// The accounts that the relay may use, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_active(conn: &mut Conn, permit: &Permit<UseRelay>) -> Result<Vec<ClaudeAccount>> {
    Ok(on_conn!(conn, |c| claude_accounts::table
        .filter(
            claude_accounts::organization_id
                .eq(permit.organization())
                .and(claude_accounts::status.eq(ClaudeAccountStatus::Active))
        )
        .select(ClaudeAccount::as_select())
        .load(c)
        .await?))
}

/// The next accounts after one whose state does not say how far their limit is used up, whosever they are: since their month is over,
/// or since it was not noted when it came to that.
///
/// # Errors
/// Where the database fails.
pub async fn to_follow(
    conn: &mut Conn,
    now: Timestamp,
    after: Option<ClaudeAccountId>,
    most: i64,
) -> Result<Vec<(OrganizationId, ClaudeAccountId)>> {
    use claude_accounts as t;
    // As `LimitLevel` has it; what has no limit is below it.
    let near = "coalesce(current_usage >= usage_limit - usage_limit / 5, 1 = 0)";
    let reached = "coalesce(current_usage >= usage_limit, 1 = 0)";
    let is_wrong = format!("((is_near_limit <> {near}) OR ((health_state = 'EXHAUSTED') <> {reached}))");
    Ok(on_conn!(conn, |c: Backend| {
        let wrong = t::usage_resets_at.le(now).or(sql::<Bool>(&is_wrong));
        let mut query = t::table.filter(wrong).into_boxed::<Backend>();
        if let Some(after) = after {
            query = query.filter(t::id.gt(after));
        }
        query.order(t::id).limit(most).select((t::organization_id, t::id)).load(c).await?
    }))
}

/// One account, locked to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock(
    tx: &mut Tx,
    permit: &Permit<ManageClaudeAccounts>,
    id: ClaudeAccountId,
) -> Result<Option<ClaudeAccount>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(
        conn,
        claude_accounts::table
            .filter(claude_accounts::organization_id.eq(permit.organization()).and(claude_accounts::id.eq(id)))
            .select(ClaudeAccount::as_select())
    )
    .optional()?)
}

/// Another account of the organization that has one of these fingerprints, if there is one.
///
/// # Errors
/// Where the database fails.
pub async fn find_by_fingerprint(
    tx: &mut Tx,
    permit: &Permit<ManageClaudeAccounts>,
    fingerprints: &[Vec<u8>],
) -> Result<Option<ClaudeAccountId>> {
    let conn = tx.conn().await?;
    Ok(on_conn!(conn, |c| claude_accounts::table
        .filter(
            claude_accounts::organization_id
                .eq(permit.organization())
                .and(claude_accounts::api_key_fingerprint.eq_any(fingerprints))
        )
        .select(claude_accounts::id)
        .first(c)
        .await
        .optional()?))
}

/// Inserts an account into the permit's organization.
///
/// # Errors
/// [`Error::Duplicate`] where another account of the organization has the same upstream API key.
pub async fn insert(tx: &mut Tx, permit: &Permit<ManageClaudeAccounts>, account: &ClaudeAccount) -> Result<()> {
    let (name, search_text) = account.derived();
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(claude_accounts::table)
        .values((
            account,
            claude_accounts::organization_id.eq(permit.organization()),
            claude_accounts::account_name_folded.eq(&name),
            claude_accounts::search_text.eq(&search_text)
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// Replaces an account as it was at the version before.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version, [`Error::Duplicate`] as for [`insert`].
pub async fn update(tx: &mut Tx, permit: &Permit<ManageClaudeAccounts>, account: &ClaudeAccount) -> Result<()> {
    let (name, search_text) = account.derived();
    let target = claude_accounts::table.filter(
        claude_accounts::organization_id
            .eq(permit.organization())
            .and(claude_accounts::id.eq(account.id))
            .and(claude_accounts::version.eq(account.version - 1)),
    );
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target)
        .set((account, claude_accounts::account_name_folded.eq(&name), claude_accounts::search_text.eq(&search_text)))
        .execute(c)
        .await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Deletes an account.
///
/// # Errors
/// Where the database fails.
pub async fn delete(tx: &mut Tx, permit: &Permit<ManageClaudeAccounts>, id: ClaudeAccountId) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::delete(
        claude_accounts::table
            .filter(claude_accounts::organization_id.eq(permit.organization()).and(claude_accounts::id.eq(id)))
    )
    .execute(c)
    .await?);
    Ok(())
}
