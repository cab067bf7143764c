//! Who answers in a conversation. Bookkeeping of the servers: there is no deed and no permit.

use chrono::TimeDelta;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, Db, on_conn};
use super::database_clock;
use super::error::Result;
use super::tables::conversations as t;
use super::tx::Tx;
use crate::model::{ConversationId, Timestamp};

/// That somebody answers in a conversation.
#[derive(Debug, Clone)]
pub struct ConversationLease {
    /// Where.
    pub conversation: ConversationId,
    /// Who: no two turns have one name.
    pub holder: String,
}

/// For how long a lease holds, from now: by the database's clock, or where it has none by the program's.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// The program's time.
    pub now: Timestamp,
    /// How long.
    pub length: TimeDelta,
}

impl Term {
    async fn times(self, conn: &mut Conn) -> Result<(Timestamp, Timestamp)> {
        let now = database_clock::now(conn).await?.unwrap_or(self.now);
        Ok((now, now + self.length))
    }
}

/// Takes the lease where nobody has it, and the conversation still has so many messages. Returns whether it was taken.
///
/// # Errors
/// Where the database fails.
pub async fn take(db: &Db, lease: &ConversationLease, messages: i32, term: Term) -> Result<bool> {
    let taken = write(db, async |conn| {
        let (now, until) = term.times(conn).await?;
        let free = t::answering_until.is_null().or(t::answering_until.le(now));
        let target = t::table.filter(t::id.eq(lease.conversation).and(t::message_count.eq(messages))).filter(free);
        let taken = (t::answering_by.eq(&lease.holder), t::answering_until.eq(until));
        Ok(on_conn!(conn, |c| diesel::update(target).set(taken).execute(c).await?))
    });
    Ok(taken.await? > 0)
}

/// Renews the lease. Returns whether it was still there.
///
/// # Errors
/// Where the database fails.
pub async fn renew(db: &Db, lease: &ConversationLease, term: Term) -> Result<bool> {
    let renewed = write(db, async |conn| {
        let (_, until) = term.times(conn).await?;
        let target = t::table.filter(t::id.eq(lease.conversation).and(t::answering_by.eq(&lease.holder)));
        Ok(on_conn!(conn, |c| diesel::update(target).set(t::answering_until.eq(until)).execute(c).await?))
    });
    Ok(renewed.await? > 0)
}

/// Gives the lease back.
///
/// # Errors
/// Where the database fails: then it runs out.
pub async fn give_back(db: &Db, lease: &ConversationLease) -> Result<()> {
    write(db, async |conn| clear(conn, lease).await).await.map(|_| ())
}

/// Gives the lease back together with what is written.
///
/// # Errors
/// Where the database fails.
pub async fn end(tx: &mut Tx, lease: &ConversationLease) -> Result<()> {
    clear(tx.conn().await?, lease).await.map(|_| ())
}

async fn clear(conn: &mut Conn, lease: &ConversationLease) -> Result<usize> {
    let target = t::table.filter(t::id.eq(lease.conversation).and(t::answering_by.eq(&lease.holder)));
    let nobody = (t::answering_by.eq(None::<String>), t::answering_until.eq(None::<Timestamp>));
    Ok(on_conn!(conn, |c| diesel::update(target).set(nobody).execute(c).await?))
}

async fn write(db: &Db, statement: impl AsyncFnOnce(&mut Conn) -> Result<usize>) -> Result<usize> {
    Tx::bookkeeping(db, async |tx| statement(tx.conn().await?).await).await
}
