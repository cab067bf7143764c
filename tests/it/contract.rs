//! The server's schema holds to the contract, `fixtures/contract.graphql`: it may have more, but nothing less and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use async_graphql_parser::Positioned;
use async_graphql_parser::types::{DirectiveDefinition, FieldDefinition, InputValueDefinition, TypeKind};

use crate::support::schema::{Schema, assert_lines, required_permission};

/// What of the contract the server does not have yet: types by their names, of types that it has the fields, arguments and
/// values. What arrives is taken out here.
const MISSING: &[&str] = &[];

/// Where the server differs from the contract on purpose, and why.
const DIFFERENCES: &[(&str, &str)] = &[];

fn contract() -> Schema {
    Schema::parse(include_str!("fixtures/contract.graphql"))
}

/// The contract against a schema.
#[derive(Default)]
struct Comparison {
    missing: BTreeSet<String>,
    /// Of what differs, what each says.
    different: BTreeMap<String, String>,
}

impl Comparison {
    fn of(contract: &Schema, server: &Schema) -> Self {
        let mut found = Self::default();
        for (name, directive) in &contract.directives {
            match server.directives.get(name) {
                None => found.miss(format!("@{name}")),
                Some(own) => {
                    found.same(&format!("@{name}"), &locations(directive), &locations(own));
                    found.inputs(&format!("@{name}"), &nodes(&directive.arguments), &nodes(&own.arguments));
                }
            }
        }
        for (name, of) in &contract.types {
            let Some(own) = server.types.get(name) else {
                found.miss(name.clone());
                continue;
            };
            found.same(name, &kind(&of.kind), &kind(&own.kind));
            for field in contract.fields(name) {
                let place = format!("{name}.{}", field.name.node);
                match server.fields(name).into_iter().find(|own| own.name.node == field.name.node) {
                    Some(own) => found.field(&place, field, own),
                    None => found.miss(place),
                }
            }
            found.inputs(name, &contract.inputs(name), &server.inputs(name));
            let values = server.values(name);
            for value in contract.values(name).into_iter().filter(|value| !values.contains(value)) {
                found.miss(format!("{name}.{value}"));
            }
        }
        found
    }

    fn field(&mut self, place: &str, field: &FieldDefinition, own: &FieldDefinition) {
        self.same(place, &field.ty.node.to_string(), &own.ty.node.to_string());
        // A field may name the permission that the contract tells of in words.
        if required_permission(field).is_some() {
            let requires = |field| format!("@requires {:?}", required_permission(field));
            self.same(place, &requires(field), &requires(own));
        }
        self.inputs(place, &nodes(&field.arguments), &nodes(&own.arguments));
    }

    /// Arguments, or fields of an input type: what is added must not be asked of those who do not know it.
    fn inputs(&mut self, of: &str, asked: &[&InputValueDefinition], own: &[&InputValueDefinition]) {
        for input in asked {
            let place = format!("{of}({})", input.name.node);
            let Some(own) = own.iter().find(|own| own.name.node == input.name.node) else {
                self.miss(place);
                continue;
            };
            let default = |input: &InputValueDefinition| match &input.default_value {
                Some(value) => format!("{} = {}", input.ty.node, value.node),
                None => input.ty.node.to_string(),
            };
            self.same(&place, &default(input), &default(own));
        }
        for own in own.iter().filter(|own| asked.iter().all(|input| input.name.node != own.name.node)) {
            if !own.ty.node.nullable && own.default_value.is_none() {
                let place = format!("{of}({})", own.name.node);
                self.different.insert(place, "is not in the contract, and is demanded".to_owned());
            }
        }
    }

    fn miss(&mut self, name: String) {
        self.missing.insert(name);
    }

    fn same(&mut self, place: &str, contract: &str, own: &str) {
        if contract != own {
            self.different.insert(place.to_owned(), format!("the contract says {contract}, the server {own}"));
        }
    }
}

fn locations(directive: &DirectiveDefinition) -> String {
    let locations: BTreeSet<_> = directive.locations.iter().map(|location| format!("{:?}", location.node)).collect();
    format!("on {locations:?}")
}

fn nodes(arguments: &[Positioned<InputValueDefinition>]) -> Vec<&InputValueDefinition> {
    arguments.iter().map(|argument| &argument.node).collect()
}

/// What a type is, what it implements and of what it is one.
fn kind(of: &TypeKind) -> String {
    match of {
        TypeKind::Object(object) => {
            let implements: BTreeSet<_> =
                object.implements.iter().map(|interface| interface.node.to_string()).collect();
            format!("an object, {implements:?}")
        }
        TypeKind::Union(union) => {
            let members: BTreeSet<_> = union.members.iter().map(|member| member.node.to_string()).collect();
            format!("a union, {members:?}")
        }
        TypeKind::Interface(_) => "an interface".to_owned(),
        TypeKind::InputObject(_) => "an input".to_owned(),
        TypeKind::Enum(_) => "an enum".to_owned(),
        TypeKind::Scalar => "a scalar".to_owned(),
    }
}

#[test]
fn the_schema_has_all_of_the_contract_but_what_is_listed_here() {
    let found = Comparison::of(&contract(), Schema::of_the_server());
    assert_lines("MISSING of tests/it/contract.rs", MISSING.iter().copied(), found.missing);
    let differs = |(place, says): (&String, &String)| format!("{place}: {says}");
    let unexplained: Vec<_> = found
        .different
        .iter()
        .filter(|(place, _)| !DIFFERENCES.iter().any(|(known, _)| known == place))
        .map(differs)
        .collect();
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    assert_lines(
        "DIFFERENCES of tests/it/contract.rs",
        DIFFERENCES.iter().map(|(place, _)| *place),
        found.different.into_keys(),
    );
}

#[test]
fn a_root_field_beyond_the_contract_does_not_null_the_others() {
    let contract = contract();
    for (name, field) in Schema::of_the_server().root_fields() {
        let (root, own) = name.split_once('.').unwrap();
        let is_known = contract.fields(root).iter().any(|field| field.name.node == own);
        assert!(is_known || field.ty.node.nullable, "{name} must be nullable: it can be refused");
    }
}

#[test]
fn a_difference_from_the_contract_is_noticed() {
    let contract = Schema::parse(
        "type A implements N { a(x: Int = 1): Int! b: Int } input I { x: Int! } enum E { V W } directive @d(a: Int) on FIELD",
    );
    let server = Schema::parse(
        "type A { a(x: Int = 2, y: Int!): Int } input I { x: Int y: Int! z: Int } enum E { V X } directive @e on FIELD",
    );
    let found = Comparison::of(&contract, &server);
    assert_lines("missing", ["@d", "A.b", "E.W"], found.missing);
    assert_lines("different", ["A", "A.a", "A.a(x)", "A.a(y)", "I(x)", "I(y)"], found.different.into_keys());
    let requires =
        |permission: &str| Schema::parse(&format!("type A {{ a: Int @requires(permission: {permission}) }}"));
    assert_eq!(Comparison::of(&requires("P"), &requires("Q")).different.len(), 1);
}
