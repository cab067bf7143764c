//! Signing in, staying signed in, signing out.

use chrono::TimeDelta;
use serde_json::json;

use super::attempts::{Attempt, Guess};
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::{device, notification};
use crate::audit::Entry;
use crate::crypto::{Purpose, SecretText};
use crate::identity::password::{PasswordHash, Verdict};
use crate::identity::{Actor, Claims, SignedIn, SignedInBy};
use crate::model::{
    Access, AuditAction, AuditOutcome, Email, ManageOneself, Read, ResourceType, SessionId, Timestamp, UserStatus,
};
use crate::store::Tx;
use crate::store::session::{self as sessions, RefreshToken, Session};
use crate::store::user::{self as users, User};

/// How long a session lives that is not refreshed.
const SESSION_LIFETIME: TimeDelta = TimeDelta::days(30);
/// How long the token before the current one is answered with the current one again: the first answer may have been lost.
const RETRY_WINDOW: TimeDelta = TimeDelta::seconds(10);
/// One text for an unknown address, a wrong password and a user who may not sign in.
const WRONG_SIGN_IN: &str = "The email address or the password is wrong.";
const WRONG_REFRESH_TOKEN: &str = "The refresh token is not valid. Sign in again.";

/// What a signed-in client holds.
#[derive(Debug)]
pub struct Tokens {
    /// The token to send with each request.
    pub access: SecretText,
    /// When it expires.
    pub access_expires_at: Timestamp,
    /// The token to get the next ones with. It serves once.
    pub refresh: SecretText,
    /// When it expires.
    pub refresh_expires_at: Timestamp,
    /// Who is signed in.
    pub actor: Actor,
}

/// Signs a user in.
///
/// # Errors
/// `UNAUTHENTICATED`, with one text and after the same work, for every reason that lies in the input; `RATE_LIMITED` after too many
/// attempts, whether or not there is such a user.
pub async fn sign_in(cx: Cx<'_>, email: &str, password: &SecretText) -> Result<Tokens> {
    let attempt = match Attempt::begin(cx, Guess::SignIn(email)).await {
        Ok(attempt) => attempt,
        Err(refused) => {
            // The entry belongs in the log of whose password is guessed at.
            if let Some((user, _)) = find(cx, email).await? {
                cx.record.concerns(user.organization_id, ResourceType::User, user.id);
            }
            return Err(refused);
        }
    };
    // Of two sign-ins at once that replace a hash of an older kind, the second finds the new hash the second time.
    let done = match try_sign_in(cx, email, password).await {
        Ok(None) => try_sign_in(cx, email, password).await,
        done => done,
    };
    let done = done.and_then(|tokens| tokens.ok_or_else(|| Error::refused(WRONG_SIGN_IN)));
    attempt.end(&done).await;
    done
}

async fn find(cx: Cx<'_>, email: &str) -> Result<Option<(User, Option<String>)>> {
    match email.parse::<Email>() {
        Ok(email) => Ok(users::find_by_email(&mut cx.services.db.read().await?, &email).await?),
        Err(_) => Ok(None),
    }
}

/// `None` where the password's hash was replaced while the password was compared with it.
async fn try_sign_in(cx: Cx<'_>, email: &str, password: &SecretText) -> Result<Option<Tokens>> {
    let known = find(cx, email).await?;
    let hash = known.as_ref().and_then(|(_, hash)| hash.clone()).map(PasswordHash::from);
    let verdict = cx.in_time(cx.services.passwords.verify(password, hash)).await??;
    let Some((user, verified)) = known else { return Err(Error::refused(WRONG_SIGN_IN)) };
    cx.record.concerns(user.organization_id, ResourceType::User, user.id);
    if verdict == Verdict::NoMatch || user.status != UserStatus::Active {
        return Err(Error::refused(WRONG_SIGN_IN));
    }
    let upgraded = match verdict {
        Verdict::MatchNeedsUpgrade => Some(cx.in_time(cx.services.passwords.hash(password)).await??),
        Verdict::Match | Verdict::NoMatch => None,
    };

    let mut is_replaced = false;
    let done = audited(cx, async |tx| {
        // Again, under lock: whoever suspended the user or reset the password meanwhile has ended all sessions but this one.
        let locked = users::lock_with_hash(tx, user.id).await?.filter(|(user, _)| user.status == UserStatus::Active);
        let (user, current) = locked.ok_or_else(|| Error::refused(WRONG_SIGN_IN))?;
        is_replaced = current != verified;
        if is_replaced {
            return Err(Error::refused(WRONG_SIGN_IN));
        }
        if let Some(hash) = upgraded {
            users::set_password_hash(tx, user.id, hash.as_str(), cx.services.clock.now()).await?;
        }
        let (session, tokens) = begin(cx, tx, &user).await?;
        let entry = Entry::new(AuditAction::SignIn, ResourceType::Session).on(&session);
        Ok((tokens, entry.by(user.organization_id, user.id)))
    })
    .await;
    if is_replaced { Ok(None) } else { done.map(Some) }
}

