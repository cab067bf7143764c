//! The relay in OpenAI's shape.

use serde_json::{Value, json};

use crate::relay::{FIRST, MODEL, OUTCOME, Relayed, TOKENS, USUAL, records};
use crate::relay_streams::failing;
use crate::support::{Reply, Step, TEXT, both_databases, event, events};

fn asking(stream: bool) -> Value {
    json!({
        "model": MODEL, "stream": stream,
        "messages": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hello?" }],
    })
}

/// The chunks of a stream, without its end.
async fn chunks(response: reqwest::Response) -> (Vec<Value>, bool) {
    let text = response.text().await.unwrap();
    let data: Vec<_> = text.split("\n\n").filter_map(|block| block.strip_prefix("data: ")).collect();
    let is_done = data.last() == Some(&"[DONE]");
    (data.iter().filter_map(|data| serde_json::from_str(data).ok()).collect(), is_done)
}

both_databases! {
    async fn a_completion_is_a_message(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let request = relayed.request("/v1/chat/completions", &asking(false)).bearer_auth(&relayed.key);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let body: Value = response.json().await.unwrap();
        assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!(MODEL)));
        assert_eq!(body["choices"][0]["message"]["content"], TEXT);
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        assert_eq!(body["usage"]["prompt_tokens"], 155);
        let sent: Value = serde_json::from_slice(&relayed.claude.seen()[0].body).unwrap();
        assert_eq!(sent["system"], json!([{ "type": "text", "text": "Be brief." }]));
        assert_eq!(relayed.claude.seen()[0].uri, "/v1/messages");
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/chat/completions 200 - 1"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
    }

    async fn a_stream_is_told_in_chunks(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut body = asking(true);
        body["stream_options"] = json!({ "include_usage": true });
        let (chunks, is_done) = chunks(relayed.request("/v1/chat/completions", &body).send().await.unwrap()).await;
        assert!(is_done);
        let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, TEXT);
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
        let last = chunks.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(167)));
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/chat/completions 200 - 1 streamed"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
    }

    async fn tools_are_called_in_chunks(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut said = events(MODEL);
        let piece = |json: &str| event("content_block_delta", &json!({
            "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": json },
        }).to_string());
        let start = json!({ "type": "content_block_start", "index": 1,
            "content_block": { "type": "tool_use", "id": "t1", "name": "look", "input": {} } });
        said.splice(7..7, [event("content_block_start", &start.to_string()), piece("{\"x\":"), piece("1}")]);
        let end = said.len() - 2;
        said[end] = said[end].replace("end_turn", "tool_use");
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(said.concat())])]);
        let (chunks, _) = chunks(relayed.request("/v1/chat/completions", &asking(true)).send().await.unwrap()).await;
        let calls: Vec<_> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]).filter(|call| call.is_object()).collect();
        assert_eq!((&calls[0]["id"], &calls[0]["function"]["name"]), (&json!("t1"), &json!("look")));
        let arguments: String = calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap()).collect();
        assert_eq!(arguments, "{\"x\":1}");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }

    async fn errors_have_the_shape_too(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut body = asking(false);
        body["seed"] = json!(7);
        let response = relayed.request("/v1/chat/completions", &body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let refused: Value = response.json().await.unwrap();
        assert_eq!((&refused["error"]["param"], &refused["error"]["type"]), (&json!("seed"), &json!("invalid_request_error")));
        relayed.claude.will(FIRST, [Reply::error(404, "not_found_error")]);
        let response = relayed.request("/v1/chat/completions", &asking(false)).send().await.unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["message"], "A not_found_error.");
        let error = failing("overloaded_error", "Overloaded");
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(events(MODEL)[..4].concat() + &error)])]);
        let (chunks, is_done) = chunks(relayed.request("/v1/chat/completions", &asking(true)).send().await.unwrap()).await;
        assert!(!is_done);
        assert_eq!(chunks.last().unwrap()["error"]["message"], "Overloaded");
        let response = reqwest::Client::new().post(format!("{}/v1/chat/completions", app.url)).body("{}").send().await.unwrap();
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "invalid_api_key");
    }
}
