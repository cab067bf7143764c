//! What the keys of the ring have sealed, whichever noun it belongs to: for the change of keys.

use std::collections::BTreeSet;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::claude_account::ClaudeAccount;
use super::credential::CredentialSecret;
use super::error::Result;
use super::locks::all_locked;
use super::tables::{
    api_key_digests, api_keys, audit_seals, claude_accounts, conversations, credential_secrets, credentials, messages,
    organizations, outbox,
};
use super::tx::Tx;
use crate::model::{ClaudeAccountId, CredentialId, OrganizationId, Permit, RotateKeys, Timestamp};

/// The versions of the keys that have sealed something, in order.
///
/// # Errors
/// Where the database fails.
pub async fn versions(conn: &mut Conn) -> Result<Vec<String>> {
    use claude_accounts::api_key_key_version as of_account;
    use credential_secrets::key_version as of_secret;
    let mut found: Vec<String> = Vec::new();
    // From one version to the next by index: as quick with a million records as with one.
    loop {
        let last = found.last().cloned().unwrap_or_default();
        let secret: Option<String> = on_conn!(conn, |c| credential_secrets::table
            .filter(of_secret.gt(&last))
            .order(of_secret)
            .select(of_secret)
            .first(c)
            .await
            .optional()?);
        let account: Option<String> = on_conn!(conn, |c| claude_accounts::table
            .filter(of_account.gt(&last))
            .order(of_account)
            .select(of_account)
            .first(c)
            .await
            .optional()?);
        let seal: Option<String> = on_conn!(conn, |c| audit_seals::table
            .filter(audit_seals::key_version.gt(&last))
            .order(audit_seals::key_version)
            .select(audit_seals::key_version)
            .first(c)
            .await
            .optional()?);
        let mail: Option<String> = on_conn!(conn, |c| outbox::table
            .filter(outbox::key_version.gt(&last))
            .order(outbox::key_version)
            .select(outbox::key_version)
            .first(c)
            .await
            .optional()?);
        let prompt: Option<Option<String>> = on_conn!(conn, |c| conversations::table
            .filter(conversations::key_version.gt(&last))
            .order(conversations::key_version)
            .select(conversations::key_version)
            .first(c)
            .await
            .optional()?);
        let message: Option<String> = on_conn!(conn, |c| messages::table
            .filter(messages::key_version.gt(&last))
            .order(messages::key_version)
            .select(messages::key_version)
            .first(c)
            .await
            .optional()?);
        let of_conversations = prompt.flatten().into_iter().chain(message);
        match secret.into_iter().chain(account).chain(seal).chain(mail).chain(of_conversations).min() {
            Some(next) => found.push(next),
            None => return Ok(found),
        }
    }
}

/// How many records a key has sealed.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, version: &str) -> Result<i64> {
    let secrets: i64 = on_conn!(conn, |c| credential_secrets::table
        .filter(credential_secrets::key_version.eq(version))
        .count()
        .get_result(c)
        .await?);
    let accounts: i64 = on_conn!(conn, |c| claude_accounts::table
        .filter(claude_accounts::api_key_key_version.eq(version))
        .count()
        .get_result(c)
        .await?);
    let seals: i64 = on_conn!(conn, |c| audit_seals::table
        .filter(audit_seals::key_version.eq(version))
        .count()
        .get_result(c)
        .await?);
    let mails: i64 =
        on_conn!(conn, |c| outbox::table.filter(outbox::key_version.eq(version)).count().get_result(c).await?);
    let prompts: i64 = on_conn!(conn, |c| conversations::table
        .filter(conversations::key_version.eq(version))
        .count()
        .get_result(c)
        .await?);
    let messages: i64 =
        on_conn!(conn, |c| messages::table.filter(messages::key_version.eq(version)).count().get_result(c).await?);
    Ok(secrets + accounts + seals + mails + prompts + messages)
}

/// The digests of the raw keys that can still be used, with their API keys. Such a digest cannot be made anew without the raw
/// key: that is done when it is used.
macro_rules! usable_digests {
    ($now:expr) => {{
        use {api_key_digests as d, api_keys as k};
        d::table
            .inner_join(k::table)
            .filter(k::revoked_at.is_null().and(k::expires_sort.gt($now)))
            .filter(d::expires_at.is_null().or(d::expires_at.gt(Some($now))))
    }};
}

/// The versions of the keys by which API keys are found that can still be used, and how many API keys by each. One that was
/// regenerated with a grace may be found by two.
///
/// # Errors
/// Where the database fails.
pub async fn api_key_versions(conn: &mut Conn, now: Timestamp) -> Result<Vec<(String, i64)>> {
    use api_key_digests as d;
    Ok(on_conn!(conn, |c| usable_digests!(now)
        .group_by(d::key_version)
        .select((d::key_version, diesel::dsl::count(d::api_key_id).aggregate_distinct()))
        .load(c)
        .await?))
}

/// How many API keys that can still be used are found by another key than this one.
///
/// # Errors
/// Where the database fails.
pub async fn count_api_keys_but_by(conn: &mut Conn, version: &str, now: Timestamp) -> Result<i64> {
    use api_key_digests as d;
    Ok(on_conn!(conn, |c| usable_digests!(now)
        .filter(d::key_version.ne(version))
        .select(diesel::dsl::count(d::api_key_id).aggregate_distinct())
        .get_result(c)
        .await?))
}

/// Every organization: keys are the operator's, and change for all.
///
/// # Errors
/// Where the database fails.
pub async fn organizations(conn: &mut Conn) -> Result<Vec<OrganizationId>> {
    Ok(on_conn!(conn, |c| organizations::table.order(organizations::id).select(organizations::id).load(c).await?))
}

