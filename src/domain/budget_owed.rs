//! What of budgets could not be settled at once: it is tried again, key by key, until it is; and once more, and again, by a server that
//! stops.

use std::collections::BTreeSet;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::budget::{Budgets, Inner, Made, Place, lock};
use super::budget_change::{Change, Settlement};
use super::budget_unheld::Unheld;
use crate::model::ApiKeyId;
use crate::store::budget::{self as store_budget, Period};
use crate::store::{self, Db};

/// Of how many keys is settled at once what is owed: requests need connections too.
const KEYS_AT_ONCE: usize = 4;
/// After how long it is begun with no other key: what is left waits for the next time.
const LAST_START: Duration = Duration::from_secs(10);
/// How long a server that stops waits for the database, each time. A host that is gone says nothing, and the next connection is to another.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// After which pauses a server that stops tries again what has failed, in milliseconds.
const LAST_PAUSES: [u64; 4] = [100, 200, 400, 800];
/// How often it does so at least, however long the tries take.
const LEAST_AGAIN: usize = 2;

impl Budgets {
    /// Gives back what could not be given back at once, and counts what was used without a limit. What fails keeps nothing else
    /// waiting.
    ///
    /// # Errors
    /// Where the database fails, once: what is left is tried again.
    pub async fn settle_owed(&self) -> store::Result<()> {
        match &self.0.place {
            Place::Memory { counting, .. } => {
                let mut unheld = lock(&self.0.unheld);
                if self.0.stopping.is_cancelled() {
                    // No budget will begin any more.
                    *unheld = Unheld::default();
                } else if counting.try_lock().is_ok() {
                    // Whoever counts takes what is kept until then.
                    unheld.look(Instant::now());
                }
                Ok(())
            }
            // Each for itself: neither has less time for what the other waits for.
            Place::Database { db, .. } => {
                let (settled, charged) = tokio::join!(self.0.settle_owed(), self.0.charge_unheld(db));
                settled.and(charged)
            }
        }
    }

    /// From now on the database is waited for no longer than a server may that stops.
    pub fn hurry(&self) {
        self.0.stopping.cancel();
    }

    /// Gives back all that this server holds: it stops.
    ///
    /// # Errors
    /// Where the database fails. What is not given back counts as used, when this server has been silent for a while.
    pub async fn finish(&self) -> store::Result<()> {
        let inner = &self.0;
        self.hurry();
        inner.tasks.close();
        inner.tasks.wait().await;
        let settled = self.settle_all().await;
        if let Place::Database { db, server, .. } = &inner.place {
            // Requests of these keys have used something that is counted nowhere else yet.
            let owed: BTreeSet<ApiKeyId> = lock(&inner.owed).keys().copied().collect();
            let mut released = inner.in_time(store_budget::release(db, server, &owed)).await;
            for _ in 0..LEAST_AGAIN {
                if released.is_err() {
                    released = inner.in_time(store_budget::release(db, server, &owed)).await;
                }
            }
            released?;
        }
        settled
    }

