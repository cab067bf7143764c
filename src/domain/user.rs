//! Users, and what the operator does with them from the command line.

use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::{Error, FieldError, Result};
use super::validation::Checks;
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::crypto::SecretText;
use crate::identity::password;
use crate::model::{AuditAction, Email, OrganizationId, Read, ResourceType, Role, UserId, UserStatus};
use crate::store::session as sessions;
use crate::store::user::{self as users, User};
use crate::store::{self, Tx};

const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=100;

impl Recorded for User {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        vec![
            ("email", Field::plain(self.email.as_str())),
            ("fullName", Field::plain(self.full_name.as_str())),
            ("role", Field::plain(self.role.as_str())),
            ("status", Field::plain(self.status.as_str())),
        ]
    }
}

/// A user of the caller's organization.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find(cx: Cx<'_>, id: UserId) -> Result<Option<User>> {
    let permit = cx.actor.require::<Read>()?;
    Ok(users::find(&mut cx.services.db.read().await?, &permit, id).await?)
}

/// The users among `ids` that belong to the caller's organization, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[UserId]) -> Result<Vec<User>> {
    let permit = cx.actor.require::<Read>()?;
    Ok(users::find_many(&mut cx.services.db.read().await?, &permit, ids).await?)
}

/// Checks that a field of the input names a user of the caller's organization.
///
/// # Errors
/// Where it does not.
pub(super) async fn check_member(cx: Cx<'_>, tx: &mut Tx, field: &'static str, id: UserId) -> Result<()> {
    let permit = cx.actor.require::<Read>()?;
    if users::find(tx.conn().await?, &permit, id).await?.is_some() {
        return Ok(());
    }
    let message = "is not the id of a user of the organization".into();
    Err(Error::bad_input(vec![FieldError { path: vec!["input", field], message }]))
}

/// Makes an active user with a password in the operator's organization: from the command line.
///
/// # Errors
/// Where the name or the password is not accepted, or the address is taken.
pub async fn create(cx: Cx<'_>, email: &Email, full_name: &str, role: Role, password: &SecretText) -> Result<User> {
    let organization_id = system_organization(cx)?;
    let mut checks = Checks::new();
    let full_name = checks.line("fullName", full_name, NAME_LENGTH).unwrap_or_default();
    checks.finish()?;
    let hash = accepted_hash(cx, password, email).await?;
    let now = cx.services.clock.now();
    let user = User {
        id: cx.services.new_id(),
        organization_id,
        email: email.clone(),
        full_name,
        role,
        status: UserStatus::Active,
        email_verified_at: None,
        last_sign_in_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    audited(cx, async |tx| {
        users::insert(tx, &user).await.map_err(|error| match error {
            store::Error::Duplicate => Error::conflict("A user with this email address exists."),
            error => error.into(),
        })?;
        users::set_password_hash(tx, user.id, hash.as_str(), now).await?;
        let changes = Changes::created(&user);
        let entry = Entry::new(AuditAction::Create, ResourceType::User).on(&user.id).with(changes);
        Ok((user, entry))
    })
    .await
}

/// Sets a user's password and ends all of the user's sessions: from the command line.
///
/// # Errors
/// Where there is no such user or the password is not accepted.
pub async fn reset_password(cx: Cx<'_>, email: &Email, password: &SecretText) -> Result<User> {
    let organization = system_organization(cx)?;
    let found = users::find_by_email(&mut cx.services.db.read().await?, email).await?;
    let (user, _) =
        found.filter(|(user, _)| user.organization_id == organization).ok_or_else(|| Error::not_found("user"))?;
    let hash = accepted_hash(cx, password, email).await?;
    let now = cx.services.clock.now();
    audited(cx, async |tx| {
        // The user first, which locks the row: see `sessions::lock_with_user`.
        users::set_password_hash(tx, user.id, hash.as_str(), now).await?;
        let ended = sessions::revoke_all(tx, user.id, now).await?;
        let entry = Entry::new(AuditAction::Update, ResourceType::User)
            .on(&user.id)
            .noting(json!({ "password": "reset", "sessionsEnded": ended }));
        Ok((user, entry))
    })
    .await
}

fn system_organization(cx: Cx<'_>) -> Result<OrganizationId> {
    cx.actor.access().map(crate::model::Access::organization).ok_or_else(Error::unauthenticated)
}

async fn accepted_hash(cx: Cx<'_>, password: &SecretText, email: &Email) -> Result<password::PasswordHash> {
    if let Some(objection) = password::objection(password, email) {
        return Err(Error::bad_input(vec![FieldError { path: vec!["password"], message: objection.into() }]));
    }
    Ok(cx.in_time(cx.services.passwords.hash(password)).await??)
}
