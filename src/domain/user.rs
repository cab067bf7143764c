//! Users: who they are, what an administrator changes, and what the operator does from the command line.

use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::{Error, FieldError, Result};
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::crypto::SecretText;
use crate::identity::{Actor, password};
use crate::model::{
    Access, AuditAction, Direction, Email, Grant, ManageUsers, OrganizationId, Page, PageSlice, Permit, Read,
    ResourceType, Role, UserId, UserStatus, ViewUsers,
};
use crate::store::user::{self as users, User, UserFilter, UserOrder};
use crate::store::{
    self, Tx, invitation as invitations, mail_token as tokens, organization as organizations, session as sessions,
};

pub(super) const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=100;
pub(super) const TAKEN: &str = "A user with this email address exists.";
const NOT_ACCEPTED: &str = "The user has not accepted the invitation yet.";
pub(super) const LAST_ADMIN: &str = "The organization needs an active ADMIN, and this is the last one.";

/// Two that race for one address: the loser learns it from the database.
pub(super) fn taken(error: store::Error) -> Error {
    match error {
        store::Error::Duplicate => Error::conflict(TAKEN),
        error => error.into(),
    }
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub full_name: Patch<String>,
    pub role: Patch<Role>,
    pub status: Patch<UserStatus>,
    pub expected_version: Option<i32>,
}

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

/// The caller.
///
/// # Errors
/// Where nobody is signed in.
pub async fn of_viewer(cx: Cx<'_>) -> Result<Option<User>> {
    let permit = cx.actor.introspect()?;
    let Some(caller) = cx.actor.signed_in() else { return Ok(None) };
    Ok(users::find(&mut cx.services.db.read().await?, &permit, caller.user).await?)
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

/// The same, and those who are deleted: who did a deed is told for as long as the deed is remembered.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many_ever(cx: Cx<'_>, ids: &[UserId]) -> Result<Vec<User>> {
    let permit = cx.actor.require::<Read>()?;
    Ok(users::find_many_ever(&mut cx.services.db.read().await?, &permit, ids).await?)
}

/// A page of the organization's users.
///
/// # Errors
/// Without permission, with a cursor of another list, or with more text to search for than is taken.
pub async fn page(
    cx: Cx<'_>,
    filter: &UserFilter,
    order: (UserOrder, Direction),
    page: &Page,
) -> Result<PageSlice<User>> {
    let permit = cx.actor.require::<ViewUsers>()?;
    check_search(filter.search.as_deref())?;
    // Whatever is asked for, those who are deleted are left out.
    let mut conn = cx.services.db.list(page, true).await?;
    Ok(users::page(&mut conn, &permit, filter, order, page).await?)
}

