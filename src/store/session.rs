//! Sessions and their refresh tokens. Signing in and refreshing come before anybody is known, so these functions take no
//! permit: a session is reached by its token's digest, or by its id from a verified access token.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::Result;
use super::locks::first_locked;
use super::tables::{refresh_tokens, sessions, users};
use super::tx::Tx;
use super::user::{self, User};
use crate::model::{OrganizationId, RefreshTokenId, SessionId, Timestamp, UserId};

/// One sign-in on one device.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = sessions, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct Session {
    /// The id.
    pub id: SessionId,
    /// The user's organization.
    pub organization_id: OrganizationId,
    /// The user.
    pub user_id: UserId,
    /// Which of its refresh tokens is the current one, from 1.
    pub generation: i32,
    /// The address that it was last used from.
    pub ip_address: Option<String>,
    /// The program that it was last used by.
    pub user_agent: Option<String>,
    /// When the user signed in.
    pub created_at: Timestamp,
    /// When it was last refreshed.
    pub last_used_at: Timestamp,
    /// When it ends, unless it is refreshed before.
    pub expires_at: Timestamp,
    /// When it was ended.
    pub revoked_at: Option<Timestamp>,
}

impl Session {
    /// Whether it has neither been ended nor run out.
    #[must_use]
    pub fn is_alive(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at > now
    }
}

/// A refresh token that a session has or had.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = refresh_tokens, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct RefreshToken {
    /// The id.
    pub id: RefreshTokenId,
    /// The session.
    pub session_id: SessionId,
    /// The keyed digest: the token itself is nowhere.
    pub digest: Vec<u8>,
    /// The how-manieth of its session, from 1.
    pub generation: i32,
    /// When it was issued.
    pub created_at: Timestamp,
}

/// Inserts a session with its first refresh token.
///
/// # Errors
/// Where the database fails.
pub async fn insert(tx: &mut Tx, session: &Session, token: &RefreshToken) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(sessions::table).values(session).execute(c).await?);
    insert_token(tx, token).await
}

async fn insert_token(tx: &mut Tx, token: &RefreshToken) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(refresh_tokens::table).values(token).execute(c).await?);
    Ok(())
}

/// The token with one of the digests: one for each key that it may have been made with.
///
/// # Errors
/// Where the database fails.
pub async fn find_token(conn: &mut Conn, digests: &[Vec<u8>]) -> Result<Option<RefreshToken>> {
    Ok(on_conn!(conn, |c| refresh_tokens::table
        .filter(refresh_tokens::digest.eq_any(digests))
        .select(RefreshToken::as_select())
        .first(c)
        .await
        .optional()?))
}

/// When the session's token of this generation was issued.
///
/// # Errors
/// Where the database fails.
pub async fn issued_at(tx: &mut Tx, session: SessionId, generation: i32) -> Result<Option<Timestamp>> {
    let conn = tx.conn().await?;
    Ok(on_conn!(conn, |c| refresh_tokens::table
        .filter(refresh_tokens::session_id.eq(session).and(refresh_tokens::generation.eq(generation)))
        .select(refresh_tokens::created_at)
        .first(c)
        .await
        .optional()?))
}

/// The session and its user, locked to the end of the transaction. A user is always locked before any of the user's sessions:
/// two that lock in different orders would wait for each other.
///
/// # Errors
/// Where the database fails.
pub async fn lock_with_user(tx: &mut Tx, id: SessionId) -> Result<Option<(Session, User)>> {
    let conn = tx.conn().await?;
    let owner = on_conn!(conn, |c| sessions::table.find(id).select(sessions::user_id).first(c).await.optional()?);
    let Some(owner) = owner else { return Ok(None) };
    let Some(user) = user::lock(tx, owner).await? else { return Ok(None) };
    let conn = tx.conn().await?;
    let session = first_locked!(conn, sessions::table.find(id).select(Session::as_select())).optional()?;
    Ok(session.map(|session| (session, user)))
}

/// Makes `token` the session's current one.
///
/// # Errors
/// Where the database fails.
pub async fn rotate(tx: &mut Tx, session: &Session, token: &RefreshToken) -> Result<()> {
    insert_token(tx, token).await?;
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(sessions::table.find(session.id))
        .set((
            sessions::generation.eq(session.generation),
            sessions::ip_address.eq(&session.ip_address),
            sessions::user_agent.eq(&session.user_agent),
            sessions::last_used_at.eq(session.last_used_at),
            sessions::expires_at.eq(session.expires_at),
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// Ends a session. Returns whether it was alive.
///
/// # Errors
/// Where the database fails.
pub async fn revoke(tx: &mut Tx, id: SessionId, at: Timestamp) -> Result<bool> {
    let conn = tx.conn().await?;
    let ended = on_conn!(conn, |c| diesel::update(sessions::table.find(id).filter(sessions::revoked_at.is_null()))
        .set(sessions::revoked_at.eq(Some(at)))
        .execute(c)
        .await?);
    Ok(ended > 0)
}

/// Ends all sessions of a user who is locked already. Returns how many were alive.
///
/// # Errors
/// Where the database fails.
pub async fn revoke_all(tx: &mut Tx, user: UserId, at: Timestamp) -> Result<usize> {
    let conn = tx.conn().await?;
    Ok(on_conn!(conn, |c| diesel::update(
        sessions::table.filter(sessions::user_id.eq(user).and(sessions::revoked_at.is_null()))
    )
    .set(sessions::revoked_at.eq(Some(at)))
    .execute(c)
    .await?))
}

/// Ends all sessions of a user who is locked already, but one. Returns how many were alive.
///
/// # Errors
/// Where the database fails.
pub async fn revoke_others(tx: &mut Tx, user: UserId, but: SessionId, at: Timestamp) -> Result<usize> {
    let conn = tx.conn().await?;
    let others = sessions::user_id.eq(user).and(sessions::id.ne(but)).and(sessions::revoked_at.is_null());
    Ok(on_conn!(conn, |c| diesel::update(sessions::table.filter(others))
        .set(sessions::revoked_at.eq(Some(at)))
        .execute(c)
        .await?))
}

/// The session and its user, as they are now: what a request with an access token is judged by.
///
/// # Errors
/// Where the database fails.
pub async fn find_with_user(conn: &mut Conn, id: SessionId) -> Result<Option<(Session, User)>> {
    Ok(on_conn!(conn, |c| sessions::table
        .inner_join(users::table)
        .filter(sessions::id.eq(id).and(users::deleted_at.is_null()))
        .select((Session::as_select(), User::as_select()))
        .first(c)
        .await
        .optional()?))
}

/// The user's sessions among `ids` that are alive, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, user: UserId, now: Timestamp, ids: &[SessionId]) -> Result<Vec<Session>> {
    Ok(on_conn!(conn, |c| sessions::table
        .filter(sessions::user_id.eq(user).and(sessions::id.eq_any(ids)))
        .filter(sessions::revoked_at.is_null().and(sessions::expires_at.gt(now)))
        .select(Session::as_select())
        .load(c)
        .await?))
}

/// The user's sessions that are alive, newest first; at most 100, which nobody reaches who signs in by hand.
///
/// # Errors
/// Where the database fails.
pub async fn find_alive(conn: &mut Conn, user: UserId, now: Timestamp) -> Result<Vec<Session>> {
    Ok(on_conn!(conn, |c| sessions::table
        .filter(sessions::user_id.eq(user).and(sessions::revoked_at.is_null()).and(sessions::expires_at.gt(now)))
        .order((sessions::created_at.desc(), sessions::id.desc()))
        .limit(100)
        .select(Session::as_select())
        .load(c)
        .await?))
}
