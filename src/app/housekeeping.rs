//! What a server does by itself: it signs where the audit logs end, removes what they need not keep, and sends the mails that wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::domain::Services;
use crate::domain::audit_checkpoint::Checkpoints;
use crate::domain::{audit_retention, mail_token, outbox};
use crate::settings::Settings;

/// How often entries whose time is over are looked for.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How often mails are looked for that nobody has told of: they are tried again, or another server wrote them and is gone.
const MINUTE: Duration = Duration::from_secs(60);
/// How often tokens are looked for whose time is over.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The tasks that run beside the requests, until the server is told to stop.
pub(super) struct Housekeeping {
    services: Arc<Services>,
    checkpoints: Option<JoinHandle<Checkpoints>>,
    retention: Option<JoinHandle<()>>,
    mails: JoinHandle<()>,
}

impl Housekeeping {
    pub(super) fn start(settings: &Settings, services: Arc<Services>, stop: &CancellationToken) -> Self {
        let checkpoints =
            settings.audit_checkpoints.map(|every| tokio::spawn(checkpoints(services.clone(), every, stop.clone())));
        let retention =
            settings.audit_retention_days.map(|days| tokio::spawn(retention(services.clone(), days, stop.clone())));
        let mails = tokio::spawn(mails(services.clone(), stop.clone()));
        Self { services, checkpoints, retention, mails }
    }

    /// Ends them, once no deed can follow: the last checkpoint is of all that was done.
    pub(super) async fn finish(self) {
        told(self.mails.await);
        if let Some(retention) = self.retention {
            told(retention.await);
        }
        if let Some(checkpoints) = self.checkpoints
            && let Some(mut checkpoints) = told(checkpoints.await)
        {
            checkpoints.write(&self.services).await;
        }
    }
}

fn told<T>(ended: Result<T, tokio::task::JoinError>) -> Option<T> {
    ended
        .inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, "the housekeeping broke off"))
        .ok()
}

async fn checkpoints(services: Arc<Services>, every: Duration, stop: CancellationToken) -> Checkpoints {
    let mut checkpoints = Checkpoints::default();
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        checkpoints.write(&services).await;
    }
    checkpoints
}

async fn retention(services: Arc<Services>, days: u32, stop: CancellationToken) {
    loop {
        // Stopped in the middle of a batch, that one is rolled back.
        match stop.run_until_cancelled(Box::pin(audit_retention::run(&services, days))).await {
            None => return,
            Some(Ok(0)) => {}
            Some(Ok(removed)) => tracing::info!(removed, days, "audit entries whose time was over were removed"),
            Some(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the retention of the audit log broke off; it goes on at the next time"
            ),
        }
        if stop.run_until_cancelled(tokio::time::sleep(DAY)).await.is_none() {
            return;
        }
    }
}

async fn mails(services: Arc<Services>, stop: CancellationToken) {
    let mut hour = tokio::time::interval(HOUR);
    loop {
        // What is being sent is not cut off: it might be sent twice.
        if let Err(error) = outbox::deliver(&services, &stop).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "sending mails broke off; it goes on within a minute"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = services.outbox.woken() => {}
            () = tokio::time::sleep(MINUTE) => {}
            _ = hour.tick() => {
                if let Err(error) = mail_token::remove_expired(&services).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "tokens whose time is over were not removed");
                }
            }
        }
    }
}
