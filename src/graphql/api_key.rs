//! API keys in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::client::Client;
use super::connection::{Connection, Listed, OrderDirection, PageArguments, ordering};
use super::context::ContextExt;
use super::declarations::{
    AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, post_only, public, requires,
};
use super::error::Result;
use super::inputs::{filter_id, id_inputs, patch, payloads, searched, target};
use super::loaders::Loaders;
use super::quota::Quota;
use super::rows::One;
use super::scalars::{BigInt, DateTime, Decimal};
use super::usage::{self, UsageInterval, UsageReport};
use super::user::{self, User};
use crate::crypto::SecretText;
use crate::domain::api_key::{self as deeds, Create, Update};
use crate::domain::{self, Error};
use crate::model::{self, ClientId, Direction, Timestamp, UserId};
use crate::store::api_key::{ApiKey as Row, ApiKeyFilter as Filter, ApiKeyOrder as Order};

/// What is known of a key for programs; the key itself is told once, when it is made or regenerated.
pub(super) struct ApiKey(pub(super) Arc<Row>);

/// What an API key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ApiKeyScope")]
pub(super) enum ApiKeyScope {
    /// The relay, and of this API nothing but `viewer`.
    Relay,
    /// Reading in this API, within the role of the key's owner.
    AdminRead,
    /// Reading and mutations in this API, within the role of the key's owner; never those on users and sign-ins.
    AdminWrite,
}

/// Whether an API key can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ApiKeyStatus")]
pub(super) enum ApiKeyStatus {
    /// It can, as long as its owner may sign in.
    Active,
    /// It has ended by itself.
    Expired,
    /// It was ended.
    Revoked,
}

/// What is known of a key for programs; the key itself is told once, when it is made or regenerated.
#[Object(serial)]
impl ApiKey {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// What people call it.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is for.
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }

    /// The start of the raw key, to recognise it by.
    async fn key_prefix(&self) -> &str {
        &self.0.key_prefix
    }

    /// What it opens.
    async fn scopes(&self) -> Vec<ApiKeyScope> {
        self.0.scopes.iter().map(ApiKeyScope::from).collect()
    }

    /// Whether it can be used.
    async fn status(&self, ctx: &Context<'_>) -> ApiKeyStatus {
        self.0.status(Loaders::of(ctx).now()).into()
    }

    /// In whose name it acts, though the user be deleted since.
    async fn owner(&self, ctx: &Context<'_>) -> Result<One<User>> {
        let owner = user::by_ever(ctx, Some(self.0.owner_id)).await?;
        Ok(owner.ok_or_else(|| Error::internal("an API key has no owner"))?)
    }

    /// For which client it is used.
    async fn client(&self, ctx: &Context<'_>) -> Result<Option<One<Client>>> {
        match self.0.client_id {
            Some(id) => Ok(Loaders::of(ctx).client(id).await?.map(|row| One(Client(row)))),
            None => Ok(None),
        }
    }

    /// Who made it, though the user be deleted since; where an API key made it, that one's owner. It lives on without its maker.
    async fn created_by(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by_ever(ctx, self.0.created_by).await
    }

    /// CIDR blocks that it may be used from; empty: any address.
    async fn allowed_ips(&self) -> Vec<String> {
        self.0.allowed_ips.iter().collect()
    }

    /// Ids of the models that it may use, `*` for any text; empty: all.
    async fn allowed_models(&self) -> Vec<&str> {
        self.0.allowed_models.iter().collect()
    }

    /// How many requests a minute.
    async fn rate_limit_per_minute(&self) -> Option<i32> {
        self.0.rate_limit_per_minute
    }

    /// How many requests an hour.
    async fn rate_limit_per_hour(&self) -> Option<i32> {
        self.0.rate_limit_per_hour
    }

    /// How many requests at once.
    async fn concurrency_limit(&self) -> Option<i32> {
        self.0.concurrency_limit
    }

    /// How many tokens a day.
    async fn token_limit_per_day(&self) -> Option<BigInt> {
        self.0.token_limit_per_day.map(BigInt)
    }

    /// How many US dollars a month.
    async fn cost_limit_usd_per_month(&self) -> Option<Decimal> {
        deeds::cost_limit(&self.0).map(|limit| Decimal(limit.to_string()))
    }

    /// When it ends by itself; null: never.
    async fn expires_at(&self) -> Option<DateTime> {
        self.0.expires_at.map(DateTime)
    }

    /// When it was ended.
    async fn revoked_at(&self) -> Option<DateTime> {
        self.0.revoked_at.map(DateTime)
    }

    /// When it was last used, to the minute.
    async fn last_used_at(&self) -> Option<DateTime> {
        self.0.last_used_at.map(DateTime)
    }

    /// From which address.
    async fn last_used_ip(&self) -> Option<&str> {
        self.0.last_used_ip.as_deref()
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Counts the changes, from 1; `expectedVersion` compares with it. Using it changes nothing.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// What it has used in a span of time, though it be ended since.
    async fn usage(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Not before this.")] from: DateTime,
        #[graphql(desc = "Before this.")] to: DateTime,
        #[graphql(desc = "Over which intervals; left out: as a whole.")] interval: Option<UsageInterval>,
    ) -> Result<UsageReport> {
        usage::of_key(ctx, self.0.id, (from.0, to.0), interval).await
    }

    /// What is left of its limits.
    async fn quota(&self, ctx: &Context<'_>) -> Result<Quota> {
        Ok(Loaders::of(ctx).api_key_quota(self.0.clone()).await?.into())
    }
}

