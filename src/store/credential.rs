//! Credentials: what is known of a client's secrets, and the secrets themselves, sealed, every version of them.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::{Error, Result};
use super::fields::{askable, fold};
use super::locks::first_locked;
use super::page::{bounded, keyset};
use super::ranked::ranked;
use super::search::searched;
use super::tables::{credential_secrets, credentials};
use super::tx::Tx;
use crate::model::{
    ClientId, CredentialId, DeleteCredentials, Direction, Grant, Page, PageSlice, Permit, Position, Read,
    RevealCredentials, SortKey, Timestamp, UserId, WriteCredentials,
};

/// What is known of a client's secret.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = credentials, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct Credential {
    /// The id.
    pub id: CredentialId,
    /// Of which client.
    pub client_id: ClientId,
    /// What people call it.
    pub label: String,
    /// The name that is used with it.
    pub username: Option<String>,
    /// Where it is used.
    pub url: Option<String>,
    /// The newest secret's version.
    pub secret_version: i32,
    /// Which key of the ring seals the newest secret.
    pub key_version: String,
    /// Who made it.
    pub created_by: Option<UserId>,
    /// Who changed it last.
    pub updated_by: Option<UserId>,
    /// When a secret of it was last revealed.
    pub last_accessed_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// One version of a credential's secret.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = credential_secrets, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct CredentialSecret {
    /// Of which credential.
    pub credential_id: CredentialId,
    /// The how-manieth, from 1; part of what the seal is bound to.
    pub secret_version: i32,
    /// The secret, sealed.
    pub sealed: Vec<u8>,
    /// Which key of the ring sealed it.
    pub key_version: String,
    /// Who set it.
    pub created_by: Option<UserId>,
    /// When it was set.
    pub created_at: Timestamp,
}

/// Columns that follow from others.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = credentials)]
struct Derived {
    label_folded: String,
    search_text: String,
    last_accessed_sort: Timestamp,
}

impl Credential {
    fn derived(&self) -> Derived {
        let parts = [Some(self.label.as_str()), self.username.as_deref(), self.url.as_deref()];
        Derived {
            label_folded: fold(&self.label),
            // A line each: a search term has no line break, so it never matches across two fields.
            search_text: parts.into_iter().flatten().map(fold).collect::<Vec<_>>().join("\n"),
            last_accessed_sort: access_sort(self.last_accessed_at),
        }
    }
}

/// One that was never accessed stands before all that were.
fn access_sort(accessed: Option<Timestamp>) -> Timestamp {
    accessed.unwrap_or_else(|| Timestamp::from(chrono::DateTime::UNIX_EPOCH))
}

/// Which credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CredentialFilter {
    /// Of this client.
    pub client_id: Option<ClientId>,
    /// Whose newest secret this key of the ring seals.
    pub key_version: Option<String>,
    /// With this in the label, the username or the URL, whatever the case.
    pub search: Option<String>,
}

/// What credentials are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum CredentialOrder {
    CreatedAt,
    UpdatedAt,
    Label,
    LastAccessedAt,
}

impl CredentialOrder {
    /// Where a credential stands in this ordering.
    #[must_use]
    pub fn position(self, credential: &Credential) -> Position {
        let key = match self {
            Self::CreatedAt => SortKey::Number(credential.created_at.micros()),
            Self::UpdatedAt => SortKey::Number(credential.updated_at.micros()),
            Self::Label => SortKey::Text(fold(&credential.label)),
            Self::LastAccessedAt => SortKey::Number(access_sort(credential.last_accessed_at).micros()),
        };
        Position { key, id: credential.id.to_string() }
    }
}

macro_rules! filtered {
    ($backend:ident, $permit:expr, $filter:expr, $search:expr) => {
        filtered!($backend, credentials::table, $permit, $filter, $search)
    };
    ($backend:ident, $from:expr, $permit:expr, $filter:expr, $search:expr) => {{
        let filter: &CredentialFilter = $filter;
        let mut query = $from.filter(credentials::organization_id.eq($permit.organization())).into_boxed::<$backend>();
        if let Some(client) = filter.client_id {
            query = query.filter(credentials::client_id.eq(client));
        }
        if let Some(version) = &filter.key_version {
            query = query.filter(credentials::key_version.eq_any(askable(version)));
        }
        if let Some(search) = $search {
            query = query.filter(search);
        }
        query
    }};
}

/// A page of credentials.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    permit: &Permit<Read>,
    filter: &CredentialFilter,
    (order, direction): (CredentialOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Credential>> {
    use credentials as t;
    let search = searched!(conn, credentials, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, permit, filter, search).select(Credential::as_select());
        match order {
            CredentialOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            CredentialOrder::UpdatedAt => keyset!(query, page, direction, t::updated_at, t::id, Timestamp),
            CredentialOrder::Label => keyset!(query, page, direction, t::label_folded, t::id, String),
            CredentialOrder::LastAccessedAt => keyset!(query, page, direction, t::last_accessed_sort, t::id, Timestamp),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// The same page of the credentials of each of the clients, newest first, in one statement.
///
/// # Errors
/// As for [`page`].
pub async fn pages(
    conn: &mut Conn,
    permit: &Permit<Read>,
    clients: &[ClientId],
    page: &Page,
) -> Result<HashMap<ClientId, PageSlice<Credential>>> {
    use credentials as t;
    let all = CredentialFilter::default();
    let search = searched!(conn, credentials, all);
    let rows: Vec<(Credential, i64)> = on_conn!(conn, |c: Backend| {
        let query = filtered!(Backend, permit, &all, search);
        let row = Credential::as_select();
        ranked!(query, row, page, Direction::Descending, t::client_id => clients, t::created_at, t::id, Timestamp)
            .load(c)
            .await?
    });
    Ok(page.slices(clients, rows.into_iter().map(|(credential, _)| (credential.client_id, credential))))
}

/// How many credentials there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, permit: &Permit<Read>, filter: &CredentialFilter) -> Result<i64> {
    let search = searched!(conn, credentials, filter);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter, search).count().get_result(c).await?))
}

