//! Around each root mutation field: exactly one audit entry, whatever the outcome.
//!
//! A deed that succeeds has committed its entry by itself. Here every other outcome gets one: a refusal DENIED, a failure
//! FAILED. A success that left none is a fault. The extension is installed for mutations only: its hook costs on each field.

use std::sync::Arc;

use async_graphql::extensions::{Extension, ExtensionContext, ExtensionFactory, NextResolve, ResolveInfo};
use async_graphql::{ServerError, ServerResult, Value};

use super::context::Caller;
use super::declarations::Declarations;
use super::error::{Failure, source};
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
        let operation = info.name.to_owned();
        let position = info.field.name.pos;
        let before = caller.record.written();
        let answer = next.run(ctx, info).await;
        let written = caller.record.written() - before;

        let (action, resource_type) = declarations
            .mutation(&operation)
            .and_then(|declaration| declaration.audits)
            .unwrap_or((AuditAction::Other, ResourceType::System));
        let cx = caller.cx(&operation);
        match (answer, written) {
            (answer, 1) => answer,
            (Ok(_), _) => {
                let fault = Error::internal(format!("{operation} left {written} audit entries"));
                record_failure(cx, action, resource_type, &fault)
                    .await
                    .map_err(|error| server_error(error, position))?;
                Err(server_error(fault, position))
            }
            (Err(error), _) => {
                let unread = Error::bad_input(Vec::new());
                let reason = source(&error).unwrap_or(&unread);
                record_failure(cx, action, resource_type, reason)
                    .await
                    .map_err(|error| server_error(error, position))?;
                Err(error)
            }
        }
    }
}

fn server_error(error: domain::Error, position: async_graphql::Pos) -> ServerError {
    async_graphql::Error::from(Failure::from(error)).into_server_error(position)
}
