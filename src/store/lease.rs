//! Connections that were taken from a pool, each with what runs on it: a statement that is given up ends its span at once.
//! PostgreSQL is told to stop it, and its connection serves nobody any more; SQLite's connection goes back to the pool only when
//! SQLite is done with it.

use std::error::Error as StdError;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::sync_connection_wrapper::SpawnBlocking;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tracing::Span;

use super::backend::CHECKOUT_TIMEOUT;

type Connect<C> = Box<dyn Fn(Activity) -> BoxFuture<'static, ConnectionResult<C>> + Send + Sync>;

/// Ends what a connection's server does for it, and the connection.
type Stop = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// What runs on a connection.
#[derive(Clone, Default)]
pub(crate) struct Activity {
    shared: Arc<Shared>,
    /// `SQLite`'s calls that have threads of their own.
    calls: TaskTracker,
}

#[derive(Default)]
struct Shared {
    /// The statement that was begun and has not ended.
    statement: Mutex<Option<Statement>>,
    /// Whether a statement may take as long as it likes.
    is_unbounded: AtomicBool,
    /// Whether the connection is to serve nobody any more.
    is_lost: AtomicBool,
    /// What stops a statement of PostgreSQL's.
    stop: OnceLock<Stop>,
}

struct Statement {
    // Held for as long as the statement runs.
    _span: Span,
    began: Instant,
}

impl Activity {
    pub(super) fn begin_statement(&self, span: Span) {
        *self.statement() = Some(Statement { _span: span, began: Instant::now() });
    }

    /// Returns whether there was one to end.
    pub(super) fn end_statement(&self) -> bool {
        self.statement().take().is_some()
    }

    fn statement(&self) -> MutexGuard<'_, Option<Statement>> {
        self.shared.statement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how a statement is stopped that was given up. Only the first says so.
    pub(super) fn stop_by(&self, stop: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) {
        let _ = self.shared.stop.set(Box::new(stop));
    }

    /// Waits until a statement has run for longer than `limit`.
    pub(super) async fn is_overdue(&self, limit: Duration) {
        loop {
            let began = self.statement().as_ref().map(|statement| statement.began);
            let began = began.filter(|_| !self.shared.is_unbounded.load(Ordering::Relaxed));
            if began.is_some_and(|began| began.elapsed() >= limit) {
                return;
            }
            sleep_until(began.unwrap_or_else(Instant::now) + limit).await;
        }
    }

    /// How the calls of a connection run which may take long, and which the caller may give up.
    pub(super) fn apart(&self) -> Calls {
        Calls::Apart(self.clone())
    }

    fn lose(&self) {
        self.shared.is_lost.store(true, Ordering::Release);
    }

    fn is_lost(&self) -> bool {
        self.shared.is_lost.load(Ordering::Acquire)
    }
}

/// How `SQLite`'s calls run (docs/decisions/sqlite-in-place.md).
#[derive(Clone)]
pub(crate) enum Calls {
    /// Where they are awaited: they are short, and a hop to another thread and back takes longer.
    InPlace,
    /// Where they are awaited, but the runtime is told, so that other tasks move on: they wait for the disk.
    Blocking,
    /// Each on a thread of its own, as long as it takes. Whoever waits for one can stop waiting.
    Apart(Activity),
}

impl SpawnBlocking for Calls {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn StdError + Send + Sync>>>
    where
        R: Send + 'static,
    {
        let calls = self.clone();
        async move {
            match calls {
                Self::InPlace => Ok(task()),
                Self::Blocking => Ok(tokio::task::block_in_place(task)),
                Self::Apart(activity) => {
                    let span = Span::current();
                    let running = activity.calls.clone();
                    let call = move || {
                        catch_unwind(AssertUnwindSafe(|| span.in_scope(task))).unwrap_or_else(|panic| {
                            // It panicked with the connection in its hands: what state that is in, nobody knows.
                            activity.lose();
                            resume_unwind(panic)
                        })
                    };
                    Ok(running.spawn_blocking(call).await?)
                }
            }
        }
        .boxed()
    }

    fn get_runtime() -> Self {
        Self::Blocking
    }
}

/// Makes a pool's connections.
pub(super) struct Manager<C>(Connect<C>);

impl<C> Manager<C> {
    pub(super) fn new<F>(connect: impl Fn(Activity) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ConnectionResult<C>> + Send + 'static,
    {
        Self(Box::new(move |activity| connect(activity).boxed()))
    }
}

impl<C: PoolableConnection + 'static> bb8::ManageConnection for Manager<C> {
    type Connection = Pooled<C>;
    type Error = ConnectionError;

