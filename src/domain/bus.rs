//! What servers on the same database tell each other, and what it changes here.
//!
//! By Redis where there is one, else by PostgreSQL, else not at all: then, and for as long as the way is broken, what others do is
//! noticed as late as it is without (`super::commits`, and a cache of seconds).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::context::Services;
use super::error::Result;
use crate::audit::Committed;
use crate::events::{CHANNEL, Measures, Message, News, Transport};
use crate::model::{OrganizationId, ResourceType};
use crate::redis::Subscription;
use crate::store::{self, Notifications, audit_log, usage};

/// How soon it is tried again to hear the others, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How soon at last.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often a silent connection is asked whether it is still there.
const CHECK: Duration = Duration::from_secs(10);

/// What is remembered of telling and hearing.
#[derive(Debug, Default)]
pub struct Bus {
    /// How it goes, for the metrics.
    pub measures: Measures,
    /// Whether something could not be told to the others.
    has_untold: AtomicBool,
}

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

/// Tells the others. PostgreSQL has done so with the commit; a Redis that is away is not waited for.
pub(super) async fn tell(services: &Services, news: News) {
    let Some(redis) = &services.redis else { return };
    // That something was not told before says more than this.
    let has_untold = services.bus.has_untold.swap(false, Ordering::Relaxed);
    let news = if has_untold { News::Missed } else { news };
    let message = Message { from: services.instance.clone(), news };
    if redis.publish(&channel(services), &message.to_string()).await.is_err() {
        services.bus.has_untold.store(true, Ordering::Relaxed);
    }
}

/// Hears the others until the server is told to stop.
pub async fn follow(services: Arc<Services>, stop: CancellationToken) {
    if let Some(transport) = transport(&services) {
        stop.run_until_cancelled(Box::pin(hear(&services, transport))).await;
    }
}

async fn hear(services: &Services, transport: Transport) {
    let (mut pause, mut is_said) = (FIRST_PAUSE, false);
    loop {
        services.bus.measures.hears(transport, false);
        match connect(services, transport).await {
            Ok(mut others) => {
                (pause, is_said) = (FIRST_PAUSE, true);
                services.bus.measures.hears(transport, true);
                tracing::info!(?transport, "other servers are heard");
                if services.bus.has_untold.load(Ordering::Relaxed) {
                    tell(services, News::Missed).await;
                }
                // Nor was heard what the others have told before now.
                anything_may_have_happened(services);
                listen(services, &mut others).await;
                services.bus.measures.interrupted(transport);
                tracing::warn!(?transport, "other servers are not heard: what they do is noticed seconds later");
            }
            // Said once, not with each try.
            Err(error) if is_said => {
                tracing::debug!(error = &*error as &dyn std::error::Error, "other servers are still not heard");
            }
            Err(error) => {
                is_said = true;
                let error = &*error as &dyn std::error::Error;
                tracing::warn!(error, ?transport, "other servers are not heard: what they do is noticed seconds later");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// A way to hear the others.
enum Others {
    Postgres(Notifications),
    Redis(Subscription),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

async fn connect(services: &Services, transport: Transport) -> Result<Others, Cause> {
    match (transport, &services.redis) {
        (Transport::Redis, Some(redis)) => Ok(Others::Redis(redis.subscribe(&channel(services)).await?)),
        _ => Ok(Others::Postgres(services.db.listen().await?.ok_or("the database tells nothing")?)),
    }
}

impl Others {
    async fn next(&mut self) -> Option<String> {
        match self {
            Self::Postgres(notifications) => notifications.next().await,
            Self::Redis(subscription) => subscription.next().await,
        }
    }

    async fn check(&mut self) -> Result<(), Cause> {
        match self {
            Self::Postgres(notifications) => Ok(notifications.check().await?),
            Self::Redis(subscription) => Ok(subscription.check().await?),
        }
    }
}

/// Hears the others until the connection breaks.
async fn listen(services: &Services, others: &mut Others) {
    let mut check = tokio::time::interval(CHECK);
    loop {
        let text = tokio::select! {
            text = others.next() => text,
            _ = check.tick() => match others.check().await {
                Ok(()) => continue,
                Err(error) => {
                    tracing::debug!(error = &*error as &dyn std::error::Error, "no answer on the way to other servers");
                    return;
                }
            },
        };
        let Some(text) = text else { return };
        let mut texts = vec![text];
        // What has come meanwhile is dealt with at once.
        while let Some(Some(text)) = futures_util::FutureExt::now_or_never(others.next()) {
            texts.push(text);
        }
        take(services, &texts).await;
    }
}

/// Does what follows from messages.
async fn take(services: &Services, texts: &[String]) {
    // What a newer version tells is not known: anything.
    let told = texts.iter().map(|text| match text.parse::<Message>() {
        Ok(message) => (message.from != services.instance).then_some(message.news),
        Err(_) => Some(News::Missed),
    });
    let told: Vec<News> = told.flatten().collect();
    if told.contains(&News::Missed) {
        return anything_may_have_happened(services);
    }
    // First, and before the database is asked for anything: who hears of it is looked at as they are now.
    if told.iter().any(|news| matches!(news, News::Committed { changes_access: true, .. })) {
        services.authenticator.forget();
    }
    if told.iter().any(|news| matches!(news, News::Committed { about: ResourceType::ClaudeAccount, .. })) {
        services.relay_accounts.forget();
    }
    if (services.commits.has_listeners() || services.usage_commits.has_listeners())
        && let Err(error) = pass_on(services, &told).await
    {
        tracing::warn!(error = &error as &dyn std::error::Error, "what others have committed could not be looked at");
    }
}

/// Tells subscriptions of what was committed, as far as it was: the place that a message says is not believed.
async fn pass_on(services: &Services, told: &[News]) -> store::Result<()> {
    let organizations = |of: fn(&News) -> Option<OrganizationId>| -> Vec<_> {
        let organizations: BTreeSet<_> = told.iter().filter_map(of).collect();
        organizations.into_iter().collect()
    };
    let committed = organizations(|news| match news {
        News::Committed { organization, .. } => Some(*organization),
        News::Used { .. } | News::Missed => None,
    });
    let used = organizations(|news| match news {
        News::Used { organization, .. } => Some(*organization),
        News::Committed { .. } | News::Missed => None,
    });
    let mut conn = services.db.read().await?;
    if !used.is_empty() {
        for (organization, sequence) in usage::ends_of(&mut conn, &used).await? {
            services.usage_commits.publish(Committed { organization, sequence, resource_type: None });
        }
    }
    if committed.is_empty() {
        return Ok(());
    }
    let ends = audit_log::ends_of(&mut conn, &committed).await?;
    for news in told {
        if let News::Committed { organization, sequence, about, .. } = *news
            && let Some((_, end)) = ends.iter().find(|(known, _)| *known == organization)
        {
            let sequence = sequence.min(*end);
            services.commits.publish(Committed { organization, sequence, resource_type: Some(about) });
        }
    }
    Ok(())
}

fn anything_may_have_happened(services: &Services) {
    services.authenticator.forget();
    services.relay_accounts.forget();
    services.commits.publish_missed();
    services.usage_commits.publish_missed();
}
