//! Two organizations in one database: whatever takes an id takes another organization's as one that does not exist.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::audit::filled_in;
use crate::calls::{Call, text};
use crate::claude_account::create as new_account;
use crate::notification::{list as notifications, signed_in_with};
use crate::support::schema::{Place, Schema, assert_lines, is_root};
use crate::support::{
    Answer, Client, EventStream, OTHER_ORGANIZATION, PASSWORD, Socket, TestApp, both_databases, until_gauge,
};

/// A record of each type that `node` finds: the word of `CALLS` in audit.rs, or a query and where in its answer the id is.
pub(crate) const SPECIMENS: &[(&str, &str, &str)] = &[
    ("ClaudeAccount", "\"ID\"", ""),
    ("Client", "\"CLIENT\"", ""),
    ("Task", "\"TASK\"", ""),
    ("Credential", "\"CREDENTIAL\"", ""),
    ("ApiKey", "\"API_KEY\"", ""),
    ("Conversation", "\"CONVERSATION\"", ""),
    ("Message", "\"MESSAGE\"", ""),
    ("Worker", "\"WORKER\"", ""),
    ("Notification", "\"NOTIFICATION\"", ""),
    ("UsageRecord", "\"USAGE\"", ""),
    ("User", "{ viewer { user { id } } }", "/viewer/user/id"),
    ("Organization", "{ organization { id } }", "/organization/id"),
    ("Session", "{ viewer { sessions { id } } }", "/viewer/sessions/0/id"),
    ("AuditLog", "{ auditLogs(first: 1) { nodes { id } } }", "/auditLogs/nodes/0/id"),
];

/// A place that takes the id of a record of any type.
const ANY: &str = "any";
/// A place that takes the id of a request.
const REQUEST: &str = "request";
/// A place that takes the id of what all organizations share.
const SHARED: &str = "shared";

