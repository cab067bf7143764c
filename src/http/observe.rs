//! Around every request: its id, its line in the log, its place in the metrics, and the headers that every answer has.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::client_address::{client_address, is_trusted};
use super::router::Server;
use crate::logs::{TRACES, follow};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// What is known of a request from the start.
#[derive(Debug, Clone)]
pub(super) struct RequestContext {
    /// Names the request in the log, in errors and in the audit log.
    pub(super) request_id: String,
    /// The caller's address.
    pub(super) client_address: IpAddr,
}

/// The middleware.
pub(super) async fn observe(
    State(server): State<Arc<Server>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    // It stands in the audit log: a caller must not choose it, nor give two requests the same.
    let is_trusted = is_trusted(peer.ip(), &server.trusted_proxies);
    let given = is_trusted.then(|| given_id(request.headers())).flatten();
    let request_id = given.unwrap_or_else(|| hex::encode(server.services.random.bytes::<16>()));
    let client_address = client_address(peer.ip(), request.headers(), &server.trusted_proxies);
    // The route, not the path: a path is the caller's, and may hold anything.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    // At the level of errors, so that it is there whichever lines are logged.
    let span = tracing::error_span!("request", request_id);
    // Within the other: whatever runs in this one is to be logged with the request's id.
    let trace = span.in_scope(|| trace_of(&request, &route, &request_id));
    if is_trusted && let Some(Ok(traceparent)) = request.headers().get("traceparent").map(HeaderValue::to_str) {
        follow(&trace, traceparent);
    }
    request.extensions_mut().insert(RequestContext { request_id: request_id.clone(), client_address });
    let method = request.method().clone();

    let mut response = next.run(request).instrument(trace.clone()).instrument(span.clone()).await;

    let status = response.status().as_u16();
    server.metrics.http_request(&route, status);
    trace.record("http.response.status_code", status);
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::info!(%method, route, status, milliseconds, client = %client_address, "answered"));
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, id);
    }
    add_security_headers(headers, server.is_public_https);
    response
}

/// The request's span in a trace, by OpenTelemetry's conventions.
fn trace_of(request: &Request, route: &str, request_id: &str) -> Span {
    // A method, like a path, may be any text of the caller's.
    let is_known = matches!(*request.method(), Method::GET | Method::HEAD | Method::POST | Method::OPTIONS);
    let method = if is_known { request.method().as_str() } else { "_OTHER" };
    tracing::info_span!(
        target: TRACES,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        claviger.request_id = request_id,
    )
}

/// An id that a proxy gave, if it can stand in a log as it is.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!id.is_empty() && id.len() <= 64 && id.bytes().all(is_plain)).then(|| id.to_owned())
}

/// What no answer goes out without. A page that needs more than the strictest policy sets its own.
fn add_security_headers(headers: &mut HeaderMap, is_public_https: bool) {
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    if is_public_https {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
}
