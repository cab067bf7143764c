//! The relay's routes, and what each request of theirs is given: who asks from where, and under which id.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::observe::RequestContext;
use super::panics::caught;
use super::router::Server;
use super::serve::{Handled, Handling};
use crate::relay::{self, Caller, Relay};

/// The routes. Their answers are not packed: they pass as they come, event by event.
pub(super) fn routes(relay: Arc<Relay>) -> Router<Arc<Server>> {
    relay::routes(relay).layer(middleware::from_fn(introduce))
}

async fn introduce(
    Extension(context): Extension<RequestContext>,
    Extension(handling): Extension<Handling>,
    mut request: Request,
    next: Next,
) -> Response {
    let RequestContext { request_id, client_address: address } = context;
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(Caller { request_id: request_id.clone(), address });
    let one = handling.one();
    answered(next.run(request), &path, &request_id).await.map(|body| Body::new(HandledBody { body, _one: one }))
}

/// The answer, or that there was a fault, as callers of the relay know it.
async fn answered(answer: impl Future<Output = Response>, path: &str, request_id: &str) -> Response {
    caught(answer).await.unwrap_or_else(|_| relay::fault(path, request_id))
}

/// An answer that is handled as long as it goes on: a server that is told to stop lets it.
struct HandledBody {
    body: Body,
    _one: Handled,
}

impl hyper::body::Body for HandledBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_in_the_shape_that_the_caller_knows() {
        for (path, kind) in [("/v1/messages", json!("api_error")), ("/v1/chat/completions", json!("server_error"))] {
            let response = answered(async { panic!("secret") }, path, "r-1").await;
            assert_eq!(
                (response.status(), &response.headers()["request-id"]),
                (StatusCode::INTERNAL_SERVER_ERROR, &"r-1".parse().unwrap())
            );
            let body: Value =
                serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert!(body["error"]["type"] == kind && !body.to_string().contains("secret"), "{body}");
        }
    }
}
