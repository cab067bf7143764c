//! API keys: what is known of them, what their raw keys are found by, and when they were last used.

use std::collections::HashMap;

use chrono::TimeDelta;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, Db, on_conn};
use super::error::{Error, Result};
use super::fields::fold;
use super::locks::{all_locked, first_locked};
use super::page::{bounded, keyset};
use super::ranked::ranked;
use super::search::searched;
use super::tables::{api_key_digests, api_keys, users};
use super::tx::Tx;
use crate::model::{
    AllowedIps, AllowedModels, ApiKeyId, ApiKeyScopes, ApiKeyStatus, ClientId, Direction, ManageApiKeys,
    ManageOwnApiKeys, OrganizationId, Page, PageSlice, Permit, Position, Read, Role, SortKey, Timestamp, UserId,
    UserStatus,
};

/// A key for programs, without the key itself.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = api_keys, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct ApiKey {
    /// The id.
    pub id: ApiKeyId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// In whose name it acts.
    pub owner_id: UserId,
    /// For which client it is used.
    pub client_id: Option<ClientId>,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// How the raw key begins.
    pub key_prefix: String,
    /// What it opens.
    pub scopes: ApiKeyScopes,
    /// The role of whoever issued the raw key to somebody else: it never acts with more.
    pub issued_with: Option<Role>,
    /// From where it may be used.
    pub allowed_ips: AllowedIps,
    /// Which models it may use.
    pub allowed_models: AllowedModels,
    /// How many requests a minute.
    pub rate_limit_per_minute: Option<i32>,
    /// How many requests an hour.
    pub rate_limit_per_hour: Option<i32>,
    /// How many requests at once.
    pub concurrency_limit: Option<i32>,
    /// How many tokens a day.
    pub token_limit_per_day: Option<i64>,
    /// How much it may cost a month, in millionths of a dollar.
    pub cost_limit_micro_usd_per_month: Option<i64>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was ended.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// From which address.
    pub last_used_ip: Option<String>,
    /// Who made it.
    pub created_by: Option<UserId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// Columns that follow from others.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = api_keys)]
struct Derived {
    name_folded: String,
    search_text: String,
    expires_sort: Timestamp,
    last_used_sort: Timestamp,
}

impl ApiKey {
    /// Whether it can be used.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> ApiKeyStatus {
        if self.revoked_at.is_some() {
            ApiKeyStatus::Revoked
        } else if expires_sort(self.expires_at) <= now {
            ApiKeyStatus::Expired
        } else {
            ApiKeyStatus::Active
        }
    }

    fn derived(&self) -> Derived {
        let parts = [Some(self.name.as_str()), self.description.as_deref(), Some(&self.key_prefix)];
        Derived {
            name_folded: fold(&self.name),
            // A line each: a search term has no line break, so it never matches across two fields.
            search_text: parts.into_iter().flatten().map(fold).collect::<Vec<_>>().join("\n"),
            expires_sort: expires_sort(self.expires_at),
            last_used_sort: used_sort(self.last_used_at),
        }
    }
}

/// One that never expires stands behind all that do.
fn expires_sort(expires: Option<Timestamp>) -> Timestamp {
    expires.unwrap_or(Timestamp::MAX)
}

/// One that was never used stands before all that were.
fn used_sort(used: Option<Timestamp>) -> Timestamp {
    used.unwrap_or_else(|| Timestamp::from(chrono::DateTime::UNIX_EPOCH))
}

/// What a raw key is found by.
#[derive(Debug, Clone, Insertable)]
#[diesel(table_name = api_key_digests)]
pub struct NewDigest {
    /// The keyed digest: the raw key itself is nowhere.
    pub digest: Vec<u8>,
    /// Of which key.
    pub api_key_id: ApiKeyId,
    /// Which key of the ring made it.
    pub key_version: String,
}

