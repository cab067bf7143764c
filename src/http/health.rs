//! Probes: is the process alive, can it serve.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::router::Server;
use crate::model::Permission;

/// `/health/alive`: the process answers.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// `/health` and `/health/ready`: the database answers too.
pub(super) async fn ready(State(server): State<Arc<Server>>) -> Response {
    match server.services.db.ping().await {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "unavailable" }))).into_response()
        }
    }
}

/// `/health/detailed`: for who may see the system.
pub(super) async fn detailed(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let access = server.services.authenticator.authenticate(token).await.ok().and_then(|actor| actor.access());
    match access {
        None => (StatusCode::UNAUTHORIZED, Json(json!({ "error": "UNAUTHENTICATED" }))).into_response(),
        Some(access) if !access.role().may(Permission::ViewSystem) => {
            (StatusCode::FORBIDDEN, Json(json!({ "error": "FORBIDDEN" }))).into_response()
        }
        Some(_) => {
            let database = server.services.db.ping().await;
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
            });
            Json(body).into_response()
        }
    }
}
