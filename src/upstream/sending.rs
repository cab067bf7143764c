//! Sending what the relay sends: over HTTP/1.1, where each request has a connection to itself. So no stream waits behind another,
//! and giving up a request ends it at the upstream.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{HeaderMap, Method, Request, Response, Uri, http};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{CaptureConnection, HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_platform_verifier::ConfigVerifierExt as _;
use url::Url;

use super::{BaseUrlError, Reach, Upstream, reachable};

/// How long the addresses of a name may take together to be connected to, before TLS: each has its part of that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept that nobody uses. Upstreams close theirs later, as a rule.
const IDLE: Duration = Duration::from_secs(50);
/// How many such connections are kept for each upstream.
const MAX_IDLE: usize = 256;

type Connector = HttpsConnector<HttpConnector<Walls>>;

/// Sends requests, behind the same walls as the rest of [`Upstream`].
pub(super) struct Sender(Client<Connector, Full<Bytes>>);

/// Where an account's requests go: a base URL that was checked.
#[derive(Debug, Clone)]
pub struct Base {
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at the end.
    path: String,
    reach: Reach,
}

/// How far a request has come.
#[derive(Debug, Default)]
pub struct Progress(Option<CaptureConnection>);

impl Progress {
    /// Whether it has a connection: from then on the upstream may be at work.
    #[must_use]
    pub fn has_connection(&self) -> bool {
        self.0.as_ref().is_some_and(|connection| connection.connection_metadata().is_some())
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    /// There is no such place.
    #[error("the address is not one")]
    Address(#[from] http::Error),
    /// No connection could be made: nothing was sent.
    #[error("the upstream could not be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection ended before an answer began.
    #[error("the upstream did not answer")]
    BrokenOff(#[source] hyper_util::client::legacy::Error),
}

impl Sender {
    pub(super) fn new(reach: Reach) -> Result<Self, rustls::Error> {
        let mut http = HttpConnector::new_with_resolver(Walls(reach));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_keepalive(Some(IDLE));
        let tls = rustls::ClientConfig::with_platform_verifier()?;
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .build(connector);
        Ok(Self(client))
    }
}

impl Upstream {
    /// Where an account with this base URL sends its requests.
    ///
    /// # Errors
    /// Says why it may not: the settings may have become stricter since it was stored.
    pub fn base(&self, base_url: Option<&str>) -> Result<Base, BaseUrlError> {
        let (text, reach) = self.target(base_url)?;
        let url = Url::parse(&text).map_err(|_| BaseUrlError::Malformed)?;
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        Ok(Base {
            scheme: url.scheme().parse().map_err(|_| BaseUrlError::Malformed)?,
            authority: authority.parse().map_err(|_| BaseUrlError::Malformed)?,
            path: url.path().trim_end_matches('/').to_owned(),
            reach,
        })
    }

    /// Sends a request, and waits for the head of its answer; for a connection no longer than `connecting`, through names, addresses
    /// and TLS. Dropped before, it ends the request.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn send(
        &self,
        base: &Base,
        (method, path_and_query): (Method, &str),
        headers: HeaderMap,
        body: Bytes,
        connecting: Duration,
        progress: &mut Progress,
    ) -> Result<Response<Incoming>, NotSent> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = base.uri(path_and_query)?;
        *request.headers_mut() = headers;
        progress.0 = Some(capture_connection(&mut request));
        let mut sending = self.senders.of(base.reach).0.request(request);
        let answered = match tokio::time::timeout(connecting, &mut sending).await {
            Ok(answered) => answered,
            Err(elapsed) if !progress.has_connection() => return Err(NotSent::Unreachable(elapsed.into())),
            Err(_) => sending.await,
        };
        answered.map_err(|error| {
            if error.is_connect() { NotSent::Unreachable(error.into()) } else { NotSent::BrokenOff(error) }
        })
    }
}

impl Base {
    fn uri(&self, path_and_query: &str) -> Result<Uri, http::Error> {
        let path: PathAndQuery = if self.path.is_empty() {
            path_and_query.parse()?
        } else {
            PathAndQuery::from_maybe_shared(Bytes::from([&self.path, path_and_query].concat()))?
        };
        Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(path).build()
    }
}

/// Resolves names to addresses that may be reached.
#[derive(Clone)]
struct Walls(Reach);

impl tower::Service<Name> for Walls {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.0;
        async move { Ok(reachable(reach, name.as_str()).await?.into_iter()) }.boxed()
    }
}
