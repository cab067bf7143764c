//! What was read from the database a moment ago, so that not every request reads it again.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use quick_cache::sync::{Cache, GuardResult};

use super::changes::Epochs;
use crate::model::{OrganizationId, Timestamp};

/// How many values are kept.
const CAPACITY: usize = 10_000;
/// How long a value is believed where another server may have changed it.
const LIFETIME: TimeDelta = TimeDelta::seconds(5);

/// Values by their keys, for seconds.
pub(crate) struct Kept<K, V> {
    values: Cache<K, Entry<V>>,
    /// What was read before a change is not believed after it.
    epochs: Arc<Epochs>,
    organization_of: fn(&V) -> OrganizationId,
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    read_at: Timestamp,
    /// When it was begun to be read.
    epoch: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Kept<K, V> {
    /// Believed until something changes in the organization that a value is of.
    pub(crate) fn new(epochs: Arc<Epochs>, organization_of: fn(&V) -> OrganizationId) -> Self {
        Self { values: Cache::new(CAPACITY), epochs, organization_of }
    }

    /// The value, as it is kept or as `read` finds it. Of several who ask for one value at once, one reads it for all. That there
    /// is none is not kept.
    pub(crate) async fn get<E, F: Future<Output = Result<Option<V>, E>>>(
        &self,
        key: K,
        now: Timestamp,
        read: impl FnOnce() -> F,
    ) -> Result<Option<V>, E> {
        let epoch = self.epochs.now();
        let is_unchanged = |kept: &Entry<V>| kept.epoch >= self.epochs.last_of((self.organization_of)(&kept.value));
        let is_fresh = |kept: &Entry<V>| {
            // A clock that was set back must not make it live longer.
            is_unchanged(kept) && now >= kept.read_at && now - kept.read_at < LIFETIME
        };
        if let Some(kept) = self.values.get(&key) {
            if is_fresh(&kept) {
                return Ok(Some(kept.value));
            }
            self.values.remove_if(&key, |kept| !is_fresh(kept));
        }
        let turn = match self.values.get_value_or_guard(&key, Some(Duration::ZERO)) {
            GuardResult::Value(kept) if is_fresh(&kept) => return Ok(Some(kept.value)),
            GuardResult::Value(_) => None,
            GuardResult::Guard(turn) => Some(turn),
            GuardResult::Timeout => match self.values.get_value_or_guard_async(&key).await {
                Ok(kept) if is_unchanged(&kept) => return Ok(Some(kept.value)),
                // Whoever read it found none or failed. Those who waited must not fail one after the other: each reads it.
                Ok(_) | Err(_) => None,
            },
        };
        // In a box: to read takes much, and requests that find it kept are not to have the room for that.
        let found = Box::pin(read()).await?;
        if let Some(value) = found.clone() {
            let entry = Entry { value, read_at: now, epoch };
            match turn {
                Some(turn) => drop(turn.insert(entry)),
                None => self.values.insert(key, entry),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::{join, join_all};
    use tokio::sync::Semaphore;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).unwrap()
    }

    fn organization(number: u8) -> OrganizationId {
        OrganizationId::new(at(0), &[number; 10])
    }

    /// Values of one organization, and what changes in any.
    fn kept<V: Clone>() -> (Kept<u8, V>, Arc<Epochs>) {
        let epochs = Epochs::new();
        (Kept::new(epochs.clone(), |_| organization(1)), epochs)
    }

    #[tokio::test]
    async fn one_reads_for_all_who_ask_at_once() {
        let ((kept, epochs), reads, gate) = (kept(), AtomicUsize::new(0), Semaphore::new(0));
        let read = async || {
            reads.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(Some("found"))
        };
        let ask = || join_all((0..50).map(|_| kept.get(1, at(0), &read)));
        let open = async { gate.add_permits(1) };
        let (found, ()) = join(ask(), open).await;
        assert!(found.iter().all(|found| *found == Ok(Some("found"))));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        // So after everything was forgotten, and after it has become old.
        epochs.change(None);
        join(ask(), async { gate.add_permits(1) }).await;
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        join(join_all((0..50).map(|_| kept.get(1, at(5), &read))), async { gate.add_permits(1) }).await;
        assert_eq!(reads.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn who_waits_does_not_share_a_failure() {
        let ((kept, _), reads) = (kept::<()>(), AtomicUsize::new(0));
        let fails = async || {
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Err::<Option<()>, _>("away")
        };
        let (failed, found) =
            join(kept.get(1, at(0), fails), kept.get(1, at(0), async || Ok::<_, &str>(Some(())))).await;
        assert_eq!((failed, found), (Err("away"), Ok(Some(()))));
        // Nor one that found none: it may be made meanwhile.
        let none = async || Ok::<_, Infallible>(None);
        let (none, found) =
            join(kept.get(2, at(0), none), kept.get(2, at(0), async || Ok::<_, Infallible>(Some(())))).await;
        assert_eq!((none, found, reads.into_inner()), (Ok(None), Ok(Some(())), 1));
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_is_not_believed_after_it() {
        let (kept, epochs) = kept::<&str>();
        let old = kept.get(1, at(0), async || {
            epochs.change(Some(organization(1)));
            Ok::<_, Infallible>(Some("old"))
        });
        assert_eq!(old.await, Ok(Some("old")));
        assert_eq!(kept.get(1, at(0), async || Ok::<_, Infallible>(Some("new"))).await, Ok(Some("new")));
        // Nor is it read again for a change elsewhere.
        epochs.change(Some(organization(2)));
        assert_eq!(kept.get(1, at(4), async || Ok::<_, Infallible>(None)).await, Ok(Some("new")));
    }
}
