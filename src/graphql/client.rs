//! Clients in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object};

use super::api_key::{self, ApiKey};
use super::connection::{Connection, DateTimeRange, Listed, OrderDirection, PageArguments, ordering};
use super::context::ContextExt;
use super::credential::{self, Credential};
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::inputs::{filter_id, id_inputs, patch, payloads, searched, target};
use super::loaders::Loaders;
use super::rows::One;
use super::scalars::{DateTime, Json};
use super::task::{self, Task, TaskFilter, TaskOrder};
use super::user::{self, User};
use crate::domain;
use crate::domain::client::{self as deeds, Create, Update};
use crate::model;
use crate::store::client::{Client as Row, ClientFilter as Filter, ClientOrder as Order};

/// Whom the organization works for.
pub(super) struct Client(pub(super) Arc<Row>);

/// How far one is with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ClientStatus")]
pub(super) enum ClientStatus {
    /// May become one.
    Lead,
    /// Is one.
    Active,
    /// Is one for whom nothing is done at present.
    Paused,
    /// Was put away.
    Archived,
}

/// Whom the organization works for.
#[Object(serial)]
impl Client {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// Its name.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// The company that it is or belongs to.
    async fn company(&self) -> Option<&str> {
        self.0.company.as_deref()
    }

    /// Its address.
    async fn email(&self) -> Option<&str> {
        self.0.email.as_ref().map(model::Email::as_str)
    }

    /// Its telephone number, as it was written.
    async fn phone(&self) -> Option<&str> {
        self.0.phone.as_deref()
    }

    /// What is worth knowing of it.
    async fn notes(&self) -> Option<&str> {
        self.0.notes.as_deref()
    }

    /// How far one is with it.
    async fn status(&self) -> ClientStatus {
        self.0.shown_status().into()
    }

    /// Who looks after it.
    async fn owner(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by(ctx, self.0.owner_id).await
    }

    /// Anything else worth keeping with it, an object.
    async fn metadata(&self) -> Option<Json> {
        self.0.metadata.as_ref().map(|object| Json(object.to_value()))
    }

    /// When it was archived; null where it is not.
    async fn archived_at(&self) -> Option<DateTime> {
        self.0.archived_at.map(DateTime)
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

    /// What is to be done for it, newest first unless asked otherwise.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Which tasks.")] filter: Option<TaskFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<TaskOrder>,
    ) -> Result<Connection<Task>> {
        let page = PageArguments { first, after, last, before, offset };
        task::of_client(ctx, self.0.id, filter, order_by, page).await
    }

    /// Its credentials, newest first; of their secrets only that they exist.
    async fn credentials(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
    ) -> Result<Connection<Credential>> {
        let page = PageArguments { first, after, last, before, offset };
        credential::of_client(ctx, self.0.id, page).await
    }

    /// The API keys that are used for it, newest first: one's own, and with `MANAGE_API_KEYS` everybody's.
    async fn api_keys(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
    ) -> Result<Connection<ApiKey>> {
        let page = PageArguments { first, after, last, before, offset };
        api_key::of_client(ctx, self.0.id, page).await
    }
}

impl Listed for Client {
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

/// Which clients; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct ClientFilter {
    /// In one of these states.
    status: Option<Vec<ClientStatus>>,
    /// With this owner.
    owner_id: Option<ID>,
    /// Archived ones too, where `status` names none.
    #[graphql(default_with = "Some(false)")]
    include_archived: Option<bool>,
    /// Made in this span of time.
    created_at: Option<DateTimeRange>,
}

impl ClientFilter {
    fn read(self, search: Option<String>) -> domain::Result<Filter> {
        let span = self.created_at;
        Ok(Filter {
            status: self.status.map(|statuses| statuses.into_iter().map(model::ClientStatus::from).collect()),
            owner_id: filter_id("ownerId", self.owner_id)?,
            include_archived: self.include_archived.unwrap_or_default(),
            created_from: span.as_ref().and_then(|span| span.from).map(|time| time.0),
            created_to: span.and_then(|span| span.to).map(|time| time.0),
            search: searched(search),
        })
    }
}

/// What to sort clients by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct ClientOrder {
    /// The field.
    field: ClientOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Desc")]
    direction: OrderDirection,
}

/// A field that clients can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::client::ClientOrder")]
pub(super) enum ClientOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// Its name, whatever the case.
    Name,
    /// Its company, whatever the case; those without one come first.
    Company,
}

/// A new client.
#[derive(InputObject)]
pub(super) struct CreateClientInput {
    /// Its name, 1 to 200 characters.
    name: String,
    /// The company that it is or belongs to, at most 200 characters.
    company: Option<String>,
    /// Its address.
    email: Option<String>,
    /// Its telephone number, at most 50 characters.
    phone: Option<String>,
    /// What is worth knowing of it, at most 10,000 characters.
    notes: Option<String>,
    /// How far one is with it, but for ARCHIVED; ACTIVE where left out.
    status: Option<ClientStatus>,
    /// A user of the organization who looks after it; the caller where left out.
    owner_id: MaybeUndefined<ID>,
    /// Anything else, an object of at most 64 KiB and 64 levels.
    metadata: Option<Json>,
}

