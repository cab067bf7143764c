//! Clients: whom the organization works for.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::bulk::insert_all;
use super::error::{Error, Result};
use super::fields::{distinct, fold};
use super::locks::first_locked;
use super::page::{bounded, keyset};
use super::search::searched;
use super::tables::clients;
use super::tx::Tx;
use crate::model::{
    ClientId, ClientStatus, Direction, Email, Grant, JsonObject, Page, PageSlice, Permit, Position, Read, SortKey,
    Timestamp, UserId, WriteClients,
};

/// A client.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = clients, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct Client {
    /// The id.
    pub id: ClientId,
    /// Its name.
    pub name: String,
    /// The company that it is or belongs to.
    pub company: Option<String>,
    /// Its address.
    pub email: Option<Email>,
    /// Its telephone number, as it was written.
    pub phone: Option<String>,
    /// What is worth knowing of it.
    pub notes: Option<String>,
    /// How far one is with it, apart from whether it is archived.
    pub status: ClientStatus,
    /// Who looks after it.
    pub owner_id: Option<UserId>,
    /// A JSON object for whoever manages it.
    pub metadata: Option<JsonObject>,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

impl Client {
    /// Its state as the API shows it.
    #[must_use]
    pub fn shown_status(&self) -> ClientStatus {
        if self.archived_at.is_some() { ClientStatus::Archived } else { self.status }
    }

    /// Columns that follow from others: the name and the company as they are sorted, and what is searched.
    fn derived(&self) -> (String, String, String) {
        let company = self.company.as_deref().map(fold).unwrap_or_default();
        let name = fold(&self.name);
        // A line each: a search term has no line break, so it never matches across two fields.
        let search_text = format!("{name}\n{company}");
        (name, company, search_text)
    }
}

/// Which clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFilter {
    /// In these states.
    pub status: Option<Vec<ClientStatus>>,
    /// With this owner.
    pub owner_id: Option<UserId>,
    /// Archived ones too, where no states are named.
    pub include_archived: bool,
    /// Made not before.
    pub created_from: Option<Timestamp>,
    /// Made before.
    pub created_to: Option<Timestamp>,
    /// With this in the name or the company, whatever the case.
    pub search: Option<String>,
}

/// What clients are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum ClientOrder {
    CreatedAt,
    UpdatedAt,
    Name,
    Company,
}

impl ClientOrder {
    /// Where a client stands in this ordering.
    #[must_use]
    pub fn position(self, client: &Client) -> Position {
        let key = match self {
            Self::CreatedAt => SortKey::Number(client.created_at.micros()),
            Self::UpdatedAt => SortKey::Number(client.updated_at.micros()),
            Self::Name => SortKey::Text(fold(&client.name)),
            Self::Company => SortKey::Text(client.company.as_deref().map(fold).unwrap_or_default()),
        };
        Position { key, id: client.id.to_string() }
    }
}

macro_rules! filtered {
    ($backend:ident, $permit:expr, $filter:expr, $search:expr) => {{
        let filter: &ClientFilter = $filter;
        let mut query =
            clients::table.filter(clients::organization_id.eq($permit.organization())).into_boxed::<$backend>();
        match &filter.status {
            None if filter.include_archived => {}
            None => query = query.filter(clients::archived_at.is_null()),
            Some(statuses) => {
                let is_in_one = clients::status.eq_any(distinct(statuses)).and(clients::archived_at.is_null());
                query = if statuses.contains(&ClientStatus::Archived) {
                    query.filter(is_in_one.or(clients::archived_at.is_not_null()))
                } else {
                    query.filter(is_in_one)
                };
            }
        }
        if let Some(owner) = filter.owner_id {
            query = query.filter(clients::owner_id.eq(owner));
        }
        if let Some(from) = filter.created_from {
            query = query.filter(clients::created_at.ge(from));
        }
        if let Some(to) = filter.created_to {
            query = query.filter(clients::created_at.lt(to));
        }
        if let Some(search) = $search {
            query = query.filter(search);
        }
        query
    }};
}

/// A page of clients.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    permit: &Permit<Read>,
    filter: &ClientFilter,
    (order, direction): (ClientOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Client>> {
    use clients as t;
    let search = searched!(conn, clients, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, permit, filter, search).select(Client::as_select());
        match order {
            ClientOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            ClientOrder::UpdatedAt => keyset!(query, page, direction, t::updated_at, t::id, Timestamp),
            ClientOrder::Name => keyset!(query, page, direction, t::name_folded, t::id, String),
            ClientOrder::Company => keyset!(query, page, direction, t::company_folded, t::id, String),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// How many clients there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, permit: &Permit<Read>, filter: &ClientFilter) -> Result<i64> {
    let search = searched!(conn, clients, filter);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter, search).count().get_result(c).await?))
}

/// The clients among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, permit: &Permit<Read>, ids: &[ClientId]) -> Result<Vec<Client>> {
    Ok(on_conn!(conn, |c| clients::table
        .filter(clients::organization_id.eq(permit.organization()).and(clients::id.eq_any(ids)))
        .select(Client::as_select())
        .load(c)
        .await?))
}

/// One client, locked to the end of the transaction: whoever adds to it sees whether it is archived.
///
/// # Errors
/// Where the database fails.
pub async fn lock<G: Grant>(tx: &mut Tx, permit: &Permit<G>, id: ClientId) -> Result<Option<Client>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(
        conn,
        clients::table
            .filter(clients::organization_id.eq(permit.organization()).and(clients::id.eq(id)))
            .select(Client::as_select())
    )
    .optional()?)
}

/// Inserts a client into the permit's organization.
///
/// # Errors
/// Where the database fails.
pub async fn insert(tx: &mut Tx, permit: &Permit<WriteClients>, client: &Client) -> Result<()> {
    let (name, company, search_text) = client.derived();
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(clients::table)
        .values((
            client,
            clients::organization_id.eq(permit.organization()),
            clients::name_folded.eq(&name),
            clients::company_folded.eq(&company),
            clients::search_text.eq(&search_text)
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// Inserts many clients into the permit's organization.
///
/// # Errors
/// Where the database fails.
pub async fn insert_all(tx: &mut Tx, permit: &Permit<WriteClients>, clients: &[Client]) -> Result<()> {
    let conn = tx.conn().await?;
    insert_all!(conn, clients::table, clients, |client| {
        let (name, company, search_text) = client.derived();
        (
            client,
            clients::organization_id.eq(permit.organization()),
            clients::name_folded.eq(name),
            clients::company_folded.eq(company),
            clients::search_text.eq(search_text),
        )
    });
    Ok(())
}

/// Replaces a client as it was at the version before.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version.
pub async fn update<G: Grant>(tx: &mut Tx, permit: &Permit<G>, client: &Client) -> Result<()> {
    let (name, company, search_text) = client.derived();
    let target = clients::table.filter(
        clients::organization_id
            .eq(permit.organization())
            .and(clients::id.eq(client.id))
            .and(clients::version.eq(client.version - 1)),
    );
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target)
        .set((
            client,
            clients::name_folded.eq(&name),
            clients::company_folded.eq(&company),
            clients::search_text.eq(&search_text)
        ))
        .execute(c)
        .await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}
