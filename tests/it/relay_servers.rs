//! The relay over several servers: what is changed on one holds on the others, and how an account does is seen on all.

use serde_json::json;

use crate::relay::{FIRST, Relayed, SECOND, asking};
use crate::relay_pool::update;
use crate::support::{Reply, Socket, TestApp, in_time};

/// Sends messages to a server until one ends so: its status, and the account that answered last.
async fn until(relayed: &Relayed, url: &str, status: u16, account: &str) {
    in_time(&format!("{status} by {account}"), async {
        loop {
            let request = relayed.http.post(format!("{url}/v1/messages")).header("x-api-key", &relayed.key);
            let answer = request.body(asking(false).to_string()).send().await.unwrap();
            if answer.status() == status && relayed.claude.keys().last().is_some_and(|last| last == account) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_on_one_server_holds_on_the_others() {
    let mut app = TestApp::postgres().await;
    let other = app.another().await;
    let relayed = Relayed::new(&app).await;
    let second = relayed.second(json!({ "priority": 5 })).await;
    until(&relayed, &other, 200, FIRST).await;
    update(&relayed, &relayed.account["id"], json!({ "status": "SUSPENDED" })).await;
    until(&relayed, &other, 200, SECOND).await;
    update(&relayed, &relayed.account["id"], json!({ "status": "ACTIVE" })).await;
    until(&relayed, &other, 200, FIRST).await;
    for id in [&relayed.account["id"], &second["id"]] {
        update(&relayed, id, json!({ "status": "EXPIRED" })).await;
    }
    until(&relayed, &other, 503, FIRST).await;
    let revoke = "mutation($id: ID!) { revokeApiKey(input: { id: $id }) { apiKey { id } } }";
    relayed.admin.with(revoke, json!({ "id": relayed.key_id })).await.data();
    until(&relayed, &other, 401, FIRST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_an_account_does_at_one_server_is_seen_on_all() {
    let mut app = TestApp::postgres().await;
    let other = app.another().await;
    let relayed = Relayed::new(&app).await;
    relayed.second(json!({ "priority": 5 })).await;
    let mut socket = Socket::connected(&app, &relayed.admin).await;
    socket.follow(&app, "a", "subscription { claudeAccountChanged { id health { state } } }").await;
    relayed.claude.will(FIRST, [Reply::error(401, "authentication_error")]);
    until(&relayed, &other, 200, SECOND).await;
    let told =
        json!({ "claudeAccountChanged": { "id": relayed.account["id"], "health": { "state": "UNAUTHORIZED" } } });
    while socket.event("a").await != told {}
    relayed.until_health("UNAUTHORIZED").await;
}
