//! The one translation of errors: what a caller sees, and what only the log sees.

use std::error::Error as _;
use std::sync::Arc;

use async_graphql::{ErrorExtensionValues, ServerError, Value};

use crate::domain::{self, Code};

/// The most characters of a message of the library.
const MAX_MESSAGE: usize = 500;

/// The result of a resolver.
pub(super) type Result<T> = std::result::Result<T, Failure>;

/// The only error that resolvers return. It has no `Display`, so that nothing else converts into the library's error.
#[derive(Clone)]
pub(super) struct Failure(Arc<domain::Error>);

impl<E: Into<domain::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Arc::new(error.into()))
    }
}

impl From<Failure> for async_graphql::Error {
    fn from(failure: Failure) -> Self {
        Self { message: failure.0.message().to_owned(), source: Some(failure.0), extensions: None }
    }
}

/// The deed's error behind a response's error.
pub(super) fn source(error: &ServerError) -> Option<&domain::Error> {
    error.source::<domain::Error>()
}

/// Gives each error its code and the request's id, and keeps from the caller what is none of theirs.
pub fn finish_errors(errors: &mut [ServerError], request_id: &str) {
    for error in errors {
        let extensions = error.extensions.get_or_insert_default();
        extensions.set("requestId", request_id);
        if let Some(source) = error.source.as_ref().and_then(|source| source.downcast_ref::<domain::Error>()) {
            extensions.set("code", source.code().as_str());
            set_fields(extensions, source);
            if let Some(seconds) = source.retry_after() {
                extensions.set("retryAfter", seconds);
            }
            log_error(source);
        } else if extensions.get("code").is_none() {
            // The library's own: it has no path where the document was refused, and one where an input could not be read.
            let code = if error.path.is_empty() { "GRAPHQL_VALIDATION_FAILED" } else { Code::BadUserInput.as_str() };
            extensions.set("code", code);
            // It repeats what was sent.
            if let Some((end, _)) = error.message.char_indices().nth(MAX_MESSAGE) {
                error.message.truncate(end);
            }
        }
    }
}

fn set_fields(extensions: &mut ErrorExtensionValues, source: &domain::Error) {
    if source.fields().is_empty() {
        return;
    }
    let fields = source.fields().iter().map(|field| {
        Value::from_json(serde_json::json!({ "path": field.path, "message": field.message })).unwrap_or_default()
    });
    extensions.set("fields", fields.collect::<Vec<_>>());
}

/// Logs what only the log sees.
pub fn log_error(error: &domain::Error) {
    let cause = error.source().unwrap_or(error);
    match error.code() {
        Code::Internal => tracing::error!(error = cause, "an internal error was answered"),
        Code::ServiceUnavailable => tracing::warn!(error = cause, "something that is needed is away"),
        _ => {}
    }
}
