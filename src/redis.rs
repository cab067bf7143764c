//! Redis, where `REDIS_URL` is set: one connection that all share, known to be there or away, and made anew by itself.
//!
//! Nobody waits for a Redis that is away: whoever asks is told at once, and does what is right without it.

use std::error::Error;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Script};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio::time::{error::Elapsed, sleep, timeout};

/// How long an answer is waited for. A request waits for it, and Redis answers within a millisecond.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How often one that is there is asked whether it still is.
const CHECK: Duration = Duration::from_secs(5);
/// How often one that is away is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Writes, by a script: a replica, one that is full or one that runs no scripts answers a PING, and is of no use.
static PROBE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('SET', 'claviger:probe', 1, 'PX', 10000)"));

/// Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis is away")]
pub struct Away;

/// The URL is none that Redis could be found by.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InvalidUrl(RedisError);

/// Redis.
pub struct Redis {
    client: Client,
    /// The connection; none while Redis is away.
    link: watch::Sender<Option<Arc<MultiplexedConnection>>>,
}

impl Redis {
    /// Connects, and keeps the connection up for as long as what is returned lives. A Redis that is away is no error: it may come
    /// at any time.
    ///
    /// # Errors
    /// Where the URL is none of Redis.
    pub async fn open(url: &SecretString) -> Result<Arc<Self>, InvalidUrl> {
        let client = Client::open(url.expose_secret()).map_err(InvalidUrl)?;
        let redis = Arc::new(Self { client, link: watch::Sender::new(None) });
        if let Err(error) = redis.connect().await {
            tracing::warn!(error = &*error as &dyn Error, "Redis is away");
        }
        tokio::spawn(keep(redis.link.subscribe(), Arc::downgrade(&redis)));
        Ok(redis)
    }

    /// Whether Redis is there, as far as is known.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Asks something over the shared connection. One question is not to block the connection for others: no `BLPOP`, no
    /// subscription.
    ///
    /// # Errors
    /// Where Redis is away, answers too late, or answers with an error: then it counts as away until it has proved otherwise.
    pub async fn ask<T, F>(&self, question: impl FnOnce(MultiplexedConnection) -> F) -> Result<T, Away>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let link = self.link.borrow().clone().ok_or(Away)?;
        match timeout(PATIENCE, question((*link).clone())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.lose(&link, &error)),
            Err(late) => Err(self.lose(&link, &late)),
        }
    }

    /// Tells whoever is subscribed to the channel.
    ///
    /// # Errors
    /// As for [`Redis::ask`]; but a Redis that does not let us is not away.
    pub async fn publish(&self, channel: &str, text: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
        let publish = async |mut link: MultiplexedConnection| match redis::cmd("PUBLISH")
            .arg(channel)
            .arg(text)
            .query_async::<()>(&mut link)
            .await
        {
            Err(error) if error.code().is_some() => Ok(Err(error)),
            answer => answer.map(Ok),
        };
        Ok(self.ask(publish).await??)
    }

    /// Subscribes to a channel, on a connection of its own.
    ///
    /// # Errors
    /// Where Redis is away.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, Box<dyn Error + Send + Sync>> {
        let (sink, texts) = timeout(CONNECT, async {
            let mut connection = self.client.get_async_pubsub().await?;
            connection.subscribe(channel).await?;
            Ok::<_, RedisError>(connection.split())
        })
        .await??;
        Ok(Subscription { _sink: sink, texts })
    }

    /// Many may find out at once: the first says so, and none takes away the connection that came after.
    fn lose(&self, link: &Arc<MultiplexedConnection>, error: &(dyn Error + 'static)) -> Away {
        let is_first = self.link.send_if_modified(|current| {
            let is_current = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
            current.take_if(|_| is_current);
            is_current
        });
        if is_first {
            tracing::warn!(error, "Redis is away");
        }
        Away
    }

    async fn connect(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        // Who asks has its own patience, with all that a question takes.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        timeout(PATIENCE, probe(connection.clone())).await??;
        self.link.send_replace(Some(Arc::new(connection)));
        Ok(())
    }
}

/// A connection that hears what is told on a channel.
pub struct Subscription {
    /// The connection ends with it.
    _sink: PubSubSink,
    texts: PubSubStream,
}

impl Subscription {
    /// The next text; none: the connection broke. Nothing is lost where the wait is given up.
    pub async fn next(&mut self) -> Option<String> {
        let message = self.texts.next().await?;
        // What is no text comes from nobody that is known: empty, it says nothing that anybody knows.
        Some(message.get_payload().unwrap_or_default())
    }
}

async fn probe(mut connection: MultiplexedConnection) -> RedisResult<()> {
    PROBE.prepare_invoke().invoke_async(&mut connection).await
}

/// Looks after Redis until nobody has it any more.
async fn keep(mut link: watch::Receiver<Option<Arc<MultiplexedConnection>>>, redis: Weak<Redis>) {
    loop {
        let is_there = link.borrow_and_update().is_some();
        if is_there {
            match timeout(CHECK, link.changed()).await {
                // It has gone: not tried again at once, since it may come and go.
                Ok(Ok(())) => continue,
                Ok(Err(_)) => return,
                Err(Elapsed { .. }) => {}
            }
        } else {
            sleep(RETRY).await;
        }
        let Some(redis) = redis.upgrade() else { return };
        if is_there {
            // Where it fails, Redis counts as away.
            let _ = redis.ask(probe).await;
        } else {
            match redis.connect().await {
                Ok(()) => tracing::info!("Redis is there"),
                Err(error) => tracing::debug!(error = &*error as &dyn Error, "Redis is still away"),
            }
        }
    }
}
