//! The connection to Redis: a server works without it, says whether it is there, and finds it again.

use claviger::redis::{Away, Redis};
use redis::RedisResult;
use redis::aio::MultiplexedConnection;

use crate::support::{Answer, TestApp, TestDatabase, TestRedis, until_gauge};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_without_it_and_finds_it_whenever_it_comes() {
    let mut redis = TestRedis::start().await;
    redis.kill();
    let app = TestApp::start(TestDatabase::sqlite(), [("REDIS_URL", redis.url())]).await;
    until_gauge(&app, "claviger_redis_up", 0).await;
    for _ in 0..2 {
        redis.revive().await;
        until_gauge(&app, "claviger_redis_up", 1).await;
        let admin = app.admin().await;
        let request = admin.http().get(format!("{}/health/detailed", app.url)).bearer_auth(admin.access_token.unwrap());
        assert_eq!(Answer::read(request.send().await.unwrap()).await.body["redis"]["reachable"], true);
        redis.kill();
        // Nobody asks for anything: it is noticed all the same.
        until_gauge(&app, "claviger_redis_up", 0).await;
    }
}

async fn ping(mut connection: MultiplexedConnection) -> RedisResult<String> {
    redis::cmd("PING").query_async(&mut connection).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_fails_makes_it_away_until_it_has_proved_otherwise() {
    let server = TestRedis::start().await;
    let redis = Redis::open(&server.url().into()).await.unwrap();
    assert_eq!(redis.ask(ping).await.unwrap(), "PONG");
    let nonsense =
        async |mut connection: MultiplexedConnection| redis::cmd("NONSENSE").query_async::<()>(&mut connection).await;
    assert_eq!(redis.ask(nonsense).await, Err(Away));
    assert!(!redis.is_there());
    // It is there: who asks waits for the next try, which comes by itself.
    while redis.ask(ping).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
