//! A stream of the API in OpenAI's shape: each of its events as the chunks that say the same.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::body::Bytes;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat_answer::{finish_reason, name, usage};
use super::error::openai_error;
use super::meter::Meter;
use super::sse::events;
use super::stream::Voice;

/// Speaks of one answer.
pub(super) struct Chunks {
    created: i64,
    with_usage: bool,
    id: String,
    model: String,
    /// How many tools were called so far.
    calls: usize,
    meter: Meter,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ApiEvent<'a> {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        content_block: BlockStart,
    },
    ContentBlockDelta {
        #[serde(borrow)]
        delta: Delta<'a>,
    },
    MessageDelta {
        delta: End,
    },
    MessageStop,
    Error {
        error: ErrorDetail,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    id: String,
    model: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockStart {
    ToolUse {
        id: String,
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta<'a> {
    #[serde(rename = "text_delta")]
    Text {
        #[serde(borrow)]
        text: Cow<'a, str>,
    },
    #[serde(rename = "input_json_delta")]
    Input {
        #[serde(borrow)]
        partial_json: Cow<'a, str>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct End {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(rename = "type")]
    kind: String,
    message: String,
}

impl Chunks {
    pub(super) fn new(created: i64, with_usage: bool) -> Self {
        Self { created, with_usage, id: String::new(), model: String::new(), calls: 0, meter: Meter::default() }
    }

    fn say(&mut self, event: ApiEvent<'_>, out: &mut String) {
        match event {
            ApiEvent::MessageStart { message } => {
                (self.id, self.model) = (name(message.id), name(message.model));
                self.choice(&json!({ "role": "assistant", "content": "" }), None, out);
            }
            ApiEvent::ContentBlockStart { content_block: BlockStart::ToolUse { id, name } } => {
                let call = json!({
                    "index": self.calls, "id": id, "type": "function", "function": { "name": name, "arguments": "" },
                });
                self.calls += 1;
                self.choice(&json!({ "tool_calls": [call] }), None, out);
            }
            ApiEvent::ContentBlockDelta { delta: Delta::Text { text } } => {
                self.choice(&json!({ "content": text }), None, out);
            }
            ApiEvent::ContentBlockDelta { delta: Delta::Input { partial_json } } => {
                // Blocks come one after the other: it is the last call that goes on.
                let call = json!({ "index": self.calls.saturating_sub(1), "function": { "arguments": partial_json } });
                self.choice(&json!({ "tool_calls": [call] }), None, out);
            }
            ApiEvent::MessageDelta { delta: End { stop_reason: Some(reason) } } => {
                self.choice(&json!({}), Some(finish_reason(&reason)), out);
            }
            ApiEvent::MessageStop => {
                if self.with_usage {
                    let usage = usage(&self.meter.tokens().0);
                    self.chunk(&json!([]), &usage, out);
                }
                out.push_str("data: [DONE]\n\n");
            }
            ApiEvent::Error { error } => out.push_str(&failed(&error.kind, &error.message)),
            ApiEvent::ContentBlockStart { .. }
            | ApiEvent::ContentBlockDelta { .. }
            | ApiEvent::MessageDelta { .. }
            | ApiEvent::Other => {}
        }
    }

    fn choice(&self, delta: &Value, finish_reason: Option<&str>, out: &mut String) {
        let choices = json!([{ "index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": null }]);
        self.chunk(&choices, &Value::Null, out);
    }

    fn chunk(&self, choices: &Value, usage: &Value, out: &mut String) {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.with_usage {
            chunk["usage"] = usage.clone();
        }
        // Writing to a text does not fail.
        let _ = write!(out, "data: {chunk}\n\n");
    }
}

fn failed(kind: &str, message: &str) -> String {
    format!("data: {}\n\n", openai_error(StatusCode::BAD_GATEWAY, kind, message, None))
}

impl Voice for Chunks {
    // A half of an event could not be translated, and would be missing from the text without a word.
    const TAKES_PIECES: bool = false;

    fn events(&mut self, bytes: Bytes) -> Bytes {
        if self.with_usage {
            self.meter.read_events(&bytes);
        }
        let mut out = String::new();
        for event in events(&bytes) {
            if let Ok(event) = serde_json::from_slice(event.data) {
                self.say(event, &mut out);
            }
        }
        out.into()
    }

    fn ping(&self) -> Bytes {
        // OpenAI's streams have no such event, but any stream may have comments.
        Bytes::from_static(b": ping\n\n")
    }

    fn error(&mut self, kind: &str, message: &str) -> Bytes {
        failed(kind, message).into()
    }
}
