//! When API keys were last used: gathered, and written beside the requests.
//!
//! A key's use is noted once a minute. As long as one write runs, those that come gather, and are the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use quick_cache::sync::Cache;
use tokio_util::task::TaskTracker;

use crate::model::{ApiKeyId, Timestamp};
use crate::store::Db;
use crate::store::api_key::{ApiKeyUse, note_uses};

/// How often the use of one key is noted at most.
const INTERVAL: TimeDelta = TimeDelta::minutes(1);
/// How many keys are known to be noted already. Of one that is forgotten, the database knows it.
const CAPACITY: usize = 10_000;

/// Gathers uses.
pub(super) struct KeyUses {
    db: Db,
    noted: Cache<ApiKeyId, Timestamp>,
    gathered: Arc<Mutex<Gathered>>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Gathered {
    uses: BTreeMap<ApiKeyId, ApiKeyUse>,
    is_written: bool,
}

impl KeyUses {
    pub(super) fn new(db: Db) -> Self {
        Self { db, noted: Cache::new(CAPACITY), gathered: Arc::default(), tasks: TaskTracker::new() }
    }

    /// Notes a use, unless one was noted within the minute.
    pub(super) fn note(&self, id: ApiKeyId, at: Timestamp, make: impl FnOnce() -> ApiKeyUse) {
        if self.noted.get(&id).is_some_and(|noted| (at - noted).abs() < INTERVAL) {
            return;
        }
        self.noted.insert(id, at);
        let mut gathered = lock(&self.gathered);
        gathered.uses.insert(id, make());
        if !gathered.is_written {
            gathered.is_written = true;
            self.tasks.spawn(write(self.db.clone(), self.gathered.clone()));
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Writes what was gathered until there is no more.
async fn write(db: Db, gathered: Arc<Mutex<Gathered>>) {
    loop {
        let uses: Vec<ApiKeyUse> = {
            let mut gathered = lock(&gathered);
            if gathered.uses.is_empty() {
                gathered.is_written = false;
                return;
            }
            std::mem::take(&mut gathered.uses).into_values().collect()
        };
        if let Err(error) = note_uses(&db, &uses, INTERVAL).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "when API keys were last used was not written");
        }
    }
}

fn lock(gathered: &Mutex<Gathered>) -> MutexGuard<'_, Gathered> {
    // A panic cannot leave it half changed.
    gathered.lock().unwrap_or_else(PoisonError::into_inner)
}
