//! The rows of a list, put together with little work for each field.
//!
//! The library makes a boxed future for every field of every row. Here the fields of a row that have none of their own are
//! awaited one after the other in one future, and a future is boxed only where it has to wait: few do, and those wait side by
//! side, so that all rows ask their loaders at once. What a row refers to is put together likewise.

use std::borrow::Cow;
use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{Field, Selection, SelectionSet};
use async_graphql::registry::Registry;
use async_graphql::{
    ContainerType, ContextSelectionSet, Name, ObjectType, OutputType, Positioned, ServerResult, Value,
};
use futures_util::future::join_all;

/// Rows of one type.
pub(super) struct Rows<'a, T>(pub(super) Vec<&'a T>);

impl<T: ObjectType + Sync> OutputType for Rows<'_, T> {
    fn type_name() -> Cow<'static, str> {
        Vec::<&T>::type_name()
    }

    fn qualified_type_name() -> String {
        Vec::<&T>::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        Vec::<&T>::create_type_info(registry)
    }

    async fn resolve(&self, ctx: &ContextSelectionSet<'_>, field: &Positioned<Field>) -> ServerResult<Value> {
        if !is_plain(&ctx.item.node) {
            return self.0.resolve(ctx, field).await;
        }
        // Extensions are not asked: ours look at no field within another.
        let mut values = vec![Value::Null; self.0.len()];
        let rows = self.0.iter().enumerate().map(async |(index, row)| {
            let ctx = ctx.with_index(index);
            (index, resolve_row(&ctx, *row).await)
        });
        eagerly(rows, |(index, value)| values[index] = value).await;
        Ok(Value::List(values))
    }
}

/// One row, as [`Rows`] puts it together.
pub(super) struct Row<'a, T>(pub(super) &'a T);

impl<T: ObjectType + Sync> OutputType for Row<'_, T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn qualified_type_name() -> String {
        T::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        T::create_type_info(registry)
    }

    async fn resolve(&self, ctx: &ContextSelectionSet<'_>, field: &Positioned<Field>) -> ServerResult<Value> {
        if is_plain(&ctx.item.node) {
            Ok(resolve_row(ctx, self.0).await)
        } else {
            OutputType::resolve(self.0, ctx, field).await
        }
    }
}

/// What a row refers to, put together as [`Row`] is.
pub(super) struct One<T>(pub(super) T);

impl<T: ObjectType + Sync> OutputType for One<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn qualified_type_name() -> String {
        T::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        T::create_type_info(registry)
    }

    async fn resolve(&self, ctx: &ContextSelectionSet<'_>, field: &Positioned<Field>) -> ServerResult<Value> {
        Row(&self.0).resolve(ctx, field).await
    }
}

/// Whether a selection is nothing but fields, each answered once and as it is.
fn is_plain(selections: &SelectionSet) -> bool {
    let mut keys = HashSet::with_capacity(selections.items.len());
    selections.items.iter().all(|selection| match &selection.node {
        Selection::Field(field) => field.node.directives.is_empty() && keys.insert(&field.node.response_key().node),
        _ => false,
    })
}

async fn resolve_row<T: ContainerType>(ctx: &ContextSelectionSet<'_>, row: &T) -> Value {
    let fields = ctx.item.node.items.iter().filter_map(|selection| match &selection.node {
        Selection::Field(field) => Some(field),
        _ => None,
    });
    let mut object = IndexMap::with_capacity(ctx.item.node.items.len());
    let mut nested = Vec::new();
    for field in fields {
        let key = field.node.response_key().node.clone();
        if field.node.selection_set.node.items.is_empty() {
            insert(ctx, &mut object, key, resolve_field(ctx, row, field).await);
        } else {
            // Keeps its place.
            object.insert(key.clone(), Value::Null);
            nested.push(async move { (key, resolve_field(ctx, row, field).await) });
        }
    }
    eagerly(nested.into_iter(), |(key, resolved)| insert(ctx, &mut object, key, resolved)).await;
    Value::Object(object)
}

/// As the library has it: a field that failed is left out, and its error noted.
fn insert(ctx: &ContextSelectionSet<'_>, object: &mut IndexMap<Name, Value>, key: Name, resolved: ServerResult<Value>) {
    match resolved {
        Ok(value) => {
            object.insert(key, value);
        }
        Err(error) => {
            object.shift_remove(&key);
            ctx.add_error(error);
        }
    }
}

async fn resolve_field<T: ContainerType>(
    ctx: &ContextSelectionSet<'_>,
    row: &T,
    field: &Positioned<Field>,
) -> ServerResult<Value> {
    if field.node.name.node == "__typename" {
        return Ok(Value::String(row.introspection_type_name().into_owned()));
    }
    Ok(row.resolve_field(&ctx.with_field(field)).await?.unwrap_or_default())
}

/// Awaits the futures side by side and hands over what each answers, in any order. Each is polled once as it comes; one box
/// serves all that are ready at that.
async fn eagerly<F: Future>(futures: impl Iterator<Item = F>, mut done: impl FnMut(F::Output)) {
    let mut waiting = Vec::new();
    let mut free: Option<Pin<Box<F>>> = None;
    for future in futures {
        let mut place = match free.take() {
            Some(mut place) => {
                place.set(future);
                place
            }
            None => Box::pin(future),
        };
        match poll_fn(|cx| Poll::Ready(place.as_mut().poll(cx))).await {
            Poll::Ready(value) => {
                done(value);
                free = Some(place);
            }
            Poll::Pending => waiting.push(place),
        }
    }
    if !waiting.is_empty() {
        join_all(waiting).await.into_iter().for_each(done);
    }
}
