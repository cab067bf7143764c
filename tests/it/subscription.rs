//! Subscriptions: over graphql-transport-ws, and as server-sent events.

use std::time::Duration;

use claviger::http::LiveLimits;
use serde_json::{Value, json};

use crate::api_key::{create as new_key, revoke, with_key};
use crate::claude_account::create;
use crate::http::node;
use crate::invitation::join;
use crate::socket::slow_test;
use crate::support::{Client, EventStream, PASSWORD, Socket, TestApp, both_databases, gauge, until_gauge};

pub(crate) const ADDED: &str = "subscription { auditLogAdded { id operation outcome } }";
pub(crate) const CHANGED: &str = "subscription { claudeAccountChanged { id priority version } }";
pub(crate) const SHORT: Duration = Duration::from_millis(50);

async fn account(client: &Client, api_key: &str) -> Value {
    create(client, json!({ "apiKey": api_key, "accountName": "An account" })).await
}

async fn update(client: &Client, id: &str, priority: i32) -> Value {
    let query = "mutation($id: ID!, $priority: Int) {
        updateClaudeAccount(input: { id: $id, priority: $priority }) { claudeAccount { id priority version } } }";
    let answer = client.with(query, json!({ "id": id, "priority": priority })).await;
    answer.data()["updateClaudeAccount"]["claudeAccount"].clone()
}

/// Changes a user with a role, as the administrator.
async fn change(admin: &Client, role: &str, input: Value) {
    let users = admin.run("{ users(first: 100) { nodes { id role } } }").await;
    let user =
        users.data()["users"]["nodes"].as_array().unwrap().iter().find(|user| user["role"] == role).unwrap().clone();
    let mut input = input;
    input["id"] = user["id"].clone();
    let answer = admin.with(
        "mutation($input: UpdateUserInput!) { updateUser(input: $input) { user { id } } }",
        json!({ "input": input }),
    );
    answer.await.data();
}

async fn second_admin(app: &TestApp) -> Client {
    let admin = app.admin().await;
    let user = app.user("MANAGER").await;
    change(&admin, "MANAGER", json!({ "role": "ADMIN" })).await;
    user
}

/// What one caller has open: a socket on which nothing runs, one on which something does, and a stream.
struct Opened {
    idle: Socket,
    busy: Socket,
    stream: EventStream,
}

impl Opened {
    async fn by(app: &TestApp, client: &Client) -> Self {
        let own = "subscription { usageRecorded { id } }";
        let idle = Socket::connected(app, client).await;
        let mut busy = Socket::connected(app, client).await;
        busy.follow(app, "1", own).await;
        let stream = EventStream::open(client, own).await.begun(app, 2).await;
        Self { idle, busy, stream }
    }

    /// Waits until the server has ended all of it, for want of access.
    async fn until_cut_off(mut self, app: &TestApp) {
        assert_eq!(self.idle.closed().await, (4403, "Forbidden".to_owned()));
        assert_eq!(self.busy.closed().await.0, 4403);
        let (name, body) = self.stream.event().await.unwrap();
        assert_eq!((name.as_str(), &body["errors"][0]["extensions"]["code"]), ("next", &json!("UNAUTHENTICATED")));
        assert_eq!(self.stream.event().await.unwrap().0, "complete");
        assert_eq!(self.stream.event().await, None);
        for left in ["claviger_sockets_open", "claviger_event_streams_open", "claviger_subscriptions_active"] {
            until_gauge(app, left, 0).await;
        }
    }
}

