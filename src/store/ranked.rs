//! One page of the rows of each of several parents, in one statement that reads no more of a parent's rows than it must.
//!
//! PostgreSQL looks up the page of each parent (`LATERAL`) and stops there; the rows of a parent come in their order, since they
//! come from one ordered query. SQLite has nothing of the kind: it numbers the rows of each parent and keeps those of the page.

use diesel::expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::serialize::ToSql;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel::sqlite::Sqlite;

use super::page::Bounds;

/// The rows of a query that is filtered by [`OfParent`] and whose last column is [`Place`].
#[derive(Debug)]
pub(super) struct Ranked<'a, Q, P> {
    pub(super) query: Q,
    pub(super) parents: &'a [P],
    pub(super) bounds: Bounds,
    /// The place of the last row that is read.
    pub(super) last: i64,
    /// `ORDER BY` and what follows.
    pub(super) order: String,
}

impl<Q: Query, P> Query for Ranked<'_, Q, P> {
    type SqlType = Q::SqlType;
}

impl<Q, P> QueryId for Ranked<'_, Q, P> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: QueryFragment<Pg>, P> QueryFragment<Pg> for Ranked<'_, Q, P>
where
    for<'p> &'p [P]: ToSql<Array<Text>, Pg>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ranked.* FROM unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.parents)?;
        out.push_sql(") AS parent(id) CROSS JOIN LATERAL (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(&self.order);
        self.bounds.walk_ast(out.reborrow())?;
        out.push_sql(") AS ranked");
        Ok(())
    }
}

impl<Q: QueryFragment<Sqlite>, P> QueryFragment<Sqlite> for Ranked<'_, Q, P> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("SELECT * FROM (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(") AS ranked WHERE place > ");
        out.push_bind_param::<BigInt, _>(&self.bounds.offset)?;
        out.push_sql(" AND place <= ");
        out.push_bind_param::<BigInt, _>(&self.last)?;
        out.push_sql(" ORDER BY place");
        Ok(())
    }
}

/// Whether a row is of one of the parents.
#[derive(Debug)]
pub(super) struct OfParent<'a, P> {
    pub(super) column: &'static str,
    pub(super) parents: &'a [P],
}

impl<P> QueryFragment<Pg> for OfParent<'_, P> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_identifier(self.column)?;
        out.push_sql(" = parent.id");
        Ok(())
    }
}

impl<P: ToSql<Text, Sqlite>> QueryFragment<Sqlite> for OfParent<'_, P> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        // Another text for each number of parents: not worth keeping.
        out.unsafe_to_cache_prepared();
        out.push_identifier(self.column)?;
        out.push_sql(" IN (");
        for (index, parent) in self.parents.iter().enumerate() {
            if index > 0 {
                out.push_sql(", ");
            }
            out.push_bind_param::<Text, P>(parent)?;
        }
        out.push_sql(")");
        Ok(())
    }
}

/// The place of a row among those of its parent, from 1; on PostgreSQL, which needs none, 0.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: &'static str,
    /// `ORDER BY` and what follows.
    pub(super) order: String,
}

impl QueryFragment<Pg> for Place {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("0::bigint AS place");
        Ok(())
    }
}

impl QueryFragment<Sqlite> for Place {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(&format!("row_number() OVER (PARTITION BY {}{}) AS place", self.parent, self.order));
        Ok(())
    }
}

/// Fragments that stand in any query, of whatever tables.
macro_rules! anywhere {
    ($([$($generics:tt)*] $fragment:ty as $sql_type:ty),+ $(,)?) => {$(
        impl<$($generics)*> Expression for $fragment {
            type SqlType = $sql_type;
        }
        impl<$($generics)*> QueryId for $fragment {
            type QueryId = ();
            const HAS_STATIC_QUERY_ID: bool = false;
        }
        impl<$($generics)*> ValidGrouping<()> for $fragment {
            type IsAggregate = is_aggregate::Never;
        }
        anywhere!(@on [$($generics)*] $fragment);
    )+};
    (@on [] $fragment:ty) => {
        impl<T> SelectableExpression<T> for $fragment {}
        impl<T> AppearsOnTable<T> for $fragment {}
    };
    (@on [$($generics:tt)+] $fragment:ty) => {
        impl<$($generics)+, T> SelectableExpression<T> for $fragment {}
        impl<$($generics)+, T> AppearsOnTable<T> for $fragment {}
    };
}

anywhere! {
    [] Place as BigInt,
    ['a, P] OfParent<'a, P> as Bool,
}

/// One page of the rows of each of the `$parents`: `$query` without selection, `$row` what to select of it, `$parent` the
/// column that names the parent. The rest as for [`keyset`](super::page::keyset).
macro_rules! ranked {
    ($query:ident, $row:ident, $page:expr, $direction:expr, $parent:expr => $parents:expr, $column:expr, $id:expr, $value:ty) => {{
        use $crate::store::ranked::{OfParent, Place, Ranked, name_of};
        let page: &$crate::model::Page = $page;
        let parents = $parents;
        let mut query = $query.filter(OfParent { column: name_of($parent), parents });
        $crate::store::page::keyset!(@start query, page, $direction, $column, $id, $value);
        let way = if $crate::store::page::is_ascending(page, $direction) { "ASC" } else { "DESC" };
        let order = format!(" ORDER BY {} {way}, {} {way}", name_of($column), name_of($id));
        let place = Place { parent: name_of($parent), order: order.clone() };
        let bounds = $crate::store::page::Bounds::of(page);
        let last = bounds.offset + page.limit();
        Ranked { query: query.select(($row, place)), parents, bounds, last, order }
    }};
}
pub(super) use ranked;

/// The name of a column.
pub(super) fn name_of<C: diesel::Column>(_: C) -> &'static str {
    C::NAME
}
