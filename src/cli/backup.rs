//! `claviger backup`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::app::StartError;
use crate::settings::{DatabaseUrl, Settings};
use crate::store::backup;

/// Where the copy goes.
#[derive(Args)]
pub(super) struct Backup {
    /// The file to write, for its owner alone. It must not be there yet.
    #[arg(value_name = "FILE")]
    to: PathBuf,
}

/// Copies the database, and says what is to be kept with it.
pub(super) fn run(settings: &Settings, Backup { to }: &Backup) -> Result<(), Failure> {
    match &settings.database_url {
        DatabaseUrl::Sqlite(path) if !path.exists() => Err(StartError::NotBegun(path.display().to_string()).into()),
        DatabaseUrl::Sqlite(path) => {
            let size = tokio::task::block_in_place(|| backup::copy_sqlite(path, to))?;
            let (from, to) = (path.display(), to.display());
            let text = format!(
                "copied {from} to {to}: {size} bytes, which were read again and are whole\n{}\n",
                keep(settings)
            );
            // The copy is made, though nobody reads it.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        DatabaseUrl::Postgres(url) => Err(Failure::Usage(format!(
            "PostgreSQL is copied by its own tool, which asks for the password, or takes PGPASSWORD:\n  {}\n{}",
            backup::pg_dump(url, to),
            keep(settings)
        ))),
    }
}

/// What a copy is worth little without.
fn keep(settings: &Settings) -> String {
    let place = |is_set, variable: &str, file| {
        let file = settings.data_dir.join(file);
        if is_set { variable.to_owned() } else { file.display().to_string() }
    };
    let keys = place(settings.encryption_keys.is_some(), "CREDENTIAL_ENCRYPTION_KEYS", "encryption-keys");
    let secret = place(settings.jwt_secret.is_some(), "JWT_SECRET", "jwt-secret");
    format!(
        "keep besides, and apart from it:\n  {keys}  without it no secret in the copy opens\n  {secret}  without it everybody has to \
         sign in again"
    )
}
