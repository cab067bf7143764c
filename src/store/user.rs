//! Users. One who is deleted stays as a row, for what refers to it, and is found by nothing but [`find_many_ever`].

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::api_key;
use super::backend::{Conn, on_conn};
use super::error::{Error, Result};
use super::fields::{distinct, fold};
use super::locks::{all_locked_but_for_references, first_locked};
use super::mail_token;
use super::page::{bounded, keyset};
use super::search::searched;
use super::tables::{conversations, users};
use super::tx::Tx;
use crate::model::{
    ApiKeyId, Direction, Email, Grant, ManageOneself, ManageUsers, OrganizationId, Page, PageSlice, Permit, Position,
    Read, Role, SortKey, Timestamp, UserId, UserStatus, ViewUsers,
};

/// A person who belongs to one organization.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = users, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The organization.
    pub organization_id: OrganizationId,
    /// The address. The one to sign in with is unique over all organizations among those who are not deleted; one that was
    /// registered and is not verified yet, or invited and has not accepted, is nobody's.
    pub email: Email,
    /// The name.
    pub full_name: String,
    /// The role in the organization.
    pub role: Role,
    /// Whether the user may sign in.
    pub status: UserStatus,
    /// When the address was shown to be the user's.
    pub email_verified_at: Option<Timestamp>,
    /// When the user last signed in.
    pub last_sign_in_at: Option<Timestamp>,
    /// When the user was made.
    pub created_at: Timestamp,
    /// When the user was last changed.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

impl User {
    /// Columns that follow from others: the folded name, what is searched, and when the user last signed in, for sorting.
    fn derived(&self) -> (String, String, Timestamp) {
        // A line each: a search term has no line break, so it never matches across two fields.
        let search_text = format!("{}\n{}", fold(&self.full_name), fold(self.email.as_str()));
        (fold(&self.full_name), search_text, sign_in_rank(self.last_sign_in_at))
    }
}

/// Never ranks as 1970: a column without nulls is in one order on every database.
fn sign_in_rank(at: Option<Timestamp>) -> Timestamp {
    at.unwrap_or(DateTime::<Utc>::UNIX_EPOCH.into())
}

/// Which users.
#[derive(Debug, Clone, Default)]
pub struct UserFilter {
    /// With these roles.
    pub role: Option<Vec<Role>>,
    /// In these states.
    pub status: Option<Vec<UserStatus>>,
    /// With this in the name or the address, whatever the case.
    pub search: Option<String>,
}

/// What users are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum UserOrder {
    CreatedAt,
    Email,
    FullName,
    LastSignInAt,
}

impl UserOrder {
    /// Where a user stands in this ordering.
    #[must_use]
    pub fn position(self, user: &User) -> Position {
        let key = match self {
            Self::CreatedAt => SortKey::Number(user.created_at.micros()),
            Self::Email => SortKey::Text(user.email.as_str().to_owned()),
            Self::FullName => SortKey::Text(fold(&user.full_name)),
            Self::LastSignInAt => SortKey::Number(sign_in_rank(user.last_sign_in_at).micros()),
        };
        Position { key, id: user.id.to_string() }
    }
}

macro_rules! filtered {
    ($backend:ident, $permit:expr, $filter:expr, $search:expr) => {{
        let filter: &UserFilter = $filter;
        let mut query = users::table
            .filter(users::organization_id.eq($permit.organization()).and(users::deleted_at.is_null()))
            .into_boxed::<$backend>();
        if let Some(roles) = &filter.role {
            query = query.filter(users::role.eq_any(distinct(roles)));
        }
        if let Some(statuses) = &filter.status {
            query = query.filter(users::status.eq_any(distinct(statuses)));
        }
        if let Some(search) = $search {
            query = query.filter(search);
        }
        query
    }};
}

/// A page of users.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    permit: &Permit<ViewUsers>,
    filter: &UserFilter,
    (order, direction): (UserOrder, Direction),
    page: &Page,
) -> Result<PageSlice<User>> {
    use users as t;
    let search = searched!(conn, users, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, permit, filter, search).select(User::as_select());
        match order {
            UserOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            UserOrder::Email => keyset!(query, page, direction, t::email, t::id, String),
            UserOrder::FullName => keyset!(query, page, direction, t::full_name_folded, t::id, String),
            UserOrder::LastSignInAt => keyset!(query, page, direction, t::last_sign_in_rank, t::id, Timestamp),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// How many users there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, permit: &Permit<ViewUsers>, filter: &UserFilter) -> Result<i64> {
    let search = searched!(conn, users, filter);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter, search).count().get_result(c).await?))
}

/// Inserts a user without a password.
///
/// # Errors
/// [`Error::Duplicate`] where the address is taken.
pub async fn insert(tx: &mut Tx, user: &User) -> Result<()> {
    insert_under(tx, user, Some(&user.email)).await
}

/// The same, but the address counts for nothing yet: nobody signs in with it, and it stays free for others, until
/// [`claim_address`].
///
/// # Errors
/// Where the database fails.
pub async fn insert_unverified(tx: &mut Tx, user: &User) -> Result<()> {
    insert_under(tx, user, None).await
}

