//! Keyset pages: a page costs the same at any depth, and rows that come and go meanwhile are neither skipped nor repeated.

use super::error::{Error, Result};
use crate::model::{SortKey, Timestamp};

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
        let ascending = ($direction == $crate::model::Direction::Ascending) != page.is_backward();
        let start = match page.start() {
            Some(position) => {
                let key = <$value as $crate::store::page::FromSortKey>::from_sort_key(&position.key)?;
                Some((key, position.id.clone()))
            }
            None => None,
        };
        if ascending {
            if let Some((key, id)) = start {
                $query = $query.filter($column.ge(key.clone())).filter($column.gt(key).or($id.gt(id)));
            }
            $query = $query.order(($column.asc(), $id.asc()));
        } else {
            if let Some((key, id)) = start {
                $query = $query.filter($column.le(key.clone())).filter($column.lt(key).or($id.lt(id)));
            }
            $query = $query.order(($column.desc(), $id.desc()));
        }
        $query = $query.limit(page.limit());
        if page.offset() > 0 {
            $query = $query.offset(page.offset());
        }
    }};
}
pub(super) use keyset;
