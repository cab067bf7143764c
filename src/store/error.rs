//! What can go wrong in the store, sorted by what the caller can do about it.

use std::path::PathBuf;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// The result of a query.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A query that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another row has the value that must be unique.
    #[error("a row with the same unique value exists")]
    Duplicate,
    /// The row was changed by another transaction in the meantime.
    #[error("the row has changed since it was read")]
    Stale,
    /// A cursor holds a value that its ordering does not sort by.
    #[error("the cursor does not belong to this ordering")]
    ForeignCursor,
    /// A row is written by a permit that is not for it: a fault of the program.
    #[error("the permit is not for this row")]
    NotPermitted,
    /// The database has ended one of two transactions that waited for each other, this one: begun again, it is likely to succeed.
    #[error("the transaction and another waited for each other")]
    Deadlock(#[source] Cause),
    /// No connection, or it broke: the same request may succeed later.
    #[error("the database is unavailable")]
    Unavailable(#[source] Cause),
    /// Anything else: a fault of the program or of the stored data.
    #[error("the database refused the query")]
    Query(#[source] DieselError),
}

/// Why a database cannot be opened: which one, without its password, and the cause.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not understood.
    #[error("DATABASE_URL is not a valid PostgreSQL URL")]
    Url(#[source] Cause),
    /// The file cannot be used.
    #[error("cannot open the SQLite database {}", .0.display())]
    Sqlite(PathBuf, #[source] Cause),
    /// The server lets nobody in, or is not there.
    #[error("cannot connect to PostgreSQL at {0}")]
    Postgres(String, #[source] Cause),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// What lies behind it, for an error that says more.
    pub(super) fn into_cause(self) -> Cause {
        match self {
            Self::Unavailable(cause) => cause,
            error => error.into(),
        }
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match &error {
            DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => Self::Duplicate,
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            )
            | DieselError::BrokenTransactionManager => Self::Unavailable(error.into()),
            DieselError::DatabaseError(_, information) if information.message().contains("deadlock detected") => {
                Self::Deadlock(error.into())
            }
            DieselError::DatabaseError(_, information) if is_passing(information.message()) => {
                Self::Unavailable(error.into())
            }
            _ => Self::Query(error),
        }
    }
}

/// Conditions that diesel has no kind for: the disk is full, the lock was not to be had in time, the server stops.
/// The texts are those of `SQLite`'s `sqlite3ErrStr` and of PostgreSQL's message catalogue in English: where PostgreSQL
/// speaks another language and does not let the role change that, its conditions count as faults.
fn is_passing(message: &str) -> bool {
    const PASSING: [&str; 9] = [
        "database or disk is full",
        "attempt to write a readonly database",
        "database is locked",
        "disk I/O error",
        "unable to open database file",
        "canceling statement due to",
        "terminating connection",
        "could not extend file",
        "No space left on device",
    ];
    PASSING.iter().any(|text| message.contains(text))
}

impl From<bb8::RunError<diesel::ConnectionError>> for Error {
    fn from(error: bb8::RunError<diesel::ConnectionError>) -> Self {
        Self::Unavailable(error.into())
    }
}
