//! A request in OpenAI's shape, as the API takes it. What has no counterpart is refused by its name, rather than left out in silence.

use axum::body::Bytes;
use serde_json::{Map, Value, json};

use super::error::{Refusal, Result};

/// The length of an answer where the caller names none: the API asks for one.
const MAX_TOKENS: u64 = 8_192;

/// A request that was translated.
#[derive(Debug)]
pub(super) struct Translated {
    pub(super) body: Bytes,
    /// Whether the caller wants the answer as a stream.
    pub(super) is_streamed: bool,
    /// Whether a stream is to end with the usage.
    pub(super) with_usage: bool,
}

/// Translates a request.
pub(super) fn translate(body: &[u8]) -> Result<Translated> {
    let request: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("The body cannot be read: {error}.")))?;
    let mut with_usage = false;
    let mut message = Map::new();
    let (mut choice, mut is_parallel) = (None::<Map<String, Value>>, None);
    for (name, value) in object(request, "The body")? {
        let is_default = match name.as_str() {
            _ if value.is_null() => true,
            "n" => value == 1,
            "frequency_penalty" | "presence_penalty" => value.as_f64() == Some(0.0),
            "logprobs" | "store" => value == false,
            "logit_bias" => value.as_object().is_some_and(Map::is_empty),
            "response_format" => value == json!({ "type": "text" }),
            "modalities" => value == json!(["text"]),
            "service_tier" => value == "auto" || value == "default",
            _ => false,
        };
        if is_default {
            continue;
        }
        match name.as_str() {
            "model" | "top_p" | "stream" => drop(message.insert(name, value)),
            "messages" => {
                let Conversation { system, messages } = Conversation::read(value)?;
                if !system.is_empty() {
                    message.insert("system".to_owned(), system.into());
                }
                message.insert(name, messages.into());
            }
            "max_tokens" | "max_completion_tokens" => {
                let known = message.insert("max_tokens".to_owned(), value);
                if known.is_some_and(|known| known != message["max_tokens"]) {
                    return Err(wrong("max_completion_tokens", "is another number than max_tokens. Send one of them"));
                }
            }
            "temperature" if value.as_f64().is_some_and(|warmth| (0.0..=1.0).contains(&warmth)) => {
                message.insert(name, value);
            }
            "temperature" => return Err(Refusal::parameter(name, "temperature: Claude takes 0 to 1.")),
            "stop" => {
                let stops = if value.is_string() { json!([value]) } else { value };
                message.insert("stop_sequences".to_owned(), stops);
            }
            "user" | "safety_identifier" => drop(message.insert("metadata".to_owned(), json!({ "user_id": value }))),
            "tools" => drop(message.insert(name, tools(value)?.into())),
            "tool_choice" => choice = Some(tool_choice(&value)?),
            "parallel_tool_calls" => {
                is_parallel = Some(value.as_bool().ok_or_else(|| wrong(name, "must be true or false"))?);
            }
            "stream_options" => {
                for (option, value) in object(value, "stream_options")? {
                    match option.as_str() {
                        "include_usage" => with_usage = value == true,
                        _ if value.is_null() || value == false => {}
                        _ => return Err(unknown(format!("stream_options.{option}"))),
                    }
                }
            }
            _ => return Err(unknown(name)),
        }
    }
    message.entry("max_tokens").or_insert_with(|| MAX_TOKENS.into());
    if let Some(choice) = how_tools_are_used(choice, is_parallel, message.contains_key("tools"))? {
        message.insert("tool_choice".to_owned(), choice.into());
    }
    let is_streamed = message.get("stream").is_some_and(|stream| *stream == true);
    Ok(Translated { body: Value::Object(message).to_string().into(), is_streamed, with_usage })
}

fn unknown(name: String) -> Refusal {
    let message = format!("{name}: there is nothing like it for Claude. Leave it out.");
    Refusal::parameter(name, message)
}

