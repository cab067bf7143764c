//! What months have cost, in the API.

use async_graphql::{Context, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{Declared, Permission, requires};
use super::error::Result;
use super::usage::{UsageBucket, UsageTotals};
use crate::domain::billing;
use crate::store::usage_rollup::Dimension;

/// What a calendar month has cost, in UTC.
#[derive(SimpleObject)]
pub(super) struct BillingSummary {
    /// The year.
    year: i32,
    /// The month, from 1.
    month: i32,
    /// Of everything.
    total: UsageTotals,
    /// By model, the dearest first.
    by_model: Vec<UsageBucket>,
    /// By client, the dearest first; one bucket without a client is for what was for none.
    by_client: Vec<UsageBucket>,
    /// By API key, the dearest first.
    by_api_key: Vec<UsageBucket>,
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
        let billing = billing::of_month(ctx.cx(), year, month).await?;
        let by = |dimension| billing.by(dimension).into_iter().map(UsageBucket).collect();
        Ok(Some(BillingSummary {
            year,
            month,
            total: UsageTotals(billing.total),
            by_model: by(Dimension::Model),
            by_client: by(Dimension::Client),
            by_api_key: by(Dimension::ApiKey),
        }))
    }
}
