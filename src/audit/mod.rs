//! What an audit entry says: the deed, how it ended, and what it changed, with secrets redacted by type. And who is told that
//! there is a new one.

mod changes;
mod commits;
mod entry;
mod statement;

pub use changes::{Changes, Field, Recorded};
pub use commits::{Commits, Committed, Listener};
pub use entry::{Entry, Origin};
pub use statement::{InvalidStatement, Statement, Subject};
