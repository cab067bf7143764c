//! GCRA, the generic cell rate algorithm: a bucket that drains evenly, of which one instant is kept: when it will be empty.
//!
//! Whole microseconds throughout, so that memory and Redis, whose numbers are floating, come to the same. Of any stretch of time no
//! more is let through than the limit and what drains in it.

use std::time::Duration;

/// How much may be asked for: `limit` at once, and `limit` a `window` in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Its name, among those of one subject.
    pub name: &'static str,
    /// How much fits.
    pub limit: u32,
    /// In which time that drains.
    pub window: Duration,
}

impl Policy {
    /// How long one takes to drain. Rounded up: never more is let through than the policy says.
    pub(super) fn interval(&self) -> i64 {
        let window = u64::try_from(self.window.as_micros()).unwrap_or(u64::MAX);
        i64::try_from(window.div_ceil(u64::from(self.limit.max(1)))).unwrap_or(i64::MAX)
    }

    /// How long a full bucket takes to drain.
    pub(super) fn capacity(&self) -> i64 {
        self.interval() * i64::from(self.limit)
    }
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(micros.try_into().unwrap_or(0))
}

/// How long a bucket takes to drain that will be empty at `empty_at`. Never longer than a full one: the clock may have been set
/// back, or the limit lowered.
pub(super) fn level(empty_at: i64, now: i64, policy: &Policy) -> i64 {
    (empty_at - now).clamp(0, policy.capacity())
}

/// How long until `cost` fits in beside the level; 0 or less: it fits now.
pub(super) fn wait(level: i64, cost: i64, policy: &Policy) -> i64 {
    level + cost * policy.interval() - policy.capacity()
}

/// Where a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The policy.
    pub policy: Policy,
    /// How long it takes to drain.
    level: i64,
}

impl Standing {
    pub(super) fn new(policy: Policy, level: i64) -> Self {
        Self { policy, level }
    }

    /// How much fits in now.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        let room = (self.policy.capacity() - self.level) / self.policy.interval();
        u32::try_from(room).unwrap_or(0)
    }

    /// When one more fits in; zero: now.
    #[must_use]
    pub fn next(&self) -> Duration {
        duration(wait(self.level, 1, &self.policy))
    }

    /// When it is empty.
    #[must_use]
    pub fn empty(&self) -> Duration {
        duration(self.level)
    }
}

/// What asking came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How long to wait where it was too much; then nothing was taken.
    pub retry_after: Option<Duration>,
    /// Where each bucket stands now.
    pub standings: Vec<Standing>,
}

impl Answer {
    /// There is no limit.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { retry_after: None, standings: Vec::new() }
    }

    pub(super) fn new(wait: i64, standings: Vec<Standing>) -> Self {
        Self { retry_after: (wait > 0).then(|| duration(wait)), standings }
    }
}
