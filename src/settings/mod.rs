//! The settings: read once, typed, and every wrong one named with where it came from.

mod data_dir;
mod mail;
mod sources;
mod table;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use url::{Host, Url};

pub use data_dir::{DataDir, DataDirError};
pub use mail::{Sender, SmtpServer, SmtpTls};
pub use sources::{Problem, SettingsError, Sources};
pub use table::{Kind, Setting, TABLE, markdown};

use crate::model::{CLI_TOOLS, Email, InvalidEmail};
use sources::Reader;

const HOUR: Duration = Duration::from_secs(3600);

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which database.
    pub database_url: DatabaseUrl,
    /// How many connections to it at most.
    pub database_pool_size: u32,
    /// Which Redis, for what several servers share; none: this server is the only one, and keeps it in memory.
    pub redis_url: Option<SecretString>,
    /// Where the server keeps files.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: Listen,
    /// What signs access tokens; none: generated into the data folder.
    pub jwt_secret: Option<SecretString>,
    /// What seals secrets; none: generated into the data folder.
    pub encryption_keys: Option<SecretString>,
    /// The first administrator's address.
    pub admin_email: Email,
    /// The first administrator's password; none: generated and printed once.
    pub admin_password: Option<SecretString>,
    /// Whether anybody may make an organization.
    pub is_registration_open: bool,
    /// Where mails are handed over; none: they are written into the data folder.
    pub smtp: Option<SmtpServer>,
    /// Who mails are from.
    pub mail_from: Sender,
    /// Origins of frontends that browsers may call from.
    pub frontend_urls: Vec<String>,
    /// Where the server is reached from outside.
    pub public_url: Url,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The default upstream.
    pub anthropic_base_url: Url,
    /// Hosts that accounts may name over plain HTTP or at private addresses.
    pub upstream_allowed_hosts: Vec<String>,
    /// How long an upstream may say nothing.
    pub upstream_timeout: Duration,
    /// The Claude CLI that answers conversations: a path, or a name in `PATH`.
    pub claude_cli: PathBuf,
    /// Which of its tools conversations may use.
    pub claude_tools: Vec<String>,
    /// How many of its processes there may be at once.
    pub max_workers: usize,
    /// How long an answer in a conversation may take.
    pub worker_timeout: Duration,
    /// How long a process waits for the next message of its conversation.
    pub worker_idle_timeout: Duration,
    /// How many tokens an answer in a conversation may use.
    pub turn_token_budget: u32,
    /// What stands between the server and those processes; none: this program itself. No setting: tests run the server within another.
    pub worker_supervisor: Option<PathBuf>,
    /// How often the ends of the audit logs are signed into the log stream; none: never.
    pub audit_checkpoints: Option<Duration>,
    /// How many days audit entries are kept; none: for ever.
    pub audit_retention_days: Option<u32>,
    /// How many days usage records are kept; none: for ever.
    pub usage_retention_days: Option<u32>,
    /// The file with the table of prices; none: the one that comes with the program.
    pub prices_file: Option<PathBuf>,
    /// How many requests an hour an API key may make that has no limits of its own; none: any number.
    pub default_rate_limit_per_hour: Option<u32>,
    /// How many requests a minute may come from an address without a sign-in; none: any number.
    pub anonymous_rate_limit_per_minute: Option<u32>,
    /// How many requests a minute a signed-in user may make; none: any number.
    pub user_rate_limit_per_minute: Option<u32>,
    /// How many sign-ins from an address may fail in an hour.
    pub failed_sign_ins_per_hour: u32,
    /// How many organizations an address may register in an hour.
    pub registrations_per_hour: u32,
    /// What holds of rate limits while Redis is away.
    pub rate_limit_without_redis: WithoutRedis,
    /// What is logged.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Where traces are sent; none: nowhere.
    pub traces_endpoint: Option<Url>,
    /// Whether the schema may be asked for.
    pub introspection: bool,
    /// Whether the playground is served.
    pub playground: bool,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How long requests may still run when the server is told to stop.
    pub shutdown_timeout: Duration,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// An address, or a name: it is looked up when the server begins to listen.
    pub host: Host,
    /// The port; 0 takes a free one.
    pub port: u16,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A database's URL.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL server; the URL may hold a password.
    Postgres(SecretString),
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres://[redacted]"),
        }
    }
}

