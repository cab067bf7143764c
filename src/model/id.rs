//! Typed ids: a prefix that says of what, and a time-ordered `UUIDv7` in Crockford's base 32, as in `acct_01jd…`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use uuid::Uuid;

use super::Timestamp;

/// What an id names; it gives the prefix.
pub trait Kind: Send + Sync + 'static {
    /// Stands before the underscore.
    const PREFIX: &'static str;
}

/// The kinds of things that have an id.
pub mod kind {
    use super::Kind;

    macro_rules! kinds {
        ($($(#[$meta:meta])* $name:ident = $prefix:literal),+ $(,)?) => {$(
            $(#[$meta])*
            #[derive(Debug)]
            pub enum $name {}
            impl Kind for $name {
                const PREFIX: &'static str = $prefix;
            }
        )+};
    }

    kinds! {
        /// A tenant.
        Organization = "org",
        /// A person.
        User = "user",
        /// One sign-in on one device.
        Session = "sess",
        /// One refresh token of a session; never leaves the server.
        RefreshToken = "rtok",
        /// An upstream account.
        ClaudeAccount = "acct",
        /// A client of the organization.
        Client = "client",
        /// Something to do for a client.
        Task = "task",
        /// A secret of a client.
        Credential = "cred",
        /// A key for programs.
        ApiKey = "key",
        /// An entry of the audit log.
        AuditLog = "audit",
        /// A mail that is to be sent.
        Mail = "mail",
        /// Something that a user should know.
        Notification = "ntf",
        /// A key pair that passwords are encrypted with.
        PasswordKey = "pwkey",
        /// A conversation with Claude.
        Conversation = "conv",
        /// What was said in one.
        Message = "msg",
        /// A process that answers conversations.
        Worker = "worker",
        /// A request of the relay, as it is recorded.
        UsageRecord = "usage",
    }
}

/// An id of one kind: ids of different kinds do not mix.
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// Id of an organization.
pub type OrganizationId = Id<kind::Organization>;
/// Id of a user.
pub type UserId = Id<kind::User>;
/// Id of a session.
pub type SessionId = Id<kind::Session>;
/// Id of a refresh token.
pub type RefreshTokenId = Id<kind::RefreshToken>;
/// Id of a Claude account.
pub type ClaudeAccountId = Id<kind::ClaudeAccount>;
/// Id of a client.
pub type ClientId = Id<kind::Client>;
/// Id of a task.
pub type TaskId = Id<kind::Task>;
/// Id of a credential.
pub type CredentialId = Id<kind::Credential>;
/// Id of an API key.
pub type ApiKeyId = Id<kind::ApiKey>;
/// Id of an audit entry.
pub type AuditLogId = Id<kind::AuditLog>;
/// Id of a mail.
pub type MailId = Id<kind::Mail>;
/// Id of a notification.
pub type NotificationId = Id<kind::Notification>;
/// Id of a key pair that passwords are encrypted with.
pub type PasswordKeyId = Id<kind::PasswordKey>;
/// Id of a conversation.
pub type ConversationId = Id<kind::Conversation>;
/// Id of a message.
pub type MessageId = Id<kind::Message>;
/// Id of a process that answers conversations.
pub type WorkerId = Id<kind::Worker>;
/// Id of a usage record.
pub type UsageRecordId = Id<kind::UsageRecord>;

/// Not an id of the kind that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a valid id here")]
pub struct InvalidId;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// The place of each byte in the alphabet.
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut digit: u8 = 0;
    while (digit as usize) < ALPHABET.len() {
        digits[ALPHABET[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
};
const NO_DIGIT: u8 = u8::MAX;
/// 26 characters of 5 bits hold 128 bits; the first carries 3.
const BODY_LENGTH: usize = 26;

impl<K: Kind> Id<K> {
    /// A new id: `UUIDv7` from the time and 10 random bytes, made by the program so that no database differs.
    #[must_use]
    pub fn new(now: Timestamp, random: &[u8; 10]) -> Self {
        let millis = u64::try_from(now.micros() / 1000).unwrap_or_default();
        Self(uuid::Builder::from_unix_timestamp_millis(millis, random).into_uuid(), PhantomData)
    }

    /// The id by which this stands where something of another kind is meant, and there is none.
    #[must_use]
    pub(crate) fn in_place_of<J: Kind>(self) -> Id<J> {
        Id(self.0, PhantomData)
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.as_u128();
        let mut body = [0; BODY_LENGTH];
        for (place, character) in body.iter_mut().rev().enumerate() {
            let digit = usize::try_from((bits >> (5 * place)) & 31).unwrap_or_default();
            *character = ALPHABET[digit];
        }
        let body = std::str::from_utf8(&body).map_err(|_| fmt::Error)?;
        write!(f, "{}_{body}", K::PREFIX)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let body = text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('_')).ok_or(InvalidId)?;
        // The first character carries three bits: a larger one would name the same id twice.
        if body.len() != BODY_LENGTH || body.as_bytes()[0] > b'7' {
            return Err(InvalidId);
        }
        let mut bits = 0_u128;
        for character in body.bytes() {
            let digit = DIGITS[usize::from(character)];
            if digit == NO_DIGIT {
                return Err(InvalidId);
            }
            bits = bits << 5 | u128::from(digit);
        }
        Ok(Self(Uuid::from_u128(bits), PhantomData))
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
