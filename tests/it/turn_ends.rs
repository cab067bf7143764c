//! How turns of conversations end before they are over, and what is left of them and of what was said.

use claviger::workers::Context;
use serde_json::json;

use crate::audit::entries;
use crate::conversation::create;
use crate::invitation::join;
use crate::support::{PASSWORD, Socket, TestApp, TestDatabase, both_databases};
use crate::turn::{app_with, said, send, settled, streaming, try_send, until, walkdir, workers};

both_databases! {
    async fn what_a_removed_user_has_said_goes_and_nothing_of_it_comes_after(app: TestApp) {
        let admin = app.admin().await;
        let kept = create(&admin, json!({})).await["id"].clone();
        send(&admin, &kept, "Hello").await;
        let left = "SELECT CAST((SELECT count(*) FROM conversations) AS TEXT) || ' ' || CAST((SELECT count(*) FROM messages) AS TEXT) AS text";
        let mut by = Vec::new();
        for email in ["removed@example.com", "leaving@example.com"] {
            let (id, user) = join(&app, &admin, email, "MEMBER").await;
            let conversation = create(&user, json!({ "systemPrompt": "Be brief." })).await["id"].clone();
            send(&user, &conversation, "Hello").await;
            create(&user, json!({})).await;
            by.push((id, user));
        }
        assert_eq!(app.database.texts(left).await, ["5 6"]);
        // One is in the middle of an answer, in a conversation that is made with it.
        let mut socket = Socket::connected(&app, &by[0].1).await;
        socket.subscribe("a", "subscription { messageStream(input: { text: \"!slow\" }) { ... on MessageDelta { text } } }").await;
        assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
        let delete = "mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }";
        admin.with(delete, json!({ "id": by[0].0 })).await.data();
        let leave = "mutation($p: String!) { deleteMyAccount(input: { password: { plain: $p } }) { deletedId } }";
        by[1].1.with(leave, json!({ "p": PASSWORD })).await.data();
        app.services().turns.close();
        app.services().turns.wait().await;
        assert_eq!(app.database.texts(left).await, ["1 2"]);
        assert_eq!(said(&admin, &kept).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_longer_than_its_request_is_kept_as_far_as_it_came() {
    let app = app_with(TestDatabase::sqlite(), &[("REQUEST_TIMEOUT", "6"), ("MAX_WORKERS", "1")]).await;
    let admin = app.admin().await;
    let (conversation, other) =
        (create(&admin, json!({})).await["id"].clone(), create(&admin, json!({})).await["id"].clone());
    send(&admin, &conversation, "Hello").await;
    let message = try_send(&admin, &conversation, "!slow").await.data()["sendMessage"]["message"].clone();
    assert_eq!((&message["text"], &message["usage"]["interrupted"]), (&json!("Slow"), &json!(true)));
    // The process is as good as before.
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 3");
    // Nothing has come.
    assert_eq!(try_send(&admin, &conversation, "!hang").await.code(), "TIMEOUT");
    assert_eq!(said(&admin, &conversation).await.len(), 6);
    // Nobody was asked.
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("slow", &streaming(&conversation, "!slow")).await;
    assert_eq!(socket.event("slow").await["messageStream"]["text"], "Slow");
    assert_eq!(try_send(&admin, &other, "Hello").await.code(), "TIMEOUT");
    assert!(said(&admin, &other).await.is_empty());
}

/// Who waits for the whole answer, and goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_waits_for_any_more_is_kept_as_far_as_it_came() {
    let app = app_with(TestDatabase::sqlite(), &[("REQUEST_TIMEOUT", "300")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    send(&admin, &conversation, "Hello").await;
    let waiting = tokio::spawn({
        let (admin, conversation) = (admin.clone(), conversation.clone());
        async move { try_send(&admin, &conversation, "!slow").await }
    });
    until(&admin, &conversation, "BUSY").await;
    waiting.abort();
    // It would be interrupted by the end of its time otherwise, which is far off.
    settled("the end", async || said(&admin, &conversation).await.len() == 4).await;
    assert_eq!(said(&admin, &conversation).await[3].1, "Slow");
    let entry = &entries(&admin).await[0];
    assert_eq!((&entry["operation"], &entry["outcome"]), (&json!("sendMessage"), &json!("SUCCESS")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_too_long_is_not_kept() {
    let app = app_with(TestDatabase::sqlite(), &[("REQUEST_TIMEOUT", "300")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    let refused = try_send(&admin, &conversation, "!huge").await;
    assert_eq!(refused.code(), "BAD_USER_INPUT");
    assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains("4 MiB"), "{}", refused.body);
    // Another process, which knows nothing of it.
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 1");
}

both_databases! {
    async fn an_answer_that_ends_before_it_has_begun_keeps_nothing(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        send(&admin, &conversation, "Hello").await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("a", &streaming(&conversation, "!silent")).await;
        until(&admin, &conversation, "BUSY").await;
        socket.send(json!({ "id": "a", "type": "complete" })).await;
        settled("the end", async || entries(&admin).await[0]["operation"] == "messageStream").await;
        let entry = &entries(&admin).await[0];
        assert_eq!((&entry["outcome"], &entry["errorCode"]), (&json!("FAILED"), &json!("CONFLICT")));
        assert_eq!(said(&admin, &conversation).await.len(), 2);
        // No process has failed.
        assert!(workers(&admin).await.iter().all(|one| one["state"] != "FAILED"));
        assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_longer_than_any_may_is_kept_as_far_as_it_came() {
    let app = app_with(TestDatabase::sqlite(), &[("WORKER_TIMEOUT", "1")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("a", &streaming(&conversation, "!slow")).await;
    assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
    let kept = socket.event("a").await["messageStream"]["message"].clone();
    assert_eq!((&kept["text"], &kept["usage"]["interrupted"]), (&json!("Slow"), &json!(true)));
    // The process is as good as before.
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_upstream_has_begun_to_answer_is_not_asked_again() {
    let app = TestApp::sqlite().await;
    let admin = app.admin().await;
    // A process that dies without a word may have died before; another is asked, and dies of the same.
    for (text, asked) in [("!vanish", 2), ("!faint", 1)] {
        let conversation = create(&admin, json!({})).await["id"].clone();
        send(&admin, &conversation, "Hello").await;
        assert_eq!(try_send(&admin, &conversation, text).await.code(), "SERVICE_UNAVAILABLE");
        let failed = workers(&admin).await;
        let failed =
            failed.iter().filter(|one| one["currentConversationId"] == conversation && one["state"] == "FAILED");
        assert_eq!(failed.count(), asked, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_refuses_first_who_waits_for_a_process() {
    let mut app = app_with(TestDatabase::sqlite(), &[("MAX_WORKERS", "1")]).await;
    let admin = app.admin().await;
    let (conversation, other) =
        (create(&admin, json!({})).await["id"].clone(), create(&admin, json!({})).await["id"].clone());
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("a", &streaming(&conversation, "!slow")).await;
    assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
    let [one, another] = [(); 2].map(|()| {
        let (admin, other) = (admin.clone(), other.clone());
        Box::pin(async move { try_send(&admin, &other, "Hello").await })
    });
    // One is refused since the other waits.
    let (refused, waiting) =
        futures_util::future::select(tokio::spawn(one), tokio::spawn(another)).await.factor_first();
    assert_eq!(refused.unwrap().code(), "CONFLICT");
    app.restart().await;
    let refused = waiting.await.unwrap();
    assert_eq!(
        (refused.code(), refused.body["errors"][0]["message"].as_str()),
        ("SERVICE_UNAVAILABLE", Some("The server is stopping."))
    );
    let admin = app.admin().await;
    assert!(said(&admin, &other).await.is_empty());
    assert_eq!(said(&admin, &conversation).await.pop(), Some(("ASSISTANT".to_owned(), "Slow".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_left_unused_is_told_of() {
    let app = TestApp::sqlite().await;
    let services = app.services();
    let (conversation, user) = (services.new_id(), services.new_id());
    let context = Context { conversation, organization: services.home, user, messages: 0, profile: 0 };
    let place = services.workers.place(context).await.unwrap();
    let changes = services.workers.changes();
    // A server that stops waits for it.
    drop(place);
    assert!(changes.has_changed().unwrap());
}

both_databases! {
    async fn what_was_said_before_stands_on_no_disk_while_a_process_starts(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({ "systemPrompt": "whispered prompt" })).await["id"].clone();
        send(&admin, &conversation, "whispered words").await;
        // Another process, which never gets ready.
        let mut socket = Socket::connected(&app, &admin).await;
        let asleep = streaming(&conversation, "Hello").replace("text: \"Hello\"", "text: \"Hello\", model: \"asleep\"");
        socket.subscribe("a", &asleep).await;
        let files = || walkdir(app.data_dir()).into_iter().partition::<Vec<_>, _>(|path| path.is_symlink());
        settled("what it reads", async || files().0.len() == 2).await;
        for file in files().1 {
            let text = std::fs::read(&file).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains("whispered"), "{}", file.display());
        }
    }
}