/// How many credentials each of the clients has, in one statement. A client without any is left out.
///
/// # Errors
/// Where the database fails.
pub async fn counts(
    conn: &mut Conn,
    permit: &Permit<Read>,
    clients: &[ClientId],
    filter: &CredentialFilter,
) -> Result<HashMap<ClientId, i64>> {
    let search = searched!(conn, credentials, filter);
    let by_client =
        credentials::table.group_by(credentials::client_id).select((credentials::client_id, diesel::dsl::count_star()));
    let rows: Vec<(ClientId, i64)> = on_conn!(conn, |c: Backend| filtered!(Backend, by_client, permit, filter, search)
        .filter(credentials::client_id.eq_any(clients))
        .load(c)
        .await?);
    Ok(rows.into_iter().collect())
}

/// The credentials among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, permit: &Permit<Read>, ids: &[CredentialId]) -> Result<Vec<Credential>> {
    Ok(on_conn!(conn, |c| credentials::table
        .filter(credentials::organization_id.eq(permit.organization()).and(credentials::id.eq_any(ids)))
        .select(Credential::as_select())
        .load(c)
        .await?))
}

/// One credential, locked to the end of the transaction. Its secrets are only written under this lock.
///
/// # Errors
/// Where the database fails.
pub async fn lock<G: Grant>(tx: &mut Tx, permit: &Permit<G>, id: CredentialId) -> Result<Option<Credential>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(
        conn,
        credentials::table
            .filter(credentials::organization_id.eq(permit.organization()).and(credentials::id.eq(id)))
            .select(Credential::as_select())
    )
    .optional()?)
}

/// Inserts a credential into the permit's organization, with its first secret.
///
/// # Errors
/// Where the database fails.
pub async fn insert(
    tx: &mut Tx,
    permit: &Permit<WriteCredentials>,
    credential: &Credential,
    secret: &CredentialSecret,
) -> Result<()> {
    let derived = credential.derived();
    let own = credentials::organization_id.eq(permit.organization());
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(credentials::table).values((credential, own, &derived)).execute(c).await?);
    insert_secret(tx, permit, secret).await
}

/// Adds a version of a secret.
///
/// # Errors
/// Where the database fails.
pub async fn insert_secret(tx: &mut Tx, permit: &Permit<WriteCredentials>, secret: &CredentialSecret) -> Result<()> {
    let own = credential_secrets::organization_id.eq(permit.organization());
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(credential_secrets::table).values((secret, own)).execute(c).await?);
    Ok(())
}

/// Replaces a credential as it was at the version before.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version.
pub async fn update(tx: &mut Tx, permit: &Permit<WriteCredentials>, credential: &Credential) -> Result<()> {
    let derived = credential.derived();
    let target = credentials::table.filter(
        credentials::organization_id
            .eq(permit.organization())
            .and(credentials::id.eq(credential.id))
            .and(credentials::version.eq(credential.version - 1)),
    );
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target).set((credential, &derived)).execute(c).await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// A version of a secret, sealed.
///
/// # Errors
/// Where the database fails.
pub async fn find_secret(
    tx: &mut Tx,
    permit: &Permit<RevealCredentials>,
    id: CredentialId,
    version: i32,
) -> Result<Option<CredentialSecret>> {
    let conn = tx.conn().await?;
    Ok(on_conn!(conn, |c| credential_secrets::table
        .find((id, version))
        .filter(credential_secrets::organization_id.eq(permit.organization()))
        .select(CredentialSecret::as_select())
        .first(c)
        .await
        .optional()?))
}

/// Notes when a secret was revealed. That is no change of the credential: its version stays.
///
/// # Errors
/// Where the database fails.
pub async fn touch(
    tx: &mut Tx,
    permit: &Permit<RevealCredentials>,
    id: CredentialId,
    accessed: Timestamp,
) -> Result<()> {
    let target =
        credentials::table.filter(credentials::organization_id.eq(permit.organization()).and(credentials::id.eq(id)));
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(target)
        .set((
            credentials::last_accessed_at.eq(accessed),
            credentials::last_accessed_sort.eq(access_sort(Some(accessed)))
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// Deletes a credential with every version of its secret.
///
/// # Errors
/// Where the database fails.
pub async fn delete(tx: &mut Tx, permit: &Permit<DeleteCredentials>, id: CredentialId) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::delete(
        credentials::table.filter(credentials::organization_id.eq(permit.organization()).and(credentials::id.eq(id)))
    )
    .execute(c)
    .await?);
    Ok(())
}
