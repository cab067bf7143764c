//! Registering, and verifying an address: an address counts once it is verified, so that nobody learns by registering, or takes, what
//! is somebody else's.

use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::session::{self, Tokens};
use super::user::{NAME_LENGTH, TAKEN};
use super::validation::Checks;
use super::{mail_token, outbox};
use crate::audit::{Changes, Entry};
use crate::crypto::SecretText;
use crate::identity::password;
use crate::mail::templates;
use crate::model::{AuditAction, JsonObject, MailTokenPurpose, Plan, ResourceType, Role, UserStatus};
use crate::store;
use crate::store::mail_token as tokens;
use crate::store::organization::{self as organizations, Organization};
use crate::store::user::{self as users, User};

/// One text for a token that never was, one that was used, and one that came too late.
const WRONG_TOKEN: &str = "The link is not valid any more. Ask for a new one.";

/// The input of [`register`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Register {
    pub organization_name: String,
    pub email: String,
    pub full_name: String,
    pub password: SecretText,
}

/// Makes an organization with its first ADMIN, who is signed in, and sends a mail to the address. The ADMIN signs in with it once it
/// is verified. Whether it belongs to somebody already, only the mail says: all else is the same, and takes the same work.
///
/// # Errors
/// With wrong input, or where the server is not open for that.
pub async fn register(cx: Cx<'_>, input: Register) -> Result<Tokens> {
    if !cx.services.is_registration_open {
        return Err(Error::forbidden("This server is not open for registration."));
    }
    let mut checks = Checks::new();
    let name = checks.line("organizationName", &input.organization_name, NAME_LENGTH);
    let email = checks.email("email", &input.email);
    let full_name = checks.line("fullName", &input.full_name, NAME_LENGTH);
    if let Some(objection) = email.as_ref().and_then(|email| password::objection(&input.password, email)) {
        checks.fail("password", objection);
    }
    checks.finish()?;
    // All were checked: nothing was found wrong.
    let (Some(name), Some(email), Some(full_name)) = (name, email, full_name) else {
        return Err(Error::internal("a failed check was not noted"));
    };
    let hash = cx.in_time(cx.services.passwords.hash(&input.password)).await??;
    let now = cx.services.clock.now();
    let organization = Organization {
        id: cx.services.new_id(),
        name,
        plan: Plan::Free,
        settings: JsonObject::default(),
        created_at: now,
        updated_at: now,
    };
    let admin = User {
        id: cx.services.new_id(),
        organization_id: organization.id,
        email,
        full_name,
        role: Role::Admin,
        status: UserStatus::Active,
        email_verified_at: None,
        last_sign_in_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    audited(cx, async |tx| {
        let is_known = users::find_by_email(tx.conn().await?, &admin.email).await?.is_some();
        let (token, link) = mail_token::issue(cx, MailTokenPurpose::VerifyEmail, Some(admin.id), &admin.email);
        let message = if is_known {
            templates::registered_already(&admin.email)
        } else {
            templates::verify_registration(&admin.email, &link)
        };
        organizations::insert(tx, &organization).await?;
        users::insert_unverified(tx, &admin).await?;
        users::set_first_password_hash(tx, admin.id, hash.as_str()).await?;
        tokens::replace(tx, &token).await?;
        outbox::queue(cx, tx, organization.id, &message, mail_token::lifetime(token.purpose)).await?;
        let (_, tokens) = session::begin(cx, tx, &admin).await?;
        let entry = Entry::new(AuditAction::Register, ResourceType::Organization)
            .on(&organization.id)
            .with(Changes::created(&organization))
            .noting(json!({ "admin": admin.id.to_string() }))
            .by(organization.id, admin.id);
        Ok((tokens, entry))
    })
    .await
}

/// Verifies an address by the token that was sent to it: from then on it is the user's to sign in with.
///
/// # Errors
/// `UNAUTHENTICATED`, with one text, for every reason that lies in the token; a conflict where the address has become somebody else's.
pub async fn verify_email(cx: Cx<'_>, presented: &SecretText) -> Result<User> {
    let refused = || Error::refused(WRONG_TOKEN);
    let found = mail_token::find(cx, MailTokenPurpose::VerifyEmail, presented).await?;
    let (token, user) = found.ok_or_else(refused)?;
    cx.record.concerns(user.organization_id, ResourceType::User, user.id);
    audited(cx, async |tx| {
        let locked = users::lock(tx, user.id).await?.filter(|user| user.status == UserStatus::Active);
        let before = locked.ok_or_else(refused)?;
        // Another may have used it, or there is a newer one, since it was read.
        if !tokens::take(tx, &token).await? {
            return Err(refused());
        }
        let now = cx.services.clock.now();
        let user = User {
            email: token.email.clone(),
            email_verified_at: Some(now),
            updated_at: now,
            version: before.version + 1,
            ..before.clone()
        };
        users::update(tx, &user).await?;
        users::claim_address(tx, &user).await.map_err(|error| match error {
            store::Error::Duplicate => Error::conflict(TAKEN),
            error => error.into(),
        })?;
        tokens::end_others(tx, &user).await?;
        let entry = Entry::new(AuditAction::Verify, ResourceType::User)
            .on(&user.id)
            .with(Changes::between(&before, &user))
            .by(user.organization_id, user.id);
        Ok((user, entry))
    })
    .await
}
