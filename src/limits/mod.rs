//! Rate limits: how much is left in the bucket of an address, a user, an API key. In Redis where there is one, and in memory where
//! there is none, or while it is away.

mod gcra;
mod memory;
mod shared;
mod steady;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

pub use gcra::{Answer, Policy, Standing};

use crate::crypto::{KeyRing, Purpose};
use crate::model::{ApiKeyId, Clock, UserId};
use crate::redis::Redis;
use crate::settings::WithoutRedis;
use memory::Memory;
use shared::Shared;

/// Whose a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Whoever comes from an address: of IPv6 from its network of 64 bits, which is what one household or machine has.
    Address(IpAddr),
    /// A user.
    User(UserId),
    /// An API key.
    ApiKey(ApiKeyId),
    /// Whoever tries to be the owner of an email address.
    Email(&'a str),
    /// Whoever tries that from an address.
    EmailFrom(&'a str, IpAddr),
}

/// A keyed digest of a subject: no address stands in memory or in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u8; 16]);

/// A subject's bucket for one policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    key: Key,
    policy: Policy,
}

impl Bucket {
    fn id(&self) -> (Key, &'static str) {
        (self.key, self.policy.name)
    }
}

/// What holds while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhileAway {
    /// What the setting says.
    AsSet,
    /// The buckets of this server, whatever the setting says: what guards against guessing is never open.
    Local,
}

/// Redis is away, and the setting says that nothing is done without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis is away, and RATE_LIMIT_WITHOUT_REDIS is closed")]
pub struct Closed;

/// The buckets.
pub struct RateLimits {
    local: Memory,
    shared: Option<Shared>,
    without_redis: WithoutRedis,
    keys: Arc<KeyRing>,
    turns: Vec<Mutex<()>>,
}

/// How many turns there are. Two buckets may share one; nobody can choose which.
const TURNS: usize = 1_024;

impl RateLimits {
    /// In Redis where there is one.
    #[must_use]
    pub fn new(clock: Clock, redis: Option<Arc<Redis>>, without_redis: WithoutRedis, keys: Arc<KeyRing>) -> Self {
        let turns = std::iter::repeat_with(Mutex::default).take(TURNS).collect();
        Self { local: Memory::new(clock), shared: redis.map(Shared), without_redis, keys, turns }
    }

    /// The subject's bucket for a policy.
    #[must_use]
    pub fn bucket(&self, subject: Subject<'_>, policy: Policy) -> Bucket {
        Bucket { key: self.key(subject), policy }
    }

    /// Takes from all of the buckets, or from none where one of them has not enough. Cost 0 only looks.
    ///
    /// # Errors
    /// Where Redis is away and nothing is to be done without it.
    pub async fn take(&self, buckets: &[Bucket], cost: u32, while_away: WhileAway) -> Result<Answer, Closed> {
        let cost = i64::from(cost);
        if let Some(shared) = &self.shared
            && !buckets.is_empty()
        {
            match (shared.take(buckets, cost).await, while_away, self.without_redis) {
                (Ok(answer), ..) => return Ok(answer),
                (Err(_), WhileAway::Local, _) | (Err(_), WhileAway::AsSet, WithoutRedis::Local) => {}
                (Err(_), WhileAway::AsSet, WithoutRedis::Open) => return Ok(Answer::unlimited()),
                (Err(_), WhileAway::AsSet, WithoutRedis::Closed) => return Err(Closed),
            }
        }
        Ok(self.local.take(buckets, cost))
    }

    /// Gives back one that was taken from each of the buckets.
    pub async fn give_back(&self, buckets: &[Bucket]) {
        match &self.shared {
            Some(shared) if shared.take(buckets, -1).await.is_ok() => {}
            _ => drop(self.local.take(buckets, -1)),
        }
    }

    /// Empties buckets: also those of this server, which may have been filled while Redis was away.
    pub async fn empty(&self, buckets: &[Bucket]) {
        self.local.empty(buckets);
        if let Some(shared) = &self.shared {
            // They are gone with Redis, or drain.
            let _ = shared.empty(buckets).await;
        }
    }

    /// Waits until nobody else on this server has the turn at the bucket.
    pub async fn turn(&self, bucket: &Bucket) -> MutexGuard<'_, ()> {
        let [first, second, ..] = bucket.key.0;
        self.turns[usize::from(u16::from_le_bytes([first, second])) % TURNS].lock().await
    }

    fn key(&self, subject: Subject<'_>) -> Key {
        let text = match subject {
            Subject::Address(address) => format!("address {}", network(address)),
            Subject::User(id) => id.to_string(),
            Subject::ApiKey(id) => id.to_string(),
            Subject::Email(email) => format!("email {email}"),
            // An address has no line break, nor a blank.
            Subject::EmailFrom(email, address) => format!("email from {} {email}", network(address)),
        };
        let digest = self.keys.digest(Purpose::RateLimit, text.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        Key(key)
    }
}

/// The address, of IPv6 the first 64 bits: who has one has all of the rest.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}
