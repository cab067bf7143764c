//! What servers do by themselves: each job on one server at a time, and the cleanup of what has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use claviger::app::App;
use claviger::domain::{Error, expired};
use claviger::jobs::{Job, Runs, Scheduler, Timing};
use claviger::store;
use claviger::store::expired::Ended;
use claviger::store::job_lease::{self, Lease};
use futures_util::FutureExt as _;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::command_line::{Place, Served};
use crate::many_servers::until;
use crate::support::{TestApp, TestDatabase, both_databases};

/// Far longer than anything here takes.
const NEVER: Duration = Duration::from_secs(120);
/// Looks often, and holds a lease for longer than a machine that has much to do stands still.
const QUICK: Timing = Timing {
    poll: Duration::from_millis(50),
    renew: Duration::from_millis(50),
    renew_deadline: Duration::from_secs(30),
    lease_duration: Duration::from_secs(40),
    backoff: Duration::from_secs(60),
};
const REFRESH: &str = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { refreshToken } }";

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, work).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Waits until something holds.
async fn until_holds(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    in_time(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn count(database: &TestDatabase, of: &str) -> usize {
    database.texts(&format!("SELECT CAST(count(*) AS text) AS text FROM {of}")).await[0].parse().unwrap()
}

async fn refreshed(app: &TestApp, token: &Value) -> Value {
    app.anonymous().with(REFRESH, json!({ "t": token })).await.data()["refreshSession"]["refreshToken"].clone()
}

/// Makes times so many days older, as if those had passed: the database's own clock is not the test's to move.
pub(crate) async fn age(app: &TestApp, columns: &[(&str, &str)], days: u32) {
    for (table, column) in columns {
        let older = if app.database.url.starts_with("postgres") {
            format!("{column} - interval '{days} days'")
        } else {
            format!("strftime('%Y-%m-%dT%H:%M:%f000Z', {column}, '-{days} days')")
        };
        app.database.execute(&format!("UPDATE {table} SET {column} = {older}")).await.unwrap();
    }
}

/// What a session lives by.
const SESSIONS: [(&str, &str); 3] =
    [("sessions", "expires_at"), ("refresh_tokens", "created_at"), ("invitations", "expires_at")];

/// Removes what has ended, until so many sessions, tokens and invitations are left: what the server's own job is at is left to it.
async fn until_left(app: &TestApp, beside: &App, left: [usize; 3]) {
    until_holds(&format!("{left:?} rows"), async || {
        expired::remove(&beside.services).await.unwrap();
        let mut found = Vec::new();
        for table in ["sessions", "refresh_tokens", "invitations"] {
            found.push(count(&app.database, table).await);
        }
        assert!(found.iter().zip(left).all(|(found, left)| *found >= left), "{found:?}: fewer than {left:?}");
        found == left
    })
    .await;
}

/// What is measured of runs.
fn measured(runs: &Runs) -> String {
    let mut registry = Registry::default();
    registry.register("runs", "", runs.total.clone());
    registry.register("last_success", "", runs.last_success.clone());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// How many runs of a job ended so.
fn ended(runs: &Runs, job: &str, outcome: &str) -> usize {
    let name = format!("runs_total{{job=\"{job}\",outcome=\"{outcome}\"}} ");
    measured(runs).lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
}

async fn until_ended(runs: &Runs, job: &str, outcome: &str) {
    until_holds(&format!("{job} {outcome}"), async || ended(runs, job, outcome) > 0).await;
}

/// A scheduler of a server of its own on the application's database.
async fn scheduler(app: &TestApp, jobs: Vec<Job>, timing: Timing, runs: &Runs, stop: &CancellationToken) -> Scheduler {
    Scheduler::start(jobs, app.beside().await.services, timing, runs.clone(), stop.clone())
}

/// A job that does nothing but count, with each look of the only server that has it.
fn ticks(name: &'static str) -> (Job, Arc<AtomicUsize>) {
    let ticks = Arc::new(AtomicUsize::new(0));
    let counted = ticks.clone();
    let job = Job::new(name, Duration::ZERO, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    });
    (job, ticks)
}

/// Waits until a server has looked several times more.
async fn until_looked(ticks: &AtomicUsize) {
    let enough = ticks.load(Ordering::SeqCst) + 10;
    until_holds("looks", async || ticks.load(Ordering::SeqCst) >= enough).await;
}

/// One that is in something, until it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Inside {
    /// Returns how many there are with it.
    fn of(count: &Arc<AtomicUsize>) -> (Self, usize) {
        (Self(count.clone()), count.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A column of a job's lease, where it is not null.
async fn lease(database: &TestDatabase, job: &str, column: &str) -> Option<String> {
    let sql =
        format!("SELECT CAST({column} AS text) AS text FROM leases WHERE name = '{job}' AND {column} IS NOT NULL");
    database.texts(&sql).await.pop()
}

both_databases! {
    async fn what_has_ended_is_kept_for_a_while_and_then_removed(app: TestApp) {
        let beside = app.beside().await;
        let admin = app.admin().await;
        let idle = app.admin().await;
        let gone = app.admin().await;
        gone.run("mutation { signOut { signedOut } }").await.data();
        let invite = "mutation { inviteUser(input: { email: \"ina@example.com\", fullName: \"Ina\", role: MEMBER }) { user { id } } }";
        admin.run(invite).await.data();
        let mut tokens = vec![json!(admin.refresh_token)];
        // The one that is used stays signed in: refreshed every 20 days, while the others end after 30. The invitation had 7 days,
        // and is gone once it has been kept for 7 more.
        for left in [[3, 3, 0], [3, 4, 0]] {
            age(&app, &SESSIONS, 18).await;
            until_left(&app, &beside, left).await;
            tokens.push(refreshed(&app, tokens.last().unwrap()).await);
        }
        // 36 days: within the week that is kept after the end.
        let late = app.anonymous().with(REFRESH, json!({ "t": idle.refresh_token })).await;
        assert_eq!(late.code(), "UNAUTHENTICATED");
        age(&app, &SESSIONS, 2).await;
        until_left(&app, &beside, [1, 3, 0]).await;
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
        let beside = app.beside().await;
        let admin = app.admin().await;
        let made = admin.run("mutation { createApiKey(input: { name: \"K\", scopes: [ADMIN_READ] }) { apiKey { id } rawKey } }").await;
        let made = made.data()["createApiKey"].clone();
        let regenerate = "mutation($id: ID!) { regenerateApiKey(input: { id: $id, gracePeriodHours: 1 }) { rawKey } }";
        let newer = admin.with(regenerate, json!({ "id": made["apiKey"]["id"] })).await.data()["regenerateApiKey"]["rawKey"].clone();
        let verified = async |key: &Value| {
            // Past what is kept of it for seconds.
            app.advance(6);
            let answer = app.anonymous().with("query($k: String!) { verifyApiKey(key: $k) { code } }", json!({ "k": key })).await;
            answer.data()["verifyApiKey"]["code"].clone()
        };
        age(&app, &[("api_key_digests", "expires_at")], 7).await;
        expired::remove(&beside.services).await.unwrap();
        assert_eq!((verified(&made["rawKey"]).await, verified(&newer).await), (json!("EXPIRED"), json!("VALID")));
        age(&app, &[("api_key_digests", "expires_at")], 1).await;
        until_holds("the removal", async || {
            expired::remove(&beside.services).await.unwrap();
            count(&app.database, "api_key_digests").await == 1
        }).await;
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
        age(&app, &[("mail_tokens", "expires_at")], 1).await;
        expired::remove(&beside).await.unwrap();
        assert_eq!(count(&app.database, "mail_tokens").await, 0);
    }

    async fn what_is_removed_takes_several_transactions_where_it_is_much(app: TestApp) {
        let time = if app.database.url.starts_with("postgres") {
            "CAST('2001-01-01T00:00:00.000000Z' AS timestamptz)"
        } else {
            "'2001-01-01T00:00:00.000000Z'"
        };
        // The server's own first run is over.
        until_holds("a first cleanup", async || lease(&app.database, "cleanup", "finished_at").await.is_some()).await;
        let sessions = "SELECT 'sess_0000000000000000000' || CAST(1000000 + i AS text), organization_id, id, 1, NULL, NULL, created_at, created_at,";
        app.database.execute(&format!(
            "INSERT INTO sessions (id, organization_id, user_id, generation, ip_address, user_agent, created_at, last_used_at,
                 expires_at, revoked_at)
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 301) {sessions} {time}, NULL FROM users, n"
        )).await.unwrap();
        // The first has very many tokens, the others two each.
        let digest = if app.database.url.starts_with("postgres") {
            "decode(md5(session || '-' || CAST(i AS text)), 'hex')"
        } else {
            "CAST(session || '-' || CAST(i AS text) AS BLOB)"
        };
        let tokens = format!(
            "INSERT INTO refresh_tokens (id, session_id, digest, generation, created_at)
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200),
                 t(session, i) AS (SELECT sessions.id, n.i FROM sessions, n
                     WHERE sessions.id LIKE 'sess_0000000000000000000%' AND (n.i <= 2 OR sessions.id LIKE '%1000001'))
             SELECT 'rtok_' || substr(session, 25, 7) || CAST(1000000000000000000 + i AS text), session, {digest}, i, {time} FROM t"
        );
        app.database.execute(&tokens).await.unwrap();
        let beside = app.beside().await.services;
        let before = (count(&app.database, "sessions").await, count(&app.database, "refresh_tokens").await);
        assert_eq!(before, (301, 1800));
        for _ in 0..4 {
            let removed = store::expired::remove(&beside.db, Ended::Sessions, beside.clock.now(), 500).await.unwrap();
            assert!(removed <= 500, "{removed}");
        }
        // Sessions go with their tokens: none that has lost its own is passed over again and again.
        let bare = "sessions WHERE NOT EXISTS (SELECT 1 FROM refresh_tokens WHERE session_id = sessions.id)";
        assert!(count(&app.database, bare).await <= 100);
        // The server may be at it too.
        until_holds("the end", async || {
            expired::remove(&beside).await.unwrap();
            count(&app.database, "sessions").await + count(&app.database, "refresh_tokens").await == 0
        }).await;
    }

    async fn a_lease_is_one_servers(app: TestApp) {
        let (one, two) = (app.beside().await.services, app.beside().await.services);
        let lease = Lease::new("a job", one.clock.now());
        assert!(job_lease::add(&one.db, &lease).await.unwrap());
        assert!(!job_lease::add(&two.db, &lease).await.unwrap());
        let taken = |holder: &str| Lease { holder: Some(holder.to_owned()), ..lease.clone() };
        let held = job_lease::change(&one.db, &lease, taken("one")).await.unwrap().unwrap();
        assert_eq!(job_lease::change(&two.db, &lease, taken("two")).await.unwrap(), None);
        let mut conn = two.db.read().await.unwrap();
        assert!(job_lease::find_all(&mut conn).await.unwrap().contains(&held));
        assert_eq!(job_lease::find(&mut conn, "a job").await.unwrap(), Some(held));
    }

    async fn a_job_runs_on_one_server_at_a_time(app: TestApp) {
        // Each run lasts for longer than a lease that is not renewed.
        let timing = Timing { renew_deadline: Duration::from_secs(2), lease_duration: Duration::from_secs(4), ..QUICK };
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut schedulers = Vec::new();
        for _ in 0..3 {
            let (inside, most) = (inside.clone(), most.clone());
            let job = Job::new("busy", Duration::ZERO, move |_| {
                let (inside, most) = (inside.clone(), most.clone());
                async move {
                    let (_inside, count) = Inside::of(&inside);
                    most.fetch_max(count, Ordering::SeqCst);
                    tokio::time::sleep(timing.lease_duration * 3 / 2).await;
                    Ok(())
                }
            });
            schedulers.push(scheduler(&app, vec![job], timing, &runs, &stop).await);
        }
        until_holds("two runs", async || ended(&runs, "busy", "ok") >= 2).await;
        stop.cancel();
        for scheduler in schedulers {
            in_time("the end", scheduler.finish()).await;
        }
        assert_eq!((most.load(Ordering::SeqCst), ended(&runs, "busy", "failed")), (1, 0));
        assert_eq!(lease(&app.database, "busy", "holder").await, None, "released");
    }

    async fn a_job_that_fails_is_done_by_another_server(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let failing = Job::new("frail", Duration::from_secs(60), |_| async { Err(Error::internal("it is broken here")) });
        let (tick, ticks_of_one) = ticks("one");
        let one = scheduler(&app, vec![failing, tick], QUICK, &runs, &stop).await;
        until_ended(&runs, "frail", "failed").await;
        let job = Job::new("frail", Duration::from_secs(60), |_| async { Ok(()) });
        let (tick, ticks_of_two) = ticks("two");
        let two = scheduler(&app, vec![job, tick], QUICK, &runs, &stop).await;
        until_ended(&runs, "frail", "ok").await;
        // Done, it is not due for a while.
        until_looked(&ticks_of_one).await;
        until_looked(&ticks_of_two).await;
        stop.cancel();
        in_time("the end", one.finish()).await;
        in_time("the end", two.finish()).await;
        assert_eq!((ended(&runs, "frail", "ok"), ended(&runs, "frail", "failed")), (1, 1));
    }

    async fn clocks_that_are_hours_apart_do_not_make_a_job_run_without_end(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let mut servers = Vec::new();
        for (name, hours) in [("one", 0), ("two", 2)] {
            let (tick, ticks) = ticks(name);
            let hourly = Job::new("hourly", Duration::from_secs(3600), |_| async { Ok(()) });
            let services = app.beside_by(app.clock_ahead(TimeDelta::hours(hours))).await.services;
            servers.push((Scheduler::start(vec![hourly, tick], services, QUICK, runs.clone(), stop.clone()), ticks));
            // Whatever the time was at which it was done last, there is one at most until it is due by anybody's clock.
            until_looked(&servers[0].1).await;
        }
        for (_, ticks) in &servers {
            until_looked(ticks).await;
        }
        stop.cancel();
        for (scheduler, _) in servers {
            in_time("the end", scheduler.finish()).await;
        }
        assert!((1..=2).contains(&ended(&runs, "hourly", "ok")), "{}", measured(&runs));
    }

    async fn everything_is_measured_before_it_happens(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        stop.cancel();
        let idle = Job::new("idle", Duration::from_secs(60), |_| async { Ok(()) });
        in_time("the end", scheduler(&app, vec![idle], QUICK, &runs, &stop).await.finish()).await;
        for outcome in ["ok", "failed", "lost", "stopped"] {
            assert_eq!(ended(&runs, "idle", outcome), 0);
        }
        assert!(measured(&runs).contains("last_success{job=\"idle\"} 0\n"), "{}", measured(&runs));
    }

    async fn who_loses_a_lease_breaks_off(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let job = Job::new("long", Duration::from_secs(60), |_| std::future::pending());
        let one = scheduler(&app, vec![job], Timing { lease_duration: NEVER * 2, ..QUICK }, &runs, &stop).await;
        until_holds("a holder", async || lease(&app.database, "long", "holder").await.is_some()).await;
        app.database.execute("UPDATE leases SET holder = 'another', term = term + 1 WHERE name = 'long'").await.unwrap();
        until_ended(&runs, "long", "lost").await;
        stop.cancel();
        in_time("the end", one.finish()).await;
        assert_eq!(lease(&app.database, "long", "holder").await.as_deref(), Some("another"), "what is another's is not released");
    }

    async fn a_renewal_whose_answer_was_lost_costs_no_lease(app: TestApp) {
        let (stop, runs) = (CancellationToken::new(), Runs::default());
        let gate = Arc::new(Semaphore::new(0));
        let waited = gate.clone();
        let job = Job::new("long", Duration::from_secs(60), move |_| {
            let gate = waited.clone();
            async move {
                gate.acquire().await.map_err(Error::internal)?.forget();
                Ok(())
            }
        });
        let one = scheduler(&app, vec![job], QUICK, &runs, &stop).await;
        until_holds("a holder", async || lease(&app.database, "long", "holder").await.is_some()).await;
        let renewed_unheard = async || {
            // As if the holder had done it, and had not heard that it was done.
            app.database.execute("UPDATE leases SET term = term + 1 WHERE name = 'long'").await.unwrap();
            lease(&app.database, "long", "term").await
        };
        for _ in 0..3 {
            let term = renewed_unheard().await;
            until_holds("a renewal", async || lease(&app.database, "long", "term").await != term).await;
        }
        renewed_unheard().await;
        gate.add_permits(1);
        until_ended(&runs, "long", "ok").await;
        stop.cancel();
        in_time("the end", one.finish()).await;
        assert_eq!((ended(&runs, "long", "lost"), lease(&app.database, "long", "holder").await), (0, None));
        assert!(lease(&app.database, "long", "finished_at").await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_ahead_of_the_databases_removes_nothing() {
    let app = TestApp::postgres().await;
    app.admin().await;
    let (there, ahead) =
        (count(&app.database, "sessions").await, app.beside_by(app.clock_ahead(TimeDelta::days(40))).await);
    assert_eq!((there, expired::remove(&ahead.services).await.unwrap()), (1, 0));
    assert_eq!(count(&app.database, "sessions").await, 1);
}

/// What cannot be had hangs for longer than anything here takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_holds_up_neither_the_end_of_a_lease_nor_the_servers_own() {
    let app = TestApp::patient().await;
    let (stop, runs) = (CancellationToken::new(), Runs::default());
    let timing = Timing { renew_deadline: Duration::from_secs(1), ..QUICK };
    let job = Job::new("long", Duration::from_secs(60), |_| std::future::pending());
    let one = scheduler(&app, vec![job], timing, &runs, &stop).await;
    until_holds("a holder", async || lease(&app.database, "long", "holder").await.is_some()).await;
    let locker = app.database.connection().await;
    locker.batch_execute("BEGIN; LOCK TABLE leases IN ACCESS EXCLUSIVE MODE").await.unwrap();
    until_ended(&runs, "long", "lost").await;
    stop.cancel();
    in_time("the end", one.finish()).await;
    locker.batch_execute("ROLLBACK").await.unwrap();
}

/// Three servers, the process of one of which is in the middle of the cleanup until the lock is released.
struct Cleaning {
    place: Place,
    servers: Vec<Served>,
    at_it: Served,
    locker: tokio_postgres::Client,
}

impl Cleaning {
    async fn start() -> Self {
        let place = Place::new(TestDatabase::postgres().await);
        let mut servers: Vec<_> = (0..3).map(|_| place.serve()).collect();
        let database = &place.database;
        until_holds("a first cleanup", async || lease(database, "cleanup", "finished_at").await.is_some()).await;
        until_holds("its end", async || lease(database, "cleanup", "holder").await.is_none()).await;
        // What it removes from is locked, so that whoever does it is in the middle of it for as long as is wanted.
        let locker = database.connection().await;
        locker.batch_execute("BEGIN; LOCK TABLE invitations IN ACCESS EXCLUSIVE MODE").await.unwrap();
        database.execute("UPDATE leases SET finished_at = NULL WHERE name = 'cleanup'").await.unwrap();
        until_holds("a holder", async || lease(database, "cleanup", "holder").await.is_some()).await;
        let holder = lease(database, "cleanup", "holder").await.unwrap();
        let term = async || lease(database, "cleanup", "term").await.unwrap().parse::<i64>().unwrap();
        let begun = term().await;
        // Renewed twice, and by none of the others.
        until_holds("renewals", async || {
            assert_eq!(lease(database, "cleanup", "holder").await.as_ref(), Some(&holder));
            term().await >= begun + 2
        })
        .await;
        let is_holder = |server: &Served| holder.starts_with(&format!("{}-", server.child.id()));
        let at_it = servers.remove(servers.iter().position(is_holder).unwrap());
        Self { place, servers, at_it, locker }
    }

    /// Another does it. Returns what stands in the lease then.
    async fn until_taken_over(&self) -> (Option<String>, Option<String>) {
        self.locker.batch_execute("COMMIT").await.unwrap();
        let database = &self.place.database;
        until_holds("another's cleanup", async || lease(database, "cleanup", "finished_at").await.is_some()).await;
        until_holds("its end", async || lease(database, "cleanup", "holder").await.is_none()).await;
        // Everybody learns when, with the next look; and who did it says so.
        for server in &self.servers {
            let name = "claviger_job_last_success_timestamp_seconds{job=\"cleanup\"}";
            until(&server.url, name, |at| at > 0).await;
        }
        let name = runs_of_cleanup("ok");
        let ran = self.servers.iter().map(|server| until(&server.url, &name, |n| n > 0).boxed());
        futures_util::future::select_all(ran).await;
        self.lease().await
    }

    async fn lease(&self) -> (Option<String>, Option<String>) {
        let database = &self.place.database;
        (lease(database, "cleanup", "term").await, lease(database, "cleanup", "finished_at").await)
    }
}

/// How often a server has ended a cleanup, however.
async fn runs_of(url: &str) -> i64 {
    let text = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    let runs = text.lines().filter(|line| line.starts_with("claviger_job_runs_total{job=\"cleanup\""));
    runs.map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum()
}

fn runs_of_cleanup(outcome: &str) -> String {
    format!("claviger_job_runs_total{{job=\"cleanup\",outcome=\"{outcome}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_takes_over_when_one_is_killed() {
    let mut cleaning = Cleaning::start().await;
    cleaning.at_it.child.kill().unwrap();
    cleaning.at_it.child.wait().unwrap();
    cleaning.until_taken_over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stood_still_changes_nothing_of_what_another_has_taken_over() {
    let cleaning = Cleaning::start().await;
    let signal = |name: &str| {
        let id = cleaning.at_it.child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    let url = &cleaning.at_it.url;
    let before = runs_of(url).await;
    signal("-STOP");
    let left = cleaning.until_taken_over().await;
    signal("-CONT");
    // It goes on where it was, and breaks off or comes to its end, which is none that counts.
    until_holds("an end", async || runs_of(url).await > before).await;
    assert_eq!(cleaning.lease().await, left);
}
