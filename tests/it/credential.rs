//! Credentials, through the API.

use serde_json::{Value, json};

use crate::support::{Answer, Client, both_databases};

const FIELDS: &str =
    "id client { id } label username url keyVersion secretVersion createdBy { email } updatedBy { email }
    lastAccessedAt createdAt updatedAt version";

pub(crate) async fn new_client(client: &Client, name: &str) -> Value {
    let query = "mutation($n: String!) { createClient(input: { name: $n }) { client { id } } }";
    client.with(query, json!({ "n": name })).await.data()["createClient"]["client"]["id"].clone()
}

async fn try_create(client: &Client, input: Value) -> Answer {
    let query = format!(
        "mutation($input: CreateCredentialInput!) {{ createCredential(input: $input) {{ credential {{ {FIELDS} }} }} }}"
    );
    client.with(&query, json!({ "input": input })).await
}

pub(crate) async fn create(client: &Client, input: Value) -> Value {
    try_create(client, input).await.data()["createCredential"]["credential"].clone()
}

pub(crate) async fn update(client: &Client, input: Value) -> Answer {
    let query = format!(
        "mutation($input: UpdateCredentialInput!) {{ updateCredential(input: $input) {{ credential {{ {FIELDS} }} }} }}"
    );
    client.with(&query, json!({ "input": input })).await
}

pub(crate) async fn reveal(client: &Client, input: Value) -> Answer {
    let query = "mutation($input: RevealCredentialInput!) { revealCredential(input: $input) {
        secret credential { lastAccessedAt version updatedAt } } }";
    client.with(query, json!({ "input": input })).await
}

async fn delete(client: &Client, id: &Value) -> Answer {
    let query = "mutation($id: ID!) { deleteCredential(input: { id: $id }) { deletedId } }";
    client.with(query, json!({ "id": id })).await
}

async fn secret(client: &Client, input: Value) -> Value {
    reveal(client, input).await.data()["revealCredential"]["secret"].clone()
}

fn labels(connection: &Value) -> Vec<&str> {
    connection["nodes"].as_array().unwrap().iter().map(|node| node["label"].as_str().unwrap()).collect()
}

