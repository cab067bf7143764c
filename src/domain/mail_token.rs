//! Tokens that come by mail: who has one reads the mails of its address.

use chrono::TimeDelta;

use super::context::Cx;
use super::error::Result;
use crate::crypto::{Purpose, SecretText};
use crate::model::{Email, MailTokenPurpose, UserId};
use crate::store::mail_token::{self as tokens, MailToken};
use crate::store::user::User;

/// One text for a token that never was, one that was used, and one that came too late.
pub(super) const WRONG_TOKEN: &str = "The link is not valid any more. Ask for a new one.";

/// What a token is good for, and for how long.
#[derive(Clone, Copy)]
struct Terms {
    digest: Purpose,
    lifetime: TimeDelta,
    /// The page that reads it.
    page: &'static str,
}

fn terms(purpose: MailTokenPurpose) -> Terms {
    match purpose {
        MailTokenPurpose::VerifyEmail => {
            Terms { digest: Purpose::EmailVerification, lifetime: TimeDelta::hours(24), page: "verify-email" }
        }
        MailTokenPurpose::ResetPassword => {
            Terms { digest: Purpose::PasswordReset, lifetime: TimeDelta::hours(1), page: "reset-password" }
        }
    }
}

/// How long a token serves, and how long the mail with it is tried.
pub(super) fn lifetime(purpose: MailTokenPurpose) -> TimeDelta {
    terms(purpose).lifetime
}

/// A new token: its row, and the link that has it.
pub(super) fn issue(
    cx: Cx<'_>,
    purpose: MailTokenPurpose,
    user_id: Option<UserId>,
    email: &Email,
) -> (MailToken, SecretText) {
    let Terms { digest, lifetime, page } = terms(purpose);
    let token = cx.services.random.token();
    let now = cx.services.clock.now();
    let row = MailToken {
        digest: cx.services.keys.digest(digest, token.expose().as_bytes()).as_bytes().to_vec(),
        purpose,
        user_id,
        email: email.clone(),
        created_at: now,
        expires_at: now + lifetime,
    };
    // After the #, which browsers send to no server, so that it stands in no log of one.
    let link = SecretText::from([&cx.services.links, "/", page, "#token=", token.expose()].concat());
    (row, link)
}

/// The token that somebody presents, with its user and the hash of the user's password, if it serves.
pub(super) async fn find(
    cx: Cx<'_>,
    purpose: MailTokenPurpose,
    presented: &SecretText,
) -> Result<Option<(MailToken, User, Option<String>)>> {
    let digests = cx.services.keys.digests(terms(purpose).digest, presented.expose().as_bytes());
    let digests: Vec<_> = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
    let found = tokens::find(&mut cx.services.db.read().await?, purpose, &digests).await?;
    let now = cx.services.clock.now();
    Ok(found.filter(|(token, ..)| token.expires_at > now))
}