/// What holds of rate limits while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutRedis {
    /// Each server has its own.
    Local,
    /// There are none.
    Open,
    /// Nothing that is limited is done.
    Closed,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines, a JSON object a line.
    Json,
}

impl Settings {
    /// Reads the settings.
    ///
    /// # Errors
    /// Names every setting that is wrong.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        let mut reader = Reader::new(sources);
        let data_dir = reader.or("DATA_DIR", PathBuf::from("./data"), |text| Ok(PathBuf::from(text)));
        let default_database = DatabaseUrl::Sqlite(data_dir.join("claviger.db"));
        let host = reader.or("HOST", Host::Ipv4(Ipv4Addr::LOCALHOST), listen_host);
        let port = reader
            .or("PORT", 3001_u16, |text| text.parse().map_err(|_| "is not a port number (0 to 65535)".to_owned()));
        let listen = Listen { host, port };
        let settings = Self {
            database_url: reader.or("DATABASE_URL", default_database, database_url),
            database_pool_size: reader.or("DATABASE_POOL_SIZE", 10, |text| number(text, 1, 500)),
            redis_url: reader.or("REDIS_URL", None, |text| redis_url(text).map(Some)),
            data_dir,
            listen: listen.clone(),
            jwt_secret: reader.secret("JWT_SECRET", check_jwt_secret),
            encryption_keys: reader.secret("CREDENTIAL_ENCRYPTION_KEYS", |_| Ok(())),
            admin_email: reader.or("ADMIN_EMAIL", default_admin(), |text| {
                text.parse().map_err(|error: InvalidEmail| error.to_string())
            }),
            admin_password: reader.secret("ADMIN_PASSWORD", |_| Ok(())),
            is_registration_open: reader.or("REGISTRATION", false, |text| match text {
                "open" => Ok(true),
                "closed" => Ok(false),
                _ => Err("is neither \"open\" nor \"closed\"".to_owned()),
            }),
            smtp: reader.secret_as("SMTP_URL", SmtpServer::parse),
            mail_from: reader.or("MAIL_FROM", Sender::nobody(), Sender::parse),
            frontend_urls: reader.or("FRONTEND_URL", Vec::new(), |text| list(text, origin)),
            public_url: reader.or("PUBLIC_URL", default_public_url(&listen), web_url),
            trusted_proxies: reader.or("TRUSTED_PROXIES", Vec::new(), |text| list(text, network)),
            anthropic_base_url: reader.or("ANTHROPIC_BASE_URL", public_api(), web_url),
            upstream_allowed_hosts: reader.or("UPSTREAM_ALLOWED_HOSTS", Vec::new(), |text| list(text, host_name)),
            upstream_timeout: reader.or("UPSTREAM_TIMEOUT", Duration::from_secs(600), |text| seconds(text, 1, 3_600)),
            claude_cli: reader.or("CLAUDE_CLI", PathBuf::from("claude"), |text| Ok(PathBuf::from(text))),
            claude_tools: reader.or("CLAUDE_TOOLS", Vec::new(), |text| list(text, tool)),
            max_workers: reader.or("MAX_WORKERS", 5, |text| number(text, 1, 100).map(|number| number as usize)),
            worker_timeout: reader.or("WORKER_TIMEOUT", Duration::from_secs(300), |text| seconds(text, 1, 3_600)),
            worker_idle_timeout: reader
                .or("WORKER_IDLE_TIMEOUT", Duration::from_secs(300), |text| seconds(text, 1, 86_400)),
            turn_token_budget: reader.or("TURN_TOKEN_BUDGET", 1_000_000, |text| number(text, 1_000, 100_000_000)),
            worker_supervisor: None,
            audit_checkpoints: reader.or("AUDIT_CHECKPOINT_MINUTES", Some(HOUR), |text| {
                Ok(Some(minutes(text, 0, 10_080)?).filter(|every| !every.is_zero()))
            }),
            audit_retention_days: reader.or("AUDIT_RETENTION_DAYS", None, |text| number(text, 1, 36_500).map(Some)),
            usage_retention_days: reader.or("USAGE_RETENTION_DAYS", None, |text| number(text, 1, 36_500).map(Some)),
            prices_file: reader.or("PRICES_FILE", None, |text| Ok(Some(PathBuf::from(text)))),
            default_rate_limit_per_hour: reader.or("DEFAULT_RATE_LIMIT_PER_HOUR", Some(1_000), limit),
            anonymous_rate_limit_per_minute: reader.or("RATE_LIMIT_ANONYMOUS_PER_MINUTE", Some(120), limit),
            user_rate_limit_per_minute: reader.or("RATE_LIMIT_USER_PER_MINUTE", Some(600), limit),
            failed_sign_ins_per_hour: reader.or("FAILED_SIGN_INS_PER_HOUR", 60, |text| number(text, 1, 1_000_000)),
            registrations_per_hour: reader.or("REGISTRATIONS_PER_HOUR", 5, |text| number(text, 1, 1_000_000)),
            rate_limit_without_redis: reader.or("RATE_LIMIT_WITHOUT_REDIS", WithoutRedis::Local, |text| match text {
                "local" => Ok(WithoutRedis::Local),
                "open" => Ok(WithoutRedis::Open),
                "closed" => Ok(WithoutRedis::Closed),
                _ => Err("is neither \"local\", \"open\" nor \"closed\"".to_owned()),
            }),
            log_level: reader.or("LOG_LEVEL", "info".to_owned(), log_filter),
            log_format: reader.or("LOG_FORMAT", default_log_format(), |text| match text {
                "pretty" => Ok(LogFormat::Pretty),
                "json" => Ok(LogFormat::Json),
                _ => Err("is neither \"pretty\" nor \"json\"".to_owned()),
            }),
            traces_endpoint: reader.or("OTEL_EXPORTER_OTLP_ENDPOINT", None, |text| web_url(text).map(Some)),
            introspection: reader.or("INTROSPECTION", true, switch),
            playground: reader.or("PLAYGROUND", true, switch),
            request_timeout: reader.or("REQUEST_TIMEOUT", Duration::from_secs(30), |text| seconds(text, 1, 600)),
            shutdown_timeout: reader.or("SHUTDOWN_TIMEOUT", Duration::from_secs(30), |text| seconds(text, 0, 600)),
        };
        if settings.smtp.is_some() {
            reader.needs("MAIL_FROM", "must be set where SMTP_URL is");
        }
        if settings.is_its_own_upstream() {
            reader.refuse(
                "ANTHROPIC_BASE_URL",
                "is this server itself: it names the upstream, not what programs are pointed at",
            );
        }
        reader.finish()?;
        Ok(settings)
    }

    /// Whether requests to the default upstream would come back here.
    fn is_its_own_upstream(&self) -> bool {
        let (base, listen) = (&self.anthropic_base_url, &self.listen);
        let is_near = |host: &Host| match host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(ip) => ip.is_loopback() || ip.is_unspecified(),
            Host::Ipv6(ip) => ip.is_loopback() || ip.is_unspecified(),
        };
        let host = base.host().map(|host| host.to_owned());
        let is_here = host.is_some_and(|host| host == listen.host || is_near(&host) && is_near(&listen.host));
        let is_listened_on = base.scheme() == "http" && is_here && base.port_or_known_default() == Some(listen.port);
        let whole = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        is_listened_on || whole(base) == whole(&self.public_url)
    }
}

