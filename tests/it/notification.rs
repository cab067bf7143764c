//! Notifications: who is told of what, once; what was read; live, on whichever server.

use claviger::audit::{Entry, Origin};
use claviger::domain::notification::{self, Audience, Notice, notify};
use claviger::domain::{Cx, Record, Services, audited, expired};
use claviger::identity::Actor;
use claviger::model::{AuditAction, NotificationKind, Permission, ResourceType};
use claviger::store::notification::refused_sign_ins;
use serde_json::{Value, json};

use crate::invitation::join;
use crate::jobs::age;
use crate::support::{Client, PASSWORD, Socket, TestApp, both_databases};

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
const ADMIN: &str = "admin@localhost";
const ADDED: &str = "subscription { notificationAdded { title } }";
const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:141.0) Gecko/20100101 Firefox/141.0";
const NEWER_FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0";
const SAFARI: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Version/26.1 Safari/605.1.15";
const NEW_DEVICE: &str = "You signed in from a new device";
const REFUSED: &str = "Sign-ins were refused after too many attempts";
const REFUSED_OF_USERS: &str = "Sign-ins of users were refused after too many attempts";
/// The times of an API key's life.
const OF_KEYS: [(&str, &str); 3] =
    [("api_keys", "created_at"), ("api_keys", "expires_at"), ("api_keys", "expires_sort")];

/// A client that has signed in with a program.
pub(crate) async fn signed_in_with(url: &str, email: &str, password: &str, program: &str) -> Client {
    let mut client = Client::new(url);
    let query = "mutation($input: SignInInput!) { signIn(input: $input) { accessToken } }";
    let input = json!({ "email": email, "password": { "plain": password } });
    let request = client.http().post(format!("{url}/graphql")).header("user-agent", program);
    let answer = request.json(&json!({ "query": query, "variables": { "input": input } })).send().await.unwrap();
    let body: Value = answer.json().await.unwrap();
    client.access_token = Some(body["data"]["signIn"]["accessToken"].as_str().unwrap().to_owned());
    client
}

/// What a client is told, newest first.
pub(crate) async fn list(client: &Client) -> Vec<Value> {
    let query = "{ notifications(first: 100) { nodes { id kind title body readAt resource { id __typename } } } }";
    client.run(query).await.data()["notifications"]["nodes"].as_array().unwrap().clone()
}

pub(crate) async fn titles(client: &Client) -> Vec<String> {
    list(client).await.iter().map(|one| one["title"].as_str().unwrap().to_owned()).collect()
}

/// Tells something to the administrator's organization, one notice after the other in one transaction.
async fn tell(services: &Services, notices: &[Notice]) {
    let (actor, origin, record) = (Actor::system(services.home), Origin::default(), Record::default());
    let cx = Cx { services, actor: &actor, origin: &origin, operation: "test", record: &record, deadline: None };
    audited(cx, async |tx| {
        for notice in notices {
            notify(cx, tx, services.home, notice).await?;
        }
        Ok(((), Entry::new(AuditAction::Create, ResourceType::Notification)))
    })
    .await
    .unwrap();
}

/// A notice to all who may do something.
fn notice(title: &str, all_with: Permission) -> Notice {
    Notice {
        kind: NotificationKind::System,
        title: title.to_owned(),
        body: "…".to_owned(),
        resource: None,
        to: Audience { user: None, all_with: Some(all_with) },
        key: title.to_owned(),
    }
}

