//! Which account takes a request.

use std::time::Duration;

use claviger::relay::RelayLimits;
use serde_json::json;

use crate::relay::{FIRST, OUTCOME, Relayed, SECOND, asking, error, records};
use crate::support::{Reply, both_databases};

fn limits() -> RelayLimits {
    RelayLimits { retry: Duration::from_millis(5), ..RelayLimits::default() }
}

pub(crate) async fn update(relayed: &Relayed, id: &serde_json::Value, input: serde_json::Value) {
    let mut input = input;
    input["id"] = id.clone();
    let query =
        "mutation($input: UpdateClaudeAccountInput!) { updateClaudeAccount(input: $input) { claudeAccount { id } } }";
    relayed.admin.with(query, json!({ "input": input })).await.data();
}

/// Sends a message of a conversation's agent.
async fn send_as(relayed: &Relayed, session: &str, agent: Option<&str>) -> String {
    let mut request = relayed.request("/v1/messages", &asking(false)).header("x-claude-code-session-id", session);
    if let Some(agent) = agent {
        request = request.header("x-claude-code-agent-id", agent);
    }
    assert_eq!(request.send().await.unwrap().status(), 200);
    relayed.claude.keys().pop().unwrap()
}

both_databases! {
    async fn the_preferred_account_comes_first_and_changes_hold_at_once(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let second = relayed.second(json!({ "priority": -1 })).await;
        relayed.send().await;
        update(&relayed, &second["id"], json!({ "priority": 7 })).await;
        relayed.send().await;
        update(&relayed, &relayed.account["id"], json!({ "status": "SUSPENDED" })).await;
        relayed.send().await;
        update(&relayed, &second["id"], json!({ "status": "EXPIRED" })).await;
        assert_eq!(error(relayed.send().await).await.0, 503);
        assert_eq!(relayed.claude.keys(), [SECOND, FIRST, SECOND]);
    }

    async fn equals_share_the_load(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({})).await;
        // The one that has a request under way is passed over, and the others take turns.
        relayed.claude.will(FIRST, [Reply::Held]);
        relayed.claude.will(SECOND, [Reply::Held]);
        let (.., keys) = tokio::join!(relayed.send(), relayed.send(), async {
            while relayed.claude.keys().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut keys = relayed.claude.keys();
            relayed.claude.release(2);
            keys.sort();
            keys
        });
        assert_eq!(keys, [FIRST, SECOND]);
        for _ in 0..4 {
            relayed.send().await;
        }
        let keys = relayed.claude.keys().split_off(2);
        assert_ne!(keys[0], keys[1]);
        assert_eq!(keys[..2], keys[2..]);
    }

    async fn an_agent_of_a_session_stays_where_it_is_well(app: TestApp) {
        let app = app.relaying(limits()).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({})).await;
        let home = send_as(&relayed, "s1", Some("a")).await;
        for _ in 0..4 {
            assert_eq!(send_as(&relayed, "s1", Some("a")).await, home);
        }
        // Its other agents are elsewhere, by turns.
        let mut others = Vec::new();
        for agent in ["b", "c", "d"] {
            others.push(send_as(&relayed, "s1", Some(agent)).await);
        }
        assert!(others.iter().any(|key| *key != home) && others.contains(&home), "{others:?}");
        // Where the account rests, the session goes on elsewhere, and stays there.
        relayed.claude.will(&home, [Reply::rate_limited(60)]);
        let away = send_as(&relayed, "s1", Some("a")).await;
        assert_ne!(away, home);
        app.advance(61);
        assert_eq!(send_as(&relayed, "s1", Some("a")).await, away);
    }

    async fn a_conversation_is_known_by_its_user_too(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({})).await;
        let mut body = asking(false);
        body["metadata"] = json!({ "user_id": "user_1_session_2" });
        for _ in 0..4 {
            relayed.request("/v1/messages", &body).send().await.unwrap();
        }
        let keys = relayed.claude.keys();
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }

    async fn callers_do_not_rush_to_an_account_that_comes_back(app: TestApp) {
        let app = app.relaying(limits()).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::rate_limited(60)]);
        assert_eq!(relayed.send().await.status(), 429);
        app.advance(61);
        relayed.claude.will(FIRST, [Reply::Held]);
        let sending = futures_util::future::join_all((0..12).map(|_| relayed.send()));
        let (answers, ()) = tokio::join!(sending, async {
            while relayed.claude.seen().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // The others would have been here by now, did they not wait for the first.
            assert_eq!((relayed.claude.seen().len(), relayed.claude.most_at_once()), (2, 1));
            relayed.claude.release(1);
        });
        assert!(answers.iter().all(|answer| answer.status() == 200));
        assert_eq!(records(&app, OUTCOME, 13).await.len(), 13);
    }

    async fn an_account_at_its_monthly_limit_is_not_used(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        update(&relayed, &relayed.account["id"], json!({ "usageLimit": 150 })).await;
        // A usual answer has 167 tokens.
        assert_eq!(relayed.send().await.status(), 200);
        let response = relayed.send().await;
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        relayed.until_health("EXHAUSTED").await;
        relayed.second(json!({ "priority": 9 })).await;
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND]);
        // The next month it is used again.
        app.advance(32 * 24 * 3600);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys().pop().unwrap(), FIRST);
    }

    async fn another_organizations_accounts_do_not_exist(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let other = app.other_organization().await;
        let key = crate::api_key::create(&other, json!({ "name": "Program", "scopes": ["RELAY"] })).await.1;
        let request = reqwest::Client::builder().no_proxy().build().unwrap().post(format!("{}/v1/messages", app.url));
        let response = request.header("x-api-key", key).body(asking(false).to_string()).send().await.unwrap();
        assert_eq!(error(response).await.0, 503);
        assert_eq!(relayed.claude.seen().len(), 0);
    }
}
