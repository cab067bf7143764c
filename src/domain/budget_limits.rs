//! The limits of API keys on the relay, and whether more fits under them.

use super::budget_notices::Limited;
use super::quota::QuotaKind;
use crate::model::{MicroUsd, NanoUsd, Timestamp, UsageInterval};
use crate::store::api_key::ApiKey;
use crate::store::budget::{Budget, Held};

/// A limit that a request does not fit under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget {
    /// Which.
    pub kind: QuotaKind,
    /// How much there may be.
    pub limit: i64,
    /// When all of it is there again; of requests at once: now.
    pub resets_at: Timestamp,
    /// Whether it would fit if the requests that run now took nothing: then it may fit as soon as one of them ends.
    pub is_held_by_others: bool,
}

impl OverBudget {
    /// The limit that what was asked for does not fit under, whatever runs.
    pub(super) fn by_itself(&self) -> Option<Limited> {
        match self.kind {
            _ if self.is_held_by_others => None,
            QuotaKind::TokensPerDay => Some(Limited::Tokens),
            QuotaKind::CostMicroUsdPerMonth => Some(Limited::Cost),
            QuotaKind::ConcurrentRequests | QuotaKind::RequestsPerMinute | QuotaKind::RequestsPerHour => None,
        }
    }
}

/// How much there may be, of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once.
    pub requests: Option<i64>,
    /// Tokens a day.
    pub tokens: Option<i64>,
    /// Costs a month.
    pub cost: Option<MicroUsd>,
}

impl From<&ApiKey> for Limits {
    fn from(key: &ApiKey) -> Self {
        Self {
            requests: key.concurrency_limit.map(i64::from),
            tokens: key.token_limit_per_day,
            cost: key.cost_limit_micro_usd_per_month.map(MicroUsd::from_micros),
        }
    }
}

impl Limits {
    pub(super) fn are_none(&self) -> bool {
        self.requests.is_none() && self.tokens.is_none() && self.cost.is_none()
    }

    /// Whether so much more fits.
    pub(super) fn check(&self, budget: &Budget, more: &Held, now: Timestamp) -> Result<(), OverBudget> {
        let mut held = budget.own;
        held.add(&budget.others);
        let over =
            |kind, limit: i64, resets_at, is_held_by_others| OverBudget { kind, limit, resets_at, is_held_by_others };
        if let Some(limit) = self.requests
            && held.requests + more.requests > limit
        {
            return Err(over(QuotaKind::ConcurrentRequests, limit, now, true));
        }
        if let Some(limit) = self.tokens {
            let wanted = budget.ledger.tokens.saturating_add(more.tokens);
            if wanted.saturating_add(held.tokens) > limit {
                let end = UsageInterval::Day.end(now);
                return Err(over(QuotaKind::TokensPerDay, limit, end, wanted <= limit));
            }
        }
        if let Some(limit) = self.cost {
            let most = NanoUsd::from(limit).nanos();
            let wanted = budget.ledger.cost_nano_usd.saturating_add(more.cost_nano_usd);
            if wanted.saturating_add(held.cost_nano_usd) > most {
                let end = UsageInterval::Month.end(now);
                return Err(over(QuotaKind::CostMicroUsdPerMonth, limit.micros(), end, wanted <= most));
            }
        }
        Ok(())
    }
}
