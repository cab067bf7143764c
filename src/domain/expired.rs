//! What has ended is kept for a while, and then removed.

use chrono::TimeDelta;

use super::context::Services;
use super::error::Result;
use crate::store::expired::{self, Ended};

/// How long it is kept: until then a refresh token that comes back is known by whose it was, and a replaced API key as one that
/// has expired. A session's time counts from when it would have ended by itself, however it ended: as long as a token of it
/// could have served, its reuse is told from a token that never was.
const KEPT: TimeDelta = TimeDelta::days(7);
/// How many rows one transaction removes: others that write wait for it on SQLite.
const BATCH: i64 = 500;

/// Removes sessions with their refresh tokens, invitations and digests of replaced API keys that have ended long ago, and tokens by
/// mail that have expired. Returns how many rows it were.
///
/// # Errors
/// Where the database fails; what was removed so far stays so.
pub async fn remove(services: &Services) -> Result<usize> {
    let now = services.clock.now();
    let mut removed = 0;
    for (what, kept) in [
        // A session's tokens come before it.
        (Ended::RefreshTokens, KEPT),
        (Ended::Sessions, KEPT),
        (Ended::Invitations, KEPT),
        // Nothing is made of one that has expired, and anybody can have them written.
        (Ended::MailTokens, TimeDelta::zero()),
        (Ended::ApiKeyDigests, KEPT),
    ] {
        loop {
            let count = expired::remove(&services.db, what, now + -kept, BATCH).await?;
            removed += count;
            if i64::try_from(count).is_ok_and(|count| count < BATCH) {
                break;
            }
        }
    }
    Ok(removed)
}
