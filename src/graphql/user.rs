//! Users in the API.

use async_graphql::{Context, Enum, ID, Object};

use super::declarations::Declared;
use super::error::Result;
use super::loaders::Loaders;
use super::scalars::DateTime;
use crate::store::user::User as Row;

/// A person who belongs to the organization.
pub(super) struct User(pub(super) Row);

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

    /// The address to sign in with, unique on the server.
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

    /// When the address was shown to be the user's; null: it was not.
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
}

#[derive(Default)]
pub(super) struct UserQuery;

#[Object(guard = "Declared")]
impl UserQuery {
    /// A user of the organization; null where there is none with this id.
    async fn user(&self, ctx: &Context<'_>, #[graphql(desc = "The user's id.")] id: ID) -> Result<Option<User>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).user(id).await?.map(User))
    }
}