both_databases! {
    async fn a_sign_in_from_a_new_device_is_told_to_whose_it_is(app: TestApp) {
        // The first ever is told to nobody; nor is a browser that was updated.
        let admin = signed_in_with(&app.url, ADMIN, PASSWORD, FIREFOX).await;
        signed_in_with(&app.url, ADMIN, PASSWORD, NEWER_FIREFOX).await;
        assert_eq!(titles(&admin).await, [""; 0]);
        let other = signed_in_with(&app.url, ADMIN, PASSWORD, SAFARI).await;
        let told = list(&admin).await;
        assert_eq!((told.len(), &told[0]["kind"], &told[0]["title"]), (1, &json!("SECURITY"), &json!(NEW_DEVICE)));
        assert!(told[0]["body"].as_str().unwrap().contains("127.0.0.1, with Mozilla/5.0 (Macintosh;"), "{told:?}");
        let session = other.run("{ viewer { sessions { id current } } }").await.data()["viewer"]["sessions"].clone();
        let session = session.as_array().unwrap().iter().find(|session| session["current"] == true).unwrap();
        assert_eq!(told[0]["resource"], json!({ "id": session["id"], "__typename": "Session" }));
        let (_, somebody) = join(&app, &admin, "ina@example.com", "ADMIN").await;
        assert_eq!(titles(&somebody).await, [""; 0], "it is nobody else's");

        signed_in_with(&app.url, ADMIN, PASSWORD, SAFARI).await;
        assert_eq!(titles(&admin).await.len(), 1, "it is known by now");
        let beside = app.beside().await.services;
        app.advance(91 * DAY);
        expired::remove(&beside).await.unwrap();
        let admin = signed_in_with(&app.url, ADMIN, PASSWORD, FIREFOX).await;
        assert_eq!(titles(&admin).await, [NEW_DEVICE], "a device is forgotten, and so is what was told of it");
    }

    async fn an_api_key_that_ends_is_told_of_a_week_and_a_day_before(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let (owner, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let (_, max) = join(&app, &admin, "max@example.com", "MEMBER").await;
        let made = async |name: &str, days: i64| {
            let input = json!({ "name": name, "expiresInDays": days, "ownerId": owner });
            crate::api_key::create(&admin, input).await.0["id"].clone()
        };
        let id = made("Long", 30).await;
        made("Short", 7).await;
        let revoked = made("Revoked", 30).await;
        admin.with("mutation($id: ID!) { revokeApiKey(input: { id: $id }) { apiKey { id } } }", json!({ "id": revoked })).await.data();
        let tell = async || { notification::tell_of_expiring_api_keys(&beside).await.unwrap(); };
        tell().await;
        assert_eq!(titles(&ina).await, [""; 0]);

        age(&app, &OF_KEYS, 6).await;
        tell().await;
        assert_eq!(titles(&ina).await, ["The API key Short expires within a day"]);
        age(&app, &OF_KEYS, 17).await;
        for _ in 0..2 {
            tell().await;
        }
        let week = "The API key Long expires within a week";
        for client in [&admin, &ina] {
            assert_eq!(titles(client).await[0], week);
        }
        let told = list(&ina).await;
        assert_eq!((told.len(), &told[0]["kind"], &told[0]["resource"]), (2, &json!("API_KEY_EXPIRING"), &json!({ "id": id, "__typename": "ApiKey" })));
        assert_eq!(titles(&max).await, [""; 0]);

        // Given another end, it is told of anew, and then a day before.
        let change = "mutation($input: UpdateApiKeyInput!) { updateApiKey(input: $input) { apiKey { expiresAt } } }";
        let end = (chrono_now(&beside) + chrono::TimeDelta::days(5)).to_rfc3339();
        admin.with(change, json!({ "input": { "id": id, "expiresAt": end } })).await.data();
        tell().await;
        age(&app, &OF_KEYS, 4).await;
        for _ in 0..2 {
            tell().await;
        }
        assert_eq!(titles(&ina).await[..3], ["The API key Long expires within a day", week, week]);
    }

    async fn refused_sign_ins_are_told_to_whose_address_it_is_and_once_to_admins(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let (id_of_first, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let (id_of_second, ida) = join(&app, &admin, "ida@example.com", "MEMBER").await;
        let (_, max) = join(&app, &admin, "max@example.com", "MANAGER").await;
        let attempt = async |email: &str| {
            let deed = "mutation($e: String!) { signIn(input: { email: $e, password: { plain: \"wrong\" } }) { accessToken } }";
            app.anonymous().with(deed, json!({ "e": email })).await.code().to_owned()
        };
        for email in ["ina@example.com", "nobody@example.com", "ida@example.com"] {
            while attempt(email).await != "RATE_LIMITED" {}
            attempt(email).await;
        }
        for _ in 0..2 {
            notification::tell_of_lockouts(&beside).await.unwrap();
        }
        for client in [&ida, &ina] {
            assert_eq!(titles(client).await, [REFUSED]);
        }
        assert_eq!(titles(&admin).await, [REFUSED_OF_USERS], "of however many users");
        assert_eq!(titles(&max).await, [""; 0]);
        // However often those of one were refused, no other is passed over.
        let since = beside.clock.now() + chrono::TimeDelta::hours(-1);
        let found = refused_sign_ins(&mut beside.db.read().await.unwrap(), since, 2).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|(_, user, _)| json!(user)).collect();
        assert_eq!(found, [id_of_second.clone(), id_of_first.clone()]);
        // The entries are the system's, and say whom they are about.
        let entries = admin.run("{ auditLogs(filter: { resourceType: [NOTIFICATION] }) { nodes { operation action user { id } metadata } } }").await;
        let mut entries = entries.data()["auditLogs"]["nodes"].as_array().unwrap().clone();
        entries.sort_by_key(|entry| entry["metadata"]["about"].to_string());
        // Ids begin with a quote, which comes before null; hers was made first.
        let expected = [id_of_first, id_of_second, Value::Null];
        let entry = |about: &Value| json!({ "operation": "notification", "action": "CREATE", "user": null, "metadata": { "kind": "SECURITY", "about": about } });
        assert_eq!(entries, expected.iter().map(entry).collect::<Vec<_>>());
    }

    async fn a_device_stays_known_when_the_key_changes(app: TestApp) {
        let mut app = app;
        signed_in_with(&app.url, ADMIN, PASSWORD, FIREFOX).await;
        let old = std::fs::read_to_string(app.outbox().parent().unwrap().join("encryption-keys")).unwrap();
        let new = format!("v2:{}=", "A".repeat(43));
        for ring in [format!("{new},{}", old.trim()), new] {
            app.set("CREDENTIAL_ENCRYPTION_KEYS", &ring);
            app.restart().await;
            let admin = signed_in_with(&app.url, ADMIN, PASSWORD, FIREFOX).await;
            assert_eq!(titles(&admin).await, [""; 0]);
        }
    }

    async fn what_was_read_is_marked_by_whose_it_is(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let (_, max) = join(&app, &admin, "max@example.com", "MANAGER").await;
        for title in ["One", "Two", "Three"] {
            tell(&beside, &[notice(title, Permission::ViewUsers), notice("Again", Permission::ViewUsers)]).await;
        }
        assert_eq!(titles(&max).await, ["Three", "Two", "Again", "One"], "the same is not said twice");
        let mark = "mutation($ids: [ID!]) { markNotificationsRead(input: { ids: $ids }) { unreadCount } }";
        let marked = async |client: &Client, ids: Value| client.with(mark, json!({ "ids": ids })).await;
        let all = list(&max).await;
        let answer = marked(&max, json!([all[0]["id"], all[1]["id"], all[0]["id"]])).await;
        assert_eq!(answer.data()["markNotificationsRead"]["unreadCount"], 2);
        let unread = max.run("{ notifications(unreadOnly: true, first: 1) { nodes { title readAt } unreadCount totalCount pageInfo { hasNextPage } } }").await;
        let expected = json!({ "nodes": [{ "title": "Again", "readAt": null }], "unreadCount": 2, "totalCount": 2, "pageInfo": { "hasNextPage": true } });
        assert_eq!(unread.data()["notifications"], expected);
        // One that is another's is as none, and then nothing is marked.
        assert_eq!(marked(&admin, json!([list(&admin).await[0]["id"], all[2]["id"]])).await.code(), "NOT_FOUND");
        let too_many: Vec<_> = (0..101).map(|n| format!("ntf_{n}")).collect();
        assert_eq!(marked(&admin, json!(too_many)).await.fields(), ["ids"]);
        assert_eq!(admin.run("{ notifications { unreadCount } }").await.data()["notifications"]["unreadCount"], 4);
        assert_eq!(marked(&admin, Value::Null).await.data()["markNotificationsRead"]["unreadCount"], 0);
        assert_eq!(max.run("{ notifications { unreadCount } }").await.data()["notifications"]["unreadCount"], 2);
        // Marked once, it keeps its time.
        let before = list(&max).await[0]["readAt"].clone();
        assert!(before.is_string());
        marked(&max, Value::Null).await.data();
        assert_eq!(list(&max).await[0]["readAt"], before);
    }

    async fn who_may_not_know_it_any_more_does_not_see_it(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let (user, max) = join(&app, &admin, "max@example.com", "MANAGER").await;
        tell(&beside, &[notice("Users", Permission::ViewUsers), notice("Accounts", Permission::ManageClaudeAccounts)]).await;
        let own = Audience { user: Some(user.as_str().unwrap().parse().unwrap()), all_with: Some(Permission::ManageUsers) };
        tell(&beside, &[Notice { to: own, ..notice("Own", Permission::ViewUsers) }]).await;
        assert_eq!((titles(&max).await, titles(&admin).await.len()), (vec!["Own".to_owned(), "Users".to_owned()], 3));
        let id = list(&max).await[1]["id"].clone();
        let demote = "mutation($id: ID!) { updateUser(input: { id: $id, role: MEMBER }) { user { id } } }";
        admin.with(demote, json!({ "id": user })).await.data();
        assert_eq!(titles(&max).await, ["Own"]);
        assert_eq!(max.run("{ notifications { unreadCount } }").await.data()["notifications"]["unreadCount"], 1);
        assert_eq!(max.with("query($id: ID!) { node(id: $id) { id } }", json!({ "id": id })).await.data()["node"], Value::Null);

        // A key sees what its owner may, as far as its scopes reach, and marks nothing.
        let (_, raw) = crate::api_key::create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let key = crate::api_key::with_key(&app, &raw);
        assert_eq!(titles(&key).await, ["Own", "Accounts", "Users"]);
        assert_eq!(key.run("mutation { markNotificationsRead(input: {}) { unreadCount } }").await.code(), "FORBIDDEN");
    }

    async fn each_is_sent_once_and_in_order_on_whichever_server(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let (_, max) = join(&app, &admin, "max@example.com", "MEMBER").await;
        let mut socket = Socket::connected(&app, &admin).await;
        let mut other = Socket::connected(&app, &max).await;
        socket.follow(&app, "1", ADDED).await;
        other.follow(&app, "1", ADDED).await;
        let users = |title: &str| notice(title, Permission::ViewUsers);
        // By another server: of several in one transaction none is lost.
        tell(&beside, &[users("a1"), users("a2"), users("a3")]).await;
        tell(&beside, &[users("a3"), users("b")]).await;
        let mut titles = Vec::new();
        for _ in 0..4 {
            titles.push(socket.event("1").await["notificationAdded"]["title"].as_str().unwrap().to_owned());
        }
        titles[..3].sort();
        assert_eq!(titles, ["a1", "a2", "a3", "b"]);
        // By this one; and what is somebody else's is not sent.
        signed_in_with(&app.url, ADMIN, PASSWORD, SAFARI).await;
        assert_eq!(socket.event("1").await["notificationAdded"]["title"], NEW_DEVICE);
        signed_in_with(&app.url, "max@example.com", PASSWORD, SAFARI).await;
        assert_eq!(other.event("1").await["notificationAdded"]["title"], NEW_DEVICE);
    }

    async fn old_ones_are_removed(app: TestApp) {
        const CREATED: [(&str, &str); 1] = [("notifications", "created_at")];
        let beside = app.beside().await.services;
        tell(&beside, &[notice("Old", Permission::ViewUsers)]).await;
        age(&app, &CREATED, 89).await;
        tell(&beside, &[notice("New", Permission::ViewUsers)]).await;
        expired::remove(&beside).await.unwrap();
        assert_eq!(titles(&app.admin().await).await, ["New", "Old"]);
        age(&app, &CREATED, 2).await;
        expired::remove(&beside).await.unwrap();
        assert_eq!(titles(&app.admin().await).await, ["New"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_ahead_tells_of_no_end_too_early() {
    let app = TestApp::postgres().await;
    let admin = app.admin().await;
    crate::api_key::create(&admin, json!({ "name": "Key", "expiresInDays": 8 })).await;
    age(&app, &OF_KEYS, 5).await;
    let ahead = app.beside_by(app.clock_ahead(chrono::TimeDelta::hours(60))).await.services;
    notification::tell_of_expiring_api_keys(&ahead).await.unwrap();
    assert_eq!(titles(&admin).await, ["The API key Key expires within a week"]);
}

fn chrono_now(services: &Services) -> chrono::DateTime<chrono::Utc> {
    services.clock.now().to_utc()
}