/// Begins a session of a user who is locked already and has just shown who it is. One who has signed in before, but not from this device,
/// is told.
pub(super) async fn begin(cx: Cx<'_>, tx: &mut Tx, user: &User) -> Result<(SessionId, Tokens)> {
    let now = cx.services.clock.now();
    let refresh = cx.services.random.token();
    let session = Session {
        id: cx.services.new_id(),
        organization_id: user.organization_id,
        user_id: user.id,
        generation: 1,
        ip_address: cx.origin.ip_address.map(|address| address.to_string()),
        user_agent: cx.origin.user_agent.clone(),
        created_at: now,
        last_used_at: now,
        expires_at: now + SESSION_LIFETIME,
        revoked_at: None,
    };
    let is_known = device::note(cx, tx, user.id).await?;
    if !is_known && user.last_sign_in_at.is_some() {
        let notice = notification::of_new_device(cx, user.id, &session.id);
        notification::notify(cx, tx, user.organization_id, &notice).await?;
    }
    users::set_last_sign_in(tx, user.id, now).await?;
    sessions::insert(tx, &session, &token_row(cx, &session, &refresh)).await?;
    Ok((session.id, tokens(cx, &session, user, refresh)))
}

/// Rotates a refresh token. A token that was used before ends its session, unless it is the one before the current one and
/// comes back within seconds: then it gets the current one again.
///
/// # Errors
/// `UNAUTHENTICATED` for every reason that lies in the token; `RATE_LIMITED` after too many that were not good.
pub async fn refresh(cx: Cx<'_>, presented: &SecretText) -> Result<Tokens> {
    let attempt = Attempt::begin(cx, Guess::RefreshToken).await?;
    let done = rotate(cx, presented).await;
    attempt.end(&done).await;
    done
}

async fn rotate(cx: Cx<'_>, presented: &SecretText) -> Result<Tokens> {
    let token = find_token(cx, presented).await?.ok_or_else(|| Error::refused(WRONG_REFRESH_TOKEN))?;
    audited(cx, async |tx| {
        let now = cx.services.clock.now();
        let locked = sessions::lock_with_user(tx, token.session_id).await?;
        let (session, user) = locked.ok_or_else(|| Error::refused(WRONG_REFRESH_TOKEN))?;
        cx.record.concerns(session.organization_id, ResourceType::Session, session.id);
        if user.status != UserStatus::Active || !session.is_alive(now) {
            return Err(Error::refused(WRONG_REFRESH_TOKEN));
        }
        let entry = Entry::new(AuditAction::Refresh, ResourceType::Session)
            .on(&session.id)
            .by(session.organization_id, session.user_id);
        let successor = cx.services.keys.refresh_successor(presented);
        if token.generation == session.generation {
            let session = Session {
                generation: session.generation + 1,
                ip_address: cx.origin.ip_address.map(|address| address.to_string()),
                user_agent: cx.origin.user_agent.clone(),
                last_used_at: now,
                expires_at: now + SESSION_LIFETIME,
                ..session
            };
            sessions::rotate(tx, &session, &token_row(cx, &session, &successor)).await?;
            return Ok((Ok(tokens(cx, &session, &user, successor)), entry));
        }
        if token.generation == session.generation - 1 {
            let issued_at = sessions::issued_at(tx, session.id, session.generation).await?;
            // Before it was issued is as long ago as after it: a clock that was set back must not keep the window open.
            if issued_at.is_some_and(|issued_at| (now - issued_at).abs() <= RETRY_WINDOW) {
                return Ok((Ok(tokens(cx, &session, &user, successor)), entry.noting(json!({ "retry": true }))));
            }
        }
        sessions::revoke(tx, session.id, now).await?;
        let code = super::Code::Unauthenticated.as_str();
        let entry = entry
            .ended(AuditOutcome::Denied, code)
            .changing_access()
            .noting(json!({ "reuse": true, "sessionsEnded": 1 }));
        // An error that lasts: the session is ended by it.
        Ok((Err(Error::refused(WRONG_REFRESH_TOKEN)), entry))
    })
    .await?
}

