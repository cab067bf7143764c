//! A schema to walk through: the server's own, or the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use async_graphql_parser::Positioned;
use async_graphql_parser::parse_schema;
use async_graphql_parser::types::{
    BaseType, ConstDirective, DirectiveDefinition, FieldDefinition, InputValueDefinition, Type, TypeDefinition,
    TypeKind, TypeSystemDefinition,
};

pub(crate) struct Schema {
    pub(crate) types: BTreeMap<String, TypeDefinition>,
    pub(crate) directives: BTreeMap<String, DirectiveDefinition>,
}

/// A place of a field's arguments, or of the inputs within them, that takes a value.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The argument, and the input fields within it.
    pub(crate) path: Vec<String>,
    /// `Type.field` of the place: the input type and its field, or the field and its argument.
    pub(crate) name: String,
    /// The type of the value, without lists and nulls.
    pub(crate) of: String,
    pub(crate) is_list: bool,
}

impl Schema {
    pub(crate) fn parse(sdl: &str) -> Self {
        let mut schema = Self { types: BTreeMap::new(), directives: BTreeMap::new() };
        for definition in parse_schema(sdl).unwrap().definitions {
            match definition {
                TypeSystemDefinition::Type(of) => schema.types.insert(of.node.name.to_string(), of.node).map(drop),
                TypeSystemDefinition::Directive(of) => {
                    schema.directives.insert(of.node.name.to_string(), of.node).map(drop)
                }
                TypeSystemDefinition::Schema(_) => None,
            };
        }
        schema
    }

    /// What the server prints.
    pub(crate) fn of_the_server() -> &'static Self {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(|| Self::parse(&claviger::graphql::sdl()))
    }

    /// The fields of an object or interface.
    pub(crate) fn fields(&self, of: &str) -> Vec<&FieldDefinition> {
        match self.types.get(of).map(|of| &of.kind) {
            Some(TypeKind::Object(object)) => object.fields.iter().map(|field| &field.node).collect(),
            Some(TypeKind::Interface(interface)) => interface.fields.iter().map(|field| &field.node).collect(),
            _ => Vec::new(),
        }
    }

    /// The fields of an input type.
    pub(crate) fn inputs(&self, of: &str) -> Vec<&InputValueDefinition> {
        match self.types.get(of).map(|of| &of.kind) {
            Some(TypeKind::InputObject(input)) => input.fields.iter().map(|field| &field.node).collect(),
            _ => Vec::new(),
        }
    }

    /// The values of an enum.
    pub(crate) fn values(&self, of: &str) -> Vec<String> {
        match self.types.get(of).map(|of| &of.kind) {
            Some(TypeKind::Enum(of)) => of.values.iter().map(|value| value.node.value.to_string()).collect(),
            _ => Vec::new(),
        }
    }

    /// A field by its name, `Type.field`.
    pub(crate) fn field(&self, name: &str) -> &FieldDefinition {
        let (of, field) = name.split_once('.').unwrap();
        let found = self.fields(of).into_iter().find(|known| known.name.node == field);
        found.unwrap_or_else(|| panic!("the schema has no {name}"))
    }

    /// The fields of the roots, as `Query.client`.
    pub(crate) fn root_fields(&self) -> Vec<(String, &FieldDefinition)> {
        let of_roots = |(name, _): &(String, _)| is_root(name);
        self.object_fields().into_iter().filter(of_roots).collect()
    }

    /// The fields of all objects, as `Client.tasks`.
    pub(crate) fn object_fields(&self) -> Vec<(String, &FieldDefinition)> {
        let objects = self.types.iter().filter(|(_, of)| matches!(of.kind, TypeKind::Object(_)));
        let named = |of: &str, field: &FieldDefinition| format!("{of}.{}", field.name.node);
        objects.flat_map(|(of, _)| self.fields(of).into_iter().map(move |field| (named(of, field), field))).collect()
    }

    /// The lists in pages, as `Query.clients` and `Client.tasks`.
    pub(crate) fn lists(&self) -> Vec<(String, &FieldDefinition)> {
        let is_list = |field: &FieldDefinition| base(&field.ty.node).ends_with("Connection");
        self.object_fields().into_iter().filter(|(_, field)| is_list(field)).collect()
    }

    /// The types of the records that `node` returns.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let is_node = |of: &TypeDefinition| match &of.kind {
            TypeKind::Object(object) => object.implements.iter().any(|interface| interface.node == "Node"),
            _ => false,
        };
        self.types.iter().filter(|(_, of)| is_node(of)).map(|(name, _)| name.clone()).collect()
    }

    /// Every place of a field's arguments, those within input types too.
    pub(crate) fn places(&self, owner: &str, field: &FieldDefinition) -> Vec<Place> {
        let mut places = Vec::new();
        for argument in &field.arguments {
            self.collect(owner, &argument.node, &mut Vec::new(), &mut places);
        }
        places
    }

    fn collect(&self, owner: &str, value: &InputValueDefinition, path: &mut Vec<String>, places: &mut Vec<Place>) {
        let name = value.name.node.to_string();
        let of = base(&value.ty.node);
        assert!(path.len() < 8, "{owner}.{name}: inputs that contain themselves are not walked through");
        path.push(name.clone());
        let within = self.inputs(of);
        for field in &within {
            self.collect(of, field, path, places);
        }
        if within.is_empty() {
            let is_list = matches!(value.ty.node.base, BaseType::List(_));
            places.push(Place { path: path.clone(), name: format!("{owner}.{name}"), of: of.to_owned(), is_list });
        }
        path.pop();
    }
}

/// Whether a field belongs to a root.
pub(crate) fn is_root(name: &str) -> bool {
    ["Query.", "Mutation.", "Subscription."].iter().any(|root| name.starts_with(root))
}

/// A type without lists and nulls.
pub(crate) fn base(of: &Type) -> &str {
    match &of.base {
        BaseType::Named(name) => name,
        BaseType::List(of) => base(of),
    }
}

/// What a field names in `@requires`.
pub(crate) fn required_permission(field: &FieldDefinition) -> Option<String> {
    let requires = directive(field, "requires")?;
    requires.get_argument("permission").map(|permission: &Positioned<_>| permission.node.to_string())
}

/// A field's directive.
pub(crate) fn directive<'a>(field: &'a FieldDefinition, name: &str) -> Option<&'a ConstDirective> {
    field.directives.iter().map(|directive| &directive.node).find(|directive| directive.name.node == name)
}

/// Fails by name where a table of the tests lacks a line that the schema asks for, or has one that it does not.
#[track_caller]
pub(crate) fn assert_lines(
    table: &str,
    lines: impl IntoIterator<Item = impl Into<String>>,
    schema: impl IntoIterator<Item = impl Into<String>>,
) {
    let all: Vec<String> = lines.into_iter().map(Into::into).collect();
    let lines: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(lines.len(), all.len(), "{table} has a line twice");
    let schema: BTreeSet<String> = schema.into_iter().map(Into::into).collect();
    let missing: Vec<_> = schema.difference(&lines).collect();
    let stale: Vec<_> = lines.difference(&schema).collect();
    assert!(missing.is_empty(), "{table}: add a line for each of {missing:?} (docs/adding-a-resource.md)");
    assert!(stale.is_empty(), "{table}: the schema does not have {stale:?}: remove these lines");
}
