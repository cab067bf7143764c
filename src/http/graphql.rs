//! GraphQL over HTTP: from a request to an answer, by the working group's specification.
//!
//! GET runs queries only and POST takes JSON only, so that no form or image of another site can do a deed.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_graphql::parser::types::OperationType;
use async_graphql::{Response as Answer, ServerError, Value, Variables};
use axum::body::{Body, Bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::coalesced::Reads;
use super::documents::{Document, Rejected};
use super::media_type::{AnswerType, is_json, wants_event_stream, wants_page};
use super::observe::RequestContext;
use super::playground;
use super::request::GraphqlRequest;
use super::router::Server;
use super::{event_stream, rate_limit, websocket};
use crate::audit::Origin;
use crate::crypto::{RawApiKey, SecretText, sha256};
use crate::domain::{quota, whole_seconds};
use crate::graphql::collected::Collected;
use crate::graphql::variables::complete_variables;
use crate::graphql::walls::Refusal;
use crate::graphql::{Caller, finish_errors};
use crate::identity::{Actor, Refused, SentApiKey, SignedIn};
use crate::logs::TRACES;
use crate::upstream::API_KEY;

/// The largest body that is read.
pub(super) const MAX_BODY: usize = 256 * 1024;
/// How much longer than a deed its answer may take: the deed itself is given up at the limit, and says so.
const GRACE: Duration = Duration::from_secs(2);

/// An answer to a request that was not executed.
pub(super) struct Unexecuted {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) errors: Vec<ServerError>,
    /// What the answer has besides.
    pub(super) headers: Box<HeaderMap>,
}

impl Unexecuted {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let mut error = ServerError::new(message, None);
        error.extensions.get_or_insert_default().set("code", code);
        Self { status, code, errors: vec![error], headers: Box::default() }
    }

    /// The caller has had enough for now, and may try again in so many seconds.
    pub(super) fn rate_limited(message: impl Into<String>, retry_after: u64) -> Self {
        let mut refused = Self::new(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED", message);
        for error in &mut refused.errors {
            error.extensions.get_or_insert_default().set("retryAfter", retry_after);
        }
        refused.headers.insert(header::RETRY_AFTER, retry_after.into());
        refused
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_USER_INPUT", message)
    }
}

impl From<Refusal> for Unexecuted {
    fn from(refusal: Refusal) -> Self {
        Self::new(StatusCode::BAD_REQUEST, refusal.code, refusal.message)
    }
}

impl From<Rejected> for Unexecuted {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Refused(refusal) => refusal.into(),
            Rejected::Invalid(errors) => {
                let (status, code) = (StatusCode::BAD_REQUEST, "GRAPHQL_VALIDATION_FAILED");
                Self { status, code, errors, headers: Box::default() }
            }
        }
    }
}