/// The next secrets that a key has sealed.
///
/// # Errors
/// Where the database fails.
pub async fn next_secrets(
    conn: &mut Conn,
    permit: &Permit<RotateKeys>,
    version: &str,
    after: Option<(CredentialId, i32)>,
    most: i64,
) -> Result<Vec<(CredentialId, i32)>> {
    use credential_secrets as s;
    // No id comes before the empty one.
    let (id, number) = after.map_or((String::new(), 0), |(id, number)| (id.to_string(), number));
    Ok(on_conn!(conn, |c| s::table
        .filter(s::organization_id.eq(permit.organization()).and(s::key_version.eq(version)))
        .filter(s::credential_id.ge(&id).and(s::credential_id.gt(&id).or(s::secret_version.gt(number))))
        .order((s::credential_id, s::secret_version))
        .limit(most)
        .select((s::credential_id, s::secret_version))
        .load(c)
        .await?))
}

/// Those of the secrets, of which the caller has a page in order, that the key has still sealed; their credentials are locked to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock_secrets(
    tx: &mut Tx,
    permit: &Permit<RotateKeys>,
    version: &str,
    wanted: &[(CredentialId, i32)],
) -> Result<Vec<CredentialSecret>> {
    use credential_secrets as s;
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(Vec::new()) };
    let conn = tx.conn().await?;
    let ids: BTreeSet<CredentialId> = wanted.iter().map(|(id, _)| *id).collect();
    // In order, so that two who change keys wait for each other and never in a circle.
    let locked: Vec<CredentialId> = all_locked!(
        conn,
        credentials::table
            .filter(credentials::organization_id.eq(permit.organization()).and(credentials::id.eq_any(&ids)))
            .order(credentials::id)
            .select(credentials::id)
    )?;
    let mut secrets: Vec<CredentialSecret> = on_conn!(conn, |c| s::table
        .filter(s::credential_id.eq_any(&locked).and(s::key_version.eq(version)))
        // A credential of many versions is cut into many pieces: only this one is read.
        .filter(s::credential_id.ne(first.0).or(s::secret_version.ge(first.1)))
        .filter(s::credential_id.ne(last.0).or(s::secret_version.le(last.1)))
        .order((s::credential_id, s::secret_version))
        .select(CredentialSecret::as_select())
        .load(c)
        .await?);
    secrets.retain(|secret| wanted.contains(&(secret.credential_id, secret.secret_version)));
    Ok(secrets)
}

/// Replaces how a secret is sealed. The credential is not changed by that: its version stays.
///
/// # Errors
/// Where the database fails.
pub async fn update_secret(tx: &mut Tx, permit: &Permit<RotateKeys>, secret: &CredentialSecret) -> Result<()> {
    let conn = tx.conn().await?;
    let own = credential_secrets::table
        .find((secret.credential_id, secret.secret_version))
        .filter(credential_secrets::organization_id.eq(permit.organization()));
    let newest = credentials::table.filter(
        credentials::organization_id
            .eq(permit.organization())
            .and(credentials::id.eq(secret.credential_id))
            .and(credentials::secret_version.eq(secret.secret_version)),
    );
    on_conn!(conn, |c| {
        diesel::update(own)
            .set((
                credential_secrets::sealed.eq(&secret.sealed),
                credential_secrets::key_version.eq(&secret.key_version),
            ))
            .execute(c)
            .await?;
        diesel::update(newest).set(credentials::key_version.eq(&secret.key_version)).execute(c).await?;
    });
    Ok(())
}

/// The next accounts whose upstream API key a key has sealed.
///
/// # Errors
/// Where the database fails.
pub async fn next_accounts(
    conn: &mut Conn,
    permit: &Permit<RotateKeys>,
    version: &str,
    after: Option<ClaudeAccountId>,
    most: i64,
) -> Result<Vec<ClaudeAccountId>> {
    use claude_accounts as a;
    let after = after.map(|id| id.to_string()).unwrap_or_default();
    Ok(on_conn!(conn, |c| a::table
        .filter(a::organization_id.eq(permit.organization()).and(a::api_key_key_version.eq(version)))
        .filter(a::id.gt(&after))
        .order(a::id)
        .limit(most)
        .select(a::id)
        .load(c)
        .await?))
}

/// Those of the accounts whose upstream API key the key has still sealed, in order, locked to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock_accounts(
    tx: &mut Tx,
    permit: &Permit<RotateKeys>,
    version: &str,
    ids: &[ClaudeAccountId],
) -> Result<Vec<ClaudeAccount>> {
    use claude_accounts as a;
    let conn = tx.conn().await?;
    Ok(all_locked!(
        conn,
        a::table
            .filter(a::organization_id.eq(permit.organization()).and(a::api_key_key_version.eq(version)))
            .filter(a::id.eq_any(ids))
            .order(a::id)
            .select(ClaudeAccount::as_select())
    )?)
}

/// Replaces how an account's upstream API key is sealed, and its fingerprint. The account is not changed by that: its version
/// stays.
///
/// # Errors
/// [`Error::Duplicate`](super::Error::Duplicate) where another account of the organization has the fingerprint.
pub async fn update_account(tx: &mut Tx, permit: &Permit<RotateKeys>, account: &ClaudeAccount) -> Result<()> {
    let conn = tx.conn().await?;
    let own = claude_accounts::table
        .filter(claude_accounts::organization_id.eq(permit.organization()).and(claude_accounts::id.eq(account.id)));
    on_conn!(conn, |c| diesel::update(own)
        .set((
            claude_accounts::api_key_sealed.eq(&account.api_key_sealed),
            claude_accounts::api_key_key_version.eq(&account.api_key_key_version),
            claude_accounts::api_key_fingerprint.eq(&account.api_key_fingerprint),
        ))
        .execute(c)
        .await?);
    Ok(())
}
