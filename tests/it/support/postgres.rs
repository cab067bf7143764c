//! A PostgreSQL server of the tests' own: started once, on a free port, gone with the process. And others, of one test each, that
//! are stopped, hang and come back.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use diesel::Connection as _;
use diesel::RunQueryDsl as _;
use diesel::connection::SimpleConnection as _;

use super::live::in_time;

/// A shell that starts PostgreSQL, stops it, lets it hang and go on as it is told on its standard input, and ends it when that is
/// closed, which happens however this process ends.
/// PostgreSQL refuses to run as root, so root runs it as the user that its package makes, or as nobody.
const WATCHDOG: &str = r#"
set -eu
folder=$1 port=$2 synchronous_commit=$3
as() { "$@"; }
if [ "$(id -u)" = 0 ]; then
  user=postgres; id "$user" >/dev/null 2>&1 || user=nobody
  chown "$user" "$folder"
  as() { su -s /bin/sh "$user" -c 'exec "$0" "$@"' -- "$@"; }
fi
# Whatever ends this shell early, PostgreSQL ends too; a reader that is gone must not end it without the trap.
trap '' PIPE
trap 'all CONT 2>/dev/null || true; as "$PG_CTL" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
# A signal to the server and then to its processes: those that it has begun before it got the signal.
all() {
  server=$(head -n 1 "$folder/data/postmaster.pid") || return 0
  kill -"$1" "$server"
  for process in $(pgrep -P "$server"); do kill -"$1" "$process" || true; done
}
start() {
  as "$PG_CTL" -D "$folder/data" -l "$folder/server.log" -w start >/dev/null || {
    cat "$folder/server.log" >&2
    exit 1
  }
}
cd "$folder"
as "$INITDB" -D "$folder/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$folder/initdb.log" 2>&1 || {
  cat "$folder/initdb.log" >&2
  exit 1
}
# Everybody is let in but `locked`, who needs the password.
as sh -c 'printf "host all locked all scram-sha-256\n" | cat - "$1" >"$1.new" && mv "$1.new" "$1"' - "$folder/data/pg_hba.conf"
cat >>"$folder/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
max_connections = 300
shared_buffers = 64MB
fsync = off
synchronous_commit = $synchronous_commit
full_page_writes = off
CONF
start
as "$PSQL" -q -h 127.0.0.1 -p "$port" -U postgres -d postgres \
  -c "CREATE ROLE claviger LOGIN" -c "CREATE ROLE locked LOGIN PASSWORD 'right'" >&2
echo ready
while read -r word; do
  case $word in
    stop) as "$PG_CTL" -D "$folder/data" -m immediate stop >/dev/null ;;
    start) start ;;
    hang) all STOP ;;
    go) all CONT ;;
  esac
  echo ready
done
"#;

struct Cluster {
    port: u16,
    // Its standard input must stay open for as long as the process lives.
    watchdog: Child,
}

impl Cluster {
    /// Starts one, whose commits are written before they are told of, or not: those are lost where it is stopped.
    fn start(synchronous_commit: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("claviger-postgres-").tempdir().unwrap().keep();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&folder)
            .args([&port.to_string(), synchronous_commit])
            .env("INITDB", program("initdb"))
            .env("PG_CTL", program("pg_ctl"))
            .env("PSQL", program("psql"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C in a terminal goes to the tests' group: the watchdog must outlive them.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut cluster = Self { port, watchdog };
        cluster.until_ready();
        cluster
    }

    fn until_ready(&mut self) {
        let mut ready = [0; 6];
        let outcome = self.watchdog.stdout.as_mut().unwrap().read_exact(&mut ready);
        assert!(outcome.is_ok() && &ready == b"ready\n", "PostgreSQL did not start: its own words stand above");
    }

    async fn database(&self, name: &str) -> TestDatabase {
        let port = self.port;
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE DATABASE {name} OWNER claviger")).await.unwrap();
        // As an operator would: the role owns its database and is no superuser.
        TestDatabase { url: format!("postgres://claviger@127.0.0.1:{port}/{name}"), _folder: None }
    }
}

/// A PostgreSQL server of one test's own.
pub(crate) struct TestPostgres(Cluster);

impl TestPostgres {
    pub(crate) async fn start() -> Self {
        Self(tokio::task::spawn_blocking(|| Cluster::start("on")).await.unwrap())
    }

    pub(crate) async fn database(&self) -> TestDatabase {
        self.0.database("test").await
    }

    /// Stops it as a crash would.
    pub(crate) fn stop(&mut self) {
        self.tell("stop");
    }

    pub(crate) fn start_again(&mut self) {
        self.tell("start");
    }

    /// Lets it hang: it takes connections, and answers nothing.
    pub(crate) fn hang(&mut self) {
        self.tell("hang");
    }

    pub(crate) fn go_on(&mut self) {
        self.tell("go");
    }