/// An API key and its owner, as far as judging a request needs them.
#[derive(Debug, Clone)]
pub struct FoundApiKey {
    /// The key.
    pub key: ApiKey,
    /// Its owner's role.
    pub role: Role,
    /// Its owner's state.
    pub status: UserStatus,
    /// By which digest it was found.
    pub digest: Vec<u8>,
    /// Which key of the ring made the digest.
    pub key_version: String,
    /// When this raw key ends, since another has replaced it.
    pub digest_expires_at: Option<Timestamp>,
    /// Whether it was found by no digest of its own: it is lent to a process of the server's.
    pub is_lent: bool,
}

impl FoundApiKey {
    /// Which API key stands in records of its use; none: it is lent, in the name of nobody but its owner.
    #[must_use]
    pub fn recorded(&self) -> Option<ApiKeyId> {
        (!self.is_lent || self.key.version > 0).then_some(self.key.id)
    }
}

/// Whose keys are meant, and the proof that the caller may: everybody's, or the caller's own.
#[derive(Debug)]
pub enum Whose<G> {
    /// Of everybody in the organization.
    Everybodys(Permit<ManageApiKeys>),
    /// Of this user, who is the caller.
    Own(Permit<G>, UserId),
}

impl<G> Whose<G> {
    fn organization(&self) -> OrganizationId {
        match self {
            Self::Everybodys(permit) => permit.organization(),
            Self::Own(permit, _) => permit.organization(),
        }
    }

    /// The one owner, where only that one's keys are meant.
    #[must_use]
    pub fn owner(&self) -> Option<UserId> {
        match self {
            Self::Everybodys(_) => None,
            Self::Own(_, user) => Some(*user),
        }
    }
}

/// Which keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ApiKeyFilter {
    /// In these states at this time.
    pub status: Option<(Vec<ApiKeyStatus>, Timestamp)>,
    /// Of this owner.
    pub owner_id: Option<UserId>,
    /// For this client.
    pub client_id: Option<ClientId>,
    /// With this in the name, the description or the start of the key, whatever the case.
    pub search: Option<String>,
}

/// What keys are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum ApiKeyOrder {
    CreatedAt,
    Name,
    ExpiresAt,
    LastUsedAt,
}

impl ApiKeyOrder {
    /// Where a key stands in this ordering.
    #[must_use]
    pub fn position(self, key: &ApiKey) -> Position {
        let sort = match self {
            Self::CreatedAt => SortKey::Number(key.created_at.micros()),
            Self::Name => SortKey::Text(fold(&key.name)),
            Self::ExpiresAt => SortKey::Number(expires_sort(key.expires_at).micros()),
            Self::LastUsedAt => SortKey::Number(used_sort(key.last_used_at).micros()),
        };
        Position { key: sort, id: key.id.to_string() }
    }
}

macro_rules! filtered {
    ($backend:ident, $whose:expr, $filter:expr, $search:expr) => {
        filtered!($backend, api_keys::table, $whose, $filter, $search)
    };
    ($backend:ident, $from:expr, $whose:expr, $filter:expr, $search:expr) => {{
        use api_keys as t;
        let filter: &ApiKeyFilter = $filter;
        let mut query = $from.filter(t::organization_id.eq($whose.organization())).into_boxed::<$backend>();
        if let Some(owner) = $whose.owner() {
            query = query.filter(t::owner_id.eq(owner));
        }
        if let Some((statuses, now)) = &filter.status {
            let asks = |status: ApiKeyStatus| statuses.contains(&status).into_sql::<Bool>();
            let revoked = t::revoked_at.is_not_null().and(asks(ApiKeyStatus::Revoked));
            let expired = t::revoked_at.is_null().and(t::expires_sort.le(*now)).and(asks(ApiKeyStatus::Expired));
            let active = t::revoked_at.is_null().and(t::expires_sort.gt(*now)).and(asks(ApiKeyStatus::Active));
            query = query.filter(revoked.or(expired).or(active));
        }
        if let Some(owner) = filter.owner_id {
            query = query.filter(t::owner_id.eq(owner));
        }
        if let Some(client) = filter.client_id {
            query = query.filter(t::client_id.eq(client));
        }
        if let Some(search) = $search {
            query = query.filter(search);
        }
        query
    }};
}

