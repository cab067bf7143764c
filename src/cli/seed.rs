//! `claviger seed`.

use super::{Failure, as_operator, print_first_admin};
use crate::app::App;
use crate::domain::{demonstration, scale};
use crate::model::Clock;
use crate::settings::Settings;

/// How much of it.
#[derive(clap::Args)]
pub(super) struct Seed {
    /// So many clients besides, each with 5 tasks, 20 audit entries and 10 requests of the relay; those that are there already are not made again.
    #[arg(long, value_name = "N")]
    scale: Option<u32>,
}

/// Makes demonstration data and prints the sign-ins that were made.
pub(super) async fn run(settings: &Settings, seed: Seed) -> Result<(), Failure> {
    let app = App::build(settings, Clock::system()).await?;
    print_first_admin(&app);
    let made = as_operator(&app.services, "seed", async |cx| demonstration::make(cx).await).await?;
    for sign_in in &made {
        println!("{:<10} {:<24} {}", sign_in.role.as_str(), sign_in.email, sign_in.password.expose());
    }
    if made.is_empty() {
        println!(
            "The demonstration data is there already. A new password: claviger admin reset-password --email <ADDRESS>"
        );
    }
    if let Some(count) = seed.scale {
        let told = |clients| eprintln!("{clients} clients");
        let made = as_operator(&app.services, "seed", async |cx| scale::make(cx, count.into(), told).await).await?;
        println!("Made {made} of {count} clients; the others are there already.");
    }
    Ok(())
}
