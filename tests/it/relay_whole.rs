//! Answers that come whole: how long they may be, and what becomes of one that its caller does not read.

use std::time::Duration;

use claviger::relay::RelayLimits;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::relay::{FIRST, MODEL, Relayed, asking, error, records, until_let_in};
use crate::relay_failures::QUICK;
use crate::support::{Reply, TEXT, TestApp, both_databases, message};

const MIB: usize = 1024 * 1024;
/// Of which a key has a quarter: one of the large answers.
const LITTLE: RelayLimits = RelayLimits { bodies: 72 * MIB, ..QUICK };

/// An answer that is larger than what sockets hold where the caller reads little.
fn large() -> String {
    message(MODEL).replace(TEXT, &"x".repeat(12 * MIB))
}

fn whole(body: String) -> Reply {
    Reply::Body(200, "application/json", body)
}

/// Asks, and reads no more of the answer than shows that it has begun.
async fn unread(app: &TestApp, relayed: &Relayed) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut socket = socket.connect(app.url.trim_start_matches("http://").parse().unwrap()).await.unwrap();
    let body = asking(false).to_string();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        relayed.key,
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut begun = [0; 12];
    socket.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    socket
}

both_databases! {
    async fn an_answer_that_is_too_long_is_not_held(app: TestApp) {
        // An account that something is wrong with would rest for long.
        let app = app.relaying(RelayLimits { retry: Duration::from_secs(600), ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        for _ in 0..3 {
            relayed.claude.will(FIRST, [whole(message(MODEL).replace(TEXT, &"x".repeat(17 * MIB)))]);
            let refused = relayed.send().await;
            assert_eq!(refused.headers()["x-should-retry"], "false");
            assert_eq!(error(refused).await, (502, "api_error".to_owned()));
        }
        let longest = message(MODEL).replace(TEXT, &"x".repeat(15 * MIB));
        relayed.claude.will(FIRST, [whole(longest.clone())]);
        assert!(relayed.send().await.text().await.unwrap() == longest);
        assert_eq!(relayed.claude.keys(), [FIRST; 4]);
    }

    async fn an_answer_takes_of_its_keys_memory_until_it_is_read(app: TestApp) {
        let app = app.relaying(LITTLE).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, vec![whole(large()); 2]);
        let mut unread = unread(&app, &relayed).await;
        let mut long = asking(false);
        long["max_tokens"] = 10_000_000.into();
        let refused = relayed.request("/v1/messages", &long).send().await.unwrap();
        // It was answered: all of it counts, and to ask again would cost as much again.
        assert_eq!(refused.headers()["x-should-retry"], "false");
        assert!(!refused.headers().contains_key("retry-after"));
        assert_eq!(error(refused).await, (429, "rate_limit_error".to_owned()));
        let output: u64 = records(&app, "CAST(output_tokens AS text)", 2).await[1].parse().unwrap();
        assert!(output > 3_000_000, "{output}");
        // Of one that is translated there are two for a while.
        relayed.claude.will(FIRST, [whole(message(MODEL).replace(TEXT, &"x".repeat(3 * MIB)))]);
        let translated = relayed.request("/v1/chat/completions", &asking(false)).send().await.unwrap();
        assert_eq!(translated.json::<Value>().await.unwrap()["error"]["code"], "rate_limit_exceeded");
        let mut rest = Vec::new();
        unread.read_to_end(&mut rest).await.unwrap();
        assert!(rest.ends_with(large().as_bytes()));
        until_let_in(async || {
            relayed.claude.will(FIRST, [whole(large())]);
            relayed.send().await
        })
        .await;
    }

    async fn who_does_not_read_an_answer_loses_it(app: TestApp) {
        let app = app.relaying(RelayLimits { unread: Duration::from_millis(200), ..LITTLE }).await;
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [whole(large())]);
        let mut unread = unread(&app, &relayed).await;
        // Its memory is free again, though it still holds its connection.
        until_let_in(async || {
            relayed.claude.will(FIRST, [whole(large())]);
            relayed.send().await
        })
        .await;
        let mut rest = Vec::new();
        // The connection ends in whatever way.
        let _ = unread.read_to_end(&mut rest).await;
        assert!(rest.len() < 12 * MIB, "{} bytes", rest.len());
    }

    async fn of_models_only_what_is_known_is_kept(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let many = format!("[{}]", vec!["{\"id\":\"claude-x\",\"secret\":{\"a\":[1]}}"; 20_000].join(","));
        relayed.claude.will(FIRST, [whole(format!("{{\"has_more\":false,\"data\":{many}}}"))]);
        let list = relayed.get("/v1/models?limit=1000").send().await.unwrap().json::<Value>().await.unwrap();
        assert_eq!((list["data"].as_array().unwrap().len(), &list["has_more"]), (1_000, &Value::Bool(false)));
        assert_eq!(list["data"][0], json!({ "type": "model", "id": "claude-x" }));
    }
}
