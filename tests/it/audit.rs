//! The audit log: one entry a mutation whatever its outcome, a chain that shows tampering.

use serde_json::{Value, json};

use crate::claude_account::create;
use crate::invitation::{invite, join};
use crate::notification::signed_in_with;
use crate::roles::{MEMBERS, PUBLIC, needs};
use crate::support::schema::{Schema, assert_lines};
use crate::support::{Client, PASSWORD, TestApp, TestDatabase, both_databases};

/// Every mutation of the schema, with a call that succeeds and one that fails. `ID` is an account's id, `CLIENT` a client's,
/// `TASK` a task's, `CREDENTIAL` a credential's, `API_KEY` an API key's, `USER_ID` a user's, `TOKEN` a refresh token, `INVITATION` an invitation's,
/// `CONVERSATION` and `MESSAGE` the ids of a conversation and a message of whoever is the administrator there, `WORKER` that of a process that answers conversations there, `NOTIFICATION` the id of a notification of whoever is the administrator there, `SESSION` a session's id, `VERIFICATION` and `RESET` tokens that came by mail; each is fresh for each call.
pub(crate) const CALLS: &[(&str, &str, &str)] = &[
    (
        "signIn",
        r#"signIn(input: { email: "admin@localhost", password: { plain: "PASSWORD" } }) { accessToken }"#,
        r#"signIn(input: { email: "admin@localhost", password: { plain: "wrong" } }) { accessToken }"#,
    ),
    (
        "refreshSession",
        r#"refreshSession(input: { refreshToken: "TOKEN" }) { accessToken }"#,
        r#"refreshSession(input: { refreshToken: "wrong" }) { accessToken }"#,
    ),
    ("signOut", r#"signOut(input: { refreshToken: "TOKEN" }) { signedOut }"#, "signOut { signedOut }"),
    (
        "acceptInvitation",
        r#"acceptInvitation(input: { token: "INVITATION", password: { plain: "PASSWORD" } }) { accessToken }"#,
        r#"acceptInvitation(input: { token: "wrong", password: { plain: "PASSWORD" } }) { accessToken }"#,
    ),
    (
        "register",
        r#"register(input: { organizationName: "O", email: "KEY@example.com", fullName: "N", password: { plain: "PASSWORD" } }) { accessToken }"#,
        r#"register(input: { organizationName: "", email: "KEY@example.com", fullName: "N", password: { plain: "PASSWORD" } }) { accessToken }"#,
    ),
    (
        "verifyEmail",
        r#"verifyEmail(input: { token: "VERIFICATION", password: { plain: "PASSWORD" } }) { user { id } }"#,
        r#"verifyEmail(input: { token: "wrong" }) { user { id } }"#,
    ),
    (
        "requestPasswordReset",
        r#"requestPasswordReset(input: { email: "admin@localhost" }) { accepted }"#,
        r#"requestPasswordReset(input: { email: "nobody" }) { accepted }"#,
    ),
    (
        "resetPassword",
        r#"resetPassword(input: { token: "RESET", newPassword: { plain: "PASSWORD" } }) { reset }"#,
        r#"resetPassword(input: { token: "wrong", newPassword: { plain: "PASSWORD" } }) { reset }"#,
    ),
    (
        "updateProfile",
        r#"updateProfile(input: { fullName: "N", email: "KEY@example.com" }) { user { id } }"#,
        "updateProfile(input: { fullName: null }) { user { id } }",
    ),
    (
        "changePassword",
        r#"changePassword(input: { currentPassword: { plain: "PASSWORD" }, newPassword: { plain: "PASSWORD" } }) { changed }"#,
        r#"changePassword(input: { currentPassword: { plain: "wrong" }, newPassword: { plain: "PASSWORD" } }) { changed }"#,
    ),
    (
        "revokeSession",
        r#"revokeSession(input: { id: "SESSION" }) { revokedId }"#,
        r#"revokeSession(input: { id: "sess_00000000000000000000000000" }) { revokedId }"#,
    ),
    (
        "deleteMyAccount",
        r#"deleteMyAccount(input: { password: { plain: "PASSWORD" } }) { deletedId }"#,
        r#"deleteMyAccount(input: { password: { plain: "wrong" } }) { deletedId }"#,
    ),
    (
        "inviteUser",
        r#"inviteUser(input: { email: "new@example.com", fullName: "N", role: MEMBER }) { user { id } }"#,
        r#"inviteUser(input: { email: "nobody", fullName: "N", role: MEMBER }) { user { id } }"#,
    ),
    (
        "updateUser",
        r#"updateUser(input: { id: "USER_ID", fullName: "N" }) { user { id } }"#,
        r#"updateUser(input: { id: "USER_ID", fullName: null }) { user { id } }"#,
    ),
    (
        "deleteUser",
        r#"deleteUser(input: { id: "USER_ID" }) { deletedId }"#,
        r#"deleteUser(input: { id: "no id" }) { deletedId }"#,
    ),
    (
        "updateOrganization",
        r#"updateOrganization(input: { name: "N" }) { organization { id } }"#,
        "updateOrganization(input: { name: null }) { organization { id } }",
    ),
    (
        "createClaudeAccount",
        r#"createClaudeAccount(input: { apiKey: "sk-ant-new", accountName: "N" }) { claudeAccount { id } }"#,
        r#"createClaudeAccount(input: { apiKey: "", accountName: "N" }) { claudeAccount { id } }"#,
    ),
    (
        "updateClaudeAccount",
        r#"updateClaudeAccount(input: { id: "ID", priority: 7 }) { claudeAccount { id } }"#,
        r#"updateClaudeAccount(input: { id: "ID", priority: null }) { claudeAccount { id } }"#,
    ),
    (
        "replaceClaudeAccountKey",
        r#"replaceClaudeAccountKey(input: { id: "ID", apiKey: "sk-ant-newer" }) { claudeAccount { id } }"#,
        r#"replaceClaudeAccountKey(input: { id: "ID", apiKey: "" }) { claudeAccount { id } }"#,
    ),
    (
        "testClaudeAccount",
        r#"testClaudeAccount(input: { id: "ID" }) { ok }"#,
        r#"testClaudeAccount(input: { id: "acct_00000000000000000000000000" }) { ok }"#,
    ),
    (
        "resetClaudeAccountUsage",
        r#"resetClaudeAccountUsage(input: { id: "ID" }) { claudeAccount { id } }"#,
        r#"resetClaudeAccountUsage(input: { id: "no id" }) { claudeAccount { id } }"#,
    ),
    (
        "deleteClaudeAccount",
        r#"deleteClaudeAccount(input: { id: "ID" }) { deletedId }"#,
        r#"deleteClaudeAccount(input: { id: "acct_00000000000000000000000000" }) { deletedId }"#,
    ),
    (
        "createClient",
        r#"createClient(input: { name: "N" }) { client { id } }"#,
        r#"createClient(input: { name: "" }) { client { id } }"#,
    ),
    (
        "updateClient",
        r#"updateClient(input: { id: "CLIENT", name: "M" }) { client { id } }"#,
        r#"updateClient(input: { id: "CLIENT", name: null }) { client { id } }"#,
    ),
    (
        "archiveClient",
        r#"archiveClient(input: { id: "CLIENT" }) { client { id } }"#,
        r#"archiveClient(input: { id: "no id" }) { client { id } }"#,
    ),
    (
        "restoreClient",
        r#"restoreClient(input: { id: "CLIENT" }) { client { id } }"#,
        r#"restoreClient(input: { id: "no id" }) { client { id } }"#,
    ),
    (
        "createTask",
        r#"createTask(input: { clientId: "CLIENT", title: "T" }) { task { id } }"#,
        r#"createTask(input: { clientId: "CLIENT", title: "" }) { task { id } }"#,
    ),
    (
        "updateTask",
        r#"updateTask(input: { id: "TASK", title: "U" }) { task { id } }"#,
        r#"updateTask(input: { id: "TASK", title: null }) { task { id } }"#,
    ),
    (
        "deleteTask",
        r#"deleteTask(input: { id: "TASK" }) { deletedId }"#,
        r#"deleteTask(input: { id: "task_00000000000000000000000000" }) { deletedId }"#,
    ),
    (
        "createCredential",
        r#"createCredential(input: { clientId: "CLIENT", label: "L", secret: "s" }) { credential { id } }"#,
        r#"createCredential(input: { clientId: "CLIENT", label: "L", secret: "" }) { credential { id } }"#,
    ),
    (
        "updateCredential",
        r#"updateCredential(input: { id: "CREDENTIAL", secret: "t" }) { credential { id } }"#,
        r#"updateCredential(input: { id: "CREDENTIAL", secret: null }) { credential { id } }"#,
    ),
    (
        "revealCredential",
        r#"revealCredential(input: { id: "CREDENTIAL", reason: "R" }) { secret }"#,
        r#"revealCredential(input: { id: "CREDENTIAL", secretVersion: 2 }) { secret }"#,
    ),
    (
        "deleteCredential",
        r#"deleteCredential(input: { id: "CREDENTIAL" }) { deletedId }"#,
        r#"deleteCredential(input: { id: "cred_00000000000000000000000000" }) { deletedId }"#,
    ),
    (
        "createApiKey",
        r#"createApiKey(input: { name: "K" }) { rawKey }"#,
        r#"createApiKey(input: { name: "" }) { rawKey }"#,
    ),
    (
        "updateApiKey",
        r#"updateApiKey(input: { id: "API_KEY", name: "L" }) { apiKey { id } }"#,
        r#"updateApiKey(input: { id: "API_KEY", name: null }) { apiKey { id } }"#,
    ),
    (
        "regenerateApiKey",
        r#"regenerateApiKey(input: { id: "API_KEY" }) { rawKey }"#,
        r#"regenerateApiKey(input: { id: "API_KEY", gracePeriodHours: 200 }) { rawKey }"#,
    ),
    (
        "revokeApiKey",
        r#"revokeApiKey(input: { id: "API_KEY" }) { apiKey { id } }"#,
        r#"revokeApiKey(input: { id: "key_00000000000000000000000000" }) { apiKey { id } }"#,
    ),
    (
        "createConversation",
        r#"createConversation(input: { title: "T" }) { conversation { id } }"#,
        r#"createConversation(input: { title: "" }) { conversation { id } }"#,
    ),
    (
        "updateConversation",
        r#"updateConversation(input: { id: "CONVERSATION", title: "U" }) { conversation { id } }"#,
        r#"updateConversation(input: { id: "CONVERSATION", title: null }) { conversation { id } }"#,
    ),
    (
        "sendMessage",
        r#"sendMessage(input: { text: "Hello" }) { message { id } }"#,
        r#"sendMessage(input: { text: "" }) { message { id } }"#,
    ),
    (
        "deleteConversation",
        r#"deleteConversation(input: { id: "CONVERSATION" }) { deletedId }"#,
        r#"deleteConversation(input: { id: "conv_00000000000000000000000000" }) { deletedId }"#,
    ),
    (
        "markNotificationsRead",
        "markNotificationsRead(input: { ids: null }) { unreadCount }",
        r#"markNotificationsRead(input: { ids: ["no id"] }) { unreadCount }"#,
    ),
];

const ENTRIES: &str = "{ auditLogs(first: 100) { totalCount nodes { operation action outcome errorCode resourceType
    resourceId user { email } ipAddress userAgent requestId hash } } }";

