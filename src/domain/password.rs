//! Passwords: a forgotten one is replaced by a link that comes by mail, a known one by whoever knows it.

use serde_json::json;

use super::attempts::{Attempt, Guess, Sends, owner_is_here};
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, FieldError, Result};
use super::mail_token::WRONG_TOKEN;
use super::validation::Checks;
use super::{mail_token, outbox};
use crate::audit::Entry;
use crate::crypto::SecretText;
use crate::identity::SignedIn;
use crate::identity::password::{PasswordHash, Verdict, objection};
use crate::mail::templates;
use crate::model::{
    AuditAction, Denied, Email, MailTokenPurpose, ManageOneself, ResourceType, SessionId, UserId, UserStatus,
};
use crate::store::Tx;
use crate::store::mail_token::{self as tokens, MailToken};
use crate::store::session as sessions;
use crate::store::user::{self as users, User};

pub(super) const CHANGED: &str = "The password was changed in the meantime.";

/// Sends a link for a new password, where somebody signs in with the address, and where it has not had enough of them. Who asks does
/// not learn which: the answer is the same, and so is the work, down to what is written.
///
/// # Errors
/// Where it is no address, or too many links were asked for from one network.
pub async fn request_reset(cx: Cx<'_>, email: &str) -> Result<()> {
    let mut checks = Checks::new();
    let email = checks.email("email", email);
    checks.finish()?;
    let email = email.ok_or_else(|| Error::internal("a failed check was not noted"))?;
    let (attempt, is_wanted) = Attempt::to_send(cx, Sends::ResetLink, &email).await?;
    let done = send_reset(cx, &email, is_wanted).await;
    attempt.end(&done).await;
    done
}

async fn send_reset(cx: Cx<'_>, email: &Email, is_wanted: bool) -> Result<()> {
    let found = users::find_by_email(&mut cx.services.db.read().await?, email).await?;
    let user = found.filter(|(user, hash)| user.status == UserStatus::Active && hash.is_some()).map(|(user, _)| user);
    if let Some(user) = &user {
        cx.record.concerns(user.organization_id, ResourceType::User, user.id);
    }
    // Nobody has this one: the same is asked of the database for it.
    let id = user.as_ref().map_or_else(|| cx.services.new_id(), |user| user.id);
    let organization = user.as_ref().map_or(cx.services.home, |user| user.organization_id);
    audited(cx, async |tx| {
        let locked = users::lock(tx, id).await?;
        let is_sent = is_wanted && locked.is_some_and(|user| user.status == UserStatus::Active);
        let (token, link) = mail_token::issue(cx, MailTokenPurpose::ResetPassword, is_sent.then_some(id), email);
        // Beside those before it: whoever asks for another in the owner's place does not end the owner's.
        tokens::add(tx, &token).await?;
        let message = templates::reset_password(email, &link);
        outbox::queue_if(cx, tx, is_sent, organization, &message, mail_token::lifetime(token.purpose)).await?;
        let mut entry = Entry::new(AuditAction::Other, ResourceType::User);
        if user.is_some() {
            entry = entry.on(&id).in_log_of(organization);
        }
        Ok(((), entry))
    })
    .await
}

/// Sets a new password by a token that came by mail. All of the user's sessions and links end, and where it is done is known as a
/// place of the user's: nobody elsewhere keeps them from signing in there.
///
/// # Errors
/// `UNAUTHENTICATED`, with one text and after the same work, for every reason that lies in the token; `RATE_LIMITED` after too many
/// that were not good; wrong input otherwise.
pub async fn reset(cx: Cx<'_>, presented: &SecretText, new_password: &SecretText) -> Result<()> {
    let attempt = Attempt::begin(cx, Guess::MailToken).await?;
    let done = reset_once(cx, presented, new_password).await;
    attempt.end(&done).await;
    done
}

async fn reset_once(cx: Cx<'_>, presented: &SecretText, new_password: &SecretText) -> Result<()> {
    let found = mail_token::find(cx, MailTokenPurpose::ResetPassword, presented).await?;
    // Before anything is told of the token.
    let hash = cx.in_time(cx.services.passwords.hash(new_password)).await??;
    let (token, user, _) = found.ok_or_else(|| Error::refused(WRONG_TOKEN))?;
    cx.record.concerns(user.organization_id, ResourceType::User, user.id);
    check("newPassword", new_password, &user)?;
    audited(cx, async |tx| {
        let locked = users::lock(tx, user.id).await?.filter(|user| may_use(&token, user));
        let user = locked.ok_or_else(|| Error::refused(WRONG_TOKEN))?;
        // Another may have used it, or one beside it, since it was read.
        if !tokens::take(tx, &token).await? {
            return Err(Error::refused(WRONG_TOKEN));
        }
        let now = cx.services.clock.now();
        users::set_password_hash(tx, user.id, hash.as_str(), now).await?;
        tokens::end_others(tx, &user).await?;
        let ended = sessions::revoke_all(tx, user.id, now).await?;
        let message = templates::password_was_reset(&user.email);
        outbox::queue(cx, tx, user.organization_id, &message, outbox::THREE_DAYS).await?;
        let entry = Entry::new(AuditAction::Update, ResourceType::User)
            .on(&user.id)
            .noting(json!({ "password": "reset", "sessionsEnded": ended }))
            .by(user.organization_id, user.id)
            .changing_access();
        Ok(((), entry))
    })
    .await?;
    owner_is_here(cx, &token.email).await;
    Ok(())
}

