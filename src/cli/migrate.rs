//! `claviger migrate`.

use clap::{Args, Subcommand};

use super::Failure;
use crate::app::open_database;
use crate::settings::{DataDir, Settings};
use crate::store::Migration;

/// What to do with the migrations.
#[derive(Subcommand)]
pub(super) enum Migrate {
    /// Apply what is pending.
    Up,
    /// Revert the newest; their tables are lost with all that is in them, the audit log too.
    Down {
        #[command(flatten)]
        consent: Consent,
        /// How many.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        steps: u32,
    },
    /// List the migrations, and whether they are applied.
    Status,
    /// Revert the newest and apply it again; what is in its tables is lost.
    Redo {
        #[command(flatten)]
        consent: Consent,
    },
}

/// That somebody means it.
#[derive(Args)]
pub(super) struct Consent {
    /// Do it, though data is lost.
    #[arg(long)]
    yes: bool,
}

/// Migrates the database.
pub(super) async fn run(settings: &Settings, migrate: Migrate) -> Result<(), Failure> {
    if let Migrate::Down { consent, .. } | Migrate::Redo { consent } = &migrate
        && !consent.yes
    {
        let lost = "this deletes tables with all that is in them, the audit log too: if you mean it, add --yes";
        return Err(Failure::Usage(lost.to_owned()));
    }
    DataDir::open(&settings.data_dir).map_err(crate::app::StartError::from)?;
    let db = open_database(settings).await?;
    let (migrations, word) = match migrate {
        Migrate::Up => (db.migrate_up().await?, "applied"),
        Migrate::Down { steps, .. } => (db.migrate_down(steps as usize).await?, "reverted"),
        Migrate::Redo { .. } => (db.migrate_redo().await?, "applied again"),
        Migrate::Status => {
            for Migration { name, applied } in db.migrations().await? {
                println!("{} {name}", if applied { "applied" } else { "pending" });
            }
            return Ok(());
        }
    };
    if migrations.is_empty() {
        println!("nothing to do");
    }
    for Migration { name, .. } in migrations {
        println!("{word} {name}");
    }
    Ok(())
}
