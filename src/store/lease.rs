//! Connections that were taken from a pool, each with what runs on it: a read that is given up ends its span at once, and
//! SQLite's connection goes back to the pool only when SQLite is done with it.

use std::error::Error as StdError;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::sync_connection_wrapper::SpawnBlocking;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Span;

type Connect<C> = Box<dyn Fn(Activity) -> BoxFuture<'static, ConnectionResult<C>> + Send + Sync>;

/// What runs on a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Activity {
    /// The span of the statement.
    statement: Arc<Mutex<Option<Span>>>,
    /// `SQLite`'s calls that have threads of their own.
    calls: TaskTracker,
}

impl Activity {
    pub(super) fn begin_statement(&self, span: Span) {
        *self.statement.lock().unwrap_or_else(PoisonError::into_inner) = Some(span);
    }

    pub(super) fn end_statement(&self) {
        *self.statement.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How the calls of a connection run which may take long, and which the caller may give up.
    pub(super) fn apart(&self) -> Calls {
        Calls::Apart(self.calls.clone())
    }
}

/// How `SQLite`'s calls run (docs/decisions/sqlite-in-place.md).
#[derive(Debug, Clone)]
pub(crate) enum Calls {
    /// Where they are awaited: they are short, and a hop to another thread and back takes longer.
    InPlace,
    /// Where they are awaited, but the runtime is told, so that other tasks move on: they wait for the disk.
    Blocking,
    /// Each on a thread of its own, as long as it takes. Whoever waits for one can stop waiting.
    Apart(TaskTracker),
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
                Self::Apart(running) => {
                    let span = Span::current();
                    Ok(running.spawn_blocking(move || span.in_scope(task)).await?)
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
        let is_broken = pooled.conn.is_broken();
        if is_broken { Err(ConnectionError::BadConnection("closed".to_owned())) } else { Ok(()) }
    }

    fn has_broken(&self, pooled: &mut Pooled<C>) -> bool {
        std::thread::panicking() || pooled.conn.is_broken()
    }
}

/// A connection as the pool keeps it.
pub(super) struct Pooled<C> {
    conn: C,
    activity: Activity,
}

/// A connection for as long as somebody has it.
pub(super) struct Lease<C: PoolableConnection + 'static>(Option<bb8::PooledConnection<'static, Manager<C>>>);

impl<C: PoolableConnection> Lease<C> {
    /// Takes one from the pool.
    pub(super) async fn from(pool: &bb8::Pool<Manager<C>>) -> Result<Self, bb8::RunError<ConnectionError>> {
        Ok(Self(Some(pool.get_owned().await?)))
    }
}

/// Why it is there: nothing but `drop` takes it out.
const LEASED: &str = "a lease has its connection until it is dropped";

impl<C: PoolableConnection> Deref for Lease<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0.as_ref().expect(LEASED).conn
    }
}

impl<C: PoolableConnection> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.0.as_mut().expect(LEASED).conn
    }
}

impl<C: PoolableConnection> Drop for Lease<C> {
    fn drop(&mut self) {
        let Some(pooled) = self.0.take() else { return };
        pooled.activity.end_statement();
        let calls = pooled.activity.calls.clone();
        if calls.is_empty() {
            return;
        }
        // Whoever waited has given up, and the call goes on. Until it ends the connection is nobody else's: as many run at
        // once as the pool has. Where the runtime ends first, the connection is left to the end of the process.
        let pooled = ManuallyDrop::new(pooled);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                calls.close();
                calls.wait().await;
                calls.reopen();
                drop(ManuallyDrop::into_inner(pooled));
            });
        }
    }
}
