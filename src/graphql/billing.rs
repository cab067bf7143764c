//! What months have cost, in the API.

use std::sync::OnceLock;

use async_graphql::{Context, Object};

use super::buckets::{UsageBucket, UsageTotals, buckets};
use super::context::ContextExt;
use super::declarations::{Declared, Permission, requires};
use super::error::Result;
use crate::domain::billing::{self, Billing};
use crate::domain::usage_report::Bucket;
use crate::store::usage_rollup::Dimension;

/// What a calendar month has cost, in UTC.
pub(super) struct BillingSummary {
    year: i32,
    month: i32,
    bill: Billing,
    /// By each dimension that was asked for: added up once, under however many names that is.
    sums: [OnceLock<Vec<Bucket>>; Dimension::ALL.len()],
}

impl BillingSummary {
    fn by(&self, dimension: Dimension) -> &[Bucket] {
        self.sums[dimension as usize].get_or_init(|| self.bill.by(dimension))
    }
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
        buckets(ctx, self.by(Dimension::Model))
    }

    /// By client, the dearest first; one bucket without a client is for what was for none.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn by_client(&self, ctx: &Context<'_>) -> Result<Vec<UsageBucket>> {
        buckets(ctx, self.by(Dimension::Client))
    }

    /// By API key, the dearest first.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn by_api_key(&self, ctx: &Context<'_>) -> Result<Vec<UsageBucket>> {
        buckets(ctx, self.by(Dimension::ApiKey))
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
        Ok(Some(BillingSummary { year, month, bill, sums: Default::default() }))
    }
}
