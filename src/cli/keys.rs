//! `claviger keys`.

use std::io::Write as _;

use clap::Subcommand;

use super::{Failure, as_operator};
use crate::app::App;
use crate::domain::{Services, keys};
use crate::model::Clock;
use crate::settings::Settings;

/// What to do with the keys of the ring.
#[derive(Subcommand)]
pub(super) enum Keys {
    /// Seal everything with the newest key, while servers run; stopped at any moment, it goes on where it is run again.
    Rotate {
        /// How many records one transaction seals.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1000))]
        batch: i64,
    },
}

/// Seals everything with the newest key, and tells how far it is.
pub(super) async fn run(settings: &Settings, command: Keys) -> Result<(), Failure> {
    let Keys::Rotate { batch } = command;
    let app = App::of_begun(settings, Clock::system()).await?;
    app.check_keys().await?;
    let Services { db, keys: ring, clock, .. } = &*app.services;
    let newest = ring.newest_version();
    let (rotated, left, api_keys) = as_operator(&app.services, "keys rotate", async |cx| {
        let total = keys::count_older(db, ring).await?;
        let rotated = keys::rotate(cx, batch, |rotated| say(&format!("{} of {total}", rotated.records))).await?;
        Ok((rotated, keys::count_older(db, ring).await?, keys::count_older_api_keys(db, ring, clock.now()).await?))
    })
    .await?;
    for name in &rotated.failed {
        eprintln!("claviger: not sealed anew: {name}");
    }
    if api_keys > 0 {
        say(&format!(
            "{api_keys} API keys are found by an older key: it must stay in the ring until each is used, regenerated or revoked"
        ));
    }
    if left == 0 {
        say(&format!("all is sealed with {newest}"));
        Ok(())
    } else if rotated.failed.is_empty() {
        let why = "a server still seals with an older key: start all with the newest one in front, then run this again";
        Err(Failure::Other(format!("{left} records came meanwhile; {why}")))
    } else {
        Err(Failure::Other(format!("{left} records are not sealed with {newest}: their keys must stay in the ring")))
    }
}

/// Nobody has to read it for the work to go on.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
