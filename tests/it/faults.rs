//! Faults around the server: PostgreSQL or Redis stopped, hanging, slow or cut off, a pool that is used up, a disk that is full, a
//! clock that is set. Readiness tells of them, nothing hangs, what is refused is refused clearly, everything comes back by itself,
//! and what was acknowledged is there.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger::http::LiveLimits;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::command_line::Place;
use crate::durability::all;
use crate::many_servers::{Follower, until};
use crate::subscription::ADDED;
use crate::support::{
    Answer, Client, EventStream, PASSWORD, Proxy, Socket, TestApp, TestDatabase, TestPostgres, TestRedis,
    both_databases, in_time,
};

/// Far longer than anything here takes: it only ends what hangs.
const NEVER: Duration = Duration::from_secs(120);
/// How long a request has whose server's limit is [`LIMIT`]: the rest is for a machine that has much else to do. Whoever waits until the
/// fault is over, or for a limit of half a minute, waits longer.
const WITHIN: Duration = Duration::from_secs(20);
/// The time limit of requests, in seconds.
const LIMIT: &str = "2";
const READ: &str = "{ clients { totalCount } }";
const CREATE: &str =
    "mutation($n: String!, $m: JSON) { createClient(input: { name: $n, metadata: $m }) { client { id } } }";

/// A server whose requests have two seconds and four connections.
async fn server(url: &str) -> TestApp {
    let settings = [("REQUEST_TIMEOUT", LIMIT.to_owned()), ("DATABASE_POOL_SIZE", "4".to_owned())];
    TestApp::start(TestDatabase::at(url.to_owned()), settings).await
}

/// Whether it was done. If not, that was told clearly.
#[track_caller]
fn is_done(answer: &Answer) -> bool {
    let is_done = answer.body.get("errors").is_none();
    assert!(is_done || matches!(answer.code(), "SERVICE_UNAVAILABLE" | "TIMEOUT"), "{:#}", answer.body);
    is_done
}

