//! From where, and with what, users have signed in. Signing in comes before anybody is known, so this takes no permit.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::on_conn;
use super::error::Result;
use super::tables::devices;
use super::tx::Tx;
use crate::model::{Timestamp, UserId};

/// Notes that a user, who is locked already, signs in from a device. It is known by one of the digests, one for each key that it may have
/// been noted with, and from then on by the first, which is the newest key's. Returns whether it was known.
///
/// # Errors
/// Where the database fails.
pub async fn note(tx: &mut Tx, user: UserId, digests: &[Vec<u8>], now: Timestamp) -> Result<bool> {
    use devices as d;
    let Some(newest) = digests.first() else { return Ok(false) };
    let conn = tx.conn().await?;
    // One after the other, the newest first: where servers have had different rings it may be noted by several, of which one stays so.
    for digest in digests {
        let known = || d::table.filter(d::digest.eq(digest).and(d::user_id.eq(user)));
        let set = (d::digest.eq(newest), d::last_seen_at.eq(now));
        if on_conn!(conn, |c| diesel::update(known()).set(set).execute(c).await?) > 0 {
            return Ok(true);
        }
    }
    let row = (d::user_id.eq(user), d::digest.eq(newest), d::last_seen_at.eq(now));
    on_conn!(conn, |c| diesel::insert_into(d::table).values(row).execute(c).await?);
    Ok(false)
}
