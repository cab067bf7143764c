//! The key ring beside the database: a ring that was lost and made anew is found out at the start, before anything is sealed
//! with it.

use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::{Code, Error, Result};
use crate::audit::Entry;
use crate::crypto::KeyRing;
use crate::model::{AuditAction, ResourceType, Timestamp};
use crate::store::encryption_key::{self as encryption_keys, EncryptionKey};
use crate::store::{self, Db, Tx};

/// Holds the ring against the keys that were used so far, and notes those that are new.
///
/// # Errors
/// Where a key is another than the one that was used under its version.
pub async fn check(cx: Cx<'_>) -> Result<()> {
    let known = encryption_keys::all(&mut cx.services.db.read().await?).await?;
    let new = unknown(&cx.services.keys, &known, cx.services.clock.now())?;
    if new.is_empty() {
        return Ok(());
    }
    let noted = audited(cx, async |tx| {
        note(tx, &new).await?;
        let versions: Vec<_> = new.iter().map(|key| key.version.as_str()).collect();
        let entry = Entry::new(AuditAction::Create, ResourceType::System).noting(json!({ "encryptionKeys": versions }));
        Ok(((), entry))
    })
    .await;
    match noted {
        // Another server that starts has noted it: with the same key, or one of the two is wrong.
        Err(error) if error.code() == Code::Conflict => {
            let known = encryption_keys::all(&mut cx.services.db.read().await?).await?;
            unknown(&cx.services.keys, &known, cx.services.clock.now()).map(|_| ())
        }
        noted => noted,
    }
}

/// Whether all keys of the ring were used with this database already.
///
/// # Errors
/// Where a key is another than the one that was used under its version.
pub async fn is_known(db: &Db, ring: &KeyRing, now: Timestamp) -> Result<bool> {
    let known = encryption_keys::all(&mut db.read().await?).await?;
    Ok(unknown(ring, &known, now)?.is_empty())
}

/// Notes the keys that a new database begins with.
pub(super) async fn begin(tx: &mut Tx, keys: &KeyRing, now: Timestamp) -> Result<()> {
    note(tx, &unknown(keys, &[], now)?).await
}

async fn note(tx: &mut Tx, keys: &[EncryptionKey]) -> Result<()> {
    for key in keys {
        encryption_keys::insert(tx, key).await.map_err(|error| match error {
            store::Error::Duplicate => Error::conflict("The key is noted already."),
            error => error.into(),
        })?;
    }
    Ok(())
}

/// The keys of the ring that are not known yet.
fn unknown(ring: &KeyRing, known: &[EncryptionKey], now: Timestamp) -> Result<Vec<EncryptionKey>> {
    let mut new = Vec::new();
    for (version, digest) in ring.fingerprints() {
        match known.iter().find(|key| key.version == version) {
            Some(key) if key.digest == digest.as_bytes() => {}
            Some(_) => {
                return Err(Error::conflict(
                    "an encryption key is not the one that this database was used with: what is sealed in it could not be \
                     opened. Restore CREDENTIAL_ENCRYPTION_KEYS, or the file encryption-keys in the data folder",
                ));
            }
            None => new.push(EncryptionKey { version, digest: digest.as_bytes().to_vec(), created_at: now }),
        }
    }
    Ok(new)
}
