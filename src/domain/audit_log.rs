//! Reading the audit log.

use super::context::Cx;
use super::error::Result;
use crate::model::{AuditLogId, Page, PageSlice};
use crate::store::audit_log::{self as logs, AuditLog, AuditLogFilter};

/// A page of the organization's log, newest first.
///
/// # Errors
/// Without permission, or with a cursor of another list.
pub async fn page(cx: Cx<'_>, filter: &AuditLogFilter, page: &Page) -> Result<PageSlice<AuditLog>> {
    let permit = cx.actor.require()?;
    let db = &cx.services.db;
    // Any filter but that by thing may pass over most of the log.
    let is_narrow = *filter == AuditLogFilter { resource_id: filter.resource_id.clone(), ..AuditLogFilter::default() };
    let mut conn = if is_narrow && page.offset() == 0 { db.read().await? } else { db.scan().await? };
    Ok(logs::page(&mut conn, &permit, filter, page).await?)
}

/// How many entries pass the filter.
///
/// # Errors
/// Without permission.
pub async fn count(cx: Cx<'_>, filter: &AuditLogFilter) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(logs::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// One entry.
///
/// # Errors
/// Without permission.
pub async fn find(cx: Cx<'_>, id: AuditLogId) -> Result<Option<AuditLog>> {
    let permit = cx.actor.require()?;
    Ok(logs::find(&mut cx.services.db.read().await?, &permit, id).await?)
}
