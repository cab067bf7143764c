//! The only file, beside `postgres_pool.rs`, `postgres_url.rs` and `locks.rs`, that names SQLite and PostgreSQL: the pools, the
//! connections, and the macros that expand one query body for each of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use diesel::{Connection as _, ConnectionError, ConnectionResult, SqliteConnection};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncPgConnection, SimpleAsyncConnection, TransactionManager,
};
use secrecy::ExposeSecret as _;
use tokio::sync::Semaphore;

use super::announcements::Endpoint;
use super::error::{Error, OpenError, Result};
use super::lease::{Activity, Calls, Lease, Manager, ToLog};
use super::postgres_pool::postgres_pool;
use super::postgres_url::{place, postgres_config};
use super::statements::Statements;
use super::tx::Tx;
use crate::model::Page;
use crate::settings::DatabaseUrl;

pub(super) type SqliteConn = SyncConnectionWrapper<SqliteConnection, Calls>;
pub(super) type PgConn = AsyncPgConnection;
pub(super) type Pool<C> = bb8::Pool<Manager<C>>;

/// How long a request waits for a connection before it is told that the database is unavailable.
pub(super) const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many of PostgreSQL's connections are not for what takes long.
const LEFT_BY_SCANS: u32 = 2;

/// A database: one of the kinds that are known, behind a pool.
#[derive(Clone)]
pub struct Db {
    kind: Kind,
    statements: Statements,
    place: Arc<str>,
    /// Where servers can tell each other something: of PostgreSQL.
    pub(super) endpoint: Option<Endpoint>,
    /// In whose name other servers are told of each commit; none: they are not.
    pub(super) tells_as: Option<Arc<str>>,
    /// Whether the last commit to SQLite has failed: the disk is full, as a rule.
    is_full: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Kind {
    /// SQLite has one write lock, so writers queue for one connection and not in `busy_timeout`.
    Sqlite { writer: Pool<SqliteConn>, readers: Pool<SqliteConn>, scanners: Pool<SqliteConn>, path: PathBuf },
    Postgres {
        pool: Pool<PgConn>,
        /// Turns for what takes long: whoever counts and searches leaves others a connection.
        scans: Arc<Semaphore>,
    },
}

/// A connection taken from the pool. It can only read until a transaction has begun on it.
#[allow(private_interfaces, reason = "an enum's fields are as public as it is; nobody outside can name them")]
#[allow(
    clippy::large_enum_variant,
    reason = "it is taken from a pool and moved seldom; a box would be one more allocation"
)]
pub enum Conn {
    #[doc(hidden)]
    Sqlite(Lease<SqliteConn>),
    #[doc(hidden)]
    Postgres(Lease<PgConn>),
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

impl Db {
    /// Opens the database, and makes a connection: what is wrong with its URL is told at once.
    ///
    /// # Errors
    /// Where an SQLite file cannot be opened or PostgreSQL cannot be reached.
    pub async fn open(url: &DatabaseUrl, pool_size: u32, statement_timeout: Duration) -> Result<Self, OpenError> {
        let statements = Statements::default();
        let (kind, place, endpoint) = match url {
            DatabaseUrl::Sqlite(path) => {
                let pool = async |size, mode| {
                    let pool = sqlite_pool(path, size, mode, &statements).await;
                    pool.map_err(|error| OpenError::Sqlite(path.clone(), error.into_cause()))
                };
                // The writer comes first: it makes the file and turns on the write-ahead log.
                let writer = pool(1, Mode::Write).await?;
                let readers = pool(pool_size, Mode::Read).await?;
                let scanners = pool(pool_size, Mode::Scan).await?;
                (Kind::Sqlite { writer, readers, scanners, path: path.clone() }, path.display().to_string(), None)
            }
            DatabaseUrl::Postgres(url) => {
                let config = postgres_config(url.expose_secret()).map_err(|error| OpenError::Url(error.into()))?;
                let place = place(&config);
                let failed = |cause| OpenError::Postgres(place.clone(), cause);
                let endpoint = Endpoint::new(config).map_err(|error| failed(error.into()))?;
                let pool = postgres_pool(endpoint.clone(), pool_size, statement_timeout, &statements).await;
                let pool = pool.map_err(failed)?;
                let scans = pool_size.saturating_sub(LEFT_BY_SCANS).max(1);
                let scans = Arc::new(Semaphore::new(usize::try_from(scans).unwrap_or(Semaphore::MAX_PERMITS)));
                (Kind::Postgres { pool, scans }, place, Some(endpoint))
            }
        };
        Ok(Self { kind, statements, place: place.into(), endpoint, tells_as: None, is_full: Arc::default() })
    }

