//! What API keys may still do on the relay: requests at once, tokens a day, costs a month. A request reserves what it may take before
//! it starts, and settles what it took after: so no limit is overrun, however many race.
//!
//! On PostgreSQL, which several servers share, budgets are rows of it; on SQLite, which one server has, they are in memory, and are
//! read from the records when they are first asked for (docs/decisions/budgets.md).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chrono::TimeDelta;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

pub use super::budget_limits::{Limits, OverBudget};
use super::budget_notices::BudgetNotices;
use super::context::Services;
use super::usage;
use crate::model::{ApiKeyId, Clock, MicroUsd, NanoUsd, OrganizationId, Timestamp};
use crate::store::api_key::{ApiKey, FoundApiKey};
use crate::store::budget::{self as store_budget, Budget, Held, Ledger, Period, Server};
use crate::store::{self, Db, usage_rollup};

/// How far the clocks of servers may lie apart. What is counted of a later time was begun by a clock that was wrong.
const LEEWAY: TimeDelta = TimeDelta::hours(1);

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
    fn tokens(&self) -> i64 {
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
pub struct Budgets(Arc<Inner>);

struct Inner {
    place: Place,
    clock: Clock,
    notices: BudgetNotices,
    /// What could not be given back yet.
    owed: Mutex<VecDeque<Settlement>>,
    /// What requests have used that held nothing, since their key had no limits when they came: it may have some by now.
    unheld: Mutex<BTreeMap<(ApiKeyId, Period), (i64, i64)>>,
    woken: Notify,
    /// What is finished though nobody waits for it any more.
    tasks: TaskTracker,
}

enum Place {
    Memory(Mutex<HashMap<ApiKeyId, Budget>>),
    Database {
        db: Db,
        server: String,
        /// How often this server has said that it is there.
        beat: AtomicI64,
        /// The keys that this server has seen to be counted in the database.
        counted: Mutex<HashMap<ApiKeyId, Ledger>>,
        /// What this server's requests hold of keys in the database, as long as there are such requests.
        rows: Mutex<HashMap<ApiKeyId, Weak<HeldRow>>>,
    },
}

/// The row that a server holds something of a key in. When another server takes it for gone, the row counts as used and is removed;
/// what is held from then on is held in a new one.
#[derive(Debug)]
struct HeldRow;

/// What is given back, and what was used of it.
#[derive(Debug)]
struct Settlement {
    /// What the key had used when it was reserved: of the day and the month that it is settled in.
    start: Ledger,
    limits: Limits,
    held: Held,
    used: Used,
    /// Where it is held; none: in memory.
    row: Option<Arc<HeldRow>>,
}

impl Budgets {
    /// Of a server with this name: in memory, or in a database that several servers share.
    #[must_use]
    pub fn new(db: &Db, clock: Clock, server: &str) -> Self {
        // By which servers can tell each other something is what they share.
        let place = if db.can_notify() {
            let (beat, counted, rows) = (AtomicI64::default(), Mutex::default(), Mutex::default());
            Place::Database { db: db.clone(), server: server.to_owned(), beat, counted, rows }
        } else {
            Place::Memory(Mutex::default())
        };
        Self(Arc::new(Inner {
            place,
            clock,
            notices: BudgetNotices::default(),
            owed: Mutex::default(),
            unheld: Mutex::default(),
            woken: Notify::new(),
            tasks: TaskTracker::new(),
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
        let mut known = self.0.known(key);
        loop {
            let (start, is_new) = match known {
                Some(ledger) => (ledger, false),
                None => (self.counted(services, key).await?, true),
            };
            let settlement = Settlement { start, limits, held, used: Used::default(), row: None };
            let reserving = self.0.clone().reserve(settlement, is_new);
            let reserved = match &self.0.place {
                Place::Memory(_) => reserving.await,
                // Begun, it is waited for: what is reserved for somebody who has left is given back with the task's answer.
                Place::Database { .. } => match self.0.tasks.spawn(reserving).await {
                    Ok(reserved) => reserved,
                    Err(broken) => Err(NotReserved::Unavailable(store::Error::Unavailable(broken.into()))),
                },
            };
            match reserved? {
                Some(reservation) => return Ok(reservation),
                // What is counted is of another day or month: it begins with what the records have of this one.
                None => known = None,
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
            Place::Memory(budgets) => {
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

    /// What a key has used by the records.
    async fn counted(&self, services: &Services, key: &ApiKey) -> store::Result<Ledger> {
        let (period, used) = self.used(services, key.organization_id, &[key.id]).await?;
        Ok(begun(key, period, &used))
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

    /// Gives back what could not be given back at once, and counts what was used without a limit. What fails by itself keeps nothing
    /// else waiting.
    ///
    /// # Errors
    /// Where the database fails, the last time: what is left is tried again.
    pub async fn settle_owed(&self) -> store::Result<()> {
        let Place::Database { db, .. } = &self.0.place else { return Ok(()) };
        let (mut failed, owed) = (None, lock(&self.0.owed).len());
        for _ in 0..owed {
            let Some(settlement) = lock(&self.0.owed).pop_front() else { break };
            if let Err(error) = self.0.settle(&settlement).await {
                // Behind the others.
                lock(&self.0.owed).push_back(settlement);
                if is_away(&error) {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
        self.charge_unheld(db).await?;
        failed.map_or(Ok(()), Err)
    }

    async fn charge_unheld(&self, db: &Db) -> store::Result<()> {
        let unheld = std::mem::take(&mut *lock(&self.0.unheld));
        if unheld.is_empty() {
            return Ok(());
        }
        // Most keys have no limits, and are not counted: only those that are cost a transaction.
        let keys: BTreeSet<ApiKeyId> = unheld.keys().map(|(key, _)| *key).collect();
        let (counted, mut failed) = match store_budget::ledgers(db, &keys).await {
            Ok(counted) => (counted, None),
            Err(error) => (keys, Some(error)),
        };
        for ((key, period), used) in unheld.into_iter().filter(|((key, _), _)| counted.contains(key)) {
            let charged = match failed.take_if(|error| is_away(error)) {
                Some(away) => Err(away),
                None => store_budget::charge(db, key, period, used).await,
            };
            if let Err(error) = charged {
                self.0.add_unheld(key, period, used);
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
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
            Place::Memory(budgets) => {
                lock(budgets).retain(|_, budget| budget.own != Held::default() || is_of(&budget.ledger, now));
            }
            Place::Database { counted, rows, .. } => {
                lock(counted).retain(|_, ledger| is_of(ledger, now));
                lock(rows).retain(|_, row| row.strong_count() > 0);
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

    /// Gives back all that this server holds: it stops.
    ///
    /// # Errors
    /// Where the database fails. What is not given back counts as used, when this server has been silent for a while.
    pub async fn finish(&self) -> store::Result<()> {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let settled = self.settle_owed().await;
        if let Place::Database { db, server, .. } = &self.0.place {
            // Requests of these keys have used something that is counted nowhere else yet.
            let owed: BTreeSet<ApiKeyId> = lock(&self.0.owed).iter().map(|owed| owed.start.api_key_id).collect();
            store_budget::release(db, server, &owed).await?;
        }
        settled
    }
}

impl Inner {
    /// What is known of a key's use without counting it again.
    fn known(&self, key: &ApiKey) -> Option<Ledger> {
        let known = match &self.place {
            Place::Memory(budgets) => lock(budgets).get(&key.id).map(|budget| budget.ledger),
            Place::Database { counted, .. } => lock(counted).get(&key.id).copied(),
        };
        known.filter(|known| known.key_version >= key.version)
    }

    /// None: what is counted is not of now, and is to be counted anew.
    async fn reserve(
        self: Arc<Self>,
        mut settlement: Settlement,
        is_new: bool,
    ) -> Result<Option<Reservation>, NotReserved> {
        let Settlement { start, limits, held, .. } = settlement;
        let now = self.clock.now();
        let reserved = self.change(&start, |budget| {
            if is_new {
                agree(&mut budget.ledger, &start, now);
            }
            if !is_of(&budget.ledger, now) {
                return Ok(None);
            }
            limits.check(budget, &held, now).map_err(|over| (over, budget.ledger))?;
            let row = self.row(budget);
            budget.own.add(&held);
            Ok(Some((budget.ledger, row)))
        });
        (settlement.start, settlement.row) = match reserved.await? {
            Ok(Some(reserved)) => reserved,
            Ok(None) => return Ok(None),
            Err((over, ledger)) => {
                self.notices.look(&limits, &ledger, over.by_itself());
                return Err(NotReserved::Over(over));
            }
        };
        if let Place::Database { counted, .. } = &self.place
            && is_new
        {
            lock(counted).insert(start.api_key_id, start);
        }
        Ok(Some(Reservation { budgets: self, claim: Some(Claim::Held(settlement)) }))
    }

    async fn change<T>(&self, start: &Ledger, mut apply: impl FnMut(&mut Budget) -> T) -> store::Result<T> {
        match &self.place {
            Place::Memory(budgets) => {
                let nothing =
                    || Budget { ledger: *start, own: Held::default(), has_row: false, others: Held::default() };
                Ok(apply(lock(budgets).entry(start.api_key_id).or_insert_with(nothing)))
            }
            Place::Database { db, server, beat, .. } => loop {
                let server = Server { name: server, beat: beat.load(Ordering::Relaxed) };
                match store_budget::change(db, server, start, &mut apply).await {
                    // Another server has begun with the key at the same moment: now there is one.
                    Err(store::Error::Duplicate) => {}
                    done => return done,
                }
            },
        }
    }

    /// The row that this server holds something of a key in, or will; none: in memory. It is asked for while nobody else changes the
    /// key's budget.
    fn row(&self, budget: &Budget) -> Option<Arc<HeldRow>> {
        let Place::Database { rows, .. } = &self.place else { return None };
        let mut rows = lock(rows);
        let known = rows.entry(budget.ledger.api_key_id).or_default();
        Some(known.upgrade().filter(|_| budget.has_row).unwrap_or_else(|| {
            let row = Arc::new(HeldRow);
            *known = Arc::downgrade(&row);
            row
        }))
    }

    async fn settle(&self, settlement: &Settlement) -> store::Result<()> {
        let Settlement { start, limits, held, used, row } = settlement;
        let settled = self.change(start, |budget| {
            // What counts as used by now, since this server was taken for gone, is not taken from what later requests hold.
            let is_same = |row| budget.has_row && self.row(budget).is_some_and(|found| Arc::ptr_eq(row, &found));
            if row.as_ref().is_none_or(is_same) {
                budget.own.give_back(held);
            }
            budget.ledger.charge(start.period(), used.tokens(), used.cost.nanos());
            budget.ledger
        });
        self.notices.look(limits, &settled.await?, None);
        Ok(())
    }

    fn add_unheld(&self, key: ApiKeyId, period: Period, (tokens, cost): (i64, i64)) {
        match &self.place {
            Place::Memory(budgets) => {
                if let Some(budget) = lock(budgets).get_mut(&key) {
                    budget.ledger.charge(period, tokens, cost);
                }
            }
            Place::Database { .. } => {
                let mut unheld = lock(&self.unheld);
                let sum = unheld.entry((key, period)).or_default();
                *sum = (sum.0.saturating_add(tokens), sum.1.saturating_add(cost));
            }
        }
    }

    fn owe(&self, settlement: Settlement) {
        lock(&self.owed).push_back(settlement);
        self.woken.notify_one();
    }
}

/// The ledger of a key that begins with what the records have.
fn begun(key: &ApiKey, Period { day, month }: Period, used: &HashMap<ApiKeyId, (i64, i64)>) -> Ledger {
    let (tokens, cost_nano_usd) = used.get(&key.id).copied().unwrap_or_default();
    let (api_key_id, organization_id, key_version) = (key.id, key.organization_id, key.version);
    Ledger { api_key_id, organization_id, key_version, day, tokens, month, cost_nano_usd }
}

/// Whether the database is away: then nothing else would succeed either.
fn is_away(error: &store::Error) -> bool {
    matches!(error, store::Error::Unavailable(_))
}

/// Whether a ledger counts the day and the month of now. By a clock that is behind it may be ahead, but no further than clocks lie apart.
fn is_of(ledger: &Ledger, now: Timestamp) -> bool {
    let (from, to) = (Period::of(now), Period::of(now + LEEWAY));
    (from.day..=to.day).contains(&ledger.day) && (from.month..=to.month).contains(&ledger.month)
}

/// Makes a ledger agree with the records. Where it counts another day or month, a past one or one that has not come, it begins with
/// theirs; and while a key had no limits, nobody has counted here what it used.
fn agree(ledger: &mut Ledger, counted: &Ledger, now: Timestamp) {
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

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
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
            Some(Claim::Held(settlement)) => Settlement { used, ..settlement },
            Some(Claim::Unheld(key, period)) => {
                return self.budgets.add_unheld(key, period, (used.tokens(), used.cost.nanos()));
            }
            None => return,
        };
        let budgets = self.budgets.clone();
        let settling = async move {
            if let Err(error) = budgets.settle(&settlement).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what a request has used was not settled; it is tried again");
                budgets.owe(settlement);
            }
        };
        match &self.budgets.place {
            Place::Memory(_) => settling.await,
            // Done, whatever becomes of who waits for it.
            Place::Database { .. } => drop(self.budgets.tasks.spawn(settling).await),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(Claim::Held(settlement)) = self.claim.take() else { return };
        match &self.budgets.place {
            Place::Memory(budgets) => {
                if let Some(budget) = lock(budgets).get_mut(&settlement.start.api_key_id) {
                    budget.own.give_back(&settlement.held);
                }
            }
            Place::Database { .. } => self.budgets.owe(settlement),
        }
    }
}