impl Listed for ApiKey {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Loaders::of(ctx).api_key_count(filter.clone()).await
    }
}

/// Which API keys; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct ApiKeyFilter {
    /// In one of these states.
    status: Option<Vec<ApiKeyStatus>>,
    /// That act in the name of this user.
    owner_id: Option<ID>,
    /// For this client.
    client_id: Option<ID>,
}

impl ApiKeyFilter {
    fn read(self, search: Option<String>, now: Timestamp) -> domain::Result<Filter> {
        let statuses = self.status.map(|of| of.into_iter().map(model::ApiKeyStatus::from).collect());
        Ok(Filter {
            status: statuses.map(|statuses| (statuses, now)),
            owner_id: filter_id("ownerId", self.owner_id)?,
            client_id: filter_id("clientId", self.client_id)?,
            search: searched(search),
        })
    }
}

/// What to sort API keys by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct ApiKeyOrder {
    /// The field.
    field: ApiKeyOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Desc")]
    direction: OrderDirection,
}

/// A field that API keys can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::api_key::ApiKeyOrder")]
pub(super) enum ApiKeyOrderField {
    /// When it was made.
    CreatedAt,
    /// Its name, whatever the case.
    Name,
    /// When it ends by itself; those that never do count as the last.
    ExpiresAt,
    /// When it was last used; those that never were count as the first.
    LastUsedAt,
}

/// The ordering, its name in cursors.
fn ordered(order: Option<ApiKeyOrder>) -> (Order, Direction, String) {
    let order = order.map(|order| (order.field, order.direction));
    let (order, direction, name) = ordering(order, (ApiKeyOrderField::CreatedAt, OrderDirection::Desc));
    // Of this list alone: others have a CreatedAt too.
    (order, direction, format!("ApiKey {name}"))
}

/// A page of the API keys for one client: with those of all clients that the query asks for, in one statement.
pub(super) async fn of_client(ctx: &Context<'_>, client: ClientId, page: PageArguments) -> Result<Connection<ApiKey>> {
    let (order, _, name) = ordered(None);
    let slice = Loaders::of(ctx).api_key_client_page(client, page.page(&name)?).await?;
    let filter = Filter { client_id: Some(client), ..Filter::default() };
    Ok(Connection::new(slice, &name, filter, move |row| order.position(row)))
}

