//! Connections: how many there may be, how long one may take to ask, and how they end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::serve::{Listener as _, ListenerExt as _};
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// What callers may take of the server before they are known.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long the head of a request may be on its way, and how long a connection may be idle.
    pub head: Duration,
    /// How many connections there may be. Further callers wait until one ends.
    pub connections: usize,
    /// How long callers may take to read what they were answered, once the server is told to stop.
    pub farewell: Duration,
    /// How long answers that go on may do so then.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Proxies keep idle connections for a minute, as a rule: a server that closed them sooner would do so under a request.
        Self {
            head: Duration::from_secs(75),
            connections: 10_000,
            farewell: Duration::from_secs(5),
            drain: Duration::from_secs(20),
        }
    }
}

/// Serves until it is told to stop. Then no connection is taken any more, and what runs is finished; but nobody is waited for who
/// does not read their answer.
pub async fn serve(listener: TcpListener, routes: Router, limits: Limits, stop: CancellationToken) {
    let mut listener = listener.tap_io(|stream| {
        // Without it an answer's last packet may wait for the caller to acknowledge those before. The answer comes all the same.
        let _ = stream.set_nodelay(true);
    });
    let builder = builder(limits);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (listener.accept().await, slot)
        };
        let ((stream, peer), slot) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        let (builder, routes, stop) = (builder.clone(), routes.clone(), stop.clone());
        connections.spawn(async move {
            connection(&builder, stream, peer, routes, limits, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn builder(limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    // A caller of HTTP/2 that is gone without a word is found by pings. WebSockets are for HTTP/1.1: CONNECT is not offered.
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(250);
    builder
}

async fn connection(
    builder: &Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    routes: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = has_asked.clone();
    let (handled, mut handling) = watch::channel(0_usize);
    let handled = Arc::new(handled);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(Handling(handled.clone()));
        let answer = routes.clone().oneshot(request);
        let one = Handled::one_of(&handled);
        async move {
            let answer = answer.await;
            drop(one);
            answer
        }
    });
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut stopped = pin!(stop.cancelled().fuse());
    let mut left_alone = pin!(async {
        stop.cancelled().await;
        tokio::select! {
            () = nothing_left(&mut handling, limits.farewell) => {}
            () = tokio::time::sleep(limits.drain) => {}
        }
    });
    // hyper's own limit begins where it knows the version of HTTP, which a caller that says nothing never tells.
    let mut first_head = pin!(tokio::time::sleep(limits.head).fuse());
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error = &*error as &dyn std::error::Error, %peer, "a connection broke off");
                }
                return;
            }
            () = &mut stopped => connection.as_mut().graceful_shutdown(),
            () = &mut left_alone => return,
            () = &mut first_head => if !has_asked.load(Ordering::Relaxed) { return },
        }
    }
}

/// Waits until nothing was handled for so long.
async fn nothing_left(handling: &mut watch::Receiver<usize>, farewell: Duration) {
    // The service holds the sender as long as there is a connection.
    while handling.wait_for(|count| *count == 0).await.is_ok()
        && tokio::time::timeout(farewell, handling.wait_for(|count| *count > 0)).await.is_ok()
    {}
}

/// How much a connection handles, among a request's extensions: for answers that go on after they have begun.
#[derive(Clone)]
pub(super) struct Handling(Arc<watch::Sender<usize>>);

impl Handling {
    /// Counts one until it is dropped.
    pub(super) fn one(&self) -> Handled {
        Handled::one_of(&self.0)
    }
}

/// Counts a request until it is answered, or given up.
pub(super) struct Handled(Arc<watch::Sender<usize>>);

impl Handled {
    fn one_of(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// A server that says whom it serves.
    async fn start(limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, routes, limits, stop.clone()));
        (address, stop, task)
    }

    async fn sent(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// All that the server sends until it closes the connection.
    async fn received(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A connection that is reset is closed as well.
        let _ = stream.read_to_end(&mut bytes).await;
        bytes
    }

    #[tokio::test]
    async fn whoever_does_not_finish_asking_is_cut_off() {
        let (address, ..) = start(Limits { head: SHORT, ..Limits::default() }).await;
        for (bytes, answers) in [
            (&b""[..], 0),
            (b"PRI * HT", 0),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
            (b"GET / HT", 0),
            (b"GET / HTTP/1.1\r\nhost: x\r\n", 0),
            (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 1),
            (b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT", 1),
        ] {
            let text = received(&mut sent(address, bytes).await).await;
            let text = String::from_utf8_lossy(&text);
            assert_eq!(text.matches("HTTP/1.1 200 OK").count(), answers, "{bytes:?}: {text}");
        }
    }

    #[tokio::test]
    async fn a_caller_waits_for_a_connection_that_may_be_had() {
        let (address, ..) = start(Limits { head: SHORT, connections: 1, ..Limits::default() }).await;
        let silent = sent(address, b"").await;
        let mut asking = sent(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let own = asking.local_addr().unwrap().to_string();
        assert!(String::from_utf8(received(&mut asking).await).unwrap().ends_with(&own));
        // Answered after the other was closed, so that reading it does not wait.
        assert_eq!(silent.into_std().unwrap().read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn stopping_ends_connections_that_ask_for_nothing() {
        let (address, stop, task) = start(Limits::default()).await;
        let mut silent = sent(address, b"").await;
        let mut idle = sent(address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        idle.read_u8().await.unwrap();
        stop.cancel();
        received(&mut silent).await;
        received(&mut idle).await;
        task.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn stopping_waits_for_answers_but_not_for_those_who_do_not_read_them() {
        const LARGE: usize = 64 * 1024 * 1024;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, asked) = (CancellationToken::new(), Arc::new(Semaphore::new(0)));
        let (stopped, begun) = (stop.clone(), asked.clone());
        let late = get(async move || {
            begun.add_permits(1);
            stopped.cancelled().await;
            // Longer than anybody may take to read.
            tokio::time::sleep(4 * SHORT).await;
            "late"
        });
        let routes = Router::new().route("/large", get(async || vec![0; LARGE])).route("/late", late);
        let limits = Limits { farewell: SHORT, ..Limits::default() };
        let task = tokio::spawn(serve(listener, routes, limits, stop.clone()));
        let mut silent = sent(address, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
        silent.readable().await.unwrap();
        let mut patient = sent(address, b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n").await;
        asked.acquire().await.unwrap().forget();
        stop.cancel();
        assert!(received(&mut patient).await.ends_with(b"late"));
        task.await.unwrap();
        assert!(received(&mut silent).await.len() < LARGE);
    }
}
