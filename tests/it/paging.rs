//! Lists: three ways to page, search, filters, orderings.

use serde_json::{Value, json};

use crate::claude_account::create;
use crate::support::{Client, both_databases};

const LIST: &str = "query($first: Int, $after: String, $last: Int, $before: String, $offset: Int, $search: String,
      $filter: ClaudeAccountFilter, $orderBy: ClaudeAccountOrder) {
  claudeAccounts(first: $first, after: $after, last: $last, before: $before, offset: $offset, search: $search,
      filter: $filter, orderBy: $orderBy) {
    totalCount nodes { accountName } edges { cursor node { accountName } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }";

async fn list(client: &Client, variables: Value) -> Value {
    client.with(LIST, variables).await.data()["claudeAccounts"].clone()
}

fn names(page: &Value) -> Vec<&str> {
    page["nodes"].as_array().unwrap().iter().map(|node| node["accountName"].as_str().unwrap()).collect()
}

/// Seven accounts; many share a value of each field that can be sorted by.
async fn fill(client: &Client) {
    for (n, name) in ["delta", "Alpha", "charlie", "Bravo", "alpha", "Émile", "echo"].iter().enumerate() {
        create(client, json!({
            "apiKey": format!("sk-ant-{n}"), "accountName": name, "priority": n / 3,
            "status": (if n % 2 == 0 { "ACTIVE" } else { "SUSPENDED" }), "tier": (if n < 4 { "PRO" } else { "FREE" }),
            "email": format!("{name}@example.com").replace('É', "e"), "organization": (if n == 2 { "ÄRZTE 100%" } else { "Acme" }),
        })).await;
    }
}

/// The name of the default order, as it stands in a cursor.
async fn order_name(client: &Client) -> Value {
    use base64::Engine as _;
    let page = list(client, json!({ "first": 1 })).await;
    let cursor = page["pageInfo"]["endCursor"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(cursor).unwrap();
    serde_json::from_slice::<Value>(&bytes).unwrap()[0].clone()
}

both_databases! {
    async fn every_ordering_walks_all_rows_once_in_both_directions(app: TestApp) {
        let admin = app.admin().await;
        fill(&admin).await;
        for field in ["CREATED_AT", "UPDATED_AT", "ACCOUNT_NAME", "STATUS", "TIER", "CURRENT_USAGE", "PRIORITY"] {
            for direction in ["ASC", "DESC"] {
                let order = json!({ "field": field, "direction": direction });
                let all = list(&admin, json!({ "orderBy": order })).await;
                let all = names(&all);
                assert_eq!(all.len(), 7);

                let (mut forwards, mut after) = (Vec::new(), Value::Null);
                loop {
                    let page = list(&admin, json!({ "first": 2, "after": after, "orderBy": order })).await;
                    forwards.extend(names(&page).into_iter().map(str::to_owned));
                    after = page["pageInfo"]["endCursor"].clone();
                    if page["pageInfo"]["hasNextPage"] == false { break; }
                }
                assert_eq!(forwards, all, "{field} {direction}");

                let (mut backwards, mut before) = (Vec::new(), Value::Null);
                loop {
                    let page = list(&admin, json!({ "last": 2, "before": before, "orderBy": order })).await;
                    backwards.splice(0..0, names(&page).into_iter().map(str::to_owned));
                    before = page["pageInfo"]["startCursor"].clone();
                    if page["pageInfo"]["hasPreviousPage"] == false { break; }
                }
                assert_eq!(backwards, all, "{field} {direction} backwards");

                let page = list(&admin, json!({ "first": 3, "offset": 3, "orderBy": order })).await;
                assert_eq!(names(&page), all[3..6], "{field} {direction} by offset");
                assert_eq!((&page["pageInfo"]["hasNextPage"], &page["pageInfo"]["hasPreviousPage"]), (&json!(true), &json!(true)));
            }
        }
    }

    async fn names_are_sorted_whatever_their_case(app: TestApp) {
        let admin = app.admin().await;
        fill(&admin).await;
        let page = list(&admin, json!({ "orderBy": { "field": "ACCOUNT_NAME", "direction": "ASC" } })).await;
        let mut sorted = names(&page);
        sorted[..2].sort_unstable();
        assert_eq!(sorted, ["Alpha", "alpha", "Bravo", "charlie", "delta", "echo", "Émile"]);
    }

    async fn a_walk_neither_skips_nor_repeats_while_rows_come_and_go(app: TestApp) {
        let admin = app.admin().await;
        fill(&admin).await;
        let order = json!({ "field": "ACCOUNT_NAME", "direction": "ASC" });
        let first = list(&admin, json!({ "first": 3, "orderBy": order })).await;
        for name in ["aaa", "zzz"] {
            create(&admin, json!({ "apiKey": format!("sk-ant-{name}"), "accountName": name })).await;
        }
        app.database.execute("DELETE FROM claude_accounts WHERE account_name = 'Bravo'").await.unwrap();
        let rest = list(&admin, json!({ "after": first["pageInfo"]["endCursor"], "orderBy": order })).await;
        assert_eq!(names(&rest), ["charlie", "delta", "echo", "zzz", "Émile"]);
    }

    async fn search_finds_text_anywhere_whatever_its_case(app: TestApp) {
        let admin = app.admin().await;
        fill(&admin).await;
        for (search, count) in [
            ("ALPHA", 2), ("lph", 2), ("émile", 1), ("ärzte", 1), ("100%", 1), ("%", 1), ("_", 0), ("\\", 0),
            ("example.com", 7), ("acme", 6), ("nothing", 0), ("", 7), ("  ", 7), ("alpha\nalpha", 0),
        ] {
            let page = list(&admin, json!({ "search": search })).await;
            assert_eq!(page["totalCount"], count, "{search:?}");
        }
    }

    async fn filters_hold_together_with_search(app: TestApp) {
        let admin = app.admin().await;
        fill(&admin).await;
        let count = async |variables| list(&admin, variables).await["totalCount"].clone();
        assert_eq!(count(json!({ "filter": { "status": ["SUSPENDED"] } })).await, 3);
        assert_eq!(count(json!({ "filter": { "status": ["SUSPENDED", "ACTIVE"], "tier": ["FREE"] } })).await, 3);
        assert_eq!(count(json!({ "filter": { "status": ["PENDING"] } })).await, 0);
        assert_eq!(count(json!({ "filter": { "status": [] } })).await, 0);
        assert_eq!(count(json!({ "filter": { "tier": ["PRO"] }, "search": "alpha" })).await, 1);
    }

    async fn wrong_page_arguments_are_named(app: TestApp) {
        let admin = app.admin().await;
        fill(&admin).await;
        let cursor = list(&admin, json!({})).await["pageInfo"]["endCursor"].clone();
        for (variables, field) in [
            (json!({ "first": 0 }), "first"), (json!({ "first": -1 }), "first"), (json!({ "first": 101 }), "first"),
            (json!({ "last": 101 }), "last"), (json!({ "offset": -1 }), "offset"), (json!({ "after": "x" }), "after"),
            (json!({ "first": 1, "last": 1 }), "last"), (json!({ "offset": 1, "after": cursor }), "offset"),
            (json!({ "after": cursor, "orderBy": { "field": "TIER" } }), "after"),
            (json!({ "before": cursor, "orderBy": { "field": "CREATED_AT", "direction": "ASC" } }), "before"),
        ] {
            let answer = admin.with(LIST, variables.clone()).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &[field][..]), "{variables}");
        }
    }

    async fn odd_arguments_are_answered_alike_on_both_databases(app: TestApp) {
        use base64::Engine as _;
        let admin = app.admin().await;
        fill(&admin).await;
        let cursor = |position: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(position.to_string());
        let order = list(&admin, json!({ "orderBy": { "field": "ACCOUNT_NAME" }, "first": 1 })).await;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(order["pageInfo"]["endCursor"].as_str().unwrap()).unwrap();
        let by_name: Value = serde_json::from_slice(&bytes).unwrap();
        for (variables, field) in [
            (json!({ "search": "é".repeat(201) }), "search"),
            (json!({ "orderBy": { "field": "ACCOUNT_NAME" }, "after": cursor(json!([by_name[0], "a\0", by_name[2]])) }), "after"),
            (json!({ "orderBy": { "field": "ACCOUNT_NAME" }, "after": cursor(json!([by_name[0], "a", "\0"])) }), "after"),
            (json!({ "after": cursor(json!([order_name(&admin).await, 253_402_300_800_000_000_i64, "a"])) }), "after"),
            (json!({ "after": cursor(json!([order_name(&admin).await, -62_167_219_200_000_001_i64, "a"])) }), "after"),
        ] {
            let answer = admin.with(LIST, variables.clone()).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &[field][..]), "{variables}");
        }
        assert_eq!(list(&admin, json!({ "search": "é".repeat(200) })).await["totalCount"], 0);
        let many = json!({ "filter": { "tier": vec!["PRO"; 33_000] } });
        assert_eq!(list(&admin, many).await["totalCount"], 4);
        let many = json!({ "f": { "action": vec!["CREATE"; 9_000], "outcome": vec!["SUCCESS"; 9_000], "resourceType": vec!["USER"; 9_000] } });
        let entries = "query($f: AuditLogFilter) { auditLogs(filter: $f) { totalCount nodes { id } } }";
        assert_eq!(admin.with(entries, many).await.data()["auditLogs"]["totalCount"], 0);
        for filter in [json!({ "requestId": "\0" }), json!({ "resourceId": "acct_\0" })] {
            assert_eq!(admin.with(entries, json!({ "f": filter })).await.data()["auditLogs"]["nodes"], json!([]));
        }
    }

    async fn an_empty_list_has_no_cursors(app: TestApp) {
        let page = list(&app.admin().await, json!({})).await;
        assert_eq!(page, json!({ "totalCount": 0, "nodes": [], "edges": [],
            "pageInfo": { "hasNextPage": false, "hasPreviousPage": false, "startCursor": null, "endCursor": null } }));
    }
}