/// Every place of the schema that takes an id, and of what.
const IDS: &[(&str, &str)] = &[
    ("Query.node(id)", ANY),
    ("Query.nodes(ids)", ANY),
    ("Query.user(id)", "User"),
    ("Query.claudeAccount(id)", "ClaudeAccount"),
    ("Query.client(id)", "Client"),
    ("Query.clients(filter.ownerId)", "User"),
    ("Query.task(id)", "Task"),
    ("Query.tasks(filter.clientId)", "Client"),
    ("Query.tasks(filter.assigneeId)", "User"),
    ("Query.credential(id)", "Credential"),
    ("Query.credentials(filter.clientId)", "Client"),
    ("Query.apiKey(id)", "ApiKey"),
    ("Query.apiKeys(filter.ownerId)", "User"),
    ("Query.apiKeys(filter.clientId)", "Client"),
    ("Query.conversation(id)", "Conversation"),
    ("Query.auditLogs(filter.userId)", "User"),
    ("Query.auditLogs(filter.apiKeyId)", "ApiKey"),
    ("Query.auditLogs(filter.credentialId)", "Credential"),
    ("Query.auditLogs(filter.resourceId)", ANY),
    ("Query.auditLogs(filter.requestId)", REQUEST),
    ("Query.usage(filter.apiKeyId)", "ApiKey"),
    ("Query.usage(filter.userId)", "User"),
    ("Query.usage(filter.clientId)", "Client"),
    ("Query.usage(filter.claudeAccountId)", "ClaudeAccount"),
    ("Query.usageRecords(filter.apiKeyId)", "ApiKey"),
    ("Query.usageRecords(filter.userId)", "User"),
    ("Query.usageRecords(filter.clientId)", "Client"),
    ("Query.usageRecords(filter.claudeAccountId)", "ClaudeAccount"),
    ("Client.tasks(filter.clientId)", "Client"),
    ("Client.tasks(filter.assigneeId)", "User"),
    ("Mutation.signIn(input.password.encrypted.keyId)", SHARED),
    ("Mutation.acceptInvitation(input.password.encrypted.keyId)", SHARED),
    ("Mutation.register(input.password.encrypted.keyId)", SHARED),
    ("Mutation.resetPassword(input.newPassword.encrypted.keyId)", SHARED),
    ("Mutation.changePassword(input.currentPassword.encrypted.keyId)", SHARED),
    ("Mutation.changePassword(input.newPassword.encrypted.keyId)", SHARED),
    ("Mutation.deleteMyAccount(input.password.encrypted.keyId)", SHARED),
    ("Mutation.verifyEmail(input.password.encrypted.keyId)", SHARED),
    ("Mutation.revokeSession(input.id)", "Session"),
    ("Mutation.updateUser(input.id)", "User"),
    ("Mutation.deleteUser(input.id)", "User"),
    ("Mutation.updateClaudeAccount(input.id)", "ClaudeAccount"),
    ("Mutation.replaceClaudeAccountKey(input.id)", "ClaudeAccount"),
    ("Mutation.testClaudeAccount(input.id)", "ClaudeAccount"),
    ("Mutation.resetClaudeAccountUsage(input.id)", "ClaudeAccount"),
    ("Mutation.deleteClaudeAccount(input.id)", "ClaudeAccount"),
    ("Mutation.createClient(input.ownerId)", "User"),
    ("Mutation.updateClient(input.id)", "Client"),
    ("Mutation.updateClient(input.ownerId)", "User"),
    ("Mutation.archiveClient(input.id)", "Client"),
    ("Mutation.restoreClient(input.id)", "Client"),
    ("Mutation.createTask(input.clientId)", "Client"),
    ("Mutation.createTask(input.assigneeId)", "User"),
    ("Mutation.updateTask(input.id)", "Task"),
    ("Mutation.updateTask(input.assigneeId)", "User"),
    ("Mutation.deleteTask(input.id)", "Task"),
    ("Mutation.createCredential(input.clientId)", "Client"),
    ("Mutation.updateCredential(input.id)", "Credential"),
    ("Mutation.revealCredential(input.id)", "Credential"),
    ("Mutation.deleteCredential(input.id)", "Credential"),
    ("Mutation.createApiKey(input.ownerId)", "User"),
    ("Mutation.createApiKey(input.clientId)", "Client"),
    ("Mutation.updateApiKey(input.id)", "ApiKey"),
    ("Mutation.regenerateApiKey(input.id)", "ApiKey"),
    ("Mutation.revokeApiKey(input.id)", "ApiKey"),
    ("Mutation.createConversation(input.clientId)", "Client"),
    ("Mutation.updateConversation(input.id)", "Conversation"),
    ("Mutation.sendMessage(input.conversationId)", "Conversation"),
    ("Mutation.deleteConversation(input.id)", "Conversation"),
    ("Mutation.markNotificationsRead(input.ids)", "Notification"),
];

/// Tables whose rows belong to no organization.
const SERVER_WIDE: &[&str] = &["encryption_keys", "leases", "password_keys", "password_nonces"];

/// Every subscription, and what its events show to be told apart by.
const EVENTS: &[(&str, &str)] = &[
    ("Subscription.auditLogAdded", "resourceId"),
    ("Subscription.claudeAccountChanged", "id"),
    ("Subscription.notificationAdded", "id"),
    ("Subscription.usageRecorded", "id"),
];

/// Subscriptions that need a process of the Claude CLI, with where they are shown to stay at home.
const OF_WORKERS: &[(&str, &str)] = &[
    ("Subscription.messageStream", "tests/it/conversation.rs: a conversation is its owner's alone"),
    ("Subscription.workerChanged", "tests/it/turn.rs: a worker is told of to its own organization"),
];

/// Does what a subscription tells of, once and nothing else of the kind: what its event shows.
async fn cause(app: &TestApp, admin: &Client, email: &str, name: &str, nth: usize) -> Value {
    match name {
        "Subscription.auditLogAdded" => crate::client::create(admin, json!({ "name": "C" })).await["id"].clone(),
        "Subscription.claudeAccountChanged" => {
            new_account(admin, json!({ "apiKey": format!("sk-ant-{nth}-{email}"), "accountName": "A" })).await["id"]
                .clone()
        }
        "Subscription.notificationAdded" => {
            // From a device that is new.
            signed_in_with(&app.url, email, PASSWORD, ["Firefox/1", "curl/2", "Safari/3", "Opera/4"][nth]).await;
            notifications(admin).await[0]["id"].clone()
        }
        "Subscription.usageRecorded" => crate::usage::specimen(app, admin).await,
        _ => panic!("{name}: what it tells of is done by nothing in tests/it/tenants.rs"),
    }
}

