//! Looks which jobs are due, and does those whose leases it gets.
//!
//! No server goes by another's clock. Whoever has a lease changes its row every few seconds; a row that another server has seen
//! unchanged for longer than its holder would go on without, by a clock that only runs on, is free.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::outcome::{Outcome, Runs};
use super::{Job, Services};
use crate::model::Timestamp;
use crate::store;
use crate::store::job_lease::{self, Lease};

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often a server looks which jobs are due.
    pub look: Duration,
    /// How often whoever does a job keeps its lease.
    pub keep: Duration,
    /// How long after a lease was last kept the work is broken off.
    pub give_up: Duration,
    /// How long a lease is seen unchanged before it is free: longer than `give_up`, by what breaking off may take.
    pub stale: Duration,
    /// How long a server leaves a job alone that has failed there. Another may have more luck.
    pub rest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(5),
            keep: Duration::from_secs(5),
            give_up: Duration::from_secs(15),
            stale: Duration::from_secs(20),
            rest: Duration::from_secs(60),
        }
    }
}

/// Does the jobs, until the server is told to stop.
pub struct Scheduler(JoinHandle<()>);

impl Scheduler {
    /// Starts.
    #[must_use]
    pub fn start(jobs: Vec<Job>, services: Arc<Services>, pace: Pace, runs: Runs, stop: CancellationToken) -> Self {
        let watched = jobs
            .into_iter()
            .map(|job| Watched { job: Arc::new(job), seen: None, rests_until: None, is_running: false })
            .collect();
        let mut state = State { services, pace, runs, stop, watched, running: JoinSet::new() };
        Self(tokio::spawn(async move { state.run().await }))
    }

    /// Waits until it has stopped: what ran is broken off, and its leases are given back.
    pub async fn finish(self) {
        if let Err(error) = self.0.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the scheduler broke off");
        }
    }
}

struct State {
    services: Arc<Services>,
    pace: Pace,
    runs: Runs,
    stop: CancellationToken,
    watched: Vec<Watched>,
    /// Each ends with the place of its job in `watched`.
    running: JoinSet<(usize, Outcome)>,
}

/// A job, and what this server knows of it.
struct Watched {
    job: Arc<Job>,
    /// The term of its lease, and when this server has seen it first.
    seen: Option<(i64, Instant)>,
    rests_until: Option<Instant>,
    is_running: bool,
}

impl Watched {
    /// Whether the lease may be taken.
    fn is_free(&mut self, lease: &Lease, stale: Duration) -> bool {
        let since = match self.seen {
            Some((term, since)) if term == lease.term => since,
            _ => Instant::now(),
        };
        self.seen = Some((lease.term, since));
        lease.holder.is_none() || since.elapsed() >= stale
    }

    fn is_due(&self, finished_at: Option<Timestamp>, now: Timestamp) -> bool {
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        // A time that lies ahead comes from a clock that was wrong: it must not hold the job up for longer than any other.
        let is_due = finished_at
            .is_none_or(|at| (now - at).abs() >= TimeDelta::from_std(self.job.interval).unwrap_or(TimeDelta::MAX));
        is_due && !rests && !self.is_running
    }
}

