//! Makes an answer follow the GraphQL specification where the library does not.
//!
//! The library gives fields in the order in which they were done, and leaves a field that failed out of its parent, even one
//! that may not be null. Here the fields get the order of the query, a nullable field that failed is null, and one that may
//! not be null takes the nearest parent that may be with it (docs/decisions/async-graphql.md).
//!
//! Of an interface or union the concrete type is known only where the caller selects `__typename`; a field in a fragment on
//! another type is told by its being neither there nor at the path of an error.

use std::collections::HashMap;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::parse_schema;
use async_graphql::parser::types::{
    BaseType, Directive, ExecutableDocument, Field, OperationDefinition, Selection, SelectionSet, Type, TypeKind,
    TypeSystemDefinition,
};
use async_graphql::{Name, PathSegment, Positioned, Response, ServerError, Value, Variables};

use super::walls::root_type;

/// The types of all fields of all types.
#[derive(Debug, Default)]
pub struct SchemaTypes(HashMap<String, HashMap<String, Type>>);

impl SchemaTypes {
    /// Reads a schema's text.
    ///
    /// # Panics
    /// Where it is not one: it was printed by the program itself.
    #[must_use]
    pub fn read(sdl: &str) -> Self {
        let document = parse_schema(sdl).expect("the schema's own text is a schema");
        let mut types = HashMap::new();
        for definition in document.definitions {
            let TypeSystemDefinition::Type(definition) = definition else { continue };
            let fields = match definition.node.kind {
                TypeKind::Object(object) => object.fields,
                TypeKind::Interface(interface) => interface.fields,
                _ => continue,
            };
            let fields = fields.into_iter().map(|field| (field.node.name.node.to_string(), field.node.ty.node));
            types.insert(definition.node.name.node.to_string(), fields.collect());
        }
        Self(types)
    }

    /// The type of a field; `None` where there is no such field.
    #[must_use]
    pub fn field(&self, parent: &str, field: &str) -> Option<&Type> {
        self.0.get(parent)?.get(field)
    }
}

/// The name at the bottom of a type.
pub(super) fn base_name(of: &Type) -> &Name {
    match &of.base {
        BaseType::Named(name) => name,
        BaseType::List(of) => base_name(of),
    }
}

/// Completes the answer to an operation.
pub fn complete(
    types: &SchemaTypes,
    document: &ExecutableDocument,
    operation_name: Option<&str>,
    variables: &Variables,
    answer: &mut Response,
) {
    let mut operations = document.operations.iter();
    let named = |name: Option<&Name>| operation_name.is_none() || name.map(Name::as_str) == operation_name;
    let Some((_, operation)) = operations.find(|(name, _)| named(*name)) else { return };
    let operation = &operation.node;
    let completer = Completer { types, document, variables, operation, errors: &answer.errors };
    let selections = [&operation.selection_set.node];
    // Without an error beneath it, the answer as a whole was refused.
    let is_executed = answer.errors.is_empty() || answer.errors.iter().any(|error| !error.path.is_empty());
    if !is_executed || (answer.errors.is_empty() && completer.is_in_order(selections[0], &answer.data)) {
        return;
    }
    let data = std::mem::take(&mut answer.data);
    answer.data = completer.object(root_type(operation), &selections, data, &mut Vec::new()).unwrap_or_default();
}

struct Completer<'a> {
    types: &'a SchemaTypes,
    document: &'a ExecutableDocument,
    variables: &'a Variables,
    operation: &'a OperationDefinition,
    errors: &'a [ServerError],
}

/// The fields that share a response key, with the type that the first was selected on.
struct Merged<'a> {
    parent: &'a str,
    name: &'a str,
    selections: Vec<&'a SelectionSet>,
}

/// A field that may not be null is: the nearest parent that may be has to be.
struct NullPropagates;

impl<'a> Completer<'a> {
    /// Whether all objects have their fields in the query's order already. A field that was merged of several counts as not.
    fn is_in_order(&self, selections: &SelectionSet, value: &Value) -> bool {
        match value {
            Value::List(items) => items.iter().all(|item| self.is_in_order(selections, item)),
            Value::Object(fields) if !selections.items.is_empty() => self.follows(selections, fields, &mut 0).is_some(),
            _ => true,
        }
    }

    fn follows(&self, selections: &SelectionSet, fields: &IndexMap<Name, Value>, place: &mut usize) -> Option<()> {
        for selection in &selections.items {
            match &selection.node {
                Selection::Field(field) => {
                    let key = &field.node.response_key().node;
                    match fields.get_index(*place) {
                        Some((found, value)) if found == key => {
                            *place += 1;
                            self.is_in_order(&field.node.selection_set.node, value).then_some(())?;
                        }
                        _ if fields.contains_key(key) => return None,
                        _ => {}
                    }
                }
                Selection::InlineFragment(fragment) => {
                    self.follows(&fragment.node.selection_set.node, fields, place)?;
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = self.document.fragments.get(&spread.node.fragment_name.node)?;
                    self.follows(&fragment.node.selection_set.node, fields, place)?;
                }
            }
        }
        Some(())
    }

