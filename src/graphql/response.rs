//! Makes an answer follow the GraphQL specification where the library does not.
//!
//! The library gives fields in the order in which they were done, and leaves a field that failed out of its parent, even one
//! that may not be null. Here the fields get the order of the query, a nullable field that failed is null, and one that may
//! not be null takes the nearest parent that may be with it (docs/decisions/async-graphql.md).

use std::collections::HashMap;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{BaseType, Field, Selection, SelectionSet, Type};
use async_graphql::{Name, PathSegment, Response, ServerError, Value};

use super::collected::{Collected, TYPE_KEY};
use super::schema_types::SchemaTypes;
use super::walls::root_type;

/// Completes the answer to an operation.
pub fn complete(types: &SchemaTypes, collected: &Collected, answer: &mut Response) {
    let operation = &collected.operation;
    let selections = &operation.selection_set.node;
    // Without an error beneath it, the answer as a whole was refused.
    let is_executed = answer.errors.is_empty() || answer.errors.iter().any(|error| !error.path.is_empty());
    if !is_executed || (answer.errors.is_empty() && is_in_order(selections, &answer.data)) {
        return;
    }
    let failed = Failed::read(&answer.errors);
    let data = std::mem::take(&mut answer.data);
    answer.data = object(types, root_type(operation), selections, data, Some(&failed)).unwrap_or_default();
}

/// The paths of the errors, as a tree.
#[derive(Default)]
struct Failed<'a> {
    fields: HashMap<&'a str, Failed<'a>>,
    items: HashMap<usize, Failed<'a>>,
}

impl<'a> Failed<'a> {
    fn read(errors: &'a [ServerError]) -> Self {
        let mut root = Self::default();
        for error in errors {
            let mut place = &mut root;
            for segment in &error.path {
                place = match segment {
                    PathSegment::Field(key) => place.fields.entry(key).or_default(),
                    PathSegment::Index(index) => place.items.entry(*index).or_default(),
                };
            }
        }
        root
    }

    fn is_leaf(&self) -> bool {
        self.fields.is_empty() && self.items.is_empty()
    }
}

/// A field that may not be null is: the nearest parent that may be has to be.
struct NullPropagates;

/// Whether all objects have their fields in the query's order already, and nothing that the query does not ask for.
fn is_in_order(selections: &SelectionSet, value: &Value) -> bool {
    match value {
        Value::List(items) => items.iter().all(|item| is_in_order(selections, item)),
        Value::Object(found) if !selections.items.is_empty() => {
            found.len() == selections.items.len()
                && selections.items.iter().zip(found).all(|(selection, (key, value))| match &selection.node {
                    Selection::Field(field) => {
                        !key.is_empty()
                            && field.node.response_key().node == *key
                            && is_in_order(&field.node.selection_set.node, value)
                    }
                    _ => false,
                })
        }
        _ => true,
    }
}

fn object(
    types: &SchemaTypes,
    parent: &str,
    selections: &SelectionSet,
    value: Value,
    failed: Option<&Failed<'_>>,
) -> Result<Value, NullPropagates> {
    let mut found = match value {
        Value::Object(fields) => fields,
        // The library gives null for an object none of whose fields was done.
        _ => IndexMap::new(),
    };
    let (parent, selections) = match found.get(TYPE_KEY) {
        Some(Value::String(of)) => (of.clone(), branch(selections, of)),
        _ => (parent.to_owned(), selections),
    };
    let mut fields = IndexMap::with_capacity(found.len());
    for field in selections.items.iter().filter_map(field_of) {
        let key = &field.response_key().node;
        if key.is_empty() {
            continue;
        }
        let field_type = types.field(&parent, &field.name.node);
        let failed = failed.and_then(|failed| failed.fields.get(key.as_str()));
        let completed = match (found.swap_remove(key), field_type) {
            (Some(value), Some(of)) => self::value(types, of, &field.selection_set.node, value, failed)?,
            (Some(value), None) => introspected(&field.selection_set.node, value),
            (None, Some(of)) if !of.nullable => return Err(NullPropagates),
            (None, _) => Value::Null,
        };
        fields.insert(key.clone(), completed);
    }
    Ok(Value::Object(fields))
}

/// A value of introspection, whose fields do not fail.
fn introspected(selections: &SelectionSet, value: Value) -> Value {
    match value {
        Value::List(items) => items.into_iter().map(|item| introspected(selections, item)).collect(),
        Value::Object(mut found) if !selections.items.is_empty() => {
            let fields = selections.items.iter().filter_map(field_of).filter_map(|field| {
                let key = &field.response_key().node;
                let value = found.swap_remove(key).filter(|_| !key.is_empty())?;
                Some((key.clone(), introspected(&field.selection_set.node, value)))
            });
            Value::Object(fields.collect())
        }
        value => value,
    }
}

/// The part of the selections that is for this type.
fn branch<'a>(selections: &'a SelectionSet, of: &str) -> &'a SelectionSet {
    let branches = selections.items.iter().filter_map(|selection| match &selection.node {
        Selection::InlineFragment(fragment) => Some(&fragment.node),
        _ => None,
    });
    let is_on = |condition: Option<&Name>| condition.is_some_and(|name| name == of);
    let mut branches =
        branches.filter(|fragment| is_on(fragment.type_condition.as_ref().map(|condition| &condition.node.on.node)));
    branches.next().map_or(selections, |fragment| &fragment.selection_set.node)
}

fn field_of(selection: &async_graphql::Positioned<Selection>) -> Option<&Field> {
    match &selection.node {
        Selection::Field(field) => Some(&field.node),
        _ => None,
    }
}

fn value(
    types: &SchemaTypes,
    of: &Type,
    selections: &SelectionSet,
    value: Value,
    failed: Option<&Failed<'_>>,
) -> Result<Value, NullPropagates> {
    let is_composite = !selections.items.is_empty();
    let completed = match (value, &of.base) {
        (Value::List(items), BaseType::List(item_type)) => list(types, item_type, selections, items, failed),
        (value @ Value::Object(_), BaseType::Named(name)) if is_composite => {
            object(types, name, selections, value, failed)
        }
        (Value::Null, BaseType::Named(name)) if is_composite && failed.is_some_and(|failed| !failed.is_leaf()) => {
            object(types, name, selections, Value::Null, failed)
        }
        (Value::Null, _) if !of.nullable => Err(NullPropagates),
        (value, _) => Ok(value),
    };
    match completed {
        Err(NullPropagates) if of.nullable => Ok(Value::Null),
        completed => completed,
    }
}

fn list(
    types: &SchemaTypes,
    item_type: &Type,
    selections: &SelectionSet,
    items: Vec<Value>,
    failed: Option<&Failed<'_>>,
) -> Result<Value, NullPropagates> {
    let items = items.into_iter().enumerate().map(|(index, item)| {
        let failed = failed.and_then(|failed| failed.items.get(&index));
        value(types, item_type, selections, item, failed)
    });
    Ok(Value::List(items.collect::<Result<_, _>>()?))
}
