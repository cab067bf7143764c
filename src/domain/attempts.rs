//! What is limited field by field: guesses, by how often they may be in vain, and mails, by how often they may be caused and received.
//!
//! An attempt is counted before it is made, so that of many at once no more come through, and given back where it was no guess.
//! Each field of a request is an attempt of its own. What is refused is not even looked at: neither the answer nor its time says
//! whether it would have been right, or whether there is anything to be right about.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::MutexGuard;
use unicode_normalization::UnicodeNormalization as _;

use super::context::Cx;
use super::error::{Code, Error, Result};
use crate::identity::SignedInBy;
use crate::limits::{Answer, Bucket, Network, Policy, RateLimits, Subject, WhileAway};
use crate::model::{Email, OrganizationId, UserId};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// For one password from one place: five at once, then one in 3 minutes, after 15 one in 12, after 30 one in 48.
const FROM_ONE: [Policy; 3] = [
    Policy { name: "password-1", limit: 5, window: MINUTE.saturating_mul(15) },
    Policy { name: "password-2", limit: 15, window: HOUR.saturating_mul(3) },
    Policy { name: "password-3", limit: 30, window: DAY },
];
/// For one email address from wherever its owner has not signed in of late: after 20 one in 3 minutes, after 100 one in a quarter
/// of an hour. Whoever keeps asking keeps it full, and an owner who comes from a new place out: until a link for a new password is
/// followed there, which makes the place known.
const FROM_ANYWHERE: [Policy; 2] = [
    Policy { name: "sign-in-email-1", limit: 20, window: HOUR },
    Policy { name: "sign-in-email-2", limit: 100, window: DAY },
];
/// Full, it says that the owner of an email address has been in a network.
const KNOWN: Policy = Policy { name: "sign-in-known", limit: 1, window: DAY.saturating_mul(30) };
/// How many networks become known for one email address: who has many shall not fill the memory with them.
const KNOWN_NETWORKS: Policy = Policy { name: "sign-in-networks", limit: 16, window: DAY.saturating_mul(30) };
/// How many times as many sign-ins may fail from one network for addresses that it is known for: those who share it are not to
/// shut each other out.
const KNOWN_FACTOR: u32 = 10;

const LOCKED: &str = "There were too many attempts to sign in. Try again later.";
const TOO_MANY: &str = "There were too many attempts. Try again later.";
const TOO_MANY_MAILS: &str = "Too many mails were asked for. Try again later.";

/// What may be guessed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guess<'a> {
    /// The password of whoever has this email address.
    SignIn(&'a str),
    /// The password of a user, by who is signed in as that user or holds a link of theirs.
    OwnPassword(UserId),
    /// An invitation's token.
    Invitation,
    /// A token that comes by mail.
    MailToken,
    /// A refresh token.
    RefreshToken,
    /// An API key.
    ApiKey,
}

/// What mails somebody who need not have asked for it. It counts though it succeeds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sends {
    /// To an address that is registered.
    Registration,
    /// To an address whose password was forgotten.
    ResetLink,
    /// To an address that the organization invites.
    Invitation(OrganizationId),
    /// To an address that the user wants to have.
    AddressLink(UserId),
    /// To an address that somebody was invited by, who has accepted. The invitation was counted, and serves once.
    AcceptedInvitation,
}

/// An attempt, which counts until it is said how it ended.
pub(super) struct Attempt<'a> {
    cx: Cx<'a>,
    /// What it was counted in.
    counted: Vec<Bucket>,
    /// What a success gives back.
    returned: Vec<Bucket>,
    /// What every failure gives back: of a mail that was not written, what its address may get.
    unsent: Vec<Bucket>,
    sign_in: Option<SignIn<'a>>,
}

