//! Invitations: how a user who has no password yet gets one. Accepting comes before anybody is known, so it takes no permit: an
//! invitation is reached by its token's digest.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::Result;
use super::tables::{invitations, users};
use super::tx::Tx;
use super::user::User;
use crate::model::{Timestamp, UserId};

/// The one invitation of a user who has not accepted it yet.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = invitations, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct Invitation {
    /// Who is invited.
    pub user_id: UserId,
    /// The keyed digest of the token: the token itself is nowhere.
    pub digest: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it can be accepted.
    pub expires_at: Timestamp,
}

/// Invites a user who is locked already. The invitation before this one ends.
///
/// # Errors
/// Where the database fails.
pub async fn replace(tx: &mut Tx, invitation: &Invitation) -> Result<()> {
    end(tx, invitation.user_id).await?;
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(invitations::table).values(invitation).execute(c).await?);
    Ok(())
}

/// The invitation with one of the digests, one for each key that it may have been made with, and whom it invites.
///
/// # Errors
/// Where the database fails.
pub async fn find(conn: &mut Conn, digests: &[Vec<u8>]) -> Result<Option<(Invitation, User)>> {
    Ok(on_conn!(conn, |c| invitations::table
        .inner_join(users::table)
        .filter(invitations::digest.eq_any(digests).and(users::deleted_at.is_null()))
        .select((Invitation::as_select(), User::as_select()))
        .first(c)
        .await
        .optional()?))
}

/// Uses an invitation of a user who is locked already. Returns whether it was still there: another may have been used or made
/// since it was read.
///
/// # Errors
/// Where the database fails.
pub async fn take(tx: &mut Tx, invitation: &Invitation) -> Result<bool> {
    let conn = tx.conn().await?;
    let taken = on_conn!(conn, |c| diesel::delete(
        invitations::table.find(invitation.user_id).filter(invitations::digest.eq(&invitation.digest))
    )
    .execute(c)
    .await?);
    Ok(taken > 0)
}

/// Ends the invitation of a user, if there is one.
///
/// # Errors
/// Where the database fails.
pub async fn end(tx: &mut Tx, user: UserId) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::delete(invitations::table.find(user)).execute(c).await?);
    Ok(())
}
