//! The only file that names SQLite and PostgreSQL: the pools, the connections, and the macros that expand one query body
//! for each of them.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection as _, ConnectionError, ConnectionResult, SqliteConnection};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, PoolError, RecyclingMethod};
use diesel_async::sync_connection_wrapper::{SpawnBlocking, SyncConnectionWrapper};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncPgConnection, SimpleAsyncConnection, TransactionManager,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Error, Result};
use crate::settings::DatabaseUrl;

pub(super) type SqliteConn = SyncConnectionWrapper<SqliteConnection, InPlace>;
pub(super) type PgConn = AsyncPgConnection;
type Pool<C> = bb8::Pool<AsyncDieselConnectionManager<C>>;
type Pooled<C> = bb8::PooledConnection<'static, AsyncDieselConnectionManager<C>>;

/// How long a request waits for a connection before it is told that the database is unavailable.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(10);

/// A database: one of the kinds that are known, behind a pool.
#[derive(Clone)]
pub struct Db(Kind);

#[derive(Clone)]
enum Kind {
    /// SQLite has one write lock, so writers queue for one connection and not in `busy_timeout`.
    Sqlite {
        writer: Pool<SqliteConn>,
        readers: Pool<SqliteConn>,
        scanners: Pool<SqliteConn>,
    },
    Postgres(Pool<PgConn>),
}

/// A connection taken from the pool. It can only read until a transaction has begun on it.
#[allow(private_interfaces, reason = "an enum's fields are as public as it is; nobody outside can name them")]
#[allow(
    clippy::large_enum_variant,
    reason = "it is taken from a pool and moved seldom; a box would be one more allocation"
)]
pub enum Conn {
    #[doc(hidden)]
    Sqlite(Pooled<SqliteConn>),
    #[doc(hidden)]
    Postgres(Pooled<PgConn>),
}

/// How full the pools are.
#[derive(Debug, Clone, Copy)]
pub struct PoolState {
    /// Connections that are open.
    pub open: u32,
    /// Those of them that nobody uses.
    pub idle: u32,
}

/// Expands one diesel query body for each database. In the body `$conn` is the connection and, where named, `$backend` its
/// diesel backend.
macro_rules! on_conn {
    ($on:expr, |$conn:ident| $body:expr) => {
        match $on {
            $crate::store::backend::Conn::Sqlite(conn) => {
                let $conn: &mut $crate::store::backend::SqliteConn = &mut **conn;
                $body
            }
            $crate::store::backend::Conn::Postgres(conn) => {
                let $conn: &mut $crate::store::backend::PgConn = &mut **conn;
                $body
            }
        }
    };
    ($on:expr, |$conn:ident: $backend:ident| $body:expr) => {
        match $on {
            $crate::store::backend::Conn::Sqlite(conn) => {
                type $backend = diesel::sqlite::Sqlite;
                let $conn: &mut $crate::store::backend::SqliteConn = &mut **conn;
                $body
            }
            $crate::store::backend::Conn::Postgres(conn) => {
                type $backend = diesel::pg::Pg;
                let $conn: &mut $crate::store::backend::PgConn = &mut **conn;
                $body
            }
        }
    };
}
pub(super) use on_conn;

/// Reads the first row of a query and keeps it locked to the end of the transaction. SQLite has one writer anyway.
macro_rules! first_locked {
    ($on:expr, $query:expr) => {
        match $on {
            $crate::store::backend::Conn::Sqlite(conn) => {
                let conn: &mut $crate::store::backend::SqliteConn = &mut **conn;
                diesel_async::RunQueryDsl::first($query, conn).await
            }
            $crate::store::backend::Conn::Postgres(conn) => {
                let conn: &mut $crate::store::backend::PgConn = &mut **conn;
                diesel_async::RunQueryDsl::first(diesel::QueryDsl::for_update($query), conn).await
            }
        }
    };
}
pub(super) use first_locked;

impl Db {
    /// Opens the database. PostgreSQL is first connected to when a connection is needed.
    ///
    /// # Errors
    /// Where an SQLite file cannot be opened, or a PostgreSQL URL cannot be understood.
    pub async fn open(url: &DatabaseUrl, pool_size: u32, statement_timeout: Duration) -> Result<Self> {
        Ok(Self(match url {
            DatabaseUrl::Sqlite(path) => {
                // The writer comes first: it makes the file and turns on the write-ahead log.
                let writer = sqlite_pool(path, 1, Mode::Write).await?;
                let readers = sqlite_pool(path, pool_size, Mode::Read).await?;
                Kind::Sqlite { writer, readers, scanners: sqlite_pool(path, pool_size, Mode::Scan).await? }
            }
            DatabaseUrl::Postgres(url) => Kind::Postgres(postgres_pool(url, pool_size, statement_timeout)?),
        }))
    }

