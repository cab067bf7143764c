//! What an upstream says of an account, which is no caller's fault: that it is not paid for, or may do nothing; and how it is used again.

use std::time::Duration;

use claviger::relay::RelayLimits;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::notification::titles;
use crate::relay::{FIRST, OUTCOME, Relayed, SECOND, account, asking, error, records};
use crate::relay_failures::QUICK;
use crate::relay_pool::update;
use crate::support::{Claude, Reply, both_databases};

/// How an upstream says that an account is of no use, and how that account does.
const OF_NO_USE: [(u16, &str, &str, &str); 6] = [
    (402, "billing_error", "Pay.", "FAILING"),
    (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", "FAILING"),
    (
        400,
        "invalid_request_error",
        "You have reached your specified API usage limits. You will regain access on 2099-04-01 at 00:00 UTC.",
        "FAILING",
    ),
    (
        400,
        "invalid_request_error",
        "You have reached your specified workspace API usage limits. You will regain access on 2099-04-01 at 00:00 UTC.",
        "FAILING",
    ),
    (400, "invalid_request_error", "This organization has been disabled.", "UNAUTHORIZED"),
    (403, "permission_error", "This organization has been disabled.", "UNAUTHORIZED"),
];

fn saying(status: u16, kind: &str, message: &str) -> Reply {
    let body = json!({ "type": "error", "error": { "type": kind, "message": message } });
    Reply::Body(status, "application/json", body.to_string())
}

/// The keys of the messages since so many requests.
fn keys_since(relayed: &Relayed, count: usize) -> Vec<String> {
    let seen = relayed.claude.seen().split_off(count);
    seen.iter().filter(|seen| seen.uri.path() == "/v1/messages").map(crate::support::Seen::key).collect()
}

both_databases! {
    async fn an_account_of_no_use_is_passed_over_until_a_test_finds_it_well(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let test = "mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok } }";
        for (status, kind, message, state) in OF_NO_USE {
            let before = relayed.claude.seen().len();
            relayed.claude.will(FIRST, [saying(status, kind, message)]);
            for _ in 0..2 {
                assert_eq!(relayed.send().await.status(), 200, "{status} {message}");
            }
            assert_eq!(keys_since(&relayed, before), [FIRST, SECOND, SECOND], "{status} {message}");
            assert_eq!(relayed.until_health(state).await["lastError"], message);
            let tested = relayed.admin.with(test, json!({ "id": relayed.account["id"] })).await;
            assert_eq!(tested.data()["testClaudeAccount"]["ok"], true);
        }
        let told = titles(&relayed.admin).await;
        for how in ["failing", "unauthorized"] {
            assert!(told.contains(&format!("The Claude account Account first-0001 is {how}")), "{told:?}");
        }
    }

    async fn what_is_wrong_with_the_only_account_is_told_in_the_upstreams_words(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let (status, kind, message, _) = OF_NO_USE[2];
        relayed.claude.will(FIRST, [saying(status, kind, message)]);
        let response = relayed.send().await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["message"], message);
        assert_eq!(error(relayed.send().await).await, (503, "api_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 1);
    }

    async fn an_account_that_is_not_paid_for_is_asked_again_after_five_minutes(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, [Reply::error(402, "billing_error")]);
        for ahead in [0, 240, 61] {
            app.advance(ahead);
            assert_eq!(relayed.send().await.status(), 200);
        }
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND, SECOND, FIRST]);
        relayed.until_health("HEALTHY").await;
    }

    async fn whether_a_key_is_accepted_again_is_found_out_by_one_request(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let refused = Reply::error(401, "authentication_error");
        relayed.claude.will(FIRST, [refused.clone(), refused.held()]);
        assert_eq!(relayed.send().await.status(), 200);
        app.advance(301);
        let (probe, others) = tokio::join!(relayed.send(), async {
            while relayed.claude.seen().len() < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let others = join_all((0..5).map(|_| relayed.send())).await;
            relayed.claude.release(1);
            others
        });
        assert!(probe.status() == 200 && others.iter().all(|answer| answer.status() == 200));
        // It rests again.
        assert_eq!(relayed.send().await.status(), 200);
        let keys = relayed.claude.keys();
        assert_eq!(keys[..3], [FIRST, SECOND, FIRST]);
        assert!(keys.len() == 10 && keys[3..].iter().all(|key| key == SECOND), "{keys:?}");
        // Once one was accepted, all come back.
        app.advance(301);
        for _ in 0..3 {
            assert_eq!(relayed.send().await.status(), 200);
        }
        assert_eq!(relayed.claude.keys()[10..], [FIRST; 3]);
    }

    async fn an_account_that_may_do_nothing_rests_and_one_that_may_not_do_one_thing_does_the_rest(app: TestApp) {
        let app = app.relaying(RelayLimits { retry: Duration::from_secs(60), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        relayed.claude.will(FIRST, vec![Reply::error(403, "permission_error"); 3]);
        for _ in 0..4 {
            assert_eq!(relayed.send().await.status(), 200);
        }
        assert_eq!(relayed.claude.keys(), [FIRST, SECOND, FIRST, SECOND, FIRST, SECOND, SECOND]);
        assert_eq!(relayed.until_health("UNAUTHORIZED").await["lastError"], "A permission_error.");
        let mut other = asking(false);
        other["model"] = json!("claude-haiku-4-5");
        assert_eq!(relayed.request("/v1/messages", &other).send().await.unwrap().status(), 200);
        assert_eq!(relayed.claude.keys()[7..], [FIRST]);
        app.advance(61);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.keys()[8..], [FIRST]);
        relayed.until_health("HEALTHY").await;
    }

    async fn another_upstream_is_another_account(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let wrong = Claude::start().await;
        let refused = Reply::error(401, "authentication_error");
        wrong.will(FIRST, [refused.clone(), refused.held()]);
        let move_to = async |claude: &Claude| update(&relayed, &relayed.account["id"], json!({ "baseUrl": claude.url() })).await;
        move_to(&wrong).await;
        assert_eq!(error(relayed.send().await).await, (503, "api_error".to_owned()));
        assert!(!relayed.until_health("UNAUTHORIZED").await["lastError"].is_null());
        // What was known is forgotten at once, and what the other still says holds no more.
        move_to(&relayed.claude).await;
        assert!(relayed.until_health("UNKNOWN").await["lastError"].is_null());
        assert_eq!(relayed.send().await.status(), 200);
        move_to(&wrong).await;
        let (late, ()) = tokio::join!(relayed.send(), async {
            while wrong.seen().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            move_to(&relayed.claude).await;
            assert_eq!(relayed.send().await.status(), 200);
            wrong.release(1);
        });
        // It has another upstream by then, and that was not tried yet.
        assert_eq!(late.status(), 200);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!((wrong.seen().len(), relayed.claude.seen().len()), (2, 4));
        relayed.until_health("HEALTHY").await;
    }

    async fn what_the_upstream_advises_is_told_to_the_caller_and_followed(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let advice = vec![("retry-after-ms", "61500".to_owned()), ("x-should-retry", "true".to_owned())];
        relayed.claude.will(FIRST, [Reply::Error(429, "rate_limit_error", advice)]);
        let response = relayed.send().await;
        assert_eq!((&response.headers()["retry-after-ms"], &response.headers()["x-should-retry"]), (&"61500".parse().unwrap(), &"true".parse().unwrap()));
        assert_eq!(response.status(), 429);
        app.advance(62);
        relayed.claude.will(FIRST, [Reply::Error(500, "api_error", vec![("x-should-retry", "false".to_owned())])]);
        let response = relayed.send().await;
        assert_eq!((response.status().as_u16(), &response.headers()["x-should-retry"]), (500, &"false".parse().unwrap()));
        assert_eq!(relayed.claude.seen().len(), 2);
    }

    async fn a_request_is_tried_on_five_accounts_and_three_times_on_each(app: TestApp) {
        let app = app.relaying(QUICK).await;
        let relayed = Relayed::new(&app).await;
        let keys = ["sk-ant-1", "sk-ant-2", "sk-ant-3", "sk-ant-4", "sk-ant-5"];
        for key in keys {
            account(&relayed.admin, &relayed.claude, key, json!({ "priority": -1 })).await;
            relayed.claude.will(key, vec![Reply::error(500, "api_error"); 3]);
        }
        assert_eq!(error(relayed.send().await).await, (500, "api_error".to_owned()));
        let mut seen = relayed.claude.keys();
        seen.sort();
        assert_eq!(seen, keys.map(|key| [key; 3]).concat());
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 500 api_error 15"]);
    }
}
