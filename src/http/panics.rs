//! A fault that no code expected: logged, and answered as any other.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use axum::extract::{Extension, Request};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;

use super::graphql::Unexecuted;
use super::observe::RequestContext;
use crate::domain::{Code, Error};

/// The middleware.
pub(super) async fn catch(Extension(context): Extension<RequestContext>, request: Request, next: Next) -> Response {
    // What a handler leaves half done is its own: what requests share is behind locks and transactions.
    AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|panic| answer(&*panic, &context))
}

/// The same for what goes on after its request was answered, which the middleware sees nothing of.
pub(super) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Unexecuted> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        log(&*panic);
        let error = Error::internal("an operation panicked");
        Unexecuted::new(StatusCode::INTERNAL_SERVER_ERROR, error.code().as_str(), error.message())
    })
}

fn log(panic: &(dyn Any + Send)) {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("not a text"), "a request panicked");
}

fn answer(panic: &(dyn Any + Send), context: &RequestContext) -> Response {
    log(panic);
    let error = Error::internal("a request panicked");
    let extensions = serde_json::json!({ "code": Code::Internal.as_str(), "requestId": context.request_id });
    let body = serde_json::json!({ "errors": [{ "message": error.message(), "extensions": extensions }] });
    let headers = [(header::CONTENT_TYPE, "application/json; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::INTERNAL_SERVER_ERROR, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::body::Body;
    use axum::routing::get;
    use axum::{Router, middleware};
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_as_a_fault_of_the_server() {
        let context = RequestContext { request_id: "r-1".into(), client_address: Ipv4Addr::LOCALHOST.into() };
        let routes: Router = Router::new()
            .route("/now", get(async || -> () { panic!("secret") }))
            .route(
                "/later",
                get(async || -> () {
                    tokio::task::yield_now().await;
                    panic!("{}", "secret")
                }),
            )
            .layer(middleware::from_fn(catch))
            .layer(Extension(context));
        for path in ["/now", "/later"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = routes.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let extensions = json!({ "code": "INTERNAL_SERVER_ERROR", "requestId": "r-1" });
            assert_eq!(body["errors"][0]["extensions"], extensions);
            assert!(!body.to_string().contains("secret"));
        }
    }

    #[tokio::test]
    async fn a_panic_after_the_answer_began_is_a_fault_too() {
        let work = async {
            tokio::task::yield_now().await;
            panic!("secret")
        };
        let failed = caught::<()>(work).await.err().unwrap();
        let body = crate::http::subscription::errors(failed, "r-1").to_string();
        assert!(body.contains("INTERNAL_SERVER_ERROR") && body.contains("r-1") && !body.contains("secret"), "{body}");
        assert!(caught(async {}).await.is_ok());
    }
}
