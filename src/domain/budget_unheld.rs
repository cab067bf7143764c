//! What requests have used that held nothing, since their key had no limits when they came. Where it has some by now, it is added to its
//! budget; and where it has some a moment later, that is counted by the records, which are written a moment later too: so it is kept
//! for some looks, and counts twice rather than not at all.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ApiKeyId;
use crate::store::budget::Period;

/// How often it is looked whether a key is counted by now, until what it has used is in the records for all to see.
const LOOKS: usize = 5;
/// Looks that follow each other sooner are one: it is looked whenever there is something to settle.
const APART: Duration = Duration::from_secs(1);

/// Tokens, and billionths of a dollar.
type Sums = HashMap<(ApiKeyId, Period), (i64, i64)>;

/// The sums, as long as they are kept.
#[derive(Default)]
pub(super) struct Unheld {
    /// By how often was looked since, the newest first.
    sums: VecDeque<Sums>,
    /// When the last look was that counted.
    looked: Option<Instant>,
}

impl Unheld {
    pub(super) fn add(&mut self, key: ApiKeyId, period: Period, (tokens, cost): (i64, i64)) {
        if self.sums.is_empty() {
            self.sums.push_front(Sums::new());
        }
        let sum = self.sums[0].entry((key, period)).or_default();
        *sum = (sum.0.saturating_add(tokens), sum.1.saturating_add(cost));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sums.iter().all(Sums::is_empty)
    }

    pub(super) fn keys(&self) -> BTreeSet<ApiKeyId> {
        self.sums.iter().flat_map(Sums::keys).map(|(key, _)| *key).collect()
    }

    /// What is kept of keys: from now on it is the caller's. In another order each time, as such maps are.
    pub(super) fn take(&mut self, keys: &BTreeSet<ApiKeyId>) -> Sums {
        let mut taken = Self::default();
        for sums in &mut self.sums {
            for ((key, period), used) in sums.extract_if(|(key, _), _| keys.contains(key)) {
                taken.add(key, period, used);
            }
        }
        taken.sums.pop_front().unwrap_or_default()
    }

    /// A look has shown that the keys are not counted yet.
    pub(super) fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now < looked + APART) {
            return;
        }
        self.looked = Some(now);
        self.sums.push_front(Sums::new());
        self.sums.truncate(LOOKS);
        if self.is_empty() {
            self.sums.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn what_is_kept_is_kept_for_some_looks_and_taken_once() {
        let key = |number: u8| ApiKeyId::new(Timestamp::MAX, &[number; 10]);
        let period = Period::of(Timestamp::from_micros(0).unwrap());
        let (mut unheld, mut now) = (Unheld::default(), Instant::now());
        for _ in 1..LOOKS {
            unheld.add(key(1), period, (2, 3));
            unheld.add(key(2), period, (i64::MAX, 1));
            now += APART;
            // However often it is looked at once.
            (0..LOOKS).for_each(|_| unheld.look(now));
        }
        let looks = i64::try_from(LOOKS).unwrap() - 1;
        assert_eq!(unheld.take(&[key(1)].into()), Sums::from([((key(1), period), (2 * looks, 3 * looks))]));
        assert_eq!((unheld.take(&[key(1)].into()), unheld.keys()), (Sums::new(), [key(2)].into()));
        assert_eq!(unheld.sums.len(), LOOKS);
        for _ in 1..LOOKS {
            assert!(!unheld.is_empty());
            now += APART;
            unheld.look(now);
        }
        assert!(unheld.is_empty() && unheld.sums.is_empty());
    }
}
