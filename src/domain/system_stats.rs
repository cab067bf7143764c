//! Counts and totals for an administrator's first screen.

use super::context::Cx;
use super::error::Result;
use super::usage_report::total;
use crate::model::{NanoUsd, UsageInterval, ViewUsage};
use crate::store::system_stats::{self as store_stats, Counts};
use crate::store::usage::{UsageFilter, WhoseUsage};

/// What is on the screen.
#[derive(Debug, Clone, Copy)]
pub struct SystemStats {
    /// How much there is of the organization's records.
    pub counts: Counts,
    /// Requests of the relay since the beginning of the day, in UTC.
    pub requests_today: i64,
    /// Tokens since then.
    pub tokens_today: i64,
    /// What was spent since the beginning of the month.
    pub cost_this_month: NanoUsd,
}

/// Counts and totals of the organization.
///
/// # Errors
/// Without permission to see the system, and what it has used.
pub async fn get(cx: Cx<'_>) -> Result<SystemStats> {
    let permit = cx.actor.require()?;
    let whose = WhoseUsage::Everybodys(cx.actor.require::<ViewUsage>()?);
    let now = cx.services.clock.now();
    let mut conn = cx.services.db.scan().await?;
    let counts = store_stats::counts(&mut conn, &permit, now).await?;
    let (any, end) = (UsageFilter::default(), UsageInterval::Day.end(now));
    let today = total(&mut conn, &whose, &any, (UsageInterval::Day.start(now), end)).await?;
    let month = total(&mut conn, &whose, &any, (UsageInterval::Month.start(now), end)).await?;
    Ok(SystemStats {
        counts,
        requests_today: today.requests,
        tokens_today: today.tokens(),
        cost_this_month: month.cost(),
    })
}
