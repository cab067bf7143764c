//! What open sockets and streams may take of the server, and how many there are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::graphql::{Asking, Unexecuted, authenticate};
use super::observe::RequestContext;
use super::router::Server;
use super::subscription::End;
use crate::identity::{Actor, Changes};
use crate::limits::Network;
use crate::model::{Timestamp, UserId};

/// How many callers may be looked at again at once: requests are to find a connection to the database beside them.
const LOOKS: usize = 4;
/// How long a look may take: where the database hangs, all others wait for their turn.
const LOOK: Duration = Duration::from_secs(5);

/// How long the caller may take to read the last messages, and to answer that a socket is closed: nobody keeps a place by not reading.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// The limits of sockets and streams.
#[derive(Debug, Clone, Copy)]
pub struct LiveLimits {
    /// How long a socket may take to begin.
    pub init: Duration,
    /// How often a socket is asked whether it is there, and who it belongs to is looked at again.
    pub ping: Duration,
    /// How long a socket may take to read a message.
    pub write: Duration,
    /// How often a stream of events says that it is there.
    pub keep_alive: Duration,
    /// How many operations may run on a socket.
    pub operations: usize,
    /// How many messages may wait for a socket to read them. What makes more waits too.
    pub queue: usize,
    /// How many sockets there may be.
    pub sockets: usize,
    /// How many sockets and streams a user may have.
    pub per_holder: usize,
    /// How many an address may have that are nobody's, or not yet anybody's.
    pub per_address: usize,
    /// For how long a subscription tries again where the server cannot do what it should: then its caller is sent away, to come again.
    pub retry: Duration,
    /// For how long it tries again where the caller has no more requests, or an event takes too long for what is asked of it.
    pub patience: Duration,
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
            per_address: 50,
            // As long as an access token lives. A database that is upgraded or fails over is away for a minute or two.
            retry: Duration::from_secs(15 * 60),
            patience: Duration::from_secs(30),
        }
    }
}

/// The sockets and streams that are open.
pub(super) struct Live {
    pub(super) limits: LiveLimits,
    sockets: Arc<Semaphore>,
    holders: Arc<Mutex<HashMap<Holder, usize>>>,
    /// Turns to look at callers again: all want to at once, where access has changed.
    looks: Semaphore,
}

/// Whose a socket or stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    User(UserId),
    /// Nobody's yet, or for good.
    Network(Network),
}

/// One place among those that a holder may have; of an address among those of each network that it counts with.
pub(super) struct Held {
    holders: Arc<Mutex<HashMap<Holder, usize>>>,
    of: Vec<Holder>,
}

impl Live {
    pub(super) fn new(limits: LiveLimits) -> Self {
        Self {
            limits,
            sockets: Arc::new(Semaphore::new(limits.sockets)),
            holders: Arc::default(),
            looks: Semaphore::new(LOOKS),
        }
    }

    /// A place for one more socket, unless there is none.
    pub(super) fn socket(&self) -> Option<OwnedSemaphorePermit> {
        self.sockets.clone().try_acquire_owned().ok()
    }

    /// A place for one more socket or stream of this caller, unless they have too many.
    pub(super) fn hold(&self, actor: &Actor, address: IpAddr) -> Option<Held> {
        match actor.signed_in() {
            Some(user) => self.hold_for(&[(Holder::User(user.user), self.limits.per_holder)]),
            None => self.hold_at(address),
        }
    }

    /// A place for one more socket from this address, of which nobody knows yet whose it is.
    pub(super) fn hold_at(&self, address: IpAddr) -> Option<Held> {
        let limit = |factor| self.limits.per_address.saturating_mul(usize::try_from(factor).unwrap_or(usize::MAX));
        let networks = Network::all_of(address).map(|(network, factor)| (Holder::Network(network), limit(factor)));
        self.hold_for(&networks.collect::<Vec<_>>())
    }

