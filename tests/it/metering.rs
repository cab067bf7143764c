//! Metering by the program as it is run: what a kill loses and a stop does not, and budgets and live usage over three servers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::api_key::create as new_key;
use crate::claude_account::create as new_account;
use crate::command_line::{Place, Served, on_both};
use crate::many_servers::{Servers, until};
use crate::relay::{FIRST, MODEL};
use crate::support::{Claude, Client, EventStream, PASSWORD, Reply, TestDatabase};

/// How much a kill may lose.
const BOUND: Duration = Duration::from_secs(1);
/// What the relay has to be told to send anything to a test's upstream.
const ALLOWED: (&str, &str) = ("UPSTREAM_ALLOWED_HOSTS", "127.0.0.1");
/// Tokens of a usual answer, of all kinds.
const USUAL: i64 = 167;

/// A program that uses the relay.
#[derive(Clone)]
struct Program {
    http: reqwest::Client,
    key: String,
}

impl Program {
    /// With a key that has these limits: also its id.
    async fn new(admin: &Client, limits: &Value) -> (Self, Value) {
        let mut input = json!({ "name": "Program", "scopes": ["RELAY"] });
        input.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let (made, key) = new_key(admin, input).await;
        (Self { http: reqwest::Client::builder().no_proxy().build().unwrap(), key }, made["id"].clone())
    }

    /// Sends a message in a session, and reads the answer to its end: whether it was an answer.
    async fn send(&self, url: &str, session: &str, stream: bool) -> bool {
        let body = json!({ "model": MODEL, "max_tokens": 1000, "stream": stream, "messages": [{ "role": "user", "content": "Hello?" }] });
        let request =
            self.http.post(format!("{url}/v1/messages")).header("x-api-key", &self.key).body(body.to_string());
        let Ok(response) = request.header("x-claude-code-session-id", session).send().await else { return false };
        let is_success = response.status().is_success();
        response.bytes().await.is_ok() && is_success
    }
}

