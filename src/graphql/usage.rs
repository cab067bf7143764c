//! Usage in the API: records, and reports of what they add up to.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object};

use super::api_key::ApiKey;
use super::buckets::{UsageBucket, UsageTotals, buckets};
use super::claude_account::ClaudeAccount;
use super::client::Client;
use super::connection::{Connection, Listed, PageArguments};
use super::context::ContextExt;
use super::declarations::Declared;
use super::error::Result;
use super::feed::{Delivered, Feed};
use super::inputs::filter_id;
use super::loaders::{Loaders, UsageOfKey};
use super::rows::One;
use super::scalars::{BigInt, DateTime, Decimal};
use super::user::{self, User};
use crate::domain;
use crate::domain::usage_report::{self, Report};
use crate::model::{ApiKeyId, ClaudeAccountId, ClientId, ManageClaudeAccounts, NanoUsd, Permit, Timestamp};
use crate::store::usage::{self as records, UsageFilter as Filter, UsageRecord as Row};
use crate::store::usage_rollup::Dimension;

/// The order of records, its name in cursors.
const ORDER: &str = "UsageRecord OccurredAt Descending";

/// A request of the relay, and what it used.
pub(super) struct UsageRecord(pub(super) Arc<Row>);

/// A request of the relay, and what it used. It stays as it is, whatever becomes of what it names.
#[Object(serial)]
impl UsageRecord {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// When the request came.
    async fn occurred_at(&self) -> DateTime {
        self.0.occurred_at.into()
    }

    /// With which API key; null where the caller may not see it.
    async fn api_key(&self, ctx: &Context<'_>) -> Result<Option<One<ApiKey>>> {
        api_key(ctx, self.0.api_key_id).await
    }

    /// The id of the API key.
    async fn api_key_id(&self) -> Option<ID> {
        id(self.0.api_key_id)
    }

    /// In whose name, though the user be deleted since.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by_ever(ctx, self.0.user_id).await
    }

    /// The id of the user.
    async fn user_id(&self) -> Option<ID> {
        id(self.0.user_id)
    }

    /// For which client.
    async fn client(&self, ctx: &Context<'_>) -> Result<Option<One<Client>>> {
        client(ctx, self.0.client_id).await
    }

    /// The id of the client.
    async fn client_id(&self) -> Option<ID> {
        id(self.0.client_id)
    }

    /// By which Claude account it was answered, or tried last; null where it is gone, or without `MANAGE_CLAUDE_ACCOUNTS`.
    async fn claude_account(&self, ctx: &Context<'_>) -> Result<Option<One<ClaudeAccount>>> {
        claude_account(ctx, self.0.claude_account_id).await
    }

    /// The id of the Claude account.
    async fn claude_account_id(&self) -> Option<ID> {
        id(self.0.claude_account_id)
    }

    /// The model that was asked for, by the name that the caller gave it.
    async fn model(&self) -> &str {
        &self.0.asked_model
    }

    /// Whether the table of prices has the model. One that it has not costs as much as the dearest.
    async fn model_known(&self) -> bool {
        self.0.is_known_model
    }

    /// The path, like `/v1/messages`.
    async fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// The status of the answer.
    async fn status_code(&self) -> i32 {
        self.0.status_code
    }

    /// What went wrong, by the upstream's name for it, also in the middle of a stream; null: nothing.
    async fn error_type(&self) -> Option<&str> {
        self.0.error_type.as_deref()
    }

    /// Whether the answer was a stream.
    async fn streamed(&self) -> bool {
        self.0.streamed
    }

    /// Whether the caller left before the end: what had been used by then is counted.
    async fn interrupted(&self) -> bool {
        self.0.interrupted
    }

    /// Whether tokens had to be guessed, since the upstream did not get to count them.
    async fn estimated(&self) -> bool {
        self.0.is_estimated
    }

    /// How often an upstream was asked. What is counted is of the one that answered.
    async fn attempts(&self) -> i32 {
        self.0.attempts
    }

    /// Tokens of the prompt that the cache had no part in.
    async fn input_tokens(&self) -> BigInt {
        BigInt(self.0.input_tokens)
    }

    /// Tokens of the answer.
    async fn output_tokens(&self) -> BigInt {
        BigInt(self.0.output_tokens)
    }

    /// Tokens of the prompt that were written to the cache.
    async fn cache_creation_tokens(&self) -> BigInt {
        BigInt(self.0.cache_creation_tokens())
    }

    /// Those of them that were written for an hour; the others for five minutes.
    async fn cache_creation_one_hour_tokens(&self) -> BigInt {
        BigInt(self.0.cache_write_1h_tokens)
    }

    /// Tokens of the prompt that were read from the cache.
    async fn cache_read_tokens(&self) -> BigInt {
        BigInt(self.0.cache_read_tokens)
    }

    /// Searches of the web.
    async fn web_searches(&self) -> BigInt {
        BigInt(self.0.web_searches)
    }

    /// What it cost in US dollars, by the prices of its time: exact.
    async fn cost_usd(&self) -> Decimal {
        cost(NanoUsd::from_nanos(self.0.cost_nano_usd))
    }

    /// How long it took.
    async fn latency_ms(&self) -> i32 {
        self.0.latency_ms
    }

    /// How long it took to the first token; null where there was none.
    async fn time_to_first_token_ms(&self) -> Option<i32> {
        self.0.time_to_first_token_ms
    }

    /// The request's id; the server's log names it too.
    async fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// The upstream's id of the request.
    async fn upstream_request_id(&self) -> Option<&str> {
        self.0.upstream_request_id.as_deref()
    }

    /// The caller's session, as the caller names it.
    async fn session_id(&self) -> Option<&str> {
        self.0.session_id.as_deref()
    }
}