    fn object(
        &self,
        parent: &'a str,
        selections: &[&'a SelectionSet],
        value: Value,
        path: &mut Vec<PathSegment>,
    ) -> Result<Value, NullPropagates> {
        let mut found = match value {
            Value::Object(fields) => fields,
            // The library gives null for an object none of whose fields was done.
            _ => IndexMap::new(),
        };
        let mut collected = IndexMap::new();
        for selection in selections {
            self.collect(parent, selection, &mut collected);
        }
        let mut fields = IndexMap::with_capacity(collected.len());
        for (key, merged) in collected {
            path.push(PathSegment::Field(key.to_string()));
            let field_type = self.types.field(merged.parent, merged.name);
            let completed = match (found.swap_remove(key), field_type) {
                (Some(value), Some(field_type)) => Some(self.value(field_type, &merged.selections, value, path)?),
                // `__typename` and the introspection fields, which do not fail.
                (Some(value), None) => Some(value),
                (None, field_type) if self.failed_at_or_beneath(path) => {
                    if field_type.is_some_and(|field_type| !field_type.nullable) {
                        return Err(NullPropagates);
                    }
                    Some(Value::Null)
                }
                (None, _) => None,
            };
            path.pop();
            if let Some(value) = completed {
                fields.insert(key.clone(), value);
            }
        }
        Ok(Value::Object(fields))
    }

    fn value(
        &self,
        of: &'a Type,
        selections: &[&'a SelectionSet],
        value: Value,
        path: &mut Vec<PathSegment>,
    ) -> Result<Value, NullPropagates> {
        let is_composite = selections.iter().any(|selection| !selection.items.is_empty());
        let completed = match (value, &of.base) {
            (Value::List(items), BaseType::List(item_type)) => self.list(item_type, selections, items, path),
            (value @ Value::Object(_), BaseType::Named(name)) if is_composite => {
                self.object(name, selections, value, path)
            }
            (Value::Null, BaseType::Named(name)) if is_composite && self.failed_beneath(path) => {
                self.object(name, selections, Value::Null, path)
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
        &self,
        item_type: &'a Type,
        selections: &[&'a SelectionSet],
        items: Vec<Value>,
        path: &mut Vec<PathSegment>,
    ) -> Result<Value, NullPropagates> {
        let mut completed = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            path.push(PathSegment::Index(index));
            completed.push(self.value(item_type, selections, item, path)?);
            path.pop();
        }
        Ok(Value::List(completed))
    }

    fn collect(&self, parent: &'a str, selections: &'a SelectionSet, into: &mut IndexMap<&'a Name, Merged<'a>>) {
        for selection in &selections.items {
            match &selection.node {
                Selection::Field(Positioned { node: field, .. }) => {
                    if self.is_skipped(&field.directives) {
                        continue;
                    }
                    let Field { name, selection_set, .. } = field;
                    into.entry(&field.response_key().node)
                        .or_insert_with(|| Merged { parent, name: name.node.as_str(), selections: Vec::new() })
                        .selections
                        .push(&selection_set.node);
                }
                Selection::InlineFragment(Positioned { node: fragment, .. }) => {
                    if !self.is_skipped(&fragment.directives) {
                        let condition = fragment.type_condition.as_ref();
                        let parent = condition.map_or(parent, |condition| condition.node.on.node.as_str());
                        self.collect(parent, &fragment.selection_set.node, into);
                    }
                }
                Selection::FragmentSpread(Positioned { node: spread, .. }) => {
                    let fragment = self.document.fragments.get(&spread.fragment_name.node);
                    if let Some(fragment) = fragment.filter(|_| !self.is_skipped(&spread.directives)) {
                        let parent = fragment.node.type_condition.node.on.node.as_str();
                        self.collect(parent, &fragment.node.selection_set.node, into);
                    }
                }
            }
        }
    }

    fn is_skipped(&self, directives: &[Positioned<Directive>]) -> bool {
        directives.iter().any(|Positioned { node: directive, .. }| {
            let skipped_if = match directive.name.node.as_str() {
                "skip" => true,
                "include" => false,
                _ => return false,
            };
            let condition = directive.get_argument("if").map(|value| value.node.clone());
            let condition = condition.and_then(|value| value.into_const_with(|name| self.variable(&name)).ok());
            condition == Some(Value::Boolean(skipped_if))
        })
    }

    fn variable(&self, name: &Name) -> Result<Value, ()> {
        let definition =
            self.operation.variable_definitions.iter().find(|definition| definition.node.name.node == *name);
        let default = || definition.and_then(|definition| definition.node.default_value()).cloned();
        self.variables.get(name).cloned().or_else(default).ok_or(())
    }

    fn failed_at_or_beneath(&self, path: &[PathSegment]) -> bool {
        self.errors.iter().any(|error| error.path.starts_with(path))
    }

    fn failed_beneath(&self, path: &[PathSegment]) -> bool {
        self.errors.iter().any(|error| error.path.len() > path.len() && error.path.starts_with(path))
    }
}
