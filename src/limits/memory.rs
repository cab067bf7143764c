//! Buckets in memory, where this server is the only one, or Redis is away.
//!
//! Bounded: a bucket that has drained is as none, and is let go; should there be too many that have not, those go first that
//! drain soonest, since they say least.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::gcra::{Answer, Standing, level, wait};
use super::steady::Steady;
use super::{Bucket, Key};
use crate::model::Clock;

/// So many that cores seldom wait for each other.
const SHARDS: usize = 32;
/// How many buckets a shard holds: all of them together some 20 MB.
const CAPACITY: usize = 8_192;
/// Fewer are not looked through for those that have drained.
const FEW: usize = 64;

pub(super) struct Memory {
    shards: Vec<Mutex<Shard>>,
    capacity: usize,
    time: Steady,
}

struct Shard {
    /// When each will be empty, in microseconds of [`Steady`].
    buckets: HashMap<(Key, &'static str), i64>,
    /// With how many they are looked through.
    crowded: usize,
}

impl Memory {
    pub(super) fn new(clock: Clock) -> Self {
        Self::sized(clock, SHARDS, CAPACITY)
    }

    fn sized(clock: Clock, shards: usize, capacity: usize) -> Self {
        let shard = || Mutex::new(Shard { buckets: HashMap::new(), crowded: FEW.min(capacity) });
        Self { shards: std::iter::repeat_with(shard).take(shards).collect(), capacity, time: Steady::new(clock) }
    }

    /// As the script of Redis does it: all or none; `cost` 0 only looks, less gives back.
    pub(super) fn take(&self, buckets: &[Bucket], cost: i64) -> Answer {
        let mut locked = self.lock(buckets);
        let now = self.time.now();
        let mut levels: Vec<_> = buckets.iter().map(|bucket| locked.of(bucket).level(bucket, now)).collect();
        let waits = buckets.iter().zip(&levels).map(|(bucket, level)| wait(*level, cost, &bucket.policy));
        let wait = waits.max().unwrap_or(0);
        if wait <= 0 && cost != 0 {
            for (bucket, level) in buckets.iter().zip(&mut levels) {
                *level = (*level + cost * bucket.policy.interval()).max(0);
                locked.of(bucket).set(bucket, now, *level, self.capacity);
            }
        }
        let standings = buckets.iter().zip(levels).map(|(bucket, level)| Standing::new(bucket.policy, level));
        Answer::new(wait, standings.collect())
    }

    /// Empties buckets.
    pub(super) fn empty(&self, buckets: &[Bucket]) {
        let mut locked = self.lock(buckets);
        for bucket in buckets {
            locked.of(bucket).buckets.remove(&bucket.id());
        }
    }

    /// Locks the shards of the buckets, in their order: whoever locks several locks them in the same.
    fn lock(&self, buckets: &[Bucket]) -> Locked<'_> {
        let mut indexes: Vec<_> = buckets.iter().map(|bucket| self.index(bucket)).collect();
        indexes.sort_unstable();
        indexes.dedup();
        let lock = |index: usize| {
            // A panic cannot leave a number half written.
            (index, self.shards[index].lock().unwrap_or_else(PoisonError::into_inner))
        };
        Locked { shards: indexes.into_iter().map(lock).collect(), of: self.shards.len() }
    }

    fn index(&self, bucket: &Bucket) -> usize {
        shard_of(bucket, self.shards.len())
    }
}

/// By a byte of the key, which is a digest.
fn shard_of(bucket: &Bucket, shards: usize) -> usize {
    usize::from(bucket.key.0[0]) % shards
}

struct Locked<'a> {
    shards: Vec<(usize, MutexGuard<'a, Shard>)>,
    of: usize,
}

impl Locked<'_> {
    fn of(&mut self, bucket: &Bucket) -> &mut Shard {
        let index = shard_of(bucket, self.of);
        let place = self.shards.partition_point(|(known, _)| *known < index);
        &mut self.shards[place].1
    }
}

impl Shard {
    fn level(&self, bucket: &Bucket, now: i64) -> i64 {
        self.buckets.get(&bucket.id()).map_or(0, |empty_at| level(*empty_at, now, &bucket.policy))
    }

    fn set(&mut self, bucket: &Bucket, now: i64, level: i64, capacity: usize) {
        if level == 0 {
            self.buckets.remove(&bucket.id());
            return;
        }
        if self.buckets.len() >= self.crowded && !self.buckets.contains_key(&bucket.id()) {
            self.make_room(now, capacity);
        }
        self.buckets.insert(bucket.id(), now + level);
    }