/// What changes once a sign-in succeeds.
struct SignIn<'a> {
    email: String,
    network: Network,
    forgiven: Vec<Bucket>,
    /// That of whoever signs in as one email address from one network.
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Attempt<'a> {
    /// Counts a guess. Commands, which come from no address, may guess.
    ///
    /// # Errors
    /// `RATE_LIMITED` where there were too many in vain.
    pub(super) async fn begin(cx: Cx<'a>, guess: Guess<'_>) -> Result<Self> {
        let mut attempt = Self { cx, counted: Vec::new(), returned: Vec::new(), unsent: Vec::new(), sign_in: None };
        let Some(address) = cx.origin.ip_address else { return Ok(attempt) };
        let limits = &cx.services.limits;
        match guess {
            Guess::SignIn(email) => attempt.count_sign_in(canonical(email), address).await?,
            Guess::OwnPassword(user) => {
                attempt.returned = FROM_ONE.map(|policy| limits.bucket(Subject::User(user), policy)).to_vec();
            }
            Guess::Invitation => attempt.returned = limits.buckets_of(address, hourly("invitation", 30)),
            Guess::MailToken => attempt.returned = limits.buckets_of(address, hourly("mail-token", 30)),
            // Those of a whole office may have ended, and each of its browsers tries its own.
            Guess::RefreshToken => attempt.returned = limits.buckets_of(address, hourly("refresh-token", 300)),
            Guess::ApiKey => attempt.returned = of_keys(cx, address),
        }
        attempt.counted.extend_from_slice(&attempt.returned);
        match take(cx, &attempt.counted).await?.retry_after {
            None => Ok(attempt),
            Some(wait) => {
                let message = if attempt.sign_in.is_some() { LOCKED } else { TOO_MANY };
                Err(Error::rate_limited(message, wait))
            }
        }
    }

    async fn count_sign_in(&mut self, email: String, address: IpAddr) -> Result<()> {
        let limits = &self.cx.services.limits;
        let network = Network::of(address);
        let mut forgiven = from_one(limits, &email, network);
        // One after the other: counted all at once, those of an owner would look like guesses until the first has succeeded.
        let turn = self.cx.in_time(limits.turn(&forgiven[0])).await?;
        // Whoever tries many passwords from many places does not shut out the owner where the owner is known to be.
        let most = self.cx.services.rates.failed_sign_ins_per_hour;
        if limits.is_marked(&known(limits, &email, network)).await {
            let policy = hourly("sign-in-of-known", most.saturating_mul(KNOWN_FACTOR));
            self.returned = limits.buckets_of(address, policy);
        } else {
            self.returned = limits.buckets_of(address, hourly("sign-in", most));
            forgiven.extend(FROM_ANYWHERE.map(|policy| limits.bucket(Subject::Email(&email), policy)));
        }
        self.counted.extend_from_slice(&forgiven);
        self.sign_in = Some(SignIn { email, network, forgiven, _turn: turn });
        Ok(())
    }

    /// Counts a mail to an address against what the caller may cause and what the address may get. Returns whether it is to be
    /// sent: where the address has had enough, nobody is told.
    ///
    /// # Errors
    /// `RATE_LIMITED` where the caller has caused too many.
    pub(super) async fn to_send(cx: Cx<'a>, sends: Sends, to: &Email) -> Result<(Self, bool)> {
        let limits = &cx.services.limits;
        let by_caller = match (sends, cx.origin.ip_address) {
            (Sends::Invitation(organization), _) => {
                vec![limits.bucket(Subject::Organization(organization), hourly("sends-invitations", 100))]
            }
            (Sends::AddressLink(user), _) => {
                let policies = [hourly("sends-links-1", 5), Policy { name: "sends-links-2", limit: 20, window: DAY }];
                policies.map(|policy| limits.bucket(Subject::User(user), policy)).to_vec()
            }
            (Sends::Registration, Some(address)) => {
                limits.buckets_of(address, hourly("registers", cx.services.rates.registrations_per_hour))
            }
            (Sends::ResetLink, Some(address)) => limits.buckets_of(address, hourly("sends-reset-links", 30)),
            (Sends::Registration | Sends::ResetLink, None) | (Sends::AcceptedInvitation, _) => Vec::new(),
        };
        if let Some(wait) = take(cx, &by_caller).await?.retry_after {
            return Err(Error::rate_limited(TOO_MANY_MAILS, wait));
        }
        let gets = sends.to_one().map(|policy| limits.bucket(Subject::Email(to.as_str()), policy));
        let is_sent = take(cx, &gets).await?.retry_after.is_none();
        let unsent = if is_sent { gets.to_vec() } else { Vec::new() };
        let counted = [by_caller, unsent.clone()].concat();
        Ok((Self { cx, counted, returned: Vec::new(), unsent, sign_in: None }, is_sent))
    }

    /// It was no guess. For the email address of a sign-in the attempts before it are forgiven, too; for the network this one alone,
    /// or who may sign in could go on guessing at others.
    pub(super) async fn succeeded(self) {
        let limits = &self.cx.services.limits;
        self.give_back(&self.returned).await;
        if let Some(SignIn { email, network, forgiven, _turn }) = self.sign_in {
            limits.empty(&forgiven).await;
            make_known(self.cx, &email, network).await;
        }
    }

    /// What it came to. Where the server could not do it, nobody has learned anything.
    pub(super) async fn end<T>(self, done: &Result<T>) {
        match done.as_ref().map_err(Error::code) {
            Ok(_) => self.succeeded().await,
            Err(Code::ServiceUnavailable | Code::Timeout | Code::Internal) => self.was_none().await,
            Err(_) => self.give_back(&self.unsent).await,
        }
    }

    /// Nothing came of it: no guess, and no mail.
    pub(super) async fn was_none(self) {
        self.give_back(&self.counted).await;
    }

    async fn give_back(&self, counted: &[Bucket]) {
        if !counted.is_empty() {
            self.cx.services.limits.give_back(counted).await;
        }
    }
}

