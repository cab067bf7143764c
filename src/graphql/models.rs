//! The models that the relay serves, in the API.

use async_graphql::{Context, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::Declared;
use super::scalars::Decimal;
use crate::model::MicroUsd;

/// A Claude model, with its prices as they are now: those of its shortest prompts, where they go by the length.
#[derive(SimpleObject)]
pub(super) struct ClaudeModel {
    /// What requests name it by.
    id: String,
    /// What people call it.
    display_name: String,
    /// A million tokens of prompts.
    input_usd_per_million: Decimal,
    /// A million tokens of answers.
    output_usd_per_million: Decimal,
    /// A million tokens of prompts that are written to the cache for five minutes.
    cache_write_usd_per_million: Decimal,
    /// A million tokens of prompts that are written to the cache for an hour.
    cache_write_one_hour_usd_per_million: Decimal,
    /// A million tokens of prompts that are read from the cache.
    cache_read_usd_per_million: Decimal,
    /// How many tokens it can look at; null where the table of prices does not say.
    context_window: Option<i32>,
}

#[derive(Default)]
pub(super) struct ModelQuery;

#[Object(guard = "Declared")]
impl ModelQuery {
    /// The Claude models that the relay has prices of. Another costs as much as the dearest of them.
    async fn models(&self, ctx: &Context<'_>) -> Vec<ClaudeModel> {
        let services = ctx.cx().services;
        let now = services.clock.now();
        let models = services.prices.models().iter().map(|model| {
            let row = model.row(0, now);
            let usd = |price: MicroUsd| Decimal(price.to_string());
            ClaudeModel {
                id: model.id.to_string(),
                display_name: model.display_name.clone(),
                input_usd_per_million: usd(row.input),
                output_usd_per_million: usd(row.output),
                cache_write_usd_per_million: usd(row.cache_write_5m),
                cache_write_one_hour_usd_per_million: usd(row.cache_write_1h),
                cache_read_usd_per_million: usd(row.cache_read),
                context_window: model.context_window,
            }
        });
        models.collect()
    }
}
