//! Probes: is the process alive, can it serve.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::graphql::authenticate;
use super::observe::RequestContext;
use super::rate_limit;
use super::router::Server;
use crate::model::Permission;
use crate::store;

/// An answer that holds for this moment only.
fn answer(status: StatusCode, body: Value) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// `/health/alive`: the process answers.
pub(super) async fn alive() -> Response {
    answer(StatusCode::OK, json!({ "status": "alive" }))
}

/// Whether the database answers, in less time than probes commonly wait.
async fn ask_database(server: &Server) -> store::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let asked = tokio::time::timeout(PATIENCE, server.services.db.ping()).await;
    asked.unwrap_or_else(|late| Err(store::Error::Unavailable(late.into())))
}

/// `/health` and `/health/ready`: the database answers too. Says which parts do not; without Redis a server is ready.
pub(super) async fn ready(State(server): State<Arc<Server>>) -> Response {
    let mut unavailable = Vec::new();
    let (status, word) = match ask_database(&server).await {
        Ok(()) => (StatusCode::OK, "ready"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
            unavailable.push("database");
            (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
        }
    };
    if server.services.redis.as_ref().is_some_and(|redis| !redis.is_there()) {
        unavailable.push("redis");
    }
    answer(status, json!({ "status": word, "unavailable": unavailable }))
}

/// `/health/detailed`: for who may see the system.
pub(super) async fn detailed(
    State(server): State<Arc<Server>>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
) -> Response {
    let asking = match authenticate(&server, &headers, context.client_address).await {
        Ok(asking) => asking,
        Err(refused) => return answer(refused.status, json!({ "error": refused.code })),
    };
    if let Err(refused) = rate_limit::admit(&server, &asking.actor, context.client_address).await {
        return (*refused.headers, answer(refused.status, json!({ "error": refused.code }))).into_response();
    }
    asking.note_use(&server);
    match asking.actor.access() {
        None => {
            let mut response = answer(StatusCode::UNAUTHORIZED, json!({ "error": "UNAUTHENTICATED" }));
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        Some(access) if access.check(Some(Permission::ViewSystem)).is_err() => {
            answer(StatusCode::FORBIDDEN, json!({ "error": "FORBIDDEN" }))
        }
        Some(_) => {
            let database = ask_database(&server).await;
            let pool = server.services.db.pool_state();
            let body = json!({
                "status": if database.is_ok() { "ready" } else { "unavailable" },
                "version": env!("CARGO_PKG_VERSION"),
                "startedAt": server.started_at.to_utc().to_rfc3339(),
                "database": {
                    "kind": server.services.db.kind(),
                    "reachable": database.is_ok(),
                    "connections": { "open": pool.open, "idle": pool.idle },
                },
                "redis": server.services.redis.as_ref().map(|redis| json!({ "reachable": redis.is_there() })),
            });
            answer(StatusCode::OK, body)
        }
    }
}
