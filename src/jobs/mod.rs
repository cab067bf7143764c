//! What servers do by themselves, again and again: each job is done by one server at a time, as a rule, whichever that is.
//!
//! A lease in the database says which (docs/decisions/many-servers.md). It spares work and is no lock: a job must bear that it is
//! begun anew after it was cut off anywhere, and that another server is in the last moments of it.
//!
//! To add one: a line in [`all`], and its function in the domain.

mod outcome;
mod scheduler;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::domain::{Result, Services, audit_retention, claude_account, expired, notification, password_key, usage};
use crate::settings::Settings;

pub use outcome::{JobName, JobRun, Outcome, Runs};
pub use scheduler::{Scheduler, Timing};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Every job that a server with these settings does.
#[must_use]
pub fn all(settings: &Settings) -> Vec<Job> {
    let mut jobs =
        vec![
            Job::new("cleanup", HOUR, |services| async move {
                let removed = expired::remove(&services).await?;
                if removed > 0 {
                    tracing::info!(removed, "what has ended long ago was removed");
                }
                Ok(())
            }),
            Job::new("expiring-api-keys", HOUR, |services| async move {
                notification::tell_of_expiring_api_keys(&services).await.map(drop)
            }),
            Job::new("lockouts", MINUTE, |services| async move {
                notification::tell_of_lockouts(&services).await.map(drop)
            }),
            Job::new("account-months", MINUTE, |services| async move {
                let followed = claude_account::follow_all_usage(&services).await?;
                if followed > 0 {
                    tracing::info!(followed, "the usage of Claude accounts was looked after");
                }
                Ok(())
            }),
            Job::new("password-keys", HOUR, |services| async move { password_key::rotate(&services).await }),
        ];
    if let Some(days) = settings.audit_retention_days {
        jobs.push(Job::new("audit-retention", HOUR, move |services| async move {
            let removed = audit_retention::run(&services, days).await?;
            if removed > 0 {
                tracing::info!(removed, days, "audit entries whose time was over were removed");
            }
            Ok(())
        }));
    }
    if let Some(days) = settings.usage_retention_days {
        jobs.push(Job::new("usage-retention", HOUR, move |services| async move {
            let removed = usage::remove_old(&services, days).await?;
            if removed > 0 {
                tracing::info!(removed, days, "usage records whose time was over were removed");
            }
            Ok(())
        }));
    }
    jobs
}

/// Something that is done again and again.
pub struct Job {
    /// Its name: of its lease, and in metrics.
    name: &'static str,
    /// How long after it was last done it is done again.
    interval: Duration,
    work: Box<dyn Fn(Arc<Services>) -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl Job {
    /// A job that is done `interval` after it was last done to its end.
    pub fn new<F>(
        name: &'static str,
        interval: Duration,
        work: impl Fn(Arc<Services>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Self { name, interval, work: Box::new(move |services| work(services).boxed()) }
    }
}