/// Whether a text may sign access tokens, be it set or in the data folder.
///
/// # Errors
/// What is wrong with it.
pub fn check_jwt_secret(text: &str) -> Result<(), String> {
    if text.len() < 32 { Err("must have at least 32 bytes".to_owned()) } else { Ok(()) }
}

fn database_url(text: &str) -> Result<DatabaseUrl, String> {
    match text.split_once("://") {
        // SQLite itself takes a name that begins with `file:` as a URI, which may ask for a database in memory.
        Some(("sqlite", path)) if path.is_empty() || path.starts_with(":memory:") || path.starts_with("file:") => {
            Err("must name a file, like sqlite:///var/lib/claviger/claviger.db".into())
        }
        Some(("sqlite", path)) => Ok(DatabaseUrl::Sqlite(PathBuf::from(path))),
        Some(("postgres" | "postgresql", _)) if Url::parse(text).is_ok() => Ok(DatabaseUrl::Postgres(text.into())),
        Some(("postgres" | "postgresql", _)) => Err("is not a valid PostgreSQL URL".into()),
        Some((scheme, _))
            if scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(is_of_scheme) =>
        {
            Err(format!("has the scheme {scheme}://, but sqlite:// and postgres:// are known"))
        }
        _ => Err("is not a URL that starts with sqlite:// or postgres://".into()),
    }
}

