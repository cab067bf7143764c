//! Credentials in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::client::Client;
use super::connection::{Connection, Listed, OrderDirection, PageArguments, ordering};
use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::inputs::{filter_id, id_inputs, patch, payloads, searched, target};
use super::loaders::Loaders;
use super::rows::One;
use super::scalars::DateTime;
use super::user::{self, User};
use crate::crypto::SecretText;
use crate::domain::credential::{self as deeds, Create, Update};
use crate::domain::{self, Error};
use crate::model::{ClientId, Direction};
use crate::store::credential::{Credential as Row, CredentialFilter as Filter, CredentialOrder as Order};

/// What is known of a client's secret; the secret itself is shown by `revealCredential` alone.
pub(super) struct Credential(pub(super) Arc<Row>);

/// What is known of a client's secret; the secret itself is shown by `revealCredential` alone.
#[Object(serial)]
impl Credential {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// Whose it is.
    async fn client(&self, ctx: &Context<'_>) -> Result<One<Client>> {
        let client = Loaders::of(ctx).client(self.0.client_id).await?;
        Ok(One(Client(client.ok_or_else(|| Error::internal("a credential has no client"))?)))
    }

    /// What people call it.
    async fn label(&self) -> &str {
        &self.0.label
    }

    /// The name that is used with it.
    async fn username(&self) -> Option<&str> {
        self.0.username.as_deref()
    }

    /// Where it is used.
    async fn url(&self) -> Option<&str> {
        self.0.url.as_deref()
    }

    /// Which key of the server's ring seals its newest secret.
    async fn key_version(&self) -> &str {
        &self.0.key_version
    }

    /// The version of its newest secret: 1 for the first, one more for each that replaced it.
    async fn secret_version(&self) -> i32 {
        self.0.secret_version
    }

    /// Who made it.
    async fn created_by(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by(ctx, self.0.created_by).await
    }

    /// Who changed it last.
    async fn updated_by(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by(ctx, self.0.updated_by).await
    }

    /// When a secret of it was last revealed.
    async fn last_accessed_at(&self) -> Option<DateTime> {
        self.0.last_accessed_at.map(DateTime)
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Counts the changes, from 1; `expectedVersion` compares with it. Revealing changes nothing.
    async fn version(&self) -> i32 {
        self.0.version
    }
}

impl Listed for Credential {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Loaders::of(ctx).credential_count(filter.clone()).await
    }
}

/// Which credentials; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct CredentialFilter {
    /// Of this client.
    client_id: Option<ID>,
    /// Whose newest secret this key of the server's ring seals.
    key_version: Option<String>,
}

impl CredentialFilter {
    fn read(self, search: Option<String>) -> domain::Result<Filter> {
        Ok(Filter {
            client_id: filter_id("clientId", self.client_id)?,
            key_version: self.key_version,
            search: searched(search),
        })
    }
}

/// What to sort credentials by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct CredentialOrder {
    /// The field.
    field: CredentialOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Desc")]
    direction: OrderDirection,
}

/// A field that credentials can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::credential::CredentialOrder")]
pub(super) enum CredentialOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// Its label, whatever the case.
    Label,
    /// When a secret of it was last revealed; those that never were count as the oldest.
    LastAccessedAt,
}

/// The ordering, its name in cursors.
fn ordered(order: Option<CredentialOrder>) -> (Order, Direction, String) {
    ordering(order.map(|order| (order.field, order.direction)), (CredentialOrderField::CreatedAt, OrderDirection::Desc))
}

/// A page of the credentials of one client: with those of all clients that the query asks for, in one statement.
pub(super) async fn of_client(
    ctx: &Context<'_>,
    client: ClientId,
    page: PageArguments,
) -> Result<Connection<Credential>> {
    let (order, _, name) = ordered(None);
    let slice = Loaders::of(ctx).credential_page(client, page.page(&name)?).await?;
    let filter = Filter { client_id: Some(client), ..Filter::default() };
    Ok(Connection::new(slice, &name, filter, move |row| order.position(row)))
}

/// A new credential.
#[derive(InputObject)]
pub(super) struct CreateCredentialInput {
    /// Of which client.
    client_id: ID,
    /// What people call it, 1 to 200 characters.
    label: String,
    /// The name that is used with it, at most 200 characters.
    username: Option<String>,
    /// Where it is used, a URL without a password, at most 2,000 characters.
    url: Option<String>,
    /// The secret, 1 to 10,000 characters, kept to the letter.
    secret: String,
}

/// Changes to a credential: what is left out stays, null clears what may be empty.
#[derive(InputObject)]
pub(super) struct UpdateCredentialInput {
    /// Which credential.
    id: ID,
    /// What people call it, 1 to 200 characters.
    label: MaybeUndefined<String>,
    /// The name that is used with it, at most 200 characters.
    username: MaybeUndefined<String>,
    /// Where it is used, a URL without a password, at most 2,000 characters.
    url: MaybeUndefined<String>,
    /// A new secret, 1 to 10,000 characters: it becomes the newest version, and those before it are kept.
    secret: MaybeUndefined<String>,
    /// Refuse with CONFLICT unless the credential is at this version.
    expected_version: Option<i32>,
}

