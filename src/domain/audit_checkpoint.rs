//! Signed checkpoints: where the logs end, said in the log stream, which whoever writes the database does not write.

use std::collections::HashMap;

use super::context::Services;
use super::error::Result;
use crate::audit::{Statement, Subject};
use crate::model::{ChainPoint, OrganizationId};
use crate::store::{audit_chain as chain, keys};

/// Up to where each organization's log was signed by this server.
#[derive(Debug, Default)]
pub struct Checkpoints(HashMap<OrganizationId, ChainPoint>);

/// What is to be said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Of logs that have moved.
    pub signed: Vec<Statement>,
    /// Of logs that have gone back.
    pub lost: Vec<Lost>,
}

/// A log that ends before its last checkpoint, or there with another hash: entries were cut off or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Whose log.
    pub organization: OrganizationId,
    /// Where the last checkpoint was.
    pub signed: ChainPoint,
    /// Where it ends now; none: that is not noted any more.
    pub head: Option<ChainPoint>,
}

impl Checkpoints {
    /// Signs the end of each log that has moved since it was signed last. One that has gone back is not signed.
    ///
    /// # Errors
    /// Where the database fails; what was not signed is signed the next time.
    pub async fn due(&mut self, services: &Services) -> Result<Due> {
        let organizations = keys::organizations(&mut services.db.scan().await?).await?;
        let heads = chain::heads(&mut services.db.scan().await?).await?;
        let mut due = Due::default();
        for organization in organizations {
            let head = heads.get(&organization).copied();
            let signed = self.0.get(&organization).copied();
            match (signed, head) {
                (Some(signed), head) if head.is_none_or(|head| head.sequence <= signed.sequence) => {
                    if head != Some(signed) {
                        due.lost.push(Lost { organization, signed, head });
                    }
                }
                (_, Some(head)) => {
                    let time = services.clock.now();
                    due.signed.push(Statement::sign(&services.keys, Subject::Checkpoint, organization, head, time));
                }
                (_, None) => {}
            }
        }
        self.0.extend(due.signed.iter().map(|statement| (statement.organization, statement.point)));
        Ok(due)
    }

    /// Writes what is due to the log stream, a line each.
    pub async fn write(&mut self, services: &Services) {
        match self.due(services).await {
            Ok(due) => {
                due.lost.iter().for_each(warn);
                due.signed.iter().for_each(log);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the audit logs were not signed; it is tried again at the next time"
            ),
        }
    }
}

fn warn(lost: &Lost) {
    tracing::error!(
        target: "claviger::audit",
        organization = %lost.organization,
        signed = %lost.signed,
        head = lost.head.map(|head| head.to_string()),
        "the audit log ends before its last checkpoint, or was rewritten there: run claviger audit verify --expect with it"
    );
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
