//! `claviger seed`.

use super::{Failure, as_operator, print_first_admin};
use crate::app::App;
use crate::domain::demonstration;
use crate::model::Clock;
use crate::settings::Settings;

/// Makes demonstration data and prints the sign-ins that were made.
pub(super) async fn run(settings: &Settings) -> Result<(), Failure> {
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
    Ok(())
}
