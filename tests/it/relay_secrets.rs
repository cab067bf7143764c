//! What the relay lets nobody see: the key of an account no caller and no log, the key of a caller no upstream, and what was said
//! nobody but the two who talk.

use std::fmt::Write as _;

use serde_json::json;

use crate::canary::{assert_is_nowhere, kept, with_log};
use crate::logs::Captured;
use crate::relay::{FIRST, MODEL, OUTCOME, Relayed, SECOND, asking, records};
use crate::support::{Reply, Step, TestApp, TestDatabase, delta, event, events};

/// What stands in each prompt, and in each answer.
const PROMPT: &str = "canaryprompt";
const ANSWER: &str = "canaryanswer";

/// An error in which the upstream says back what it was sent.
fn echo(status: u16, kind: &str, key: &str) -> Reply {
    let message = format!("{kind} for {key}");
    let body = json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_upstream" });
    Reply::Body(status, "application/json", body.to_string())
}

fn answers() -> Vec<Reply> {
    let said = events(MODEL)[..3].concat() + &delta(ANSWER);
    let error = event("error", r#"{"type":"error","error":{"type":"api_error","message":"Broken"}}"#);
    let whole = format!(r#"{{"model":"{MODEL}","content":[{{"type":"text","text":"{ANSWER}"}}]}}"#);
    vec![
        Reply::Body(200, "application/json", whole),
        Reply::Stream(vec![Step::Say(said.clone() + &events(MODEL)[6..].concat())]),
        Reply::Stream(vec![Step::Say(said.clone() + &error)]),
        Reply::Stream(vec![Step::Say(said), Step::Cut]),
        Reply::Body(200, "application/json", format!("{{ {ANSWER} is no JSON")),
        echo(400, "invalid_request_error", FIRST),
        echo(429, "rate_limit_error", FIRST),
        echo(500, "api_error", FIRST),
        echo(529, "overloaded_error", FIRST),
        echo(401, "authentication_error", FIRST),
    ]
}

/// Asks in every way, and returns all that callers got.
async fn talk(app: &TestApp, relayed: &Relayed) -> String {
    let mut got = String::new();
    let count = answers().len();
    for path in ["/v1/messages", "/v1/chat/completions"] {
        for reply in answers() {
            // Where the first account has failed, the second answers: it rests no longer than until the next request.
            app.advance(700);
            relayed.claude.will(FIRST, vec![reply; 3]);
            let mut body = asking(true);
            body["messages"][0]["content"] = json!(PROMPT);
            let request = relayed.request(&format!("{path}?key={}", relayed.key), &body).bearer_auth(&relayed.key);
            let request = request.header("x-app", &relayed.key).header("x-claude-code-session-id", &relayed.key);
            let response = request.send().await.unwrap();
            write!(got, "{:?}", response.headers()).unwrap();
            got += &response.text().await.unwrap_or_default();
            relayed.claude.will_as_usual(FIRST);
        }
    }
    // Bodies that are none.
    for body in [format!("{PROMPT} is no JSON"), format!("{{\"model\":\"{PROMPT}\\u0000\"}}")] {
        got += &relayed.raw("/v1/messages", body).send().await.unwrap().text().await.unwrap();
    }
    records(app, OUTCOME, 2 * count).await;
    got
}

async fn nobody_else_sees_it(database: TestDatabase, log: Captured) {
    let app = TestApp::start(database, []).await;
    let relayed = Relayed::new(&app).await;
    relayed.second(json!({ "priority": 5 })).await;
    let got = talk(&app, &relayed).await;
    let metrics = reqwest::get(format!("{}/metrics", app.url)).await.unwrap().text().await.unwrap();
    let (database, log) = (kept(&app).await, log.text());
    let (mut upstream, mut keys) = (String::new(), Vec::new());
    for mut seen in relayed.claude.seen() {
        keys.push(seen.key());
        seen.headers.remove("x-api-key");
        write!(upstream, "{} {:?} {}", seen.uri, seen.headers, String::from_utf8_lossy(&seen.body)).unwrap();
    }

    // Where nothing is found, it was there to be found.
    assert!(got.contains(ANSWER) && upstream.contains(PROMPT) && keys.contains(&SECOND.to_owned()));
    assert!(log.contains("TRACE") && log.contains("/v1/messages") && database.contains(MODEL));

    let ours = [("database", &*database), ("log", &*log), ("metrics", &*metrics)];
    for said in [PROMPT, ANSWER] {
        assert_is_nowhere(said, &ours);
    }
    for key in [FIRST, SECOND] {
        assert_is_nowhere(key, &ours);
        assert_is_nowhere(key, &[("answers", &*got), ("upstream", &*upstream)]);
    }
    assert_is_nowhere(&relayed.key, &ours);
    assert_is_nowhere(&relayed.key, &[("upstream", &*upstream)]);
    assert!(keys.iter().all(|key| key == FIRST || key == SECOND), "{keys:?}");
}

#[test]
fn sqlite() {
    with_log("json", async || TestDatabase::sqlite(), nobody_else_sees_it);
}

#[test]
fn postgres() {
    with_log("pretty", TestDatabase::postgres, nobody_else_sees_it);
}
