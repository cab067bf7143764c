//! The embedded migrations, applied by one server at a time.

use diesel::QueryDsl as _;
use diesel::migration::MigrationSource;
use diesel_async::{AsyncMigrationHarness, RunQueryDsl as _, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::backend::{Conn, Db, on_conn};
use super::error::Error;
use super::statistics;
use super::tables::audit_seals;

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The migration whose tables hold the seals of audit logs.
const SEALS: &str = "2026-11-21-000006_audit_retention";

/// Lets PostgreSQL find `pg_trgm` where it was put into another schema than the tables: only while migrations are applied, which may
/// make indexes of it, since a search names nothing of it.
const FIND_TRIGRAMS: &str = "DO $$
DECLARE place text;
BEGIN
  SELECT n.nspname INTO place FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'pg_trgm' AND n.nspname <> ALL (current_schemas(true));
  IF place IS NULL THEN
    RETURN;
  END IF;
  IF NOT has_schema_privilege(place, 'USAGE') THEN
    RAISE EXCEPTION 'the extension pg_trgm is in the schema %, which the role % may not use: have an administrator run GRANT USAGE ON SCHEMA % TO %, then start again',
      place, current_user, quote_ident(place), quote_ident(current_user);
  END IF;
  PERFORM set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), quote_ident(place)), true);
END
$$";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One migration that this program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its folder's name.
    pub name: String,
    /// Whether the database has it.
    pub applied: bool,
}