/// A page of the API keys of one user: with those of all users that the query asks for, in one statement.
pub(super) async fn of_owner(ctx: &Context<'_>, owner: UserId, page: PageArguments) -> Result<Connection<ApiKey>> {
    deeds::check_visible(ctx.cx(), owner)?;
    let (order, _, name) = ordered(None);
    let slice = Loaders::of(ctx).api_key_owner_page(owner, page.page(&name)?).await?;
    let filter = Filter { owner_id: Some(owner), ..Filter::default() };
    Ok(Connection::new(slice, &name, filter, move |row| order.position(row)))
}

/// A new API key.
#[derive(InputObject)]
pub(super) struct CreateApiKeyInput {
    /// What people call it, 1 to 100 characters.
    name: String,
    /// What it is for, at most 1,000 characters.
    description: Option<String>,
    /// In whose name it acts; the caller where left out. Another user needs `MANAGE_API_KEYS`.
    owner_id: Option<ID>,
    /// A client that is not archived, for which it is used. That needs `MANAGE_API_KEYS`.
    client_id: Option<ID>,
    /// What it opens; RELAY alone where left out.
    scopes: Option<Vec<ApiKeyScope>>,
    /// In how many days it ends by itself, 1 to 365; never where left out.
    expires_in_days: Option<i32>,
    /// CIDR blocks or addresses that it may be used from, at most 100; from anywhere where left out.
    allowed_ips: Option<Vec<String>>,
    /// Ids of the models that it may use, `*` for any text, at most 100; all where left out.
    allowed_models: Option<Vec<String>>,
    /// How many requests a minute.
    rate_limit_per_minute: Option<i32>,
    /// How many requests an hour.
    rate_limit_per_hour: Option<i32>,
    /// How many requests at once.
    concurrency_limit: Option<i32>,
    /// How many tokens a day.
    token_limit_per_day: Option<BigInt>,
    /// How many US dollars a month, with at most 6 places after the point.
    cost_limit_usd_per_month: Option<Decimal>,
}

/// Changes to an API key: what is left out stays, null clears what may be empty.
#[derive(InputObject)]
pub(super) struct UpdateApiKeyInput {
    /// Which API key.
    id: ID,
    /// What people call it, 1 to 100 characters.
    name: MaybeUndefined<String>,
    /// What it is for, at most 1,000 characters.
    description: MaybeUndefined<String>,
    /// What it opens.
    scopes: MaybeUndefined<Vec<ApiKeyScope>>,
    /// When it ends by itself, in the next 365 days; null: never.
    expires_at: MaybeUndefined<DateTime>,
    /// CIDR blocks or addresses that it may be used from, at most 100; empty: any address.
    allowed_ips: MaybeUndefined<Vec<String>>,
    /// Ids of the models that it may use, `*` for any text, at most 100; empty: all.
    allowed_models: MaybeUndefined<Vec<String>>,
    /// How many requests a minute.
    rate_limit_per_minute: MaybeUndefined<i32>,
    /// How many requests an hour.
    rate_limit_per_hour: MaybeUndefined<i32>,
    /// How many requests at once.
    concurrency_limit: MaybeUndefined<i32>,
    /// How many tokens a day.
    token_limit_per_day: MaybeUndefined<BigInt>,
    /// How many US dollars a month, with at most 6 places after the point.
    cost_limit_usd_per_month: MaybeUndefined<Decimal>,
    /// Refuse with CONFLICT unless the API key is at this version.
    expected_version: Option<i32>,
}

/// An API key that is to get another raw key.
#[derive(InputObject)]
pub(super) struct RegenerateApiKeyInput {
    /// Which API key.
    id: ID,
    /// For how many hours the raw key before it still serves, 0 to 168; 0 where left out.
    grace_period_hours: Option<i32>,
}

id_inputs! {
    /// Which API key to end.
    RevokeApiKeyInput,
}

payloads! {
    api_key: ApiKey(Row):
    /// The changed API key.
    UpdateApiKeyPayload,
    /// The API key that was ended.
    RevokeApiKeyPayload,
}

