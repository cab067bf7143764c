//! Leases: which server does a job, and when it was last done. Bookkeeping of the servers: there is no deed and no permit.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, Db, on_conn};
use super::error::{Error, Result};
use super::tables::leases;
use super::tx::Tx;
use crate::model::Timestamp;

/// Who does a job.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = leases, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct Lease {
    /// The job.
    pub name: String,
    /// The server that does it; none: none does, and any may.
    pub holder: Option<String>,
    /// Counts the changes of the row.
    pub revision: i64,
    /// When it last changed, by the clock of whoever changed it.
    pub changed_at: Timestamp,
    /// When the job was last done to its end.
    pub finished_at: Option<Timestamp>,
}

impl Lease {
    /// Of a job that was never done.
    #[must_use]
    pub fn new(name: &str, now: Timestamp) -> Self {
        Self { name: name.to_owned(), holder: None, revision: 0, changed_at: now, finished_at: None }
    }
}

/// Every lease.
///
/// # Errors
/// Where the database fails.
pub async fn find_all(conn: &mut Conn) -> Result<Vec<Lease>> {
    Ok(on_conn!(conn, |c| leases::table.select(Lease::as_select()).load(c).await?))
}

/// The lease of a job.
///
/// # Errors
/// Where the database fails.
pub async fn find(conn: &mut Conn, name: &str) -> Result<Option<Lease>> {
    Ok(on_conn!(conn, |c| leases::table.find(name).select(Lease::as_select()).first(c).await.optional()?))
}

/// Makes the row of a job that was never done. Returns whether it was made: another server may have.
///
/// # Errors
/// Where the database fails.
pub async fn add(db: &Db, lease: &Lease) -> Result<bool> {
    let added = write(db, async |conn| {
        Ok(on_conn!(conn, |c| diesel::insert_into(leases::table).values(lease).execute(c).await?))
    });
    match added.await {
        Ok(_) => Ok(true),
        Err(Error::Duplicate) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes, renews or releases a lease, if it still is as it was `seen`. Returns it as it is then.
///
/// # Errors
/// Where the database fails.
pub async fn change(db: &Db, seen: &Lease, next: Lease) -> Result<Option<Lease>> {
    let next = Lease { revision: seen.revision + 1, ..next };
    let as_seen = || leases::table.find(&seen.name).filter(leases::revision.eq(seen.revision));
    let changed =
        write(db, async |conn| Ok(on_conn!(conn, |c| diesel::update(as_seen()).set(&next).execute(c).await?)));
    Ok((changed.await? > 0).then_some(next))
}

async fn write(db: &Db, statement: impl AsyncFnOnce(&mut Conn) -> Result<usize>) -> Result<usize> {
    Tx::bookkeeping(db, async |tx| statement(tx.conn().await?).await).await
}