/// A migration that did not succeed. The database is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database was changed by a newer program than this.
    #[error("the database has the migration {0}, which this version of claviger does not know: run a newer one")]
    FromTheFuture(String),
    /// What cannot be made again would be lost.
    #[error(
        "the audit log of {0} organizations begins at a seal, which {SEALS} holds: without it the log cannot be verified any \
         more. Nothing was reverted"
    )]
    Sealed(i64),
    /// There is nothing to revert.
    #[error("no migration is applied")]
    NothingApplied,
    /// The migration failed.
    #[error("the migration failed")]
    Failed(#[source] Failure),
    /// The database could not be reached.
    #[error(transparent)]
    Store(#[from] Error),
}

#[derive(Clone, Copy)]
enum Step {
    Up,
    Down(usize),
    Redo,
    Status,
}

impl Db {
    /// Applies what is pending and returns it. Several servers may call it at once.
    ///
    /// # Errors
    /// Where a migration fails or the database is newer than the program.
    pub async fn migrate_up(&self) -> Result<Vec<Migration>, MigrationError> {
        self.migrate(Step::Up).await
    }

    /// Reverts the newest `steps` migrations and returns them. Their tables and what was in them are gone.
    ///
    /// # Errors
    /// Where a migration fails or none is applied.
    pub async fn migrate_down(&self, steps: usize) -> Result<Vec<Migration>, MigrationError> {
        self.migrate(Step::Down(steps)).await
    }

    /// Reverts the newest migration, applies it again and returns it.
    ///
    /// # Errors
    /// Where a migration fails or none is applied.
    pub async fn migrate_redo(&self) -> Result<Vec<Migration>, MigrationError> {
        self.migrate(Step::Redo).await
    }

    /// Every migration that the program knows, oldest first.
    ///
    /// # Errors
    /// Where the database cannot be reached or is newer than the program.
    pub async fn migrations(&self) -> Result<Vec<Migration>, MigrationError> {
        self.migrate(Step::Status).await
    }

    /// One transaction around all of it: both databases can undo changes of tables.
    async fn migrate(&self, step: Step) -> Result<Vec<Migration>, MigrationError> {
        // Where something fails, the connection is closed, and its transaction with it.
        let (mut conn, known) = apply(self.begin_migrating().await?, Step::Status);
        let known = known?;
        let (reverted, applies) = match step {
            Step::Down(steps) => (steps, false),
            Step::Redo => (1, true),
            Step::Up => (0, known.iter().any(|migration| !migration.applied)),
            Step::Status => {
                conn.rollback().await?;
                return Ok(known);
            }
        };
        if applies && let Conn::Postgres(conn) = &mut conn {
            conn.batch_execute(FIND_TRIGRAMS).await.map_err(|error| MigrationError::Failed(error.into()))?;
        }
        if known.iter().rev().filter(|m| m.applied).take(reverted).any(|m| m.name == SEALS) {
            refuse_to_lose_seals(&mut conn).await?;
        }
        let (mut conn, mut done) = apply(conn, step);
        if done.is_ok() {
            let broken = conn.broken_references().await?;
            if broken > 0 {
                done = Err(MigrationError::Failed(format!("{broken} rows would refer to none").into()));
            }
        }
        if done.is_ok()
            && matches!(step, Step::Up | Step::Redo)
            && let Conn::Sqlite(conn) = &mut conn
        {
            conn.spawn_blocking(statistics::write).await.map_err(Error::from)?;
        }
        match done {
            Ok(_) => conn.commit().await?,
            Err(_) => conn.rollback().await?,
        }
        done
    }
}

fn apply(conn: Conn, step: Step) -> (Conn, Result<Vec<Migration>, MigrationError>) {
    match conn {
        Conn::Sqlite(conn) => {
            let mut harness = AsyncMigrationHarness::new(conn);
            let done = run(&mut harness, &SQLITE, step);
            (Conn::Sqlite(harness.into_inner()), done)
        }
        Conn::Postgres(conn) => {
            let mut harness = AsyncMigrationHarness::new(conn);
            let done = run(&mut harness, &POSTGRES, step);
            (Conn::Postgres(harness.into_inner()), done)
        }
    }
}

async fn refuse_to_lose_seals(conn: &mut Conn) -> Result<(), MigrationError> {
    let seals: i64 = on_conn!(conn, |c| audit_seals::table.count().get_result(c).await.map_err(Error::from)?);
    if seals > 0 { Err(MigrationError::Sealed(seals)) } else { Ok(()) }
}

fn run<DB, H>(harness: &mut H, source: &impl MigrationSource<DB>, step: Step) -> Result<Vec<Migration>, MigrationError>
where
    DB: diesel::backend::Backend,
    H: MigrationHarness<DB>,
{
    let mut known = source.migrations().map_err(MigrationError::Failed)?;
    known.sort_by_key(|migration| migration.name().to_string());
    let applied = harness.applied_migrations().map_err(MigrationError::Failed)?;
    if let Some(unknown) = applied.iter().find(|version| !known.iter().any(|m| m.name().version() == **version)) {
        return Err(MigrationError::FromTheFuture(unknown.to_string()));
    }
    let (old, new): (Vec<_>, Vec<_>) = known.into_iter().partition(|m| applied.contains(&m.name().version()));
    let named = |migration: &dyn diesel::migration::Migration<DB>, applied| Migration {
        name: migration.name().to_string(),
        applied,
    };
    match step {
        Step::Status => {
            Ok(old.iter().map(|m| named(&**m, true)).chain(new.iter().map(|m| named(&**m, false))).collect())
        }
        Step::Up => {
            for migration in &new {
                harness.run_migration(&**migration).map_err(MigrationError::Failed)?;
            }
            Ok(new.iter().map(|m| named(&**m, true)).collect())
        }
        Step::Down(_) | Step::Redo if old.is_empty() => Err(MigrationError::NothingApplied),
        Step::Down(steps) => {
            let newest = || old.iter().rev().take(steps);
            for migration in newest() {
                harness.revert_migration(&**migration).map_err(MigrationError::Failed)?;
            }
            Ok(newest().map(|m| named(&**m, false)).collect())
        }
        Step::Redo => {
            let newest = &old[old.len() - 1];
            harness.revert_migration(&**newest).map_err(MigrationError::Failed)?;
            harness.run_migration(&**newest).map_err(MigrationError::Failed)?;
            Ok(vec![named(&**newest, true)])
        }
    }
}
