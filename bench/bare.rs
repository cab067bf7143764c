//! The floor of the measurement: axum answering a fixed body, of the size of a list's answer, to whatever is posted.

use axum::Router;
use axum::routing::post;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let body = "x".repeat(6_000);
    let routes = Router::new().route("/graphql", post(move |_: String| async move { body.clone() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listens on http://{}", listener.local_addr()?);
    axum::serve(listener, routes).await
}