impl Listed for UsageRecord {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Ok(domain::usage::count(ctx.cx(), filter).await?)
    }
}

pub(super) fn id(id: Option<impl ToString>) -> Option<ID> {
    id.map(|id| id.to_string().into())
}

pub(super) fn cost(amount: NanoUsd) -> Decimal {
    Decimal(amount.to_string())
}

pub(super) async fn api_key(ctx: &Context<'_>, id: Option<ApiKeyId>) -> Result<Option<One<ApiKey>>> {
    match id {
        Some(id) => Ok(Loaders::of(ctx).api_key(id).await?.map(|row| One(ApiKey(row)))),
        None => Ok(None),
    }
}

pub(super) async fn client(ctx: &Context<'_>, id: Option<ClientId>) -> Result<Option<One<Client>>> {
    match id {
        Some(id) => Ok(Loaders::of(ctx).client(id).await?.map(|row| One(Client(row)))),
        None => Ok(None),
    }
}

pub(super) async fn claude_account(
    ctx: &Context<'_>,
    id: Option<ClaudeAccountId>,
) -> Result<Option<One<ClaudeAccount>>> {
    let permit: std::result::Result<Permit<ManageClaudeAccounts>, _> = ctx.cx().actor.require();
    match (id, permit) {
        (Some(id), Ok(_)) => Ok(Loaders::of(ctx).claude_account(id).await?.map(|row| One(ClaudeAccount(row)))),
        (None, _) | (_, Err(_)) => Ok(None),
    }
}

/// Which usage; all of what is named must hold.
#[derive(InputObject)]
pub(super) struct UsageFilter {
    /// Not before this.
    from: DateTime,
    /// Before this.
    to: DateTime,
    /// With this API key.
    api_key_id: Option<ID>,
    /// In the name of this user.
    user_id: Option<ID>,
    /// For this client.
    client_id: Option<ID>,
    /// By this Claude account.
    claude_account_id: Option<ID>,
    /// Of this model, whichever of its names was asked for.
    model: Option<String>,
}

impl UsageFilter {
    fn span(&self) -> (Timestamp, Timestamp) {
        (self.from.0, self.to.0)
    }

    /// The filter.
    ///
    /// # Errors
    /// Where it names something by what is no id of its kind.
    fn read(self) -> domain::Result<Filter> {
        Ok(Filter {
            from: Some(self.from.0),
            to: Some(self.to.0),
            api_key_ids: filter_id("apiKeyId", self.api_key_id)?.map(|key| vec![key]),
            user_id: filter_id("userId", self.user_id)?,
            client_id: filter_id("clientId", self.client_id)?,
            claude_account_id: filter_id("claudeAccountId", self.claude_account_id)?,
            model: self.model,
        })
    }
}

