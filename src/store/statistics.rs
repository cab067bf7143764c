//! What SQLite's planner is told of the tables, whatever they hold.
//!
//! Without statistics it plans as though ten rows were of one organization, and reads all of an organization's rows to find
//! those of a client or those that a search names. These say what is true of whoever has enough rows for it to matter, by the
//! number of an index's columns alone. The sums of usage stand in their primary key, of which it is said too what an hour has, so that
//! those of one key or user are found by their index. The audit log does without: by them a span of time long past would be looked for from
//! the newest entry on. They are made at every start, so that an ANALYZE that somebody has run changes the plans until then.

use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{Integer, Nullable, Text};
use diesel::{QueryResult, RunQueryDsl as _, SqliteConnection};

/// The lines that are to be there.
const WANTED: &str = "SELECT i.tbl_name AS tbl, i.name AS idx,
       CASE (SELECT count(*) FROM pragma_index_info(i.name))
         WHEN 1 THEN '1000000 100000'
         WHEN 2 THEN '1000000 100000 1'
         WHEN 3 THEN '1000000 100000 10 1'
         ELSE '1000000 100000 100 10 1'
       END AS stat
     FROM sqlite_schema AS i
     WHERE i.type = 'index' AND i.sql LIKE '%(organization_id%' AND i.tbl_name <> 'audit_logs'
     UNION ALL
     SELECT name, name, '1000000 100000 50000 1000 100 10 5 2 1' FROM sqlite_schema WHERE name = 'usage_rollups'";

/// A line of `sqlite_stat1`.
#[derive(diesel::QueryableByName, PartialEq)]
struct Line {
    #[diesel(sql_type = Nullable<Text>)]
    tbl: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    idx: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    stat: Option<String>,
}

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = Integer)]
    count: i32,
}

/// Writes the statistics where others are there, or none. Within a transaction.
pub(super) fn write(conn: &mut SqliteConnection) -> QueryResult<()> {
    let tables = "SELECT count(*) AS count FROM sqlite_schema WHERE name = 'sqlite_stat1'";
    if diesel::sql_query(tables).get_result::<Count>(conn)?.count > 0 {
        let there: Vec<Line> = diesel::sql_query("SELECT tbl, idx, stat FROM sqlite_stat1 ORDER BY 1, 2").load(conn)?;
        let wanted: Vec<Line> = diesel::sql_query(format!("{WANTED} ORDER BY 1, 2")).load(conn)?;
        if there == wanted {
            return Ok(());
        }
    }
    // A table that is made tells the connections that are open already to read the statistics again.
    conn.batch_execute(&format!(
        "DROP TABLE IF EXISTS sqlite_stat4;
         DROP TABLE IF EXISTS sqlite_stat1;
         ANALYZE sqlite_schema;
         INSERT INTO sqlite_stat1 (tbl, idx, stat) {WANTED};"
    ))
}
