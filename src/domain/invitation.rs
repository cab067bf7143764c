//! Invitations: how a user comes into an organization, and to a password.

use chrono::TimeDelta;
use serde_json::json;

use super::attempts::{Attempt, Guess, Sends, owner_is_here};
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::session::{self, Tokens};
use super::user::{NAME_LENGTH, TAKEN, lock_organization, taken};
use super::validation::Checks;
use super::{mail_token, outbox};
use crate::audit::{Changes, Entry};
use crate::crypto::{Purpose, SecretText};
use crate::identity::password::{self, PasswordHash};
use crate::mail::templates;
use crate::model::{
    AuditAction, Email, MailTokenPurpose, ManageUsers, OrganizationId, Read, ResourceType, Role, Timestamp, UserId,
    UserStatus,
};
use crate::store::invitation::{self as invitations, Invitation};
use crate::store::user::{self as users, User};
use crate::store::{mail_token as tokens, organization as organizations};

/// How long an invitation can be accepted.
const LIFETIME: TimeDelta = TimeDelta::days(7);
/// One text for a token that never was, one that was used, and one that came too late.
const WRONG_TOKEN: &str = "The invitation is not valid. Ask for a new one.";

/// The input of [`invite`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Invite {
    pub email: String,
    pub full_name: String,
    pub role: Role,
}

/// The input of [`accept`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Accept {
    pub token: SecretText,
    pub full_name: Option<String>,
    pub password: SecretText,
}

/// Invites somebody into the caller's organization, or once more who was invited there and has not accepted: then the new name
/// and role hold, and the invitation before this one has ended. Returns the link to accept it with, which is told once,
/// and sent by mail, unless the address has had enough of them. Whether the address belongs to a user of another organization,
/// only the mail says. An invitation reserves nothing: the address stays free for whoever it belongs to.
///
/// # Errors
/// Without permission, with wrong input, where the organization has a user with the address, where the caller has registered an
/// address and not verified it, or where the organization has invited too many.
pub async fn invite(cx: Cx<'_>, input: Invite) -> Result<(User, SecretText)> {
    let permit = cx.actor.require::<ManageUsers>()?;
    let mut checks = Checks::new();
    let email = checks.email("email", &input.email);
    let full_name = checks.line("fullName", &input.full_name, NAME_LENGTH);
    checks.finish()?;
    // Both were checked: nothing was found wrong.
    let (Some(email), Some(full_name)) = (email, full_name) else {
        return Err(Error::internal("a failed check was not noted"));
    };
    let sends = Sends::Invitation(permit.organization());
    let (attempt, is_sent) = Attempt::to_send(cx, sends, &email).await?;
    let done = invite_once(cx, (email, full_name, input.role), is_sent).await;
    attempt.end(&done).await;
    done
}

async fn invite_once(
    cx: Cx<'_>,
    (email, full_name, role): (Email, String, Role),
    is_sent: bool,
) -> Result<(User, SecretText)> {
    let (permit, reading) = (cx.actor.require::<ManageUsers>()?, cx.actor.require::<Read>()?);
    let token = cx.services.random.token();
    // After the #, which browsers send to no server, so that it stands in no log of one.
    let url = SecretText::from(format!("{}/accept-invitation#token={}", cx.services.links, token.expose()));
    let now = cx.services.clock.now();
    audited(cx, async |tx| {
        lock_organization(cx, tx, &permit).await?;
        // Anybody may register: only whoever reads the mails of an address has mails sent to others.
        if let Some(caller) = cx.actor.signed_in()
            && !users::holds_address(tx, caller.user).await?
        {
            return Err(Error::forbidden("Verify your email address before you invite somebody."));
        }
        let holder = users::find_by_email(tx.conn().await?, &email).await?.map(|(user, _)| user.organization_id);
        let is_elsewhere = holder.is_some_and(|organization| organization != permit.organization());
        let (user, changes) = match users::lock_member_by_email(tx, &permit, &email).await? {
            None => {
                let user = User {
                    id: cx.services.new_id(),
                    organization_id: permit.organization(),
                    email,
                    full_name,
                    role,
                    status: UserStatus::Invited,
                    email_verified_at: None,
                    last_sign_in_at: None,
                    created_at: now,
                    updated_at: now,
                    version: 1,
                };
                // Anybody may become somebody who invites: it counts for nothing yet, as an address that is registered.
                users::insert_unverified(tx, &user).await?;
                let changes = Changes::created(&user);
                (user, changes)
            }
            Some(before) if before.status == UserStatus::Invited => {
                let mut user = User { full_name, role, ..before.clone() };
                let changes = Changes::between(&before, &user);
                if !changes.is_empty() {
                    user.version += 1;
                    user.updated_at = now;
                    users::update(tx, &user).await?;
                }
                (user, changes)
            }
            Some(_) => return Err(Error::conflict(TAKEN)),
        };
        invitations::replace(tx, &new_invitation(cx, user.id, &token, now)).await?;
        let organization = organizations::find(tx.conn().await?, &reading).await?;
        let name = organization.as_ref().map_or("", |organization| organization.name.as_str());
        let message = if is_elsewhere {
            templates::invitation_beside_an_account(&user.email, name, &url)
        } else {
            templates::invitation(&user.email, name, &url)
        };
        outbox::queue_if(cx, tx, is_sent, user.organization_id, &message, outbox::THREE_DAYS).await?;
        let entry = Entry::new(AuditAction::Invite, ResourceType::User).on(&user.id).with(changes);
        Ok(((user, url), entry))
    })
    .await
}

