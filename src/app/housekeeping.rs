//! What a server does by itself: it signs where the audit logs end, and does the jobs that come to it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::domain::Services;
use crate::domain::audit_checkpoint::Checkpoints;
use crate::jobs::{self, Pace, Runs, Scheduler};
use crate::settings::Settings;

/// The tasks that run beside the requests, until the server is told to stop.
pub(super) struct Housekeeping {
    services: Arc<Services>,
    /// Each server signs into its own log stream, so this is no job that one does for all.
    checkpoints: Option<JoinHandle<Checkpoints>>,
    jobs: Scheduler,
}

impl Housekeeping {
    pub(super) fn start(settings: &Settings, services: Arc<Services>, runs: Runs, stop: &CancellationToken) -> Self {
        let checkpoints =
            settings.audit_checkpoints.map(|every| tokio::spawn(checkpoints(services.clone(), every, stop.clone())));
        let jobs = Scheduler::start(jobs::all(settings), services.clone(), Pace::default(), runs, stop.clone());
        Self { services, checkpoints, jobs }
    }

    /// Ends them, once no deed can follow: the last checkpoint is of all that was done.
    pub(super) async fn finish(self) {
        self.jobs.finish().await;
        if let Some(checkpoints) = self.checkpoints {
            match checkpoints.await {
                Ok(mut checkpoints) => checkpoints.write(&self.services).await,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the checkpoints broke off");
                }
            }
        }
    }
}

async fn checkpoints(services: Arc<Services>, every: Duration, stop: CancellationToken) -> Checkpoints {
    let mut checkpoints = Checkpoints::default();
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        checkpoints.write(&services).await;
    }
    checkpoints
}
