//! A Claude upstream on loopback, as far as it lists models.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::Notify;

pub(crate) const GOOD_KEY: &str = "sk-ant-accepted-0001";

/// The base URL's path says how it behaves: `/good`, `/garbage`, `/redirect`, `/huge`, `/broken`, `/echo`, or `/held`, which
/// answers when it is told to.
pub(crate) struct MockUpstream {
    pub(crate) address: SocketAddr,
    state: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<HeaderMap>>,
    arrived: Notify,
    released: Notify,
}

impl MockUpstream {
    pub(crate) async fn start() -> Self {
        let state = Arc::<Shared>::default();
        let routes = Router::new().route("/{behaviour}/v1/models", get(models)).with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, state }
    }

    pub(crate) fn base_url(&self, behaviour: &str) -> String {
        format!("http://{}/{behaviour}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<HeaderMap> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Waits for a request that is held.
    pub(crate) async fn arrived(&self) {
        self.state.arrived.notified().await;
    }

    /// Lets a held request be answered.
    pub(crate) fn release(&self) {
        self.state.released.notify_one();
    }
}

async fn models(State(state): State<Arc<Shared>>, Path(behaviour): Path<String>, headers: HeaderMap) -> Response {
    let key = headers.get("x-api-key").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    state.seen.lock().unwrap().push(headers);
    if behaviour == "held" {
        state.arrived.notify_one();
        state.released.notified().await;
    }
    let error = |status, message: String| {
        let body = json!({ "type": "error", "error": { "type": "error", "message": message } });
        (status, axum::Json(body)).into_response()
    };
    match behaviour.as_str() {
        "garbage" => "<html>".into_response(),
        "redirect" => Redirect::temporary("http://127.0.0.1:1/v1/models").into_response(),
        "huge" => "x".repeat(1 << 20).into_response(),
        "broken" => error(StatusCode::INTERNAL_SERVER_ERROR, "it broke".to_owned()),
        "echo" => error(StatusCode::UNAUTHORIZED, format!("invalid key {key}")),
        _ if key == GOOD_KEY => {
            axum::Json(json!({ "data": [{ "type": "model", "id": "claude-haiku-4-5" }], "has_more": false }))
                .into_response()
        }
        _ => error(StatusCode::UNAUTHORIZED, "invalid x-api-key".to_owned()),
    }
}
