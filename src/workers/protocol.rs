//! The language of the Claude CLI's print mode: `stream-json`, a JSON object a line, both ways.

use serde::Deserialize;
use serde_json::{Value, json};

/// Asks a process whether it is ready.
pub(super) fn initialize() -> String {
    control("start", "initialize")
}

/// Asks it to end the turn.
pub(super) fn interrupt() -> String {
    control("stop", "interrupt")
}

fn control(id: &str, subtype: &str) -> String {
    line(&json!({ "type": "control_request", "request_id": id, "request": { "subtype": subtype } }))
}

/// Says something. What begins with a slash would be taken for a command of the CLI's own.
pub(super) fn message(text: &str) -> String {
    let text = if text.trim_start().starts_with('/') { format!(" {}", text.trim_start()) } else { text.to_owned() };
    line(&json!({ "type": "user", "message": { "role": "user", "content": [{ "type": "text", "text": text }] } }))
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// What a process says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    /// It is ready.
    Ready,
    /// A piece of text.
    Text(String),
    /// An answer of the API begins, by this model.
    Begins(String),
    /// Blocks that Claude has said.
    Said(Vec<Value>),
    /// What tools have answered.
    Answered(Vec<Value>),
    /// The turn is over.
    Over(Over),
    /// Something else.
    Other,
}

/// How a turn has ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Over {
    #[serde(default)]
    pub(super) is_error: bool,
    #[serde(default)]
    pub(super) subtype: String,
    pub(super) api_error_status: Option<u16>,
    pub(super) result: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Raw {
    ControlResponse {
        response: ControlResponse,
    },
    StreamEvent {
        event: StreamEvent,
        parent_tool_use_id: Option<String>,
    },
    Assistant {
        message: ApiMessage,
        parent_tool_use_id: Option<String>,
    },
    User {
        message: ApiMessage,
        parent_tool_use_id: Option<String>,
    },
    Result(Over),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct ControlResponse {
    #[serde(default)]
    request_id: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart {
        message: ApiMessage,
    },
    ContentBlockDelta {
        delta: Delta,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
}

#[derive(Deserialize)]
struct ApiMessage {
    #[serde(default)]
    content: Value,
    model: Option<String>,
}

/// What stands as the model of what the CLI says by itself, as of an error.
const SYNTHETIC: &str = "<synthetic>";

/// Reads a line; none: it is not one of the language.
pub(super) fn read(line: &[u8]) -> Option<Line> {
    // What another agent says within a tool is that tool's.
    Some(match serde_json::from_slice(line).ok()? {
        Raw::ControlResponse { response } if response.request_id == "start" => Line::Ready,
        Raw::StreamEvent { event: StreamEvent::MessageStart { message }, parent_tool_use_id: None } => {
            message.model.map_or(Line::Other, Line::Begins)
        }
        Raw::StreamEvent { event: StreamEvent::ContentBlockDelta { delta }, parent_tool_use_id: None } => {
            delta.text.map_or(Line::Other, Line::Text)
        }
        Raw::Assistant { message, parent_tool_use_id: None } if message.model.as_deref() != Some(SYNTHETIC) => {
            Line::Said(blocks(message.content, &["text", "tool_use"]))
        }
        Raw::User { message, parent_tool_use_id: None } => Line::Answered(blocks(message.content, &["tool_result"])),
        Raw::Result(over) => Line::Over(over),
        _ => Line::Other,
    })
}

/// The blocks of these kinds. How Claude thinks belongs to the turn, and is not kept.
fn blocks(content: Value, kinds: &[&str]) -> Vec<Value> {
    let Value::Array(blocks) = content else { return Vec::new() };
    let is_meant = |block: &Value| block["type"].as_str().is_some_and(|kind| kinds.contains(&kind));
    blocks.into_iter().filter(is_meant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_cli_writes_them() {
        for (line, read_as) in [
            (
                r#"{"type":"control_response","response":{"subtype":"success","request_id":"start","response":{}}}"#,
                Line::Ready,
            ),
            (
                r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}},"session_id":"s","parent_tool_use_id":null}"#,
                Line::Text("Hi".to_owned()),
            ),
            (
                r#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hi"}},"parent_tool_use_id":"t"}"#,
                Line::Other,
            ),
            (
                r#"{"type":"stream_event","event":{"type":"message_start","message":{"model":"m","content":[],"usage":{"input_tokens":5}}},"parent_tool_use_id":null}"#,
                Line::Begins("m".to_owned()),
            ),
            (
                r#"{"type":"stream_event","event":{"type":"message_start","message":{"model":"m"}},"parent_tool_use_id":"t"}"#,
                Line::Other,
            ),
            (r#"{"type":"stream_event","event":{"type":"message_delta","usage":{"output_tokens":7}}}"#, Line::Other),
            (
                r#"{"type":"assistant","message":{"model":"<synthetic>","content":[{"type":"text","text":"API Error"}]},"parent_tool_use_id":null}"#,
                Line::Other,
            ),
            (
                r#"{"type":"assistant","message":{"content":[{"type":"thinking"},{"type":"text","text":"Hi"}]},"parent_tool_use_id":null}"#,
                Line::Said(vec![json!({ "type": "text", "text": "Hi" })]),
            ),
            (
                r#"{"is_error":true,"subtype":"success","api_error_status":529,"result":"Overloaded","total_cost_usd":0,"type":"result"}"#,
                Line::Over(Over {
                    is_error: true,
                    subtype: "success".to_owned(),
                    api_error_status: Some(529),
                    result: Some("Overloaded".to_owned()),
                }),
            ),
            (r#"{"type":"system","subtype":"init"}"#, Line::Other),
            (r#"{"type":"anything","new":1}"#, Line::Other),
        ] {
            assert_eq!(read(line.as_bytes()), Some(read_as), "{line}");
        }
        for garbage in ["", "null", "Warning: …", "{\"type\":\"assistant\"", "[]"] {
            assert_eq!(read(garbage.as_bytes()), None, "{garbage}");
        }
    }

    #[test]
    fn no_message_is_a_command() {
        for (text, sent) in
            [("/clear", " /clear"), ("\n /clear", " /clear"), ("a /clear", "a /clear"), ("1\n2", "1\n2")]
        {
            let line = message(text);
            assert_eq!(line.matches('\n').count(), 1);
            let value: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["message"]["content"][0]["text"], sent);
        }
    }
}
