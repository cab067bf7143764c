//! Registering and verifying an address in the API.

use async_graphql::{Context, InputObject, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, ResourceType, audits, public};
use super::error::Result;
use super::password_key::{PasswordInput, opened};
use super::session::AuthPayload;
use super::user::User;
use crate::crypto::SecretText;
use crate::domain::registration::{self as deeds, Register};

/// An organization that is to be made, and its first ADMIN.
#[derive(InputObject)]
pub(super) struct RegisterInput {
    /// The organization's name, 1 to 100 characters.
    organization_name: String,
    /// The ADMIN's address, to sign in with once it is verified.
    email: String,
    /// The ADMIN's name, 1 to 100 characters.
    full_name: String,
    /// The password to sign in with: 8 to 256 characters, none of the commonest, not the address.
    password: PasswordInput,
}

/// What verifies an address.
#[derive(InputObject)]
pub(super) struct VerifyEmailInput {
    /// The token that came by mail.
    token: String,
    /// The password of whoever has asked for the address; not needed where that user is signed in and it is the address that the user
    /// has already, as after registering.
    password: Option<PasswordInput>,
}

/// Whose address is verified.
#[derive(SimpleObject)]
pub(super) struct VerifyEmailPayload {
    /// The user, with the address.
    user: User,
}

#[derive(Default)]
pub(super) struct RegistrationMutation;

#[Object(guard = "Declared")]
impl RegistrationMutation {
    /// Makes an organization and its first ADMIN, and signs them in. Open only where the server is configured so. A mail is sent to
    /// the address, which has to be verified before it can be signed in with; where it belongs to somebody already, only that mail
    /// says so.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::Register, ResourceType::Organization))]
    async fn register(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Who registers.")] input: RegisterInput,
    ) -> Result<Option<AuthPayload>> {
        let [password] = opened(ctx, [("password", input.password)]).await?;
        let input = Register {
            organization_name: input.organization_name,
            email: input.email,
            full_name: input.full_name,
            password,
        };
        Ok(Some(deeds::register(ctx.cx(), input).await?.into()))
    }

    /// Verifies an address by the token that was sent to it: from then on it is the user's address. A token serves once, and for 24
    /// hours, to who knows the password of the user that has asked for the address, or is signed in as that user where it is the user's
    /// address already.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::Verify, ResourceType::User))]
    async fn verify_email(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The token, and who asks.")] input: VerifyEmailInput,
    ) -> Result<Option<VerifyEmailPayload>> {
        let password = match input.password {
            Some(given) => {
                let [password] = opened(ctx, [("password", given)]).await?;
                Some(password)
            }
            None => None,
        };
        let user = deeds::verify_email(ctx.cx(), &SecretText::from(input.token), password.as_ref()).await?;
        Ok(Some(VerifyEmailPayload { user: User(user.into()) }))
    }
}