/// A page of keys.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    whose: &Whose<Read>,
    filter: &ApiKeyFilter,
    (order, direction): (ApiKeyOrder, Direction),
    page: &Page,
) -> Result<PageSlice<ApiKey>> {
    use api_keys as t;
    let search = searched!(conn, api_keys, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, whose, filter, search).select(ApiKey::as_select());
        match order {
            ApiKeyOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            ApiKeyOrder::Name => keyset!(query, page, direction, t::name_folded, t::id, String),
            ApiKeyOrder::ExpiresAt => keyset!(query, page, direction, t::expires_sort, t::id, Timestamp),
            ApiKeyOrder::LastUsedAt => keyset!(query, page, direction, t::last_used_sort, t::id, Timestamp),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// The same page of the keys for each of the clients, newest first, in one statement.
///
/// # Errors
/// As for [`page`].
pub async fn pages_by_client(
    conn: &mut Conn,
    whose: &Whose<Read>,
    clients: &[ClientId],
    page: &Page,
) -> Result<HashMap<ClientId, PageSlice<ApiKey>>> {
    use api_keys as t;
    let all = ApiKeyFilter::default();
    let search = searched!(conn, api_keys, all);
    let rows: Vec<(ApiKey, i64)> = on_conn!(conn, |c: Backend| {
        let query = filtered!(Backend, whose, &all, search);
        let row = ApiKey::as_select();
        ranked!(query, row, page, Direction::Descending, t::client_id => clients, t::created_at, t::id, Timestamp)
            .load(c)
            .await?
    });
    Ok(page.slices(clients, rows.into_iter().filter_map(|(key, _)| Some((key.client_id?, key)))))
}

/// The same page of the keys of each of the owners, newest first, in one statement.
///
/// # Errors
/// As for [`page`].
pub async fn pages_by_owner(
    conn: &mut Conn,
    whose: &Whose<Read>,
    owners: &[UserId],
    page: &Page,
) -> Result<HashMap<UserId, PageSlice<ApiKey>>> {
    use api_keys as t;
    let all = ApiKeyFilter::default();
    let search = searched!(conn, api_keys, all);
    let rows: Vec<(ApiKey, i64)> = on_conn!(conn, |c: Backend| {
        let query = filtered!(Backend, whose, &all, search);
        let row = ApiKey::as_select();
        ranked!(query, row, page, Direction::Descending, t::owner_id => owners, t::created_at, t::id, Timestamp)
            .load(c)
            .await?
    });
    Ok(page.slices(owners, rows.into_iter().map(|(key, _)| (key.owner_id, key))))
}

/// How many keys there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, whose: &Whose<Read>, filter: &ApiKeyFilter) -> Result<i64> {
    let search = searched!(conn, api_keys, filter);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, whose, filter, search).count().get_result(c).await?))
}

/// How many keys there are for each of the clients, in one statement. A client without any is left out.
///
/// # Errors
/// Where the database fails.
pub async fn counts_by_client(
    conn: &mut Conn,
    whose: &Whose<Read>,
    clients: &[ClientId],
    filter: &ApiKeyFilter,
) -> Result<HashMap<ClientId, i64>> {
    let search = searched!(conn, api_keys, filter);
    let by_client =
        api_keys::table.group_by(api_keys::client_id).select((api_keys::client_id, diesel::dsl::count_star()));
    let rows: Vec<(Option<ClientId>, i64)> =
        on_conn!(conn, |c: Backend| filtered!(Backend, by_client, whose, filter, search)
            .filter(api_keys::client_id.eq_any(clients))
            .load(c)
            .await?);
    Ok(rows.into_iter().filter_map(|(client, count)| Some((client?, count))).collect())
}

/// How many keys each of the owners has, in one statement. An owner without any is left out.
///
/// # Errors
/// Where the database fails.
pub async fn counts_by_owner(
    conn: &mut Conn,
    whose: &Whose<Read>,
    owners: &[UserId],
    filter: &ApiKeyFilter,
) -> Result<HashMap<UserId, i64>> {
    let search = searched!(conn, api_keys, filter);
    let by_owner = api_keys::table.group_by(api_keys::owner_id).select((api_keys::owner_id, diesel::dsl::count_star()));
    let rows: Vec<(UserId, i64)> = on_conn!(conn, |c: Backend| filtered!(Backend, by_owner, whose, filter, search)
        .filter(api_keys::owner_id.eq_any(owners))
        .load(c)
        .await?);
    Ok(rows.into_iter().collect())
}

