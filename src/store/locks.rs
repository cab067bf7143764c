//! Reads that keep their rows locked to the end of the transaction. SQLite has one writer anyway.

/// Reads a query by `$read`, on PostgreSQL with the lock `$lock`.
macro_rules! locked {
    ($on:expr, $query:expr, $read:ident, $lock:ident) => {
        match $on {
            $crate::store::backend::Conn::Sqlite(conn) => {
                let conn: &mut $crate::store::backend::SqliteConn = &mut **conn;
                diesel_async::RunQueryDsl::$read($query, conn).await
            }
            $crate::store::backend::Conn::Postgres(conn) => {
                let conn: &mut $crate::store::backend::PgConn = &mut **conn;
                diesel_async::RunQueryDsl::$read(diesel::QueryDsl::$lock($query), conn).await
            }
        }
    };
}
pub(super) use locked;

/// Reads the first row and locks it.
macro_rules! first_locked {
    ($on:expr, $query:expr) => {
        $crate::store::locks::locked!($on, $query, first, for_update)
    };
}
pub(super) use first_locked;

/// The same, but rows that refer to the locked one may still be made meanwhile: whoever makes one may hold what this
/// transaction waits for.
macro_rules! first_locked_but_for_references {
    ($on:expr, $query:expr) => {
        $crate::store::locks::locked!($on, $query, first, for_no_key_update)
    };
}
pub(super) use first_locked_but_for_references;

/// Reads all rows, in the query's order, and locks them.
macro_rules! all_locked {
    ($on:expr, $query:expr) => {
        $crate::store::locks::locked!($on, $query, load, for_update)
    };
}
pub(super) use all_locked;

/// The same, but rows that refer to the locked ones may still be made meanwhile.
macro_rules! all_locked_but_for_references {
    ($on:expr, $query:expr) => {
        $crate::store::locks::locked!($on, $query, load, for_no_key_update)
    };
}
pub(super) use all_locked_but_for_references;

/// As [`all_locked`], but rows that another transaction has locked are left out: whoever waits for none is in nobody's circle.
macro_rules! all_locked_that_are_free {
    ($on:expr, $query:expr) => {
        match $on {
            $crate::store::backend::Conn::Sqlite(conn) => {
                let conn: &mut $crate::store::backend::SqliteConn = &mut **conn;
                diesel_async::RunQueryDsl::load($query, conn).await
            }
            $crate::store::backend::Conn::Postgres(conn) => {
                let conn: &mut $crate::store::backend::PgConn = &mut **conn;
                let query = diesel::QueryDsl::skip_locked(diesel::QueryDsl::for_update($query));
                diesel_async::RunQueryDsl::load(query, conn).await
            }
        }
    };
}
pub(super) use all_locked_that_are_free;
