//! Claude accounts in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::audit_log::{self, AuditLog};
use super::connection::{Connection, Listed, OrderDirection, PageArguments, ordering};
use super::context::{Caller, ContextExt};
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::feed::{Delivered, Feed};
use super::inputs::{id_inputs, patch, payloads, searched, target};
use super::rows::One;
use super::scalars::{BigInt, DateTime, Json};
use crate::crypto::SecretText;
use crate::domain::claude_account::{self as deeds, Create, Update, usage_at};
use crate::domain::{self, Error};
use crate::model::{self, ClaudeAccountId};
use crate::store::claude_account::{ClaudeAccount as Row, ClaudeAccountFilter as Filter, ClaudeAccountOrder as Order};

/// An account at a Claude upstream: an API key, with what the relay needs to know of it.
pub(super) struct ClaudeAccount(pub(super) Arc<Row>);

/// Whether the relay may use an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ClaudeAccountStatus")]
pub(super) enum ClaudeAccountStatus {
    /// It may.
    Active,
    /// It may not, until somebody says so.
    Suspended,
    /// Its contract has ended.
    Expired,
    /// It is not ready yet.
    Pending,
}

/// An account's plan at the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ClaudeTier")]
pub(super) enum ClaudeTier {
    /// Free of charge.
    Free,
    /// Paid.
    Pro,
    /// By agreement.
    Enterprise,
}

/// How an account's last requests went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ClaudeAccountHealthState")]
pub(super) enum ClaudeAccountHealthState {
    /// It was not asked yet.
    Unknown,
    /// They succeeded.
    Healthy,
    /// The upstream says that there were too many.
    RateLimited,
    /// The upstream says that it is overloaded.
    Overloaded,
    /// The upstream does not accept the key.
    Unauthorized,
    /// They failed in some other way.
    Failing,
    /// The month's tokens are used up.
    Exhausted,
}

/// How an account does.
#[derive(SimpleObject)]
pub(super) struct ClaudeAccountHealth {
    /// In short.
    state: ClaudeAccountHealthState,
    /// Until when that holds; null: until something else is known.
    until: Option<DateTime>,
    /// What went wrong last, also where it is well since; a test that succeeds clears it.
    last_error: Option<String>,
    /// When the account was last used.
    last_used_at: Option<DateTime>,
}

/// An account at a Claude upstream: an API key, with what the relay needs to know of it.
#[Object(serial)]
impl ClaudeAccount {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// What people call it.
    async fn account_name(&self) -> &str {
        &self.0.account_name
    }

    /// The address that it is registered with at the upstream.
    async fn email(&self) -> Option<&str> {
        self.0.email.as_ref().map(model::Email::as_str)
    }

    /// The organization that it belongs to at the upstream.
    async fn organization(&self) -> Option<&str> {
        self.0.organization.as_deref()
    }

    /// Whether the relay may use it.
    async fn status(&self) -> ClaudeAccountStatus {
        self.0.status.into()
    }

    /// Its plan at the upstream.
    async fn tier(&self) -> ClaudeTier {
        self.0.tier.into()
    }

    /// The last characters of its API key, to recognize it by: four, fewer of a short key.
    async fn api_key_hint(&self) -> &str {
        &self.0.api_key_hint
    }

    /// How many tokens it may use in a calendar month (UTC); null: as many as it likes.
    async fn usage_limit(&self) -> Option<BigInt> {
        self.0.usage_limit.map(BigInt)
    }

    /// How many tokens it has used in the current month.
    async fn current_usage(&self, ctx: &Context<'_>) -> BigInt {
        BigInt(usage_at(&self.0, ctx.cx().services.clock.now()).0)
    }

    /// When the count of tokens starts again: with the next month.
    async fn usage_resets_at(&self, ctx: &Context<'_>) -> DateTime {
        usage_at(&self.0, ctx.cx().services.clock.now()).1.into()
    }

    /// Where the relay sends its requests; null: to the default upstream.
    async fn base_url(&self) -> Option<&str> {
        self.0.base_url.as_deref()
    }

    /// Accounts with a lower number are preferred, those with the same share the load.
    async fn priority(&self) -> i32 {
        self.0.priority
    }

    /// How it does.
    async fn health(&self) -> ClaudeAccountHealth {
        ClaudeAccountHealth {
            state: self.0.health_state.into(),
            until: self.0.health_until.map(DateTime),
            last_error: self.0.health_last_error.clone(),
            last_used_at: self.0.last_used_at.map(DateTime),
        }
    }