    /// Waits until it is done: nothing else goes on meanwhile on this thread.
    fn tell(&mut self, word: &str) {
        tokio::task::block_in_place(|| {
            writeln!(self.0.watchdog.stdin.as_mut().unwrap(), "{word}").unwrap();
            self.0.until_ready();
        });
    }
}

impl Drop for TestPostgres {
    /// A shell that is not waited for would outlive the tests by a moment; a test that is over needs none.
    fn drop(&mut self) {
        drop(self.0.watchdog.stdin.take());
        let _ = self.0.watchdog.wait();
    }
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// Where a program of PostgreSQL is.
pub(crate) fn program(name: &str) -> PathBuf {
    let on_path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    let mut folders: Vec<PathBuf> = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path().join("bin")))
        .collect();
    folders.sort();
    folders.reverse();
    folders
        .into_iter()
        .chain(on_path)
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("PostgreSQL's {name} is not installed: ./test installs it"))
}

fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| Cluster::start("off"))
}

/// A database that nothing else uses.
pub(crate) struct TestDatabase {
    pub(crate) url: String,
    _folder: Option<tempfile::TempDir>,
}

impl TestDatabase {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { url: format!("sqlite://{}", folder.path().join("test.db").display()), _folder: Some(folder) }
    }

    /// One that is there already.
    pub(crate) fn at(url: String) -> Self {
        Self { url, _folder: None }
    }

    pub(crate) async fn postgres() -> Self {
        let cluster = tokio::task::spawn_blocking(cluster).await.unwrap();
        cluster.database(&format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed))).await
    }

    /// A connection past the server, to PostgreSQL: for a transaction that stays open while the server works.
    pub(crate) async fn connection(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Waits until somebody waits for a lock in this PostgreSQL database.
    pub(crate) async fn until_locked_out(&self) {
        let waiting = "SELECT pid::text AS text FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        in_time("somebody who waits for a lock", async {
            while self.texts(waiting).await.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// The columns of all tables that are ours, as `table.column` and whether they may be null.
    pub(crate) async fn columns(&self) -> BTreeSet<(String, bool)> {
        if self.url.starts_with("postgres") {
            let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let rows = client
                .query(
                    "SELECT table_name || '.' || column_name, is_nullable = 'YES' FROM information_schema.columns
                     WHERE table_schema = 'public' AND table_name NOT LIKE '\\_\\_%'
                       AND NOT EXISTS (SELECT FROM pg_class WHERE relname = table_name AND relispartition)",
                    &[],
                )
                .await
                .unwrap();
            return rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        }
        let mut connection = diesel::SqliteConnection::establish(self.url.trim_start_matches("sqlite://")).unwrap();
        let sql = "SELECT t.name || '.' || c.name AS name, c.\"notnull\" = 0 AS nullable
                   FROM sqlite_schema t JOIN pragma_table_info(t.name) c
                   WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name NOT LIKE '%\\_search%' ESCAPE '\\' AND t.name NOT LIKE '\\_\\_%' ESCAPE '\\'";
        let rows: Vec<Column> = diesel::sql_query(sql).load(&mut connection).unwrap();
        rows.into_iter().map(|column| (column.name, column.nullable)).collect()
    }

    /// The column `text` of what a query finds.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        if self.url.starts_with("postgres") {
            let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            return client.query(sql, &[]).await.unwrap().iter().map(|row| row.get("text")).collect();
        }
        let mut connection = diesel::SqliteConnection::establish(self.url.trim_start_matches("sqlite://")).unwrap();
        let rows: Vec<TextRow> = diesel::sql_query(sql).load(&mut connection).unwrap();
        rows.into_iter().map(|row| row.text).collect()
    }

    /// How the database would run a query, with the statistics that it has of it by now.
    pub(crate) async fn plan(&self, sql: &str) -> String {
        if self.url.starts_with("postgres") {
            let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            // Rows that wait to be indexed are indexed now.
            client.batch_execute("VACUUM ANALYZE clients").await.unwrap();
            client.batch_execute("ANALYZE").await.unwrap();
            let rows = client.query(&format!("EXPLAIN {sql}"), &[]).await.unwrap();
            return rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n");
        }
        let mut connection = diesel::SqliteConnection::establish(self.url.trim_start_matches("sqlite://")).unwrap();
        let steps: Vec<Step> = diesel::sql_query(format!("EXPLAIN QUERY PLAN {sql}")).load(&mut connection).unwrap();
        steps.into_iter().map(|step| step.detail).collect::<Vec<_>>().join("\n")
    }

    /// Runs a statement past the server, as somebody with access to the database would.
    pub(crate) async fn execute(&self, sql: &str) -> Result<(), String> {
        if self.url.starts_with("postgres") {
            let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            return client.batch_execute(sql).await.map_err(|error| {
                error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
            });
        }
        let path = self.url.trim_start_matches("sqlite://");
        let mut connection = diesel::SqliteConnection::establish(path).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
        connection.batch_execute(sql).map_err(|error| error.to_string())
    }
}

#[derive(diesel::QueryableByName)]
struct TextRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

#[derive(diesel::QueryableByName)]
struct Column {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    nullable: bool,
}

#[derive(diesel::QueryableByName)]
struct Step {
    #[diesel(sql_type = diesel::sql_types::Text)]
    detail: String,
}