/// Waits until the server says of itself whether it is ready, and what is away.
async fn until_ready(url: &str, is_ready: bool, unavailable: &[&str]) {
    let (status, word) = if is_ready { (200, "ready") } else { (503, "unavailable") };
    let expected = (status, json!({ "status": word, "unavailable": unavailable }));
    in_time(&format!("{expected:?}"), async {
        while readiness(url).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Whatever is away, the process is well.
    let alive = reqwest::get(format!("{url}/health/alive")).await.unwrap();
    assert_eq!(alive.status(), 200);
}

async fn readiness(url: &str) -> (u16, Value) {
    let answer = in_time("readiness", reqwest::get(format!("{url}/health/ready"))).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// People who work all the time.
struct Load {
    tally: Arc<Tally>,
    stop: CancellationToken,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Tally {
    /// The names of the clients whose making was acknowledged.
    made: Mutex<BTreeSet<String>>,
    refused: AtomicUsize,
    /// How long the slowest request took.
    longest: Mutex<Duration>,
}

impl Tally {
    fn made(&self) -> usize {
        self.made.lock().unwrap().len()
    }
}

impl Load {
    /// Three who write and two who read.
    fn begin(client: &Client) -> Self {
        Self::of(client, 5)
    }

    /// So many, every other of whom writes.
    fn of(client: &Client, workers: usize) -> Self {
        let (tally, stop) = (Arc::<Tally>::default(), CancellationToken::new());
        let workers =
            (0..workers).map(|worker| tokio::spawn(work(client.clone(), worker, tally.clone(), stop.clone())));
        Self { workers: workers.collect(), tally, stop }
    }

    /// Waits until so many more were acknowledged.
    async fn until_made(&self, more: usize) {
        let target = self.tally.made() + more;
        self.until("acknowledged", || self.tally.made() >= target).await;
    }

    /// Waits until so many more were refused.
    async fn until_refused(&self, more: usize) {
        let refused = || self.tally.refused.load(Ordering::Relaxed);
        let target = refused() + more;
        self.until("refused", || refused() >= target).await;
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        in_time(what, async {
            while !is_so() {
                assert!(!self.workers.iter().any(JoinHandle::is_finished), "somebody was told what is not clear");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Ends it. All that was acknowledged is there, nothing twice, each with its entry in a log that is whole.
    async fn end(self, client: &Client) {
        self.stop.cancel();
        for worker in self.workers {
            worker.await.unwrap();
        }
        let longest = *self.tally.longest.lock().unwrap();
        assert!(longest < WITHIN, "a request took {longest:?}");
        let names = "query($after: String) { clients(first: 100, after: $after) { nodes { name } pageInfo { hasNextPage endCursor } } }";
        let mut there = all(client, names, "clients", "/name").await;
        there.sort();
        let made = self.tally.made.lock().unwrap().clone();
        let lost: Vec<_> = made.iter().filter(|name| there.binary_search(name).is_err()).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        let entries = "query($after: String) { auditLogs(first: 100, after: $after, filter: { action: [CREATE], resourceType: [CLIENT],
            outcome: [SUCCESS] }) { nodes { changes } pageInfo { hasNextPage endCursor } } }";
        let mut audited = all(client, entries, "auditLogs", "/changes/name/to").await;
        audited.sort();
        assert_eq!(audited, there, "each has exactly one entry");
        is_whole(client).await;
    }
}

/// The log can be verified from its beginning to its end.
async fn is_whole(client: &Client) {
    let answer = client.run("{ auditLogIntegrity { intact } }").await;
    assert_eq!(answer.data()["auditLogIntegrity"]["intact"], true);
}

async fn work(client: Client, worker: usize, tally: Arc<Tally>, stop: CancellationToken) {
    for n in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let name = format!("{worker}-{n}");
        let is_writer = worker.is_multiple_of(2);
        let (query, variables) = if is_writer { (CREATE, json!({ "n": name })) } else { (READ, json!({})) };
        let asked = Instant::now();
        let answer = in_time("a request", client.with(query, variables)).await;
        {
            let mut longest = tally.longest.lock().unwrap();
            *longest = asked.elapsed().max(*longest);
        }
        if !is_done(&answer) {
            tally.refused.fetch_add(1, Ordering::Relaxed);
        } else if is_writer {
            tally.made.lock().unwrap().insert(name);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_stopped_or_hangs_comes_back() {
    let mut postgres = TestPostgres::start().await;
    // What is too slow may be the caller's fault as well: how slow all is here is the machine's affair.
    let patient = LiveLimits { patience: NEVER, ..LiveLimits::default() };
    let app = server(&postgres.database().await.url).await.limited(patient).await;
    let admin = app.admin().await;
    let follower = Follower::of(app.admin().await).await;
    let load = Load::begin(&admin);
    for is_stopped in [true, false, true] {
        load.until_made(20).await;
        if is_stopped {
            postgres.stop();
        } else {
            postgres.hang();
        }
        until_ready(&app.url, false, &["database"]).await;
        load.until_refused(10).await;
        let sign_in = format!(
            "mutation {{ signIn(input: {{ email: \"admin@localhost\", password: {{ plain: \"{PASSWORD}\" }} }}) {{ accessToken }} }}"
        );
        assert!(!is_done(&in_time("a sign-in", app.anonymous().run(&sign_in)).await));
        if is_stopped {
            postgres.start_again();
        } else {
            postgres.go_on();
        }
        until_ready(&app.url, true, &[]).await;
    }
    load.until_made(20).await;
    load.end(&admin).await;
    in_time("the log", follower.has_heard_everything()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_that_the_server_gives_up_are_told_to_come_again() {
    let hasty = LiveLimits { retry: Duration::ZERO, ..LiveLimits::default() };
    let app = server(&TestDatabase::postgres().await.url).await.limited(hasty).await;
    let admin = app.admin().await;
    let mut socket = Socket::connected(&app, &admin).await;
    socket.follow(&app, "1", ADDED).await;
    let mut stream = EventStream::open(&admin, ADDED).await.begun(&app, 2).await;
    until(&app.url, "claviger_bus_connected{transport=\"postgres\"}", |connected| connected == 1).await;
    let locker = app.database.connection().await;
    locker.batch_execute("BEGIN; LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // They look anew who they are.
    app.database.execute("NOTIFY claviger, '?'").await.unwrap();
    assert_eq!(socket.closed().await, (1013, "Try again later".to_owned()));
    while let Some(block) = in_time("the end of the stream", stream.block()).await {
        assert_eq!(block, ":", "an error would be the last word");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_to_postgres_that_is_cut_slow_or_silent_comes_back() {
    let database = TestDatabase::postgres().await;
    let (proxy, url) = Proxy::before(&database.url).await;
    let app = server(&url).await;
    let admin = app.admin().await;
    let load = Load::begin(&admin);
    for _ in 0..5 {
        load.until_made(10).await;
        proxy.cut();
    }
    load.until_made(20).await;
    // A mutation has several statements, of six tenths of a second each by then.
    proxy.slow_down(Duration::from_millis(300));
    load.until_refused(5).await;
    proxy.go_on();
    until_ready(&app.url, true, &[]).await;
    load.until_made(20).await;
    proxy.fall_silent();
    until_ready(&app.url, false, &["database"]).await;
    load.until_refused(10).await;
    proxy.go_on();
    until_ready(&app.url, true, &[]).await;
    load.until_made(20).await;
    // No connection that there was then will ever hear another word, nor that it is over.
    proxy.fall_silent();
    load.until_refused(10).await;
    proxy.forget_connections();
    until_ready(&app.url, true, &[]).await;
    load.until_made(20).await;
    load.end(&admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_given_up_is_stopped_and_holds_up_nobody() {
    let settings = [("REQUEST_TIMEOUT", "300".to_owned()), ("DATABASE_POOL_SIZE", "1".to_owned())];
    let app = TestApp::start(TestDatabase::postgres().await, settings).await;
    let admin = app.admin().await;
    let locker = app.database.connection().await;
    locker.batch_execute("BEGIN; LOCK TABLE clients IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let asking = {
        let admin = admin.clone();
        tokio::spawn(async move { admin.run(READ).await })
    };
    app.database.until_locked_out().await;
    // The caller leaves.
    asking.abort();
    // The one connection that there is serves others, while what was asked for is still locked.
    in_time("another request", admin.run("{ tasks { totalCount } }")).await.data();
    in_time("the end of the statement", async {
        let running = "SELECT pid::text AS text FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while !app.database.texts(running).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    admin.run(READ).await.data();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_for_good_is_given_up() {
    // A read that is given up by its request; and a commit, which is waited for though the caller has been answered.
    for (request, locked) in [
        (READ, "LOCK TABLE clients IN ACCESS EXCLUSIVE MODE"),
        ("mutation { createClient(input: { name: \"C\" }) { client { id } } }", "SELECT 1 FROM audit_heads FOR UPDATE"),
    ] {
        let database = TestDatabase::postgres().await;
        let (proxy, url) = Proxy::before(&database.url).await;
        let settings = [("REQUEST_TIMEOUT", "10".to_owned()), ("DATABASE_POOL_SIZE", "1".to_owned())];
        let app = TestApp::start(TestDatabase::at(url), settings).await;
        let admin = app.admin().await;
        let locker = database.connection().await;
        locker.batch_execute(&format!("BEGIN; {locked}")).await.unwrap();
        let asking = {
            let admin = admin.clone();
            tokio::spawn(async move { admin.run(request).await })
        };
        database.until_locked_out().await;
        proxy.forget_connections();
        locker.batch_execute("COMMIT").await.unwrap();
        assert!(!is_done(&in_time("a refusal", asking).await.unwrap()));
        in_time("another connection", async { while !is_done(&admin.run(READ).await) {} }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_used_up_is_told_of_and_comes_back() {
    let app = server(&TestDatabase::postgres().await.url).await;
    let admin = app.admin().await;
    // Twice as many who write as there are connections: what writes is given up last.
    let load = Load::of(&admin, 16);
    load.until_made(10).await;
    let locker = app.database.connection().await;
    locker.batch_execute("BEGIN; LOCK TABLE clients IN ACCESS EXCLUSIVE MODE").await.unwrap();
    until_ready(&app.url, false, &["database"]).await;
    load.until_refused(10).await;
    locker.batch_execute("COMMIT").await.unwrap();
    until_ready(&app.url, true, &[]).await;
    load.until_made(20).await;
    load.end(&admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_counts_leaves_others_a_connection() {
    let app = server(&TestDatabase::postgres().await.url).await;
    let admin = app.admin().await;
    let locker = app.database.connection().await;
    locker.batch_execute("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // Each asks for something else, so that they share nothing.
    let counts: Vec<_> = (0..12)
        .map(|n| {
            let (admin, query) = (admin.clone(), format!("{{ tasks(search: \"t{n}\") {{ totalCount }} }}"));
            tokio::spawn(async move { admin.run(&query).await })
        })
        .collect();
    // All that may count do.
    let counting = "SELECT count(*)::text AS text FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%tasks%'";
    in_time("two that count", async {
        while app.database.texts(counting).await != ["2"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(is_done(&admin.run("{ viewer { user { id } } }").await));
    assert_eq!(readiness(&app.url).await.0, 200);
    for count in counts {
        assert!(!is_done(&in_time("a count", count).await.unwrap()));
    }
    locker.batch_execute("COMMIT").await.unwrap();
    assert!(is_done(&admin.run("{ tasks { totalCount } }").await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_is_slow_or_is_cut_off_holds_up_nothing() {
    let mut redis = TestRedis::start().await;
    let (proxy, url) = Proxy::before(&redis.url()).await;
    let settings = [("REDIS_URL", url), ("REQUEST_TIMEOUT", "2".to_owned())];
    let app = TestApp::start(TestDatabase::postgres().await, settings).await;
    let admin = app.admin().await;
    let load = Load::begin(&admin);
    for fault in ["hanging", "slow", "silent", "silent for good", "killed"] {
        load.until_made(10).await;
        match fault {
            "hanging" => redis.hang(),
            "slow" => proxy.slow_down(Duration::from_secs(1)),
            "killed" => redis.kill(),
            _ => proxy.fall_silent(),
        }
        until_ready(&app.url, true, &["redis"]).await;
        load.until_made(10).await;
        // By what this server counts itself.
        in_time("a sign-in", app.admin()).await;
        match fault {
            "hanging" => redis.go_on(),
            "silent for good" => proxy.forget_connections(),
            "killed" => redis.revive().await,
            _ => proxy.go_on(),
        }
        until_ready(&app.url, true, &[]).await;
    }
    for _ in 0..3 {
        proxy.cut();
        load.until_made(10).await;
        until_ready(&app.url, true, &[]).await;
    }
    assert_eq!(load.tally.refused.load(Ordering::Relaxed), 0, "nothing was refused for want of Redis");
    load.end(&admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_full_is_told_of_and_written_to_again() {
    let place = Place::new(TestDatabase::sqlite());
    drop(place.serve());
    let server = place.serve_on_a_small_disk();
    let client = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let create = async |n: usize| {
        let metadata = json!({ "text": "x".repeat(20_000) });
        is_done(&client.with(CREATE, json!({ "n": n.to_string(), "m": metadata })).await)
    };
    let (mut made, mut tried) = (0, 0);
    // The last place may be one for a small write and none for a large one.
    while readiness(&server.url).await.0 == 200 {
        made += usize::from(create(tried).await);
        tried += 1;
        assert!(tried < 300, "the disk is never full");
    }
    until_ready(&server.url, false, &["database"]).await;
    assert!(!create(tried).await);
    let count = async || client.run(READ).await.data()["clients"]["totalCount"].clone();
    assert_eq!(count().await, made, "what is there can still be read");
    let id = server.child.id().to_string();
    let freed = Command::new("prlimit").args(["--pid", &id, "--fsize=unlimited"]).status();
    assert!(freed.expect("prlimit is a part of util-linux").success());
    until_ready(&server.url, true, &[]).await;
    assert!(create(tried).await);
    assert_eq!(count().await, made + 1);
    is_whole(&client).await;
}

both_databases! {
    async fn a_clock_that_is_set_back_and_forth_stops_nothing(app: TestApp) {
        let admin = app.admin().await;
        let load = Load::begin(&admin);
        for step in [-7_200, 3_600, -86_400, 80_000] {
            load.until_made(10).await;
            app.advance(step);
            let late = app.admin().await;
            assert!(is_done(&late.run(READ).await));
            let refresh = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { accessToken } }";
            assert!(is_done(&app.anonymous().with(refresh, json!({ "t": late.refresh_token })).await));
        }
        load.until_made(10).await;
        assert_eq!(load.tally.refused.load(Ordering::Relaxed), 0);
        load.end(&admin).await;
        app.advance(400 * 24 * 3_600);
        assert_eq!(admin.run(READ).await.code(), "UNAUTHENTICATED");
        let late = app.admin().await;
        assert!(is_done(&late.with(CREATE, json!({ "n": "late" })).await));
        app.advance(-800 * 24 * 3_600);
        let early = app.admin().await;
        assert!(is_done(&early.with(CREATE, json!({ "n": "early" })).await));
        is_whole(&early).await;
    }
}
