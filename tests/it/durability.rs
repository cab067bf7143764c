//! What was acknowledged lasts: the program is killed in the middle of its work, again and again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::command_line::Place;
use crate::support::{Client, PASSWORD, TestApp, TestDatabase};

const ROUNDS: usize = 20;
const WORKERS: usize = 4;

const CREATE: &str = "mutation($key: String!, $name: String!) {
  createClaudeAccount(input: { apiKey: $key, accountName: $name }) { claudeAccount { id } } }";

/// Creates accounts until the server is gone, and notes each that was acknowledged.
async fn work(client: Client, worker: String, acknowledged: Arc<Mutex<BTreeSet<String>>>) {
    for n in 0.. {
        let name = format!("{worker}-{n}");
        let body = json!({ "query": CREATE, "variables": { "key": format!("sk-ant-{name}"), "name": name } });
        let request =
            client.http().post(format!("{}/graphql", client.url)).bearer_auth(client.access_token.as_ref().unwrap());
        let Ok(response) = request.json(&body).send().await else { return };
        let Ok(answer) = response.json::<Value>().await else { return };
        if answer["data"]["createClaudeAccount"]["claudeAccount"]["id"].is_string() {
            acknowledged.lock().unwrap().insert(name);
        }
    }
}

/// Everything that a list of names has, page by page.
pub(crate) async fn all(client: &Client, query: &str, list: &str, field: &str) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = client.with(query, json!({ "after": after })).await.data()[list].clone();
        let nodes = page["nodes"].as_array().unwrap();
        found.extend(
            nodes.iter().map(|node| node.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned()),
        );
        after = page["pageInfo"]["endCursor"].clone();
        if page["pageInfo"]["hasNextPage"] == false {
            return found;
        }
    }
}

async fn survives(database: TestDatabase) {
    let place = Place::new(database);
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..ROUNDS {
        let mut server = place.serve();
        let client = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        let target = acknowledged.lock().unwrap().len() + 5;
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| tokio::spawn(work(client.clone(), format!("{round}-{worker}"), acknowledged.clone())))
            .collect();
        // Killed as soon as some of this round's are acknowledged, while others are on their way.
        while acknowledged.lock().unwrap().len() < target {
            tokio::task::yield_now().await;
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for worker in workers {
            worker.await.unwrap();
        }
    }

    let server = place.serve();
    let client = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let accounts = "query($after: String) { claudeAccounts(first: 100, after: $after) { nodes { accountName } pageInfo { hasNextPage endCursor } } }";
    let names = all(&client, accounts, "claudeAccounts", "/accountName").await;
    let unique: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(unique.len(), names.len(), "none twice");
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(acknowledged.is_subset(&unique), "lost: {:?}", acknowledged.difference(&unique));
    let entries = "query($after: String) { auditLogs(first: 100, after: $after, filter: { action: [CREATE], resourceType: [CLAUDE_ACCOUNT],
        outcome: [SUCCESS] }) { nodes { changes } pageInfo { hasNextPage endCursor } } }";
    let mut audited = all(&client, entries, "auditLogs", "/changes/accountName/to").await;
    audited.sort();
    assert_eq!(audited, unique.into_iter().collect::<Vec<_>>(), "each has exactly one entry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_lose_nothing_on_sqlite() {
    survives(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_lose_nothing_on_postgres() {
    survives(TestDatabase::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_postgres_has_closed_are_not_used_again() {
    let app = TestApp::postgres().await;
    let admin = app.admin().await;
    let others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    app.database.execute(others).await.unwrap();
    // The server hears of it a moment later.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    admin.run("{ claudeAccounts { totalCount } auditLogs { totalCount } }").await.data();
    admin.run("mutation { signOut { signedOut } }").await.data();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let place = Place::new(TestDatabase::sqlite());
    drop(place.serve());
    let server = place.serve_on_a_small_disk();
    let client = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let mut made = 0;
    let refused = loop {
        let metadata = json!({ "text": "x".repeat(50_000) });
        let answer = client
            .with(
                "mutation($key: String!, $m: JSON) {
                   createClaudeAccount(input: { apiKey: $key, accountName: \"A\", metadata: $m }) { claudeAccount { id } } }",
                json!({ "key": format!("sk-ant-{made}"), "m": metadata }),
            )
            .await;
        if answer.body.get("errors").is_some() {
            break answer;
        }
        made += 1;
        assert!(made < 100, "the disk is never full");
    };
    assert_eq!(refused.code(), "SERVICE_UNAVAILABLE");
    let count = "{ claudeAccounts { totalCount } }";
    assert_eq!(client.run(count).await.data()["claudeAccounts"]["totalCount"], made, "what is there can still be read");
    drop(server);
    let server = place.serve();
    let client = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    assert_eq!(client.run(count).await.data()["claudeAccounts"]["totalCount"], made);
}
