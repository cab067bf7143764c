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
    request.extensions_mut().insert(Caller { request_id, address });
    let one = handling.one();
    next.run(request).await.map(|body| Body::new(HandledBody { body, _one: one }))
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