async fn insert_under(tx: &mut Tx, user: &User, email_key: Option<&Email>) -> Result<()> {
    let (name, search_text, rank) = user.derived();
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(users::table)
        .values((
            user,
            users::email_key.eq(email_key),
            users::full_name_folded.eq(&name),
            users::search_text.eq(&search_text),
            users::last_sign_in_rank.eq(rank),
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// The user with the address, in any organization, and the hash of the password: for signing in, where nobody is known yet.
///
/// # Errors
/// Where the database fails.
pub async fn find_by_email(conn: &mut Conn, email: &Email) -> Result<Option<(User, Option<String>)>> {
    Ok(on_conn!(conn, |c| users::table
        .filter(users::email_key.eq(Some(email)))
        .select((User::as_select(), users::password_hash))
        .first(c)
        .await
        .optional()?))
}

/// A user of the caller's organization, and the hash of the password: for the caller itself, who gives the password once more.
///
/// # Errors
/// Where the database fails.
pub async fn find_with_hash(
    conn: &mut Conn,
    permit: &Permit<ManageOneself>,
    id: UserId,
) -> Result<Option<(User, Option<String>)>> {
    Ok(on_conn!(conn, |c| users::table
        .filter(users::organization_id.eq(permit.organization()).and(users::id.eq(id)).and(users::deleted_at.is_null()))
        .select((User::as_select(), users::password_hash))
        .first(c)
        .await
        .optional()?))
}

/// A user of the caller's organization.
///
/// # Errors
/// Where the database fails.
pub async fn find(conn: &mut Conn, permit: &Permit<Read>, id: UserId) -> Result<Option<User>> {
    Ok(on_conn!(conn, |c| users::table
        .filter(users::organization_id.eq(permit.organization()).and(users::id.eq(id)).and(users::deleted_at.is_null()))
        .select(User::as_select())
        .first(c)
        .await
        .optional()?))
}

/// The users of the caller's organization among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, permit: &Permit<Read>, ids: &[UserId]) -> Result<Vec<User>> {
    Ok(on_conn!(conn, |c| users::table
        .filter(
            users::organization_id
                .eq(permit.organization())
                .and(users::id.eq_any(ids))
                .and(users::deleted_at.is_null())
        )
        .select(User::as_select())
        .load(c)
        .await?))
}

/// The same, and those who are deleted: for what remembers who they were.
///
/// # Errors
/// Where the database fails.
pub async fn find_many_ever(conn: &mut Conn, permit: &Permit<Read>, ids: &[UserId]) -> Result<Vec<User>> {
    Ok(on_conn!(conn, |c| users::table
        .filter(users::organization_id.eq(permit.organization()).and(users::id.eq_any(ids)))
        .select(User::as_select())
        .load(c)
        .await?))
}

/// The user, locked to the end of the transaction: for one's own sign-in, where a permit does not exist yet.
///
/// # Errors
/// Where the database fails.
pub async fn lock(tx: &mut Tx, id: UserId) -> Result<Option<User>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(conn, users::table.find(id).filter(users::deleted_at.is_null()).select(User::as_select()))
        .optional()?)
}

/// The same, with the hash of the password.
///
/// # Errors
/// Where the database fails.
pub async fn lock_with_hash(tx: &mut Tx, id: UserId) -> Result<Option<(User, Option<String>)>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(
        conn,
        users::table.find(id).filter(users::deleted_at.is_null()).select((User::as_select(), users::password_hash))
    )
    .optional()?)
}

/// The users of the caller's organization among `ids`, locked to the end of the transaction in the order of their ids: nobody
/// changes or deletes them meanwhile. What refers to them may still be made.
///
/// # Errors
/// Where the database fails.
pub async fn lock_many<G>(tx: &mut Tx, permit: &Permit<G>, ids: &[UserId]) -> Result<Vec<User>> {
    let conn = tx.conn().await?;
    Ok(all_locked_but_for_references!(
        conn,
        users::table
            .filter(users::organization_id.eq(permit.organization()).and(users::id.eq_any(ids)))
            .filter(users::deleted_at.is_null())
            .order(users::id)
            .select(User::as_select())
    )?)
}

/// A user of the permit's organization, locked to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock_member(tx: &mut Tx, permit: &Permit<ManageUsers>, id: UserId) -> Result<Option<User>> {
    Ok(lock(tx, id).await?.filter(|user| user.organization_id == permit.organization()))
}

/// The user of the permit's organization with the address, whether it counts or not, but first the one for whom it does, locked to the end
/// of the transaction: for inviting.
///
/// # Errors
/// Where the database fails.
pub async fn lock_member_by_email(tx: &mut Tx, permit: &Permit<ManageUsers>, email: &Email) -> Result<Option<User>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(
        conn,
        users::table
            .filter(users::organization_id.eq(permit.organization()).and(users::deleted_at.is_null()))
            .filter(users::email.eq(email))
            .order((users::email_key.is_null(), users::id))
            .select(User::as_select())
    )
    .optional()?)
}

