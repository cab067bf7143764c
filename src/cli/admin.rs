//! `claviger admin`.

use std::io::Read as _;

use clap::{Args, Subcommand};

use super::{Failure, as_operator};
use crate::app::App;
use crate::crypto::SecretText;
use crate::domain::user;
use crate::model::{Clock, Email, Role, UserStatus};
use crate::settings::Settings;

/// What to do with administrators.
#[derive(Subcommand)]
pub(super) enum Admin {
    /// Make one.
    Create {
        #[command(flatten)]
        who: Who,
        /// The name.
        #[arg(long, default_value = "Administrator")]
        full_name: String,
    },
    /// Set a user's password and end all of the user's sessions.
    ResetPassword {
        #[command(flatten)]
        who: Who,
    },
}

/// Which user.
#[derive(Args)]
pub(super) struct Who {
    /// The address.
    #[arg(long)]
    email: Email,
    /// Read the password from the standard input, instead of generating and printing one.
    #[arg(long)]
    password_stdin: bool,
}

/// Makes an administrator or resets a password.
pub(super) async fn run(settings: &Settings, admin: Admin) -> Result<(), Failure> {
    let app = App::of_begun(settings, Clock::system()).await?;
    let services = &app.services;
    let (Admin::Create { who, .. } | Admin::ResetPassword { who }) = &admin;
    let password = if who.password_stdin { read_password()? } else { services.random.password() };
    let user = match &admin {
        Admin::Create { who, full_name } => {
            as_operator(services, "admin create", async |cx| {
                user::create(cx, &who.email, full_name, Role::Admin, &password).await
            })
            .await?
        }
        Admin::ResetPassword { who } => {
            as_operator(services, "admin reset-password", async |cx| {
                user::reset_password(cx, &who.email, &password).await
            })
            .await?
        }
    };
    println!("email       {}", user.email);
    if user.status != UserStatus::Active {
        println!("status      {}: cannot sign in", user.status.as_str());
    }
    if !who.password_stdin {
        println!("password    {}", password.expose());
    }
    Ok(())
}

fn read_password() -> Result<SecretText, Failure> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::Other(format!("no password: {error}")))?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(SecretText::from(text))
}
