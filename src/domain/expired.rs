//! What has ended is kept for a while, and then removed.

use chrono::TimeDelta;

use super::context::Services;
use super::error::Result;
use crate::store::expired::{self, Ended};

/// How long it is kept: until then a refresh token that comes back is known by whose it was, and a replaced API key as one that
/// has expired. A session's time counts from when it would have ended by itself, however it ended: as long as a token of it
/// could have served, its reuse is told from a token that never was.
const KEPT: TimeDelta = TimeDelta::days(7);
/// How long a nonce is kept that was used: no server's clock is so far behind that it would take it again.
const NONCES_KEPT: TimeDelta = TimeDelta::hours(1);
/// How long notifications are kept, read or not, and for how long a device is known that was not signed in from.
const REMEMBERED: TimeDelta = TimeDelta::days(90);
/// How many rows one transaction removes: others that write wait for it on SQLite.
const BATCH: i64 = 500;

/// Removes sessions with their refresh tokens, invitations, digests of replaced API keys, and nonces that have ended long ago, tokens by
/// mail that have expired, and notifications and devices that are old, as far as the database's clock says so too. Returns how many
/// rows it were.
///
/// # Errors
/// Where the database fails; what was removed so far stays so.
pub async fn remove(services: &Services) -> Result<usize> {
    let now = services.cautious_now().await?;
    let mut removed = 0;
    for (what, kept) in [
        (Ended::Sessions, KEPT),
        (Ended::Invitations, KEPT),
        // Nothing is made of one that has expired, and anybody can have them written.
        (Ended::MailTokens, TimeDelta::zero()),
        (Ended::ApiKeyDigests, KEPT),
        (Ended::PasswordNonces, NONCES_KEPT),
        (Ended::Notifications, REMEMBERED),
        (Ended::Devices, REMEMBERED),
    ] {
        loop {
            let count = expired::remove(&services.db, what, now + -kept, BATCH).await?;
            removed += count;
            if count == 0 {
                break;
            }
        }
    }
    Ok(removed)
}
