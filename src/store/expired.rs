//! What has ended and nobody needs any more: sessions with their refresh tokens, invitations, tokens by mail, digests of replaced API keys,
//! nonces, notifications, devices.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Db, on_conn};
use super::error::Result;
use super::locks::all_locked_that_are_free;
use super::tables::{
    api_key_digests, devices, invitations, mail_tokens, notifications, password_nonces, refresh_tokens, sessions,
};
use super::tx::Tx;
use crate::model::{NotificationId, RefreshTokenId, SessionId, Timestamp, UserId};

/// What can be removed, whosever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Sessions that would have ended by themselves, whether they were ended before or not, with their refresh tokens.
    Sessions,
    /// Invitations that were not accepted.
    Invitations,
    /// Tokens by mail that were not used.
    MailTokens,
    /// What raw API keys were found by that have been replaced.
    ApiKeyDigests,
    /// Nonces that were used.
    PasswordNonces,
    /// Notifications, read or not.
    Notifications,
    /// Devices that nobody has signed in from since.
    Devices,
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
    use password_nonces as n;
    use {api_key_digests as d, invitations as i, mail_tokens as m, refresh_tokens as r, sessions as s};
    let conn = tx.conn().await?;
    Ok(match what {
        Ended::Sessions => {
            // Those first that ended first: what is found is removed, so that no row is passed over twice.
            let few = (most / 5).max(1);
            let ended =
                s::table.filter(s::expires_at.lt(before)).order((s::expires_at, s::id)).limit(few).select(s::id);
            let ids: Vec<SessionId> = all_locked_that_are_free!(conn, ended)?;
            // Their tokens come before them: a session may have thousands. Nobody locks the tokens of such a session.
            let tokens = r::table.filter(r::session_id.eq_any(&ids)).limit(most - few).select(r::id);
            let tokens: Vec<RefreshTokenId> = on_conn!(conn, |c| tokens.load(c).await?);
            on_conn!(conn, |c| diesel::delete(r::table.filter(r::id.eq_any(&tokens))).execute(c).await?);
            let is_all = i64::try_from(tokens.len()).is_ok_and(|count| count < most - few);
            let ids = if is_all { ids } else { Vec::new() };
            tokens.len() + on_conn!(conn, |c| diesel::delete(s::table.filter(s::id.eq_any(&ids))).execute(c).await?)
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
        Ended::PasswordNonces => {
            let ended = n::table.filter(n::expires_at.lt(before)).limit(most).select(n::digest);
            let digests: Vec<Vec<u8>> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(n::table.filter(n::digest.eq_any(&digests))).execute(c).await?)
        }
        Ended::Notifications => {
            use notifications as t;
            let ended = t::table.filter(t::created_at.lt(before)).limit(most).select(t::id);
            let ids: Vec<NotificationId> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(t::table.filter(t::id.eq_any(&ids))).execute(c).await?)
        }
        Ended::Devices => {
            use devices as t;
            let ended = t::table.filter(t::last_seen_at.lt(before)).limit(most).select(t::digest);
            let digests: Vec<Vec<u8>> = all_locked_that_are_free!(conn, ended)?;
            on_conn!(conn, |c| diesel::delete(t::table.filter(t::digest.eq_any(&digests))).execute(c).await?)
        }
    })
}
