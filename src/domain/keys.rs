//! The change of keys: what older keys of the ring have sealed is sealed with the newest, while servers run.
//!
//! Nothing is remembered between the transactions but what the rows say themselves, so that it can be stopped at any moment
//! and begun again.

use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::{Code, Error, Result};
use super::{audit_retention, claude_account, conversation, credential, message, outbox, password_key};
use crate::audit::Entry;
use crate::crypto::KeyRing;
use crate::identity::Actor;
use crate::model::{
    AuditAction, ClaudeAccountId, ConversationId, CredentialId, MailId, ManageClaudeAccounts, MessageId, ResourceType,
    RotateKeys, Timestamp,
};
use crate::store::audit_chain::{self, AuditSeal};
use crate::store::{
    self, Db, claude_account as accounts, conversation as conversations, keys, message as messages,
    outbox as waiting_mails,
};

/// A key that records need, and that the ring lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingKey {
    /// Its version.
    pub version: String,
    /// How many records it has sealed.
    pub records: i64,
}

/// The keys that records need and that the ring lacks.
///
/// # Errors
/// Where the database fails.
pub async fn missing(db: &Db, ring: &KeyRing, now: Timestamp) -> store::Result<Vec<MissingKey>> {
    let mut found = in_use(db, |version| !ring.has(version)).await?;
    let api_keys = keys::api_key_versions(&mut db.scan().await?, now).await?;
    for (version, records) in api_keys {
        if ring.has(&version) {
            continue;
        }
        match found.iter_mut().find(|key| key.version == version) {
            Some(key) => key.records += records,
            None => found.push(MissingKey { version, records }),
        }
    }
    Ok(found)
}

/// How many API keys can still be used that are found by an older key than the newest alone: until each is used, regenerated
/// or revoked, that key must stay in the ring.
///
/// # Errors
/// Where the database fails.
pub async fn count_older_api_keys(db: &Db, ring: &KeyRing, now: Timestamp) -> store::Result<i64> {
    keys::count_api_keys_but_by(&mut db.scan().await?, ring.newest_version(), now).await
}

/// The keys that have sealed records, among those that `is_meant` names.
async fn in_use(db: &Db, is_meant: impl Fn(&str) -> bool) -> store::Result<Vec<MissingKey>> {
    let mut conn = db.scan().await?;
    let mut found = Vec::new();
    for version in keys::versions(&mut conn).await? {
        if is_meant(&version) {
            let records = keys::count(&mut conn, &version).await?;
            found.push(MissingKey { version, records });
        }
    }
    Ok(found)
}

