//! API keys: making, using, changing and ending them, and what they never get.

use claviger::crypto::{Random, RawApiKey};
use serde_json::{Value, json};

use crate::client::create as new_client;
use crate::support::{Answer, Client, TestApp, both_databases};

const CREATE: &str = "mutation($input: CreateApiKeyInput!) { createApiKey(input: $input) { rawKey apiKey {
    id name description keyPrefix scopes status owner { id email } client { id } createdBy { email } allowedIps allowedModels
    rateLimitPerMinute rateLimitPerHour concurrencyLimit tokenLimitPerDay costLimitUsdPerMonth expiresAt revokedAt lastUsedAt
    lastUsedIp createdAt updatedAt version } } }";

/// A new key, and the raw key.
pub(crate) async fn create(client: &Client, input: Value) -> (Value, String) {
    let answer = client.with(CREATE, json!({ "input": input })).await;
    let payload = &answer.data()["createApiKey"];
    (payload["apiKey"].clone(), payload["rawKey"].as_str().unwrap().to_owned())
}

/// A client that sends the raw key.
pub(crate) fn with_key(app: &TestApp, raw: &str) -> Client {
    let mut client = app.anonymous();
    client.access_token = Some(raw.to_owned());
    client
}

pub(crate) async fn try_create(client: &Client, input: Value) -> Answer {
    client.with(CREATE, json!({ "input": input })).await
}

pub(crate) async fn update(client: &Client, input: Value) -> Answer {
    let query = "mutation($input: UpdateApiKeyInput!) { updateApiKey(input: $input) { apiKey {
        name description scopes allowedIps allowedModels rateLimitPerMinute expiresAt costLimitUsdPerMonth version } } }";
    client.with(query, json!({ "input": input })).await
}

pub(crate) async fn regenerate(client: &Client, id: &Value, hours: i32) -> Answer {
    let query = "mutation($id: ID!, $hours: Int) { regenerateApiKey(input: { id: $id, gracePeriodHours: $hours }) {
        rawKey apiKey { id keyPrefix version } } }";
    client.with(query, json!({ "id": id, "hours": hours })).await
}

pub(crate) async fn revoke(client: &Client, id: &Value) -> Answer {
    let query = "mutation($id: ID!) { revokeApiKey(input: { id: $id }) { apiKey { status revokedAt } } }";
    client.with(query, json!({ "id": id })).await
}

async fn verify(app: &TestApp, raw: &str) -> Value {
    let query = "query($key: String!) { verifyApiKey(key: $key) { valid code apiKeyId name scopes expiresAt } }";
    app.anonymous().with(query, json!({ "key": raw })).await.data()["verifyApiKey"].clone()
}

async fn code(app: &TestApp, raw: &str) -> String {
    let found = verify(app, raw).await;
    assert_eq!(found["valid"], found["code"] == "VALID", "{found}");
    assert_eq!(found["apiKeyId"].is_string(), found["code"] == "VALID", "{found}");
    found["code"].as_str().unwrap().to_owned()
}

pub(crate) async fn works(app: &TestApp, raw: &str) -> bool {
    let answer = with_key(app, raw).run("{ clients { totalCount } }").await;
    if answer.body.get("errors").is_none() {
        return true;
    }
    assert_eq!(answer.code(), "UNAUTHENTICATED");
    assert_eq!(answer.headers["www-authenticate"], "Bearer error=\"invalid_token\"");
    false
}

pub(crate) async fn user_id(client: &Client) -> Value {
    client.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone()
}

pub(crate) async fn set_user(admin: &Client, id: &Value, changes: &str) {
    let deed = format!("mutation {{ updateUser(input: {{ id: {id}, {changes} }}) {{ user {{ id }} }} }}");
    admin.run(&deed).await.data();
}

fn ids(nodes: &Value) -> Vec<&str> {
    nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

const NEWEST_ENTRY: &str = "{ auditLogs(first: 1) { nodes { operation action outcome errorCode changes metadata
    user { email } apiKey { id } resource { ... on ApiKey { name } } } } }";

pub(crate) async fn newest_entry(admin: &Client) -> Value {
    admin.run(NEWEST_ENTRY).await.data()["auditLogs"]["nodes"][0].clone()
}

