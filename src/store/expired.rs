//! What has ended and nobody needs any more: sessions with their refresh tokens, invitations, tokens by mail, digests of replaced API keys.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Db, on_conn};
use super::error::Result;
use super::locks::all_locked_that_are_free;
use super::tables::{api_key_digests, invitations, mail_tokens, refresh_tokens, sessions};
use super::tx::Tx;
use crate::model::{RefreshTokenId, SessionId, Timestamp, UserId};

/// What can be removed, whosever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Refresh tokens of sessions that would have ended by themselves. They come before their sessions, which may have
    /// thousands.
    RefreshTokens,
    /// Sessions that would have ended by themselves, whether they were ended before or not.
    Sessions,
    /// Invitations that were not accepted.
    Invitations,
    /// Tokens by mail that were not used.
    MailTokens,
    /// What raw API keys were found by that have been replaced.
    ApiKeyDigests,
}

/// Removes at most so many that have ended before a time, in a transaction. Returns how many it were. No user can do anything
/// with them any more, so this is bookkeeping: the audit log has no entry.
///
/// # Errors
/// Where the database fails.
pub async fn remove(db: &Db, what: Ended, before: Timestamp, most: i64) -> Result<usize> {
    Tx::bookkeeping(db, async |tx| delete(tx, what, before, most).await).await
}

/// Rows that somebody has locked are left for the next time, so that nobody who locks several can be waiting in a circle.
async fn delete(tx: &mut Tx, what: Ended, before: Timestamp, most: i64) -> Result<usize> {
    use {api_key_digests as d, invitations as i, mail_tokens as m, refresh_tokens as r, sessions as s};
    let conn = tx.conn().await?;
    Ok(match what {
        Ended::RefreshTokens => {
            // Nobody locks the tokens of such a session.
            let ended = r::table.inner_join(s::table).filter(s::expires_at.lt(before)).limit(most).select(r::id);
            let ids: Vec<RefreshTokenId> = on_conn!(conn, |c| ended.load(c).await?);
            on_conn!(conn, |c| diesel::delete(r::table.filter(r::id.eq_any(&ids))).execute(c).await?)
        }
        Ended::Sessions => {
            let ended = s::table.filter(s::expires_at.lt(before)).limit(most).select(s::id);
            let ids: Vec<SessionId> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(s::table.filter(s::id.eq_any(&ids))).execute(c).await?)
        }
        Ended::Invitations => {
            let ended = i::table.filter(i::expires_at.lt(before)).limit(most).select(i::user_id);
            let ids: Vec<UserId> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(i::table.filter(i::user_id.eq_any(&ids))).execute(c).await?)
        }
        Ended::MailTokens => {
            let ended = m::table.filter(m::expires_at.lt(before)).limit(most).select(m::digest);
            let digests: Vec<Vec<u8>> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(m::table.filter(m::digest.eq_any(&digests))).execute(c).await?)
        }
        Ended::ApiKeyDigests => {
            let ended = d::table.filter(d::expires_at.lt(Some(before))).limit(most).select(d::digest);
            let digests: Vec<Vec<u8>> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(d::table.filter(d::digest.eq_any(&digests))).execute(c).await?)
        }
    })
}
