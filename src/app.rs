//! Builds the application from its settings: the one place that knows every part.

mod housekeeping;

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;
use url::Host;

use housekeeping::Housekeeping;

use crate::audit::{Commits, Origin};
use crate::crypto::{KeyRing, KeyRingError, Random, SecretText};
use crate::domain::audit_integrity::Verifications;
use crate::domain::budget::Budgets;
use crate::domain::bus::Bus;
use crate::domain::keys::{MissingKey, missing};
use crate::domain::organization::{FirstAdmin, FirstStart, ensure, is_begun};
use crate::domain::outbox::Outbox;
use crate::domain::password_key::PasswordKeys;
use crate::domain::prices::{Prices, PricesError};
use crate::domain::relay_account::RelayAccounts;
use crate::domain::usage::UsageRecorder;
use crate::domain::{self, Code, Cx, Record, Services};
use crate::http::{Limits, LiveLimits, Server, router, serve};
use crate::identity::password::Hasher;
use crate::identity::{AccessTokens, Actor, Authenticator};
use crate::jobs::Runs;
use crate::limits::RateLimits;
use crate::mail::{Mailer, MailerError};
use crate::model::Clock;
use crate::redis::{InvalidUrl, Redis};
use crate::relay::{Relay, RelayLimits};
use crate::settings::{DataDir, DataDirError, DatabaseUrl, Listen, Settings, check_jwt_secret};
use crate::store::{self, Db, MigrationError, OpenError};
use crate::upstream::{ClientError, Upstream};
use crate::workers::{Setup, Workers};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error("the data folder cannot be used")]
    DataDir(#[from] DataDirError),
    /// What would sign access tokens is too easy to guess.
    #[error("the file jwt-secret in DATA_DIR {0}")]
    JwtSecret(String),
    /// The keys are not keys.
    #[error("{0} {1}")]
    Keys(&'static str, #[source] KeyRingError),
    /// The database cannot be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The database cannot be read.
    #[error("the database cannot be read: {0}")]
    Store(#[from] store::Error),
    /// Nothing is there yet.
    #[error(
        "nothing is set up in {0} yet: start the server, which makes the organization and its first ADMIN. If that has been \
         done, look at DATA_DIR and DATABASE_URL"
    )]
    NotBegun(String),
    /// The tables cannot be brought up to date.
    #[error("the database cannot be migrated: {0}")]
    Migration(#[from] MigrationError),
    /// The first organization cannot be made.
    #[error("the first start did not succeed: {0}")]
    FirstStart(#[from] domain::Error),
    /// The key ring does not belong to the database.
    #[error("the encryption keys cannot be used: {0}")]
    WrongKeys(#[source] domain::Error),
    /// The HTTP client cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Mails cannot be sent.
    #[error(transparent)]
    Mail(#[from] MailerError),
    /// Keys that records need are not in the ring.
    #[error("{}", lacking(.0))]
    MissingKeys(Vec<MissingKey>),
    /// The table of prices cannot be used.
    #[error(transparent)]
    Prices(#[from] PricesError),
    /// Redis cannot be found by its URL.
    #[error("REDIS_URL cannot be used")]
    Redis(#[from] InvalidUrl),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(Listen, #[source] std::io::Error),
}

fn lacking(missing: &[MissingKey]) -> String {
    let named: Vec<_> =
        missing.iter().map(|key| format!("{}, which {} records need", key.version, key.records)).collect();
    format!("{KEYS} lacks {}: put it back, behind the newest", named.join("; "))
}

/// How long before the end of an orderly stop answers that go on are cut off.
const FLUSH: Duration = Duration::from_secs(8);
const KEYS: &str = "CREDENTIAL_ENCRYPTION_KEYS";

impl StartError {
    /// Whether a setting is wrong, in itself or beside what the database holds: to try again changes nothing. Files, the
    /// network and the database are another matter.
    #[must_use]
    pub fn is_wrong_setting(&self) -> bool {
        match self {
            Self::JwtSecret(_)
            | Self::Keys(..)
            | Self::MissingKeys(_)
            | Self::Database(OpenError::Url(_))
            | Self::Mail(MailerError::From(_))
            | Self::Prices(_)
            | Self::Redis(_) => true,
            Self::FirstStart(error) => error.code() == Code::BadUserInput,
            Self::WrongKeys(error) => error.code() == Code::Conflict,
            Self::DataDir(_)
            | Self::Database(_)
            | Self::Store(_)
            | Self::Migration(_)
            | Self::Client(_)
            | Self::Mail(_)
            | Self::NotBegun(_)
            | Self::Listen(..) => false,
        }
    }
}

/// The parts, before they serve.
pub struct App {
    /// What deeds are done with.
    pub services: Arc<Services>,
    /// Who can sign in now that the first start has made the organization.
    pub first_admin: Option<FirstAdmin>,
    /// Whether a secret was generated because none is set.
    pub has_generated_secrets: bool,
    /// What sockets and streams may take of the server.
    pub live_limits: LiveLimits,
    /// What requests of the relay may take.
    pub relay_limits: RelayLimits,
}

impl App {
    /// Opens the database, brings its tables up to date and, on the first start, makes the organization and its ADMIN.
    ///
    /// # Errors
    /// Says what could not be done.
    pub async fn build(settings: &Settings, clock: Clock) -> Result<Self, StartError> {
        // The folder first: the database may be a file in it.
        let data_dir = DataDir::open(&settings.data_dir)?;
        let db = open_database(settings).await?;
        Self::on(db, &data_dir, settings, clock).await
    }

    async fn on(db: Db, data_dir: &DataDir, settings: &Settings, clock: Clock) -> Result<Self, StartError> {
        let random = Random::system();
        let jwt_secret = if let Some(secret) = &settings.jwt_secret {
            secret.clone()
        } else {
            let secret = data_dir.secret("jwt-secret", || random.token().expose().into())?.0;
            check_jwt_secret(secret.expose_secret()).map_err(StartError::JwtSecret)?;
            secret
        };
        let keys: SecretString = match &settings.encryption_keys {
            Some(keys) => keys.clone(),
            None => data_dir.secret("encryption-keys", || KeyRing::generate(&random).expose().into())?.0,
        };
        let keys = KeyRing::parse(&SecretText::from(keys.expose_secret().to_owned())).map_err(|error| {
            let is_set = settings.encryption_keys.is_some();
            StartError::Keys(if is_set { KEYS } else { "the file encryption-keys in DATA_DIR" }, error)
        })?;
        let keys = Arc::new(keys);
        let applied = db.migrate_up().await?;
        if !applied.is_empty() {
            tracing::info!(migrations = applied.len(), "the database was brought up to date");
        }
        let passwords = Hasher::new(random.clone());
        let first_start = FirstStart {
            db: &db,
            clock: &clock,
            random: &random,
            passwords: &passwords,
            keys: &keys,
            admin_email: &settings.admin_email,
            admin_password: settings.admin_password.as_ref().map(|text| text.expose_secret().to_owned().into()),
        };
        let (home, first_admin) = ensure(first_start).await?;
        let tokens = AccessTokens::new(&jwt_secret);
        // The process, for whoever looks who holds a lease; and what tells it from another machine's.
        let instance = format!("{}-{}", std::process::id(), hex::encode(random.bytes::<8>()));
        let redis = match &settings.redis_url {
            Some(url) => Some(Redis::open(url).await?),
            None => None,
        };
        // By Redis or by the database, not by both.
        let db = if redis.is_some() { db } else { db.telling_as(&instance) };
        let services = Services {
            workers: workers(settings, &instance, &clock, &random),
            authenticator: Authenticator::new(db.clone(), clock.clone(), tokens, keys.clone()),
            commits: Commits::default(),
            upstream: Upstream::new(settings.anthropic_base_url.clone(), settings.upstream_allowed_hosts.clone())?,
            relay_accounts: RelayAccounts::default(),
            prices: Prices::load(settings.prices_file.as_deref())?,
            budgets: Budgets::new(&db, clock.clone(), &instance),
            usage: UsageRecorder::new(clock.clone(), random.clone()),
            usage_commits: Commits::default(),
            db,
            limits: RateLimits::new(clock.clone(), redis.clone(), settings.rate_limit_without_redis, keys.clone()),
            rates: settings.into(),
            redis,
            started_at: clock.now(),
            clock,
            random,
            keys,
            passwords,
            password_keys: PasswordKeys::default(),
            outbox: Outbox::new(Mailer::new(settings)?),
            turns: TaskTracker::new(),
            turn_limits: settings.into(),
            is_registration_open: settings.is_registration_open,
            links: links(settings),
            verifications: Verifications::default(),
            bus: Bus::default(),
            instance,
            home,
        };
        let (actor, record) = (Actor::system(services.home), Record::default());
        let origin = Origin { request_id: "start".to_owned(), ..Origin::default() };
        let start = Cx {
            services: &services,
            actor: &actor,
            origin: &origin,
            operation: "serve",
            record: &record,
            deadline: None,
        };
        domain::encryption_key::check(start).await.map_err(StartError::WrongKeys)?;
        let has_generated_secrets = settings.jwt_secret.is_none() || settings.encryption_keys.is_none();
        Ok(Self {
            services: Arc::new(services),
            first_admin,
            has_generated_secrets,
            live_limits: LiveLimits::default(),
            relay_limits: RelayLimits { silence: settings.upstream_timeout, ..RelayLimits::default() },
        })
    }

    /// The same for commands that need what a first start has made: they make no organization by the way, in a database that
    /// may have been named by mistake, and not even a file.
    ///
    /// # Errors
    /// [`StartError::NotBegun`] where there has been no first start; otherwise as for [`App::build`].
    pub async fn of_begun(settings: &Settings, clock: Clock) -> Result<Self, StartError> {
        if let DatabaseUrl::Sqlite(path) = &settings.database_url
            && !path.exists()
        {
            return Err(StartError::NotBegun(path.display().to_string()));
        }
        let db = open_database(settings).await?;
        let has_tables = db.migrations().await?.iter().any(|migration| migration.applied);
        if !has_tables || !is_begun(&db).await? {
            return Err(StartError::NotBegun(db.place().to_owned()));
        }
        Self::on(db, &DataDir::open(&settings.data_dir)?, settings, clock).await
    }

    /// Makes sure that the ring has every key that records need: told now, and not to whoever asks for one of them.
    ///
    /// # Errors
    /// Names the keys, and how many records need each.
    pub async fn check_keys(&self) -> Result<(), StartError> {
        let Services { db, keys, clock, .. } = &*self.services;
        let missing = missing(db, keys, clock.now()).await?;
        if missing.is_empty() { Ok(()) } else { Err(StartError::MissingKeys(missing)) }
    }

    /// Starts serving.
    ///
    /// # Errors
    /// Where the key ring lacks a key that records need, or the address cannot be listened on.
    pub async fn serve(self, settings: &Settings) -> Result<Running, StartError> {
        self.check_keys().await?;
        let wrong = |error| StartError::Listen(settings.listen.clone(), error);
        let listener = listen(&settings.listen).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let services = self.services.clone();
        let near = reached_from_here(address);
        services.authenticator.lends_to(near.ip());
        services.workers.reach(format!("http://{near}"));
        let runs = Runs::default();
        let relay = Relay::new(services.clone(), self.relay_limits);
        let server = Server::new(settings, self.services, relay, self.live_limits, &runs);
        let stop = server.stop_token();
        tokio::spawn(domain::commits::watch(services.clone(), stop.clone()));
        tokio::spawn(domain::bus::follow(services.clone(), stop.clone()));
        let housekeeping = Housekeeping::start(settings, services, runs, &stop);
        // What streams leave to be written is written before the process ends.
        let drain = settings.shutdown_timeout.saturating_sub(FLUSH).max(settings.shutdown_timeout / 2);
        let limits = Limits { drain, ..Limits::default() };
        let task = tokio::spawn(serve(listener, router(server.clone()), limits, stop.clone()));
        Ok(Running { address, stop: stop.drop_guard(), task, server, housekeeping })
    }
}

/// Listens on the address; of a name's addresses on the first that lets itself be listened on.
async fn listen(Listen { host, port }: &Listen) -> std::io::Result<TcpListener> {
    match host {
        Host::Ipv4(ip) => TcpListener::bind((IpAddr::V4(*ip), *port)).await,
        Host::Ipv6(ip) => TcpListener::bind((IpAddr::V6(*ip), *port)).await,
        Host::Domain(name) => TcpListener::bind((name.as_str(), *port)).await,
    }
}

/// The processes that answer conversations.
fn workers(settings: &Settings, instance: &str, clock: &Clock, random: &Random) -> Workers {
    let own = || std::env::current_exe().unwrap_or_else(|_| "claviger".into());
    let setup = Setup {
        program: settings.claude_cli.clone(),
        supervisor: settings.worker_supervisor.clone().unwrap_or_else(own),
        folder: settings.data_dir.join("workers"),
        instance: instance.to_owned(),
        max: settings.max_workers,
        timeout: settings.worker_timeout,
        idle: settings.worker_idle_timeout,
    };
    Workers::new(setup, clock.clone(), random.clone())
}

/// Where a server that listens there is reached by its own processes.
fn reached_from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Where links lead: to the first frontend, or to the server itself where none is set.
fn links(settings: &Settings) -> String {
    let base = settings.frontend_urls.first().map_or(settings.public_url.as_str(), String::as_str);
    base.trim_end_matches('/').to_owned()
}

/// Opens the database. A missing SQLite file is made for its owner alone, as are then the files that SQLite puts beside it.
///
/// # Errors
/// Where it cannot be opened.
pub async fn open_database(settings: &Settings) -> Result<Db, StartError> {
    if let DatabaseUrl::Sqlite(path) = &settings.database_url {
        let make = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            OpenOptions::new().append(true).create(true).mode(0o600).open(path)
        };
        make().map_err(|error| OpenError::Sqlite(path.clone(), error.into()))?;
    }
    Ok(Db::open(&settings.database_url, settings.database_pool_size, settings.request_timeout).await?)
}

/// A server that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Gone, it is told to stop.
    stop: DropGuard,
    task: JoinHandle<()>,
    server: Arc<Server>,
    housekeeping: Housekeeping,
}

impl Running {
    /// Takes no new connections, finishes what runs, and returns.
    pub async fn shut_down(self) {
        self.server.refuse();
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the listener did not end well");
        }
        self.server.finish().await;
        self.housekeeping.finish().await;
    }
}
