//! Every route of the server, and what they share.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};
use tower_http::cors::CorsLayer;

use super::documents::Documents;
use super::graphql::GraphqlReads;
use super::live::{Live, LiveLimits};
use super::metrics::Metrics;
use super::rate_limit::{RATE_LIMIT, RATE_LIMIT_POLICY};
use super::{conversations, graphql, health, metrics, observe, panics, playground, relay, unread};
use crate::domain::Services;
use crate::graphql::Api;
use crate::jobs::Runs;
use crate::model::Timestamp;
use crate::relay::Relay;
use crate::settings::Settings;
use crate::upstream::API_KEY;

/// What the handlers share.
pub struct Server {
    pub(super) services: Arc<Services>,
    relay: Arc<Relay>,
    pub(super) api: Api,
    pub(super) documents: Documents,
    pub(super) reads: Arc<GraphqlReads>,
    pub(super) metrics: Metrics,
    /// Deeds that run on though their callers may have left, and open sockets.
    pub(super) tasks: TaskTracker,
    /// The sockets and streams that are open.
    pub(super) live: Live,
    /// Done once the server is told to stop.
    pub(super) stop: CancellationToken,
    /// Where the server is reached from outside, as browsers name it.
    pub(super) public_origin: String,
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) frontend_urls: Vec<HeaderValue>,
    pub(super) request_timeout: Duration,
    pub(super) playground: bool,
    pub(super) is_public_https: bool,
    pub(super) started_at: Timestamp,
}

impl Server {
    /// A server by these settings.
    #[must_use]
    pub fn new(
        settings: &Settings,
        services: Arc<Services>,
        relay: Arc<Relay>,
        limits: LiveLimits,
        runs: &Runs,
    ) -> Arc<Self> {
        Arc::new(Self {
            api: Api::new(),
            documents: Documents::new(settings.introspection),
            reads: GraphqlReads::new(),
            metrics: Metrics::new(services.db.kind(), services.redis.is_some(), runs, &services.bus.measures),
            tasks: TaskTracker::new(),
            live: Live::new(limits),
            stop: CancellationToken::new(),
            public_origin: settings.public_url.origin().ascii_serialization(),
            trusted_proxies: settings.trusted_proxies.clone(),
            frontend_urls: settings.frontend_urls.iter().filter_map(|url| HeaderValue::from_str(url).ok()).collect(),
            request_timeout: settings.request_timeout,
            playground: settings.playground,
            is_public_https: settings.public_url.scheme() == "https",
            started_at: services.clock.now(),
            relay,
            services,
        })
    }

    /// Cancelled, it ends the sockets and streams: those of the listener are to end with it.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Refuses what waits for something that takes long, once the server is told to stop: nobody waits in vain, and what begins now could
    /// not reach the relay any more.
    pub fn refuse(&self) {
        self.services.workers.refuse();
    }

    /// Waits until the deeds that run are done, and what they leave to be written. None may begin after.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.services.turns.close();
        self.services.turns.wait().await;
        self.services.workers.finish().await;
        self.relay.finish().await;
        self.services.authenticator.finish().await;
    }
}

/// The routes. What needs a sign-in checks it by itself: the GraphQL fields by what they declare, `/health/detailed`, and the relay.
pub fn router(server: Arc<Server>) -> Router {
    let mut router = Router::new()
        .route("/graphql", get(graphql::handle).post(graphql::handle))
        .route("/schema.graphql", get(schema))
        .route("/health", get(health::ready))
        .route("/health/alive", get(health::alive))
        .route("/health/ready", get(health::ready))
        .route("/health/detailed", get(health::detailed))
        .route("/health/metrics", get(metrics::handle))
        .route("/metrics", get(metrics::handle))
        .layer(compression())
        .route("/v1/conversations/{id}/messages", post(conversations::send))
        .merge(relay::routes(server.relay.clone()));
    if server.playground {
        router = router.merge(playground::routes());
    }
    router
        .layer(middleware::from_fn(panics::catch))
        .layer(middleware::from_fn(unread::announce_close))
        .layer(cors(&server))
        .layer(middleware::from_fn_with_state(server.clone(), observe::observe))
        .with_state(server)
}

/// Answers are made for one caller: what packing them better takes is longer than what sending them takes. One that fits into
/// a packet is no faster packed.
fn compression() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(DefaultPredicate::new().and(SizeAbove::new(1024)))
}

/// Browsers may call from the frontends that the settings name. Tokens travel in a header, so no cookie is ever needed.
fn cors(server: &Server) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(server.frontend_urls.clone())
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("x-request-id"), API_KEY])
        .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER, RATE_LIMIT, RATE_LIMIT_POLICY])
        .max_age(Duration::from_secs(3600))
}

/// `/schema.graphql`.
async fn schema(State(server): State<Arc<Server>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/graphql; charset=utf-8")], server.api.sdl().to_owned())
}