    /// Where the database is, without a password: the file, or `host:port/name`.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// How many statements were sent so far.
    #[must_use]
    pub fn statements(&self) -> u64 {
        self.statements.sent()
    }

    /// A connection to read a bounded number of rows with, by an index.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where none is to be had in time.
    pub async fn read(&self) -> Result<Conn> {
        Ok(match &self.kind {
            Kind::Sqlite { readers, .. } => Conn::Sqlite(Lease::from(readers).await?),
            Kind::Postgres { pool, .. } => Conn::Postgres(Lease::from(pool).await?),
        })
    }

    /// A connection for a read that takes the longer the more there is: a count, a search. It can be given up at any time;
    /// SQLite, which has no way to be told so, then goes on to the end of the statement and has the connection until then.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where none is to be had in time.
    pub async fn scan(&self) -> Result<Conn> {
        Ok(match &self.kind {
            Kind::Sqlite { scanners, .. } => Conn::Sqlite(Lease::from(scanners).await?),
            Kind::Postgres { pool, scans } => Conn::Postgres(Lease::in_turn(pool, scans).await?),
        })
    }

    /// A connection to read a page of a list with: one that begins at a cursor is the next rows of the index of its order, unless
    /// rows are left out. Any filter may leave out most of them, and an offset is walked.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where none is to be had in time.
    pub async fn list(&self, page: &Page, is_filtered: bool) -> Result<Conn> {
        if is_filtered || page.offset() > 0 { self.scan().await } else { self.read().await }
    }

    /// A connection on which a transaction for writing has begun.
    pub(super) async fn begin(&self) -> Result<Conn> {
        let mut conn = match &self.kind {
            Kind::Sqlite { writer, .. } => Conn::Sqlite(Lease::from(writer).await?),
            Kind::Postgres { pool, .. } => Conn::Postgres(Lease::from(pool).await?),
        };
        conn.begin().await?;
        Ok(conn)
    }

    /// A connection on which a transaction for migrating has begun: alone, and however long it takes.
    pub(super) async fn begin_migrating(&self) -> Result<Conn> {
        let mut conn = match &self.kind {
            // One of its own: it goes with the setting that only migrations may have.
            Kind::Sqlite { path, .. } => {
                let pool = sqlite_pool(path, 1, Mode::Migrate, &self.statements).await?;
                Conn::Sqlite(Lease::from(&pool).await?)
            }
            Kind::Postgres { pool, .. } => Conn::Postgres(Lease::from(pool).await?),
        };
        conn.begin().await?;
        if let Conn::Postgres(conn) = &mut conn {
            conn.unbounded();
            conn.batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
        }
        conn.lock_alone().await?;
        Ok(conn)
    }

    /// Asks the database for an answer, whether it has its tables, and whether it can be written to, where that has failed.
    ///
    /// # Errors
    /// Where it gives none, has none, or still cannot be.
    pub async fn ping(&self) -> Result<()> {
        let mut conn = self.read().await?;
        on_conn!(&mut conn, |c| c.batch_execute("SELECT 1 FROM audit_heads LIMIT 1").await?);
        drop(conn);
        if self.is_full.load(Ordering::Relaxed) { self.try_to_write().await } else { Ok(()) }
    }

    /// Writes a page of SQLite's as it was: nothing uses the number.
    async fn try_to_write(&self) -> Result<()> {
        let mut tx = Tx::new(self.clone());
        if let Conn::Sqlite(conn) = tx.conn().await? {
            conn.batch_execute("PRAGMA user_version = 0").await?;
        }
        tx.commit_bookkeeping().await
    }

    /// Notes how a commit ended. Of PostgreSQL nothing needs noting: whether it is there is known by asking it.
    pub(super) fn note_commit(&self, ended: &Result<()>) {
        if let Kind::Sqlite { .. } = self.kind {
            self.is_full.store(matches!(ended, Err(Error::Unavailable(_))), Ordering::Relaxed);
        }
    }

    /// How full the pools are, for the metrics.
    #[must_use]
    pub fn pool_state(&self) -> PoolState {
        let states = match &self.kind {
            Kind::Sqlite { writer, readers, scanners, .. } => vec![writer.state(), readers.state(), scanners.state()],
            Kind::Postgres { pool, .. } => vec![pool.state()],
        };
        PoolState {
            open: states.iter().map(|s| s.connections).sum(),
            idle: states.iter().map(|s| s.idle_connections).sum(),
        }
    }

    /// The name of the kind of database, as in its URL.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite { .. } => "sqlite",
            Kind::Postgres { .. } => "postgres",
        }
    }
}

