//! Keyset pages: a page costs the same at any depth, and rows that come and go meanwhile are neither skipped nor repeated.

use diesel::backend::Backend;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::BigInt;

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

/// The rows of a query whose last column, `place`, numbers the rows of each parent: those of one page.
#[derive(Debug)]
pub(super) struct Ranked<Q> {
    /// The query.
    pub(super) query: Q,
    /// How many rows of each parent come before.
    pub(super) offset: i64,
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

impl<DB: Backend, Q: QueryFragment<DB>> QueryFragment<DB> for Ranked<Q>
where
    i64: diesel::serialize::ToSql<BigInt, DB>,
    DB: diesel::sql_types::HasSqlType<BigInt>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
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

/// One page of the rows of each `$parent`: `$query` without selection, `$row` what to select of it. The rest as for
/// [`keyset`].
macro_rules! ranked {
    ($query:ident, $row:ident, $page:expr, $direction:expr, $parent:expr, $column:expr, $id:expr, $value:ty) => {{
        let page: &$crate::model::Page = $page;
        let mut query = $query;
        $crate::store::page::keyset!(@start query, page, $direction, $column, $id, $value);
        let way = if $crate::store::page::is_ascending(page, $direction) { "ASC" } else { "DESC" };
        let place = diesel::dsl::sql::<diesel::sql_types::BigInt>(&format!(
            "row_number() OVER (PARTITION BY {parent} ORDER BY {column} {way}, {id} {way}) AS place",
            parent = $crate::store::page::name_of($parent),
            column = $crate::store::page::name_of($column),
            id = $crate::store::page::name_of($id),
        ));
        Ranked { query: query.select(($row, place)), offset: page.offset(), last: page.offset() + page.limit() }
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
