//! What `bench/relay` measures with: an upstream that answers at once, a load of so many connections, each a thread that sends and
//! reads and does nothing else, and a proxy by the relay's own libraries that passes on what comes: what any relay must cost.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::uri::PathAndQuery;
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt as _;
use clap::Parser;
use futures_util::stream;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

/// The model whose streams take their time.
const SLOW: &str = "claude-haiku-4-5";
/// How many pieces of text a stream has.
const PIECES: usize = 20;
const USAGE: &str = r#"{"input_tokens":25,"cache_creation_input_tokens":30,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":20,"ephemeral_1h_input_tokens":10},"output_tokens":60}"#;

#[derive(Parser)]
enum Command {
    /// Answers whatever is posted, and says where it is.
    Upstream,
    /// Passes on whatever comes to this address, and says where it is.
    Proxy {
        address: String,
    },
    Load(Load),
}

/// Sends messages, and prints how many a second were answered, and how fast.
#[derive(Parser, Clone)]
struct Load {
    /// Where to, as `127.0.0.1:80`.
    address: String,
    /// The API key.
    #[arg(long, default_value = "none")]
    key: String,
    #[arg(long, default_value_t = 16)]
    connections: u32,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Ends when so many were answered.
    #[arg(long)]
    requests: Option<u64>,
    /// So many a second, whether answers come or not; left out: each connection sends the next when it has the answer.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long)]
    stream: bool,
    /// Streams that take their time: says when all have begun, and ends with them.
    #[arg(long)]
    slow: bool,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    match Command::parse() {
        Command::Upstream => serve(Router::new().fallback(answer)).await,
        Command::Proxy { address } => serve(proxy(address)).await,
        Command::Load(load) => tokio::task::spawn_blocking(move || load.run()).await?,
    }
}

async fn serve(routes: Router) -> io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listens on {}", listener.local_addr()?);
    // Or a piece waits until the one before it is acknowledged.
    let listener = listener.tap_io(|socket| drop(socket.set_nodelay(true)));
    axum::serve(listener, routes).await
}

fn proxy(address: String) -> Router {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build(connector);
    let pass = async move |mut request: Request| {
        let asked = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let uri = format!("http://{address}{asked}");
        *request.uri_mut() = uri.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
        let answered = client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        Ok::<_, StatusCode>(answered.map(Body::new))
    };
    Router::new().fallback(pass)
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    model: String,
}

