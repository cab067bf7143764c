//! What the relay does where something goes wrong: each row of the table of what peers of it have got wrong.

use std::time::Duration;

use claviger::relay::RelayLimits;
use serde_json::{Value, json};

use crate::relay::{FIRST, MODEL, OUTCOME, Relayed, SECOND, TOKENS, USUAL, asking, error, records, until_let_in};
use crate::relay_streams::failing;
use crate::support::{Reply, Socket, Step, both_databases, delta, event, events};

/// No test waits for the relay's own pauses.
pub(crate) const QUICK: RelayLimits = RelayLimits {
    silence: Duration::from_secs(30),
    connecting: Duration::from_secs(30),
    ping: Duration::from_millis(50),
    patience: Duration::from_secs(20),
    retry: Duration::from_millis(5),
    soon: Duration::from_secs(20),
    upload: Duration::from_secs(30),
    body: 32 * 1024 * 1024,
    bodies: 512 * 1024 * 1024,
    beginning: Duration::from_secs(30),
    longest: Duration::from_secs(600),
    unread: Duration::from_secs(60),
};

fn say(events: &[String]) -> Step {
    Step::Say(events.concat())
}

/// Of a stream the first events: up to its first words.
pub(crate) fn beginning() -> Step {
    say(&events(MODEL)[..4])
}