/// How many of the organization's users pass the filter.
///
/// # Errors
/// Without permission.
pub async fn count(cx: Cx<'_>, filter: &UserFilter) -> Result<i64> {
    let permit = cx.actor.require::<ViewUsers>()?;
    Ok(users::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// Changes a user; what the input leaves out stays. A user who is suspended is signed out everywhere, and the links end that were
/// sent by mail.
///
/// # Errors
/// Without permission, with wrong input, where there is no such user, where the user is not at the expected version, or where
/// the organization would be left without an active ADMIN.
pub async fn update(cx: Cx<'_>, id: UserId, input: Update) -> Result<User> {
    let permit = cx.actor.require::<ManageUsers>()?;
    audited(cx, async |tx| {
        let before = lock(cx, tx, &permit, id).await?;
        if input.expected_version.is_some_and(|version| version != before.version) {
            return Err(Error::conflict("The user is not at the expected version. Read it again."));
        }
        let mut user = before.clone();
        let mut checks = Checks::new();
        user.full_name = checks.required("fullName", input.full_name, user.full_name, |checks, text| {
            checks.line("fullName", &text, NAME_LENGTH)
        });
        user.role = checks.required("role", input.role, user.role, |_, role| Some(role));
        user.status = checks.required("status", input.status, user.status, |checks, status| {
            if status == UserStatus::Invited {
                checks.fail("status", "cannot be set to INVITED");
            }
            Some(status)
        });
        checks.finish()?;
        if before.status == UserStatus::Invited && user.status != UserStatus::Invited {
            return Err(Error::conflict(NOT_ACCEPTED));
        }
        let loses_an_admin = is_active_admin(&before) && !is_active_admin(&user);
        if loses_an_admin && !users::has_other_admin(tx, &permit, id).await? {
            return Err(Error::conflict(LAST_ADMIN));
        }
        let now = cx.services.clock.now();
        let entry = Entry::new(AuditAction::Update, ResourceType::User).on(&id);
        let changes = Changes::between(&before, &user);
        if changes.is_empty() {
            return Ok((user, entry));
        }
        user.version += 1;
        user.updated_at = now;
        users::update(tx, &user).await?;
        let entry = entry.with(changes).changing_access();
        if user.status == UserStatus::Suspended && before.status != UserStatus::Suspended {
            tokens::end_others(tx, &user).await?;
            let ended = sessions::revoke_all(tx, id, now).await?;
            return Ok((user, entry.noting(json!({ "sessionsEnded": ended }))));
        }
        Ok((user, entry))
    })
    .await
}

/// Deletes a user, who is signed out everywhere. The address is free again; the audit log still knows the name.
///
/// # Errors
/// Without permission, where there is no such user, where it is the caller, or where the organization would be left without an
/// active ADMIN.
pub async fn delete(cx: Cx<'_>, id: UserId) -> Result<()> {
    let permit = cx.actor.require::<ManageUsers>()?;
    audited(cx, async |tx| {
        let user = lock(cx, tx, &permit, id).await?;
        if cx.actor.signed_in().is_some_and(|caller| caller.user == id) {
            return Err(Error::conflict("You cannot delete yourself."));
        }
        if is_active_admin(&user) && !users::has_other_admin(tx, &permit, id).await? {
            return Err(Error::conflict(LAST_ADMIN));
        }
        let now = cx.services.clock.now();
        let ended = sessions::revoke_all(tx, id, now).await?;
        invitations::end(tx, id).await?;
        let revoked = users::delete(tx, &permit, id, now).await?;
        let revoked: Vec<_> = revoked.iter().map(ToString::to_string).collect();
        let entry = Entry::new(AuditAction::Delete, ResourceType::User).on(&id).changing_access();
        let noted = json!({ "sessionsEnded": ended, "apiKeysRevoked": revoked });
        Ok(((), entry.with(Changes::deleted(&user)).noting(noted)))
    })
    .await?;
    cx.services.workers.forget(|known| known.user == id);
    Ok(())
}

/// Locks the organization and then the user: of two changes that each leave one ADMIN, the second waits for the first.
async fn lock(cx: Cx<'_>, tx: &mut Tx, permit: &Permit<ManageUsers>, id: UserId) -> Result<User> {
    lock_organization(cx, tx, permit).await?;
    users::lock_member(tx, permit, id).await?.ok_or_else(no_such_user)
}

/// Locks the organization, so that nobody's role or status changes meanwhile, and judges the caller as they are now: what the
/// request was judged by may be some seconds old, and whoever was demoted or suspended in them must not undo that.
pub(super) async fn lock_organization(cx: Cx<'_>, tx: &mut Tx, permit: &Permit<ManageUsers>) -> Result<()> {
    organizations::lock(tx, permit).await?;
    // The operator is no user.
    let Some(caller) = cx.actor.signed_in() else { return Ok(()) };
    let now = users::find(tx.conn().await?, &cx.actor.require::<Read>()?, caller.user).await?;
    let now = now.filter(|user| user.status == UserStatus::Active).ok_or_else(Error::unauthenticated)?;
    Ok(Access::new(now.organization_id, now.role).check(ManageUsers::NEEDS)?)
}

fn no_such_user() -> Error {
    Error::not_found("user")
}

pub(super) fn is_active_admin(user: &User) -> bool {
    user.role == Role::Admin && user.status == UserStatus::Active
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
    let permit = cx.actor.require::<ManageUsers>()?;
    audited(cx, async |tx| {
        // Nor beside one who is invited by the address and holds it not yet.
        if users::lock_member_by_email(tx, &permit, email).await?.is_some() {
            return Err(Error::conflict(TAKEN));
        }
        users::insert(tx, &user).await.map_err(taken)?;
        users::set_password_hash(tx, user.id, hash.as_str(), now).await?;
        let changes = Changes::created(&user);
        let entry = Entry::new(AuditAction::Create, ResourceType::User).on(&user.id).with(changes);
        Ok((user, entry))
    })
    .await
}

/// Sets a user's password and ends all of the user's sessions and links, whichever organization the user is of: from the command line.
///
/// # Errors
/// Where there is no such user, the user has not accepted the invitation yet, or the password is not accepted.
pub async fn reset_password(cx: Cx<'_>, email: &Email, password: &SecretText) -> Result<User> {
    let home = system_organization(cx)?;
    let holder = users::find_by_email(&mut cx.services.db.read().await?, email).await?;
    // In whose log it stands.
    let actor = Actor::system(holder.map_or(home, |(user, _)| user.organization_id));
    let cx = Cx { actor: &actor, ..cx };
    let permit = cx.actor.require::<ManageUsers>()?;
    let hash = accepted_hash(cx, password, email).await?;
    let now = cx.services.clock.now();
    audited(cx, async |tx| {
        // The user before the sessions: see `sessions::lock_with_user`.
        let user = users::lock_member_by_email(tx, &permit, email).await?.ok_or_else(no_such_user)?;
        if user.status == UserStatus::Invited {
            return Err(Error::conflict(NOT_ACCEPTED));
        }
        if !users::holds_address(tx, user.id).await? {
            return Err(no_such_user());
        }
        users::set_password_hash(tx, user.id, hash.as_str(), now).await?;
        tokens::end_others(tx, &user).await?;
        let ended = sessions::revoke_all(tx, user.id, now).await?;
        let entry = Entry::new(AuditAction::Update, ResourceType::User)
            .changing_access()
            .on(&user.id)
            .noting(json!({ "password": "reset", "sessionsEnded": ended }));
        Ok((user, entry))
    })
    .await
}

fn system_organization(cx: Cx<'_>) -> Result<OrganizationId> {
    cx.actor.access().map(Access::organization).ok_or_else(Error::unauthenticated)
}

async fn accepted_hash(cx: Cx<'_>, password: &SecretText, email: &Email) -> Result<password::PasswordHash> {
    if let Some(objection) = password::objection(password, email) {
        return Err(Error::bad_input(vec![FieldError { path: vec!["password"], message: objection.into() }]));
    }
    Ok(cx.in_time(cx.services.passwords.hash(password)).await??)
}