both_databases! {
    async fn every_entry_comes_once_and_in_the_logs_order(app: TestApp) {
        let admin = app.admin().await;
        let reader = app.user("READ_ONLY").await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "all", ADDED).await;
        let filtered = ADDED.replace("auditLogAdded", "auditLogAdded(filter: { outcome: [DENIED] })");
        let mut denied = Socket::connected(&app, &admin).await;
        denied.follow(&app, "denied", &filtered).await;
        let deeds = (0..8).map(|number| {
            let (admin, reader) = (admin.clone(), reader.clone());
            async move {
                let input = format!("(input: {{ name: \"Client {number}\" }})");
                let who = if number % 4 == 3 { reader } else { admin };
                who.run(&format!("mutation {{ createClient{input} {{ client {{ id }} }} }}")).await;
            }
        });
        futures_util::future::join_all(deeds).await;
        admin.run("mutation { createClient(input: { name: \"\" }) { client { id } } }").await;
        let logs = admin.run("{ auditLogs(first: 9) { nodes { id operation outcome } } }").await;
        let mut expected = logs.data()["auditLogs"]["nodes"].as_array().unwrap().clone();
        expected.reverse();
        assert_eq!(expected.last().unwrap()["outcome"], "FAILED");
        for entry in &expected {
            assert_eq!(socket.event("all").await["auditLogAdded"], *entry);
        }
        for entry in expected.iter().filter(|entry| entry["outcome"] == "DENIED") {
            assert_eq!(denied.event("denied").await["auditLogAdded"], *entry);
        }
        // No entry comes twice: what comes next is the answer to what is asked next.
        for socket in [&mut socket, &mut denied] {
            socket.subscribe("end", "{ viewer { role } }").await;
            assert_eq!(socket.event("end").await, json!({ "viewer": { "role": "ADMIN" } }));
        }
    }

    async fn an_event_is_completed_as_any_answer(app: TestApp) {
        let admin = app.admin().await;
        let mut socket = Socket::connected(&app, &admin).await;
        let query = "subscription { entry: auditLogAdded(filter: { action: [CREATE] }) {
            user { email } ...Kind resource { __typename ... on ClaudeAccount { priority accountName } } outcome
        } } fragment Kind on AuditLog { resourceType user { fullName } }";
        socket.follow(&app, "1", query).await;
        account(&admin, "sk-ant-one").await;
        let text = socket.text().await;
        let data = &text[text.find("\"data\"").unwrap()..];
        let keys = ["user", "email", "fullName", "resourceType", "resource", "__typename", "priority", "accountName", "outcome"];
        let places: Vec<_> = keys.iter().map(|key| data.find(&format!("\"{key}\"")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    }

    async fn an_account_comes_when_it_was_changed(app: TestApp) {
        let admin = app.admin().await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "1", CHANGED).await;
        let id = account(&admin, "sk-ant-one").await["id"].as_str().unwrap().to_owned();
        assert_eq!(socket.event("1").await["claudeAccountChanged"], json!({ "id": id, "priority": 0, "version": 1 }));
        let updated = update(&admin, &id, 5).await;
        assert_eq!(socket.event("1").await["claudeAccountChanged"], updated);
        // Neither what changes nothing, nor a look, nor a refusal, nor another noun, nor a deletion is a change.
        update(&admin, &id, 5).await;
        admin.with("query($id: ID!) { claudeAccount(id: $id) { id } }", json!({ "id": id })).await.data();
        admin.run("mutation { updateClaudeAccount(input: { id: \"acct_0\" }) { claudeAccount { id } } }").await;
        admin.run("mutation { createClient(input: { name: \"A client\" }) { client { id } } }").await.data();
        let other = account(&admin, "sk-ant-another").await["id"].clone();
        assert_eq!(socket.event("1").await["claudeAccountChanged"]["id"], other);
        let delete = "mutation($id: ID!) { deleteClaudeAccount(input: { id: $id }) { deletedId } }";
        admin.with(delete, json!({ "id": id })).await.data();
        let updated = update(&admin, other.as_str().unwrap(), 9).await;
        assert_eq!(socket.event("1").await["claudeAccountChanged"], updated);
    }

    async fn what_another_process_commits_is_heard_of(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "1", ADDED).await;
        let mut elsewhere = admin.clone();
        elsewhere.url = app.another().await;
        account(&elsewhere, "sk-ant-one").await;
        assert_eq!(socket.event("1").await["auditLogAdded"]["operation"], "createClaudeAccount");
    }

    async fn queries_and_mutations_are_answered_once(app: TestApp) {
        let admin = app.admin().await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("1", "{ viewer { role } }").await;
        assert_eq!(socket.event("1").await["viewer"]["role"], "ADMIN");
        assert_eq!(socket.next().await, json!({ "type": "complete", "id": "1" }));
        // The id may be used again.
        let deed = "mutation M($name: String!) { createClient(input: { name: $name }) { client { name } } } query Q { viewer { role } }";
        let payload = json!({ "query": deed, "operationName": "M", "variables": { "name": "By socket" } });
        socket.send(json!({ "id": "1", "type": "subscribe", "payload": payload })).await;
        assert_eq!(socket.event("1").await["createClient"]["client"]["name"], "By socket");
        assert_eq!(socket.next().await, json!({ "type": "complete", "id": "1" }));
        socket.subscribe("2", "mutation { createClient(input: { name: \"\" }) { client { id } } }").await;
        let failed = socket.next().await;
        assert_eq!((&failed["type"], &failed["payload"]["data"]["createClient"]), (&json!("next"), &Value::Null));
        let request_id = &failed["payload"]["errors"][0]["extensions"]["requestId"];
        let logs = admin.run("{ auditLogs(first: 2) { nodes { outcome requestId ipAddress } } }").await;
        let entries = &logs.data()["auditLogs"]["nodes"];
        assert_eq!(entries[0], json!({ "outcome": "FAILED", "requestId": request_id, "ipAddress": "127.0.0.1" }));
        assert_ne!(entries[1]["requestId"], entries[0]["requestId"]);
    }

    async fn a_reset_that_changes_only_when_the_count_starts_again_is_a_change(app: TestApp) {
        let id = account(&app.admin().await, "sk-ant-one").await["id"].clone();
        app.advance(40 * 24 * 60 * 60);
        let admin = app.admin().await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "1", CHANGED).await;
        let reset = "mutation($id: ID!) { resetClaudeAccountUsage(input: { id: $id }) { claudeAccount { version } } }";
        admin.with(reset, json!({ "id": id })).await.data();
        assert_eq!(socket.event("1").await["claudeAccountChanged"], json!({ "id": id, "priority": 0, "version": 2 }));
        let logs = admin.run("{ auditLogs(first: 1) { nodes { changes } } }").await;
        let changes = logs.data()["auditLogs"]["nodes"][0]["changes"].as_object().unwrap().clone();
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["usageResetsAt"]);
    }

    async fn a_fault_of_the_database_that_passes_ends_no_subscription(app: TestApp) {
        let admin = app.admin().await;
        let (upstream, test) = slow_test(&admin).await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "1", "subscription { auditLogAdded { operation } }").await;
        let mut stream = EventStream::open(&admin, CHANGED).await.begun(&app, 2).await;
        let tested = tokio::spawn({
            let admin = admin.clone();
            async move { admin.run(&test).await }
        });
        let asked = upstream.accept().await.unwrap();
        // From now on nobody can be looked up.
        app.advance(6);
        app.database.execute("ALTER TABLE sessions RENAME TO elsewhere").await.unwrap();
        drop((asked, upstream));
        tested.await.unwrap().data();
        let statements = "claviger_database_statements_total";
        let before = gauge(&app, statements).await;
        while gauge(&app, statements).await < before + 4 {}
        app.database.execute("ALTER TABLE elsewhere RENAME TO sessions").await.unwrap();
        assert_eq!(socket.event("1").await["auditLogAdded"]["operation"], "testClaudeAccount");
        assert_eq!(stream.event().await.unwrap().1["data"]["claudeAccountChanged"]["version"], 2);
    }

    async fn a_stream_whose_token_expires_ends_as_one_that_broke_off(app: TestApp) {
        let limits = LiveLimits { ping: SHORT, ..LiveLimits::default() };
        let app = app.limited(limits).await;
        let mut stream = EventStream::open(&app.admin().await, CHANGED).await.begun(&app, 1).await;
        app.advance(15 * 60);
        assert_eq!(stream.event().await, None);
    }

    async fn who_signs_out_or_is_suspended_is_cut_off_at_once(app: TestApp) {
        let admin = app.admin().await;
        let mut idle = Socket::connected(&app, &admin).await;
        let mut busy = Socket::connected(&app, &admin).await;
        busy.follow(&app, "1", ADDED).await;
        let mut stream = EventStream::open(&admin, CHANGED).await;
        until_gauge(&app, "claviger_subscriptions_active", 2).await;
        admin.run("mutation { signOut { signedOut } }").await.data();
        assert_eq!(idle.closed().await, (4403, "Forbidden".to_owned()));
        assert_eq!(busy.closed().await.0, 4403);
        let (name, body) = stream.event().await.unwrap();
        assert_eq!((name.as_str(), &body["errors"][0]["extensions"]["code"]), ("next", &json!("UNAUTHENTICATED")));
        assert_eq!(stream.event().await.unwrap().0, "complete");
        assert_eq!(stream.event().await, None);
        until_gauge(&app, "claviger_sockets_open", 0).await;

        let admin = app.admin().await;
        let member = app.user("MEMBER").await;
        let mut socket = Socket::connected(&app, &member).await;
        change(&admin, "MEMBER", json!({ "status": "SUSPENDED" })).await;
        assert_eq!(socket.closed().await.0, 4403);
        // Nor is a socket opened for them any more.
        let mut socket = Socket::open(&app).await;
        let token = format!("Bearer {}", member.access_token.unwrap());
        socket.send(json!({ "type": "connection_init", "payload": { "authorization": token } })).await;
        assert_eq!(socket.closed().await.0, 4403);
    }

    async fn who_is_deleted_and_whose_key_is_revoked_is_cut_off_at_once(app: TestApp) {
        // Looked at again because of the change, and not because it was time to.
        let app = app.limited(LiveLimits { ping: Duration::from_secs(3600), ..LiveLimits::default() }).await;
        let admin = app.admin().await;
        let input = |name: &str| json!({ "name": name, "scopes": ["ADMIN_READ"] });

        let (id, deleted) = join(&app, &admin, "deleted@example.com", "MEMBER").await;
        let opened = Opened::by(&app, &deleted).await;
        admin.run(&format!("mutation {{ deleteUser(input: {{ id: {id} }}) {{ deletedId }} }}")).await.data();
        opened.until_cut_off(&app).await;

        let (_, leaving) = join(&app, &admin, "leaving@example.com", "MEMBER").await;
        let opened = Opened::by(&app, &leaving).await;
        let leave = "mutation($p: String!) { deleteMyAccount(input: { password: { plain: $p } }) { deletedId } }";
        leaving.with(leave, json!({ "p": PASSWORD })).await.data();
        opened.until_cut_off(&app).await;

        let (key, raw) = new_key(&admin, input("Revoked")).await;
        let opened = Opened::by(&app, &with_key(&app, &raw)).await;
        revoke(&admin, &key["id"]).await.data();
        opened.until_cut_off(&app).await;

        // With its owner a key goes too.
        let (id, owner) = join(&app, &admin, "owner@example.com", "MEMBER").await;
        let (_, raw) = new_key(&owner, input("Of who is deleted")).await;
        let opened = Opened::by(&app, &with_key(&app, &raw)).await;
        admin.run(&format!("mutation {{ deleteUser(input: {{ id: {id} }}) {{ deletedId }} }}")).await.data();
        opened.until_cut_off(&app).await;
    }

    async fn a_key_that_expires_ends_what_it_has_opened(app: TestApp) {
        let app = app.limited(LiveLimits { ping: SHORT, ..LiveLimits::default() }).await;
        let input = json!({ "name": "K", "scopes": ["ADMIN_READ"], "expiresInDays": 1 });
        let (_, raw) = new_key(&app.admin().await, input).await;
        let mut opened = Opened::by(&app, &with_key(&app, &raw)).await;
        // It is looked at again and again, and is good until then.
        app.advance(12 * 60 * 60);
        opened.busy.subscribe("2", "{ viewer { role } }").await;
        assert_eq!(opened.busy.event("2").await["viewer"]["role"], "ADMIN");
        app.advance(12 * 60 * 60);
        opened.until_cut_off(&app).await;
    }

    async fn who_loses_the_permission_loses_the_subscription_alone(app: TestApp) {
        let admin = app.admin().await;
        let demoted = second_admin(&app).await;
        let mut socket = Socket::connected(&app, &demoted).await;
        socket.follow(&app, "1", ADDED).await;
        let mut stream = EventStream::open(&demoted, CHANGED).await;
        until_gauge(&app, "claviger_subscriptions_active", 2).await;
        // The only other administrator is the first: the one that is changed is not.
        let users = admin.run("{ users(first: 100) { nodes { id email } } }").await;
        let nodes = users.data()["users"]["nodes"].as_array().unwrap().clone();
        let id = &nodes.iter().find(|user| user["email"] == "manager@example.com").unwrap()["id"];
        let demote = "mutation($id: ID!) { updateUser(input: { id: $id, role: MEMBER }) { user { id } } }";
        admin.with(demote, json!({ "id": id })).await.data();
        assert_eq!(socket.error("1").await, "FORBIDDEN");
        assert_eq!(stream.event().await.unwrap().1["errors"][0]["extensions"]["code"], "FORBIDDEN");
        assert_eq!(stream.event().await.unwrap().0, "complete");
        socket.subscribe("2", "{ viewer { role } }").await;
        assert_eq!(socket.event("2").await["viewer"]["role"], "MEMBER");
    }

    async fn an_expired_token_ends_its_socket(app: TestApp) {
        // A token lives for 15 minutes. However slow this machine is, one of them is still good when its socket begins.
        for left in [1, 4, 16] {
            let admin = app.admin().await;
            app.advance(15 * 60 - left);
            let mut socket = Socket::open(&app).await;
            let token = format!("Bearer {}", admin.access_token.unwrap());
            socket.send(json!({ "type": "connection_init", "payload": { "Authorization": token } })).await;
            if socket.begins().await {
                assert_eq!(socket.closed().await.0, 4403);
                return;
            }
        }
        panic!("no socket began in time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walls_and_guards_hold_for_sockets_and_streams() {
    let app = TestApp::sqlite().await;
    let admin = app.admin().await;
    let member = app.user("MEMBER").await;
    let deep = format!("subscription {{ auditLogAdded {} id {} }}", "{ user ".repeat(16), "}".repeat(16));
    let two = format!("subscription {{ {} {} }}", "auditLogAdded { id }", "claudeAccountChanged { id }");
    let in_fragment =
        "subscription { ...F } fragment F on Subscription { auditLogAdded { id } claudeAccountChanged { id } }";
    let bad_filter = "subscription { auditLogAdded(filter: { userId: \"nobody\" }) { id } }";
    let aliases = (0..31).map(|number| format!("a{number}: id")).collect::<Vec<_>>().join(" ");
    let cases = [
        (&admin, "subscription {", "GRAPHQL_PARSE_FAILED"),
        (&admin, "subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        (&admin, "subscription { __typename }", "GRAPHQL_VALIDATION_FAILED"),
        (&admin, "subscription { auditLogAdded { id } @skip(if: true) }", "GRAPHQL_PARSE_FAILED"),
        (&admin, "subscription { auditLogAdded @skip(if: true) { id } }", "GRAPHQL_VALIDATION_FAILED"),
        (&admin, &two, "GRAPHQL_VALIDATION_FAILED"),
        (&admin, in_fragment, "GRAPHQL_VALIDATION_FAILED"),
        (&admin, &deep, "QUERY_TOO_COMPLEX"),
        (&admin, &format!("subscription {{ auditLogAdded {{ {aliases} }} }}"), "QUERY_TOO_COMPLEX"),
        (&admin, bad_filter, "BAD_USER_INPUT"),
        (&member, ADDED, "FORBIDDEN"),
        (&member, CHANGED, "FORBIDDEN"),
        (&app.anonymous(), ADDED, "UNAUTHENTICATED"),
    ];
    for (client, query, code) in cases {
        let mut socket = Socket::connected(&app, client).await;
        socket.subscribe("1", query).await;
        assert_eq!(socket.error("1").await, code, "{query}");
        assert_eq!(EventStream::open(client, query).await.answer().await.code(), code, "{query}");
    }
    // A document that was sent once may be asked for by its hash.
    let hash = hex::encode(ring::digest::digest(&ring::digest::SHA256, ADDED.as_bytes()));
    let persisted = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } });
    let mut socket = Socket::connected(&app, &admin).await;
    socket.send(json!({ "id": "1", "type": "subscribe", "payload": { "extensions": persisted } })).await;
    until_gauge(&app, "claviger_subscriptions_active", 1).await;
    account(&admin, "sk-ant-one").await;
    assert_eq!(socket.event("1").await["auditLogAdded"]["operation"], "createClaudeAccount");
    // Plain answers have no room for events.
    let answer = admin.run(ADDED).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (400, "BAD_USER_INPUT"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_events_are_answers_that_go_on() {
    let limits = LiveLimits { keep_alive: SHORT, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let stream = EventStream::get(&admin, CHANGED).await;
    let mut stream = stream.begun(&app, 1).await;
    let headers = stream.response.headers();
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert!(!headers.contains_key("content-encoding"));
    assert_eq!(gauge(&app, "claviger_event_streams_open").await, 1);
    for _ in 0..3 {
        assert_eq!(stream.block().await.unwrap(), ":");
    }
    let id = account(&admin, "sk-ant-one").await["id"].clone();
    let account = json!({ "data": { "claudeAccountChanged": { "id": id, "priority": 0, "version": 1 } } });
    assert_eq!(stream.event().await, Some(("next".to_owned(), account)));
    drop(stream);
    until_gauge(&app, "claviger_event_streams_open", 0).await;
    until_gauge(&app, "claviger_subscriptions_active", 0).await;

    let viewer = json!({ "data": { "viewer": { "role": "ADMIN" } } });
    assert_eq!(EventStream::get(&admin, "{ viewer { role } }").await.answer().await.body, viewer);
    let deed = "mutation { createClient(input: { name: \"By stream\" }) { client { name } } }";
    let answer = EventStream::open(&admin, deed).await.answer().await;
    assert_eq!(answer.data()["createClient"]["client"]["name"], "By stream");
    let refused = EventStream::get(&admin, deed).await.response;
    assert_eq!(
        (refused.status().as_u16(), refused.headers()["content-type"].to_str().unwrap()),
        (405, "application/json; charset=utf-8")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_ends_when_its_caller_may_no_longer() {
    let app = TestApp::sqlite().await;
    let (admin, reader) = (app.admin().await, app.admin().await);
    let large: Vec<_> = (0..25).map(|n| format!("a{n}: changes")).collect();
    let large = large.join(" ");
    let stream = EventStream::open(&reader, &format!("subscription {{ auditLogAdded {{ {large} }} }}")).await;
    let _unread = stream.begun(&app, 1).await;
    let counted = "claviger_graphql_requests_total{field=\"auditLogAdded\",outcome=\"OK\"}";
    // More than the system keeps for a connection: the server makes no more events of it.
    let mut made = 0;
    loop {
        let input = json!({ "name": "C", "metadata": { "text": "x".repeat(60_000) } });
        let create = "mutation($i: CreateClientInput!) { createClient(input: $i) { client { id } } }";
        admin.with(create, json!({ "i": input })).await.data();
        made += 1;
        let before = gauge(&app, counted).await;
        if made > before {
            tokio::time::sleep(SHORT * 10).await;
            if gauge(&app, counted).await == before {
                break;
            }
        }
    }
    reader.run("mutation { signOut { signedOut } }").await.data();
    until_gauge(&app, "claviger_event_streams_open", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_sockets_and_streams() {
    let mut app = TestApp::sqlite().await;
    let admin = app.admin().await;
    let mut idle = Socket::open(&app).await;
    let mut busy = Socket::connected(&app, &admin).await;
    busy.follow(&app, "1", ADDED).await;
    let mut stream = EventStream::open(&admin, CHANGED).await;
    until_gauge(&app, "claviger_subscriptions_active", 2).await;
    let ((), idle, busy, rest) = tokio::join!(app.stop(), idle.closed(), busy.closed(), stream.event());
    assert_eq!((idle.0, busy.0, rest), (1001, 1001, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_graphql_ws_and_graphql_sse_get_along() {
    let app = TestApp::sqlite().await;
    let token = app.admin().await.access_token.unwrap();
    node("graphql-live", "clients.mjs", vec![("URL", app.url.clone()), ("TOKEN", token)]).await;
}