both_databases! {
    async fn what_was_used_is_recorded_though_the_caller_leaves(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        // 400 characters that came by are guessed as 100 tokens, about.
        let text = "word ".repeat(80);
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&events(MODEL)[..3]), Step::Say(delta(&text)), Step::Hold])]);
        let mut response = relayed.stream().await;
        let mut received = String::new();
        while !received.contains(text.trim()) {
            received += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
        drop(response);
        // The upstream need not finish for nobody.
        relayed.claude.left().await;
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 1 streamed interrupted estimated"]);
        let tokens = records(&app, TOKENS, 1).await;
        let numbers: Vec<i64> = tokens[0].split(' ').map(|number| number.parse().unwrap()).collect();
        let [input, output, short, long, read, cost] = numbers[..] else { panic!("{numbers:?}") };
        assert_eq!((input, read), (25, 100));
        assert!((95..=105).contains(&output), "{output}");
        // By the table, in billionths of a dollar a token.
        assert_eq!(cost, 2_000 * input + 10_000 * output + 2_500 * short + 4_000 * long + 100 * read);
    }

    async fn a_caller_that_leaves_before_the_answer_is_recorded_too(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "concurrencyLimit": 1 })).await;
        relayed.claude.will(FIRST, [Reply::Held]);
        {
            let sending = relayed.send();
            tokio::select! {
                _ = sending => panic!("it is held"),
                () = relayed.claude.arrived() => {}
            }
        }
        relayed.claude.left().await;
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 499 - 1 interrupted estimated"]);
        // And its place is free again.
        until_let_in(async || relayed.send().await).await;
    }

    async fn who_reads_to_the_last_event_has_read_all(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&events(MODEL)), Step::Hold])]);
        let mut response = relayed.stream().await;
        let mut received = String::new();
        while !received.contains("message_stop") {
            received += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
        drop(response);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 1 streamed"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
    }

    async fn the_last_word_on_tokens_holds_and_parts_are_not_billed_twice(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut said = events(MODEL);
        let usage = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":20,"cache_creation_input_tokens":10,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":10},"cache_read_input_tokens":0,"output_tokens":9,"server_tool_use":{"web_search_requests":1}}}"#;
        said[7] = event("message_delta", usage);
        relayed.claude.will(FIRST, [Reply::Stream(vec![say(&said)])]);
        relayed.stream().await.text().await.unwrap();
        // 20 at 2, 9 at 10 and 10 at 4 USD a million tokens, and a search for a cent.
        assert_eq!(records(&app, TOKENS, 1).await, ["20 9 0 10 0 10170000"]);
    }

    async fn an_overloaded_upstream_is_tried_again_shortly(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::overloaded(), Reply::Error(529, "overloaded_error", vec![("retry-after", "0".to_owned())])]);
        assert_eq!(relayed.send().await.status(), 200);
        // One request of the caller's is one record, and is paid for once.
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 3"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
    }

    async fn then_another_account_takes_it(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let second = relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::overloaded(), Reply::error(500, "api_error"), Reply::overloaded()]);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, FIRST, FIRST, SECOND]);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 4"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
        assert_eq!(records(&app, "claude_account_id", 1).await, [second["id"].as_str().unwrap()]);
        let health = relayed.until_health("OVERLOADED").await;
        assert!(health["until"].is_string() && health["lastError"] == "A overloaded_error.", "{health}");
    }

    async fn then_the_upstreams_own_words_are_passed_on(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let words = r#"{ "type":"error","error":{"type":"overloaded_error","message":"Too much."},  "request_id":"req_1"}"#;
        let reply = Reply::Body(529, "application/json", words.to_owned());
        relayed.claude.will(FIRST, [reply.clone(), reply.clone(), reply]);
        let response = relayed.send().await;
        assert_eq!(response.status().as_u16(), 529);
        assert_eq!(response.text().await.unwrap(), words);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 529 overloaded_error 3"]);
        assert_eq!(records(&app, TOKENS, 1).await, ["0 0 0 0 0 0"]);
        // The only account is not gone for long: the next caller waits a moment for it, and is served.
        assert_eq!(relayed.send().await.status(), 200);
        relayed.until_health("HEALTHY").await;
    }

    async fn an_account_without_an_upstream_is_one_that_fails(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let gone = crate::claude_account::create(&relayed.admin, json!({
            "apiKey": "sk-ant-gone", "accountName": "gone", "baseUrl": "http://127.0.0.1:1", "priority": -5,
        })).await;
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 4"]);
        let update = "mutation($id: ID!) { updateClaudeAccount(input: { id: $id, status: SUSPENDED }) { claudeAccount { id } } }";
        relayed.admin.with(update, json!({ "id": relayed.account["id"] })).await.data();
        let remove = "mutation($id: ID!) { deleteClaudeAccount(input: { id: $id }) { deletedId } }";
        relayed.admin.with(remove, json!({ "id": gone["id"] })).await.data();
        assert_eq!(error(relayed.send().await).await, (503, "api_error".to_owned()));
        assert_eq!(records(&app, OUTCOME, 2).await[1], "/v1/messages 503 api_error 0");
    }

    async fn a_limit_of_one_model_is_no_limit_of_another(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::rate_limited(60)]);
        let response = relayed.send().await;
        assert_eq!(response.headers()["retry-after"], "60");
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        relayed.until_health("RATE_LIMITED").await;
        let mut other = asking(false);
        other["model"] = json!("claude-haiku-4-5");
        assert_eq!(relayed.request("/v1/messages", &other).send().await.unwrap().status(), 200);
        // Told at once, and nobody asks the upstream.
        let response = relayed.send().await;
        let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((50..=60).contains(&wait), "{wait}");
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 2);
        app.advance(61);
        assert_eq!(relayed.send().await.status(), 200);
        relayed.until_health("HEALTHY").await;
    }

    async fn no_account_rests_for_days(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::rate_limited(500_000)]);
        assert_eq!(relayed.send().await.status(), 429);
        app.advance(600);
        assert_eq!(relayed.send().await.status(), 200);
    }

    async fn a_limit_without_a_time_is_respected_for_a_while(app: TestApp) {
        let app = app.relaying(RelayLimits { patience: Duration::ZERO, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::error(429, "rate_limit_error")]);
        assert_eq!(relayed.send().await.status(), 429);
        assert_eq!(relayed.send().await.status(), 429);
        assert_eq!(relayed.claude.seen().len(), 1);
        app.advance(16);
        assert_eq!(relayed.send().await.status(), 200);
    }

    async fn a_key_that_the_upstream_refuses_is_not_the_callers(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let echo = format!(r#"{{"type":"error","error":{{"type":"authentication_error","message":"invalid {FIRST}"}}}}"#);
        relayed.claude.will(FIRST, [Reply::Body(401, "application/json", echo)]);
        let response = relayed.send().await;
        let text = format!("{:?} {}", response.headers(), response.status());
        assert!(text.ends_with("503 Service Unavailable") && !text.contains(FIRST), "{text}");
        assert!(!response.text().await.unwrap().contains(FIRST));
        let health = relayed.until_health("UNAUTHORIZED").await;
        assert_eq!(health["lastError"], "invalid [redacted]");
        assert_eq!(relayed.send().await.status(), 503);
        assert_eq!(relayed.claude.seen().len(), 1);
        // Another key is another matter, at once.
        let replace = "mutation($id: ID!, $key: String!) {
            replaceClaudeAccountKey(input: { id: $id, apiKey: $key }) { claudeAccount { id } } }";
        relayed.admin.with(replace, json!({ "id": relayed.account["id"], "key": "sk-ant-replaced" })).await.data();
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, "sk-ant-replaced"]);
    }

    async fn an_account_without_credit_is_passed_over(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let words = r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}"#;
        relayed.claude.will(FIRST, [Reply::Body(400, "application/json", words.to_owned())]);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND, SECOND]);
    }

    async fn the_callers_own_faults_are_passed_on_and_no_accounts(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 9 })).await;
        for (status, kind) in [(400, "invalid_request_error"), (404, "not_found_error"), (413, "request_too_large")] {
            relayed.claude.will(FIRST, [Reply::error(status, kind)]);
            assert_eq!(error(relayed.send().await).await, (status, kind.to_owned()));
        }
        assert_eq!(relayed.claude.seen().len(), 3);
        // Also without their words, where those are too long.
        let long = "x".repeat(70_000);
        let packed = vec![("content-encoding", "gzip".to_owned())];
        for reply in [Reply::Body(400, "text/html", long.clone()), Reply::Error(400, long.leak(), packed)] {
            relayed.claude.will(FIRST, [reply]);
            let refused = relayed.send().await;
            assert_eq!((refused.status().as_u16(), &refused.headers()["content-type"]), (400, &"application/json".parse().unwrap()));
            assert!(!refused.headers().contains_key("content-encoding"));
            let told = refused.json::<Value>().await.unwrap();
            assert_eq!((&told["error"]["type"], &told["request_id"]), (&json!("invalid_request_error"), &json!("req_upstream")));
        }
    }

    async fn an_error_in_the_middle_of_a_stream_is_passed_on_and_recorded(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let error = failing("overloaded_error", "Overloaded");
        relayed.claude.will(FIRST, [Reply::Stream(vec![beginning(), Step::Say(error.clone())])]);
        assert!(relayed.stream().await.text().await.unwrap().ends_with(&error));
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 overloaded_error 1 streamed estimated"]);
        relayed.until_health("OVERLOADED").await;
    }

    async fn a_stream_that_breaks_off_ends_with_an_error(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        // In the middle of an event, of which nobody can make anything.
        let half = Step::Say(delta("never")[..30].to_owned());
        let ending = |last| vec![beginning(), half.clone(), last];
        for last in [Step::Cut, Step::Pause(Duration::ZERO)] {
            relayed.claude.will(FIRST, [Reply::Stream(ending(last))]);
            let text = relayed.stream().await.text().await.unwrap();
            let (events, end) = text.split_at(text.find("event: error").unwrap_or_else(|| panic!("{text}")));
            assert_eq!(Step::Say(events.to_owned()).text(), beginning().text());
            assert!(end.contains("api_error"), "{end}");
        }
        let records = records(&app, OUTCOME, 2).await;
        assert_eq!(records, vec!["/v1/messages 200 api_error 1 streamed estimated"; 2]);
    }

    async fn an_answer_that_breaks_off_is_an_error(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say("{\"id\"".to_owned()), Step::Cut])]);
        // It says that it is a stream, which nobody has asked for.
        let text = relayed.send().await.text().await.unwrap();
        assert!(text.contains("api_error"), "{text}");
    }

    async fn a_silent_stream_says_that_it_is_there(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![beginning(), Step::Hold, say(&events(MODEL)[4..])])]);
        let mut response = relayed.stream().await;
        let mut received = String::new();
        while received.matches("event: ping").count() < 4 {
            received += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
        relayed.claude.release(1);
        received += &response.text().await.unwrap();
        // But for the pings, it is what the upstream has sent.
        let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
        assert_eq!(received.replace(ping, ""), events(MODEL).concat().replace(ping, ""));
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
    }

    async fn an_upstream_that_is_silent_for_too_long_is_given_up(app: TestApp) {
        let app = app.relaying(RelayLimits { silence: Duration::from_millis(200), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![beginning(), Step::Hold]), Reply::Held]);
        let text = relayed.stream().await.text().await.unwrap();
        assert!(text.contains("timeout_error"), "{text}");
        relayed.claude.left().await;
        app.advance(60);
        assert_eq!(error(relayed.send().await).await, (504, "timeout_error".to_owned()));
        // It may have been done, for all that anybody knows.
        assert_eq!(records(&app, OUTCOME, 2).await[1], "/v1/messages 504 timeout_error 1 estimated");
    }

    async fn accounts_lead_to_no_place_inside(app: TestApp) {
        let mut app = app;
        let relayed = Relayed::new(&app).await;
        assert_eq!(relayed.send().await.status(), 200);
        // The settings have become stricter since.
        app.set("UPSTREAM_ALLOWED_HOSTS", "");
        app.restart().await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = http.post(format!("{}/v1/messages", app.url)).header("x-api-key", &relayed.key);
        let response = request.body(asking(false).to_string()).send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(relayed.claude.seen().len(), 1);
    }

    async fn a_name_that_leads_to_a_place_inside_is_not_followed(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let inside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        inside.set_nonblocking(true).unwrap();
        let base_url = format!("https://localhost:{}", inside.local_addr().unwrap().port());
        crate::claude_account::create(&relayed.admin, json!({
            "apiKey": "sk-ant-inside", "accountName": "inside", "baseUrl": base_url, "priority": -5,
        })).await;
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 4"]);
        assert_eq!(inside.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    async fn stopping_lets_streams_go_on_and_records_what_it_cuts_off(app: TestApp) {
        let mut app = app;
        app.set("SHUTDOWN_TIMEOUT", "3");
        app.restart().await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![beginning(), Step::Hold, say(&events(MODEL)[4..])])]);
        let ends = relayed.stream().await;
        relayed.claude.will(FIRST, [Reply::Stream(vec![beginning(), Step::Pause(Duration::from_secs(600))])]);
        let goes_on = relayed.stream().await;
        let address = app.url.trim_start_matches("http://").to_owned();
        let release = async {
            // It takes no connections any more.
            while tokio::net::TcpStream::connect(&address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            relayed.claude.release(1);
            ends.text().await.unwrap()
        };
        let (text, ()) = tokio::join!(release, app.stop());
        assert_eq!(text, events(MODEL).concat());
        assert!(goes_on.text().await.is_err());
        let expected = ["/v1/messages 200 - 1 streamed", "/v1/messages 200 - 1 streamed interrupted estimated"];
        assert_eq!(records(&app, OUTCOME, 2).await, expected);
    }

    async fn health_is_told_live(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let mut socket = Socket::connected(&app, &relayed.admin).await;
        socket.follow(&app, "a", "subscription { claudeAccountChanged { id health { state } } }").await;
        let told = |state: &str| json!({ "claudeAccountChanged": { "id": relayed.account["id"], "health": { "state": state } } });
        relayed.send().await;
        assert_eq!(socket.event("a").await, told("HEALTHY"));
        relayed.claude.will(FIRST, [Reply::rate_limited(30)]);
        relayed.send().await;
        assert_eq!(socket.event("a").await, told("RATE_LIMITED"));
        let log = relayed.admin.run("{ auditLogs(filter: { resourceType: [CLAUDE_ACCOUNT] }) { nodes { operation user { id } changes } } }").await;
        let entry: &Value = &log.data()["auditLogs"]["nodes"][0];
        assert_eq!((&entry["operation"], &entry["user"]), (&json!("relay"), &Value::Null));
        assert_eq!(entry["changes"]["health"], json!({ "from": "HEALTHY", "to": "RATE_LIMITED" }));
    }
}

impl Step {
    fn text(&self) -> &str {
        match self {
            Self::Say(text) | Self::Flood(text) => text,
            Self::Pause(_) | Self::Hold | Self::Cut => "",
        }
    }
}
