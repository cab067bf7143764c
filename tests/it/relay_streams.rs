//! Streams whose upstream or whose caller behaves in no way that was foreseen, and what is recorded of usage that cannot be read.

use std::time::Duration;

use claviger::relay::RelayLimits;
use serde_json::{Value, json};

use crate::relay::{FIRST, MODEL, OUTCOME, Relayed, SECOND, TOKENS, USUAL, asking, error, records, until_let_in};
use crate::relay_failures::QUICK;
use crate::support::{Reply, Step, both_databases, delta, event, events};

const PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// The first event is waited for however long it takes.
const PATIENT: RelayLimits = RelayLimits { ping: Duration::from_secs(30), ..QUICK };

fn say(events: &[String]) -> Step {
    Step::Say(events.concat())
}

/// The event that says what went wrong.
pub(crate) fn failing(kind: &str, message: &str) -> String {
    event("error", &json!({ "type": "error", "error": { "type": kind, "message": message } }).to_string())
}

both_databases! {
    async fn an_error_in_a_stream_is_told_and_kept_without_the_key(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let message = format!("Overloaded {FIRST} \u{0}{}", "x".repeat(5_000));
        let said = [events(MODEL)[..4].concat(), failing("overloaded_error", &message)];
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&said)])]);
        let text = relayed.stream().await.text().await.unwrap();
        assert!(text.contains("Overloaded [redacted]") && !text.contains(FIRST), "{text}");
        let health = relayed.until_health("OVERLOADED").await;
        let kept = health["lastError"].as_str().unwrap();
        assert!(kept.starts_with("Overloaded [redacted]  xxx") && kept.len() <= 200, "{kept}");
        // Nor is its type more than a short line.
        app.advance(60);
        let said = [events(MODEL)[..4].concat(), failing(&format!("{FIRST}\u{0}"), "")];
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&said)])]);
        assert!(!relayed.stream().await.text().await.unwrap().contains(FIRST));
        assert_eq!(records(&app, "coalesce(error_type, '-')", 2).await[1], "[redacted] ");
    }

    async fn a_stream_that_begins_with_an_error_is_tried_elsewhere_and_costs_nothing(app: TestApp) {
        let app = app.relaying(PATIENT).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let overloaded = failing("overloaded_error", "Overloaded");
        let (head, rest) = overloaded.split_at(20);
        let replies = [
            vec![Step::Say(failing("api_error", "Broken")), Step::Cut],
            vec![Step::Say(overloaded.clone())],
            // However it is cut, and whatever sign of life comes before.
            vec![Step::Say(PING.to_owned()), Step::Say(head.to_owned()), Step::Say(rest.to_owned()), Step::Hold],
        ];
        relayed.claude.will(FIRST, replies.map(Reply::Stream));
        let response = relayed.stream().await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), events(MODEL).concat());
        assert_eq!(relayed.claude.keys(), [FIRST, FIRST, FIRST, SECOND]);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 4 streamed"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
        relayed.until_health("OVERLOADED").await;
    }

    async fn where_nobody_does_better_the_first_event_is_an_answer_of_its_own(app: TestApp) {
        let app = app.relaying(PATIENT).await;
        let relayed = Relayed::new(&app).await;
        let begins_with = |kind: &str| Reply::Stream(vec![Step::Say(failing(kind, &format!("No, {FIRST}.")))]);
        let mut count = 0;
        for (kind, status, tries) in [("invalid_request_error", 400, 1), ("overloaded_error", 529, 3)] {
            for path in ["/v1/messages", "/v1/chat/completions"] {
                relayed.claude.will(FIRST, vec![begins_with(kind); tries]);
                let response = relayed.request(path, &asking(true)).send().await.unwrap();
                assert_eq!(response.status().as_u16(), status);
                assert_eq!(response.headers()["content-type"], "application/json");
                assert_eq!(response.json::<Value>().await.unwrap()["error"]["message"], "No, [redacted].");
                count += 1;
                let outcome = records(&app, OUTCOME, count).await.pop().unwrap();
                assert_eq!(outcome, format!("{path} {status} {kind} {tries} streamed"));
            }
        }
        assert_eq!(records(&app, TOKENS, 4).await, ["0 0 0 0 0 0"; 4]);
    }

    async fn who_took_too_long_by_the_first_event_may_have_done_it(app: TestApp) {
        let soon = Duration::from_secs(1);
        let app = app.relaying(RelayLimits { soon, ..PATIENT }).await;
        let relayed = Relayed::new(&app).await;
        let late = |kind| Reply::Stream(vec![Step::Pause(soon), Step::Say(failing(kind, "Too long."))]);
        relayed.claude.will(FIRST, [late("timeout_error")]);
        assert_eq!(relayed.stream().await.status(), 504);
        assert_eq!(relayed.claude.keys(), [FIRST]);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 504 timeout_error 1 streamed estimated"]);
        // That it could not is another thing, however late that is said.
        relayed.claude.will(FIRST, [late("overloaded_error")]);
        assert_eq!(relayed.stream().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST; 3]);
    }

    async fn an_error_after_a_mere_sign_of_life_costs_nothing_either(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let error = failing("overloaded_error", "Overloaded");
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(PING.to_owned()), Step::Hold, Step::Say(error.clone())])]);
        // The caller is not kept waiting for more than its ping.
        let response = relayed.stream().await;
        relayed.claude.release(1);
        assert_eq!(response.text().await.unwrap().replace(PING, ""), error);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 overloaded_error 1 streamed"]);
        assert_eq!(records(&app, TOKENS, 1).await, ["0 0 0 0 0 0"]);
        relayed.until_health("OVERLOADED").await;
    }

    async fn the_upstreams_last_word_is_the_last(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let error = failing("overloaded_error", "Overloaded");
        let beginning = say(&events(MODEL)[..4]);
        for (n, after) in [Step::Cut, Step::Hold, Step::Say(delta("more"))].into_iter().enumerate() {
            relayed.claude.will(FIRST, [Reply::Stream(vec![beginning.clone(), Step::Say(error.clone()), after.clone()])]);
            let text = relayed.stream().await.text().await.unwrap();
            assert!(text.replace(PING, "").ends_with(&error) && text.matches("event: error").count() == 1, "{text}");
            assert_eq!(records(&app, OUTCOME, n + 1).await[n], "/v1/messages 200 overloaded_error 1 streamed estimated");
            relayed.until_health("OVERLOADED").await;
            app.advance(60);
        }
        for (n, after) in [Step::Cut, Step::Hold].into_iter().enumerate() {
            relayed.claude.will(FIRST, [Reply::Stream(vec![say(&events(MODEL)), after])]);
            let text = relayed.stream().await.text().await.unwrap();
            assert_eq!(text.replace(PING, ""), events(MODEL).concat().replace(PING, ""));
            assert_eq!(records(&app, OUTCOME, n + 4).await[n + 3], "/v1/messages 200 - 1 streamed");
        }
    }

    async fn no_sign_of_life_falls_into_an_event_however_large(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let huge = delta(&"x".repeat(3 * 1024 * 1024));
        let (half, rest) = huge.split_at(2 * 1024 * 1024);
        let steps = |last: &[Step]| {
            let begun = [say(&events(MODEL)[..3]), Step::Say(half.to_owned()), Step::Pause(Duration::from_millis(300))];
            vec![Reply::Stream([&begun[..], last].concat())]
        };
        let goes_on = [Step::Say(rest.to_owned()), say(&events(MODEL)[6..])];
        relayed.claude.will(FIRST, steps(&goes_on));
        let text = relayed.stream().await.text().await.unwrap();
        assert!(text.contains(&huge) && text.ends_with(&events(MODEL)[8]));
        // What is cut off within it is no part of the error that says so.
        relayed.claude.will(FIRST, steps(&[Step::Cut]));
        let text = relayed.stream().await.text().await.unwrap();
        assert!(text.contains("\n\nevent: error"), "{}", &text[text.len() - 300..]);
        // Where it cannot be translated, it is not left out in silence.
        app.advance(60);
        relayed.claude.will(FIRST, steps(&goes_on));
        let response = relayed.request("/v1/chat/completions", &asking(true)).send().await.unwrap();
        let text = response.text().await.unwrap();
        assert!(text.contains("too large") && !text.contains("[DONE]"), "{text}");
    }

    async fn who_does_not_read_is_left(app: TestApp) {
        let app = app.relaying(RelayLimits { unread: Duration::from_millis(200), ..QUICK }).await;
        let relayed = Relayed::with(&app, json!({ "concurrencyLimit": 1 })).await;
        let flood = Step::Flood(delta(&"word ".repeat(4_000)));
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&events(MODEL)[..3]), flood])]);
        let mut response = relayed.stream().await;
        response.chunk().await.unwrap().unwrap();
        relayed.claude.left().await;
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 1 streamed interrupted estimated"]);
        // Its place is free again, though it still holds its connection.
        until_let_in(async || relayed.send().await).await;
        let ended = loop {
            match response.chunk().await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert!(ended.is_err());
    }

    async fn no_stream_goes_on_for_ever(app: TestApp) {
        let app = app.relaying(RelayLimits { longest: Duration::ZERO, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Flood(PING.to_owned())])]);
        let text = relayed.stream().await.text().await.unwrap();
        assert!(text.contains("timeout_error"), "{text}");
        relayed.claude.left().await;
    }

    async fn a_stream_that_does_not_begin_ends_before_its_caller_gives_up(app: TestApp) {
        let app = app.relaying(RelayLimits { beginning: Duration::from_millis(200), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Held]);
        assert_eq!(error(relayed.stream().await).await, (504, "timeout_error".to_owned()));
        relayed.claude.left().await;
        relayed.until_health("FAILING").await;
    }

    async fn usage_that_cannot_be_read_is_guessed_and_says_so(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let text = "word ".repeat(80);
        let whole = json!({ "model": MODEL, "content": [{ "type": "text", "text": text }] }).to_string();
        relayed.claude.will(FIRST, [Reply::Body(200, "application/json", whole)]);
        relayed.send().await;
        let mut odd = events(MODEL);
        odd[7] = odd[7].replace("12", "\"many\"");
        odd.insert(3, delta(&text));
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&odd)])]);
        relayed.stream().await.text().await.unwrap();
        // A number is one however it is written.
        let whole = crate::support::message(MODEL).replace(":12", ":12.0");
        relayed.claude.will(FIRST, [Reply::Body(200, "application/json", whole)]);
        relayed.send().await;
        let outcomes = records(&app, OUTCOME, 3).await;
        assert_eq!(outcomes, [
            "/v1/messages 200 - 1 estimated", "/v1/messages 200 - 1 streamed estimated", "/v1/messages 200 - 1",
        ]);
        for column in ["input_tokens", "output_tokens"] {
            let counts = records(&app, &format!("CAST({column} AS TEXT)"), 3).await;
            let counts: Vec<i64> = counts.iter().map(|count| count.parse().unwrap()).collect();
            assert!(counts[0] > 20 && counts[1] > 20 && counts[2] < 30, "{column}: {counts:?}");
        }
        assert_eq!(records(&app, TOKENS, 3).await[2], USUAL);
    }

    async fn a_translated_answer_is_not_said_to_be_packed(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Error(400, "invalid_request_error", vec![("content-encoding", "identity".to_owned())])]);
        let response = relayed.request("/v1/chat/completions", &asking(false)).send().await.unwrap();
        assert!(!response.headers().contains_key("content-encoding"));
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["message"], "A invalid_request_error.");
    }
}