async fn answer(body: Bytes) -> Response {
    let asked = serde_json::from_slice(&body).unwrap_or(Asked { stream: false, model: String::new() });
    if !asked.stream {
        return ([(CONTENT_TYPE, "application/json")], message(&asked.model)).into_response();
    }
    let events =
        stream::unfold((events(&asked.model).into_iter(), asked.model == SLOW), async |(mut events, is_slow)| {
            // Each event goes out by itself, as upstreams send them.
            if is_slow {
                tokio::time::sleep(Duration::from_millis(500)).await;
            } else {
                tokio::task::yield_now().await;
            }
            Some((Ok::<_, io::Error>(events.next()?), (events, is_slow)))
        });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

fn message(model: &str) -> String {
    let text = "word ".repeat(50);
    format!(
        r#"{{"id":"msg_1","type":"message","role":"assistant","model":"{model}","content":[{{"type":"text","text":"{text}"}}],"stop_reason":"end_turn","stop_sequence":null,"usage":{USAGE}}}"#
    )
}

fn events(model: &str) -> Vec<String> {
    let event = |name: &str, data: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\"{data}}}\n\n");
    let start = format!(
        r#","message":{{"id":"msg_1","type":"message","role":"assistant","model":"{model}","content":[],"stop_reason":null,"stop_sequence":null,"usage":{USAGE}}}"#
    );
    let mut events = vec![
        event("message_start", &start),
        event("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#),
        event("ping", ""),
    ];
    let piece = r#","index":0,"delta":{"type":"text_delta","text":"a few words "}"#;
    events.extend((0..PIECES).map(|_| event("content_block_delta", piece)));
    events.push(event("content_block_stop", r#","index":0"#));
    let end = r#","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":60}"#;
    events.extend([event("message_delta", end), event("message_stop", "")]);
    events
}

/// What one connection has seen.
#[derive(Default)]
struct Seen {
    /// Microseconds to the whole answer, and to its first piece.
    whole: Vec<u64>,
    first: Vec<u64>,
    failed: u64,
}

impl Load {
    fn run(&self) -> io::Result<()> {
        let (begun, sent) = (&Barrier::new(self.connections as usize), &AtomicU64::new(0));
        let started = Instant::now();
        let all: io::Result<Vec<Seen>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.connections)
                .map(|n| {
                    let of_one = move || self.one(n, started, begun, sent);
                    thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, of_one)
                })
                .collect::<io::Result<_>>()?;
            threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a thread broke"))?).collect()
        });
        let (all, elapsed) = (all?, started.elapsed().as_secs_f64());
        let sorted = |of: fn(&Seen) -> &Vec<u64>| {
            let mut times: Vec<_> = all.iter().flat_map(of).copied().collect();
            times.sort_unstable();
            times
        };
        let (whole, first) = (sorted(|seen| &seen.whole), sorted(|seen| &seen.first));
        let at = |times: &[u64], hundredth: usize| times.get(times.len() * hundredth / 100).copied().unwrap_or(0);
        let failed: u64 = all.iter().map(|seen| seen.failed).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = whole.len() as f64 / elapsed;
        println!("{rate:.0} {} {} {} {failed}", at(&whole, 50), at(&whole, 99), at(&first, 50));
        Ok(())
    }

    fn one(&self, n: u32, started: Instant, begun: &Barrier, sent: &AtomicU64) -> io::Result<Seen> {
        let mut connection = Connection::new(&self.address)?;
        let (request, mut seen) = (self.request(), Seen::default());
        for k in 0.. {
            // The connections take turns.
            let due =
                self.rate.map(|rate| started + Duration::from_secs_f64(f64::from(n + k * self.connections) / rate));
            if let Some(due) = due {
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let is_over = match self.requests {
                Some(requests) => sent.fetch_add(1, Ordering::Relaxed) >= requests,
                None => started.elapsed().as_secs_f64() >= self.seconds,
            };
            if is_over || (self.slow && k > 0) {
                break;
            }
            // What was due and could not be sent has waited.
            let from = due.unwrap_or_else(Instant::now);
            let micros = || u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX);
            connection.0.get_mut().write_all(&request)?;
            let mut first = None;
            let is_success = connection.read(|| {
                if first.is_none() && self.slow && begun.wait().is_leader() {
                    println!("all have begun");
                }
                first.get_or_insert_with(micros);
            })?;
            seen.failed += u64::from(!is_success);
            seen.whole.push(micros());
            seen.first.extend(first);
        }
        Ok(seen)
    }

    fn request(&self) -> Vec<u8> {
        let text = "Why is the sky blue, and the sea? ".repeat(10);
        let (stream, model) = (self.stream || self.slow, if self.slow { SLOW } else { "claude-sonnet-5-5" });
        let body = format!(
            r#"{{"model":"{model}","max_tokens":1024,"stream":{stream},"messages":[{{"role":"user","content":"{text}"}}]}}"#
        );
        let Self { address, key, .. } = self;
        let length = body.len();
        format!(
            "POST /v1/messages?beta=true HTTP/1.1\r\nhost: {address}\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n\
             content-type: application/json\r\nuser-agent: bench\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// A connection, as far as reading answers needs it.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(address: &str) -> io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        Ok(Self(BufReader::new(socket)))
    }

    /// Reads an answer, and tells when a piece of its body is there. Returns whether it is a success.
    fn read(&mut self, mut piece: impl FnMut()) -> io::Result<bool> {
        let status = self.line()?;
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().ok(),
                Some(_) => {}
                None => break,
            }
        }
        if let Some(length) = length {
            self.skip(length)?;
            piece();
        } else {
            loop {
                let size = u64::from_str_radix(&self.line()?, 16).map_err(io::Error::other)?;
                if size > 0 {
                    piece();
                }
                self.skip(size + 2)?;
                if size == 0 {
                    break;
                }
            }
        }
        Ok(status.starts_with("HTTP/1.1 200"))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let there = self.0.fill_buf()?.len();
            if there == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let some = there.min(usize::try_from(left).unwrap_or(there));
            self.0.consume(some);
            left -= some as u64;
        }
        Ok(())
    }
}