/// Whether the user may set a password by the token: who is suspended may not, nor who has another address by now.
fn may_use(token: &MailToken, user: &User) -> bool {
    user.status == UserStatus::Active && user.email == token.email
}

/// Sets a new password, by the one that holds. All other sessions of the caller end.
///
/// # Errors
/// Where nobody has signed in, where the password that holds is another, or where the new one is not accepted.
pub async fn change(cx: Cx<'_>, current: &SecretText, new_password: &SecretText) -> Result<()> {
    let (caller, session) = signed_in_here(cx)?;
    let (user, verified) = verify_own(cx, caller, "currentPassword", current).await?;
    check("newPassword", new_password, &user)?;
    let hash = cx.in_time(cx.services.passwords.hash(new_password)).await??;
    audited(cx, async |tx| {
        let user = lock_verified(tx, &user, verified.as_deref()).await?;
        let now = cx.services.clock.now();
        users::set_password_hash(tx, user.id, hash.as_str(), now).await?;
        tokens::end_others(tx, &user).await?;
        let ended = sessions::revoke_others(tx, user.id, session, now).await?;
        let message = templates::password_was_changed(&user.email);
        outbox::queue(cx, tx, user.organization_id, &message, outbox::THREE_DAYS).await?;
        let entry = Entry::new(AuditAction::Update, ResourceType::User)
            .on(&user.id)
            .noting(json!({ "password": "changed", "sessionsEnded": ended }))
            .changing_access();
        Ok(((), entry))
    })
    .await
}

/// The caller and the session: what concerns oneself is done by whoever has signed in.
pub(super) fn signed_in_here(cx: Cx<'_>) -> Result<(SignedIn, SessionId)> {
    let caller = cx.actor.signed_in().ok_or_else(Error::unauthenticated)?;
    let session = caller.session().ok_or(Denied::ApiKey)?;
    Ok((caller, session))
}

/// The caller, who gives the password once more, and its hash.
pub(super) async fn verify_own(
    cx: Cx<'_>,
    caller: SignedIn,
    field: &'static str,
    password: &SecretText,
) -> Result<(User, Option<String>)> {
    let permit = cx.actor.require::<ManageOneself>()?;
    let found = users::find_with_hash(&mut cx.services.db.read().await?, &permit, caller.user).await?;
    let (user, hash) = found.ok_or_else(Error::unauthenticated)?;
    cx.record.concerns(user.organization_id, ResourceType::User, user.id);
    verify(cx, user.id, hash.clone(), field, password).await?;
    Ok((user, hash))
}

/// Compares a password with the hash of a user who is known otherwise: it can be guessed at as well as at a sign-in.
pub(super) async fn verify(
    cx: Cx<'_>,
    user: UserId,
    hash: Option<String>,
    field: &'static str,
    password: &SecretText,
) -> Result<()> {
    let attempt = Attempt::begin(cx, Guess::OwnPassword(user)).await?;
    let verdict = cx.in_time(cx.services.passwords.verify(password, hash.map(PasswordHash::from))).await;
    let done = match verdict {
        Ok(Ok(Verdict::NoMatch)) => Err(unacceptable(field, "is not the password")),
        Ok(Ok(Verdict::Match | Verdict::MatchNeedsUpgrade)) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(error),
    };
    attempt.end(&done).await;
    done
}

/// Locks the caller, whose password was verified: it may have been changed since.
pub(super) async fn lock_verified(tx: &mut Tx, user: &User, verified: Option<&str>) -> Result<User> {
    let locked = users::lock_with_hash(tx, user.id).await?;
    let (user, hash) = locked.ok_or_else(Error::unauthenticated)?;
    if hash.as_deref() == verified { Ok(user) } else { Err(Error::conflict(CHANGED)) }
}

fn check(field: &'static str, new_password: &SecretText, user: &User) -> Result<()> {
    objection(new_password, &user.email).map_or(Ok(()), |message| Err(unacceptable(field, message)))
}

pub(super) fn unacceptable(field: &'static str, message: &'static str) -> Error {
    Error::bad_input(vec![FieldError { path: vec!["input", field], message: message.into() }])
}
