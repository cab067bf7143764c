//! What months have cost, in the API.

use async_graphql::{Context, Object};

use super::context::ContextExt;
use super::declarations::{Declared, Permission, requires};
use super::error::Result;
use super::usage::{UsageBucket, UsageTotals, buckets};
use crate::domain::billing::{self, Billing};
use crate::store::usage_rollup::Dimension;

/// What a calendar month has cost, in UTC.
pub(super) struct BillingSummary {
    year: i32,
    month: i32,
    bill: Billing,
}

/// What a calendar month has cost, in UTC.
#[Object(serial)]
impl BillingSummary {
    /// The year.
    async fn year(&self) -> i32 {
        self.year
    }

    /// The month, from 1.
    async fn month(&self) -> i32 {
        self.month
    }

    /// Of everything.
    async fn total(&self) -> UsageTotals {
        UsageTotals(self.bill.total)
    }

    /// By model, the dearest first.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn by_model(&self, ctx: &Context<'_>) -> Result<Vec<UsageBucket>> {
        buckets(ctx, &self.bill.by(Dimension::Model))
    }

    /// By client, the dearest first; one bucket without a client is for what was for none.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn by_client(&self, ctx: &Context<'_>) -> Result<Vec<UsageBucket>> {
        buckets(ctx, &self.bill.by(Dimension::Client))
    }

    /// By API key, the dearest first.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn by_api_key(&self, ctx: &Context<'_>) -> Result<Vec<UsageBucket>> {
        buckets(ctx, &self.bill.by(Dimension::ApiKey))
    }
}

#[derive(Default)]
pub(super) struct BillingQuery;

#[Object(guard = "Declared")]
impl BillingQuery {
    /// What a month of the organization has cost so far. `claviger billing` prints the same as CSV.
    #[graphql(directive = requires::apply(Permission::ViewUsage))]
    async fn billing(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The year.")] year: i32,
        #[graphql(desc = "The month, 1 to 12.")] month: i32,
    ) -> Result<Option<BillingSummary>> {
        let bill = billing::of_month(ctx.cx(), year, month).await?;
        Ok(Some(BillingSummary { year, month, bill }))
    }
}
