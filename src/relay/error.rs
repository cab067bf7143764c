//! What the relay refuses by itself, in the shape that the caller's SDK knows. What an upstream says is passed on as it is.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::json;

use crate::domain::{self, Code, whole_seconds};

/// The header that names a request to the caller.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// Tells the SDKs whether to try again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

pub(super) type Result<T, E = Refusal> = std::result::Result<T, E>;

/// In whose shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Anthropic,
    OpenAi,
}

/// A request that the relay does not pass on, or that no upstream has answered.
#[derive(Debug)]
pub(super) struct Refusal(Box<Details>);

#[derive(Debug)]
struct Details {
    status: StatusCode,
    /// By the API's list of error types.
    kind: &'static str,
    message: Cow<'static, str>,
    /// The parameter that it is about.
    parameter: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    should_retry: Option<bool>,
    headers: HeaderMap,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Details {
            status,
            kind: kind(status),
            message: message.into(),
            parameter: None,
            retry_after: None,
            should_retry: None,
            headers: HeaderMap::new(),
        }))
    }

    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A parameter that cannot be passed on.
    pub(super) fn parameter(name: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        let mut refusal = Self::bad_request(message);
        refusal.0.parameter = Some(name.into());
        refusal
    }

    /// The key is none that opens anything.
    pub(super) fn unauthenticated(message: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(super) fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// All accounts are busy, or not to be asked for a while.
    pub(super) fn overloaded(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(overloaded(), message).after(retry_after)
    }

    /// The caller has had enough for now.
    pub(super) fn rate_limited(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).after(retry_after)
    }

    /// When it may be tried again.
    pub(super) fn after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// To try again soon is of no use: SDKs would by themselves.
    pub(super) fn for_good(mut self) -> Self {
        self.0.should_retry = Some(false);
        self
    }

    /// It was answered, and is charged for: to ask again would cost as much again. No time for that is told either, by which some go
    /// alone.
    pub(super) fn paid_for(mut self) -> Self {
        self.0.retry_after = None;
        self.for_good()
    }

    /// With headers that its answer has besides.
    pub(super) fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.0.headers.extend(headers);
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    pub(super) fn kind(&self) -> &'static str {
        self.0.kind
    }

    pub(super) fn into_response(self, shape: Shape, request_id: &str) -> Response {
        let Details { status, kind, message, parameter, retry_after, should_retry, headers } = *self.0;
        let body = match shape {
            Shape::Anthropic => anthropic_error(kind, &message, Some(request_id)),
            Shape::OpenAi => openai_error(status, kind, &message, parameter.as_deref()),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let own = response.headers_mut();
        own.extend(headers);
        own.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            own.insert(REQUEST_ID, id);
        }
        if let Some(wait) = retry_after {
            own.insert(header::RETRY_AFTER, whole_seconds(wait).max(1).into());
        }
        if let Some(should) = should_retry {
            own.insert(SHOULD_RETRY, HeaderValue::from_static(if should { "true" } else { "false" }));
        }
        response
    }
}

/// What the API answers with where it is overloaded.
pub(super) fn overloaded() -> StatusCode {
    const OVERLOADED: u16 = 529;
    StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// The type of an error, by its status.
pub(super) fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// The status of an error that was told by its type alone.
pub(super) fn status_of(kind: &str) -> StatusCode {
    match kind {
        "invalid_request_error" => StatusCode::BAD_REQUEST,
        "authentication_error" => StatusCode::UNAUTHORIZED,
        "billing_error" => StatusCode::PAYMENT_REQUIRED,
        "permission_error" => StatusCode::FORBIDDEN,
        "not_found_error" => StatusCode::NOT_FOUND,
        "conflict_error" => StatusCode::CONFLICT,
        "request_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "rate_limit_error" => StatusCode::TOO_MANY_REQUESTS,
        "timeout_error" => StatusCode::GATEWAY_TIMEOUT,
        "overloaded_error" => overloaded(),
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// With the request's name, where it has one.
pub(super) fn anthropic_error(kind: &str, message: &str, request_id: Option<&str>) -> String {
    let mut error = json!({ "type": "error", "error": { "type": kind, "message": message } });
    if let Some(id) = request_id {
        error["request_id"] = id.into();
    }
    error.to_string()
}

/// The types are OpenAI's where there is one for it.
pub(super) fn openai_error(status: StatusCode, kind: &str, message: &str, parameter: Option<&str>) -> String {
    let (kind, code) = match status.as_u16() {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        429 => ("requests", Some("rate_limit_exceeded")),
        500..=599 => ("server_error", Some(kind)),
        _ => ("invalid_request_error", None),
    };
    json!({ "error": { "message": message, "type": kind, "param": parameter, "code": code } }).to_string()
}

impl From<domain::Error> for Refusal {
    fn from(error: domain::Error) -> Self {
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
        if matches!(error.code(), Code::Internal | Code::ServiceUnavailable) {
            tracing::error!(error = std::error::Error::source(&error), "the relay could not do its work");
        }
        let refusal = Self::new(status, error.message().to_owned());
        match error.retry_after() {
            Some(seconds) => refusal.after(Duration::from_secs(seconds)),
            None => refusal,
        }
    }
}
