//! Users.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, first_locked, on_conn};
use super::error::Result;
use super::tables::users;
use super::tx::Tx;
use crate::model::{Email, OrganizationId, Permit, Read, Role, Timestamp, UserId, UserStatus};

/// A person who belongs to one organization.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = users, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The organization.
    pub organization_id: OrganizationId,
    /// The address, unique over all organizations.
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

/// Inserts a user without a password.
///
/// # Errors
/// [`Error::Duplicate`](super::Error::Duplicate) where the address is taken.
pub async fn insert(tx: &mut Tx, user: &User) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(users::table).values(user).execute(c).await?);
    Ok(())
}

/// The user with the address, in any organization, and the hash of the password: for signing in, where nobody is known yet.
///
/// # Errors
/// Where the database fails.
pub async fn find_by_email(conn: &mut Conn, email: &Email) -> Result<Option<(User, Option<String>)>> {
    Ok(on_conn!(conn, |c| users::table
        .filter(users::email.eq(email))
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
        .filter(users::organization_id.eq(permit.organization()).and(users::id.eq(id)))
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
    Ok(first_locked!(conn, users::table.find(id).select(User::as_select())).optional()?)
}

/// The same, with the hash of the password.
///
/// # Errors
/// Where the database fails.
pub async fn lock_with_hash(tx: &mut Tx, id: UserId) -> Result<Option<(User, Option<String>)>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(conn, users::table.find(id).select((User::as_select(), users::password_hash))).optional()?)
}

/// Notes a sign-in.
///
/// # Errors
/// Where the database fails.
pub async fn set_last_sign_in(tx: &mut Tx, id: UserId, at: Timestamp) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(users::table.find(id))
        .set(users::last_sign_in_at.eq(Some(at)))
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
