//! `claviger serve`.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::app::App;
use crate::domain::organization::FirstAdmin;
use crate::model::Clock;
use crate::settings::Settings;

/// Serves until it is told to stop.
pub(super) async fn run(settings: &Settings) -> Result<(), Failure> {
    // Before anybody is told that the server is there: who stops it then must not kill it.
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Failure::Other(error.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Failure::Other(error.to_string()))?;
    let app = App::build(settings, Clock::system()).await?;
    let first_admin = app.first_admin.as_ref().map(welcome);
    let has_generated_secrets = app.has_generated_secrets;
    let has_cli = app.services.workers.program().is_some();
    let running = match app.serve(settings).await {
        Ok(running) => running,
        Err(error) => {
            // The first administrator is made by now: the password would never be shown again.
            let _ = std::io::stdout().write_all(first_admin.unwrap_or_default().as_bytes());
            return Err(error.into());
        }
    };
    let address = running.address;
    // On the standard output: the log goes to the standard error, and a password has no place there.
    let mut text = format!("Claviger listens on http://{address}\n");
    if settings.playground {
        text += &playground_line(address);
    }
    text += &first_admin.unwrap_or_default();
    // A server serves on though nobody reads what it prints.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if !address.ip().is_loopback() && has_generated_secrets {
        tracing::warn!(
            "the server listens beyond this machine with generated secrets: set JWT_SECRET and \
             CREDENTIAL_ENCRYPTION_KEYS, and keep a copy of them elsewhere"
        );
    }
    if !address.ip().is_loopback() && settings.public_url.scheme() != "https" {
        tracing::warn!(
            "the server listens beyond this machine without TLS: put a proxy with TLS before it, and set PUBLIC_URL"
        );
    }
    if !has_cli {
        tracing::info!("no Claude CLI is there: conversations are not answered (CLAUDE_CLI)");
    }
    tracing::info!(%address, "serving");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: what runs is finished first");
    if tokio::time::timeout(settings.shutdown_timeout, running.shut_down()).await.is_err() {
        tracing::warn!("stopped with requests still running");
    }
    Ok(())
}

fn welcome(admin: &FirstAdmin) -> String {
    match &admin.generated_password {
        Some(password) => format!(
            "\nSign in as\n  email       {}\n  password    {}\nThe password is shown this once.\n\n",
            admin.email,
            password.expose()
        ),
        None => format!("\nSign in as {} with the password from ADMIN_PASSWORD.\n\n", admin.email),
    }
}

fn playground_line(address: std::net::SocketAddr) -> String {
    format!("  playground  http://{address}/\n")
}
