//! What a request carries to its resolvers.

use std::sync::Arc;

use async_graphql::Context;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::audit::Origin;
use crate::domain::{Cx, Record, Services};
use crate::identity::Actor;

/// Who makes a request, from where, until when.
pub struct Caller {
    /// What deeds are done with.
    pub services: Arc<Services>,
    /// Who asks.
    pub actor: Actor,
    /// From where.
    pub origin: Origin,
    /// When the request must be answered.
    pub deadline: Instant,
    /// Told when nobody waits for the answer any more; of a read that several share, when the first of them does not.
    pub left: CancellationToken,
    /// What it has left in the audit log.
    pub record: Record,
}

impl Caller {
    /// The context of a deed by this caller.
    #[must_use]
    pub fn cx<'a>(&'a self, operation: &'a str) -> Cx<'a> {
        Cx {
            services: &self.services,
            actor: &self.actor,
            origin: &self.origin,
            operation,
            record: &self.record,
            deadline: Some(self.deadline),
        }
    }
}

/// From a resolver's context to a deed's.
pub(super) trait ContextExt<'a> {
    /// The context of the deed that this field is.
    fn cx(&self) -> Cx<'a>;
    /// Told when nobody waits for the answer any more.
    fn left(&self) -> &'a CancellationToken;
}

impl<'a> ContextExt<'a> for Context<'a> {
    fn cx(&self) -> Cx<'a> {
        let caller: &Arc<Caller> = self.data_unchecked();
        caller.cx(self.item.node.name.node.as_str())
    }

    fn left(&self) -> &'a CancellationToken {
        let caller: &Arc<Caller> = self.data_unchecked();
        &caller.left
    }
}