pub(crate) async fn entries(admin: &Client) -> Vec<Value> {
    admin.run(ENTRIES).await.data()["auditLogs"]["nodes"].as_array().unwrap().clone()
}

pub(crate) async fn count(admin: &Client) -> u64 {
    admin.run("{ auditLogs { totalCount } }").await.data()["auditLogs"]["totalCount"].as_u64().unwrap()
}

/// Runs one mutation and returns the entries that it left.
async fn entries_of(admin: &Client, client: &Client, mutation: &str) -> Vec<Value> {
    let before = count(admin).await;
    client.run(&format!("mutation {{ {mutation} }}")).await;
    let left = usize::try_from(count(admin).await - before).unwrap();
    entries(admin).await[..left].to_vec()
}

pub(crate) async fn filled_in(app: &TestApp, admin: &Client, mutation: &str, key: &str) -> String {
    let mut text = mutation.replace("PASSWORD", PASSWORD).replace("KEY@", &format!("{key}@"));
    if text.contains("SESSION") {
        let again = app.admin().await;
        let found = again.run("{ viewer { sessions { id current } } }").await.data()["viewer"]["sessions"].clone();
        let own = found.as_array().unwrap().iter().find(|session| session["current"] == true).unwrap().clone();
        text = text.replace("\"SESSION\"", &own["id"].to_string());
    }
    if text.contains("RESET") || text.contains("VERIFICATION") {
        let email = format!("{key}@example.com").to_lowercase();
        let (_, somebody) = join(app, admin, &email, "MEMBER").await;
        if text.contains("RESET") {
            let request = "mutation($e: String!) { requestPasswordReset(input: { email: $e }) { accepted } }";
            app.anonymous().with(request, json!({ "e": email })).await.data();
            text = text.replace("RESET", &app.token_to(&email, "reset-password").await);
        } else {
            let (ask, new) = (
                "mutation($e: String!) { updateProfile(input: { email: $e }) { user { id } } }",
                format!("new-{email}"),
            );
            somebody.with(ask, json!({ "e": new })).await.data();
            text = text.replace("VERIFICATION", &app.token_to(&new, "verify-email").await);
        }
    }
    if text.contains("TOKEN") {
        text = text.replace("TOKEN", &app.admin().await.refresh_token.unwrap());
    }
    if ["\"CLIENT\"", "\"TASK\"", "\"CREDENTIAL\""].iter().any(|name| text.contains(name)) {
        let made = admin.run("mutation { createClient(input: { name: \"C\" }) { client { id } } }").await;
        let client = made.data()["createClient"]["client"]["id"].to_string();
        if text.contains("\"TASK\"") {
            let made = admin
                .run(&format!(
                    "mutation {{ createTask(input: {{ clientId: {client}, title: \"T\" }}) {{ task {{ id }} }} }}"
                ))
                .await;
            text = text.replace("\"TASK\"", &made.data()["createTask"]["task"]["id"].to_string());
        }
        if text.contains("\"CREDENTIAL\"") {
            let input = format!("{{ clientId: {client}, label: \"L\", secret: \"s\" }}");
            let made =
                admin.run(&format!("mutation {{ createCredential(input: {input}) {{ credential {{ id }} }} }}")).await;
            text = text.replace("\"CREDENTIAL\"", &made.data()["createCredential"]["credential"]["id"].to_string());
        }
        text = text.replace("\"CLIENT\"", &client);
    }
    if text.contains("\"CONVERSATION\"") || text.contains("\"MESSAGE\"") {
        let (conversation, message) = crate::conversation::with_a_message(app, admin).await;
        text = text.replace("\"CONVERSATION\"", &conversation.to_string()).replace("\"MESSAGE\"", &message.to_string());
    }
    if text.contains("\"USAGE\"") {
        text = text.replace("\"USAGE\"", &crate::usage::specimen(app, admin).await.to_string());
    }
    if text.contains("\"WORKER\"") {
        let sent = "mutation { sendMessage(input: { text: \"Hello\" }) { conversation { id } } }";
        admin.run(sent).await.data();
        let found = admin.run("{ workers { id } }").await.data()["workers"].as_array().unwrap().last().unwrap().clone();
        text = text.replace("\"WORKER\"", &found["id"].to_string());
    }
    if text.contains("API_KEY") {
        let (made, _) = crate::api_key::create(admin, json!({ "name": "K" })).await;
        text = text.replace("\"API_KEY\"", &made["id"].to_string());
    }
    if text.contains("USER_ID") || text.contains("INVITATION") {
        let (user, token) = invite(admin, &format!("{key}@example.com"), "MEMBER").await;
        text = text.replace("\"USER_ID\"", &user["id"].to_string()).replace("INVITATION", &token);
    }
    if text.contains("NOTIFICATION") {
        let user = admin.run("{ viewer { user { email } } }").await.data()["viewer"]["user"]["email"].clone();
        // From a device that is new.
        signed_in_with(&app.url, user.as_str().unwrap(), PASSWORD, &key.replace(|c: char| c.is_ascii_digit(), "x"))
            .await;
        let told = admin.run("{ notifications(first: 1) { nodes { id } } }").await;
        text = text.replace("\"NOTIFICATION\"", &told.data()["notifications"]["nodes"][0]["id"].to_string());
    }
    if text.contains("\"ID\"") {
        let account = create(admin, json!({ "apiKey": key, "accountName": "A" })).await;
        text = text.replace("\"ID\"", &account["id"].to_string());
    }
    text
}

