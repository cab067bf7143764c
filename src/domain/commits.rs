//! What other processes have committed: other servers on the same database, and the command line.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::context::Services;
use super::error::{Error, Result};
use crate::audit::Committed;
use crate::model::{OrganizationId, ResourceType};
use crate::store::{audit_log, usage};

/// How often the logs' ends are looked at, while anybody listens.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What others have told, until it is looked at. It takes no more room than one message of each organization.
#[derive(Debug, Default)]
pub(super) struct Told {
    due: Notify,
    logs: Mutex<Logs>,
    /// Of which organizations usage was recorded.
    used: Mutex<BTreeSet<OrganizationId>>,
}

/// The logs that may have grown.
#[derive(Debug)]
enum Logs {
    /// Those of organizations, each with what its entries are about; none: several things.
    Of(HashMap<OrganizationId, Option<ResourceType>>),
    All,
}

impl Default for Logs {
    fn default() -> Self {
        Self::Of(HashMap::new())
    }
}

impl Told {
    /// Something was committed in an organization.
    pub(super) fn committed(&self, organization: OrganizationId, about: ResourceType) {
        if let Logs::Of(logs) = &mut *self.logs() {
            let known = logs.entry(organization).or_insert(Some(about));
            known.take_if(|known| *known != about);
        }
        self.due.notify_one();
    }

    /// Usage of an organization was recorded.
    pub(super) fn used(&self, organization: OrganizationId) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(organization);
        self.due.notify_one();
    }

    /// Anything may have been committed.
    pub(super) fn anything(&self) {
        *self.logs() = Logs::All;
        self.due.notify_one();
    }

    async fn next(&self) -> Logs {
        self.due.notified().await;
        std::mem::take(&mut *self.logs())
    }

    fn take_used(&self) -> Vec<OrganizationId> {
        // An insertion cannot panic half-way.
        std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        // A panic cannot leave an assignment half done.
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of logs that have grown, whoever made them grow: one look for all who listen, and none where nobody does. At once where
/// it was told, and every few seconds.
pub async fn watch(services: Arc<Services>, stop: CancellationToken) {
    let mut ends = Ends::default();
    let mut every = interval_at(Instant::now() + INTERVAL, INTERVAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let logs = tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => Logs::All,
            logs = services.bus.told.next() => logs,
        };
        let used = services.bus.told.take_used();
        if !services.commits.has_listeners() && !services.usage_commits.has_listeners() {
            continue;
        }
        let looked = timeout(PATIENCE, look(&services, (logs, used), &mut ends)).await;
        // The next look is seconds away.
        if let Err(error) = looked.unwrap_or_else(|late| Err(Error::unavailable(late))) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what others have committed could not be looked at"
            );
        }
    }
}

/// How far the logs and the records of usage were when they were last looked at.
#[derive(Default)]
struct Ends {
    logs: HashMap<OrganizationId, i64>,
    usage: HashMap<OrganizationId, i64>,
}

/// The place that a message says is not believed: it is asked for.
async fn look(services: &Services, (logs, used): (Logs, Vec<OrganizationId>), ends: &mut Ends) -> Result<()> {
    let mut conn = services.db.read().await?;
    match logs {
        Logs::All => {
            for (organization, sequence) in audit_log::ends(&mut conn).await? {
                if ends.logs.insert(organization, sequence) != Some(sequence) {
                    services.commits.publish(Committed { organization, sequence, resource_type: None });
                }
            }
            for (organization, sequence) in usage::ends(&mut conn).await? {
                if ends.usage.insert(organization, sequence) != Some(sequence) {
                    services.usage_commits.publish(Committed { organization, sequence, resource_type: None });
                }
            }
        }
        Logs::Of(logs) if logs.is_empty() => {}
        Logs::Of(logs) => {
            let organizations: Vec<_> = logs.keys().copied().collect();
            for (organization, sequence) in audit_log::ends_of(&mut conn, &organizations).await? {
                let resource_type = logs.get(&organization).copied().flatten();
                services.commits.publish(Committed { organization, sequence, resource_type });
            }
        }
    }
    if !used.is_empty() {
        for (organization, sequence) in usage::ends_of(&mut conn, &used).await? {
            services.usage_commits.publish(Committed { organization, sequence, resource_type: None });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[tokio::test]
    async fn what_was_told_is_kept_once_for_each_organization() {
        let organization = |number| OrganizationId::new(Timestamp::MAX, &[number; 10]);
        let told = Told::default();
        for _ in 0..3 {
            told.committed(organization(1), ResourceType::Client);
            told.committed(organization(2), ResourceType::Client);
        }
        told.committed(organization(2), ResourceType::User);
        told.committed(organization(2), ResourceType::Client);
        let Logs::Of(logs) = told.next().await else { panic!("two organizations") };
        let expected = [(organization(1), Some(ResourceType::Client)), (organization(2), None)];
        assert_eq!(logs, HashMap::from(expected));
        told.anything();
        told.committed(organization(1), ResourceType::Client);
        assert!(matches!(told.next().await, Logs::All));
    }
}
