//! The schema as a whole: what it declares, describes and shows.

use async_graphql_parser::parse_schema;
use async_graphql_parser::types::{
    BaseType, FieldDefinition, InputValueDefinition, Type, TypeDefinition, TypeKind, TypeSystemDefinition,
};
use claviger::graphql::sdl;
use serde_json::json;

use crate::support::{EventStream, both_databases};

/// The fields that need no sign-in.
const PUBLIC: [&str; 5] = ["acceptInvitation", "refreshSession", "signIn", "signOut", "viewer"];
/// The queries that every signed-in member of the organization may ask.
const FOR_MEMBERS: [&str; 10] =
    ["client", "clients", "credential", "credentials", "node", "nodes", "organization", "task", "tasks", "user"];

fn types() -> Vec<TypeDefinition> {
    let definitions = parse_schema(sdl()).unwrap().definitions.into_iter();
    definitions
        .filter_map(|definition| match definition {
            TypeSystemDefinition::Type(definition) => Some(definition.node),
            _ => None,
        })
        .collect()
}

fn root_fields() -> Vec<(String, FieldDefinition)> {
    let roots = types().into_iter().filter(|of| matches!(of.name.node.as_str(), "Query" | "Mutation" | "Subscription"));
    roots
        .flat_map(|root| {
            let name = root.name.node.to_string();
            let TypeKind::Object(object) = root.kind else { panic!("a root is an object") };
            object.fields.into_iter().map(move |field| (name.clone(), field.node))
        })
        .collect()
}

/// A call of a field with the arguments that must be there, and of what it returns only the type.
fn call(field: &FieldDefinition) -> String {
    let required = |field: &InputValueDefinition| !field.ty.node.nullable && field.default_value.is_none();
    let arguments = field.arguments.iter().filter(|argument| required(&argument.node));
    let arguments: Vec<_> =
        arguments.map(|argument| format!("{}: {}", argument.node.name.node, literal(&argument.node.ty.node))).collect();
    let arguments = if arguments.is_empty() { String::new() } else { format!("({})", arguments.join(", ")) };
    format!("{}{arguments} {{ __typename }}", field.name.node)
}

/// A value of a type, well formed and of nothing that exists.
fn literal(of: &Type) -> String {
    let BaseType::Named(name) = &of.base else { return "[]".to_owned() };
    let definition = types().into_iter().find(|of| of.name.node == *name);
    match definition.map(|definition| definition.kind) {
        Some(TypeKind::InputObject(input)) => {
            let is_one_of = name == "PasswordInput";
            let fields = input.fields.iter().filter(|field| is_one_of || !field.node.ty.node.nullable);
            let fields: Vec<_> =
                fields.map(|field| format!("{}: {}", field.node.name.node, literal(&field.node.ty.node))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Some(TypeKind::Enum(of)) => of.values[0].node.value.node.to_string(),
        _ if name == "Int" => "1".to_owned(),
        _ if name == "Boolean" => "true".to_owned(),
        _ => "\"x\"".to_owned(),
    }
}

#[test]
fn the_committed_schema_is_the_servers_own() {
    let committed = std::fs::read_to_string("schema.graphql").unwrap();
    assert!(committed == sdl(), "cargo run -- schema > schema.graphql");
}

#[test]
fn every_root_field_declares_what_it_needs() {
    for (root, field) in root_fields() {
        let name = field.name.node.as_str();
        let has = |directive: &str| field.directives.iter().any(|d| d.node.name.node == directive);
        let is_listed = PUBLIC.contains(&name) || FOR_MEMBERS.contains(&name);
        assert_eq!(has("public"), PUBLIC.contains(&name), "{root}.{name}");
        assert_eq!(has("requires"), !is_listed, "{root}.{name}");
        assert_eq!(has("audits"), root == "Mutation", "{root}.{name}");
        assert_ne!(
            field.ty.node.nullable,
            name == "nodes" || root == "Subscription",
            "{root}.{name}: one refusal must not null the others, of which a subscription has none"
        );
    }
}

#[test]
fn everything_has_a_description() {
    let mut bare = Vec::new();
    for of in types() {
        let type_name = of.name.node.to_string();
        let mut note = |name: String, description: bool| {
            if !description {
                bare.push(name);
            }
        };
        note(type_name.clone(), of.description.is_some());
        let fields = match of.kind {
            TypeKind::Object(object) => object.fields,
            TypeKind::Interface(interface) => interface.fields,
            TypeKind::InputObject(input) => {
                for field in input.fields {
                    note(format!("{type_name}.{}", field.node.name.node), field.node.description.is_some());
                }
                Vec::new()
            }
            TypeKind::Enum(of) => {
                for value in of.values {
                    note(format!("{type_name}.{}", value.node.value.node), value.node.description.is_some());
                }
                Vec::new()
            }
            TypeKind::Scalar | TypeKind::Union(_) => Vec::new(),
        };
        for field in fields {
            let field_name = format!("{type_name}.{}", field.node.name.node);
            note(field_name.clone(), field.node.description.is_some());
            for argument in field.node.arguments {
                note(format!("{field_name}({})", argument.node.name.node), argument.node.description.is_some());
            }
        }
    }
    assert_eq!(bare, Vec::<String>::new());
}

both_databases! {
    async fn nobody_gets_past_a_field_that_is_not_public(app: TestApp) {
        let anonymous = app.anonymous();
        for (root, field) in root_fields() {
            let name = field.name.node.as_str();
            if PUBLIC.contains(&name) {
                continue;
            }
            let operation = format!("{} {{ {} }}", root.to_lowercase(), call(&field));
            let answer = if root == "Subscription" {
                EventStream::open(&anonymous, &operation).await.answer().await
            } else {
                anonymous.run(&operation).await
            };
            assert_eq!(answer.code(), "UNAUTHENTICATED", "{root}.{name}: {}", answer.body);
            assert!(answer.body["data"].is_null() || answer.body["data"][name].is_null(), "{root}.{name}");
        }
    }

    async fn of_several_records_each_is_refused_by_itself(app: TestApp) {
        let manager = app.user("MANAGER").await;
        let organization = manager.run("{ organization { id } }").await.data()["organization"]["id"].clone();
        let ids = format!("[\"acct_00000000000000000000000000\", {organization}]");
        let answer = manager.run(&format!("{{ nodes(ids: {ids}) {{ id }} }}")).await;
        assert_eq!(answer.body["data"], json!({ "nodes": [null, { "id": organization }] }));
        assert_eq!((&answer.body["errors"][0]["path"], answer.code()), (&json!(["nodes", 0]), "FORBIDDEN"));
    }

    async fn a_role_gets_what_the_table_gives_it(app: TestApp) {
        for role in ["ADMIN", "MANAGER", "MEMBER", "READ_ONLY"] {
            let user = app.user(role).await;
            assert_eq!(user.run("{ organization { name } }").await.data()["organization"]["name"], "My organization");
            for query in [
                "{ claudeAccounts { totalCount } }", "{ claudeAccount(id: \"acct_00000000000000000000000000\") { id } }",
                "{ auditLogs { totalCount } }",
            ] {
                let answer = user.run(query).await;
                if role == "ADMIN" { answer.data(); } else { assert_eq!(answer.code(), "FORBIDDEN", "{role} {query}"); }
            }
        }
    }
}