both_databases! {
    async fn a_credential_comes_back_as_it_was_made_but_for_its_secret(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let text = " first line\r\nsecond line\n\u{0}";
        let made = create(&admin, json!({
            "clientId": client, "label": " Käse ", "username": "root", "url": "ssh://git@Example.com:22/x", "secret": text,
        })).await;
        assert_eq!((&made["label"], &made["username"], &made["url"]), (&json!("Käse"), &json!("root"), &json!("ssh://git@Example.com:22/x")));
        assert_eq!((&made["keyVersion"], &made["secretVersion"], &made["version"]), (&json!("v1"), &json!(1), &json!(1)));
        assert_eq!((&made["createdBy"]["email"], &made["updatedBy"]["email"]), (&json!("admin@localhost"), &json!("admin@localhost")));
        assert_eq!((&made["client"]["id"], &made["lastAccessedAt"]), (&client, &Value::Null));
        let read = format!("query($id: ID!) {{ credential(id: $id) {{ {FIELDS} }} node(id: $id) {{ ... on Credential {{ {FIELDS} }} }} }}");
        assert_eq!(*admin.with(&read, json!({ "id": made["id"] })).await.data(), json!({ "credential": made, "node": made }));
        assert_eq!(secret(&admin, json!({ "id": made["id"] })).await, text, "to the letter");
    }

    async fn every_wrong_field_of_a_credential_is_named_at_once(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let answer = try_create(&admin, json!({
            "clientId": client, "label": "", "username": "\u{7}", "url": "example", "secret": "s".repeat(10_001),
        })).await;
        assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec!["label", "username", "url", "secret"]));
        assert!(!answer.body.to_string().contains("sssss"));
        for url in ["javascript:alert(1)", "javascript://example.com/%0aalert(1)", "https://me:word@example.com", "/path"] {
            let answer = try_create(&admin, json!({ "clientId": client, "label": "L", "url": url, "secret": "s" })).await;
            assert_eq!(answer.fields(), ["url"], "{url}");
        }
        assert_eq!(try_create(&admin, json!({ "clientId": "client_x", "label": "L", "secret": "s" })).await.code(), "NOT_FOUND");
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await;
        assert_eq!(update(&admin, json!({ "id": made["id"], "label": null, "secret": null })).await.fields(), ["label", "secret"]);
        assert_eq!(reveal(&admin, json!({ "id": made["id"], "reason": " " })).await.fields(), ["reason"]);
        assert_eq!(reveal(&admin, json!({ "id": made["id"], "reason": "r".repeat(501) })).await.fields(), ["reason"]);
        let answer = admin.run("{ credentials(filter: { clientId: \"x\" }) { totalCount } }").await;
        assert_eq!(answer.code(), "BAD_USER_INPUT");
    }

    async fn every_version_of_a_secret_is_kept(app: TestApp) {
        let admin = app.admin().await;
        let member = app.user("MEMBER").await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "username": "u", "url": "https://a.b", "secret": "one" })).await;
        app.advance(60);
        let answer = update(&member, json!({ "id": made["id"], "secret": "two", "username": null, "expectedVersion": 1 })).await;
        let second = &answer.data()["updateCredential"]["credential"];
        assert_eq!((&second["secretVersion"], &second["version"], &second["username"]), (&json!(2), &json!(2), &Value::Null));
        assert_eq!((&second["createdBy"]["email"], &second["updatedBy"]["email"]), (&json!("admin@localhost"), &json!("member@example.com")));
        assert_eq!(second["url"], "https://a.b");
        let third = update(&admin, json!({ "id": made["id"], "secret": "two" })).await.data()["updateCredential"]["credential"].clone();
        assert_eq!(third["secretVersion"], 3, "the same text, set again, is a version too");
        let renamed = update(&admin, json!({ "id": made["id"], "label": "M" })).await.data()["updateCredential"]["credential"].clone();
        assert_eq!((&renamed["secretVersion"], &renamed["version"]), (&json!(3), &json!(4)));
        assert_eq!(update(&admin, json!({ "id": made["id"] })).await.data()["updateCredential"]["credential"]["version"], 4);
        assert_eq!(update(&admin, json!({ "id": made["id"], "secret": "x", "expectedVersion": 1 })).await.code(), "CONFLICT");
        for (version, text) in [(json!(1), "one"), (json!(2), "two"), (json!(3), "two"), (Value::Null, "two")] {
            assert_eq!(secret(&admin, json!({ "id": made["id"], "secretVersion": version })).await, text, "{version}");
        }
        for version in [0, -1, 4] {
            assert_eq!(reveal(&admin, json!({ "id": made["id"], "secretVersion": version })).await.code(), "NOT_FOUND");
        }
    }

    async fn a_look_at_a_secret_is_recorded_with_its_version_and_reason(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "one" })).await;
        app.advance(60);
        let answer = reveal(&admin, json!({ "id": made["id"], "secretVersion": 1, "reason": " deploying " })).await;
        let shown = &answer.data()["revealCredential"];
        assert_eq!(shown["secret"], "one");
        assert!(shown["credential"]["lastAccessedAt"].is_string());
        assert_eq!((&shown["credential"]["version"], &shown["credential"]["updatedAt"]), (&json!(1), &made["updatedAt"]), "a look changes nothing");
        let read = format!("query($id: ID!) {{ credential(id: $id) {{ {FIELDS} }} }}");
        let after = admin.with(&read, json!({ "id": made["id"] })).await.data()["credential"]["lastAccessedAt"].clone();
        assert_eq!(after, shown["credential"]["lastAccessedAt"]);
        reveal(&admin, json!({ "id": made["id"] })).await.data();
        let log = "query($id: ID!) { auditLogs(filter: { resourceId: $id }) { nodes { action outcome changes metadata user { email } resource { id } } } }";
        let nodes = admin.with(log, json!({ "id": made["id"] })).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!(nodes[0]["metadata"], json!({ "secretVersion": 1, "reason": null }));
        assert_eq!(nodes[1], json!({
            "action": "REVEAL", "outcome": "SUCCESS", "changes": null, "metadata": { "secretVersion": 1, "reason": "deploying" },
            "user": { "email": "admin@localhost" }, "resource": { "id": made["id"] },
        }));
        assert_eq!(nodes[2]["changes"]["secret"], json!({ "to": "[redacted]" }));
    }

    async fn where_the_entry_cannot_be_written_nothing_is_revealed(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "canary" })).await;
        app.database.execute("ALTER TABLE audit_heads RENAME TO no_heads").await.unwrap();
        let answer = reveal(&admin, json!({ "id": made["id"] })).await;
        assert_eq!(answer.code(), "INTERNAL_SERVER_ERROR");
        assert!(!answer.body.to_string().contains("canary"));
        let read = "query($id: ID!) { credential(id: $id) { lastAccessedAt } }";
        assert_eq!(admin.with(read, json!({ "id": made["id"] })).await.data()["credential"]["lastAccessedAt"], Value::Null);
    }

    async fn an_archived_client_takes_no_new_credentials(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await;
        let act = |deed: &str| format!("mutation($id: ID!) {{ {deed}(input: {{ id: $id }}) {{ client {{ id }} }} }}");
        admin.with(&act("archiveClient"), json!({ "id": client })).await.data();
        assert_eq!(try_create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await.code(), "CONFLICT");
        assert_eq!(secret(&admin, json!({ "id": made["id"] })).await, "s", "what is there stays readable");
        admin.with(&act("restoreClient"), json!({ "id": client })).await.data();
        create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await;
    }

    async fn a_deleted_credential_is_gone_with_all_its_secrets(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "one" })).await;
        update(&admin, json!({ "id": made["id"], "secret": "two" })).await.data();
        assert_eq!(delete(&admin, &made["id"]).await.data()["deleteCredential"]["deletedId"], made["id"]);
        assert_eq!(delete(&admin, &made["id"]).await.code(), "NOT_FOUND");
        assert_eq!(reveal(&admin, json!({ "id": made["id"] })).await.code(), "NOT_FOUND");
        let counts = "SELECT CAST((SELECT count(*) FROM credentials) + (SELECT count(*) FROM credential_secrets) AS text) AS text";
        assert_eq!(app.database.texts(counts).await, ["0"]);
    }

    async fn secrets_that_were_swapped_in_the_database_do_not_open(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let one = create(&admin, json!({ "clientId": client, "label": "one", "secret": "secret of one" })).await;
        let two = create(&admin, json!({ "clientId": client, "label": "two", "secret": "secret of two" })).await;
        update(&admin, json!({ "id": one["id"], "secret": "newer of one" })).await.data();
        let place = |credential: &Value, version: i32| {
            format!("credential_id = {} AND secret_version = {version}", credential["id"].to_string().replace('"', "'"))
        };
        // Between two credentials, then between two versions of one.
        for broken in [[(&one, 1), (&two, 1)], [(&one, 1), (&one, 2)]] {
            let [first, second] = broken.map(|(credential, version)| place(credential, version));
            let swap = format!(
                "CREATE TABLE copy AS SELECT * FROM credential_secrets;
                 UPDATE credential_secrets SET sealed = (SELECT sealed FROM copy WHERE {second}) WHERE {first};
                 UPDATE credential_secrets SET sealed = (SELECT sealed FROM copy WHERE {first}) WHERE {second};
                 DROP TABLE copy"
            );
            app.database.execute(&swap).await.unwrap();
            for (credential, version) in broken {
                let answer = reveal(&admin, json!({ "id": credential["id"], "secretVersion": version })).await;
                assert_eq!(answer.code(), "INTERNAL_SERVER_ERROR");
                assert!(!answer.body.to_string().contains(" of "), "{}", answer.body);
            }
            app.database.execute(&swap).await.unwrap();
            assert_eq!(secret(&admin, json!({ "id": one["id"], "secretVersion": 1 })).await, "secret of one", "swapped back");
        }
    }

    async fn credentials_are_searched_filtered_and_sorted(app: TestApp) {
        let admin = app.admin().await;
        let (one, two) = (new_client(&admin, "1").await, new_client(&admin, "2").await);
        let mut ids = Vec::new();
        for (client, label, username, url) in [
            (&one, "delta", Some("ROOT"), None), (&one, "Alpha", None, Some("https://example.com/äpfel")),
            (&two, "bravo", None, None), (&two, "Charlie", Some("100%"), None),
        ] {
            app.advance(1);
            ids.push(create(&admin, json!({ "clientId": client, "label": label, "username": username, "url": url, "secret": "findme" })).await["id"].clone());
        }
        for (place, id) in [(2, &ids[2]), (0, &ids[0])] {
            app.advance(10);
            reveal(&admin, json!({ "id": id, "reason": place.to_string() })).await.data();
        }
        update(&admin, json!({ "id": ids[1], "username": "x" })).await.data();
        let list = "query($search: String, $filter: CredentialFilter, $orderBy: CredentialOrder, $first: Int, $after: String) {
            credentials(search: $search, filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
              totalCount nodes { label } pageInfo { endCursor } } }";
        for (variables, expected) in [
            (json!({}), vec!["Charlie", "bravo", "Alpha", "delta"]),
            (json!({ "orderBy": { "field": "LABEL", "direction": "ASC" } }), vec!["Alpha", "bravo", "Charlie", "delta"]),
            (json!({ "orderBy": { "field": "LAST_ACCESSED_AT" } }), vec!["delta", "bravo", "Charlie", "Alpha"]),
            (json!({ "orderBy": { "field": "UPDATED_AT" } }), vec!["Alpha", "Charlie", "bravo", "delta"]),
            (json!({ "search": "root" }), vec!["delta"]),
            (json!({ "search": "ÄPFEL" }), vec!["Alpha"]),
            (json!({ "search": "%" }), vec!["Charlie"]),
            (json!({ "search": "findme" }), vec![]),
            (json!({ "filter": { "clientId": one } }), vec!["Alpha", "delta"]),
            (json!({ "filter": { "keyVersion": "v1", "clientId": two } }), vec!["Charlie", "bravo"]),
            (json!({ "filter": { "keyVersion": "v2" } }), vec![]),
            (json!({ "filter": { "keyVersion": "\u{0}" } }), vec![]),
        ] {
            let answer = admin.with(list, variables.clone()).await;
            let found = &answer.data()["credentials"];
            assert_eq!((labels(found), &found["totalCount"]), (expected.clone(), &json!(expected.len())), "{variables}");
        }
        for field in ["CREATED_AT", "UPDATED_AT", "LABEL", "LAST_ACCESSED_AT"] {
            for direction in ["ASC", "DESC"] {
                let order = json!({ "field": field, "direction": direction });
                let whole = admin.with(list, json!({ "orderBy": order })).await;
                let (mut walked, mut after) = (Vec::new(), Value::Null);
                for _ in 0..4 {
                    let page = admin.with(list, json!({ "orderBy": order, "first": 1, "after": after })).await.data()["credentials"].clone();
                    walked.push(labels(&page)[0].to_owned());
                    after = page["pageInfo"]["endCursor"].clone();
                }
                assert_eq!(walked, labels(&whole.data()["credentials"]), "{order}");
            }
        }
    }

    async fn each_client_has_its_own_page_of_credentials(app: TestApp) {
        let admin = app.admin().await;
        for client in 0..3 {
            let id = new_client(&admin, &format!("c{client}")).await;
            for n in 0..client * 2 {
                create(&admin, json!({ "clientId": id, "label": format!("{client}-{n}"), "secret": "s" })).await;
            }
        }
        let query = "query($first: Int, $last: Int, $offset: Int, $after: String) {
            clients(orderBy: { field: NAME, direction: ASC }) { nodes {
              credentials(first: $first, last: $last, offset: $offset, after: $after) {
                totalCount nodes { label client { name } } pageInfo { hasNextPage endCursor } } } } }";
        for (variables, expected) in [
            (json!({}), [vec![], vec!["1-1", "1-0"], vec!["2-3", "2-2", "2-1", "2-0"]]),
            (json!({ "first": 3 }), [vec![], vec!["1-1", "1-0"], vec!["2-3", "2-2", "2-1"]]),
            (json!({ "last": 1 }), [vec![], vec!["1-0"], vec!["2-0"]]),
            (json!({ "first": 2, "offset": 1 }), [vec![], vec!["1-0"], vec!["2-2", "2-1"]]),
        ] {
            let answer = admin.with(query, variables.clone()).await;
            let clients = answer.data()["clients"]["nodes"].as_array().unwrap();
            let found: Vec<_> = clients.iter().map(|client| labels(&client["credentials"])).collect();
            assert_eq!(found, expected, "{variables}");
            let counts: Vec<_> = clients.iter().map(|client| &client["credentials"]["totalCount"]).collect();
            assert_eq!(counts, [0, 2, 4]);
        }
        let first = admin.with(query, json!({ "first": 3 })).await.data()["clients"]["nodes"][2]["credentials"]["pageInfo"].clone();
        assert_eq!(first["hasNextPage"], true);
        let next = admin.with(query, json!({ "first": 3, "after": first["endCursor"] })).await;
        assert_eq!(labels(&next.data()["clients"]["nodes"][2]["credentials"]), ["2-0"]);
    }

    async fn roles_do_with_credentials_what_the_table_says(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await;
        for (role, may) in [("MANAGER", [true, true, true, false]), ("MEMBER", [true, true, false, false]), ("READ_ONLY", [false; 4])] {
            let user = app.user(role).await;
            assert_eq!(user.run("{ credentials { nodes { label } } }").await.data()["credentials"]["nodes"].as_array().unwrap().last().unwrap()["label"], "L");
            let answers = [
                try_create(&user, json!({ "clientId": client, "label": role, "secret": "s" })).await,
                update(&user, json!({ "id": made["id"], "username": role })).await,
                reveal(&user, json!({ "id": made["id"] })).await,
                delete(&user, &json!("cred_00000000000000000000000000")).await,
            ];
            for (place, (answer, may)) in answers.iter().zip(may).enumerate() {
                let is_denied = answer.body.get("errors").is_some() && answer.code() == "FORBIDDEN";
                assert_eq!(!is_denied, may, "{role} {place}: {}", answer.body);
            }
        }
    }

    async fn another_organizations_credentials_do_not_exist(app: TestApp) {
        let admin = app.admin().await;
        let client = new_client(&admin, "A").await;
        let made = create(&admin, json!({ "clientId": client, "label": "L", "secret": "s" })).await;
        app.database.execute(
            "INSERT INTO organizations SELECT 'org_00000000000000000000000001', name, plan, settings, created_at, updated_at FROM organizations;
             UPDATE credentials SET organization_id = 'org_00000000000000000000000001';
             UPDATE credential_secrets SET organization_id = 'org_00000000000000000000000001'",
        ).await.unwrap();
        let read = "query($id: ID!, $c: ID!) { credential(id: $id) { id } node(id: $id) { id } credentials { totalCount }
            of: credentials(filter: { clientId: $c }) { totalCount } client(id: $c) { credentials { totalCount nodes { id } } } }";
        assert_eq!(*admin.with(read, json!({ "id": made["id"], "c": client })).await.data(), json!({
            "credential": null, "node": null, "credentials": { "totalCount": 0 }, "of": { "totalCount": 0 },
            "client": { "credentials": { "totalCount": 0, "nodes": [] } },
        }));
        assert_eq!(update(&admin, json!({ "id": made["id"], "label": "M" })).await.code(), "NOT_FOUND");
        assert_eq!(reveal(&admin, json!({ "id": made["id"] })).await.code(), "NOT_FOUND");
        assert_eq!(delete(&admin, &made["id"]).await.code(), "NOT_FOUND");
    }
}