/// `/graphql`, by GET and POST, and where a WebSocket begins; HEAD is GET without the body of its answer.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    Extension(context): Extension<RequestContext>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    body: Body,
) -> Response {
    if let Some(upgrade) = websocket::wanted(&headers, upgrade) {
        return match websocket::accept(&server, &context, &headers, upgrade) {
            Ok(response) => response,
            Err(refused) => unexecuted(refused, AnswerType::Json, &context),
        };
    }
    if method != Method::POST && server.playground && uri.query().is_none() && wants_page(&headers) {
        return ([(header::VARY, "accept")], playground::page().await).into_response();
    }
    let Some(answer_type) = AnswerType::negotiate(&headers) else {
        let message = "The answer can be application/graphql-response+json, application/json or text/event-stream.";
        let refused = Unexecuted::new(StatusCode::NOT_ACCEPTABLE, "BAD_USER_INPUT", message);
        return unexecuted(refused, AnswerType::Json, &context);
    };
    match execute(&server, &context, &method, &uri, &headers, body, answer_type).await {
        Ok(response) => response,
        Err(refused) => {
            server.metrics.graphql_request("none", refused.code);
            let is_wrong_method = refused.status == StatusCode::METHOD_NOT_ALLOWED;
            let mut response = unexecuted(refused, answer_type, &context);
            if is_wrong_method {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            response
        }
    }
}

async fn execute(
    server: &Arc<Server>,
    context: &RequestContext,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
    answer_type: AnswerType,
) -> Result<Response, Unexecuted> {
    let started = Instant::now();
    let (address, deadline) = (context.client_address, started + server.request_timeout);
    let caller = authenticate_by(server, headers, address, deadline).await?.actor;
    // Before anything is made of what was sent: what is refused for that counts, too.
    let limits = rate_limit::admit(server, &caller, address).await?;
    let request = read(method, uri, headers, body, deadline).await?;
    let prepared = prepare(server, request, started).await?;
    let wrong_method = |message: String| Unexecuted::new(StatusCode::METHOD_NOT_ALLOWED, "BAD_USER_INPUT", message);
    match prepared.kind {
        OperationType::Mutation if method != Method::POST => {
            return Err(wrong_method("A mutation can only be sent by POST.".to_owned()));
        }
        OperationType::Subscription if !wants_event_stream(headers) => {
            let message = "A subscription is answered over a WebSocket, or where Accept has text/event-stream.";
            return Err(Unexecuted::bad_request(message));
        }
        OperationType::Query | OperationType::Mutation | OperationType::Subscription => {}
    }
    if method != Method::POST
        && let Some(field) = server.api.post_only(&prepared.operation)
    {
        let message = format!("{field} takes a secret, which must stand in no address: it can only be sent by POST.");
        return Err(wrong_method(message));
    }
    // Once more: the body may have taken its time, and who asks is judged as they are now.
    let asking = authenticate_by(server, headers, address, deadline).await?;
    asking.note_use(server);
    let limits = rate_limit::charge(server, &asking.actor, address, &prepared, limits).await?;
    if prepared.is_subscription() {
        let mut response = event_stream::subscribe(server, context, headers, prepared);
        response.headers_mut().extend(limits);
        return Ok(response);
    }
    let answer = execute_once(server, prepared, asking.actor, origin(context, headers), ()).await;
    let status = match answer_type {
        AnswerType::GraphqlResponse if answer.is_request_error => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    let mut response = respond(status, answer_type, answer.body());
    response.headers_mut().extend(limits);
    if asking.is_refused {
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    Ok(response)
}

/// An operation that has passed the walls.
pub(super) struct Prepared {
    pub(super) operation: Arc<Collected>,
    pub(super) variables: Variables,
    pub(super) kind: OperationType,
    /// Its first field, for the metrics.
    pub(super) field: String,
    started: Instant,
}

impl Prepared {
    pub(super) fn is_mutation(&self) -> bool {
        self.kind == OperationType::Mutation
    }

    pub(super) fn is_subscription(&self) -> bool {
        self.kind == OperationType::Subscription
    }

    /// How many deeds it is.
    pub(super) fn mutations(&self) -> usize {
        if self.is_mutation() { self.operation.root_fields().count() } else { 0 }
    }
}

/// Finds the operation of a request, and holds it to all limits.
pub(super) async fn prepare(
    server: &Server,
    mut request: GraphqlRequest,
    started: Instant,
) -> Result<Prepared, Unexecuted> {
    let document = document(server, &request).await?;
    let (operation, kind) = document.measured.operation(request.operation_name.as_deref())?;
    let types = server.api.types();
    let definition = document.operation(operation).ok_or_else(Refusal::no_operation)?;
    complete_variables(definition, &mut request.variables)?;
    let walls = server.documents.walls();
    walls.check(&document.measured, &document.parsed, types, operation, &request.variables)?;
    let collected = document.collect(operation, &request.variables, types)?;
    let field = document.measured.first_field(operation).to_owned();
    Ok(Prepared { operation: collected, variables: request.variables, kind, field, started })
}

/// What a query or mutation is answered with.
pub(super) struct Executed {
    pub(super) answer: Answer,
    /// Whether nothing was executed, so that there is no data.
    pub(super) is_request_error: bool,
    body: OnceLock<Bytes>,
}

impl Executed {
    fn new(answer: Answer) -> Self {
        let is_request_error = answer.data == Value::Null
            && !answer.errors.is_empty()
            && answer.errors.iter().all(|error| error.path.is_empty() && error.source.is_none());
        Self { answer, is_request_error, body: OnceLock::new() }
    }

    /// As JSON, written once for all who share it.
    fn body(&self) -> Bytes {
        let written = || {
            let body = if self.is_request_error {
                serde_json::to_vec(&serde_json::json!({ "errors": self.answer.errors }))
            } else {
                serde_json::to_vec(&self.answer)
            };
            body.unwrap_or_default().into()
        };
        self.body.get_or_init(written).clone()
    }

    /// The same for one of those who share it: an error names the request that it answers.
    fn finished(self: &Arc<Self>, request_id: &str) -> Arc<Self> {
        if self.answer.errors.is_empty() {
            return self.clone();
        }
        let mut answer = Answer::new(self.answer.data.clone());
        answer.errors.clone_from(&self.answer.errors);
        finish_errors(&mut answer.errors, request_id);
        Arc::new(Self { answer, is_request_error: self.is_request_error, body: OnceLock::new() })
    }
}

/// The same read: of one operation with the same variables for the same caller, who may then read the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Read {
    /// Where the operation is, which stands there for as long as it is executed.
    operation: usize,
    /// The SHA-256 of their JSON: a key is compared under a lock.
    variables: [u8; 32],
    caller: SignedIn,
}

impl Read {
    /// None: nobody else is answered by it.
    fn of(server: &Server, operation: &Arc<Collected>, variables: &Variables, actor: &Actor) -> Option<Self> {
        let caller = actor.signed_in().filter(|_| server.api.is_read(operation))?;
        let variables = sha256(&serde_json::to_vec(variables).ok()?);
        Some(Self { operation: Arc::as_ptr(operation).addr(), variables, caller })
    }
}

/// The reads of GraphQL that go on.
pub(super) type GraphqlReads = Reads<Read, Executed>;

/// Executes a query or a mutation. A mutation is finished, measured and traced though the caller leaves, which it is told; `kept` is
/// dropped when it is done.
pub(super) async fn execute_once(
    server: &Arc<Server>,
    prepared: Prepared,
    actor: Actor,
    origin: Origin,
    kept: impl Send + 'static,
) -> Arc<Executed> {
    let request_id = origin.request_id.clone();
    let is_mutation = prepared.is_mutation();
    let left = CancellationToken::new();
    let _leaving = left.clone().drop_guard();
    let work = measured(server.clone(), prepared, actor, origin, left, kept);
    if !is_mutation {
        return work.await;
    }
    server.tasks.spawn(work.in_current_span()).await.unwrap_or_else(|error| {
        let failed = Executed::new(failed(&crate::domain::Error::internal(error)));
        Arc::new(failed).finished(&request_id)
    })
}

async fn measured(
    server: Arc<Server>,
    prepared: Prepared,
    actor: Actor,
    origin: Origin,
    left: CancellationToken,
    kept: impl Send + 'static,
) -> Arc<Executed> {
    let Prepared { operation, variables, kind, field, started } = prepared;
    let deadline = started + server.request_timeout;
    let request_id = origin.request_id.clone();
    let trace = operation_span(kind, &field, &request_id);
    let read = Read::of(&server, &operation, &variables, &actor);
    let is_read = read.is_some();
    let work = {
        let server = server.clone();
        async move {
            // Those who share a read have come later than the first of them, and may wait longer.
            let deadline = if is_read { Instant::now() + server.request_timeout } else { deadline };
            let caller = caller(&server, actor, origin, deadline, left);
            let answer = server.api.execute(&operation, variables, caller).await;
            drop(kept);
            Executed::new(answer)
        }
    };
    let executed = match read {
        Some(read) => {
            let work = work.instrument(trace.clone()).instrument(Span::current());
            // A task of its own: those who share it are woken once, and one that panics fails for all of them.
            let work = async {
                AbortOnDropHandle::new(tokio::spawn(work))
                    .await
                    .unwrap_or_else(|error| Executed::new(failed(&crate::domain::Error::internal(error))))
            };
            run(&server, server.reads.share(read, work), kind, deadline).await
        }
        None => run(&server, async { Arc::new(work.await) }, kind, deadline).instrument(trace.clone()).await,
    };
    let executed = executed.finished(&request_id);
    let outcome = executed.answer.errors.first().map_or("OK", code_of);
    trace.record("claviger.outcome", outcome);
    server.metrics.graphql_request(&field, outcome);
    server.metrics.graphql_duration(&field, started.elapsed());
    executed
}

/// The span of an execution, for traces; `claviger.outcome` is recorded at its end.
pub(super) fn operation_span(kind: OperationType, field: &str, request_id: &str) -> Span {
    tracing::info_span!(
        target: TRACES,
        "operation",
        otel.name = format!("{kind} {field}"),
        graphql.operation.type = %kind,
        // A socket has many operations within one request.
        claviger.request_id = request_id,
        claviger.outcome = Empty,
    )
}

pub(super) fn caller(
    server: &Server,
    actor: Actor,
    origin: Origin,
    deadline: Instant,
    left: CancellationToken,
) -> Arc<Caller> {
    let record = crate::domain::Record::default();
    Arc::new(Caller { services: server.services.clone(), actor, origin, deadline, left, record })
}

async fn read(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Body,
    deadline: Instant,
) -> Result<GraphqlRequest, Unexecuted> {
    if *method != Method::POST {
        return GraphqlRequest::from_query_string(uri).map_err(Unexecuted::bad_request);
    }
    if !is_json(headers) {
        let message = "The body must be application/json in UTF-8.";
        return Err(Unexecuted::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "BAD_USER_INPUT", message));
    }
    let body = http_body_util::Limited::new(body, MAX_BODY);
    let collected = tokio::time::timeout_at(deadline, http_body_util::BodyExt::collect(body))
        .await
        .map_err(|_| Unexecuted::new(StatusCode::REQUEST_TIMEOUT, "TIMEOUT", "The body did not come in time."))?;
    let bytes: Bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = "The body is larger than 256 KiB.";
            return Err(Unexecuted::new(StatusCode::PAYLOAD_TOO_LARGE, "QUERY_TOO_COMPLEX", message));
        }
        Err(_) => return Err(Unexecuted::bad_request("The body broke off.")),
    };
    GraphqlRequest::from_body(&bytes).map_err(Unexecuted::bad_request)
}