impl Sends {
    /// How many of them one address gets: five at once, then one in 12 minutes, after 24 one an hour. So long serves a link for a new
    /// password: whoever else asks for them, the owner has one that serves, or gets one.
    fn to_one(self) -> [Policy; 2] {
        let (by_hour, by_day) = match self {
            Self::Registration => ("gets-registration-1", "gets-registration-2"),
            Self::ResetLink => ("gets-reset-link-1", "gets-reset-link-2"),
            Self::Invitation(_) => ("gets-invitation-1", "gets-invitation-2"),
            Self::AddressLink(_) | Self::AcceptedInvitation => ("gets-address-link-1", "gets-address-link-2"),
        };
        [hourly(by_hour, 5), Policy { name: by_day, limit: 24, window: DAY }]
    }
}

/// Somebody has shown here, otherwise than by a sign-in, to be the owner of an email address. What is forgiven is what was tried
/// from here.
pub(super) async fn owner_is_here(cx: Cx<'_>, email: &Email) {
    let Some(address) = cx.origin.ip_address else { return };
    let network = Network::of(address);
    cx.services.limits.empty(&from_one(&cx.services.limits, email.as_str(), network)).await;
    make_known(cx, email.as_str(), network).await;
}

async fn make_known(cx: Cx<'_>, email: &str, network: Network) {
    let limits = &cx.services.limits;
    let known = known(limits, email, network);
    let is_new = !limits.is_marked(&known).await;
    let networks = [limits.bucket(Subject::Email(email), KNOWN_NETWORKS)];
    if !is_new || take(cx, &networks).await.is_ok_and(|answer| answer.retry_after.is_none()) {
        limits.mark(&known).await;
    }
}

fn known(limits: &RateLimits, email: &str, network: Network) -> Bucket {
    limits.bucket(Subject::EmailFrom(email, network), KNOWN)
}

fn from_one(limits: &RateLimits, email: &str, network: Network) -> Vec<Bucket> {
    FROM_ONE.map(|policy| limits.bucket(Subject::EmailFrom(email, network), policy)).to_vec()
}

/// Who is signed in and asks for many keys is known by that: those behind one address do not share a limit then.
fn of_keys(cx: Cx<'_>, address: IpAddr) -> Vec<Bucket> {
    let limits = &cx.services.limits;
    let subject = cx.actor.signed_in().map(|caller| match caller.by {
        SignedInBy::ApiKey(id, _) => Subject::ApiKey(id),
        SignedInBy::Session(_) => Subject::User(caller.user),
    });
    match subject {
        Some(subject) => vec![limits.bucket(subject, hourly("verify-api-key", 1_000))],
        None => limits.buckets_of(address, hourly("verify-api-key", 100)),
    }
}

const fn hourly(name: &'static str, limit: u32) -> Policy {
    Policy { name, limit, window: HOUR }
}

async fn take(cx: Cx<'_>, buckets: &[Bucket]) -> Result<Answer> {
    cx.services.limits.take(buckets, 1, WhileAway::Local).await.map_err(Error::unavailable)
}

/// One spelling for all that are one email address; what is none is nobody's, and counts all the same.
fn canonical(email: &str) -> String {
    email.parse::<Email>().map_or_else(|_| email.trim().to_lowercase().nfc().collect(), |email| email.to_string())
}
