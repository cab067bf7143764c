//! Looks which jobs are due, and does those whose leases it gets.
//!
//! No server goes by another's clock. Whoever has a lease changes its row every few seconds; a row that another server has seen
//! unchanged for longer than its holder would go on without, by a clock that only runs on, is free.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::outcome::{Outcome, Runs};
use super::{Job, Services};
use crate::model::Timestamp;
use crate::store;
use crate::store::job_lease::{self, Lease};

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How often a server looks which jobs are due.
    pub poll: Duration,
    /// How often whoever does a job renews its lease.
    pub renew: Duration,
    /// How long after a lease was last renewed the work is broken off. Nor is the database waited for longer than that.
    pub renew_deadline: Duration,
    /// How long a lease is seen unchanged before it is free: longer than `renew_deadline`, by what breaking off may take.
    pub lease_duration: Duration,
    /// How long a server leaves a job alone that has failed there. Another may have more luck.
    pub backoff: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(5),
            renew: Duration::from_secs(5),
            renew_deadline: Duration::from_secs(15),
            lease_duration: Duration::from_secs(20),
            backoff: Duration::from_secs(60),
        }
    }
}

/// Does the jobs, until the server is told to stop.
pub struct Scheduler(JoinHandle<()>);

impl Scheduler {
    /// Starts.
    #[must_use]
    pub fn start(jobs: Vec<Job>, services: Arc<Services>, timing: Timing, runs: Runs, stop: CancellationToken) -> Self {
        let watched: Vec<_> = jobs.into_iter().map(Watched::new).collect();
        for watched in &watched {
            runs.begin(watched.job.name);
        }
        let mut state = State { services, timing, runs, stop, watched, running: JoinSet::new() };
        Self(tokio::spawn(async move { state.run().await }))
    }

    /// Waits until it has stopped: what ran is broken off, and its leases are released.
    pub async fn finish(self) {
        if let Err(error) = self.0.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the scheduler broke off");
        }
    }
}

struct State {
    services: Arc<Services>,
    timing: Timing,
    runs: Runs,
    stop: CancellationToken,
    watched: Vec<Watched>,
    /// Each ends with the place of its job in `watched`.
    running: JoinSet<(usize, Outcome)>,
}

/// A job, and what this server knows of it.
struct Watched {
    job: Arc<Job>,
    /// The revision of its lease.
    revision: Option<Seen<i64>>,
    /// When it was last done to its end.
    finished_at: Option<Seen<Option<Timestamp>>>,
    rests_until: Option<Instant>,
    is_running: bool,
}

/// What stands in the database.
struct Seen<T> {
    value: T,
    /// When this server has seen it first.
    since: Instant,
    /// Whether there was another before.
    has_changed: bool,
}

impl<T: PartialEq> Seen<T> {
    fn note(seen: &mut Option<Self>, value: T) {
        if seen.as_ref().is_none_or(|seen| seen.value != value) {
            *seen = Some(Self { value, since: Instant::now(), has_changed: seen.is_some() });
        }
    }
}

impl Watched {
    fn new(job: Job) -> Self {
        Self { job: Arc::new(job), revision: None, finished_at: None, rests_until: None, is_running: false }
    }

    fn note(&mut self, lease: &Lease) {
        Seen::note(&mut self.revision, lease.revision);
        Seen::note(&mut self.finished_at, lease.finished_at);
    }

    /// Whether the lease may be taken.
    fn is_free(&self, lease: &Lease, lease_duration: Duration) -> bool {
        lease.holder.is_none() || self.revision.as_ref().is_some_and(|seen| seen.since.elapsed() >= lease_duration)
    }

    /// Whether its interval is over since it was last done. By the time that stands there only where nobody has done it since this
    /// server looked first: two clocks that are further apart than the interval would make it run without end.
    fn is_due(&self, now: Timestamp) -> bool {
        let interval = self.job.interval;
        let is_over = |at: Timestamp| (now - at).abs() >= TimeDelta::from_std(interval).unwrap_or(TimeDelta::MAX);
        let is_due = self.finished_at.as_ref().is_none_or(|seen| match seen.value {
            None => true,
            // A time that lies ahead comes from a clock that was wrong: it must not hold the job up for longer than any other.
            Some(at) => seen.since.elapsed() >= interval || (!seen.has_changed && is_over(at)),
        });
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        is_due && !rests && !self.is_running
    }
}

