//! Registering, and verifying an address: an address counts once it is verified, so that nobody learns by registering, or takes, what
//! is somebody else's.

use serde_json::json;

use super::attempts::{Attempt, Guess, Sends};
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::mail_token::WRONG_TOKEN;
use super::password::{CHANGED, unacceptable, verify};
use super::session::{self, Tokens};
use super::user::{NAME_LENGTH, taken};
use super::validation::Checks;
use super::{mail_token, outbox};
use crate::audit::{Changes, Entry};
use crate::crypto::SecretText;
use crate::identity::password;
use crate::mail::templates;
use crate::model::{AuditAction, Email, JsonObject, MailTokenPurpose, Plan, ResourceType, Role, SessionId, UserStatus};
use crate::store::mail_token as tokens;
use crate::store::organization::{self as organizations, Organization};
use crate::store::session as sessions;
use crate::store::user::{self as users, User};

/// The input of [`register`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Register {
    pub organization_name: String,
    pub email: String,
    pub full_name: String,
    pub password: SecretText,
}

/// Makes an organization with its first ADMIN, who is signed in, and sends a mail to the address. The ADMIN signs in with it once it
/// is verified. Whether it belongs to somebody already, only the mail says: all else is the same, and takes the same work. Where the
/// address has had enough of such mails, none is sent.
///
/// # Errors
/// With wrong input, where the server is not open for that, or where too many were registered from one network.
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
    let (attempt, is_sent) = Attempt::to_send(cx, Sends::Registration, &email).await?;
    let done = register_once(cx, (name, email, full_name), &input.password, is_sent).await;
    attempt.end(&done).await;
    done
}

async fn register_once(
    cx: Cx<'_>,
    (name, email, full_name): (String, Email, String),
    password: &SecretText,
    is_sent: bool,
) -> Result<Tokens> {
    let hash = cx.in_time(cx.services.passwords.hash(password)).await??;
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
            templates::verify_registration(&admin.email, &link, now, cx.origin.ip_address)
        };
        organizations::insert(tx, &organization).await?;
        users::insert_unverified(tx, &admin).await?;
        users::set_first_password_hash(tx, admin.id, hash.as_str()).await?;
        tokens::replace(tx, &token).await?;
        let lifetime = mail_token::lifetime(token.purpose);
        outbox::queue_if(cx, tx, is_sent, organization.id, &message, lifetime).await?;
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

/// Verifies an address by the token that was sent to it: from then on it is the user's to sign in with, and the one before is told.
/// The token shows who reads the mails of the address, not who has asked for it, which may have been a stranger: that takes a session
/// of the user, or the password. Another address than the user's takes the password, session or not: by it the account is had, so that
/// whoever stole a session must not do with it what takes the password otherwise.
///
/// # Errors
/// `UNAUTHENTICATED`, with one text, for every reason that lies in the token; `RATE_LIMITED` after too many that were not good; wrong
/// input where the password is needed and not given; a conflict where the address has become somebody else's.
pub async fn verify_email(cx: Cx<'_>, presented: &SecretText, password: Option<&SecretText>) -> Result<User> {
    let attempt = Attempt::begin(cx, Guess::MailToken).await?;
    let done = verify_once(cx, presented, password).await;
    attempt.end(&done).await;
    done
}

const PASSWORD_NEEDED: &str = "is needed where you are not signed in, and for another address than that of before";

/// By what it was shown who asks.
enum Shown {
    /// Enough for the address that the user has.
    Session(SessionId),
    /// The hash of the password that was given.
    Password(Option<String>),
}

async fn verify_once(cx: Cx<'_>, presented: &SecretText, password: Option<&SecretText>) -> Result<User> {
    let refused = || Error::refused(WRONG_TOKEN);
    let found = mail_token::find(cx, MailTokenPurpose::VerifyEmail, presented).await?;
    let (token, user, hash) = found.ok_or_else(refused)?;
    cx.record.concerns(user.organization_id, ResourceType::User, user.id);
    let session = cx.actor.signed_in().filter(|caller| caller.user == user.id).and_then(|caller| caller.session());
    let shown = match (session.filter(|_| token.email == user.email), password) {
        (Some(session), _) => Shown::Session(session),
        (None, Some(password)) => {
            verify(cx, user.id, hash.clone(), "password", password).await?;
            Shown::Password(hash)
        }
        (None, None) => return Err(unacceptable("password", PASSWORD_NEEDED)),
    };
    audited(cx, async |tx| {
        let locked = users::lock_with_hash(tx, user.id).await?.filter(|(user, _)| user.status == UserStatus::Active);
        let (before, hash) = locked.ok_or_else(refused)?;
        let now = cx.services.clock.now();
        // As it is now: whoever has ended the session or changed the password meanwhile did so for a reason.
        match &shown {
            Shown::Session(id) if sessions::find_many(tx.conn().await?, user.id, now, &[*id]).await?.is_empty() => {
                return Err(Error::unauthenticated());
            }
            Shown::Session(_) if token.email != before.email => return Err(unacceptable("password", PASSWORD_NEEDED)),
            Shown::Password(verified) if *verified != hash => return Err(Error::conflict(CHANGED)),
            Shown::Session(_) | Shown::Password(_) => {}
        }
        // Another may have used it, or there is a newer one, since it was read.
        if !tokens::take(tx, &token).await? {
            return Err(refused());
        }
        let user = User {
            email: token.email.clone(),
            email_verified_at: Some(now),
            updated_at: now,
            version: before.version + 1,
            ..before.clone()
        };
        // One that was registered and never verified may be a stranger's.
        if before.email != user.email && users::holds_address(tx, user.id).await? {
            let message = templates::address_was_changed(&before.email);
            outbox::queue(cx, tx, user.organization_id, &message, outbox::THREE_DAYS).await?;
        }
        users::update(tx, &user).await?;
        users::claim_address(tx, &user).await.map_err(taken)?;
        tokens::end_others(tx, &user).await?;
        let entry = Entry::new(AuditAction::Verify, ResourceType::User)
            .on(&user.id)
            .with(Changes::between(&before, &user))
            .by(user.organization_id, user.id);
        Ok((user, entry))
    })
    .await
}
