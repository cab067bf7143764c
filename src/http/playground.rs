//! stub
use axum::Router;
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> { Router::new() }
pub(super) async fn page() -> &'static str { "" }