    /// Notes on what it can do, an object.
    async fn features(&self) -> Option<Json> {
        self.0.features.as_ref().map(|object| Json(object.to_value()))
    }

    /// Anything else worth keeping with it, an object.
    async fn metadata(&self) -> Option<Json> {
        self.0.metadata.as_ref().map(|object| Json(object.to_value()))
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Counts the changes, from 1; `expectedVersion` compares with it.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// What was done to it, newest first.
    async fn audit_logs(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
    ) -> Result<Connection<AuditLog>> {
        audit_log::on(ctx, &self.0.id, PageArguments { first, after, last, before, offset }).await
    }
}

impl Listed for ClaudeAccount {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Ok(deeds::count(ctx.cx(), filter).await?)
    }
}

/// Which accounts; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct ClaudeAccountFilter {
    /// In one of these states.
    status: Option<Vec<ClaudeAccountStatus>>,
    /// Of one of these tiers.
    tier: Option<Vec<ClaudeTier>>,
}

/// What to sort accounts by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct ClaudeAccountOrder {
    /// The field.
    field: ClaudeAccountOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Desc")]
    direction: OrderDirection,
}

/// A field that accounts can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::claude_account::ClaudeAccountOrder")]
pub(super) enum ClaudeAccountOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// Its name, whatever the case.
    AccountName,
    /// Its state, by the alphabet.
    Status,
    /// Its tier, by the alphabet.
    Tier,
    /// Its usage of the month that was last counted.
    CurrentUsage,
    /// Its priority.
    Priority,
}

/// A new account.
#[derive(InputObject)]
pub(super) struct CreateClaudeAccountInput {
    /// The upstream's API key; no two accounts of the organization may have the same.
    api_key: String,
    /// What people call it, 1 to 100 characters.
    account_name: String,
    /// The address that it is registered with at the upstream.
    email: Option<String>,
    /// The organization that it belongs to at the upstream, at most 100 characters.
    organization: Option<String>,
    /// Whether the relay may use it; ACTIVE where left out.
    status: Option<ClaudeAccountStatus>,
    /// Its plan at the upstream; PRO where left out.
    tier: Option<ClaudeTier>,
    /// How many tokens it may use in a month, more than 0; no limit where left out.
    usage_limit: Option<BigInt>,
    /// Where to send its requests: an https URL, or one whose host `UPSTREAM_ALLOWED_HOSTS` has. The default upstream where left out.
    base_url: Option<String>,
    /// Lower is preferred; 0 where left out.
    priority: Option<i32>,
    /// Notes on what it can do, an object of at most 64 KiB and 64 levels.
    features: Option<Json>,
    /// Anything else, an object of at most 64 KiB and 64 levels.
    metadata: Option<Json>,
}

/// Changes to an account: what is left out stays, null clears what may be empty.
#[derive(InputObject)]
pub(super) struct UpdateClaudeAccountInput {
    /// Which account.
    id: ID,
    /// What people call it, 1 to 100 characters.
    account_name: MaybeUndefined<String>,
    /// The address that it is registered with at the upstream.
    email: MaybeUndefined<String>,
    /// The organization that it belongs to at the upstream, at most 100 characters.
    organization: MaybeUndefined<String>,
    /// Whether the relay may use it.
    status: MaybeUndefined<ClaudeAccountStatus>,
    /// Its plan at the upstream.
    tier: MaybeUndefined<ClaudeTier>,
    /// How many tokens it may use in a month, more than 0.
    usage_limit: MaybeUndefined<BigInt>,
    /// Where to send its requests: an https URL, or one whose host `UPSTREAM_ALLOWED_HOSTS` has.
    base_url: MaybeUndefined<String>,
    /// Lower is preferred.
    priority: MaybeUndefined<i32>,
    /// Notes on what it can do, an object of at most 64 KiB and 64 levels.
    features: MaybeUndefined<Json>,
    /// Anything else, an object of at most 64 KiB and 64 levels.
    metadata: MaybeUndefined<Json>,
    /// Refuse with CONFLICT unless the account is at this version.
    expected_version: Option<i32>,
}

/// A new key for an account.
#[derive(InputObject)]
pub(super) struct ReplaceClaudeAccountKeyInput {
    /// Which account.
    id: ID,
    /// The new API key of the upstream.
    api_key: String,
}

id_inputs! {
    /// Which account to try out.
    TestClaudeAccountInput,
    /// Which account to reset.
    ResetClaudeAccountUsageInput,
    /// Which account to delete.
    DeleteClaudeAccountInput,
}

