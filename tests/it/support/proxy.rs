//! A proxy on loopback between a server and what it needs: it lets through, delays, cuts, or falls silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of a connection's bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    /// How long each piece is held up, in either direction.
    delay: Duration,
    /// Connections up to this one, the first is 1, get and send nothing any more, and are told nothing of it.
    silent_to: usize,
    /// Connections up to this one are closed.
    cut_to: usize,
    /// Whether new connections get nowhere either.
    is_silent: bool,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    rules: watch::Sender<Rules>,
    /// How many connections there were.
    count: Arc<AtomicUsize>,
}

impl Proxy {
    /// In front of a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            rules: watch::Sender::new(Rules::default()),
            count: Arc::default(),
        };
        let (rules, count) = (proxy.rules.subscribe(), proxy.count.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let nth = count.fetch_add(1, Ordering::SeqCst) + 1;
                let mut rules = rules.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    let pumps = futures_util::future::join(
                        pump(near_in, far_out, nth, rules.clone()),
                        pump(far_in, near_out, nth, rules.clone()),
                    );
                    tokio::select! {
                        _ = pumps => {}
                        // Or the proxy is gone, and its connections with it.
                        _ = rules.wait_for(|rules| nth <= rules.cut_to) => {}
                    }
                });
            }
        });
        proxy
    }

    /// In front of what a URL names on this machine, and the URL of the way through the proxy.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let parsed = url::Url::parse(url).unwrap();
        let port = parsed.port().unwrap();
        let proxy = Self::to(port).await;
        let through = url.replacen(&format!(":{port}"), &format!(":{}", proxy.port), 1);
        (proxy, through)
    }

    /// Holds each piece up for so long, from now on.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.rules.send_modify(|rules| rules.delay = delay);
    }

    /// Lets nothing pass any more, on any connection, and tells nobody.
    pub(crate) fn fall_silent(&self) {
        self.rules.send_modify(|rules| rules.is_silent = true);
    }

    /// Lets everything pass again, on every connection that is not forgotten.
    pub(crate) fn go_on(&self) {
        self.rules.send_modify(|rules| (rules.is_silent, rules.delay) = (false, Duration::ZERO));
    }

    /// Falls silent for good on the connections that there are; new ones pass.
    pub(crate) fn forget_connections(&self) {
        let count = self.connections();
        self.rules.send_modify(|rules| (rules.silent_to, rules.is_silent) = (count, false));
    }

    /// Closes the connections that there are.
    pub(crate) fn cut(&self) {
        let count = self.connections();
        self.rules.send_modify(|rules| rules.cut_to = count);
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// Passes on what is read, as the rules have it, to the end.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, nth: usize, mut rules: watch::Receiver<Rules>) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let delay = rules.borrow().delay;
        tokio::time::sleep(delay).await;
        if rules.wait_for(|rules| !rules.is_silent && nth > rules.silent_to).await.is_err() {
            return;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
