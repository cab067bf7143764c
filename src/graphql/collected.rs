//! What an operation selects, settled before it is executed, as the specification's `CollectFields` has it: fragments are
//! spread, what is skipped is left out, fields with one response key are merged.
//!
//! The library would do a field twice that is selected twice, and pair the rows of two lists by their place.

use std::collections::HashSet;

use async_graphql::indexmap::IndexMap;
use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, Field, InlineFragment, OperationDefinition, OperationType,
    Selection, SelectionSet, TypeCondition,
};
use async_graphql::{Name, Pos, Positioned, Value, Variables};
use async_graphql_value::Value as Literal;

use super::schema_types::{SchemaTypes, base_name};
use super::walls::{Refusal, root_type};

/// The response key of the types that the server asks for itself: one that no document can spell.
pub(super) const TYPE_KEY: &str = "";

/// The most fields that an operation may have once its fragments are spread.
const MAX_FIELDS: usize = 1_000;

/// An operation whose selection sets are fields with different keys. Only where the fields of an interface or union depend on
/// the type it has a fragment for each type instead, which begins with the type under [`TYPE_KEY`].
#[derive(Debug, Clone)]
pub struct Collected {
    pub(super) operation: OperationDefinition,
    /// How many fields it has.
    pub size: usize,
}

impl Collected {
    /// Query, mutation or subscription.
    pub(super) fn kind(&self) -> OperationType {
        self.operation.ty
    }

    /// The names of its root fields.
    pub fn root_fields(&self) -> impl Iterator<Item = &str> {
        self.operation.selection_set.node.items.iter().filter_map(|item| match &item.node {
            Selection::Field(field) => Some(field.node.name.node.as_str()),
            Selection::InlineFragment(_) | Selection::FragmentSpread(_) => None,
        })
    }

    /// As a document of its own.
    #[must_use]
    pub fn to_document(&self) -> ExecutableDocument {
        Self::document(self.operation.clone())
    }

    /// As a query: each event of a subscription is one, of the subscription's type.
    pub(super) fn to_event_document(&self) -> ExecutableDocument {
        Self::document(OperationDefinition { ty: OperationType::Query, ..self.operation.clone() })
    }

    fn document(operation: OperationDefinition) -> ExecutableDocument {
        let operations = DocumentOperations::Single(Positioned::new(operation, Pos::default()));
        ExecutableDocument { operations, fragments: std::collections::HashMap::new() }
    }
}

/// Collects an operation of a document that has passed the walls. Without variables: `None` where what is skipped depends on
/// them.
///
/// # Errors
/// Where it has too many fields, or two that differ under one key, or is a subscription without exactly one field.
pub fn collect(
    types: &SchemaTypes,
    document: &ExecutableDocument,
    operation: &OperationDefinition,
    variables: Option<&Variables>,
) -> Result<Option<Collected>, Refusal> {
    let mut collector = Collector { types, document, variables, size: 0, used: HashSet::new() };
    match collector.set(Some(root_type(operation)), &[&operation.selection_set]) {
        Ok(selection_set) => {
            if operation.ty == OperationType::Subscription && !is_one_field(&selection_set.node) {
                return Err(Refusal::invalid("A subscription must have exactly one field, and none of introspection."));
            }
            let definitions = operation.variable_definitions.iter();
            let used = definitions.filter(|definition| collector.used.contains(&definition.node.name.node));
            let operation = OperationDefinition {
                ty: operation.ty,
                variable_definitions: used.cloned().collect(),
                directives: Vec::new(),
                selection_set,
            };
            Ok(Some(Collected { operation, size: collector.size }))
        }
        Err(Stop::NeedsVariables) => Ok(None),
        Err(Stop::Refused(refusal)) => Err(refusal),
    }
}

struct Collector<'a> {
    types: &'a SchemaTypes,
    document: &'a ExecutableDocument,
    variables: Option<&'a Variables>,
    size: usize,
    /// The variables that arguments use.
    used: HashSet<Name>,
}

enum Stop {
    NeedsVariables,
    Refused(Refusal),
}

