//! The schema as a whole: what it declares, describes and shows.

use async_graphql_parser::types::TypeKind;
use claviger::graphql::sdl;
use serde_json::json;

use crate::calls::Call;
use crate::support::both_databases;
use crate::support::schema::{Schema, directive};

/// The mutations that need somebody who has signed in: those on users and sign-ins, and on what those are told.
const NOT_BY_API_KEY: [&str; 16] = [
    "acceptInvitation",
    "changePassword",
    "deleteMyAccount",
    "deleteUser",
    "inviteUser",
    "markNotificationsRead",
    "refreshSession",
    "register",
    "requestPasswordReset",
    "resetPassword",
    "revokeSession",
    "signIn",
    "signOut",
    "updateProfile",
    "updateUser",
    "verifyEmail",
];

#[test]
fn the_committed_schema_is_the_servers_own() {
    let committed = std::fs::read_to_string("schema.graphql").unwrap();
    assert!(committed == sdl(), "cargo run -- schema > schema.graphql");
}

#[test]
fn every_mutation_says_whether_an_api_key_may_do_it() {
    // What an API key may do is decided for each: whoever adds a mutation says so here or there.
    for (name, field) in Schema::of_the_server().root_fields() {
        let is_by_api_key = name.strip_prefix("Mutation.").is_some_and(|name| !NOT_BY_API_KEY.contains(&name));
        assert_eq!(directive(field, "openToApiKeys").is_some(), is_by_api_key, "{name}");
    }
}

#[test]
fn everything_has_a_description() {
    let mut bare = Vec::new();
    for (type_name, of) in &Schema::of_the_server().types {
        let mut note = |name: String, description: bool| {
            if !description {
                bare.push(name);
            }
        };
        note(type_name.clone(), of.description.is_some());
        match &of.kind {
            TypeKind::InputObject(input) => {
                for field in &input.fields {
                    note(format!("{type_name}.{}", field.node.name.node), field.node.description.is_some());
                }
            }
            TypeKind::Enum(of) => {
                for value in &of.values {
                    note(format!("{type_name}.{}", value.node.value.node), value.node.description.is_some());
                }
            }
            TypeKind::Object(_) | TypeKind::Interface(_) | TypeKind::Scalar | TypeKind::Union(_) => {}
        }
        for field in Schema::of_the_server().fields(type_name) {
            let field_name = format!("{type_name}.{}", field.name.node);
            note(field_name.clone(), field.description.is_some());
            for argument in &field.arguments {
                note(format!("{field_name}({})", argument.node.name.node), argument.node.description.is_some());
            }
        }
    }
    for (name, directive) in &Schema::of_the_server().directives {
        if directive.description.is_none() {
            bare.push(format!("@{name}"));
        }
    }
    assert_eq!(bare, Vec::<String>::new());
}

both_databases! {
    async fn an_api_key_does_no_mutation_that_is_not_open_to_it(app: TestApp) {
        let admin = app.admin().await;
        let (_, raw) = crate::api_key::create(&admin, json!({ "name": "K", "scopes": ["ADMIN_WRITE"] })).await;
        let key = crate::api_key::with_key(&app, &raw);
        let (_, raw) = crate::api_key::create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let reader = crate::api_key::with_key(&app, &raw);
        let mutations = Schema::of_the_server().fields("Mutation");
        for field in &mutations {
            let name = format!("Mutation.{}", field.name.node);
            let call = Call::fresh(&app, &admin, &name, &format!("sk-ant-{name}")).await;
            assert_eq!(call.send(&reader).await.code(), "FORBIDDEN", "{name}");
            if NOT_BY_API_KEY.contains(&field.name.node.as_str()) {
                assert_eq!(call.send(&key).await.code(), "FORBIDDEN", "{name}");
            }
        }
        let denied = "{ auditLogs(filter: { outcome: [DENIED] }) { totalCount } }";
        let count = admin.run(denied).await.data()["auditLogs"]["totalCount"].clone();
        assert_eq!(count, mutations.len() + NOT_BY_API_KEY.len());
    }

    async fn of_several_records_each_is_refused_by_itself(app: TestApp) {
        let manager = app.user("MANAGER").await;
        let organization = manager.run("{ organization { id } }").await.data()["organization"]["id"].clone();
        let ids = format!("[\"acct_00000000000000000000000000\", {organization}]");
        let answer = manager.run(&format!("{{ nodes(ids: {ids}) {{ id }} }}")).await;
        assert_eq!(answer.body["data"], json!({ "nodes": [null, { "id": organization }] }));
        assert_eq!((&answer.body["errors"][0]["path"], answer.code()), (&json!(["nodes", 0]), "FORBIDDEN"));
    }
}
