//! Counts and totals for an administrator's first screen, in the API.

use async_graphql::{Context, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{Declared, Permission, requires};
use super::error::Result;
use super::scalars::{BigInt, DateTime, Decimal};
use crate::domain::system_stats;

/// Counts and totals of the organization, and what serves it.
#[derive(SimpleObject)]
pub(super) struct SystemStats {
    /// The version of the server that answers.
    version: String,
    /// When that server was started.
    started_at: DateTime,
    /// Users who are not deleted.
    users: i32,
    /// Clients that are not archived.
    clients: i32,
    /// Claude accounts.
    claude_accounts: i32,
    /// API keys that can be used.
    active_api_keys: i32,
    /// Tasks that are neither done nor cancelled.
    open_tasks: i32,
    /// Credentials.
    credentials: i32,
    /// Requests of the relay since the beginning of the day, in UTC.
    requests_today: BigInt,
    /// Tokens of all kinds since then.
    tokens_today: BigInt,
    /// What was spent since the beginning of the month, in UTC.
    cost_usd_this_month: Decimal,
}

#[derive(Default)]
pub(super) struct SystemStatsQuery;

#[Object(guard = "Declared")]
impl SystemStatsQuery {
    /// Counts and totals for an administrator's first screen.
    #[graphql(directive = requires::apply(Permission::ViewSystem))]
    async fn system_stats(&self, ctx: &Context<'_>) -> Result<Option<SystemStats>> {
        let cx = ctx.cx();
        let stats = system_stats::get(cx).await?;
        let int = |count: i64| i32::try_from(count).unwrap_or(i32::MAX);
        let counts = stats.counts;
        Ok(Some(SystemStats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: cx.services.started_at.into(),
            users: int(counts.users),
            clients: int(counts.clients),
            claude_accounts: int(counts.claude_accounts),
            active_api_keys: int(counts.active_api_keys),
            open_tasks: int(counts.open_tasks),
            credentials: int(counts.credentials),
            requests_today: BigInt(stats.requests_today),
            tokens_today: BigInt(stats.tokens_today),
            cost_usd_this_month: Decimal(stats.cost_this_month.to_string()),
        }))
    }
}