/// A record of a type in the organization of an administrator.
pub(crate) async fn specimen(app: &TestApp, admin: &Client, of: &str, key: &str) -> Value {
    let found = SPECIMENS.iter().find(|(known, ..)| *known == of);
    let (_, source, pointer) = found.unwrap_or_else(|| panic!("SPECIMENS of tests/it/tenants.rs has no {of}"));
    if pointer.is_empty() {
        return serde_json::from_str(&filled_in(app, admin, source, key).await).unwrap();
    }
    admin.run(source).await.data().pointer(pointer).unwrap().clone()
}

fn takes_an_id(place: &Place) -> bool {
    let name = place.path.last().unwrap();
    place.of == "ID" || name == "id" || name == "ids" || name.ends_with("Id") || name.ends_with("Ids")
}

/// The places that take ids, by name.
fn places() -> BTreeMap<String, (String, Place)> {
    let schema = Schema::of_the_server();
    let fields = schema.object_fields().into_iter().filter(|(name, _)| !name.starts_with("Subscription."));
    fields
        .flat_map(|(name, field)| schema.places(&name, field).into_iter().map(move |place| (name.clone(), place)))
        .filter(|(_, place)| takes_an_id(place))
        .map(|(name, place)| (format!("{name}({})", place.path.join(".")), (name, place)))
        .collect()
}

#[test]
fn every_place_that_takes_an_id_has_its_line() {
    assert_lines("IDS of tests/it/tenants.rs", IDS.iter().map(|(name, _)| *name), places().into_keys());
    assert_lines(
        "SPECIMENS of tests/it/tenants.rs",
        SPECIMENS.iter().map(|(of, ..)| *of),
        Schema::of_the_server().nodes(),
    );
}

#[test]
fn every_subscription_has_its_line() {
    let roots = Schema::of_the_server().root_fields().into_iter().map(|(name, _)| name);
    let subscriptions = roots.filter(|name| name.starts_with("Subscription."));
    let lines = EVENTS.iter().chain(OF_WORKERS).map(|(name, _)| *name);
    assert_lines("EVENTS of tests/it/tenants.rs", lines, subscriptions);
}

/// The other organization, with a record of each type, which belong together.
struct Other {
    admin: Client,
    /// By type.
    specimens: BTreeMap<&'static str, Value>,
}

impl Other {
    async fn with_records(app: &TestApp) -> Self {
        let admin = app.other_organization().await;
        let words: Vec<_> = SPECIMENS.iter().filter(|(.., pointer)| pointer.is_empty()).collect();
        let all = words.iter().map(|(_, word, _)| *word).collect::<Vec<_>>().join(" ");
        let all = filled_in(app, &admin, &all, "sk-ant-other").await;
        let ids = all.split(' ').map(|id| serde_json::from_str(id).unwrap());
        let mut specimens: BTreeMap<&str, Value> = words.iter().map(|(of, ..)| *of).zip(ids).collect();
        for (of, _, pointer) in SPECIMENS {
            if !pointer.is_empty() {
                specimens.insert(of, specimen(app, &admin, of, "").await);
            }
        }
        let input = json!({ "name": "K", "clientId": specimens["Client"], "scopes": ["ADMIN_WRITE"] });
        let (key, raw) = crate::api_key::create(&admin, input).await;
        specimens.insert("ApiKey", key["id"].clone());
        let assign = "mutation($input: UpdateTaskInput!) { updateTask(input: $input) { task { id } } }";
        let input = json!({ "id": specimens["Task"], "assigneeId": specimens["User"] });
        // By the key, so that an entry names it.
        crate::api_key::with_key(app, &raw).with(assign, json!({ "input": input })).await.data();
        let request = admin.run("{ auditLogs(first: 1) { nodes { requestId } } }").await;
        crate::usage::record_of(app, &specimens).await;
        specimens.insert(REQUEST, request.data()["auditLogs"]["nodes"][0]["requestId"].clone());
        Self { admin, specimens }
    }

