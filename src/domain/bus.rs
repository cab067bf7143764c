//! What servers on the same database tell each other, and what it changes here.
//!
//! By Redis where there is one, else by PostgreSQL, else not at all: then, and for as long as the way is broken, what others do is
//! noticed as late as it is without (`super::commits`, and a cache of seconds).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::commits::Told;
use super::context::Services;
use super::error::Result;
use crate::events::{CHANNEL, Measures, Message, News, Transport};
use crate::model::ResourceType;
use crate::redis::Subscription;
use crate::store::Announcements;

/// How soon it is tried again to hear the others, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How soon at last.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often a server tells itself something, to know that it hears.
const CHECK: Duration = Duration::from_secs(10);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried again to tell what could not be told.
const RETRY: Duration = Duration::from_secs(1);

/// What is remembered of telling and hearing.
#[derive(Debug, Default)]
pub struct Bus {
    /// How it goes, for the metrics.
    pub measures: Measures,
    /// What others have told of their commits.
    pub(super) told: Told,
    /// Whether something could not be told to the others.
    has_untold: AtomicBool,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// By what this server and the others tell each other something, if by anything.
fn transport(services: &Services) -> Option<Transport> {
    if services.redis.is_some() {
        Some(Transport::Redis)
    } else {
        services.db.can_notify().then_some(Transport::Postgres)
    }
}

/// The channel in Redis, which several installations may share.
fn channel(services: &Services) -> String {
    format!("{CHANNEL}:{}", services.home)
}

async fn publish(services: &Services, news: News) -> Result<(), Cause> {
    let message = Message { from: services.instance.clone(), news };
    match &services.redis {
        Some(redis) => redis.publish(&channel(services), &message.to_string()).await,
        None => Ok(services.db.notify(&message).await?),
    }
}

/// Tells the others. PostgreSQL has done so with the commit; a Redis that is away is not waited for.
pub(super) async fn tell(services: &Services, news: News) {
    if services.redis.is_none() {
        return;
    }
    // That something was not told before says more than this.
    let has_untold = services.bus.has_untold.swap(false, Ordering::Relaxed);
    let news = if has_untold { News::Missed } else { news };
    if let Err(error) = publish(services, news).await {
        services.bus.has_untold.store(true, Ordering::Relaxed);
        // Said once, not with each try.
        if !has_untold {
            tracing::warn!(
                error = &*error as &dyn std::error::Error,
                "other servers were not told: they notice seconds later"
            );
        }
    }
}

/// Hears the others, and tells them what could not be told, until the server is told to stop.
pub async fn follow(services: Arc<Services>, stop: CancellationToken) {
    if let Some(transport) = transport(&services) {
        services.bus.measures.begin(transport);
        let work = async { tokio::join!(hear(&services, transport), tell_again(&services)) };
        stop.run_until_cancelled(Box::pin(work)).await;
    }
}

/// Nobody need do anything here for the others to be told: what was not told may have been the last for long.
async fn tell_again(services: &Services) {
    loop {
        sleep(RETRY).await;
        if services.bus.has_untold.load(Ordering::Relaxed) {
            tell(services, News::Missed).await;
        }
    }
}

async fn hear(services: &Services, transport: Transport) {
    let (mut pause, mut is_said) = (FIRST_PAUSE, false);
    loop {
        let mut was_heard = false;
        let cause = hear_until_it_ends(services, transport, &mut was_heard).await;
        if was_heard {
            services.bus.measures.interrupted(transport);
            pause = FIRST_PAUSE;
        }
        // Said once, not with each try.
        if was_heard || !is_said {
            let error = &*cause as &dyn std::error::Error;
            tracing::warn!(error, ?transport, "other servers are not heard: what they do is noticed seconds later");
            is_said = true;
        } else {
            tracing::debug!(error = &*cause as &dyn std::error::Error, "other servers are still not heard");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// A way to hear the others.
enum Others {
    Postgres(Announcements),
    Redis(Subscription),
}

async fn connect(services: &Services, transport: Transport) -> Result<Others, Cause> {
    match (transport, &services.redis) {
        (Transport::Redis, Some(redis)) => Ok(Others::Redis(redis.subscribe(&channel(services)).await?)),
        _ => Ok(Others::Postgres(services.db.listen().await?.ok_or("the database tells nothing")?)),
    }
}

impl Others {
    async fn next(&mut self) -> Option<String> {
        match self {
            Self::Postgres(announcements) => announcements.next().await,
            Self::Redis(subscription) => subscription.next().await,
        }
    }
}

/// Hears the others, and says when that is certain. Returns why it has ended.
async fn hear_until_it_ends(services: &Services, transport: Transport, is_heard: &mut bool) -> Cause {
    let mut others = match connect(services, transport).await {
        Ok(others) => others,
        Err(cause) => return cause,
    };
    // The last that this server has heard of itself.
    let own = watch::Sender::new(None);
    tokio::select! {
        cause = listen(services, &mut others, &own) => cause,
        cause = probe(services, transport, own.subscribe(), is_heard) => cause,
    }
}

/// Tells itself something again and again. Returns where it is not heard: a connection that was cut off without a word is silent for
/// ever, and one through a pooler may answer everything and hear nothing.
async fn probe(
    services: &Services,
    transport: Transport,
    mut own: watch::Receiver<Option<u64>>,
    is_heard: &mut bool,
) -> Cause {
    loop {
        let number = u64::from_be_bytes(services.random.bytes());
        match timeout(PATIENCE, publish(services, News::Probe(number))).await.map_err(Cause::from).flatten() {
            Ok(()) => {
                if timeout(PATIENCE, own.wait_for(|heard| *heard == Some(number))).await.is_err() {
                    return "what is told is not heard".into();
                }
                if !*is_heard {
                    *is_heard = true;
                    services.bus.measures.hears(transport, true);
                    tracing::info!(?transport, "other servers are heard");
                    // Nor was heard what the others have told before now.
                    anything_may_have_happened(services);
                }
            }
            Err(cause) if !*is_heard => return cause,
            // It goes another way than what is heard.
            Err(error) => {
                tracing::debug!(
                    error = &*error as &dyn std::error::Error,
                    "whether other servers are heard is not known"
                );
            }
        }
        sleep(CHECK).await;
    }
}

/// Takes what the others tell, without waiting for anything else, until the connection breaks.
async fn listen(services: &Services, others: &mut Others, own: &watch::Sender<Option<u64>>) -> Cause {
    while let Some(text) = others.next().await {
        match text.parse::<Message>() {
            Ok(Message { from, news }) if from == services.instance => {
                if let News::Probe(number) = news {
                    own.send_replace(Some(number));
                }
            }
            Ok(Message { news, .. }) => take(services, news),
            // What a newer version tells is not known: anything.
            Err(_) => anything_may_have_happened(services),
        }
    }
    "the connection broke".into()
}

/// Does what follows from a message.
fn take(services: &Services, news: News) {
    match news {
        News::Committed { organization, about, changes_access, .. } => {
            // First: who hears of it is looked at as they are now.
            if changes_access {
                services.authenticator.forget_of(organization);
            }
            if about == ResourceType::ClaudeAccount {
                services.relay_accounts.forget_of(organization);
            }
            services.bus.told.committed(organization, about);
        }
        News::Used { organization, .. } => services.bus.told.used(organization),
        News::Missed => anything_may_have_happened(services),
        News::Probe(_) => {}
    }
}

fn anything_may_have_happened(services: &Services) {
    services.authenticator.forget();
    services.relay_accounts.forget();
    services.bus.told.anything();
}
