//! What API keys may still do on the relay: requests at once, tokens a day, costs a month. A request reserves what it may take before
//! it starts, and settles what it took after: so no limit is overrun, however many race.
//!
//! On PostgreSQL, which several servers share, budgets are rows of it, and what waits of a key is committed together
//! (`budget_queue.rs`); on SQLite, which one server has, they are in memory, and are read from the records when they are first asked
//! for (docs/decisions/budgets.md).

use std::collections::HashMap;
use std::slice;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget_change::{Change, Doubt, Outcome, Rows, Settlement, Wanted, agree, is_of};
pub use super::budget_limits::{Limits, OverBudget};
use super::budget_notices::BudgetNotices;
use super::budget_queue::{Batch, Cause, Queue, Work};
use super::budget_unheld::Unheld;
use super::context::Services;
use super::usage;
use crate::model::{ApiKeyId, Clock, MicroUsd, NanoUsd, OrganizationId};
use crate::store::api_key::{ApiKey, FoundApiKey};
use crate::store::budget::{self as store_budget, Budget, Held, Ledger, Period, Server};
use crate::store::{self, Db, usage_rollup};

/// How long a request waits to be let in, at most, whatever is done before it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What a request may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens, of the prompt and of the longest answer.
    pub tokens: u64,
    /// What they cost.
    pub cost: MicroUsd,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// All tokens.
    pub tokens: u64,
    /// What they cost.
    pub cost: NanoUsd,
}

impl Used {
    pub(super) fn tokens(&self) -> i64 {
        i64::try_from(self.tokens).unwrap_or(i64::MAX)
    }
}

/// Why nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum NotReserved {
    /// A limit is reached.
    #[error("a limit of the key is reached")]
    Over(OverBudget),
    /// The database cannot be asked, and nothing is spent that cannot be counted.
    #[error(transparent)]
    Unavailable(#[from] store::Error),
}

/// How much of its limits a key has used, with what is held for requests that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Requests that run.
    pub requests: i64,
    /// Tokens of the day.
    pub tokens: i64,
    /// Costs of the month.
    pub cost: NanoUsd,
}

/// The budgets of API keys.
pub struct Budgets(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) place: Place,
    clock: Clock,
    notices: BudgetNotices,
    /// What could not be given back yet.
    pub(super) owed: Mutex<HashMap<ApiKeyId, Vec<Settlement>>>,
    /// What requests have used that held nothing. Locked after the budgets, where both are.
    pub(super) unheld: Mutex<Unheld>,
    pub(super) woken: Notify,
    /// What is finished though nobody waits for it any more.
    pub(super) tasks: TaskTracker,
    /// It has no time for a database that says nothing.
    pub(super) stopping: CancellationToken,
}

#[allow(clippy::large_enum_variant, reason = "there is one in a server")]
pub(super) enum Place {
    Memory {
        budgets: Mutex<HashMap<ApiKeyId, Budget>>,
        /// Whoever counts a key by the records has it until the budget has begun with that.
        counting: tokio::sync::Mutex<()>,
    },
    Database {
        db: Db,
        server: String,
        /// How often this server has said that it is there.
        beat: AtomicI64,
        /// The keys that this server has seen to be counted in the database.
        counted: Mutex<HashMap<ApiKeyId, Ledger>>,
        rows: Rows,
        /// How many transactions this server has begun.
        transactions: AtomicI64,
        /// The newest of each key whose answer was lost, until the next one has found what has become of it.
        doubts: Mutex<HashMap<ApiKeyId, Arc<Doubt>>>,
        /// What is to be changed, and waits for what is being changed of the same key.
        queue: Arc<Queue<Change, Made>>,
    },
}

/// What has become of a change.
pub(super) enum Made {
    Reserved(Reservation),
    /// What is counted is not of now, and is to be counted anew.
    Outdated,
    Over(OverBudget),
    Settled,
    /// The answer to the commit was lost. What there is to be settled of it, if it lasts or if it does not, is owed.
    InDoubt(Cause),
}

