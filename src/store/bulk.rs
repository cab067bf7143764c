//! Inserting many rows.

/// Inserts what `$values` makes of each of the rows: hundreds a statement on PostgreSQL; on SQLite, where a statement costs
/// no trip, each by itself.
macro_rules! insert_all {
    ($conn:expr, $table:expr, $rows:expr, |$row:ident| $values:expr) => {
        match $conn {
            $crate::store::backend::Conn::Sqlite(conn) => {
                for $row in $rows {
                    let insert = diesel::insert_into($table).values($values);
                    diesel_async::RunQueryDsl::execute(insert, &mut **conn).await?;
                }
            }
            $crate::store::backend::Conn::Postgres(conn) => {
                for rows in $rows.chunks($crate::store::bulk::ROWS_A_STATEMENT) {
                    let values: Vec<_> = rows.iter().map(|$row| $values).collect();
                    let insert = diesel::insert_into($table).values(values);
                    diesel_async::RunQueryDsl::execute(insert, &mut **conn).await?;
                }
            }
        }
    };
}
pub(super) use insert_all;

/// Far from the 65,535 values that a statement may have.
pub(super) const ROWS_A_STATEMENT: usize = 500;
