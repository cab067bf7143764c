//! What users change of themselves in the API.

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, ResourceType, audits};
use super::error::Result;
use super::inputs::patch;
use super::password_key::{PasswordInput, opened};
use super::user::User;
use crate::domain::profile::{self as deeds, Update};

/// Changes to oneself: what is left out stays.
#[derive(InputObject)]
pub(super) struct UpdateProfileInput {
    /// The name, 1 to 100 characters.
    full_name: MaybeUndefined<String>,
    /// Another address to sign in with. It holds once the link is followed that is sent to it; given again, it is sent again.
    email: MaybeUndefined<String>,
    /// Refuse with CONFLICT unless the user is at this version.
    expected_version: Option<i32>,
}

/// The changed user.
#[derive(SimpleObject)]
pub(super) struct UpdateProfilePayload {
    /// The user as it is now, with the address that holds.
    user: User,
}

/// That one leaves.
#[derive(InputObject)]
pub(super) struct DeleteMyAccountInput {
    /// One's own password, once more.
    password: PasswordInput,
}

/// The account is gone.
#[derive(SimpleObject)]
pub(super) struct DeleteMyAccountPayload {
    /// The id that the user had.
    deleted_id: ID,
}

#[derive(Default)]
pub(super) struct ProfileMutation;

#[Object(guard = "Declared")]
impl ProfileMutation {
    /// Changes one's own name, and asks for another address: a link is sent to it, and a notice to the one before.
    #[graphql(directive = audits::apply(AuditAction::Update, ResourceType::User))]
    async fn update_profile(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateProfileInput,
    ) -> Result<Option<UpdateProfilePayload>> {
        let input = Update {
            full_name: patch(input.full_name, |text| text),
            email: patch(input.email, |text| text),
            expected_version: input.expected_version,
        };
        Ok(Some(UpdateProfilePayload { user: User(deeds::update(ctx.cx(), input).await?.into()) }))
    }

    /// Deletes oneself: all sessions end, all API keys are revoked, and the address is free again. Refused to the organization's last
    /// ADMIN.
    #[graphql(directive = audits::apply(AuditAction::Delete, ResourceType::User))]
    async fn delete_my_account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The password.")] input: DeleteMyAccountInput,
    ) -> Result<Option<DeleteMyAccountPayload>> {
        let [password] = opened(ctx, [("password", input.password)]).await?;
        let id = deeds::delete(ctx.cx(), &password).await?;
        Ok(Some(DeleteMyAccountPayload { deleted_id: id.to_string().into() }))
    }
}
