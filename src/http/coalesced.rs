//! Reads that several requests share: of callers who ask the same thing at once, those who would have to wait anyway are
//! answered by one execution.
//!
//! Nothing is kept. An execution answers only requests that had come before it began, so that each reads what was committed
//! before it asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

/// How many executions of one read go on at once: whoever comes next shares the one that begins when one of them is done.
const ABREAST: usize = 2;

/// What several wait for.
pub(super) type Shares<T> = Shared<BoxFuture<'static, Arc<T>>>;

/// The reads that go on or are about to begin, by what they read.
pub(super) struct Reads<K, T>(Mutex<HashMap<K, Place<T>>>);

/// Where the executions of one read queue up.
struct Place<T> {
    gate: Arc<Semaphore>,
    /// The one that has not begun.
    next: Option<WeakShared<BoxFuture<'static, Arc<T>>>>,
    /// How many there are, begun or not.
    turns: usize,
}

impl<K, T> Reads<K, T>
where
    K: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(HashMap::new())))
    }

    /// Shares in the execution that is about to begin, else this one is. It goes on for as long as anybody waits for it.
    pub(super) fn share(self: &Arc<Self>, key: K, work: impl Future<Output = T> + Send + 'static) -> Shares<T> {
        let mut places = self.places();
        let place = places.entry(key.clone()).or_insert_with(|| Place {
            gate: Arc::new(Semaphore::new(ABREAST)),
            next: None,
            turns: 0,
        });
        if let Some(next) = place.next.as_ref().and_then(WeakShared::upgrade) {
            return next;
        }
        place.turns += 1;
        let gate = place.gate.clone();
        let turn = Turn { reads: self.clone(), key };
        let shares = async move {
            // Fails where the semaphore is closed, which nobody does.
            let _permit = gate.acquire().await;
            turn.begin();
            Arc::new(work.await)
        };
        let shares = shares.boxed().shared();
        place.next = shares.downgrade();
        shares
    }
}

impl<K, T> Reads<K, T> {
    fn places(&self) -> MutexGuard<'_, HashMap<K, Place<T>>> {
        // Nothing that is done under it can panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An execution, from the moment that somebody wants it.
struct Turn<K: Eq + std::hash::Hash, T> {
    reads: Arc<Reads<K, T>>,
    key: K,
}

impl<K: Eq + std::hash::Hash, T> Turn<K, T> {
    /// Whoever comes from now on waits for another.
    fn begin(&self) {
        if let Some(place) = self.reads.places().get_mut(&self.key) {
            place.next = None;
        }
    }
}

impl<K: Eq + std::hash::Hash, T> Drop for Turn<K, T> {
    fn drop(&mut self) {
        let mut places = self.reads.places();
        if let Some(place) = places.get_mut(&self.key) {
            place.turns -= 1;
            if place.turns == 0 {
                places.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    /// Counts what has begun, and ends one for each notice.
    #[derive(Default)]
    struct Work {
        begun: AtomicUsize,
        end: Notify,
    }

    impl Work {
        async fn run(self: Arc<Self>) -> usize {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            self.end.notified().await;
            number
        }

        fn begun(&self) -> usize {
            self.begun.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn who_must_wait_shares_what_begins_after_they_came() {
        let (reads, work) = (Reads::new(), Arc::new(Work::default()));
        let mut first = Vec::new();
        for _ in 0..ABREAST {
            let mut shares = reads.share("one", work.clone().run());
            assert!(futures_util::poll!(&mut shares).is_pending());
            first.push(shares);
        }
        assert_eq!(work.begun(), ABREAST, "as long as there is room nobody waits");
        let waiting: Vec<_> = (0..10).map(|_| reads.share("one", work.clone().run())).collect();
        let mut other = reads.share("other", work.clone().run());
        assert!(futures_util::poll!(&mut other).is_pending());
        let mut waiting = join_all(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(work.begun(), ABREAST + 1, "only what is read elsewhere");
        for _ in 0..=ABREAST {
            work.end.notify_one();
        }
        join_all(first).await;
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let mut late = reads.share("one", work.clone().run());
        assert!(futures_util::poll!(&mut late).is_pending());
        assert_eq!(work.begun(), ABREAST + 3, "it has begun, and who comes after that does not share it");
        work.end.notify_one();
        work.end.notify_one();
        let shared = waiting.await;
        assert!(shared.iter().all(|number| Arc::ptr_eq(number, &shared[0])));
        assert_ne!(late.await, shared[0]);
        other.await;
        assert!(reads.places().is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn who_leaves_takes_nothing_from_the_others() {
        let (reads, work) = (Reads::new(), Arc::new(Work::default()));
        let mut first = Vec::new();
        for _ in 0..ABREAST {
            let mut shares = reads.share((), work.clone().run());
            assert!(futures_util::poll!(&mut shares).is_pending());
            first.push(shares);
        }
        let (one, two) = (reads.share((), work.clone().run()), reads.share((), work.clone().run()));
        // Those who run leave, and then the one who made what the other waits for.
        drop(first);
        drop(one);
        work.end.notify_one();
        assert_eq!(*two.await, ABREAST);
        drop(reads.share((), work.clone().run()));
        assert_eq!(work.begun(), ABREAST + 1, "what nobody waits for does not begin");
        assert!(reads.places().is_empty());
    }

    #[tokio::test]
    async fn one_that_panics_keeps_no_place() {
        let reads = Reads::<_, ()>::new();
        let panics = std::panic::AssertUnwindSafe(reads.share((), async { panic!("on purpose") }));
        assert!(panics.catch_unwind().await.is_err());
        assert!(reads.places().is_empty());
    }
}
