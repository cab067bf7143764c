//! Sockets that speak graphql-transport-ws: all close codes, the limits, and what becomes of a mutation when one closes.

use std::task::Poll;
use std::time::Duration;

use claviger::http::LiveLimits;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

use crate::claude_account::create;
use crate::subscription::{ADDED, CHANGED, SHORT};
use crate::support::{Client, EventStream, Socket, TestApp, both_databases, gauge, until_gauge};

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "graphql-transport-ws");
const NEVER: Duration = Duration::from_secs(3600);

/// An upstream that does not answer, and the mutation that asks it.
pub(crate) async fn slow_test(admin: &Client) -> (TcpListener, String) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let input = json!({ "apiKey": format!("sk-ant-{url}"), "accountName": url, "baseUrl": url });
    let id = create(admin, input).await["id"].clone();
    (upstream, format!("mutation {{ testClaudeAccount(input: {{ id: {id} }}) {{ ok }} }}"))
}

/// Reads until an operation is complete.
async fn until_said(socket: &mut Socket, said: &mut Vec<Value>, id: &str) {
    while !said.iter().any(|message| message["id"] == id && message["type"] == "complete") {
        said.push(socket.next().await);
    }
}

both_databases! {
    async fn a_mutation_is_finished_though_the_socket_closes(app: TestApp) {
        let admin = app.admin().await;
        let (upstream, test) = slow_test(&admin).await;
        let mut events = Socket::connected(&app, &admin).await;
        events.follow(&app, "1", "subscription { auditLogAdded { operation } }").await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("1", &test).await;
        let asked = upstream.accept().await.unwrap();
        socket.0.close(None).await.unwrap();
        until_gauge(&app, "claviger_sockets_open", 1).await;
        drop((asked, upstream));
        assert_eq!(events.event("1").await["auditLogAdded"]["operation"], "testClaudeAccount");
        // It is counted too.
        let counted = "claviger_graphql_requests_total{field=\"testClaudeAccount\",outcome=\"OK\"}";
        until_gauge(&app, counted, 1).await;
    }

    async fn a_mutation_that_has_begun_is_answered_though_a_frame_cannot_be_taken(app: TestApp) {
        let admin = app.admin().await;
        let kind = OpCode::Data(Data::Text);
        let mut reserved = Frame::message("{}", kind, true);
        reserved.header_mut().rsv1 = true;
        let cases = [
            (Message::text(" ".repeat(300 * 1024)), 1009),
            (Message::Frame(Frame::message(vec![0xff], kind, true)), 1007),
            (Message::Frame(reserved), 1002),
        ];
        for (message, code) in cases {
            let (upstream, test) = slow_test(&admin).await;
            let mut socket = Socket::connected(&app, &admin).await;
            socket.follow(&app, "events", ADDED).await;
            socket.subscribe("1", &test).await;
            let asked = upstream.accept().await.unwrap();
            // The server may read no further than to where it is too large.
            let _ = socket.0.send(message).await;
            until_gauge(&app, "claviger_subscriptions_active", 0).await;
            drop((asked, upstream));
            until_said(&mut socket, &mut Vec::new(), "1").await;
            assert_eq!(socket.closed().await.0, code);
        }
    }

    async fn a_mutation_that_has_begun_is_answered_before_the_server_closes_the_socket(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let (upstream, test) = slow_test(&admin).await;
        // Whoever signs out over the socket itself is told that it was done.
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "events", ADDED).await;
        socket.subscribe("1", &test).await;
        let asked = upstream.accept().await.unwrap();
        socket.subscribe("2", "mutation { signOut { signedOut } }").await;
        let mut said = Vec::new();
        until_said(&mut socket, &mut said, "2").await;
        drop(asked);
        until_said(&mut socket, &mut said, "1").await;
        assert_eq!(socket.closed().await.0, 4403);
        let last = |id: &str| said.iter().rfind(|message| message["id"] == id).unwrap()["type"].clone();
        assert_eq!((last("1"), last("2")), (json!("complete"), json!("complete")), "{said:?}");

        let admin = app.admin().await;
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("1", &test).await;
        let asked = upstream.accept().await.unwrap();
        let mut idle = Socket::connected(&app, &admin).await;
        let work = async {
            // The server is stopping by then.
            assert_eq!(idle.closed().await.0, 1001);
            drop(asked);
            assert_eq!(socket.event("1").await["testClaudeAccount"]["ok"], false);
            assert_eq!(socket.next().await, json!({ "type": "complete", "id": "1" }));
            assert_eq!(socket.closed().await.0, 1001);
        };
        tokio::join!(app.stop(), work);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_misuse_has_its_close_code() {
    let app = TestApp::sqlite().await;
    let init = json!({ "type": "connection_init" });
    let subscribe = json!({ "id": "1", "type": "subscribe", "payload": { "query": ADDED } });
    let bad_token = json!({ "type": "connection_init", "payload": { "Authorization": "Bearer wrong" } });
    let no_text = json!({ "type": "connection_init", "payload": { "AUTHORIZATION": 1 } });
    let cases = [
        (vec![subscribe.clone()], 4401, "Unauthorized"),
        (vec![init.clone(), init.clone()], 4429, "Too many initialisation requests"),
        (vec![bad_token], 4403, "Forbidden"),
        (vec![no_text], 4403, "Forbidden"),
        (vec![json!({ "type": "start" })], 4400, "Invalid message"),
        (vec![json!([])], 4400, "Invalid message"),
        (vec![json!({ "type": "connection_init", "payload": 1 })], 4400, "Invalid message"),
        (vec![init.clone(), json!({ "type": "subscribe", "payload": { "query": ADDED } })], 4400, "Invalid message"),
        (vec![init.clone(), json!({ "id": "1", "type": "subscribe" })], 4400, "Invalid message"),
        (
            vec![init.clone(), json!({ "id": "1", "type": "subscribe", "payload": {} })],
            4400,
            "The parameter query is missing.",
        ),
        (
            vec![init.clone(), json!({ "id": "1", "type": "subscribe", "payload": { "query": 1 } })],
            4400,
            "The parameter query is not a text.",
        ),
        (
            vec![init.clone(), json!({ "id": "", "type": "subscribe", "payload": { "query": ADDED } })],
            4400,
            "The id must have 1 to 256 bytes",
        ),
        (vec![init.clone(), json!({ "type": "complete" })], 4400, "Invalid message"),
    ];
    for (messages, code, reason) in cases {
        let mut socket = Socket::open(&app).await;
        for message in &messages {
            socket.send(message.clone()).await;
        }
        assert_eq!(socket.closed().await, (code, reason.to_owned()), "{messages:?}");
    }
    let mut socket = Socket::open(&app).await;
    socket.0.send(Message::text("{")).await.unwrap();
    assert_eq!(socket.closed().await.0, 4400);
    let mut socket = Socket::open(&app).await;
    socket.0.send(Message::binary(init.to_string())).await.unwrap();
    assert_eq!(socket.closed().await.0, 4400);
    let mut socket = Socket::open(&app).await;
    // The server may close before all of it was sent.
    let _ = socket.0.send(Message::text(" ".repeat(300 * 1024))).await;
    assert_eq!(socket.closed().await.0, 1009);

    let admin = app.admin().await;
    for id in ["1", &"ä".repeat(100)] {
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe(id, ADDED).await;
        socket.subscribe(id, ADDED).await;
        let (code, reason) = socket.closed().await;
        assert_eq!((code, reason.starts_with("Subscriber for ")), (4409, true), "{reason}");
    }
    until_gauge(&app, "claviger_sockets_open", 0).await;
    until_gauge(&app, "claviger_subscriptions_active", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_cut_off() {
    let limits = LiveLimits { init: SHORT, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let mut socket = Socket::open(&app).await;
    assert_eq!(socket.closed().await, (4408, "Connection initialisation timeout".to_owned()));
    // One that has begun in time may be silent, as long as it answers pings.
    let limits = LiveLimits { init: NEVER, ping: Duration::from_millis(500), ..LiveLimits::default() };
    let app = app.limited(limits).await;
    let mut silent = Socket::connected(&app, &app.anonymous()).await;
    let mut socket = Socket::connected(&app, &app.anonymous()).await;
    // Reading is what answers pings.
    let reader = tokio::spawn(async move { while let Some(Ok(_)) = socket.0.next().await {} });
    until_gauge(&app, "claviger_sockets_open", 1).await;
    // As bytes: a client that reads messages would answer the pings first.
    let mut received = Vec::new();
    silent.0.get_mut().read_to_end(&mut received).await.unwrap();
    let close = [&4499_u16.to_be_bytes(), &b"No sign of life"[..]].concat();
    assert!(received.ends_with(&close), "{received:?}");
    assert!(!reader.is_finished());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off() {
    let limits = LiveLimits { write: SHORT, queue: 1, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let mut socket = Socket::connected(&app, &admin).await;
    let large = "{ __schema { types { name fields { name description } } } }";
    // More than the system keeps for a connection.
    for number in 0.. {
        let message = json!({ "id": number.to_string(), "type": "subscribe", "payload": { "query": large } });
        if number % 50 == 0 && gauge(&app, "claviger_sockets_open").await == 0 {
            break;
        }
        if socket.0.send(Message::text(message.to_string())).await.is_err() {
            break;
        }
    }
    until_gauge(&app, "claviger_sockets_open", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_at_once_when_they_may_no_longer() {
    // However long one may take to read.
    let limits = LiveLimits { write: NEVER, queue: 1, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let mut socket = Socket::connected(&app, &admin).await;
    // Each ping is answered with what it carries: the socket itself waits to say it.
    let ping = json!({ "type": "ping", "payload": { "text": " ".repeat(200 * 1024) } }).to_string();
    let (is_full, full) = tokio::sync::oneshot::channel();
    let asking = tokio::spawn(async move {
        let mut is_full = Some(is_full);
        loop {
            let mut sending = socket.0.send(Message::text(ping.clone()));
            let sent = match futures_util::poll!(&mut sending) {
                Poll::Ready(sent) => sent,
                // The system takes no more of it: the server reads no more, or is about to stop.
                Poll::Pending => {
                    is_full.take().map(|is_full| is_full.send(()));
                    sending.await
                }
            };
            if sent.is_err() {
                break;
            }
        }
    });
    full.await.unwrap();
    admin.run("mutation { signOut { signedOut } }").await.data();
    until_gauge(&app, "claviger_sockets_open", 0).await;
    asking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_keeps_its_place_until_it_is_done() {
    let limits = LiveLimits { operations: 1, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let (upstream, test) = slow_test(&admin).await;
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("1", &test).await;
    let asked = upstream.accept().await.unwrap();
    socket.send(json!({ "id": "1", "type": "complete" })).await;
    // The id is free, the place is not.
    socket.subscribe("1", "{ viewer { role } }").await;
    assert_eq!(socket.error("1").await, "RATE_LIMITED");
    let counted = "claviger_graphql_requests_total{field=\"testClaudeAccount\",outcome=\"OK\"}";
    drop((asked, upstream));
    until_gauge(&app, counted, 1).await;
    socket.subscribe("1", "{ viewer { role } }").await;
    socket.event("1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_has_only_so_many_that_are_nobodys() {
    let limits = LiveLimits { per_address: 2, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let mut first = Socket::open(&app).await;
    let _second = Socket::connected(&app, &app.anonymous()).await;
    let (status, body) = Socket::refused(&app, &[PROTOCOL]).await;
    assert_eq!((status, body.contains("RATE_LIMITED")), (429, true), "{body}");
    assert_eq!(EventStream::open(&app.anonymous(), ADDED).await.answer().await.code(), "RATE_LIMITED");
    // One that is somebody's takes none of these places.
    first.init(&admin).await;
    Socket::open(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_socket_is_answered() {
    let app = TestApp::sqlite().await;
    for mut socket in [Socket::open(&app).await, Socket::connected(&app, &app.admin().await).await] {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "Done".into() };
        socket.0.close(Some(frame.clone())).await.unwrap();
        assert_eq!(socket.0.next().await.unwrap().unwrap(), Message::Close(Some(frame)));
        assert!(socket.0.next().await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_only_so_many() {
    let limits = LiveLimits { operations: 2, per_holder: 2, sockets: 3, ..LiveLimits::default() };
    let app = TestApp::sqlite().await.limited(limits).await;
    let admin = app.admin().await;
    let mut socket = Socket::connected(&app, &admin).await;
    socket.follow(&app, "1", ADDED).await;
    socket.follow(&app, "2", CHANGED).await;
    socket.subscribe("3", "{ viewer { role } }").await;
    assert_eq!(socket.error("3").await, "RATE_LIMITED");
    socket.send(json!({ "id": "1", "type": "complete" })).await;
    until_gauge(&app, "claviger_subscriptions_active", 1).await;
    socket.subscribe("3", "{ viewer { role } }").await;
    socket.event("3").await;

    let _second = Socket::connected(&app, &admin).await;
    let mut third = Socket::open(&app).await;
    let payload = json!({ "Authorization": format!("Bearer {}", admin.access_token.as_ref().unwrap()) });
    third.send(json!({ "type": "connection_init", "payload": payload })).await;
    assert_eq!(third.closed().await, (4429, "Too many open sockets and streams".to_owned()));
    assert_eq!(EventStream::open(&admin, ADDED).await.answer().await.code(), "RATE_LIMITED");
    drop(third);
    until_gauge(&app, "claviger_sockets_open", 2).await;
    // Those of others are counted by themselves.
    let _other = Socket::connected(&app, &app.anonymous()).await;
    let (status, body) = Socket::refused(&app, &[PROTOCOL]).await;
    assert_eq!((status, body.contains("SERVICE_UNAVAILABLE")), (503, true), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_for_one_protocol_and_the_pages_of_ours() {
    let app = TestApp::sqlite().await;
    for protocol in ["graphql-ws", "mqtt"] {
        let (status, body) = Socket::refused(&app, &[("sec-websocket-protocol", protocol)]).await;
        assert_eq!((status, body.contains("graphql-transport-ws")), (400, true), "{body}");
    }
    assert_eq!(Socket::refused(&app, &[]).await.0, 400);
    Socket::with(&app, &[("sec-websocket-protocol", "graphql-ws, graphql-transport-ws")]).await;
    for origin in ["https://evil.example.com", "null", "https://app.example.com.evil.example", "http://127.0.0.1:1"] {
        let (status, body) = Socket::refused(&app, &[PROTOCOL, ("origin", origin)]).await;
        assert_eq!((status, body.contains("FRONTEND_URL")), (403, true), "{origin}: {body}");
    }
    for origin in ["https://app.example.com", app.url.as_str()] {
        Socket::with(&app, &[PROTOCOL, ("origin", origin)]).await;
    }
    // A token may come with the headers as well.
    let admin = app.admin().await;
    let token = format!("Bearer {}", admin.access_token.as_ref().unwrap());
    let mut socket = Socket::with(&app, &[PROTOCOL, ("authorization", &token)]).await;
    socket.init(&app.anonymous()).await;
    socket.subscribe("1", "{ viewer { role } }").await;
    assert_eq!(socket.event("1").await["viewer"]["role"], "ADMIN");
    // But not another one there than here.
    let mut socket = Socket::with(&app, &[PROTOCOL, ("authorization", &token)]).await;
    socket.send(json!({ "type": "connection_init", "payload": { "X-API-Key": "clv_another" } })).await;
    let (code, reason) = socket.closed().await;
    assert_eq!((code, reason.contains("different callers")), (4400, true), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_with_what_it_carries() {
    let app = TestApp::sqlite().await;
    let mut socket = Socket::open(&app).await;
    socket.send(json!({ "type": "ping" })).await;
    assert_eq!(socket.next().await, json!({ "type": "pong" }));
    socket.send(json!({ "type": "pong", "payload": {} })).await;
    socket.send(json!({ "type": "ping", "payload": { "at": 1 } })).await;
    assert_eq!(socket.next().await, json!({ "type": "pong", "payload": { "at": 1 } }));
}
