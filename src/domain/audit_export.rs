//! The audit log for elsewhere: its entries in order, read in batches, after the export has left its own entry.

use serde_json::json;

use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use crate::audit::Entry;
use crate::model::{AuditAction, ResourceType, Timestamp, ViewAuditLogs};
use crate::store::audit_chain as chain;
use crate::store::audit_log::AuditLog;

/// How many entries are in memory at a time.
const BATCH: i64 = 1000;

/// An export that is under way.
#[derive(Debug)]
pub struct Export {
    span: (Option<Timestamp>, Option<Timestamp>),
    after: i64,
    through: i64,
}

/// Begins an export of the entries not before `from` and before `to`, and leaves its entry in the log before any of them is
/// shown. It ends where the log ended then.
///
/// # Errors
/// Without permission, or where the entry cannot be written.
pub async fn begin(cx: Cx<'_>, from: Option<Timestamp>, to: Option<Timestamp>, format: &str) -> Result<Export> {
    let permit = cx.actor.require::<ViewAuditLogs>()?;
    let last = chain::last(&mut cx.services.db.read().await?, &permit).await?;
    let through = last.map(|(sequence, _)| sequence).ok_or_else(|| Error::not_found("audit log"))?;
    let text = |time: Option<Timestamp>| time.map(Timestamp::to_text);
    let note = json!({ "from": text(from), "to": text(to), "format": format, "throughSequence": through });
    audited(cx, async |_| {
        let entry = Entry::new(AuditAction::View, ResourceType::System).noting(note);
        Ok((Export { span: (from, to), after: 0, through }, entry))
    })
    .await
}

impl Export {
    /// The next entries; none: that was all.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn next(&mut self, cx: Cx<'_>) -> Result<Vec<AuditLog>> {
        let permit = cx.actor.require::<ViewAuditLogs>()?;
        let mut conn = cx.services.db.scan().await?;
        let entries = chain::next_between(&mut conn, &permit, (self.after, self.through), self.span, BATCH).await?;
        self.after = entries.last().map_or(self.through, |entry| entry.sequence);
        Ok(entries)
    }
}