impl State {
    async fn run(&mut self) {
        let mut poll = interval(self.timing.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(Ok((place, outcome))) = self.running.join_next() => self.ended(place, outcome),
                _ = poll.tick() => match stop.run_until_cancelled(Box::pin(self.look())).await {
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "which jobs are due could not be looked at");
                    }
                    None => break,
                }
            }
        }
        // Each hears of the stop by itself.
        while self.running.join_next().await.is_some() {}
    }

    async fn look(&mut self) -> store::Result<()> {
        let services = self.services.clone();
        let find = async { job_lease::find_all(&mut services.db.read().await?).await };
        let found = in_time(self.timing.renew_deadline, find).await?;
        let mut leases: HashMap<_, _> = found.into_iter().map(|lease| (lease.name.clone(), lease)).collect();
        for place in 0..self.watched.len() {
            let name = self.watched[place].job.name;
            // The others are not to wait for this one.
            if let Err(error) = in_time(self.timing.renew_deadline, self.take(place, leases.remove(name))).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    job = name,
                    "the lease of a job was not looked at"
                );
            }
        }
        Ok(())
    }

    /// Does the job if it is due and its lease is free.
    async fn take(&mut self, place: usize, found: Option<Lease>) -> store::Result<()> {
        let (watched, now) = (&mut self.watched[place], self.services.clock.now());
        let seen = if let Some(lease) = found {
            lease
        } else {
            let lease = Lease::new(watched.job.name, now);
            if !job_lease::add(&self.services.db, &lease).await? {
                return Ok(());
            }
            lease
        };
        watched.note(&seen);
        if let Some(at) = seen.finished_at {
            self.runs.finished(watched.job.name, at);
        }
        if !watched.is_free(&seen, self.timing.lease_duration) || !watched.is_due(now) {
            return Ok(());
        }
        let good_until = Instant::now() + self.timing.renew_deadline;
        let held = Lease { holder: Some(self.services.instance.clone()), changed_at: now, ..seen.clone() };
        // Of several servers that look at once, one gets it.
        let Some(lease) = job_lease::change(&self.services.db, &seen, held).await? else { return Ok(()) };
        watched.is_running = true;
        let held = HeldLease { lease, services: self.services.clone(), timing: self.timing, good_until };
        let (job, stop) = (watched.job.clone(), self.stop.clone());
        self.running.spawn(async move { (place, held.work(&job, stop).await) });
        Ok(())
    }

    fn ended(&mut self, place: usize, outcome: Outcome) {
        let watched = &mut self.watched[place];
        watched.is_running = false;
        watched.rests_until = (outcome != Outcome::Ok).then(|| Instant::now() + self.timing.backoff);
        self.runs.ended(watched.job.name, outcome);
    }
}

/// Waits for the database no longer than that: one that hangs is not to stop everything else.
async fn in_time<T>(limit: Duration, work: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|late| Err(store::Error::Unavailable(late.into())))
}

/// A lease that this server has.
struct HeldLease {
    lease: Lease,
    services: Arc<Services>,
    timing: Timing,
    /// When the work is to be broken off unless the lease was renewed.
    good_until: Instant,
}

impl HeldLease {
    /// Does the job, for as long as the lease can be renewed, and releases it.
    async fn work(mut self, job: &Job, stop: CancellationToken) -> Outcome {
        let mut work = tokio::spawn((job.work)(self.services.clone()));
        let outcome = tokio::select! {
            biased;
            done = &mut work => match done {
                Ok(Ok(())) => Outcome::Ok,
                Ok(Err(error)) => failed(job, &error),
                Err(error) => failed(job, &error),
            },
            () = stop.cancelled() => Outcome::Stopped,
            () = self.renew_until_lost() => {
                tracing::warn!(job = job.name, "the lease of a job could not be renewed: the job is broken off");
                Outcome::Lost
            }
        };
        if matches!(outcome, Outcome::Lost | Outcome::Stopped) {
            // A transaction that it is in the middle of is rolled back. That it was broken off is known.
            work.abort();
            let _ = work.await;
        }
        if outcome != Outcome::Lost {
            self.release(outcome).await;
        }
        outcome
    }

    /// Renews the lease again and again. Returns once another has it, or may.
    async fn renew_until_lost(&mut self) {
        let mut pause = self.timing.renew;
        loop {
            sleep(pause).await;
            let (asked, until) = (Instant::now(), self.good_until);
            let (holder, finished_at) = (self.lease.holder.clone(), self.lease.finished_at);
            match timeout_at(until, self.change(holder, finished_at)).await {
                Ok(Ok(true)) => {
                    self.good_until = asked + self.timing.renew_deadline;
                    pause = self.timing.renew;
                }
                // Another has it, or there is no time left.
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a lease was not renewed; it is tried again"
                    );
                    pause = self.timing.renew / 5;
                }
            }
        }
    }

    async fn release(mut self, outcome: Outcome) {
        let finished_at = if outcome == Outcome::Ok { Some(self.services.clock.now()) } else { self.lease.finished_at };
        if let Err(error) = in_time(self.timing.renew_deadline, self.change(None, finished_at)).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a lease was not released: another server takes it a moment later"
            );
        }
    }

    /// Changes the row, if the lease is still this server's. Returns whether it was.
    async fn change(&mut self, holder: Option<String>, finished_at: Option<Timestamp>) -> store::Result<bool> {
        let services = self.services.clone();
        loop {
            let changed_at = services.clock.now();
            let next = Lease { holder: holder.clone(), changed_at, finished_at, ..self.lease.clone() };
            if let Some(changed) = job_lease::change(&services.db, &self.lease, next).await? {
                self.lease = changed;
                return Ok(true);
            }
            // An earlier change may have been made though its answer was lost, or not waited for.
            match job_lease::find(&mut services.db.read().await?, &self.lease.name).await? {
                Some(found) if found.holder == self.lease.holder && found.revision != self.lease.revision => {
                    self.lease = found;
                }
                _ => return Ok(false),
            }
        }
    }
}

fn failed(job: &Job, error: &(dyn std::error::Error + 'static)) -> Outcome {
    tracing::warn!(error, job = job.name, "a job failed: it is tried again, here after a pause");
    Outcome::Failed
}
