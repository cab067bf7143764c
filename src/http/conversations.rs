//! `POST /v1/conversations/{id}/messages`: says something in a conversation, and tells the answer as it comes, by server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::Span;

use super::graphql::{Unexecuted, authenticate, origin};
use super::live::{Asker, Held, concerning};
use super::observe::RequestContext;
use super::rate_limit;
use super::router::Server;
use super::serve::{Handled, Handling};
use super::subscription::End;
use crate::crypto::SecretText;
use crate::domain::message::text_of;
use crate::domain::turn::{Asking, Kept, Send, Streamed, TurnEvent, may_say, stream};
use crate::domain::{self, Code, Cx, Error, Record};
use crate::graphql::log_error;
use crate::relay::ACCEL_BUFFERING;

/// The largest body: the longest text, each character escaped.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// The field, as the audit log and the metrics name it.
const OPERATION: &str = "messageStream";

#[derive(Default, Deserialize)]
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
    Extension(handling): Extension<Handling>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut limits = HeaderMap::new();
    let answer = begin(&server, id, &context, &headers, body, &mut limits, handling.one()).await;
    let code = answer.as_ref().map_or_else(|refused| refused.code, |_| "OK");
    server.metrics.graphql_request(OPERATION, code);
    let mut response = answer
        .map_or_else(|refused| refused.into_response(&context.request_id), |started| started.into_response(&server));
    response.headers_mut().extend(limits);
    response
}

async fn begin(
    server: &Arc<Server>,
    id: String,
    context: &RequestContext,
    headers: &HeaderMap,
    body: Body,
    limits: &mut HeaderMap,
    handled: Handled,
) -> Result<Started, Refused> {
    let address = context.client_address;
    let changes = server.services.authenticator.changes();
    let asking = authenticate(server, headers, address).await?;
    if asking.is_refused {
        return Err(Error::unauthenticated().into());
    }
    *limits = rate_limit::admit(server, &asking.actor, address).await?;
    // Of those who may say nothing nothing is read: they are refused, which is put on record.
    let input = if may_say(&asking.actor).is_ok() { read(server, body).await? } else { Input::default() };
    asking.note_use(server);
    let asked = Asking {
        services: server.services.clone(),
        actor: asking.actor,
        origin: origin(context, headers),
        operation: OPERATION.to_owned(),
    };
    let input =
        Send { conversation_id: Some(id), text: SecretText::from(input.text), model: input.model, tools: input.tools };
    let Some(held) = server.live.hold(&asked.actor, address) else {
        return Err(Error::rate_limited("You have too many open sockets and streams.", Duration::from_secs(1)).into());
    };
    let caller = Asker { headers: headers.clone(), context: context.clone() };
    let ended =
        Box::pin(caller.ended(server.clone(), concerning(changes, &asked.actor), |actor| may_say(actor).is_ok()));
    let streamed = stream(asked.clone(), input);
    let mut started =
        Started { asked, streamed, ended, first: None, span: Span::current(), _held: held, _handled: handled };
    // What is refused at once has a status of its own.
    match started.next(server).await {
        Told::Event(TurnEvent::Failed(error)) | Told::Ended(error) => Err(error.into()),
        first => {
            started.first = Some(first);
            Ok(started)
        }
    }
}

async fn read(server: &Server, body: Body) -> Result<Input, Refused> {
    let read = tokio::time::timeout(server.request_timeout, Limited::new(body, MAX_BODY).collect()).await;
    let body = match read {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) => return Err(Refused::bad("The body is too large, or broke off.")),
        Err(_) => return Err(Error::timeout().into()),
    };
    serde_json::from_slice(&body)
        .map_err(|_| Refused::bad("The body is not a JSON object with text, and perhaps model and tools."))
}

/// An answer that is waited for, or has begun.
struct Started {
    asked: Asking,
    streamed: Streamed,
    /// What the caller came with opens nothing any more.
    ended: Pin<Box<dyn Future<Output = End> + std::marker::Send>>,
    first: Option<Told>,
    /// The request's, which is over before its answer is.
    span: Span,
    _held: Held,
    /// A server that stops lets it be told to its end, which comes soon: what is kept is not to be said again.
    _handled: Handled,
}

/// What the caller is told next.
enum Told {
    Event(TurnEvent),
    /// Nothing has happened; but somebody is there.
    Silence,
    /// Nothing more.
    Ended(Error),
}

impl Started {
    async fn next(&mut self, server: &Server) -> Told {
        tokio::select! {
            biased;
            // Before what is answered: that is not theirs to read any more.
            _ = &mut self.ended => Told::Ended(Error::refused("What you came with opens this no more.")),
            event = self.streamed.next() => {
                event.map_or_else(|| Told::Ended(Error::away("The answer broke off.")), Told::Event)
            }
            () = tokio::time::sleep(server.live.limits.keep_alive) => Told::Silence,
        }
    }

    fn into_response(self, server: &Arc<Server>) -> Response {
        let server = server.clone();
        let events = futures_util::stream::unfold(Some(self), move |started| {
            let server = server.clone();
            async move {
                let mut started = started?;
                let told = match started.first.take() {
                    Some(first) => first,
                    None => started.next(&server).await,
                };
                let (bytes, is_over) = match told {
                    Told::Silence => (Bytes::from_static(b":\n\n"), false),
                    Told::Ended(error) => (started.told(TurnEvent::Failed(error)), true),
                    Told::Event(event) => {
                        let is_over = matches!(event, TurnEvent::Kept(_) | TurnEvent::Failed(_));
                        (started.told(event), is_over)
                    }
                };
                Some((Ok::<_, Infallible>(bytes), (!is_over).then_some(started)))
            }
        });
        let mut response = Response::new(Body::from_stream(events));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
        response
    }

    fn told(&self, event: TurnEvent) -> Bytes {
        let (name, data) = match event {
            TurnEvent::Text(text) => ("message_delta", json!({ "text": text })),
            TurnEvent::ToolUse { name, input } => ("tool_use", json!({ "name": name, "input": input })),
            TurnEvent::Kept(kept) => match self.completed(&kept) {
                Ok(data) => ("message_completed", data),
                Err(error) => ("error", self.refused(error)),
            },
            TurnEvent::Failed(error) => ("error", self.refused(error)),
        };
        // JSON has no line breaks, which would end an event.
        format!("event: {name}\ndata: {data}\n\n").into()
    }

    fn refused(&self, error: Error) -> Value {
        self.span.in_scope(|| Refused::from(error)).body(&self.asked.origin.request_id)
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
    headers: HeaderMap,
}

impl Refused {
    fn bad(message: &str) -> Self {
        let (status, code) = (StatusCode::BAD_REQUEST, Code::BadUserInput.as_str());
        Self { status, code, message: message.to_owned(), headers: HeaderMap::new() }
    }

    fn body(&self, request_id: &str) -> Value {
        json!({ "error": { "code": self.code, "message": self.message }, "requestId": request_id })
    }

    fn into_response(self, request_id: &str) -> Response {
        let mut response = Response::new(Body::from(self.body(request_id).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        *headers = self.headers;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        log_error(&error);
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
        let headers = error.retry_after().map(|seconds| (header::RETRY_AFTER, seconds.into()));
        Self {
            status,
            code: error.code().as_str(),
            message: error.message().to_owned(),
            headers: headers.into_iter().collect(),
        }
    }
}

impl From<Unexecuted> for Refused {
    fn from(refused: Unexecuted) -> Self {
        let message = refused.errors.first().map(|error| error.message.clone()).unwrap_or_default();
        Self { status: refused.status, code: refused.code, message, headers: *refused.headers }
    }
}