/// Accepts an invitation: the user gets a password, is active from then on, and signed in. That does not show whose the address
/// is: the link was told to whoever invited, too. So it can be signed in with from then on only where the operator answers for who
/// invites, and where it is nobody else's; elsewhere a mail is sent to it, by whose link it is verified.
///
/// # Errors
/// `UNAUTHENTICATED`, with one text and after the same work, for every reason that lies in the token; `RATE_LIMITED` after too many
/// that were not good; wrong input otherwise.
pub async fn accept(cx: Cx<'_>, input: Accept) -> Result<Tokens> {
    let attempt = Attempt::begin(cx, Guess::Invitation).await?;
    let done = accept_once(cx, input).await;
    attempt.end(&done).await;
    done
}

async fn accept_once(cx: Cx<'_>, input: Accept) -> Result<Tokens> {
    let digests = cx.services.keys.digests(Purpose::Invitation, input.token.expose().as_bytes());
    let digests: Vec<_> = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
    let found = invitations::find(&mut cx.services.db.read().await?, &digests).await?;
    // Before anything is told of the token.
    let hash = cx.in_time(cx.services.passwords.hash(&input.password)).await??;
    let Some((invitation, invited)) = found else { return Err(Error::refused(WRONG_TOKEN)) };
    cx.record.concerns(invited.organization_id, ResourceType::User, invited.id);
    if invitation.expires_at <= cx.services.clock.now() {
        return Err(Error::refused(WRONG_TOKEN));
    }
    let mut checks = Checks::new();
    let full_name = input.full_name.and_then(|text| checks.line("fullName", &text, NAME_LENGTH));
    if let Some(objection) = password::objection(&input.password, &invited.email) {
        checks.fail("password", objection);
    }
    checks.finish()?;

    let (attempt, is_sent) = Attempt::to_send(cx, Sends::AcceptedInvitation, &invited.email).await?;
    let done = accept_checked(cx, (&invitation, &invited), full_name, hash, is_sent).await;
    match &done {
        Ok((_, true)) => attempt.was_none().await,
        done => attempt.end(done).await,
    }
    let (tokens, is_owner) = done?;
    if is_owner {
        owner_is_here(cx, &invited.email).await;
    }
    Ok(tokens)
}

/// Does it. Returns whether the user has the address to sign in with by that; no mail is needed then.
async fn accept_checked(
    cx: Cx<'_>,
    (invitation, invited): (&Invitation, &User),
    full_name: Option<String>,
    hash: PasswordHash,
    is_sent: bool,
) -> Result<(Tokens, bool)> {
    audited(cx, async |tx| {
        let locked = users::lock(tx, invited.id).await?.filter(|user| user.status == UserStatus::Invited);
        let before = locked.ok_or_else(|| Error::refused(WRONG_TOKEN))?;
        // Another may have accepted it, or there is a newer one, since it was read.
        if !invitations::take(tx, invitation).await? {
            return Err(Error::refused(WRONG_TOKEN));
        }
        let now = cx.services.clock.now();
        let user = User {
            full_name: full_name.unwrap_or_else(|| before.full_name.clone()),
            status: UserStatus::Active,
            updated_at: now,
            version: before.version + 1,
            ..before.clone()
        };
        users::update(tx, &user).await?;
        users::set_first_password_hash(tx, user.id, hash.as_str()).await?;
        let holder = users::find_by_email(tx.conn().await?, &user.email).await?;
        let is_anothers = holder.is_some_and(|(holder, _)| holder.id != user.id);
        let is_owner = !is_anothers && is_answered_for(cx, user.organization_id);
        if is_owner {
            users::claim_address(tx, &user).await.map_err(taken)?;
        } else {
            let (token, link) = mail_token::issue(cx, MailTokenPurpose::VerifyEmail, Some(user.id), &user.email);
            tokens::replace(tx, &token).await?;
            let message = templates::verify_invited(&user.email, &link);
            let lifetime = mail_token::lifetime(token.purpose);
            outbox::queue_if(cx, tx, is_sent && !is_anothers, user.organization_id, &message, lifetime).await?;
        }
        let (session, tokens) = session::begin(cx, tx, &user).await?;
        let entry = Entry::new(AuditAction::Verify, ResourceType::User)
            .on(&user.id)
            .with(Changes::between(&before, &user))
            .noting(json!({ "session": session.to_string() }))
            .by(user.organization_id, user.id);
        Ok(((tokens, is_owner), entry))
    })
    .await
}

/// Whether the operator answers for who invites into an organization: it is the operator's own, or nobody makes any.
fn is_answered_for(cx: Cx<'_>, organization: OrganizationId) -> bool {
    organization == cx.services.home || !cx.services.is_registration_open
}

fn new_invitation(cx: Cx<'_>, user_id: UserId, token: &SecretText, now: Timestamp) -> Invitation {
    let digest = cx.services.keys.digest(Purpose::Invitation, token.expose().as_bytes());
    Invitation { user_id, digest: digest.as_bytes().to_vec(), created_at: now, expires_at: now + LIFETIME }
}