/// Payloads with the raw key.
macro_rules! raw_key_payloads {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$meta])*
        pub(super) struct $name {
            api_key: Row,
            raw_key: SecretText,
        }

        $(#[$meta])*
        #[Object(serial)]
        impl $name {
            /// As it is now.
            async fn api_key(&self) -> ApiKey {
                ApiKey(self.api_key.clone().into())
            }

            /// The key itself. It is told here and never again.
            async fn raw_key(&self) -> &str {
                self.raw_key.expose()
            }
        }

        impl From<(Row, SecretText)> for $name {
            fn from((api_key, raw_key): (Row, SecretText)) -> Self {
                Self { api_key, raw_key }
            }
        }
    )+};
}

raw_key_payloads! {
    /// The new API key.
    CreateApiKeyPayload,
    /// The API key with another raw key.
    RegenerateApiKeyPayload,
}

/// What a raw key is good for.
#[derive(SimpleObject)]
pub(super) struct ApiKeyVerification {
    /// Whether it can be used now, from the address that asks.
    valid: bool,
    /// Why, or why not.
    code: ApiKeyVerificationCode,
    /// The API key; null where it is not valid, as are the fields below.
    api_key_id: Option<ID>,
    /// What people call it.
    name: Option<String>,
    /// What it opens.
    scopes: Option<Vec<ApiKeyScope>>,
    /// When it ends by itself; null: never.
    expires_at: Option<DateTime>,
    /// What is left of its limits.
    quota: Option<Quota>,
}

/// What asking for a raw key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ApiKeyVerificationCode")]
pub(super) enum ApiKeyVerificationCode {
    /// It can be used.
    Valid,
    /// It is mistyped, cut off, or no API key at all.
    Malformed,
    /// There is no such key.
    NotFound,
    /// It has ended by itself, or another has replaced it.
    Expired,
    /// It was ended.
    Revoked,
    /// It may not be used from the address that asks.
    IpNotAllowed,
    /// It was used as often as it may be for now.
    RateLimited,
    /// Its owner may not sign in.
    OwnerSuspended,
}

#[derive(Default)]
pub(super) struct ApiKeyQuery;

#[Object(guard = "Declared")]
impl ApiKeyQuery {
    /// An API key of one's own, or with `MANAGE_API_KEYS` of anybody in the organization; null where there is none with this id.
    async fn api_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The API key's id.")] id: ID,
    ) -> Result<Option<One<ApiKey>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).api_key(id).await?.map(|row| One(ApiKey(row))))
    }

    /// One's own API keys, with `MANAGE_API_KEYS` those of the organization, newest first unless asked otherwise. `search` finds
    /// text in the name, the description and the start of the key, whatever the case.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn api_keys(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "Which API keys.")] filter: Option<ApiKeyFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<ApiKeyOrder>,
    ) -> Result<Option<Connection<ApiKey>>> {
        let filter = filter.unwrap_or_default().read(search, Loaders::of(ctx).now())?;
        let (order, direction, name) = ordered(order_by);
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }

    /// What a raw key is good for when it is used from the address that asks. Asking is no use of it. An address that asks for many
    /// keys that are none is told `RATE_LIMITED`.
    #[graphql(directive = public::apply(), directive = post_only::apply())]
    async fn verify_api_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The raw key.")] key: String,
    ) -> Result<ApiKeyVerification> {
        let (code, verified) = deeds::verify(ctx.cx(), SecretText::from(key)).await?;
        let (found, quota) = verified.map(|verified| (verified.found, verified.quota.into())).unzip();
        let key = found.as_ref().map(|found| &found.key);
        Ok(ApiKeyVerification {
            valid: key.is_some(),
            code: code.into(),
            api_key_id: key.map(|key| key.id.to_string().into()),
            name: key.map(|key| key.name.clone()),
            scopes: key.map(|key| key.scopes.iter().map(ApiKeyScope::from).collect()),
            expires_at: key.and_then(|key| key.expires_at).map(DateTime),
            quota,
        })
    }
}

#[derive(Default)]
pub(super) struct ApiKeyMutation;

