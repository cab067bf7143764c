//! Credentials: the secrets of clients. Every version is kept, sealed; one is shown by [`reveal`] alone.

use std::collections::HashMap;

use serde_json::json;
use url::Url;

use super::client;
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::crypto::{Aad, OpenError, Sealed, SecretText};
use crate::model::{
    AuditAction, ClientId, CredentialId, DeleteCredentials, Direction, OrganizationId, Page, PageSlice, ResourceType,
    RevealCredentials, WriteCredentials,
};
use crate::store::credential::{self as credentials, Credential, CredentialFilter, CredentialOrder, CredentialSecret};

const LABEL_LENGTH: std::ops::RangeInclusive<usize> = 1..=200;
const URL_LENGTH: std::ops::RangeInclusive<usize> = 1..=2_000;
const REASON_LENGTH: std::ops::RangeInclusive<usize> = 1..=500;
/// Room for a key file or the JSON of a service account.
const SECRET_LENGTH: usize = 10_000;

/// The input of [`create`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Create {
    pub client_id: String,
    pub label: String,
    pub username: Option<String>,
    pub url: Option<String>,
    pub secret: SecretText,
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub label: Patch<String>,
    pub username: Patch<String>,
    pub url: Patch<String>,
    pub secret: Patch<SecretText>,
    pub expected_version: Option<i32>,
}

impl Recorded for Credential {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        vec![
            ("clientId", Field::plain(self.client_id.to_string())),
            ("label", Field::plain(self.label.as_str())),
            ("username", Field::plain(self.username.as_deref())),
            ("url", Field::plain(self.url.as_deref())),
            // Each secret has a version of its own, which tells it from another without a word of it.
            ("secret", Field::Secret(self.secret_version.to_be_bytes().to_vec())),
            ("secretVersion", Field::plain(self.secret_version)),
        ]
    }
}

