//! A log line for machines: one flat JSON object.
//!
//! `timestamp` (RFC 3339, UTC), `level` and `target` stand in each, `message` in nearly each; then come the fields of the
//! event and of the spans around it, such as `request_id`. Of two with one name the innermost stands.

use std::error::Error;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats an event as a line.
pub(super) struct Line;

#[derive(Serialize)]
struct Content<'a> {
    timestamp: String,
    level: &'a str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl<S: Subscriber + for<'l> LookupSpan<'l>> FormatEvent<S, JsonFields> for Line {
    fn format_event(
        &self,
        scope: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Map::new();
        for span in scope.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(text) = span.extensions().get::<FormattedFields<JsonFields>>()
                && let Ok(Value::Object(more)) = serde_json::from_str(text)
            {
                fields.extend(more);
            }
        }
        event.record(&mut Fields(&mut fields));
        let message = fields.remove("message");
        // A field of such a name would make a line with two values for one key, which readers understand differently.
        for reserved in ["timestamp", "level", "target"] {
            fields.remove(reserved);
        }
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        let content =
            Content { timestamp, level: metadata.level().as_str(), target: metadata.target(), message, fields };
        writeln!(writer, "{}", serde_json::to_string(&content).map_err(|_| fmt::Error)?)
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().trim_start_matches("r#").to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    /// With its causes: they are why it is logged.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        self.insert(field, text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }
}
