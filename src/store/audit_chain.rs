//! The audit log as a hash chain: its end, its entries in order, and the seal in the place of those whose time is over.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::audit_log::AuditLog;
use super::backend::{Conn, on_conn};
use super::error::{Error, Result};
use super::locks::first_locked;
use super::tables::{audit_heads, audit_logs, audit_seals};
use super::tx::Tx;
use crate::model::{AuditOutcome, ChainPoint, Grant, OrganizationId, Permit, PruneAuditLogs, Timestamp, ViewAuditLogs};

/// The seal of an organization's log: the last of the entries that were removed.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = audit_seals, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct AuditSeal {
    /// Whose log.
    pub organization_id: OrganizationId,
    /// The sequence of the last entry that was removed.
    pub sequence: i64,
    /// Its hash.
    pub hash: Vec<u8>,
    /// When it was sealed.
    pub sealed_at: Timestamp,
    /// Which key of the ring has signed it.
    pub key_version: String,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Entries in the order of the chain.
#[derive(Debug, Default)]
pub struct Stretch {
    /// The entries.
    pub entries: Vec<AuditLog>,
    /// The sequence and the id of the one after them, where it holds what no entry can hold.
    pub unreadable: Option<(i64, String)>,
}

/// The end of the log as it is noted; none where it is not noted, or not with a hash.
///
/// # Errors
/// Where the database fails.
pub async fn head(conn: &mut Conn, permit: &Permit<ViewAuditLogs>) -> Result<Option<ChainPoint>> {
    let query = audit_heads::table.find(permit.organization()).select((audit_heads::sequence, audit_heads::hash));
    let found: Option<(i64, Vec<u8>)> = on_conn!(conn, |c| query.first(c).await.optional()?);
    Ok(found.and_then(|(sequence, hash)| ChainPoint::from_row(sequence, &hash)))
}

/// The sequence and the id of the last entry.
///
/// # Errors
/// Where the database fails.
pub async fn last(conn: &mut Conn, permit: &Permit<ViewAuditLogs>) -> Result<Option<(i64, String)>> {
    Ok(on_conn!(conn, |c| audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()))
        .order(audit_logs::sequence.desc())
        .select((audit_logs::sequence, raw_id()))
        .first(c)
        .await
        .optional()?))
}

/// When a user of the organization last did something; none: nobody ever has, or it cannot be read.
///
/// # Errors
/// Where the database fails.
pub async fn last_deed(conn: &mut Conn, permit: &Permit<ViewAuditLogs>) -> Result<Option<Timestamp>> {
    let query = audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()))
        .filter(audit_logs::outcome.eq(AuditOutcome::Success).and(audit_logs::user_id.is_not_null()))
        .order(audit_logs::sequence.desc())
        .select(audit_logs::occurred_at);
    match on_conn!(conn, |c| query.first(c).await) {
        Err(DieselError::NotFound | DieselError::DeserializationError(_)) => Ok(None),
        found => Ok(Some(found?)),
    }
}

/// The hash of an entry as it is noted in it; none: there is no such entry, or it has none.
///
/// # Errors
/// Where the database fails.
pub async fn point(conn: &mut Conn, permit: &Permit<ViewAuditLogs>, sequence: i64) -> Result<Option<ChainPoint>> {
    let query = audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()).and(audit_logs::sequence.eq(sequence)))
        .select(audit_logs::hash);
    let hash: Option<Vec<u8>> = on_conn!(conn, |c| query.first(c).await.optional()?);
    Ok(hash.and_then(|hash| ChainPoint::from_row(sequence, &hash)))
}

/// The ends of all organizations' logs, for the checkpoints.
///
/// # Errors
/// Where the database fails.
pub async fn heads(conn: &mut Conn) -> Result<HashMap<OrganizationId, ChainPoint>> {
    let rows: Vec<(OrganizationId, i64, Vec<u8>)> = on_conn!(conn, |c| audit_heads::table
        .select((audit_heads::organization_id, audit_heads::sequence, audit_heads::hash))
        .load(c)
        .await?);
    let point = |(organization, sequence, hash): (OrganizationId, i64, Vec<u8>)| {
        Some((organization, ChainPoint::from_row(sequence, &hash)?))
    };
    Ok(rows.into_iter().filter_map(point).collect())
}

/// The seal.
///
/// # Errors
/// Where the database fails.
pub async fn seal<G: Grant>(conn: &mut Conn, permit: &Permit<G>) -> Result<Option<AuditSeal>> {
    Ok(on_conn!(conn, |c| audit_seals::table
        .find(permit.organization())
        .select(AuditSeal::as_select())
        .first(c)
        .await
        .optional()?))
}

