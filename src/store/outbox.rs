//! The mails that are to be sent. They are written by deeds, in whose transaction they come to be; that one is being sent, was sent
//! or was given up is bookkeeping, and leaves no audit entry.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, Db, on_conn};
use super::error::Result;
use super::sealed::resealing;
use super::tables::outbox;
use super::tx::Tx;
use crate::model::{MailId, OrganizationId, Timestamp};

/// A mail that waits.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = outbox, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct WaitingMail {
    /// The id, which its Message-ID is made of.
    pub id: MailId,
    /// Whose deed it tells of.
    pub organization_id: OrganizationId,
    /// Whom it goes to and what it says, sealed.
    pub sealed: Vec<u8>,
    /// Which key of the ring sealed it.
    pub key_version: String,
    /// How often it was tried.
    pub attempts: i32,
    /// When it is tried next.
    pub due_at: Timestamp,
    /// When it was written.
    pub created_at: Timestamp,
    /// When it is not tried any more.
    pub give_up_at: Timestamp,
}

/// Adds a mail.
///
/// # Errors
/// Where the database fails.
pub async fn insert(tx: &mut Tx, mail: &WaitingMail) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(outbox::table).values(mail).execute(c).await?);
    Ok(())
}

/// The mails that are due, those first that have been for longest.
///
/// # Errors
/// Where the database fails.
pub async fn due(conn: &mut Conn, now: Timestamp, most: i64) -> Result<Vec<WaitingMail>> {
    Ok(on_conn!(conn, |c| outbox::table
        .filter(outbox::due_at.le(now))
        .order((outbox::due_at, outbox::id))
        .limit(most)
        .select(WaitingMail::as_select())
        .load(c)
        .await?))
}

/// How many mails wait.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn) -> Result<i64> {
    Ok(on_conn!(conn, |c| outbox::table.count().get_result(c).await?))
}

/// The mail, as long as nobody else has taken an attempt at it since.
macro_rules! turn {
    ($mail:expr) => {
        outbox::table.filter(outbox::id.eq($mail.id).and(outbox::attempts.eq($mail.attempts)))
    };
}

/// Takes the next attempt at a mail, unless somebody else has: until the given time nobody else does. Returns the mail as it is
/// then.
///
/// # Errors
/// Where the database fails.
pub async fn claim(db: &Db, mail: &WaitingMail, until: Timestamp) -> Result<Option<WaitingMail>> {
    let attempts = mail.attempts + 1;
    let set = (outbox::attempts.eq(attempts), outbox::due_at.eq(until));
    let claimed =
        write(db, async |conn| Ok(on_conn!(conn, |c| diesel::update(turn!(mail)).set(set).execute(c).await?)));
    Ok((claimed.await? > 0).then(|| WaitingMail { attempts, due_at: until, ..mail.clone() }))
}

/// Puts a mail off that the caller has claimed.
///
/// # Errors
/// Where the database fails.
pub async fn postpone(db: &Db, mail: &WaitingMail, until: Timestamp) -> Result<()> {
    let set = outbox::due_at.eq(until);
    write(db, async |conn| Ok(on_conn!(conn, |c| diesel::update(turn!(mail)).set(set).execute(c).await?))).await?;
    Ok(())
}

/// Removes a mail that the caller has claimed: it was sent, or is given up.
///
/// # Errors
/// Where the database fails.
pub async fn remove(db: &Db, mail: &WaitingMail) -> Result<()> {
    write(db, async |conn| Ok(on_conn!(conn, |c| diesel::delete(turn!(mail)).execute(c).await?))).await?;
    Ok(())
}

async fn write(db: &Db, statement: impl AsyncFnOnce(&mut Conn) -> Result<usize>) -> Result<usize> {
    Tx::bookkeeping(db, async |tx| statement(tx.conn().await?).await).await
}

resealing!(outbox, WaitingMail, MailId, sealed);