#[test]
fn every_mutation_of_the_schema_has_a_case() {
    let mutations = Schema::of_the_server().fields("Mutation").into_iter().map(|field| field.name.to_string());
    assert_lines("CALLS of tests/it/audit.rs", CALLS.iter().map(|(name, ..)| *name), mutations);
}

/// Goes through the log by the documented form alone, from the rows as they are stored. Returns how many entries there are.
pub(crate) async fn assert_chain_holds(database: &TestDatabase) -> usize {
    let (array, micros, hex) = if database.url.starts_with("postgres") {
        ("json_build_array", "(extract(epoch FROM occurred_at) * 1000000)::bigint", "encode(hash, 'hex')")
    } else {
        (
            "json_array",
            "unixepoch(occurred_at) * 1000000 + CAST(substr(occurred_at, 21, 6) AS INTEGER)",
            "lower(hex(hash))",
        )
    };
    let rows = database
        .texts(&format!(
            "SELECT CAST({array}(1, id, organization_id, sequence, {micros}, action, operation, outcome, error_code,
                 resource_type, resource_id, changes, metadata, user_id, ip_address, user_agent, request_id, api_key_id, {hex}) AS text)
             AS text FROM audit_logs ORDER BY sequence"
        ))
        .await;
    let mut before = vec![0; 32];
    for (row, place) in rows.iter().zip(1..) {
        let mut fields: Vec<Value> = serde_json::from_str(row).unwrap();
        let hash = fields.pop().unwrap();
        // An entry with an API key is of another form.
        let api_key = fields.pop().unwrap();
        if api_key.is_string() {
            fields[0] = json!(2);
            fields.insert(14, api_key);
        }
        assert_eq!(fields[3], place);
        before.extend(Value::Array(fields).to_string().into_bytes());
        before = ring::digest::digest(&ring::digest::SHA256, &before).as_ref().to_vec();
        assert_eq!(hash, hex::encode(&before), "{row}");
    }
    rows.len()
}

