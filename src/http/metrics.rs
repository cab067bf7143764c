//! Metrics in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::router::Server;
use crate::domain::Services;
use crate::events::Measures;
use crate::jobs::Runs;

/// What is measured. Labels are names of the schema, of routes and of codes: nothing that a caller can invent.
pub struct Metrics {
    registry: Registry,
    graphql_requests: Family<Operation, Counter>,
    graphql_duration: Family<Field, Histogram, fn() -> Histogram>,
    http_requests: Family<HttpRequest, Counter>,
    statements: Counter,
    password_hashes: Counter,
    pool_open: Gauge,
    pool_idle: Gauge,
    redis_up: Gauge,
    mails: Family<Outcome, Counter>,
    mails_waiting: Gauge,
    usage_records: Family<Outcome, Counter>,
    usage_waiting: Gauge,
    workers: Gauge,
    conversations_waiting: Gauge,
    pub(super) sockets: Gauge,
    pub(super) event_streams: Gauge,
    pub(super) subscriptions: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    field: String,
    outcome: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Field {
    field: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpRequest {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// From half a millisecond to the longest time that a request may take by default.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

impl Metrics {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(database: &'static str, has_redis: bool, jobs: &Runs, bus: &Measures) -> Self {
        let mut registry = Registry::with_prefix("claviger");
        let graphql_requests = Family::default();
        let graphql_duration: Family<Field, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let http_requests = Family::default();
        let (statements, password_hashes) = (Counter::default(), Counter::default());
        let (pool_open, pool_idle) = (Gauge::default(), Gauge::default());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("database", database)]);
        registry.register("build", "What runs", build);
        registry.register(
            "graphql_requests",
            "GraphQL requests by the first root field and by outcome: OK, or the first error's code",
            graphql_requests.clone(),
        );
        registry.register_with_unit(
            "graphql_duration",
            "How long GraphQL requests took, by the first root field",
            Unit::Seconds,
            graphql_duration.clone(),
        );
        registry.register("http_requests", "HTTP requests by route and status", http_requests.clone());
        registry.register("database_statements", "Statements sent to the database", statements.clone());
        registry.register("database_connections_open", "Open database connections", pool_open.clone());
        registry.register("database_connections_idle", "Database connections that nobody uses", pool_idle.clone());
        registry.register(
            "password_hashes",
            "Password hashes that were computed, of known and unknown addresses alike",
            password_hashes.clone(),
        );
        let redis_up = Gauge::default();
        if has_redis {
            registry.register("redis_up", "Whether Redis is there: 1, or 0 while it is away", redis_up.clone());
        }
        let (mails, mails_waiting) = (Family::default(), Gauge::default());
        registry.register(
            "mails",
            "Mails by outcome: sent, deferred (each time), refused for good, given up because their time was over",
            mails.clone(),
        );
        registry.register("mails_waiting", "Mails that wait to be sent, by any server", mails_waiting.clone());
        let (usage_records, usage_waiting) = (Family::default(), Gauge::default());
        registry.register(
            "usage_records",
            "Usage records of this server by outcome: written; failed, each time a batch could not be written; lost, for too many waited or the database refused it",
            usage_records.clone(),
        );
        registry.register(
            "usage_records_waiting",
            "Usage records of this server that wait to be written",
            usage_waiting.clone(),
        );
        let (workers, conversations_waiting) = (Gauge::default(), Gauge::default());
        registry.register("workers", "Processes of the Claude CLI of this server", workers.clone());
        registry.register(
            "conversations_waiting",
            "Conversations that wait for a process of this server",
            conversations_waiting.clone(),
        );
        let (sockets, event_streams, subscriptions) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("sockets_open", "Open WebSockets", sockets.clone());
        registry.register("event_streams_open", "Open streams of server-sent events", event_streams.clone());
        registry.register("subscriptions_active", "Subscriptions that run", subscriptions.clone());
        registry.register(
            "bus_connected",
            "Whether other servers are heard: 1, or 0 while what they do is noticed seconds later",
            bus.connected.clone(),
        );
        registry.register(
            "bus_interruptions",
            "How often other servers were no longer heard",
            bus.interruptions.clone(),
        );
        registry.register("job_runs", "Runs of jobs on this server, by how they ended", jobs.total.clone());
        registry.register_with_unit(
            "job_last_success_timestamp",
            "When each job was last done to its end, whichever server did it",
            Unit::Seconds,
            jobs.last_success.clone(),
        );
        Self {
            registry,
            graphql_requests,
            graphql_duration,
            http_requests,
            statements,
            password_hashes,
            pool_open,
            pool_idle,
            redis_up,
            mails,
            mails_waiting,
            usage_records,
            usage_waiting,
            workers,
            conversations_waiting,
            sockets,
            event_streams,
            subscriptions,
        }
    }

    pub(super) fn graphql_request(&self, field: &str, outcome: &str) {
        let labels = Operation { field: field.to_owned(), outcome: outcome.to_owned() };
        self.graphql_requests.get_or_create(&labels).inc();
    }

    pub(super) fn graphql_duration(&self, field: &str, duration: Duration) {
        self.graphql_duration.get_or_create(&Field { field: field.to_owned() }).observe(duration.as_secs_f64());
    }

    pub(super) fn http_request(&self, route: &str, status: u16) {
        self.http_requests.get_or_create(&HttpRequest { route: route.to_owned(), status }).inc();
    }

    fn text(&self, services: &Services) -> String {
        let is_redis_there = services.redis.as_ref().is_some_and(|redis| redis.is_there());
        let (pool, mails, usage) = (services.db.pool_state(), services.outbox.tally(), services.usage.tally());
        self.redis_up.set(is_redis_there.into());
        let outcomes = [
            ("sent", &mails.sent),
            ("deferred", &mails.deferred),
            ("refused", &mails.refused),
            ("given_up", &mails.given_up),
        ];
        for (outcome, count) in outcomes {
            let counter = self.mails.get_or_create(&Outcome { outcome });
            counter.inner().store(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.mails_waiting.set(i64::try_from(mails.waiting.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        for (outcome, count) in [("written", &usage.written), ("failed", &usage.failures), ("lost", &usage.lost)] {
            let counter = self.usage_records.get_or_create(&Outcome { outcome });
            counter.inner().store(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.usage_waiting.set(i64::try_from(usage.waiting.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        let (workers, waiting) = services.workers.load();
        self.workers.set(i64::try_from(workers).unwrap_or(i64::MAX));
        self.conversations_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.statements.inner().store(services.db.statements(), Ordering::Relaxed);
        self.password_hashes.inner().store(services.passwords.computed(), Ordering::Relaxed);
        self.pool_open.set(pool.open.into());
        self.pool_idle.set(pool.idle.into());
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a text does not fail");
        text
    }
}

/// Counts one more for as long as it lives.
pub(super) struct Counted(Gauge);

impl Counted {
    pub(super) fn on(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// `/metrics`.
pub(super) async fn handle(State(server): State<Arc<Server>>) -> impl IntoResponse {
    let text = server.metrics.text(&server.services);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
