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
    let mut ends = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if services.commits.has_listeners()
            && let Err(error) = look(&services, &mut ends).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what others have committed could not be looked at"
            );
        }
    }
}

async fn look(services: &Services, ends: &mut HashMap<OrganizationId, i64>) -> Result<()> {
    for (organization, sequence) in store::audit_log::ends(&mut services.db.read().await?).await? {
        if ends.insert(organization, sequence) != Some(sequence) {
            services.commits.publish(Committed { organization, sequence, resource_type: None });
        }
    }
    Ok(())
}
