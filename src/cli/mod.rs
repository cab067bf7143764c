//! The command line: one file a command.

mod admin;
mod audit;
mod audit_export;
mod backup;
mod billing;
mod doctor;
mod healthcheck;
mod keys;
mod migrate;
mod schema;
mod seed;
mod serve;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::{App, StartError};
use crate::audit::Origin;
use crate::domain::{self, Code, Cx, Record, Services};
use crate::identity::Actor;
use crate::logs::{self, Traces, TracesError};
use crate::model::OrganizationId;
use crate::settings::{Settings, SettingsError, Sources, TABLE};
use crate::store::MigrationError;
use crate::store::backup::BackupError;
use crate::workers::{Given, supervisor};

/// A self-hosted control plane for an organization's Claude access.
#[derive(Parser)]
#[command(version, propagate_version = true, about, long_about = None, after_long_help = settings_help(), after_help = EXIT_CODES)]
pub struct Arguments {
    /// The settings file; claviger.toml where it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets DATA_DIR.
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Sets DATABASE_URL.
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// Sets HOST.
    #[arg(long, global = true, value_name = "ADDRESS")]
    host: Option<String>,
    /// Sets PORT.
    #[arg(long, global = true, value_name = "PORT")]
    port: Option<String>,
    /// Sets LOG_LEVEL.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Sets LOG_FORMAT.
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API; what is done without a command.
    #[command(after_long_help = settings_help())]
    Serve,
    /// Bring the database's tables up to date, or back.
    #[command(subcommand)]
    Migrate(migrate::Migrate),
    /// Make demonstration data, once; prints the sign-ins that were made.
    Seed(seed::Seed),
    /// Print the GraphQL schema.
    Schema,
    /// Manage administrators.
    #[command(subcommand)]
    Admin(admin::Admin),
    /// Manage the keys that seal secrets.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Verify and export the audit log.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Copy the database, while servers run.
    Backup(backup::Backup),
    /// Look at what matters in production, and say what to do.
    Doctor(doctor::Doctor),
    /// Print what a month of an organization has cost.
    Billing(billing::Billing),
    /// Ask a running server whether it is ready; for containers.
    Healthcheck,
    /// Run a process of the server's, and see to it that it ends with the server.
    #[command(hide = true)]
    Worker {
        /// What comes in first, and where the program is to find it as a file.
        #[arg(long, value_name = "BYTES:PATH")]
        given: Vec<Given>,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Traces(#[from] TracesError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Migration(#[from] MigrationError),
    #[error(transparent)]
    Deed(#[from] domain::Error),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Whether what was asked for is wrong: the same command with the same settings fails again.
    fn is_wrong_use(&self) -> bool {
        match self {
            Self::Settings(_) | Self::Usage(_) => true,
            Self::Start(error) => error.is_wrong_setting(),
            Self::Deed(error) => error.code() == Code::BadUserInput,
            Self::Traces(_) | Self::Migration(_) | Self::Backup(_) | Self::Other(_) => false,
        }
    }
}

/// Runs the command. 0: it succeeded; 1: it did not; 2: the arguments or the settings are wrong.
pub async fn run(arguments: Arguments) -> ExitCode {
    if let Some(Command::Worker { given, command }) = &arguments.command {
        return tokio::task::block_in_place(|| supervisor::run(given, command));
    }
    match dispatch(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("claviger: {}", with_causes(&failure));
            if failure.is_wrong_use() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

async fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    let command = arguments.command.unwrap_or(Command::Serve);
    if matches!(command, Command::Schema) {
        schema::run();
        return Ok(());
    }
    let flags = [
        ("DATA_DIR", arguments.data_dir),
        ("DATABASE_URL", arguments.database_url),
        ("HOST", arguments.host),
        ("PORT", arguments.port),
        ("LOG_LEVEL", arguments.log_level),
        ("LOG_FORMAT", arguments.log_format),
    ];
    let flags = flags.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let settings = Settings::load(&Sources::from_environment(flags, arguments.config.as_deref()))?;
    let endpoint = settings.traces_endpoint.as_ref().filter(|_| matches!(command, Command::Serve));
    let traces = endpoint.map(Traces::to).transpose()?;
    logs::init(&settings, traces.as_ref());
    let done = match command {
        Command::Serve => serve::run(&settings).await,
        Command::Migrate(migrate) => migrate::run(&settings, migrate).await,
        Command::Seed(seed) => seed::run(&settings, seed).await,
        Command::Admin(admin) => admin::run(&settings, admin).await,
        Command::Keys(keys) => keys::run(&settings, keys).await,
        Command::Audit(audit) => audit::run(&settings, audit).await,
        Command::Backup(backup) => backup::run(&settings, &backup),
        Command::Doctor(doctor) => doctor::run(&settings, doctor).await,
        Command::Billing(billing) => billing::run(&settings, billing).await,
        Command::Healthcheck => healthcheck::run(&settings).await,
        Command::Schema | Command::Worker { .. } => Ok(()),
    };
    if let Some(traces) = traces {
        tokio::task::block_in_place(|| traces.finish());
    }
    done
}

const EXIT_CODES: &str =
    "Exit codes: 0 success; 1 failure, also what a later try may mend; 2 wrong arguments or settings.";

/// Prints the first administrator's password, where this command has just generated it.
fn print_first_admin(app: &App) {
    if let Some(admin) = &app.first_admin
        && let Some(password) = &admin.generated_password
    {
        println!("{:<10} {:<24} {}", "ADMIN", admin.email, password.expose());
    }
}

/// Does a deed as the operator, under the command's name.
async fn as_operator<T>(
    services: &Services,
    operation: &str,
    deed: impl AsyncFnOnce(Cx<'_>) -> domain::Result<T>,
) -> Result<T, Failure> {
    as_operator_of(services, services.home, operation, deed).await
}

/// The same, in an organization that need not be the operator's own.
async fn as_operator_of<T>(
    services: &Services,
    organization: OrganizationId,
    operation: &str,
    deed: impl AsyncFnOnce(Cx<'_>) -> domain::Result<T>,
) -> Result<T, Failure> {
    let actor = Actor::system(organization);
    let request_id = format!("cli-{}", hex::encode(services.random.bytes::<8>()));
    let origin = Origin { request_id, ..Origin::default() };
    let record = Record::default();
    let cx = Cx { services, actor: &actor, origin: &origin, operation, record: &record, deadline: None };
    Ok(deed(cx).await?)
}

fn with_causes(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn settings_help() -> String {
    use std::fmt::Write as _;
    let mut text = format!("{EXIT_CODES}\n\nSettings, by environment variables or in lower case in claviger.toml:\n");
    for setting in TABLE {
        let (about, default) = (setting.about.replace('`', ""), setting.default.replace('`', ""));
        let _ = write!(text, "\n  {}\n      {about} [default: {default}]", setting.name);
    }
    text
}