/// Signs out: the session of the refresh token where one is given, else the caller's; with `everywhere` all of that user's,
/// where the token still serves. One that does not may have been found by anybody, and ends its own session at most.
/// Returns whether a session was ended.
///
/// # Errors
/// Where there is neither a token nor a signed-in caller.
pub async fn sign_out(cx: Cx<'_>, presented: Option<&SecretText>, everywhere: bool) -> Result<bool> {
    let (id, generation) = match presented {
        Some(presented) => find_token(cx, presented).await?.map(|token| (token.session_id, token.generation)).unzip(),
        None => (Some(cx.actor.signed_in().and_then(|user| user.session()).ok_or_else(Error::unauthenticated)?), None),
    };
    let ended = audited(cx, async |tx| {
        let entry = Entry::new(AuditAction::SignOut, ResourceType::Session);
        let Some(id) = id else { return Ok((0, entry)) };
        let Some((session, _)) = sessions::lock_with_user(tx, id).await? else { return Ok((0, entry)) };
        let now = cx.services.clock.now();
        let is_current = generation.is_none_or(|generation| generation == session.generation);
        let everywhere = everywhere && is_current && session.is_alive(now);
        let ended = if everywhere {
            sessions::revoke_all(tx, session.user_id, now).await?
        } else {
            usize::from(sessions::revoke(tx, session.id, now).await?)
        };
        let mut entry = entry.on(&session.id).by(session.organization_id, session.user_id);
        // Only then: anybody may call this, and forgetting costs every signed-in caller a look into the database.
        if ended > 0 {
            entry = entry.changing_access();
        }
        Ok((ended, entry.noting(json!({ "everywhere": everywhere, "sessionsEnded": ended }))))
    })
    .await?;
    Ok(ended > 0)
}

/// Ends one of the caller's sessions.
///
/// # Errors
/// Where nobody has signed in, or the caller has no such session that is alive.
pub async fn revoke(cx: Cx<'_>, id: SessionId) -> Result<()> {
    cx.actor.require::<ManageOneself>()?;
    let caller = cx.actor.signed_in().ok_or_else(Error::unauthenticated)?;
    let no_such_session = || Error::not_found("session");
    // Before it is locked: that of another is none of the caller's business.
    if find_many(cx, &[id]).await?.is_empty() {
        return Err(no_such_session());
    }
    audited(cx, async |tx| {
        let now = cx.services.clock.now();
        let locked = sessions::lock_with_user(tx, id).await?;
        let own = locked.filter(|(session, _)| session.user_id == caller.user && session.is_alive(now));
        let (session, _) = own.ok_or_else(no_such_session)?;
        sessions::revoke(tx, session.id, now).await?;
        Ok(((), Entry::new(AuditAction::Revoke, ResourceType::Session).on(&session.id).changing_access()))
    })
    .await
}

/// Where the caller is signed in, newest first.
///
/// # Errors
/// Where nobody is signed in.
pub async fn of_viewer(cx: Cx<'_>) -> Result<Vec<Session>> {
    cx.actor.require::<Read>()?;
    let signed_in = cx.actor.signed_in().ok_or_else(Error::unauthenticated)?;
    let now = cx.services.clock.now();
    Ok(sessions::find_alive(&mut cx.services.db.read().await?, signed_in.user, now).await?)
}

/// The caller's own sessions among `ids` that are alive, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[SessionId]) -> Result<Vec<Session>> {
    cx.actor.require::<Read>()?;
    let signed_in = cx.actor.signed_in().ok_or_else(Error::unauthenticated)?;
    let now = cx.services.clock.now();
    Ok(sessions::find_many(&mut cx.services.db.read().await?, signed_in.user, now, ids).await?)
}

async fn find_token(cx: Cx<'_>, presented: &SecretText) -> Result<Option<RefreshToken>> {
    let digests = cx.services.keys.digests(Purpose::RefreshToken, presented.expose().as_bytes());
    let digests: Vec<_> = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
    Ok(sessions::find_token(&mut cx.services.db.read().await?, &digests).await?)
}

fn token_row(cx: Cx<'_>, session: &Session, token: &SecretText) -> RefreshToken {
    let digest = cx.services.keys.digest(Purpose::RefreshToken, token.expose().as_bytes());
    RefreshToken {
        id: cx.services.new_id(),
        session_id: session.id,
        digest: digest.as_bytes().to_vec(),
        generation: session.generation,
        created_at: session.last_used_at,
    }
}

fn tokens(cx: Cx<'_>, session: &Session, user: &User, refresh: SecretText) -> Tokens {
    let claims = Claims { user: user.id, session: session.id };
    let (access, access_expires_at) = cx.services.authenticator.tokens().issue(claims, cx.services.clock.now());
    let access_rights = Access::new(user.organization_id, user.role);
    Tokens {
        access,
        access_expires_at,
        refresh,
        refresh_expires_at: session.expires_at,
        actor: Actor::User(SignedIn { user: user.id, by: SignedInBy::Session(session.id), access: access_rights }),
    }
}
