//! What servers do by themselves: each job on one server at a time, and the cleanup of what has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use claviger::domain::{Error, expired};
use claviger::jobs::{Job, Pace, Runs, Scheduler};
use claviger::store;
use claviger::store::expired::Ended;
use claviger::store::job_lease::{self, Lease};
use futures_util::FutureExt as _;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::command_line::Place;
use crate::many_servers::until;
use crate::support::{TestApp, TestDatabase, both_databases};

const DAY: i64 = 24 * 60 * 60;
/// A hundred times as quick as servers are.
const QUICK: Pace = Pace {
    look: Duration::from_millis(50),
    keep: Duration::from_millis(50),
    give_up: Duration::from_millis(150),
    stale: Duration::from_millis(200),
    rest: Duration::from_millis(600),
};
const REFRESH: &str = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { refreshToken } }";

async fn count(database: &TestDatabase, of: &str) -> usize {
    database.texts(&format!("SELECT CAST(count(*) AS text) AS text FROM {of}")).await[0].parse().unwrap()
}

async fn refreshed(app: &TestApp, token: &Value) -> Value {
    app.anonymous().with(REFRESH, json!({ "t": token })).await.data()["refreshSession"]["refreshToken"].clone()
}

/// How runs ended, as the metrics have it.
fn measured(runs: &Runs) -> String {
    let mut registry = Registry::default();
    registry.register("runs", "", runs.total.clone());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// A scheduler of a server on the application's database, with one job.
async fn scheduler(app: &TestApp, job: Job, runs: &Runs, stop: &CancellationToken) -> Scheduler {
    Scheduler::start(vec![job], app.beside().await.services, QUICK, runs.clone(), stop.clone())
}

both_databases! {
    async fn what_has_ended_is_kept_for_a_while_and_then_removed(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let idle = app.admin().await;
        let gone = app.admin().await;
        gone.run("mutation { signOut { signedOut } }").await.data();
        let invite = "mutation { inviteUser(input: { email: \"ina@example.com\", fullName: \"Ina\", role: MEMBER }) { user { id } } }";
        admin.run(invite).await.data();
        let mut tokens = vec![json!(admin.refresh_token)];
        // The one that is used stays signed in: refreshed every 20 days, while the others end after 30.
        for _ in 0..2 {
            app.advance(18 * DAY);
            expired::remove(&beside).await.unwrap();
            tokens.push(refreshed(&app, tokens.last().unwrap()).await);
        }
        // 36 days: within the week that is kept after the end. The invitation had 7 days, and is gone.
        assert_eq!((count(&app.database, "sessions").await, count(&app.database, "refresh_tokens").await), (3, 5));
        assert_eq!(count(&app.database, "invitations").await, 0);
        let late = app.anonymous().with(REFRESH, json!({ "t": idle.refresh_token })).await;
        assert_eq!(late.code(), "UNAUTHENTICATED");
        app.advance(2 * DAY);
        expired::remove(&beside).await.unwrap();
        assert_eq!((count(&app.database, "sessions").await, count(&app.database, "refresh_tokens").await), (1, 3));
        // However old a token of a session that lives is, its reuse ends that.
        let reused = app.anonymous().with(REFRESH, json!({ "t": tokens[0] })).await;
        assert_eq!(reused.code(), "UNAUTHENTICATED");
        let last = app.anonymous().with(REFRESH, json!({ "t": tokens[2] })).await;
        assert_eq!(last.code(), "UNAUTHENTICATED", "the session has ended by the reuse");
        let admin = app.admin().await;
        let entries = admin.run("{ auditLogs(first: 100, filter: { action: [DELETE] }) { totalCount } }").await;
        assert_eq!(entries.data()["auditLogs"]["totalCount"], 0, "bookkeeping is no deed");
    }

    async fn a_replaced_api_key_is_known_for_a_while_after_its_grace(app: TestApp) {
        let beside = app.beside().await.services;
        let admin = app.admin().await;
        let made = admin.run("mutation { createApiKey(input: { name: \"K\", scopes: [ADMIN_READ] }) { apiKey { id } rawKey } }").await;
        let made = made.data()["createApiKey"].clone();
        let regenerate = "mutation($id: ID!) { regenerateApiKey(input: { id: $id, gracePeriodHours: 1 }) { rawKey } }";
        let newer = admin.with(regenerate, json!({ "id": made["apiKey"]["id"] })).await.data()["regenerateApiKey"]["rawKey"].clone();
        let verified = async |key: &Value| {
            let answer = app.anonymous().with("query($k: String!) { verifyApiKey(key: $k) { code } }", json!({ "k": key })).await;
            answer.data()["verifyApiKey"]["code"].clone()
        };
        app.advance(7 * DAY);
        expired::remove(&beside).await.unwrap();
        assert_eq!((verified(&made["rawKey"]).await, verified(&newer).await), (json!("EXPIRED"), json!("VALID")));
        app.advance(DAY);
        expired::remove(&beside).await.unwrap();
        assert_eq!((verified(&made["rawKey"]).await, verified(&newer).await), (json!("NOT_FOUND"), json!("VALID")));
    }

    async fn a_token_by_mail_is_gone_when_it_has_expired_whoever_asked_for_it(app: TestApp) {
        let beside = app.beside().await.services;
        for email in ["admin@localhost", "nobody@example.com"] {
            let ask = format!("mutation {{ requestPasswordReset(input: {{ email: \"{email}\" }}) {{ accepted }} }}");
            app.anonymous().run(&ask).await.data();
        }
        expired::remove(&beside).await.unwrap();
        assert_eq!(count(&app.database, "mail_tokens").await, 2);
        app.advance(3601);
        expired::remove(&beside).await.unwrap();
        assert_eq!(count(&app.database, "mail_tokens").await, 0);
    }

    async fn what_is_removed_takes_several_transactions_where_it_is_much(app: TestApp) {
        let columns = "organization_id, id, 1, NULL, NULL, created_at, created_at, '2001-01-01T00:00:00.000000Z', NULL FROM users, n";
        app.database.execute(&format!(
            "INSERT INTO sessions (id, organization_id, user_id, generation, ip_address, user_agent, created_at, last_used_at,
                 expires_at, revoked_at)
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001)
             SELECT 'sess_0000000000000000000' || CAST(1000000 + i AS text), {columns}"
        ).replace("'2001-01-01T00:00:00.000000Z'", if app.database.url.starts_with("postgres") {
            "CAST('2001-01-01T00:00:00.000000Z' AS timestamptz)"
        } else {
            "'2001-01-01T00:00:00.000000Z'"
        })).await.unwrap();
        let beside = app.beside().await.services;
        let removed = store::expired::remove(&beside.db, Ended::Sessions, beside.clock.now(), 500).await.unwrap();
        assert!(removed <= 500, "{removed}");
        // The server may be at it too.
        while count(&app.database, "sessions").await > 0 {
            expired::remove(&beside).await.unwrap();
        }
    }

    async fn a_lease_is_one_servers(app: TestApp) {
        let (one, two) = (app.beside().await.services, app.beside().await.services);
        let lease = Lease::new("a job", one.clock.now());
        assert!(job_lease::add(&one.db, &lease).await.unwrap());
        assert!(!job_lease::add(&two.db, &lease).await.unwrap());
        let taken = |holder: &str| Lease { holder: Some(holder.to_owned()), ..lease.clone() };
        let held = job_lease::change(&one.db, &lease, taken("one")).await.unwrap().unwrap();
        assert_eq!(job_lease::change(&two.db, &lease, taken("two")).await.unwrap(), None);
        let found = job_lease::find_all(&mut two.db.read().await.unwrap()).await.unwrap();
        assert!(found.contains(&held), "{found:?}");
    }

    async fn a_job_runs_on_one_server_at_a_time(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let (at_once, total) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut schedulers = Vec::new();
        for _ in 0..3 {
            let (at_once, total) = (at_once.clone(), total.clone());
            let job = Job::new("busy", Duration::ZERO, move |_| {
                let (at_once, total) = (at_once.clone(), total.clone());
                async move {
                    assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                    tokio::time::sleep(QUICK.stale * 2).await;
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    total.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            });
            schedulers.push(scheduler(&app, job, &runs, &stop).await);
        }
        while total.load(Ordering::SeqCst) < 5 {
            tokio::time::sleep(QUICK.look).await;
        }
        stop.cancel();
        for scheduler in schedulers {
            scheduler.finish().await;
        }
        let text = measured(&runs);
        assert!(text.contains("outcome=\"OK\"") && !text.contains("FAILED"), "{text}");
        let held = app.database.texts("SELECT holder AS text FROM leases WHERE holder IS NOT NULL AND name = 'busy'").await;
        assert!(held.is_empty(), "given back");
    }

    async fn a_job_that_fails_is_done_by_another_server(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let done = Arc::new(AtomicUsize::new(0));
        let failing = Job::new("frail", Duration::from_secs(60), |_| async { Err(Error::internal("it is broken here")) });
        let one = scheduler(&app, failing, &runs, &stop).await;
        while !measured(&runs).contains("outcome=\"FAILED\"") {
            tokio::time::sleep(QUICK.look).await;
        }
        let counted = done.clone();
        let job = Job::new("frail", Duration::from_secs(60), move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        });
        let two = scheduler(&app, job, &runs, &stop).await;
        while !measured(&runs).contains("outcome=\"OK\"") {
            tokio::time::sleep(QUICK.look).await;
        }
        // Done, it is not due for a while.
        tokio::time::sleep(QUICK.rest * 2).await;
        stop.cancel();
        one.finish().await;
        two.finish().await;
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    async fn who_loses_a_lease_breaks_off(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let job = Job::new("long", Duration::from_secs(60), |_| std::future::pending());
        let one = scheduler(&app, job, &runs, &stop).await;
        while app.database.texts("SELECT holder AS text FROM leases WHERE holder IS NOT NULL AND name = 'long'").await.is_empty() {
            tokio::time::sleep(QUICK.look).await;
        }
        app.database.execute("UPDATE leases SET holder = 'another', term = term + 1 WHERE name = 'long'").await.unwrap();
        while !measured(&runs).contains("outcome=\"LOST\"") {
            tokio::time::sleep(QUICK.look).await;
        }
        stop.cancel();
        one.finish().await;
        let held = app.database.texts("SELECT holder AS text FROM leases WHERE name = 'long'").await;
        assert_eq!(held, ["another"], "what is another's is not given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_takes_over_when_one_is_killed() {
    let place = Place::new(TestDatabase::postgres().await);
    let mut servers: Vec<_> = (0..3).map(|_| place.serve()).collect();
    let database = &place.database;
    let text = async |sql: &str| database.texts(sql).await.pop();
    while text("SELECT name AS text FROM leases WHERE name = 'cleanup' AND finished_at IS NOT NULL").await.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What it removes from is locked, so that whoever does it is in the middle of it for as long as is wanted.
    let (locker, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    locker.batch_execute("BEGIN; LOCK TABLE invitations IN ACCESS EXCLUSIVE MODE").await.unwrap();
    database.execute("UPDATE leases SET finished_at = NULL WHERE name = 'cleanup'").await.unwrap();
    let state = "SELECT holder || ' ' || term AS text FROM leases WHERE name = 'cleanup' AND holder IS NOT NULL";
    let held = async || {
        let found = text(state).await?;
        let (holder, term) = found.split_once(' ').unwrap();
        Some((holder.to_owned(), term.parse::<i64>().unwrap()))
    };
    let (holder, term) = loop {
        match held().await {
            Some(held) => break held,
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    // Kept twice, and by none of the others.
    loop {
        let (still, now) = held().await.unwrap();
        assert_eq!(still, holder);
        if now >= term + 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let is_holder = |server: &crate::command_line::Served| holder.starts_with(&format!("{}-", server.child.id()));
    let at = servers.iter().position(is_holder).unwrap();
    let mut killed = servers.remove(at);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    locker.batch_execute("COMMIT").await.unwrap();
    let finished =
        "SELECT name AS text FROM leases WHERE name = 'cleanup' AND finished_at IS NOT NULL AND holder IS NULL";
    let taken_over = async {
        while text(finished).await.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), taken_over).await.expect("within a minute");
    // Everybody learns when, with the next look; and who did it says so.
    for server in &servers {
        let name = "claviger_job_last_success_timestamp_seconds{job=\"cleanup\"}";
        until(&server.url, name, |at| at > 0).await;
    }
    let ran = servers
        .iter()
        .map(|server| until(&server.url, "claviger_job_runs_total{job=\"cleanup\",outcome=\"OK\"}", |n| n > 0).boxed());
    futures_util::future::select_all(ran).await;
}
