//! What open sockets and streams may take of the server, and how many there are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::graphql::authenticate;
use super::observe::RequestContext;
use super::router::Server;
use crate::identity::Actor;
use crate::model::UserId;

/// The limits of sockets and streams.
#[derive(Debug, Clone, Copy)]
pub struct LiveLimits {
    /// How long a socket may take to begin.
    pub init: Duration,
    /// How often a socket is asked whether it is there, and who it belongs to is looked at again. One that says nothing from one
    /// time to the next is closed.
    pub ping: Duration,
    /// How long a socket may take to read what it is sent.
    pub write: Duration,
    /// How often a stream of events says that it is there.
    pub keep_alive: Duration,
    /// How many operations may run on a socket.
    pub operations: usize,
    /// How many messages may wait for a socket to read them. What makes more waits too.
    pub queue: usize,
    /// How many sockets there may be.
    pub sockets: usize,
    /// How many sockets and streams a user may have; of those that are nobody's, an address.
    pub per_holder: usize,
}

impl Default for LiveLimits {
    fn default() -> Self {
        Self {
            init: Duration::from_secs(10),
            ping: Duration::from_secs(25),
            write: Duration::from_secs(30),
            // Proxies give up on an answer that is silent for a minute, as a rule, some after 15 seconds.
            keep_alive: Duration::from_secs(12),
            operations: 50,
            queue: 16,
            sockets: 5_000,
            per_holder: 100,
        }
    }
}

/// The sockets and streams that are open.
pub(super) struct Live {
    pub(super) limits: LiveLimits,
    sockets: Arc<Semaphore>,
    holders: Arc<Mutex<HashMap<Holder, usize>>>,
}

/// Whose a socket or stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    User(UserId),
    Nobody(IpAddr),
}

/// One place among those that a holder may have, for as long as it lives.
pub(super) struct Held {
    holders: Arc<Mutex<HashMap<Holder, usize>>>,
    holder: Holder,
}

impl Live {
    pub(super) fn new(limits: LiveLimits) -> Self {
        Self { limits, sockets: Arc::new(Semaphore::new(limits.sockets)), holders: Arc::default() }
    }

    /// A place for one more socket, unless there is none.
    pub(super) fn socket(&self) -> Option<OwnedSemaphorePermit> {
        self.sockets.clone().try_acquire_owned().ok()
    }

    /// A place for one more socket or stream of this caller, unless they have too many.
    pub(super) fn hold(&self, actor: &Actor, address: IpAddr) -> Option<Held> {
        let holder = actor.signed_in().map_or(Holder::Nobody(address), |user| Holder::User(user.user));
        let mut holders = locked(&self.holders);
        let count = holders.entry(holder).or_default();
        if *count >= self.limits.per_holder {
            return None;
        }
        *count += 1;
        Some(Held { holders: self.holders.clone(), holder })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holders = locked(&self.holders);
        if let Some(count) = holders.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                holders.remove(&self.holder);
            }
        }
    }
}

fn locked(holders: &Mutex<HashMap<Holder, usize>>) -> MutexGuard<'_, HashMap<Holder, usize>> {
    // A panic cannot leave a count half done.
    holders.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who asks over a socket or stream: what it was opened with is looked at again and again.
#[derive(Clone)]
pub(super) struct Asker {
    /// The headers that say who asks, and with which program.
    pub(super) headers: HeaderMap,
    pub(super) context: RequestContext,
}

impl Asker {
    /// Waits until what it was opened with opens nothing any more: at once after any change of a session or a user on this
    /// server, when an access token expires, and within a ping where another server made the change. Never, where it was opened
    /// as nobody.
    ///
    /// `changes` is from before the caller was looked at first, so that no change falls between.
    pub(super) async fn ended(self, server: Arc<Server>, mut changes: watch::Receiver<()>) {
        let authenticator = &server.services.authenticator;
        let now = server.services.clock.now();
        let expiry = bearer(&self.headers).and_then(|token| authenticator.tokens().expires_at(token, now).ok());
        let left = expiry.map(|expiry| (expiry - now).to_std().unwrap_or_default());
        let mut expired = std::pin::pin!(async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        });
        loop {
            let has_expired = tokio::select! {
                () = &mut expired => true,
                // The authenticator lives as long as the server.
                _ = changes.changed() => false,
                () = tokio::time::sleep(server.live.limits.ping) => false,
            };
            // Where the database cannot be asked, nothing is sent either.
            let asking = authenticate(&server, &self.headers, self.context.client_address).await;
            if has_expired || asking.is_ok_and(|asking| asking.is_refused) {
                return;
            }
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(axum::http::header::AUTHORIZATION)?.to_str().ok()?;
    value.split_once(' ').map(|(_, token)| token.trim())
}
