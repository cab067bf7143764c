//! A copy of the database: of SQLite while it is used; of PostgreSQL, which has tools of its own, what those are called with.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{BigInt, Text};
use diesel::{Connection as _, QueryResult, RunQueryDsl as _, SqliteConnection};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use secrecy::{ExposeSecret as _, SecretString};

use super::postgres_url::for_libpq;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something has the name that the copy is to have.
    #[error("{} is there already, and is not written over", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("{} cannot be written", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// The database cannot be read, or the copy not written.
    #[error("{} cannot be copied", .0.display())]
    Database(PathBuf, #[source] Cause),
    /// What was copied is not whole: most likely, neither is the database.
    #[error("the copy would not be whole, so there is none: {0}")]
    NotWhole(String),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Copies an SQLite database as it is in this moment, whoever reads and writes meanwhile, into a file for its owner alone, and looks
/// whether the copy is whole. Returns its size in bytes.
///
/// # Errors
/// Then there is no copy.
pub fn copy_sqlite(from: &Path, to: &Path) -> Result<u64, BackupError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(path),
            _ => BackupError::File(path, error),
        }
    };
    let to = std::path::absolute(to).map_err(wrong(to))?;
    let name = to.file_name().ok_or_else(|| wrong(&to)(io::ErrorKind::IsADirectory.into()))?;
    // Told before the work is done, not only after it.
    if fs::symlink_metadata(&to).is_ok() {
        return Err(BackupError::Exists(to));
    }
    let draft = to.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let copied = make(&draft).map_err(wrong(&draft)).and_then(|()| {
        let failed = |cause| BackupError::Database(from.to_owned(), cause);
        let found = copy(from, &draft).and_then(|()| fault(&draft)).map_err(failed)?;
        if let Some(fault) = found {
            return Err(BackupError::NotWhole(fault));
        }
        place(&draft, &to).map_err(wrong(&to))
    });
    if copied.is_err() {
        // What went wrong first is told.
        let _ = fs::remove_file(&draft);
    }
    copied
}

fn make(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

/// Gives the draft its name, for good, unless something else has that. Returns its size.
fn place(draft: &Path, to: &Path) -> io::Result<u64> {
    let file = File::open(draft)?;
    file.sync_all()?;
    match renameat_with(CWD, draft, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that does not know of this knows of links.
        Err(Errno::INVAL | Errno::NOTSUP) => {
            fs::hard_link(draft, to)?;
            fs::remove_file(draft)?;
        }
        renamed => renamed?,
    }
    if let Some(folder) = to.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(file.metadata()?.len())
}

fn open(path: &Path) -> Result<SqliteConnection, Cause> {
    let path = path.to_str().ok_or_else(|| format!("the path {} is not UTF-8", path.display()))?;
    let mut conn = SqliteConnection::establish(path)?;
    conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA trusted_schema = OFF")?;
    Ok(conn)
}

/// VACUUM INTO is one read, of one moment, and writes into a file that is empty. It leaves rowids as they are in tables that have
/// another index, by which the indexes of trigrams name rows; [`fault`] looks at that.
fn copy(from: &Path, to: &Path) -> Result<(), Cause> {
    let to = to.to_str().ok_or_else(|| format!("the path {} is not UTF-8", to.display()))?;
    diesel::sql_query("VACUUM INTO ?").bind::<Text, _>(to).execute(&mut open(from)?)?;
    Ok(())
}

/// What is wrong with a copy, if anything.
fn fault(path: &Path) -> Result<Option<String>, Cause> {
    let conn = &mut open(path)?;
    let said: Vec<String> = diesel::dsl::sql::<Text>("PRAGMA integrity_check").load(conn)?;
    if said != ["ok"] {
        return Ok(Some(said.join("; ")));
    }
    let broken = count(conn, "SELECT count(*) FROM pragma_foreign_key_check")?;
    if broken > 0 {
        return Ok(Some(format!("{broken} rows refer to none")));
    }
    let indexes = "SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL TABLE % USING fts5%'";
    for index in diesel::dsl::sql::<Text>(indexes).load::<String>(conn)? {
        let Some(table) = index.strip_suffix("_search") else { continue };
        let differing = format!(
            "SELECT (SELECT count(*) FROM (SELECT rowid FROM {table} EXCEPT SELECT rowid FROM {index}))
                  + (SELECT count(*) FROM (SELECT rowid FROM {index} EXCEPT SELECT rowid FROM {table}))"
        );
        if count(conn, &differing)? > 0 {
            return Ok(Some(format!("the rows of {table} are not those that {index} names")));
        }
    }
    Ok(None)
}

fn count(conn: &mut SqliteConnection, sql: &str) -> QueryResult<i64> {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn)
}

/// The command that copies a PostgreSQL database into a file, for a shell, over a connection as safe as the server's. The password is
/// not in it.
#[must_use]
pub fn pg_dump(url: &SecretString, to: &Path) -> String {
    let url = for_libpq(url.expose_secret());
    format!("pg_dump --format=custom --no-owner --file={} {}", quoted(&to.display().to_string()), quoted(&url))
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_a_shell_has_no_password() {
        for (url, named) in [
            ("postgres://u:secret@localhost:6432/claviger", "postgres://u@localhost:6432/claviger"),
            ("postgres://u@db/d?sslmode=disable&password=secret", "postgres://u@db/d?sslmode=disable"),
            ("postgres://u@[::1]/d?password=secret", "postgres://u@[::1]/d"),
            ("postgres:///d?host=/run&p%61ssword=secret", "postgres:///d?host=/run"),
            ("postgres://u:se'cret@127.0.0.1/it's", r"postgres://u@127.0.0.1/it'\''s"),
            // libpq counts the one in milliseconds, and has another name for the other.
            (
                "postgres://u@localhost/d?tcp_user_timeout=15&keepalives_retries=3&keepalives_idle=30",
                "postgres://u@localhost/d?keepalives_idle=30",
            ),
            // It verifies nothing by itself.
            ("postgres://u@db/d", "postgres://u@db/d?sslmode=verify-full&sslrootcert=system"),
            ("postgres://u@db/d?sslmode=require", "postgres://u@db/d?sslmode=verify-full&sslrootcert=system"),
            ("postgres://u@db/d?sslmode=verify-ca", "postgres://u@db/d?sslmode=verify-full&sslrootcert=system"),
        ] {
            let command = pg_dump(&url.into(), Path::new("a b.dump"));
            assert_eq!(command, format!("pg_dump --format=custom --no-owner --file='a b.dump' '{named}'"));
        }
    }
}
