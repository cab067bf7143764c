//! Who may do what: every field of the schema, for everybody.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::audit::{count, entries};
use crate::calls::{Call, text};
use crate::support::schema::{Schema, assert_lines, directive, is_root, required_permission};
use crate::support::{PASSWORD, both_databases};
use crate::tenants::specimen;

const ROLES: [&str; 4] = ["ADMIN", "MANAGER", "MEMBER", "READ_ONLY"];

/// Which roles have a permission: the product's table, written down a second time.
const PERMISSIONS: &[(&str, &[&str])] = &[
    ("WRITE_CLIENTS", &["ADMIN", "MANAGER"]),
    ("ARCHIVE_CLIENTS", &["ADMIN"]),
    ("WRITE_TASKS", &["ADMIN", "MANAGER", "MEMBER"]),
    ("DELETE_TASKS", &["ADMIN", "MANAGER"]),
    ("WRITE_CREDENTIALS", &["ADMIN", "MANAGER", "MEMBER"]),
    ("REVEAL_CREDENTIALS", &["ADMIN", "MANAGER"]),
    ("DELETE_CREDENTIALS", &["ADMIN"]),
    ("MANAGE_OWN_API_KEYS", &["ADMIN", "MANAGER", "MEMBER"]),
    ("USE_CONVERSATIONS", &["ADMIN", "MANAGER", "MEMBER"]),
    ("MANAGE_API_KEYS", &["ADMIN", "MANAGER"]),
    ("VIEW_USERS", &["ADMIN", "MANAGER"]),
    ("VIEW_USAGE", &["ADMIN", "MANAGER"]),
    ("VIEW_SYSTEM", &["ADMIN", "MANAGER"]),
    ("MANAGE_CLAUDE_ACCOUNTS", &["ADMIN"]),
    ("MANAGE_USERS", &["ADMIN"]),
    ("MANAGE_ORGANIZATION", &["ADMIN"]),
    ("VIEW_AUDIT_LOGS", &["ADMIN"]),
];

/// Nobody needs to be signed in.
pub(crate) const PUBLIC: &str = "public";
/// Whoever is signed in may.
pub(crate) const MEMBERS: &str = "members";