/// The keys among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many<G>(conn: &mut Conn, whose: &Whose<G>, ids: &[ApiKeyId]) -> Result<Vec<ApiKey>> {
    let all = ApiKeyFilter::default();
    let search = searched!(conn, api_keys, all);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, whose, &all, search)
        .filter(api_keys::id.eq_any(ids))
        .select(ApiKey::as_select())
        .load(c)
        .await?))
}

/// One key, locked to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock(tx: &mut Tx, whose: &Whose<ManageOwnApiKeys>, id: ApiKeyId) -> Result<Option<ApiKey>> {
    let conn = tx.conn().await?;
    let found: Option<ApiKey> = first_locked!(
        conn,
        api_keys::table
            .filter(api_keys::organization_id.eq(whose.organization()).and(api_keys::id.eq(id)))
            .select(ApiKey::as_select())
    )
    .optional()?;
    Ok(found.filter(|key| whose.owner().is_none_or(|owner| owner == key.owner_id)))
}

/// Inserts a key with what its raw key is found by.
///
/// # Errors
/// [`Error::NotPermitted`] where it is none of those that are meant, or the digest is of another.
pub async fn insert(tx: &mut Tx, whose: &Whose<ManageOwnApiKeys>, key: &ApiKey, digest: &NewDigest) -> Result<()> {
    let is_meant = key.organization_id == whose.organization()
        && whose.owner().is_none_or(|owner| owner == key.owner_id)
        && digest.api_key_id == key.id;
    if !is_meant {
        return Err(Error::NotPermitted);
    }
    let derived = key.derived();
    let conn = tx.conn().await?;
    on_conn!(conn, |c| {
        diesel::insert_into(api_keys::table).values((key, &derived)).execute(c).await?;
        diesel::insert_into(api_key_digests::table).values(digest).execute(c).await?;
    });
    Ok(())
}

/// Replaces a key as it was at the version before.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version.
pub async fn update(tx: &mut Tx, whose: &Whose<ManageOwnApiKeys>, key: &ApiKey) -> Result<()> {
    let derived = key.derived();
    let target = api_keys::table.filter(
        api_keys::organization_id
            .eq(whose.organization())
            .and(api_keys::id.eq(key.id))
            .and(api_keys::version.eq(key.version - 1)),
    );
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target).set((key, &derived)).execute(c).await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// By which keys of the ring the raw keys of a key that is locked already are found, as far as they have not ended.
///
/// # Errors
/// Where the database fails.
pub async fn key_versions(tx: &mut Tx, id: ApiKeyId, now: Timestamp) -> Result<Vec<String>> {
    use api_key_digests as d;
    let conn = tx.conn().await?;
    Ok(on_conn!(conn, |c| d::table
        .filter(d::api_key_id.eq(id).and(d::expires_at.is_null().or(d::expires_at.gt(Some(now)))))
        .select(d::key_version)
        .load(c)
        .await?))
}

/// Gives a key that is locked already another raw key. The one before it serves until `until`; any older one ends.
///
/// # Errors
/// Where the database fails.
pub async fn replace_digest(tx: &mut Tx, digest: &NewDigest, until: Option<Timestamp>) -> Result<()> {
    use api_key_digests as d;
    let of_key = || d::table.filter(d::api_key_id.eq(digest.api_key_id));
    let conn = tx.conn().await?;
    on_conn!(conn, |c| {
        match until {
            None => diesel::delete(of_key()).execute(c).await?,
            Some(until) => {
                diesel::delete(of_key().filter(d::expires_at.is_not_null())).execute(c).await?;
                diesel::update(of_key()).set(d::expires_at.eq(Some(until))).execute(c).await?
            }
        };
        diesel::insert_into(d::table).values(digest).execute(c).await?;
    });
    Ok(())
}