async fn document(server: &Server, request: &GraphqlRequest) -> Result<Arc<Document>, Unexecuted> {
    match (&request.query, request.persisted_hash) {
        (Some(query), Some(hash)) if sha256(query.as_bytes()) != hash => {
            Err(Unexecuted::bad_request("The sha256Hash is not that of the query."))
        }
        (Some(query), hash) => Ok(server.documents.parse(query, hash, &server.api).await?),
        (None, Some(hash)) => server.documents.find(&hash).ok_or_else(|| {
            // The text that Apollo's clients look for, under any status: they send the query after it.
            Unexecuted::new(StatusCode::BAD_REQUEST, "PERSISTED_QUERY_NOT_FOUND", "PersistedQueryNotFound")
        }),
        (None, None) => Err(Unexecuted::bad_request("The parameter query is missing.")),
    }
}

/// Who asks.
pub(super) struct Asking {
    pub(super) actor: Actor,
    /// Whether a token or an API key was sent that opens nothing. Such a caller is nobody: the fields say what needs a sign-in.
    pub(super) is_refused: bool,
    api_key: Option<SentApiKey>,
}

impl Asking {
    /// Nobody.
    fn nobody(is_refused: bool) -> Self {
        Self { actor: Actor::Anonymous, is_refused, api_key: None }
    }

