//! The transaction that every write needs, and that can only be committed together with its audit entry.

use std::sync::Arc;

use super::announcements;
use super::audit_log::{self, NewAuditLog};
use super::backend::{Conn, Db};
use super::error::Result;
use super::notification::{self, Notification};

/// A transaction for writing. It begins with its first statement, so that what is refused before costs no connection.
///
/// [`Tx::commit`] is the only way to make what somebody does last, and takes the audit entry. Dropped instead, for instance because
/// the request was given up, it is rolled back: the pool closes a connection whose transaction is still open.
///
/// A connection to read with does not do for writing:
///
/// ```compile_fail,E0308
/// # use claviger::{model::{SessionId, Timestamp}, store::{Conn, session}};
/// async fn write(conn: &mut Conn, id: SessionId, now: Timestamp) {
///     let _ = session::revoke(conn, id, now).await;
/// }
/// ```
///
/// And nothing is committed without an entry:
///
/// ```compile_fail,E0061
/// # use claviger::store::Tx;
/// async fn commit(tx: Tx) {
///     let _ = tx.commit().await;
/// }
/// ```
pub struct Tx {
    db: Db,
    conn: Option<Conn>,
    /// What is told with the commit.
    notifications: Vec<Notification>,
}

impl Tx {
    /// A transaction that has not begun yet.
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self { db, conn: None, notifications: Vec::new() }
    }

    /// The connection, on which the transaction has begun by then. It also serves reads that must see the writes.
    ///
    /// # Errors
    /// Where no connection is to be had.
    pub async fn conn(&mut self) -> Result<&mut Conn> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.db.begin().await?,
        };
        Ok(self.conn.insert(conn))
    }

    /// Appends the entry and commits it with all that was written; by PostgreSQL, other servers hear of it. Returns the entry's place in its organization's log.
    ///
    /// # Errors
    /// Then nothing lasts: neither the writes nor the entry.
    pub async fn commit(mut self, entry: &NewAuditLog) -> Result<i64> {
        let sequence = match self.append(entry).await {
            Ok(sequence) => sequence,
            Err(error) => {
                // What went wrong first is told; the pool closes a connection on which the transaction is still open.
                let _ = self.rollback().await;
                return Err(error);
            }
        };
        self.end().await?;
        Ok(sequence)
    }

    /// Tells somebody of it, once it is committed. The entry's organization, and its place in the log, become the notification's; what
    /// was said to somebody before is not said again.
    pub fn notify(&mut self, notification: Notification) {
        self.notifications.push(notification);
    }

    pub(super) fn take_notifications(&mut self) -> Vec<Notification> {
        std::mem::take(&mut self.notifications)
    }

    async fn append(&mut self, entry: &NewAuditLog) -> Result<i64> {
        let sequence = audit_log::append(self, entry).await?;
        notification::insert_pending(self, entry.organization_id, sequence).await?;
        announcements::tell(self, entry, sequence).await?;
        Ok(sequence)
    }

    /// In whose name other servers are told of what is committed; none: they are not.
    pub(super) fn tells_as(&self) -> Option<Arc<str>> {
        self.db.tells_as.clone()
    }

    /// Commits what no caller has done: when an API key was last used, and what finds it; that what has ended long ago is gone;
    /// which server does a job or answers in a conversation; what became of a mail; what passwords are encrypted with; that something can be written at all; what
    /// requests of the relay may use and have used. Visible in the store alone, where `tests/it/architecture.rs` holds that
    /// nothing else calls it; whatever somebody does needs [`Tx::commit`].
    ///
    /// # Errors
    /// Then nothing lasts.
    pub(super) async fn commit_bookkeeping(mut self) -> Result<()> {
        self.end().await
    }

    async fn end(&mut self) -> Result<()> {
        let Some(conn) = &mut self.conn else { return Ok(()) };
        let ended = conn.commit().await;
        self.db.note_commit(&ended);
        ended
    }

    /// Does what no caller does, in a transaction of its own.
    ///
    /// # Errors
    /// Then nothing lasts.
    pub(super) async fn bookkeeping<T>(db: &Db, work: impl AsyncFnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let mut tx = Self::new(db.clone());
        match work(&mut tx).await {
            Ok(value) => tx.commit_bookkeeping().await.map(|()| value),
            Err(error) => {
                // What went wrong first is told; the pool closes a connection on which the transaction is still open.
                let _ = tx.rollback().await;
                Err(error)
            }
        }
    }

    /// Undoes all that was written.
    ///
    /// # Errors
    /// Where the connection broke; the database undoes it then by itself.
    pub async fn rollback(mut self) -> Result<()> {
        match &mut self.conn {
            Some(conn) => conn.rollback().await,
            None => Ok(()),
        }
    }
}
