//! The viewer: who is asking.

use async_graphql::{Context, Object};

use super::api_key::ApiKey;
use super::context::{Caller, ContextExt};
use super::declarations::{Declared, Permission, public};
use super::error::Result;
use super::organization::Organization;
use super::quota::Quota;
use super::session::Session;
use super::user::{Role, User};
use crate::domain::{self, Cx, Error};
use crate::identity::{Actor, SignedIn};
use std::sync::Arc;

/// The signed-in user, or the API key, behind this request.
pub(super) struct Viewer(pub(super) Actor);

impl Viewer {
    fn signed_in(&self) -> domain::Result<SignedIn> {
        self.0.signed_in().ok_or_else(Error::unauthenticated)
    }

    /// The viewer's own context: a sign-in's payload is read by whom it has just signed in.
    fn cx<'a>(&'a self, ctx: &Context<'a>) -> Cx<'a> {
        Cx { actor: &self.0, ..ctx.cx() }
    }
}

/// The signed-in user, or the API key, behind this request.
#[allow(clippy::unused_async, reason = "a resolver is async")]
#[Object]
impl Viewer {
    /// The user; of an API key, its owner.
    async fn user(&self, ctx: &Context<'_>) -> Result<User> {
        let user = domain::user::of_viewer(self.cx(ctx)).await?;
        Ok(User(user.ok_or_else(Error::unauthenticated)?))
    }

    /// The API key that the request is made with; null where somebody has signed in.
    async fn api_key(&self, ctx: &Context<'_>) -> Result<Option<ApiKey>> {
        Ok(domain::api_key::of_viewer(self.cx(ctx)).await?.map(ApiKey))
    }

    /// The user's organization.
    async fn organization(&self, ctx: &Context<'_>) -> Result<Organization> {
        let organization = domain::organization::of_viewer(self.cx(ctx)).await?;
        Ok(Organization(organization.ok_or_else(Error::unauthenticated)?))
    }

    /// The user's role, as it is now; of an API key, what it acts with of it.
    async fn role(&self) -> Result<Role> {
        Ok(self.signed_in()?.access.role().into())
    }

    /// What the role may do; of an API key, what its scopes allow of it.
    async fn permissions(&self) -> Result<Vec<Permission>> {
        Ok(self.signed_in()?.access.permissions().into_iter().map(Permission::from).collect())
    }

    /// What is left of the caller's limits: of the API key's own, or of the user's requests.
    async fn quota(&self, ctx: &Context<'_>) -> Result<Quota> {
        Ok(domain::quota::of_viewer(self.cx(ctx)).await?.into())
    }

    /// Where the user is signed in, newest first.
    async fn sessions(&self, ctx: &Context<'_>) -> Result<Vec<Session>> {
        let current = self.signed_in()?.session();
        let rows = domain::session::of_viewer(self.cx(ctx)).await?;
        Ok(rows.into_iter().map(|row| Session { row, current }).collect())
    }
}

#[derive(Default)]
pub(super) struct ViewerQuery;

#[Object(guard = "Declared")]
impl ViewerQuery {
    /// Who is asking; null where nobody is signed in.
    #[graphql(directive = public::apply())]
    async fn viewer(&self, ctx: &Context<'_>) -> Option<Viewer> {
        let caller: &Arc<Caller> = ctx.data_unchecked();
        caller.actor.signed_in().map(|_| Viewer(caller.actor))
    }
}
