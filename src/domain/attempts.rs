//! What guards against guessing: how often a sign-in, an invitation, a refresh token or an API key may be tried in vain.
//!
//! An attempt is counted before it is made, so that of many at once no more come through, and given back where it succeeds. Each
//! field of a request is an attempt of its own. What is refused is not even looked at: neither the answer nor its time says
//! whether it would have been right, or whether there is anything to be right about.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::MutexGuard;
use unicode_normalization::UnicodeNormalization as _;

use super::context::Cx;
use super::error::{Code, Error, Result};
use super::quota::Rates;
use crate::limits::{Answer, Bucket, Policy, Subject, WhileAway};
use crate::model::Email;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// For one email address from one network: five at once, then one in 3 minutes, after 15 one in 12, after 30 one in 48.
const FROM_ONE: [Policy; 3] = [
    Policy { name: "sign-in-pair-1", limit: 5, window: MINUTE.saturating_mul(15) },
    Policy { name: "sign-in-pair-2", limit: 15, window: HOUR.saturating_mul(3) },
    Policy { name: "sign-in-pair-3", limit: 30, window: DAY },
];
/// For one email address from wherever its owner has not signed in of late: after 20 one in 3 minutes, after 100 one in a quarter
/// of an hour. That is the longest that others can keep an owner waiting who comes from a new place.
const FROM_ANYWHERE: [Policy; 2] = [
    Policy { name: "sign-in-email-1", limit: 20, window: HOUR },
    Policy { name: "sign-in-email-2", limit: 100, window: DAY },
];
/// Full, it says that the owner of an email address has signed in from a network.
const KNOWN: Policy = Policy { name: "sign-in-known", limit: 1, window: DAY.saturating_mul(30) };

const LOCKED: &str = "There were too many attempts to sign in. Try again later.";
const TOO_MANY: &str = "There were too many attempts. Try again later.";

/// What may be guessed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guess<'a> {
    /// The password of whoever has this email address.
    SignIn(&'a str),
    /// An invitation's token.
    Invitation,
    /// A refresh token.
    RefreshToken,
    /// An API key.
    ApiKey,
}

/// An attempt, which counts as one in vain until it is said to have succeeded.
pub(super) struct Attempt<'a> {
    cx: Cx<'a>,
    /// What it was counted in: the address's bucket, and of a sign-in those of the email address.
    counted: Vec<Bucket>,
    sign_in: Option<(SignIn, Turn<'a>)>,
}

/// What changes once a sign-in succeeds.
struct SignIn {
    /// Full where its owner has signed in from the network.
    known: Bucket,
    forgiven: Vec<Bucket>,
}

/// Whose turn it is to sign in as one email address from one network.
type Turn<'a> = MutexGuard<'a, ()>;

impl<'a> Attempt<'a> {
    /// Counts an attempt. Commands, which come from no address, may guess.
    ///
    /// # Errors
    /// `RATE_LIMITED` where there were too many.
    pub(super) async fn begin(cx: Cx<'a>, guess: Guess<'_>) -> Result<Self> {
        let mut attempt = Self { cx, counted: Vec::new(), sign_in: None };
        let Some(address) = cx.origin.ip_address else { return Ok(attempt) };
        let limits = &cx.services.limits;
        attempt.counted.push(limits.bucket(Subject::Address(address), per_address(guess, &cx.services.rates)));
        if let Guess::SignIn(email) = guess {
            attempt.count_email(&canonical(email), address).await?;
        }
        match take(cx, &attempt.counted, 1).await?.retry_after {
            None => Ok(attempt),
            Some(wait) => {
                let message = if attempt.sign_in.is_some() { LOCKED } else { TOO_MANY };
                Err(Error::rate_limited(message, wait))
            }
        }
    }

    async fn count_email(&mut self, email: &str, address: IpAddr) -> Result<()> {
        let limits = &self.cx.services.limits;
        let from_one = FROM_ONE.map(|policy| limits.bucket(Subject::EmailFrom(email, address), policy));
        let from_anywhere = FROM_ANYWHERE.map(|policy| limits.bucket(Subject::Email(email), policy));
        let known = limits.bucket(Subject::EmailFrom(email, address), KNOWN);
        self.counted.extend(from_one);
        // One after the other: counted all at once, those of an owner would look like guesses until the first has succeeded.
        let turn = self.cx.in_time(limits.turn(&known)).await?;
        // Whoever tries many passwords from many places does not shut out the owner where the owner is known to be.
        let is_known = take(self.cx, &[known], 0).await?.standings.iter().any(|standing| standing.remaining() == 0);
        if !is_known {
            self.counted.extend(from_anywhere);
        }
        self.sign_in = Some((SignIn { known, forgiven: [&from_one[..], &from_anywhere].concat() }, turn));
        Ok(())
    }

    /// It was no guess. For the email address of a sign-in all attempts before it are forgiven; for the address this one alone, or
    /// who may sign in could go on guessing at others.
    pub(super) async fn succeeded(self) {
        let limits = &self.cx.services.limits;
        limits.give_back(self.counted.get(..1).unwrap_or_default()).await;
        if let Some((SignIn { known, forgiven }, _turn)) = self.sign_in {
            limits.empty(&forgiven).await;
            limits.empty(&[known]).await;
            // Filled, from now on. Where it cannot be, the next sign-in does it.
            let _ = take(self.cx, &[known], 1).await;
        }
    }

    /// What it came to. Where the server could not do it, nobody has learned anything.
    pub(super) async fn end<T>(self, done: &Result<T>) {
        match done {
            Ok(_) => self.succeeded().await,
            Err(error) if error.code() == Code::ServiceUnavailable => {
                self.cx.services.limits.give_back(&self.counted).await;
            }
            Err(_) => {}
        }
    }
}

async fn take(cx: Cx<'_>, buckets: &[Bucket], cost: u32) -> Result<Answer> {
    cx.services.limits.take(buckets, cost, WhileAway::Local).await.map_err(Error::unavailable)
}

/// How many attempts from one network may be in vain.
fn per_address(guess: Guess<'_>, rates: &Rates) -> Policy {
    match guess {
        Guess::SignIn(_) => Policy { name: "sign-in", limit: rates.failed_sign_ins_per_hour, window: HOUR },
        Guess::Invitation => Policy { name: "invitation", limit: 30, window: HOUR },
        // Those of a whole office may have ended, and each of its browsers tries its own.
        Guess::RefreshToken => Policy { name: "refresh-token", limit: 300, window: HOUR },
        Guess::ApiKey => Policy { name: "verify-api-key", limit: 100, window: HOUR },
    }
}

/// One spelling for all that are one email address; what is none is nobody's, and counts all the same.
fn canonical(email: &str) -> String {
    email.parse::<Email>().map_or_else(|_| email.trim().to_lowercase().nfc().collect(), |email| email.to_string())
}
