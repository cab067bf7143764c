//! Where a WebSocket begins: who may open one, and by which protocol.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tracing::Instrument as _;

use super::graphql::{MAX_BODY, Unexecuted};
use super::live::Asker;
use super::observe::RequestContext;
use super::router::Server;
use super::socket;

/// The protocol of graphql-ws. The older one, which calls itself `graphql-ws`, has no way to say that a message is wrong.
const PROTOCOL: &str = "graphql-transport-ws";

/// What the caller needs to open a WebSocket, if it wants one.
pub(super) fn wanted(
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Option<Result<WebSocketUpgrade, WebSocketUpgradeRejection>> {
    let value = headers.get(header::UPGRADE)?.to_str().ok()?;
    value.eq_ignore_ascii_case("websocket").then_some(upgrade)
}

/// Opens a WebSocket.
pub(super) fn accept(
    server: &Arc<Server>,
    context: &RequestContext,
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Unexecuted> {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return Ok(rejection.into_response()),
    };
    if headers.get(header::ORIGIN).is_some_and(|origin| !is_ours(server, headers, origin)) {
        let message = "Pages of this origin may not open a socket: FRONTEND_URL does not name it.";
        return Err(Unexecuted::new(StatusCode::FORBIDDEN, "FORBIDDEN", message));
    }
    // The library's own 128 KiB to read into would be held by each socket, however little it says.
    let upgrade = upgrade.protocols([PROTOCOL]).max_message_size(MAX_BODY).max_frame_size(MAX_BODY);
    let upgrade = upgrade.read_buffer_size(8 * 1024);
    if upgrade.selected_protocol().is_none() {
        let message = "The sub-protocol must be graphql-transport-ws.";
        return Err(Unexecuted::new(StatusCode::BAD_REQUEST, "BAD_USER_INPUT", message));
    }
    let Some(place) = server.live.socket() else {
        let message = "The server has as many open sockets as it takes. Try again later.";
        return Err(Unexecuted::new(StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", message));
    };
    let Some(held) = server.live.hold_at(context.client_address) else {
        let message = "Your address has too many open sockets that nobody has signed in on.";
        return Err(Unexecuted::rate_limited(message, 1));
    };
    let asker = Asker { headers: headers.clone(), context: context.clone() };
    let server = server.clone();
    Ok(upgrade.on_upgrade(move |socket| {
        // The server waits for it when it stops.
        let tasks = server.tasks.clone();
        let serve = async move {
            socket::serve(server, socket, asker, held).await;
            drop(place);
        };
        tasks.track_future(serve.in_current_span())
    }))
}

/// Whether a page of this origin may open a socket: one of the server's own or of a frontend. Browsers open sockets for any page,
/// and ask nobody before. Tokens are not sent along by themselves, but a page need not be let in for that.
fn is_ours(server: &Server, headers: &HeaderMap, origin: &HeaderValue) -> bool {
    let Ok(text) = origin.to_str() else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text == server.public_origin || server.frontend_urls.contains(origin) || (authority.is_some() && authority == host)
}