/// What each root field needs: a permission, `MEMBERS` or `PUBLIC`.
const NEEDS: &[(&str, &str)] = &[
    ("Query.viewer", PUBLIC),
    ("Query.passwordKey", PUBLIC),
    ("Query.node", MEMBERS),
    ("Query.nodes", MEMBERS),
    ("Query.organization", MEMBERS),
    ("Query.user", MEMBERS),
    ("Query.users", "VIEW_USERS"),
    ("Query.claudeAccount", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Query.claudeAccounts", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Query.client", MEMBERS),
    ("Query.clients", MEMBERS),
    ("Query.task", MEMBERS),
    ("Query.tasks", MEMBERS),
    ("Query.credential", MEMBERS),
    ("Query.credentials", MEMBERS),
    // One's own for everybody, the organization's with MANAGE_API_KEYS.
    ("Query.apiKey", MEMBERS),
    ("Query.apiKeys", MEMBERS),
    ("Query.verifyApiKey", PUBLIC),
    ("Query.conversation", "USE_CONVERSATIONS"),
    ("Query.conversations", "USE_CONVERSATIONS"),
    ("Query.tools", MEMBERS),
    ("Query.workers", "VIEW_SYSTEM"),
    ("Query.auditLogs", "VIEW_AUDIT_LOGS"),
    ("Query.auditLogIntegrity", "VIEW_AUDIT_LOGS"),
    ("Query.notifications", MEMBERS),
    // One's own for everybody, the organization's with VIEW_USAGE.
    ("Query.usage", MEMBERS),
    ("Query.usageRecords", MEMBERS),
    ("Query.billing", "VIEW_USAGE"),
    ("Query.models", MEMBERS),
    ("Query.systemStats", "VIEW_SYSTEM"),
    ("Mutation.signIn", PUBLIC),
    ("Mutation.refreshSession", PUBLIC),
    ("Mutation.signOut", PUBLIC),
    ("Mutation.acceptInvitation", PUBLIC),
    ("Mutation.register", PUBLIC),
    ("Mutation.verifyEmail", PUBLIC),
    ("Mutation.requestPasswordReset", PUBLIC),
    ("Mutation.resetPassword", PUBLIC),
    ("Mutation.updateProfile", MEMBERS),
    ("Mutation.changePassword", MEMBERS),
    ("Mutation.inviteUser", "MANAGE_USERS"),
    ("Mutation.updateUser", "MANAGE_USERS"),
    ("Mutation.deleteUser", "MANAGE_USERS"),
    ("Mutation.updateOrganization", "MANAGE_ORGANIZATION"),
    ("Mutation.createClaudeAccount", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Mutation.updateClaudeAccount", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Mutation.replaceClaudeAccountKey", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Mutation.testClaudeAccount", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Mutation.resetClaudeAccountUsage", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Mutation.deleteClaudeAccount", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Mutation.createClient", "WRITE_CLIENTS"),
    ("Mutation.updateClient", "WRITE_CLIENTS"),
    ("Mutation.archiveClient", "ARCHIVE_CLIENTS"),
    ("Mutation.restoreClient", "ARCHIVE_CLIENTS"),
    ("Mutation.createTask", "WRITE_TASKS"),
    ("Mutation.updateTask", "WRITE_TASKS"),
    ("Mutation.deleteTask", "DELETE_TASKS"),
    ("Mutation.createCredential", "WRITE_CREDENTIALS"),
    ("Mutation.updateCredential", "WRITE_CREDENTIALS"),
    ("Mutation.revealCredential", "REVEAL_CREDENTIALS"),
    ("Mutation.deleteCredential", "DELETE_CREDENTIALS"),
    ("Mutation.createApiKey", "MANAGE_OWN_API_KEYS"),
    ("Mutation.updateApiKey", "MANAGE_OWN_API_KEYS"),
    ("Mutation.regenerateApiKey", "MANAGE_OWN_API_KEYS"),
    ("Mutation.revokeApiKey", "MANAGE_OWN_API_KEYS"),
    ("Mutation.createConversation", "USE_CONVERSATIONS"),
    ("Mutation.updateConversation", "USE_CONVERSATIONS"),
    ("Mutation.sendMessage", "USE_CONVERSATIONS"),
    ("Mutation.deleteConversation", "USE_CONVERSATIONS"),
    ("Mutation.markNotificationsRead", MEMBERS),
    ("Mutation.revokeSession", MEMBERS),
    // The last: who has called it is gone.
    ("Mutation.deleteMyAccount", MEMBERS),
    ("Subscription.auditLogAdded", "VIEW_AUDIT_LOGS"),
    ("Subscription.claudeAccountChanged", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Subscription.notificationAdded", MEMBERS),
    ("Subscription.messageStream", "USE_CONVERSATIONS"),
    ("Subscription.workerChanged", "VIEW_SYSTEM"),
    // As Query.usage.
    ("Subscription.usageRecorded", MEMBERS),
];

/// What each type of record needs that `node` finds.
const NODES: &[(&str, &str)] = &[
    ("Organization", MEMBERS),
    ("User", MEMBERS),
    // Sessions are one's own: that of another is as none.
    ("Session", MEMBERS),
    ("ClaudeAccount", "MANAGE_CLAUDE_ACCOUNTS"),
    ("Client", MEMBERS),
    ("Task", MEMBERS),
    ("Credential", MEMBERS),
    // One's own: that of another is as none.
    ("Conversation", "USE_CONVERSATIONS"),
    ("Message", "USE_CONVERSATIONS"),
    ("Worker", "VIEW_SYSTEM"),
    ("AuditLog", "VIEW_AUDIT_LOGS"),
    // One's own: that of another is as none.
    ("Notification", MEMBERS),
    // Keys are one's own, or anybody's with MANAGE_API_KEYS: that of another is as none.
    ("ApiKey", MEMBERS),
    // So are usage records, with VIEW_USAGE.
    ("UsageRecord", MEMBERS),
];

/// Fields of records that need more than their record does, as `Type.field`: those that declare it with `@requires`.
const GUARDED_FIELDS: &[(&str, &str)] = &[];

/// Fields that need a permission and do not declare it: the deed looks at more than the role.
const UNDECLARED: &[&str] = &[];

/// Calls in which a role that has the permission is refused: the key is an ADMIN's, and acts with more than a MANAGER has.
const BEYOND: &[(&str, &str)] = &[("Mutation.updateApiKey", "MANAGER"), ("Mutation.regenerateApiKey", "MANAGER")];

/// What somebody is answered who may not: nothing where they may. `None` is nobody.
fn refusal(needs: &str, role: Option<&str>) -> Option<&'static str> {
    match (needs, role) {
        (PUBLIC, _) | (MEMBERS, Some(_)) => None,
        (_, None) => Some("UNAUTHENTICATED"),
        (permission, Some(role)) => {
            let (_, roles) = PERMISSIONS.iter().find(|(known, _)| *known == permission).expect(permission);
            (!roles.contains(&role)).then_some("FORBIDDEN")
        }
    }
}