    /// Seldom enough that each bucket pays a constant share of it.
    fn make_room(&mut self, now: i64, capacity: usize) {
        self.buckets.retain(|_, empty_at| *empty_at > now);
        if self.buckets.len() > capacity - capacity / 4 {
            let mut times: Vec<_> = self.buckets.values().copied().collect();
            let quarter = capacity / 4;
            let (_, last, _) = times.select_nth_unstable(quarter);
            let last = *last;
            self.buckets.retain(|_, empty_at| *empty_at > last);
        }
        self.crowded = (2 * self.buckets.len()).clamp(FEW.min(capacity), capacity);
        self.buckets.shrink_to(self.crowded);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::limits::Policy;

    /// A clock that is set, in microseconds.
    fn clock() -> (Arc<AtomicI64>, Clock) {
        let now = Arc::new(AtomicI64::new(1_800_000_000_000_000));
        let told = now.clone();
        (now, Clock::from_fn(move || DateTime::from_timestamp_micros(told.load(Ordering::Relaxed)).unwrap()))
    }

    fn bucket(n: u32, limit: u32, micros: u64) -> Bucket {
        let mut key = [0; 16];
        key[0] = n.to_le_bytes()[0];
        key[1..5].copy_from_slice(&n.to_be_bytes());
        Bucket { key: Key(key), policy: Policy { name: "test", limit, window: Duration::from_micros(micros) } }
    }

    proptest! {
        #[test]
        fn of_any_stretch_of_time_no_more_is_let_through_than_the_limit_and_what_drains_in_it(
            limit in 1_u32..20,
            window in 1_u64..1_000_000,
            steps in prop::collection::vec((0_i64..400_000, 0_i64..4, any::<bool>()), 1..120),
        ) {
            let (now, clock) = clock();
            let memory = Memory::new(clock);
            let buckets = [bucket(1, limit, window), bucket(2, limit * 2, window * 3)];
            let mut through: Vec<(i64, i64)> = Vec::new();
            for (pause, cost, both) in steps {
                let at = now.fetch_add(pause, Ordering::Relaxed) + pause;
                let asked = if both { &buckets[..] } else { &buckets[..1] };
                let answer = memory.take(asked, cost);
                let remaining = answer.standings[0].remaining();
                prop_assert!(remaining <= limit);
                match answer.retry_after {
                    None => through.push((at, cost)),
                    Some(wait) if cost <= i64::from(limit) => {
                        // It would have been let through after that time, and not a microsecond before.
                        let wait = i64::try_from(wait.as_micros()).unwrap();
                        now.fetch_add(wait - 1, Ordering::Relaxed);
                        prop_assert!(memory.take(asked, cost).retry_after.is_some());
                        let at = now.fetch_add(1, Ordering::Relaxed) + 1;
                        prop_assert!(memory.take(asked, cost).retry_after.is_none());
                        through.push((at, cost));
                    }
                    Some(_) => {}
                }
            }
            for (first, (from, _)) in through.iter().enumerate() {
                let mut sum = 0;
                for (to, cost) in &through[first..] {
                    sum += cost;
                    let drained = i128::from(to - from) * i128::from(limit) / i128::from(window);
                    prop_assert!(i128::from(sum) <= i128::from(limit) + drained + 1, "{sum} within {}", to - from);
                }
            }
        }

        #[test]
        fn what_is_given_back_is_there_again(limit in 1_u32..50, window in 1_u64..10_000_000, cost in 1_i64..50) {
            let memory = Memory::new(clock().1);
            let of = [bucket(1, limit, window)];
            let cost = cost.min(limit.into());
            for _ in 0..cost {
                memory.take(&of, 1);
            }
            let before = memory.take(&of, 0).standings[0].remaining();
            memory.take(&of, -1);
            prop_assert_eq!(memory.take(&of, 0).standings[0].remaining(), before + 1);
            memory.empty(&of);
            prop_assert_eq!(memory.take(&of, 0).standings[0].remaining(), limit);
        }
    }

    #[test]
    fn many_at_once_get_no_more_than_one_after_the_other() {
        let memory = Memory::new(clock().1);
        // In different shards, asked for in different orders.
        let (one, other) = (bucket(1, 100, 1_000_000), bucket(2, 150, 1_000_000));
        let count = |buckets: &[Bucket]| (0..100).filter(|_| memory.take(buckets, 1).retry_after.is_none()).count();
        let orders = [[one, other], [other, one], [one, other], [other, one]];
        let through: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = orders.iter().map(|order| scope.spawn(|| count(order))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(through, 100);
        assert_eq!(memory.take(&[other], 0).standings[0].remaining(), 50, "what one refuses, the other does not count");
    }

    #[test]
    fn what_was_used_most_is_forgotten_last_and_the_rest_is_bounded() {
        let (now, clock) = clock();
        let memory = Memory::sized(clock, 4, 256);
        let held = || memory.shards.iter().map(|shard| shard.lock().unwrap().buckets.len()).sum::<usize>();
        let used_up = bucket(0, 5, 60_000_000);
        for _ in 0..5 {
            assert_eq!(memory.take(&[used_up], 1).retry_after, None);
        }
        for n in 1..100_000 {
            memory.take(&[bucket(n, 5, 60_000_000)], 1);
            assert!(held() <= 4 * 256);
        }
        assert!(memory.take(&[used_up], 1).retry_after.is_some());
        now.fetch_add(60_000_000, Ordering::Relaxed);
        for n in 0..1_024 {
            memory.take(&[bucket(n, 5, 60_000_000)], 1);
            memory.take(&[bucket(n, 5, 60_000_000)], -1);
        }
        assert!(held() < 4 * 256, "those that have drained are let go");
    }

    #[test]
    fn a_clock_that_is_set_back_takes_nothing_from_anybody_and_gives_nothing() {
        let (now, clock) = clock();
        let memory = Memory::new(clock);
        let of = [bucket(1, 2, 60_000_000)];
        for _ in 0..3 {
            memory.take(&of, 1);
            now.fetch_sub(86_400_000_000, Ordering::Relaxed);
            assert_eq!(memory.take(&of, 1).retry_after, None);
            assert_eq!(memory.take(&of, 1).retry_after, Some(Duration::from_secs(30)));
            now.fetch_add(30_000_000, Ordering::Relaxed);
            assert_eq!(memory.take(&of, 1).retry_after, None);
            now.fetch_add(60_000_000, Ordering::Relaxed);
            assert_eq!(memory.take(&of, 0).standings[0].remaining(), 2);
        }
    }
}
