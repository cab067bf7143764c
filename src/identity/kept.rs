//! What was read from the database a moment ago, so that not every request reads it again.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::TimeDelta;
use quick_cache::sync::Cache;

use crate::model::Timestamp;

/// How many values are kept.
const CAPACITY: usize = 10_000;
/// How long a value is believed where another server may have changed it.
const LIFETIME: TimeDelta = TimeDelta::seconds(5);

/// Values by their keys, for seconds.
pub(super) struct Kept<K, V> {
    values: Cache<K, Entry<V>>,
    /// Counts the changes: what was read before a change is not believed after it.
    epoch: AtomicU64,
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    read_at: Timestamp,
    epoch: u64,
}

impl<K: Eq + Hash, V: Clone> Kept<K, V> {
    pub(super) fn new() -> Self {
        Self { values: Cache::new(CAPACITY), epoch: AtomicU64::new(0) }
    }

    /// The value, as it is kept or as `read` finds it. That there is none is not kept.
    pub(super) async fn get<E>(
        &self,
        key: K,
        now: Timestamp,
        read: impl Future<Output = Result<Option<V>, E>>,
    ) -> Result<Option<V>, E> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if let Some(kept) = self.values.get(&key)
            && kept.epoch == epoch
            // A clock that was set back must not make it live longer.
            && now >= kept.read_at
            && now - kept.read_at < LIFETIME
        {
            return Ok(Some(kept.value));
        }
        let found = read.await?;
        if let Some(value) = found.clone() {
            self.values.insert(key, Entry { value, read_at: now, epoch });
        }
        Ok(found)
    }

    /// Forgets everything. Changes of what is kept are rare beside requests.
    pub(super) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.values.clear();
    }
}