    /// What a place can be given.
    fn ids(&self, what: &str) -> Vec<&Value> {
        let fits = |of: &str| of == what || (what == ANY && of != REQUEST);
        self.specimens.iter().filter(|(of, _)| fits(of)).map(|(_, id)| id).collect()
    }

    /// A call of a field in the other organization.
    fn call(&self, name: &str) -> Call {
        let mut text = text(name);
        for (of, word, pointer) in SPECIMENS {
            if pointer.is_empty() {
                text = text.replace(word, &self.specimens[of].to_string());
            }
        }
        let user = self.specimens["User"].to_string();
        Call::parse(name, &text.replace("\"USER_ID\"", &user))
    }
}

/// An id of the same kind that nothing has.
fn unknown(id: &Value) -> Value {
    let id = id.as_str().unwrap();
    let prefix = id.split_once('_').map_or("", |(prefix, _)| prefix);
    if prefix.is_empty() { json!("no-such-request") } else { json!(format!("{prefix}_{}1", "0".repeat(25))) }
}

/// Of each table the columns.
pub(crate) async fn tables(app: &TestApp) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, _) in app.database.columns().await {
        let (table, column) = name.split_once('.').unwrap();
        tables.entry(table.to_owned()).or_default().push(column.to_owned());
    }
    tables
}

/// The rows of the other organization, those of each table that it has any in.
async fn rows_of_the_other(app: &TestApp) -> Vec<String> {
    let is_postgres = app.database.url.starts_with("postgres");
    let mut queries = Vec::new();
    for (table, columns) in tables(app).await {
        let has = |name: &str| columns.iter().any(|column| column == name);
        let whose = if table == "organizations" {
            format!("id = '{OTHER_ORGANIZATION}'")
        } else if has("organization_id") {
            format!("organization_id = '{OTHER_ORGANIZATION}'")
        } else if has("user_id") {
            format!("user_id IN (SELECT id FROM users WHERE organization_id = '{OTHER_ORGANIZATION}')")
        } else if has("session_id") {
            format!("session_id IN (SELECT id FROM sessions WHERE organization_id = '{OTHER_ORGANIZATION}')")
        } else if has("api_key_id") {
            format!("api_key_id IN (SELECT id FROM api_keys WHERE organization_id = '{OTHER_ORGANIZATION}')")
        } else {
            assert!(SERVER_WIDE.contains(&table.as_str()), "{table}: whose its rows are, or SERVER_WIDE of tenants.rs");
            continue;
        };
        let quoted = columns.iter().map(|column| format!("quote(t.{column})")).collect::<Vec<_>>().join(" || ' ' || ");
        let row = if is_postgres { "CAST(t.* AS text)" } else { &quoted };
        queries.push(format!("SELECT '{table} ' || {row} AS text FROM {table} t WHERE {whose}"));
    }
    let mut rows = app.database.texts(&queries.join(" UNION ALL ")).await;
    rows.sort();
    rows
}

/// The ids of the other organization's records.
async fn ids_of_the_other(app: &TestApp) -> BTreeSet<String> {
    let with_ids = tables(app).await.into_iter().filter(|(_, columns)| {
        columns.iter().any(|column| column == "id") && columns.iter().any(|column| column == "organization_id")
    });
    let queries = with_ids
        .map(|(table, _)| format!("SELECT id AS text FROM {table} WHERE organization_id = '{OTHER_ORGANIZATION}'"))
        .chain([format!("SELECT id AS text FROM organizations WHERE id = '{OTHER_ORGANIZATION}'")]);
    app.database.texts(&queries.collect::<Vec<_>>().join(" UNION ALL ")).await.into_iter().collect()
}

