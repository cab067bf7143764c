//! What passwords are encrypted with on their way here: key pairs, and the nonces that were used. Bookkeeping of the servers: nobody's
//! deed, and no organization's.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, Db, on_conn};
use super::error::{Error, Result};
use super::tables::{password_keys, password_nonces};
use super::tx::Tx;
use crate::model::{PasswordKeyId, Timestamp};

/// A key pair.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = password_keys, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct PasswordKey {
    /// The id.
    pub id: PasswordKeyId,
    /// The private key, sealed.
    pub sealed: Vec<u8>,
    /// Which key of the ring sealed it.
    pub key_version: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// All key pairs, the newest first: two or three.
///
/// # Errors
/// Where the database fails.
pub async fn all(conn: &mut Conn) -> Result<Vec<PasswordKey>> {
    Ok(on_conn!(conn, |c| password_keys::table
        .order((password_keys::created_at.desc(), password_keys::id.desc()))
        .select(PasswordKey::as_select())
        .load(c)
        .await?))
}

/// Adds a key pair.
///
/// # Errors
/// Where the database fails.
pub async fn insert(db: &Db, key: &PasswordKey) -> Result<()> {
    let insert = async |conn: &mut Conn| {
        Ok(on_conn!(conn, |c| diesel::insert_into(password_keys::table).values(key).execute(c).await?))
    };
    write(db, insert).await.map(drop)
}

/// Removes the key pairs that were not made between two times.
///
/// # Errors
/// Where the database fails.
pub async fn remove_all_but(db: &Db, (from, to): (Timestamp, Timestamp)) -> Result<()> {
    let others =
        || password_keys::table.filter(password_keys::created_at.lt(from).or(password_keys::created_at.gt(to)));
    let remove = async |conn: &mut Conn| Ok(on_conn!(conn, |c| diesel::delete(others()).execute(c).await?));
    write(db, remove).await.map(drop)
}

/// Uses a nonce, which is remembered until its time is over. Returns whether nobody had used it before.
///
/// # Errors
/// Where the database fails.
pub async fn use_nonce(db: &Db, digest: &[u8], expires_at: Timestamp) -> Result<bool> {
    let row = || (password_nonces::digest.eq(digest), password_nonces::expires_at.eq(expires_at));
    let insert = async |conn: &mut Conn| {
        Ok(on_conn!(conn, |c| diesel::insert_into(password_nonces::table).values(row()).execute(c).await?))
    };
    match write(db, insert).await {
        Ok(_) => Ok(true),
        Err(Error::Duplicate) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn write(db: &Db, statement: impl AsyncFnOnce(&mut Conn) -> Result<usize>) -> Result<usize> {
    Tx::bookkeeping(db, async |tx| statement(tx.conn().await?).await).await
}
