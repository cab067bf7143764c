//! Claude accounts, through the API.

use serde_json::{Value, json};

use crate::support::{Client, GOOD_KEY, MockUpstream, both_databases};

const CREATE: &str = "mutation($input: CreateClaudeAccountInput!) {
  createClaudeAccount(input: $input) { claudeAccount {
    id accountName email organization status tier apiKeyHint usageLimit currentUsage usageResetsAt baseUrl priority
    health { state until lastError lastUsedAt } features metadata version createdAt updatedAt } } }";
const UPDATE: &str = "mutation($input: UpdateClaudeAccountInput!) {
  updateClaudeAccount(input: $input) { claudeAccount {
    id accountName email organization status tier usageLimit baseUrl priority features metadata version } } }";

pub(crate) async fn create(client: &Client, input: Value) -> Value {
    let answer = client.with(CREATE, json!({ "input": input })).await;
    answer.data()["createClaudeAccount"]["claudeAccount"].clone()
}

both_databases! {
    async fn an_account_comes_back_as_it_was_made(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({
            "apiKey": "sk-ant-api03-secret-abcd", "accountName": "  Größe 1 ", "email": "Ops@Example.com",
            "organization": "Acme", "status": "PENDING", "tier": "ENTERPRISE", "usageLimit": 9_007_199_254_740_991_i64,
            "baseUrl": "https://gateway.example.com/claude/", "priority": -3,
            "features": { "b": [1, 2.5, null, "\u{0}"], "a": { "nested": true } }, "metadata": {},
        })).await;
        assert_eq!(made["accountName"], "Größe 1");
        assert_eq!(made["email"], "ops@example.com");
        assert_eq!(made["apiKeyHint"], "abcd");
        assert_eq!(made["usageLimit"], json!(9_007_199_254_740_991_i64));
        assert_eq!(made["baseUrl"], "https://gateway.example.com/claude");
        assert_eq!(made["features"], json!({ "a": { "nested": true }, "b": [1, 2.5, null, "\u{0}"] }));
        assert_eq!(made["version"], 1);
        let query = "query($id: ID!) { claudeAccount(id: $id) { id accountName email organization status tier apiKeyHint
            usageLimit currentUsage usageResetsAt baseUrl priority health { state until lastError lastUsedAt }
            features metadata version createdAt updatedAt } }";
        assert_eq!(admin.with(query, json!({ "id": made["id"] })).await.data()["claudeAccount"], made);
    }

    async fn what_is_left_out_has_its_default(app: TestApp) {
        let made = create(&app.admin().await, json!({ "apiKey": "sk-ant-000000000000", "accountName": "A" })).await;
        assert_eq!((&made["status"], &made["tier"], &made["priority"]), (&json!("ACTIVE"), &json!("PRO"), &json!(0)));
        assert_eq!((&made["usageLimit"], &made["features"], &made["health"]["state"]), (&Value::Null, &Value::Null, &json!("UNKNOWN")));
    }

    async fn every_wrong_field_is_named_at_once_and_nothing_is_written(app: TestApp) {
        let admin = app.admin().await;
        let answer = admin.with(CREATE, json!({ "input": {
            "apiKey": " ", "accountName": "x".repeat(101), "email": "nobody", "organization": "o".repeat(101),
            "usageLimit": 0, "baseUrl": "http://169.254.169.254/", "features": [], "metadata": "text",
        } })).await;
        assert_eq!(answer.code(), "BAD_USER_INPUT");
        assert_eq!(answer.fields(), [
            "apiKey", "accountName", "email", "organization", "usageLimit", "baseUrl", "features", "metadata",
        ]);
        assert_eq!(admin.run("{ claudeAccounts { totalCount } }").await.data()["claudeAccounts"]["totalCount"], 0);
    }

    async fn an_object_of_more_than_64_levels_is_refused(app: TestApp) {
        let admin = app.admin().await;
        let deep = |levels: usize| (1..levels).fold(json!({}), |inner, n| if n % 2 == 0 { json!([inner]) } else { json!({ "k": inner }) });
        let inside = "mutation($key: String!, $v: JSON) {
          createClaudeAccount(input: { apiKey: $key, accountName: \"A\", metadata: { inside: $v } }) { claudeAccount { metadata } } }";
        create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A", "metadata": { "k": deep(63) } })).await;
        let made = admin.with(inside, json!({ "key": "sk-ant-2", "v": deep(63) })).await;
        assert_eq!(made.data()["createClaudeAccount"]["claudeAccount"]["metadata"]["inside"], deep(63));
        let input = json!({ "apiKey": "sk-ant-3", "accountName": "A", "metadata": { "k": deep(64) } });
        assert_eq!(admin.with(CREATE, json!({ "input": input })).await.fields(), ["metadata"]);
        assert_eq!(admin.with(inside, json!({ "key": "sk-ant-4", "v": deep(64) })).await.fields(), ["metadata"]);
        let entries = admin.run("{ claudeAccounts { nodes { metadata } } auditLogs(filter: { action: [CREATE], outcome: [SUCCESS] }) { nodes { changes } } }").await;
        assert_eq!(entries.data()["claudeAccounts"]["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(entries.data()["auditLogs"]["nodes"][0]["changes"]["metadata"]["to"]["inside"], deep(63));
    }

    async fn an_object_of_more_than_64_kib_is_refused(app: TestApp) {
        let admin = app.admin().await;
        let fits = json!({ "k": "x".repeat(64 * 1024 - 8) });
        create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "fits", "metadata": fits })).await;
        let large = json!({ "k": "x".repeat(64 * 1024 - 7) });
        let answer =
            admin.with(CREATE, json!({ "input": { "apiKey": "sk-ant-2", "accountName": "A", "metadata": large } })).await;
        assert_eq!(answer.fields(), ["metadata"]);
    }

    async fn base_urls_lead_to_no_place_inside(app: TestApp) {
        let admin = app.admin().await;
        for url in [
            "https://10.1.2.3", "https://[::1]", "https://[::ffff:127.0.0.1]", "https://192.168.0.1:8443", "https://0.0.0.0",
            "https://167838211", "https://user:pw@example.com", "https://example.com/?q", "http://example.com", "ftp://a.b",
            "/relative", "https://100.64.0.1", "https://[fd00::1]", "https://[64:ff9b::7f00:1]",
            // Link-local addresses, under one of which clouds tell a machine its secrets.
            "https://169.254.169.254", "https://169.254.0.1/v1", "https://[fe80::1]", "https://[::ffff:169.254.169.254]",
            "http://[::ffff:169.254.169.254]", "https://[fd00:ec2::254]", "https://2852039166",
        ] {
            let input = json!({ "apiKey": "sk-ant-1", "accountName": "A", "baseUrl": url });
            assert_eq!(admin.with(CREATE, json!({ "input": input })).await.fields(), ["baseUrl"], "{url}");
        }
    }

    async fn one_key_serves_one_account_of_the_organization(app: TestApp) {
        let admin = app.admin().await;
        create(&admin, json!({ "apiKey": "sk-ant-same", "accountName": "A" })).await;
        let second = json!({ "input": { "apiKey": " sk-ant-same ", "accountName": "B" } });
        assert_eq!(admin.with(CREATE, second).await.code(), "CONFLICT");
        let other = create(&admin, json!({ "apiKey": "sk-ant-other", "accountName": "B" })).await;
        let replace = "mutation($id: ID!, $key: String!) {
            replaceClaudeAccountKey(input: { id: $id, apiKey: $key }) { claudeAccount { apiKeyHint version } } }";
        let answer = admin.with(replace, json!({ "id": other["id"], "key": "sk-ant-same" })).await;
        assert_eq!(answer.code(), "CONFLICT");
        let answer = admin.with(replace, json!({ "id": other["id"], "key": "sk-ant-replaced-wxyz" })).await;
        let account = &answer.data()["replaceClaudeAccountKey"]["claudeAccount"];
        assert_eq!(*account, json!({ "apiKeyHint": "wxyz", "version": 2 }));
    }

    async fn an_update_tells_omitted_null_and_value_apart(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({
            "apiKey": "sk-ant-1", "accountName": "A", "email": "a@b.c", "organization": "O", "usageLimit": 5,
            "features": { "x": 1 },
        })).await;
        let input = json!({ "id": made["id"], "email": null, "organization": "P", "features": null });
        let answer = admin.with(UPDATE, json!({ "input": input })).await;
        let account = &answer.data()["updateClaudeAccount"]["claudeAccount"];
        assert_eq!(account["accountName"], "A");
        assert_eq!(account["email"], Value::Null);
        assert_eq!(account["organization"], "P");
        assert_eq!(account["usageLimit"], 5);
        assert_eq!(account["features"], Value::Null);
        assert_eq!(account["version"], 2);
        let input = json!({ "id": made["id"], "accountName": null, "status": null, "tier": null, "priority": null });
        let answer = admin.with(UPDATE, json!({ "input": input })).await;
        assert_eq!(answer.fields(), ["accountName", "status", "tier", "priority"]);
    }

    async fn an_update_of_an_older_version_is_refused(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let update = |name: &str| json!({ "input": { "id": made["id"], "accountName": name, "expectedVersion": 1 } });
        let (one, two) = tokio::join!(admin.with(UPDATE, update("B")), admin.with(UPDATE, update("C")));
        let codes: Vec<_> = [&one, &two].iter().filter(|answer| answer.body.get("errors").is_some()).map(|a| a.code()).collect();
        assert_eq!(codes, ["CONFLICT"]);
    }

    async fn updates_at_once_are_none_of_them_lost(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let updates = (0..10).map(|n| {
            let input = json!({ "input": { "id": made["id"], "accountName": format!("A{n}") } });
            let admin = admin.clone();
            async move { admin.with(UPDATE, input).await.data().clone() }
        });
        futures_util::future::join_all(updates).await;
        let query = "query($id: ID!) { claudeAccount(id: $id) { version } }";
        assert_eq!(admin.with(query, json!({ "id": made["id"] })).await.data()["claudeAccount"]["version"], 11);
    }

    async fn an_update_that_changes_nothing_keeps_the_version(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let answer = admin.with(UPDATE, json!({ "input": { "id": made["id"], "accountName": "A" } })).await;
        assert_eq!(answer.data()["updateClaudeAccount"]["claudeAccount"]["version"], 1);
    }

    async fn a_deleted_account_is_gone_and_its_log_stays(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let delete = "mutation($id: ID!) { deleteClaudeAccount(input: { id: $id }) { deletedId } }";
        let id = json!({ "id": made["id"] });
        assert_eq!(admin.with(delete, id.clone()).await.data()["deleteClaudeAccount"]["deletedId"], made["id"]);
        assert_eq!(admin.with(delete, id.clone()).await.code(), "NOT_FOUND");
        let read = "query($id: ID!) { claudeAccount(id: $id) { id } node(id: $id) { id } }";
        assert_eq!(*admin.with(read, id.clone()).await.data(), json!({ "claudeAccount": null, "node": null }));
        let log = "query($id: ID!) { auditLogs(filter: { resourceId: $id, outcome: [SUCCESS] }) { nodes { action resource { id } } } }";
        let nodes = admin.with(log, id).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!(nodes, json!([{ "action": "DELETE", "resource": null }, { "action": "CREATE", "resource": null }]));
        create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "again" })).await;
    }

    async fn a_test_says_what_the_upstream_answered(app: TestApp) {
        let (admin, upstream) = (app.admin().await, MockUpstream::start().await);
        let test = "mutation($id: ID!) { testClaudeAccount(input: { id: $id }) {
            ok status message latencyMs claudeAccount { health { state lastError } } } }";
        for (behaviour, key, ok, status, state) in [
            ("good", GOOD_KEY, true, json!(200), "HEALTHY"),
            ("good", "sk-ant-bad-key-1", false, json!(401), "UNAUTHORIZED"),
            ("echo", "sk-ant-bad-key-2", false, json!(401), "UNAUTHORIZED"),
            ("broken", "sk-ant-bad-key-3", false, json!(500), "FAILING"),
            ("garbage", "sk-ant-bad-key-4", false, json!(200), "FAILING"),
            ("huge", "sk-ant-bad-key-5", false, json!(200), "FAILING"),
            ("redirect", "sk-ant-bad-key-6", false, json!(307), "FAILING"),
        ] {
            let input = json!({ "apiKey": key, "accountName": behaviour, "baseUrl": upstream.base_url(behaviour) });
            let made = create(&admin, input).await;
            let answer = admin.with(test, json!({ "id": made["id"] })).await;
            let payload = &answer.data()["testClaudeAccount"];
            assert_eq!((&payload["ok"], &payload["status"]), (&json!(ok), &status), "{behaviour}: {payload}");
            assert_eq!(payload["claudeAccount"]["health"]["state"], state, "{behaviour}");
            assert!(!payload.to_string().contains(key), "{behaviour}");
        }
        let requests = upstream.requests();
        assert_eq!(requests.len(), 7);
        assert_eq!(requests[0]["x-api-key"], GOOD_KEY);
        assert!(requests[0].contains_key("anthropic-version") && !requests[0].contains_key("authorization"));
    }

    async fn usage_is_reset(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        app.database.execute("UPDATE claude_accounts SET current_usage = 77").await.unwrap();
        let reset = "mutation($id: ID!) { resetClaudeAccountUsage(input: { id: $id }) { claudeAccount { currentUsage version } } }";
        let answer = admin.with(reset, json!({ "id": made["id"] })).await;
        let account = &answer.data()["resetClaudeAccountUsage"]["claudeAccount"];
        assert_eq!(*account, json!({ "currentUsage": 0, "version": 2 }));
    }

    async fn usage_starts_again_with_the_month(app: TestApp) {
        let admin = app.admin().await;
        create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        app.database.execute("UPDATE claude_accounts SET current_usage = 77, usage_resets_at = '2020-01-01T00:00:00.000000Z'").await.unwrap();
        let answer = admin.run("{ claudeAccounts { nodes { currentUsage usageResetsAt } } }").await;
        let account = &answer.data()["claudeAccounts"]["nodes"][0];
        assert_eq!(account["currentUsage"], 0);
        assert!(account["usageResetsAt"].as_str().unwrap().ends_with("-01T00:00:00.000Z"));
    }

    async fn another_organizations_account_does_not_exist(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        app.database.execute(
            "INSERT INTO organizations SELECT 'org_00000000000000000000000001', name, plan, settings, created_at, updated_at FROM organizations;
             UPDATE claude_accounts SET organization_id = 'org_00000000000000000000000001'",
        ).await.unwrap();
        let id = json!({ "id": made["id"] });
        let read = "query($id: ID!) { claudeAccount(id: $id) { id } node(id: $id) { id } nodes(ids: [$id]) { id } claudeAccounts { totalCount } }";
        assert_eq!(*admin.with(read, id.clone()).await.data(),
            json!({ "claudeAccount": null, "node": null, "nodes": [null], "claudeAccounts": { "totalCount": 0 } }));
        for mutation in [
            "updateClaudeAccount(input: { id: $id, priority: 9 }) { claudeAccount { id } }",
            "replaceClaudeAccountKey(input: { id: $id, apiKey: \"k\" }) { claudeAccount { id } }",
            "testClaudeAccount(input: { id: $id }) { ok }",
            "resetClaudeAccountUsage(input: { id: $id }) { claudeAccount { id } }",
            "deleteClaudeAccount(input: { id: $id }) { deletedId }",
        ] {
            let answer = admin.with(&format!("mutation($id: ID!) {{ {mutation} }}"), id.clone()).await;
            assert_eq!(answer.code(), "NOT_FOUND", "{mutation}");
        }
        // Its key is free here.
        create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "mine" })).await;
    }

    async fn a_sealed_key_that_was_moved_to_another_row_does_not_open(app: TestApp) {
        let admin = app.admin().await;
        let one = create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "one" })).await;
        create(&admin, json!({ "apiKey": "sk-ant-2", "accountName": "two" })).await;
        app.database.execute(
            "UPDATE claude_accounts SET api_key_sealed = (SELECT api_key_sealed FROM claude_accounts WHERE account_name = 'two')
             WHERE account_name = 'one'",
        ).await.unwrap();
        let test = "mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok } }";
        let answer = admin.with(test, json!({ "id": one["id"] })).await;
        assert_eq!(answer.code(), "INTERNAL_SERVER_ERROR");
        assert!(!answer.body.to_string().contains("seal"), "the cause is the log's alone");
    }

    async fn a_test_of_a_key_that_was_replaced_meanwhile_says_nothing_of_the_new_one(app: TestApp) {
        let (admin, upstream) = (app.admin().await, MockUpstream::start().await);
        let input = json!({ "apiKey": GOOD_KEY, "accountName": "A", "baseUrl": upstream.base_url("held") });
        let id = create(&admin, input).await["id"].clone();
        let test = admin.with("mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok } }", json!({ "id": id }));
        let replace = async {
            upstream.arrived().await;
            let replace = "mutation($id: ID!) { replaceClaudeAccountKey(input: { id: $id, apiKey: \"sk-ant-2\" }) { claudeAccount { id } } }";
            admin.with(replace, json!({ "id": id })).await.data();
            upstream.release();
        };
        let (tested, ()) = tokio::join!(test, replace);
        assert_eq!(tested.data()["testClaudeAccount"]["ok"], true);
        let seen = admin.run("{ claudeAccounts { nodes { health { state } } } auditLogs(filter: { action: [TEST] }) { nodes { outcome changes } } }").await;
        assert_eq!(seen.data()["claudeAccounts"]["nodes"], json!([{ "health": { "state": "UNKNOWN" } }]));
        assert_eq!(seen.data()["auditLogs"]["nodes"], json!([{ "outcome": "SUCCESS", "changes": null }]));
    }

    async fn stopping_finishes_what_runs(app: TestApp) {
        let (mut app, upstream) = (app, MockUpstream::start().await);
        let admin = app.admin().await;
        let input = json!({ "apiKey": GOOD_KEY, "accountName": "A", "baseUrl": upstream.base_url("held") });
        let id = json!({ "id": create(&admin, input).await["id"] });
        let running = tokio::spawn(async move {
            admin.with("mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok } }", id).await.data().clone()
        });
        upstream.arrived().await;
        let stopping = tokio::spawn(async move { app.stop().await });
        upstream.release();
        assert_eq!(running.await.unwrap()["testClaudeAccount"]["ok"], true);
        stopping.await.unwrap();
    }

    async fn a_deed_is_finished_and_recorded_though_its_caller_leaves(app: TestApp) {
        let (admin, upstream) = (app.admin().await, MockUpstream::start().await);
        let input = json!({ "apiKey": GOOD_KEY, "accountName": "A", "baseUrl": upstream.base_url("held") });
        let id = json!({ "id": create(&admin, input).await["id"] });
        let caller = tokio::spawn({
            let admin = app.admin().await;
            async move { admin.with("mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok } }", id).await }
        });
        upstream.arrived().await;
        caller.abort();
        assert!(caller.await.is_err_and(|error| error.is_cancelled()));
        upstream.release();
        // The server is not waited for by anybody, so it is asked until it is done; were it never, the test would not end.
        let tests = "{ auditLogs(filter: { action: [TEST] }) { nodes { outcome } } }";
        while admin.run(tests).await.data()["auditLogs"]["nodes"] != json!([{ "outcome": "SUCCESS" }]) {}
    }
}
