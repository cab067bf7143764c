//! What requests have shown of the accounts' health: gathered, and written beside them. Of several things about an account the
//! last counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::domain::Services;
use crate::domain::relay_account::{Observed, note_health};
use crate::model::ClaudeAccountId;

/// How long is gathered before more is written: an account that is well one moment and not the next fills no log.
const PACE: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct Health {
    gathered: Arc<Mutex<Gathered>>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Gathered {
    observed: BTreeMap<ClaudeAccountId, Observed>,
    is_written: bool,
}

impl Health {
    /// Notes how an account does.
    pub(super) fn note(&self, services: &Arc<Services>, observed: Observed) {
        let mut gathered = lock(&self.gathered);
        gathered.observed.insert(observed.id, observed);
        if !gathered.is_written {
            gathered.is_written = true;
            self.tasks.spawn(write(services.clone(), self.gathered.clone()));
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn write(services: Arc<Services>, gathered: Arc<Mutex<Gathered>>) {
    loop {
        let observed = {
            let mut gathered = lock(&gathered);
            if gathered.observed.is_empty() {
                gathered.is_written = false;
                return;
            }
            std::mem::take(&mut gathered.observed)
        };
        for observed in observed.into_values() {
            if let Err(error) = note_health(&services, &observed).await {
                let cause = std::error::Error::source(&error);
                tracing::warn!(account = %observed.id, error = cause, "an account's health was not written");
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

fn lock(gathered: &Mutex<Gathered>) -> MutexGuard<'_, Gathered> {
    // A panic cannot leave it half changed.
    gathered.lock().unwrap_or_else(PoisonError::into_inner)
}
