//! The relay: callers' requests to Claude, on the accounts of their organizations. What one request goes through stands in
//! `messages.rs`, from top to bottom.

mod attempts;
mod beginning;
mod bodies;
mod caller;
mod chat_answer;
mod chat_completions;
mod chat_request;
mod chat_stream;
mod error;
mod health;
mod messages;
mod meter;
mod model_list;
mod models;
mod pool;
mod recovery;
mod request;
mod sse;
mod stream;
mod tally;
mod upstream;
mod watched;
mod weight;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::http::{HeaderName, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{any, get, post};
use chrono::TimeDelta;
use tokio_util::task::TaskTracker;

pub use caller::Caller;

use crate::domain::Services;
use bodies::Bodies;
use error::{Refusal, Shape};
use health::Health;
use models::KnownModels;
use pool::{Lease, Pool};
use recovery::Trouble;
use tally::Endpoint;

/// Tells proxies of the kind of nginx whether to collect an answer before they pass it on.
pub(crate) const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What requests of the relay may take.
#[derive(Debug, Clone, Copy)]
pub struct RelayLimits {
    /// How long an upstream may say nothing, before its answer and within it.
    pub silence: Duration,
    /// How long a connection to an upstream may take to be made.
    pub connecting: Duration,
    /// After how much silence a stream says that it is there.
    pub ping: Duration,
    /// How long a request waits for an account.
    pub patience: Duration,
    /// How long an account rests, and a request waits before it is tried again, at first, where the upstream does not say.
    pub retry: Duration,
    /// What took longer the upstream may have done: then it is not tried again.
    pub soon: Duration,
    /// How long a body may be on its way.
    pub upload: Duration,
    /// The largest body of a request: what the API takes.
    pub body: usize,
    /// How much the bodies of all requests and of whole answers may be at once. `bodies.rs` has who may take how much of it.
    pub bodies: usize,
    /// How long a caller of a stream waits for it to begin, through all that is tried: less than the Claude CLI waits for.
    pub beginning: Duration,
    /// How long an answer may go on.
    pub longest: Duration,
    /// How long a caller may read nothing of an answer that has something for it.
    pub unread: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(600),
            connecting: Duration::from_secs(10),
            ping: Duration::from_secs(15),
            patience: Duration::from_secs(10),
            retry: Duration::from_millis(250),
            soon: Duration::from_secs(5),
            upload: Duration::from_secs(60),
            body: 32 * 1024 * 1024,
            bodies: 512 * 1024 * 1024,
            beginning: Duration::from_secs(240),
            longest: Duration::from_secs(3600),
            unread: Duration::from_secs(120),
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
    bodies: Arc<Bodies>,
    /// What requests leave to be done.
    tasks: TaskTracker,
}

impl Relay {
    /// A relay that has not been asked for anything.
    #[must_use]
    pub fn new(services: Arc<Services>, limits: RelayLimits) -> Arc<Self> {
        Arc::new(Self {
            pool: Pool::new(services.clock.clone(), TimeDelta::from_std(limits.retry).unwrap_or_default()),
            health: Health::default(),
            models: KnownModels::default(),
            bodies: Bodies::new(limits.bodies),
            tasks: TaskTracker::new(),
            limits,
            services,
        })
    }

    /// Notes that a request went wrong by its account's doing, and gives it up.
    fn note(&self, lease: &Lease, trouble: Trouble, message: String) {
        if let Some(failed) = lease.failed(trouble, message, true) {
            self.health.note(&self.services, failed.observed);
        }
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
        // Of a base URL that ends with a slash.
        .route("//v1/{*rest}", any(unknown))
        .route("/api/hello", get(async || StatusCode::OK))
        .method_not_allowed_fallback(wrong_method)
        .with_state(relay)
}

/// How the relay answers where it has no answer: a fault of its own, in the shape that callers of the path know.
#[must_use]
pub fn fault(path: &str, request_id: &str) -> Response {
    let refusal = Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong in the relay.");
    refusal.into_response(shape_of(path), request_id)
}

fn shape_of(path: &str) -> Shape {
    if path == Endpoint::ChatCompletions.path() { Shape::OpenAi } else { Shape::Anthropic }
}

async fn wrong_method(Extension(caller): Extension<Caller>, uri: Uri) -> Response {
    let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "This path is not asked by that method.").for_good();
    refusal.into_response(shape_of(uri.path()), &caller.request_id)
}

async fn unknown(Extension(caller): Extension<Caller>) -> Response {
    let refusal = Refusal::new(StatusCode::NOT_FOUND, "The relay has no such path.").for_good();
    refusal.into_response(Shape::Anthropic, &caller.request_id)
}
