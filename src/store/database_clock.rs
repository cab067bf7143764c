//! The database's clock, which a server's own is held against before anything is removed for good.

use diesel::dsl::sql;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, PgConn};
use super::error::Result;
use super::fields::UtcTimestamp;
use crate::model::Timestamp;

/// The time by the database's clock. None: it has no other than this machine's.
///
/// # Errors
/// Where the database fails.
pub async fn now(conn: &mut Conn) -> Result<Option<Timestamp>> {
    match conn {
        Conn::Sqlite(_) => Ok(None),
        Conn::Postgres(conn) => {
            let conn: &mut PgConn = &mut *conn;
            Ok(Some(diesel::select(sql::<UtcTimestamp>("clock_timestamp()")).get_result(conn).await?))
        }
    }
}