impl Conn {
    async fn begin(&mut self) -> Result<()> {
        match self {
            // IMMEDIATE takes the write lock at once: a read that is upgraded later fails instead of waiting.
            Self::Sqlite(conn) => {
                conn.spawn_blocking(|conn| {
                    diesel::connection::AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN IMMEDIATE")
                })
                .await?;
            }
            // The isolation is named: a server may have a stricter default, under which waiting for a lock ends in an error.
            Self::Postgres(conn) => {
                let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
                AnsiTransactionManager::begin_transaction_sql(&mut **conn, begin).await?;
            }
        }
        Ok(())
    }

    /// Lets one server at a time pass until the transaction ends. SQLite's write lock is that already.
    pub(super) async fn lock_alone(&mut self) -> Result<()> {
        /// Any number that no other program that shares the database uses: "claviger" in hexadecimal.
        const LOCK: i64 = 0x636c_6176_6967_6572;
        if let Self::Postgres(conn) = self {
            conn.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
        }
        Ok(())
    }

    /// How many rows refer to one that is not there. PostgreSQL lets none come to be; SQLite does while it migrates.
    pub(super) async fn broken_references(&mut self) -> Result<i64> {
        Ok(match self {
            Self::Sqlite(conn) => {
                let count = diesel::dsl::sql::<BigInt>("(SELECT count(*) FROM pragma_foreign_key_check)");
                diesel_async::RunQueryDsl::get_result(diesel::select(count), &mut **conn).await?
            }
            Self::Postgres(_) => 0,
        })
    }

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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Scan,
    Write,
    Migrate,
}

async fn sqlite_pool(path: &Path, size: u32, mode: Mode, statements: &Statements) -> Result<Pool<SqliteConn>> {
    let path =
        path.to_str().ok_or_else(|| Error::Unavailable(format!("the path {} is not UTF-8", path.display()).into()))?;
    let (file, statements) = (path.to_owned(), statements.clone());
    let manager = Manager::new(move |activity| open_sqlite(file.clone(), mode, statements.clone(), activity));
    let pool = bb8::Pool::builder()
        .max_size(size)
        .min_idle((mode != Mode::Scan).then_some(1))
        .test_on_check_out(false)
        .connection_timeout(CHECKOUT_TIMEOUT)
        .retry_connection(false)
        .error_sink(Box::new(ToLog::of(path)))
        .build(manager)
        .await
        .map_err(|error: ConnectionError| Error::Unavailable(error.into()))?;
    Ok(pool)
}

async fn open_sqlite(
    path: String,
    mode: Mode,
    statements: Statements,
    activity: Activity,
) -> ConnectionResult<SqliteConn> {
    let calls = match mode {
        Mode::Read => Calls::InPlace,
        Mode::Scan => activity.apart(),
        Mode::Write | Mode::Migrate => Calls::Blocking,
    };
    let conn = tokio::task::block_in_place(|| SqliteConnection::establish(&path))?;
    let mut conn = SqliteConn::with_runtime(conn, calls);
    conn.spawn_blocking(move |conn| {
        conn.batch_execute(
            "PRAGMA busy_timeout = 5000;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF;",
        )?;
        match mode {
            Mode::Read | Mode::Scan => conn.batch_execute("PRAGMA query_only = ON;"),
            Mode::Write => {
                // What was deleted would stay in the file until something else is written there, as key pairs for passwords, and
                // mails. What the journal still has goes with the next checkpoint.
                conn.batch_execute("PRAGMA secure_delete = ON;")?;
                turn_on_write_ahead_log(conn)
            }
            // A table that is rebuilt is dropped in between: what refers to its rows must not go with them.
            Mode::Migrate => conn.batch_execute("PRAGMA foreign_keys = OFF;"),
        }
    })
    .await
    .map_err(ConnectionError::CouldntSetupConfiguration)?;
    conn.set_instrumentation(statements.observe(activity));
    Ok(conn)
}

