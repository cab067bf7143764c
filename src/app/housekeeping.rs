//! What a server does by itself: it signs where the audit logs end, sends the mails that wait, writes the usage that it has recorded,
//! looks after budgets, and does the jobs that come to it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::domain::audit_checkpoint::Checkpoints;
use crate::domain::{Services, budget_notices, budget_watch, outbox, password_key, usage};
use crate::jobs::{self, Runs, Scheduler, Timing};
use crate::settings::Settings;

/// How often mails are looked for that nobody has told of: they are tried again, or another server wrote them and is gone. So often
/// key pairs are forgotten, too.
const MINUTE: Duration = Duration::from_secs(60);

/// The tasks that run beside the requests, until the server is told to stop.
pub(super) struct Housekeeping {
    services: Arc<Services>,
    /// Each server signs into its own log stream, so this is no job that one does for all.
    checkpoints: Option<JoinHandle<Checkpoints>>,
    /// Each server sends what it is told of, so this is no such job either.
    mails: JoinHandle<()>,
    /// Each server writes the usage that it has recorded.
    usage: JoinHandle<()>,
    /// Each server settles what its requests took, and looks whether the others are there.
    budgets: JoinHandle<()>,
    /// Each server says that it is there, until it holds nothing any more.
    beats: JoinHandle<()>,
    gone: CancellationToken,
    /// Each server tells of the limits that it has seen to be used up.
    notices: JoinHandle<()>,
    /// Each server has key pairs in its memory.
    forgetting: JoinHandle<()>,
    /// Tells those that go on to the end: what runs meanwhile is to be recorded and settled too.
    last: CancellationToken,
    jobs: Scheduler,
}

impl Housekeeping {
    pub(super) fn start(settings: &Settings, services: Arc<Services>, runs: Runs, stop: &CancellationToken) -> Self {
        let checkpoints =
            settings.audit_checkpoints.map(|every| tokio::spawn(checkpoints(services.clone(), every, stop.clone())));
        let mails = tokio::spawn(mails(services.clone(), stop.clone()));
        let forgetting = tokio::spawn(forgetting(services.clone(), stop.clone()));
        let last = CancellationToken::new();
        let usage = tokio::spawn(usage::write(services.clone(), last.clone()));
        let budgets = tokio::spawn(budget_watch::keep(services.clone(), budget_watch::BEAT, last.clone()));
        let gone = CancellationToken::new();
        let beats = tokio::spawn(budget_watch::beat(services.clone(), budget_watch::BEAT, gone.clone()));
        let notices = tokio::spawn(budget_notices::tell(services.clone(), last.clone()));
        let jobs = Scheduler::start(jobs::all(settings), services.clone(), Timing::default(), runs, stop.clone());
        Self { services, checkpoints, mails, usage, budgets, beats, gone, notices, forgetting, last, jobs }
    }

    /// Ends them, once no deed can follow: the last checkpoint is of all that was done.
    pub(super) async fn finish(self) {
        told(self.mails.await);
        told(self.forgetting.await);
        self.jobs.finish().await;
        self.last.cancel();
        self.services.budgets.hurry();
        told(self.usage.await);
        told(self.budgets.await);
        told(self.notices.await);
        usage::finish(&self.services).await;
        if let Err(error) = self.services.budgets.finish().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what was held of budgets was not all given back: it counts as used a moment later");
        }
        self.gone.cancel();
        told(self.beats.await);
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

async fn forgetting(services: Arc<Services>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(MINUTE)).await.is_some() {
        password_key::forget(&services).await;
    }
}

async fn mails(services: Arc<Services>, stop: CancellationToken) {
    let mut counting = tokio::time::interval(MINUTE);
    loop {
        // Not after each mail: to count them all takes longer the more there are.
        if counting.tick().now_or_never().is_some()
            && let Err(error) = outbox::count(&services).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "the mails that wait were not counted");
        }
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
        }
    }
}
