//! `claviger doctor`: looks at what matters in production. It changes nothing, and shows no secret.

mod database;
mod files;
mod network;
mod settings;

use std::io::Write as _;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Failure;
use crate::settings::Settings;

/// How it is told.
#[derive(Args)]
#[command(
    after_help = "Run it with the settings and as the user of the server, beside it or before it starts. Exit codes: 0, all is well; \
    1, something is to be looked at; 2, something is wrong, or the settings are."
)]
pub(super) struct Doctor {
    /// A line for people for each check, or a JSON object with all of them.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What a check has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// It may be meant so.
    Warn,
    /// Nobody means it so.
    Fail,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check has found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    message: String,
    /// What to do.
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, message: message.into(), advice: None }
    }

    fn warn(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, message: message.into(), advice: Some(advice.into()) }
    }

    fn fail(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, status: Status::Fail, message: message.into(), advice: Some(advice.into()) }
    }
}

/// Does all checks, one after the other.
pub(super) async fn run(settings: &Settings, Doctor { format }: Doctor) -> Result<(), Failure> {
    let mut found = settings::check(settings);
    found.extend(files::check(settings));
    let (ring, of_keys) = files::key_ring(settings);
    found.extend(of_keys);
    found.extend(database::check(settings, ring.as_ref()).await);
    found.extend(network::check(settings).await);
    let text = match format {
        Format::Text => found.iter().map(line).collect(),
        Format::Json => json(&found),
    };
    // The exit code says it too.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let count = |status| found.iter().filter(|finding| finding.status == status).count();
    match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => Ok(()),
        (0, warnings) => Err(Failure::Other(format!("to be looked at: {warnings} of {} checks", found.len()))),
        (faults, _) => Err(Failure::Usage(format!("wrong: {faults} of {} checks", found.len()))),
    }
}

fn line(Finding { check, status, message, advice }: &Finding) -> String {
    let line = format!("{:<4}  {check:<18}  {message}\n", status.as_str());
    match advice {
        Some(advice) => format!("{line}{:26}{advice}\n", ""),
        None => line,
    }
}

fn json(found: &[Finding]) -> String {
    let worst = found.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    format!("{:#}\n", serde_json::json!({ "status": worst, "checks": found }))
}