impl Budgets {
    /// Of a server with this name: in memory, or in a database that several servers share.
    #[must_use]
    pub fn new(db: &Db, clock: Clock, server: &str) -> Self {
        // By which servers can tell each other something is what they share.
        let place = if db.can_notify() {
            Place::Database {
                db: db.clone(),
                server: server.to_owned(),
                beat: AtomicI64::default(),
                counted: Mutex::default(),
                rows: Rows::default(),
                transactions: AtomicI64::default(),
                doubts: Mutex::default(),
                queue: Arc::default(),
            }
        } else {
            Place::Memory { budgets: Mutex::default(), counting: tokio::sync::Mutex::default() }
        };
        Self(Arc::new(Inner {
            place,
            clock,
            notices: BudgetNotices::default(),
            owed: Mutex::default(),
            unheld: Mutex::default(),
            woken: Notify::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// Reserves what a request may take, under the limits of the key and no others.
    ///
    /// # Errors
    /// Where it does not fit, or the database cannot be asked.
    pub async fn reserve(
        &self,
        services: &Services,
        key: &FoundApiKey,
        estimate: Estimate,
    ) -> Result<Reservation, NotReserved> {
        let key = &key.key;
        let limits = Limits::from(key);
        if limits.are_none() {
            let claim = Claim::Unheld(key.id, Period::of(self.0.clock.now()));
            return Ok(Reservation { budgets: self.0.clone(), claim: Some(claim) });
        }
        let held = Held {
            requests: 1,
            tokens: i64::try_from(estimate.tokens).unwrap_or(i64::MAX),
            cost_nano_usd: NanoUsd::from(estimate.cost).nanos(),
        };
        let reserved = timeout(LONGEST_WAIT, self.reserve_held(services, key, limits, held));
        reserved.await.unwrap_or_else(|late| Err(store::Error::Unavailable(late.into()).into()))
    }

    async fn reserve_held(
        &self,
        services: &Services,
        key: &ApiKey,
        limits: Limits,
        held: Held,
    ) -> Result<Reservation, NotReserved> {
        let mut known = self.0.known(key);
        loop {
            let start = match known {
                Some(ledger) => Start { ledger, is_counted: false, _turn: None },
                // In a box: it takes much, and is rare.
                None => Box::pin(self.counted(services, key)).await?,
            };
            let wanted = Wanted { start: start.ledger, is_counted: start.is_counted, limits, held };
            match self.0.change(Change::Reserve(wanted)).await? {
                Made::Reserved(reservation) => return Ok(reservation),
                Made::Over(over) => return Err(NotReserved::Over(over)),
                Made::InDoubt(cause) => return Err(store::Error::Unavailable(cause.into()).into()),
                // What is counted is of another day or month: it begins with what the records have of this one.
                Made::Outdated | Made::Settled => known = None,
            }
        }
    }

    /// How much of their limits some keys of an organization have used.
    ///
    /// # Errors
    /// Where the database cannot be asked.
    pub async fn levels(
        &self,
        services: &Services,
        organization: OrganizationId,
        keys: &[&ApiKey],
    ) -> store::Result<HashMap<ApiKeyId, Level>> {
        let ids: Vec<ApiKeyId> = keys.iter().map(|key| key.id).collect();
        let found: HashMap<ApiKeyId, (Ledger, Held)> = match &self.0.place {
            Place::Memory { budgets, .. } => {
                let budgets = lock(budgets);
                let of = |id: &ApiKeyId| budgets.get(id).map(|budget| (*id, (budget.ledger, budget.own)));
                ids.iter().filter_map(of).collect()
            }
            Place::Database { db, .. } => store_budget::find(&mut db.read().await?, &ids).await?,
        };
        let now = self.0.clock.now();
        let is_counted = |ledger: &Ledger, key: &ApiKey| ledger.key_version >= key.version && is_of(ledger, now);
        let others = keys.iter().filter(|key| !found.get(&key.id).is_some_and(|(ledger, _)| is_counted(ledger, key)));
        let others: Vec<ApiKeyId> = others.map(|key| key.id).collect();
        let (period, used) = self.used(services, organization, &others).await?;
        let level = |key: &&ApiKey| {
            let counted = begun(key, period, &used);
            let (mut ledger, held) = found.get(&key.id).copied().unwrap_or((counted, Held::default()));
            if !is_counted(&ledger, key) {
                agree(&mut ledger, &counted, now);
            }
            let tokens = ledger.tokens.saturating_add(held.tokens);
            let cost = NanoUsd::from_nanos(ledger.cost_nano_usd.saturating_add(held.cost_nano_usd));
            (key.id, Level { requests: held.requests, tokens, cost })
        };
        Ok(keys.iter().map(level).collect())
    }

    /// What a key has used by the records, or what somebody else has counted meanwhile.
    async fn counted(&self, services: &Services, key: &ApiKey) -> store::Result<Start<'_>> {
        let turn = match &self.0.place {
            Place::Memory { counting, .. } => {
                let turn = counting.lock().await;
                let now = self.0.clock.now();
                if let Some(ledger) = self.0.known(key).filter(|ledger| is_of(ledger, now)) {
                    return Ok(Start { ledger, is_counted: false, _turn: None });
                }
                // It is recorded by now, and so among what is counted: what ends from here on is added when the budget begins.
                lock(&self.0.unheld).take(&[key.id].into());
                Some(turn)
            }
            Place::Database { .. } => None,
        };
        let (period, used) = self.used(services, key.organization_id, &[key.id]).await?;
        Ok(Start { ledger: begun(key, period, &used), is_counted: true, _turn: turn })
    }

    /// What keys of an organization have used by the records in this day and this month: tokens and billionths of a dollar.
    async fn used(
        &self,
        services: &Services,
        organization: OrganizationId,
        keys: &[ApiKeyId],
    ) -> store::Result<(Period, HashMap<ApiKeyId, (i64, i64)>)> {
        if keys.is_empty() {
            return Ok((Period::of(self.0.clock.now()), HashMap::new()));
        }
        // What waits to be written was used too.
        usage::flush(services).await?;
        let period = Period::of(self.0.clock.now());
        let mut conn = services.db.read().await?;
        Ok((period, usage_rollup::used_by_keys(&mut conn, organization, keys, period).await?))
    }

    /// What is to be told of limits.
    pub(super) fn notices(&self) -> &BudgetNotices {
        &self.0.notices
    }

    /// Whether other servers share them.
    pub(super) fn are_shared(&self) -> bool {
        matches!(self.0.place, Place::Database { .. })
    }

    /// Waits until there is something to settle.
    pub(super) async fn owes(&self) {
        self.0.woken.notified().await;
    }

    /// Forgets the keys that were not used today, which may be gone: one that is not is counted anew by its next request.
    pub fn forget(&self) {
        let now = self.0.clock.now();
        match &self.0.place {
            Place::Memory { budgets, .. } => {
                lock(budgets).retain(|_, budget| budget.own != Held::default() || is_of(&budget.ledger, now));
            }
            Place::Database { counted, rows, .. } => {
                lock(counted).retain(|_, ledger| is_of(ledger, now));
                rows.forget();
            }
        }
        self.0.notices.forget_before(Period::of(now).month);
    }

    /// Says to other servers that this one is there.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn beat(&self) -> store::Result<()> {
        let Place::Database { db, server, beat, .. } = &self.0.place else { return Ok(()) };
        // Of the server, and not of what it holds: that comes and goes.
        let beat = beat.fetch_add(1, Ordering::Relaxed) + 1;
        store_budget::beat(db, Server { name: server, beat }).await
    }
}

impl Inner {
    /// What is known of a key's use without counting it again.
    fn known(&self, key: &ApiKey) -> Option<Ledger> {
        let known = match &self.place {
            Place::Memory { budgets, .. } => lock(budgets).get(&key.id).map(|budget| budget.ledger),
            Place::Database { counted, .. } => lock(counted).get(&key.id).copied(),
        };
        known.filter(|known| known.key_version >= key.version)
    }

    pub(super) async fn change(self: &Arc<Self>, change: Change) -> store::Result<Made> {
        match &self.place {
            Place::Memory { budgets, .. } => {
                let (start, now) = (*change.start(), self.clock.now());
                let outcome = {
                    let mut budgets = lock(budgets);
                    let is_new = !budgets.contains_key(&start.api_key_id);
                    let budget = budgets.entry(start.api_key_id).or_insert_with(|| Budget::begun(start));
                    if is_new || change.is_counted() {
                        agree(&mut budget.ledger, &start, now);
                        // What has ended while it was counted.
                        for ((_, period), (tokens, cost)) in lock(&self.unheld).take(&[start.api_key_id].into()) {
                            budget.ledger.charge(period, tokens, cost);
                        }
                    }
                    change.apply(budget, None, now)
                };
                Ok(self.made(&change, outcome))
            }
            Place::Database { queue, .. } => {
                let (answer, work) = queue.ask(change.start().api_key_id, change);
                if let Some(work) = work {
                    // Begun, it goes on: who does the work for others may leave, and others wait.
                    self.tasks.spawn(self.clone().work(work));
                }
                answer.await.unwrap_or_else(|broken| Err(store::Error::Unavailable(broken.into())))
            }
        }
    }

    async fn work(self: Arc<Self>, mut work: Work<Change, Made>) {
        while let Some(mut batch) = work.next() {
            if let Err(cause) = self.commit_all(&mut batch).await {
                batch.refuse(&cause);
                // Nor can it be for those who have come meanwhile.
                work.refuse(&cause);
            }
        }
    }

    /// Makes changes of one key, in one transaction; where the database refuses it, each in its own. Fails where the database is away:
    /// who is not answered by then is to be told.
    async fn commit_all(self: &Arc<Self>, batch: &mut Batch<Change, Made>) -> Result<(), Cause> {
        match self.commit(&batch.asked).await {
            // It is one of them that cannot be: the others can.
            Err(error) if batch.asked.len() > 1 && !matches!(error, store::Error::Unavailable(_)) => {
                for change in std::mem::take(&mut batch.asked) {
                    tell(batch, self.commit(slice::from_ref(&change)).await)?;
                }
                Ok(())
            }
            committed => tell(batch, committed),
        }
    }

    /// What has become of changes of one key is said once they are committed.
    async fn commit(self: &Arc<Self>, changes: &[Change]) -> store::Result<Vec<Made>> {
        let (Place::Database { db, server, beat, rows, transactions, doubts, .. }, Some(first)) =
            (&self.place, changes.first())
        else {
            return Ok(Vec::new());
        };
        let key = first.start().api_key_id;
        let (number, outcomes, committed) = loop {
            let server = Server { name: server, beat: beat.load(Ordering::Relaxed) };
            let (number, now) = (transactions.fetch_add(1, Ordering::Relaxed) + 1, self.clock.now());
            let mut outcomes = Vec::new();
            let apply = |budget: &mut Budget| {
                if let Some(doubt) = lock(doubts).remove(&key) {
                    doubt.end(budget.newest);
                }
                outcomes = changes.iter().map(|change| change.apply(budget, Some(rows), now)).collect();
            };
            match self.in_time(store_budget::change(db, server, number, first.start(), apply)).await {
                // Another server has begun with the key at the same moment: now there is one.
                Err(store::Error::Duplicate) => {}
                committed => break (number, outcomes, committed),
            }
        };
        let outcomes = changes.iter().zip(outcomes);
        match committed {
            Ok(()) => Ok(outcomes.map(|(change, outcome)| self.made(change, outcome)).collect()),
            Err(store::Error::Unavailable(cause)) if outcomes.len() > 0 => {
                let (doubt, cause) = (Arc::new(Doubt::new(number)), Cause::from(cause));
                lock(doubts).insert(key, doubt.clone());
                outcomes
                    .filter_map(|(change, outcome)| change.in_doubt(outcome, &doubt))
                    .for_each(|lost| self.owe(lost));
                Ok(changes.iter().map(|_| Made::InDoubt(cause.clone())).collect())
            }
            Err(error) => Err(error),
        }
    }

    /// What has become of a change that lasts by now.
    fn made(self: &Arc<Self>, change: &Change, outcome: Outcome) -> Made {
        match outcome {
            Outcome::Reserved(settlement) => {
                if let (Place::Database { counted, .. }, Change::Reserve(Wanted { start, is_counted: true, .. })) =
                    (&self.place, change)
                {
                    lock(counted).insert(start.api_key_id, *start);
                }
                Made::Reserved(Reservation { budgets: self.clone(), claim: Some(Claim::Held(settlement)) })
            }
            Outcome::Outdated => Made::Outdated,
            Outcome::Over(over, ledger) => {
                self.notices.look(change.limits(), &ledger, over.by_itself());
                Made::Over(over)
            }
            Outcome::Settled(ledger) => {
                self.notices.look(change.limits(), &ledger, None);
                Made::Settled
            }
        }
    }
}

/// What a key's budget begins with, if it has not begun.
struct Start<'a> {
    ledger: Ledger,
    /// By the records, and just now.
    is_counted: bool,
    /// In memory nobody else counts until the budget has begun with it: what has ended since would be taken for counted.
    _turn: Option<tokio::sync::MutexGuard<'a, ()>>,
}

/// The ledger of a key that begins with what the records have.
fn begun(key: &ApiKey, Period { day, month }: Period, used: &HashMap<ApiKeyId, (i64, i64)>) -> Ledger {
    let (tokens, cost_nano_usd) = used.get(&key.id).copied().unwrap_or_default();
    let (api_key_id, organization_id, key_version) = (key.id, key.organization_id, key.version);
    Ledger { api_key_id, organization_id, key_version, day, tokens, month, cost_nano_usd }
}

/// Tells who waits for changes what has become of them. Fails where the database is away.
fn tell(batch: &mut Batch<Change, Made>, committed: store::Result<Vec<Made>>) -> Result<(), Cause> {
    let mut away = None;
    match committed {
        Ok(made) => {
            for made in made {
                if let Made::InDoubt(cause) = &made {
                    away = Some(cause.clone());
                }
                batch.answer(Ok(made));
            }
        }
        Err(store::Error::Unavailable(cause)) => away = Some(cause.into()),
        Err(error) => batch.answer(Err(error)),
    }
    away.map_or(Ok(()), Err)
}

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever is done to it is done by assignments, which cannot panic half-way.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was reserved for a request. Dropped, it is given back, as though the request had taken nothing.
#[must_use = "what is reserved is given back when it is dropped"]
pub struct Reservation {
    budgets: Arc<Inner>,
    /// None: it was settled.
    claim: Option<Claim>,
}

enum Claim {
    Held(Settlement),
    /// Nothing: the key had no limits at that time.
    Unheld(ApiKeyId, Period),
}

impl Reservation {
    /// Gives back what was reserved, but for what was used. Where the database fails, it is done as soon as that can be. Record the
    /// request first: a key that is asked for its budget for the first time reads it from the records.
    pub async fn settle(mut self, used: Used) {
        let settlement = match self.claim.take() {
            Some(Claim::Held(mut settlement)) => {
                settlement.used = used;
                settlement
            }
            Some(Claim::Unheld(key, period)) => {
                return self.budgets.add_unheld(key, period, (used.tokens(), used.cost.nanos()));
            }
            None => return,
        };
        match &self.budgets.place {
            Place::Memory { .. } => drop(self.budgets.change(Change::Settle(settlement)).await),
            Place::Database { .. } => match self.budgets.settling(settlement).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "what a request has used was not settled; it is tried again");
                }
                Err(broken) => {
                    let error = &broken as &dyn std::error::Error;
                    tracing::error!(error, "settling broke off: what a request has reserved stays so");
                }
            },
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(Claim::Held(settlement)) = self.claim.take() else { return };
        match &self.budgets.place {
            Place::Memory { budgets, .. } => {
                if let Some(budget) = lock(budgets).get_mut(&settlement.start.api_key_id) {
                    budget.own.give_back(&settlement.held);
                }
            }
            Place::Database { .. } => {
                self.budgets.owe(settlement);
                self.budgets.woken.notify_one();
            }
        }
    }
}
