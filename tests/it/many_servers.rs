//! Three servers on one PostgreSQL, with Redis and without: what one does holds on the others at once, and the end of one is
//! the end of nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::command_line::{Place, Served};
use crate::invitation::invite;
use crate::support::{Answer, Behaviour, Client, EventStream, PASSWORD, SmtpSink, TestDatabase, TestRedis};

/// Less than the five seconds for which a server believes what it has read: where who is refused was read later, it was told of.
const BELIEVED: Duration = Duration::from_secs(4);
/// How often what took longer is done again: the machine may have had much else to do.
const ROUNDS: usize = 10;
/// Far longer than anything here takes.
const NEVER: Duration = Duration::from_secs(60);
const READ: &str = "{ clients { totalCount } }";
const ADDED: &str = "subscription { auditLogAdded { id } }";

pub(crate) struct Servers {
    place: Place,
    redis: Option<TestRedis>,
    more: Vec<(&'static str, String)>,
    pub(crate) running: Vec<Served>,
}

impl Servers {
    async fn start(with_redis: bool) -> Self {
        Self::start_with(with_redis, Vec::new()).await
    }

    /// With more settings.
    pub(crate) async fn start_with(with_redis: bool, more: Vec<(&'static str, String)>) -> Self {
        let redis = if with_redis { Some(TestRedis::start().await) } else { None };
        let mut servers = Self { place: Place::new(TestDatabase::postgres().await), redis, more, running: Vec::new() };
        for _ in 0..3 {
            servers.add();
        }
        for at in 0..3 {
            servers.until_connected(at, 1).await;
        }
        servers
    }

    fn add(&mut self) {
        self.running.push(Place::started(self.command(&["serve"])));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command(arguments);
        command.env("FRONTEND_URL", "https://app.example.com").env("RATE_LIMIT_USER_PER_MINUTE", "0");
        command.envs(self.more.iter().cloned());
        if let Some(redis) = &self.redis {
            command.env("REDIS_URL", redis.url());
        }
        command
    }

    /// Ends all sessions of the first administrator from the command line, which is one more process.
    fn sign_out_by_command(&self) {
        let mut command = self.command(&["admin", "reset-password", "--email", "admin@localhost", "--password-stdin"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(PASSWORD.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// The first administrator is signed out by the command line, and refused by a server. Returns when that had read that they are
    /// not.
    async fn signed_out_elsewhere(&self, at: usize) -> Instant {
        let elsewhere = self.admin(at).await;
        let read = Instant::now();
        elsewhere.run(READ).await.data();
        self.sign_out_by_command();
        until_refused(&elsewhere).await;
        read
    }

    /// A client of a server, signed in there as the first administrator.
    pub(crate) async fn admin(&self, at: usize) -> Client {
        self.client(at).signed_in("admin@localhost", PASSWORD).await
    }

    fn client(&self, at: usize) -> Client {
        Client::new(&self.running[at].url)
    }

    fn connected(&self) -> &'static str {
        if self.redis.is_some() {
            "claviger_bus_connected{transport=\"redis\"}"
        } else {
            "claviger_bus_connected{transport=\"postgres\"}"
        }
    }

    async fn until_connected(&self, at: usize, value: i64) {
        until(&self.running[at].url, self.connected(), |found| found == value).await;
    }
}

/// Waits until a metric of a server has a value that is meant.
pub(crate) async fn until(url: &str, name: &str, is_meant: impl Fn(i64) -> bool) {
    let waiting = async {
        loop {
            let text = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            if found.is_some_and(&is_meant) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(NEVER, waiting).await.unwrap_or_else(|_| panic!("{name} at {url}"));
}

/// Asks until it is refused.
pub(crate) async fn until_refused(client: &Client) {
    let waiting = async {
        loop {
            let answer = client.run(READ).await;
            if answer.body.get("errors").is_some() {
                return answer.code().to_owned();
            }
        }
    };
    assert_eq!(tokio::time::timeout(NEVER, waiting).await.expect("refused"), "UNAUTHENTICATED");
}

/// Does rounds that end a caller's access while servers believe what they have read of it, each of which returns when that was
/// read. One round at least has ended before it was believed no longer: then the servers were told.
async fn refused_at_once(mut round: impl AsyncFnMut() -> Instant) {
    for _ in 0..ROUNDS {
        if round().await.elapsed() < BELIEVED {
            return;
        }
    }
    panic!("refused only when what was read was believed no longer");
}

/// A subscription to the log, with everything that it was sent since it began.
pub(crate) struct Follower {
    stream: EventStream,
    client: Client,
    /// The last entry before it began.
    before: String,
}

impl Follower {
    pub(crate) async fn of(client: Client) -> Self {
        let stream = EventStream::open(&client, ADDED).await;
        until(&client.url, "claviger_subscriptions_active", |found| found == 1).await;
        let before = log(&client).await.pop().unwrap();
        Self { stream, client, before }
    }

    /// Every entry came once, and in the log's order, to that of a deed that is done now.
    pub(crate) async fn has_heard_everything(mut self) -> EventStream {
        let last = create(&self.client, "The end").await;
        let mut heard = Vec::new();
        while heard.last() != Some(&last) {
            let (name, body) = self.stream.event().await.unwrap();
            assert_eq!((name.as_str(), body.get("errors")), ("next", None), "{body}");
            heard.push(body["data"]["auditLogAdded"]["id"].as_str().unwrap().to_owned());
        }
        let mut expected = log(&self.client).await;
        let begun = expected.iter().position(|id| *id == self.before).unwrap() + 1;
        expected.drain(..begun);
        let end = expected.iter().position(|id| *id == last).unwrap() + 1;
        expected.truncate(end);
        assert_eq!(heard, expected);
        self.stream
    }
}

/// Makes a client: the id of its entry in the log.
async fn create(client: &Client, name: &str) -> String {
    let create = "mutation($n: String!) { createClient(input: { name: $n }) { client { id } } }";
    let id = client.with(create, json!({ "n": name })).await.data()["createClient"]["client"]["id"].clone();
    let entry = "query($id: ID!) { auditLogs(first: 1, filter: { resourceId: $id }) { nodes { id } } }";
    client.with(entry, json!({ "id": id })).await.data()["auditLogs"]["nodes"][0]["id"].as_str().unwrap().to_owned()
}

/// The ids of all entries, in the log's order.
async fn log(client: &Client) -> Vec<String> {
    let query =
        "query($a: String) { auditLogs(first: 100, after: $a) { nodes { id } pageInfo { hasNextPage endCursor } } }";
    let mut found = pages(client, query, "auditLogs", "id").await;
    found.reverse();
    found
}

async fn pages(client: &Client, query: &str, list: &str, field: &str) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = client.with(query, json!({ "a": after })).await.data()[list].clone();
        found.extend(page["nodes"].as_array().unwrap().iter().map(|node| node[field].as_str().unwrap().to_owned()));
        if page["pageInfo"]["hasNextPage"] == false {
            return found;
        }
        after = page["pageInfo"]["endCursor"].clone();
    }
}

/// Makes clients, or other things, until the server is gone or it is told to stop, and notes each that was acknowledged.
async fn work(
    client: Client,
    query: &'static str,
    worker: usize,
    done: Arc<Mutex<BTreeSet<String>>>,
    stop: CancellationToken,
) {
    for n in 0.. {
        let name = format!("{worker}-{n}@example.com");
        let request =
            client.http().post(format!("{}/graphql", client.url)).bearer_auth(client.access_token.as_ref().unwrap());
        let request = request.json(&json!({ "query": query, "variables": { "n": name } }));
        let Ok(response) = request.send().await else { return };
        let Ok(answer) = response.json::<Value>().await else { return };
        if answer.get("errors").is_none() {
            done.lock().unwrap().insert(name);
        }
        if stop.is_cancelled() {
            return;
        }
    }
}

async fn who_is_suspended_or_revoked_on_one_is_refused_on_the_others(with_redis: bool) {
    let servers = Servers::start(with_redis).await;
    let admin = servers.admin(0).await;
    let (user, token) = invite(&admin, "ina@example.com", "MEMBER").await;
    let accept = "mutation($t: String!, $p: String!) { acceptInvitation(input: { token: $t, password: { plain: $p } }) { accessToken } }";
    servers.client(0).with(accept, json!({ "t": token, "p": PASSWORD })).await.data();
    let change = "mutation($id: ID!, $s: UserStatus!) { updateUser(input: { id: $id, status: $s }) { user { id } } }";
    refused_at_once(async || {
        let elsewhere = servers.client(1).signed_in("ina@example.com", PASSWORD).await;
        let mut third = servers.client(2);
        third.access_token.clone_from(&elsewhere.access_token);
        let read = Instant::now();
        for client in [&elsewhere, &third] {
            client.run(READ).await.data();
        }
        admin.with(change, json!({ "id": user["id"], "s": "SUSPENDED" })).await.data();
        tokio::join!(until_refused(&elsewhere), until_refused(&third));
        admin.with(change, json!({ "id": user["id"], "s": "ACTIVE" })).await.data();
        read
    })
    .await;
    refused_at_once(async || {
        let made = admin
            .run("mutation { createApiKey(input: { name: \"K\", scopes: [ADMIN_READ] }) { apiKey { id } rawKey } }")
            .await;
        let made = &made.data()["createApiKey"];
        let mut elsewhere = servers.client(1);
        elsewhere.access_token = made["rawKey"].as_str().map(str::to_owned);
        let read = Instant::now();
        elsewhere.run(READ).await.data();
        let revoke = "mutation($id: ID!) { revokeApiKey(input: { id: $id }) { apiKey { id } } }";
        admin.with(revoke, json!({ "id": made["apiKey"]["id"] })).await.data();
        until_refused(&elsewhere).await;
        read
    })
    .await;
    // The command line is one more process that is heard.
    refused_at_once(async || servers.signed_out_elsewhere(1).await).await;
}

/// Kills the third server while two are under load. Returns what was acknowledged.
async fn kill_one_under_load(servers: &mut Servers, query: &'static str, before_and_after: usize) -> BTreeSet<String> {
    let (done, stop) = (Arc::new(Mutex::new(BTreeSet::new())), CancellationToken::new());
    let mut workers = Vec::new();
    for worker in 0..6 {
        let client = servers.admin([0, 2][worker % 2]).await;
        workers.push(tokio::spawn(work(client, query, worker, done.clone(), stop.clone())));
    }
    let count = || done.lock().unwrap().len();
    while count() < before_and_after {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut killed = servers.running.remove(2);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let target = count() + before_and_after;
    while count() < target {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    for worker in workers {
        worker.await.unwrap();
    }
    done.lock().unwrap().clone()
}

async fn one_is_killed_under_load(with_redis: bool) {
    let mut servers = Servers::start(with_redis).await;
    let follower = Follower::of(servers.admin(1).await).await;
    let create = "mutation($n: String!) { createClient(input: { name: $n }) { client { id } } }";
    let done = kill_one_under_load(&mut servers, create, 40).await;
    let client = servers.admin(0).await;
    let query =
        "query($a: String) { clients(first: 100, after: $a) { nodes { name } pageInfo { hasNextPage endCursor } } }";
    let there: BTreeSet<_> = pages(&client, query, "clients", "name").await.into_iter().collect();
    assert!(done.is_subset(&there), "lost: {:?}", done.difference(&there));
    follower.has_heard_everything().await;
}

/// SMTP cannot say "once": what a server had in hand when it was killed may have been taken, and is sent again under its id.
async fn no_mail_is_lost_when_one_is_killed(with_redis: bool) {
    /// How many mails a server sends at once.
    const IN_HAND: usize = 4;
    let sink = SmtpSink::start(Behaviour::Take).await;
    let mut servers = Servers::start_with(with_redis, sink.settings().to_vec()).await;
    let follower = Follower::of(servers.admin(1).await).await;
    let deed = "mutation($n: String!) { inviteUser(input: { email: $n, fullName: \"Somebody\", role: MEMBER }) { user { id } } }";
    let invited = kill_one_under_load(&mut servers, deed, 20).await;
    follower.has_heard_everything().await;
    // Those that go on finish what they have in hand. What is left then and was begun, the killed one had.
    for server in servers.running.drain(..) {
        server.stop();
    }
    let database = &servers.place.database;
    let in_hand = database.texts("SELECT id AS text FROM outbox WHERE attempts > 0").await;
    assert!(in_hand.len() <= IN_HAND, "{in_hand:?}");
    // Its five minutes are over.
    database.execute("UPDATE outbox SET due_at = created_at").await.unwrap();
    servers.add();
    let database = &servers.place.database;
    let sent = async {
        while !database.texts("SELECT id AS text FROM outbox").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(NEVER, sent).await.expect("all are sent");
    let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for mail in sink.seen() {
        ids.entry(mail.to.clone()).or_default().push(mail.header("Message-ID").to_owned());
    }
    let lost: Vec<_> = invited.iter().filter(|email| !ids.contains_key(*email)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let users: BTreeSet<_> = database.texts("SELECT email AS text FROM users").await.into_iter().collect();
    for (email, ids) in ids {
        assert!(users.contains(&email), "{email} is told of what never was");
        let may_be_doubled = in_hand.iter().any(|id| ids[0] == format!("<{id}@claviger.example>"));
        assert!(ids.len() == 1 || (may_be_doubled && ids.len() == 2 && ids[0] == ids[1]), "{email}: {ids:?}");
    }
}

async fn refreshes_on_all_servers_at_once_leave_one_family(with_redis: bool) {
    let servers = Servers::start(with_redis).await;
    let signed_in = servers.admin(0).await;
    let refresh = async |at: usize, token: &str| {
        let refresh = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { refreshToken } }";
        servers.client(at).with(refresh, json!({ "t": token })).await
    };
    let successor = |answer: &Answer| answer.data()["refreshSession"]["refreshToken"].as_str().unwrap().to_owned();
    let first = signed_in.refresh_token.clone().unwrap();
    let answers = join_all((0..10).map(|n| refresh(n % 3, &first))).await;
    let mut successors: BTreeSet<_> = answers.iter().map(successor).collect();
    let second = successors.pop_first().unwrap();
    assert!(successors.is_empty(), "more than one successor");
    let database = &servers.place.database;
    let family = "SELECT s.id || ' ' || s.generation || ' ' || count(*) AS text
        FROM sessions s JOIN refresh_tokens t ON t.session_id = s.id WHERE s.revoked_at IS NULL GROUP BY s.id";
    let found = database.texts(family).await;
    assert!(found.len() == 1 && found[0].ends_with(" 2 2"), "{found:?}");
    let third = successor(&refresh(1, &second).await);
    let mut everywhere = [servers.client(0), servers.client(1), servers.client(2)];
    for client in &mut everywhere {
        client.access_token.clone_from(&signed_in.access_token);
        client.run(READ).await.data();
    }
    // A thief comes with the first.
    assert_eq!(refresh(2, &first).await.code(), "UNAUTHENTICATED");
    join_all(everywhere.iter().map(until_refused)).await;
    assert_eq!(refresh(0, &third).await.code(), "UNAUTHENTICATED");
    assert!(database.texts(family).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_on_all_servers_at_once_leave_one_family_by_postgres() {
    refreshes_on_all_servers_at_once_leave_one_family(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_on_all_servers_at_once_leave_one_family_by_redis() {
    refreshes_on_all_servers_at_once_leave_one_family(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_lost_when_one_is_killed_by_postgres() {
    no_mail_is_lost_when_one_is_killed(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_lost_when_one_is_killed_by_redis() {
    no_mail_is_lost_when_one_is_killed(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_suspended_or_revoked_on_one_is_refused_on_the_others_by_postgres() {
    who_is_suspended_or_revoked_on_one_is_refused_on_the_others(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_suspended_or_revoked_on_one_is_refused_on_the_others_by_redis() {
    who_is_suspended_or_revoked_on_one_is_refused_on_the_others(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_killed_under_load_by_postgres() {
    one_is_killed_under_load(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_killed_under_load_by_redis() {
    one_is_killed_under_load(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_that_is_cut_off_comes_back_and_misses_nothing() {
    let servers = Servers::start(false).await;
    let admin = servers.admin(0).await;
    let follower = Follower::of(servers.admin(1).await).await;
    // What anybody may say in the database is not believed: neither of a place where no log ends, nor what is no message.
    let organization = servers.place.database.texts("SELECT id AS text FROM organizations").await.remove(0);
    for said in [format!("x committed {organization} 999999 CLIENT -"), "?".to_owned()] {
        servers.place.database.execute(&format!("NOTIFY claviger, '{said}'")).await.unwrap();
    }
    for round in 1..=3 {
        let cut = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'claviger events'";
        servers.place.database.execute(cut).await.unwrap();
        for n in 0..3 {
            create(&admin, &format!("While cut off {round} {n}")).await;
        }
        for server in &servers.running {
            let counted = "claviger_bus_interruptions_total{transport=\"postgres\"}";
            until(&server.url, counted, |found| found >= round).await;
        }
        for at in 0..3 {
            servers.until_connected(at, 1).await;
        }
        create(&admin, &format!("Afterwards {round}")).await;
    }
    let mut stream = follower.has_heard_everything().await;
    refused_at_once(async || servers.signed_out_elsewhere(2).await).await;
    // Who is signed out hears no more than the entry of that first sign-in, not even of this.
    let (mut heard, ended) = (Vec::new(), "UNAUTHENTICATED");
    while heard.last().is_none_or(|(_, code)| code != ended) {
        let (_, body) = tokio::time::timeout(NEVER, stream.event()).await.expect("an end").unwrap();
        heard.push((body["data"].clone(), body["errors"][0]["extensions"]["code"].clone()));
    }
    assert!(heard.len() <= 2, "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_all_goes_on_and_with_it_again_at_once() {
    let mut servers = Servers::start(true).await;
    let admin = servers.admin(0).await;
    let follower = Follower::of(servers.admin(1).await).await;
    servers.redis.as_mut().unwrap().kill();
    for at in 0..3 {
        servers.until_connected(at, 0).await;
        let ready = reqwest::get(format!("{}/health/ready", servers.running[at].url)).await.unwrap();
        assert_eq!(ready.status(), 200);
    }
    for n in 0..5 {
        create(&admin, &format!("Without {n}")).await;
    }
    // What another has read is believed for five seconds, and no longer.
    let (user, token) = invite(&admin, "ina@example.com", "MEMBER").await;
    let accept = "mutation($t: String!, $p: String!) { acceptInvitation(input: { token: $t, password: { plain: $p } }) { accessToken } }";
    servers.client(0).with(accept, json!({ "t": token, "p": PASSWORD })).await.data();
    let elsewhere = servers.client(1).signed_in("ina@example.com", PASSWORD).await;
    elsewhere.run(READ).await.data();
    let suspend = "mutation($id: ID!) { updateUser(input: { id: $id, status: SUSPENDED }) { user { id } } }";
    admin.with(suspend, json!({ "id": user["id"] })).await.data();
    let refused = async { while elsewhere.run(READ).await.body.get("errors").is_none() {} };
    tokio::time::timeout(NEVER, refused).await.expect("refused");
    servers.redis.as_mut().unwrap().revive().await;
    for at in 0..3 {
        servers.until_connected(at, 1).await;
        until(&servers.running[at].url, "claviger_redis_up", |found| found == 1).await;
    }
    follower.has_heard_everything().await;
    refused_at_once(async || servers.signed_out_elsewhere(2).await).await;
}