/// What usage can be told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::usage_rollup::Dimension")]
pub(super) enum UsageDimension {
    /// The API key.
    ApiKey,
    /// The user in whose name it was.
    User,
    /// The client.
    Client,
    /// The Claude account that answered.
    ClaudeAccount,
    /// The model.
    Model,
}

/// A span of time that usage is added up over, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::UsageInterval")]
pub(super) enum UsageInterval {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

/// What usage adds up to in a span of time.
pub(super) struct UsageReport(pub(super) Report);

/// What usage adds up to in a span of time: exact, to the microsecond of its ends.
#[Object(serial)]
impl UsageReport {
    /// Not before this.
    async fn from(&self) -> DateTime {
        self.0.from.into()
    }

    /// Before this.
    async fn to(&self) -> DateTime {
        self.0.to.into()
    }

    /// Of everything.
    async fn total(&self) -> UsageTotals {
        UsageTotals(self.0.total)
    }

    /// By what was asked for: in the order of time, then the dearest first. What has no usage has no bucket.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn buckets(&self, ctx: &Context<'_>) -> Result<Vec<UsageBucket>> {
        buckets(ctx, &self.0.buckets)
    }
}

/// What an API key has used: with what all keys of the page have, in one go.
pub(super) async fn of_key(
    ctx: &Context<'_>,
    key: ApiKeyId,
    span: (Timestamp, Timestamp),
    interval: Option<UsageInterval>,
) -> Result<UsageReport> {
    let asked = UsageOfKey { key, span, interval: interval.map(crate::model::UsageInterval::from) };
    Ok(UsageReport(Loaders::of(ctx).api_key_usage(asked).await?))
}

#[derive(Default)]
pub(super) struct UsageQuery;

#[Object(guard = "Declared")]
impl UsageQuery {
    /// What one's own usage adds up to; with `VIEW_USAGE` the organization's. Quick for any number of requests.
    async fn usage(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which usage.")] filter: UsageFilter,
        #[graphql(desc = "What to tell it apart by; left out: by nothing.")] group_by: Option<Vec<UsageDimension>>,
        #[graphql(desc = "Over which intervals; left out: as a whole.")] interval: Option<UsageInterval>,
    ) -> Result<Option<UsageReport>> {
        let by: Vec<Dimension> = group_by.unwrap_or_default().into_iter().map(Dimension::from).collect();
        let span = filter.span();
        let grouping = (&by[..], interval.map(crate::model::UsageInterval::from));
        Ok(Some(UsageReport(usage_report::report(ctx.cx(), &filter.read()?, span, grouping).await?)))
    }

    /// One's own requests of the relay, newest first; with `VIEW_USAGE` the organization's.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn usage_records(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Which usage; left out: all.")] filter: Option<UsageFilter>,
    ) -> Result<Option<Connection<UsageRecord>>> {
        let arguments = PageArguments { first, after, last, before, offset };
        let filter = filter.map(UsageFilter::read).transpose()?.unwrap_or_default();
        let slice = domain::usage::page(ctx.cx(), &filter, &arguments.page(ORDER)?).await?;
        Ok(Some(Connection::new(slice, ORDER, filter, records::position)))
    }
}

#[derive(Default)]
pub(super) struct UsageSubscription;

#[Object(guard = "Declared")]
impl UsageSubscription {
    /// Each request of one's own on the relay that passes the filter, when it was recorded, without gaps from the moment of
    /// subscribing; with `VIEW_USAGE` the organization's.
    async fn usage_recorded(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which usage; left out: all.")] filter: Option<UsageFilter>,
    ) -> Result<UsageRecord> {
        let filter = filter.map(UsageFilter::read).transpose()?.unwrap_or_default();
        let feed = Feed::of(ctx);
        let span = feed.span_of_usage(ctx.cx()).await?;
        match domain::usage::next(ctx.cx(), &filter, span).await? {
            Some(row) => {
                feed.deliver(Delivered { sequence: row.sequence, account: None, passed: None });
                Ok(UsageRecord(row.into()))
            }
            None => Err(feed.nothing_until(span)),
        }
    }
}