/// A secret to be shown.
#[derive(InputObject)]
pub(super) struct RevealCredentialInput {
    /// Of which credential.
    id: ID,
    /// Which version of it; the newest where left out.
    secret_version: Option<i32>,
    /// What it is needed for, at most 500 characters; the audit log keeps it.
    reason: Option<String>,
}

id_inputs! {
    /// Which credential to delete.
    DeleteCredentialInput,
}

payloads! {
    credential: Credential(Row):
    /// The new credential.
    CreateCredentialPayload,
    /// The changed credential.
    UpdateCredentialPayload,
}

/// A secret, shown.
pub(super) struct RevealCredentialPayload {
    credential: Row,
    secret: SecretText,
}

/// A secret, shown.
#[Object(serial)]
impl RevealCredentialPayload {
    /// The credential as it is now.
    async fn credential(&self) -> Credential {
        Credential(self.credential.clone().into())
    }

    /// The secret, to the letter.
    async fn secret(&self) -> &str {
        self.secret.expose()
    }
}

/// The credential is gone.
#[derive(SimpleObject)]
pub(super) struct DeleteCredentialPayload {
    /// Its id.
    deleted_id: ID,
}

#[derive(Default)]
pub(super) struct CredentialQuery;

#[Object(guard = "Declared")]
impl CredentialQuery {
    /// A credential, without its secret; null where there is none with this id.
    async fn credential(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The credential's id.")] id: ID,
    ) -> Result<Option<One<Credential>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).credential(id).await?.map(|row| One(Credential(row))))
    }

    /// The organization's credentials, without their secrets, newest first unless asked otherwise. `search` finds text in the
    /// label, the username and the URL, whatever the case.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn credentials(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "Which credentials.")] filter: Option<CredentialFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<CredentialOrder>,
    ) -> Result<Option<Connection<Credential>>> {
        let filter = filter.unwrap_or_default().read(search)?;
        let (order, direction, name) = ordered(order_by);
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }
}

#[derive(Default)]
pub(super) struct CredentialMutation;

#[Object(guard = "Declared")]
impl CredentialMutation {
    /// Makes a credential for a client that is not archived.
    #[graphql(
        directive = requires::apply(Permission::WriteCredentials),
        directive = audits::apply(AuditAction::Create, ResourceType::Credential),
        directive = open_to_api_keys::apply()
    )]
    async fn create_credential(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The new credential.")] input: CreateCredentialInput,
    ) -> Result<Option<CreateCredentialPayload>> {
        let input = Create {
            client_id: input.client_id.0,
            label: input.label,
            username: input.username,
            url: input.url,
            secret: SecretText::from(input.secret),
        };
        Ok(Some(deeds::create(ctx.cx(), input).await?.into()))
    }

    /// Changes a credential. A new secret becomes its newest version; those before it are kept, and can still be revealed.
    #[graphql(
        directive = requires::apply(Permission::WriteCredentials),
        directive = audits::apply(AuditAction::Update, ResourceType::Credential),
        directive = open_to_api_keys::apply()
    )]
    async fn update_credential(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateCredentialInput,
    ) -> Result<Option<UpdateCredentialPayload>> {
        let id = target(&input.id, "credential")?;
        let input = Update {
            label: patch(input.label, |text| text),
            username: patch(input.username, |text| text),
            url: patch(input.url, |text| text),
            secret: patch(input.secret, SecretText::from),
            expected_version: input.expected_version,
        };
        Ok(Some(deeds::update(ctx.cx(), id, input).await?.into()))
    }

    /// Shows a credential's secret. Who saw it, which version and why stands in the audit log by then.
    #[graphql(
        directive = requires::apply(Permission::RevealCredentials),
        directive = audits::apply(AuditAction::Reveal, ResourceType::Credential),
        directive = open_to_api_keys::apply()
    )]
    async fn reveal_credential(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which secret, and what for.")] input: RevealCredentialInput,
    ) -> Result<Option<RevealCredentialPayload>> {
        let id = target(&input.id, "credential")?;
        let (credential, secret) = deeds::reveal(ctx.cx(), id, input.secret_version, input.reason).await?;
        Ok(Some(RevealCredentialPayload { credential, secret }))
    }

    /// Deletes a credential with every version of its secret.
    #[graphql(
        directive = requires::apply(Permission::DeleteCredentials),
        directive = audits::apply(AuditAction::Delete, ResourceType::Credential),
        directive = open_to_api_keys::apply()
    )]
    async fn delete_credential(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which credential.")] input: DeleteCredentialInput,
    ) -> Result<Option<DeleteCredentialPayload>> {
        deeds::delete(ctx.cx(), target(&input.id, "credential")?).await?;
        Ok(Some(DeleteCredentialPayload { deleted_id: input.id }))
    }
}
