//! One request, from top to bottom: who asks, what for, under which limits, on which account, and how the answer comes back.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;

use super::attempts::{Answered, Route, run};
use super::beginning::{Begun, is_stream};
use super::bodies::read;
use super::caller::{Admitted, Caller, admit};
use super::error::{Refusal, Result, Shape, kind};
use super::pool::Lane;
use super::recovery::Trouble;
use super::request::{Head, forwarded, path_and_query};
use super::stream::{Relayed, Unchanged};
use super::tally::{Endpoint, Tally};
use super::upstream::{Ending, Errand, Whole, kept, request_id};
use super::whole::{body_of, gather};
use super::{ACCEL_BUFFERING, Relay};

/// `POST /v1/messages`.
pub(super) async fn create(
    State(relay): State<Arc<Relay>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = answer(&relay, &caller, Endpoint::Messages, &uri, &headers, body).await;
    answered.unwrap_or_else(|refusal| refusal.into_response(Shape::Anthropic, &caller.request_id))
}

/// `POST /v1/messages/count_tokens`.
pub(super) async fn count_tokens(
    State(relay): State<Arc<Relay>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = answer(&relay, &caller, Endpoint::CountTokens, &uri, &headers, body).await;
    answered.unwrap_or_else(|refusal| refusal.into_response(Shape::Anthropic, &caller.request_id))
}

async fn answer(
    relay: &Arc<Relay>,
    caller: &Caller,
    endpoint: Endpoint,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response> {
    let admitted = admit(relay, caller, headers).await?;
    let path_and_query = path_and_query(endpoint.path(), uri.query(), &admitted.raw);
    let body = read(relay, &admitted, body).await?;
    let errand = Errand {
        method: Method::POST,
        path_and_query: &path_and_query,
        headers: forwarded(headers, &admitted.raw),
        body,
    };
    let (answered, tally) = exchange(relay, caller, &admitted, endpoint, headers, &errand).await?;
    let mut response = match answered {
        Received::Whole(whole) => whole.into_response(relay),
        Received::Stream(head, stream) => {
            let mut response = Response::new(Body::new(Relayed::new(stream, Unchanged, tally)));
            stream_headers(&mut response, head);
            response
        }
    };
    response.headers_mut().extend(admitted.limits);
    Ok(response)
}

/// What came from the upstream.
pub(super) enum Received {
    /// All of it: a success, or an error.
    Whole(Whole),
    /// The beginning of a stream, with the headers that the caller gets.
    Stream(HeaderMap, Begun),
}

/// Reserves, sends, and receives. The tally is of a stream that goes on; of anything else it is complete.
pub(super) async fn exchange(
    relay: &Arc<Relay>,
    caller: &Caller,
    admitted: &Admitted,
    endpoint: Endpoint,
    headers: &HeaderMap,
    errand: &Errand<'_>,
) -> Result<(Received, Tally)> {
    let with_limits = |refusal: Refusal| refusal.with_headers(admitted.limits.clone());
    let head = Head::read(&errand.body)?;
    head.check_model(admitted)?;
    let mut tally =
        Tally::begin(relay, caller, admitted, endpoint, (&head, headers, &errand.body)).await.map_err(with_limits)?;
    let session = head.session(headers, admitted, &relay.pool.hasher);
    let lane = Lane::new(endpoint, &head.model);
    let route = Route { lane: &lane, session };
    let running = run(relay, admitted, route, errand, &mut tally);
    let ran = match head.stream {
        Some(true) => tokio::time::timeout(relay.limits.beginning, running).await.ok(),
        _ => Some(running.await),
    };
    let received = match ran {
        None => Err(not_begun(&tally)),
        Some(Ok(Answered::Success(response))) => receive(relay, response, &mut tally).await,
        Some(Ok(Answered::Error(whole))) => {
            tally.answers(whole.status, request_id(&whole.headers));
            tally.fails(whole.status, kind(whole.status));
            Ok(Received::Whole(whole))
        }
        Some(Err(refusal)) => Err(refusal),
    };
    match received {
        Ok(received) => Ok((received, tally)),
        Err(refusal) => {
            tally.refuses(&refusal);
            Err(with_limits(refusal))
        }
    }
}

/// To a stream that has not begun no sign of life can be given: it is ended before its caller gives up and is not told why.
fn not_begun(tally: &Tally) -> Refusal {
    let message = "The upstream did not begin to answer in time.";
    if let Some(lease) = tally.lease() {
        tally.relay().note(lease, Trouble::Failing, message.to_owned());
    }
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, message)
}

async fn receive(relay: &Relay, response: axum::http::Response<Begun>, tally: &mut Tally) -> Result<Received> {
    let (head, begun) = response.into_parts();
    let headers = kept(&head.headers);
    tally.answers(head.status, request_id(&headers));
    if is_stream(&headers) {
        return Ok(Received::Stream(headers, begun));
    }
    let body = gather(relay, begun.rest, tally).await?.map_err(|error| {
        const MESSAGE: &str = "The upstream's answer broke off.";
        tracing::warn!(error = &error as &dyn std::error::Error, "an upstream's answer did not come whole");
        tally.cuts_off(error.received);
        if error.how == Ending::TooLong {
            let message = "The answer is longer than the relay passes on whole: ask for it as a stream.";
            return Refusal::new(StatusCode::BAD_GATEWAY, message).paid_for();
        }
        if let Some(lease) = tally.lease() {
            relay.note(lease, Trouble::Failing, MESSAGE.to_owned());
        }
        Refusal::new(StatusCode::BAD_GATEWAY, MESSAGE)
    })?;
    tally.reads_whole(&body);
    tally.ends();
    Ok(Received::Whole(Whole { status: head.status, headers, body }))
}

/// The headers of an answer that is a stream: proxies are not to keep it back.
pub(super) fn stream_headers(response: &mut Response, headers: HeaderMap) {
    let own = response.headers_mut();
    own.extend(headers);
    own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    own.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
}

impl Whole {
    fn into_response(self, relay: &Relay) -> Response {
        let mut response = Response::new(body_of(self.body, relay.limits.unread));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
