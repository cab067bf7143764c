//! How reads of one request are gathered into batches.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::hash::Hash;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Wake, Waker};

use dataloader::BatchFn;
use dataloader::cached::Loader;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};

use crate::domain::{self, Code, Cx};
use crate::graphql::context::Caller;
use crate::graphql::error::{Failure, Result};

pub(super) type Found<V> = Result<Option<V>>;

/// The most keys of one statement: fewer than SQLite binds.
const MAX_BATCH: usize = 10_000;

/// How many more statements a batch may take to find the keys whose rows cannot be read. Each halves what is left of the doubt: a few
/// bad rows among the most keys are found; where all are bad, the time is not spent on each.
const MORE_READS: usize = 64;

/// How often the rows that go on are looked at without any that asks, until a batch is read. More than once, since the library
/// looks at a few of many rows at a time.
const QUIET_PASSES: usize = 3;

/// What a batch reads: the values of its keys; a key without one is left out.
pub(super) trait Read: 'static {
    type Key: Clone + Debug + Eq + Hash + Send + Sync + 'static;
    type Value: Clone + Send + Sync + 'static;

    fn read(
        cx: Cx<'_>,
        keys: &[Self::Key],
    ) -> impl Future<Output = domain::Result<HashMap<Self::Key, Self::Value>>> + Send;
}

struct Batch<R> {
    caller: Arc<Caller>,
    of: PhantomData<fn() -> R>,
}

impl<R: Read> BatchFn<R::Key, Found<R::Value>> for Batch<R> {
    async fn load(&mut self, keys: &[R::Key]) -> HashMap<R::Key, Found<R::Value>> {
        let mut loaded = HashMap::with_capacity(keys.len());
        let (mut parts, mut more) = (vec![keys], MORE_READS);
        while let Some(part) = parts.pop() {
            match R::read(self.caller.cx("load"), part).await {
                Ok(mut found) => loaded.extend(part.iter().map(|key| (key.clone(), Ok(found.remove(key))))),
                // A row that cannot be read takes the whole statement with it. The others are read without it.
                Err(error) if error.code() == Code::Internal && part.len() > 1 && more > 1 => {
                    more -= 2;
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    loaded.extend(part.iter().map(|key| (key.clone(), Err(failure.clone()))));
                }
            }
        }
        loaded
    }
}

/// A loader, and the keys that are gathered for its next batch.
///
/// Left alone, the loader holds its lock while it reads. Whoever waits for it then goes on one after the other, and the first of
/// them would begin the next batch before the last has asked. Here all wait for one reading, and hear of its end at once.
pub(super) struct Gathering<R: Read> {
    loader: Loader<R::Key, Found<R::Value>, Batch<R>>,
    next: Arc<Mutex<Option<Next<R>>>>,
    /// How often the loaders of the request were asked.
    asked: Arc<AtomicUsize>,
}

struct Next<R: Read> {
    keys: Vec<R::Key>,
    reading: Reading<R>,
}

/// Whoever waits for it drives it on: one who gives up takes nothing from the others.
struct Reading<R: Read>(Shared<BoxFuture<'static, Batched<R>>>);

/// What was found for the keys of a batch, for all who asked.
type Batched<R> = Arc<HashMap<<R as Read>::Key, Found<<R as Read>::Value>>>;

impl<R: Read> Gathering<R> {
    pub(super) fn new(caller: &Arc<Caller>, asked: &Arc<AtomicUsize>) -> Self {
        let batch = Batch { caller: caller.clone(), of: PhantomData };
        let loader = Loader::new(batch).with_yield_count(0).with_max_batch_size(MAX_BATCH);
        Self { loader, next: Arc::default(), asked: asked.clone() }
    }

    pub(super) async fn load(&self, key: R::Key) -> Found<R::Value> {
        let Reading(reading) = self.ask(key.clone());
        reading.await.get(&key).cloned().unwrap_or(Ok(None))
    }

    /// Forgets what was read.
    pub(super) async fn clear(&self) {
        self.loader.clear_all().await;
    }

    fn ask(&self, key: R::Key) -> Reading<R> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut next = locked(&self.next);
        let next = next.get_or_insert_with(|| {
            // Not held by what it holds.
            let (loader, next) = (self.loader.clone(), Arc::downgrade(&self.next));
            let asked = self.asked.clone();
            let read = async move {
                // Not before all rows that go on have asked for what they need, of this loader or another.
                let mut quiet = 0;
                while quiet < QUIET_PASSES {
                    let before = asked.load(Ordering::Relaxed);
                    pass().await;
                    quiet = if asked.load(Ordering::Relaxed) == before { quiet + 1 } else { 0 };
                }
                let keys = next.upgrade().and_then(|next| Some(locked(&next).take()?.keys)).unwrap_or_default();
                Arc::new(loader.load_many(keys).await)
            };
            Next { keys: Vec::new(), reading: Reading(read.boxed().shared()) }
        });
        next.keys.push(key);
        Reading(next.reading.0.clone())
    }
}

/// Waits until the task has been left and come back to, by which all that goes on in it has been looked at.
///
/// Yielding alone is over as soon as it is polled again, which those who wait for several things do at any time.
async fn pass() {
    let mut back: Option<Arc<Back>> = None;
    let mut leaving = pin!(tokio::task::yield_now());
    poll_fn(|cx| match &back {
        Some(back) if back.has_come.load(Ordering::Relaxed) => Poll::Ready(()),
        Some(_) => Poll::Pending,
        None => {
            let new = Arc::new(Back { has_come: AtomicBool::new(false), waker: cx.waker().clone() });
            // Asked to wake, it does so when the task has been left.
            let is_left = leaving.as_mut().poll(&mut TaskContext::from_waker(&new.clone().into()));
            debug_assert!(is_left.is_pending());
            back = Some(new);
            Poll::Pending
        }
    })
    .await;
}

struct Back {
    has_come: AtomicBool,
    waker: Waker,
}

impl Wake for Back {
    fn wake(self: Arc<Self>) {
        self.has_come.store(true, Ordering::Relaxed);
        self.waker.wake_by_ref();
    }
}

fn locked<R: Read>(next: &Mutex<Option<Next<R>>>) -> MutexGuard<'_, Option<Next<R>>> {
    // Nothing in it can panic half-way.
    next.lock().unwrap_or_else(PoisonError::into_inner)
}
