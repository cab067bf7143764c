//! Keyset pages: a page that begins at a cursor costs the same at any depth, but for the rows that a filter leaves out, and rows
//! that come and go meanwhile are neither skipped nor repeated. An offset is walked.

use diesel::backend::Backend;
use diesel::expression::{AppearsOnTable, AsExpression, Expression, TypedExpressionType, ValidGrouping, is_aggregate};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::serialize::ToSql;
use diesel::sql_types::{BigInt, Bool, HasSqlType, SqlType};

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

/// Orders a boxed query by `$column` and then `$id` and starts it at the page's position; [`bounded`] ends it. `$value` is the
/// column's type in a cursor.
macro_rules! keyset {
    ($query:ident, $page:expr, $direction:expr, $column:expr, $id:expr, $value:ty) => {{
        let page: &$crate::model::Page = $page;
        $crate::store::page::keyset!(@start $query, page, $direction, $column, $id, $value);
        $query = if $crate::store::page::is_ascending(page, $direction) {
            $query.order(($column.asc(), $id.asc()))
        } else {
            $query.order(($column.desc(), $id.desc()))
        };
    }};
    (@start $query:ident, $page:ident, $direction:expr, $column:expr, $id:expr, $value:ty) => {
        if let Some(position) = $page.start() {
            let key = <$value as $crate::store::page::FromSortKey>::from_sort_key(&position.key)?;
            let id = position.id.clone();
            let is_ascending = $crate::store::page::is_ascending($page, $direction);
            $query = $query.filter($crate::store::page::beyond(($column, $id), (key, id), is_ascending));
        }
    };
}
pub(super) use keyset;

/// The rows beyond a position. Compared as one value, so that the index finds the place among rows that are alike in the first.
pub(super) fn beyond<C, I, K, P>(
    (column, id): (C, I),
    (key, place): (K, P),
    is_ascending: bool,
) -> Beyond<C, I, K::Expression, P::Expression>
where
    C: Expression<SqlType: SqlType + TypedExpressionType>,
    I: Expression<SqlType: SqlType + TypedExpressionType>,
    K: AsExpression<C::SqlType>,
    P: AsExpression<I::SqlType>,
{
    Beyond { column, id, key: key.as_expression(), place: place.as_expression(), is_ascending }
}

/// [`beyond`].
#[derive(Debug)]
pub(super) struct Beyond<C, I, K, P> {
    column: C,
    id: I,
    key: K,
    place: P,
    is_ascending: bool,
}

impl<C, I, K, P> Expression for Beyond<C, I, K, P> {
    type SqlType = Bool;
}

impl<C, I, K, P> QueryId for Beyond<C, I, K, P> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<C, I, K, P> ValidGrouping<()> for Beyond<C, I, K, P> {
    type IsAggregate = is_aggregate::No;
}

impl<C: AppearsOnTable<T>, I: AppearsOnTable<T>, K, P, T> AppearsOnTable<T> for Beyond<C, I, K, P> {}

impl<C, I, K, P, DB> QueryFragment<DB> for Beyond<C, I, K, P>
where
    DB: Backend,
    C: QueryFragment<DB>,
    I: QueryFragment<DB>,
    K: QueryFragment<DB>,
    P: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql("(");
        self.column.walk_ast(out.reborrow())?;
        out.push_sql(", ");
        self.id.walk_ast(out.reborrow())?;
        out.push_sql(if self.is_ascending { ") > (" } else { ") < (" });
        self.key.walk_ast(out.reborrow())?;
        out.push_sql(", ");
        self.place.walk_ast(out.reborrow())?;
        out.push_sql(")");
        Ok(())
    }
}

/// An ordered query, of which the rows of one page are read, and one more where there is one.
pub(super) fn bounded<Q>(query: Q, page: &Page) -> Bounded<Q> {
    Bounded { query, bounds: Bounds::of(page) }
}

/// [`bounded`].
#[derive(Debug)]
pub(super) struct Bounded<Q> {
    query: Q,
    bounds: Bounds,
}

impl<Q: Query> Query for Bounded<Q> {
    type SqlType = Q::SqlType;
}

impl<Q> QueryId for Bounded<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend, Q: QueryFragment<DB>> QueryFragment<DB> for Bounded<Q>
where
    Bounds: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.query.walk_ast(out.reborrow())?;
        self.bounds.walk_ast(out)
    }
}

/// Which rows of an ordered query are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many: as many as there are on the page and one, or a few more. The number stands in the statement's text, since
    /// PostgreSQL makes a new plan each time for one that it does not know; and it is one of a few, since each text is a
    /// prepared statement.
    pub(super) rows: i64,
    /// How many come before.
    pub(super) offset: i64,
}

impl Bounds {
    pub(super) fn of(page: &Page) -> Self {
        let rows = [2, 6, 11, 21, 51, 101].into_iter().find(|rows| *rows >= page.limit());
        Self { rows: rows.unwrap_or_else(|| page.limit()), offset: page.offset() }
    }
}

impl<DB: Backend> QueryFragment<DB> for Bounds
where
    i64: ToSql<BigInt, DB>,
    DB: HasSqlType<BigInt>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql(&format!(" LIMIT {}", self.rows));
        if self.offset > 0 {
            out.push_sql(" OFFSET ");
            out.push_bind_param::<BigInt, _>(&self.offset)?;
        }
        Ok(())
    }
}

/// Whether the rows are read in ascending order.
pub(super) fn is_ascending(page: &Page, direction: Direction) -> bool {
    (direction == Direction::Ascending) != page.is_backward()
}