    /// A connection to read a bounded number of rows with, by an index.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where none is to be had in time.
    pub async fn read(&self) -> Result<Conn> {
        Ok(match &self.0 {
            Kind::Sqlite { readers, .. } => Conn::Sqlite(readers.get_owned().await?),
            Kind::Postgres(pool) => Conn::Postgres(pool.get_owned().await?),
        })
    }

    /// A connection for a read that takes the longer the more there is: a count, a search.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where none is to be had in time.
    pub async fn scan(&self) -> Result<Conn> {
        Ok(match &self.0 {
            Kind::Sqlite { scanners, .. } => Conn::Sqlite(scanners.get_owned().await?),
            Kind::Postgres(pool) => Conn::Postgres(pool.get_owned().await?),
        })
    }

    /// A connection on which a transaction for writing has begun.
    pub(super) async fn begin(&self) -> Result<Conn> {
        let mut conn = match &self.0 {
            Kind::Sqlite { writer, .. } => Conn::Sqlite(writer.get_owned().await?),
            Kind::Postgres(pool) => Conn::Postgres(pool.get_owned().await?),
        };
        match &mut conn {
            // IMMEDIATE takes the write lock at once: a read that is upgraded later fails instead of waiting.
            Conn::Sqlite(conn) => {
                conn.spawn_blocking(|conn| {
                    diesel::connection::AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN IMMEDIATE")
                })
                .await?;
            }
            Conn::Postgres(conn) => {
                AnsiTransactionManager::begin_transaction_sql(&mut **conn, "BEGIN READ WRITE").await?;
            }
        }
        Ok(conn)
    }

    /// Lets one server at a time pass until the transaction on `conn` ends. SQLite's write lock is that already.
    pub(super) async fn lock_alone(conn: &mut Conn) -> Result<()> {
        /// Any number that no other program that shares the database uses: "claviger" in hexadecimal.
        const LOCK: i64 = 0x636c_6176_6967_6572;
        if let Conn::Postgres(conn) = conn {
            conn.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
        }
        Ok(())
    }

    /// Asks the database for an answer.
    ///
    /// # Errors
    /// Where it gives none.
    pub async fn ping(&self) -> Result<()> {
        let mut conn = self.read().await?;
        on_conn!(&mut conn, |c| c.batch_execute("SELECT 1").await?);
        Ok(())
    }

    /// How full the pools are, for the metrics.
    #[must_use]
    pub fn pool_state(&self) -> PoolState {
        let states = match &self.0 {
            Kind::Sqlite { writer, readers, scanners } => vec![writer.state(), readers.state(), scanners.state()],
            Kind::Postgres(pool) => vec![pool.state()],
        };
        PoolState {
            open: states.iter().map(|s| s.connections).sum(),
            idle: states.iter().map(|s| s.idle_connections).sum(),
        }
    }

    /// The name of the kind of database, as in its URL.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Kind::Sqlite { .. } => "sqlite",
            Kind::Postgres(_) => "postgres",
        }
    }
}

impl Conn {
    pub(super) async fn commit(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(conn) => {
                <SqliteConn as AsyncConnection>::TransactionManager::commit_transaction(&mut **conn).await?;
            }
            Self::Postgres(conn) => AnsiTransactionManager::commit_transaction(&mut **conn).await?,
        }
        Ok(())
    }

    pub(super) async fn rollback(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(conn) => {
                <SqliteConn as AsyncConnection>::TransactionManager::rollback_transaction(&mut **conn).await?;
            }
            Self::Postgres(conn) => AnsiTransactionManager::rollback_transaction(&mut **conn).await?,
        }
        Ok(())
    }
}

/// Runs `SQLite`'s calls where they are awaited: most take microseconds, a hop to another thread and back takes longer
/// (docs/decisions/sqlite-in-place.md).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum InPlace {
    /// Calls that are short.
    Short,
    /// Calls that may be long or wait for the disk: the runtime is told, so that other tasks move on.
    Long,
}

impl SpawnBlocking for InPlace {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn StdError + Send + Sync>>>
    where
        R: Send + 'static,
    {
        let length = *self;
        async move {
            Ok(match length {
                Self::Short => task(),
                Self::Long => tokio::task::block_in_place(task),
            })
        }
        .boxed()
    }

