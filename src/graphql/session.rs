//! Signing in, refreshing and signing out in the API.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};

use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, ResourceType, audits, public};
use super::error::Result;
use super::inputs::target;
use super::password_key::{PasswordInput, opened};
use super::scalars::DateTime;
use super::viewer::NewViewer;
use crate::crypto::SecretText;
use crate::domain::session::{self as deeds, Tokens};
use crate::model::SessionId;
use crate::store::session::Session as Row;

/// One sign-in on one device.
pub(super) struct Session {
    pub(super) row: Arc<Row>,
    pub(super) current: Option<SessionId>,
}

/// One sign-in on one device.
#[Object(serial)]
impl Session {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.row.id.to_string().into()
    }

    /// The address that it was last refreshed from.
    async fn ip_address(&self) -> Option<&str> {
        self.row.ip_address.as_deref()
    }

    /// The program that it was last refreshed by.
    async fn user_agent(&self) -> Option<&str> {
        self.row.user_agent.as_deref()
    }

    /// When the user signed in.
    async fn created_at(&self) -> DateTime {
        self.row.created_at.into()
    }

    /// When it was last refreshed.
    async fn last_used_at(&self) -> DateTime {
        self.row.last_used_at.into()
    }

    /// When it ends, unless it is refreshed before.
    async fn expires_at(&self) -> DateTime {
        self.row.expires_at.into()
    }

    /// Whether this request belongs to it.
    async fn current(&self) -> bool {
        self.current == Some(self.row.id)
    }
}

/// What a signed-in client holds.
#[derive(SimpleObject)]
pub(super) struct AuthPayload {
    /// To send with each request, as `Authorization: Bearer`.
    access_token: String,
    /// When the access token expires.
    access_token_expires_at: DateTime,
    /// To get the next two tokens with. It serves once.
    refresh_token: String,
    /// When the refresh token expires.
    refresh_token_expires_at: DateTime,
    /// Who is signed in now.
    viewer: NewViewer,
}

impl From<Tokens> for AuthPayload {
    fn from(tokens: Tokens) -> Self {
        Self {
            access_token: tokens.access.expose().to_owned(),
            access_token_expires_at: tokens.access_expires_at.into(),
            refresh_token: tokens.refresh.expose().to_owned(),
            refresh_token_expires_at: tokens.refresh_expires_at.into(),
            viewer: NewViewer(tokens.actor),
        }
    }
}

/// What to sign in with.
#[derive(InputObject)]
pub(super) struct SignInInput {
    /// The user's address; its case does not matter.
    email: String,
    /// The user's password.
    password: PasswordInput,
}

/// What to refresh a session with.
#[derive(InputObject)]
pub(super) struct RefreshSessionInput {
    /// The newest refresh token of the session.
    refresh_token: String,
}

/// What to end.
#[derive(InputObject, Default)]
pub(super) struct SignOutInput {
    /// A refresh token of the session to end; where it is left out, the session of the access token.
    refresh_token: Option<String>,
    /// Whether to end all of the user's sessions. A refresh token that does not serve any more ends its own at most.
    #[graphql(default_with = "Some(false)")]
    everywhere: Option<bool>,
}

/// How signing out went.
#[derive(SimpleObject)]
pub(super) struct SignOutPayload {
    /// Whether a session was ended; false: there was none to end.
    signed_out: bool,
}

/// Which session to end.
#[derive(InputObject)]
pub(super) struct RevokeSessionInput {
    /// Which session, of one's own.
    id: ID,
}

/// The session has ended.
#[derive(SimpleObject)]
pub(super) struct RevokeSessionPayload {
    /// The id.
    revoked_id: ID,
}

#[derive(Default)]
pub(super) struct SessionMutation;

#[Object(guard = "Declared")]
impl SessionMutation {
    /// Signs a user in.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::SignIn, ResourceType::Session))]
    async fn sign_in(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Who signs in.")] input: SignInInput,
    ) -> Result<Option<AuthPayload>> {
        let [password] = opened(ctx, [("password", input.password)]).await?;
        let tokens = deeds::sign_in(ctx.cx(), &input.email, &password).await?;
        Ok(Some(tokens.into()))
    }

    /// Exchanges a refresh token for new tokens. One that was used before ends its session, for it may have been stolen;
    /// only a retry within 10 seconds gets the same new token once more.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::Refresh, ResourceType::Session))]
    async fn refresh_session(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The token to exchange.")] input: RefreshSessionInput,
    ) -> Result<Option<AuthPayload>> {
        let tokens = deeds::refresh(ctx.cx(), &SecretText::from(input.refresh_token)).await?;
        Ok(Some(tokens.into()))
    }

    /// Ends a session, or all of the user's.
    #[graphql(directive = public::apply(), directive = audits::apply(AuditAction::SignOut, ResourceType::Session))]
    async fn sign_out(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to end; where it is left out, the session of the access token.")] input: Option<
            SignOutInput,
        >,
    ) -> Result<Option<SignOutPayload>> {
        let input = input.unwrap_or_default();
        let token = input.refresh_token.map(SecretText::from);
        let signed_out = deeds::sign_out(ctx.cx(), token.as_ref(), input.everywhere.unwrap_or(false)).await?;
        Ok(Some(SignOutPayload { signed_out }))
    }

    /// Ends one of one's own sessions. What is signed in by it is cut off at once.
    #[graphql(directive = audits::apply(AuditAction::Revoke, ResourceType::Session))]
    async fn revoke_session(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which session.")] input: RevokeSessionInput,
    ) -> Result<Option<RevokeSessionPayload>> {
        deeds::revoke(ctx.cx(), target(&input.id, "session")?).await?;
        Ok(Some(RevokeSessionPayload { revoked_id: input.id }))
    }
}
