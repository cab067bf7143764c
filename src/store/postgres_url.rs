//! The URL of a PostgreSQL database: what is connected to, by which encryption, and how it is named without its password.

use std::net::IpAddr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::{Host, SslMode};
use url::Url;

/// How long one address may take to answer: less than half of what all of them may, so that the next is tried too.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long what was sent may stay unacknowledged: a machine that died says nothing, and the kernel's own patience is a quarter of an
/// hour.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// When a silent connection is asked whether it is still there, how often again, and how many times.
const KEEPALIVES: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Reads the URL. Without an `sslmode`, TLS is required of a server on another machine and not used on this one: a
/// certificate for the loopback address is seldom there, and nobody listens in between.
pub(super) fn postgres_config(url: &str) -> Result<tokio_postgres::Config, tokio_postgres::Error> {
    // libpq's two stricter modes are what `require` means here: the certificate is always verified, and the host's name.
    let known = url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
    let mut config: tokio_postgres::Config = known.parse()?;
    if !known.contains("sslmode=") {
        config.ssl_mode(if is_near(&config) { SslMode::Disable } else { SslMode::Require });
    }
    let (idle, interval, retries) = KEEPALIVES;
    let says = |name: &str| known.contains(name);
    if !says("tcp_user_timeout=") {
        config.tcp_user_timeout(USER_TIMEOUT);
    }
    if !says("keepalives_idle=") {
        config.keepalives_idle(idle);
    }
    if !says("keepalives_interval=") {
        config.keepalives_interval(interval);
    }
    if !says("keepalives_retries=") {
        config.keepalives_retries(retries);
    }
    config.connect_timeout(CONNECT_TIMEOUT).application_name("claviger");
    Ok(config)
}

/// Whether the database is on this machine.
fn is_near(config: &tokio_postgres::Config) -> bool {
    let is_near_host = |host: &Host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
        Host::Unix(_) => true,
    };
    // `hostaddr` is where the connection goes, whatever `host` says.
    config.get_hosts().iter().all(is_near_host) && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

/// Where a PostgreSQL database is: `host:port/name`, each host where there are several.
pub(super) fn place(config: &tokio_postgres::Config) -> String {
    let hosts: Vec<_> = match config.get_hosts() {
        [] => config.get_hostaddrs().iter().map(ToString::to_string).collect(),
        hosts => hosts.iter().map(host_name).collect(),
    };
    // One port stands for all hosts, none for the usual one.
    let port_of = |n: usize| config.get_ports().get(n).or(config.get_ports().first()).copied().unwrap_or(5432);
    let servers: Vec<_> = hosts.iter().enumerate().map(|(n, host)| format!("{host}:{}", port_of(n))).collect();
    let name = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}/{name}", servers.join(","))
}

/// The same connection for PostgreSQL's own programs, which verify a certificate only if they are told to. The password is not in it,
/// wherever it stood, and neither is what they call by another name or measure in another unit.
pub(super) fn for_libpq(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return String::new() };
    // It fails where there is no host, and with that no password.
    let _ = parsed.set_password(None);
    let name =
        |pair: &str| percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy().into_owned();
    let query = parsed.query().unwrap_or_default().to_owned();
    let own = ["password", "keepalives_retries", "tcp_user_timeout"];
    let mut query: Vec<_> =
        query.split('&').filter(|pair| !pair.is_empty() && !own.contains(&name(pair).as_str())).collect();
    if postgres_config(url).is_ok_and(|config| config.get_ssl_mode() == SslMode::Require) {
        query.retain(|pair| name(pair) != "sslmode");
        query.extend(["sslmode=verify-full", "sslrootcert=system"]);
    }
    parsed.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
    parsed.into()
}

fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use super::*;

    #[test]
    fn tls_is_required_of_servers_on_other_machines() {
        for (url, mode) in [
            ("postgres://u@localhost/d", SslMode::Disable),
            ("postgres://u@127.0.0.1/d", SslMode::Disable),
            ("host=/run/postgresql dbname=d", SslMode::Disable),
            ("hostaddr=127.0.0.1 dbname=d", SslMode::Disable),
            ("hostaddr=192.0.2.1 dbname=d", SslMode::Require),
            ("host=localhost hostaddr=192.0.2.1 dbname=d", SslMode::Require),
            ("postgres://u@localhost,db.example.com/d", SslMode::Require),
            ("postgres://u@db.example.com/d", SslMode::Require),
            ("postgres://u@db.example.com/d?sslmode=disable", SslMode::Disable),
            ("postgres://u@localhost/d?sslmode=verify-full", SslMode::Require),
            ("postgres://u@localhost/d?sslmode=verify-ca", SslMode::Require),
        ] {
            assert_eq!(postgres_config(url).unwrap().get_ssl_mode(), mode, "{url}");
        }
    }

    #[test]
    fn a_machine_that_died_is_noticed_unless_the_url_says_otherwise() {
        let seconds = |config: tokio_postgres::Config| {
            let user = config.get_tcp_user_timeout().copied();
            let interval = config.get_keepalives_interval();
            [user, Some(config.get_keepalives_idle()), interval].map(|time| time.unwrap().as_secs())
        };
        assert_eq!(seconds(postgres_config("postgres://u@db.example.com/d").unwrap()), [15, 30, 10]);
        let said = "postgres://u@db.example.com/d?tcp_user_timeout=60&keepalives_idle=7200&keepalives_interval=75";
        assert_eq!(seconds(postgres_config(said).unwrap()), [60, 7200, 75]);
        let retries = |url| postgres_config(url).unwrap().get_keepalives_retries();
        assert_eq!(retries("host=db.example.com"), Some(3));
        assert_eq!(retries("host=db.example.com keepalives_retries=9"), Some(9));
    }

    #[test]
    fn a_database_is_named_without_its_password() {
        for (url, named) in [
            ("postgres://u:secret@db.example/claviger", "db.example:5432/claviger"),
            ("postgres://u:secret@db.example:6432", "db.example:6432/u"),
            ("postgres://u:secret@a:1,b:2/d", "a:1,b:2/d"),
            ("postgres://u:secret@[::1]/d", "[::1]:5432/d"),
            ("host=/run/postgresql password=secret dbname=d", "/run/postgresql:5432/d"),
            ("hostaddr=192.0.2.1 password=secret dbname=d", "192.0.2.1:5432/d"),
        ] {
            assert_eq!(place(&postgres_config(url).unwrap()), named);
        }
    }
}
