//! Signed checkpoints: where the logs end, said in the log stream, which whoever writes the database does not write.

use std::collections::HashMap;

use super::audit_integrity::beginning;
use super::context::Services;
use super::error::Result;
use crate::audit::{Statement, Subject};
use crate::identity::Actor;
use crate::model::{ChainPoint, OrganizationId, Permit, ViewAuditLogs};
use crate::store::{audit_chain as chain, keys};

/// Up to where each organization's log was signed by this server.
#[derive(Debug, Default)]
pub struct Checkpoints(HashMap<OrganizationId, ChainPoint>);

/// What is to be said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Of logs that have moved.
    pub signed: Vec<Statement>,
    /// Of logs that no longer have what was signed.
    pub lost: Vec<Lost>,
}

/// A log that ends before its last checkpoint, or has another hash there: entries were cut off or rewritten.
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
    /// Signs the end of each log that has moved since it was signed last. One that no longer has what was signed then is not
    /// signed: cut off and grown again, it would look like any that has moved.
    ///
    /// # Errors
    /// Where the database fails; what was not signed is signed the next time.
    pub async fn due(&mut self, services: &Services) -> Result<Due> {
        let organizations = keys::organizations(&mut services.db.scan().await?).await?;
        let heads = chain::heads(&mut services.db.scan().await?).await?;
        let mut due = Due::default();
        for organization in organizations {
            let permit = Actor::system(organization).require::<ViewAuditLogs>()?;
            let head = heads.get(&organization).copied();
            let signed = self.0.get(&organization).copied();
            if let Some(signed) = signed {
                let is_kept = match head {
                    Some(head) if head.sequence > signed.sequence => still_has(services, &permit, signed).await?,
                    head => head == Some(signed),
                };
                if !is_kept {
                    due.lost.push(Lost { organization, signed, head });
                    continue;
                }
            }
            if let Some(head) = head.filter(|head| Some(*head) != signed) {
                let time = services.clock.now();
                due.signed.push(Statement::sign(&services.keys, Subject::Checkpoint, organization, head, time));
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

/// Whether the log has this point, or the retention has removed it.
async fn still_has(services: &Services, permit: &Permit<ViewAuditLogs>, signed: ChainPoint) -> Result<bool> {
    let mut conn = services.db.read().await?;
    // In this order: where the retention removes the entry in between, the seal is there by then.
    if let Some(point) = chain::point(&mut conn, permit, signed.sequence).await? {
        return Ok(point == signed);
    }
    let seal = chain::seal(&mut conn, permit).await?;
    Ok(match beginning(&services.keys, seal.as_ref()) {
        Ok(sealed) if sealed.sequence == signed.sequence => sealed == signed,
        Ok(sealed) => sealed.sequence > signed.sequence,
        // A seal that this server has not signed says nothing of what was removed.
        Err(_) => false,
    })
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
