//! The organization in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::inputs::patch;
use super::scalars::{DateTime, Json};
use crate::domain::organization::{self as deeds, Update};
use crate::store::organization::Organization as Row;

/// The tenant: all else belongs to one.
pub(super) struct Organization(pub(super) Arc<Row>);

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
        Ok(deeds::find(ctx.cx()).await?.map(|row| Organization(row.into())))
    }
}

/// Changes to the organization: what is left out stays.
#[derive(InputObject)]
pub(super) struct UpdateOrganizationInput {
    /// Its name, 1 to 100 characters.
    name: MaybeUndefined<String>,
    /// Settings of its own, an object of at most 64 KiB and 64 levels. It replaces the one before.
    settings: MaybeUndefined<Json>,
}

/// The changed organization.
#[derive(SimpleObject)]
pub(super) struct UpdateOrganizationPayload {
    /// The organization as it is now.
    organization: Organization,
}

#[derive(Default)]
pub(super) struct OrganizationMutation;

#[Object(guard = "Declared")]
impl OrganizationMutation {
    /// Changes the organization that the caller belongs to.
    #[graphql(
        directive = requires::apply(Permission::ManageOrganization),
        directive = audits::apply(AuditAction::Update, ResourceType::Organization),
        directive = open_to_api_keys::apply()
    )]
    async fn update_organization(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateOrganizationInput,
    ) -> Result<Option<UpdateOrganizationPayload>> {
        let input = Update { name: patch(input.name, |text| text), settings: patch(input.settings, |json| json.0) };
        let organization = Organization(deeds::update(ctx.cx(), input).await?.into());
        Ok(Some(UpdateOrganizationPayload { organization }))
    }
}