#[Object(guard = "Declared")]
impl ApiKeyMutation {
    /// Makes an API key. It acts in its owner's name, within its scopes, and has never more than who makes it: neither an owner
    /// with a role that may do more, nor, made with an API key, anything that one lacks.
    #[graphql(
        directive = requires::apply(Permission::ManageOwnApiKeys),
        directive = audits::apply(AuditAction::Create, ResourceType::ApiKey),
        directive = open_to_api_keys::apply()
    )]
    async fn create_api_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The new API key.")] input: CreateApiKeyInput,
    ) -> Result<Option<CreateApiKeyPayload>> {
        let input = Create {
            name: input.name,
            description: input.description,
            owner_id: input.owner_id.map(|id| id.0),
            client_id: input.client_id.map(|id| id.0),
            scopes: input.scopes.map(|scopes| scopes.into_iter().map(Into::into).collect()),
            expires_in_days: input.expires_in_days,
            allowed_ips: input.allowed_ips,
            allowed_models: input.allowed_models,
            rate_limit_per_minute: input.rate_limit_per_minute,
            rate_limit_per_hour: input.rate_limit_per_hour,
            concurrency_limit: input.concurrency_limit,
            token_limit_per_day: input.token_limit_per_day.map(|number| number.0),
            cost_limit_usd_per_month: input.cost_limit_usd_per_month.map(|amount| amount.0),
        };
        Ok(Some(deeds::create(ctx.cx(), input).await?.into()))
    }

    /// Changes an API key that is not revoked. The raw key stays.
    #[graphql(
        directive = requires::apply(Permission::ManageOwnApiKeys),
        directive = audits::apply(AuditAction::Update, ResourceType::ApiKey),
        directive = open_to_api_keys::apply()
    )]
    async fn update_api_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateApiKeyInput,
    ) -> Result<Option<UpdateApiKeyPayload>> {
        let id = target(&input.id, "API key")?;
        let input = Update {
            name: patch(input.name, |text| text),
            description: patch(input.description, |text| text),
            scopes: patch(input.scopes, |scopes| scopes.into_iter().map(Into::into).collect()),
            expires_at: patch(input.expires_at, |time| time.0),
            allowed_ips: patch(input.allowed_ips, |texts| texts),
            allowed_models: patch(input.allowed_models, |texts| texts),
            rate_limit_per_minute: patch(input.rate_limit_per_minute, |number| number),
            rate_limit_per_hour: patch(input.rate_limit_per_hour, |number| number),
            concurrency_limit: patch(input.concurrency_limit, |number| number),
            token_limit_per_day: patch(input.token_limit_per_day, |number| number.0),
            cost_limit_usd_per_month: patch(input.cost_limit_usd_per_month, |amount| amount.0),
            expected_version: input.expected_version,
        };
        Ok(Some(deeds::update(ctx.cx(), id, input).await?.into()))
    }

    /// Gives an API key another raw key. The one before it ends at once, or after a grace.
    #[graphql(
        directive = requires::apply(Permission::ManageOwnApiKeys),
        directive = audits::apply(AuditAction::Regenerate, ResourceType::ApiKey),
        directive = open_to_api_keys::apply()
    )]
    async fn regenerate_api_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which API key.")] input: RegenerateApiKeyInput,
    ) -> Result<Option<RegenerateApiKeyPayload>> {
        let id = target(&input.id, "API key")?;
        Ok(Some(deeds::regenerate(ctx.cx(), id, input.grace_period_hours.unwrap_or_default()).await?.into()))
    }

    /// Ends an API key for good. One that is revoked already is not found.
    #[graphql(
        directive = requires::apply(Permission::ManageOwnApiKeys),
        directive = audits::apply(AuditAction::Revoke, ResourceType::ApiKey),
        directive = open_to_api_keys::apply()
    )]
    async fn revoke_api_key(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which API key.")] input: RevokeApiKeyInput,
    ) -> Result<Option<RevokeApiKeyPayload>> {
        Ok(Some(deeds::revoke(ctx.cx(), target(&input.id, "API key")?).await?.into()))
    }
}
