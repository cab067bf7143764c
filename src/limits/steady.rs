//! Time that never goes back, whatever is done to the machine's clock.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::model::Clock;

/// A step back that is taken for one, in microseconds: cores that read the clock at once are apart by less.
const STEP: i64 = 1_000_000;

pub(super) struct Steady {
    clock: Clock,
    /// The latest that was told.
    latest: AtomicI64,
    /// What the clock was set back by so far.
    set_back: AtomicI64,
}

impl Steady {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, latest: AtomicI64::new(i64::MIN), set_back: AtomicI64::new(0) }
    }

    /// The time in microseconds, of which only differences say something: it stands still where the clock is set back, and
    /// goes on from there.
    pub(super) fn now(&self) -> i64 {
        let set_back = self.set_back.load(Ordering::Relaxed);
        let now = self.clock.now().micros().saturating_add(set_back);
        let latest = self.latest.fetch_max(now, Ordering::Relaxed);
        if now < latest.saturating_sub(STEP) {
            // Should it fail, another has seen the same step.
            let _ = self.set_back.compare_exchange(
                set_back,
                set_back + (latest - now),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        now.max(latest)
    }
}
