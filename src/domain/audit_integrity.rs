//! Whether an organization's audit log is whole: its hash chain is computed again, entry by entry, and the first that breaks
//! it is named.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::context::Cx;
use super::error::{Error, Result};
use crate::audit::{Statement, Subject};
use crate::crypto::{KeyRing, Signature, SignatureError};
use crate::identity::Actor;
use crate::model::{ChainPoint, OrganizationId, Permit, ViewAuditLogs};
use crate::store::Db;
use crate::store::audit_chain::{self as chain, AuditSeal};
use crate::store::audit_log::AuditLog;

/// How many entries are read at a time: what is in memory, and how long one statement takes.
const BATCH: i64 = 1000;

/// How a log is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The entry is not what was appended.
    Altered,
    /// One or more are missing before the entry, or at the end.
    Missing,
    /// The entry stands where none may stand.
    OutOfPlace,
    /// The noted end of the log is not the hash of its last entry.
    HeadMismatch,
    /// What stands in the place of removed entries was not written by this server's keys.
    SealForged,
    /// The key that has signed what stands in the place of removed entries is not in the ring.
    SealKeyMissing,
    /// The entry is whole, and so are those around it, but it is not the one that was expected: the log was rewritten.
    NotAsExpected,
    /// The log ends before the entry that was expected.
    CutOff,
    /// The log is whole, but the retention has removed the entry that was expected: nothing shows whether it was the one.
    ExpectedRemoved,
}

/// The first place where a log is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// How.
    pub fault: Fault,
    /// The sequence of the entry.
    pub sequence: i64,
    /// The entry, where there is one.
    pub id: Option<String>,
}

/// What a verification has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Integrity {
    /// How many entries are whole, up to the end or to the first that is not.
    pub entries: i64,
    /// The last of them; none: there is none.
    pub head: Option<ChainPoint>,
    /// The last entry that the retention has removed; 0: none was.
    pub sealed: i64,
    /// Where the log is not whole.
    pub broken: Option<Broken>,
}

/// The verifications that run on this server.
#[derive(Debug, Default)]
pub struct Verifications(Mutex<HashMap<OrganizationId, Arc<tokio::sync::Mutex<()>>>>);

impl Verifications {
    /// Waits until no other verification of the organization's log runs.
    async fn alone(&self, organization: OrganizationId) -> OwnedMutexGuard<()> {
        // A panic cannot leave the map half changed.
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(organization).or_default().clone();
        own.lock_owned().await
    }
}

/// The entries so far, up to the one that comes next.
pub(super) struct Walk {
    /// The last that is whole.
    pub(super) at: ChainPoint,
}

impl Walk {
    /// Goes on by one entry.
    pub(super) fn accept(&mut self, entry: &AuditLog) -> Result<(), Broken> {
        let fault = match entry.sequence {
            sequence if sequence <= self.at.sequence => Fault::OutOfPlace,
            sequence if sequence > self.at.sequence + 1 => Fault::Missing,
            sequence => {
                let hash = entry.hash_after(&self.at.hash);
                if entry.hash == hash {
                    self.at = ChainPoint { sequence, hash };
                    return Ok(());
                }
                Fault::Altered
            }
        };
        Err(Broken { fault, sequence: entry.sequence, id: Some(entry.id.to_string()) })
    }
}

/// Where the chain begins: at the seal, which a key of the ring must have signed, or at its start.
pub(super) fn beginning(keys: &KeyRing, seal: Option<&AuditSeal>) -> Result<ChainPoint, Broken> {
    let Some(seal) = seal else { return Ok(ChainPoint::START) };
    let broken = |fault| Broken { fault, sequence: seal.sequence, id: None };
    let point = ChainPoint::from_row(seal.sequence, &seal.hash).ok_or_else(|| broken(Fault::SealForged))?;
    let statement = Statement {
        subject: Subject::Seal,
        organization: seal.organization_id,
        point,
        time: seal.sealed_at,
        signature: Signature { key_version: seal.key_version.clone(), bytes: seal.signature.clone() },
    };
    statement.check(keys).map(|()| point).map_err(|error| match error {
        SignatureError::UnknownKey(_) => broken(Fault::SealKeyMissing),
        SignatureError::Wrong => broken(Fault::SealForged),
    })
}

/// Verifies the organization's log up to where it ends now, and holds an earlier point of it against it. One at a time runs for
/// an organization on a server: a second waits for the first.
///
/// # Errors
/// Without permission, or where there is no time left.
pub async fn verify(cx: Cx<'_>, expected: Option<ChainPoint>) -> Result<Integrity> {
    let permit = cx.actor.require::<ViewAuditLogs>()?;
    let work = async {
        let _alone = cx.services.verifications.alone(permit.organization()).await;
        loop {
            let seal = chain::seal(&mut cx.services.db.read().await?, &permit).await?;
            let found = walk(cx, &permit, seal.as_ref(), expected).await?;
            // What the retention has removed meanwhile is not missing.
            if found.broken.is_none() || chain::seal(&mut cx.services.db.read().await?, &permit).await? == seal {
                return Ok(found);
            }
        }
    };
    cx.in_time(work).await.map_err(|_| too_long())?
}

