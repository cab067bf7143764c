//! What the schema's text says of its types: which fields they have, and which of them an interface or union may be.

use std::collections::HashMap;

use async_graphql::Name;
use async_graphql::parser::parse_schema;
use async_graphql::parser::types::{BaseType, Type, TypeKind, TypeSystemDefinition};

/// The types of a schema. Those of introspection are not among them.
#[derive(Debug, Default)]
pub struct SchemaTypes {
    fields: HashMap<String, HashMap<String, Type>>,
    /// The objects that an interface or union may be.
    possible: HashMap<String, Vec<String>>,
}

impl SchemaTypes {
    /// Reads a schema's text.
    ///
    /// # Panics
    /// Where it is not one: it was printed by the program itself.
    #[must_use]
    pub fn read(sdl: &str) -> Self {
        let document = parse_schema(sdl).expect("the schema's own text is a schema");
        let mut types = Self::default();
        for definition in document.definitions {
            let TypeSystemDefinition::Type(definition) = definition else { continue };
            let name = definition.node.name.node.to_string();
            let fields = match definition.node.kind {
                TypeKind::Object(object) => {
                    for interface in object.implements {
                        types.possible.entry(interface.node.to_string()).or_default().push(name.clone());
                    }
                    object.fields
                }
                TypeKind::Interface(interface) => {
                    types.possible.entry(name.clone()).or_default();
                    interface.fields
                }
                TypeKind::Union(union) => {
                    let members = union.members.into_iter().map(|member| member.node.to_string());
                    types.possible.insert(name.clone(), members.collect());
                    Vec::new()
                }
                TypeKind::Scalar | TypeKind::Enum(_) | TypeKind::InputObject(_) => continue,
            };
            let fields = fields.into_iter().map(|field| (field.node.name.node.to_string(), field.node.ty.node));
            types.fields.insert(name, fields.collect());
        }
        types
    }

    /// The type of a field; `None` where there is no such field.
    #[must_use]
    pub fn field(&self, parent: &str, field: &str) -> Option<&Type> {
        self.fields.get(parent)?.get(field)
    }

    /// The objects that an interface or union may be; `None` for any other type.
    #[must_use]
    pub fn possible(&self, name: &str) -> Option<&[String]> {
        self.possible.get(name).map(Vec::as_slice)
    }
}

/// The name at the bottom of a type.
pub(super) fn base_name(of: &Type) -> &Name {
    match &of.base {
        BaseType::Named(name) => name,
        BaseType::List(of) => base_name(of),
    }
}
