//! The log: what stands in a line.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use claviger::logs::{TRACES, subscriber};
use claviger::settings::{Settings, Sources};
use serde_json::{Value, json};

#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(format: &str, level: &str, is_terminal: bool, deed: impl FnOnce()) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let settings = Settings::load(&Sources::from_pairs([("LOG_FORMAT", format), ("LOG_LEVEL", level)])).unwrap();
    let subscriber = subscriber(&settings, None, move || writer.clone(), is_terminal);
    tracing::subscriber::with_default(subscriber, deed);
    captured.text()
}

fn json_line(deed: impl FnOnce()) -> Value {
    let text = logged("json", "info", false, deed);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[derive(Debug)]
struct Outer(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outer")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn the_request_id_stands_in_a_warning_though_nothing_less_is_logged() {
    let text = logged("json", "warn", false, || {
        let _request = tracing::error_span!("request", request_id = "r-1").entered();
        let _trace = tracing::info_span!(target: TRACES, "request", otel.name = "GET /").entered();
        tracing::warn!("careful");
    });
    let mut line: Value = serde_json::from_str(&text).unwrap();
    line["timestamp"].take();
    let expected = json!({ "timestamp": null, "level": "WARN", "target": module_path!(), "message": "careful", "request_id": "r-1" });
    assert_eq!(line, expected);
}

#[test]
fn without_a_collector_a_trace_has_no_spans() {
    logged("json", "trace", false, || assert!(tracing::info_span!(target: TRACES, "request").is_disabled()));
}

#[test]
fn a_json_line_is_flat_and_has_the_request_id_however_deep_it_arises() {
    let mut line = json_line(|| {
        let _request = tracing::info_span!("request", request_id = "r-1", operation = "outer").entered();
        let _inner = tracing::info_span!("inner", operation = "inner", step = 2).entered();
        tracing::info!(target: "here", status = 200, ratio = 0.5, is_new = true, kind = ?Some(1), "an \"answer\"\n");
    });
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    line.as_object_mut().unwrap().remove("timestamp");
    let expected = json!({
        "level": "INFO", "target": "here", "message": "an \"answer\"\n", "status": 200, "ratio": 0.5, "is_new": true,
        "kind": "Some(1)", "request_id": "r-1", "operation": "inner", "step": 2,
    });
    assert_eq!(line, expected);
}

#[test]
fn a_json_line_has_an_errors_causes() {
    let line = json_line(|| {
        let error = Outer(io::Error::other("inner"));
        tracing::error!(error = &error as &dyn std::error::Error, "failed");
    });
    assert_eq!(line["error"], "outer: inner");
}

#[test]
fn a_field_cannot_pose_as_what_each_line_has() {
    let text = logged("json", "info", false, || tracing::info!(level = "ERROR", timestamp = 0, target = 1, "x"));
    assert_eq!((text.matches("\"level\"").count(), text.matches("\"timestamp\"").count()), (1, 1), "{text}");
    assert!(text.contains("\"INFO\""), "{text}");
}

#[test]
fn only_what_the_level_asks_for_is_logged() {
    let deed = || {
        tracing::debug!(target: "one", "quiet");
        tracing::debug!(target: "two", "loud");
    };
    let text = logged("json", "info,two=debug", false, deed);
    assert!(text.contains("loud") && !text.contains("quiet"), "{text}");
}

#[test]
fn lines_for_people_have_the_request_id_and_off_a_terminal_no_colours() {
    let deed = || {
        let _request = tracing::info_span!("request", request_id = "r-1").entered();
        tracing::info!("answered");
    };
    let text = logged("pretty", "info", false, deed);
    assert!(text.contains("r-1") && text.contains("answered") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn text_in_a_field_can_forge_neither_lines_nor_colours() {
    let deed = || tracing::info!(name = "a\n2026 INFO forged\u{1b}[2J", "answered");
    for format in ["json", "pretty"] {
        let text = logged(format, "info", false, deed);
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