    fn hold_for(&self, places: &[(Holder, usize)]) -> Option<Held> {
        let mut holders = locked(&self.holders);
        if places.iter().any(|(holder, limit)| holders.get(holder).copied().unwrap_or_default() >= *limit) {
            return None;
        }
        let of: Vec<_> = places.iter().map(|(holder, _)| *holder).collect();
        for holder in &of {
            *holders.entry(*holder).or_default() += 1;
        }
        Some(Held { holders: self.holders.clone(), of })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holders = locked(&self.holders);
        for holder in &self.of {
            if let Some(count) = holders.get_mut(holder) {
                *count -= 1;
                if *count == 0 {
                    holders.remove(holder);
                }
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
    /// Who it is now, as [`authenticate`] says; a few at once.
    pub(super) async fn look(&self, server: &Server) -> Result<Asking, Unexecuted> {
        // Nobody closes it.
        let _turn = server.live.looks.acquire().await;
        let looked = authenticate(server, &self.headers, self.context.client_address);
        timeout(LOOK, looked).await.unwrap_or_else(|_| {
            let message = "The server cannot do this at the moment. Try again later.";
            Err(Unexecuted::new(StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", message))
        })
    }

    /// When the access token that it was opened with expires, if there is one that is good.
    pub(super) fn expires_at(&self, server: &Server) -> Option<Timestamp> {
        let now = server.services.clock.now();
        bearer(&self.headers).and_then(|token| server.services.authenticator.tokens().expires_at(token, now).ok())
    }

    /// Waits until what it was opened with opens nothing any more, or may not this any more, and says why: at once after a change of a session, an API key or
    /// a user on this server or one that is heard, when an access token expires, and within a ping where another server that is not
    /// heard made the change. Never, where it was opened as nobody.
    ///
    /// `changes` is from before the caller was looked at first, so that no change falls between.
    pub(super) async fn ended(self, server: Arc<Server>, mut changes: Changes, may: fn(&Actor) -> bool) -> End {
        let clock = &server.services.clock;
        let expires_at = self.expires_at(&server);
        let left = expires_at.map(|at| (at - clock.now()).to_std().unwrap_or_default());
        let mut expired = std::pin::pin!(async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        });
        loop {
            tokio::select! {
                () = &mut expired => return End::Expired,
                () = changes.next() => {}
                () = tokio::time::sleep(server.live.limits.ping) => {}
            }
            // Where the database cannot be asked, nothing is sent either.
            if self.look(&server).await.is_ok_and(|asking| asking.is_refused || !may(&asking.actor)) {
                return End::of(expires_at, clock.now());
            }
        }
    }
}

/// Of the changes those that may concern the caller, who was looked at.
pub(super) fn concerning(changes: Changes, actor: &Actor) -> Changes {
    match actor.access() {
        Some(access) => changes.of(access.organization()),
        None => changes,
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(axum::http::header::AUTHORIZATION)?.to_str().ok()?;
    value.split_once(' ').map(|(_, token)| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let live = Live::new(LiveLimits { per_address: 1, ..LiveLimits::default() });
        let place = |address: &str| live.hold_at(address.parse().unwrap());
        let first = place("2001:db8::1");
        assert!(first.is_some());
        assert!(place("2001:db8::ffff:0:0:1").is_none());
        let other = place("2001:db8:0:1::1");
        assert!(other.is_some());
        drop(first);
        assert!(place("2001:db8::2").is_some());
        let v4 = place("192.0.2.1");
        assert!(v4.is_some() && place("::ffff:192.0.2.1").is_none() && place("192.0.2.2").is_some());
        // Of a wider network there are more, and not any number.
        let held: Vec<_> = (0..20).filter_map(|n| place(&format!("2001:db8:1:{n}::1"))).collect();
        assert_eq!(held.len(), 16);
        drop(held);
        assert!(place("2001:db8:1:99::1").is_some());
    }
}