/// Turns on the write-ahead log; the file remembers it. Of several servers that do so to a new file at once, SQLite lets one,
/// and tells the others at once that the file is locked, whatever the timeout.
fn turn_on_write_ahead_log(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    const TRIES: u32 = 100;
    for tried in 1.. {
        // Where it cannot be turned on, as on some network drives, the answer is the mode that stays.
        let mode = diesel::dsl::sql::<Text>("PRAGMA journal_mode = WAL");
        match diesel::RunQueryDsl::get_result::<String>(mode, conn) {
            Ok(mode) if mode == "wal" => break,
            Ok(mode) => {
                let error = format!("the write-ahead log cannot be turned on: the journal mode stays {mode}");
                return Err(DieselError::QueryBuilderError(error.into()));
            }
            Err(error) if tried < TRIES && error.to_string().contains("locked") => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use super::*;
    use crate::model::Window;

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_looks_after_references_but_for_migrations() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let db = Db::open(&url, 1, CHECKOUT_TIMEOUT).await.unwrap();
        let mut conn = db.begin_migrating().await.unwrap();
        on_conn!(&mut conn, |c| c
            .batch_execute(
                "CREATE TABLE a (id INTEGER PRIMARY KEY);
                 CREATE TABLE b (a REFERENCES a (id) ON DELETE CASCADE);
                 INSERT INTO a VALUES (1); INSERT INTO b VALUES (1);
                 CREATE TABLE rebuilt (id INTEGER PRIMARY KEY); DROP TABLE a"
            )
            .await
            .unwrap());
        assert_eq!(conn.broken_references().await.unwrap(), 1);
        on_conn!(&mut conn, |c| c
            .batch_execute("ALTER TABLE rebuilt RENAME TO a; INSERT INTO a VALUES (1)")
            .await
            .unwrap());
        assert_eq!(conn.broken_references().await.unwrap(), 0);
        conn.commit().await.unwrap();
        let mut conn = db.begin().await.unwrap();
        on_conn!(&mut conn, |c| assert!(c.batch_execute("INSERT INTO b VALUES (2)").await.is_err()));
    }

    /// A connection that waits in a call until the sender is gone.
    async fn occupied(db: &Db) -> (Conn, std::sync::mpsc::Sender<()>) {
        let mut conn = db.scan().await.unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let Conn::Sqlite(sqlite) = &mut conn else { unreachable!("the database is SQLite") };
        let call = sqlite.spawn_blocking(move |_| {
            // Far longer than the test takes: what would wait for it, fails instead of never ending.
            let _ = receiver.recv_timeout(CHECKOUT_TIMEOUT * 2);
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::ZERO, call).await.is_err(), "the call is waited for");
        (conn, sender)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_scan_that_is_given_up_holds_up_nobody_but_has_its_connection() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let db = Db::open(&url, 1, CHECKOUT_TIMEOUT).await.unwrap();
        db.migrate_up().await.unwrap();
        // On the one worker that there is.
        let given_up = db.clone();
        let sender = tokio::spawn(async move { occupied(&given_up).await.1 }).await.unwrap();
        let pinging = db.clone();
        tokio::spawn(async move { pinging.ping().await.unwrap() }).await.unwrap();
        let mut next = Box::pin(db.scan());
        assert!(futures_util::poll!(&mut next).is_pending(), "one at a time is as many as the pool has");
        drop(sender);
        let mut conn = next.await.unwrap();
        on_conn!(&mut conn, |c| c.batch_execute("SELECT 1 FROM audit_heads").await.unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_scan_that_panics_costs_no_place_in_the_pool() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let db = Db::open(&url, 1, CHECKOUT_TIMEOUT).await.unwrap();
        for is_waited_for in [true, false, true] {
            let mut conn = db.scan().await.unwrap();
            let Conn::Sqlite(sqlite) = &mut conn else { unreachable!("the database is SQLite") };
            let call = sqlite.spawn_blocking::<()>(|_| panic!("as a fault of the program would"));
            if is_waited_for {
                assert!(call.await.is_err());
            } else {
                // Begun, if it is that soon, and given up.
                let _ = tokio::time::timeout(Duration::ZERO, call).await;
            }
        }
        let mut conn = db.scan().await.unwrap();
        on_conn!(&mut conn, |c| c.batch_execute("SELECT 1").await.unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_pass_over_any_number_of_rows_is_no_short_read() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let page = |window| Page { size: 20, window };
        for (window, is_filtered, is_scan) in [
            (Window::After(None), false, false),
            (Window::Before(None), false, false),
            (Window::Offset(0), false, false),
            (Window::Offset(1), false, true),
            (Window::After(None), true, true),
        ] {
            let db = Db::open(&url, 1, CHECKOUT_TIMEOUT).await.unwrap();
            let _conn = db.list(&page(window.clone()), is_filtered).await.unwrap();
            // The first connection to scan with is made when it is asked for.
            assert_eq!(db.pool_state().open == 3, is_scan, "{window:?} {is_filtered}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_path_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStringExt as _;
        let path = std::ffi::OsString::from_vec(b"/tmp/\xff.db".to_vec()).into();
        assert!(Db::open(&DatabaseUrl::Sqlite(path), 1, CHECKOUT_TIMEOUT).await.is_err());
    }
}