both_databases! {
    async fn a_key_has_what_it_was_given_and_signs_its_owner_in(app: TestApp) {
        let admin = app.admin().await;
        let of = new_client(&admin, json!({ "name": "Acme" })).await;
        let (key, raw) = create(&admin, json!({
            "name": " CI ", "description": "builds", "clientId": of["id"], "scopes": ["ADMIN_READ", "RELAY", "RELAY"], "expiresInDays": 30,
            "allowedIps": ["127.0.0.1", "10.1.2.3/8"], "allowedModels": ["claude-*"], "rateLimitPerMinute": 60,
            "rateLimitPerHour": 600, "concurrencyLimit": 4, "tokenLimitPerDay": 9_007_199_254_740_991_i64,
            "costLimitUsdPerMonth": "12.500001",
        })).await;
        assert_eq!((&key["name"], &key["description"], &key["version"]), (&json!("CI"), &json!("builds"), &json!(1)));
        assert_eq!((&key["client"]["id"], &key["owner"]["email"]), (&of["id"], &json!("admin@localhost")));
        assert_eq!((&key["scopes"], &key["status"]), (&json!(["RELAY", "ADMIN_READ"]), &json!("ACTIVE")));
        assert_eq!((&key["allowedIps"], &key["allowedModels"]), (&json!(["127.0.0.1/32", "10.0.0.0/8"]), &json!(["claude-*"])));
        assert_eq!((&key["tokenLimitPerDay"], &key["costLimitUsdPerMonth"]), (&json!(9_007_199_254_740_991_i64), &json!("12.500001")));
        assert_eq!((raw.len(), &raw[..12], &raw[..4]), (42, key["keyPrefix"].as_str().unwrap(), "clv_"));
        let entry = newest_entry(&admin).await;
        assert_eq!((&entry["action"], &entry["resource"]["name"], &entry["apiKey"]), (&json!("CREATE"), &json!("CI"), &Value::Null));
        assert_eq!(entry["changes"]["keyPrefix"], json!({ "to": key["keyPrefix"] }));

        let viewer = "{ viewer { user { email } apiKey { id owner { email } } organization { name } role permissions sessions { current } } }";
        let found = with_key(&app, &raw).run(viewer).await.data()["viewer"].clone();
        assert_eq!((&found["user"]["email"], &found["apiKey"]["id"]), (&json!("admin@localhost"), &key["id"]));
        assert_eq!(found["permissions"], json!(["VIEW_USERS", "VIEW_AUDIT_LOGS", "VIEW_USAGE", "VIEW_SYSTEM"]));
        assert_eq!((&found["role"], &found["sessions"][0]["current"]), (&json!("ADMIN"), &json!(false)));
        assert_eq!(admin.run(viewer).await.data()["viewer"]["apiKey"], Value::Null);
        assert_eq!(verify(&app, &raw).await["name"], "CI");
    }

    async fn a_key_is_sent_in_either_header_and_not_two_in_both(app: TestApp) {
        let admin = app.admin().await;
        let (_, raw) = create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let (_, other) = create(&admin, json!({ "name": "L", "scopes": ["ADMIN_READ"] })).await;
        let bearer = format!("bearer {raw}");
        let token = format!("Bearer {}", admin.access_token.as_deref().unwrap());
        for (headers, answered) in [
            (&[("x-api-key", raw.as_str())][..], "{\"data\":{\"viewer\":{\"role\":\"ADMIN\"}}}"),
            (&[("authorization", &bearer)], "{\"data\":{\"viewer\":{\"role\":\"ADMIN\"}}}"),
            (&[("authorization", &bearer), ("x-api-key", &raw)], "{\"data\":{\"viewer\":{\"role\":\"ADMIN\"}}}"),
            (&[("x-api-key", "sk-ant-x")], "{\"data\":{\"viewer\":null}}"),
            (&[("x-api-key", &token[7..])], "{\"data\":{\"viewer\":null}}"),
            // What a proxy asks for is no second credential.
            (&[("authorization", "Basic dTpw"), ("x-api-key", &raw)], "{\"data\":{\"viewer\":{\"role\":\"ADMIN\"}}}"),
            (&[("authorization", "Basic dTpw")], "{\"data\":{\"viewer\":null}}"),
            (&[("authorization", &bearer), ("x-api-key", &other)], "400"),
            (&[("authorization", &token), ("x-api-key", &raw)], "400"),
            (&[("authorization", &other), ("x-api-key", &raw)], "400"),
            // Which would hold, where a proxy looks at the other?
            (&[("authorization", &bearer), ("authorization", &token)], "400"),
            (&[("authorization", "Basic dTpw"), ("authorization", &token)], "400"),
            (&[("x-api-key", &raw), ("x-api-key", &raw)], "400"),
        ] {
            let mut request = admin.http().post(format!("{}/graphql", app.url)).json(&json!({ "query": "{ viewer { role } }" }));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = request.header("accept", "application/graphql-response+json").send().await.unwrap();
            let status = response.status().as_u16();
            let text = response.text().await.unwrap();
            assert!(text == answered || status.to_string() == answered, "{headers:?} {status} {text}");
            assert_eq!(status == 400, text.contains(": send one"), "{text}");
        }
        let twice = admin.http().get(format!("{}/health/detailed", app.url)).header("x-api-key", &raw).header("x-api-key", &other);
        assert_eq!(twice.send().await.unwrap().status(), 400);
        let health = admin.http().get(format!("{}/health/detailed", app.url)).header("x-api-key", &raw).send().await.unwrap();
        assert_eq!(health.status(), 200);
    }

    async fn a_key_does_what_its_scopes_and_its_owners_role_allow(app: TestApp) {
        let admin = app.admin().await;
        let deed = "mutation { createClient(input: { name: \"C\" }) { client { owner { email } } } }";
        let invite = "mutation { inviteUser(input: { email: \"x@example.com\", fullName: \"X\", role: MEMBER }) { user { id } } }";
        let (relay, reader, writer) = {
            let mut keys = Vec::new();
            for scope in ["RELAY", "ADMIN_READ", "ADMIN_WRITE"] {
                let (key, raw) = create(&admin, json!({ "name": scope, "scopes": [scope] })).await;
                keys.push((key["id"].clone(), with_key(&app, &raw)));
            }
            let writer = keys.pop().unwrap();
            let reader = keys.pop().unwrap();
            (keys.pop().unwrap(), reader, writer)
        };
        let viewer = "{ viewer { role user { email } organization { name } apiKey { name } permissions } }";
        assert_eq!(relay.1.run(viewer).await.data()["viewer"]["permissions"], json!([]));
        for query in ["{ clients { totalCount } }", "{ apiKeys { totalCount } }", "{ viewer { sessions { id } } }", "{ viewer { user { apiKeys { totalCount } } } }", "{ organization { name } }", deed, invite] {
            assert_eq!(relay.1.run(query).await.code(), "FORBIDDEN", "{query}");
        }
        for query in ["{ claudeAccounts { totalCount } }", "{ auditLogs { totalCount } }", "{ users { totalCount } }", "{ apiKeys { totalCount } }"] {
            reader.1.run(query).await.data();
            writer.1.run(query).await.data();
        }
        // A look that is recorded is no change.
        let account = crate::claude_account::create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        reader.1.run(&format!("{{ claudeAccount(id: {}) {{ id }} }}", account["id"])).await.data();
        assert_eq!((&newest_entry(&admin).await["action"], &newest_entry(&admin).await["apiKey"]["id"]), (&json!("VIEW"), &reader.0));

        assert_eq!(reader.1.run(deed).await.code(), "FORBIDDEN");
        let entry = newest_entry(&admin).await;
        assert_eq!((&entry["outcome"], &entry["errorCode"]), (&json!("DENIED"), &json!("FORBIDDEN")));
        assert_eq!((&entry["user"]["email"], &entry["apiKey"]["id"]), (&json!("admin@localhost"), &reader.0));
        assert_eq!(writer.1.run(deed).await.data()["createClient"]["client"]["owner"]["email"], "admin@localhost");
        assert_eq!((&newest_entry(&admin).await["outcome"], &newest_entry(&admin).await["apiKey"]["id"]), (&json!("SUCCESS"), &writer.0));
        assert_eq!(writer.1.run(invite).await.code(), "FORBIDDEN");
        let filter = format!("{{ auditLogs(filter: {{ apiKeyId: {} }}) {{ nodes {{ operation }} }} }}", writer.0);
        assert_eq!(admin.run(&filter).await.data()["auditLogs"]["nodes"].as_array().unwrap().len(), 2);

        let member = app.user("MEMBER").await;
        let (_, raw) = create(&member, json!({ "name": "K", "scopes": ["ADMIN_WRITE"] })).await;
        for query in ["{ claudeAccounts { totalCount } }", "{ users { totalCount } }", deed] {
            assert_eq!(with_key(&app, &raw).run(query).await.code(), "FORBIDDEN", "{query}");
        }
    }

    async fn a_revoked_key_ends_at_once_and_once(app: TestApp) {
        let admin = app.admin().await;
        let (key, raw) = create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let id = &key["id"];
        assert!(works(&app, &raw).await);
        assert_eq!(code(&app, &raw).await, "VALID");
        assert_eq!(revoke(&admin, id).await.data()["revokeApiKey"]["apiKey"]["status"], "REVOKED");
        assert!(!works(&app, &raw).await);
        assert_eq!(code(&app, &raw).await, "REVOKED");
        assert_eq!(revoke(&admin, id).await.code(), "NOT_FOUND");
        assert_eq!(regenerate(&admin, id, 0).await.code(), "NOT_FOUND");
        assert_eq!(update(&admin, json!({ "id": id, "name": "L" })).await.code(), "NOT_FOUND");
    }

    async fn verifying_answers_every_code_and_is_no_use(app: TestApp) {
        let admin = app.admin().await;
        let (key, raw) = create(&admin, json!({ "name": "K", "expiresInDays": 1 })).await;
        assert_eq!(code(&app, &raw).await, "VALID");
        assert_eq!(code(&app, "clv_x").await, "MALFORMED");
        let mut typo = raw.clone();
        typo.replace_range(10..11, if &raw[10..11] == "a" { "b" } else { "a" });
        assert_eq!(code(&app, &typo).await, "MALFORMED");
        assert_eq!(code(&app, RawApiKey::generate(&Random::system()).text().expose()).await, "NOT_FOUND");
        let (_, elsewhere) = create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"], "allowedIps": ["10.0.0.0/8"] })).await;
        assert_eq!(code(&app, &elsewhere).await, "IP_NOT_ALLOWED");
        assert!(!works(&app, &elsewhere).await);
        let query = format!("{{ apiKey(id: {}) {{ lastUsedAt version }} }}", key["id"]);
        assert_eq!(admin.run(&query).await.data()["apiKey"], json!({ "lastUsedAt": null, "version": 1 }));
        app.advance(86_401);
        let admin = app.admin().await;
        assert_eq!(code(&app, &raw).await, "EXPIRED");
        assert_eq!(regenerate(&admin, &key["id"], 0).await.code(), "CONFLICT");
        let member = app.user("MEMBER").await;
        let (_, raw) = create(&member, json!({ "name": "K" })).await;
        set_user(&admin, &user_id(&member).await, "status: SUSPENDED").await;
        assert_eq!(code(&app, &raw).await, "OWNER_SUSPENDED");
    }

    async fn a_regenerated_key_keeps_the_one_before_for_its_grace(app: TestApp) {
        let admin = app.admin().await;
        let (key, first) = create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"], "expiresInDays": 2 })).await;
        let id = &key["id"];
        let new = async |hours| {
            let answer = regenerate(&admin, id, hours).await;
            let payload = &answer.data()["regenerateApiKey"];
            assert_eq!(&payload["apiKey"]["id"], id);
            payload["rawKey"].as_str().unwrap().to_owned()
        };
        let second = new(1).await;
        assert!(works(&app, &first).await && works(&app, &second).await);
        let third = new(1).await;
        assert!(!works(&app, &first).await, "regenerating again ends the older one");
        assert!(works(&app, &second).await && works(&app, &third).await);
        app.advance(3601);
        let admin = app.admin().await;
        assert!(!works(&app, &second).await && works(&app, &third).await);
        let fourth = regenerate(&admin, id, 0).await.data()["regenerateApiKey"]["rawKey"].as_str().unwrap().to_owned();
        assert!(!works(&app, &third).await && works(&app, &fourth).await);
        assert_eq!(code(&app, &third).await, "NOT_FOUND");
        let entry = newest_entry(&admin).await;
        assert_eq!((&entry["action"], &entry["metadata"]["gracePeriodHours"]), (&json!("REGENERATE"), &json!(0)));

        // The grace ends with the key as it was, though the key lives on.
        let fifth = regenerate(&admin, id, 168).await.data()["regenerateApiKey"]["rawKey"].as_str().unwrap().to_owned();
        update(&admin, json!({ "id": id, "expiresAt": null })).await.data();
        app.advance(2 * 86_400);
        assert!(!works(&app, &fourth).await && works(&app, &fifth).await);
        let admin = app.admin().await;
        for hours in [-1, 169] {
            assert_eq!(regenerate(&admin, id, hours).await.fields(), ["gracePeriodHours"]);
        }
    }

    async fn ones_own_keys_are_ones_own_and_others_need_the_right(app: TestApp) {
        let (admin, manager, member, reader) = (app.admin().await, app.user("MANAGER").await, app.user("MEMBER").await, app.user("READ_ONLY").await);
        let (of_admin, _) = create(&admin, json!({ "name": "admin's" })).await;
        let (of_manager, _) = create(&manager, json!({ "name": "manager's" })).await;
        let (of_member, raw) = create(&member, json!({ "name": "member's", "scopes": ["ADMIN_READ"] })).await;
        let member_id = user_id(&member).await;
        let (of_reader, _) = create(&admin, json!({ "name": "reader's", "ownerId": user_id(&reader).await })).await;
        assert_eq!(try_create(&reader, json!({ "name": "K" })).await.code(), "FORBIDDEN");
        assert_eq!(try_create(&member, json!({ "name": "K", "ownerId": user_id(&manager).await })).await.code(), "FORBIDDEN");
        assert_eq!(try_create(&manager, json!({ "name": "K", "ownerId": user_id(&admin).await })).await.code(), "FORBIDDEN");
        assert_eq!(try_create(&admin, json!({ "name": "K", "ownerId": "user_zzzz" })).await.fields(), ["ownerId"]);
        assert_eq!(try_create(&admin, json!({ "name": "K", "ownerId": "user_00000000000000000000000009" })).await.fields(), ["ownerId"]);

        let list = "{ apiKeys(orderBy: { field: NAME, direction: ASC }) { totalCount nodes { name } } }";
        for (client, names) in [
            (&admin, &["admin's", "manager's", "member's", "reader's"][..]), (&manager, &["admin's", "manager's", "member's", "reader's"]),
            (&member, &["member's"]), (&with_key(&app, &raw), &["member's"]), (&reader, &["reader's"]),
        ] {
            let found = client.run(list).await.data()["apiKeys"].clone();
            assert_eq!((ids(&found["nodes"]), found["totalCount"].as_u64().unwrap()), (names.to_vec(), names.len() as u64));
        }
        for key in [&of_admin, &of_manager, &of_reader] {
            let query = format!("{{ apiKey(id: {0}) {{ id }} node(id: {0}) {{ id }} }}", key["id"]);
            assert_eq!(member.run(&query).await.data(), &json!({ "apiKey": null, "node": null }));
            for answer in [update(&member, json!({ "id": key["id"], "name": "N" })).await, regenerate(&member, &key["id"], 0).await, revoke(&member, &key["id"]).await] {
                assert_eq!(answer.code(), "NOT_FOUND");
            }
        }
        assert_eq!(revoke(&reader, &of_reader["id"]).await.code(), "FORBIDDEN");
        let keys_of = |id: &Value| format!("{{ user(id: {id}) {{ apiKeys {{ totalCount nodes {{ name }} }} }} }}");
        assert_eq!(ids(&manager.run(&keys_of(&member_id)).await.data()["user"]["apiKeys"]["nodes"]), ["member's"]);
        assert_eq!(member.run(&keys_of(&member_id)).await.data()["user"]["apiKeys"]["totalCount"], 1);
        assert_eq!(member.run(&keys_of(&user_id(&manager).await)).await.code(), "FORBIDDEN");

        // Of a key that acts with more than one has oneself, nothing but revoking it.
        assert_eq!(update(&manager, json!({ "id": of_admin["id"], "scopes": ["ADMIN_WRITE"] })).await.code(), "FORBIDDEN");
        assert_eq!(regenerate(&manager, &of_admin["id"], 0).await.code(), "FORBIDDEN");
        update(&manager, json!({ "id": of_member["id"], "name": "N" })).await.data();
        revoke(&manager, &of_admin["id"]).await.data();
    }

    async fn a_key_that_another_has_issued_never_gets_more_than_that_one_had(app: TestApp) {
        let (admin, manager, member) = (app.admin().await, app.user("MANAGER").await, app.user("MEMBER").await);
        let id = user_id(&member).await;
        let (key, issued) = create(&manager, json!({ "name": "K", "ownerId": id, "scopes": ["ADMIN_READ"] })).await;
        let (_, own) = create(&member, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let role = async |raw: &str| with_key(&app, raw).run("{ viewer { role } }").await.data()["viewer"]["role"].clone();
        assert_eq!((role(&issued).await, role(&own).await), (json!("MEMBER"), json!("MEMBER")));
        set_user(&admin, &id, "role: ADMIN").await;
        assert_eq!((role(&issued).await, role(&own).await), (json!("MANAGER"), json!("ADMIN")));
        // Not for the grace either, though the owner regenerates it.
        let graced = regenerate(&member, &key["id"], 1).await.data()["regenerateApiKey"]["rawKey"].as_str().unwrap().to_owned();
        assert_eq!((role(&issued).await, role(&graced).await), (json!("MANAGER"), json!("MANAGER")));
        let alone = regenerate(&member, &key["id"], 0).await.data()["regenerateApiKey"]["rawKey"].as_str().unwrap().to_owned();
        assert_eq!(role(&alone).await, "ADMIN");
        let issued = alone;
        set_user(&admin, &id, "role: READ_ONLY").await;
        assert_eq!((role(&issued).await, role(&own).await), (json!("READ_ONLY"), json!("READ_ONLY")));
    }

    async fn the_keys_of_who_is_suspended_or_deleted_end_at_once(app: TestApp) {
        let (admin, member) = (app.admin().await, app.user("MEMBER").await);
        let (key, raw) = create(&member, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let (ended, _) = create(&member, json!({ "name": "revoked before" })).await;
        revoke(&member, &ended["id"]).await.data();
        let id = user_id(&member).await;
        assert!(works(&app, &raw).await);
        set_user(&admin, &id, "status: SUSPENDED").await;
        assert!(!works(&app, &raw).await);
        set_user(&admin, &id, "status: ACTIVE").await;
        assert!(works(&app, &raw).await);
        admin.run(&format!("mutation {{ deleteUser(input: {{ id: {id} }}) {{ deletedId }} }}")).await.data();
        let entry = newest_entry(&admin).await;
        assert_eq!((&entry["operation"], &entry["metadata"]["apiKeysRevoked"]), (&json!("deleteUser"), &json!([key["id"]])));
        assert!(!works(&app, &raw).await);
        assert_eq!(code(&app, &raw).await, "REVOKED");
        let query = format!("{{ apiKey(id: {}) {{ status owner {{ email }} }} }}", key["id"]);
        assert_eq!(admin.run(&query).await.data()["apiKey"], json!({ "status": "REVOKED", "owner": { "email": "member@example.com" } }));
    }

    async fn a_key_gives_no_key_more_than_it_has(app: TestApp) {
        let admin = app.admin().await;
        let bounds = json!({
            "name": "M", "scopes": ["ADMIN_WRITE"], "expiresInDays": 10, "allowedIps": ["127.0.0.0/8"], "allowedModels": ["claude-*"],
            "rateLimitPerMinute": 100, "costLimitUsdPerMonth": "5",
        });
        let with = |changes: Value| {
            let mut input = bounds.clone();
            input.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            input
        };
        let (own, raw) = create(&admin, bounds.clone()).await;
        let maker = with_key(&app, &raw);
        for wider in [
            json!({ "scopes": ["RELAY"] }), json!({ "scopes": ["ADMIN_WRITE", "RELAY"] }), json!({ "expiresInDays": 11 }),
            json!({ "expiresInDays": null }), json!({ "allowedIps": null }), json!({ "allowedIps": ["127.0.0.1", "10.0.0.1"] }),
            json!({ "allowedModels": ["*"] }), json!({ "allowedModels": [] }), json!({ "rateLimitPerMinute": 101 }),
            json!({ "rateLimitPerMinute": null }), json!({ "costLimitUsdPerMonth": "5.000001" }),
        ] {
            assert_eq!(try_create(&maker, with(wider.clone())).await.code(), "FORBIDDEN", "{wider}");
        }
        let (made, _) = create(&maker, with(json!({
            "scopes": ["ADMIN_READ"], "expiresInDays": 9, "allowedIps": ["127.0.0.1"], "allowedModels": ["claude-haiku-*"], "rateLimitPerHour": 3,
        }))).await;
        assert_eq!(newest_entry(&admin).await["apiKey"]["id"], own["id"]);
        update(&maker, json!({ "id": made["id"], "name": "N" })).await.data();
        for wider in [json!({ "scopes": ["RELAY"] }), json!({ "allowedIps": [] }), json!({ "expiresAt": null }), json!({ "rateLimitPerMinute": null })] {
            let mut input = wider.clone();
            input["id"] = made["id"].clone();
            assert_eq!(update(&maker, input.clone()).await.code(), "FORBIDDEN", "{wider}");
            input["id"] = own["id"].clone();
            assert_eq!(update(&maker, input).await.code(), "FORBIDDEN", "itself: {wider}");
        }
        let (wide, _) = create(&admin, json!({ "name": "W", "scopes": ["RELAY", "ADMIN_WRITE"] })).await;
        assert_eq!(regenerate(&maker, &wide["id"], 0).await.code(), "FORBIDDEN");
        update(&maker, json!({ "id": wide["id"], "name": "X" })).await.data();
        let renewed = regenerate(&maker, &own["id"], 0).await.data()["regenerateApiKey"]["rawKey"].as_str().unwrap().to_owned();
        assert!(works(&app, &renewed).await && !works(&app, &raw).await);
    }

    async fn every_wrong_field_is_named(app: TestApp) {
        let admin = app.admin().await;
        let many: Vec<String> = (0..101).map(|n| n.to_string()).collect();
        let answer = try_create(&admin, json!({
            "name": "", "description": "\u{7}", "ownerId": "x", "clientId": "x", "scopes": [], "expiresInDays": 366, "allowedIps": ["10.0.0.0/40"],
            "allowedModels": many, "rateLimitPerMinute": 0, "rateLimitPerHour": -1, "concurrencyLimit": 10_001, "tokenLimitPerDay": 0,
            "costLimitUsdPerMonth": "0.0000001",
        })).await;
        assert_eq!(answer.fields(), [
            "name", "description", "ownerId", "clientId", "scopes", "expiresInDays", "allowedIps", "allowedModels", "rateLimitPerMinute",
            "rateLimitPerHour", "concurrencyLimit", "tokenLimitPerDay", "costLimitUsdPerMonth",
        ]);
        let number = try_create(&admin, json!({ "name": "K", "scopes": ["RELAY"], "costLimitUsdPerMonth": 5 })).await;
        assert_eq!(number.code(), "BAD_USER_INPUT");
        let told = number.body["errors"][0]["message"].as_str().unwrap();
        assert!(told.contains("is not a decimal number in a string, like \"12.50\""), "{told}");
        let (key, _) = create(&admin, json!({ "name": "K" })).await;
        let answer = update(&admin, json!({
            "id": key["id"], "name": null, "scopes": null, "expiresAt": "2020-01-01T00:00:00Z", "allowedIps": ["10.0.0.1", "10.0.0.1/32"],
            "allowedModels": ["a b"], "costLimitUsdPerMonth": "0",
        })).await;
        assert_eq!(answer.fields(), ["name", "scopes", "expiresAt", "allowedIps", "allowedModels", "costLimitUsdPerMonth"]);
        assert_eq!(update(&admin, json!({ "id": key["id"], "expectedVersion": 2 })).await.code(), "CONFLICT");
        let changed = update(&admin, json!({ "id": key["id"], "scopes": ["RELAY", "ADMIN_READ"], "costLimitUsdPerMonth": "2.50" })).await;
        let changed = &changed.data()["updateApiKey"]["apiKey"];
        assert_eq!((&changed["version"], &changed["costLimitUsdPerMonth"]), (&json!(2), &json!("2.5")));
        assert_eq!(newest_entry(&admin).await["changes"]["scopes"], json!({ "from": ["RELAY"], "to": ["RELAY", "ADMIN_READ"] }));
    }

    async fn a_client_gets_keys_from_who_manages_them_until_it_is_archived(app: TestApp) {
        let admin = app.admin().await;
        let of = new_client(&admin, json!({ "name": "Acme" })).await;
        let input = json!({ "name": "K", "clientId": of["id"] });
        create(&admin, input.clone()).await;
        // For a client, a key takes more than for oneself.
        assert_eq!(try_create(&app.user("MEMBER").await, input.clone()).await.code(), "FORBIDDEN");
        create(&app.user("MANAGER").await, input.clone()).await;
        admin.run(&format!("mutation {{ archiveClient(input: {{ id: {} }}) {{ client {{ id }} }} }}", of["id"])).await.data();
        assert_eq!(try_create(&admin, input).await.code(), "CONFLICT");
        assert_eq!(try_create(&admin, json!({ "name": "K", "clientId": "client_00000000000000000000000000" })).await.code(), "NOT_FOUND");
    }

    async fn keys_are_searched_filtered_and_sorted(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let of = new_client(&admin, json!({ "name": "Acme" })).await;
        let (first, raw) = create(&admin, json!({ "name": "Äpfel", "scopes": ["ADMIN_READ"], "expiresInDays": 1, "clientId": of["id"] })).await;
        create(&admin, json!({ "name": "birnen", "description": "for ÄPFEL too" })).await;
        let (third, _) = create(&admin, json!({ "name": "Citrus", "expiresInDays": 5 })).await;
        revoke(&admin, &third["id"]).await.data();
        assert!(works(&app, &raw).await);
        // An orderly stop writes when keys were last used.
        app.restart().await;
        let admin = app.admin().await;
        let list = async |arguments: &str| {
            let found = app.admin().await.run(&format!("{{ apiKeys({arguments}) {{ totalCount nodes {{ name }} }} }}")).await.data()["apiKeys"].clone();
            assert_eq!(found["totalCount"], found["nodes"].as_array().unwrap().len());
            ids(&found["nodes"]).join(" ")
        };
        for (arguments, names) in [
            ("orderBy: { field: NAME, direction: ASC }", "birnen Citrus Äpfel"),
            ("orderBy: { field: EXPIRES_AT, direction: ASC }", "Äpfel Citrus birnen"),
            ("orderBy: { field: LAST_USED_AT }", "Äpfel Citrus birnen"),
            ("orderBy: { field: CREATED_AT, direction: ASC }", "Äpfel birnen Citrus"),
            ("search: \"äpfel\"", "birnen Äpfel"),
            ("filter: { status: [ACTIVE] }", "birnen Äpfel"),
            ("filter: { status: [REVOKED, EXPIRED] }", "Citrus"),
            ("filter: { status: [] }", ""),
        ] {
            assert_eq!(list(arguments).await, names, "{arguments}");
        }
        assert_eq!(list(&format!("filter: {{ clientId: {} }}", of["id"])).await, "Äpfel");
        assert_eq!(list(&format!("filter: {{ ownerId: {} }}", first["owner"]["id"])).await, "Citrus birnen Äpfel");
        assert_eq!(list(&format!("filter: {{ ownerId: {}, clientId: {} }}", first["owner"]["id"], of["id"])).await, "Äpfel");
        assert_eq!(list(&format!("search: {}", first["keyPrefix"])).await, "Äpfel");
        let nested = "{ clients { nodes { apiKeys { totalCount nodes { name } } } } users { nodes { apiKeys(first: 1) { totalCount pageInfo { hasNextPage } nodes { name } } } } }";
        let found = admin.run(nested).await.data().clone();
        assert_eq!(found["clients"]["nodes"][0]["apiKeys"], json!({ "totalCount": 1, "nodes": [{ "name": "Äpfel" }] }));
        assert_eq!(found["users"]["nodes"][0]["apiKeys"], json!({ "totalCount": 3, "pageInfo": { "hasNextPage": true }, "nodes": [{ "name": "Citrus" }] }));
        app.advance(86_401);
        assert_eq!(list("filter: { status: [EXPIRED] }").await, "Äpfel");
    }

    async fn when_a_key_was_last_used_is_noted_once_a_minute_and_is_no_change(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let (key, raw) = create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let query = format!("{{ apiKey(id: {}) {{ lastUsedAt lastUsedIp version updatedAt }} auditLogs(filter: {{ resourceId: {} }}) {{ totalCount }} }}", key["id"], key["id"]);
        let mut noted = Vec::new();
        for ahead in [0, 30, 31] {
            app.advance(ahead);
            for _ in 0..3 {
                assert!(works(&app, &raw).await);
            }
            app.restart().await;
            let found = app.admin().await.run(&query).await.data().clone();
            assert_eq!((&found["apiKey"]["version"], &found["apiKey"]["updatedAt"]), (&json!(1), &key["updatedAt"]));
            assert_eq!((&found["apiKey"]["lastUsedIp"], &found["auditLogs"]["totalCount"]), (&json!("127.0.0.1"), &json!(1)));
            noted.push(found["apiKey"]["lastUsedAt"].as_str().unwrap().to_owned());
        }
        assert!(noted[0] == noted[1] && noted[1] < noted[2], "{noted:?}");
    }
}