    async fn connect(&self) -> Result<Pooled<C>, ConnectionError> {
        let activity = Activity::default();
        Ok(Pooled { conn: (self.0)(activity.clone()).await?, activity })
    }

    /// Whether the server has closed the connection is known without asking it.
    async fn is_valid(&self, pooled: &mut Pooled<C>) -> Result<(), ConnectionError> {
        let is_broken = self.has_broken(pooled);
        if is_broken { Err(ConnectionError::BadConnection("closed".to_owned())) } else { Ok(()) }
    }

    fn has_broken(&self, pooled: &mut Pooled<C>) -> bool {
        // In this order: SQLite's connection does not bear to be looked at once a call has panicked with it.
        std::thread::panicking() || pooled.activity.is_lost() || pooled.conn.is_broken()
    }
}

/// Tells the log why a connection was not made or was given up: who waits for one learns only that it took too long.
#[derive(Debug, Clone)]
pub(super) struct ToLog {
    place: Arc<str>,
}

impl ToLog {
    /// Of a database that is there.
    pub(super) fn of(place: &str) -> Self {
        Self { place: place.into() }
    }
}

impl bb8::ErrorSink<ConnectionError> for ToLog {
    fn sink(&self, error: ConnectionError) {
        let database = &*self.place;
        tracing::warn!(
            error = &error as &dyn StdError,
            database,
            "a connection to the database was not made, or broke"
        );
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ConnectionError>> {
        Box::new(self.clone())
    }
}

/// A connection as the pool keeps it.
pub(super) struct Pooled<C> {
    conn: C,
    activity: Activity,
}

/// A connection for as long as somebody has it.
pub(super) struct Lease<C: PoolableConnection + 'static> {
    pooled: Option<bb8::PooledConnection<'static, Manager<C>>>,
    /// A place among those who may have one at once, which is free when the connection is.
    turn: Option<OwnedSemaphorePermit>,
}

impl<C: PoolableConnection> Lease<C> {
    /// Takes one from the pool.
    pub(super) async fn from(pool: &bb8::Pool<Manager<C>>) -> Result<Self, bb8::RunError<ConnectionError>> {
        Ok(Self { pooled: Some(pool.get_owned().await?), turn: None })
    }

    /// Takes one from the pool when it is its turn.
    pub(super) async fn in_turn(
        pool: &bb8::Pool<Manager<C>>,
        turns: &Arc<Semaphore>,
    ) -> Result<Self, bb8::RunError<ConnectionError>> {
        let turn = timeout(CHECKOUT_TIMEOUT, turns.clone().acquire_owned()).await;
        // Nobody closes the semaphore.
        let turn = turn.map_err(|_| bb8::RunError::TimedOut)?.ok();
        let mut lease = Self::from(pool).await?;
        lease.turn = turn;
        Ok(lease)
    }

    /// Lets statements take as long as they like, until the connection is given back.
    pub(super) fn unbounded(&self) {
        self.activity().shared.is_unbounded.store(true, Ordering::Relaxed);
    }

    fn activity(&self) -> &Activity {
        &self.pooled.as_ref().expect(LEASED).activity
    }
}

/// Why it is there: nothing but `drop` takes it out.
const LEASED: &str = "a lease has its connection until it is dropped";

impl<C: PoolableConnection> Deref for Lease<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.pooled.as_ref().expect(LEASED).conn
    }
}

impl<C: PoolableConnection> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.pooled.as_mut().expect(LEASED).conn
    }
}

impl<C: PoolableConnection> Drop for Lease<C> {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        let activity = pooled.activity.clone();
        activity.shared.is_unbounded.store(false, Ordering::Relaxed);
        let is_given_up = activity.end_statement() && activity.shared.stop.get().is_some();
        if is_given_up {
            // Whatever is sent on it next would wait for the statement, and one that is stopped late might be the next.
            activity.lose();
        } else if activity.calls.is_empty() {
            return;
        }
        // Whoever waited has given up. Until the statement ends, or PostgreSQL was told to stop it, the connection keeps its
        // place: as many run at once as the pool has. Where the runtime ends first, it is left to the end of the process.
        let (pooled, turn) = (ManuallyDrop::new(pooled), self.turn.take());
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Some(stop) = activity.shared.stop.get().filter(|_| is_given_up) {
                    stop().await;
                }
                activity.calls.close();
                activity.calls.wait().await;
                activity.calls.reopen();
                drop((ManuallyDrop::into_inner(pooled), turn));
            });
        }
    }
}
