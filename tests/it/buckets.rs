//! The buckets of rate limits, in memory and in Redis by the same test.

use std::sync::Arc;
use std::time::Duration;

use claviger::crypto::{KeyRing, SecretText};
use claviger::limits::{Bucket, Network, Policy, RateLimits, Subject, WhileAway};
use claviger::model::{Clock, Id};
use claviger::redis::Redis;
use claviger::settings::WithoutRedis;

use crate::support::TestRedis;

const LATE: Duration = Duration::from_secs(20);

/// Waits for what comes by itself, by the clock of Redis too.
async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LATE, waiting).await.unwrap_or_else(|_| panic!("it was never so: {what}"));
}

fn limits(redis: Option<Arc<Redis>>) -> RateLimits {
    let ring = SecretText::from(format!("v1:{}=", "A".repeat(43)));
    RateLimits::new(Clock::system(), redis, WithoutRedis::Local, Arc::new(KeyRing::parse(&ring).unwrap()))
}

/// What holds of buckets wherever they are, by a clock that nobody sets.
async fn buckets_behave(limits: &RateLimits) {
    let policy = |name, limit, millis| Policy { name, limit, window: Duration::from_millis(millis) };
    let user = |n: u8| Subject::User(Id::new(Clock::system().now(), &[n; 10]));
    let (one, other) = (user(1), user(2));
    let (narrow, wide) =
        (limits.bucket(one, policy("narrow", 2, 3_000)), limits.bucket(one, policy("wide", 100, 3_600_000)));
    let take = async |buckets: &[Bucket], cost| limits.take(buckets, cost, WhileAway::AsSet).await.unwrap();
    let left = async |bucket: Bucket| take(&[bucket], 0).await.standings[0].remaining();

    assert_eq!((left(narrow).await, left(wide).await), (2, 100));
    assert_eq!(take(&[narrow, wide], 2).await.retry_after, None);
    let refused = take(&[narrow, wide], 1).await;
    assert!((1..=1_500).contains(&refused.retry_after.unwrap().as_millis()), "{refused:?}");
    assert_eq!((left(narrow).await, left(wide).await), (0, 98), "refused by one, it is counted in none");
    let others = limits.bucket(other, policy("narrow", 2, 3_000));
    assert_eq!(take(&[others], 2).await.retry_after, None, "somebody else's is another");
    until("one more fits", async || take(&[narrow], 1).await.retry_after.is_none()).await;

    let slow = limits.bucket(one, policy("slow", 3, 3_600_000));
    assert_eq!(take(&[slow], 3).await.standings[0].remaining(), 0);
    limits.give_back(&[slow]).await;
    assert_eq!(left(slow).await, 1);
    assert!(take(&[slow], 2).await.retry_after.is_some());
    limits.empty(&[slow, wide]).await;
    assert_eq!((left(slow).await, left(wide).await), (3, 100));
    limits.give_back(&[slow]).await;
    assert_eq!(left(slow).await, 3, "no more than fits");
    // Marks are buckets of their own, and stand until they drain.
    let mark = limits.bucket(one, policy("mark", 1, 3_600_000));
    assert!(!limits.is_marked(&mark).await);
    for _ in 0..2 {
        limits.mark(&mark).await;
        assert!(limits.is_marked(&mark).await && !limits.is_marked(&limits.bucket(other, mark.policy())).await);
    }
    // No text makes one subject of another.
    let [first, second] = ["a@b", "c 192.0.2.1/32"].map(|email| {
        let network = Network::of("192.0.2.1".parse().unwrap());
        limits.bucket(Subject::EmailFrom(email, network), policy("guess", 1, 3_600_000))
    });
    assert_eq!(take(&[first], 1).await.retry_after, None);
    assert_eq!((left(first).await, left(second).await), (0, 1));
    let plain = limits.bucket(Subject::Email("a@b192.0.2.1/32"), policy("guess", 1, 3_600_000));
    assert_eq!(left(plain).await, 1);
    // As large as they get: a whole number all the same.
    let large = limits.bucket(one, policy("large", 60_000_000, 3_600_000));
    assert!(take(&[large], 59_999_999).await.standings[0].remaining() <= 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_behave_in_memory() {
    buckets_behave(&limits(None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_behave_in_redis() {
    let server = TestRedis::start().await;
    let redis = Redis::open(&server.url().into()).await.unwrap();
    assert!(redis.is_there());
    buckets_behave(&limits(Some(redis.clone()))).await;
    assert!(redis.is_there(), "it was Redis that behaved");
}
