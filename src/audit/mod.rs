//! What an audit entry says: the deed, how it ended, and what it changed, with secrets redacted by type.

mod changes;
mod entry;
mod statement;

pub use changes::{Changes, Field, Recorded};
pub use entry::{Entry, Origin};
pub use statement::{InvalidStatement, Statement, Subject};
