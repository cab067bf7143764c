//! A deed and its audit entry, in one transaction.

use super::bus;
use super::context::Cx;
use super::error::{Error, Result};
use crate::audit::{Committed, Entry};
use crate::events::News;
use crate::model::{Access, AuditAction, AuditOutcome, Denied, ResourceType};
use crate::store::audit_log::NewAuditLog;
use crate::store::{self, Tx};

/// Does `work` in a transaction and commits it together with the entry that `work` returns; an error rolls it back and
/// leaves no entry: whoever called sees to that one.
///
/// The time limit holds for the work, not for the commit: a commit that was begun is waited for, since only its end tells
/// what lasts.
///
/// # Errors
/// Those of `work`, [`Code::Timeout`](super::Code::Timeout), or the database's.
pub async fn audited<T, W>(cx: Cx<'_>, work: W) -> Result<T>
where
    W: AsyncFnOnce(&mut Tx) -> Result<(T, Entry)>,
{
    let mut tx = Tx::new(cx.services.db.clone());
    match cx.in_time(work(&mut tx)).await {
        Ok(Ok((value, entry))) => match may_commit(cx, &entry) {
            Ok(()) => {
                commit(cx, tx, entry).await?;
                Ok(value)
            }
            Err(denied) => {
                roll_back(tx).await;
                Err(denied.into())
            }
        },
        Ok(Err(error)) => {
            roll_back(tx).await;
            Err(error)
        }
        // The connection may be in the middle of a statement: dropping it is the only way to roll back.
        Err(timeout) => Err(timeout),
    }
}

/// An API key that only reads commits nothing but that it has looked. What it tries is refused before, where a mutation is
/// entered: this holds where that was forgotten.
fn may_commit(cx: Cx<'_>, entry: &Entry) -> Result<(), Denied> {
    match cx.actor.access() {
        Some(access) if entry.action != AuditAction::View => access.may_write(),
        _ => Ok(()),
    }
}

async fn roll_back(tx: Tx) {
    if let Err(error) = tx.rollback().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "rolling back failed; the connection is dropped");
    }
}

async fn commit(cx: Cx<'_>, tx: Tx, entry: Entry) -> Result<()> {
    let changes_access = entry.changes_access;
    let entry = sign(cx, entry);
    let committed = tx.commit(&entry).await;
    // First: who hears of it is looked at as they are now. Though the answer was an error: it may be the answer that was lost.
    if changes_access {
        cx.services.authenticator.forget_of(entry.organization_id);
    }
    if entry.resource_type == ResourceType::ClaudeAccount {
        cx.services.relay_accounts.forget_of(entry.organization_id);
    }
    let sequence = match committed {
        Ok(sequence) => sequence,
        Err(error) => {
            if changes_access {
                bus::tell(cx.services, News::Missed).await;
            }
            return Err(match error {
                error @ (store::Error::Deadlock(_) | store::Error::Unavailable(_)) => Error::unavailable(error),
                error => Error::internal(error),
            });
        }
    };
    cx.record.count();
    if cx.record.take_mail() {
        cx.services.outbox.wake();
    }
    cx.services.commits.publish(Committed {
        organization: entry.organization_id,
        sequence,
        resource_type: Some(entry.resource_type),
    });
    let (organization, about) = (entry.organization_id, entry.resource_type);
    bus::tell(cx.services, News::Committed { organization, sequence, about, changes_access }).await;
    Ok(())
}

/// Leaves the entry of a deed that was refused or failed.
///
/// # Errors
/// Where the entry cannot be written.
pub async fn record_failure(cx: Cx<'_>, action: AuditAction, resource_type: ResourceType, error: &Error) -> Result<()> {
    let outcome = if error.code().is_denial() { AuditOutcome::Denied } else { AuditOutcome::Failed };
    let subject = cx.record.subject().clone();
    let mut entry =
        Entry::new(action, subject.resource_type.unwrap_or(resource_type)).ended(outcome, error.code().as_str());
    entry.resource_id = subject.resource_id;
    entry.organization = subject.organization;
    commit(cx, Tx::new(cx.services.db.clone()), entry).await
}

/// Completes an entry with who, when, from where, in whose log.
fn sign(cx: Cx<'_>, mut entry: Entry) -> NewAuditLog {
    entry.api_key = cx.actor.api_key();
    let access = cx.actor.access();
    let organization = entry.organization.or(access.map(Access::organization)).unwrap_or(cx.services.home);
    let user = entry.user.or(cx.actor.signed_in().map(|user| user.user));
    entry.complete(cx.services.new_id(), cx.services.clock.now(), organization, user, cx.operation, cx.origin)
}
