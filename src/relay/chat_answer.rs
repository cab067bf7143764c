//! The API's answer in OpenAI's shape.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{kind, openai_error};
use crate::model::Tokens;

/// A message, as far as it has a counterpart. What Claude thinks has none.
#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) model: String,
    content: Vec<Block>,
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        input: Value,
    },
    #[serde(other)]
    Other,
}

impl Message {
    /// As a `chat.completion`.
    pub(super) fn completion(self, created: i64, tokens: &Tokens) -> Value {
        let (mut text, mut calls) = (None::<String>, Vec::new());
        for block in self.content {
            match block {
                Block::Text { text: more } => text.get_or_insert_default().push_str(&more),
                Block::ToolUse { id, name, input } => calls.push(json!({
                    "id": id, "type": "function", "function": { "name": name, "arguments": input.to_string() },
                })),
                Block::Other => {}
            }
        }
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": message,
                "finish_reason": self.stop_reason.as_deref().map_or("stop", finish_reason),
                "logprobs": null,
            }],
            "usage": usage(tokens),
        })
    }
}

/// Why an answer ended, in OpenAI's words.
pub(super) fn finish_reason(stop_reason: &str) -> &'static str {
    match stop_reason {
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

/// Of the prompt all is told, as OpenAI counts it, and what of it the cache has read.
pub(super) fn usage(tokens: &Tokens) -> Value {
    json!({
        "prompt_tokens": tokens.prompt(),
        "completion_tokens": tokens.output,
        "total_tokens": tokens.total(),
        "prompt_tokens_details": { "cached_tokens": tokens.cache_read },
    })
}

/// The API's error in OpenAI's shape.
pub(super) fn error(status: StatusCode, body: &[u8]) -> String {
    let error: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = error["error"]["message"].as_str().unwrap_or("The upstream refused the request.");
    openai_error(status, error["error"]["type"].as_str().unwrap_or(kind(status)), message, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_tools_is_translated() {
        let message: Message = serde_json::from_value(json!({
            "id": "msg_1", "model": "claude-x", "type": "message", "role": "assistant", "stop_reason": "tool_use",
            "content": [
                { "type": "thinking", "thinking": "…", "signature": "s" },
                { "type": "text", "text": "Let me " }, { "type": "text", "text": "look." },
                { "type": "tool_use", "id": "t1", "name": "f", "input": { "x": 1 } },
            ],
        }))
        .unwrap();
        let tokens = Tokens { input: 5, cache_read: 10, cache_write_5m: 2, output: 3, ..Tokens::default() };
        let completion = message.completion(7, &tokens);
        assert_eq!(
            completion["choices"][0],
            json!({
                "index": 0, "finish_reason": "tool_calls", "logprobs": null,
                "message": {
                    "role": "assistant", "content": "Let me look.", "refusal": null,
                    "tool_calls": [{ "id": "t1", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } }],
                },
            })
        );
        assert_eq!(
            completion["usage"],
            json!({
                "prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20, "prompt_tokens_details": { "cached_tokens": 10 },
            })
        );
    }
}
