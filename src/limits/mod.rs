//! Rate limits: how much is left in the bucket of an address, a user, an API key. In Redis where there is one, and in memory where
//! there is none, or while it is away.

mod gcra;
mod memory;
mod network;
mod shared;
mod steady;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

pub use gcra::{Answer, Policy, Standing};
pub use network::Network;

use crate::crypto::{KeyRing, Purpose};
use crate::model::{ApiKeyId, Clock, OrganizationId, UserId};
use crate::redis::Redis;
use crate::settings::WithoutRedis;
use memory::Memory;
use shared::Shared;

/// Whose a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Whoever comes from a network.
    Network(Network),
    /// An organization.
    Organization(OrganizationId),
    /// A user.
    User(UserId),
    /// An API key.
    ApiKey(ApiKeyId),
    /// An email address: whoever tries to be its owner, or writes to it.
    Email(&'a str),
    /// Whoever tries to be its owner from a network.
    EmailFrom(&'a str, Network),
}

impl Subject<'_> {
    /// What tells it from every other: its kind and its parts, each after its length.
    fn to_bytes(self) -> Vec<u8> {
        let parts: [String; 3] = match self {
            Self::Network(network) => ["network".to_owned(), network.to_string(), String::new()],
            Self::Organization(id) => ["organization".to_owned(), id.to_string(), String::new()],
            Self::User(id) => ["user".to_owned(), id.to_string(), String::new()],
            Self::ApiKey(id) => ["api-key".to_owned(), id.to_string(), String::new()],
            Self::Email(email) => ["email".to_owned(), email.to_owned(), String::new()],
            Self::EmailFrom(email, network) => ["email-from".to_owned(), email.to_owned(), network.to_string()],
        };
        parts.iter().flat_map(|part| [&part.len().to_be_bytes(), part.as_bytes()].concat()).collect()
    }
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
    /// The policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

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
    /// Apart from the others, which would have to make room for them: they last longest.
    marks: Memory,
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
        let (local, marks) = (Memory::new(clock.clone()), Memory::new(clock));
        Self { local, marks, shared: redis.map(Shared), without_redis, keys, turns }
    }

    /// The subject's bucket for a policy.
    #[must_use]
    pub fn bucket(&self, subject: Subject<'_>, policy: Policy) -> Bucket {
        Bucket { key: self.key(subject), policy }
    }

    /// The buckets of whoever comes from an address, for a policy: one for each network that it counts with.
    #[must_use]
    pub fn buckets_of(&self, address: IpAddr, policy: Policy) -> Vec<Bucket> {
        let bucket = |(network, factor): (Network, u32)| {
            let policy = Policy { limit: policy.limit.saturating_mul(factor), ..policy };
            self.bucket(Subject::Network(network), policy)
        };
        Network::all_of(address).map(bucket).collect()
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

    /// Fills a bucket that only says that something was so of late.
    pub async fn mark(&self, mark: &Bucket) {
        let mark = std::slice::from_ref(mark);
        self.marks.empty(mark);
        if let Some(shared) = &self.shared
            && shared.empty(mark).await.is_ok()
            && shared.take(mark, 1).await.is_ok()
        {
            return;
        }
        self.marks.take(mark, 1);
    }

    /// Whether a bucket was filled by [`RateLimits::mark`], and has not drained.
    pub async fn is_marked(&self, mark: &Bucket) -> bool {
        let mark = std::slice::from_ref(mark);
        let found = match &self.shared {
            Some(shared) => shared.take(mark, 0).await.ok(),
            None => None,
        };
        let answer = found.unwrap_or_else(|| self.marks.take(mark, 0));
        answer.standings.iter().any(|standing| standing.remaining() == 0)
    }

    /// Waits until nobody else on this server has the turn at the bucket.
    pub async fn turn(&self, bucket: &Bucket) -> MutexGuard<'_, ()> {
        let [first, second, ..] = bucket.key.0;
        self.turns[usize::from(u16::from_le_bytes([first, second])) % TURNS].lock().await
    }

    fn key(&self, subject: Subject<'_>) -> Key {
        let digest = self.keys.digest(Purpose::RateLimit, &subject.to_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        Key(key)
    }
}
