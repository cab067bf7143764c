//! What mails carry to show who reads them. Whoever uses one need not be signed in, so this takes no permit: a token is reached by its
//! digest.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::Result;
use super::tables::{mail_tokens, users};
use super::tx::Tx;
use super::user::User;
use crate::model::{Email, MailTokenPurpose, Timestamp, UserId};

/// A token that was sent by mail.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = mail_tokens, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_default_value = false)]
pub struct MailToken {
    /// The keyed digest: the token itself is nowhere but in the mail.
    pub digest: Vec<u8>,
    /// What it is good for.
    pub purpose: MailTokenPurpose,
    /// Whose it is; none where the address is nobody's, and no mail was sent.
    pub user_id: Option<UserId>,
    /// Where it was sent to.
    pub email: Email,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it serves.
    pub expires_at: Timestamp,
}

/// Notes a token.
///
/// # Errors
/// Where the database fails.
pub async fn add(tx: &mut Tx, token: &MailToken) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(mail_tokens::table).values(token).execute(c).await?);
    Ok(())
}

/// The same, and the one before it of its user and purpose ends.
///
/// # Errors
/// Where the database fails.
pub async fn replace(tx: &mut Tx, token: &MailToken) -> Result<()> {
    let conn = tx.conn().await?;
    let earlier = mail_tokens::user_id.eq(token.user_id).and(mail_tokens::purpose.eq(token.purpose));
    on_conn!(conn, |c| diesel::delete(mail_tokens::table.filter(earlier)).execute(c).await?);
    add(tx, token).await
}

/// The token with one of the digests, one for each key that it may have been made with, its user, and the hash of the user's password.
///
/// # Errors
/// Where the database fails.
pub async fn find(
    conn: &mut Conn,
    purpose: MailTokenPurpose,
    digests: &[Vec<u8>],
) -> Result<Option<(MailToken, User, Option<String>)>> {
    Ok(on_conn!(conn, |c| mail_tokens::table
        .inner_join(users::table)
        .filter(mail_tokens::digest.eq_any(digests).and(mail_tokens::purpose.eq(purpose)))
        .filter(users::deleted_at.is_null())
        .select((MailToken::as_select(), User::as_select(), users::password_hash))
        .first(c)
        .await
        .optional()?))
}

/// Uses a token of a user who is locked already. Returns whether it was still there.
///
/// # Errors
/// Where the database fails.
pub async fn take(tx: &mut Tx, token: &MailToken) -> Result<bool> {
    let conn = tx.conn().await?;
    let ended = on_conn!(conn, |c| diesel::delete(mail_tokens::table.find(&token.digest)).execute(c).await?);
    Ok(ended > 0)
}

/// Ends the tokens of a user, but for one that verifies the address that the user has: what else is on its way may have been asked for
/// by somebody who knew the password.
///
/// # Errors
/// Where the database fails.
pub async fn end_others(tx: &mut Tx, user: &User) -> Result<()> {
    let conn = tx.conn().await?;
    let is_other = mail_tokens::purpose.ne(MailTokenPurpose::VerifyEmail).or(mail_tokens::email.ne(&user.email));
    let others = mail_tokens::table.filter(mail_tokens::user_id.eq(Some(user.id))).filter(is_other);
    on_conn!(conn, |c| diesel::delete(others).execute(c).await?);
    Ok(())
}

/// Ends all tokens of a user.
///
/// # Errors
/// Where the database fails.
pub(super) async fn end_all(tx: &mut Tx, user: UserId) -> Result<()> {
    let conn = tx.conn().await?;
    let own = mail_tokens::table.filter(mail_tokens::user_id.eq(Some(user)));
    on_conn!(conn, |c| diesel::delete(own).execute(c).await?);
    Ok(())
}
