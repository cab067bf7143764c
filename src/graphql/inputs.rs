//! What the inputs and payloads of all nouns share.

use async_graphql::{ID, MaybeUndefined};

use crate::domain::{self, Error, FieldError, Patch};
use crate::model::{Id, Kind};

/// A field of an update.
pub(super) fn patch<T, U>(value: MaybeUndefined<T>, into: impl FnOnce(T) -> U) -> Patch<U> {
    match value {
        MaybeUndefined::Undefined => Patch::Keep,
        MaybeUndefined::Null => Patch::Clear,
        MaybeUndefined::Value(value) => Patch::Set(into(value)),
    }
}

/// The id of what a mutation is done to: one that is none of this kind is the id of nothing.
pub(super) fn target<K: Kind>(id: &ID, what: &str) -> domain::Result<Id<K>> {
    id.parse().map_err(|_| Error::not_found(what))
}

/// An id that a filter names.
///
/// # Errors
/// Where it is none of this kind.
pub(super) fn filter_id<K: Kind>(field: &'static str, id: Option<ID>) -> domain::Result<Option<Id<K>>> {
    let parsed = id.map(|id| id.parse()).transpose();
    parsed.map_err(|_| {
        let message = "is not an id of this kind".into();
        Error::bad_input(vec![FieldError { path: vec!["filter", field], message }])
    })
}

/// Text to search for, unless there is none.
pub(super) fn searched(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// Inputs that have nothing but an id.
macro_rules! id_inputs {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$meta])*
        #[derive(async_graphql::InputObject)]
        pub(super) struct $name {
            /// Its id.
            id: async_graphql::ID,
        }
    )+};
}
pub(super) use id_inputs;

/// Payloads that have nothing but the record as it is now.
macro_rules! payloads {
    ($field:ident: $of:ident($row:ty): $($(#[$meta:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$meta])*
        #[derive(async_graphql::SimpleObject)]
        pub(super) struct $name {
            /// As it is now.
            $field: $of,
        }

        impl From<$row> for $name {
            fn from(row: $row) -> Self {
                Self { $field: $of(row.into()) }
            }
        }
    )+};
}
pub(super) use payloads;