/// A page of the organization's credentials.
///
/// # Errors
/// Where nobody is signed in, or with a cursor of another list.
pub async fn page(
    cx: Cx<'_>,
    filter: &CredentialFilter,
    order: (CredentialOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Credential>> {
    let permit = cx.actor.require()?;
    check_search(filter.search.as_deref())?;
    let mut conn = cx.services.db.list(page, *filter != CredentialFilter::default()).await?;
    Ok(credentials::page(&mut conn, &permit, filter, order, page).await?)
}

/// The same page of the credentials of each of the clients, newest first.
///
/// # Errors
/// As for [`page`].
pub async fn pages(cx: Cx<'_>, clients: &[ClientId], page: &Page) -> Result<HashMap<ClientId, PageSlice<Credential>>> {
    let permit = cx.actor.require()?;
    Ok(credentials::pages(&mut cx.services.db.scan().await?, &permit, clients, page).await?)
}

/// How many of the organization's credentials pass the filter.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count(cx: Cx<'_>, filter: &CredentialFilter) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(credentials::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// How many credentials of each of the clients pass the filter; a client without any is left out.
///
/// # Errors
/// Where nobody is signed in.
pub async fn counts(cx: Cx<'_>, clients: &[ClientId], filter: &CredentialFilter) -> Result<HashMap<ClientId, i64>> {
    let permit = cx.actor.require()?;
    Ok(credentials::counts(&mut cx.services.db.scan().await?, &permit, clients, filter).await?)
}

/// The credentials among `ids` that belong to the caller's organization, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[CredentialId]) -> Result<Vec<Credential>> {
    let permit = cx.actor.require()?;
    Ok(credentials::find_many(&mut cx.services.db.read().await?, &permit, ids).await?)
}

/// Makes a credential with its first secret.
///
/// # Errors
/// Without permission, with wrong input, or where the client is archived.
pub async fn create(cx: Cx<'_>, input: Create) -> Result<Credential> {
    let permit = cx.actor.require::<WriteCredentials>()?;
    let now = cx.services.clock.now();
    let client_id = input.client_id.parse().map_err(|_| Error::not_found("client"))?;
    let mut checks = Checks::new();
    let label = checks.line("label", &input.label, LABEL_LENGTH);
    let username = input.username.and_then(|text| checks.line("username", &text, LABEL_LENGTH));
    let url = input.url.and_then(|text| check_url(&mut checks, &text));
    let secret = check_secret(&mut checks, input.secret);
    checks.finish()?;
    // Both were checked: nothing was found wrong.
    let (Some(label), Some(secret)) = (label, secret) else {
        return Err(Error::internal("a failed check was not noted"));
    };
    let caller = cx.actor.signed_in().map(|user| user.user);
    let mut credential = Credential {
        id: cx.services.new_id(),
        client_id,
        label,
        username,
        url,
        secret_version: 0,
        key_version: String::new(),
        created_by: caller,
        updated_by: caller,
        last_accessed_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let sealed = next_secret(cx, permit.organization(), &mut credential, &secret)?;
    audited(cx, async |tx| {
        client::lock_open(tx, &permit, client_id).await?;
        credentials::insert(tx, &permit, &credential, &sealed).await?;
        let changes = Changes::created(&credential);
        let entry = Entry::new(AuditAction::Create, ResourceType::Credential).on(&credential.id).with(changes);
        Ok((credential, entry))
    })
    .await
}

/// Changes a credential; what the input leaves out stays. A secret becomes the newest version; those before it are kept.
///
/// # Errors
/// Without permission, with wrong input, where there is no such credential, or where it is not at the expected version.
pub async fn update(cx: Cx<'_>, id: CredentialId, input: Update) -> Result<Credential> {
    let permit = cx.actor.require::<WriteCredentials>()?;
    audited(cx, async |tx| {
        let before = credentials::lock(tx, &permit, id).await?.ok_or_else(no_such_credential)?;
        if input.expected_version.is_some_and(|version| version != before.version) {
            return Err(Error::conflict("The credential is not at the expected version. Read it again."));
        }
        let mut checks = Checks::new();
        let mut credential = before.clone();
        let label = std::mem::take(&mut credential.label);
        credential.label =
            checks.required("label", input.label, label, |checks, text| checks.line("label", &text, LABEL_LENGTH));
        credential.username =
            input.username.or_keep(credential.username.take(), |text| checks.line("username", &text, LABEL_LENGTH));
        credential.url = input.url.or_keep(credential.url.take(), |text| check_url(&mut checks, &text));
        let secret =
            checks.required("secret", input.secret, None, |checks, secret| check_secret(checks, secret).map(Some));
        checks.finish()?;
        let now = cx.services.clock.now();
        if let Some(secret) = secret {
            let sealed = next_secret(cx, permit.organization(), &mut credential, &secret)?;
            credentials::insert_secret(tx, &permit, &sealed).await?;
        }
        let changes = Changes::between(&before, &credential);
        if !changes.is_empty() {
            credential.version += 1;
            credential.updated_at = now;
            credential.updated_by = cx.actor.signed_in().map(|user| user.user);
            credentials::update(tx, &permit, &credential).await?;
        }
        Ok((credential, Entry::new(AuditAction::Update, ResourceType::Credential).on(&id).with(changes)))
    })
    .await
}

/// Opens a version of a credential's secret, the newest where none is named. That it was revealed, to whom and why stands in
/// the audit log before the secret is returned.
///
/// # Errors
/// Without permission, with a wrong reason, where there is no such credential or version, or where the entry cannot be
/// written.
pub async fn reveal(
    cx: Cx<'_>,
    id: CredentialId,
    version: Option<i32>,
    reason: Option<String>,
) -> Result<(Credential, SecretText)> {
    let permit = cx.actor.require::<RevealCredentials>()?;
    let mut checks = Checks::new();
    let reason = reason.and_then(|text| checks.line("reason", &text, REASON_LENGTH));
    checks.finish()?;
    audited(cx, async |tx| {
        let mut credential = credentials::lock(tx, &permit, id).await?.ok_or_else(no_such_credential)?;
        let version = version.unwrap_or(credential.secret_version);
        let sealed = credentials::find_secret(tx, &permit, id, version)
            .await?
            .ok_or_else(|| Error::not_found("version of the secret"))?;
        let secret = open(cx, permit.organization(), &sealed).map_err(Error::internal)?;
        let now = cx.services.clock.now();
        credentials::touch(tx, &permit, id, now).await?;
        credential.last_accessed_at = Some(now);
        let entry = Entry::new(AuditAction::Reveal, ResourceType::Credential)
            .on(&id)
            .noting(json!({ "secretVersion": version, "reason": reason }));
        Ok(((credential, secret), entry))
    })
    .await
}

/// Deletes a credential with every version of its secret.
///
/// # Errors
/// Without permission, or where there is no such credential.
pub async fn delete(cx: Cx<'_>, id: CredentialId) -> Result<()> {
    let permit = cx.actor.require::<DeleteCredentials>()?;
    audited(cx, async |tx| {
        let credential = credentials::lock(tx, &permit, id).await?.ok_or_else(no_such_credential)?;
        credentials::delete(tx, &permit, id).await?;
        let entry = Entry::new(AuditAction::Delete, ResourceType::Credential).on(&id);
        Ok(((), entry.with(Changes::deleted(&credential))))
    })
    .await
}

fn no_such_credential() -> Error {
    Error::not_found("credential")
}

/// An address as it was written. Frontends make links of it, and a password in it would be one that is not sealed.
fn check_url(checks: &mut Checks, text: &str) -> Option<String> {
    let text = checks.line("url", text, URL_LENGTH)?;
    match Url::parse(&text) {
        Ok(url) if url.password().is_some() => {
            checks.fail("url", "must not have a password: it belongs in the secret");
            None
        }
        Ok(url) if url.has_host() && url.scheme() != "javascript" => Some(text),
        _ => {
            checks.fail("url", "is not a URL like https://example.com");
            None
        }
    }
}

/// A secret is kept to the letter: a space or an end of line may belong to it.
fn check_secret(checks: &mut Checks, secret: SecretText) -> Option<SecretText> {
    let characters = secret.expose().chars().count();
    if characters == 0 || characters > SECRET_LENGTH {
        checks.fail("secret", format!("must have 1 to {SECRET_LENGTH} characters"));
        None
    } else {
        Some(secret)
    }
}

fn aad(organization: OrganizationId, secret: &CredentialSecret) -> Aad {
    Aad {
        organization: organization.to_string(),
        record: secret.credential_id.to_string(),
        field: "secret",
        secret_version: secret.secret_version,
    }
}

/// Seals the secret as the credential's newest version.
fn next_secret(
    cx: Cx<'_>,
    organization: OrganizationId,
    credential: &mut Credential,
    text: &SecretText,
) -> Result<CredentialSecret> {
    let mut secret = CredentialSecret {
        credential_id: credential.id,
        secret_version: credential.secret_version + 1,
        sealed: Vec::new(),
        key_version: String::new(),
        created_by: cx.actor.signed_in().map(|user| user.user),
        created_at: cx.services.clock.now(),
    };
    seal(cx, organization, &mut secret, text)?;
    credential.secret_version = secret.secret_version;
    credential.key_version.clone_from(&secret.key_version);
    Ok(secret)
}

fn seal(cx: Cx<'_>, organization: OrganizationId, secret: &mut CredentialSecret, text: &SecretText) -> Result<()> {
    let aad = aad(organization, secret);
    let sealed = cx.services.keys.seal(&cx.services.random, &aad, text).map_err(Error::internal)?;
    secret.sealed = sealed.bytes;
    secret.key_version = sealed.key_version;
    Ok(())
}

fn open(cx: Cx<'_>, organization: OrganizationId, secret: &CredentialSecret) -> Result<SecretText, OpenError> {
    let sealed = Sealed { key_version: secret.key_version.clone(), bytes: secret.sealed.clone() };
    cx.services.keys.open(&aad(organization, secret), &sealed)
}

/// Seals a secret with the newest key of the ring.
pub(super) fn reseal(cx: Cx<'_>, organization: OrganizationId, secret: &mut CredentialSecret) -> Result<()> {
    let text = open(cx, organization, secret).map_err(Error::internal)?;
    seal(cx, organization, secret, &text)
}
