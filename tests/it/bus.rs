//! What servers tell each other when the way between them is half broken: Redis that takes nothing, a connection that hears
//! nothing; and that what concerns one organization concerns no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, tcp};

use crate::many_servers::until_refused;
use crate::support::{Client, PASSWORD, TestApp, TestDatabase, TestRedis, both_databases, gauge, until_gauge};

const READ: &str = "{ clients { totalCount } }";
const BY_REDIS: &str = "claviger_bus_connected{transport=\"redis\"}";
const BY_POSTGRES: &str = "claviger_bus_connected{transport=\"postgres\"}";

async fn acl(redis: &TestRedis, rules: &str) {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg(rules.split(' ').collect::<Vec<_>>())
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
}

/// Makes an API key: its id, and a client of a server that uses it.
async fn api_key(admin: &Client, url: &str) -> (serde_json::Value, Client) {
    let create = "mutation { createApiKey(input: { name: \"K\", scopes: [ADMIN_READ] }) { apiKey { id } rawKey } }";
    let made = admin.run(create).await.data()["createApiKey"].clone();
    let mut client = Client::new(url);
    client.access_token = made["rawKey"].as_str().map(str::to_owned);
    (made["apiKey"]["id"].clone(), client)
}

async fn revoke(admin: &Client, id: &serde_json::Value) {
    let revoke = "mutation($id: ID!) { revokeApiKey(input: { id: $id }) { apiKey { id } } }";
    admin.with(revoke, json!({ "id": id })).await.data();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lets_nobody_tell_is_there_and_says_so() {
    let redis = TestRedis::start().await;
    // The rights that docs/operations.md names, but for this one.
    acl(&redis, "claviger on >secret resetkeys ~claviger:* resetchannels &claviger:* -@all +@connection +@read +@write +@scripting +@pubsub +time -publish").await;
    let url = redis.url().replace("redis://", "redis://claviger:secret@");
    let app = TestApp::start(TestDatabase::postgres().await, [("REDIS_URL", url)]).await;
    until_gauge(&app, "claviger_redis_up", 1).await;
    for _ in 0..3 {
        // Each leaves an entry that is to be told.
        app.admin().await;
        assert_eq!((gauge(&app, "claviger_redis_up").await, gauge(&app, BY_REDIS).await), (1, 0));
    }
    acl(&redis, "claviger +publish").await;
    until_gauge(&app, BY_REDIS, 1).await;
    assert_eq!(gauge(&app, "claviger_bus_interruptions_total{transport=\"redis\"}").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_told_is_told_though_nothing_else_happens() {
    let redis = TestRedis::start().await;
    let mut app = TestApp::start(TestDatabase::postgres().await, [("REDIS_URL", redis.url())]).await;
    let other = app.another_by(app.stopped_clock()).await;
    let bus = async |url: &str| crate::many_servers::until(url, BY_REDIS, |is_heard| is_heard == 1).await;
    tokio::join!(bus(&app.url), bus(&other));
    let admin = app.admin().await;
    let (id, elsewhere) = api_key(&admin, &other).await;
    elsewhere.run(READ).await.data();
    acl(&redis, "default -publish").await;
    revoke(&admin, &id).await;
    // By its clock, which stands still, the other believes what it has read until it is told.
    elsewhere.run(READ).await.data();
    acl(&redis, "default +publish").await;
    until_refused(&elsewhere).await;
}

/// Passes on what a client and PostgreSQL say to each other, but for notifications while it is told not to.
async fn pass_on(client: TcpStream, server: TcpStream, is_deaf: Arc<AtomicBool>) {
    async fn answers(
        mut server: tcp::OwnedReadHalf,
        mut client: tcp::OwnedWriteHalf,
        is_deaf: Arc<AtomicBool>,
    ) -> std::io::Result<()> {
        loop {
            let mut head = [0; 5];
            server.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; usize::try_from(length).unwrap() - 4];
            server.read_exact(&mut body).await?;
            if head[0] != b'A' || !is_deaf.load(Ordering::SeqCst) {
                client.write_all(&head).await?;
                client.write_all(&body).await?;
            }
        }
    }
    let ((mut asks, asked), (says, mut takes)) = (client.into_split(), server.into_split());
    tokio::select! {
        _ = tokio::io::copy(&mut asks, &mut takes) => {}
        _ = answers(says, asked, is_deaf) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_answers_but_hears_nothing_counts_as_none() {
    let database = TestDatabase::postgres().await;
    let (_, rest) = database.url.split_once('@').unwrap();
    let (host, name) = rest.split_once('/').unwrap();
    let (listener, is_deaf) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(AtomicBool::new(true)));
    let url = format!("postgres://claviger@{}/{name}", listener.local_addr().unwrap());
    let (to, deaf) = (host.to_owned(), is_deaf.clone());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(pass_on(client, TcpStream::connect(&to).await.unwrap(), deaf.clone()));
        }
    });
    let app = TestApp::start(TestDatabase::at(url), []).await;
    let listens = "SELECT pid::text AS text FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'claviger events'";
    while database.texts(listens).await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(gauge(&app, BY_POSTGRES).await, 0);
    is_deaf.store(false, Ordering::SeqCst);
    until_gauge(&app, BY_POSTGRES, 1).await;
    is_deaf.store(true, Ordering::SeqCst);
    until_gauge(&app, "claviger_bus_interruptions_total{transport=\"postgres\"}", 1).await;
    is_deaf.store(false, Ordering::SeqCst);
    until_gauge(&app, BY_POSTGRES, 1).await;
}

both_databases! {
    async fn what_changes_in_one_organization_makes_nobody_forget_another(app: TestApp) {
        let mut app = app;
        app.other_organization().await;
        // What is read is believed until something changes.
        let url = app.another_by(app.stopped_clock()).await;
        let admin = Client::new(&url).signed_in("admin@localhost", PASSWORD).await;
        let others = Client::new(&url).signed_in("admin@other.example", PASSWORD).await;
        others.run(READ).await.data();
        app.database.execute("UPDATE users SET status = 'SUSPENDED' WHERE email = 'admin@other.example'").await.unwrap();
        let (id, key) = api_key(&admin, &url).await;
        key.run(READ).await.data();
        revoke(&admin, &id).await;
        until_refused(&key).await;
        others.run(READ).await.data();
        let sign_out = "mutation { signOut(input: { everywhere: true }) { signedOut } }";
        others.run(sign_out).await;
        until_refused(&others).await;
    }
}
