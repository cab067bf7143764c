//! Builds the application from its settings: the one place that knows every part.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;

use crate::audit::{Commits, Origin};
use crate::crypto::{KeyRing, KeyRingError, Random, SecretText};
use crate::domain::keys::{MissingKey, missing};
use crate::domain::organization::{FirstAdmin, FirstStart, ensure};
use crate::domain::{self, Cx, Record, Services};
use crate::http::{Limits, LiveLimits, Server, router, serve};
use crate::identity::password::Hasher;
use crate::identity::{AccessTokens, Actor, Authenticator};
use crate::model::{Clock, Email, InvalidEmail};
use crate::settings::{DataDir, DataDirError, DatabaseUrl, Settings};
use crate::store::{self, Db, MigrationError};
use crate::upstream::{ClientError, Upstream};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error("the data folder cannot be used")]
    DataDir(#[from] DataDirError),
    /// The keys are not keys.
    #[error("CREDENTIAL_ENCRYPTION_KEYS {0}")]
    Keys(#[from] KeyRingError),
    /// The address is none.
    #[error("ADMIN_EMAIL {0}")]
    AdminEmail(#[from] InvalidEmail),
    /// The database cannot be opened.
    #[error("the database cannot be opened: {0}")]
    Database(#[from] store::Error),
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
    /// Keys that records need are not in the ring.
    #[error("{}", lacking(.0))]
    MissingKeys(Vec<MissingKey>),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
}

fn lacking(missing: &[MissingKey]) -> String {
    let named: Vec<_> =
        missing.iter().map(|key| format!("{}, which {} records need", key.version, key.records)).collect();
    format!("CREDENTIAL_ENCRYPTION_KEYS lacks {}: put it back, behind the newest", named.join("; "))
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
}

impl App {
    /// Opens the database, brings its tables up to date and, on the first start, makes the organization and its ADMIN.
    ///
    /// # Errors
    /// Says what could not be done.
    pub async fn build(settings: &Settings, clock: Clock) -> Result<Self, StartError> {
        let random = Random::system();
        let data_dir = DataDir::open(&settings.data_dir)?;
        let jwt_secret = match &settings.jwt_secret {
            Some(secret) => secret.clone(),
            None => data_dir.secret("jwt-secret", || random.token().expose().into())?.0,
        };
        let keys: SecretString = match &settings.encryption_keys {
            Some(keys) => keys.clone(),
            None => data_dir.secret("encryption-keys", || KeyRing::generate(&random).expose().into())?.0,
        };
        let keys = KeyRing::parse(&SecretText::from(keys.expose_secret().to_owned()))?;
        let db = open_database(settings).await?;
        let applied = db.migrate_up().await?;
        if !applied.is_empty() {
            tracing::info!(migrations = applied.len(), "the database was brought up to date");
        }
        let passwords = Hasher::new(random.clone());
        let admin_email: Email = settings.admin_email.parse()?;
        let first_start = FirstStart {
            db: &db,
            clock: &clock,
            random: &random,
            passwords: &passwords,
            keys: &keys,
            admin_email: &admin_email,
            admin_password: settings.admin_password.as_ref().map(|text| text.expose_secret().to_owned().into()),
        };
        let (home, first_admin) = ensure(first_start).await?;
        let tokens = AccessTokens::new(&jwt_secret);
        let services = Services {
            authenticator: Authenticator::new(db.clone(), clock.clone(), tokens),
            commits: Commits::default(),
            upstream: Upstream::new(settings.anthropic_base_url.clone(), settings.upstream_allowed_hosts.clone())?,
            db,
            clock,
            random,
            keys,
            passwords,
            links: links(settings),
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
        })
    }

    /// Makes sure that the ring has every key that records need: told now, and not to whoever asks for one of them.
    ///
    /// # Errors
    /// Names the keys, and how many records need each.
    pub async fn check_keys(&self) -> Result<(), StartError> {
        let missing = missing(&self.services).await?;
        if missing.is_empty() { Ok(()) } else { Err(StartError::MissingKeys(missing)) }
    }

    /// Starts serving.
    ///
    /// # Errors
    /// Where the key ring lacks a key that records need, or the address cannot be listened on.
    pub async fn serve(self, settings: &Settings) -> Result<Running, StartError> {
        self.check_keys().await?;
        let wrong = |error| StartError::Listen(settings.listen, error);
        let listener = TcpListener::bind(settings.listen).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let server = Server::new(settings, self.services, self.live_limits);
        let stop = server.stop_token();
        tokio::spawn(domain::commits::watch(server.services(), stop.clone()));
        let task = tokio::spawn(serve(listener, router(server.clone()), Limits::default(), stop.clone()));
        Ok(Running { address, stop: stop.drop_guard(), task, server })
    }
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
        make().map_err(|error| store::Error::Unavailable(error.into()))?;
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
}

impl Running {
    /// Takes no new connections, finishes what runs, and returns.
    pub async fn shut_down(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the listener did not end well");
        }
        self.server.finish().await;
    }
}