    fn get_runtime() -> Self {
        Self::Long
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Scan,
    Write,
}

async fn sqlite_pool(path: &Path, size: u32, mode: Mode) -> Result<Pool<SqliteConn>> {
    let mut config = ManagerConfig::<SqliteConn>::default();
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(move |path| open_sqlite(path.to_owned(), mode).boxed());
    let manager = AsyncDieselConnectionManager::new_with_config(path.to_string_lossy(), config);
    let pool = bb8::Pool::builder()
        .max_size(size)
        .min_idle((mode != Mode::Scan).then_some(1))
        .test_on_check_out(false)
        .connection_timeout(CHECKOUT_TIMEOUT)
        .retry_connection(false)
        .build(manager)
        .await
        .map_err(|error: PoolError| Error::Unavailable(error.into()))?;
    Ok(pool)
}

async fn open_sqlite(path: String, mode: Mode) -> ConnectionResult<SqliteConn> {
    let length = if mode == Mode::Read { InPlace::Short } else { InPlace::Long };
    let conn = tokio::task::block_in_place(|| SqliteConnection::establish(&path))?;
    let mut conn = SqliteConn::with_runtime(conn, length);
    conn.spawn_blocking(move |conn| {
        conn.batch_execute(
            "PRAGMA busy_timeout = 5000;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF;",
        )?;
        match mode {
            Mode::Read | Mode::Scan => conn.batch_execute("PRAGMA query_only = ON;"),
            Mode::Write => turn_on_write_ahead_log(conn),
        }
    })
    .await
    .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// Turns on the write-ahead log; the file remembers it. Of several servers that do so to a new file at once, SQLite lets one,
/// and tells the others at once that the file is locked, whatever the timeout.
fn turn_on_write_ahead_log(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    const TRIES: u32 = 100;
    for _ in 1..TRIES {
        match conn.batch_execute("PRAGMA journal_mode = WAL;") {
            Err(error) if error.to_string().contains("locked") => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
    conn.batch_execute("PRAGMA journal_mode = WAL;")
}

fn postgres_pool(url: &secrecy::SecretString, size: u32, statement_timeout: Duration) -> Result<Pool<PgConn>> {
    use secrecy::ExposeSecret as _;

    let config = Arc::new(postgres_config(url.expose_secret())?);
    let tls = rustls::ClientConfig::with_platform_verifier().map_err(|error| Error::Unavailable(error.into()))?;
    let tls = MakeRustlsConnect::new(tls);
    let session = format!(
        "SET default_transaction_read_only = on; SET TimeZone = 'UTC'; SET lc_messages = 'C';
         SET statement_timeout = {timeout}; SET lock_timeout = {timeout};
         SET idle_in_transaction_session_timeout = 60000;",
        timeout = statement_timeout.as_millis()
    );
    let mut manager = ManagerConfig::<PgConn>::default();
    manager.recycling_method = RecyclingMethod::Fast;
    manager.custom_setup = Box::new(move |_| {
        let (config, tls, session) = (config.clone(), tls.clone(), session.clone());
        async move {
            let (client, connection) =
                config.connect(tls).await.map_err(|error| ConnectionError::BadConnection(describe(&error)))?;
            let mut conn = AsyncPgConnection::try_from_client_and_connection(client, connection).await?;
            conn.batch_execute(&session).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
            Ok(conn)
        }
        .boxed()
    });
    // The URL is in the configuration; the manager's own copy would be one more place that holds the password.
    let manager = AsyncDieselConnectionManager::new_with_config("postgres", manager);
    Ok(bb8::Pool::builder()
        .max_size(size)
        .test_on_check_out(false)
        .connection_timeout(CHECKOUT_TIMEOUT)
        .build_unchecked(manager))
}

/// Reads the URL. Without an `sslmode`, TLS is required of a server on another machine and not used on this one: a
/// certificate for the loopback address is seldom there, and nobody listens in between.
fn postgres_config(url: &str) -> Result<tokio_postgres::Config> {
    use tokio_postgres::config::{Host, SslMode};

    // libpq's two stricter modes are what `require` means here: the certificate is always verified.
    let known: Cow<'_, str> = url.replace("sslmode=verify-full", "sslmode=require").into();
    let mut config: tokio_postgres::Config =
        known.parse().map_err(|error: tokio_postgres::Error| Error::Unavailable(error.into()))?;
    if !known.contains("sslmode=") {
        let is_near = config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
            Host::Unix(_) => true,
        });
        config.ssl_mode(if is_near { SslMode::Disable } else { SslMode::Require });
    }
    config.connect_timeout(CHECKOUT_TIMEOUT).application_name("claviger");
    Ok(config)
}

/// An error with its causes in one line: what goes wrong in a handshake stands in the last of them.
fn describe(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