/// Waits until the upstream was asked once more.
async fn until_asked(claude: &Claude, before: usize) {
    while claude.seen().len() <= before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn account_at(admin: &Client, claude: &Claude) -> Value {
    new_account(admin, json!({ "apiKey": FIRST, "accountName": "A", "baseUrl": claude.url() })).await
}

/// The sessions of the records that are there; none twice, and their sums are what reports say.
async fn recorded(place: &Place, admin: &Client, account: &Value) -> BTreeSet<String> {
    let sessions = place.database.texts("SELECT session_id AS text FROM usage_records").await;
    let found: BTreeSet<String> = sessions.iter().cloned().collect();
    assert_eq!(found.len(), sessions.len(), "none twice");
    let query = "query($id: ID!) { node(id: $id) { ... on ClaudeAccount { currentUsage } } usageRecords { totalCount }
        usage(filter: { from: \"2020-01-01T00:00:00Z\", to: \"2099-01-01T00:00:00Z\" }) { total { requests outputTokens } } }";
    let answer = admin.with(query, json!({ "id": account["id"] })).await;
    let (data, count) = (answer.data(), sessions.len());
    assert_eq!(
        (&data["usage"]["total"]["requests"], &data["usageRecords"]["totalCount"]),
        (&json!(count), &json!(count))
    );
    let used = place.database.texts(
        "SELECT CAST(SUM(input_tokens + output_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens) AS text) AS text
         FROM usage_records",
    );
    assert_eq!(data["node"]["currentUsage"].to_string(), used.await[0]);
    found
}

fn serve(place: &Place) -> Served {
    let mut command = place.command(&["serve"]);
    command.env(ALLOWED.0, ALLOWED.1);
    Place::started(command)
}

async fn admin_of(server: &Served) -> Client {
    Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await
}

on_both! {
    async fn a_kill_loses_no_more_than_the_last_second_and_a_stop_nothing(place: Place) {
        let claude = Claude::start().await;
        let mut server = serve(&place);
        let admin = admin_of(&server).await;
        let account = account_at(&admin, &claude).await;
        let (program, _) = Program::new(&admin, &json!({})).await;
        // When each had its answer. They go on until the server is gone.
        let answered: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
        let sending: Vec<_> = (0..4)
            .map(|worker| {
                let (program, url, answered) = (program.clone(), server.url.clone(), answered.clone());
                tokio::spawn(async move {
                    for nth in 0.. {
                        let session = format!("{worker}-{nth}");
                        if !program.send(&url, &session, nth % 2 == 0).await {
                            return;
                        }
                        answered.lock().unwrap().push((session, Instant::now()));
                    }
                })
            })
            .collect();
        tokio::time::sleep(3 * BOUND).await;
        let killed = Instant::now();
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for worker in sending {
            worker.await.unwrap();
        }
        let answered = std::mem::take(&mut *answered.lock().unwrap());
        let due: BTreeSet<String> = answered.iter().filter(|(_, at)| *at + BOUND < killed).map(|(session, _)| session.clone()).collect();
        assert!(due.len() > 10, "{} requests were answered a second before", due.len());

        let server = serve(&place);
        let admin = admin_of(&server).await;
        let found = recorded(&place, &admin, &account).await;
        assert!(due.is_subset(&found), "lost: {:?}", due.difference(&found));
        // Told to stop right after the last answer, or in the middle of one.
        for nth in 0..20 {
            assert!(program.send(&server.url, &format!("last-{nth}"), nth % 2 == 0).await);
        }
        claude.will(FIRST, [Reply::Held]);
        let before = claude.seen().len();
        let (held, url) = (program.clone(), server.url.clone());
        let held = tokio::spawn(async move { held.send(&url, "held", false).await });
        until_asked(&claude, before).await;
        let stopping = tokio::task::spawn_blocking(move || server.stop());
        claude.release(1);
        assert!(held.await.unwrap());
        assert!(stopping.await.unwrap().success());
        let server = serve(&place);
        let mut expected = found;
        expected.extend((0..20).map(|nth| format!("last-{nth}")).chain(["held".to_owned()]));
        assert_eq!(recorded(&place, &admin_of(&server).await, &account).await, expected);
    }
}

/// How much of a limit is used, with what is reserved.
async fn level(admin: &Client, key: &Value, kind: &str) -> i64 {
    let query = "query($id: ID!) { apiKey(id: $id) { quota { windows { kind used } } } }";
    let answer = admin.with(query, json!({ "id": key })).await;
    let windows = answer.data()["apiKey"]["quota"]["windows"].as_array().unwrap().clone();
    windows.iter().find(|window| window["kind"] == kind).unwrap()["used"].as_i64().unwrap()
}

async fn until_level(admin: &Client, key: &Value, kind: &str, expected: i64) {
    while level(admin, key, kind).await != expected {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn racing(with_redis: bool) {
    let servers = Servers::start_with(with_redis, vec![(ALLOWED.0, ALLOWED.1.to_owned())]).await;
    let claude = Claude::start().await;
    let admin = servers.admin(0).await;
    account_at(&admin, &claude).await;
    // Of each: how much a usual answer takes in the end.
    for (limits, kind, limit, usual) in [
        (json!({ "concurrencyLimit": 7 }), "CONCURRENT_REQUESTS", 7, 0),
        (json!({ "tokenLimitPerDay": 9_000 }), "TOKENS_PER_DAY", 9_000, USUAL),
        (json!({ "costLimitUsdPerMonth": "0.05" }), "COST_MICRO_USD_PER_MONTH", 50_000, 270),
    ] {
        let (program, key) = Program::new(&admin, &limits).await;
        claude.will(FIRST, [Reply::Held]);
        let before = claude.seen().len();
        let first = tokio::spawn({
            let (program, url) = (program.clone(), servers.running[0].url.clone());
            async move { program.send(&url, "first", false).await }
        });
        until_asked(&claude, before).await;
        let estimate = level(&admin, &key, kind).await;
        claude.release(1);
        assert!(first.await.unwrap());
        until_level(&admin, &key, kind, usual).await;
        let fit = (limit - usual) / estimate;
        assert!((3..90).contains(&fit), "{kind}: {fit} requests fit");

        // Those that are let in are held, until all others are refused.
        claude.will(FIRST, (0..fit).map(|_| Reply::Held));
        let finished: Arc<Mutex<Vec<bool>>> = Arc::default();
        let racing: Vec<_> = (0..100_usize)
            .map(|nth| {
                let (program, url, finished) =
                    (program.clone(), servers.running[nth % 3].url.clone(), finished.clone());
                tokio::spawn(async move {
                    let is_answered = program.send(&url, &format!("{kind}-{nth}"), false).await;
                    finished.lock().unwrap().push(is_answered);
                })
            })
            .collect();
        let refused = usize::try_from(100 - fit).unwrap();
        while finished.lock().unwrap().len() < refused {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            finished.lock().unwrap().iter().all(|is_answered| !is_answered),
            "{kind}: none that was let in is answered yet"
        );
        assert_eq!(level(&admin, &key, kind).await, usual + fit * estimate, "{kind}");
        claude.release(fit.try_into().unwrap());
        join_all(racing).await;
        let answered = finished.lock().unwrap().iter().filter(|is_answered| **is_answered).count();
        assert_eq!(i64::try_from(answered).unwrap(), fit, "{kind}");
        // What was not taken is there again, to the last.
        until_level(&admin, &key, kind, usual * (fit + 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_hold_over_three_servers_without_redis() {
    racing(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_hold_over_three_servers_with_redis() {
    racing(true).await;
}

/// Where there is a Redis, servers share a key's rates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_hold_over_three_servers_with_redis() {
    let servers = Servers::start_with(true, vec![(ALLOWED.0, ALLOWED.1.to_owned())]).await;
    let claude = Claude::start().await;
    let admin = servers.admin(0).await;
    account_at(&admin, &claude).await;
    for (name, limit, span) in [("rateLimitPerMinute", 5, 60), ("rateLimitPerHour", 12, 3600)] {
        let (program, _) = Program::new(&admin, &json!({ name: limit })).await;
        let (before, began) = (claude.seen().len(), Instant::now());
        let racing = (0..100_usize).map(|nth| {
            let (program, url) = (program.clone(), servers.running[nth % 3].url.clone());
            tokio::spawn(async move { program.send(&url, &nth.to_string(), false).await })
        });
        let answered = join_all(racing).await.into_iter().filter(|answered| *answered.as_ref().unwrap()).count();
        // One more fits in each share of the time, if the machine is so slow.
        let later = usize::try_from(began.elapsed().as_secs()).unwrap() / (span / limit);
        assert!((limit..=limit + later).contains(&answered), "{name}: {answered} and not {limit}, {later} later");
        assert_eq!(claude.seen().len() - before, answered, "{name}");
    }
}

async fn live(with_redis: bool) {
    let servers = Servers::start_with(with_redis, vec![(ALLOWED.0, ALLOWED.1.to_owned())]).await;
    let claude = Claude::start().await;
    let admin = servers.admin(0).await;
    account_at(&admin, &claude).await;
    let (program, key) = Program::new(&admin, &json!({})).await;
    let mut stream = EventStream::open(&admin, "subscription { usageRecorded { sessionId apiKeyId } }").await;
    until(&admin.url, "claviger_subscriptions_active", |found| found == 1).await;
    // One after the other, each as soon as it was heard of: whichever server has answered.
    for nth in 0..9_usize {
        let session = format!("s-{nth}");
        assert!(program.send(&servers.running[nth % 3].url, &session, true).await);
        let (name, body) = stream.event().await.unwrap();
        let expected = json!({ "sessionId": session, "apiKeyId": key });
        assert_eq!((name.as_str(), &body["data"]["usageRecorded"]), ("next", &expected), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_heard_of_on_other_servers_without_redis() {
    live(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_heard_of_on_other_servers_with_redis() {
    live(true).await;
}
