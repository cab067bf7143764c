//! The embedded migrations, applied by one server at a time.

use diesel::migration::MigrationSource;
use diesel_async::AsyncMigrationHarness;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::backend::{Conn, Db};
use super::error::Error;

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

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
        let (mut conn, mut done) = match self.begin_migrating().await? {
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
        };
        if done.is_ok() {
            let broken = conn.broken_references().await?;
            if broken > 0 {
                done = Err(MigrationError::Failed(format!("{broken} rows would refer to none").into()));
            }
        }
        match done {
            Ok(_) => conn.commit().await?,
            Err(_) => conn.rollback().await?,
        }
        done
    }
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
