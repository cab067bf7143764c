//! Answers as they come: who reads them, and who may.

use std::time::Duration;

use claviger::http::LiveLimits;
use serde_json::json;

use crate::conversation::create;
use crate::support::{Client, EventStream, PASSWORD, Socket, TestApp, TestDatabase, both_databases};
use crate::turn::{app_with, posted, said, send, settled, streaming};

both_databases! {
    async fn nobody_is_answered_in_a_conversation_of_another(app: TestApp) {
        let (admin, member, stranger) = (app.admin().await, app.user("MEMBER").await, app.other_organization().await);
        let conversation = create(&member, json!({})).await["id"].clone();
        for other in [&admin, &stranger] {
            assert_eq!(posted(&app, other, &conversation, "Hello").await.status(), 404);
            let mut socket = Socket::connected(&app, other).await;
            socket.subscribe("a", &streaming(&conversation, "Hello")).await;
            assert_eq!(socket.error("a").await, "NOT_FOUND");
        }
        assert!(said(&member, &conversation).await.is_empty());
        assert_eq!(app.services().workers.load(), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_keeps_no_process_from_others() {
    let app = app_with(TestDatabase::sqlite(), &[("MAX_WORKERS", "1")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    // More than the connection holds.
    let unread = posted(&app, &admin, &conversation, "!much").await;
    settled("the end", async || said(&admin, &conversation).await.len() == 2).await;
    assert_eq!(said(&admin, &conversation).await[1].1, "Much");
    let other = create(&admin, json!({})).await["id"].clone();
    assert_eq!(send(&admin, &other, "Hello").await, "Answer 1");
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 2");
    // What was not told is in what is kept, and that is told.
    let mut stream = EventStream::of(unread);
    let mut names = Vec::new();
    while let Some((name, _)) = stream.event().await {
        names.push(name);
    }
    assert_eq!(names.pop().unwrap(), "message_completed");
    assert!(!names.is_empty() && names.iter().all(|name| name == "message_delta"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_end_with_what_they_were_asked_for_by_and_count_as_streams() {
    let app = TestApp::sqlite().await.limited(LiveLimits { per_holder: 1, ..LiveLimits::default() }).await;
    let (admin, member) = (app.admin().await, app.user("MEMBER").await);
    let conversation = create(&member, json!({})).await["id"].clone();
    let other = create(&member, json!({})).await["id"].clone();
    let mut stream = EventStream::of(posted(&app, &member, &conversation, "!slow").await);
    assert_eq!(stream.event().await, Some(("message_delta".to_owned(), json!({ "text": "Slow" }))));
    assert_eq!(posted(&app, &member, &other, "Hello").await.status(), 429);
    let id = member.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
    let suspend = "mutation($id: ID!) { updateUser(input: { id: $id, status: SUSPENDED }) { user { id } } }";
    admin.with(suspend, json!({ "id": id })).await.data();
    let (name, told) = stream.event().await.unwrap();
    assert_eq!((name.as_str(), &told["error"]["code"]), ("error", &json!("UNAUTHENTICATED")));
    assert_eq!(stream.event().await, None);
    // Who may read only is told nothing more either.
    admin
        .with(
            "mutation($id: ID!) { updateUser(input: { id: $id, status: ACTIVE }) { user { id } } }",
            json!({ "id": id }),
        )
        .await
        .data();
    let member = Client::new(&app.url).signed_in("member@example.com", PASSWORD).await;
    let mut stream = EventStream::of(posted(&app, &member, &other, "!slow").await);
    assert_eq!(stream.event().await, Some(("message_delta".to_owned(), json!({ "text": "Slow" }))));
    let demote = "mutation($id: ID!) { updateUser(input: { id: $id, role: READ_ONLY }) { user { id } } }";
    admin.with(demote, json!({ "id": id })).await.data();
    assert_eq!(stream.event().await.unwrap().1["error"]["code"], "UNAUTHENTICATED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_with_what_is_left_of_the_limits() {
    let app = app_with(TestDatabase::sqlite(), &[("RATE_LIMIT_USER_PER_MINUTE", "4")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    let named = |answer: &reqwest::Response, name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let answered = posted(&app, &admin, &conversation, "Hello").await;
    assert_eq!((answered.status().as_u16(), named(&answered, "cache-control")), (200, "no-store".to_owned()));
    let policy = named(&answered, "ratelimit-policy");
    assert_eq!(policy, "\"user\";q=4;w=60");
    let refused = loop {
        let answer = posted(&app, &admin, &conversation, "").await;
        assert_eq!(named(&answer, "ratelimit-policy"), policy);
        if answer.status() != 400 {
            break answer;
        }
    };
    assert_eq!(refused.status(), 429);
    assert!(named(&refused, "ratelimit").starts_with("\"user\";r=0;t="));
    assert!(named(&refused, "retry-after").parse::<u64>().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_an_answer_is_told_that_somebody_is_there() {
    let limits = LiveLimits { keep_alive: Duration::from_millis(50), ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({ "model": "asleep" })).await["id"].clone();
    let mut stream = EventStream::of(posted(&app, &admin, &conversation, "Hello").await);
    assert_eq!(stream.response.status(), 200);
    for _ in 0..3 {
        assert_eq!(stream.block().await.unwrap(), ":");
    }
}