/// Looks whether the last entries of an organization's log are whole and the noted head is the last of them: a glance, of at most so many.
/// What is before them is taken as it stands. Returns how many they are.
///
/// # Errors
/// Where the database fails.
pub async fn glance(db: &Db, organization: OrganizationId, most: i64) -> Result<Result<i64, Broken>> {
    let permit = Actor::system(organization).require::<ViewAuditLogs>()?;
    let mut conn = db.read().await?;
    let Some(head) = chain::head(&mut conn, &permit).await? else {
        return Ok(Err(Broken { fault: Fault::HeadMismatch, sequence: 0, id: None }));
    };
    let from = head.sequence - most;
    let start = match chain::point(&mut conn, &permit, from).await? {
        Some(before) => before,
        // The log is shorter than that, or the retention has removed what is before.
        None => match chain::seal(&mut conn, &permit).await? {
            Some(seal) => ChainPoint::from_row(seal.sequence, &seal.hash).unwrap_or(ChainPoint::START),
            None => ChainPoint::START,
        },
    };
    let stretch = chain::next(&mut conn, &permit, start.sequence.saturating_add(1), head.sequence, most).await?;
    let mut walk = Walk { at: start };
    if let Err(broken) = stretch.entries.iter().try_for_each(|entry| walk.accept(entry)) {
        return Ok(Err(broken));
    }
    if let Some((sequence, id)) = stretch.unreadable {
        return Ok(Err(Broken { fault: Fault::Altered, sequence, id: Some(id) }));
    }
    if walk.at != head {
        return Ok(Err(Broken { fault: Fault::HeadMismatch, sequence: walk.at.sequence, id: None }));
    }
    Ok(Ok(walk.at.sequence - start.sequence))
}

fn too_long() -> Error {
    Error::too_long("The log is too long to be verified within one request. Run claviger audit verify on the server.")
}

async fn walk(
    cx: Cx<'_>,
    permit: &Permit<ViewAuditLogs>,
    seal: Option<&AuditSeal>,
    expected: Option<ChainPoint>,
) -> Result<Integrity> {
    let (last, head) = {
        let mut conn = cx.services.db.read().await?;
        // In this order: entries that are appended in between do not stand beyond the end.
        (chain::last(&mut conn, permit).await?, chain::head(&mut conn, permit).await?)
    };
    let start = match beginning(&cx.services.keys, seal) {
        Ok(start) => start,
        Err(broken) => return Ok(Integrity::of(ChainPoint::START, ChainPoint::START, Some(broken))),
    };
    let mut walk = Walk { at: start };
    let mut broken = rest(cx, permit, &mut walk, head, last, expected).await?.err();
    if let Some(expected) = expected.filter(|expected| expected.sequence < start.sequence) {
        // What is broken in the log itself goes first.
        broken = broken.or(Some(Broken { fault: Fault::ExpectedRemoved, sequence: expected.sequence, id: None }));
    }
    Ok(Integrity::of(start, walk.at, broken))
}

/// Goes from where the walk stands to the head.
async fn rest(
    cx: Cx<'_>,
    permit: &Permit<ViewAuditLogs>,
    walk: &mut Walk,
    head: Option<ChainPoint>,
    last: Option<(i64, String)>,
    expected: Option<ChainPoint>,
) -> Result<Result<(), Broken>> {
    let (last_sequence, last_id) = last.map_or((walk.at.sequence, None), |(sequence, id)| (sequence, Some(id)));
    let mismatch = || Broken { fault: Fault::HeadMismatch, sequence: last_sequence, id: last_id.clone() };
    let Some(head) = head.filter(|head| head.sequence >= last_sequence) else { return Ok(Err(mismatch())) };
    if let Err(broken) = compare(expected, walk.at, None) {
        return Ok(Err(broken));
    }
    // The first batch begins where no entry can stand: what stands there, or where the seal says that nothing is left, is
    // found too.
    let mut from = i64::MIN;
    loop {
        if cx.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(too_long());
        }
        let mut conn = cx.services.db.scan().await?;
        let stretch = chain::next(&mut conn, permit, from, head.sequence, BATCH).await?;
        drop(conn);
        let is_end = stretch.entries.is_empty();
        for entry in &stretch.entries {
            let step = walk.accept(entry).and_then(|()| compare(expected, walk.at, Some(entry)));
            if let Err(broken) = step {
                return Ok(Err(broken));
            }
        }
        if let Some((sequence, id)) = stretch.unreadable {
            return Ok(Err(Broken { fault: Fault::Altered, sequence, id: Some(id) }));
        }
        if is_end {
            break;
        }
        from = walk.at.sequence.saturating_add(1);
    }
    if walk.at.sequence < head.sequence {
        return Ok(Err(Broken { fault: Fault::Missing, sequence: walk.at.sequence + 1, id: None }));
    }
    if walk.at != head {
        return Ok(Err(mismatch()));
    }
    match expected {
        Some(expected) if expected.sequence > head.sequence => {
            Ok(Err(Broken { fault: Fault::CutOff, sequence: expected.sequence, id: None }))
        }
        _ => Ok(Ok(())),
    }
}

/// Holds the point that the walk has come to against what is expected there.
fn compare(expected: Option<ChainPoint>, at: ChainPoint, entry: Option<&AuditLog>) -> Result<(), Broken> {
    match expected {
        Some(expected) if expected.sequence == at.sequence && expected != at => {
            let id = entry.map(|entry| entry.id.to_string());
            Err(Broken { fault: Fault::NotAsExpected, sequence: at.sequence, id })
        }
        _ => Ok(()),
    }
}

impl Integrity {
    fn of(start: ChainPoint, at: ChainPoint, broken: Option<Broken>) -> Self {
        Self {
            entries: at.sequence - start.sequence,
            head: (at.sequence > 0).then_some(at),
            sealed: start.sequence,
            broken,
        }
    }
}
