//! What is left of rate limits, in the API.

use async_graphql::{Enum, SimpleObject};

use super::scalars::{BigInt, DateTime};
use crate::domain::quota;

/// What is left of the limits of a caller or an API key.
#[derive(SimpleObject)]
pub(super) struct Quota {
    /// Its limits; none of them: nothing is limited.
    windows: Vec<QuotaWindow>,
}

/// What is left of one limit.
#[derive(SimpleObject)]
struct QuotaWindow {
    /// What is limited.
    kind: QuotaKind,
    /// How much there may be; null: any number.
    limit: Option<BigInt>,
    /// How much of it is used up.
    used: BigInt,
    /// How much of it is left; null where there is no limit.
    remaining: Option<BigInt>,
    /// When all of it is there again, if nothing is used until then. Requests come back evenly; tokens with the next day and costs with
    /// the next month, in UTC.
    resets_at: DateTime,
}

/// What a limit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum QuotaKind {
    /// Requests a minute.
    RequestsPerMinute,
    /// Requests an hour.
    RequestsPerHour,
    /// Requests of the relay at the same time.
    ConcurrentRequests,
    /// Tokens of the relay a day.
    TokensPerDay,
    /// Costs of the relay a month, in millionths of a dollar.
    CostMicroUsdPerMonth,
}

impl From<Vec<quota::Window>> for Quota {
    fn from(windows: Vec<quota::Window>) -> Self {
        Self { windows: windows.into_iter().map(QuotaWindow::from).collect() }
    }
}

impl From<quota::Window> for QuotaWindow {
    fn from(window: quota::Window) -> Self {
        Self {
            kind: match window.kind {
                quota::QuotaKind::RequestsPerMinute => QuotaKind::RequestsPerMinute,
                quota::QuotaKind::RequestsPerHour => QuotaKind::RequestsPerHour,
                quota::QuotaKind::ConcurrentRequests => QuotaKind::ConcurrentRequests,
                quota::QuotaKind::TokensPerDay => QuotaKind::TokensPerDay,
                quota::QuotaKind::CostMicroUsdPerMonth => QuotaKind::CostMicroUsdPerMonth,
            },
            limit: Some(BigInt(window.limit)),
            used: BigInt(window.used),
            remaining: Some(BigInt((window.limit - window.used).max(0))),
            resets_at: window.resets_at.into(),
        }
    }
}
