//! Tokens that come by mail: who has one reads the mails of its address.

use chrono::TimeDelta;

use super::context::Cx;
use super::error::Result;
use crate::crypto::{Purpose, SecretText};
use crate::model::{Email, MailTokenPurpose, UserId};
use crate::store::mail_token::{self as tokens, MailToken};
use crate::store::user::User;

/// How soon after one mail the next of its kind is sent to the same address: nobody's mailbox is to be filled.
pub(super) const PAUSE: TimeDelta = TimeDelta::minutes(1);

/// What a token is good for, and for how long.
#[derive(Clone, Copy)]
struct Kind {
    digest: Purpose,
    lifetime: TimeDelta,
    /// The page that reads it.
    page: &'static str,
}

fn kind(purpose: MailTokenPurpose) -> Kind {
    match purpose {
        MailTokenPurpose::VerifyEmail => {
            Kind { digest: Purpose::EmailVerification, lifetime: TimeDelta::hours(24), page: "verify-email" }
        }
        MailTokenPurpose::ResetPassword => {
            Kind { digest: Purpose::PasswordReset, lifetime: TimeDelta::hours(1), page: "reset-password" }
        }
    }
}

/// How long a token serves, and how long the mail with it is tried.
pub(super) fn lifetime(purpose: MailTokenPurpose) -> TimeDelta {
    kind(purpose).lifetime
}

/// A new token: its row, and the link that has it.
pub(super) fn issue(
    cx: Cx<'_>,
    purpose: MailTokenPurpose,
    user_id: Option<UserId>,
    email: &Email,
) -> (MailToken, SecretText) {
    let Kind { digest, lifetime, page } = kind(purpose);
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

/// The token that somebody presents, with its user, if it serves.
pub(super) async fn find(
    cx: Cx<'_>,
    purpose: MailTokenPurpose,
    presented: &SecretText,
) -> Result<Option<(MailToken, User)>> {
    let digests = cx.services.keys.digests(kind(purpose).digest, presented.expose().as_bytes());
    let digests: Vec<_> = digests.iter().map(|digest| digest.as_bytes().to_vec()).collect();
    let found = tokens::find(&mut cx.services.db.read().await?, purpose, &digests).await?;
    let now = cx.services.clock.now();
    Ok(found.filter(|(token, _)| token.expires_at > now))
}
