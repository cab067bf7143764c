//! Tries of a request: that they all go through the pool, what each of them shows, and what it costs.

use std::time::Duration;

use claviger::relay::RelayLimits;
use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::claude_account::create as new_account;
use crate::relay::{FIRST, OUTCOME, Relayed, SECOND, TOKENS, USUAL, asking, error, records};
use crate::relay_failures::{QUICK, beginning};
use crate::relay_pool::update;
use crate::support::{Reply, Step, both_databases, in_time};

/// An upstream that closes each connection after it has said this: where it is.
async fn breaking(said: String) -> String {
    saying(said, false).await
}

/// An upstream that says this, and no more: where it is.
async fn falling_silent(said: String) -> String {
    saying(said, true).await
}

async fn saying(said: String, stays: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            // The body is an object.
            while !request.ends_with(b"}") {
                connection.read_buf(&mut request).await.unwrap();
            }
            connection.write_all(said.as_bytes()).await.unwrap();
            kept.extend(stays.then_some(connection));
        }
    });
    url
}

/// An account that comes before the others.
async fn preferred(relayed: &Relayed, base_url: &str) -> Value {
    let input = json!({ "apiKey": "sk-ant-other", "accountName": "other", "baseUrl": base_url, "priority": -5 });
    new_account(&relayed.admin, input).await
}

