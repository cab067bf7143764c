//! What turns may use, and who of several servers answers.

use serde_json::{Value, json};

use crate::conversation::create;
use crate::relay::{MODEL, Relayed, records};
use crate::support::{Client, TestDatabase, both_databases};
use crate::turn::{app_with, send};

/// The text of the answer, and what it has used.
async fn answered(client: &Client, conversation: &Value, text: &str) -> (String, Value) {
    let query = "mutation($input: SendMessageInput!) { sendMessage(input: $input) { message { text usage } } }";
    let input = json!({ "conversationId": conversation, "text": text });
    let message = client.with(query, json!({ "input": input })).await.data()["sendMessage"]["message"].clone();
    (message["text"].as_str().unwrap().to_owned(), message["usage"].clone())
}

/// The key that the process of a conversation was lent.
async fn lent(client: &Client, conversation: &Value) -> String {
    send(client, conversation, "!key").await.split_once(' ').unwrap().1.to_owned()
}

both_databases! {
    async fn what_a_turn_uses_is_what_the_relay_has_counted(app: TestApp) {
        let mut app = app;
        app.set("TURN_TOKEN_BUDGET", "1000");
        app.set("WORKER_TIMEOUT", "30");
        app.restart().await;
        let relayed = Relayed::new(&app).await;
        let admin = &relayed.admin;
        let conversation = create(admin, json!({ "model": MODEL })).await["id"].clone();
        let of_two = json!({
            "inputTokens": 50, "outputTokens": 24, "cacheCreationTokens": 60, "cacheReadTokens": 200, "model": MODEL, "interrupted": false,
        });
        // One that is streamed and one that is not; of each turn its own.
        for _ in 0..2 {
            assert_eq!(answered(admin, &conversation, "!ask").await, ("200 200".to_owned(), of_two.clone()));
        }
        // Each takes 167.
        let of_six = json!({
            "inputTokens": 150, "outputTokens": 72, "cacheCreationTokens": 180, "cacheReadTokens": 600, "model": MODEL, "interrupted": true,
        });
        assert_eq!(answered(admin, &conversation, "!spend").await, ("400 at 7".to_owned(), of_six));
        assert_eq!(answered(admin, &conversation, "!ask").await, ("200 200".to_owned(), of_two));
        assert_eq!(records(&app, "model", 12).await.len(), 12);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_of_a_user_are_limited_together_whatever_process_answers() {
    let app = app_with(TestDatabase::sqlite(), &[("DEFAULT_RATE_LIMIT_PER_HOUR", "3")]).await;
    let (admin, member) = (app.admin().await, app.user("MEMBER").await);
    let (a, b) = (create(&admin, json!({})).await["id"].clone(), create(&admin, json!({})).await["id"].clone());
    let theirs = create(&member, json!({})).await["id"].clone();
    let (a, b, theirs) = (lent(&admin, &a).await, lent(&admin, &b).await, lent(&member, &theirs).await);
    assert_ne!(a, b);
    let status = async |key: &str| {
        let request = admin.http().get(format!("{}/v1/models", app.url)).header("x-api-key", key);
        request.send().await.unwrap().status().as_u16()
    };
    for (key, is_limited) in [(&a, false), (&b, false), (&a, false), (&b, true), (&a, true), (&theirs, false)] {
        assert_eq!(status(key).await == 429, is_limited);
    }
}
