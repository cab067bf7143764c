//! `POST /v1/chat/completions`: the same as a message, in OpenAI's shape.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::Response;

use super::Relay;
use super::caller::{Caller, admit};
use super::chat_answer::{Message, error};
use super::chat_request::translate;
use super::chat_stream::Chunks;
use super::error::{Refusal, Result, Shape};
use super::messages::{Received, exchange, read, stream_headers};
use super::request::forwarded;
use super::stream::Relayed;
use super::tally::Endpoint;
use super::upstream::{Errand, Whole};

/// The version of the API whose answers are translated.
const API_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The handler.
pub(super) async fn create(
    State(relay): State<Arc<Relay>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = answer(&relay, &caller, &headers, body).await;
    answered.unwrap_or_else(|refusal| refusal.into_response(Shape::OpenAi, &caller.request_id))
}

async fn answer(relay: &Arc<Relay>, caller: &Caller, headers: &HeaderMap, body: Body) -> Result<Response> {
    let admitted = admit(relay, caller, headers).await?;
    let request = translate(&read(relay, body).await?)?;
    let mut sent = forwarded(headers, &admitted.raw);
    // The program speaks another protocol: of its headers those are left that say who it is.
    sent.remove(header::ACCEPT);
    sent.insert(header::CONTENT_TYPE, JSON);
    sent.insert("anthropic-version", API_VERSION);
    let errand =
        Errand { method: Method::POST, path_and_query: Endpoint::Messages.path(), headers: sent, body: request.body };
    let (received, tally) = exchange(relay, caller, &admitted, Endpoint::ChatCompletions, headers, &errand).await?;
    let created = relay.services.clock.now().to_utc().timestamp();
    let mut response = match received {
        Received::Stream(mut headers, stream) if request.is_streamed => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            let voice = Chunks::new(created, request.with_usage);
            let mut response = Response::new(Body::new(Relayed::new(stream, voice, tally)));
            stream_headers(&mut response, headers);
            response
        }
        Received::Whole(Whole { status, headers, body }) => {
            let body = if status.is_success() {
                let message: Message = serde_json::from_slice(&body).map_err(|_| unreadable())?;
                message.completion(created, &tally.meter.tokens().0).to_string()
            } else {
                error(status, &body)
            };
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().insert(header::CONTENT_TYPE, JSON);
            response
        }
        Received::Stream(..) => return Err(unreadable()),
    };
    response.headers_mut().extend(admitted.limits);
    Ok(response)
}

fn unreadable() -> Refusal {
    Refusal::new(axum::http::StatusCode::BAD_GATEWAY, "The upstream's answer cannot be read.")
}