payloads! {
    claude_account: ClaudeAccount(Row):
    /// The new account.
    CreateClaudeAccountPayload,
    /// The changed account.
    UpdateClaudeAccountPayload,
    /// The account with its new key.
    ReplaceClaudeAccountKeyPayload,
    /// The account, with nothing used.
    ResetClaudeAccountUsagePayload,
}

/// What the upstream answered.
#[derive(SimpleObject)]
pub(super) struct TestClaudeAccountPayload {
    /// The account, with its health as the answer shows it.
    claude_account: ClaudeAccount,
    /// Whether the upstream accepts the key.
    ok: bool,
    /// The HTTP status of the answer; null: there was none.
    status: Option<i32>,
    /// What the upstream said, or why it could not be asked; null where it accepts the key.
    message: Option<String>,
    /// How long it took, in milliseconds.
    latency_ms: Option<i32>,
}

/// The account is gone.
#[derive(SimpleObject)]
pub(super) struct DeleteClaudeAccountPayload {
    /// Its id.
    deleted_id: ID,
}

/// An id that is none of an account's is the id of no account.
fn account_id(id: &ID) -> domain::Result<ClaudeAccountId> {
    target(id, "Claude account")
}

#[derive(Default)]
pub(super) struct ClaudeAccountQuery;

#[Object(guard = "Declared")]
impl ClaudeAccountQuery {
    /// An account; null where there is none with this id. That it was looked at stands in the audit log, as VIEW.
    #[graphql(directive = requires::apply(Permission::ManageClaudeAccounts))]
    async fn claude_account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's id.")] id: ID,
    ) -> Result<Option<One<ClaudeAccount>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        let caller: Arc<Caller> = ctx.data_unchecked::<Arc<Caller>>().clone();
        let operation = ctx.item.node.name.node.to_string();
        // To its end, even if the caller leaves: what was looked at is written down.
        let view = tokio::spawn(async move { deeds::view(caller.cx(&operation), id).await });
        Ok(view.await.map_err(Error::internal)??.map(|row| One(ClaudeAccount(row.into()))))
    }

    /// The organization's accounts, newest first unless asked otherwise. `search` finds text in the name, the email and the
    /// organization, whatever the case.
    #[graphql(directive = requires::apply(Permission::ManageClaudeAccounts))]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn claude_accounts(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "Which accounts.")] filter: Option<ClaudeAccountFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<ClaudeAccountOrder>,
    ) -> Result<Option<Connection<ClaudeAccount>>> {
        let filter = filter.unwrap_or_default();
        let filter = Filter {
            status: filter.status.map(|statuses| statuses.into_iter().map(model::ClaudeAccountStatus::from).collect()),
            tier: filter.tier.map(|tiers| tiers.into_iter().map(model::ClaudeTier::from).collect()),
            search: searched(search),
        };
        let order_by = order_by.map(|order| (order.field, order.direction));
        let default = (ClaudeAccountOrderField::CreatedAt, OrderDirection::Desc);
        let (order, direction, name) = ordering::<_, Order>(order_by, default);
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }
}

#[derive(Default)]
pub(super) struct ClaudeAccountMutation;

