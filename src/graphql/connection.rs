//! Relay connections, and the arguments that ask for a page of one.

use std::borrow::Cow;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use async_graphql::{Context, InputObject, Object, ObjectType, SimpleObject, TypeName};

use super::error::Result;
use super::rows::{Row, Rows};
use crate::domain::{self, Error, FieldError};
use crate::model::{Cursor, Direction, MAX_PAGE_SIZE, Page, PageSlice, Position, Window};

/// The page size where none is asked for.
pub(super) const DEFAULT_PAGE_SIZE: usize = 20;

/// A type that is listed in pages.
pub(super) trait Listed: ObjectType + Sync + 'static {
    /// What the list was filtered by.
    type Filter: Send + Sync;
    /// What it shows.
    type Row: Send + Sync + 'static;

    /// The type of a row.
    fn of(row: Arc<Self::Row>) -> Self;

    /// The row.
    fn row(&self) -> &Self::Row;

    /// How many there are in all: asked for only where `totalCount` is selected.
    fn count(ctx: &Context<'_>, filter: &Self::Filter) -> impl Future<Output = Result<i64>> + Send;
}

/// A page of a list.
pub(super) struct Connection<T: Listed> {
    edges: Vec<Edge<T>>,
    has_next: bool,
    has_previous: bool,
    filter: T::Filter,
}

/// A row of a page, with its place in the list.
pub(super) struct Edge<T: Listed> {
    order: Arc<Order<T>>,
    node: T,
}

/// The order of a list: its name in cursors, and where a row stands in it.
struct Order<T: Listed> {
    name: String,
    position: Place<T>,
}

/// Tells where a row stands.
type Place<T> = Box<dyn Fn(&<T as Listed>::Row) -> Position + Send + Sync>;

impl<T: Listed> Edge<T> {
    /// Made for who asks for it: few do.
    fn encoded(&self) -> String {
        let position = (self.order.position)(self.node.row());
        Cursor { order: self.order.name.clone(), position }.encode()
    }
}

/// Whether there is more, and where the page begins and ends.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct PageInfo {
    /// Whether rows follow.
    has_next_page: bool,
    /// Whether rows come before.
    has_previous_page: bool,
    /// The cursor of the first row; null on an empty page.
    start_cursor: Option<String>,
    /// The cursor of the last row; null on an empty page.
    end_cursor: Option<String>,
}

impl<T: Listed> Connection<T> {
    /// A connection of the rows. `position` says where a row stands in the list's order, `order` names that order.
    pub(super) fn new<R: Into<Arc<T::Row>>>(
        slice: PageSlice<R>,
        order: &str,
        filter: T::Filter,
        position: impl Fn(&T::Row) -> Position + Send + Sync + 'static,
    ) -> Self {
        let order = Arc::new(Order { name: order.to_owned(), position: Box::new(position) });
        let edge = |row: R| Edge { order: order.clone(), node: T::of(row.into()) };
        let edges = slice.rows.into_iter().map(edge).collect();
        Self { edges, has_next: slice.has_next, has_previous: slice.has_previous, filter }
    }

    pub(super) fn edge_rows(&self) -> Rows<'_, Edge<T>> {
        Rows(self.edges.iter().collect())
    }

    pub(super) fn node_rows(&self) -> Rows<'_, T> {
        Rows(self.edges.iter().map(|edge| &edge.node).collect())
    }

    pub(super) fn info(&self) -> PageInfo {
        PageInfo {
            has_next_page: self.has_next,
            has_previous_page: self.has_previous,
            start_cursor: self.edges.first().map(Edge::encoded),
            end_cursor: self.edges.last().map(Edge::encoded),
        }
    }

    pub(super) async fn count(&self, ctx: &Context<'_>) -> Result<i32> {
        let count = Box::pin(T::count(ctx, &self.filter)).await?;
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }
}

/// A page of a list.
#[Object(name_type)]
impl<T: Listed> Connection<T> {
    /// The rows with their cursors.
    async fn edges(&self) -> Rows<'_, Edge<T>> {
        self.edge_rows()
    }

    /// The rows.
    async fn nodes(&self) -> Rows<'_, T> {
        self.node_rows()
    }

    /// Whether there is more.
    async fn page_info(&self) -> PageInfo {
        self.info()
    }

    /// How many rows the whole list has. Counted only where it is selected.
    async fn total_count(&self, ctx: &Context<'_>) -> Result<i32> {
        self.count(ctx).await
    }
}

