//! Reading the audit log.

use std::collections::HashMap;

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
    // Any filter but that by thing may pass over most of the log.
    let mut conn = cx.services.db.list(page, !filter.is_by_resource()).await?;
    Ok(logs::page(&mut conn, &permit, filter, page).await?)
}

/// The entry after a place of the log, up to another, that passes the filter.
///
/// # Errors
/// Without permission.
pub async fn next(cx: Cx<'_>, filter: &AuditLogFilter, span: (i64, i64)) -> Result<Option<AuditLog>> {
    let permit = cx.actor.require()?;
    let db = &cx.services.db;
    let mut conn = if *filter == AuditLogFilter::default() { db.read().await? } else { db.scan().await? };
    Ok(logs::next(&mut conn, &permit, filter, span).await?)
}

/// The place of the last entry: how many there are, which tells nothing of them.
///
/// # Errors
/// Where nobody is signed in.
pub async fn end(cx: Cx<'_>) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(logs::end(&mut cx.services.db.read().await?, &permit).await?)
}

/// How many entries pass the filter.
///
/// # Errors
/// Without permission.
pub async fn count(cx: Cx<'_>, filter: &AuditLogFilter) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(logs::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// The same page of the entries on each of the resources.
///
/// # Errors
/// As for [`page`].
pub async fn pages(cx: Cx<'_>, resources: &[String], page: &Page) -> Result<HashMap<String, PageSlice<AuditLog>>> {
    let permit = cx.actor.require()?;
    Ok(logs::pages(&mut cx.services.db.scan().await?, &permit, resources, page).await?)
}

/// How many entries there are on each of the resources; one without any is left out.
///
/// # Errors
/// Without permission.
pub async fn counts(cx: Cx<'_>, resources: &[String]) -> Result<HashMap<String, i64>> {
    let permit = cx.actor.require()?;
    Ok(logs::counts(&mut cx.services.db.scan().await?, &permit, resources).await?)
}

/// The entries among `ids`, in no order.
///
/// # Errors
/// Without permission.
pub async fn find_many(cx: Cx<'_>, ids: &[AuditLogId]) -> Result<Vec<AuditLog>> {
    let permit = cx.actor.require()?;
    Ok(logs::find_many(&mut cx.services.db.read().await?, &permit, ids).await?)
}