/// What a root field needs.
pub(crate) fn needs(name: &str) -> &'static str {
    needs_of(NEEDS, name)
}

fn needs_of(table: &[(&str, &'static str)], name: &str) -> &'static str {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("{name} has no line in tests/it/roles.rs"))
        .1
}

#[test]
fn everything_has_its_line() {
    let schema = Schema::of_the_server();
    let names = |table: &[(&'static str, &str)]| table.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let roots = schema.root_fields().into_iter().map(|(name, _)| name);
    assert_lines("NEEDS of tests/it/roles.rs", names(NEEDS), roots);
    assert_lines("NODES of tests/it/roles.rs", names(NODES), schema.nodes());
    assert_lines(
        "PERMISSIONS of tests/it/roles.rs",
        PERMISSIONS.iter().map(|(name, _)| *name),
        schema.values("Permission"),
    );
    let within_records = schema.object_fields().into_iter().filter(|(name, _)| !is_root(name));
    let guarded = within_records.filter(|(_, field)| required_permission(field).is_some()).map(|(name, _)| name);
    assert_lines("GUARDED_FIELDS of tests/it/roles.rs", names(GUARDED_FIELDS), guarded);
}

#[test]
fn every_field_declares_what_it_needs() {
    let schema = Schema::of_the_server();
    let mut undeclared = Vec::new();
    for (name, field) in schema.root_fields() {
        let needs = needs_of(NEEDS, &name);
        let declared = match (directive(field, "public"), required_permission(field)) {
            (Some(_), None) => PUBLIC.to_owned(),
            (None, Some(permission)) => permission,
            (None, None) => MEMBERS.to_owned(),
            (Some(_), Some(_)) => panic!("{name} is public and requires a permission"),
        };
        if declared == MEMBERS && needs != MEMBERS && needs != PUBLIC {
            undeclared.push(name.clone());
        } else {
            assert_eq!(declared, needs, "{name}");
        }
        assert_eq!(directive(field, "audits").is_some(), name.starts_with("Mutation."), "{name} and @audits");
    }
    assert_lines("UNDECLARED of tests/it/roles.rs", UNDECLARED.iter().copied(), undeclared);
    for (name, needs) in GUARDED_FIELDS {
        assert_eq!(required_permission(schema.field(name)).as_deref(), Some(*needs), "{name}");
    }
}

both_databases! {
    async fn everybody_is_told_what_they_may_do(app: TestApp) {
        for role in ROLES {
            let viewer = app.user(role).await.run("{ viewer { role permissions } }").await.data()["viewer"].clone();
            let told: BTreeSet<_> = viewer["permissions"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let table = PERMISSIONS.iter().filter(|(_, roles)| roles.contains(&role)).map(|(name, _)| *name).collect();
            assert_eq!((&viewer["role"], told), (&json!(role), table));
        }
    }

    async fn every_field_is_answered_and_refused_by_the_table(app: TestApp) {
        let admin = app.admin().await;
        let mut callers = vec![(None, app.anonymous())];
        for role in ROLES {
            callers.push((Some(role), app.user(role).await));
        }
        for (name, needs) in NEEDS.iter().filter(|(name, _)| !name.starts_with("Subscription.")) {
            let mut has_succeeded = false;
            for (role, client) in &callers {
                let case = format!("{name} for {}", role.unwrap_or("nobody"));
                let key = format!("sk-ant-{name}-{}", role.unwrap_or("nobody"));
                // A conversation is found by its owner alone.
                let is_own = text(name).contains("\"CONVERSATION\"") && refusal(needs, *role).is_none();
                let mut call = Call::fresh(&app, if is_own { client } else { &admin }, name, &key).await;
                if let (&"Mutation.revokeSession", Some(role)) = (name, role) {
                    // Only one's own is found.
                    let again = app.anonymous().signed_in(&format!("{}@example.com", role.to_lowercase()), PASSWORD).await;
                    call.put(&["input".to_owned(), "id".to_owned()], specimen(&app, &again, "Session", "").await);
                }
                let before = count(&admin).await;
                let answer = call.send(client).await;
                if role.is_some_and(|role| BEYOND.contains(&(*name, role))) {
                    assert_eq!(answer.code(), "FORBIDDEN", "{case}");
                    continue;
                }
                let Some(code) = refusal(needs, *role) else {
                    let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
                    for error in &errors {
                        let code = &error["extensions"]["code"];
                        // A public field may say so of what it was given: a wrong password.
                        assert!(code != "FORBIDDEN" && (code != "UNAUTHENTICATED" || *needs == PUBLIC), "{case}: {error:#}");
                    }
                    has_succeeded |= errors.is_empty() && !call.value(&answer).is_null();
                    continue;
                };
                assert_eq!(answer.code(), code, "{case}: {:#}", answer.body);
                assert!(call.value(&answer).is_null(), "{case}: {:#}", answer.body);
                if name.starts_with("Mutation.") {
                    assert_eq!(count(&admin).await, before + 1, "{case}");
                    let entry = &entries(&admin).await[0];
                    assert_eq!((&entry["outcome"], &entry["errorCode"]), (&json!("DENIED"), &json!(code)), "{case}");
                }
            }
            assert!(has_succeeded, "{name}: the call in calls.rs or audit.rs succeeds for nobody, so it shows nothing");
        }
    }

    async fn every_record_is_found_by_its_id_by_the_table(app: TestApp) {
        let admin = app.admin().await;
        for role in ROLES {
            let client = app.user(role).await;
            for (of, needs) in NODES {
                // Sessions, notifications and conversations are each caller's own; API keys and usage are read without more by their owners alone.
                let whose = match *of {
                    "Session" | "Notification" => &client,
                    "Conversation" | "Message" if refusal(needs, Some(role)).is_none() => &client,
                    _ => &admin,
                };
                if matches!(*of, "ApiKey" | "UsageRecord") && matches!(role, "MEMBER" | "READ_ONLY") {
                    continue;
                }
                let id = specimen(&app, whose, of, &format!("sk-ant-{role}-{of}")).await;
                for query in ["query($id: ID!) { found: node(id: $id) { id } }", "query($id: ID!) { found: nodes(ids: [$id]) { id } }"] {
                    let answer = client.with(query, json!({ "id": id })).await;
                    let found = &answer.body["data"]["found"];
                    let found = if found.is_array() { &found[0] } else { found };
                    match refusal(needs, Some(role)) {
                        None => assert_eq!(found["id"], id, "{role} {of}: {}", answer.body),
                        Some(code) => assert_eq!((answer.code(), found), (code, &Value::Null), "{role} {of}"),
                    }
                }
            }
        }
    }
}