fn redis_url(text: &str) -> Result<SecretString, String> {
    let url = Url::parse(text).ok();
    let is_known = url.as_ref().is_some_and(|url| match url.scheme() {
        "redis" | "rediss" => url.has_host(),
        "redis+unix" => url.path().len() > 1,
        _ => false,
    });
    if !is_known {
        return Err(
            "is not a URL like redis://host:6379/0, rediss://host:6380/0 or redis+unix:///run/redis.sock".into()
        );
    }
    // The client takes `#insecure` for leave to believe any certificate.
    if url.is_some_and(|url| url.fragment().is_some()) {
        return Err("must have no fragment".into());
    }
    Ok(text.into())
}

fn is_of_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

fn log_filter(text: &str) -> Result<String, String> {
    // A bare word that is no level would be taken as the name of a target, so that a misspelt level silenced the log.
    let is_known = |part: &str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    if text.split(',').map(str::trim).all(is_known) && EnvFilter::builder().parse(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err("is not a log level, nor a filter like \"info,claviger=debug\"".into())
    }
}

fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("is not a number from {least} to {most}"))
}

/// 0 stands for no limit.
fn limit(text: &str) -> Result<Option<u32>, String> {
    number(text, 0, 1_000_000).map(|limit| Some(limit).filter(|limit| *limit > 0))
}

fn seconds(text: &str, least: u32, most: u32) -> Result<Duration, String> {
    number(text, least, most).map(|seconds| Duration::from_secs(seconds.into()))
}

fn minutes(text: &str, least: u32, most: u32) -> Result<Duration, String> {
    number(text, least, most).map(|minutes| Duration::from_secs(60 * u64::from(minutes)))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("is neither \"on\" nor \"off\"".into()),
    }
}

fn list<T>(text: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(one).collect()
}

fn web_url(text: &str) -> Result<Url, String> {
    let is_web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    let url = Url::parse(text).ok().filter(is_web).ok_or("is not an http or https URL")?;
    if has_excess(&url) { Err("must have no user name, password, query or fragment".into()) } else { Ok(url) }
}

/// Whether there is more in it than scheme, host, port and path.
fn has_excess(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some()
}

fn tool(text: &str) -> Result<String, String> {
    let names: Vec<_> = CLI_TOOLS.iter().map(|tool| tool.name).collect();
    if names.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("has an entry that is none of {}", names.join(", ")))
    }
}

fn origin(text: &str) -> Result<String, String> {
    let url = web_url(text)?;
    if url.path() != "/" {
        return Err("has an entry with more than scheme, host and port, like https://app.example.com".into());
    }
    Ok(url.origin().ascii_serialization())
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "has an entry that is neither an address nor a network like 10.0.0.0/8".into())
}

fn host_name(text: &str) -> Result<String, String> {
    // A pattern would be taken as a host of that name, which there is none of.
    let is_host = !text.contains('*')
        && Url::parse(&format!("http://{text}/")).is_ok_and(|url| url.path() == "/" && !has_excess(&url));
    if is_host {
        Ok(text.to_lowercase())
    } else {
        Err("has an entry that is not a host, like models.internal:8443".into())
    }
}

fn listen_host(text: &str) -> Result<Host, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(match ip {
            IpAddr::V4(ip) => Host::Ipv4(ip),
            IpAddr::V6(ip) => Host::Ipv6(ip),
        });
    }
    match Host::parse(text) {
        // What is left of IPv4 are its old short forms: 1 for 0.0.0.1 is seldom meant.
        Ok(host @ (Host::Domain(_) | Host::Ipv6(_))) => Ok(host),
        Ok(Host::Ipv4(_)) | Err(_) => Err("is neither an IP address nor a host name".into()),
    }
}

fn default_public_url(listen: &Listen) -> Url {
    Url::parse(&format!("http://{listen}/")).expect("a host and a port make a URL")
}

fn default_admin() -> Email {
    "admin@localhost".parse().expect("the text is an address")
}

fn public_api() -> Url {
    Url::parse("https://api.anthropic.com").expect("the text is a URL")
}

fn default_log_format() -> LogFormat {
    use std::io::IsTerminal as _;
    if std::io::stderr().is_terminal() { LogFormat::Pretty } else { LogFormat::Json }
}
