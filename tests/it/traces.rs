//! Traces: what a collector is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::command_line::Place;
use crate::support::{Client, EventStream, PASSWORD, Socket, TestDatabase};

/// What the caller of this trace chose for it.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SECRET: &str = "sk-ant-canary-7391";
const NAME: &str = "a-name-of-the-callers-7391";

/// A collector on loopback.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Bytes>>>);

impl Collector {
    async fn start(&self) -> String {
        let collect = async |State(Self(bodies)): State<Self>, body: Bytes| {
            bodies.lock().unwrap().push(body);
            ExportTraceServiceResponse::default().encode_to_vec()
        };
        let routes = Router::new().route("/v1/traces", post(collect)).with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        format!("http://{address}")
    }

    /// The service's name with each of its spans.
    fn spans(&self) -> Vec<(String, Span)> {
        let bodies = self.0.lock().unwrap();
        let mut spans = Vec::new();
        for batch in bodies.iter().flat_map(|body| ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans)
        {
            let service = attributes(&batch.resource.unwrap().attributes).remove("service.name").unwrap();
            spans.extend(batch.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|s| (service.clone(), s)));
        }
        spans
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.clone()?.value? {
        AnyValue::StringValue(text) => Some(text),
        AnyValue::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    pairs.iter().filter_map(|pair| Some((pair.key.clone(), text(pair)?))).collect()
}

async fn tells_what_a_request_did(database: TestDatabase) {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let place = Place::new(database);
    let mut serve = place.command(&["serve"]);
    serve.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("TRUSTED_PROXIES", "127.0.0.1").env("LOG_LEVEL", "off");
    let server = Place::started(serve);
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let query = format!(
        "mutation {NAME} {{ createClaudeAccount(input: {{ apiKey: \"{SECRET}\", accountName: \"{NAME}\" }}) {{ claudeAccount {{ id }} }} }}",
        NAME = NAME.replace('-', "_")
    );
    let answer = admin
        .http()
        .post(format!("{}/graphql", server.url))
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
        .header("x-request-id", "request-of-the-proxy")
        .bearer_auth(admin.access_token.as_ref().unwrap())
        .json(&json!({ "query": query }))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["x-request-id"], "request-of-the-proxy");
    assert!(server.stop().success());

    let spans = collector.spans();
    assert!(spans.iter().all(|(service, _)| service == "claviger"));
    let of_request: Vec<_> =
        spans.iter().map(|(_, span)| span).filter(|span| hex::encode(&span.trace_id) == TRACE).collect();
    let one = |name: &str| {
        let mut found = of_request.iter().filter(|span| span.name == name);
        let span = *found.next().unwrap_or_else(|| panic!("no span {name}"));
        assert!(found.next().is_none(), "two spans {name}");
        span
    };
    let request = one("POST /graphql");
    assert_eq!(hex::encode(&request.parent_span_id), "b7ad6b7169203331");
    let expected = [
        ("claviger.request_id", "request-of-the-proxy"),
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/graphql"),
    ];
    for (name, value) in expected {
        assert_eq!(attributes(&request.attributes).get(name).map(String::as_str), Some(value), "{name}");
    }
    let operation = one("mutation createClaudeAccount");
    assert_eq!(operation.parent_span_id, request.span_id);
    assert_eq!(attributes(&operation.attributes)["claviger.outcome"], "OK");
    assert_eq!(attributes(&operation.attributes)["claviger.request_id"], "request-of-the-proxy");
    let parents: BTreeSet<_> =
        of_request.iter().filter(|span| span.name == "statement").map(|span| &span.parent_span_id).collect();
    assert_eq!(parents, BTreeSet::from([&request.span_id, &operation.span_id]), "the sign-in's, and the operation's");