/// Revokes all keys of a user who is locked already. Returns those that were not revoked before, in the order of their ids.
///
/// # Errors
/// Where the database fails.
pub async fn revoke_all(tx: &mut Tx, owner: UserId, at: Timestamp) -> Result<Vec<ApiKeyId>> {
    use api_keys as t;
    let conn = tx.conn().await?;
    // In order, as their uses are noted: two that lock in different orders would wait for each other.
    let locked: Vec<ApiKeyId> = all_locked!(
        conn,
        t::table.filter(t::owner_id.eq(owner).and(t::revoked_at.is_null())).order(t::id).select(t::id)
    )?;
    on_conn!(conn, |c| diesel::update(t::table.filter(t::id.eq_any(&locked)))
        .set((t::revoked_at.eq(Some(at)), t::updated_at.eq(at), t::version.eq(t::version + 1)))
        .execute(c)
        .await?);
    Ok(locked)
}

/// The key with one of the digests, and its owner: one digest for each key of the ring that it may have been made with. No
/// permit: who has the raw key is not known yet.
///
/// # Errors
/// Where the database fails.
pub async fn find_by_digest(conn: &mut Conn, digests: &[Vec<u8>]) -> Result<Option<FoundApiKey>> {
    use api_key_digests as d;
    type Row = (ApiKey, Role, UserStatus, Vec<u8>, String, Option<Timestamp>);
    let row: Option<Row> = on_conn!(conn, |c| d::table
        .inner_join(api_keys::table.inner_join(users::table))
        .filter(d::digest.eq_any(digests))
        .select((ApiKey::as_select(), users::role, users::status, d::digest, d::key_version, d::expires_at))
        .first(c)
        .await
        .optional()?);
    Ok(row.map(|(key, role, status, digest, key_version, digest_expires_at)| FoundApiKey {
        key,
        role,
        status,
        digest,
        key_version,
        digest_expires_at,
        is_lent: false,
    }))
}

/// That a key was used.
#[derive(Debug, Clone)]
pub struct ApiKeyUse {
    /// Which key.
    pub id: ApiKeyId,
    /// When.
    pub at: Timestamp,
    /// From which address.
    pub ip_address: String,
    /// What it is found by from now on, where that was made with an older key of the ring.
    pub renewed: Option<RenewedDigest>,
}

/// A digest of the same raw key under another key of the ring.
#[derive(Debug, Clone)]
pub struct RenewedDigest {
    /// As it was.
    pub from: Vec<u8>,
    /// As it is to be.
    pub to: Vec<u8>,
    /// Which key of the ring made it.
    pub key_version: String,
}

/// Notes when keys were last used, in the order of their ids: no earlier time than is known, and each key once in `interval`.
/// This is bookkeeping and no change of a key: its version stays, and the audit log has no entry.
///
/// # Errors
/// Where the database fails.
pub async fn note_uses(db: &Db, uses: &[ApiKeyUse], interval: TimeDelta) -> Result<()> {
    let mut tx = Tx::new(db.clone());
    match write_uses(&mut tx, uses, interval).await {
        Ok(()) => tx.commit_bookkeeping().await,
        Err(error) => {
            // What went wrong first is told; the pool closes a connection on which the transaction is still open.
            let _ = tx.rollback().await;
            Err(error)
        }
    }
}

async fn write_uses(tx: &mut Tx, uses: &[ApiKeyUse], interval: TimeDelta) -> Result<()> {
    use {api_key_digests as d, api_keys as t};
    let conn = tx.conn().await?;
    for used in uses {
        on_conn!(conn, |c| {
            diesel::update(t::table.find(used.id).filter(t::last_used_sort.le(used.at + -interval)))
                .set((
                    t::last_used_at.eq(Some(used.at)),
                    t::last_used_sort.eq(used.at),
                    t::last_used_ip.eq(Some(&used.ip_address)),
                ))
                .execute(c)
                .await?;
            if let Some(renewed) = &used.renewed {
                diesel::update(d::table.find(&renewed.from))
                    .set((d::digest.eq(&renewed.to), d::key_version.eq(&renewed.key_version)))
                    .execute(c)
                    .await?;
            }
        });
    }
    Ok(())
}
