//! The relay: callers' requests to Claude, on the accounts of their organizations. What one request goes through stands in
//! `messages.rs`, from top to bottom.

mod attempts;
mod caller;
mod chat_answer;
mod chat_completions;
mod chat_request;
mod chat_stream;
mod error;
mod health;
mod messages;
mod meter;
mod models;
mod pool;
mod request;
mod sse;
mod stream;
mod tally;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, get, post};
use tokio_util::task::TaskTracker;

pub use caller::Caller;

use crate::domain::Services;
use error::{Refusal, Shape};
use health::Health;
use models::KnownModels;
use pool::Pool;

/// What requests of the relay may take.
#[derive(Debug, Clone, Copy)]
pub struct RelayLimits {
    /// How long an upstream may say nothing, before its answer and within it.
    pub silence: Duration,
    /// After how much silence a stream says that it is there.
    pub ping: Duration,
    /// How long a request waits for an account.
    pub patience: Duration,
    /// How long a request waits before it is tried again, where the upstream does not say.
    pub retry: Duration,
    /// How long a body may be on its way.
    pub upload: Duration,
    /// The largest body of a request: what the API takes.
    pub body: usize,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(600),
            ping: Duration::from_secs(15),
            patience: Duration::from_secs(10),
            retry: Duration::from_millis(250),
            upload: Duration::from_secs(60),
            body: 32 * 1024 * 1024,
        }
    }
}

/// What its requests share.
pub struct Relay {
    services: Arc<Services>,
    limits: RelayLimits,
    pool: Arc<Pool>,
    health: Health,
    models: KnownModels,
    /// What requests leave to be done.
    tasks: TaskTracker,
}

impl Relay {
    /// A relay that has not been asked for anything.
    #[must_use]
    pub fn new(services: Arc<Services>, limits: RelayLimits) -> Arc<Self> {
        Arc::new(Self {
            pool: Pool::new(services.clock.clone()),
            health: Health::default(),
            models: KnownModels::default(),
            tasks: TaskTracker::new(),
            limits,
            services,
        })
    }

    /// Waits until what requests have left is done. None may begin after.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.health.finish().await;
    }
}

/// Its routes. Each needs a [`Caller`] among the extensions of its requests; all but the greeting need an API key.
pub fn routes<S: Clone + Send + Sync + 'static>(relay: Arc<Relay>) -> Router<S> {
    Router::new()
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::show))
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/v1/{*rest}", any(unknown))
        .route("/api/hello", get(async || StatusCode::OK))
        .with_state(relay)
}

async fn unknown(Extension(caller): Extension<Caller>) -> Response {
    let refusal = Refusal::new(StatusCode::NOT_FOUND, "The relay has no such path.").for_good();
    refusal.into_response(Shape::Anthropic, &caller.request_id)
}