/// Changes to a client: what is left out stays, null clears what may be empty.
#[derive(InputObject)]
pub(super) struct UpdateClientInput {
    /// Which client.
    id: ID,
    /// Its name, 1 to 200 characters.
    name: MaybeUndefined<String>,
    /// The company that it is or belongs to, at most 200 characters.
    company: MaybeUndefined<String>,
    /// Its address.
    email: MaybeUndefined<String>,
    /// Its telephone number, at most 50 characters.
    phone: MaybeUndefined<String>,
    /// What is worth knowing of it, at most 10,000 characters.
    notes: MaybeUndefined<String>,
    /// How far one is with it, but for ARCHIVED.
    status: MaybeUndefined<ClientStatus>,
    /// A user of the organization who looks after it.
    owner_id: MaybeUndefined<ID>,
    /// Anything else, an object of at most 64 KiB and 64 levels.
    metadata: MaybeUndefined<Json>,
    /// Refuse with CONFLICT unless the client is at this version.
    expected_version: Option<i32>,
}

id_inputs! {
    /// Which client to put away.
    ArchiveClientInput,
    /// Which client to take out again.
    RestoreClientInput,
}

payloads! {
    client: Client(Row):
    /// The new client.
    CreateClientPayload,
    /// The changed client.
    UpdateClientPayload,
    /// The client that was put away.
    ArchiveClientPayload,
    /// The client that was taken out again.
    RestoreClientPayload,
}

#[derive(Default)]
pub(super) struct ClientQuery;

#[Object(guard = "Declared")]
impl ClientQuery {
    /// A client; null where there is none with this id.
    async fn client(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The client's id.")] id: ID,
    ) -> Result<Option<One<Client>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).client(id).await?.map(|row| One(Client(row))))
    }

    /// The organization's clients, newest first unless asked otherwise; archived ones only where the filter asks for them.
    /// `search` finds text in the name and the company, whatever the case.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn clients(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "Which clients.")] filter: Option<ClientFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<ClientOrder>,
    ) -> Result<Option<Connection<Client>>> {
        let filter = filter.unwrap_or_default().read(search)?;
        let order_by = order_by.map(|order| (order.field, order.direction));
        let default = (ClientOrderField::CreatedAt, OrderDirection::Desc);
        let (order, direction, name) = ordering::<_, Order>(order_by, default);
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }
}

#[derive(Default)]
pub(super) struct ClientMutation;

#[Object(guard = "Declared")]
impl ClientMutation {
    /// Makes a client.
    #[graphql(
        directive = requires::apply(Permission::WriteClients),
        directive = audits::apply(AuditAction::Create, ResourceType::Client),
        directive = open_to_api_keys::apply()
    )]
    async fn create_client(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The new client.")] input: CreateClientInput,
    ) -> Result<Option<CreateClientPayload>> {
        let input = Create {
            name: input.name,
            company: input.company,
            email: input.email,
            phone: input.phone,
            notes: input.notes,
            status: input.status.map(Into::into),
            owner_id: patch(input.owner_id, |id| id.0),
            metadata: input.metadata.map(|json| json.0),
        };
        Ok(Some(deeds::create(ctx.cx(), input).await?.into()))
    }

    /// Changes a client that is not archived.
    #[graphql(
        directive = requires::apply(Permission::WriteClients),
        directive = audits::apply(AuditAction::Update, ResourceType::Client),
        directive = open_to_api_keys::apply()
    )]
    async fn update_client(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateClientInput,
    ) -> Result<Option<UpdateClientPayload>> {
        let id = target(&input.id, "client")?;
        let input = Update {
            name: patch(input.name, |text| text),
            company: patch(input.company, |text| text),
            email: patch(input.email, |text| text),
            phone: patch(input.phone, |text| text),
            notes: patch(input.notes, |text| text),
            status: patch(input.status, Into::into),
            owner_id: patch(input.owner_id, |id| id.0),
            metadata: patch(input.metadata, |json| json.0),
            expected_version: input.expected_version,
        };
        Ok(Some(deeds::update(ctx.cx(), id, input).await?.into()))
    }

    /// Puts a client away: it stays readable, and takes no new tasks, credentials or keys.
    #[graphql(
        directive = requires::apply(Permission::ArchiveClients),
        directive = audits::apply(AuditAction::Archive, ResourceType::Client),
        directive = open_to_api_keys::apply()
    )]
    async fn archive_client(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which client.")] input: ArchiveClientInput,
    ) -> Result<Option<ArchiveClientPayload>> {
        Ok(Some(deeds::archive(ctx.cx(), target(&input.id, "client")?).await?.into()))
    }

    /// Takes a client out again, in the state that it was in before.
    #[graphql(
        directive = requires::apply(Permission::ArchiveClients),
        directive = audits::apply(AuditAction::Restore, ResourceType::Client),
        directive = open_to_api_keys::apply()
    )]
    async fn restore_client(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which client.")] input: RestoreClientInput,
    ) -> Result<Option<RestoreClientPayload>> {
        Ok(Some(deeds::restore(ctx.cx(), target(&input.id, "client")?).await?.into()))
    }
}
