//! `POST /v1/chat/completions`: the same as a message, in OpenAI's shape.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;

use super::Relay;
use super::bodies::{memory_of_values, read};
use super::caller::{Admitted, Caller, admit};
use super::chat_answer::{Message, error};
use super::chat_request::{Translated, translate};
use super::chat_stream::Chunks;
use super::error::{Refusal, Result, Shape};
use super::messages::{Received, exchange, stream_headers};
use super::request::forwarded;
use super::stream::Relayed;
use super::tally::{Endpoint, Tally, at_leisure};
use super::upstream::{API_VERSION, Errand, Whole};
use super::whole::body_of;

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
    let request = translated(relay, &admitted, read(relay, &admitted, body).await?).await?;
    let mut sent = forwarded(headers, &admitted.raw);
    // The program speaks another protocol: of its headers those are left that say who it is.
    sent.remove(header::ACCEPT);
    sent.insert(header::CONTENT_TYPE, JSON);
    sent.insert("anthropic-version", API_VERSION);
    let errand =
        Errand { method: Method::POST, path_and_query: Endpoint::Messages.path(), headers: sent, body: request.body };
    let (received, mut tally) = exchange(relay, caller, &admitted, Endpoint::ChatCompletions, headers, &errand).await?;
    let created = relay.services.clock.now().to_utc().timestamp();
    let mut response = match received {
        Received::Stream(mut headers, stream) if request.is_streamed => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            // It is written anew.
            headers.remove(header::CONTENT_ENCODING);
            let voice = Chunks::new(created, request.with_usage);
            let mut response = Response::new(Body::new(Relayed::new(stream, voice, tally)));
            stream_headers(&mut response, headers);
            response
        }
        Received::Whole(Whole { status, headers, body }) => {
            let body = if status.is_success() {
                completion(relay, &mut tally, &body, created)?
            } else {
                error(status, &body).into()
            };
            let mut response = Response::new(body_of(body, relay.limits.unread));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().insert(header::CONTENT_TYPE, JSON);
            response.headers_mut().remove(header::CONTENT_ENCODING);
            response
        }
        Received::Stream(..) => return Err(unreadable(&mut tally)),
    };
    response.headers_mut().extend(admitted.limits);
    Ok(response)
}

/// Translates an answer, in the caller's room: what is made of it is as long again, and as long once more where much of it is quoted.
fn completion(relay: &Relay, tally: &mut Tally, body: &Bytes, created: i64) -> Result<Bytes> {
    let mut room = relay.bodies.room_of_answer(tally.owner());
    room.grow(2 * body.len()).map_err(Refusal::paid_for).inspect_err(|refusal| tally.refuses(refusal))?;
    let tokens = tally.meter.tokens().0;
    let translated =
        at_leisure(body.len(), || serde_json::from_slice::<Message<'_>>(body)?.completion(created, &tokens));
    translated.map(|translated| room.hold(translated)).map_err(|_| unreadable(tally))
}

/// Translates a request, under the bounds of what bodies may take: read into values, it takes many times as much as its text.
async fn translated(relay: &Relay, admitted: &Admitted, body: Bytes) -> Result<Translated> {
    /// What takes longer than a moment.
    const LARGE: usize = 256 * 1024;
    let mut room = relay.bodies.room_of_request(admitted.owner()).beside(body.len());
    room.grow(memory_of_values(&body))?;
    let is_large = body.len() >= LARGE;
    // Who leaves does not end it: as long as it goes on, it has its room.
    let translation = move || {
        let _room = room;
        translate(&body)
    };
    let mut translated =
        if is_large { tokio::task::spawn_blocking(translation).await.map_err(|_| failed())?? } else { translation()? };
    let mut room = relay.bodies.room_of_request(admitted.owner());
    room.grow(translated.body.len())?;
    translated.body = room.hold(translated.body);
    Ok(translated)
}

fn failed() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The request could not be translated.")
}

/// The upstream's success is none of the caller's.
fn unreadable(tally: &mut Tally) -> Refusal {
    let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "The upstream's answer cannot be read.").paid_for();
    tally.refuses(&refusal);
    refusal
}