impl State {
    async fn run(&mut self) {
        let mut look = interval(self.pace.look);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(Ok((place, outcome))) = self.running.join_next() => self.ended(place, outcome),
                _ = look.tick() => {
                    if let Err(error) = self.look().await {
                        tracing::warn!(error = &error as &dyn std::error::Error, "which jobs are due could not be looked at");
                    }
                }
            }
        }
        // Each hears of the stop by itself.
        while self.running.join_next().await.is_some() {}
    }

    async fn look(&mut self) -> store::Result<()> {
        let found = job_lease::find_all(&mut self.services.db.read().await?).await?;
        let mut leases: HashMap<_, _> = found.into_iter().map(|lease| (lease.name.clone(), lease)).collect();
        for (place, watched) in self.watched.iter_mut().enumerate() {
            let now = self.services.clock.now();
            let seen = if let Some(lease) = leases.remove(watched.job.name) {
                lease
            } else {
                let lease = Lease::new(watched.job.name, now);
                if !job_lease::add(&self.services.db, &lease).await? {
                    continue;
                }
                lease
            };
            if let Some(at) = seen.finished_at {
                self.runs.finished(watched.job.name, at);
            }
            if !watched.is_free(&seen, self.pace.stale) || !watched.is_due(seen.finished_at, now) {
                continue;
            }
            let asked = Instant::now();
            let held = Lease { holder: Some(self.services.instance.clone()), changed_at: now, ..seen.clone() };
            // Of several servers that look at once, one gets it.
            let Some(lease) = job_lease::change(&self.services.db, &seen, held).await? else { continue };
            watched.is_running = true;
            let held =
                Held { lease, services: self.services.clone(), pace: self.pace, good_until: asked + self.pace.give_up };
            let (job, stop) = (watched.job.clone(), self.stop.clone());
            self.running.spawn(async move { (place, held.work(&job, stop).await) });
        }
        Ok(())
    }

    fn ended(&mut self, place: usize, outcome: Outcome) {
        let watched = &mut self.watched[place];
        watched.is_running = false;
        watched.rests_until = (outcome != Outcome::Ok).then(|| Instant::now() + self.pace.rest);
        self.runs.ended(watched.job.name, outcome);
    }
}

/// A lease that this server has.
struct Held {
    lease: Lease,
    services: Arc<Services>,
    pace: Pace,
    /// When the work is to be broken off unless the lease was kept.
    good_until: Instant,
}

impl Held {
    /// Does the job, for as long as the lease can be kept, and gives it back.
    async fn work(mut self, job: &Job, stop: CancellationToken) -> Outcome {
        let mut work = tokio::spawn((job.work)(self.services.clone()));
        let mut keep_at = Instant::now() + self.pace.keep;
        let outcome = loop {
            tokio::select! {
                done = &mut work => break match done {
                    Ok(Ok(())) => Outcome::Ok,
                    Ok(Err(error)) => failed(job, &error),
                    Err(error) => failed(job, &error),
                },
                () = stop.cancelled() => break Outcome::Stopped,
                () = sleep_until(keep_at) => {
                    if !self.keep().await {
                        tracing::warn!(job = job.name, "the lease of a job could not be kept: it is broken off");
                        break Outcome::Lost;
                    }
                    keep_at = Instant::now() + self.pace.keep;
                }
            }
        };
        if matches!(outcome, Outcome::Lost | Outcome::Stopped) {
            // A transaction that it is in the middle of is rolled back. That it was broken off is known.
            work.abort();
            let _ = work.await;
        }
        if outcome != Outcome::Lost {
            self.give_back(outcome).await;
        }
        outcome
    }

    /// Keeps the lease. Returns whether that could be done in time.
    async fn keep(&mut self) -> bool {
        loop {
            let asked = Instant::now();
            let next = Lease { changed_at: self.services.clock.now(), ..self.lease.clone() };
            match timeout_at(self.good_until, job_lease::change(&self.services.db, &self.lease, next)).await {
                Ok(Ok(Some(kept))) => {
                    self.lease = kept;
                    self.good_until = asked + self.pace.give_up;
                    return true;
                }
                // Another has it, or there is no time left.
                Ok(Ok(None)) | Err(_) => return false,
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a lease was not kept; it is tried again");
                    tokio::time::sleep(self.pace.keep / 5).await;
                }
            }
        }
    }

    async fn give_back(self, outcome: Outcome) {
        let now = self.services.clock.now();
        let finished_at = if outcome == Outcome::Ok { Some(now) } else { self.lease.finished_at };
        let next = Lease { holder: None, changed_at: now, finished_at, ..self.lease.clone() };
        if let Err(error) = job_lease::change(&self.services.db, &self.lease, next).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a lease was not given back: another server takes it a moment later"
            );
        }
    }
}

fn failed(job: &Job, error: &(dyn std::error::Error + 'static)) -> Outcome {
    tracing::warn!(error, job = job.name, "a job failed; it is tried again in a minute");
    Outcome::Failed
}
