//! How runs of jobs end, counted.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::model::Timestamp;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done to its end.
    Ok,
    /// It failed, or panicked.
    Failed,
    /// The lease could not be renewed: it was broken off, and another server may go on.
    Lost,
    /// The server was told to stop.
    Stopped,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Ok, Self::Failed, Self::Lost, Self::Stopped];

    /// As metrics have it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobName {
    job: &'static str,
}

/// A run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobRun {
    job: &'static str,
    outcome: &'static str,
}

/// How runs ended.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    /// How many there were on this server.
    pub total: Family<JobRun, Counter>,
    /// When each job was last done to its end, whichever server did it, in seconds since 1970; 0: never.
    pub last_success: Family<JobName, Gauge>,
}

impl Runs {
    /// Begins to count the runs of a job. All numbers are there from then on: of one that appears with its first event nobody can
    /// tell that it has grown.
    pub(super) fn begin(&self, job: &'static str) {
        for outcome in Outcome::ALL {
            drop(self.total.get_or_create(&JobRun { job, outcome: outcome.as_str() }));
        }
        drop(self.last_success.get_or_create(&JobName { job }));
    }

    pub(super) fn ended(&self, job: &'static str, outcome: Outcome) {
        self.total.get_or_create(&JobRun { job, outcome: outcome.as_str() }).inc();
    }

    pub(super) fn finished(&self, job: &'static str, at: Timestamp) {
        self.last_success.get_or_create(&JobName { job }).set(at.to_utc().timestamp());
    }
}
