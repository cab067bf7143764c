//! `POST /v1/conversations/{id}/messages`: says something in a conversation, and tells the answer as it comes, by server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::{Value, json};

use super::graphql::{Unexecuted, authenticate, origin};
use super::observe::RequestContext;
use super::rate_limit;
use super::router::Server;
use crate::crypto::SecretText;
use crate::domain::message::text_of;
use crate::domain::turn::{Asking, Kept, Send, Streamed, TurnEvent, stream};
use crate::domain::{self, Code, Cx, Error, Record};

/// After so much silence a comment says that somebody is there.
const SILENCE: Duration = Duration::from_secs(15);
/// The largest body: the longest text, each character escaped.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// The field, as the audit log and the metrics name it.
const OPERATION: &str = "messageStream";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    text: String,
    model: Option<String>,
    #[serde(default)]
    tools: Vec<String>,
}

/// The handler.
pub(super) async fn send(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answer = begin(&server, id, &context, &headers, body).await;
    let code = answer.as_ref().map_or_else(|refused| refused.code, |_| "OK");
    server.metrics.graphql_request(OPERATION, code);
    answer.map_or_else(|refused| refused.into_response(&context.request_id), |started| started.into_response(&server))
}

async fn begin(
    server: &Arc<Server>,
    id: String,
    context: &RequestContext,
    headers: &HeaderMap,
    body: Body,
) -> Result<Started, Refused> {
    let address = context.client_address;
    let asking = authenticate(server, headers, address).await?;
    if asking.is_refused {
        return Err(Error::unauthenticated().into());
    }
    rate_limit::admit(server, &asking.actor, address).await?;
    let read = tokio::time::timeout(server.request_timeout, Limited::new(body, MAX_BODY).collect()).await;
    let body = match read {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) => return Err(Refused::bad("The body is too large, or broke off.")),
        Err(_) => return Err(Error::timeout().into()),
    };
    let input: Input = serde_json::from_slice(&body)
        .map_err(|_| Refused::bad("The body is not a JSON object with text, and perhaps model and tools."))?;
    asking.note_use(server);
    let asked = Asking {
        services: server.services.clone(),
        actor: asking.actor,
        origin: origin(context, headers),
        operation: OPERATION.to_owned(),
    };
    let input =
        Send { conversation_id: Some(id), text: SecretText::from(input.text), model: input.model, tools: input.tools };
    let mut streamed = stream(asked.clone(), input);
    // What is refused at once has a status of its own.
    match streamed.next().await {
        Some(TurnEvent::Failed(error)) => Err(error.into()),
        first => Ok(Started { asked, streamed, first }),
    }
}

/// An answer that has begun.
struct Started {
    asked: Asking,
    streamed: Streamed,
    first: Option<TurnEvent>,
}

impl Started {
    fn into_response(self, server: &Arc<Server>) -> Response {
        let stop = server.stop.clone();
        let events = futures_util::stream::unfold(Some(self), move |started| {
            let stop = stop.clone();
            async move {
                let mut started = started?;
                let event = if let Some(event) = started.first.take() {
                    Some(event)
                } else {
                    tokio::select! {
                        event = started.streamed.next() => Some(event?),
                        () = tokio::time::sleep(SILENCE) => None,
                        () = stop.cancelled() => return None,
                    }
                };
                let is_over = matches!(event, Some(TurnEvent::Kept(_) | TurnEvent::Failed(_)));
                let bytes = event.map_or_else(|| Bytes::from_static(b":\n\n"), |event| started.told(event));
                Some((Ok::<_, Infallible>(bytes), (!is_over).then_some(started)))
            }
        });
        let mut response = Response::new(Body::from_stream(events));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    fn told(&self, event: TurnEvent) -> Bytes {
        let (name, data) = match event {
            TurnEvent::Text(text) => ("message_delta", json!({ "text": text })),
            TurnEvent::ToolUse { name, input } => ("tool_use", json!({ "name": name, "input": input })),
            TurnEvent::Kept(kept) => match self.completed(&kept) {
                Ok(data) => ("message_completed", data),
                Err(error) => ("error", Refused::from(error).body(&self.asked.origin.request_id)),
            },
            TurnEvent::Failed(error) => ("error", Refused::from(error).body(&self.asked.origin.request_id)),
        };
        // JSON has no line breaks, which would end an event.
        format!("event: {name}\ndata: {data}\n\n").into()
    }

    fn completed(&self, (conversation, message): &Kept) -> domain::Result<Value> {
        let Asking { services, actor, origin, operation } = &self.asked;
        let record = Record::default();
        let cx = Cx { services, actor, origin, operation, record: &record, deadline: None };
        let content = domain::message::content(cx, message)?;
        Ok(json!({
            "conversation": { "id": conversation.id.to_string(), "title": conversation.title },
            "message": {
                "id": message.id.to_string(),
                "role": message.role.as_str(),
                "text": text_of(&content),
                "content": content,
                "usage": message.usage.as_ref().map(crate::model::JsonObject::to_value),
                "createdAt": message.created_at.to_text(),
            },
        }))
    }
}

/// A message that is not answered.
struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<u64>,
}

impl Refused {
    fn bad(message: &str) -> Self {
        let (status, code) = (StatusCode::BAD_REQUEST, Code::BadUserInput.as_str());
        Self { status, code, message: message.to_owned(), retry_after: None }
    }

    fn body(&self, request_id: &str) -> Value {
        json!({ "error": { "code": self.code, "message": self.message }, "requestId": request_id })
    }

    fn into_response(self, request_id: &str) -> Response {
        let mut response = Response::new(Body::from(self.body(request_id).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        if error.code() == Code::Internal {
            tracing::error!(error = &error as &dyn std::error::Error, "a message failed");
        }
        let status = match error.code() {
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::Forbidden => StatusCode::FORBIDDEN,
            Code::BadUserInput => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Conflict => StatusCode::CONFLICT,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Code::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let (code, retry_after) = (error.code().as_str(), error.retry_after());
        Self { status, code, message: error.message().to_owned(), retry_after }
    }
}

impl From<Unexecuted> for Refused {
    fn from(refused: Unexecuted) -> Self {
        let message = refused.errors.first().map(|error| error.message.clone()).unwrap_or_default();
        Self { status: refused.status, code: refused.code, message, retry_after: None }
    }
}
