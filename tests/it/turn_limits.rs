//! What turns may use, and who of several servers answers.

use serde_json::{Value, json};

use crate::conversation::create;
use crate::relay::{MODEL, Relayed, records};
use crate::support::{Client, PASSWORD, Socket, TestDatabase, both_databases};
use crate::turn::{app_with, said, send, settled, streaming, try_send, workers};

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
    async fn another_server_answers_nothing_in_a_conversation_that_is_being_answered(app: TestApp) {
        let mut app = app;
        let elsewhere = Client::new(&app.another().await).signed_in("admin@localhost", PASSWORD).await;
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        assert_eq!(send(&elsewhere, &conversation, "Hello").await, "Answer 1");
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("a", &streaming(&conversation, "!slow")).await;
        assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
        assert_eq!(try_send(&elsewhere, &conversation, "Hello").await.code(), "CONFLICT");
        // It is renewed for as long as that takes.
        let until = async || app.database.texts("SELECT CAST(answering_until AS TEXT) AS text FROM conversations").await;
        let first = until().await;
        settled("a renewal", async || until().await != first).await;
        assert_eq!(try_send(&elsewhere, &conversation, "Hello").await.code(), "CONFLICT");
        // Nobody was asked there.
        let theirs = workers(&elsewhere).await.into_iter().map(|worker| worker["handled"].as_u64().unwrap());
        assert_eq!(theirs.sum::<u64>(), 1);
        socket.send(json!({ "id": "a", "type": "complete" })).await;
        settled("the end", async || said(&admin, &conversation).await.len() == 4).await;
        assert_eq!(send(&elsewhere, &conversation, "Hello").await, "Answer 3");
        // What fails lets go of it at once.
        assert_eq!(try_send(&admin, &conversation, "!die").await.code(), "SERVICE_UNAVAILABLE");
        assert_eq!(send(&elsewhere, &conversation, "Hello").await, "Answer 4");
    }

    async fn what_a_server_has_left_that_is_gone_runs_out(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        for (until, is_free) in [("'9999-01-01T00:00:00.000000Z'", false), ("created_at", true)] {
            let sql = format!("UPDATE conversations SET answering_by = 'gone', answering_until = {until}");
            app.database.execute(&sql).await.unwrap();
            let answer = try_send(&admin, &conversation, "Hello").await;
            assert_eq!(answer.body.get("errors").is_none(), is_free, "{}", answer.body);
            assert!(is_free || (answer.code() == "CONFLICT" && workers(&admin).await.is_empty()));
        }
        let left = app.database.texts("SELECT answering_by AS text FROM conversations WHERE answering_by IS NOT NULL").await;
        assert_eq!(left, [] as [String; 0]);
    }

    async fn a_conversation_that_is_too_long_takes_no_more(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        assert_eq!(send(&admin, &conversation, "!long answer").await.len(), 1_100_000);
        let refused = try_send(&admin, &conversation, "Hello").await;
        assert_eq!((refused.code(), refused.fields()), ("BAD_USER_INPUT", vec!["conversationId"]), "{}", refused.body);
        let other = create(&admin, json!({})).await["id"].clone();
        for (count, is_full) in [(998, false), (1_000, true)] {
            app.database.execute(&format!("UPDATE conversations SET message_count = {count} WHERE id = '{}'", other.as_str().unwrap())).await.unwrap();
            assert_eq!(try_send(&admin, &other, "Hello").await.body.get("errors").is_some(), is_full, "{count}");
        }
    }

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
        // It has used all of it before it has said anything: there is nothing to keep.
        let kept = said(admin, &conversation).await.len();
        let refused = try_send(admin, &conversation, "!costly").await;
        assert_eq!(refused.code(), "BAD_USER_INPUT");
        assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains("TURN_TOKEN_BUDGET"), "{}", refused.body);
        assert_eq!(said(admin, &conversation).await.len(), kept);
    }

    async fn what_a_program_says_with_a_key_is_for_the_client_of_the_conversation_or_else_of_the_key(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let admin = &relayed.admin;
        let of = async |name: &str| crate::client::create(admin, json!({ "name": name })).await["id"].clone();
        let (acme, other) = (of("Acme").await, of("Other").await);
        let keyed = async |scopes: &[&str]| {
            crate::api_key::create(admin, json!({ "name": "K", "scopes": scopes, "clientId": other })).await.1
        };
        let (may, may_not) = (keyed(&["ADMIN_WRITE"]).await, keyed(&["ADMIN_READ"]).await);
        let said = async |key: &str, conversation: &Value| {
            let path = format!("{}/v1/conversations/{}/messages", app.url, conversation.as_str().unwrap());
            app.anonymous().http().post(path).header("x-api-key", key).json(&json!({ "text": "!ask" })).send().await.unwrap()
        };
        let (of_acme, of_nobody) = (create(admin, json!({ "clientId": acme })).await["id"].clone(), create(admin, json!({})).await["id"].clone());
        for conversation in [&of_acme, &of_nobody] {
            let answer = said(&may, conversation).await;
            assert_eq!(answer.status(), 200);
            let text = answer.text().await.unwrap();
            assert!(text.contains("event: message_completed") && text.contains("200 200"), "{text}");
        }
        let clients = records(&app, "client_id", 4).await;
        assert_eq!(clients, [&acme, &acme, &other, &other].map(|id| id.as_str().unwrap()));
        // A key that only reads says nothing, which is on record.
        let refused = said(&may_not, &of_acme).await;
        assert_eq!(refused.status(), 403);
        // Which scope it needs is said at once.
        let refused = said(&relayed.key, &of_acme).await;
        assert_eq!(refused.status(), 403);
        let told = refused.json::<Value>().await.unwrap();
        assert_eq!(told["error"]["message"], "Your API key does not have the scope ADMIN_WRITE.");
        let entry = &crate::audit::entries(admin).await[0];
        assert_eq!((&entry["operation"], &entry["outcome"]), (&json!("messageStream"), &json!("DENIED")));
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