    let sent: Vec<u8> = collector.0.lock().unwrap().concat();
    for text in [SECRET, NAME, &NAME.replace('-', "_"), PASSWORD, "admin@localhost", "INSERT", "127.0.0.1"] {
        let is_there = sent.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!is_there, "{text} was sent to the collector");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_what_a_request_did_on_sqlite() {
    tells_what_a_request_did(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_what_a_request_did_on_postgres() {
    tells_what_a_request_did(TestDatabase::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_name_the_trace() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let place = Place::new(TestDatabase::sqlite());
    let mut serve = place.command(&["serve"]);
    serve.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_SERVICE_NAME", "keys-of-the-house");
    let server = Place::started(serve);
    let http = Client::new(&server.url);
    let get = http.http().get(format!("{}/health/alive", server.url));
    get.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01")).send().await.unwrap();
    assert!(server.stop().success());
    let spans = collector.spans();
    assert!(spans.iter().all(|(service, _)| service == "keys-of-the-house"));
    assert!(spans.iter().any(|(_, span)| span.name == "GET /health/alive"));
    assert!(spans.iter().all(|(_, span)| hex::encode(&span.trace_id) != TRACE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_of_a_socket_has_its_own_id() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let place = Place::new(TestDatabase::sqlite());
    let mut serve = place.command(&["serve"]);
    serve.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let server = Place::started(serve);
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let mut request = format!("{}/graphql", server.url.replacen("http", "ws", 1)).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("graphql-transport-ws"));
    let mut socket = Socket(connect_async(request).await.unwrap().0);
    socket.init(&admin).await;
    for id in ["1", "2"] {
        socket.subscribe(id, "{ viewer { role } }").await;
        socket.event(id).await;
        assert_eq!(socket.next().await["type"], "complete");
    }
    assert!(server.stop().success());
    let spans = collector.spans();
    let operations = spans.iter().filter(|(_, span)| span.name == "query viewer");
    let ids: BTreeSet<_> =
        operations.map(|(_, span)| attributes(&span.attributes).remove("claviger.request_id").unwrap()).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_of_a_subscription_is_an_operation() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let place = Place::new(TestDatabase::sqlite());
    let mut serve = place.command(&["serve"]);
    serve.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let server = Place::started(serve);
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let query = json!({ "query": "subscription { auditLogAdded { operation user { email } } }" });
    let mut stream = EventStream::post(&admin, &query).await;
    let deeds = tokio::spawn({
        let admin = admin.clone();
        async move {
            // Until the subscription has begun nobody hears of them.
            loop {
                crate::audit_chain::act(&admin, 1).await;
            }
        }
    });
    assert_eq!(stream.event().await.unwrap().0, "next");
    deeds.abort();
    drop(stream);
    assert!(server.stop().success());
    let spans = collector.spans();
    let request = spans.iter().find(|(_, span)| span.name == "mutation updateOrganization").unwrap();
    assert_eq!(attributes(&request.1.attributes)["claviger.outcome"], "OK");
    let steps: Vec<_> = spans.iter().filter(|(_, span)| span.name == "subscription auditLogAdded").collect();
    let with_events: Vec<_> = steps
        .iter()
        .filter(|(_, span)| attributes(&span.attributes).get("claviger.outcome").is_some_and(|outcome| outcome == "OK"))
        .collect();
    assert!(!with_events.is_empty());
    for (_, step) in with_events {
        assert_eq!(attributes(&step.attributes)["claviger.request_id"].len(), 32);
        assert!(spans.iter().any(|(_, span)| span.parent_span_id == step.span_id), "what it asked of the database");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_is_told_of_at_once() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let place = Place::new(TestDatabase::postgres().await);
    let mut serve = place.command(&["serve"]);
    serve.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    let server = Place::started(serve);
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let (blocker, connection) = tokio_postgres::connect(&place.database.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    blocker.batch_execute("BEGIN; LOCK TABLE clients IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let reading = tokio::spawn(async move { admin.run("{ clients { nodes { id } } }").await.status });
    let waiting = "SELECT 'it waits' AS text FROM pg_locks WHERE NOT granted";
    let soon = std::time::Duration::from_millis(20);
    while place.database.texts(waiting).await.is_empty() {
        tokio::time::sleep(soon).await;
    }
    // The caller leaves. The statement still waits, and its connection for whoever comes next; nobody does.
    reading.abort();
    let is_told = || collector.spans().iter().any(|(_, span)| span.name == "query clients");
    let told = async {
        while !is_told() {
            tokio::time::sleep(soon).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), told).await.expect("the span ends with the read");
    drop(blocker);
    assert!(server.stop().success());
}