/// The entries from a sequence up to another, both included, at most so many.
///
/// # Errors
/// Where the database fails.
pub async fn next(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    from: i64,
    through: i64,
    most: i64,
) -> Result<Stretch> {
    match entries(conn, permit, from, through, most).await {
        Err(Error::Query(DieselError::DeserializationError(_))) => {}
        read => return Ok(Stretch { entries: read?, unreadable: None }),
    }
    // One of them holds what no entry can hold: one at a time, it is found.
    let mut stretch = Stretch::default();
    for (sequence, id) in places(conn, permit, from, through, most).await? {
        match entries(conn, permit, sequence, sequence, 1).await {
            Ok(entry) => stretch.entries.extend(entry),
            Err(Error::Query(DieselError::DeserializationError(_))) => {
                stretch.unreadable = Some((sequence, id));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(stretch)
}

async fn entries(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    from: i64,
    through: i64,
    most: i64,
) -> Result<Vec<AuditLog>> {
    Ok(on_conn!(conn, |c| audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()))
        .filter(audit_logs::sequence.ge(from).and(audit_logs::sequence.le(through)))
        .order(audit_logs::sequence)
        .limit(most)
        .select(AuditLog::as_select())
        .load(c)
        .await?))
}

async fn places(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    from: i64,
    through: i64,
    most: i64,
) -> Result<Vec<(i64, String)>> {
    Ok(on_conn!(conn, |c| audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()))
        .filter(audit_logs::sequence.ge(from).and(audit_logs::sequence.le(through)))
        .order(audit_logs::sequence)
        .limit(most)
        .select((audit_logs::sequence, raw_id()))
        .load(c)
        .await?))
}

/// The id as it stands in the row, whether it is one or not.
fn raw_id() -> diesel::expression::SqlLiteral<Text> {
    diesel::dsl::sql("id")
}

/// The entries of a span of time, in order, after a sequence and up to another, at most so many.
///
/// # Errors
/// Where the database fails.
pub async fn next_between(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    (after, through): (i64, i64),
    (from, to): (Option<Timestamp>, Option<Timestamp>),
    most: i64,
) -> Result<Vec<AuditLog>> {
    Ok(on_conn!(conn, |c: Backend| {
        let mut query = audit_logs::table
            .filter(audit_logs::organization_id.eq(permit.organization()))
            .filter(audit_logs::sequence.gt(after).and(audit_logs::sequence.le(through)))
            .order(audit_logs::sequence)
            .limit(most)
            .select(AuditLog::as_select())
            .into_boxed::<Backend>();
        if let Some(from) = from {
            query = query.filter(audit_logs::occurred_at.ge(from));
        }
        if let Some(to) = to {
            query = query.filter(audit_logs::occurred_at.lt(to));
        }
        query.load(c).await?
    }))
}

/// Locks the end of the log to the end of the transaction: nothing is appended meanwhile, and nothing else is sealed.
///
/// # Errors
/// Where the database fails, or there is no such log.
pub async fn lock<G: Grant>(tx: &mut Tx, permit: &Permit<G>) -> Result<()> {
    let conn = tx.conn().await?;
    let _: i64 = first_locked!(conn, audit_heads::table.find(permit.organization()).select(audit_heads::sequence))?;
    Ok(())
}

/// Writes the seal of a log that is locked, in the place of the one before.
///
/// # Errors
/// Where the database refuses it: a seal only moves on.
pub async fn write_seal<G: Grant>(tx: &mut Tx, permit: &Permit<G>, seal: &AuditSeal) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| {
        let own = audit_seals::table.find(permit.organization());
        if diesel::update(own).set(seal).execute(c).await? == 0 {
            diesel::insert_into(audit_seals::table).values(seal).execute(c).await?;
        }
    });
    Ok(())
}

/// Removes the entries up to a sequence, and says how many. The database refuses it beyond the seal.
///
/// # Errors
/// Where the database fails or refuses it.
pub async fn remove(tx: &mut Tx, permit: &Permit<PruneAuditLogs>, through: i64) -> Result<usize> {
    let conn = tx.conn().await?;
    Ok(on_conn!(conn, |c| diesel::delete(
        audit_logs::table
            .filter(audit_logs::organization_id.eq(permit.organization()).and(audit_logs::sequence.le(through)))
    )
    .execute(c)
    .await?))
}