    /// Notes that the API key, if one was sent, is used: by a request or an operation.
    pub(super) fn note_use(&self, server: &Server) {
        if let Some(api_key) = &self.api_key {
            server.services.authenticator.note_use(api_key);
        }
    }
}

/// Looks at who asks, for no longer than a request may take.
pub(super) async fn authenticate(server: &Server, headers: &HeaderMap, address: IpAddr) -> Result<Asking, Unexecuted> {
    authenticate_by(server, headers, address, Instant::now() + server.request_timeout).await
}

async fn authenticate_by(
    server: &Server,
    headers: &HeaderMap,
    address: IpAddr,
    deadline: Instant,
) -> Result<Asking, Unexecuted> {
    match tokio::time::timeout_at(deadline, find_asking(server, headers, address)).await {
        Ok(found) => found,
        Err(late) => Err(not_looked_up(&late)),
    }
}

/// The database could not be asked, or not in time.
fn not_looked_up(error: &(dyn std::error::Error + 'static)) -> Unexecuted {
    tracing::warn!(error, "a token could not be looked up");
    let message = "The server cannot do this at the moment. Try again later.";
    Unexecuted::new(StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", message)
}

async fn find_asking(server: &Server, headers: &HeaderMap, address: IpAddr) -> Result<Asking, Unexecuted> {
    // Which of two would hold? A proxy may have judged by the other.
    for name in [header::AUTHORIZATION, API_KEY] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Unexecuted::bad_request(format!("There are two headers {name}: send one.")));
        }
    }
    // By another scheme than Bearer it is none of ours: that is between the caller and a proxy. Without any it opens nothing.
    let bearer = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.to_str().ok()?.split_once(' '))
        .filter(|parts| parts.is_none_or(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")))
        .map(|parts| parts.map(|(_, token)| token.trim()));
    let key = headers.get(API_KEY).map(|value| value.to_str().ok().map(str::trim));
    let (token, is_key) = match (bearer, key) {
        (None, None) => return Ok(Asking::nobody(false)),
        (Some(bearer), Some(key)) if bearer != key => {
            return Err(Unexecuted::bad_request(
                "Authorization and X-API-Key name different callers: send one of them.",
            ));
        }
        (_, Some(key)) => (key, true),
        (Some(token), None) => (token, token.is_some_and(RawApiKey::is_meant_by)),
    };
    let Some(token) = token else { return Ok(Asking::nobody(true)) };
    let authenticator = &server.services.authenticator;
    let found = if is_key {
        let look_ups = quota::look_ups(&server.services, address);
        let found = authenticator.authenticate_api_key(SecretText::from(token.to_owned()), look_ups).await;
        found.map(|(actor, api_key)| (actor, Some(api_key)))
    } else {
        authenticator.authenticate(token).await.map(|actor| (actor, None))
    };
    match found {
        Ok((actor, api_key)) => Ok(Asking { actor, is_refused: false, api_key }),
        Err(Refused::Invalid) => Ok(Asking::nobody(true)),
        Err(Refused::Limited(wait)) => {
            let message = "Too many API keys were sent that are none. Try again later.";
            Err(Unexecuted::rate_limited(message, whole_seconds(wait)))
        }
        Err(Refused::Store(error)) => Err(not_looked_up(&error)),
    }
}

pub(super) fn origin(context: &RequestContext, headers: &HeaderMap) -> Origin {
    const MAX_USER_AGENT: usize = 256;
    let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    Origin {
        ip_address: Some(context.client_address),
        user_agent: user_agent.map(|text| text.chars().take(MAX_USER_AGENT).collect()),
        request_id: context.request_id.clone(),
    }
}

/// Runs the operation. A mutation is finished though nobody waits for it: what it did is on record.
async fn run(
    server: &Server,
    work: impl Future<Output = Arc<Executed>> + Send + 'static,
    kind: OperationType,
    deadline: Instant,
) -> Arc<Executed> {
    let failed = |error: &crate::domain::Error| Arc::new(Executed::new(failed(error)));
    let timed = match kind {
        OperationType::Mutation => {
            let task = server.tasks.spawn(work.in_current_span());
            tokio::time::timeout_at(deadline + GRACE, task)
                .await
                .map(|done| done.unwrap_or_else(|error| failed(&crate::domain::Error::internal(error))))
        }
        OperationType::Query | OperationType::Subscription => tokio::time::timeout_at(deadline, work).await,
    };
    timed.unwrap_or_else(|_| failed(&crate::domain::Error::timeout()))
}

pub(super) fn failed(error: &crate::domain::Error) -> Answer {
    if error.code() == crate::domain::Code::Internal {
        tracing::error!(error = std::error::Error::source(error), "executing a request failed");
    }
    let mut server_error = ServerError::new(error.message().to_owned(), None);
    server_error.extensions.get_or_insert_default().set("code", error.code().as_str());
    server_error.source = Some(Arc::new(()));
    Answer::from_errors(vec![server_error])
}

pub(super) fn code_of(error: &ServerError) -> &str {
    match error.extensions.as_ref().and_then(|extensions| extensions.get("code")) {
        Some(Value::String(code)) => code,
        _ => "INTERNAL_SERVER_ERROR",
    }
}

fn unexecuted(mut refused: Unexecuted, answer_type: AnswerType, context: &RequestContext) -> Response {
    // By the specification: as JSON, a request that is well formed but whose document is not good is answered with 200.
    let is_document = matches!(
        refused.code,
        "GRAPHQL_PARSE_FAILED" | "GRAPHQL_VALIDATION_FAILED" | "QUERY_TOO_COMPLEX" | "PERSISTED_QUERY_NOT_FOUND"
    );
    let status = match answer_type {
        AnswerType::Json | AnswerType::EventStream if is_document && refused.status == StatusCode::BAD_REQUEST => {
            StatusCode::OK
        }
        _ => refused.status,
    };
    // A browser's EventSource tells nothing of an answer that is not 200: there the status is for what is no GraphQL at all.
    let answer_type =
        if status == StatusCode::OK || answer_type != AnswerType::EventStream { answer_type } else { AnswerType::Json };
    finish_errors(&mut refused.errors, &context.request_id);
    let body = serde_json::json!({ "errors": refused.errors });
    let mut response = respond(status, answer_type, body.to_string().into());
    response.headers_mut().extend(*refused.headers);
    response
}

fn respond(status: StatusCode, answer_type: AnswerType, body: Bytes) -> Response {
    let body = if answer_type == AnswerType::EventStream { event_stream::whole(&body).into() } else { body };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer_type.content_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept, authorization, x-api-key"));
    response
}
