//! Users in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::api_key::{self, ApiKey};
use super::connection::{Connection, Listed, OrderDirection, PageArguments, ordering};
use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, requires};
use super::error::Result;
use super::inputs::{patch, searched, target};
use super::loaders::Loaders;
use super::rows::One;
use super::scalars::DateTime;
use crate::domain::user::{self as deeds, Update};
use crate::model::{self, UserId};
use crate::store::user::{User as Row, UserFilter as Filter, UserOrder as Order};

/// A person who belongs to the organization.
pub(super) struct User(pub(super) Arc<Row>);

/// Whether a user may sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::UserStatus")]
pub(super) enum UserStatus {
    /// Has not accepted the invitation yet.
    Invited,
    /// May sign in.
    Active,
    /// May not.
    Suspended,
}

/// What a user is in the organization; each may do what those after it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::Role")]
pub(super) enum Role {
    /// May do everything.
    Admin,
    /// Everything but Claude accounts, users, the organization, the audit log, archiving clients and deleting credentials.
    Manager,
    /// Reads, writes tasks and credentials without revealing or deleting them, manages keys of their own.
    Member,
    /// Reads.
    ReadOnly,
}

/// A person who belongs to the organization.
#[Object(serial)]
impl User {
    /// The id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// The address to sign in with, unique on the server. One that was registered is only once it is verified.
    async fn email(&self) -> &str {
        self.0.email.as_str()
    }

    /// The name.
    async fn full_name(&self) -> &str {
        &self.0.full_name
    }

    /// The role in the organization.
    async fn role(&self) -> Role {
        self.0.role.into()
    }

    /// Whether the user may sign in.
    async fn status(&self) -> UserStatus {
        self.0.status.into()
    }

    /// When the address was shown to be the user's; null: it was not. To accept an invitation does not show it: whoever invited
    /// was told the link, too.
    async fn email_verified_at(&self) -> Option<DateTime> {
        self.0.email_verified_at.map(DateTime)
    }

    /// When the user last signed in; null: never.
    async fn last_sign_in_at(&self) -> Option<DateTime> {
        self.0.last_sign_in_at.map(DateTime)
    }

    /// When the user was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When the user was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Counts the changes, from 1.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// The user's API keys, newest first: one's own for everybody, those of others with `MANAGE_API_KEYS`.
    async fn api_keys(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
    ) -> Result<Option<Connection<ApiKey>>> {
        let page = PageArguments { first, after, last, before, offset };
        Ok(Some(api_key::of_owner(ctx, self.0.id, page).await?))
    }
}

impl Listed for User {
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

/// Which users; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct UserFilter {
    /// With one of these roles.
    role: Option<Vec<Role>>,
    /// In one of these states.
    status: Option<Vec<UserStatus>>,
}

/// What to sort users by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct UserOrder {
    /// The field.
    field: UserOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

/// A field that users can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::user::UserOrder")]
pub(super) enum UserOrderField {
    /// When the user was made.
    CreatedAt,
    /// The address.
    Email,
    /// The name, whatever the case.
    FullName,
    /// When the user last signed in; who never did comes before all others.
    LastSignInAt,
}

/// Changes to a user: what is left out stays.
#[derive(InputObject)]
pub(super) struct UpdateUserInput {
    /// Which user.
    id: ID,
    /// The name, 1 to 100 characters.
    full_name: MaybeUndefined<String>,
    /// The role in the organization.
    role: MaybeUndefined<Role>,
    /// Whether the user may sign in: ACTIVE or SUSPENDED. A user who is INVITED stays so until the invitation is accepted.
    status: MaybeUndefined<UserStatus>,
    /// Refuse with CONFLICT unless the user is at this version.
    expected_version: Option<i32>,
}

/// The changed user.
#[derive(SimpleObject)]
pub(super) struct UpdateUserPayload {
    /// The user as it is now.
    user: User,
}

/// Which user to delete.
#[derive(InputObject)]
pub(super) struct DeleteUserInput {
    /// Which user.
    id: ID,
}

/// The user is gone.
#[derive(SimpleObject)]
pub(super) struct DeleteUserPayload {
    /// The id.
    deleted_id: ID,
}

/// A user that a record refers to.
pub(super) async fn by(ctx: &Context<'_>, id: Option<UserId>) -> Result<Option<One<User>>> {
    match id {
        Some(id) => Ok(Loaders::of(ctx).user(id).await?.map(|row| One(User(row)))),
        None => Ok(None),
    }
}

/// A user that a record remembers, deleted since or not.
pub(super) async fn by_ever(ctx: &Context<'_>, id: Option<UserId>) -> Result<Option<One<User>>> {
    match id {
        Some(id) => Ok(Loaders::of(ctx).user_ever(id).await?.map(|row| One(User(row)))),
        None => Ok(None),
    }
}

#[derive(Default)]
pub(super) struct UserQuery;

#[Object(guard = "Declared")]
impl UserQuery {
    /// A user of the organization; null where there is none with this id.
    async fn user(&self, ctx: &Context<'_>, #[graphql(desc = "The user's id.")] id: ID) -> Result<Option<One<User>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).user(id).await?.map(|row| One(User(row))))
    }
    /// The organization's users, in the order in which they were made unless asked otherwise. `search` finds text in the name
    /// and the address, whatever the case.
    #[graphql(directive = requires::apply(Permission::ViewUsers))]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn users(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "Which users.")] filter: Option<UserFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<UserOrder>,
    ) -> Result<Option<Connection<User>>> {
        let filter = filter.unwrap_or_default();
        let filter = Filter {
            role: filter.role.map(|roles| roles.into_iter().map(model::Role::from).collect()),
            status: filter.status.map(|statuses| statuses.into_iter().map(model::UserStatus::from).collect()),
            search: searched(search),
        };
        let order_by = order_by.map(|order| (order.field, order.direction));
        let default = (UserOrderField::CreatedAt, OrderDirection::Asc);
        let (order, direction, name) = ordering::<_, Order>(order_by, default);
        // Of this list alone: others have a CreatedAt too.
        let name = format!("User {name}");
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }
}

#[derive(Default)]
pub(super) struct UserMutation;

#[Object(guard = "Declared")]
impl UserMutation {
    /// Changes a user's name, role or status. Who is suspended is signed out everywhere. The last active ADMIN can be neither
    /// demoted nor suspended.
    #[graphql(
        directive = requires::apply(Permission::ManageUsers),
        directive = audits::apply(AuditAction::Update, ResourceType::User)
    )]
    async fn update_user(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateUserInput,
    ) -> Result<Option<UpdateUserPayload>> {
        let id = target(&input.id, "user")?;
        let input = Update {
            full_name: patch(input.full_name, |text| text),
            role: patch(input.role, Into::into),
            status: patch(input.status, Into::into),
            expected_version: input.expected_version,
        };
        Ok(Some(UpdateUserPayload { user: User(deeds::update(ctx.cx(), id, input).await?.into()) }))
    }

    /// Deletes a user, who is signed out everywhere. The address is free again, and the audit log still knows the name. Neither
    /// the caller nor the last active ADMIN can be deleted.
    #[graphql(
        directive = requires::apply(Permission::ManageUsers),
        directive = audits::apply(AuditAction::Delete, ResourceType::User)
    )]
    async fn delete_user(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which user.")] input: DeleteUserInput,
    ) -> Result<Option<DeleteUserPayload>> {
        deeds::delete(ctx.cx(), target(&input.id, "user")?).await?;
        Ok(Some(DeleteUserPayload { deleted_id: input.id }))
    }
}
