//! Asking Claude upstreams, and the walls around where an account may send them.

mod sending;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tracing::Instrument as _;
use url::{Host, Url};

pub use sending::{Base, NotSent, Progress};

use crate::crypto::SecretText;
use crate::logs::TRACES;
use sending::Sender;

/// The header that the API takes a key in, and Claviger its own.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// How long an upstream may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer is read no further: a probe needs only to know that it is one.
const MAX_ANSWER: usize = 256 * 1024;
/// How many characters of an upstream's message are kept.
const MAX_MESSAGE: usize = 200;
const API_VERSION: &str = "2023-06-01";

/// Talks to upstreams.
pub struct Upstream {
    probes: ByReach<reqwest::Client>,
    /// Send what the relay sends.
    senders: ByReach<Sender>,
    default_base_url: Url,
    /// Hosts, with or without a port, that may be reached over plain HTTP and at private addresses.
    allowed: Vec<String>,
}

/// Which addresses a base URL may lead to: decided once, where the whole of it is known, and not by its host alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those on the public internet.
    Public,
    /// Any: the operator has said so.
    Anywhere,
}

/// One for each reach, which share no connections.
struct ByReach<T> {
    public: T,
    anywhere: T,
}

impl<T> ByReach<T> {
    fn new<E>(make: impl Fn(Reach) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { public: make(Reach::Public)?, anywhere: make(Reach::Anywhere)? })
    }

    fn of(&self, reach: Reach) -> &T {
        match reach {
            Reach::Public => &self.public,
            Reach::Anywhere => &self.anywhere,
        }
    }
}

/// How an upstream answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whether it answered with its models.
    pub ok: bool,
    /// The HTTP status; none: it did not answer.
    pub status: Option<u16>,
    /// What it said, or why it could not be asked. Never holds the key.
    pub message: Option<String>,
    /// How long it took, in milliseconds.
    pub latency_ms: u32,
}

/// A base URL that accounts may not have. Displays as what follows the field's name in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// Not a URL.
    #[error("is not an absolute URL")]
    Malformed,
    /// Plain HTTP or worse.
    #[error("must be an https URL, or its host be allowed by UPSTREAM_ALLOWED_HOSTS")]
    Insecure,
    /// More than scheme, host, port and path.
    #[error("must have no user name, query or fragment")]
    Excess,
    /// An address inside.
    #[error("must not be a private, local or reserved address, unless UPSTREAM_ALLOWED_HOSTS allows it")]
    Private,
}

/// The HTTP client could not be made: the system has no certificates.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client could not be made")]
pub struct ClientError(#[source] Box<dyn std::error::Error + Send + Sync>);

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: String,
}

impl Upstream {
    /// A client for upstreams; `default_base_url` is the operator's own choice and not walled.
    ///
    /// # Errors
    /// Where the TLS library finds no certificates.
    pub fn new(default_base_url: Url, allowed: Vec<String>) -> Result<Self, ClientError> {
        let probes = ByReach::new(|reach| {
            reqwest::Client::builder()
                .dns_resolver(Arc::new(WalledResolver(reach)))
                // A redirect would carry the key to wherever the answer says.
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .timeout(PROBE_TIMEOUT)
                .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
                .build()
        });
        let probes = probes.map_err(|error| ClientError(error.into()))?;
        let senders = ByReach::new(Sender::new).map_err(|error| ClientError(error.into()))?;
        Ok(Self { probes, senders, default_base_url, allowed })
    }

    /// The normalized base URL, if an account may have it.
    ///
    /// # Errors
    /// Says what is wrong with it. A name that leads to a private address is found out when it is resolved.
    pub fn check_base_url(&self, text: &str) -> Result<String, BaseUrlError> {
        self.check(text).map(|(url, _)| url)
    }

    fn check(&self, text: &str) -> Result<(String, Reach), BaseUrlError> {
        let url = Url::parse(text.trim()).map_err(|_| BaseUrlError::Malformed)?;
        let host = url.host().ok_or(BaseUrlError::Malformed)?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(BaseUrlError::Excess);
        }
        // The operator's own choice is allowed as it is: by its scheme, its host and its port.
        let is_allowed = url.origin() == self.default_base_url.origin()
            || is_allowed(&self.allowed, &host.to_string(), url.port_or_known_default());
        match url.scheme() {
            "https" => {}
            "http" if is_allowed => {}
            _ => return Err(BaseUrlError::Insecure),
        }
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        if !is_allowed && address.is_some_and(|address| !is_public(address)) {
            return Err(BaseUrlError::Private);
        }
        let reach = if is_allowed { Reach::Anywhere } else { Reach::Public };
        Ok((url.as_str().trim_end_matches('/').to_owned(), reach))
    }

    /// Where requests of an account with this base URL go. Asked each time: the settings may have become stricter since it was stored.
    fn target(&self, base_url: Option<&str>) -> Result<(String, Reach), BaseUrlError> {
        match base_url {
            Some(url) => self.check(url),
            None => Ok((self.default_base_url.as_str().trim_end_matches('/').to_owned(), Reach::Anywhere)),
        }
    }

    /// Asks for the models with the key.
    pub async fn probe(&self, base_url: Option<&str>, api_key: &SecretText) -> Probe {
        let started = Instant::now();
        let (status, message) = match self.models(base_url, api_key).await {
            Ok((status, message)) => (Some(status), message),
            Err(message) => (None, Some(message)),
        };
        Probe {
            ok: status == Some(200) && message.is_none(),
            status,
            message: message.map(|text| tamed(&text, api_key)),
            latency_ms: u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// The status and, unless the models came, what the upstream said. The error is why nothing was answered.
    async fn models(&self, base_url: Option<&str>, api_key: &SecretText) -> Result<(u16, Option<String>), String> {
        let (base, reach) = self.target(base_url).map_err(|error| format!("The base URL {error}."))?;
        let mut key = HeaderValue::from_str(api_key.expose()).map_err(|_| "The key is not one.".to_owned())?;
        key.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(API_KEY, key);
        headers.insert("anthropic-version", HeaderValue::from_static(API_VERSION));
        let trace = tracing::info_span!(target: TRACES, "upstream", otel.kind = "client");
        let mut answer = self
            .probes
            .of(reach)
            .get(format!("{base}/v1/models?limit=1"))
            .headers(headers)
            .send()
            .instrument(trace)
            .await
            .map_err(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "an upstream could not be asked");
                let reason = if error.is_timeout() { "did not answer in time" } else { "could not be reached" };
                format!("The upstream {reason}.")
            })?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|_| "The upstream's answer broke off.".to_owned())? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Ok((status, Some("The upstream's answer is too long.".to_owned())));
            }
        }
        if status == 200 {
            let is_list = serde_json::from_slice::<serde_json::Value>(&body)
                .is_ok_and(|body| body.get("data").is_some_and(serde_json::Value::is_array));
            return Ok((status, (!is_list).then(|| "The upstream's answer is not a list of models.".to_owned())));
        }
        Ok((status, Some(error_message(status, &body))))
    }
}

