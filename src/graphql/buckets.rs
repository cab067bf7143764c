//! Buckets of usage in the API, of which an answer has no more than it should.

use async_graphql::{Context, ID, Object, SelectionField, Value};

use super::api_key::ApiKey;
use super::claude_account::ClaudeAccount;
use super::client::Client;
use super::error::Result;
use super::loaders::Loaders;
use super::rows::One;
use super::scalars::{BigInt, DateTime, Decimal};
use super::usage::{api_key, claude_account, client, cost, id};
use super::user::{self, User};
use super::walls::{DEFAULT_PAGE, LARGEST_PAGE};
use crate::domain::usage_report::{Bucket, MOST_VALUES};
use crate::domain::{self, FieldError};
use crate::model::UserId;
use crate::store::usage_rollup::{Dimension, UsageTotals as Totals};

/// Buckets, as long as the request has not too many with all that it asks of them: what is counted of a request before it is answered
/// does not know of how many there will be.
pub(super) fn buckets(ctx: &Context<'_>, buckets: &[Bucket]) -> Result<Vec<UsageBucket>> {
    let each: u64 = ctx.field().selection_set().map(values).sum();
    if Loaders::of(ctx).add_bucket_values(each.saturating_mul(buckets.len() as u64)) > MOST_VALUES as u64 {
        let message = format!(
            "makes buckets of more than {MOST_VALUES} values: ask for fewer fields, a shorter span, or longer intervals"
        );
        return Err(
            domain::Error::bad_input(vec![FieldError { path: vec!["buckets"], message: message.into() }]).into()
        );
    }
    Ok(buckets.iter().cloned().map(UsageBucket).collect())
}

/// How many values a field has at most, with those inside of it.
fn values(field: SelectionField<'_>) -> u64 {
    let arguments = field.arguments().unwrap_or_default();
    let sizes = arguments.iter().filter(|(name, _)| matches!(name.as_str(), "first" | "last"));
    let size = sizes.filter_map(|(_, size)| if let Value::Number(size) = size { size.as_u64() } else { None }).max();
    let is_page = size.is_some() || field.selection_set().any(|inside| matches!(inside.name(), "nodes" | "edges"));
    let rows = if is_page { size.unwrap_or(DEFAULT_PAGE).clamp(1, LARGEST_PAGE) } else { 1 };
    field.selection_set().map(values).fold(0, u64::saturating_add).saturating_mul(rows).saturating_add(1)
}

/// Sums of usage.
pub(super) struct UsageTotals(pub(super) Totals);

/// Sums of usage.
#[Object(serial)]
impl UsageTotals {
    /// Requests.
    async fn requests(&self) -> BigInt {
        BigInt(self.0.requests)
    }

    /// Those of them that failed, be it in the middle of a stream.
    async fn failed_requests(&self) -> BigInt {
        BigInt(self.0.failed_requests)
    }

    /// Tokens of prompts that the cache had no part in.
    async fn input_tokens(&self) -> BigInt {
        BigInt(self.0.input_tokens)
    }

    /// Tokens of answers.
    async fn output_tokens(&self) -> BigInt {
        BigInt(self.0.output_tokens)
    }

    /// Tokens that were written to the cache.
    async fn cache_creation_tokens(&self) -> BigInt {
        BigInt(self.0.cache_creation_tokens)
    }

    /// Tokens that were read from the cache.
    async fn cache_read_tokens(&self) -> BigInt {
        BigInt(self.0.cache_read_tokens)
    }

    /// What it cost in US dollars: exact.
    async fn cost_usd(&self) -> Decimal {
        cost(self.0.cost())
    }

    /// How long a request took on average; null where there was none.
    async fn average_latency_ms(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "an average is no exact number")]
        (self.0.requests > 0).then(|| self.0.latency_ms as f64 / self.0.requests as f64)
    }
}

/// Sums of one interval and one group.
pub(super) struct UsageBucket(pub(super) Bucket);

impl UsageBucket {
    fn value(&self, dimension: Dimension) -> Option<&str> {
        Some(self.0.group[dimension as usize].as_str()).filter(|value| !value.is_empty())
    }
}

/// Sums of one interval and one group. Of what was not asked for, and of what the usage had none of, there is null.
#[Object(serial)]
impl UsageBucket {
    /// The beginning of the interval, which may lie before that of the report; null where no interval was asked for.
    async fn start(&self) -> Option<DateTime> {
        self.0.start.map(DateTime)
    }

    /// The API key; null where the caller may not see it.
    async fn api_key(&self, ctx: &Context<'_>) -> Result<Option<One<ApiKey>>> {
        api_key(ctx, self.value(Dimension::ApiKey).and_then(|id| id.parse().ok())).await
    }

    /// The id of the API key.
    async fn api_key_id(&self) -> Option<ID> {
        id(self.value(Dimension::ApiKey))
    }

    /// The user, deleted since or not.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        let id: Option<UserId> = self.value(Dimension::User).and_then(|id| id.parse().ok());
        user::by_ever(ctx, id).await
    }

    /// The id of the user.
    async fn user_id(&self) -> Option<ID> {
        id(self.value(Dimension::User))
    }

    /// The client.
    async fn client(&self, ctx: &Context<'_>) -> Result<Option<One<Client>>> {
        client(ctx, self.value(Dimension::Client).and_then(|id| id.parse().ok())).await
    }

    /// The id of the client.
    async fn client_id(&self) -> Option<ID> {
        id(self.value(Dimension::Client))
    }

    /// The Claude account; null where it is gone, or without `MANAGE_CLAUDE_ACCOUNTS`.
    async fn claude_account(&self, ctx: &Context<'_>) -> Result<Option<One<ClaudeAccount>>> {
        claude_account(ctx, self.value(Dimension::ClaudeAccount).and_then(|id| id.parse().ok())).await
    }

    /// The id of the Claude account.
    async fn claude_account_id(&self) -> Option<ID> {
        id(self.value(Dimension::ClaudeAccount))
    }

    /// The model, as the table of prices names it; null for what was asked of one that the table has not and no upstream answered for.
    async fn model(&self) -> Option<&str> {
        self.value(Dimension::Model)
    }

    /// The sums.
    async fn totals(&self) -> UsageTotals {
        UsageTotals(self.0.totals)
    }
}