impl<T: Listed> TypeName for Connection<T> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Connection", T::type_name()).into()
    }
}

/// A row of a page.
#[Object(name_type)]
impl<T: Listed> Edge<T> {
    /// The row's place in the list, to start another page from.
    async fn cursor(&self) -> String {
        self.encoded()
    }

    /// The row.
    async fn node(&self) -> Row<'_, T> {
        Row(&self.node)
    }
}

impl<T: Listed> TypeName for Edge<T> {
    fn type_name() -> Cow<'static, str> {
        format!("{}Edge", T::type_name()).into()
    }
}

/// The arguments of every list.
#[derive(Debug, Default)]
pub(super) struct PageArguments {
    pub(super) first: Option<i32>,
    pub(super) after: Option<String>,
    pub(super) last: Option<i32>,
    pub(super) before: Option<String>,
    pub(super) offset: Option<i32>,
}

impl PageArguments {
    /// The page that they ask for in the list with this order.
    ///
    /// # Errors
    /// `BAD_USER_INPUT` with every argument that is wrong.
    pub(super) fn page(self, order: &str) -> domain::Result<Page> {
        let mut wrong = Vec::new();
        let mut fail = |argument, message: &'static str| {
            wrong.push(FieldError { path: vec![argument], message: message.into() });
        };
        let is_backward = self.last.is_some() || self.before.is_some();
        if is_backward && (self.first.is_some() || self.after.is_some()) {
            fail("last", "cannot stand together with first or after, nor can before");
        }
        if self.offset.is_some() && (is_backward || self.after.is_some()) {
            fail("offset", "cannot stand together with a cursor or with last");
        }
        let mut size_of = |argument, size: Option<i32>| match size {
            None => DEFAULT_PAGE_SIZE,
            Some(size) => match usize::try_from(size) {
                Ok(size) if (1..=MAX_PAGE_SIZE).contains(&size) => size,
                _ => {
                    fail(argument, "must be between 1 and 100");
                    DEFAULT_PAGE_SIZE
                }
            },
        };
        let size = if is_backward { size_of("last", self.last) } else { size_of("first", self.first) };
        let mut position_of = |argument, cursor: Option<String>| {
            let cursor = Cursor::decode(&cursor?).filter(|cursor| cursor.order == order);
            if cursor.is_none() {
                fail(argument, "is not a cursor of this list in this order");
            }
            cursor.map(|cursor| cursor.position)
        };
        let window = match self.offset {
            Some(offset) => {
                if offset < 0 {
                    fail("offset", "must not be negative");
                }
                Window::Offset(offset.into())
            }
            None if is_backward => Window::Before(position_of("before", self.before)),
            None => Window::After(position_of("after", self.after)),
        };
        if wrong.is_empty() { Ok(Page { size, window }) } else { Err(Error::bad_input(wrong)) }
    }
}

/// A span of time; an open side where one is left out.
#[derive(Debug, Clone, InputObject)]
pub(super) struct DateTimeRange {
    /// Not before this.
    pub(super) from: Option<super::scalars::DateTime>,
    /// Before this.
    pub(super) to: Option<super::scalars::DateTime>,
}

/// Ascending or descending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, async_graphql::Enum)]
pub(super) enum OrderDirection {
    /// Smallest, oldest or first of the alphabet first.
    Asc,
    /// Largest, newest or last of the alphabet first.
    Desc,
}

/// What a list is sorted by, where nothing is asked for by the default, and that order's name: a cursor holds for one field in
/// one direction.
pub(super) fn ordering<F, O: From<F> + Debug>(
    asked: Option<(F, OrderDirection)>,
    default: (F, OrderDirection),
) -> (O, Direction, String) {
    let (field, direction) = asked.unwrap_or(default);
    let (order, direction) = (O::from(field), Direction::from(direction));
    let name = format!("{order:?} {direction:?}");
    (order, direction, name)
}

impl From<OrderDirection> for Direction {
    fn from(direction: OrderDirection) -> Self {
        match direction {
            OrderDirection::Asc => Self::Ascending,
            OrderDirection::Desc => Self::Descending,
        }
    }
}
