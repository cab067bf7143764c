//! The database's own clock, beside the program's: times are made by the program, and compared by the database.

use chrono::{DateTime, Utc};
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl as _;

use super::backend::{Conn, Db};
use super::error::Result;
use crate::model::Timestamp;

impl Db {
    /// What the database's own clock says; none of SQLite, which has none.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn clock(&self) -> Result<Option<Timestamp>> {
        match self.read().await? {
            Conn::Sqlite(_) => Ok(None),
            Conn::Postgres(mut conn) => {
                let now = diesel::dsl::sql::<Timestamptz>("SELECT clock_timestamp()");
                let now: DateTime<Utc> = now.get_result(&mut *conn).await?;
                Ok(Some(now.into()))
            }
        }
    }
}