#[Object(guard = "Declared")]
impl ClaudeAccountMutation {
    /// Makes an account.
    #[graphql(
        directive = requires::apply(Permission::ManageClaudeAccounts),
        directive = audits::apply(AuditAction::Create, ResourceType::ClaudeAccount),
        directive = open_to_api_keys::apply()
    )]
    async fn create_claude_account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The new account.")] input: CreateClaudeAccountInput,
    ) -> Result<Option<CreateClaudeAccountPayload>> {
        let input = Create {
            api_key: SecretText::from(input.api_key),
            account_name: input.account_name,
            email: input.email,
            organization: input.organization,
            status: input.status.map(Into::into),
            tier: input.tier.map(Into::into),
            usage_limit: input.usage_limit.map(|number| number.0),
            base_url: input.base_url,
            priority: input.priority,
            features: input.features.map(|json| json.0),
            metadata: input.metadata.map(|json| json.0),
        };
        Ok(Some(deeds::create(ctx.cx(), input).await?.into()))
    }

    /// Changes an account; all but its API key.
    #[graphql(
        directive = requires::apply(Permission::ManageClaudeAccounts),
        directive = audits::apply(AuditAction::Update, ResourceType::ClaudeAccount),
        directive = open_to_api_keys::apply()
    )]
    async fn update_claude_account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateClaudeAccountInput,
    ) -> Result<Option<UpdateClaudeAccountPayload>> {
        let id = account_id(&input.id)?;
        let input = Update {
            account_name: patch(input.account_name, |text| text),
            email: patch(input.email, |text| text),
            organization: patch(input.organization, |text| text),
            status: patch(input.status, Into::into),
            tier: patch(input.tier, Into::into),
            usage_limit: patch(input.usage_limit, |number| number.0),
            base_url: patch(input.base_url, |url| url),
            priority: patch(input.priority, |number| number),
            features: patch(input.features, |json| json.0),
            metadata: patch(input.metadata, |json| json.0),
            expected_version: input.expected_version,
        };
        Ok(Some(deeds::update(ctx.cx(), id, input).await?.into()))
    }

    /// Gives an account another API key: the one thing that updateClaudeAccount does not change.
    #[graphql(
        directive = requires::apply(Permission::ManageClaudeAccounts),
        directive = audits::apply(AuditAction::Update, ResourceType::ClaudeAccount),
        directive = open_to_api_keys::apply()
    )]
    async fn replace_claude_account_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account and its new key.")] input: ReplaceClaudeAccountKeyInput,
    ) -> Result<Option<ReplaceClaudeAccountKeyPayload>> {
        let id = account_id(&input.id)?;
        Ok(Some(deeds::replace_key(ctx.cx(), id, &SecretText::from(input.api_key)).await?.into()))
    }

    /// Asks the upstream for its models with the account's key, and says what it answered.
    #[graphql(
        directive = requires::apply(Permission::ManageClaudeAccounts),
        directive = audits::apply(AuditAction::Test, ResourceType::ClaudeAccount),
        directive = open_to_api_keys::apply()
    )]
    async fn test_claude_account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which account.")] input: TestClaudeAccountInput,
    ) -> Result<Option<TestClaudeAccountPayload>> {
        let (account, probe) = deeds::test(ctx.cx(), account_id(&input.id)?).await?;
        Ok(Some(TestClaudeAccountPayload {
            claude_account: ClaudeAccount(account.into()),
            ok: probe.ok,
            status: probe.status.map(i32::from),
            message: probe.message,
            latency_ms: i32::try_from(probe.latency_ms).ok(),
        }))
    }

    /// Sets an account's usage of the current month to nothing.
    #[graphql(
        directive = requires::apply(Permission::ManageClaudeAccounts),
        directive = audits::apply(AuditAction::Update, ResourceType::ClaudeAccount),
        directive = open_to_api_keys::apply()
    )]
    async fn reset_claude_account_usage(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which account.")] input: ResetClaudeAccountUsageInput,
    ) -> Result<Option<ResetClaudeAccountUsagePayload>> {
        Ok(Some(deeds::reset_usage(ctx.cx(), account_id(&input.id)?).await?.into()))
    }

    /// Deletes an account. What it has used and what was done to it stays on record.
    #[graphql(
        directive = requires::apply(Permission::ManageClaudeAccounts),
        directive = audits::apply(AuditAction::Delete, ResourceType::ClaudeAccount),
        directive = open_to_api_keys::apply()
    )]
    async fn delete_claude_account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which account.")] input: DeleteClaudeAccountInput,
    ) -> Result<Option<DeleteClaudeAccountPayload>> {
        deeds::delete(ctx.cx(), account_id(&input.id)?).await?;
        Ok(Some(DeleteClaudeAccountPayload { deleted_id: input.id }))
    }
}

#[derive(Default)]
pub(super) struct ClaudeAccountSubscription;

#[Object(guard = "Declared")]
impl ClaudeAccountSubscription {
    /// Each account that was made or changed, as it is now: of changes that follow each other closely only the last may be sent.
    /// One that was deleted is not.
    #[graphql(directive = requires::apply(Permission::ManageClaudeAccounts))]
    async fn claude_account_changed(&self, ctx: &Context<'_>) -> Result<ClaudeAccount> {
        let feed = Feed::of(ctx);
        let (mut after, until) = feed.span(ctx.cx(), Some(model::ResourceType::ClaudeAccount)).await?;
        while let Some((sequence, row)) = deeds::next_change(ctx.cx(), (after, until)).await? {
            after = sequence;
            if feed.is_new(row.id, row.version) {
                feed.deliver(Delivered { sequence, account: Some((row.id, row.version)), passed: None });
                return Ok(ClaudeAccount(row.into()));
            }
        }
        Err(feed.nothing_until((after, until)))
    }
}
