//! The server, in this process.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use claviger::app::{App, Running};
use claviger::domain::Services;
use claviger::http::LiveLimits;
use claviger::model::Clock;
use claviger::relay::RelayLimits;
use claviger::settings::{Settings, Sources};

use super::graphql::Client;
use super::postgres::TestDatabase;

/// The first administrator's password.
pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// What stands in for the Claude CLI.
pub(crate) const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand-in/claude");

/// Far longer than any test takes.
const LONGEST_TEST: Duration = Duration::from_secs(15 * 60);

pub(crate) struct TestApp {
    pub(crate) database: TestDatabase,
    // Kept for as long as the server needs it.
    pub(super) data_dir: tempfile::TempDir,
    pub(crate) url: String,
    /// Seconds that the server's clock is ahead.
    ahead: Arc<AtomicI64>,
    settings: Vec<(&'static str, String)>,
    live_limits: LiveLimits,
    relay_limits: Option<RelayLimits>,
    running: Option<Running>,
    services: Option<Arc<Services>>,
    others: Vec<Running>,
}

/// The settings that a test server has.
fn settings<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Settings {
    let mut settings = Settings::load(&Sources::from_pairs(pairs)).unwrap();
    settings.worker_supervisor = Some(env!("CARGO_BIN_EXE_claviger").into());
    settings
}

/// Ends a test that hangs, and all others with it, by its name: nobody would hear of them.
fn watch() {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    tokio::spawn(async move {
        tokio::time::sleep(LONGEST_TEST).await;
        // Past what the tests' harness keeps of their output.
        let _ = writeln!(std::io::stderr().lock(), "{test} does not end");
        std::process::exit(1);
    });
}

impl TestApp {
    pub(crate) async fn sqlite() -> Self {
        Self::start(TestDatabase::sqlite(), []).await
    }

    pub(crate) async fn postgres() -> Self {
        Self::start(TestDatabase::postgres().await, []).await
    }

    /// Where statements wait: none is ended for that, also on a machine that stands still for a while.
    pub(crate) async fn patient() -> Self {
        Self::start(TestDatabase::postgres().await, [("REQUEST_TIMEOUT", "600".to_owned())]).await
    }

    pub(crate) async fn start(database: TestDatabase, more: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        watch();
        let data_dir = tempfile::tempdir().unwrap();
        let mut settings = vec![
            ("DATABASE_URL", database.url.clone()),
            ("DATA_DIR", data_dir.path().display().to_string()),
            ("PORT", "0".to_owned()),
            ("ADMIN_PASSWORD", PASSWORD.to_owned()),
            ("UPSTREAM_ALLOWED_HOSTS", "127.0.0.1".to_owned()),
            ("FRONTEND_URL", "https://app.example.com".to_owned()),
            // Tests ask more often than people do; those of the limits set their own.
            ("RATE_LIMIT_ANONYMOUS_PER_MINUTE", "1000000".to_owned()),
            ("RATE_LIMIT_USER_PER_MINUTE", "1000000".to_owned()),
            ("DEFAULT_RATE_LIMIT_PER_HOUR", "1000000".to_owned()),
            ("FAILED_SIGN_INS_PER_HOUR", "1000000".to_owned()),
            ("REGISTRATIONS_PER_HOUR", "1000000".to_owned()),
            ("REGISTRATION", "open".to_owned()),
            ("CLAUDE_CLI", STAND_IN.to_owned()),
        ];
        settings.extend(more);
        let mut app = Self {
            database,
            data_dir,
            url: String::new(),
            ahead: Arc::default(),
            settings,
            live_limits: LiveLimits::default(),
            relay_limits: None,
            running: None,
            services: None,
            others: Vec::new(),
        };
        app.run().await;
        app
    }

    async fn run(&mut self) {
        let (running, services) = self.begin(self.clock()).await;
        self.url = format!("http://{}", running.address);
        (self.running, self.services) = (Some(running), Some(services));
    }

    /// Starts one more server on the same data, and returns where it is.
    pub(crate) async fn another(&mut self) -> String {
        self.another_by(self.clock()).await
    }

    /// The same by another clock.
    pub(crate) async fn another_by(&mut self, clock: Clock) -> String {
        let (running, _) = self.begin(clock).await;
        let url = format!("http://{}", running.address);
        self.others.push(running);
        url
    }

    async fn begin(&self, clock: Clock) -> (Running, Arc<Services>) {
        let settings = settings(self.settings.iter().map(|(name, value)| (*name, value.clone())));
        let mut app = App::build(&settings, clock).await.unwrap();
        app.live_limits = self.live_limits;
        app.relay_limits = self.relay_limits.unwrap_or(app.relay_limits);
        let services = app.services.clone();
        (app.serve(&settings).await.unwrap(), services)
    }

    /// Where the server keeps its files.
    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.data_dir.path()
    }

    /// What the server does its deeds with.
    pub(crate) fn services(&self) -> Arc<Services> {
        self.services.clone().unwrap()
    }