    /// Settles until nothing is owed any more. A database that is away may be back in a moment, and a connection that broke is another
    /// the next time: what fails is tried again some times.
    async fn settle_all(&self) -> store::Result<()> {
        let begun = Instant::now();
        let mut pauses = LAST_PAUSES.into_iter().enumerate();
        loop {
            match self.settle_owed().await {
                Ok(()) if lock(&self.0.owed).is_empty() && lock(&self.0.unheld).is_empty() => return Ok(()),
                // There is so much of it that not all had its turn.
                Ok(()) => {}
                Err(error) => match pauses.next() {
                    Some((again, pause)) if again < LEAST_AGAIN || begun.elapsed() < LAST_START => {
                        sleep(Duration::from_millis(pause)).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Inner {
    /// Settles, whatever becomes of who waits for it. What fails is owed.
    pub(super) fn settling(self: &Arc<Self>, settlement: Settlement) -> JoinHandle<store::Result<()>> {
        let inner = self.clone();
        self.tasks.spawn(async move {
            match inner.change(Change::Settle(settlement.clone())).await {
                // It is owed by then, where it is not settled.
                Ok(Made::InDoubt(cause)) => Err(store::Error::Unavailable(cause.into())),
                Ok(_) => Ok(()),
                Err(error) => {
                    inner.owe(settlement);
                    Err(error)
                }
            }
        })
    }

    /// Settles what is owed, of several keys at once; of no other key after a while.
    async fn settle_owed(self: &Arc<Self>) -> store::Result<()> {
        let until = Instant::now() + LAST_START;
        // Each time in another order, as such maps are: none is always behind those that have to wait.
        let keys: Vec<ApiKeyId> = lock(&self.owed).keys().copied().collect();
        let settling = keys.into_iter().map(|key| self.settle_owed_of(key, until));
        let settled: Vec<store::Result<()>> = stream::iter(settling).buffer_unordered(KEYS_AT_ONCE).collect().await;
        settled.into_iter().collect()
    }

    async fn settle_owed_of(self: &Arc<Self>, key: ApiKeyId, until: Instant) -> store::Result<()> {
        if Instant::now() >= until {
            return Ok(());
        }
        // From here on they are with tasks of their own, which owe them again where they fail.
        let owed = lock(&self.owed).remove(&key).unwrap_or_default();
        let settling: Vec<_> = owed.into_iter().map(|owed| self.settling(owed)).collect();
        let mut settled = join_all(settling).await.into_iter();
        settled.try_for_each(|settled| settled.unwrap_or_else(|broken| Err(store::Error::Unavailable(broken.into()))))
    }

    /// Counts what was used without a limit, of several keys at once; of no other key after a while.
    async fn charge_unheld(&self, db: &Db) -> store::Result<()> {
        let until = Instant::now() + LAST_START;
        let keys = lock(&self.unheld).keys();
        if keys.is_empty() {
            return Ok(());
        }
        // Most keys have no limits, and are not counted: only those that are cost a transaction.
        let counted = self.in_time(store_budget::ledgers(db, &keys)).await?;
        let due = {
            let mut unheld = lock(&self.unheld);
            let due = unheld.take(&counted);
            if self.stopping.is_cancelled() {
                // Nobody will look again.
                unheld.take(&keys);
            }
            unheld.look(Instant::now());
            due
        };
        let charging = due.into_iter().map(|((key, period), used)| async move {
            if Instant::now() >= until {
                self.add_unheld(key, period, used);
                return Ok(());
            }
            let charged = self.in_time(store_budget::charge(db, key, period, used)).await;
            charged.inspect_err(|_| self.add_unheld(key, period, used))
        });
        let charged: Vec<store::Result<()>> = stream::iter(charging).buffer_unordered(KEYS_AT_ONCE).collect().await;
        charged.into_iter().collect()
    }

    pub(super) fn add_unheld(&self, key: ApiKeyId, period: Period, (mut tokens, mut cost): (i64, i64)) {
        // Until it is kept: a budget that begins takes what is.
        let mut budgets = match &self.place {
            Place::Memory { budgets, .. } => Some(lock(budgets)),
            Place::Database { .. } => None,
        };
        if let Some(budget) = budgets.as_mut().and_then(|budgets| budgets.get_mut(&key)) {
            // A later day or month than the ledger's begins with a count, which may be under way.
            let of_day = if budget.ledger.day >= period.day { take(&mut tokens) } else { 0 };
            let of_month = if budget.ledger.month >= period.month { take(&mut cost) } else { 0 };
            budget.ledger.charge(period, of_day, of_month);
        }
        if (tokens, cost) != (0, 0) {
            lock(&self.unheld).add(key, period, (tokens, cost));
        }
    }

    pub(super) fn owe(&self, settlement: Settlement) {
        lock(&self.owed).entry(settlement.start.api_key_id).or_default().push(settlement);
    }

    /// Waits for the database: as long as it takes, which has its bounds, but once the server stops for a few seconds.
    pub(super) async fn in_time<T>(&self, asked: impl Future<Output = store::Result<T>>) -> store::Result<T> {
        let late = async {
            self.stopping.cancelled().await;
            sleep(LAST_PATIENCE).await;
        };
        tokio::select! {
            biased;
            answer = asked => answer,
            () = late => Err(store::Error::Unavailable("the server stops, and the database takes too long".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock, Timestamp};
    use crate::settings::DatabaseUrl;

    #[tokio::test(flavor = "multi_thread")]
    async fn in_memory_a_server_that_stops_waits_for_no_budget_to_begin() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let db = Db::open(&url, 1, Duration::from_secs(1)).await.unwrap();
        let budgets = Budgets::new(&db, Clock::from_fn(|| Timestamp::MAX.to_utc()), "server");
        let (key, period) = (ApiKeyId::new(Timestamp::MAX, &[1; 10]), Period::of(Timestamp::MAX));
        budgets.0.add_unheld(key, period, (1, 1));
        budgets.settle_owed().await.unwrap();
        assert_eq!(lock(&budgets.0.unheld).keys(), [key].into());
        budgets.hurry();
        budgets.settle_owed().await.unwrap();
        assert!(lock(&budgets.0.unheld).is_empty());
    }
}
