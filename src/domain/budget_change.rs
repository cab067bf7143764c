//! What changes an API key's budget: reservations and settlements, as values that are applied to it, one after the other, while nobody
//! else changes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use chrono::TimeDelta;

use super::budget::Used;
use super::budget_limits::{Limits, OverBudget};
use crate::model::{ApiKeyId, Timestamp};
use crate::store::budget::{Budget, Held, Ledger, Period};

/// How far the clocks of servers may lie apart. What is counted of a later time was begun by a clock that was wrong.
const LEEWAY: TimeDelta = TimeDelta::hours(1);

/// What is to be done to a budget.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Reserve(Wanted),
    Settle(Settlement),
}

/// What is to be reserved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// What the key has used, as far as is known.
    pub(super) start: Ledger,
    /// Whether that was just counted by the records.
    pub(super) is_counted: bool,
    pub(super) limits: Limits,
    pub(super) held: Held,
}

/// What is given back, and what was used of it.
#[derive(Debug, Clone)]
pub(super) struct Settlement {
    /// What the key had used when it was reserved: of the day and the month that it is settled in.
    pub(super) start: Ledger,
    pub(super) limits: Limits,
    pub(super) held: Held,
    pub(super) used: Used,
    /// Where it is held; none: in memory.
    row: Option<Arc<HeldRow>>,
    /// The transaction that it is made up for, where the answer to that was lost.
    lost: Option<Lost>,
}

/// What becomes of a settlement by what became of a transaction.
#[derive(Debug, Clone)]
enum Lost {
    /// It reserved what is given back, and told nobody.
    Reserved(Arc<Doubt>),
    /// It settled the same.
    Settled(Arc<Doubt>),
}

/// A transaction of which it is not known whether it lasts. The next one of the same key and server reads that: it has the key's ledger
/// locked, and so finds the end of the one before.
#[derive(Debug)]
pub(super) struct Doubt {
    number: i64,
    /// The number of the newest transaction that lasts; none: another server has counted as used what was held, or this one held nothing
    /// any more, and so what was settled is.
    newest: OnceLock<Option<i64>>,
}

impl Doubt {
    pub(super) fn new(number: i64) -> Self {
        Self { number, newest: OnceLock::new() }
    }

    /// Says what the next transaction has read.
    pub(super) fn end(&self, newest: Option<i64>) {
        // There is one that comes next.
        self.newest.get_or_init(|| newest);
    }

    fn lasts(&self) -> Option<bool> {
        self.newest.get().copied().flatten().map(|newest| newest == self.number)
    }
}

/// What becomes of a change.
#[derive(Debug)]
pub(super) enum Outcome {
    Reserved(Settlement),
    /// Nothing is reserved: what is counted is of another day or month, and is to be counted anew.
    Outdated,
    /// Nothing is reserved: a limit is reached, with this used.
    Over(OverBudget, Ledger),
    /// Settled: so much is used by now.
    Settled(Ledger),
}

impl Change {
    /// What a key has used that has no budget yet.
    pub(super) fn start(&self) -> &Ledger {
        match self {
            Self::Reserve(wanted) => &wanted.start,
            Self::Settle(settlement) => &settlement.start,
        }
    }

    /// Whether what it starts with was just counted by the records.
    pub(super) fn is_counted(&self) -> bool {
        matches!(self, Self::Reserve(Wanted { is_counted: true, .. }))
    }

    pub(super) fn limits(&self) -> &Limits {
        match self {
            Self::Reserve(wanted) => &wanted.limits,
            Self::Settle(settlement) => &settlement.limits,
        }
    }

    /// What is left to be settled of it now that nobody knows whether the transaction lasts in which it had this outcome.
    pub(super) fn in_doubt(&self, outcome: Outcome, doubt: &Arc<Doubt>) -> Option<Settlement> {
        match (self, outcome) {
            (_, Outcome::Reserved(reserved)) => {
                Some(Settlement { lost: Some(Lost::Reserved(doubt.clone())), ..reserved })
            }
            (Self::Settle(settled), _) if settled.is_due() => {
                Some(Settlement { lost: Some(Lost::Settled(doubt.clone())), ..settled.clone() })
            }
            _ => None,
        }
    }

    /// Applies it. `rows`: where what is held is told apart, none in memory.
    pub(super) fn apply(&self, budget: &mut Budget, rows: Option<&Rows>, now: Timestamp) -> Outcome {
        match self {
            Self::Reserve(wanted) => wanted.apply(budget, rows, now),
            Self::Settle(settlement) => Outcome::Settled(settlement.apply(budget, rows)),
        }
    }
}