async fn until_seen(relayed: &Relayed, count: usize) {
    while relayed.claude.seen().len() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The record of the caller who has left.
async fn who_left(app: &crate::support::TestApp) -> String {
    loop {
        let records = records(app, OUTCOME, 1).await;
        if let Some(left) = records.into_iter().find(|record| record.contains(" 499 ")) {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

both_databases! {
    async fn who_is_tried_again_comes_before_those_who_come_meanwhile(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let rests = Reply::Error(529, "overloaded_error", vec![("retry-after", "3".to_owned())]);
        relayed.claude.will(FIRST, [rests]);
        let send = async |text: &str| {
            let mut body = asking(false);
            body["messages"][0]["content"] = json!(text);
            relayed.request("/v1/messages", &body).send().await.unwrap().status()
        };
        let later = async {
            until_seen(&relayed, 1).await;
            // As soon as the account rests, one that comes waits.
            loop {
                let seen = relayed.claude.seen().len();
                let mut sending = Box::pin(send("later"));
                let is_late = tokio::time::timeout(Duration::from_millis(300), &mut sending).await.is_err();
                if is_late && relayed.claude.seen().len() == seen {
                    break sending.await;
                }
                if is_late {
                    sending.await;
                }
            }
        };
        assert_eq!(tokio::join!(send("first"), later), (StatusCode::OK, StatusCode::OK));
        let seen = relayed.claude.seen();
        let is_first = seen.iter().map(|seen| String::from_utf8_lossy(&seen.body).contains("first"));
        let is_first: Vec<bool> = is_first.collect();
        assert!(is_first.ends_with(&[true, false]), "{is_first:?}");
    }

    async fn streams_that_began_before_the_trouble_shut_nobody_out(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let goes_on = Reply::Stream(vec![beginning(), Step::Hold]);
        let breaks = Reply::Stream(vec![beginning(), Step::Cut]);
        relayed.claude.will(FIRST, [goes_on.clone(), goes_on.clone(), goes_on, breaks]);
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut stream = relayed.stream().await;
            stream.chunk().await.unwrap().unwrap();
            streams.push(stream);
        }
        assert!(relayed.stream().await.text().await.unwrap().contains("api_error"));
        assert_eq!(relayed.send().await.status(), 200);
        relayed.claude.release(3);
    }

    async fn a_callers_own_words_close_no_account(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let words = r#"{"type":"error","error":{"type":"invalid_request_error","message":"Unexpected value(s) `Your credit balance is too low` for the `anthropic-beta` header."}}"#;
        relayed.claude.will(FIRST, [Reply::Body(400, "application/json", words.to_owned())]);
        let response = relayed.send().await;
        assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (400, words));
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, FIRST]);
    }

    async fn who_is_told_to_wait_for_a_moment_comes_back_one_by_one(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let mut replies = vec![Reply::rate_limited(1).held(); 10];
        replies.push(Reply::Held);
        relayed.claude.will(FIRST, replies);
        let (answers, ()) = tokio::join!(join_all((0..10).map(|_| relayed.send())), async {
            until_seen(&relayed, 10).await;
            relayed.claude.release(10);
            until_seen(&relayed, 11).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            // The others would have been here by now, did they not wait for the first.
            assert_eq!(relayed.claude.seen().len(), 11);
            relayed.claude.release(1);
        });
        assert!(answers.iter().all(|answer| answer.status() == 200));
        assert_eq!(records(&app, OUTCOME, 10).await, vec!["/v1/messages 200 - 2"; 10]);
    }

    async fn a_moment_is_waited_for_and_more_is_not(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let overloaded = |seconds: &str| Reply::Error(529, "overloaded_error", vec![("retry-after", seconds.to_owned())]);
        relayed.claude.will(FIRST, [overloaded("0.3"), overloaded("0.3")]);
        assert_eq!(relayed.send().await.status(), 200);
        relayed.claude.will(FIRST, [overloaded("11")]);
        assert_eq!(relayed.send().await.status(), 200);
        // A limit is another account's at once.
        app.advance(12);
        relayed.claude.will(FIRST, [Reply::rate_limited(3)]);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, FIRST, FIRST, FIRST, SECOND, FIRST, SECOND]);
    }

    async fn a_request_that_fails_keeps_no_other_waiting(app: TestApp) {
        let retry = Duration::from_millis(200);
        let app = app.relaying(RelayLimits { patience: Duration::ZERO, retry, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, vec![Reply::error(500, "api_error"); 3]);
        assert_eq!(error(relayed.send().await).await, (500, "api_error".to_owned()));
        let others = join_all((0..5).map(|_| relayed.send())).await;
        assert!(others.iter().all(|answer| answer.status() == 200));
    }

    async fn several_that_fail_in_a_row_make_the_account_rest(app: TestApp) {
        let retry = Duration::from_secs(10);
        let app = app.relaying(RelayLimits { patience: Duration::ZERO, retry, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        // An answer that is given up at once.
        let fails = Reply::Body(302, "text/plain", String::new());
        relayed.claude.will(FIRST, vec![fails.clone(); 2]);
        for status in [502, 502, 200] {
            assert_eq!(relayed.send().await.status(), status);
        }
        relayed.claude.will(FIRST, vec![fails; 3]);
        for status in [502, 502, 502, 503] {
            assert_eq!(relayed.send().await.status(), status);
        }
        assert_eq!(relayed.claude.seen().len(), 6);
        relayed.until_health("FAILING").await;
    }

    async fn an_account_whose_answers_all_break_off_rests(app: TestApp) {
        let app = app.relaying(RelayLimits { retry: Duration::from_secs(10), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, vec![Reply::Stream(vec![beginning(), Step::Cut]); 3]);
        // Each begins well, and says no more.
        for _ in 0..3 {
            assert!(relayed.stream().await.text().await.unwrap().contains("api_error"));
        }
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, FIRST, FIRST, SECOND]);
    }

    async fn a_request_that_fails_in_the_ramp_keeps_no_other_waiting(app: TestApp) {
        let app = app.relaying(RelayLimits { patience: Duration::ZERO, retry: Duration::from_secs(10), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::rate_limited(5)]);
        assert_eq!(relayed.send().await.status(), 429);
        app.advance(6);
        assert_eq!(relayed.send().await.status(), 200);
        // An answer that is given up at once.
        relayed.claude.will(FIRST, [Reply::Body(302, "text/plain", String::new())]);
        for status in [502, 200] {
            assert_eq!(relayed.send().await.status(), status);
        }
    }

    async fn an_account_that_rests_for_long_is_not_waited_for_while_another_is_idle(app: TestApp) {
        let app = app.relaying(RelayLimits { retry: Duration::from_secs(4), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::overloaded()]);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND]);
        relayed.until_health("OVERLOADED").await;
    }

    async fn an_account_that_is_back_in_a_moment_is_waited_for_after_a_failure_too(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": -5 })).await;
        relayed.claude.will(SECOND, [Reply::rate_limited(30)]);
        assert_eq!(relayed.send().await.status(), 200);
        app.advance(29);
        relayed.claude.will(FIRST, [Reply::rate_limited(60)]);
        assert_eq!(relayed.send().await.status(), 200);
    }

    async fn what_an_earlier_request_is_told_holds_for_later_ones(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let overloaded = Reply::Error(529, "overloaded_error", vec![("retry-after", "0.05".to_owned())]);
        relayed.claude.will(FIRST, [Reply::rate_limited(60).held(), overloaded]);
        let (earlier, ()) = tokio::join!(relayed.send(), async {
            relayed.claude.arrived().await;
            assert_eq!(relayed.send().await.status(), 200);
            relayed.claude.release(1);
        });
        assert_eq!(earlier.status(), 429);
        assert_eq!(error(relayed.send().await).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 3);
        relayed.until_health("RATE_LIMITED").await;
    }

    async fn however_long_it_is_told_to_wait_another_account_is_tried(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let reply = Reply::Error(529, "overloaded_error", vec![("retry-after", "99999999999999".to_owned())]);
        relayed.claude.will(FIRST, [reply]);
        for _ in 0..2 {
            assert_eq!(relayed.send().await.status(), 200);
        }
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND, SECOND]);
    }

    async fn what_never_came_to_the_upstream_costs_nothing(app: TestApp) {
        let app = app.relaying(RelayLimits { soon: Duration::ZERO, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        let second = relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::error(522, "api_error")]);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND]);
        update(&relayed, &second["id"], json!({ "status": "SUSPENDED" })).await;
        relayed.claude.will(FIRST, [Reply::error(521, "api_error")]);
        assert_eq!(relayed.send().await.status(), 521);
        assert_eq!(records(&app, OUTCOME, 2).await, ["/v1/messages 200 - 2", "/v1/messages 521 api_error 1"]);
        assert_eq!(records(&app, TOKENS, 2).await[1], "0 0 0 0 0 0");
    }

    async fn an_upstream_that_never_speaks_tls_is_passed_over(app: TestApp) {
        let limits = RelayLimits { connecting: Duration::from_secs(2), soon: Duration::from_secs(1), ..QUICK };
        let app = app.relaying(limits).await;
        let relayed = Relayed::new(&app).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        preferred(&relayed, &format!("https://{}", listener.local_addr().unwrap())).await;
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 2"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
    }

    async fn where_there_is_no_connection_by_the_end_nothing_was_used(app: TestApp) {
        let app = app.relaying(RelayLimits { silence: Duration::from_millis(200), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        preferred(&relayed, &format!("https://{}", listener.local_addr().unwrap())).await;
        update(&relayed, &relayed.account["id"], json!({ "status": "SUSPENDED" })).await;
        assert_eq!(error(relayed.send().await).await, (502, "api_error".to_owned()));
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 502 api_error 1"]);
        assert_eq!(records(&app, TOKENS, 1).await, ["0 0 0 0 0 0"]);
    }

    async fn what_an_upstream_may_have_done_is_paid_for_and_not_sent_again(app: TestApp) {
        let app = app.relaying(RelayLimits { soon: Duration::ZERO, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::error(504, "timeout_error")]);
        assert_eq!(error(relayed.send().await).await, (504, "timeout_error".to_owned()));
        assert_eq!(relayed.claude.keys(), [FIRST]);
        preferred(&relayed, &breaking(String::new()).await).await;
        assert_eq!(error(relayed.send().await).await, (502, "api_error".to_owned()));
        let expected = ["/v1/messages 504 timeout_error 1 estimated", "/v1/messages 502 api_error 1 estimated"];
        assert_eq!(records(&app, OUTCOME, 2).await, expected);
        let tokens = records(&app, "CASE WHEN input_tokens > 0 AND cost_nano_usd > 0 THEN 'some' ELSE 'none' END", 2).await;
        assert_eq!(tokens, ["some", "some"]);
    }

    async fn what_breaks_off_soon_is_tried_again(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        preferred(&relayed, &breaking(String::new()).await).await;
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 4"]);
    }

    async fn a_whole_answer_that_breaks_off_is_paid_for(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let mut relayed = Relayed::new(&app).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
        relayed.account = preferred(&relayed, &breaking(format!("{head}{}", "x".repeat(200))).await).await;
        assert_eq!(error(relayed.send().await).await, (502, "api_error".to_owned()));
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 502 api_error 1 estimated"]);
        assert_eq!(records(&app, "CAST(output_tokens AS TEXT)", 1).await, ["50"]);
        let input: i64 = records(&app, "CAST(input_tokens AS TEXT)", 1).await[0].parse().unwrap();
        assert!(input > 0);
        relayed.until_health("FAILING").await;
    }

    async fn a_whole_answer_that_does_not_end_is_ended(app: TestApp) {
        let limits = RelayLimits { longest: Duration::ZERO, silence: Duration::from_secs(600), ..QUICK };
        let app = app.relaying(limits).await;
        let relayed = Relayed::new(&app).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
        preferred(&relayed, &falling_silent(format!("{head}{{")).await).await;
        assert_eq!(error(in_time("an answer", relayed.send()).await).await, (502, "api_error".to_owned()));
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 502 api_error 1 estimated"]);
    }

    async fn a_key_that_was_replaced_says_nothing_of_the_new_one(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::error(401, "authentication_error").held()]);
        let (old, ()) = tokio::join!(relayed.send(), async {
            relayed.claude.arrived().await;
            let replace = "mutation($id: ID!, $key: String!) {
                replaceClaudeAccountKey(input: { id: $id, apiKey: $key }) { claudeAccount { id } } }";
            relayed.admin.with(replace, json!({ "id": relayed.account["id"], "key": SECOND })).await.data();
            assert_eq!(relayed.send().await.status(), 200);
            relayed.claude.release(1);
        });
        // It has another key by then, and that was not tried yet.
        assert_eq!(old.status(), 200);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND, SECOND, SECOND]);
    }

    async fn an_earlier_request_that_succeeds_ends_no_rest(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::Held, Reply::rate_limited(60)]);
        let (earlier, ()) = tokio::join!(relayed.send(), async {
            relayed.claude.arrived().await;
            assert_eq!(relayed.send().await.status(), 429);
            relayed.claude.release(1);
        });
        assert_eq!(earlier.status(), 200);
        assert_eq!(error(relayed.send().await).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 2);
        relayed.until_health("RATE_LIMITED").await;
    }

    async fn an_account_that_was_suspended_meanwhile_is_sent_nothing(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let second = relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::error(403, "permission_error").held()]);
        let (answer, ()) = tokio::join!(relayed.send(), async {
            relayed.claude.arrived().await;
            update(&relayed, &second["id"], json!({ "status": "SUSPENDED" })).await;
            relayed.claude.release(1);
        });
        assert_eq!(error(answer).await, (403, "permission_error".to_owned()));
        assert_eq!(relayed.claude.keys(), [FIRST]);
    }

    async fn what_limits_counting_limits_no_messages(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let count = async || relayed.request("/v1/messages/count_tokens", &asking(false)).send().await.unwrap().status();
        relayed.claude.will(FIRST, [Reply::rate_limited(60)]);
        assert_eq!(relayed.send().await.status(), 429);
        // It does not end what limits them, either.
        assert_eq!(count().await, 200);
        assert_eq!(relayed.send().await.status(), 429);
        assert_eq!(relayed.claude.seen().len(), 2);
        app.advance(61);
        relayed.claude.will(FIRST, [Reply::rate_limited(60)]);
        assert_eq!(count().await, 429);
        assert_eq!(relayed.send().await.status(), 200);
    }

    async fn the_upstreams_own_words_are_worth_more_than_ours(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::rate_limited(60)]);
        relayed.claude.will(SECOND, [Reply::error(401, "authentication_error")]);
        let response = relayed.send().await;
        assert_eq!(response.headers()["retry-after"], "60");
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND]);
    }

    async fn who_leaves_while_it_is_waited_pays_nothing(app: TestApp) {
        let app = app.relaying(RelayLimits { patience: Duration::ZERO, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        let reply = Reply::Error(529, "overloaded_error", vec![("retry-after", "10".to_owned())]);
        relayed.claude.will(FIRST, [reply]);
        tokio::select! {
            _ = relayed.send() => panic!("it waits"),
            () = async {
                relayed.claude.arrived().await;
                // Whoever comes now is told at once, as soon as it rests.
                while relayed.send().await.status().as_u16() != 529 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            } => {}
        }
        assert_eq!(who_left(&app).await, "/v1/messages 499 - 1 interrupted");
    }

    async fn who_leaves_before_there_is_a_connection_pays_nothing(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        // It never begins to speak TLS.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        preferred(&relayed, &format!("https://{}", listener.local_addr().unwrap())).await;
        tokio::select! {
            _ = relayed.send() => panic!("it is not answered"),
            _ = listener.accept() => {}
        }
        assert_eq!(who_left(&app).await, "/v1/messages 499 - 1 interrupted");
    }
}