/// The entries of the first organization since one was the newest, without what differs from call to call.
async fn entries_since(app: &TestApp, newest: &str) -> Vec<String> {
    app.database
        .texts(&format!(
            "SELECT operation || ' ' || action || ' ' || outcome || ' ' || coalesce(error_code, '-') || ' ' || resource_type
                 || ' ' || coalesce(resource_id, '-') || ' ' || coalesce(changes, '-') || ' ' || coalesce(metadata, '-') AS text
             FROM audit_logs WHERE organization_id <> '{OTHER_ORGANIZATION}' AND sequence > {newest} ORDER BY sequence"
        ))
        .await
}

async fn newest(app: &TestApp) -> String {
    let sql = format!(
        "SELECT CAST(sequence AS text) AS text FROM audit_heads WHERE organization_id <> '{OTHER_ORGANIZATION}'"
    );
    app.database.texts(&sql).await.remove(0)
}

/// Whether a read has found nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.iter().all(Value::is_null),
        report if report.get("total").is_some() => report["total"]["requests"] == 0,
        list => list["totalCount"] == 0 && list["nodes"] == json!([]),
    }
}

/// What a call with an id was answered and has left in the audit log, the id replaced.
async fn outcome(app: &TestApp, client: &Client, mut call: Call, place: &Place, id: &Value) -> (Answer, Value, String) {
    call.put(&place.path, if place.is_list { json!([id]) } else { id.clone() });
    let newest = newest(app).await;
    let answer = call.send(client).await;
    let mut body = answer.body.clone();
    for error in body["errors"].as_array_mut().into_iter().flatten() {
        error["extensions"].as_object_mut().unwrap().remove("requestId");
    }
    let entries = entries_since(app, &newest).await;
    let left = format!("{} {body} {entries:?}", answer.status).replace(id.as_str().unwrap(), "ID");
    let value = call.value(&answer);
    (answer, value, left)
}