/// Whether the organization has an active ADMIN beside this user. Whoever takes away one's right locks the organization first,
/// so that of two who take it from each other, the second sees what the first has done.
///
/// # Errors
/// Where the database fails.
pub async fn has_other_admin<G: Grant>(tx: &mut Tx, permit: &Permit<G>, id: UserId) -> Result<bool> {
    let conn = tx.conn().await?;
    let other = on_conn!(conn, |c| users::table
        .filter(users::organization_id.eq(permit.organization()).and(users::deleted_at.is_null()))
        .filter(users::role.eq(Role::Admin).and(users::status.eq(UserStatus::Active)).and(users::id.ne(id)))
        .select(users::id)
        .first::<UserId>(c)
        .await
        .optional()?);
    Ok(other.is_some())
}

/// Replaces a user who is locked already, as it was at the version before. Whoever accepts an invitation has no permit yet.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version.
pub async fn update(tx: &mut Tx, user: &User) -> Result<()> {
    let (name, search_text, rank) = user.derived();
    let target = users::table
        .find(user.id)
        .filter(users::organization_id.eq(user.organization_id).and(users::deleted_at.is_null()))
        .filter(users::version.eq(user.version - 1));
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target)
        .set((
            user,
            users::full_name_folded.eq(&name),
            users::search_text.eq(&search_text),
            users::last_sign_in_rank.eq(rank),
        ))
        .execute(c)
        .await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Whether the address of a user counts: one that was registered does once it is verified, one that was invited once it is claimed.
///
/// # Errors
/// Where the database fails.
pub async fn holds_address(tx: &mut Tx, id: UserId) -> Result<bool> {
    let conn = tx.conn().await?;
    let holder = on_conn!(conn, |c| users::table
        .find(id)
        .filter(users::email_key.is_not_null())
        .select(users::id)
        .first::<UserId>(c)
        .await
        .optional()?);
    Ok(holder.is_some())
}

/// Makes the address of a user who is locked already the one to sign in with, from [`update`] on.
///
/// # Errors
/// [`Error::Duplicate`] where it is another's by now.
pub async fn claim_address(tx: &mut Tx, user: &User) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(users::table.find(user.id))
        .set(users::email_key.eq(Some(&user.email)))
        .execute(c)
        .await?);
    Ok(())
}

/// Deletes a user who is locked already, and revokes the user's API keys: the row stays, for what refers to it, and the address
/// is free again. Nobody signs in as this user any more, by whatever it is judged. The user's conversations go: they were nobody else's,
/// and nobody could delete them after. Returns the keys that were not revoked before.
///
/// # Errors
/// Where the database fails.
pub async fn delete(tx: &mut Tx, permit: &Permit<ManageUsers>, id: UserId, at: Timestamp) -> Result<Vec<ApiKeyId>> {
    remove(tx, permit.organization(), id, at).await
}

/// The same, for the caller itself, who is locked already.
///
/// # Errors
/// Where the database fails.
pub async fn leave(tx: &mut Tx, permit: &Permit<ManageOneself>, id: UserId, at: Timestamp) -> Result<Vec<ApiKeyId>> {
    remove(tx, permit.organization(), id, at).await
}

async fn remove(tx: &mut Tx, organization: OrganizationId, id: UserId, at: Timestamp) -> Result<Vec<ApiKeyId>> {
    let revoked = api_key::revoke_all(tx, id, at).await?;
    mail_token::end_all(tx, id).await?;
    let conn = tx.conn().await?;
    let own = conversations::organization_id.eq(organization).and(conversations::owner_id.eq(id));
    on_conn!(conn, |c| diesel::delete(conversations::table.filter(own)).execute(c).await?);
    on_conn!(conn, |c| diesel::update(
        users::table.filter(users::organization_id.eq(organization).and(users::id.eq(id)))
    )
    .set((
        users::email_key.eq(None::<Email>),
        users::password_hash.eq(None::<String>),
        users::status.eq(UserStatus::Suspended),
        users::updated_at.eq(at),
        users::deleted_at.eq(Some(at)),
        users::version.eq(users::version + 1),
    ))
    .execute(c)
    .await?);
    Ok(revoked)
}

/// Notes a sign-in.
///
/// # Errors
/// Where the database fails.
pub async fn set_last_sign_in(tx: &mut Tx, id: UserId, at: Timestamp) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(users::table.find(id))
        .set((users::last_sign_in_at.eq(Some(at)), users::last_sign_in_rank.eq(at)))
        .execute(c)
        .await?);
    Ok(())
}

/// Gives a user the first password. That counts as part of the change that [`update`] writes beside it.
///
/// # Errors
/// Where the database fails.
pub async fn set_first_password_hash(tx: &mut Tx, id: UserId, hash: &str) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(users::table.find(id))
        .set(users::password_hash.eq(Some(hash)))
        .execute(c)
        .await?);
    Ok(())
}

/// Replaces the hash of the password.
///
/// # Errors
/// Where the database fails.
pub async fn set_password_hash(tx: &mut Tx, id: UserId, hash: &str, at: Timestamp) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(users::table.find(id))
        .set((users::password_hash.eq(Some(hash)), users::updated_at.eq(at), users::version.eq(users::version + 1)))
        .execute(c)
        .await?);
    Ok(())
}
