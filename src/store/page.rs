//! Keyset pages: a page that begins at a cursor costs the same at any depth, but for the rows that a filter leaves out, and rows
//! that come and go meanwhile are neither skipped nor repeated. An offset is walked.

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::{Array, BigInt, Text};
use diesel::sqlite::Sqlite;

use super::error::{Error, Result};
use crate::model::{Direction, Page, SortKey, Timestamp};

/// A column's value as it stands in a cursor.
pub(super) trait FromSortKey: Sized {
    /// The value, or [`Error::ForeignCursor`] where the cursor holds one of another type.
    fn from_sort_key(key: &SortKey) -> Result<Self>;
}

impl FromSortKey for String {
    fn from_sort_key(key: &SortKey) -> Result<Self> {
        match key {
            SortKey::Text(text) => Ok(text.clone()),
            SortKey::Number(_) => Err(Error::ForeignCursor),
        }
    }
}

impl FromSortKey for i64 {
    fn from_sort_key(key: &SortKey) -> Result<Self> {
        match key {
            SortKey::Number(number) => Ok(*number),
            SortKey::Text(_) => Err(Error::ForeignCursor),
        }
    }
}

impl FromSortKey for i32 {
    fn from_sort_key(key: &SortKey) -> Result<Self> {
        Self::try_from(i64::from_sort_key(key)?).map_err(|_| Error::ForeignCursor)
    }
}

impl FromSortKey for Timestamp {
    fn from_sort_key(key: &SortKey) -> Result<Self> {
        let micros = i64::from_sort_key(key)?;
        Self::from_micros(micros).ok_or(Error::ForeignCursor)
    }
}

/// Orders a boxed query by `$column` and then `$id`, starts it at the page's position and bounds it.
/// `$value` is the column's type in a cursor. The first of the two filters is what lets the index find the place.
macro_rules! keyset {
    ($query:ident, $page:expr, $direction:expr, $column:expr, $id:expr, $value:ty) => {{
        let page: &$crate::model::Page = $page;
        $crate::store::page::keyset!(@start $query, page, $direction, $column, $id, $value);
        $query = if $crate::store::page::is_ascending(page, $direction) {
            $query.order(($column.asc(), $id.asc()))
        } else {
            $query.order(($column.desc(), $id.desc()))
        };
        $query = $query.limit(page.limit());
        if page.offset() > 0 {
            $query = $query.offset(page.offset());
        }
    }};
    (@start $query:ident, $page:ident, $direction:expr, $column:expr, $id:expr, $value:ty) => {
        if let Some(position) = $page.start() {
            let key = <$value as $crate::store::page::FromSortKey>::from_sort_key(&position.key)?;
            let id = position.id.clone();
            $query = if $crate::store::page::is_ascending($page, $direction) {
                $query.filter($column.ge(key.clone())).filter($column.gt(key).or($id.gt(id)))
            } else {
                $query.filter($column.le(key.clone())).filter($column.lt(key).or($id.lt(id)))
            };
        }
    };
}
pub(super) use keyset;

/// Whose rows are wanted.
#[derive(Debug)]
pub(super) struct Parents {
    /// The column that names the parent.
    pub(super) column: &'static str,
    /// The parents.
    pub(super) ids: Vec<String>,
}

/// Whether a database can go from each parent to its rows. One that cannot is asked for the rows of all.
pub(super) trait Nesting {
    const FROM_EACH_PARENT: bool;
}

impl Nesting for Pg {
    const FROM_EACH_PARENT: bool = true;
}

impl Nesting for Sqlite {
    const FROM_EACH_PARENT: bool = false;
}

/// The rows of a query whose last column, `place`, numbers the rows of each parent: those of one page.
///
/// `SQLite` numbers all rows of the parents. PostgreSQL stops at the end of each parent's page, and where an index has the order,
/// reads no more than that.
#[derive(Debug)]
pub(super) struct Ranked<Q> {
    /// The query. It has conditions, and neither an order nor a limit.
    pub(super) query: Q,
    /// Whose rows.
    pub(super) parents: Parents,
    /// In which order.
    pub(super) order: String,
    /// How many rows of each parent come before.
    pub(super) offset: i64,
    /// How many there are at most.
    pub(super) limit: i64,
    /// The place of the last.
    pub(super) last: i64,
}

impl<Q: Query> Query for Ranked<Q> {
    type SqlType = Q::SqlType;
}

impl<Q> QueryId for Ranked<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Ranked<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("SELECT * FROM (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(") AS ranked WHERE place > ");
        out.push_bind_param::<BigInt, _>(&self.offset)?;
        out.push_sql(" AND place <= ");
        out.push_bind_param::<BigInt, _>(&self.last)?;
        out.push_sql(" ORDER BY place");
        Ok(())
    }
}

impl<Q: QueryFragment<Pg>> QueryFragment<Pg> for Ranked<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ranked.* FROM unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.parents.ids)?;
        out.push_sql(") AS parents (parent) CROSS JOIN LATERAL (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(&format!(" AND {} = parents.parent ORDER BY {} LIMIT ", self.parents.column, self.order));
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(" OFFSET ");
        out.push_bind_param::<BigInt, _>(&self.offset)?;
        out.push_sql(") AS ranked ORDER BY place");
        Ok(())
    }
}

/// The parents among `$ids` that `$column` names, for [`ranked`].
macro_rules! parents {
    ($query:ident, $backend:ident, $column:expr, $ids:expr) => {{
        if !<$backend as $crate::store::page::Nesting>::FROM_EACH_PARENT {
            $query = $query.filter($column.eq_any($ids));
        }
        let ids = $ids.iter().map(ToString::to_string).collect();
        $crate::store::page::Parents { column: $crate::store::page::name_of($column), ids }
    }};
}
pub(super) use parents;

/// One page of the rows of each of the `$parents`: `$query` without selection, `$row` what to select of it. The rest as for
/// [`keyset`].
macro_rules! ranked {
    ($query:ident, $row:ident, $page:expr, $direction:expr, $parents:ident, $column:expr, $id:expr, $value:ty) => {{
        let page: &$crate::model::Page = $page;
        let mut query = $query;
        $crate::store::page::keyset!(@start query, page, $direction, $column, $id, $value);
        let way = if $crate::store::page::is_ascending(page, $direction) { "ASC" } else { "DESC" };
        let order = format!(
            "{column} {way}, {id} {way}",
            column = $crate::store::page::name_of($column),
            id = $crate::store::page::name_of($id),
        );
        let place = format!("row_number() OVER (PARTITION BY {} ORDER BY {order}) AS place", $parents.column);
        let place = diesel::dsl::sql::<diesel::sql_types::BigInt>(&place);
        let (offset, limit) = (page.offset(), page.limit());
        Ranked { query: query.select(($row, place)), parents: $parents, order, offset, limit, last: offset + limit }
    }};
}
pub(super) use ranked;

/// The name of a column.
pub(super) fn name_of<C: diesel::Column>(_: C) -> &'static str {
    C::NAME
}

/// Whether the rows are read in ascending order.
pub(super) fn is_ascending(page: &Page, direction: Direction) -> bool {
    (direction == Direction::Ascending) != page.is_backward()
}
