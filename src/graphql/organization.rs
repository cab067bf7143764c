//! The organization in the API.

use async_graphql::{Context, Enum, ID, Object};

use super::context::ContextExt;
use super::declarations::Declared;
use super::error::Result;
use super::scalars::{DateTime, Json};
use crate::domain;
use crate::store::organization::Organization as Row;

/// The tenant: all else belongs to one.
pub(super) struct Organization(pub(super) Row);

/// What an organization has booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::Plan")]
pub(super) enum Plan {
    /// Free of charge.
    Free,
    /// Paid.
    Pro,
    /// By agreement.
    Enterprise,
}

/// The tenant: all else belongs to one.
#[Object(serial)]
impl Organization {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// Its name.
    async fn name(&self) -> &str {
        &self.0.name
    }

    /// What it has booked.
    async fn plan(&self) -> Plan {
        self.0.plan.into()
    }

    /// Settings of its own, an object.
    async fn settings(&self) -> Json {
        Json(self.0.settings.to_value())
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }
}

#[derive(Default)]
pub(super) struct OrganizationQuery;

#[Object(guard = "Declared")]
impl OrganizationQuery {
    /// The organization that the caller belongs to.
    async fn organization(&self, ctx: &Context<'_>) -> Result<Option<Organization>> {
        Ok(domain::organization::find(ctx.cx()).await?.map(Organization))
    }
}
