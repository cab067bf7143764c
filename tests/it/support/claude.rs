//! A Claude upstream on loopback that speaks the API's protocol, with the faults that a test tells it to have.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

/// What a standard answer says that it used.
pub(crate) const USAGE: &str = r#"{"input_tokens":25,"cache_creation_input_tokens":30,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":20,"ephemeral_1h_input_tokens":10},"output_tokens":12,"service_tier":"standard"}"#;
/// What it says.
pub(crate) const TEXT: &str = "Hello from Claude.";

/// The upstream.
pub(crate) struct Claude {
    pub(crate) address: SocketAddr,
    state: Arc<Shared>,
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// Those that come next, by key.
    replies: Mutex<HashMap<String, VecDeque<Reply>>>,
    open: AtomicUsize,
    most: AtomicUsize,
    /// How many bytes floods have been so far.
    flooded: AtomicUsize,
    arrived: Notify,
    left: Semaphore,
    released: Semaphore,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// An error of the API, with more headers.
    Error(u16, &'static str, Vec<(&'static str, String)>),
    /// This body.
    Body(u16, &'static str, String),
    /// A stream of these steps.
    Stream(Vec<Step>),
    /// As usual, once it is released.
    Held,
    /// Like this, once it is released.
    HeldThen(Box<Reply>),
}

/// A piece of a stream.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Say(String),
    /// Says it again and again, for as long as it is listened to.
    Flood(String),
    Pause(Duration),
    /// Waits until it is released.
    Hold,
    /// The connection breaks.
    Cut,
}

impl Claude {
    pub(crate) async fn start() -> Self {
        let state = Arc::new(Shared {
            seen: Mutex::default(),
            replies: Mutex::default(),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            flooded: AtomicUsize::new(0),
            arrived: Notify::new(),
            left: Semaphore::new(0),
            released: Semaphore::new(0),
        });
        let routes = Router::new().fallback(answer).with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What requests with this key are answered with next, instead of as usual.
    pub(crate) fn will(&self, key: &str, replies: impl IntoIterator<Item = Reply>) {
        self.state.replies.lock().unwrap().entry(key.to_owned()).or_default().extend(replies);
    }

    /// What requests with this key are answered with from now on is as usual.
    pub(crate) fn will_as_usual(&self, key: &str) {
        self.state.replies.lock().unwrap().remove(key);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The keys of the requests so far.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.seen().iter().map(Seen::key).collect()
    }

    /// How many requests there were at once at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.state.most.load(Ordering::SeqCst)
    }

    /// How many bytes floods have been so far.
    pub(crate) fn flooded(&self) -> usize {
        self.state.flooded.load(Ordering::SeqCst)
    }

    /// Waits for the next request.
    pub(crate) async fn arrived(&self) {
        self.state.arrived.notified().await;
    }

    /// Lets what is held go on.
    pub(crate) fn release(&self, count: usize) {
        self.state.released.add_permits(count);
    }

    /// Waits until somebody has left before the end of a stream.
    pub(crate) async fn left(&self) {
        self.state.left.acquire().await.unwrap().forget();
    }
}

impl Seen {
    pub(crate) fn key(&self) -> String {
        self.headers.get("x-api-key").map_or(String::new(), |key| key.to_str().unwrap().to_owned())
    }
}

impl Reply {
    pub(crate) fn error(status: u16, kind: &'static str) -> Self {
        Self::Error(status, kind, Vec::new())
    }

    pub(crate) fn overloaded() -> Self {
        Self::error(529, "overloaded_error")
    }

    pub(crate) fn rate_limited(seconds: u32) -> Self {
        Self::Error(429, "rate_limit_error", vec![("retry-after", seconds.to_string())])
    }

    /// Once it is released.
    pub(crate) fn held(self) -> Self {
        Self::HeldThen(Box::new(self))
    }
}

/// Counts a request as long as it goes on, and those that were left.
struct Open {
    state: Arc<Shared>,
    is_done: bool,
}

impl Open {
    fn new(state: &Arc<Shared>) -> Self {
        let open = state.open.fetch_add(1, Ordering::SeqCst) + 1;
        state.most.fetch_max(open, Ordering::SeqCst);
        Self { state: state.clone(), is_done: false }
    }
}

impl Open {
    /// It was answered to its end.
    fn done(&mut self) {
        self.is_done = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::SeqCst);
        if !self.is_done {
            self.state.left.add_permits(1);
        }
    }
}

