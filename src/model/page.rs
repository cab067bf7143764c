//! Pages of a list: by cursor forwards, by cursor backwards, or by offset.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The most rows that one page may hold.
pub const MAX_PAGE_SIZE: usize = 100;

/// Ascending or descending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

/// Where a row stands in an ordering: the value that is sorted by, then the id that breaks ties.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The value that is sorted by.
    pub key: SortKey,
    /// The id, as text.
    pub id: String,
}

/// A value that a list is sorted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
#[serde(untagged)]
pub enum SortKey {
    /// A number; times are microseconds since 1970.
    Number(i64),
    /// Text.
    Text(String),
}

/// An opaque cursor: a position, bound to the ordering that it was made under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The ordering's name.
    pub order: String,
    /// The place in it.
    pub position: Position,
}

impl Cursor {
    /// The text that a client gets.
    ///
    /// # Panics
    /// Never: its parts are strings and numbers.
    #[must_use]
    pub fn encode(&self) -> String {
        let parts = (&self.order, &self.position.key, &self.position.id);
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&parts).expect("strings and numbers are JSON"))
    }

    /// Reads a cursor; `None` where the text is none.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (order, key, id): (_, _, String) = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        // No row has a NUL in it, and PostgreSQL cannot be asked for one.
        let has_nul = id.contains('\0') || matches!(&key, SortKey::Text(text) if text.contains('\0'));
        (!has_nul).then_some(Self { order, position: Position { key, id } })
    }
}

/// Which part of the list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Window {
    /// The rows after a position, or from the start.
    After(Option<Position>),
    /// The rows before a position, or up to the end.
    Before(Option<Position>),
    /// The rows after so many.
    Offset(i64),
}

/// A request for one page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Page {
    /// How many rows, 1 to [`MAX_PAGE_SIZE`].
    pub size: usize,
    /// Which part.
    pub window: Window,
}

impl Page {
    /// How many rows to read: one more than asked for, which tells whether there are more.
    #[must_use]
    pub fn limit(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX - 1) + 1
    }

    /// How many rows to skip.
    #[must_use]
    pub fn offset(&self) -> i64 {
        match self.window {
            Window::Offset(rows) => rows,
            Window::After(_) | Window::Before(_) => 0,
        }
    }

    /// Whether the list is to be read from its end.
    #[must_use]
    pub fn is_backward(&self) -> bool {
        matches!(self.window, Window::Before(_))
    }

    /// The position to start from, if there is one.
    #[must_use]
    pub fn start(&self) -> Option<&Position> {
        match &self.window {
            Window::After(position) | Window::Before(position) => position.as_ref(),
            Window::Offset(_) => None,
        }
    }

    /// Makes a page of the rows that were read by [`Page::limit`], in the order they were read.
    #[must_use]
    pub fn slice<T>(&self, mut rows: Vec<T>) -> PageSlice<T> {
        let more = rows.len() > self.size;
        rows.truncate(self.size);
        let started_inside = self.start().is_some() || self.offset() > 0;
        if self.is_backward() {
            rows.reverse();
            PageSlice { rows, has_previous: more, has_next: started_inside }
        } else {
            PageSlice { rows, has_previous: started_inside, has_next: more }
        }
    }
}

impl Page {
    /// A page for each parent of the rows that were read by [`Page::limit`] of each, in the order they were read.
    #[must_use]
    pub fn slices<P: Clone + Eq + Hash, T>(
        &self,
        parents: &[P],
        rows: impl IntoIterator<Item = (P, T)>,
    ) -> HashMap<P, PageSlice<T>> {
        let mut of: HashMap<P, Vec<T>> = parents.iter().map(|parent| (parent.clone(), Vec::new())).collect();
        for (parent, row) in rows {
            of.entry(parent).or_default().push(row);
        }
        of.into_iter().map(|(parent, rows)| (parent, self.slice(rows))).collect()
    }
}

/// The rows of one page, in the list's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSlice<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Whether rows stand before them.
    pub has_previous: bool,
    /// Whether rows stand after them.
    pub has_next: bool,
}

impl<T> PageSlice<T> {
    /// The same, of rows that several may hold.
    #[must_use]
    pub fn shared(self) -> PageSlice<Arc<T>> {
        let Self { rows, has_previous, has_next } = self;
        PageSlice { rows: rows.into_iter().map(Arc::new).collect(), has_previous, has_next }
    }
}