/// The fields that share a response key.
struct Merged<'a> {
    field: &'a Positioned<Field>,
    sets: Vec<&'a Positioned<SelectionSet>>,
}

type Fields<'a> = IndexMap<&'a Name, Merged<'a>>;

impl<'a> Collector<'a> {
    /// One set of the sets that were selected on a type; `None` is one of introspection, which has no fragments on others.
    fn set(
        &mut self,
        parent: Option<&str>,
        sets: &[&'a Positioned<SelectionSet>],
    ) -> Result<Positioned<SelectionSet>, Stop> {
        let pos = sets.first().map_or_else(Pos::default, |set| set.pos);
        let possible = parent.and_then(|parent| self.types.possible(parent));
        let items = match (parent, possible) {
            (Some(parent), Some(possible)) if sets.iter().any(|set| self.depends_on_type(parent, &set.node)) => {
                let branches = possible.iter().map(|of| {
                    let mut items = vec![type_of(pos)];
                    items.extend(self.fields(Some(of), sets)?);
                    let fragment = InlineFragment {
                        type_condition: Some(Positioned::new(TypeCondition { on: name(of, pos) }, pos)),
                        directives: Vec::new(),
                        selection_set: Positioned::new(SelectionSet { items }, pos),
                    };
                    Ok(Positioned::new(Selection::InlineFragment(Positioned::new(fragment, pos)), pos))
                });
                branches.collect::<Result<_, Stop>>()?
            }
            _ => {
                let items = self.fields(parent, sets)?;
                // An object without any field would be answered as null.
                if items.is_empty() { vec![type_of(pos)] } else { items }
            }
        };
        Ok(Positioned::new(SelectionSet { items }, pos))
    }

    fn fields(
        &mut self,
        parent: Option<&str>,
        sets: &[&'a Positioned<SelectionSet>],
    ) -> Result<Vec<Positioned<Selection>>, Stop> {
        let mut fields = Fields::new();
        for set in sets {
            self.gather(parent, &set.node, &mut fields)?;
        }
        fields.into_values().map(|merged| self.field(parent, &merged)).collect()
    }

    fn field(&mut self, parent: Option<&str>, merged: &Merged<'a>) -> Result<Positioned<Selection>, Stop> {
        self.size += 1;
        if self.size > MAX_FIELDS {
            return Err(Stop::Refused(Refusal::too_complex("fields, with its fragments spread", MAX_FIELDS)));
        }
        let Positioned { pos, node: field } = merged.field;
        for (_, argument) in &field.arguments {
            self.note_variables(&argument.node);
        }
        let types = self.types;
        let of = parent.and_then(|parent| types.field(parent, &field.name.node)).map(|of| base_name(of).as_str());
        let selection_set = if merged.sets.iter().all(|set| set.node.items.is_empty()) {
            Positioned::default()
        } else {
            self.set(of, &merged.sets)?
        };
        let field = Field {
            alias: field.alias.clone(),
            name: field.name.clone(),
            arguments: field.arguments.clone(),
            directives: Vec::new(),
            selection_set,
        };
        Ok(Positioned::new(Selection::Field(Positioned::new(field, *pos)), *pos))
    }

    fn gather(&self, parent: Option<&str>, set: &'a SelectionSet, into: &mut Fields<'a>) -> Result<(), Stop> {
        for selection in &set.items {
            if self.is_skipped(selection.node.directives())? {
                continue;
            }
            match &selection.node {
                Selection::Field(field) => match into.entry(&field.node.response_key().node) {
                    async_graphql::indexmap::map::Entry::Vacant(entry) => {
                        entry.insert(Merged { field, sets: vec![&field.node.selection_set] });
                    }
                    async_graphql::indexmap::map::Entry::Occupied(mut entry) => {
                        if !is_same(&entry.get().field.node, &field.node) {
                            let key = entry.key();
                            let message = format!("The fields \"{key}\" differ: give each an alias of its own.");
                            return Err(Stop::Refused(Refusal::invalid(message)));
                        }
                        entry.get_mut().sets.push(&field.node.selection_set);
                    }
                },
                Selection::InlineFragment(fragment) => {
                    let condition = fragment.node.type_condition.as_ref().map(|condition| &condition.node);
                    if self.applies(parent, condition) {
                        self.gather(parent, &fragment.node.selection_set.node, into)?;
                    }
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = self.document.fragments.get(&spread.node.fragment_name.node);
                    if let Some(fragment) = fragment
                        && self.applies(parent, Some(&fragment.node.type_condition.node))
                    {
                        self.gather(parent, &fragment.node.selection_set.node, into)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether fields of the set are on another type than the interface or union itself.
    fn depends_on_type(&self, parent: &str, set: &SelectionSet) -> bool {
        set.items.iter().any(|selection| {
            let (condition, set) = match &selection.node {
                Selection::Field(_) => return false,
                Selection::InlineFragment(fragment) => {
                    (fragment.node.type_condition.as_ref(), &fragment.node.selection_set)
                }
                Selection::FragmentSpread(spread) => {
                    match self.document.fragments.get(&spread.node.fragment_name.node) {
                        Some(fragment) => (Some(&fragment.node.type_condition), &fragment.node.selection_set),
                        None => return false,
                    }
                }
            };
            condition.is_some_and(|condition| condition.node.on.node != parent)
                || self.depends_on_type(parent, &set.node)
        })
    }

    /// Whether a fragment with this condition is on the type.
    fn applies(&self, parent: Option<&str>, condition: Option<&TypeCondition>) -> bool {
        let (Some(parent), Some(condition)) = (parent, condition) else { return true };
        let condition = condition.on.node.as_str();
        condition == parent
            || self.types.possible(condition).is_some_and(|possible| possible.iter().any(|of| of == parent))
    }

    fn is_skipped(&self, directives: &[Positioned<Directive>]) -> Result<bool, Stop> {
        for Positioned { node: directive, .. } in directives {
            let skipped_if = match directive.name.node.as_str() {
                "skip" => true,
                "include" => false,
                _ => continue,
            };
            let condition = match directive.get_argument("if").map(|value| &value.node) {
                Some(Literal::Variable(name)) => {
                    let variables = self.variables.ok_or(Stop::NeedsVariables)?;
                    variables.get(name).cloned().unwrap_or_default()
                }
                Some(value) => value.clone().into_const().unwrap_or_default(),
                None => Value::Null,
            };
            let Value::Boolean(condition) = condition else {
                let message = format!("The condition of @{} is not a Boolean.", directive.name.node);
                return Err(Stop::Refused(Refusal::invalid(message)));
            };
            if condition == skipped_if {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn note_variables(&mut self, value: &Literal) {
        match value {
            Literal::Variable(name) => {
                self.used.insert(name.clone());
            }
            Literal::List(items) => items.iter().for_each(|item| self.note_variables(item)),
            Literal::Object(fields) => fields.values().for_each(|field| self.note_variables(field)),
            _ => {}
        }
    }
}

fn is_one_field(set: &SelectionSet) -> bool {
    match set.items.as_slice() {
        [only] => {
            matches!(&only.node, Selection::Field(field) if !field.node.name.node.starts_with("__"))
        }
        _ => false,
    }
}

fn is_same(one: &Field, other: &Field) -> bool {
    let argument = |name: &Name| other.arguments.iter().find(|(found, _)| found.node == *name);
    one.name.node == other.name.node
        && one.arguments.len() == other.arguments.len()
        && one
            .arguments
            .iter()
            .all(|(name, value)| argument(&name.node).is_some_and(|(_, found)| found.node == value.node))
}

/// `__typename` under [`TYPE_KEY`].
fn type_of(pos: Pos) -> Positioned<Selection> {
    let field = Field {
        alias: Some(name(TYPE_KEY, pos)),
        name: name("__typename", pos),
        arguments: Vec::new(),
        directives: Vec::new(),
        selection_set: Positioned::default(),
    };
    Positioned::new(Selection::Field(Positioned::new(field, pos)), pos)
}

fn name(text: &str, pos: Pos) -> Positioned<Name> {
    Positioned::new(Name::new(text), pos)
}