impl Wanted {
    fn apply(&self, budget: &mut Budget, rows: Option<&Rows>, now: Timestamp) -> Outcome {
        let Self { start, is_counted, limits, held } = *self;
        if is_counted {
            agree(&mut budget.ledger, &start, now);
        }
        if !is_of(&budget.ledger, now) {
            return Outcome::Outdated;
        }
        if let Err(over) = limits.check(budget, &held, now) {
            return Outcome::Over(over, budget.ledger);
        }
        let row = rows.map(|rows| rows.of(budget));
        budget.own.add(&held);
        // Written with the first that is held.
        budget.has_row |= row.is_some();
        Outcome::Reserved(Settlement { start: budget.ledger, limits, held, used: Used::default(), row, lost: None })
    }
}

impl Settlement {
    /// Whether it is to be made, by what the next transaction has found of the lost one. What another server has counted as used is not
    /// given back; and nothing is used of it beyond that.
    fn is_due(&self) -> bool {
        match &self.lost {
            None => true,
            Some(Lost::Reserved(doubt)) => doubt.lasts() == Some(true),
            Some(Lost::Settled(doubt)) => doubt.lasts() == Some(false),
        }
    }

    fn apply(&self, budget: &mut Budget, rows: Option<&Rows>) -> Ledger {
        if !self.is_due() {
            return budget.ledger;
        }
        // What counts as used by now, since this server was taken for gone, is not taken from what later requests hold.
        let is_same = |(row, rows): (&Arc<HeldRow>, &Rows)| budget.has_row && Arc::ptr_eq(row, &rows.of(budget));
        if self.row.as_ref().zip(rows).is_none_or(is_same) {
            budget.own.give_back(&self.held);
        }
        budget.ledger.charge(self.start.period(), self.used.tokens(), self.used.cost.nanos());
        budget.ledger
    }
}

/// The row that a server holds something of a key in. When another server takes it for gone, the row counts as used and is removed;
/// what is held from then on is held in a new one.
#[derive(Debug)]
struct HeldRow;

/// What this server's requests hold of keys in the database, as long as there are such requests.
#[derive(Debug, Default)]
pub(super) struct Rows(Mutex<HashMap<ApiKeyId, Weak<HeldRow>>>);

impl Rows {
    /// The row that this server holds something of a key in, or will. It is asked for while nobody else changes the key's budget.
    fn of(&self, budget: &Budget) -> Arc<HeldRow> {
        // An assignment cannot panic half-way.
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rows.entry(budget.ledger.api_key_id).or_default();
        known.upgrade().filter(|_| budget.has_row).unwrap_or_else(|| {
            let row = Arc::new(HeldRow);
            *known = Arc::downgrade(&row);
            row
        })
    }

    /// Forgets those that nothing is held in.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, row| row.strong_count() > 0);
    }
}

/// Whether a ledger counts the day and the month of now. By a clock that is behind it may be ahead, but no further than clocks lie apart.
pub(super) fn is_of(ledger: &Ledger, now: Timestamp) -> bool {
    let (from, to) = (Period::of(now), Period::of(now + LEEWAY));
    (from.day..=to.day).contains(&ledger.day) && (from.month..=to.month).contains(&ledger.month)
}