async fn answer(State(state): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let seen = Seen { uri, headers, body };
    state.seen.lock().unwrap().push(seen.clone());
    let mut open = Open::new(&state);
    let mut reply = state.replies.lock().unwrap().get_mut(&seen.key()).and_then(VecDeque::pop_front);
    // Whoever waits for it may send the next request at once, which must not take its reply.
    state.arrived.notify_one();
    if let Some(Reply::HeldThen(then)) = reply {
        state.released.acquire().await.unwrap().forget();
        reply = Some(*then);
    }
    let mut response = match reply {
        Some(Reply::Error(status, kind, headers)) => error(status, kind, &headers),
        Some(Reply::Body(status, content_type, body)) => {
            (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Some(Reply::Stream(steps)) => return stream(steps, open),
        Some(Reply::Held) => {
            state.released.acquire().await.unwrap().forget();
            usual(&seen)
        }
        Some(Reply::HeldThen(_)) => panic!("it is held once"),
        None => usual(&seen),
    };
    open.done();
    response.headers_mut().insert("request-id", HeaderValue::from_static("req_upstream"));
    response.headers_mut().insert("anthropic-organization-id", HeaderValue::from_static("org-of-the-account"));
    response.headers_mut().insert("anthropic-ratelimit-requests-limit", HeaderValue::from_static("4000"));
    response
}

fn error(status: u16, kind: &str, headers: &[(&'static str, String)]) -> Response {
    let body = json!({ "type": "error", "error": { "type": kind, "message": format!("A {kind}.") }, "request_id": "req_upstream" });
    let mut response = (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    response
}

fn usual(seen: &Seen) -> Response {
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let model = body["model"].as_str().unwrap_or_default();
    match seen.uri.path() {
        "/v1/messages" if body["stream"] == true => {
            let events = events(model).concat();
            ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], events).into_response()
        }
        "/v1/messages" => ([(header::CONTENT_TYPE, "application/json")], message(model)).into_response(),
        "/v1/messages/count_tokens" => axum::Json(json!({ "input_tokens": 55 })).into_response(),
        "/v1/models" => {
            let model = |id: &str| json!({ "type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z" });
            let data = ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5"].map(model);
            axum::Json(json!({ "data": data, "has_more": false, "first_id": "claude-opus-5-5", "last_id": "claude-haiku-4-5" }))
                .into_response()
        }
        _ => error(404, "not_found_error", &[]),
    }
}

/// A whole answer, as the API words it.
pub(crate) fn message(model: &str) -> String {
    format!(
        r#"{{"model":"{model}","id":"msg_01","type":"message","role":"assistant","content":[{{"type":"text","text":"{TEXT}"}}],"stop_reason":"end_turn","stop_sequence":null,"usage":{USAGE}}}"#
    )
}

/// The events of an answer that is a stream.
pub(crate) fn events(model: &str) -> Vec<String> {
    let start = USAGE.replace("\"output_tokens\":12", "\"output_tokens\":1");
    let mut events = vec![
        event(
            "message_start",
            &format!(
                r#"{{"type":"message_start","message":{{"model":"{model}","id":"msg_01","type":"message","role":"assistant","content":[],"stop_reason":null,"stop_sequence":null,"usage":{start}}}}}"#
            ),
        ),
        event(
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        ),
        event("ping", r#"{"type": "ping"}"#),
    ];
    for text in ["Hello", " from", " Claude."] {
        events.push(delta(text));
    }
    events.push(event("content_block_stop", r#"{"type":"content_block_stop","index":0}"#));
    events.push(event(
        "message_delta",
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":12}}"#,
    ));
    events.push(event("message_stop", r#"{"type":"message_stop"}"#));
    events
}

pub(crate) fn delta(text: &str) -> String {
    let data = json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } });
    event("content_block_delta", &data.to_string())
}

pub(crate) fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn stream(steps: Vec<Step>, open: Open) -> Response {
    let steps = steps.into_iter().peekable();
    let steps = futures_util::stream::unfold((steps, open), |(mut steps, mut open)| async move {
        loop {
            if let Some(Step::Flood(text)) = steps.peek() {
                open.state.flooded.fetch_add(text.len(), Ordering::SeqCst);
                return Some((Ok(Bytes::from(text.clone())), (steps, open)));
            }
            match steps.next() {
                None => {
                    open.done();
                    return None;
                }
                Some(Step::Say(text) | Step::Flood(text)) => return Some((Ok(Bytes::from(text)), (steps, open))),
                Some(Step::Pause(pause)) => tokio::time::sleep(pause).await,
                Some(Step::Hold) => open.state.released.acquire().await.unwrap().forget(),
                Some(Step::Cut) => {
                    // What was said before is on its way by then.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    open.done();
                    return Some((Err(std::io::Error::other("cut")), (steps, open)));
                }
            }
        }
    });
    let mut response = Response::new(Body::from_stream(steps));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response.headers_mut().insert("request-id", HeaderValue::from_static("req_upstream"));
    response
}