fn wrong(name: impl Into<String>, what: &str) -> Refusal {
    let name = name.into();
    let message = format!("{name} {what}.");
    Refusal::parameter(name, message)
}

fn object(value: Value, name: &str) -> Result<Map<String, Value>> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(wrong(name, "must be an object")),
    }
}

fn array(value: Value, name: &str) -> Result<Vec<Value>> {
    match value {
        Value::Array(array) => Ok(array),
        _ => Err(wrong(name, "must be a list")),
    }
}

fn text(value: Option<Value>, name: impl Into<String>) -> Result<String> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(wrong(name, "must be a text")),
    }
}

/// Refuses what is left of an object, unless it says nothing.
fn nothing_else(rest: Map<String, Value>, place: &str) -> Result<()> {
    match rest.into_iter().find(|(_, value)| !value.is_null()) {
        Some((name, _)) => Err(unknown(format!("{place}.{name}"))),
        None => Ok(()),
    }
}

/// What was said so far, as the API wants it: what the system says stands apart.
#[derive(Default)]
struct Conversation {
    system: Vec<Value>,
    messages: Vec<Value>,
}

impl Conversation {
    fn read(value: Value) -> Result<Self> {
        let mut conversation = Self::default();
        for (n, message) in array(value, "messages")?.into_iter().enumerate() {
            let place = format!("messages[{n}]");
            conversation.add(object(message, &place)?, &place)?;
        }
        Ok(conversation)
    }

    fn add(&mut self, mut message: Map<String, Value>, place: &str) -> Result<()> {
        let role = text(message.remove("role"), format!("{place}.role"))?;
        let content = message.remove("content").unwrap_or_default();
        let content_place = format!("{place}.content");
        match role.as_str() {
            "system" | "developer" => {
                let parts = parts(content, &content_place)?;
                if let Some(part) = parts.iter().position(|part| part["type"] != "text") {
                    return Err(wrong(format!("{content_place}[{part}]"), "must be a text"));
                }
                self.system.extend(parts);
            }
            "user" => {
                let said = parts(content, &content_place)?;
                if said.is_empty() {
                    return Err(wrong(content_place, "must not be empty"));
                }
                self.say("user", said);
            }
            "assistant" => {
                let mut said = parts(content, &content_place)?;
                if let Some(Value::String(refusal)) = message.remove("refusal") {
                    said.push(json!({ "type": "text", "text": refusal }));
                }
                for (n, call) in
                    array(message.remove("tool_calls").unwrap_or(json!([])), &format!("{place}.tool_calls"))?
                        .into_iter()
                        .enumerate()
                {
                    said.push(tool_use(call, &format!("{place}.tool_calls[{n}]"))?);
                }
                // Who has said nothing has not spoken.
                if !said.is_empty() {
                    self.say("assistant", said);
                }
            }
            "tool" => {
                let id = text(message.remove("tool_call_id"), format!("{place}.tool_call_id"))?;
                let content = parts(content, &content_place)?;
                self.say("user", vec![json!({ "type": "tool_result", "tool_use_id": id, "content": content })]);
            }
            _ => return Err(wrong(format!("{place}.role"), "is none of system, developer, user, assistant, tool")),
        }
        nothing_else(message, place)
    }

    /// Adds what somebody says, to what the same one has just said: results of tools that were used at once belong together.
    fn say(&mut self, role: &str, content: Vec<Value>) {
        if let Some(last) = self.messages.last_mut().filter(|last| last["role"] == role)
            && let Some(said) = last["content"].as_array_mut()
        {
            said.extend(content);
        } else {
            self.messages.push(json!({ "role": role, "content": content }));
        }
    }
}

/// The parts of a message. An empty text is none.
fn parts(content: Value, place: &str) -> Result<Vec<Value>> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![json!({ "type": "text", "text": text })]),
        content => {
            let parts = array(content, place)?.into_iter().enumerate();
            let parts = parts.map(|(n, item)| part(item, &format!("{place}[{n}]")));
            parts.filter(|part| !part.as_ref().is_ok_and(is_empty_text)).collect()
        }
    }
}

