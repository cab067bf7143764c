//! Around each root mutation field: exactly one audit entry, whatever the outcome.
//!
//! A deed that succeeds has committed its entry by itself. Here every other outcome gets one: a refusal DENIED, a failure
//! FAILED. A success that left none is a fault. The extension is installed for mutations only: its hook costs on each field.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_graphql::extensions::{Extension, ExtensionContext, ExtensionFactory, NextResolve, ResolveInfo};
use async_graphql::{PathSegment, Pos, ServerError, ServerResult, Value};
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::context::Caller;
use super::declarations::Declarations;
use super::error::{Failure, source};
use super::loaders::Loaders;
use crate::domain::{self, Error, record_failure};
use crate::model::{AuditAction, ResourceType};

/// Installs the middleware.
pub(super) struct AuditMutations;

impl ExtensionFactory for AuditMutations {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Middleware)
    }
}

struct Middleware;

#[async_graphql::async_trait::async_trait]
impl Extension for Middleware {
    async fn resolve(
        &self,
        ctx: &ExtensionContext<'_>,
        info: ResolveInfo<'_>,
        next: NextResolve<'_>,
    ) -> ServerResult<Option<Value>> {
        if info.path_node.parent.is_some() || info.is_for_introspection {
            return next.run(ctx, info).await;
        }
        let caller: &Arc<Caller> = ctx.data_unchecked();
        let declarations: &Arc<Declarations> = ctx.data_unchecked();
        let field = Field {
            operation: info.name.to_owned(),
            key: info.alias.unwrap_or(info.name).to_owned(),
            position: info.field.name.pos,
        };
        // The guard says what the deed is about, but is not asked where an argument cannot be read.
        caller.record.begin(None);
        // What the field before it has changed is to be read again.
        Loaders::clear(ctx.data_unchecked()).await;
        let before = caller.record.written();
        let answer = if caller.deadline <= Instant::now() {
            Err(field.server_error(Error::timeout()))
        } else {
            AssertUnwindSafe(next.run(ctx, info))
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(field.server_error(Error::internal(format!("{} panicked", field.operation)))))
        };
        let written = caller.record.written() - before;

        let declaration = declarations.mutation(&field.operation);
        let (action, resource_type) = declaration
            .and_then(|declaration| declaration.audits)
            .unwrap_or((AuditAction::Other, ResourceType::System));
        let cx = caller.cx(&field.operation);
        let error = match (answer, written) {
            (answer, 1) => return answer,
            (Ok(_), _) => {
                field.server_error(Error::internal(format!("{} left {written} audit entries", field.operation)))
            }
            // Whoever may not do it is told that, rather than what is wrong with the input.
            (Err(error), _) => match declarations.check_mutation(&field.operation, cx.actor) {
                Err(denied) if source(&error).is_none() => field.server_error(denied),
                _ => error,
            },
        };
        let unread = Error::bad_input(Vec::new());
        let reason = source(&error).unwrap_or(&unread);
        record_failure(cx, action, resource_type, reason).await.map_err(|error| field.server_error(error))?;
        Err(error)
    }
}

/// The root field that runs.
struct Field {
    operation: String,
    key: String,
    position: Pos,
}

impl Field {
    fn server_error(&self, error: domain::Error) -> ServerError {
        let mut error = async_graphql::Error::from(Failure::from(error)).into_server_error(self.position);
        error.path = vec![PathSegment::Field(self.key.clone())];
        error
    }
}
