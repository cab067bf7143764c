//! The viewer: who is asking, or who has just signed in.

use std::borrow::Cow;
use std::sync::Arc;

use async_graphql::parser::types::Field;
use async_graphql::registry::Registry;
use async_graphql::{Context, ContextSelectionSet, Data, Object, OutputType, Positioned, ServerResult, Value};

use super::api_key::ApiKey;
use super::context::{Caller, ContextExt};
use super::declarations::{Declared, Permission, public};
use super::error::Result;
use super::loaders::Loaders;
use super::organization::Organization;
use super::quota::Quota;
use super::rows::One;
use super::session::Session;
use super::user::{Role, User};
use crate::domain::{self, Error, Record};
use crate::identity::{Actor, SignedIn};

/// The signed-in user, or the API key, behind this request.
pub(super) struct Viewer;

fn signed_in(ctx: &Context<'_>) -> domain::Result<SignedIn> {
    ctx.cx().actor.signed_in().ok_or_else(Error::unauthenticated)
}

/// Who has just signed in, whatever the request itself came with: all that is selected below is judged and read as theirs.
pub(super) struct NewViewer(pub(super) Actor);

impl OutputType for NewViewer {
    fn type_name() -> Cow<'static, str> {
        Viewer::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        Viewer::create_type_info(registry)
    }

    async fn resolve(&self, ctx: &ContextSelectionSet<'_>, field: &Positioned<Field>) -> ServerResult<Value> {
        let request: &Arc<Caller> = ctx.data_unchecked();
        let caller = Arc::new(Caller {
            services: request.services.clone(),
            actor: self.0,
            origin: request.origin.clone(),
            deadline: request.deadline,
            left: request.left.clone(),
            record: Record::default(),
        });
        let mut data = Data::default();
        data.insert(Loaders::new(&caller));
        data.insert(caller);
        let mut ctx = ctx.clone();
        // It comes before the request's own, for this field and all below.
        ctx.execute_data = Some(&data);
        Viewer.resolve(&ctx, field).await
    }
}

/// The signed-in user, or the API key, behind this request.
#[allow(clippy::unused_async, reason = "a resolver is async")]
#[Object]
impl Viewer {
    /// The user; of an API key, its owner.
    async fn user(&self, ctx: &Context<'_>) -> Result<One<User>> {
        let user = domain::user::of_viewer(ctx.cx()).await?;
        Ok(One(User(user.ok_or_else(Error::unauthenticated)?.into())))
    }

    /// The API key that the request is made with; null where somebody has signed in.
    async fn api_key(&self, ctx: &Context<'_>) -> Result<Option<ApiKey>> {
        Ok(domain::api_key::of_viewer(ctx.cx()).await?.map(|row| ApiKey(row.into())))
    }

    /// The user's organization.
    async fn organization(&self, ctx: &Context<'_>) -> Result<Organization> {
        let organization = domain::organization::of_viewer(ctx.cx()).await?;
        Ok(Organization(organization.ok_or_else(Error::unauthenticated)?.into()))
    }

    /// The user's role, as it is now; of an API key, what it acts with of it.
    async fn role(&self, ctx: &Context<'_>) -> Result<Role> {
        Ok(signed_in(ctx)?.access.role().into())
    }

    /// What the role may do; of an API key, what its scopes allow of it.
    async fn permissions(&self, ctx: &Context<'_>) -> Result<Vec<Permission>> {
        Ok(signed_in(ctx)?.access.permissions().into_iter().map(Permission::from).collect())
    }

    /// What is left of the caller's limits: of the API key's own, or of the user's requests.
    async fn quota(&self, ctx: &Context<'_>) -> Result<Quota> {
        Ok(domain::quota::of_viewer(ctx.cx()).await?.into())
    }

    /// Where the user is signed in, newest first.
    async fn sessions(&self, ctx: &Context<'_>) -> Result<Vec<Session>> {
        let current = signed_in(ctx)?.session();
        let rows = domain::session::of_viewer(ctx.cx()).await?;
        Ok(rows.into_iter().map(|row| Session { row: row.into(), current }).collect())
    }
}

#[derive(Default)]
pub(super) struct ViewerQuery;

#[Object(guard = "Declared")]
impl ViewerQuery {
    /// Who is asking; null where nobody is signed in.
    #[graphql(directive = public::apply())]
    async fn viewer(&self, ctx: &Context<'_>) -> Option<Viewer> {
        ctx.cx().actor.signed_in().map(|_| Viewer)
    }
}
