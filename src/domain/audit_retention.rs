//! Retention: entries whose time is over are removed from the beginning of the log on, and a seal that the server signs stands
//! in their place, so that the rest can still be verified.

use chrono::TimeDelta;
use serde_json::json;

use super::audit_integrity::{Broken, Fault, Walk, beginning};
use super::context::{Cx, Record, Services};
use super::deed::audited;
use super::error::{Code, Error, Result};
use crate::audit::{Entry, Origin, Statement, Subject};
use crate::identity::Actor;
use crate::model::{
    AuditAction, ChainPoint, Grant, OrganizationId, Permit, PruneAuditLogs, ResourceType, Timestamp, ViewAuditLogs,
};
use crate::store::audit_chain::{self as chain, AuditSeal};
use crate::store::{Tx, keys};

/// How many entries one transaction removes: others that write wait for it.
const BATCH: i64 = 2000;
/// The furthest that a log is read.
const ALL: i64 = i64::MAX;

/// Removes what is older than so many days from every organization's log, as far as no younger entry comes before it. Returns
/// how many entries that were.
///
/// Where no user has done anything in all that time, in no organization, nothing is removed: more likely the clock is ahead. Whatever
/// a user does then, under that clock, says that it is meant. What was refused or failed does not, nor what anybody can ask for without
/// a sign-in: that would let strangers have entries removed.
///
/// # Errors
/// Where the database fails; what was removed so far stays so.
pub async fn run(services: &Services, days: u32) -> Result<i64> {
    let now = services.clock.now();
    let before = now + -TimeDelta::days(days.into());
    let organizations = keys::organizations(&mut services.db.scan().await?).await?;
    // Where no user has ever done anything, nothing says what the time is.
    let Some(newest) = newest(services, &organizations).await? else { return Ok(0) };
    if newest < before {
        tracing::warn!(
            newest = newest.to_text(),
            now = now.to_text(),
            days,
            "every deed of a user is older than AUDIT_RETENTION_DAYS: no audit entry is removed before a user does something. Is the \
             clock right?"
        );
        return Ok(0);
    }
    let (mut removed, mut failed) = (0, None);
    for organization in organizations {
        let actor = Actor::system(organization);
        let request_id = format!("retention-{}", hex::encode(services.random.bytes::<8>()));
        let (origin, record) = (Origin { request_id, ..Origin::default() }, Record::default());
        let operation = "audit retention";
        let cx = Cx { services, actor: &actor, origin: &origin, operation, record: &record, deadline: None };
        loop {
            match next(cx, before).await {
                Ok(Some(batch)) => removed += batch,
                Ok(None) => break,
                // The others' logs are not to wait for this one.
                Err(error) => {
                    failed.get_or_insert(error);
                    break;
                }
            }
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// When a user of any of the organizations last did something, as far as it can be read.
async fn newest(services: &Services, organizations: &[OrganizationId]) -> Result<Option<Timestamp>> {
    let mut newest = None;
    let mut conn = services.db.scan().await?;
    for organization in organizations {
        let permit = Actor::system(*organization).require::<ViewAuditLogs>()?;
        newest = newest.max(chain::last_deed(&mut conn, &permit).await?);
    }
    Ok(newest)
}

/// Removes the next entries whose time is over; none: there are none, or the log is not whole.
async fn next(cx: Cx<'_>, before: Timestamp) -> Result<Option<i64>> {
    let to_read = cx.actor.require::<ViewAuditLogs>()?;
    let permit = cx.actor.require::<PruneAuditLogs>()?;
    // Looked at without a lock first: on most days there is nothing to do.
    let first = chain::next(&mut cx.services.db.read().await?, &to_read, i64::MIN, ALL, 1).await?;
    if first.unreadable.is_none() && first.entries.first().is_none_or(|entry| entry.occurred_at >= before) {
        return Ok(None);
    }
    let removed = audited(cx, async |tx| {
        chain::lock(tx, &permit).await?;
        let seal = chain::seal(tx.conn().await?, &permit).await?;
        let stretch = chain::next(tx.conn().await?, &to_read, i64::MIN, ALL, BATCH).await?;
        // Only what is whole is removed: what was altered must not vanish under a good seal.
        let start = beginning(&cx.services.keys, seal.as_ref()).map_err(|broken| not_whole(cx, &broken))?;
        let mut walk = Walk { at: start };
        for entry in stretch.entries.iter().take_while(|entry| entry.occurred_at < before) {
            walk.accept(entry).map_err(|broken| not_whole(cx, &broken))?;
        }
        if walk.at == start {
            let Some((sequence, id)) = stretch.unreadable else {
                return Err(Error::conflict("Another server has removed them."));
            };
            return Err(not_whole(cx, &Broken { fault: Fault::Altered, sequence, id: Some(id) }));
        }
        write(cx, tx, &permit, walk.at).await?;
        let removed = chain::remove(tx, &permit, walk.at.sequence).await?;
        let entry = Entry::new(AuditAction::Delete, ResourceType::System)
            .noting(json!({ "auditLogs": removed, "throughSequence": walk.at.sequence }));
        Ok((walk.at.sequence - start.sequence, entry))
    })
    .await;
    match removed {
        Ok(removed) => Ok(Some(removed)),
        // Told, or done by another.
        Err(error) if error.code() == Code::Conflict => Ok(None),
        Err(error) => Err(error),
    }
}

/// Nothing is removed, and the operator is told.
fn not_whole(cx: Cx<'_>, broken: &Broken) -> Error {
    tracing::error!(
        organization = cx.actor.access().map(|access| access.organization().to_string()),
        sequence = broken.sequence,
        id = broken.id,
        fault = ?broken.fault,
        "the audit log is not whole: nothing is removed from it; run claviger audit verify"
    );
    Error::conflict("The audit log is not whole.")
}

async fn write<G: Grant>(cx: Cx<'_>, tx: &mut Tx, permit: &Permit<G>, point: ChainPoint) -> Result<()> {
    let seal = sealed(cx, permit.organization(), point);
    Ok(chain::write_seal(tx, permit, &seal).await?)
}

fn sealed(cx: Cx<'_>, organization: OrganizationId, point: ChainPoint) -> AuditSeal {
    let time = cx.services.clock.now();
    let Statement { signature, .. } = Statement::sign(&cx.services.keys, Subject::Seal, organization, point, time);
    AuditSeal {
        organization_id: organization,
        sequence: point.sequence,
        hash: point.hash.to_vec(),
        sealed_at: time,
        key_version: signature.key_version,
        signature: signature.bytes,
    }
}

/// Signs the seal of a log that is locked with the newest key, where an older one has signed it.
///
/// # Errors
/// Where none of the keys has.
pub(super) async fn sign_anew<G: Grant>(cx: Cx<'_>, tx: &mut Tx, permit: &Permit<G>, seal: &AuditSeal) -> Result<()> {
    let point = beginning(&cx.services.keys, Some(seal))
        .map_err(|_| Error::conflict("No key of the ring has signed it as it is."))?;
    write(cx, tx, permit, point).await
}
