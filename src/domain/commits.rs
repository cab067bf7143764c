//! What other processes have committed: other servers on the same database, and the command line.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::context::Services;
use super::error::Result;
use crate::audit::Committed;
use crate::model::OrganizationId;
use crate::store;

/// How often the logs' ends are looked at, while anybody listens.
const INTERVAL: Duration = Duration::from_secs(5);

/// Tells of logs that have grown, whoever made them grow: one look for all who listen, and none where nobody does.
pub async fn watch(services: Arc<Services>, stop: CancellationToken) {
    let (mut ends, mut usage_ends) = (HashMap::new(), HashMap::new());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if (services.commits.has_listeners() || services.usage_commits.has_listeners())
            && let Err(error) = look(&services, (&mut ends, &mut usage_ends)).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what others have committed could not be looked at"
            );
        }
    }
}

type Ends = HashMap<OrganizationId, i64>;

async fn look(services: &Services, (ends, usage_ends): (&mut Ends, &mut Ends)) -> Result<()> {
    let mut conn = services.db.read().await?;
    let logs = store::audit_log::ends(&mut conn).await?;
    let usage = store::usage::ends(&mut conn).await?;
    drop(conn);
    for (found, known, commits) in [(logs, ends, &services.commits), (usage, usage_ends, &services.usage_commits)] {
        for (organization, sequence) in found {
            if known.insert(organization, sequence) != Some(sequence) {
                commits.publish(Committed { organization, sequence, resource_type: None });
            }
        }
    }
    Ok(())
}
