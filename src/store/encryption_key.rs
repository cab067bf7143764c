//! The keys of the ring that were used with this database, by a digest of each.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::Result;
use super::tables::encryption_keys;
use super::tx::Tx;
use crate::model::Timestamp;

/// A version of the ring's keys.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = encryption_keys, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct EncryptionKey {
    /// The version.
    pub version: String,
    /// Tells the key from any other, and nothing of it.
    pub digest: Vec<u8>,
    /// When it was first used.
    pub created_at: Timestamp,
}

/// All that were ever used: a handful.
///
/// # Errors
/// Where the database fails.
pub async fn all(conn: &mut Conn) -> Result<Vec<EncryptionKey>> {
    Ok(on_conn!(conn, |c| encryption_keys::table.select(EncryptionKey::as_select()).load(c).await?))
}

/// Notes that a key is used.
///
/// # Errors
/// [`Error::Duplicate`](super::Error::Duplicate) where another server has just done so.
pub async fn insert(tx: &mut Tx, key: &EncryptionKey) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(encryption_keys::table).values(key).execute(c).await?);
    Ok(())
}