both_databases! {
    async fn every_mutation_leaves_exactly_one_entry_for_each_outcome(app: TestApp) {
        let admin = app.admin().await;
        let reader = app.user("READ_ONLY").await;
        // The entry of a registration stands in the log of the organization that it makes: see registration.rs.
        for (name, succeeds, fails) in CALLS.iter().filter(|(name, ..)| *name != "register") {
            let needs = needs(&format!("Mutation.{name}"));
            let is_public = needs == PUBLIC;
            let anonymous = app.anonymous();
            // Whoever leaves is not the last ADMIN.
            let leaving = match *name {
                "deleteMyAccount" => Some(join(&app, &admin, "leaving@example.com", "MEMBER").await.1),
                _ => None,
            };

            let caller = leaving.as_ref().unwrap_or(if is_public { &anonymous } else { &admin });
            let mutation = filled_in(&app, &admin, succeeds, &format!("sk-ant-{name}-1")).await;
            let left = entries_of(&admin, caller, &mutation).await;
            assert_eq!(left.len(), 1, "{name} succeeds: {left:?}");
            assert_eq!((&left[0]["operation"], &left[0]["outcome"]), (&json!(name), &json!("SUCCESS")));
            let invited = format!("sk-ant-{name}-1@example.com").to_lowercase();
            let by = match *name {
                "acceptInvitation" | "resetPassword" => json!(invited),
                "verifyEmail" => json!(format!("new-{invited}")),
                // Whoever asks is not known.
                "requestPasswordReset" => Value::Null,
                "deleteMyAccount" => json!("leaving@example.com"),
                _ => json!("admin@localhost"),
            };
            assert_eq!(left[0]["user"]["email"], by, "{name}");
            assert_eq!(left[0]["ipAddress"], "127.0.0.1");

            let mutation = filled_in(&app, &admin, fails, &format!("sk-ant-{name}-2")).await;
            let left = entries_of(&admin, if is_public { &anonymous } else { &admin }, &mutation).await;
            assert_eq!(left.len(), 1, "{name} fails: {left:?}");
            let is_denied = left[0]["errorCode"] == "UNAUTHENTICATED";
            assert_eq!(is_denied, is_public && *name != "requestPasswordReset", "{name}");
            let outcome = if is_denied { "DENIED" } else { "FAILED" };
            assert_eq!((&left[0]["operation"], &left[0]["outcome"]), (&json!(name), &json!(outcome)), "{left:?}");
            assert!(left[0]["errorCode"].is_string());

            if !is_public {
                let refused = [(&anonymous, "UNAUTHENTICATED"), (&reader, "FORBIDDEN")];
                for (client, code) in &refused[..if needs == MEMBERS { 1 } else { 2 }] {
                    let mutation = filled_in(&app, &admin, succeeds, &format!("sk-ant-{name}-{code}")).await;
                    let left = entries_of(&admin, client, &mutation).await;
                    assert_eq!(left.len(), 1, "{name} denied: {left:?}");
                    assert_eq!((&left[0]["outcome"], &left[0]["errorCode"]), (&json!("DENIED"), &json!(code)));
                    assert_eq!(left[0]["resourceId"].is_string(), mutation.contains("{ id: \""), "{mutation}");
                }
            }
        }
    }

    async fn each_root_field_of_a_request_is_its_own_entry(app: TestApp) {
        let admin = app.admin().await;
        let left = entries_of(&admin, &admin, r#"
            a: createClaudeAccount(input: { apiKey: "sk-ant-1", accountName: "A" }) { claudeAccount { id } }
            b: createClaudeAccount(input: { apiKey: "sk-ant-1", accountName: "B" }) { claudeAccount { id } }
            c: createClaudeAccount(input: { apiKey: "sk-ant-2", accountName: "C" }) { claudeAccount { id } }"#).await;
        let outcomes: Vec<_> = left.iter().map(|entry| entry["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["SUCCESS", "FAILED", "SUCCESS"]);
        assert!(left.iter().all(|entry| entry["requestId"] == left[0]["requestId"]));
    }

    async fn a_field_whose_input_cannot_be_read_is_about_nothing_else(app: TestApp) {
        let admin = app.admin().await;
        let account = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let id = &account["id"];
        let unreadable = "createClaudeAccount(input: { apiKey: \"k\", accountName: \"n\", usageLimit: 9007199254740992 })
            { claudeAccount { id } }";
        let left = entries_of(
            &admin, &admin, &format!("a: resetClaudeAccountUsage(input: {{ id: {id} }}) {{ claudeAccount {{ id }} }} b: {unreadable}")
        ).await;
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!((&left[0]["operation"], &left[0]["errorCode"]), (&json!("createClaudeAccount"), &json!("BAD_USER_INPUT")));
        assert_eq!(left[0]["resourceId"], Value::Null);

        for (client, code) in [(app.anonymous(), "UNAUTHENTICATED"), (app.user("READ_ONLY").await, "FORBIDDEN")] {
            let left = entries_of(&admin, &client, unreadable).await;
            assert_eq!((&left[0]["outcome"], &left[0]["errorCode"]), (&json!("DENIED"), &json!(code)), "{left:?}");
            assert_eq!(client.run(&format!("mutation {{ {unreadable} }}")).await.code(), code);
        }
    }

    async fn what_is_skipped_by_default_is_not_done(app: TestApp) {
        let admin = app.admin().await;
        let account = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let id = &account["id"];
        let deed = format!("mutation($dry: Boolean = true) {{
            deleteClaudeAccount(input: {{ id: {id} }}) @skip(if: $dry) {{ deletedId }} }}");
        assert_eq!(admin.run(&deed).await.data(), &json!({}));
        let read = format!("{{ node(id: {id}) {{ id }} }}");
        assert_eq!(&admin.run(&read).await.data()["node"]["id"], id);
        assert_eq!(&admin.with(&deed, json!({ "dry": false })).await.data()["deleteClaudeAccount"]["deletedId"], id);
    }

    async fn a_field_that_is_selected_twice_is_done_once(app: TestApp) {
        let admin = app.admin().await;
        let account = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let id = &account["id"];
        let before = entries(&admin).await.len();
        let query = format!("query {{ claudeAccount(id: {id}) {{ id }} ...F }}
            fragment F on Query {{ claudeAccount(id: {id}) {{ accountName }} }}");
        assert_eq!(admin.run(&query).await.data()["claudeAccount"], json!({ "id": id, "accountName": "A" }));
        assert_eq!(entries(&admin).await.len(), before + 1, "one look");
        let deed = "mutation { signOut { signedOut } ...F } fragment F on Mutation { signOut { signedOut } }";
        app.anonymous().run(deed).await;
        assert_eq!(entries(&admin).await.len(), before + 2, "one deed");
    }

    async fn a_field_sees_what_the_field_before_it_has_changed(app: TestApp) {
        let admin = app.admin().await;
        let account = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let id = &account["id"];
        let rename = |name: &str| format!("{name}: updateClaudeAccount(input: {{ id: {id}, accountName: \"{name}\" }}) {{
            claudeAccount {{ auditLogs(first: 1) {{ nodes {{ resource {{ ... on ClaudeAccount {{ accountName }} }} }} }} }} }}");
        let answer = admin.run(&format!("mutation {{ {} {} }}", rename("one"), rename("two"))).await;
        for name in ["one", "two"] {
            let resource = &answer.data()[name]["claudeAccount"]["auditLogs"]["nodes"][0]["resource"];
            assert_eq!(resource["accountName"], name);
        }
    }

    async fn a_sign_in_that_failed_names_the_user_that_it_was_tried_for(app: TestApp) {
        let admin = app.admin().await;
        let sign_in = |email: &str| format!(r#"signIn(input: {{ email: "{email}", password: {{ plain: "wrong" }} }}) {{ accessToken }}"#);
        let known = &entries_of(&admin, &app.anonymous(), &sign_in("admin@localhost")).await[0];
        assert_eq!((&known["resourceType"], &known["resourceId"].as_str().unwrap()[..5]), (&json!("USER"), "user_"));
        let unknown = &entries_of(&admin, &app.anonymous(), &sign_in("nobody@localhost")).await[0];
        assert_eq!((&unknown["resourceType"], &unknown["resourceId"]), (&json!("SESSION"), &Value::Null));
    }

    async fn a_look_at_an_account_is_recorded(app: TestApp) {
        let admin = app.admin().await;
        let account = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        admin.with("query($id: ID!) { claudeAccount(id: $id) { id } }", json!({ "id": account["id"] })).await.data();
        let newest = &entries(&admin).await[0];
        assert_eq!((&newest["action"], &newest["resourceId"]), (&json!("VIEW"), &account["id"]));
    }

    async fn entries_are_filtered_by_each_of_their_marks(app: TestApp) {
        let admin = app.admin().await;
        let account = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let viewer = admin.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
        let count = async |filter: Value| {
            let query = "query($f: AuditLogFilter) { auditLogs(filter: $f) { totalCount } }";
            admin.with(query, json!({ "f": filter })).await.data()["auditLogs"]["totalCount"].clone()
        };
        assert_eq!(count(json!({})).await, 3);
        assert_eq!(count(json!({ "resourceId": account["id"] })).await, 1);
        assert_eq!(count(json!({ "userId": viewer })).await, 2);
        assert_eq!(count(json!({ "apiKeyId": "key_00000000000000000000000000" })).await, 0);
        let client = crate::credential::new_client(&admin, "C").await;
        let made = crate::credential::create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await;
        let credential = &made["id"];
        crate::credential::reveal(&admin, json!({ "id": credential })).await.data();
        assert_eq!(count(json!({ "credentialId": credential })).await, 2);
        assert_eq!(count(json!({ "credentialId": credential, "action": ["REVEAL"] })).await, 1);
        assert_eq!(count(json!({ "credentialId": credential, "resourceId": account["id"] })).await, 0);
        assert_eq!(count(json!({ "credentialId": "cred_00000000000000000000000000" })).await, 0);
        for (field, id) in [("credentialId", &account["id"]), ("userId", credential)] {
            let answer = admin.with("query($f: AuditLogFilter) { auditLogs(filter: $f) { totalCount } }", json!({ "f": { field: id } })).await;
            assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec![field]));
        }
        assert_eq!(count(json!({ "action": ["CREATE"] })).await, 4);
        assert_eq!(count(json!({ "resourceType": ["SESSION", "CLAUDE_ACCOUNT"] })).await, 2);
        assert_eq!(count(json!({ "outcome": ["DENIED"] })).await, 0);
        assert_eq!(count(json!({ "requestId": "first-start" })).await, 1);
        assert_eq!(count(json!({ "occurredAt": { "from": "2020-01-01T00:00:00Z" } })).await, 6);
        assert_eq!(count(json!({ "occurredAt": { "to": "2020-01-01T00:00:00Z" } })).await, 0);
    }

    async fn the_database_refuses_to_change_the_log(app: TestApp) {
        app.admin().await;
        let fields = |id: &str, sequence: &str| format!(
            "{id}, organization_id, {sequence}, occurred_at, action, 'x', outcome, error_code, resource_type, resource_id,
             changes, metadata, user_id, ip_address, user_agent, request_id, hash, api_key_id FROM audit_logs WHERE sequence = 1"
        );
        let replacements = if app.database.url.starts_with("postgres") {
            vec![format!("INSERT INTO audit_logs SELECT {} ON CONFLICT (id) DO UPDATE SET operation = 'x'", fields("id", "9"))]
        } else {
            vec![
                format!("INSERT OR REPLACE INTO audit_logs SELECT {}", fields("id", "9")),
                format!("REPLACE INTO audit_logs SELECT {}", fields("'another'", "sequence")),
            ]
        };
        let statements = ["UPDATE audit_logs SET operation = 'x'".to_owned(), "DELETE FROM audit_logs".to_owned()];
        for statement in statements.iter().chain(&replacements) {
            let refused = app.database.execute(statement).await.unwrap_err();
            assert!(refused.contains("append-only"), "{statement}: {refused}");
        }
        if app.database.url.starts_with("postgres") {
            assert!(app.database.execute("TRUNCATE audit_logs").await.unwrap_err().contains("append-only"));
        }
    }

    async fn deeds_at_once_make_one_chain(app: TestApp) {
        let admin = app.admin().await;
        let deeds = (0..20).map(|n| {
            let admin = admin.clone();
            async move { create(&admin, json!({ "apiKey": format!("sk-ant-{n}"), "accountName": "A" })).await }
        });
        futures_util::future::join_all(deeds).await;
        let (_, raw) = crate::api_key::create(&admin, json!({ "name": "K", "scopes": ["ADMIN_WRITE"] })).await;
        create(&crate::api_key::with_key(&app, &raw), json!({ "apiKey": "sk-ant-by-key", "accountName": "A" })).await;
        assert_eq!(assert_chain_holds(&app.database).await, 24);
    }

    async fn where_the_entry_cannot_be_written_the_error_names_its_field(app: TestApp) {
        let admin = app.admin().await;
        app.database.execute("ALTER TABLE audit_heads RENAME TO no_heads").await.unwrap();
        let answer = admin.run("mutation { a: signOut { signedOut } b: signOut { signedOut } }").await;
        assert_eq!(answer.body["data"], json!({ "a": null, "b": null }));
        assert_eq!(answer.body["errors"].as_array().unwrap().len(), 2);
        assert_eq!((&answer.body["errors"][0]["path"], answer.code()), (&json!(["a"]), "INTERNAL_SERVER_ERROR"));
    }

    async fn where_the_entry_cannot_be_written_the_deed_is_not_done(app: TestApp) {
        let admin = app.admin().await;
        app.database.execute("UPDATE audit_heads SET sequence = 0").await.unwrap();
        let mutation = r#"mutation { createClaudeAccount(input: { apiKey: "sk-ant-1", accountName: "A" }) { claudeAccount { id } } }"#;
        assert_eq!(admin.run(mutation).await.code(), "INTERNAL_SERVER_ERROR");
        assert_eq!(admin.run("{ claudeAccounts { totalCount } }").await.data()["claudeAccounts"]["totalCount"], 0);
    }
}