fn is_empty_text(part: &Value) -> bool {
    part["type"] == "text" && part["text"] == ""
}

fn part(value: Value, place: &str) -> Result<Value> {
    let mut part = object(value, place)?;
    let kind = text(part.remove("type"), format!("{place}.type"))?;
    let block = match kind.as_str() {
        "text" | "refusal" => {
            let text = text(part.remove(&kind), format!("{place}.{kind}"))?;
            json!({ "type": "text", "text": text })
        }
        "image_url" => {
            let place = format!("{place}.image_url");
            let mut image = object(part.remove("image_url").unwrap_or_default(), &place)?;
            let url = text(image.remove("url"), format!("{place}.url"))?;
            // How closely it is looked at is Claude's to decide.
            if image.get("detail").is_some_and(|detail| detail == "auto") {
                image.remove("detail");
            }
            nothing_else(image, &place)?;
            json!({ "type": "image", "source": image_source(&url, &place)? })
        }
        _ => return Err(unknown(format!("{place}.type {kind}"))),
    };
    nothing_else(part, place)?;
    Ok(block)
}

fn image_source(url: &str, place: &str) -> Result<Value> {
    if let Some(data) = url.strip_prefix("data:") {
        let (media_type, data) = data
            .split_once(";base64,")
            .ok_or_else(|| wrong(format!("{place}.url"), "must be a data: URL in base64, or one of http or https"))?;
        return Ok(json!({ "type": "base64", "media_type": media_type, "data": data }));
    }
    Ok(json!({ "type": "url", "url": url }))
}

fn tool_use(call: Value, place: &str) -> Result<Value> {
    let mut call = object(call, place)?;
    let id = text(call.remove("id"), format!("{place}.id"))?;
    if call.remove("type").is_some_and(|kind| kind != "function") {
        return Err(unknown(format!("{place}.type")));
    }
    let mut function = object(call.remove("function").unwrap_or_default(), &format!("{place}.function"))?;
    let name = text(function.remove("name"), format!("{place}.function.name"))?;
    let arguments_place = format!("{place}.function.arguments");
    let arguments = text(function.remove("arguments"), arguments_place.clone())?;
    let arguments = if arguments.trim().is_empty() { "{}" } else { &arguments };
    let input: Map<String, Value> =
        serde_json::from_str(arguments).map_err(|_| wrong(arguments_place, "must be an object in JSON"))?;
    nothing_else(function, &format!("{place}.function"))?;
    nothing_else(call, place)?;
    Ok(json!({ "type": "tool_use", "id": id, "name": name, "input": input }))
}

fn tools(value: Value) -> Result<Vec<Value>> {
    let one = |(n, tool): (usize, Value)| {
        let place = format!("tools[{n}]");
        let mut tool = object(tool, &place)?;
        let kind = text(tool.remove("type"), format!("{place}.type"))?;
        if kind != "function" {
            return Err(unknown(format!("{place}.type {kind}")));
        }
        let function_place = format!("{place}.function");
        let mut function = object(tool.remove("function").unwrap_or_default(), &function_place)?;
        let mut made = Map::new();
        made.insert("name".to_owned(), text(function.remove("name"), format!("{function_place}.name"))?.into());
        for name in ["description", "strict"] {
            if let Some(value) = function.remove(name).filter(|value| !value.is_null()) {
                made.insert(name.to_owned(), value);
            }
        }
        let parameters = function.remove("parameters").filter(|parameters| !parameters.is_null());
        made.insert(
            "input_schema".to_owned(),
            parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} })),
        );
        nothing_else(function, &function_place)?;
        nothing_else(tool, &place)?;
        Ok(Value::Object(made))
    };
    array(value, "tools")?.into_iter().enumerate().map(one).collect()
}

