//! The API's answer in OpenAI's shape.

use std::borrow::Cow;
use std::fmt;

use axum::http::StatusCode;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::{kind, openai_error};
use crate::model::Tokens;

/// The longest name that an upstream's answer goes by.
const MOST_NAME: usize = 200;

/// A message, as far as it has a counterpart. What Claude thinks has none. It is never read into values, which take many times as much
/// as its text.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    id: String,
    model: String,
    #[serde(borrow)]
    content: Content<'a>,
    stop_reason: Option<String>,
}

/// What its blocks come to.
#[derive(Default)]
struct Content<'a> {
    text: Option<String>,
    calls: Vec<Call<'a>>,
}

#[derive(Serialize)]
struct Call<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: String,
    arguments: &'a str,
}

/// Each field by itself: of blocks that are not known here nobody knows what stands in them.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
}

impl<'a> Content<'a> {
    /// What cannot be read of what is known makes the answer one that cannot be.
    fn add(&mut self, block: &Block<'a>) -> Result<(), &'static str> {
        fn text(told: Option<&RawValue>) -> Result<String, &'static str> {
            let told = told.and_then(|told| serde_json::from_str(told.get()).ok());
            told.ok_or("a block lacks a text")
        }
        match &*block.kind {
            "text" => self.text.get_or_insert_default().push_str(&text(block.text)?),
            "tool_use" => {
                let arguments = block.input.ok_or("a call lacks its input")?.get();
                let function = Function { name: text(block.name)?, arguments };
                self.calls.push(Call { id: text(block.id)?, kind: "function", function });
            }
            _ => {}
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of blocks")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<Content<'de>, A::Error> {
        let mut content = Content::default();
        while let Some(block) = blocks.next_element::<Block<'de>>()? {
            content.add(&block).map_err(serde::de::Error::custom)?;
        }
        Ok(content)
    }
}

/// A `chat.completion`.
#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    choices: [Choice<'a>; 1],
    usage: Value,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Said<'a>,
    finish_reason: &'static str,
    logprobs: (),
}

#[derive(Serialize)]
struct Said<'a> {
    role: &'static str,
    content: Option<String>,
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

impl Message<'_> {
    /// As a `chat.completion`, in JSON.
    pub(super) fn completion(self, created: i64, tokens: &Tokens) -> serde_json::Result<String> {
        let message =
            Said { role: "assistant", content: self.content.text, refusal: (), tool_calls: self.content.calls };
        let finish_reason = self.stop_reason.as_deref().map_or("stop", finish_reason);
        serde_json::to_string(&Completion {
            id: self.id,
            object: "chat.completion",
            created,
            model: self.model,
            choices: [Choice { index: 0, message, finish_reason, logprobs: () }],
            usage: usage(tokens),
        })
    }
}

/// A name by which an upstream's stream goes, in each of its events: no longer than names are.
pub(super) fn name(name: String) -> String {
    if name.len() <= MOST_NAME { name } else { name.chars().take(MOST_NAME).collect() }
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
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Detail<'a>,
    }
    #[derive(Default, Deserialize)]
    struct Detail<'a> {
        #[serde(rename = "type", borrow)]
        kind: Option<Cow<'a, str>>,
        #[serde(borrow)]
        message: Option<Cow<'a, str>>,
    }
    let told = serde_json::from_slice::<Body<'_>>(body).map(|body| body.error).unwrap_or_default();
    let message = told.message.as_deref().unwrap_or("The upstream refused the request.");
    openai_error(status, told.kind.as_deref().unwrap_or(kind(status)), message, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_tools_is_translated() {
        let text = json!({
            "id": "msg_1", "model": "claude-x", "type": "message", "role": "assistant", "stop_reason": "tool_use",
            "content": [
                { "type": "thinking", "thinking": "…", "signature": "s" },
                { "type": "text", "text": "Let me " }, { "type": "text", "text": "look." },
                { "type": "new", "text": { "id": 7 } },
                { "type": "tool_use", "id": "t1", "name": "f", "input": { "x": 1 } },
            ],
        })
        .to_string();
        let message: Message<'_> = serde_json::from_str(&text).unwrap();
        let tokens = Tokens { input: 5, cache_read: 10, cache_write_5m: 2, output: 3, ..Tokens::default() };
        let completion: Value = serde_json::from_str(&message.completion(7, &tokens).unwrap()).unwrap();
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