/// What an upstream's answer that is no success says, without the key.
#[must_use]
pub fn told(status: u16, body: &[u8], api_key: &SecretText) -> String {
    tamed(&error_message(status, body), api_key)
}

/// What an upstream says, as it may be kept: without the key, in one short line.
#[must_use]
pub fn tamed(text: &str, api_key: &SecretText) -> String {
    shorten(&text.replace(api_key.expose(), "[redacted]"))
}

fn error_message(status: u16, body: &[u8]) -> String {
    serde_json::from_slice::<ErrorBody>(body)
        .map_or_else(|_| format!("The upstream answered with status {status}."), |body| body.error.message)
}

fn shorten(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect()
}

fn is_allowed(allowed: &[String], host: &str, port: Option<u16>) -> bool {
    let with_port = port.map(|port| format!("{host}:{port}"));
    allowed.iter().any(|entry| entry == host || Some(entry) == with_port.as_ref())
}

/// Resolves names, and forgets addresses that may not be reached: the check is on what is connected to.
struct WalledResolver(Reach);

impl Resolve for WalledResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move { Ok(Box::new(reachable(reach, name.as_str()).await?.into_iter()) as Addrs) })
    }
}

/// The addresses of a name that may be connected to.
async fn reachable(reach: Reach, host: &str) -> std::io::Result<Vec<SocketAddr>> {
    let addresses = tokio::net::lookup_host((host, 0)).await?;
    let addresses: Vec<_> = addresses.filter(|address| reach == Reach::Anywhere || is_public(address.ip())).collect();
    if addresses.is_empty() {
        return Err(std::io::Error::other("the name has no address that may be reached"));
    }
    Ok(addresses)
}

/// Whether an address is on the public internet: none of the special-purpose blocks that IANA registers.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => is_public_v4(mapped),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    // Global unicast is 2000::/3; of it, 6to4, Teredo and documentation lead elsewhere.
    (first & 0xe000) == 0x2000
        && first != 0x2002
        && !(first == 0x2001 && (second < 0x0200 || second == 0x0db8))
        && first != 0x3fff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(default: &str, allowed: &[&str]) -> Upstream {
        Upstream::new(default.parse().unwrap(), allowed.iter().map(|host| (*host).to_owned()).collect()).unwrap()
    }

    #[test]
    fn the_default_is_allowed_at_its_own_port_and_scheme_and_no_other() {
        let upstream = upstream("http://127.0.0.1:8080/v", &[]);
        let check = |url| upstream.check(url).map(|(_, reach)| reach);
        assert_eq!(check("http://127.0.0.1:8080/other"), Ok(Reach::Anywhere));
        assert_eq!(check("http://127.0.0.1:6379"), Err(BaseUrlError::Insecure));
        assert_eq!(check("https://127.0.0.1:8080"), Err(BaseUrlError::Private));
        let public = self::upstream("https://api.anthropic.com", &[]);
        assert_eq!(public.check_base_url("http://api.anthropic.com"), Err(BaseUrlError::Insecure));
        assert!(public.check_base_url("https://api.anthropic.com").is_ok());
    }

    #[test]
    fn a_name_is_allowed_at_the_port_that_was_named() {
        let upstream = upstream("https://api.anthropic.com", &["models.internal:8443", "open.internal"]);
        let check = |url| upstream.check(url).map(|(_, reach)| reach);
        assert_eq!(check("https://models.internal:8443"), Ok(Reach::Anywhere));
        assert_eq!(check("http://models.internal:8443"), Ok(Reach::Anywhere));
        assert_eq!(check("https://models.internal:22"), Ok(Reach::Public));
        assert_eq!(check("http://models.internal:22"), Err(BaseUrlError::Insecure));
        assert_eq!(check("https://open.internal:22"), Ok(Reach::Anywhere));
    }

    #[tokio::test]
    async fn what_leads_inside_has_no_address_for_who_may_not() {
        assert!(reachable(Reach::Public, "localhost").await.is_err());
        assert!(!reachable(Reach::Anywhere, "localhost").await.unwrap().is_empty());
    }
}