/// How many records older keys than the newest have sealed.
///
/// # Errors
/// Where the database fails.
pub async fn count_older(db: &Db, ring: &KeyRing) -> store::Result<i64> {
    let older = in_use(db, |version| version != ring.newest_version()).await?;
    Ok(older.iter().map(|key| key.records).sum())
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Rotated {
    /// How many records were sealed with the newest key.
    pub records: i64,
    /// Records that do not open, or that cannot be written: they stay as they are.
    pub failed: Vec<String>,
}

/// What one transaction has done.
struct Batch<P> {
    /// How many records were sealed with the newest key.
    records: i64,
    /// Those that were not.
    failed: Vec<String>,
    /// Where the next begins; none: there is no more.
    last: Option<P>,
}

/// Seals everything with the newest key of the ring, in transactions of at most `most` records, each with its entry in the
/// log of the organization that the records belong to. Tells `progress` after each.
///
/// # Errors
/// Without permission, or where the database fails; what was done so far stays.
pub async fn rotate(cx: Cx<'_>, most: i64, mut progress: impl FnMut(&Rotated)) -> Result<Rotated> {
    let mut rotated = Rotated::default();
    let (organizations, versions) = {
        let mut conn = cx.services.db.scan().await?;
        (keys::organizations(&mut conn).await?, keys::versions(&mut conn).await?)
    };
    let older: Vec<_> = versions.iter().filter(|version| *version != cx.services.keys.newest_version()).collect();
    for organization in organizations {
        let actor = Actor::system(organization);
        let cx = Cx { actor: &actor, ..cx };
        for version in &older {
            all(&mut rotated, &mut progress, async |after| secrets(cx, version, after, most).await).await?;
            all(&mut rotated, &mut progress, async |after| upstream_keys(cx, version, after, most).await).await?;
            all(&mut rotated, &mut progress, async |after| mails(cx, version, after, most).await).await?;
            all(&mut rotated, &mut progress, async |after| system_prompts(cx, version, after, most).await).await?;
            all(&mut rotated, &mut progress, async |after| conversation_messages(cx, version, after, most).await)
                .await?;
            note(&mut rotated, tried_again(async || seal(cx, version).await).await?, &mut progress);
        }
    }
    // Not sealed anew: another takes its place.
    password_key::rotate(cx.services).await?;
    Ok(rotated)
}

/// Does one batch of a kind of records after the other, until there are no more.
async fn all<P: Copy>(
    rotated: &mut Rotated,
    progress: &mut impl FnMut(&Rotated),
    next: impl AsyncFn(Option<P>) -> Result<Batch<P>>,
) -> Result<()> {
    let mut after = None;
    loop {
        let batch = tried_again(async || next(after).await).await?;
        after = batch.last;
        if !note(rotated, batch, progress) {
            return Ok(());
        }
    }
}

/// Does what another change may get in the way of: it is there the next time, and is seen; or both waited for each other, and it was
/// let through.
async fn tried_again<T>(work: impl AsyncFn() -> Result<T>) -> Result<T> {
    /// How often another can come first: each time it has to be a new one.
    const MOST: usize = 5;
    for _ in 1..MOST {
        match work().await {
            Err(error) if error.code() == Code::Conflict || error.is_deadlock() => {}
            done => return done,
        }
    }
    work().await
}

/// Adds up; whether there may be more.
fn note<P>(rotated: &mut Rotated, batch: Batch<P>, progress: &mut impl FnMut(&Rotated)) -> bool {
    rotated.records += batch.records;
    rotated.failed.extend(batch.failed);
    if batch.last.is_some() {
        progress(rotated);
    }
    batch.last.is_some()
}

/// The next secrets of credentials.
async fn secrets(
    cx: Cx<'_>,
    version: &str,
    after: Option<(CredentialId, i32)>,
    most: i64,
) -> Result<Batch<(CredentialId, i32)>> {
    let permit = cx.actor.require::<RotateKeys>()?;
    let wanted = keys::next_secrets(&mut cx.services.db.read().await?, &permit, version, after, most).await?;
    let Some(last) = wanted.last().copied() else { return Ok(Batch::empty()) };
    audited(cx, async |tx| {
        let (mut records, mut failed) = (0, Vec::new());
        for mut secret in keys::lock_secrets(tx, &permit, version, &wanted).await? {
            match credential::reseal(cx, permit.organization(), &mut secret) {
                Ok(()) => {
                    keys::update_secret(tx, &permit, &secret).await?;
                    records += 1;
                }
                Err(error) => failed.push(failure(
                    &format!("version {} of the credential {}", secret.secret_version, secret.credential_id),
                    &error,
                )),
            }
        }
        Ok((Batch { records, failed, last: Some(last) }, entry(cx, "credentialSecrets", records)))
    })
    .await
}

/// The next upstream API keys of accounts, with their fingerprints.
async fn upstream_keys(
    cx: Cx<'_>,
    version: &str,
    after: Option<ClaudeAccountId>,
    most: i64,
) -> Result<Batch<ClaudeAccountId>> {
    let permit = cx.actor.require::<RotateKeys>()?;
    let to_compare = cx.actor.require::<ManageClaudeAccounts>()?;
    let wanted = keys::next_accounts(&mut cx.services.db.read().await?, &permit, version, after, most).await?;
    let Some(last) = wanted.last().copied() else { return Ok(Batch::empty()) };
    audited(cx, async |tx| {
        let (mut records, mut failed) = (0, Vec::new());
        for mut account in keys::lock_accounts(tx, &permit, version, &wanted).await? {
            let name = format!("the API key of the Claude account {}", account.id);
            if let Err(error) = claude_account::reseal(cx, permit.organization(), &mut account) {
                failed.push(failure(&name, &error));
                continue;
            }
            // Two servers with different newest keys may have let one API key in twice. The database would refuse the second
            // fingerprint, and with it the whole batch.
            let fingerprint = std::slice::from_ref(&account.api_key_fingerprint);
            if let Some(other) = accounts::find_by_fingerprint(tx, &to_compare, fingerprint).await? {
                failed.push(format!("{name}: the account {other} has it too"));
                continue;
            }
            keys::update_account(tx, &permit, &account).await.map_err(|error| match error {
                // Since it was looked for.
                store::Error::Duplicate => Error::conflict("Another account has been given the same API key."),
                error => error.into(),
            })?;
            records += 1;
        }
        Ok((Batch { records, failed, last: Some(last) }, entry(cx, "upstreamKeys", records)))
    })
    .await
}

/// The next rows of a table: `$rows` has its statements, `$reseal` seals one anew, and `$name` says which it is.
macro_rules! next_rows {
    ($name:ident, $id:ty, $rows:ident, $what:literal, $reseal:expr, $called:literal) => {
        async fn $name(cx: Cx<'_>, version: &str, after: Option<$id>, most: i64) -> Result<Batch<$id>> {
            let permit = cx.actor.require::<RotateKeys>()?;
            let wanted = $rows::next_of_key(&mut cx.services.db.read().await?, &permit, version, after, most).await?;
            let Some(last) = wanted.last().copied() else { return Ok(Batch::empty()) };
            audited(cx, async |tx| {
                let (mut records, mut failed) = (0, Vec::new());
                for mut row in $rows::lock_of_key(tx, &permit, version, &wanted).await? {
                    match ($reseal)(cx, permit.organization(), &mut row) {
                        Ok(()) => {
                            $rows::update_sealed(tx, &permit, &row).await?;
                            records += 1;
                        }
                        Err(error) => failed.push(failure(&format!($called, row.id), &error)),
                    }
                }
                Ok((Batch { records, failed, last: Some(last) }, entry(cx, $what, records)))
            })
            .await
        }
    };
}
next_rows!(mails, MailId, waiting_mails, "mails", |cx, _, mail| outbox::reseal(cx, mail), "the mail {}");
next_rows!(
    system_prompts,
    ConversationId,
    conversations,
    "systemPrompts",
    conversation::reseal,
    "the system prompt of the conversation {}"
);
next_rows!(conversation_messages, MessageId, messages, "messages", message::reseal, "the message {}");

/// The seal of the audit log: there is one at most.
async fn seal(cx: Cx<'_>, version: &str) -> Result<Batch<()>> {
    let permit = cx.actor.require::<RotateKeys>()?;
    let is_meant = |seal: &AuditSeal| seal.key_version == version;
    if !audit_chain::seal(&mut cx.services.db.read().await?, &permit).await?.as_ref().is_some_and(is_meant) {
        return Ok(Batch::empty());
    }
    audited(cx, async |tx| {
        audit_chain::lock(tx, &permit).await?;
        let (mut records, mut failed) = (0, Vec::new());
        if let Some(seal) = audit_chain::seal(tx.conn().await?, &permit).await?.filter(is_meant) {
            match audit_retention::sign_anew(cx, tx, &permit, &seal).await {
                Ok(()) => records += 1,
                Err(error) if error.code() == Code::Conflict => {
                    failed.push(failure(&format!("the seal of the audit log of {}", seal.organization_id), &error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((Batch { records, failed, last: Some(()) }, entry(cx, "auditSeals", records)))
    })
    .await
}

impl<P> Batch<P> {
    fn empty() -> Self {
        Self { records: 0, failed: Vec::new(), last: None }
    }
}

fn entry(cx: Cx<'_>, what: &str, records: i64) -> Entry {
    Entry::new(AuditAction::Update, ResourceType::System)
        .noting(json!({ "keyVersion": cx.services.keys.newest_version(), what: records }))
}

/// The operator is told the cause, which names no secret.
fn failure(name: &str, error: &Error) -> String {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    format!("{name}: {cause}")
}
