//! Searching: text anywhere in a column of folded text, by the index of trigrams that each database has for it.
//!
//! `LIKE` decides on both. PostgreSQL's planner knows by its statistics whether to begin with the trigrams or to walk the
//! list's order and look into each row. SQLite's does not know how often a term is found, so it is asked first: where more
//! than a few thousand rows can have it, the walk finds a page of them soon; otherwise these rows are all that is read.

use diesel::expression::{AppearsOnTable, Expression, ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::sqlite::Sqlite;

use super::backend::Conn;
use super::error::Result;
use super::fields::{contains, needle};

/// More candidates than this are not read one by one. Sorting them takes SQLite some 10 ms, about as long as it takes to find
/// a page of them among half a million rows.
const MOST_CANDIDATES: i64 = 4_000;

/// That a column has the text in it.
#[derive(Debug, Clone)]
pub(super) struct Contains<C> {
    column: C,
    pattern: String,
    /// `SQLite` only: the index of trigrams, and what to ask it for.
    candidates: Option<(&'static str, String)>,
}

/// What `$filter.search` asks for in `$table`.
macro_rules! searched {
    ($conn:expr, $table:ident, $filter:expr) => {
        $crate::store::search::Contains::prepare(
            $conn,
            $table::search_text,
            concat!(stringify!($table), "_search"),
            $filter.search.as_deref(),
        )
        .await?
    };
}
pub(super) use searched;

impl<C> Contains<C> {
    /// The filter for `text`, where some is searched for.
    pub(super) async fn prepare(
        conn: &mut Conn,
        column: C,
        index: &'static str,
        text: Option<&str>,
    ) -> Result<Option<Self>> {
        let Some(text) = text else { return Ok(None) };
        let candidates = match (conn, trigrams(&needle(text))) {
            (Conn::Sqlite(conn), Some(trigrams)) => {
                let count = format!("(SELECT count(*) FROM (SELECT 1 FROM {index} WHERE {index} MATCH ");
                let count = diesel::dsl::sql::<BigInt>(&count).bind::<Text, _>(&trigrams);
                let count = diesel::select(count.sql(" LIMIT ").bind::<BigInt, _>(MOST_CANDIDATES).sql("))"));
                let found: i64 = diesel_async::RunQueryDsl::get_result(count, &mut **conn).await?;
                (found < MOST_CANDIDATES).then_some((index, trigrams))
            }
            _ => None,
        };
        Ok(Some(Self { column, pattern: contains(text), candidates }))
    }
}

/// Every three characters that follow each other, as FTS5 asks for all of them; none where there are fewer.
fn trigrams(needle: &str) -> Option<String> {
    let characters: Vec<char> = needle.chars().collect();
    let mut distinct: Vec<String> =
        characters.windows(3).map(|three| three.iter().collect::<String>().replace('"', "\"\"")).collect();
    distinct.sort_unstable();
    distinct.dedup();
    (!distinct.is_empty()).then(|| format!("\"{}\"", distinct.join("\" AND \"")))
}

impl<C> Expression for Contains<C> {
    type SqlType = Bool;
}

impl<C: AppearsOnTable<QS>, QS> AppearsOnTable<QS> for Contains<C> {}

impl<C> ValidGrouping<()> for Contains<C> {
    type IsAggregate = is_aggregate::No;
}

impl<C> QueryId for Contains<C> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<C: QueryFragment<Pg>> QueryFragment<Pg> for Contains<C> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        // A plan that was made for all terms suits no term: each is planned by itself.
        out.unsafe_to_cache_prepared();
        self.column.walk_ast(out.reborrow())?;
        out.push_sql(" LIKE ");
        out.push_bind_param::<Text, _>(&self.pattern)?;
        out.push_sql(r" ESCAPE '\'");
        Ok(())
    }
}

impl<C: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Contains<C> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        self.column.walk_ast(out.reborrow())?;
        out.push_sql(" LIKE ");
        out.push_bind_param::<Text, _>(&self.pattern)?;
        out.push_sql(r" ESCAPE '\'");
        if let Some((index, trigrams)) = &self.candidates {
            let table = index.trim_end_matches("_search");
            out.push_sql(&format!(" AND {table}.rowid IN (SELECT rowid FROM {index} WHERE {index} MATCH "));
            out.push_bind_param::<Text, _>(trigrams)?;
            out.push_sql(")");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_asked_for_by_its_trigrams() {
        assert_eq!(trigrams("ab"), None);
        assert_eq!(trigrams("abab"), Some(r#""aba" AND "bab""#.to_owned()));
        assert_eq!(trigrams("aaaaa"), Some(r#""aaa""#.to_owned()));
        assert_eq!(trigrams(r#"é"x"#), Some(r#""é""x""#.to_owned()));
    }
}
