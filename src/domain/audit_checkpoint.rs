//! Signed checkpoints: where the logs end, said in the log stream, which whoever writes the database does not write.

use std::collections::HashMap;

use super::context::Services;
use super::error::Result;
use crate::audit::{Statement, Subject};
use crate::identity::Actor;
use crate::model::{OrganizationId, ViewAuditLogs};
use crate::store::{audit_chain as chain, keys};

/// Up to where each organization's log was signed by this server.
#[derive(Debug, Default)]
pub struct Checkpoints(HashMap<OrganizationId, i64>);

impl Checkpoints {
    /// Signs the end of each log that has moved since it was signed last.
    ///
    /// # Errors
    /// Where the database fails; what was not signed is signed the next time.
    pub async fn due(&mut self, services: &Services) -> Result<Vec<Statement>> {
        let organizations = keys::organizations(&mut services.db.scan().await?).await?;
        let mut statements = Vec::new();
        for organization in organizations {
            let permit = Actor::system(organization).require::<ViewAuditLogs>()?;
            let head = chain::head(&mut services.db.read().await?, &permit).await?;
            let Some(head) = head.filter(|head| self.0.get(&organization) != Some(&head.sequence)) else { continue };
            let time = services.clock.now();
            statements.push(Statement::sign(&services.keys, Subject::Checkpoint, organization, head, time));
        }
        self.0.extend(statements.iter().map(|statement| (statement.organization, statement.point.sequence)));
        Ok(statements)
    }

    /// Writes what is due to the log stream, a line each.
    pub async fn write(&mut self, services: &Services) {
        match self.due(services).await {
            Ok(statements) => statements.iter().for_each(log),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the audit logs were not signed; it is tried again at the next time"
            ),
        }
    }
}

fn log(statement: &Statement) {
    tracing::info!(
        target: "claviger::audit",
        organization = %statement.organization,
        sequence = statement.point.sequence,
        hash = hex::encode(statement.point.hash),
        time = statement.time.to_text(),
        key_version = statement.signature.key_version,
        signature = hex::encode(&statement.signature.bytes),
        checkpoint = %statement,
        "audit checkpoint"
    );
}