/// Makes a ledger agree with the records. Where it counts another day or month, a past one or one that has not come, it begins with
/// theirs; and while a key had no limits, nobody has counted here what it used.
pub(super) fn agree(ledger: &mut Ledger, counted: &Ledger, now: Timestamp) {
    let (is_new, latest) = (ledger.key_version < counted.key_version, Period::of(now + LEEWAY));
    ledger.key_version = ledger.key_version.max(counted.key_version);
    if ledger.day < counted.day || ledger.day > latest.day {
        (ledger.day, ledger.tokens) = (counted.day, counted.tokens);
    } else if is_new && ledger.day == counted.day {
        ledger.tokens = ledger.tokens.max(counted.tokens);
    }
    if ledger.month < counted.month || ledger.month > latest.month {
        (ledger.month, ledger.cost_nano_usd) = (counted.month, counted.cost_nano_usd);
    } else if is_new && ledger.month == counted.month {
        ledger.cost_nano_usd = ledger.cost_nano_usd.max(counted.cost_nano_usd);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{MicroUsd, NanoUsd, OrganizationId};

    fn now() -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000).unwrap()
    }

    fn ledger() -> Ledger {
        let Period { day, month } = Period::of(now());
        let (key, organization) = (ApiKeyId::new(now(), &[1; 10]), OrganizationId::new(now(), &[2; 10]));
        Ledger {
            api_key_id: key,
            organization_id: organization,
            key_version: 1,
            day,
            tokens: 0,
            month,
            cost_nano_usd: 0,
        }
    }

    /// A server with its transactions, and what it has reserved. Another may take it for gone.
    struct Server {
        budget: Budget,
        rows: Rows,
        running: Vec<Settlement>,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Reserve(u64),
        /// Settles one of those that run, with so much of what it holds, in parts of 100.
        Settle(usize, u64),
    }

    impl Server {
        fn new() -> Self {
            Self { budget: Budget::begun(ledger()), rows: Rows::default(), running: Vec::new() }
        }

        /// One transaction. Those that run before it can be settled in it.
        fn commit(&mut self, steps: &[Step], limits: Limits) -> Vec<bool> {
            let mut changes = Vec::new();
            for step in steps {
                match *step {
                    Step::Reserve(tokens) => {
                        let tokens = i64::try_from(tokens).unwrap();
                        let held = Held { requests: 1, tokens, cost_nano_usd: 1_000 * tokens };
                        changes.push(Change::Reserve(Wanted { start: ledger(), is_counted: false, limits, held }));
                    }
                    Step::Settle(which, part) if !self.running.is_empty() => {
                        let settled = self.running.remove(which % self.running.len());
                        let tokens = u64::try_from(settled.held.tokens).unwrap() * part / 100;
                        let cost = NanoUsd::from_nanos(1_000 * i64::try_from(tokens).unwrap());
                        changes.push(Change::Settle(Settlement { used: Used { tokens, cost }, ..settled }));
                    }
                    Step::Settle(..) => {}
                }
            }
            let outcomes: Vec<_> =
                changes.iter().map(|change| change.apply(&mut self.budget, Some(&self.rows), now())).collect();
            let reserved = outcomes.iter().filter(|outcome| !matches!(outcome, Outcome::Settled(_)));
            let reserved = reserved.map(|outcome| matches!(outcome, Outcome::Reserved(_))).collect();
            self.running.extend(outcomes.into_iter().filter_map(|outcome| match outcome {
                Outcome::Reserved(settlement) => Some(settlement),
                _ => None,
            }));
            reserved
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Vec<(Step, bool)>>> {
        let step = prop_oneof![
            3 => (1_u64..50).prop_map(Step::Reserve),
            2 => (any::<usize>(), 0_u64..=100).prop_map(|(which, part)| Step::Settle(which, part)),
        ];
        prop::collection::vec(prop::collection::vec((step, any::<bool>()), 1..12), 1..12)
    }

    proptest! {
        #[test]
        fn nothing_is_overrun_lost_or_counted_twice_however_many_are_done_at_once(
            batches in steps(),
            requests in prop::option::of(1_i64..8),
            tokens in prop::option::of(1_i64..200),
        ) {
            let cost = tokens.map(MicroUsd::from_micros);
            let limits = Limits { requests, tokens, cost };
            let (mut at_once, mut one_by_one) = (Server::new(), Server::new());
            for batch in batches {
                // In a transaction of their own nothing is reserved between those that are settled: they come first.
                let (mut steps, reserving): (Vec<Step>, Vec<Step>) =
                    batch.iter().map(|(step, _)| *step).partition(|step| matches!(step, Step::Settle(..)));
                steps.extend(reserving);
                let of_all = at_once.commit(&steps, limits);
                let of_each: Vec<bool> = steps.iter().flat_map(|step| one_by_one.commit(&[*step], limits)).collect();
                prop_assert_eq!(of_all, of_each);
                prop_assert_eq!((at_once.budget.ledger, at_once.budget.own), (one_by_one.budget.ledger, one_by_one.budget.own));
                let mut held = Held::default();
                at_once.running.iter().for_each(|running| held.add(&running.held));
                prop_assert_eq!(at_once.budget.own, held);
                prop_assert!(requests.is_none_or(|limit| held.requests <= limit));
                prop_assert!(tokens.is_none_or(|limit| at_once.budget.ledger.tokens + held.tokens <= limit));
                // Somebody has taken the server for gone, and counted what it holds as used.
                if batch.iter().all(|(_, is_gone)| *is_gone) {
                    for server in [&mut at_once, &mut one_by_one] {
                        let held = std::mem::take(&mut server.budget.own);
                        server.budget.has_row = false;
                        server.budget.ledger.charge(ledger().period(), held.tokens, held.cost_nano_usd);
                        let before = server.budget.ledger.tokens;
                        // It says all the same what its requests have used: that is counted twice, and no more is given back.
                        let lost = std::mem::take(&mut server.running);
                        server.commit(&[Step::Reserve(1)], limits);
                        let own = server.budget.own;
                        for settlement in lost {
                            Change::Settle(settlement).apply(&mut server.budget, Some(&server.rows), now());
                        }
                        prop_assert_eq!((server.budget.own, server.budget.ledger.tokens), (own, before));
                    }
                }
            }
        }
    }
}
