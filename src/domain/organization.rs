//! The organization, and the first start that makes it.

use serde_json::{Value, json};

use super::context::Cx;
use super::deed::audited;
use super::encryption_key;
use super::error::{Error, Result};
use super::validation::{Checks, Patch};
use crate::audit::{Changes, Entry, Field, Origin, Recorded};
use crate::crypto::{KeyRing, Random, SecretText};
use crate::identity::password::{self, Hasher};
use crate::model::{
    AuditAction, Clock, Email, Id, JsonObject, ManageOrganization, OrganizationId, Plan, Read, ResourceType, Role,
    UserStatus,
};
use crate::store::organization::{self as organizations, Organization};
use crate::store::user::{self as users, User};
use crate::store::{self, Db, Tx};

const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=100;

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub name: Patch<String>,
    pub settings: Patch<Value>,
}

impl Recorded for Organization {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        vec![
            ("name", Field::plain(self.name.as_str())),
            ("plan", Field::plain(self.plan.as_str())),
            ("settings", Field::plain(self.settings.to_value())),
        ]
    }
}

/// The caller's organization.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find(cx: Cx<'_>) -> Result<Option<Organization>> {
    let permit = cx.actor.require::<Read>()?;
    Ok(organizations::find(&mut cx.services.db.read().await?, &permit).await?)
}

/// The same, as any API key may know it.
///
/// # Errors
/// Where nobody is signed in.
pub async fn of_viewer(cx: Cx<'_>) -> Result<Option<Organization>> {
    let permit = cx.actor.introspect()?;
    Ok(organizations::find(&mut cx.services.db.read().await?, &permit).await?)
}

/// The organization among `ids` that is the caller's.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[OrganizationId]) -> Result<Vec<Organization>> {
    let permit = cx.actor.require::<Read>()?;
    if !ids.contains(&permit.organization()) {
        return Ok(Vec::new());
    }
    Ok(organizations::find(&mut cx.services.db.read().await?, &permit).await?.into_iter().collect())
}

/// Changes the caller's organization; what the input leaves out stays.
///
/// # Errors
/// Without permission, or with wrong input.
pub async fn update(cx: Cx<'_>, input: Update) -> Result<Organization> {
    let permit = cx.actor.require::<ManageOrganization>()?;
    audited(cx, async |tx| {
        let before = organizations::lock(tx, &permit).await?.ok_or_else(|| Error::not_found("organization"))?;
        let mut organization = before.clone();
        let mut checks = Checks::new();
        organization.name = checks
            .required("name", input.name, organization.name, |checks, text| checks.line("name", &text, NAME_LENGTH));
        organization.settings = checks.required("settings", input.settings, organization.settings, |checks, value| {
            checks.object("settings", value)
        });
        checks.finish()?;
        let changes = Changes::between(&before, &organization);
        if !changes.is_empty() {
            organization.updated_at = cx.services.clock.now();
            organizations::update(tx, &permit, &organization).await?;
        }
        let entry = Entry::new(AuditAction::Update, ResourceType::Organization).on(&organization.id).with(changes);
        Ok((organization, entry))
    })
    .await
}

/// What the first start needs.
pub struct FirstStart<'a> {
    /// The database, with its tables.
    pub db: &'a Db,
    /// The time.
    pub clock: &'a Clock,
    /// Randomness.
    pub random: &'a Random,
    /// Hashes the password.
    pub passwords: &'a Hasher,
    /// The keys that the database begins with.
    pub keys: &'a KeyRing,
    /// The administrator's address.
    pub admin_email: &'a Email,
    /// The administrator's password; none: one is generated.
    pub admin_password: Option<SecretText>,
}

/// Who can sign in after a first start.
#[derive(Debug)]
pub struct FirstAdmin {
    /// The address.
    pub email: Email,
    /// The password, where it was generated: it is told once.
    pub generated_password: Option<SecretText>,
}

/// Whether there has been a first start.
///
/// # Errors
/// Where the database fails.
pub async fn is_begun(db: &Db) -> store::Result<bool> {
    Ok(organizations::first(&mut db.read().await?).await?.is_some())
}

/// The operator's organization. Where there is none, it is made with its first ADMIN; of several servers that start at
/// once, one makes it.
///
/// # Errors
/// Where the password that was set is not accepted, or the database fails.
pub async fn ensure(start: FirstStart<'_>) -> Result<(OrganizationId, Option<FirstAdmin>)> {
    if let Some(id) = organizations::first(&mut start.db.read().await?).await? {
        return Ok((id, None));
    }
    let (password, is_generated) = match start.admin_password {
        Some(password) => (password, false),
        None => (start.random.password(), true),
    };
    if let Some(objection) = password::objection(&password, start.admin_email) {
        return Err(Error::bad_input(vec![super::FieldError {
            path: vec!["ADMIN_PASSWORD"],
            message: objection.into(),
        }]));
    }
    let hash = start.passwords.hash(&password).await?;

    let mut tx = Tx::new(start.db.clone());
    organizations::lock_making(&mut tx).await?;
    if let Some(id) = organizations::first(tx.conn().await?).await? {
        tx.rollback().await?;
        return Ok((id, None));
    }
    let now = start.clock.now();
    let organization = Organization {
        id: Id::new(now, &start.random.bytes()),
        name: "My organization".to_owned(),
        plan: Plan::Free,
        settings: JsonObject::default(),
        created_at: now,
        updated_at: now,
    };
    let admin = User {
        id: Id::new(now, &start.random.bytes()),
        organization_id: organization.id,
        email: start.admin_email.clone(),
        full_name: "Administrator".to_owned(),
        role: Role::Admin,
        status: UserStatus::Active,
        email_verified_at: None,
        last_sign_in_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    organizations::insert(&mut tx, &organization).await?;
    users::insert(&mut tx, &admin).await?;
    users::set_password_hash(&mut tx, admin.id, hash.as_str(), now).await?;
    encryption_key::begin(&mut tx, start.keys, now).await?;
    let entry = Entry::new(AuditAction::Create, ResourceType::Organization)
        .on(&organization.id)
        .with(Changes::created(&organization))
        .noting(json!({ "admin": admin.id.to_string() }));
    let origin = Origin { request_id: "first-start".to_owned(), ..Origin::default() };
    let entry_id = Id::new(now, &start.random.bytes());
    tx.commit(&entry.complete(entry_id, now, organization.id, None, "serve", &origin)).await?;
    let generated_password = is_generated.then_some(password);
    Ok((organization.id, Some(FirstAdmin { email: admin.email, generated_password })))
}
