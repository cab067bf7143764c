//! What users change of themselves: name and address; and that they leave.

use serde_json::json;

use super::attempts::{Attempt, Sends};
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::password::{lock_verified, signed_in_here, verify_own};
use super::user::{LAST_ADMIN, NAME_LENGTH, is_active_admin};
use super::validation::{Checks, Patch};
use super::{mail_token, outbox};
use crate::audit::{Changes, Entry};
use crate::crypto::SecretText;
use crate::mail::templates;
use crate::model::{AuditAction, Email, MailTokenPurpose, ManageOneself, Read, ResourceType, UserId};
use crate::store::user::{self as users, User};
use crate::store::{Tx, mail_token as tokens, organization as organizations, session as sessions};

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub full_name: Patch<String>,
    pub email: Patch<String>,
    pub expected_version: Option<i32>,
}

/// Changes the caller's name, and asks for another address, which holds once it is verified: a link is sent to it, and a notice to
/// the one before. The address that is waited for, given once more, gets the mail once more, unless it has had enough of them. Whether
/// it belongs to somebody already, only the mail says.
///
/// # Errors
/// Where nobody has signed in, with wrong input, where the user is not at the expected version, or has asked for too many links.
pub async fn update(cx: Cx<'_>, input: Update) -> Result<User> {
    let (caller, _) = signed_in_here(cx)?;
    cx.actor.require::<ManageOneself>()?;
    let mut checks = Checks::new();
    let full_name = checks.required("fullName", input.full_name, None, |checks, text| {
        checks.line("fullName", &text, NAME_LENGTH).map(Some)
    });
    let wanted = checks.required("email", input.email, None, |checks, text| checks.email("email", &text).map(Some));
    checks.finish()?;
    // Before anything is locked: Redis may be asked.
    let attempt = match &wanted {
        Some(wanted) if !is_theirs(cx, caller.user, wanted).await? => {
            Some(Attempt::to_send(cx, Sends::AddressLink(caller.user), wanted).await?)
        }
        _ => None,
    };
    let (attempt, is_sent) = attempt.unzip();
    let done = change(cx, caller.user, (full_name, wanted), input.expected_version, is_sent).await;
    if let Some(attempt) = attempt {
        attempt.end(&done).await;
    }
    done
}

/// Whether no mail is needed for an address, since the user has it: asking for it takes another wish back.
fn has_verified(user: &User, address: &Email) -> bool {
    user.email == *address && user.email_verified_at.is_some()
}

async fn is_theirs(cx: Cx<'_>, user: UserId, address: &Email) -> Result<bool> {
    let user = users::find(&mut cx.services.db.read().await?, &cx.actor.require::<Read>()?, user).await?;
    Ok(user.is_some_and(|user| has_verified(&user, address)))
}

/// Does it; `is_sent` says whether the address gets a mail, and is nothing where it was not to be asked.
async fn change(
    cx: Cx<'_>,
    id: UserId,
    (full_name, wanted): (Option<String>, Option<Email>),
    expected_version: Option<i32>,
    is_sent: Option<bool>,
) -> Result<User> {
    audited(cx, async |tx| {
        let before = users::lock(tx, id).await?.ok_or_else(Error::unauthenticated)?;
        if expected_version.is_some_and(|version| version != before.version) {
            return Err(Error::conflict("The user is not at the expected version. Read it again."));
        }
        let full_name = full_name.unwrap_or_else(|| before.full_name.clone());
        let mut user = User { full_name, ..before.clone() };
        let changes = Changes::between(&before, &user);
        if !changes.is_empty() {
            user.version += 1;
            user.updated_at = cx.services.clock.now();
            users::update(tx, &user).await?;
        }
        let entry = Entry::new(AuditAction::Update, ResourceType::User).on(&user.id).with(changes);
        let Some(wanted) = wanted else { return Ok((user, entry)) };
        if has_verified(&user, &wanted) {
            // It is that already; another that is waited for is not wanted any more.
            tokens::end_others(tx, &user).await?;
            return Ok((user, entry));
        }
        let is_sent = is_sent.ok_or_else(|| Error::conflict("The address was changed in the meantime."))?;
        ask_for_address(cx, tx, &user, &wanted, is_sent).await?;
        Ok((user, entry.noting(json!({ "requestedEmail": wanted.as_str() }))))
    })
    .await
}

/// Sends the mails that come before another address holds.
async fn ask_for_address(cx: Cx<'_>, tx: &mut Tx, user: &User, wanted: &Email, is_sent: bool) -> Result<()> {
    let (token, link) = mail_token::issue(cx, MailTokenPurpose::VerifyEmail, Some(user.id), wanted);
    tokens::replace(tx, &token).await?;
    let message = match holder(tx, wanted).await? {
        Some(other) if other != user.id => templates::address_is_in_use(wanted),
        _ => templates::verify_new_address(wanted, &link),
    };
    let lifetime = mail_token::lifetime(token.purpose);
    outbox::queue_if(cx, tx, is_sent, user.organization_id, &message, lifetime).await?;
    // One that was registered and never verified may be a stranger's.
    if user.email != *wanted && users::holds_address(tx, user.id).await? {
        let message = templates::address_is_to_change(&user.email);
        outbox::queue(cx, tx, user.organization_id, &message, outbox::THREE_DAYS).await?;
    }
    Ok(())
}

/// Who signs in with an address.
async fn holder(tx: &mut Tx, email: &Email) -> Result<Option<UserId>> {
    Ok(users::find_by_email(tx.conn().await?, email).await?.map(|(user, _)| user.id))
}

/// Deletes the caller, who gives the password once more. Returns who that was.
///
/// # Errors
/// Where nobody has signed in, where the password is another, or where the organization would be left without an active ADMIN.
pub async fn delete(cx: Cx<'_>, password: &SecretText) -> Result<UserId> {
    let (caller, _) = signed_in_here(cx)?;
    let permit = cx.actor.require::<ManageOneself>()?;
    let (user, verified) = verify_own(cx, caller, "password", password).await?;
    let deleted = audited(cx, async |tx| {
        // The organization before its users: of two ADMINs who leave at once, the second sees that the first has left.
        organizations::lock(tx, &permit).await?;
        let user = lock_verified(tx, &user, verified.as_deref()).await?;
        if is_active_admin(&user) && !users::has_other_admin(tx, &permit, user.id).await? {
            return Err(Error::conflict(LAST_ADMIN));
        }
        let now = cx.services.clock.now();
        let ended = sessions::revoke_all(tx, user.id, now).await?;
        let revoked = users::leave(tx, &permit, user.id, now).await?;
        let revoked: Vec<_> = revoked.iter().map(ToString::to_string).collect();
        let entry = Entry::new(AuditAction::Delete, ResourceType::User).on(&user.id).changing_access();
        let noted = json!({ "sessionsEnded": ended, "apiKeysRevoked": revoked });
        Ok((user.id, entry.with(Changes::deleted(&user)).noting(noted)))
    })
    .await?;
    cx.services.workers.forget(|known| known.user == deleted);
    Ok(deleted)
}
