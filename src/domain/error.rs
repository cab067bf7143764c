//! What a deed may answer instead of succeeding: what the caller is told, kept apart from what the log is told.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::identity::password::NotHashed;
use crate::identity::{NoPermit, Refused};
use crate::model::Denied;
use crate::store;

/// The result of a deed.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The codes that a caller can be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Nobody is signed in, or the sign-in failed.
    Unauthenticated,
    /// The role lacks the permission.
    Forbidden,
    /// The input is wrong; `fields` says where.
    BadUserInput,
    /// There is no such thing in the caller's organization.
    NotFound,
    /// It collides with what is there.
    Conflict,
    /// It was asked for too often.
    RateLimited,
    /// The time limit was reached.
    Timeout,
    /// Something that the server needs is away: try again.
    ServiceUnavailable,
    /// A fault of the server.
    Internal,
}

impl Code {
    /// The name that stands in `extensions.code` and in the audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::BadUserInput => "BAD_USER_INPUT",
            Self::NotFound => "NOT_FOUND",
            Self::Conflict => "CONFLICT",
            Self::RateLimited => "RATE_LIMITED",
            Self::Timeout => "TIMEOUT",
            Self::ServiceUnavailable => "SERVICE_UNAVAILABLE",
            Self::Internal => "INTERNAL_SERVER_ERROR",
        }
    }

    /// Whether the caller was turned away, rather than the deed tried and failed.
    #[must_use]
    pub fn is_denial(self) -> bool {
        matches!(self, Self::Unauthenticated | Self::Forbidden | Self::RateLimited)
    }
}

/// One field of the input that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where it stands, from the argument on: `["input", "email"]`.
    pub path: Vec<&'static str>,
    /// What is wrong with it, to follow the field's name in a sentence.
    pub message: Cow<'static, str>,
}

/// A deed that was refused or failed.
#[derive(Debug)]
pub struct Error {
    code: Code,
    message: Cow<'static, str>,
    fields: Vec<FieldError>,
    retry_after: Option<Duration>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), fields: Vec::new(), retry_after: None, cause: None }
    }

    /// Nobody is signed in.
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "You need to sign in to do this.")
    }

    /// A sign-in, a refresh or a token that is not good. Says nothing of why.
    #[must_use]
    pub fn refused(message: &'static str) -> Self {
        Self::new(Code::Unauthenticated, message)
    }

    /// The caller may not do it.
    #[must_use]
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    /// Wrong input.
    #[must_use]
    pub fn bad_input(fields: Vec<FieldError>) -> Self {
        let named: Vec<_> =
            fields.iter().map(|field| format!("{} {}", field.path.last().unwrap_or(&"input"), field.message)).collect();
        Self { fields, ..Self::new(Code::BadUserInput, format!("The input is not valid: {}.", named.join("; "))) }
    }

    /// There is no such thing in the caller's organization.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("There is no such {what}."))
    }

    /// It collides with what is there.
    #[must_use]
    pub fn conflict(message: &'static str) -> Self {
        Self::new(Code::Conflict, message)
    }

    /// It was asked for too often: in so long it may be tried again.
    #[must_use]
    pub fn rate_limited(message: &'static str, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Code::RateLimited, message) }
    }

    /// The time limit was reached.
    #[must_use]
    pub fn timeout() -> Self {
        Self::new(Code::Timeout, "The request took longer than it may.")
    }

    /// The time limit would be reached, whatever the caller tries; the message says what does it instead.
    #[must_use]
    pub fn too_long(message: &'static str) -> Self {
        Self::new(Code::Timeout, message)
    }

    /// Something that the server needs is away.
    pub fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(Code::ServiceUnavailable, "The server cannot do this at the moment. Try again later.")
        }
    }

    /// Something that the server needs is away; the message says what.
    #[must_use]
    pub fn away(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::ServiceUnavailable, message)
    }

    /// The same, with a cause for the log.
    pub fn away_by(message: &'static str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(Code::ServiceUnavailable, message) }
    }

    /// What was asked for is refused elsewhere, for a reason that the message gives.
    #[must_use]
    pub fn refused_elsewhere(message: String) -> Self {
        Self::new(Code::BadUserInput, message)
    }

    /// A fault of the server.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(Code::Internal, "Something went wrong on the server.") }
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the caller is told.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// In how many seconds it may be tried again.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after.map(whole_seconds)
    }

    /// Whether the database has ended the transaction because another and it waited for each other.
    #[must_use]
    pub fn is_deadlock(&self) -> bool {
        let cause = self.cause.as_deref().and_then(|cause| cause.downcast_ref::<store::Error>());
        matches!(cause, Some(store::Error::Deadlock(_)))
    }

    /// Which fields are wrong.
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        &self.fields
    }
}

/// Rounded up: whoever waits that long has waited long enough.
#[must_use]
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn StdError + 'static))
    }
}

impl From<NoPermit> for Error {
    fn from(reason: NoPermit) -> Self {
        match reason {
            NoPermit::Anonymous => Self::unauthenticated(),
            NoPermit::Denied(denied) => denied.into(),
        }
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Permission(permission) => {
                Self::forbidden(format!("Your role does not have the permission {}.", permission.as_str()))
            }
            Denied::Scope(scope) => {
                Self::forbidden(format!("Your API key does not have the scope {}.", scope.as_str()))
            }
            Denied::ApiKey => Self::forbidden("An API key may not do this: sign in."),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Stale => Self::conflict("It was changed by somebody else in the meantime. Read it again."),
            store::Error::ForeignCursor => Self::bad_input(vec![FieldError {
                path: vec!["after"],
                message: "is not a cursor of this list in this order".into(),
            }]),
            store::Error::Deadlock(_) | store::Error::Unavailable(_) => Self::unavailable(error),
            store::Error::Duplicate | store::Error::NotPermitted | store::Error::Query(_) => Self::internal(error),
        }
    }
}

impl From<Refused> for Error {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Invalid => Self::unauthenticated(),
            Refused::Limited(wait) => Self::rate_limited("There were too many attempts. Try again later.", wait),
            Refused::Store(error) => error.into(),
        }
    }
}

impl From<NotHashed> for Error {
    fn from(error: NotHashed) -> Self {
        match error {
            NotHashed::Busy => Self::unavailable(error),
            NotHashed::Panicked => Self::internal(error),
        }
    }
}