/// The choice among tools, as the API takes it, if there is anything to say.
fn how_tools_are_used(
    choice: Option<Map<String, Value>>,
    is_parallel: Option<bool>,
    has_tools: bool,
) -> Result<Option<Map<String, Value>>> {
    let kind = choice.as_ref().map(|choice| choice["type"].clone());
    match kind {
        // Nothing is left out in silence that asks for something.
        Some(kind) if !has_tools && kind != "none" && kind != "auto" => {
            return Err(wrong("tool_choice", "asks for a tool, and there are no tools"));
        }
        _ if !has_tools => return Ok(None),
        // Of what is not used the API takes no more than that.
        Some(kind) if kind == "none" => return Ok(choice),
        _ => {}
    }
    if choice.is_none() && is_parallel.is_none() {
        return Ok(None);
    }
    let mut choice = choice.unwrap_or_default();
    choice.entry("type").or_insert_with(|| "auto".into());
    if let Some(is_parallel) = is_parallel {
        choice.insert("disable_parallel_tool_use".to_owned(), Value::Bool(!is_parallel));
    }
    Ok(Some(choice))
}

fn tool_choice(value: &Value) -> Result<Map<String, Value>> {
    let choice = match value.as_str() {
        Some("none") => json!({ "type": "none" }),
        Some("auto") => json!({ "type": "auto" }),
        Some("required") => json!({ "type": "any" }),
        Some(_) => return Err(wrong("tool_choice", "is none of none, auto, required")),
        None if value["type"] == "function" && value["function"]["name"].is_string() => {
            json!({ "type": "tool", "name": value["function"]["name"] })
        }
        None => return Err(unknown("tool_choice".to_owned())),
    };
    object(choice, "tool_choice")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(request: &Value) -> Value {
        serde_json::from_slice(&translate(request.to_string().as_bytes()).unwrap().body).unwrap()
    }

    #[test]
    fn a_conversation_with_tools_and_images_is_translated() {
        let request = json!({
            "model": "claude-x", "max_completion_tokens": 50, "stop": "END", "user": "u1", "temperature": 0.5, "n": 1,
            "frequency_penalty": 0, "logit_bias": null, "parallel_tool_calls": false, "tool_choice": "required",
            "tools": [{ "type": "function", "function": { "name": "f", "description": "d", "parameters": { "type": "object" } } }],
            "messages": [
                { "role": "system", "content": "first" },
                { "role": "user", "content": [
                    { "type": "text", "text": "look" },
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA", "detail": "auto" } },
                    { "type": "image_url", "image_url": { "url": "https://example.com/a.png" } },
                ] },
                { "role": "assistant", "content": null, "tool_calls": [
                    { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } },
                    { "id": "b", "type": "function", "function": { "name": "f", "arguments": "" } },
                ] },
                { "role": "tool", "tool_call_id": "a", "content": "one" },
                { "role": "tool", "tool_call_id": "b", "content": "two" },
                { "role": "developer", "content": [{ "type": "text", "text": "second" }] },
                { "role": "user", "content": "go on" },
            ],
        });
        let text = |text: &str| json!({ "type": "text", "text": text });
        assert_eq!(
            translated(&request),
            json!({
                "model": "claude-x", "max_tokens": 50, "stop_sequences": ["END"], "metadata": { "user_id": "u1" },
                "temperature": 0.5, "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
                "tools": [{ "name": "f", "description": "d", "input_schema": { "type": "object" } }],
                "system": [text("first"), text("second")],
                "messages": [
                    { "role": "user", "content": [
                        text("look"),
                        { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } },
                        { "type": "image", "source": { "type": "url", "url": "https://example.com/a.png" } },
                    ] },
                    { "role": "assistant", "content": [
                        { "type": "tool_use", "id": "a", "name": "f", "input": { "x": 1 } },
                        { "type": "tool_use", "id": "b", "name": "f", "input": {} },
                    ] },
                    { "role": "user", "content": [
                        { "type": "tool_result", "tool_use_id": "a", "content": [text("one")] },
                        { "type": "tool_result", "tool_use_id": "b", "content": [text("two")] },
                        text("go on"),
                    ] },
                ],
            })
        );
    }

    #[test]
    fn what_says_nothing_is_left_out_and_what_asks_for_something_is_not() {
        let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
        let with = |more: Value| {
            let mut request = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }] });
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            request
        };
        let choice = |more: Value| translated(&with(more))["tool_choice"].clone();
        assert_eq!(
            choice(json!({ "tools": tools, "tool_choice": "none", "parallel_tool_calls": false })),
            json!({ "type": "none" })
        );
        assert_eq!(
            choice(json!({ "tools": tools, "parallel_tool_calls": true })),
            json!({ "type": "auto", "disable_parallel_tool_use": false })
        );
        for nothing in [json!({ "tools": tools }), json!({ "tool_choice": "auto" }), json!({ "tool_choice": "none" })] {
            assert_eq!(choice(nothing), Value::Null);
        }
        for (wrong, name) in [
            (json!({ "tool_choice": "required" }), "tool_choice"),
            (json!({ "tool_choice": { "type": "function", "function": { "name": "f" } } }), "tool_choice"),
            (json!({ "tools": tools, "parallel_tool_calls": "x" }), "parallel_tool_calls"),
            (json!({ "max_tokens": 5, "max_completion_tokens": 6 }), "max_completion_tokens"),
            (json!({ "messages": [{ "role": "user", "content": "" }] }), "messages[0].content"),
        ] {
            let refusal = translate(with(wrong).to_string().as_bytes()).unwrap_err();
            assert!(format!("{refusal:?}").contains(name), "{name}: {refusal:?}");
        }
        assert_eq!(translated(&with(json!({ "max_tokens": 5, "max_completion_tokens": 5 })))["max_tokens"], 5);
        let empty = json!({ "type": "text", "text": "" });
        let said = translated(&with(json!({ "messages": [
            { "role": "user", "content": [empty, { "type": "text", "text": "x" }] },
            { "role": "assistant", "content": [empty] },
            { "role": "user", "content": "y" },
        ] })));
        let text = |text: &str| json!({ "type": "text", "text": text });
        assert_eq!(said["messages"], json!([{ "role": "user", "content": [text("x"), text("y")] }]));
    }

    #[test]
    fn what_cannot_be_translated_is_named() {
        let user = |message: Value| json!({ "model": "m", "messages": [message] });
        let with = |name: &str, value: Value| {
            let mut request = user(json!({ "role": "user", "content": "x" }));
            request[name] = value;
            request
        };
        for (request, name) in [
            (with("n", json!(2)), "n"),
            (with("seed", json!(1)), "seed"),
            (with("logprobs", json!(true)), "logprobs"),
            (with("temperature", json!(1.5)), "temperature"),
            (with("response_format", json!({ "type": "json_object" })), "response_format"),
            (with("functions", json!([])), "functions"),
            (with("stream_options", json!({ "x": 1 })), "stream_options.x"),
            (with("tools", json!([{ "type": "custom" }])), "tools[0].type"),
            (with("tool_choice", json!({ "type": "custom" })), "tool_choice"),
            (user(json!({ "role": "user", "content": [{ "type": "input_audio" }] })), "messages[0].content[0].type"),
            (user(json!({ "role": "user", "name": "N", "content": "x" })), "messages[0].name"),
            (user(json!({ "role": "function", "content": "x" })), "messages[0].role"),
            (
                user(json!({ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:x" } }] })),
                "messages[0].content[0].image_url.url",
            ),
            (
                user(
                    json!({ "role": "assistant", "tool_calls": [{ "id": "a", "function": { "name": "f", "arguments": "[" } }] }),
                ),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            let refusal = translate(request.to_string().as_bytes()).unwrap_err();
            assert!(format!("{refusal:?}").contains(name), "{name}: {refusal:?}");
        }
    }
}
