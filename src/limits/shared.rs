//! Buckets in Redis, which several servers share: one script that takes from several at once, by the clock of Redis.

use std::sync::{Arc, LazyLock};

use redis::Script;

use super::Bucket;
use super::gcra::{Answer, Standing};
use crate::redis::{Away, Redis};

static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("script.lua")));

pub(super) struct Shared(pub(super) Arc<Redis>);

impl Shared {
    /// Takes from all or none; `cost` 0 only looks, less gives back.
    pub(super) async fn take(&self, buckets: &[Bucket], cost: i64) -> Result<Answer, Away> {
        let mut call = TAKE.prepare_invoke();
        call.arg(cost);
        for bucket in buckets {
            call.key(name(bucket)).arg(bucket.policy.interval()).arg(bucket.policy.capacity());
        }
        let numbers: Vec<i64> = self.0.ask(|mut redis| async move { call.invoke_async(&mut redis).await }).await?;
        let (wait, levels) = numbers.split_first().ok_or(Away)?;
        let standings = buckets.iter().zip(levels).map(|(bucket, level)| Standing::new(bucket.policy, *level));
        Ok(Answer::new(*wait, standings.collect()))
    }

    /// Empties buckets.
    pub(super) async fn empty(&self, buckets: &[Bucket]) -> Result<(), Away> {
        let mut delete = redis::cmd("DEL");
        delete.arg(buckets.iter().map(name).collect::<Vec<_>>());
        self.0.ask(|mut redis| async move { delete.query_async(&mut redis).await }).await
    }
}

/// The digest says nothing of whose bucket it is.
fn name(bucket: &Bucket) -> String {
    format!("claviger:limit:{}:{}", hex::encode(bucket.key.0), bucket.policy.name)
}
