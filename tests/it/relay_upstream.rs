//! What the relay makes of an upstream's answer: a redirect, a reason to stop, a limit that says when it ends; and who is not asked.

use chrono::{SecondsFormat, TimeDelta};
use claviger::model::Timestamp;
use claviger::relay::RelayLimits;
use serde_json::{Value, json};

use crate::relay::{FIRST, MODEL, Relayed, SECOND, asking, error};
use crate::relay_pool::update;
use crate::support::{Claude, Reply, Step, both_databases, events, message};

/// Why the API stops, and what OpenAI's calls that.
const REASONS: [(&str, &str); 8] = [
    ("end_turn", "stop"),
    ("stop_sequence", "stop"),
    ("pause_turn", "stop"),
    ("something_new", "stop"),
    ("max_tokens", "length"),
    ("model_context_window_exceeded", "length"),
    ("tool_use", "tool_calls"),
    ("refusal", "content_filter"),
];

/// The reason that ends a completion.
async fn finish_reason(relayed: &Relayed, stream: bool) -> Value {
    let body = json!({ "model": MODEL, "stream": stream, "messages": [{ "role": "user", "content": "Hello?" }] });
    let response = relayed.request("/v1/chat/completions", &body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let last = if stream {
        let chunks: Vec<_> = text.split("\n\n").filter_map(|block| block.strip_prefix("data: ")).collect();
        assert_eq!(chunks.last(), Some(&"[DONE]"), "{text}");
        chunks[chunks.len() - 2].to_owned()
    } else {
        text
    };
    serde_json::from_str::<Value>(&last).unwrap()["choices"][0]["finish_reason"].clone()
}

/// That an upstream has so many requests a minute, of which none is left until then, and says nothing else.
fn used_up_until(at: Timestamp) -> Reply {
    let at = at.to_utc().to_rfc3339_opts(SecondsFormat::Secs, true);
    let headers = vec![
        ("anthropic-ratelimit-requests-limit", "50".to_owned()),
        ("anthropic-ratelimit-requests-remaining", "0".to_owned()),
        ("anthropic-ratelimit-requests-reset", at),
    ];
    Reply::Error(429, "rate_limit_error", headers)
}

both_databases! {
    async fn a_redirect_is_not_followed_and_takes_no_key_along(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let elsewhere = Claude::start().await;
        let mut asked = Vec::new();
        for status in [301, 302, 303, 307, 308] {
            for to in [format!("{}/v1/messages", elsewhere.url()), "/v1/elsewhere".to_owned()] {
                for (path, body) in [
                    ("/v1/messages", asking(false)),
                    ("/v1/messages", asking(true)),
                    ("/v1/messages/count_tokens", asking(false)),
                    ("/v1/chat/completions", asking(true)),
                ] {
                    let case = format!("{status} to {to} for {path}");
                    relayed.claude.will(FIRST, [Reply::Error(status, "redirect", vec![("location", to.clone())])]);
                    let response = relayed.request(path, &body).send().await.unwrap();
                    assert_eq!((response.status().as_u16(), response.headers().get("location")), (502, None), "{case}");
                    assert!(!response.text().await.unwrap().contains(&to), "{case}");
                    asked.push(if path == "/v1/chat/completions" { "/v1/messages" } else { path });
                    // The account is left alone after that, for ten seconds at most.
                    app.advance(11);
                }
            }
        }
        let seen: Vec<_> = relayed.claude.seen().iter().map(|seen| seen.uri.path().to_owned()).collect();
        assert_eq!(seen, asked);
        assert!(elsewhere.seen().is_empty());
    }

    async fn no_answer_is_asked_for_packed(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let packed = relayed.request("/v1/messages", &asking(true)).header("accept-encoding", "gzip, br");
        assert_eq!(packed.send().await.unwrap().status(), 200);
        assert_eq!(relayed.send().await.status(), 200);
        for seen in relayed.claude.seen() {
            let asked: Vec<_> = seen.headers.get_all("accept-encoding").iter().collect();
            assert_eq!(asked, ["identity"]);
        }
    }

    async fn the_reason_to_stop_is_told_in_openais_words(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        for (reason, expected) in REASONS {
            let whole = message(MODEL).replace("end_turn", reason);
            relayed.claude.will(FIRST, [Reply::Body(200, "application/json", whole)]);
            assert_eq!(finish_reason(&relayed, false).await, expected, "{reason}");
            let said = events(MODEL).concat().replace("end_turn", reason);
            relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(said)])]);
            assert_eq!(finish_reason(&relayed, true).await, expected, "{reason} of a stream");
        }
    }

    async fn an_account_rests_until_its_limit_begins_anew(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 9 })).await;
        let resets_at = app.services().clock.now() + TimeDelta::seconds(300);
        relayed.claude.will(FIRST, [used_up_until(resets_at)]);
        for _ in 0..2 {
            assert_eq!(relayed.send().await.status(), 200);
        }
        // To the second.
        let until = relayed.until_health("RATE_LIMITED").await["until"].as_str().unwrap().to_owned();
        assert_eq!(until, resets_at.to_utc().format("%Y-%m-%dT%H:%M:%S.000Z").to_string());
        app.advance(200);
        assert_eq!(relayed.send().await.status(), 200);
        app.advance(101);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND, SECOND, SECOND, FIRST]);
    }

    async fn an_account_that_is_not_yet_meant_to_be_used_is_not(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let second = relayed.second(json!({ "priority": -5, "status": "PENDING" })).await;
        assert_eq!(relayed.send().await.status(), 200);
        update(&relayed, &relayed.account["id"], json!({ "status": "PENDING" })).await;
        assert_eq!(error(relayed.send().await).await, (503, "api_error".to_owned()));
        assert_eq!(relayed.claude.keys(), [FIRST]);
        update(&relayed, &second["id"], json!({ "status": "ACTIVE" })).await;
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND]);
    }
}

/// As docs/relay.md and docs/operations.md have them, by which operators set the time limits of proxies.
#[test]
fn the_limits_are_those_that_are_documented() {
    insta::assert_debug_snapshot!(RelayLimits::default(), @r"
    RelayLimits {
        silence: 600s,
        connecting: 10s,
        ping: 15s,
        patience: 10s,
        retry: 250ms,
        soon: 5s,
        upload: 60s,
        body: 33554432,
        bodies: 536870912,
        beginning: 240s,
        longest: 3600s,
        unread: 120s,
    }
    ");
}
