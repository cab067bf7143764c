//! Invitations in the API.

use async_graphql::{Context, InputObject, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, public, requires};
use super::error::Result;
use super::password_key::{PasswordInput, opened};
use super::session::AuthPayload;
use super::user::{Role, User};
use crate::crypto::SecretText;
use crate::domain::invitation::{self as deeds, Accept, Invite};

/// Whom to invite.
#[derive(InputObject)]
pub(super) struct InviteUserInput {
    /// The address to sign in with, of nobody else on the server.
    email: String,
    /// The name, 1 to 100 characters.
    full_name: String,
    /// The role in the organization.
    role: Role,
}

/// The invited user, and the link for them.
#[derive(SimpleObject)]
pub(super) struct InviteUserPayload {
    /// The user, who is INVITED.
    user: User,
    /// Where the invitation is accepted, with the token after `#token=`. A mail has it, too. It is told once, serves once, and for seven days.
    invitation_url: String,
}

/// What an invited user chooses.
#[derive(InputObject)]
pub(super) struct AcceptInvitationInput {
    /// The token of the invitation.
    token: String,
    /// The name, 1 to 100 characters; that of the invitation where it is left out.
    full_name: Option<String>,
    /// The password to sign in with: 8 to 256 characters, none of the commonest, not the address.
    password: PasswordInput,
}

#[derive(Default)]
pub(super) struct InvitationMutation;

#[Object(guard = "Declared")]
impl InvitationMutation {
    /// Gives somebody who has an invitation a password, and signs them in.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::Verify, ResourceType::User))]
    async fn accept_invitation(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The invitation and what its holder chooses.")] input: AcceptInvitationInput,
    ) -> Result<Option<AuthPayload>> {
        let [password] = opened(ctx, [("password", input.password)]).await?;
        let input = Accept { token: SecretText::from(input.token), full_name: input.full_name, password };
        Ok(Some(deeds::accept(ctx.cx(), input).await?.into()))
    }

    /// Invites somebody into the organization. Who was invited before and has not accepted is invited anew: the name and the
    /// role are those of now, and the invitation before has ended.
    #[graphql(
        directive = requires::apply(Permission::ManageUsers),
        directive = audits::apply(AuditAction::Invite, ResourceType::User)
    )]
    async fn invite_user(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Whom to invite.")] input: InviteUserInput,
    ) -> Result<Option<InviteUserPayload>> {
        let input = Invite { email: input.email, full_name: input.full_name, role: input.role.into() };
        let (user, url) = deeds::invite(ctx.cx(), input).await?;
        Ok(Some(InviteUserPayload { user: User(user.into()), invitation_url: url.expose().to_owned() }))
    }
}
