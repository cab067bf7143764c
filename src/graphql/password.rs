//! Forgotten and changed passwords in the API.

use async_graphql::{Context, InputObject, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, ResourceType, audits, public};
use super::error::Result;
use super::password_key::{PasswordInput, opened};
use crate::crypto::SecretText;
use crate::domain::password as deeds;

/// Whose password is forgotten.
#[derive(InputObject)]
pub(super) struct RequestPasswordResetInput {
    /// The address to sign in with.
    email: String,
}

/// That the request was taken.
#[derive(SimpleObject)]
pub(super) struct RequestPasswordResetPayload {
    /// Always true, whether or not the address is known.
    accepted: bool,
}

/// A new password in the place of a forgotten one.
#[derive(InputObject)]
pub(super) struct ResetPasswordInput {
    /// The token that came by mail.
    token: String,
    /// The password to sign in with: 8 to 256 characters, none of the commonest, not the address.
    new_password: PasswordInput,
}

/// That the password was reset.
#[derive(SimpleObject)]
pub(super) struct ResetPasswordPayload {
    /// Always true.
    reset: bool,
}

/// A new password in the place of one that is known.
#[derive(InputObject)]
pub(super) struct ChangePasswordInput {
    /// The password that holds.
    current_password: PasswordInput,
    /// The password to sign in with: 8 to 256 characters, none of the commonest, not the address.
    new_password: PasswordInput,
}

/// That the password was changed.
#[derive(SimpleObject)]
pub(super) struct ChangePasswordPayload {
    /// Always true.
    changed: bool,
}

#[derive(Default)]
pub(super) struct PasswordMutation;

#[Object(guard = "Declared")]
impl PasswordMutation {
    /// Sends a mail with a link for a new password to the address. It succeeds whether or not the address is known, and is refused only to
    /// who asks too often. A link serves once, and for an hour; an address gets five at once, then one in 12 minutes, and after 24 one
    /// an hour. Of several each serves, until one is used.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::Other, ResourceType::User))]
    async fn request_password_reset(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Whose password is forgotten.")] input: RequestPasswordResetInput,
    ) -> Result<Option<RequestPasswordResetPayload>> {
        deeds::request_reset(ctx.cx(), &input.email).await?;
        Ok(Some(RequestPasswordResetPayload { accepted: true }))
    }

    /// Sets a new password by the token that came by mail, and ends all sessions of its user.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::Update, ResourceType::User))]
    async fn reset_password(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The token and the new password.")] input: ResetPasswordInput,
    ) -> Result<Option<ResetPasswordPayload>> {
        let [new_password] = opened(ctx, [("newPassword", input.new_password)]).await?;
        deeds::reset(ctx.cx(), &SecretText::from(input.token), &new_password).await?;
        Ok(Some(ResetPasswordPayload { reset: true }))
    }

    /// Changes one's own password, and ends every other session.
    #[graphql(directive = audits::apply(AuditAction::Update, ResourceType::User))]
    async fn change_password(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The two passwords.")] input: ChangePasswordInput,
    ) -> Result<Option<ChangePasswordPayload>> {
        let given = [("currentPassword", input.current_password), ("newPassword", input.new_password)];
        let [current, new] = opened(ctx, given).await?;
        deeds::change(ctx.cx(), &current, &new).await?;
        Ok(Some(ChangePasswordPayload { changed: true }))
    }
}