    /// Sets a setting, from the next start on.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.settings.retain(|(known, _)| *known != name);
        self.settings.push((name, value.to_owned()));
    }

    fn clock(&self) -> Clock {
        let ahead = self.ahead.clone();
        #[expect(clippy::disallowed_methods, reason = "the clock that the tests set is the machine's, moved")]
        Clock::from_fn(move || chrono::Utc::now() + TimeDelta::seconds(ahead.load(Ordering::Relaxed)))
    }

    /// A clock that is ahead of the server's.
    pub(crate) fn clock_ahead(&self, by: TimeDelta) -> Clock {
        let clock = self.clock();
        Clock::from_fn(move || clock.now().to_utc() + by)
    }

    /// A clock that stands still: by it, what was read is believed until something tells otherwise.
    pub(crate) fn stopped_clock(&self) -> Clock {
        let now = self.clock().now();
        Clock::from_fn(move || now.to_utc())
    }

    /// The parts of another server on the same data, which does not serve.
    pub(crate) async fn beside(&self) -> App {
        self.beside_by(self.clock()).await
    }

    /// The same by another clock.
    pub(crate) async fn beside_by(&self, clock: Clock) -> App {
        self.beside_with([], clock).await
    }

    /// The same that reaches the database by another URL.
    pub(crate) async fn beside_through(&self, url: String) -> App {
        self.beside_with([("DATABASE_URL", url)], self.clock()).await
    }

    async fn beside_with(&self, other: impl IntoIterator<Item = (&'static str, String)>, clock: Clock) -> App {
        let of_this = self.settings.iter().map(|(name, value)| (*name, value.clone()));
        let all: BTreeMap<&str, String> = of_this.chain(other).collect();
        App::build(&settings(all), clock).await.unwrap()
    }

    /// Stops the server and starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// Starts the server again with other limits of sockets and streams.
    pub(crate) async fn limited(mut self, limits: LiveLimits) -> Self {
        self.live_limits = limits;
        self.restart().await;
        self
    }

    /// Starts the server again with other limits of the relay.
    pub(crate) async fn relaying(mut self, limits: RelayLimits) -> Self {
        self.relay_limits = Some(limits);
        self.restart().await;
        self
    }

    /// Tells the server to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.running.take().unwrap().shut_down().await;
    }

    /// Moves the server's clock.
    pub(crate) fn advance(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    /// A client that has not signed in.
    pub(crate) fn anonymous(&self) -> Client {
        Client::new(&self.url)
    }

    /// A client that is signed in as the first administrator.
    pub(crate) async fn admin(&self) -> Client {
        self.anonymous().signed_in("admin@localhost", PASSWORD).await
    }

    /// A client that is signed in as another user of the organization with a role.
    pub(crate) async fn user(&self, role: &str) -> Client {
        let email = format!("{}@example.com", role.to_lowercase());
        self.database
            .execute(&format!(
                "INSERT INTO users (id, organization_id, email, email_key, full_name, full_name_folded, search_text, role, \
                     status, password_hash, last_sign_in_rank, created_at, updated_at, version) \
                 SELECT '{}', organization_id, '{email}', '{email}', 'Somebody', 'somebody', 'somebody', '{role}', 'ACTIVE', \
                     password_hash, '1970-01-01T00:00:00.000000Z', created_at, updated_at, 1 \
                 FROM users WHERE email = 'admin@localhost'",
                user_id(role)
            ))
            .await
            .unwrap();
        self.anonymous().signed_in(&email, PASSWORD).await
    }
}

/// An organization beside the first.
pub(crate) const OTHER_ORGANIZATION: &str = "org_00000000000000000000000001";

impl TestApp {
    /// Makes another organization beside the first: its administrator, signed in.
    pub(crate) async fn other_organization(&self) -> Client {
        let id = OTHER_ORGANIZATION;
        let no_hash =
            if self.database.url.starts_with("postgres") { "decode(repeat('00', 32), 'hex')" } else { "zeroblob(32)" };
        self.database
            .execute(&format!(
                "INSERT INTO organizations SELECT '{id}', 'Other', plan, settings, created_at, updated_at FROM organizations;
                 INSERT INTO audit_heads (organization_id, sequence, hash) VALUES ('{id}', 0, {no_hash});
                 INSERT INTO users (id, organization_id, email, email_key, full_name, full_name_folded, search_text, role, \
                     status, password_hash, last_sign_in_rank, created_at, updated_at, version) \
                 SELECT 'user_77777777777777777777777777', '{id}', 'admin@other.example', 'admin@other.example', 'Other', 'other', \
                     'other', 'ADMIN', 'ACTIVE', password_hash, '1970-01-01T00:00:00.000000Z', created_at, updated_at, 1 \
                 FROM users WHERE email = 'admin@localhost'"
            ))
            .await
            .unwrap();
        self.anonymous().signed_in("admin@other.example", PASSWORD).await
    }
}

/// An id of the right form.
fn user_id(role: &str) -> String {
    let digit = ["ADMIN", "MANAGER", "MEMBER", "READ_ONLY"].iter().position(|known| *known == role).unwrap();
    format!("user_{}", digit.to_string().repeat(26))
}