both_databases! {
    async fn an_id_of_another_organization_is_as_none(app: TestApp) {
        let admin = app.admin().await;
        let other = Other::with_records(&app).await;
        let mut callers = Vec::new();
        for role in ["ADMIN", "MANAGER", "MEMBER", "READ_ONLY"] {
            callers.push((role, app.user(role).await));
        }
        let (places, mut calls) = (places(), 0);
        let before = rows_of_the_other(&app).await;
        for (line, what) in IDS {
            let (name, place) = &places[*line];
            for id in other.ids(what) {
                for (role, client) in &callers {
                    calls += 1;
                    let case = format!("{line} with {id} for {role}");
                    let call = Call::fresh(&app, &admin, name, &format!("sk-ant-{calls}")).await;
                    let (answer, value, foreign) = outcome(&app, client, call.clone(), place, id).await;
                    let (_, _, none) = outcome(&app, client, call, place, &unknown(id)).await;
                    assert_eq!(foreign, none, "{case} differs from an id that nothing has");
                    assert!(is_nothing(&value), "{case}: {}", answer.body);
                    if name.starts_with("Mutation.") {
                        let codes: &[_] = if *role == "ADMIN" { &["NOT_FOUND", "BAD_USER_INPUT"] } else { &["NOT_FOUND", "BAD_USER_INPUT", "FORBIDDEN"] };
                        assert!(codes.contains(&answer.code()), "{case}: {}", answer.body);
                    }
                }
            }
            let after = rows_of_the_other(&app).await;
            let changed: Vec<_> = after.iter().filter(|row| !before.contains(row)).collect();
            assert!(after == before, "{line} has changed the other organization's rows: {changed:?}");
        }
        // The log has the ids that were tried; what they name is not shown.
        let foreign = ids_of_the_other(&app).await;
        let mut after = Value::Null;
        loop {
            let query = "query($after: String) { auditLogs(first: 100, after: $after) {
                nodes { id resource { id } user { id } } pageInfo { hasNextPage endCursor } } }";
            let page = admin.with(query, json!({ "after": after })).await.data()["auditLogs"].clone();
            assert_is_none_of(&page["nodes"], &foreign, "auditLogs");
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false { break; }
        }
    }

    // Without this, the test above could not tell a filter that finds nothing from one that was asked for nothing.
    async fn each_of_these_reads_finds_something_at_home(app: TestApp) {
        let other = Other::with_records(&app).await;
        let places = places();
        for (line, what) in IDS.iter().filter(|(line, _)| !line.starts_with("Mutation.")) {
            let (name, place) = &places[*line];
            let mut found = false;
            for id in other.ids(what) {
                let (_, value, _) = outcome(&app, &other.admin, other.call(name), place, id).await;
                found |= !is_nothing(&value);
            }
            assert!(found, "{line} finds nothing in its own organization");
        }
    }

    async fn events_stay_at_home(app: TestApp) {
        let callers = [(app.admin().await, "admin@localhost"), (app.other_organization().await, "admin@other.example")];
        for (name, shown) in EVENTS {
            let field = name.strip_prefix("Subscription.").unwrap();
            let query = format!("subscription {{ {field} {{ {shown} }} }}");
            let mut following = Vec::new();
            for (admin, active) in [(&callers[0].0, 2), (&callers[1].0, 4)] {
                let mut socket = Socket::connected(&app, admin).await;
                socket.follow(&app, "1", &query).await;
                let stream = EventStream::open(admin, &query).await.begun(&app, active).await;
                following.push((socket, stream));
            }
            // One after the other: what each hears next is its own, though the other's came before.
            for nth in 0..4 {
                let at = nth % 2;
                let (admin, email) = &callers[at];
                let own = json!({ field: { *shown: cause(&app, admin, email, name, nth).await } });
                let (socket, stream) = &mut following[at];
                assert_eq!(socket.event("1").await, own, "{name} of {email}");
                assert_eq!(stream.event().await.unwrap().1["data"], own, "{name} of {email}");
            }
            drop(following);
            until_gauge(&app, "claviger_subscriptions_active", 0).await;
        }
    }

    async fn lists_counts_cursors_and_searches_stay_at_home(app: TestApp) {
        let admin = app.admin().await;
        let other = Other::with_records(&app).await;
        let with_search = tables(&app).await.into_iter().filter(|(_, columns)| columns.contains(&"search_text".to_owned()));
        for (table, _) in with_search {
            let theirs = format!("UPDATE {table} SET search_text = 'only theirs' WHERE organization_id = '{OTHER_ORGANIZATION}'");
            app.database.execute(&theirs).await.unwrap();
        }
        let foreign = ids_of_the_other(&app).await;
        for (name, field) in Schema::of_the_server().lists() {
            let own = Call::fresh(&app, &admin, &name, &format!("sk-ant-{name}")).await;
            let list = own.value(&own.send(&admin).await);
            assert_is_none_of(&list, &foreign, &name);
            assert_eq!(list["totalCount"], json!(list["nodes"].as_array().unwrap().len()), "{name}");
            assert!(list["totalCount"].as_u64().unwrap() < 20 || !is_root(&name), "{name}: more than a page");

            let theirs = other.call(&name).selecting("{ pageInfo { startCursor endCursor } totalCount nodes { id } }");
            let page = theirs.value(&theirs.send(&other.admin).await);
            assert!(page["totalCount"] != 0, "{name}: the other organization has none");
            for (argument, cursor) in [("after", "startCursor"), ("after", "endCursor"), ("before", "startCursor"), ("before", "endCursor")] {
                let mut call = own.clone();
                call.put(&[argument.to_owned()], page["pageInfo"][cursor].clone());
                let found = call.value(&call.send(&admin).await);
                assert_is_none_of(&found, &foreign, &name);
            }
            if field.arguments.iter().any(|argument| argument.node.name.node == "search") {
                let search = |mut call: Call| { call.put(&["search".to_owned()], json!("only theirs")); call };
                let (own, theirs) = (search(own), search(theirs));
                assert!(is_nothing(&own.value(&own.send(&admin).await)), "{name}");
                assert_ne!(theirs.value(&theirs.send(&other.admin).await)["totalCount"], 0, "{name}");
            }
        }
    }
}

/// That an answer shows nothing of these ids.
#[track_caller]
fn assert_is_none_of(answer: &Value, foreign: &BTreeSet<String>, name: &str) {
    let text = answer.to_string();
    let shown: Vec<_> = foreign.iter().filter(|id| text.contains(id.as_str())).collect();
    assert!(shown.is_empty(), "{name} shows the other organization's {shown:?}: {text}");
}
