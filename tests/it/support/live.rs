//! Sockets and streams of events, as a client has them.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::app::TestApp;
use super::graphql::{Answer, Client};

/// Far longer than anything here takes: a test that waits for what never comes fails.
const NEVER: Duration = Duration::from_secs(60);

pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, work).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// A socket that speaks graphql-transport-ws.
pub(crate) struct Socket(pub(crate) WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What begins a socket.
fn request(app: &TestApp, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = format!("{}/graphql", app.url.replacen("http", "ws", 1)).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}

impl Socket {
    /// Opened, with nothing said yet.
    pub(crate) async fn open(app: &TestApp) -> Self {
        Self::with(app, &[("sec-websocket-protocol", "graphql-transport-ws")]).await
    }

    pub(crate) async fn with(app: &TestApp, headers: &[(&'static str, &str)]) -> Self {
        Self(connect_async(request(app, headers)).await.unwrap().0)
    }

    /// The status and the body with which the server refuses a socket.
    pub(crate) async fn refused(app: &TestApp, headers: &[(&'static str, &str)]) -> (u16, String) {
        match connect_async(request(app, headers)).await {
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                (response.status().as_u16(), String::from_utf8(body).unwrap())
            }
            other => panic!("{:?}", other.map(|(_, response)| response)),
        }
    }

    /// Opened and initialised as whoever the client is.
    pub(crate) async fn connected(app: &TestApp, client: &Client) -> Self {
        let mut socket = Self::open(app).await;
        socket.init(client).await;
        socket
    }

    pub(crate) async fn init(&mut self, client: &Client) {
        let token = client.access_token.as_ref().map(|token| format!("Bearer {token}"));
        let payload = token.map_or(json!({}), |token| json!({ "Authorization": token }));
        self.send(json!({ "type": "connection_init", "payload": payload })).await;
        assert_eq!(self.next().await, json!({ "type": "connection_ack" }));
    }

    /// Whether the connection is acknowledged, rather than the socket closed.
    pub(crate) async fn begins(&mut self) -> bool {
        match in_time("an answer", self.0.next()).await {
            Some(Ok(Message::Text(text))) => text.contains("connection_ack"),
            Some(Ok(Message::Close(_))) => false,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    pub(crate) async fn subscribe(&mut self, id: &str, query: &str) {
        self.send(json!({ "id": id, "type": "subscribe", "payload": { "query": query } })).await;
    }

    /// Subscribes, and waits until it runs: nothing is missed from then on.
    pub(crate) async fn follow(&mut self, app: &TestApp, id: &str, query: &str) {
        let before = gauge(app, "claviger_subscriptions_active").await;
        self.subscribe(id, query).await;
        until_gauge(app, "claviger_subscriptions_active", before + 1).await;
    }

    /// The next message as it was sent.
    pub(crate) async fn text(&mut self) -> String {
        loop {
            match in_time("a message", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return text.to_string(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// The data of the next event of an operation.
    pub(crate) async fn event(&mut self, id: &str) -> Value {
        let message = self.next().await;
        assert_eq!((&message["type"], &message["id"]), (&json!("next"), &json!(id)), "{message}");
        assert!(message["payload"].get("errors").is_none(), "{message}");
        message["payload"]["data"].clone()
    }

    /// The code of the error that an operation is answered with.
    pub(crate) async fn error(&mut self, id: &str) -> String {
        let message = self.next().await;
        assert_eq!((&message["type"], &message["id"]), (&json!("error"), &json!(id)), "{message}");
        message["payload"][0]["extensions"]["code"].as_str().unwrap().to_owned()
    }

    /// The code and the reason with which the server closes the socket, whatever it sends before.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            match in_time("the end of the socket", self.0.next()).await {
                Some(Ok(Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// An answer that goes on.
pub(crate) struct EventStream {
    pub(crate) response: reqwest::Response,
    received: String,
}

impl EventStream {
    pub(crate) async fn open(client: &Client, query: &str) -> Self {
        Self::post(client, &json!({ "query": query })).await
    }

    pub(crate) async fn post(client: &Client, body: &Value) -> Self {
        let request = client.http().post(format!("{}/graphql", client.url)).json(body);
        Self::send(client, request).await
    }

    pub(crate) async fn get(client: &Client, query: &str) -> Self {
        let url = url::Url::parse_with_params(&format!("{}/graphql", client.url), [("query", query)]).unwrap();
        let request = client.http().get(url);
        Self::send(client, request).await
    }

    /// An answer that has come already.
    pub(crate) fn of(response: reqwest::Response) -> Self {
        Self { response, received: String::new() }
    }

    async fn send(client: &Client, mut request: reqwest::RequestBuilder) -> Self {
        if let Some(token) = &client.access_token {
            request = request.bearer_auth(token);
        }
        let response = request.header("accept", "text/event-stream").send().await.unwrap();
        Self { response, received: String::new() }
    }

    /// Waits until the subscription runs, as one of so many.
    pub(crate) async fn begun(self, app: &TestApp, count: i64) -> Self {
        until_gauge(app, "claviger_subscriptions_active", count).await;
        self
    }

    /// The next block, of an event or a comment; none at the end.
    pub(crate) async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.received.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.received = rest;
                return Some(block);
            }
            let chunk = in_time("an event", self.response.chunk()).await.ok().flatten()?;
            self.received += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// The next event that is no comment: its name and its data.
    pub(crate) async fn event(&mut self) -> Option<(String, Value)> {
        loop {
            let block = self.block().await?;
            if block.starts_with(':') {
                continue;
            }
            let (name, data) = block.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
            return Some((name.to_owned(), serde_json::from_str(data).unwrap_or_default()));
        }
    }

    /// The only answer, as of any request.
    pub(crate) async fn answer(mut self) -> Answer {
        assert_eq!(self.response.status(), StatusCode::OK);
        let (name, body) = self.event().await.unwrap();
        assert_eq!(name, "next");
        assert_eq!(self.event().await, Some(("complete".to_owned(), Value::Null)));
        assert_eq!(self.event().await, None);
        Answer { status: self.response.status(), headers: self.response.headers().clone(), body }
    }
}

/// The value of a metric; one with labels is 0 until there is something to count.
pub(crate) async fn gauge(app: &TestApp, name: &str) -> i64 {
    let answer = app.anonymous().http().get(format!("{}/metrics", app.url)).send().await.unwrap();
    let text = answer.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert!(line.is_some() || name.contains('{'), "{text}");
    line.map_or(0, |value| value.parse().unwrap())
}

/// Waits until a metric has a value.
pub(crate) async fn until_gauge(app: &TestApp, name: &str, value: i64) {
    let mut found = gauge(app, name).await;
    let reached = async {
        while found != value {
            tokio::time::sleep(Duration::from_millis(5)).await;
            found = gauge(app, name).await;
        }
    };
    let in_time = tokio::time::timeout(NEVER, reached).await;
    assert!(in_time.is_ok(), "{name}: {found}, not {value}");
}
